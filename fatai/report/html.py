"""The report: one HTML file that opens with a double click, asks nobody for anything, and is the same for the same run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fatai.io.atomic import write_text
from fatai.data.datasets.fat2019 import FATDataset
from fatai.report.sections.training import data_audit, fold_audit, speed, training_curves
from fatai.report.sections.examples import best_and_worst, filters
from fatai.report.data import ReportData, SectionUnavailable, material_of_run
from fatai.report.media import short
from fatai.report.sections.metrics import calibration, confused, costs, overall, per_tag

__all__ = ["REPORT", "report_html", "run_report"]

REPORT = "report.html"
"""Name of the file in a run folder."""

# In the order of the page; the template has a block of each name.
_PARTS: dict[str, Callable[[ReportData], dict[str, Any]]] = {
    "overall": overall,
    "costs": costs,
    "per_tag": per_tag,
    "confused": confused,
    "clips": best_and_worst,
    "calibration": calibration,
    "curves": training_curves,
    "data": data_audit,
    "folds": fold_audit,
    "filters": filters,
    "speed": speed,
}


def run_report(run: str | Path, data: str | Path | FATDataset | None = None, out: str | Path | None = None) -> Path:
    """Write the report of a finished run, or of an ensemble of runs, and return its path.

    Parameters
    ----------
    run
        The run folder, which may come from a stranger.
    data
        The data it was made with, for the sounds; without it the report has no players and spectrograms.
    out
        Where to write; report.html in the run folder if None.

    Raises
    ------
    CheckpointError
        If `run` holds no run.
    DataError
        If `data` cannot be read.
    """
    path = Path(run) / REPORT if out is None else Path(out)
    write_text(path, report_html(material_of_run(run, data)))
    return path


def report_html(material: ReportData) -> str:
    """The page; a part that cannot be drawn is a sentence."""
    parts: dict[str, Any] = {}
    for name, make in _PARTS.items():
        try:
            parts[name] = make(material)
        except SectionUnavailable as e:
            parts[name] = str(e)
    return _environment().get_template("report.html").render(of=material, **parts)


def _environment() -> Environment:
    # Everything is escaped that is not Markup: names of files and tags come from strangers.
    made = Environment(
        loader=PackageLoader("fatai.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"short": short, "number": _number}
    return made


def _number(value: Any, digits: int = 3) -> str:
    """A number with so many digits; a dash for none."""
    return "–" if value is None or value != value else f"{value:.{digits}f}"
