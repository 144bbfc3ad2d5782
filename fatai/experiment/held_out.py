"""Scores of the held-out clips of a run, noted in the models that are exported from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fatai.ensemble.members import read_folds
from fatai.experiment.ensemble_folder import main_run
from fatai.experiment.manifest import read_manifest
from fatai.experiment.recipe import load_recipe
from fatai.experiment.run_folder import trained_model
from fatai.export.learner import initial_weights
from fatai.export.model_card import score_notes
from fatai.export.pretrained import Pretrained, is_model_folder
from fatai.inference.ground_truth import read_truth
from fatai.inference.predictions import Predictions

__all__ = ["held_out_scores", "scored_model"]


def scored_model(run: str | Path, fold: int = 0) -> Pretrained:
    """Load one fold of a run with notes on its data and scores, or a model folder as it is.

    Parameters
    ----------
    run, fold
        As in `trained_model`, which also lists the errors.
    """
    run = main_run(run)
    model = trained_model(run, fold)
    if is_model_folder(run):
        return model
    network, data = load_recipe(run / "recipe.toml").model, (read_manifest(run) or {}).get("data", {})
    notes = {
        "scores": held_out_scores(run, fold),
        **initial_weights(network.arch, network.options.get("pretrained")),
        **({"dataset": data["folder"]} if isinstance(data.get("folder"), str) else {}),
    }
    return replace(model, training={**model.training, **notes})


def held_out_scores(run: str | Path, fold: int) -> list[dict[str, Any]]:
    """Score the out-of-fold predictions of a fold, and if there are several folds those of all.

    Returns
    -------
    A list of `ScoreNote` as dictionaries; empty if the run has no such predictions or no labels of them.

    Raises
    ------
    DataError, LabelError
        If oof.csv or folds.csv is damaged.
    """
    run = Path(run)
    oof, table = run / "oof.csv", run / "folds.csv"
    if not oof.is_file() or not table.is_file():
        return []
    preds, folds = Predictions.from_csv(oof), read_folds(table)
    labels = pd.read_csv(table, dtype=str, keep_default_na=False)
    if "labels" not in labels.columns:
        return []
    truth = read_truth(labels[["fname", "labels"]], preds.tags)
    selected = load_recipe(run / "recipe.toml").selects_on_held_out
    held_out = [name for name in preds.fnames if name in truth and name in folds]
    own = [name for name in held_out if folds[name] == fold]

    def notes(names: list[str], clips: str, is_own: bool) -> list[dict[str, Any]]:
        targ = np.array([truth[name] for name in names])
        return score_notes(preds.select(names).probs, targ, clips, selected=selected, is_own=is_own) if names else []

    everything = notes(held_out, "held-out clips of all folds, each predicted by the network of its fold", False)
    return notes(own, f"held-out clips of fold {fold}", True) + (everything if len(held_out) > len(own) else [])
