"""What goes wrong while a network learns, and what is done then: a loss that is no number, too little memory, a process that was killed."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fastai.callback.core import Callback, CancelBackwardException, CancelBatchException
from fastai.callback.fp16 import MixedPrecision
from fastai.learner import Learner
from fastai.torch_core import get_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fatai.errors import FataiError, WorkerError

__all__ = ["SplitBatchOnOOM", "NonFiniteError", "TerminateOnNaN", "split_on_oom", "translate_errors"]

_NAMED = 8  # files of a batch that a message lists


class NonFiniteError(FataiError, ArithmeticError):
    """The loss left the numbers."""


class TerminateOnNaN(Callback):
    """Stop with a clear error when the training loss, or a weight at an epoch's end, is no longer a number.

    The error names the batch's files. The learner is left with finite weights: its own, if the batch was the first to go wrong, otherwise
    those of the last good epoch; a state or a best epoch on the disk is from before the fault.
    """

    # At an epoch's end before anything is kept of it.
    order = 20
    run_valid = False

    def before_fit(self) -> None:
        self._keep()

    def _keep(self) -> None:
        self.good = {k: v.detach().to("cpu", copy=True) for k, v in get_model(self.learn.model).state_dict().items()}
        self.good_epoch = getattr(self.learn, "epoch", -1) if hasattr(self, "good_epoch") else -1

    def after_loss(self) -> None:
        if torch.isfinite(self.learn.loss_grad).all():
            return
        loss = float(self.learn.loss_grad.detach().mean())
        self._stop(f"the training loss became {loss} in epoch {self.epoch}, batch {self.iter}{self._files()}")

    def after_train(self) -> None:
        if _finite(self.learn.model):
            self._keep()
        else:
            self._stop(f"weights are no longer numbers after epoch {self.epoch}")

    def after_fit(self) -> None:
        self.good = {}

    def _stop(self, what: str) -> None:
        kept = "the weights are those before it"
        if not _finite(self.learn.model):
            get_model(self.learn.model).load_state_dict(self.good)
            since = "before the fit" if self.good_epoch < 0 else f"after epoch {self.good_epoch}"
            kept = f"the weights are again those {since}"
        raise NonFiniteError(
            f"{what}; {kept}: lower the learning rate, or look for clips of odd level with fatai-submit scan"
        )

    def _files(self) -> str:
        names = batch_files(self.learn)
        listed = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        return f" (its files: {listed})" if names else ""


def batch_files(learn: Learner) -> list[str]:
    """Names of the clips in the training batch of the moment; none where the loaders don't know them."""
    loader = learn.dls.train
    order, items = getattr(loader, "_DataLoader__idxs", None), getattr(loader.dataset, "items", None)
    if order is None or items is None or "fname" not in getattr(items, "columns", ()):
        return []
    return [str(items["fname"].iloc[i]) for i in list(order)[learn.iter * loader.bs:(learn.iter + 1) * loader.bs]]


def _finite(model: nn.Module) -> bool:
    return all(bool(torch.isfinite(v).all()) for v in model.state_dict().values() if v.is_floating_point())


class SplitBatchOnOOM(Callback):
    """Go on when the device has too little memory for a batch: the network is given its halves one after another, then and from then on.

    The step is still that of the whole batch, since each half is computed again when its gradient is asked for; only batch normalisation
    sees halves. A batch whose gradient, not whose answer, was too much is left out. If a half is too much, the fit ends.
    """

    # Behind mixed precision's scaling, so that what it hands on is what goes backward.
    order = MixedPrecision.order + 1
    run_valid = False

    def __init__(self) -> None:
        self.halved = False
        self._whole: Callable[..., Any] | None = None

    def before_fit(self) -> None:
        self._restore()
        self.network = get_model(self.learn.model)
        self._whole, self.halved = self.network.forward, False
        self.network.forward = self._forward

    def _forward(self, *inputs: Any) -> Any:
        assert self._whole is not None
        if not self.network.training:
            return self._whole(*inputs)
        if not self.halved:
            try:
                return self._whole(*inputs)
            except torch.OutOfMemoryError:
                self._halve(len(inputs[0]), "")
        with translate_errors(f"half a batch of {len(inputs[0])} clips"):
            halves = zip(*(x.chunk(2) for x in inputs))
            return _joined([_computed_again(self._whole, half) for half in halves])

    def before_backward(self) -> None:
        try:
            self.learn.loss_grad.backward()
        except torch.OutOfMemoryError as e:
            if self.halved:
                raise WorkerError(_no_memory(f"half a batch of {self.learn.dls.train.bs} clips")) from e
            self._halve(self.learn.dls.train.bs, "; this one is left out")
            self.learn.opt.zero_grad()
            raise CancelBatchException from None
        raise CancelBackwardException

    def _halve(self, clips: int, besides: str) -> None:
        self.halved = True
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        warnings.warn(
            f"the memory of the device is too small for a batch of {clips} clips: from here on its halves are computed one after "
            f"the other, which is slower{besides}; a smaller --bs avoids it",
            stacklevel=2,
        )

    def after_fit(self) -> None:
        self._restore()

    def _restore(self) -> None:
        if self._whole is not None:
            vars(self.network).pop("forward", None)
            self._whole = None


def _computed_again(answer: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Any:
    """`answer` of `inputs`, of which only these are kept for its gradient."""
    failed: list[torch.OutOfMemoryError] = []
    again = False

    def told(*inputs: Tensor) -> Any:
        try:
            return answer(*inputs)
        except torch.OutOfMemoryError as e:
            if again:
                raise
            failed.append(e)
            return inputs[0]

    # An error that passes through `checkpoint` leaves its hooks on all that is computed later, in older versions of torch.
    answered = checkpoint(told, *inputs, use_reentrant=False)
    again = True
    if failed:
        raise failed[0]
    return answered


def split_on_oom(answer: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """`answer` of a batch; where memory is too small for it, of its two halves, with a warning."""
    try:
        return answer(batch)
    except torch.OutOfMemoryError:
        if len(batch) < 2:
            raise WorkerError(_no_memory("a single clip")) from None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        warnings.warn(f"the memory of the device is too small for a batch of {len(batch)}: it is halved", stacklevel=2)
        with translate_errors(f"half a batch of {len(batch)}"):
            return torch.cat([answer(half) for half in batch.chunk(2)])


@contextmanager
def translate_errors(what: str) -> Iterator[None]:
    """Turn what torch says of missing memory and of killed processes into a `WorkerError` that says what to do."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise WorkerError(_no_memory(what)) from None
    except RuntimeError as e:
        killed = re.search(r"DataLoader worker.*?(killed by signal: \w+|exited unexpectedly)", str(e), re.DOTALL)
        if killed is None:
            raise
        raise WorkerError(
            f"a process that reads sound ended ({killed[1]}); most often memory ran out: give fewer --num-workers, or 0, and "
            "go on with --resume"
        ) from None


def _no_memory(what: str) -> str:
    return f"the memory of the device is too small for {what}; give a smaller --bs, --width or --crop-s, and go on with --resume"


def _joined(halves: list[Any]) -> Any:
    """The answers of two halves as those of the whole: tensors, or rows of them."""
    if isinstance(halves[0], Tensor):
        return torch.cat(halves)
    return type(halves[0])(_joined(list(parts)) for parts in zip(*halves))
