"""Floating-point precision of training and prediction: float32, or lower where the device is faster with it.

`best_dtype` decides what "auto" means on a device.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.core import Callback
from fastai.callback.fp16 import AMPMode, MixedPrecision
from fastai.learner import Learner
from fastai.torch_core import to_float
from torch import nn
from torch.utils.hooks import RemovableHandle

from fatai.errors import OptionError

__all__ = [
    "PRECISIONS",
    "MixedOnCPU",
    "MixedOnCUDA",
    "autocast_for",
    "best_dtype",
    "fast_layout",
    "learner_precision",
    "precision_callbacks",
]

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
"""Names of precisions; "auto" is that of `best_dtype`."""


def best_dtype(device: torch.device | str) -> torch.dtype:
    """Return the dtype of "auto": bfloat16 where the device supports it, float16 on older GPUs, else float32."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu":
        has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return torch.bfloat16 if has.get("avx512_bf16") or has.get("amx_bf16") or has.get("bf16") else torch.float32
    return torch.float32


def _dtype(device: torch.device, precision: str) -> torch.dtype:
    if precision not in PRECISIONS:
        raise OptionError(f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")
    if precision == "fp16" and device.type != "cuda":
        raise OptionError(
            f"precision is 'fp16' on {device.type}; expected a CUDA device for it, or 'auto', 'bf16' or 'fp32'"
        )
    return {"auto": best_dtype(device), "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def autocast_for(device: torch.device | str, precision: str = "auto") -> AbstractContextManager:
    """Return a context in which a network on `device` runs in the given precision, a name of `PRECISIONS`.

    In float32 it turns off an autocast around it.
    """
    device = torch.device(device)
    dtype = _dtype(device, precision)
    if dtype == torch.float32:
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, dtype=dtype)


def fast_layout(model: nn.Module, device: torch.device | str, precision: str = "auto") -> nn.Module:
    """Return `model` with its weights in the memory layout of low-precision kernels, channels last."""
    if _dtype(torch.device(device), precision) != torch.float32:
        model.to(memory_format=torch.channels_last)
    return model


class MixedOnCPU(Callback):
    """Autocast to bfloat16 on the CPU; fastai's `MixedPrecision` is for CUDA alone and does nothing there.

    Autocast covers the network's forward pass and ends even if that raises; the loss is computed in float32.
    """

    order = MixedPrecision.order

    def __init__(self) -> None:
        self._hooks: list[RemovableHandle] = []

    def before_batch(self) -> None:
        """Put autocast around the forward pass."""
        self._remove()
        autocast = torch.autocast("cpu", dtype=torch.bfloat16)

        def enter(*_: Any) -> None:
            autocast.__enter__()

        def leave(*_: Any) -> None:
            autocast.__exit__(None, None, None)

        model = self.learn.model
        self._hooks = [model.register_forward_pre_hook(enter), model.register_forward_hook(leave, always_call=True)]

    def after_pred(self) -> None:
        """End autocast and return the logits to float32."""
        self._remove()
        self.learn.pred = to_float(self.pred)

    def after_cancel_batch(self) -> None:
        """Remove autocast from the network if the batch ended before its prediction."""
        self._remove()

    def _remove(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()


class MixedOnCUDA(MixedPrecision):
    """fastai's `MixedPrecision`, whose autocast also ends if an exception ends the batch."""

    name = "mixed_precision"

    def __init__(self, amp_mode: AMPMode = AMPMode.FP16, **kwargs: Any):
        super().__init__(amp_mode, **kwargs)
        self._entered = False

    def before_batch(self) -> None:
        """Begin autocast."""
        super().before_batch()
        self._entered = True

    def after_loss(self) -> None:
        """End autocast."""
        self._entered = False
        super().after_loss()

    def after_cancel_batch(self) -> None:
        """End autocast if the batch ended before its loss."""
        if self._entered:
            self.after_loss()


def precision_callbacks(precision: str, learn: Learner) -> list[Callback]:
    """Return the callbacks that make a learner fit in a precision, a name of `PRECISIONS`.

    They are fastai's where those work: `ChannelsLast`, and `MixedOnCUDA`, a `MixedPrecision`.
    """
    device = torch.device(learn.dls.device)
    dtype = _dtype(device, precision)
    if dtype == torch.float32:
        return []
    if device.type == "cuda":
        return [ChannelsLast(), MixedOnCUDA(AMPMode.BF16 if dtype == torch.bfloat16 else AMPMode.FP16)]
    return [ChannelsLast(), MixedOnCPU()]


def learner_precision(learn: Learner) -> str:
    """Return the precision that a learner's callbacks set, a name of `PRECISIONS`; prediction takes the same."""
    if any(isinstance(cb, MixedOnCPU) for cb in learn.cbs):
        return "bf16"
    mixed = next((cb for cb in learn.cbs if isinstance(cb, MixedPrecision)), None)
    if mixed is None:
        return "fp32"
    return "bf16" if mixed.amp_mode == AMPMode.BF16 else "fp16"
