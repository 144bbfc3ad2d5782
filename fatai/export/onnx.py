"""Export the front end and the network as one ONNX graph from waves to probabilities, for onnxruntime without torch.

The graph is traced from the modules themselves, including their float64 transforms. It takes any number of waves
(batch, samples) of the length of a crop at the sample rate of the front end. Reading, resampling, trimming and padding
of clips before it, and the mean over views and the calibration after it, are left to the caller; the metadata of the
file hold tags, sample rate and length. The folds of a run become one graph that averages their probabilities.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fatai import __version__
from fatai.data.config import ClipConfig
from fatai.data.spectrograms import ClipSpectrograms
from fatai.errors import CheckpointError, MissingDependencyError, OptionError
from fatai.export.model_folder import synthesize_sound
from fatai.export.pretrained import Pretrained
from fatai.io.atomic import write_file
from fatai.registry import did_you_mean

__all__ = ["export_onnx", "write_graph"]

_AVERAGES = ("mean", "gmean")


def export_onnx(
    model: Pretrained | Sequence[Pretrained],
    path: str | os.PathLike[str],
    *,
    average: str = "mean",
    weights: Sequence[float] | None = None,
    tolerance: float = 1e-4,
) -> float:
    """Write a model as an ONNX file after comparing the outputs of onnxruntime with those of torch.

    Parameters
    ----------
    model
        From `load_pretrained` or `trained_model`. Several models, such as the folds of a run, become one graph that
        averages their probabilities; they must have the same tags and clip settings.
    path
        A name that ends in .onnx. Weights above 2 GB do not fit into the file.
    average
        Of several models: "mean", or "gmean" for the geometric mean.
    weights
        Weight of each of several models, at least 0 and not all 0; None for equal ones.
    tolerance
        Largest allowed difference between the probabilities of torch and onnxruntime, for a synthesized sound that is
        loud, faint and cut off. Raise it for front ends that quantize to 256 levels, where rounding may move a value by
        a level.

    Returns
    -------
    The largest difference of probabilities.

    Raises
    ------
    OptionError
        If `path` does not end in .onnx, there is no such average, the weights do not fit, or models differ in tags or
        clip settings.
    MissingDependencyError
        Without the packages of fatai[onnx].
    CheckpointError
        If the network has an operation that ONNX lacks, or the outputs differ; no file is written.
    """
    if Path(path).suffix != ".onnx":
        raise OptionError(f"{path} does not end in .onnx; give it that suffix")
    models = [model] if isinstance(model, Pretrained) or not isinstance(model, Iterable) else list(model)
    for given in models:
        if not isinstance(given, Pretrained):
            raise OptionError(
                f"the model is of type {type(given).__name__}; expected what load_pretrained or trained_model returns: "
                "of a learner load_pretrained(learn.save_pretrained(folder))"
            )
    graph = build_graph(models, average, weights)
    name = f"the network {type(models[0].model).__name__}"
    return write_graph(
        graph, example_waves(models[0].settings), path, name=name, metadata=describe_models(models), tolerance=tolerance
    )


def write_graph(
    graph: nn.Module,
    waves: Tensor,
    path: str | os.PathLike[str],
    *,
    name: str,
    output: str | Sequence[str] = "probs",
    metadata: Mapping[str, str] | None = None,
    tolerance: float = 1e-4,
) -> float:
    """Write a module of waves as an ONNX file after comparing the outputs of onnxruntime with those of torch.

    Parameters
    ----------
    graph
        Maps waves (batch, samples) to a tensor, or a tuple of tensors of which the first one is compared, float32 on
        the CPU; the number of samples becomes fixed.
    waves
        Examples, at least two, that both are compared on, (batch, samples).
    path
        File to write.
    name, output
        What messages call the module, and the name or names of its outputs in the graph, whose input is "wave".
    metadata
        Texts that are stored in the file.
    tolerance
        Largest allowed difference of an output.

    Returns
    -------
    The largest difference.

    Raises
    ------
    MissingDependencyError, CheckpointError
        As in `export_onnx`.
    """
    runtime = import_runtime()
    program = _trace(graph, waves[:2], name, [output] if isinstance(output, str) else list(output))
    program.model.metadata_props.update(metadata or {})
    with write_file(path) as temporary:
        program.save(temporary, external_data=False)
        with torch.inference_mode():
            found = graph(waves)
        expected = (found[0] if isinstance(found, tuple) else found).numpy()
        session = runtime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        got = session.run(None, {"wave": waves.numpy()})[0]
        difference = float(np.abs(got - expected).max())
        if not difference <= tolerance:  # true for NaN too
            raise CheckpointError(
                f"the outputs of onnxruntime differ from torch's by {difference:.2g}; expected at most {tolerance:g}. "
                "No file was written; a front end of 256 levels may need a greater tolerance"
            )
    return difference


def import_runtime() -> Any:
    """Return onnxruntime; raises `MissingDependencyError` if a package of fatai[onnx] is missing."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError as e:
        raise MissingDependencyError(
            f"ONNX needs more packages ({e.name} is missing): pip install 'fatai[onnx]'"
        ) from e
    return onnxruntime


