"""Networks as ONNX graphs of 8-bit integers, a quarter of the size: weights for each channel, activations by examples.

Layers with weights (convolutions, linear layers) are quantized by onnxruntime's static quantization. The front end and
the last layer of each network stay in float32. So do the first layers of networks that suffer from it, such as
MobileNets, whose early layers have few weights and wide ranges: 0, 1, 2, 4, ... of them, until the probabilities of the
examples are near enough to those in float32.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fatai.errors import CheckpointError
from fatai.export.onnx import AverageProbs, build_graph, describe_models, example_waves, import_runtime, write_graph
from fatai.export.pretrained import Pretrained
from fatai.io.atomic import write_file

__all__ = ["MAX_RMS", "QuantizedGraph", "quantize_models"]

MAX_RMS = 0.03
"""Root mean square of the differences of probabilities of the examples above which more layers stay in float32."""

_LAYERS = ("Conv", "Gemm", "MatMul")
_BATCH = 8
_SPEC, _PROBS = "spec", "probs"


@dataclass(frozen=True)
class QuantizedGraph:
    """A graph in 8 bits beside the same in float32, as files.

    Attributes
    ----------
    path, float_path
        ONNX files; beside "probs", the average, they have the probabilities of each network, which `save` leaves out.
    n_models
        Number of networks.
    layers, quantized
        Number of their layers with weights, and of those in 8 bits.
    first
        Number of first layers of each network that were left in float32 because of their effect.
    rms
        Root mean square of the differences of the examples' probabilities.
    difference
        Of the graph in float32 from torch, as `export_onnx` returns it.
    """

    path: Path
    float_path: Path
    n_models: int
    layers: int
    quantized: int
    first: int
    rms: float
    difference: float

    def probs(self, crops: Sequence[Tensor], model: int, *, quantized: bool) -> np.ndarray:
        """Predict clips with one network.

        Parameters
        ----------
        crops
            Crops of each clip, (crops, samples).
        model
            Position of the network.
        quantized
            In 8 bits, or in float32.

        Returns
        -------
        float32, shape (clips, tags): the mean over the crops of each clip.
        """
        runtime = import_runtime()
        session = _session(self.path if quantized else self.float_path)
        options = runtime.RunOptions()
        options.only_execute_path_to_fetches = True
        return np.stack([
            session.run([_probs_of(model)], {"wave": waves.numpy()}, options)[0].mean(0) for waves in crops
        ])

    def save(self, path: str | os.PathLike[str], metadata: dict[str, str]) -> None:
        """Write the graph in 8 bits with one output, "probs", and further texts in its metadata."""
        import onnx

        graph = onnx.load(str(self.path))
        del graph.graph.output[1:]
        onnx.helper.set_model_props(graph, {prop.key: prop.value for prop in graph.metadata_props} | metadata)
        with write_file(path) as temporary:
            onnx.save(graph, str(temporary))


def quantize_models(
    models: Sequence[Pretrained],
    waves: Tensor,
    folder: Path,
    *,
    average: str = "mean",
    weights: Sequence[float] | None = None,
    tolerance: float = 1e-4,
    max_rms: float = MAX_RMS,
) -> QuantizedGraph:
    """Write the graph of models in float32 and in 8 bits.

    Parameters
    ----------
    models, average, weights, tolerance
        As in `export_onnx`.
    waves
        Examples from which the ranges of activations are measured, such as crops of training clips, (crops, samples).
    folder
        Where both files are written.
    max_rms
        As `MAX_RMS`.

    Raises
    ------
    CheckpointError
        As in `export_onnx`, or if the networks have no layer that can be quantized.
    OptionError, MissingDependencyError
        As in `export_onnx`.
    """
    import_runtime()
    path, float_path = folder / "int8.onnx", folder / "float.onnx"
    graph = _Outputs(build_graph(models, average, weights))
    outputs = [_PROBS, _SPEC, *map(_probs_of, range(len(models)))]
    settings = models[0].settings
    difference = write_graph(
        graph, example_waves(settings), float_path, name=f"the network {type(models[0].model).__name__}",
        output=outputs, metadata=describe_models(models), tolerance=tolerance,
    )
    batches = [batch.numpy() for batch in waves.split(_BATCH)]
    expected = _predict(float_path, batches)
    layers = [_Layers.find(float_path, model) for model in range(len(models))]
    found: list[tuple[float, int]] = []
    for first in _steps(max(len(part.inner) for part in layers)):
        _quantize(float_path, path, batches, layers, first)
        rms = float(np.sqrt(np.square(_predict(path, batches) - expected).mean()))
        found.append((rms, first))
        if rms <= max_rms:
            break
    else:
        rms, first = min(found)
        _quantize(float_path, path, batches, layers, first)
    quantized = sum(len(part.inner[first:]) for part in layers)
    return QuantizedGraph(
        path, float_path, len(models), sum(len(part.all) for part in layers), quantized, first, rms, difference
    )


def _probs_of(model: int) -> str:
    return f"{_PROBS}_{model}"


class _Outputs(nn.Module):
    """Front end and networks with their intermediate results: the average, the spectrograms, and each network's."""

    def __init__(self, graph: nn.Sequential):
        super().__init__()
        front_end, networks = graph
        assert isinstance(networks, AverageProbs)
        self.front_end, self.networks = front_end, networks

    def forward(self, wave: Tensor) -> tuple[Tensor, ...]:
        spec = self.front_end(wave)
        each = self.networks.each(spec)
        return self.networks.average_of(each), spec, *each


