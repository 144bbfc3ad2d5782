"""A finished run, from a folder that may come from a stranger, to predictions for any clips."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fatai.data.blocks import WaveToSpec
from fatai.errors import CheckpointError
from fatai.infer.ensemble import ensemble
from fatai.infer.predictions import Predictions
from fatai.infer.tta import predict_clips, with_priors
from fatai.recipes.fold import WEIGHTS
from fatai.recipes.recipe import load_recipe
from fatai.registry import VIEWS
from fatai.train.crossval import load_weights, notes_of
from fatai.train.learner import named_model
from fatai.train.precision import autocast_for, fast_layout

__all__ = ["predict_with_run"]


def predict_with_run(run: str | Path, items: pd.DataFrame | Sequence[str | Path], *, bs: int = 64, num_workers: int = 0) -> Predictions:
    """Predict clips with every fold of a finished run, averaged.

    Parameters
    ----------
    items
        Paths, or a table with columns fname and path.

    Raises
    ------
    CheckpointError
        If `run` is no run folder, or its weights don't fit its recipe.
    """
    run = Path(run)
    weights = sorted(run.glob(f"fold_*/{WEIGHTS}"))
    if not (run / "recipe.toml").is_file() or not weights:
        raise CheckpointError(f"{run} is no finished run; expected recipe.toml and fold_0/{WEIGHTS} in it, as fatai-submit run makes them")
    recipe = load_recipe(run / "recipe.toml")
    if isinstance(items, pd.DataFrame):
        names, paths = [str(n) for n in items["fname"]], [str(p) for p in items["path"]]
    else:
        names, paths = [Path(p).name for p in items], [str(p) for p in items]
    settings, listen = recipe.settings(), recipe.listen
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parts = []
    for path in weights:
        tags, in_channels, prior = _notes(path)
        network = recipe.model
        model = named_model(network.arch, len(tags), in_channels, settings.front_end, width=network.width, options=network.options)
        load_weights(path, model)
        model = fast_layout(model.to(device), device, recipe.precision)
        answers = predict_clips(
            model, settings, paths, len(tags), views=VIEWS.build(listen.how, n=listen.n), to_spec=WaveToSpec(settings),
            arithmetic=autocast_for(device, recipe.precision), device=device, bs=bs, num_workers=num_workers, seed=recipe.seed,
            what=path.parent.name.replace("_", " "),
        )
        parts.append(with_priors(names, tags, answers, prior))
    return ensemble(parts, how="mean")


def _notes(path: Path) -> tuple[list[str], int, np.ndarray]:
    """Tags, channels and prior that stand beside the weights; the file may come from a stranger, so nothing is taken on trust."""
    try:
        notes = json.loads(notes_of(path)["fatai"])
        tags, in_channels, prior = [str(t) for t in notes["tags"]], int(notes["in_channels"]), np.array(notes["prior"], dtype=np.float64)
    except (KeyError, TypeError, ValueError) as e:
        raise CheckpointError(f"{path} does not say its tags, channels and prior ({e}); expected weights of fatai-submit run") from None
    if not 0 < len(tags) <= 100_000 or not 0 < in_channels <= 64 or prior.shape != (len(tags),):
        raise CheckpointError(f"{path} names {len(tags)} tags, {in_channels} channels and {prior.shape} priors; these don't go together")
    return tags, in_channels, prior
