"""Precision of a fit: the callbacks that train in bfloat16 or float16 where the device is faster with it."""

from __future__ import annotations

from typing import Any

import torch
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.core import Callback
from fastai.callback.fp16 import AMPMode, MixedPrecision
from fastai.learner import Learner
from fastai.torch_core import to_float
from torch.utils.hooks import RemovableHandle

from fatai.training.autocast import dtype_for

__all__ = ["MixedOnCPU", "MixedOnCUDA", "learner_precision", "precision_callbacks"]


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
    """Return the callbacks that make a learner fit in a precision, a name of `fatai.training.autocast.PRECISIONS`.

    They are fastai's where those work: `ChannelsLast`, and `MixedOnCUDA`, a `MixedPrecision`. "auto" is what the model
    means by it.
    """
    device = torch.device(learn.dls.device)
    if precision == "auto":
        precision = getattr(learn.model, "auto_precision", precision)
    dtype = dtype_for(device, precision)
    if dtype == torch.float32:
        return []
    if device.type == "cuda":
        return [ChannelsLast(), MixedOnCUDA(AMPMode.BF16 if dtype == torch.bfloat16 else AMPMode.FP16)]
    return [ChannelsLast(), MixedOnCPU()]


def learner_precision(learn: Learner) -> str:
    """Return the precision that a learner's callbacks set, in `PRECISIONS`; predictions take the same."""
    if any(isinstance(cb, MixedOnCPU) for cb in learn.cbs):
        return "bf16"
    mixed = next((cb for cb in learn.cbs if isinstance(cb, MixedPrecision)), None)
    if mixed is None:
        return "fp32"
    return "bf16" if mixed.amp_mode == AMPMode.BF16 else "fp16"
