"""Run a trained network with OpenVINO, which is faster than torch on CPUs; its outputs are compared with torch's."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fatai.errors import MissingDependencyError, OptionError
from fatai.registry import did_you_mean

__all__ = ["BACKENDS", "OpenVINOModel", "with_backend"]

BACKENDS = ("torch", "openvino")
"""What runs a network for predictions; "openvino" needs the packages of fatai[openvino]."""

MAX_DIFFERENCE = {torch.float32: 2e-3, torch.bfloat16: 2e-2}
"""Largest difference from torch's probabilities; in bfloat16 both are rounded, each in its own order."""

_MAX_LENGTHS = 8  # a graph for each length of input takes seconds to compile


class _Graph(NamedTuple):
    """What a compiled graph depends on."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    threads: int


class OpenVINOModel(nn.Module):
    """Run a network with OpenVINO on the CPU in evaluation mode, and with torch otherwise.

    A graph is compiled at the first batch of each length, in float32, or in bfloat16 under autocast. Its probabilities
    for that batch are compared with torch's: if one differs by more than `MAX_DIFFERENCE`, or the network has an
    operation that OpenVINO lacks, torch is used, and there is a warning; so it is from the ninth length on.

    Parameters
    ----------
    model
        Maps spectrograms (clips, channels, mels, frames) to logits (clips, tags).

    Raises
    ------
    MissingDependencyError
        Without the packages of fatai[openvino].
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        _import_runtime()
        self._graphs: dict[_Graph, Any] = {}

    def forward(self, spec: Tensor) -> Tensor:
        """Return logits (clips, tags), float32 where OpenVINO computes them."""
        if spec.device.type != "cpu" or self.training or torch.is_grad_enabled():
            return self.model(spec)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        key = _Graph(tuple(spec.shape[1:]), dtype, torch.get_num_threads())
        if key not in self._graphs:
            self._graphs[key] = self._compiled(key, spec)
        graph = self._graphs[key]
        return self.model(spec) if graph is None else _output(graph, spec)

    def __deepcopy__(self, memo: dict[int, Any]) -> OpenVINOModel:
        raise TypeError("a network that runs with OpenVINO cannot be copied; copy its model")

    def _compiled(self, key: _Graph, spec: Tensor) -> Any:
        """Return a compiled graph for spectrograms of a length, or None, with a warning, where torch is to be used."""
        if len(self._graphs) >= _MAX_LENGTHS:
            if len(self._graphs) == _MAX_LENGTHS:
                self._warn(
                    f"is given more than {_MAX_LENGTHS} lengths of input, each with a graph of its own (views of "
                    "one length, such as --tta tiles, are faster)"
                )
            return None
        try:
            graph = self._compile(key, spec)
        except Exception as e:  # noqa: BLE001 - of OpenVINO's converter and torch's tracer, whatever they lack
            self._warn(f"cannot be converted ({type(e).__name__}: {' '.join(str(e).split())[:200]})")
            return None
        difference = float((_output(graph, spec).sigmoid() - self.model(spec).float().sigmoid()).abs().max())
        if difference <= MAX_DIFFERENCE[key.dtype]:
            return graph
        self._warn(f"has probabilities that differ from torch's by {difference:.2g}")
        return None

    def _compile(self, key: _Graph, spec: Tensor) -> Any:
        if key.dtype not in MAX_DIFFERENCE:
            raise OptionError(f"autocast is to {key.dtype}; expected bfloat16")
        graph = self._convert(spec[:2])
        graph.reshape([-1, *key.shape])
        precision = {torch.float32: "f32", torch.bfloat16: "bf16"}[key.dtype]
        options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": key.threads, "NUM_STREAMS": 1}
        return _core().compile_model(graph, "CPU", options)

    def _convert(self, spec: Tensor) -> Any:
        """Return the graph of the network, by the frontend: `openvino.convert_model` would send usage statistics."""
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False), _quiet():
            traced = torch.jit.trace(self.model, spec.float().clone(), check_trace=False)
            decoder = TorchScriptPythonDecoder(traced)
            frontend = FrontEndManager().load_by_framework("pytorch")
            return frontend.convert(frontend.load(decoder))

    def _warn(self, problem: str) -> None:
        warnings.warn(
            f"with OpenVINO the network {type(self.model).__name__} {problem}; torch runs it instead",
            stacklevel=2,
        )


def with_backend(model: nn.Module, backend: str) -> nn.Module:
    """Return a network that is run by a backend.

    Parameters
    ----------
    model
        A network in evaluation mode.
    backend
        A name of `BACKENDS`.

    Raises
    ------
    OptionError
        If there is no such backend.
    MissingDependencyError
        For "openvino" without the packages of fatai[openvino].
    """
    if backend not in BACKENDS:
        raise OptionError(f"backend is {backend!r}; {did_you_mean(backend, BACKENDS)}")
    return model if backend == "torch" else OpenVINOModel(model).eval()


def _output(graph: Any, spec: Tensor) -> Tensor:
    # A copy: the array of the output is written again by the next call.
    return torch.from_numpy(graph(spec.float().numpy(force=True))[0].copy())


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the warnings of torch's tracer, which are meant for its developers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@cache
def _core() -> Any:
    """Return OpenVINO's core, the only one of this process.

    The CPU plugin of each core moves the stack of signal handlers and restores the one before when it ends; of two
    cores that end in the order in which they began, the second restores freed memory, and the next signal kills the
    process.
    """
    return _import_runtime().Core()


def _import_runtime() -> Any:
    try:
        import openvino
    except ImportError as e:
        raise MissingDependencyError(
            f"the backend openvino needs more packages ({e.name} is missing): pip install 'fatai[openvino]'"
        ) from e
    return openvino
