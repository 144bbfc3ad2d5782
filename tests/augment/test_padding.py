"""Repeated padding, and batches no longer than their longest clip."""

import numpy as np
import pytest
import torch

from fatai.augment.base import augmentation_callbacks
from fatai.augment.padding import RepeatPad, TrimToLongest
from fatai.errors import OptionError
from fatai.inference.learner import fat_learner


def filled(*parts, size=100, left=0):
    """Waves of ones, two, three, ... with zeros around."""
    rows = torch.zeros(len(parts), size)
    for row, n in zip(rows, parts, strict=True):
        row[left:left + n] = torch.arange(1.0, n + 1)
    return rows


def test_repeat_pad_equals_tiling_on_both_sides():
    wave = filled(7, size=40, left=10)
    looped = RepeatPad(p=1).augment(wave, 10)
    assert torch.equal(looped[0], torch.from_numpy(np.tile(np.arange(1, 8), 10)[14 - 10 + 7:][:40].astype(np.float32)))
    assert torch.equal(looped[0, 10:17], wave[0, 10:17]), "the sound stays where it is"


def test_repeat_pad_follows_p_and_leaves_full_clips_and_silence_unchanged():
    wave = filled(*[30] * 2000)
    changed = (RepeatPad(p=0.1).augment(wave, 10) != wave).any(1).float().mean()
    assert 0.08 < changed < 0.12
    whole = filled(100)
    assert torch.equal(RepeatPad(p=1).augment(whole, 10), whole)
    assert torch.equal(RepeatPad(p=1).augment(torch.zeros(1, 9), 10), torch.zeros(1, 9))


@pytest.mark.parametrize(
    "options, expected", [({}, 60), ({"margin": 0.1}, 66), ({"min_s": 8.0}, 80), ({"min_s": 99.0}, 100)]
)
def test_a_batch_is_cut_behind_its_longest_clip(options, expected):
    wave = filled(30, 60, 10)
    cut = TrimToLongest(**{"min_s": 1.0, **options}).augment(wave, 10)
    assert torch.equal(cut, wave[:, :expected])


def test_batches_of_training_and_validation_get_shorter(small_dls, tmp_path):
    seen = {True: [], False: []}
    learn = fat_learner(small_dls, "m1", width=0.05, path=tmp_path, cbs=TrimToLongest(min_s=0.2, margin=0.2))
    augment = TrimToLongest.augment
    forward = learn.model.forward

    def watched(spec):
        seen[learn.model.training].append(spec.shape[-1])
        return forward(spec)

    learn.model.forward = watched
    # Clips of the sample last half a second and more, as long as their crops; those may begin with silence.
    TrimToLongest.augment = lambda self, wave, sr, **options: augment(
        self, torch.where(torch.arange(wave.shape[1]) < 15_000, wave + 0.01, 0.0), sr, **options
    )
    try:
        with learn.no_bar(), learn.no_logging():
            learn.fit(1)
    finally:
        TrimToLongest.augment = augment
    frames = learn.clip_config.front_end.frames
    assert set(seen[False]) == {frames(15_000)} and set(seen[True]) == {frames(18_000)}, "no margin in validation"
    assert not small_dls.to_spec.deferred and small_dls.valid.one_batch()[0].shape[-1] == frames(22_050)
    assert not [c for c in augmentation_callbacks(learn) if isinstance(c, TrimToLongest)], (
        "it isn't switched off with the random ones"
    )


def test_a_negative_margin_raises():
    with pytest.raises(OptionError, match="margin -1"):
        TrimToLongest(margin=-1)
