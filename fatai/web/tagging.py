"""Tag an uploaded sound for display on a page."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fatai.audio.io import audio_info
from fatai.audio.stream import stream_audio
from fatai.errors import AudioError
from fatai.inference.events.recording_tagger import RecordingTagger
from fatai.report.media import overview_image
from fatai.web.security import HTTPError
from fatai.web.uploads import Limits, Upload

__all__ = ["tag_upload"]

MIN_PROB = 0.05
"""Tags whose probability never reaches this are not displayed, except the few most probable ones."""

MIN_TAGS, MAX_TAGS = 5, 24
"""Minimum and maximum number of displayed tags."""
# More samples per second, over all channels, come only from files made to keep a server busy.
_MAX_SAMPLES_PER_S = 400_000
_AUDIO_MAGIC = (b"RIFF", b"RF64", b"riff", b"FORM", b"OggS", b"fLaC", b"caff", b".snd", b"ID3")


def tag_upload(tagger: RecordingTagger, upload: Upload, limits: Limits) -> dict[str, Any]:
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
    `tags`, for each displayed tag, most probable first, its name, its `probs`, shape (steps,), in [0, 1], rounded to
    four digits, and its `threshold`, None if the tagger has none; `silent`, whether the sound is silent throughout, so
    that `probs` are a guess; `notices`, sentences on what is unusual in the file, such as the channel that is taken;
    `picture`, the spectrogram as a data URI, and its `ticks`, pairs of Hz and height in [0, 1].

    Raises
    ------
    HTTPError
        415 if it is not a sound, 422 if the sound is damaged or too long; the message names the file.
    """
    with _notices(upload.name) as notices:
        wave = _read_wave(upload, tagger.settings.sr, tagger.settings.channel, limits)
        steps = list(tagger.frame_probs(wave, name=upload.name))
    probs = np.stack([step.probs for step in steps], 1).round(4)
    thresholds = tagger.thresholds or {}
    spectrogram = overview_image(wave if wave.ndim == 1 else wave.mean(0), tagger.settings.sr)
    return {
        "file": upload.name,
        "seconds": round(wave.shape[-1] / tagger.settings.sr, 3),
        "times": [round(step.start_s, 4) for step in steps] + [round(steps[-1].end_s, 4)],
        "tags": [
            {"tag": tagger.tags[i], "probs": probs[i].tolist(), "threshold": thresholds.get(tagger.tags[i])}
            for i in _displayed(probs.max(1))
        ],
        "silent": all(step.is_silent for step in steps),
        "notices": notices,
        "picture": spectrogram.uri,
        "ticks": spectrogram.ticks,
    }


@contextmanager
def _notices(name: str) -> Iterator[list[str]]:
    """Give a list that is filled at the end with the warnings on a sound, without its name; they are given on, too."""
    notices: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield notices
    for warning in caught:
        warnings.warn(warning.message, warning.category, stacklevel=3)
    texts = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    notices += dict.fromkeys(text.removeprefix(f"{name}: ") for text in texts if text.startswith(name))


def _read_wave(upload: Upload, sr: int, channel: str | int, limits: Limits) -> Tensor:
    """Read a sound within the limits as a wave (samples,), with the channel "each" (channels, samples), at `sr` Hz."""
    try:
        info = audio_info(upload.path)
        if info.seconds > limits.sound_s or info.samples * info.channels > _MAX_SAMPLES_PER_S * limits.sound_s:
            raise HTTPError(
                422,
                f"{upload.name} is {info.seconds:,.1f} s long, in {info.channels} channels of {info.sr:,} Hz; expected "
                f"at most {limits.sound_s:g} s: send a part of it, or use fatai-submit tag",
            )
        channels = range(1, info.channels + 1) if channel == "each" else [channel]
        streams = [stream_audio(upload.path, sr, channel=k, name=upload.name) for k in channels]
        waves = [torch.cat(list(_limited(stream, upload, sr, limits))) for stream in streams]
        return torch.stack(waves) if channel == "each" else waves[0]
    except AudioError as e:
        status = 422 if _starts_like_audio(upload.path) else 415
        raise HTTPError(status, str(e).replace(str(upload.path), upload.name)) from None


def _displayed(max_probs: np.ndarray) -> list[int]:
    """Return the positions of the tags to display, given the maximum of each tag over time, shape (tags,)."""
    order = np.argsort(-max_probs, kind="stable")
    return [int(i) for k, i in enumerate(order[:MAX_TAGS]) if k < MIN_TAGS or max_probs[i] >= MIN_PROB]


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
