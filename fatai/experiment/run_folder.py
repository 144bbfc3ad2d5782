"""A finished run, from a folder that may come from a stranger, to predictions for any clips."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from fatai.errors import CheckpointError, OptionError
from fatai.ensemble.ensemble import ensemble
from fatai.inference.predictions import Predictions
from fatai.export.pretrained import Pretrained, is_model_folder, load_pretrained
from fatai.inference.predictor import ClipPredictions, Predictor
from fatai.inference.tta import build_views, names_and_paths, predict_files, with_priors
from fatai.experiment.fold import WEIGHTS
from fatai.experiment.build import recipe_network
from fatai.experiment.recipe import Recipe, load_recipe
from fatai.metrics.calibration import CALIBRATION, Calibration
from fatai.metrics.thresholds import Thresholds
from fatai.io.json import parse_json
from fatai.models.checkpoint import load_weights, read_metadata
from fatai.training.precision import fast_layout

__all__ = ["FinishedRun", "TrainedFold", "predict_with_run", "thresholds_of_run", "trained_model"]


@dataclass(frozen=True, eq=False)
class TrainedFold:
    """A fold's network on its device, the tags that it answers for and the share of its training clips that had each."""

    name: str
    model: nn.Module
    tags: tuple[str, ...]
    prior: np.ndarray


@dataclass(frozen=True)
class FinishedRun:
    """A run folder that holds a recipe and weights; `folds` loads them one after another."""

    folder: Path
    recipe: Recipe
    weights: tuple[Path, ...]
    device: torch.device

    @classmethod
    def open(cls, run: str | Path) -> FinishedRun:
        """Raises `CheckpointError` if `run` is no run folder, `RecipeError` if its recipe does not hold."""
        run = Path(run)
        weights = tuple(sorted(run.glob(f"fold_*/{WEIGHTS}")))
        if not (run / "recipe.toml").is_file() or not weights:
            raise CheckpointError(
                f"{run} is no finished run; expected recipe.toml and fold_0/{WEIGHTS} in it, as fatai-submit run makes "
                "them"
            )
        return cls(
            run, load_recipe(run / "recipe.toml"), weights, torch.device("cuda" if torch.cuda.is_available() else "cpu")
        )

    def folds(self) -> Iterator[TrainedFold]:
        """Every fold's network; raises `CheckpointError` where weights don't fit the recipe."""
        for path in self.weights:
            tags, in_channels, prior = _notes(path)
            model = recipe_network(self.recipe, len(tags), in_channels, pretrained=False)
            load_weights(path, model)
            model = fast_layout(model.to(self.device), self.device, self.recipe.precision).eval()
            yield TrainedFold(path.parent.name, model, tuple(tags), prior)


def predict_with_run(
    run: str | Path,
    items: pd.DataFrame | Sequence[str | Path],
    *,
    views: str | None = None,
    n: int | None = None,
    average: str | None = None,
    save_views: str | Path | None = None,
    calibrated: bool = False,
    bs: int = 64,
    num_workers: int = 0,
    **options: Any,
) -> Predictions:
    """Predict clips with every fold of a finished run, averaged, or with a model folder.

    Parameters
    ----------
    items
        Paths, or a table with columns fname and path.
    views, n, average, options
        Views and their mean, as in `learn.tta`; None takes what the run's recipe says, or of a model folder 8 even ones. With other
        `views` nothing of its number and options is taken over.
    save_views
        A folder that gets the probabilities of every single view, a file fold_K.npz for each fold, or model.npz; `load_views` reads them.
    calibrated
        Whether the run's calibration.json, or that of the model folder, is applied to the mean of the folds.

    Raises
    ------
    CheckpointError
        If `run` is neither a run nor a model folder, its weights don't fit it, or it has no calibration that was asked for.
    """
    if is_model_folder(run):
        return model_folder(run, calibrated).tta(
            items, views=views or "even", n=n, average=average or "probs", bs=bs, num_workers=num_workers,
            save_views=None if save_views is None else Path(save_views) / "model.npz", **options,
        )
    opened = FinishedRun.open(run)
    recipe, settings = opened.recipe, opened.recipe.settings()
    if views is None:
        views, n, options = recipe.tta.views, n or recipe.tta.n, {**recipe.tta.options, **options}
    view_kind = build_views(views, n, **options)
    names, paths = names_and_paths(items)
    # Read first: without it, the clips need not be listened to.
    calibration = Calibration.from_json(opened.folder / CALIBRATION) if calibrated else None

    def predict(fold: TrainedFold, save_to: Path | None = None) -> ClipPredictions:
        predictor = Predictor(
            fold.model, settings, view_kind, len(fold.tags), precision=recipe.precision, device=opened.device, bs=bs,
            num_workers=num_workers, seed=recipe.seed, average=average or recipe.tta.average,
        )
        return predict_files(
            predictor, names, paths, fold.tags, save_views=save_to, desc=fold.name.replace("_", " ")
        )

    parts = []
    if save_views is None:
        for folds in _with_the_same_tags(opened.folds()):
            output = predict(_as_one(folds))
            each = np.split(output.probs, len(folds), axis=1)
            parts += [
                with_priors(names, fold.tags, output._replace(probs=probs), fold.prior)
                for fold, probs in zip(folds, each, strict=True)
            ]
    else:
        for fold in opened.folds():
            output = predict(fold, Path(save_views) / f"{fold.name}.npz")
            parts.append(with_priors(names, fold.tags, output, fold.prior))
    predicted = ensemble(parts, how=recipe.tta.fold_average)
    return predicted if calibration is None else predicted.calibrated(calibration)


