"""What training takes when nothing is said: rules from what is known about the clips, each a function with its reason.

The settings that no rule touches were measured once, on small data sets: a quarter of `m3`'s channels, mixing by OR,
gain, shift, noise and masks, a one-cycle schedule up to 0.003, averaged weights, the last epochs without augmentation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fastai.callback.core import Callback

from fatai.audio.io import audio_info
from fatai.augment.mixup import MixUpOr
from fatai.augment.spec_augment import SpecAugment
from fatai.augment.wave import AddNoise, Gain, Shift
from fatai.callbacks.augmentation import DisableAugmentation
from fatai.callbacks.averaging import WeightAverage
from fatai.errors import AudioError, DataError

__all__ = ["ClipFacts", "Decision", "clip_facts", "default_augmentations"]

ARCH = "m3"
LR = 3e-3
WD = 0.01
EMA_DECAY = 0.999
_CROP_S, _MIN_CROP_S = 2.0, 0.5
_MIN_STEPS, _MAX_STEPS, _PASSES = 2000, 12_000, 60
_STEPS_PER_EPOCH = 100  # at least
_CLIPS_PER_FOLD, _MAX_FOLDS = 3, 4
_WIDTHS = ((2000, 0.25), (10_000, 0.5))  # up to so many clips
_BATCHES = ((63, 8), (2000, 16), (8000, 32))
_FULL_BAND = (44_100, 48_000)
_NO_AUG_PART = 15  # one epoch in so many, at the end
_MAX_FILES = 500


class Decision(NamedTuple):
    """A value and the reason for it, as `run --dry-run` and the manifest show it."""

    value: Any
    reason: str


@dataclass(frozen=True)
class ClipFacts:
    """What the rules need to know about training clips.

    Attributes
    ----------
    seconds, rates
        Duration in seconds and sample rate in Hz of readable clips, at most 500 of them; each of shape (files,).
    """

    seconds: np.ndarray
    rates: np.ndarray


def clip_facts(paths: Sequence[str | Path]) -> ClipFacts:
    """Read durations and rates from the headers of clips, of 500 evenly spaced ones if there are more.

    Raises
    ------
    DataError
        If none of them can be read.
    """
    step = max(1, math.ceil(len(paths) / _MAX_FILES))
    infos = []
    for path in list(paths)[::step]:
        try:
            infos.append(audio_info(path))
        except AudioError:
            continue
    if not infos:
        raise DataError(f"none of {len(paths)} clips can be read; expected sound files: look at fatai-submit scan")
    return ClipFacts(np.array([info.seconds for info in infos]), np.array([info.sr for info in infos]))


def crop_seconds(seconds: np.ndarray) -> Decision:
    """Choose the length of a crop: 2 s, or less where three quarters of the clips are shorter, at least 0.5 s.

    Parameters
    ----------
    seconds
        Durations of clips, shape (clips,).

    Examples
    --------
    >>> crop_seconds(np.array([0.8, 0.9, 1.0, 1.23, 4.0]))
    Decision(value=1.2, reason='three quarters of the clips are at most 1.23 s long')
    """
    upper = float(np.quantile(seconds, 0.75))
    if upper >= _CROP_S:
        return Decision(_CROP_S, f"a quarter of the clips are at least {upper:.3g} s long")
    value = round(max(_MIN_CROP_S, math.floor(upper * 20 + 1e-6) / 20), 2)
    return Decision(value, f"three quarters of the clips are at most {upper:.3g} s long")


def front_end_settings(rates: np.ndarray) -> Decision:
    """Choose settings of the front end `ninth` for the rates of the files: the same durations, up to half the rate.

    Files at 44.1 or 48 kHz keep the published settings. Lower rates get no empty bands above their own, higher ones
    keep their ultrasound.

    Parameters
    ----------
    rates
        Sample rates in Hz, shape (clips,).

    Examples
    --------
    >>> front_end_settings(np.array([16000, 16000])).value
    {'sr': 16000, 'n_fft': 696, 'hop_length': 250, 'fmax': 8000.0}
    """
    rate = int(np.quantile(rates, 0.5, method="lower"))
    if rate in _FULL_BAND:
        return Decision({}, f"half of the files have at most {rate:,} Hz")
    factor = rate / 44_100
    value = {
        "sr": rate, "n_fft": 2 * max(8, round(1920 * factor / 2)), "hop_length": max(1, round(690 * factor)),
        "fmax": rate / 2,
    }
    return Decision(value, f"half of the files have at most {rate:,} Hz: bands up to {rate / 2:,.0f} Hz")


def network_width(n_clips: int) -> Decision:
    """Choose the width of the network: a quarter up to 2,000 clips, half up to 10,000, else as published.

    Examples
    --------
    >>> network_width(320).value
    0.25
    """
    value = next((width for limit, width in _WIDTHS if n_clips <= limit), 1.0)
    return Decision(value, f"there are {n_clips:,} clips to train on")


def batch_size(n_clips: int) -> Decision:
    """Choose the number of clips per batch: 8 below 64 training clips, 16 up to 2,000, 32 up to 8,000, else 64.

    Examples
    --------
    >>> batch_size(320).value
    16
    """
    value = next((bs for limit, bs in _BATCHES if n_clips <= limit), 64)
    return Decision(value, f"there are {n_clips:,} clips to train on")


def epoch_clips(n_clips: int, bs: int) -> Decision:
    """Choose the number of clips in an epoch: all once, or so often that it has 100 steps; None is all of them once.

    After every epoch a fit validates and writes its state; with few clips that takes longer than their training.

    Parameters
    ----------
    n_clips
        Clips that a network is trained on.
    bs
        Clips per batch.

    Examples
    --------
    >>> epoch_clips(160, 16), epoch_clips(5000, 32).value
    (Decision(value=1600, reason='an epoch is 100 steps of 16 clips, about 10 passes over 160 clips'), None)
    """
    n = _STEPS_PER_EPOCH * bs
    if n_clips >= n:
        return Decision(None, f"an epoch is one pass over {n_clips:,} clips")
    passes = f"about {n / n_clips:.0f} passes over {n_clips:,} clips"
    return Decision(n, f"an epoch is {_STEPS_PER_EPOCH} steps of {bs} clips, {passes}")


def fit_epochs(n_clips: int, bs: int, n_drawn: int | None = None) -> Decision:
    """Choose the number of epochs: as many as 60 passes, with at least 2,000 and at most 12,000 steps.

    Small data sets need steps, however often they see a clip.

    Parameters
    ----------
    n_clips
        Clips that a network is trained on.
    bs
        Clips per batch.
    n_drawn
        Clips in an epoch; None is each once.

    Examples
    --------
    >>> fit_epochs(160, 16)
    Decision(value=200, reason='2,000 steps of 16 clips, 10 in an epoch')
    >>> fit_epochs(160, 16, 1600).value
    20
    """
    steps_per_epoch = max(1, (n_clips if n_drawn is None else n_drawn) // bs)
    steps = min(max(_PASSES * n_clips // bs, _MIN_STEPS), _MAX_STEPS)
    epochs = max(1, round(steps / steps_per_epoch))
    return Decision(epochs, f"{epochs * steps_per_epoch:,} steps of {bs} clips, {steps_per_epoch} in an epoch")


def no_aug_epochs(epochs: int) -> Decision:
    """Choose the number of last epochs without augmentation: a fifteenth; None where there is a single epoch.

    Examples
    --------
    >>> no_aug_epochs(150).value, no_aug_epochs(1).value
    (10, None)
    """
    value = None if epochs < 2 else max(1, round(epochs / _NO_AUG_PART))
    return Decision(value, f"one in {_NO_AUG_PART} of {epochs:,} epochs")


def fold_count(targ: np.ndarray) -> Decision:
    """Choose the number of folds: one for three clips of the rarest tag, from 2 to 4.

    With more folds a network is trained on more of the clips, and more networks predict the test part; four of a small
    network take two or four cores as long as three.

    Parameters
    ----------
    targ
        Multi-hot labels, shape (clips, tags); tags without a clip are not counted.

    Examples
    --------
    >>> fold_count(np.repeat(np.eye(2), 34, axis=0)).value
    4
    """
    counts = np.asarray(targ).astype(bool).sum(0)
    rarest = int(counts[counts > 0].min()) if counts.any() else 0
    value = min(max(rarest // _CLIPS_PER_FOLD, 2), _MAX_FOLDS)
    return Decision(value, f"the rarest tag has {rarest} clip{'s' * (rarest != 1)}")


def split_method(targ: np.ndarray, n_copies: int) -> Decision:
    """Choose how folds are split: copies of a sound together, else by all tags of a clip, or by its only one.

    Parameters
    ----------
    targ
        Multi-hot labels, shape (clips, tags).
    n_copies
        Number of clips with the same bytes as an earlier one.

    Examples
    --------
    >>> split_method(np.eye(3), 0)
    Decision(value='stratified', reason='every clip has one tag at most')
    """
    if n_copies:
        return Decision("group", f"{n_copies} clips are copies of others and stay in one fold with them")
    if (np.asarray(targ).astype(bool).sum(1) > 1).any():
        return Decision("multilabel", "some clips have several tags")
    return Decision("stratified", "every clip has one tag at most")


def default_augmentations() -> list[Callback]:
    """Return the augmentations and the mixer of recipe `default`: gain, shift, noise, masks, mixing by OR."""
    return [Gain(), Shift(), AddNoise(), SpecAugment(p=0.5), MixUpOr(p=0.5)]


def fit_callbacks(epochs: int) -> list[Callback]:
    """Return the callbacks of a fit of so many epochs: averaged weights, and no augmentation in the last of them."""
    last = no_aug_epochs(epochs).value
    return [WeightAverage(EMA_DECAY), *([] if last is None else [DisableAugmentation(last)])]
