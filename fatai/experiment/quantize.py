"""Export the networks of a run in 8 bits, and measure what that costs on clips that they were not trained on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fatai.data.config import ClipConfig
from fatai.data.datasets.fat2019 import load_dataset
from fatai.data.labels import multi_hot
from fatai.ensemble.members import read_folds
from fatai.errors import AudioError, DataError
from fatai.experiment.ensemble_folder import EnsembleFolder, is_ensemble_folder
from fatai.experiment.manifest import noted_columns, noted_data
from fatai.experiment.run_folder import FinishedRun, ensemble_models, trained_model
from fatai.export.pretrained import Pretrained, is_model_folder
from fatai.export.quantization import QuantizedGraph, quantize_models
from fatai.inference.tta import build_views
from fatai.metrics.classification import main_metric, main_score

__all__ = ["ChosenModels", "Int8Export", "choose_models", "export_int8"]

N_EXAMPLES = 64
"""Training clips whose middle crops the ranges of activations are measured on."""
N_SCORED = 500
_N_CROPS = 4  # of a clip that is scored


@dataclass(frozen=True, eq=False)
class ChosenModels:
    """The networks of a run, an ensemble or a model folder that become one graph.

    Attributes
    ----------
    models, weights
        The networks, and the weight of each in the average; None are equal ones.
    folds
        The run and the fold of each network; none of a model folder.
    average
        "mean" or "gmean".
    """

    models: tuple[Pretrained, ...]
    folds: tuple[tuple[Path, int], ...] = ()
    average: str = "mean"
    weights: tuple[float, ...] | None = None

    def held_out(self) -> dict[str, list[int]]:
        """Return which networks were not trained on a clip, by the name of the clip."""
        found: dict[str, list[int]] = {}
        for k, (run, fold) in enumerate(self.folds):
            for name, own in (read_folds(run / "folds.csv") if (run / "folds.csv").is_file() else {}).items():
                if own == fold:
                    found.setdefault(name, []).append(k)
        return found


def choose_models(run: str | Path, fold: int | None = None) -> ChosenModels:
    """Load one fold, or by default all networks, of a run, an ensemble or a model folder.

    Raises
    ------
    OptionError, CheckpointError
        As in `trained_model` and `ensemble_models`.
    """
    if is_model_folder(run):
        return ChosenModels((trained_model(run),))
    if is_ensemble_folder(run):
        folder = EnsembleFolder.open(run)
        if fold is None:
            models, weights = ensemble_models(run)
            folds = tuple((member, n) for member in folder.runs for n in FinishedRun.open(member).fold_numbers)
            return ChosenModels(tuple(models), folds, weights=tuple(weights))
        run = next(iter(folder.runs))
    opened = FinishedRun.open(run)
    numbers = opened.fold_numbers if fold is None else [fold]
    average = opened.recipe.tta.fold_average if len(numbers) > 1 else "mean"
    folds = tuple((opened.folder, number) for number in numbers)
    return ChosenModels(tuple(trained_model(run, number) for number in numbers), folds, average)


@dataclass(frozen=True)
class Int8Export:
    """Result of `export_int8`.

    Attributes
    ----------
    path, graph
        The file, and how its layers were quantized.
    n_examples, n_scored
        Clips that ranges were measured on, and other clips that were scored.
    scored_on
        What the scored clips are.
    score, float_score
        Score of the graph in 8 bits and in float32; `metric` names it, "lwlrap", or of one tag "map".
    largest
        Largest difference of a probability of the scored clips.
    bytes, float_bytes
        Size of the file, and of the one in float32.
    """

    path: Path
    graph: QuantizedGraph
    n_examples: int
    n_scored: int
    scored_on: str
    metric: str
    score: float
    float_score: float
    largest: float
    bytes: int
    float_bytes: int

    @property
    def loss(self) -> float:
        """What 8 bits cost of the score; below 0 if they score higher, by chance."""
        return self.float_score - self.score

    def __str__(self) -> str:
        graph = self.graph
        inner = graph.layers - graph.n_models
        left = f"; the first {graph.first} of each network stay in float32" if graph.first else ""
        return (
            f"{graph.quantized} of {inner} layers before the last one in 8 bits, calibrated on {self.n_examples} "
            f"training clips{left}; {self.bytes / 1e6:.1f} MB, {self.float_bytes / 1e6:.1f} MB in float32\n"
            f"{self.metric} {self.score:.4f}, {self.float_score:.4f} in float32, a loss of {self.loss:+.4f}, on "
            f"{self.n_scored} {self.scored_on}; probabilities differ by at most {self.largest:.2g}"
        )


def export_int8(
    chosen: ChosenModels,
    path: str | os.PathLike[str],
    data: str | Path | None = None,
    *,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> Int8Export:
    """Write networks as an ONNX graph in 8 bits, with its score and that in float32 in the metadata.

    Each clip is scored by the networks that were not trained on it, as out-of-fold predictions are, on up to 4 crops.
    Of a model folder, whose training clips are not known, all clips are scored. No clip is scored that ranges were
    measured on.

    Parameters
    ----------
    chosen
        From `choose_models`.
    path
        A name that ends in .onnx.
    data
        The clips that the networks were trained on, a folder or table as `load_dataset` takes it; None is the one that
        the run notes.
    tolerance
        As in `export_onnx`, of the graph in float32.
    seed
        Of the choice of clips.

    Raises
    ------
    DataError
        If the data are not known or no longer there, or too few clips can be read.
    CheckpointError, OptionError, MissingDependencyError
        As in `quantize_models`.
    """
    settings, tags = chosen.models[0].settings, chosen.models[0].tags
    examples, scored, scored_on = _split_clips(chosen, _load_clips(chosen, data), seed)
    waves = [crops for item in examples["path"] if (crops := _crops(item, settings, 1)) is not None]
    if not waves:
        raise DataError("no training clip can be read; expected some that activations are measured on")
    scored = scored.assign(crops=[_crops(item, settings, _N_CROPS) for item in scored["path"]])
    scored = scored[scored["crops"].notna()]
    if not len(scored):
        raise DataError("no clip is left to score; expected clips that were not trained on, as a run holds them out")
    with TemporaryDirectory() as folder:
        graph = quantize_models(
            chosen.models, torch.cat(waves), Path(folder), average=chosen.average, weights=chosen.weights,
            tolerance=tolerance,
        )
        float_bytes = graph.float_path.stat().st_size
        ours, theirs = (_predict(graph, scored, chosen, quantized=quantized) for quantized in (True, False))
        targ = multi_hot(scored["labels"], tags)
        metric, score, float_score = main_metric(len(tags)), main_score(ours, targ), main_score(theirs, targ)
        graph.save(path, {
            "precision": "int8", "calibration_clips": str(len(waves)), metric: f"{score:.6f}",
            f"{metric}_fp32": f"{float_score:.6f}", "scored_on": f"{len(scored)} {scored_on}",
        })
    return Int8Export(
        Path(path), graph, len(waves), len(scored), scored_on, metric, score, float_score,
        float(np.abs(ours - theirs).max()), Path(path).stat().st_size, float_bytes,
    )


def _load_clips(chosen: ChosenModels, data: str | Path | None) -> pd.DataFrame:
    """Return the curated clips whose labels are among the tags, columns fname, labels and path."""
    runs = [run for run, _ in chosen.folds]
    found = Path(data) if data is not None else noted_data(runs[0]) if runs else None
    if found is None:
        what = f"the data of {runs[0]} are no longer where it notes them" if runs else "a model folder notes no data"
        raise DataError(f"{what}; give the clips that activations and the loss are measured on: --data DATA")
    clips = load_dataset(found, columns=noted_columns(runs[0]) if runs and data is None else None).curated
    tags = set(chosen.models[0].tags)
    known = clips[[bool(labels) and tags.issuperset(labels) for labels in clips["labels"]]]
    if len(known) < 2:
        raise DataError(f"{found} has {len(known)} clips with tags of the network; expected at least two")
    return known


def _split_clips(
    chosen: ChosenModels, clips: pd.DataFrame, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Split clips into examples and clips to score, with the networks that score each, and say what the latter are."""
    everyone = list(range(len(chosen.models)))
    held_out = chosen.held_out()
    order = clips.sample(frac=1, random_state=seed)
    own = [held_out.get(name, []) for name in order["fname"]]
    order = order.assign(models=own if held_out else [everyone] * len(order))
    # Of one fold, those that it was trained on; of several, each was trained on by some.
    trained_on = [len(models) < len(everyone) or not held_out for models in order["models"]]
    examples = order[trained_on][:min(N_EXAMPLES, len(order) // 2)]
    rest = order.drop(examples.index)
    scored = rest[[bool(models) for models in rest["models"]]][:N_SCORED]
    if held_out:
        what = "held-out clips, each by networks not trained on it" if len(everyone) > 1 else "held-out clips"
    else:
        what = "clips that the network may have been trained on"
    return examples, scored, what


def _crops(item: Any, settings: ClipConfig, n: int) -> Tensor | None:
    """Return evenly spaced crops of a clip, (crops, samples), or None if it cannot be read."""
    try:
        wave = settings.read(item)
    except AudioError:
        return None
    return torch.stack(list(build_views("even", n)(wave, settings, torch.Generator()).views()))


def _predict(graph: QuantizedGraph, clips: pd.DataFrame, chosen: ChosenModels, *, quantized: bool) -> np.ndarray:
    """Return probabilities, float64, shape (clips, tags): weighted means over the networks that score each clip."""
    weights: Sequence[float] = chosen.weights or [1.0] * len(chosen.models)
    total = np.zeros((len(clips), len(chosen.models[0].tags)))
    for k, weight in enumerate(weights):
        at = np.array([k in models for models in clips["models"]])
        if weight and at.any():
            total[at] += weight * graph.probs(list(clips["crops"][at]), k, quantized=quantized)
    sums = np.array([sum(weights[k] for k in models) for models in clips["models"]])
    return total / sums[:, None]
