"""A device without float64, for tests on machines without a GPU: a stand-in for Apple's `mps`."""

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

__all__ = ["DEVICE", "FakeGPU", "move"]

DEVICE = torch.device("meta")
"""The device that the tensors name; torch knows it on every machine."""


class _OnGPU(Tensor):
    """A tensor that names `DEVICE`; its values are computed on the CPU."""

    values: Tensor

    @staticmethod
    def __new__(cls, values):
        on_gpu = Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), storage_offset=values.storage_offset(), dtype=values.dtype,
            device=DEVICE,
        )
        on_gpu.values = values
        return on_gpu

    def as_subclass(self, kind):
        return self

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise RuntimeError("a tensor of the fake GPU is used outside of `with FakeGPU()`")


class FakeGPU(TorchDispatchMode):
    """Compute on `DEVICE` within a `with` block; a float64 tensor there is a TypeError, with the words of `mps`."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        given = [a for a in tree_flatten((args, kwargs))[0] if isinstance(a, _OnGPU)]
        on_gpu = bool(given)
        if kwargs.get("device") is not None:
            on_gpu, kwargs["device"] = torch.device(kwargs["device"]).type == DEVICE.type, torch.device("cpu")
        on_cpu = tree_map_only(_OnGPU, lambda t: t.values, (args, kwargs))
        result = function(*on_cpu[0], **on_cpu[1])

        def wrap(values):
            if not on_gpu:
                return values
            if values.dtype in (torch.float64, torch.complex128):
                raise TypeError(
                    f"{function} made a {values.dtype} tensor: the MPS framework doesn't support float64"
                )
            same = next((t for t in given if t.values is values), None)
            return _OnGPU(values) if same is None else same

        return tree_map_only(Tensor, wrap, result)


def move(module: nn.Module) -> nn.Module:
    """Move a module to `DEVICE`; only within `with FakeGPU()`."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return module.to(DEVICE)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
