"""Render a report as one self-contained HTML file: no network, and the same bytes for the same run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from fatai.data.datasets.fat2019 import FATDataset
from fatai.io.atomic import write_text
from fatai.report.data import ReportData, SectionUnavailable, load_report_data
from fatai.report.media import shorten
from fatai.report.sections.examples import best_and_worst_clips, first_layer_filters
from fatai.report.sections.metrics import calibration, confusions, costs, false_alarms, overall, per_tag
from fatai.report.sections.training import clips_per_tag, data_summary, fold_summary, speed, training_curves

if TYPE_CHECKING:  # imported where it is used: `fatai.all` imports this module
    from jinja2 import Environment

__all__ = ["REPORT", "report_html", "run_report"]

REPORT = "report.html"
"""Name of the file in a run folder."""

# In the order of the page; the template has a block of each name.
_SECTIONS: dict[str, Callable[[ReportData], dict[str, Any]]] = {
    "overall": overall,
    "costs": costs,
    "per_tag": per_tag,
    "confusions": confusions,
    "clips": best_and_worst_clips,
    "calibration": calibration,
    "background": false_alarms,
    "curves": training_curves,
    "data": data_summary,
    "folds": fold_summary,
    "amount": clips_per_tag,
    "filters": first_layer_filters,
    "speed": speed,
}


def run_report(run: str | Path, data: str | Path | FATDataset | None = None, out: str | Path | None = None) -> Path:
    """Write the report of a finished run, or of an ensemble of runs, and return its path.

    Parameters
    ----------
    run
        The run folder; it need not be trusted.
    data
        The data that the run was trained on; without it the report has no players and spectrograms.
    out
        File to write; report.html in the run folder if None.

    Raises
    ------
    CheckpointError
        If `run` is no run folder.
    DataError
        If `data` cannot be read.
    """
    path = Path(run) / REPORT if out is None else Path(out)
    write_text(path, report_html(load_report_data(run, data)))
    return path


def report_html(report: ReportData) -> str:
    """Render the page; a section that is not available becomes a sentence."""
    sections: dict[str, Any] = {}
    for name, make in _SECTIONS.items():
        try:
            sections[name] = make(report)
        except SectionUnavailable as e:
            sections[name] = str(e)
    return page_environment().get_template("report.html").render(report=report, **sections)


@cache
def page_environment() -> Environment:
    """Return the environment of the pages' templates, which compiles each of them once."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # All that is no Markup is escaped: names of files and tags are untrusted.
    environment = Environment(
        loader=PackageLoader("fatai.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shorten": shorten, "number": _format_number, "breakable": _breakable}
    return environment


def _breakable(name: str) -> Markup:
    """Let a narrow column break a name after its underscores."""
    return Markup("_<wbr>").join(name.split("_"))


def _format_number(value: Any, digits: int = 3) -> str:
    """Format a number with `digits` decimals; a dash for None or NaN."""
    return "–" if value is None or value != value else f"{value:.{digits}f}"
