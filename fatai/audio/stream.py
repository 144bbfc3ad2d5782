"""Read sound of any length block by block, as mono at any rate: memory does not grow with the length."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import soxr
import torch
from torch import Tensor

from fatai.audio.decoder import RATES, as_floats, open_sound, read_floats
from fatai.audio.downmix import ChannelLevels, check_channel, find_downmix
from fatai.audio.io import audio_info
from fatai.audio.notices import warn_of_mismatch, warn_of_quality
from fatai.audio.remote import sound_path
from fatai.audio.waveform import check_rate, fit_length
from fatai.errors import AudioError, OptionError, ShapeError

__all__ = ["Sound", "stream_audio"]

Sound: TypeAlias = str | os.PathLike[str] | bytes | np.ndarray | Tensor
"""A path or URL, the bytes of a sound file, or samples of shape (samples,) or (channels, samples)."""

_BLOCK = 1 << 18  # values of all channels per block


def stream_audio(
    sound: Sound, sr: int, *, sr_from: int | None = None, channel: str | int = "auto", name: str | None = None
) -> Iterator[Tensor]:
    """Yield a sound as mono blocks at `sr` Hz; concatenated they equal the result of `load_audio`.

    Parameters
    ----------
    sound
        A path or a URL of fsspec, which is read in blocks; the bytes of a file; or samples: (samples,) or (channels,
        samples), floats at full scale [-1, 1] or 16-bit integers.
    sr
        Rate of the blocks in Hz.
    sr_from
        Rate of samples in Hz; None means `sr`. Ignored for files, whose header has it.
    channel
        As in `load_audio`, without "each". It is decided before the first block: of a long file 16 short stretches are
        read for it, so at most a minute of sound.
    name
        Shown for the path of a file in warnings. Samples with a name were read from a file before, which has caused the
        warnings then, and cause none; if they are one channel, that is the one that was chosen.

    Yields
    ------
    Blocks of shape (samples,), float32.

    Raises
    ------
    AudioError
        As `load_audio`, but for sound that is too long to be read at once. A decoding error is raised when the stream
        reaches it.
    ShapeError
        If an array is neither (samples,) nor (channels, samples).
    OptionError
        If `sr`, `sr_from` or `channel` is out of range.
    """
    sr = check_rate(sr)
    if check_channel(channel) == "each":
        raise OptionError("channel is 'each', and a stream has one channel; expected the number of one of them")
    if isinstance(sound, (str, os.PathLike)):
        yield from _resample_blocks(_file_blocks(sound_path(sound), sr, channel, name), sr)
    elif isinstance(sound, bytes):
        yield from _stream_bytes(sound, sr, channel)
    else:
        rate = sr if sr_from is None else check_rate(sr_from, "sr_from")
        if not RATES[0] <= rate <= RATES[1]:
            raise OptionError(f"sr_from={rate} Hz; expected {RATES[0]:,} to {RATES[1]:,}")
        yield from _resample_blocks(((rate, block) for block in _sample_blocks(sound, channel, name is None)), sr)


def count_channels(sound: Sound) -> int:
    """Return the number of channels of a sound, as `stream_audio` takes it; raise `AudioError` if it cannot be read."""
    if isinstance(sound, (str, os.PathLike)):
        return audio_info(sound).channels
    if isinstance(sound, bytes):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "sound")
            path.write_bytes(sound)
            return audio_info(path).channels
    return 1 if sound.ndim == 1 else len(sound)


def _file_blocks(
    path: Path | str, sr: int, channel: str | int, name: str | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Yield the file's rate and mono blocks (samples,) at that rate; `name` stands for the path in a warning."""
    with open_sound(path, plain_wav=True) as file:
        warn_of_mismatch(path, file, name=name)
        warn_of_quality(path, file, sr, name=name)
        rate, downmix = file.samplerate, find_downmix(path, file, channel, name=name)
        n = max(1, _BLOCK // file.channels)
        for start in range(0, file.frames, n):
            yield rate, downmix.apply(read_floats(path, file, min(n, file.frames - start)))


def _stream_bytes(encoded: bytes, sr: int, channel: str | int) -> Iterator[Tensor]:
    # The checks of a file need its size and seek in it; an error message must not name the temporary file.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "sound")
        path.write_bytes(encoded)
        name = f"the given {len(encoded):,} bytes"
        try:
            yield from _resample_blocks(_file_blocks(path, sr, channel, name), sr)
        except AudioError as e:
            raise AudioError(str(e).replace(str(path), name)) from None


def _sample_blocks(sound: np.ndarray | Tensor, channel: str | int, notify: bool) -> Iterator[Tensor]:
    """Yield mono blocks (samples,) of samples (samples,) or (channels, samples)."""
    samples = sound.detach().cpu().numpy() if isinstance(sound, Tensor) else np.asarray(sound)
    if samples.ndim not in (1, 2) or samples.size == 0 or samples.ndim == 2 and len(samples) > samples.shape[1]:
        raise ShapeError(
            f"got samples of shape {samples.shape}; expected (samples,) or (channels, samples) with at least one "
            "sample: transpose an array with its channels last"
        )
    if not (np.issubdtype(samples.dtype, np.floating) or samples.dtype == np.int16):
        raise ShapeError(
            f"got samples of type {samples.dtype}; expected floats at full scale [-1, 1], or 16-bit integers"
        )
    dtype, name = np.int16 if samples.dtype == np.int16 else np.float32, "the given samples"
    levels = ChannelLevels(1 if samples.ndim == 1 else len(samples))
    channel = channel if notify or samples.ndim > 1 else "mean"

    def blocks() -> Iterator[Tensor]:
        for start in range(0, samples.shape[-1], _BLOCK):
            yield as_floats(name, samples[..., start:start + _BLOCK].T.astype(dtype))

    for block in blocks():
        levels.add(block)
    downmix = levels.decide(name, channel, floats=dtype == np.float32)
    for notice in downmix.notices if notify else ():
        warnings.warn(f"{name}: {notice}", stacklevel=2)
    yield from map(downmix.apply, blocks())


def _resample_blocks(blocks: Iterator[tuple[int, Tensor]], sr: int) -> Iterator[Tensor]:
    """Yield blocks (samples,) at `sr` Hz of blocks (samples,) with their rate."""
    resampler, n_read, n_yielded = None, 0, 0
    for rate, block in blocks:
        if rate == sr:
            yield block
            continue
        resampler = resampler or soxr.ResampleStream(rate, sr, 1, dtype="float32", quality="HQ")
        resampled = torch.from_numpy(resampler.resample_chunk(block.numpy()))
        n_read, n_yielded = n_read + len(block), n_yielded + len(resampled)
        yield resampled
    if resampler is not None:
        rest = torch.from_numpy(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
        # soxr may return a sample more or less.
        yield fit_length(rest, max(0, -(-n_read * sr // rate) - n_yielded), "constant_right", cut="right")
