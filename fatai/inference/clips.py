"""A clip as users have it: a path, or samples at any rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fatai.audio.waveform import resample
from fatai.errors import OptionError, ShapeError

__all__ = ["clip_at"]


def clip_at(item: Any, sr: int | None, sr_to: int) -> str | Path | np.ndarray:
    """Return a path as it is, and samples as a float32 array (samples,) at the rate `sr_to`.

    Parameters
    ----------
    item
        A path; an array or tensor (samples,) or (1, samples); or a tuple of such samples and their rate. int16 and
        int32 are divided by the largest magnitude of their type.
    sr
        Rate of the samples in Hz; None is that of a `TensorWave`, or else `sr_to`.
    sr_to
        Rate to resample to, in Hz.

    Raises
    ------
    ShapeError, OptionError
        If samples have another shape or type, or `sr` is not above 0 or given for a path.

    Examples
    --------
    >>> clip_at(np.array([[0, -16384]], dtype=np.int16), None, 44100)
    array([ 0. , -0.5], dtype=float32)
    """
    if isinstance(item, tuple):
        item, sr = item
    if isinstance(item, (str, Path)):
        if sr is not None:
            raise OptionError(f"sr is {sr} for the file {item}; leave it out: the file has its own rate")
        return item
    if sr is None:
        # A TensorWave has a rate. So has the plain tensor that it was made of, which stands for samples without one.
        is_subclass = isinstance(item, Tensor) and type(item) is not Tensor
        sr = getattr(item, "sr", sr_to) if is_subclass else sr_to
    if not sr > 0:
        raise OptionError(f"sr is {sr}; expected the rate of the samples in Hz, such as 44100")
    wave = _as_wave(item)
    return (wave if sr == sr_to else resample(wave, int(sr), sr_to)).numpy()


def _as_wave(samples: Any) -> Tensor:
    """Return samples as a plain float32 tensor (samples,)."""
    array = samples if isinstance(samples, Tensor) else np.ascontiguousarray(samples)
    if isinstance(array, np.ndarray) and array.dtype.kind not in "iuf":
        raise OptionError(
            f"the item is of type {type(samples).__name__}; expected the path of a sound, or samples as an array or "
            "tensor; tta(items=[...]) predicts several sounds"
        )
    wave = torch.as_tensor(array)
    wave = wave.detach().cpu().as_subclass(Tensor)
    if wave.ndim == 2 and len(wave) == 1:
        wave = wave[0]
    if wave.ndim != 1:
        raise ShapeError(
            f"the samples have shape {tuple(wave.shape)}; expected (samples,): take one channel or the mean of them"
        )
    if wave.is_floating_point():
        if not wave.isfinite().all():
            raise OptionError("the samples hold NaN or infinity; expected floats within [-1, 1]")
        return wave.float()
    if wave.dtype not in (torch.int16, torch.int32):
        raise OptionError(f"the samples are {wave.dtype}; expected floats within [-1, 1], int16 or int32")
    return (wave.double() / -torch.iinfo(wave.dtype).min).float()