class AverageProbs(nn.Module):
    """Map spectrograms (batch, channels, mels, frames) to the average probabilities of models, (batch, tags)."""

    def __init__(self, models: Iterable[nn.Module], average: str, weights: Sequence[float]):
        super().__init__()
        self.models, self.average = nn.ModuleList(models), average
        self.weights = [weight / sum(weights) for weight in weights]

    def forward(self, spec: Tensor) -> Tensor:
        return self.average_of(self.each(spec))

    def each(self, spec: Tensor) -> list[Tensor]:
        """Return the probabilities (batch, tags) of each model."""
        return [model(spec).sigmoid() for model in self.models]

    def average_of(self, probs: Sequence[Tensor]) -> Tensor:
        """Return the weighted average of probabilities."""
        if len(probs) == 1:
            return probs[0]
        if self.average == "mean":
            return torch.stack([weight * p for weight, p in zip(self.weights, probs, strict=True)]).sum(0)
        logs = [p.clamp(min=torch.finfo(torch.float32).tiny).log() for p in probs]
        return torch.stack([weight * log for weight, log in zip(self.weights, logs, strict=True)]).sum(0).exp()


def _check_alike(models: Sequence[Pretrained]) -> None:
    if not models:
        raise OptionError("there is no model to export; expected at least one")
    for k, model in enumerate(models):
        if (model.tags, model.settings) != (models[0].tags, models[0].settings):
            raise OptionError(f"model {k} has other tags or clip settings than model 0; export them one by one")


def build_graph(models: Sequence[Pretrained], average: str, weights: Sequence[float] | None) -> nn.Sequential:
    """Return front end and networks, from waves (batch, samples) to probabilities (batch, tags), float32 on the CPU.

    Parameters and errors are those of `export_onnx`.
    """
    _check_alike(models)
    if average not in _AVERAGES:
        raise OptionError(f"average is {average!r}; {did_you_mean(average, _AVERAGES)}")
    weights = [1.0] * len(models) if weights is None else list(weights)
    if len(weights) != len(models) or min(weights) < 0 or not sum(weights) > 0:
        raise OptionError(
            f"there are {len(models)} models and the weights {weights[:5]}; expected one number for each, at least 0, "
            "and not all 0"
        )
    networks = (copy.deepcopy(model.model) for model in models)
    graph = nn.Sequential(ClipSpectrograms(models[0].settings).module, AverageProbs(networks, average, weights))
    # ONNX has only this layout, but the exporter copies the strides of channels_last.
    return graph.cpu().float().eval().to(memory_format=torch.contiguous_format)


def _trace(graph: nn.Module, waves: Tensor, name: str, outputs: list[str]) -> Any:
    """Trace a graph with example waves (batch, samples); the batch size stays free."""
    try:
        with _without_logs():
            return torch.onnx.export(
                graph,
                (waves,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["wave"],
                output_names=outputs,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as e:
        cause = str(e.__cause__ or e)[:300]
        raise CheckpointError(f"{name} cannot be written as ONNX: {cause}") from None


def describe_models(models: Sequence[Pretrained]) -> dict[str, str]:
    """Return the metadata of a graph of models."""
    model = models[0]
    return {
        "fatai": __version__,
        "sample_rate": str(model.settings.sr),
        "samples": str(model.settings.crop_samples),
        "tags": json.dumps(model.tags),
        "models": str(len(models)),
    }


def example_waves(settings: ClipConfig) -> Tensor:
    """Return a synthesized sound, the same 40 dB fainter, and with zeros after its first third: shape (3, samples)."""
    sound, samples = synthesize_sound(settings), settings.crop_samples
    whole = sound.repeat(-(-samples // len(sound)))[:samples]
    cut = torch.where(torch.arange(samples) < samples // 3, whole, 0.0)
    return torch.stack([whole, 0.01 * whole, cut])


@contextmanager
def _without_logs() -> Iterator[None]:
    """Silence the log messages and warnings of the exporter, which are meant for its developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
