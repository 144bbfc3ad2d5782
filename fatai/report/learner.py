"""`learn.report(path)`: the report of a learner's held-out part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fastai
import pandas as pd
import torch
from fastcore.basics import patch

from fatai import __version__
from fatai.io.atomic import write_text
from fatai.data.labels import multi_hot
from fatai.inference import tta
from fatai.inference.predictions import Predictions
from fatai.export.pretrained import Pretrained
from fatai.models import count_parameters
from fatai.report.data import ReportData
from fatai.report.html import REPORT, report_html
from fatai.training.learner import FatLearner

__all__ = ["learner_material"]


@patch
def report(self: FatLearner, path: str | Path = REPORT, *, preds: Predictions | None = None, **options: Any) -> Path:
    """Write one HTML file that tells how the held-out clips went: scores, costs, confusions, clips to listen to, curves; return its path.

    Parameters
    ----------
    path
        Of the file.
    preds
        Predictions of the held-out clips; None predicts them.
    options
        Of `learn.tta`, which predicts them: such as n=1 for the middle of each clip alone.
    """
    out = Path(path)
    write_text(out, report_html(learner_material(self, self.tta(**options) if preds is None else preds)))
    return out


def learner_material(learn: FatLearner, preds: Predictions) -> ReportData:
    """What a report of a learner is drawn from; `preds` are of its held-out clips."""
    tables = {"training": learn.dls.files(0), "held out": learn.dls.files(1)}
    held = tables["held out"]
    truth = multi_hot(held["labels"], learn.tags).astype(bool)
    network = Pretrained(learn.model, learn.tags, learn.settings, learn.dls.prior(), learn.calibration, {}, {})
    return ReportData(
        name="learner", kind="learner", tags=learn.tags, predictions=preds.select(preds.fnames, learn.tags),
        truth=dict(zip(held["fname"], truth, strict=True)), folds=dict.fromkeys(held["fname"], 0),
        paths=dict(zip(held["fname"], map(Path, held["path"]))),
        parts={name: [Path(p) for p in table["path"]] for name, table in tables.items() if len(table)},
        broken=tuple(f"{name}: cannot be read" for name in (*learn.dls.unreadable, *preds.unreadable)),
        histories=_history(learn), network=lambda fold: network, calibration=None, notes={"Learner": _described(learn)},
    )


def _history(learn: FatLearner) -> dict[str, pd.DataFrame]:
    """What the recorder kept of the last fit."""
    recorder: Any = getattr(learn, "recorder", None)
    values = list(getattr(recorder, "values", ()))
    if not values:
        return {}
    names = [name for name in recorder.metric_names if name not in ("epoch", "time")]
    table = pd.DataFrame([list(row)[:len(names)] for row in values], columns=names[:len(values[0])]).astype(float)
    return {"last fit": table.assign(epoch=range(len(table)), stage="fit")}


def _described(learn: FatLearner) -> str:
    built_as = getattr(learn.model, "built_as", None)
    return json.dumps(
        {
            "network": type(learn.model).__name__ if built_as is None else built_as.arch,
            "parameters": count_parameters(learn.model),
            "tags": list(learn.tags),
            "clips are read": repr(learn.settings),
            "loss": str(learn.loss_func),
            "batch": learn.dls.bs,
            "versions": {"fatai": __version__, "fastai": fastai.__version__, "torch": torch.__version__},
        },
        indent=2,
        ensure_ascii=False,
    )
