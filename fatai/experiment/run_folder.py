"""Load finished runs and predict with them.

Run folders may be untrusted: nothing in them is executed or assumed to be valid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastcore.meta import delegates
from torch import Tensor, nn

from fatai.data.config import ClipConfig
from fatai.device import inference_device
from fatai.ensemble.ensemble import ensemble
from fatai.errors import CheckpointError, OptionError
from fatai.experiment.build import recipe_network
from fatai.experiment.ensemble_folder import EnsembleFolder, is_ensemble_folder, main_run
from fatai.experiment.recipe import Recipe, load_recipe
from fatai.experiment.schema import TTA
from fatai.export.pretrained import Pretrained, is_model_folder, load_pretrained
from fatai.inference.events.averaged import AveragedTagger, common_step
from fatai.inference.events.tagger import SlidingWindowTagger
from fatai.inference.predictions import Predictions
from fatai.inference.predictor import ClipPredictions, Predictor
from fatai.inference.tta import build_views, names_and_paths, predict_files, with_priors
from fatai.inference.views import Views
from fatai.io.json import parse_json
from fatai.io.lazy import pandas as pd
from fatai.metrics.calibration import CALIBRATION, Calibration
from fatai.metrics.thresholds import Thresholds
from fatai.models.checkpoint import load_weights, read_metadata
from fatai.models.openvino import with_backend
from fatai.training.autocast import fast_layout

__all__ = [
    "FinishedRun", "Tagger", "TrainedFold", "find_calibration", "predict_with_run", "thresholds_of_run",
    "trained_model",
]

WEIGHTS = "model.safetensors"
"""File of the network in the folder of a fold."""


@dataclass(frozen=True, eq=False)
class TrainedFold:
    """The network of a fold.

    Attributes
    ----------
    name
        Name of its folder, such as "fold_0".
    model
        The network in evaluation mode, on its device: spectrograms (clips, channels, mels, frames) to logits (clips,
        tags).
    tags
        Names of its outputs.
    prior
        float64, shape (tags,): fraction of the training clips with each tag, the prediction for an unreadable clip.
    """

    name: str
    model: nn.Module
    tags: tuple[str, ...]
    prior: np.ndarray


@dataclass(frozen=True)
class FinishedRun:
    """A run folder with a recipe and weights.

    Attributes
    ----------
    folder, recipe
        The run folder and its recipe.
    weights
        The weights file of each fold, by number.
    device
        Device of the networks.
    backend
        What runs the networks, a name of `fatai.models.openvino.BACKENDS`.
    """

    folder: Path
    recipe: Recipe
    weights: tuple[Path, ...]
    device: torch.device
    backend: str = "torch"

    @classmethod
    def open(cls, run: str | Path, *, backend: str = "torch") -> FinishedRun:
        """Open a run folder; weights are loaded later.

        Raises
        ------
        CheckpointError
            If `run` is not a run folder.
        RecipeError
            If its recipe is not valid.
        """
        run = Path(run)
        found = (path for path in run.glob(f"fold_*/{WEIGHTS}") if path.parent.name[5:].isdecimal())
        weights = tuple(sorted(found, key=_fold_number))
        if not (run / "recipe.toml").is_file() or not weights:
            raise CheckpointError(
                f"{run} is not a finished run; expected recipe.toml and fold_0/{WEIGHTS} in it, as fatai-submit run "
                "writes them"
            )
        # OpenVINO runs networks on the CPU.
        device = inference_device() if backend == "torch" else torch.device("cpu")
        return cls(run, load_recipe(run / "recipe.toml", trains=False), weights, device, backend)

    @property
    def fold_numbers(self) -> list[int]:
        """Numbers of the trained folds, from 0, ascending, in the order of `folds`."""
        return [_fold_number(path) for path in self.weights]

    def folds(self) -> Iterator[TrainedFold]:
        """Load and yield the network of each fold; raises `CheckpointError` if the weights do not fit the recipe."""
        for path in self.weights:
            tags, in_channels, prior = _metadata(path)
            model = recipe_network(self.recipe, len(tags), in_channels, pretrained=False)
            load_weights(path, model)
            model = fast_layout(model.to(self.device), self.device, self.recipe.precision).eval()
            yield TrainedFold(path.parent.name, with_backend(model, self.backend), tuple(tags), prior)

    def calibration(self, calibrate: bool | None = None) -> Calibration | None:
        """Load the calibration of the run as `find_calibration` does."""
        return find_calibration(self.folder, calibrate)


def _fold_number(weights: Path) -> int:
    """Return the number of the fold that a weights file belongs to, by the name of its folder."""
    return int(weights.parent.name[5:])


def find_calibration(folder: str | Path, calibrate: bool | None = None) -> Calibration | None:
    """Load the calibration of a run or an ensemble.

    Parameters
    ----------
    folder
        The folder of the run or the ensemble.
    calibrate
        None loads it if there is one, as in all runs but those of old versions; True requires it; False returns None.

    Raises
    ------
    CheckpointError
        If it is required and missing, or not valid.
    """
    path = Path(folder, CALIBRATION)
    return Calibration.from_json(path) if calibrate or calibrate is None and path.exists() else None


def predict_with_run(
    run: str | Path,
    items: pd.DataFrame | Sequence[str | Path | tuple[str, str | Path]],
    *,
    views: str | None = None,
    n: int | None = None,
    average: str | None = None,
    save_views: str | Path | None = None,
    calibrate: bool | None = None,
    channel: str | int | None = None,
    backend: str = "torch",
    bs: int = 64,
    num_workers: int = 0,
    **options: Any,
) -> Predictions:
    """Predict clips with every fold of a finished run, averaged, with all runs of an ensemble, or with a model folder.

    Parameters
    ----------
    run
        A run folder, the folder of an ensemble, or a model folder.
    items
        Paths, pairs of a name and a path, or a table with columns fname and path.
    views, n, average, options
        Views and their average, as in `learn.tta`; None takes those of the run's recipe, or for a model folder 8 "even"
        views. With other `views`, number and options of the recipe are not used.
    save_views
        A folder for the probabilities of every view: a file fold_K.npz per fold, or model.npz, for `load_views`; of an
        ensemble a folder for each run.
    calibrate
        Whether to apply the calibration of the run or the model folder to the average of the folds; None applies it if
        there is one.
    channel
        Channel of sound files instead of that of training, as in `load_audio`; "each" averages the views of all
        channels of a clip.
    backend
        What runs the networks, a name of `fatai.models.openvino.BACKENDS`: "openvino" is faster than "torch" on CPUs.
    bs, num_workers
        Views per batch and processes that load sound.

    Returns
    -------
    One row per clip, in the order of `items`.

    Raises
    ------
    CheckpointError
        If `run` is neither a run nor a model folder, its weights do not fit, or it has no calibration although
        `calibrate` is True.
    """
    if is_model_folder(run):
        model = load_model_folder(run, calibrate, backend)
        return replace(model, settings=with_channel(model.settings, channel)).tta(
            items, views=views or "even", n=n, average=average or "probs", bs=bs, num_workers=num_workers,
            save_views=None if save_views is None else Path(save_views) / "model.npz", **options,
        )
    if is_ensemble_folder(run):
        shared: dict[str, Any] = {"views": views, "n": n, "average": average, "channel": channel, "bs": bs}
        return _predict_with_members(
            EnsembleFolder.open(run), items, save_views, calibrate, num_workers=num_workers, backend=backend,
            **shared, **options,
        )
    opened = FinishedRun.open(run, backend=backend)
    tta = opened.recipe.tta
    calibration = opened.calibration(calibrate)  # before predicting, which takes long: it may not be valid
    predictor = _FoldPredictor(
        opened, choose_views(tta, views, n, options), *names_and_paths(items), average or tta.average, bs,
        num_workers, channel,
    )
    parts = predictor.predict() if save_views is None else predictor.predict_and_save(Path(save_views))
    predictions = ensemble(parts, how=tta.fold_average)
    return predictions if calibration is None else predictions.calibrated(calibration)


def choose_views(tta: TTA, views: str | None, n: int | None, options: dict[str, Any]) -> Views:
    """Build views of the given kind; None takes those of a recipe, with another number or further options if given."""
    if views is None:
        views, n, options = tta.views, tta.n if n is None else n, {**tta.options, **options}
    return build_views(views, n, **options)


def _predict_with_members(
    opened: EnsembleFolder, items: Any, save_views: str | Path | None, calibrate: bool | None, **options: Any
) -> Predictions:
    """Predict with each run of an ensemble and average by its weights; `options` are those of `predict_with_run`."""
    calibration = find_calibration(opened.folder, calibrate)
    runs, parts = opened.runs, []
    for run in runs:
        folder = None if save_views is None else Path(save_views) / run.name
        parts.append(predict_with_run(run, items, save_views=folder, calibrate=False, **options))
    predictions = ensemble(parts, opened.how, list(runs.values()))
    return predictions if calibration is None else predictions.calibrated(calibration)


@dataclass(frozen=True)
class _FoldPredictor:
    """Predict clips with each fold of a run."""

    run: FinishedRun
    views: Views
    names: Sequence[str]
    paths: Sequence[str]
    average: str
    bs: int
    num_workers: int
    channel: str | int | None = None

    def predict(self) -> list[Predictions]:
        """Predict with all folds at once: each clip is loaded once for consecutive folds with the same tags."""
        outputs = predict_jointly(self.run.folds(), self._predict_fold)
        return [with_priors(self.names, fold.tags, output, fold.prior) for fold, output in outputs]

    def predict_and_save(self, folder: Path) -> list[Predictions]:
        """Predict with one fold after the other and save the probabilities (views, tags) of every view per fold."""
        return [
            with_priors(self.names, fold.tags, self._predict_fold(fold, folder / f"{fold.name}.npz"), fold.prior)
            for fold in self.run.folds()
        ]

    def _predict_fold(self, fold: TrainedFold, save_views: Path | None = None) -> ClipPredictions:
        recipe = self.run.recipe
        predictor = Predictor(
            fold.model, with_channel(recipe.settings(), self.channel), self.views, len(fold.tags),
            precision=recipe.precision, device=self.run.device, bs=self.bs, num_workers=self.num_workers,
            seed=recipe.seed, average=self.average,
        )
        desc = fold.name.replace("_", " ")
        return predict_files(predictor, self.names, self.paths, fold.tags, save_views=save_views, desc=desc)


def with_channel(settings: ClipConfig, channel: str | int | None) -> ClipConfig:
    return settings if channel is None else replace(settings, channel=channel)


class _ConcatModels(nn.Module):
    """Several networks on the same spectrograms (clips, channels, mels, frames); logits (clips, networks * tags)."""

    def __init__(self, models: Iterable[nn.Module]):
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, spec: Tensor) -> Tensor:
        return torch.cat([model(spec) for model in self.models], 1)


def _joined(folds: Sequence[TrainedFold]) -> TrainedFold:
    """Return folds as one network with the outputs of all of them side by side."""
    if len(folds) == 1:
        return folds[0]
    return TrainedFold(
        f"{len(folds)} folds", _ConcatModels(fold.model for fold in folds), len(folds) * folds[0].tags,
        np.concatenate([fold.prior for fold in folds]),
    )


def predict_jointly(
    folds: Iterable[TrainedFold], predict: Callable[[TrainedFold], ClipPredictions]
) -> Iterator[tuple[TrainedFold, ClipPredictions]]:
    """Yield each fold with its predictions; clips are loaded once for consecutive folds with the same tags.

    Parameters
    ----------
    folds
        Folds of a run, which have the same tags in the same order.
    predict
        Predicts all clips with a network, probabilities of shape (clips, outputs).
    """
    for _, group in groupby(folds, key=lambda fold: fold.tags):
        same = list(group)
        output = predict(_joined(same))
        for fold, probs in zip(same, np.split(output.probs, len(same), axis=1), strict=True):
            yield fold, output._replace(probs=probs)


def load_model_folder(folder: str | Path, calibrate: bool | None, backend: str = "torch") -> Pretrained:
    """Load a model folder, to be run by a backend; parameters and errors are those of `load_pretrained`."""
    model = load_pretrained(folder, device=None if backend == "torch" else "cpu", calibrate=calibrate)
    return replace(model, model=with_backend(model.model, backend))


def trained_model(run: str | Path, fold: int = 0) -> Pretrained:
    """Load one fold of a finished run with the run's calibration, if it has one, or a model folder.

    Parameters
    ----------
    run
        A run or model folder, or that of an ensemble, of which the run with the highest weight is taken.
    fold
        Number of the fold, from 0; not used for a model folder.

    Raises
    ------
    OptionError
        If the fold was not trained.
    CheckpointError
        As in `predict_with_run`.
    """
    if is_model_folder(run):
        return load_pretrained(run)
    opened = FinishedRun.open(main_run(run))
    weights = tuple(path for path in opened.weights if path.parent.name == f"fold_{fold}")
    if not weights:
        known = ", ".join(map(str, opened.fold_numbers))
        raise OptionError(f"{opened.folder} has no fold {fold}; expected one of {known}")
    trained, recipe = next(replace(opened, weights=weights).folds()), opened.recipe
    training = {"recipe": recipe.model_dump(), "fold": fold}
    return Pretrained(
        trained.model, trained.tags, recipe.settings(), trained.prior, opened.calibration(), training, {},
        recipe.precision,
    )


def ensemble_models(folder: str | Path) -> tuple[list[Pretrained], list[float]]:
    """Load all folds of the runs of an ensemble folder, with the weight of each in the average.

    Raises
    ------
    CheckpointError
        As in `predict_with_run`, and if the runs read clips differently or their average is not the mean.
    """
    models, weights = [], []
    opened_runs = _opened_runs(Path(folder))
    if len(_alike(opened_runs)) > 1:
        raise CheckpointError(
            f"{folder} is an ensemble whose runs read clips differently; expected runs that can be one graph: take one "
            f"of them, such as {opened_runs[0][0].folder}"
        )
    for opened, weight in opened_runs:
        models += [trained_model(opened.folder, number) for number in opened.fold_numbers]
        weights += [weight / len(opened.fold_numbers)] * len(opened.fold_numbers)
    return models, weights


def thresholds_of_run(run: str | Path) -> Thresholds:
    """Load the thresholds of a run or model folder; raises `CheckpointError` if it has none."""
    calibration = (
        load_pretrained(run, calibrate=True).calibration if is_model_folder(run) else find_calibration(run, True)
    )
    thresholds = None if calibration is None else calibration.thresholds
    if thresholds is None:
        raise CheckpointError(
            f"{run}/{CALIBRATION} has no thresholds; find them with fatai-submit calibrate --thresholds f1"
        )
    return thresholds


@delegates(SlidingWindowTagger.__init__, but=["precision", "calibration", "activation", "prior", "weights"])
class Tagger(AveragedTagger):
    """Tag sound of any length with every fold of a finished run or of the runs of an ensemble, or with a model folder.

    `Tagger("runs/demo").tag("forest.flac")` lists the sound events with their start and end times, as the command `tag`
    does. Runs of an ensemble that read clips differently, at other rates or with other windows, are averaged step by
    step.

    Parameters
    ----------
    run
        A run or model folder, or that of an ensemble that averages by the mean.
    calibrate
        Whether to apply its calibration, and by default its thresholds; None applies them if there are any.
    channel
        Channel of recordings instead of that of training, as in `load_audio`; "each" tags every channel.
    backend
        What runs the networks, a name of `fatai.models.openvino.BACKENDS`.
    options
        As in `SlidingWindowTagger`; by default a step is half of the shortest window.

    Raises
    ------
    CheckpointError
        If `run` is neither a run nor a model folder, its weights do not fit, its folds have different tags, or it has
        no calibration although `calibrate` is True.
    """

    def __init__(
        self, run: str | Path, *, calibrate: bool | None = None, channel: str | int | None = None,
        backend: str = "torch", **options: Any,
    ):
        if is_model_folder(run):
            model = load_model_folder(run, calibrate, backend)
            settings = with_channel(model.settings, channel)
            part = SlidingWindowTagger(
                [model.model], model.tags, settings, calibration=model.calibration, prior=model.prior, **options,
            )
            super().__init__([part], [1.0])
            return
        groups = _alike(_opened_runs(Path(run), backend))
        calibration = find_calibration(run, calibrate)
        if len(groups) == 1:
            options["calibration"] = calibration
        else:
            reads = [group[0][0].recipe.settings() for group in groups]
            step_s = options.get("step_s") or min(read.crop_s for read in reads) / 2
            options["step_s"] = common_step(step_s, [read.sr for read in reads])
        parts = [_tagger_of(group, channel, options) for group in groups]
        if any(part.tags != parts[0].tags for part in parts):
            raise CheckpointError(f"{run}: its runs have different tags; expected the same")
        super().__init__(parts, [sum(weight for _, weight in group) for group in groups], calibration)


def _alike(weighted: Sequence[tuple[FinishedRun, float]]) -> list[list[tuple[FinishedRun, float]]]:
    """Return runs and weights in groups that read clips and compute alike."""
    groups: list[list[tuple[FinishedRun, float]]] = []
    for opened, weight in weighted:
        key = (opened.recipe.settings(), opened.recipe.precision)
        found = next((g for g in groups if (g[0][0].recipe.settings(), g[0][0].recipe.precision) == key), None)
        if found is None:
            groups.append([(opened, weight)])
        else:
            found.append((opened, weight))
    return groups


def _tagger_of(
    weighted: Sequence[tuple[FinishedRun, float]], channel: str | int | None, options: Mapping[str, Any]
) -> SlidingWindowTagger:
    """Return one tagger with all folds of runs that read clips alike."""
    folds, weights = [], []
    for opened, weight in weighted:
        folds += list(opened.folds())
        weights += [weight / len(opened.weights)] * len(opened.weights)
    first = weighted[0][0]
    for fold in folds:
        if fold.tags != folds[0].tags:
            raise CheckpointError(
                f"{first.folder}: {fold.name} has other tags than {folds[0].name}; expected folds of one run"
            )
    return SlidingWindowTagger(
        [fold.model for fold in folds], folds[0].tags, with_channel(first.recipe.settings(), channel),
        precision=first.recipe.precision, weights=weights,
        prior=np.average([fold.prior for fold in folds], axis=0, weights=weights), **options,
    )


def _opened_runs(folder: Path, backend: str = "torch") -> list[tuple[FinishedRun, float]]:
    """Open a run, or the runs of an ensemble, which must be averaged by the mean, with their weights."""
    if not is_ensemble_folder(folder):
        return [(FinishedRun.open(folder, backend=backend), 1.0)]
    opened = EnsembleFolder.open(folder)
    weighted = [(FinishedRun.open(run, backend=backend), weight) for run, weight in opened.runs.items()]
    if opened.how != "mean":
        raise CheckpointError(
            f"{folder} is an ensemble whose average is {opened.how}; expected the mean, which averages recordings "
            f"window by window: take one of its runs, such as {weighted[0][0].folder}"
        )
    return weighted


def _metadata(path: Path) -> tuple[list[str], int, np.ndarray]:
    """Read and check the tags, input channels and prior, shape (tags,), in the metadata of a weights file."""
    try:
        notes = parse_json(read_metadata(path)["fatai"])
        tags, in_channels, prior = (
            [str(t) for t in notes["tags"]],
            int(notes["in_channels"]),
            np.array(notes["prior"], dtype=np.float64),
        )
    except (KeyError, TypeError, ValueError) as e:
        raise CheckpointError(
            f"{path} has no valid tags, in_channels and prior in its metadata ({e}); expected weights of "
            "fatai-submit run"
        ) from None
    if not 0 < len(tags) <= 100_000 or not 0 < in_channels <= 64 or prior.shape != (len(tags),):
        raise CheckpointError(
            f"{path} has {len(tags)} tags, {in_channels} input channels and a prior of shape {prior.shape}; expected 1 "
            "to 100,000 tags, 1 to 64 channels and one prior per tag"
        )
    return tags, in_channels, prior
