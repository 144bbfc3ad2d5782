"""Failures during a fit: a loss that is NaN, batches that need too much memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from fastai.callback.core import Callback, CancelBackwardException, CancelBatchException
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.tracker import TerminateOnNaNCallback
from fastai.learner import Learner
from fastai.torch_core import get_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fatai.callbacks.out_of_memory import out_of_memory_message, release_memory
from fatai.errors import FataiError, WorkerError

__all__ = ["NonFiniteError", "SplitBatchOnOOM", "TerminateOnNaN"]

# Files of a batch that a message lists.
_MAX_LISTED_FILES = 8


class NonFiniteError(FataiError, ArithmeticError):
    """The training loss or a weight is NaN or infinite."""


class TerminateOnNaN(TerminateOnNaNCallback):
    """Raise an error when the training loss, or a weight at the end of an epoch, is NaN or infinite.

    fastai's callback ends the fit silently, after the step. This one names the files of the batch and leaves the
    learner with finite weights: the current ones if they are finite, otherwise those of the last good epoch. A resume
    state or a best model on the disk is from before the failure.

    Raises
    ------
    NonFiniteError
        In the batch or at the end of the epoch.
    """

    # At the end of an epoch before anything is saved.
    order = 20
    run_valid = False

    def before_fit(self) -> None:
        """Keep the weights from before the fit."""
        self._keep_weights(epoch=-1)

    def _keep_weights(self, epoch: int) -> None:
        state = get_model(self.learn.model).state_dict()
        self.good, self.good_epoch = {k: v.detach().to("cpu", copy=True) for k, v in state.items()}, epoch

    def after_loss(self) -> None:
        """Check the loss before the step."""
        if torch.isfinite(self.learn.loss_grad).all():
            return
        loss = float(self.learn.loss_grad.detach().mean())
        self._fail(f"the training loss became {loss} in epoch {self.epoch}, batch {self.iter}{self._files_of_batch()}")

    def after_batch(self) -> None:
        """Do nothing: `after_loss` has checked the loss, and a second look would wait for the GPU."""

    def after_train(self) -> None:
        """Check the weights, and keep them."""
        if _is_finite(self.learn.model):
            self._keep_weights(self.epoch)
        else:
            self._fail(f"weights are NaN or infinite after epoch {self.epoch}")

    def after_fit(self) -> None:
        """Free the weights."""
        self.good = {}

    after_cancel_fit = after_fit

    def _fail(self, failure: str) -> None:
        weights = "the weights are those before it"
        if not _is_finite(self.learn.model):
            get_model(self.learn.model).load_state_dict(self.good)
            since = "before the fit" if self.good_epoch < 0 else f"after epoch {self.good_epoch}"
            weights = f"the weights are again those {since}"
        raise NonFiniteError(
            f"{failure}; {weights}: lower the learning rate, or look for clips of unusual level with fatai-submit scan"
        )

    def _files_of_batch(self) -> str:
        names = batch_files(self.learn)
        more = f" and {len(names) - _MAX_LISTED_FILES} more" if len(names) > _MAX_LISTED_FILES else ""
        return f" (its files: {', '.join(names[:_MAX_LISTED_FILES])}{more})" if names else ""


def batch_files(learn: Learner) -> list[str]:
    """Return the file names of the current training batch; none if the loaders do not have them."""
    loader = learn.dls.train
    order, items = getattr(loader, "_DataLoader__idxs", None), getattr(loader.dataset, "items", None)
    if order is None or items is None or "fname" not in getattr(items, "columns", ()):
        return []
    return [str(items["fname"].iloc[i]) for i in list(order)[learn.iter * loader.bs : (learn.iter + 1) * loader.bs]]


def _is_finite(model: nn.Module) -> bool:
    return all(bool(torch.isfinite(v).all()) for v in model.state_dict().values() if v.is_floating_point())


class SplitBatchOnOOM(Callback):
    """Continue a fit whose batches do not fit into the memory of the device: accumulate the gradients of two halves.

    When a batch is too much, the network processes its halves one after another, for this and all later batches. The
    loss and the step are still those of the whole batch, since each half is computed again when its gradient is needed
    (`torch.utils.checkpoint`); only batch norm uses the statistics of halves. A batch that fails in the backward pass
    is left out, with a warning.

    Raises
    ------
    WorkerError
        If half a batch is too much as well.
    """

    # After mixed precision scales the loss, so that the scaled loss is the one that is differentiated.
    order = MixedPrecision.order + 1
    run_valid = False

    def __init__(self) -> None:
        self.halved = False
        self._forward_whole: Callable[..., Any] | None = None

    def before_fit(self) -> None:
        """Replace the forward method of the network."""
        self._restore()
        self.network = get_model(self.learn.model)
        self._forward_whole, self.halved = self.network.forward, False
        self.network.forward = self._forward

    def _forward(self, *inputs: Any) -> Any:
        assert self._forward_whole is not None
        if not self.network.training or not self.halved:
            try:
                return self._forward_whole(*inputs)
            except torch.OutOfMemoryError as e:
                if not self.network.training:
                    raise
                release_memory(e)
                self._halve(len(inputs[0]))
        return self._forward_halves(inputs)

    def _forward_halves(self, inputs: tuple[Tensor, ...]) -> Any:
        try:
            halves = zip(*(x.chunk(2) for x in inputs), strict=True)
            return _concat([checkpoint(self._forward_whole, *half, use_reentrant=False) for half in halves])
        except torch.OutOfMemoryError as e:
            release_memory(e)
            raise WorkerError(out_of_memory_message(f"half a batch of {len(inputs[0])} clips")) from None

    def before_backward(self) -> None:
        """Run the backward pass here, where an error can be caught."""
        try:
            self.learn.loss_grad.backward()
        except torch.OutOfMemoryError as e:
            bs = self.learn.dls.train.bs
            if self.halved:
                raise WorkerError(out_of_memory_message(f"half a batch of {bs} clips")) from e
            release_memory(e)
            self._halve(bs, "; this one is left out")
            self.learn.opt.zero_grad()
            raise CancelBatchException from None
        raise CancelBackwardException

    def _halve(self, n_clips: int, consequence: str = "") -> None:
        self.halved = True
        warnings.warn(
            f"the memory of the device is too small for a batch of {n_clips} clips: from here on gradients are "
            f"accumulated over its halves, which is slower{consequence}; a smaller --bs avoids this",
            stacklevel=2,
        )

    def after_fit(self) -> None:
        """Restore the forward method of the network."""
        self._restore()

    after_cancel_fit = after_fit

    def _restore(self) -> None:
        if self._forward_whole is not None:
            vars(self.network).pop("forward", None)
            self._forward_whole = None


def _concat(halves: list[Any]) -> Any:
    """Concatenate the outputs of two halves: tensors, or tuples of them."""
    if isinstance(halves[0], Tensor):
        return torch.cat(halves)
    return type(halves[0])(_concat(list(parts)) for parts in zip(*halves, strict=True))
