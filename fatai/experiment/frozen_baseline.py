"""Score of a frozen pretrained network on the clips of a run, out of fold, beside that of a network from scratch.

Nothing is downloaded: without the file of weights there is no baseline.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fatai.data.labels import multi_hot
from fatai.errors import FataiError
from fatai.experiment.build import recipe_network
from fatai.experiment.linear_head import EMBEDDINGS
from fatai.experiment.recipe import Recipe, load_recipe
from fatai.inference.embeddings import Embeddings, embed_clips
from fatai.inference.learning_curve import few_shot_curve
from fatai.inference.linear_probe import fit_linear_probe
from fatai.metrics.classification import main_metric
from fatai.models.weights import weights_path

__all__ = ["FrozenBaseline", "frozen_baseline", "probe_curve", "run_curve"]

_RECIPE = "probe"
_MAX_CELLS = 50_000  # clips times tags for which a curve takes seconds


@dataclass(frozen=True)
class FrozenBaseline:
    """Score of logistic regressions on a frozen network, out of fold.

    Attributes
    ----------
    arch, weights
        Network, and the name of its weights.
    metric, score
        "lwlrap", or with one tag "map", over the same held-out clips as the run's own score.
    seconds
        Wall clock.
    curve
        As `probe_curve` returns it.
    """

    arch: str
    weights: str
    metric: str
    score: float
    seconds: float
    curve: dict[str, Any]

    def __str__(self) -> str:
        return (
            f"a frozen {self.arch} with a logistic regression: {self.score:.3f} out of fold in {self.seconds:.0f} s; "
            f"--recipe {_RECIPE}"
        )


def frozen_baseline(table: pd.DataFrame, folds: np.ndarray, tags: Sequence[str]) -> FrozenBaseline | None:
    """Score recipe `probe` on the folds of a run; None if its weights are not on this machine.

    Parameters
    ----------
    table
        One row per clip: fname, path, labels.
    folds
        Shape (clips,): the fold that holds out each clip.
    tags
        Names of the tags.

    Raises
    ------
    CheckpointError
        If the file of weights is not the published one.
    """
    recipe, started = load_recipe(_RECIPE), time.monotonic()
    name, probe = recipe.model.options["pretrained"], recipe.stages[0].linear_probe
    if probe is None or not weights_path(name).is_file():
        return None
    network = recipe_network(recipe, len(tags), 1)
    # By number: curated clips of two folders may have the same name.
    rows = pd.DataFrame({"fname": [str(i) for i in range(len(table))], "path": table["path"].to_numpy()})
    embeddings = embed_clips(network, recipe.settings(), rows, n=1, bs=recipe.stages[0].bs)
    truth = rows.assign(labels=[",".join(labels) for labels in table["labels"]])[["fname", "labels"]]
    options: Any = probe
    fitted = fit_linear_probe(
        embeddings, truth, tags, folds=dict(zip(rows["fname"], folds.tolist(), strict=True)), C=options["C"],
        max_iter=int(options["max_iter"]),
    )
    seconds = time.monotonic() - started
    targ = multi_hot(table["labels"], tags)
    return FrozenBaseline(
        recipe.model.arch, name, main_metric(len(tags)), float(fitted.oof.oof_score or float("nan")), seconds,
        probe_curve(embeddings, targ, folds),
    )


def probe_curve(embeddings: Embeddings, targ: np.ndarray, folds: np.ndarray) -> dict[str, Any]:
    """Return the score of linear probes by the number of clips per tag, where that takes seconds; else nothing.

    Parameters
    ----------
    embeddings
        One row per clip.
    targ
        Flags, shape (clips, tags).
    folds
        Shape (clips,): the fold that holds out each clip.

    Returns
    -------
    `counts` and `scores`, lists of numbers, and `twice`, the score that twice the clips would bring.
    """
    known = embeddings.readable
    if targ.size > _MAX_CELLS or len(set(folds[known].tolist())) < 2:
        return {}
    curve = few_shot_curve(embeddings.values[known], targ[known], folds[known])
    if len(curve.counts) < 3:
        return {}
    return {"counts": list(curve.counts), "scores": list(curve.scores), "twice": curve.at_twice()}


def run_curve(
    out: str | os.PathLike[str], recipe: Recipe, table: pd.DataFrame, folds: np.ndarray, tags: Sequence[str]
) -> dict[str, Any]:
    """Return `probe_curve` of a run of linear probes alone, from the features that its folds stored; else nothing."""
    if len(recipe.stages) > 1 or recipe.stages[0].linear_probe is None:
        return {}
    values: dict[str, np.ndarray] = {}
    for path in sorted(Path(out).glob(f"fold_*/{EMBEDDINGS}")):
        try:
            part = Embeddings.load(path)
        except FataiError:
            return {}
        values |= dict(zip(part.fnames, part.values, strict=True))
    names = [str(name) for name in table["fname"]]
    if not set(names) <= set(values) or len(set(names)) < len(names):
        return {}
    rows = Embeddings(tuple(names), np.stack([values[name] for name in names]))
    return probe_curve(rows, multi_hot(table["labels"], tags), folds)
