"""One sound, sent by somebody, to what a page shows of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fatai.errors import AudioError
from fatai.inference.events.tagger import SlidingWindowTagger
from fatai.report.whole_picture import whole_picture
from fatai.audio.io import audio_info
from fatai.audio.stream import stream_audio
from fatai.web.security import HTTPError
from fatai.web.uploads import Limits, Upload

__all__ = ["tag_upload"]

LEAST_PROB = 0.05
"""Tags that never are likelier than this are not shown, but for the likeliest few."""

_FEWEST, _MOST = 5, 24  # tags
# A second of sound is no more than this many values in all its channels: more is a file made to keep a server busy.
_VALUES_PER_S = 400_000
_SOUND_STARTS = (b"RIFF", b"RF64", b"riff", b"FORM", b"OggS", b"fLaC", b"caff", b".snd", b"ID3")


def tag_upload(tagger: SlidingWindowTagger, upload: Upload, limits: Limits) -> dict[str, Any]:
    """What is in a sound, as plain values.

    Returns
    -------
    `file`, `seconds`; `times`: where steps start and where the last one ends, in seconds; `tags`: for each shown tag, the likeliest first,
    its name and its `probs` (steps,), rounded to four places; `picture` (a data URI) and its `ticks` (Hz, height).

    Raises
    ------
    HTTPError
        415 if it is no sound, 422 if the sound is damaged or too long; the sentence calls the file by its name.
    """
    try:
        info = audio_info(upload.path)
        if info.seconds > limits.sound_s or info.samples * info.channels > _VALUES_PER_S * limits.sound_s:
            raise HTTPError(
                422,
                f"{upload.name} is {info.seconds:,.1f} s long, in {info.channels} channels of {info.sr:,} Hz; at most "
                f"{limits.sound_s:g} s are taken: send a part of it, or use fatai-submit tag",
            )
        wave = torch.cat(
            list(_within(stream_audio(upload.path, tagger.settings.sr), upload, tagger.settings.sr, limits))
        )
    except AudioError as e:
        raise HTTPError(
            422 if _starts_as_sound(upload.path) else 415, str(e).replace(str(upload.path), upload.name)
        ) from None
    steps = list(tagger.steps(wave))
    probs = np.stack([step.probs for step in steps], 1).round(4)
    seen = whole_picture(wave, tagger.settings.sr)
    return {
        "file": upload.name,
        "seconds": round(len(wave) / tagger.settings.sr, 3),
        "times": [round(step.start_s, 4) for step in steps] + [round(steps[-1].end_s, 4)],
        "tags": [{"tag": tagger.tags[i], "probs": probs[i].tolist()} for i in _shown(probs.max(1))],
        "picture": seen.uri,
        "ticks": seen.ticks,
    }


def _shown(best: np.ndarray) -> list[int]:
    order = np.argsort(-best, kind="stable")
    return [int(i) for k, i in enumerate(order[:_MOST]) if k < _FEWEST or best[i] >= LEAST_PROB]


def _within(blocks: Iterator[torch.Tensor], upload: Upload, sr: int, limits: Limits) -> Iterator[torch.Tensor]:
    """The blocks of a sound that is not longer than its header says."""
    samples = 0
    for block in blocks:
        samples += len(block)
        if samples > (limits.sound_s + 1) * sr:
            raise HTTPError(
                422, f"{upload.name} goes on after {limits.sound_s:g} s, at which its header ends; write it again"
            )
        yield block


def _starts_as_sound(path: Path) -> bool:
    with path.open("rb") as f:
        start = f.read(12)
    mpeg = len(start) > 1 and start[0] == 0xFF and start[1] >= 0xE0
    return not start or mpeg or start.startswith(_SOUND_STARTS)
