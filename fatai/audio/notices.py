"""Warnings about a sound file, each given once: a wrong length, a low rate, a coding with few bits, odd channels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path

from fatai.audio.decoder import Decoder

__all__ = ["coding_notice", "give_notices", "warn_of_mismatch", "warn_of_quality"]

_LOW_RATE = 4_000  # Hz; below it even speech is cut off
# Bits for each sample of codings whose noise may change tags, by what the coding is called.
_COARSE = {
    "ALAW": ("A-law", 8), "ULAW": ("mu-law", 8), "IMA_ADPCM": ("IMA ADPCM", 4), "MS_ADPCM": ("MS ADPCM", 4),
    "VOX_ADPCM": ("VOX ADPCM", 4), "NMS_ADPCM_16": ("NMS ADPCM", 2), "NMS_ADPCM_24": ("NMS ADPCM", 3),
    "NMS_ADPCM_32": ("NMS ADPCM", 4), "G721_32": ("G.721", 4), "G723_24": ("G.723", 3), "G723_40": ("G.723", 5),
    "GSM610": ("GSM 06.10", 2), "DPCM_8": ("DPCM", 8),
}
_EIGHT_BITS_DB = -53  # the power of an error that is uniform within a step of 1/128
_MAX_REMEMBERED = 1 << 16
_mismatches_warned: set[str] = set()  # names of files
_notices_given: set[tuple[str, str]] = set()  # paths and notices


def warn_of_mismatch(path: Path | str, sound: Decoder, *, name: str | None = None) -> None:
    """Warn, once for each file, if its header declares another length than it has; `name` is shown for the path."""
    if sound.mismatch and str(path) not in _mismatches_warned:
        _mismatches_warned.add(str(path))
        warnings.warn(
            f"{name or path}: read to its end at {sound.frames / sound.samplerate:.3f} s; the end of the sound is "
            f"missing, or the length in the header is wrong ({sound.mismatch}): if it should be longer, download or "
            "copy it again",
            stacklevel=3,
        )


def warn_of_quality(path: Path | str, sound: Decoder, sr: int | None, *, name: str | None = None) -> None:
    """Warn of a low rate, once for each file, and of a coarse coding, once for each folder of such files.

    Parameters
    ----------
    path, sound
        A file and its decoder.
    sr
        Rate in Hz to which it is resampled; None is its own.
    name
        Shown for the path.
    """
    rate = sound.samplerate
    if rate < _LOW_RATE <= (sr or rate):
        notice = f"its rate is {rate:,} Hz, so it has no sound above {rate // 2:,} Hz, which many tags need"
        give_notices(path, [notice], name)
    if notice := coding_notice(sound.subtype):
        beside = f"{notice}; so it is with files of this coding beside it"
        give_notices(os.path.dirname(path), [beside], name or str(path))


def coding_notice(subtype: str) -> str:
    """Return a notice on a coding, by libsndfile's name of it, whose noise may change tags; "" for others."""
    if subtype in ("PCM_U8", "PCM_S8"):
        return (
            f"coded with 8 bits for each sample: sound below their noise, {_EIGHT_BITS_DB} dB of full scale, is lost, "
            "and probabilities may differ from those of a recording with 16 bits"
        )
    if subtype not in _COARSE:
        return ""
    name, bits = _COARSE[subtype]
    return (
        f"coded as {name}, with {bits} bits for each sample: its noise may change probabilities, compared with a "
        "recording with 16 bits"
    )


def give_notices(path: Path | str, notices: Iterable[str], name: str | None = None) -> None:
    """Warn, once for each path and notice; `name` is shown for the path."""
    for notice in notices:
        if (str(path), notice) not in _notices_given:
            if len(_notices_given) >= _MAX_REMEMBERED:
                _notices_given.clear()
            _notices_given.add((str(path), notice))
            warnings.warn(f"{name or path}: {notice}", stacklevel=4)
