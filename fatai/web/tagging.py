"""Tag an uploaded sound for display on a page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fatai.audio.io import audio_info
from fatai.audio.stream import stream_audio
from fatai.errors import AudioError
from fatai.inference.events.tagger import SlidingWindowTagger
from fatai.report.media import overview_image
from fatai.web.security import HTTPError
from fatai.web.uploads import Limits, Upload

__all__ = ["tag_upload"]

MIN_PROB = 0.05
"""Tags whose probability never reaches this are not displayed, except the few most probable ones."""

_MIN_TAGS, _MAX_TAGS = 5, 24
# More samples per second, over all channels, come only from files made to keep a server busy.
_MAX_SAMPLES_PER_S = 400_000
_AUDIO_MAGIC = (b"RIFF", b"RF64", b"riff", b"FORM", b"OggS", b"fLaC", b"caff", b".snd", b"ID3")


def tag_upload(tagger: SlidingWindowTagger, upload: Upload, limits: Limits) -> dict[str, Any]:
    """Tag an uploaded sound.

    Parameters
    ----------
    tagger
        The tagger of the page.
    upload
        The sound.
    limits
        `limits.sound_s` is the maximum length.

    Returns
    -------
    Values that JSON can hold: `file`; `seconds`; `times`, the start of each step and the end of the last, in seconds;
    `tags`, for each displayed tag, most probable first, its name and its `probs`, shape (steps,), in [0, 1], rounded to
    four digits; `picture`, the spectrogram as a data URI, and its `ticks`, pairs of Hz and height in [0, 1].

    Raises
    ------
    HTTPError
        415 if it is not a sound, 422 if the sound is damaged or too long; the message names the file.
    """
    wave = _read_wave(upload, tagger.settings.sr, limits)
    steps = list(tagger.frame_probs(wave))
    probs = np.stack([step.probs for step in steps], 1).round(4)
    spectrogram = overview_image(wave, tagger.settings.sr)
    return {
        "file": upload.name,
        "seconds": round(len(wave) / tagger.settings.sr, 3),
        "times": [round(step.start_s, 4) for step in steps] + [round(steps[-1].end_s, 4)],
        "tags": [{"tag": tagger.tags[i], "probs": probs[i].tolist()} for i in _displayed(probs.max(1))],
        "picture": spectrogram.uri,
        "ticks": spectrogram.ticks,
    }


def _read_wave(upload: Upload, sr: int, limits: Limits) -> Tensor:
    """Read a sound within the limits as a wave (samples,) at `sr` Hz."""
    try:
        info = audio_info(upload.path)
        if info.seconds > limits.sound_s or info.samples * info.channels > _MAX_SAMPLES_PER_S * limits.sound_s:
            raise HTTPError(
                422,
                f"{upload.name} is {info.seconds:,.1f} s long, in {info.channels} channels of {info.sr:,} Hz; expected "
                f"at most {limits.sound_s:g} s: send a part of it, or use fatai-submit tag",
            )
        return torch.cat(list(_limited(stream_audio(upload.path, sr), upload, sr, limits)))
    except AudioError as e:
        status = 422 if _starts_like_audio(upload.path) else 415
        raise HTTPError(status, str(e).replace(str(upload.path), upload.name)) from None


def _displayed(max_probs: np.ndarray) -> list[int]:
    """Return the positions of the tags to display, given the maximum of each tag over time, shape (tags,)."""
    order = np.argsort(-max_probs, kind="stable")
    return [int(i) for k, i in enumerate(order[:_MAX_TAGS]) if k < _MIN_TAGS or max_probs[i] >= MIN_PROB]


def _limited(blocks: Iterator[Tensor], upload: Upload, sr: int, limits: Limits) -> Iterator[Tensor]:
    """Yield blocks (samples,) of a sound; raise `HTTPError` if it is longer than its header declares."""
    samples = 0
    for block in blocks:
        samples += len(block)
        if samples > (limits.sound_s + 1) * sr:
            raise HTTPError(
                422, f"{upload.name} continues after {limits.sound_s:g} s, where it ends by its header; save it again"
            )
        yield block


def _starts_like_audio(path: Path) -> bool:
    with path.open("rb") as f:
        start = f.read(12)
    is_mpeg = len(start) > 1 and start[0] == 0xFF and start[1] >= 0xE0
    return not start or is_mpeg or start.startswith(_AUDIO_MAGIC)
