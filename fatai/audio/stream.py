"""Sound of any length, rate and number of channels as one channel in blocks: memory does not grow with the length."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import soxr
import torch
from torch import Tensor

from fatai.errors import AudioError, OptionError, ShapeError
from fatai.audio.io import RATES, one_channel, opened_sound, read_samples
from fatai.audio.waveform import fit_length

__all__ = ["Sound", "stream_audio"]

Sound: TypeAlias = str | os.PathLike[str] | bytes | np.ndarray | Tensor
"""A path, the bytes of a sound file, or samples: (samples,) or (channels, samples), floats at full scale [-1, 1] or 16-bit integers."""

_BLOCK = 1 << 18  # values of all channels that are decoded at a time


def stream_audio(sound: Sound, sr: int, *, sr_from: int | None = None) -> Iterator[Tensor]:
    """The sound at `sr` Hz, its channels averaged, in blocks of any length; joined they are what `load_audio` gives at once.

    Parameters
    ----------
    sound
        A path, the bytes of a file, or samples.
    sr_from
        Rate of samples in Hz; None means `sr`. Files say theirs themselves.

    Yields
    ------
    Blocks of shape (samples,), float32.

    Raises
    ------
    AudioError
        As `load_audio`, but for sound that is too long to be read at once. A fault that only shows on decoding is raised when the stream
        reaches it.
    ShapeError
        If an array is neither (samples,) nor (channels, samples).
    """
    if isinstance(sound, (str, os.PathLike)):
        yield from _resampled(_of_file(Path(sound)), sr)
    elif isinstance(sound, bytes):
        yield from _of_bytes(sound, sr)
    else:
        rate = sr if sr_from is None else sr_from
        if not RATES[0] <= rate <= RATES[1]:
            raise OptionError(f"the rate of the samples is given as {rate} Hz; expected {RATES[0]:,} to {RATES[1]:,}")
        yield from _resampled(((rate, block) for block in _of_samples(sound)), sr)


def _of_file(path: Path) -> Iterator[tuple[int, Tensor]]:
    """Rate and blocks as they are in the file, one channel."""
    with opened_sound(path, plain_wav=True) as file:
        rate = file.samplerate
        at_once = max(1, _BLOCK // file.channels)
        for start in range(0, file.frames, at_once):
            yield rate, one_channel(path, read_samples(path, file, min(at_once, file.frames - start)))


def _of_bytes(encoded: bytes, sr: int) -> Iterator[Tensor]:
    # The checks of a file need its size and seek in it; an error must not name the place that it has for the moment.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "sound")
        path.write_bytes(encoded)
        try:
            yield from stream_audio(path, sr)
        except AudioError as e:
            raise AudioError(str(e).replace(str(path), f"the {len(encoded):,} bytes given")) from None


def _of_samples(given: np.ndarray | Tensor) -> Iterator[Tensor]:
    samples = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    if samples.ndim not in (1, 2) or samples.size == 0 or samples.ndim == 2 and len(samples) > samples.shape[1]:
        raise ShapeError(
            f"got samples of shape {samples.shape}; expected (samples,) or (channels, samples) with at least one sample: "
            "transpose what has its channels last"
        )
    if not (np.issubdtype(samples.dtype, np.floating) or samples.dtype == np.int16):
        raise ShapeError(
            f"got samples of type {samples.dtype}; expected floats at full scale [-1, 1], or 16-bit integers"
        )
    kind = np.int16 if samples.dtype == np.int16 else np.float32
    for start in range(0, samples.shape[-1], _BLOCK):
        yield one_channel("the samples given", samples[..., start:start + _BLOCK].T.astype(kind))


def _resampled(blocks: Iterator[tuple[int, Tensor]], sr: int) -> Iterator[Tensor]:
    resampler, read, given = None, 0, 0
    for rate, block in blocks:
        if rate == sr:
            yield block
            continue
        resampler = resampler or soxr.ResampleStream(rate, sr, 1, dtype="float32", quality="HQ")
        done = torch.from_numpy(resampler.resample_chunk(block.numpy()))
        read, given = read + len(block), given + len(done)
        yield done
    if resampler is not None:
        rest = torch.from_numpy(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
        # soxr may give a sample more or less than asked for.
        yield fit_length(rest, max(0, math.ceil(read * sr / rate) - given), "constant_right", cut="right")
