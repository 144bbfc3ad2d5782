"""Too little memory, and worker processes that were killed, in a fit or a prediction; needs torch alone."""

from __future__ import annotations

import re
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fatai.errors import WorkerError

__all__ = ["out_of_memory_message", "release_memory", "split_on_oom", "translate_errors"]


def split_on_oom(predict: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """Call a function with a batch; where memory is too small, with its two halves, and warn.

    Parameters
    ----------
    predict
        Function from shape (batch, ...) to shape (batch, ...).
    batch
        Shape (batch, ...).

    Returns
    -------
    The output for the whole batch, shape (batch, ...).

    Raises
    ------
    WorkerError
        If half a batch, or a single clip, is too much as well.
    """
    try:
        return predict(batch)
    except torch.OutOfMemoryError as e:
        if len(batch) < 2:
            raise WorkerError(out_of_memory_message("a single clip")) from None
        release_memory(e)
    warnings.warn(f"the memory of the device is too small for a batch of {len(batch)}: it is halved", stacklevel=2)
    with translate_errors(f"half a batch of {len(batch)}"):
        return torch.cat([predict(half) for half in batch.chunk(2)])


@contextmanager
def translate_errors(desc: str) -> Iterator[None]:
    """Raise `WorkerError`, with a remedy, for torch's errors about missing memory and killed worker processes.

    Parameters
    ----------
    desc
        What needs the memory, for the message: "batches of 64 clips".
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise WorkerError(out_of_memory_message(desc)) from None
    except RuntimeError as e:
        killed = re.search(r"DataLoader worker.*?(killed by signal: \w+|exited unexpectedly)", str(e), re.DOTALL)
        if killed is None:
            raise
        raise WorkerError(
            f"a process that reads sound ended ({killed[1]}); most often memory ran out: give fewer --num-workers, "
            "or 0, and continue with --resume"
        ) from None


def release_memory(error: torch.OutOfMemoryError) -> None:
    """Free the memory that a failed call still holds through the traceback of its error.

    This also ends the hooks of `torch.utils.checkpoint`, which would otherwise stay active for as long as the traceback
    lives.
    """
    traceback.clear_frames(error.__traceback__)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def out_of_memory_message(desc: str) -> str:
    """Return what is too much for the memory, such as "batches of 64 clips", and what to do."""
    remedy = "give a smaller --bs, --width or --crop-s, and continue with --resume"
    return f"the memory of the device is too small for {desc}; {remedy}"
