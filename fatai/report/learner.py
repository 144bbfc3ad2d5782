"""The report of a learner's held-out clips, which `FatLearner.report` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fastai
import pandas as pd
import torch

from fatai import __version__
from fatai.data.labels import multi_hot
from fatai.export.pretrained import Pretrained
from fatai.inference.learner import FatLearner
from fatai.inference.predictions import Predictions
from fatai.io.atomic import write_text
from fatai.models import count_parameters
from fatai.registry import REPORTS
from fatai.report.data import ReportData
from fatai.report.html import REPORT, report_html

__all__ = ["learner_report"]


@REPORTS.register("learner", source="own design")
def learner_report(
    learn: FatLearner, path: str | Path = REPORT, *, preds: Predictions | None = None, **options: Any
) -> Path:
    """Write an HTML report of a learner's held-out clips and return its path.

    It has scores, costliest tags, confusions, clips with players, and the curves of the last fit.

    Parameters
    ----------
    learn
        The learner.
    path
        File to write.
    preds
        Predictions of the held-out clips; None predicts them by `learn.tta(**options)`, such as n=1 for the middle of
        each clip alone.
    """
    out = Path(path)
    write_text(out, report_html(learner_report_data(learn, learn.tta(**options) if preds is None else preds)))
    return out


def learner_report_data(learn: FatLearner, preds: Predictions) -> ReportData:
    """Collect the data of a report from a learner and predictions of its held-out clips."""
    tables = {"training": learn.dls.files(0), "held out": learn.dls.files(1)}
    valid = tables["held out"]
    truth = multi_hot(valid["labels"], learn.tags).astype(bool)
    network = Pretrained(learn.model, learn.tags, learn.clip_config, learn.dls.prior(), learn.calibration, {}, {})
    return ReportData(
        name="learner",
        kind="learner",
        tags=learn.tags,
        predictions=preds.select(preds.fnames, learn.tags),
        truth=dict(zip(valid["fname"], truth, strict=True)),
        folds=dict.fromkeys(valid["fname"], 0),
        paths=dict(zip(valid["fname"], map(Path, valid["path"]), strict=True)),
        parts={name: [Path(p) for p in table["path"]] for name, table in tables.items() if len(table)},
        broken=tuple(f"{name}: cannot be read" for name in (*learn.dls.unreadable, *preds.unreadable)),
        histories=_last_fit(learn),
        network=lambda fold: network,
        notes={"Learner": _description(learn)},
    )


def _last_fit(learn: FatLearner) -> dict[str, pd.DataFrame]:
    """Return the epochs that the recorder has of the last fit."""
    recorder: Any = getattr(learn, "recorder", None)
    values = list(getattr(recorder, "values", ()))
    if not values:
        return {}
    names = [name for name in recorder.metric_names if name not in ("epoch", "time")]
    table = pd.DataFrame([list(row)[:len(names)] for row in values], columns=names[:len(values[0])]).astype(float)
    return {"last fit": table.assign(epoch=range(len(table)), stage="fit")}


def _description(learn: FatLearner) -> str:
    built_as = getattr(learn.model, "built_as", None)
    return json.dumps(
        {
            "network": type(learn.model).__name__ if built_as is None else built_as.arch,
            "parameters": count_parameters(learn.model),
            "tags": list(learn.tags),
            "clip settings": repr(learn.clip_config),
            "loss": str(learn.loss_func),
            "batch size": learn.dls.bs,
            "versions": {"fatai": __version__, "fastai": fastai.__version__, "torch": torch.__version__},
        },
        indent=2,
        ensure_ascii=False,
    )