class _SideBySide(nn.Module):
    """Networks that hear the same spectrogram: (clips, networks * tags)."""

    def __init__(self, networks: Iterable[nn.Module]):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, spec: Tensor) -> Tensor:
        return torch.cat([network(spec) for network in self.networks], 1)


def _as_one(folds: Sequence[TrainedFold]) -> TrainedFold:
    """Folds that listen together: a clip is read, cut and turned into spectrograms once for all of them."""
    if len(folds) == 1:
        return folds[0]
    return TrainedFold(
        f"{len(folds)} folds", _SideBySide(fold.model for fold in folds), len(folds) * folds[0].tags,
        np.concatenate([fold.prior for fold in folds]),
    )


def _with_the_same_tags(folds: Iterable[TrainedFold]) -> Iterator[list[TrainedFold]]:
    """Folds that follow each other and answer for the same tags in the same order, as those of one run do."""
    for _, same in groupby(folds, key=lambda fold: fold.tags):
        yield list(same)


def model_folder(folder: str | Path, calibrated: bool) -> Pretrained:
    """A model folder, with its calibration or without; raises `CheckpointError` if that is asked for and not there."""
    held = load_pretrained(folder)
    if calibrated and held.calibration is None:
        raise CheckpointError(
            f"{folder} holds no calibration; expected a model that was calibrated before it was saved"
        )
    return held if calibrated else replace(held, calibration=None)


def trained_model(run: str | Path, fold: int = 0) -> Pretrained:
    """One fold of a finished run with the run's calibration, if it has one, or the model in a model folder, which has no folds.

    Raises
    ------
    OptionError
        If the fold was not trained.
    CheckpointError
        As `predict_with_run`.
    """
    if is_model_folder(run):
        return load_pretrained(run)
    opened = FinishedRun.open(run)
    weights = [path for path in opened.weights if path.parent.name == f"fold_{fold}"]
    if not weights:
        raise OptionError(
            f"{run} has no fold {fold}; expected one of {', '.join(path.parent.name[5:] for path in opened.weights)}"
        )
    held, path = next(replace(opened, weights=tuple(weights)).folds()), opened.folder / CALIBRATION
    calibration = Calibration.from_json(path) if path.exists() else None
    training = {"recipe": opened.recipe.model_dump(), "fold": fold}
    return Pretrained(
        held.model, held.tags, opened.recipe.settings(), held.prior, calibration, training, {}, opened.recipe.precision
    )


def thresholds_of_run(run: str | Path) -> Thresholds:
    """The thresholds that belong to a run's or model folder's calibrated probabilities; raises `CheckpointError` if it has none."""
    if is_model_folder(run):
        held = model_folder(run, True).calibration
        thresholds = None if held is None else held.thresholds
    else:
        thresholds = Calibration.from_json(Path(run) / CALIBRATION).thresholds
    if thresholds is None:
        raise CheckpointError(
            f"{run}/{CALIBRATION} holds no thresholds; find them with fatai-submit calibrate --thresholds f1"
        )
    return thresholds


def _notes(path: Path) -> tuple[list[str], int, np.ndarray]:
    """Tags, channels and prior that stand beside the weights; the file may come from a stranger, so nothing is taken on trust."""
    try:
        notes = parse_json(read_metadata(path)["fatai"])
        tags, in_channels, prior = (
            [str(t) for t in notes["tags"]],
            int(notes["in_channels"]),
            np.array(notes["prior"], dtype=np.float64),
        )
    except (KeyError, TypeError, ValueError) as e:
        raise CheckpointError(
            f"{path} does not say its tags, channels and prior ({e}); expected weights of fatai-submit run"
        ) from None
    if not 0 < len(tags) <= 100_000 or not 0 < in_channels <= 64 or prior.shape != (len(tags),):
        raise CheckpointError(
            f"{path} names {len(tags)} tags, {in_channels} channels and {prior.shape} priors; these don't go together"
        )
    return tags, in_channels, prior