@dataclass(frozen=True)
class _Layers:
    """Names of the layers with weights of one network in their order, and of those before the last one."""

    all: tuple[str, ...]
    inner: tuple[str, ...]

    @classmethod
    def find(cls, path: Path, model: int) -> _Layers:
        """Find the layers between the spectrogram and the probabilities of a network."""
        import onnx

        graph = onnx.load(str(path)).graph
        made_by = {name: node for node in graph.node for name in node.output}
        constants = {tensor.name for tensor in graph.initializer}
        front_end = _ancestors(_SPEC, made_by)
        own = _ancestors(_probs_of(model), made_by) - front_end
        names = tuple(
            node.name for node in graph.node
            if node.name in own and node.op_type in _LAYERS and constants & set(node.input[:2])
        )
        if len(names) < 2:
            raise CheckpointError(
                f"the network has {len(names)} layers with weights (convolutions, linear layers); expected at least "
                "two, of which the last one stays in float32: export it without int8"
            )
        return cls(names, names[:-1])


def _ancestors(name: str, made_by: dict[str, Any]) -> set[str]:
    """Return the names of all nodes that a tensor is computed by."""
    found: set[str] = set()
    open_names = [name]
    while open_names:
        node = made_by.get(open_names.pop())
        if node is not None and node.name not in found:
            found.add(node.name)
            open_names += node.input
    return found


def _steps(n_layers: int) -> Iterator[int]:
    """Yield numbers of first layers in float32: 0, 1, 2, 4, ..., below the number of layers."""
    yield 0
    step = 1
    while step < n_layers:
        yield step
        step *= 2


def _quantize(
    source: Path, path: Path, batches: Sequence[np.ndarray], layers: Sequence[_Layers], first: int
) -> None:
    """Write a graph in 8 bits, except the first layers of each network."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Examples(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"wave": batch}

    with _without_logs():
        quantize_static(
            str(source), str(path), Examples(), quant_format=QuantFormat.QDQ, per_channel=True,
            weight_type=QuantType.QInt8, activation_type=QuantType.QInt8,
            nodes_to_quantize=[name for part in layers for name in part.inner[first:]],
            op_types_to_quantize=list(_LAYERS),
        )


def _predict(path: Path, batches: Sequence[np.ndarray]) -> np.ndarray:
    """Return the average probabilities of waves, float32, shape (waves, tags)."""
    session = _session(path)
    return np.concatenate([session.run([_PROBS], {"wave": batch})[0] for batch in batches])


def _session(path: Path) -> Any:
    runtime = import_runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@contextmanager
def _without_logs() -> Iterator[None]:
    """Silence the advice of onnxruntime to preprocess graphs, which the exporter of torch has optimized already."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
