"""Which stretches of a clip each kind of view hears, by hand."""

import dataclasses
import pickle

import pytest
import torch
from hypothesis import given, strategies as st

from fatai.data.config import ClipConfig
from fatai.errors import OptionError
from fatai.inference.views import (
    adaptive_views, even_views, padded_views, random_views, tile_views, varied_views, whole_view,
)
from fatai.registry import VIEWS
from fatai.audio.waveform import fit_length

SETTINGS = ClipConfig(crop_s=0.1, trim_db=None)  # 4,410 samples at 44.1 kHz; a frame of "ninth" is 690
SIZE, HOP = SETTINGS.crop_samples, SETTINGS.front_end.hop_length


def heard(views, length, seed=0, settings=SETTINGS):
    return views(torch.arange(1.0, length + 1), settings, torch.Generator().manual_seed(seed))


def starts(views, length, **options):
    return [start for start, _ in heard(views, length, **options).stretches]


def first_samples(views, length, **options):
    """Where each view finds the clip's first sample."""
    return [view.tolist().index(1.0) for view in heard(views, length, **options).views()]


def test_even_views_run_from_the_first_sample_to_the_last():
    assert starts(even_views(n=5), SIZE + 100) == [0, 25, 50, 75, 100]
    assert starts(even_views(n=1), SIZE + 100) == [50], "one alone is the middle"
    assert starts(even_views(n=5), SIZE + 2) == [0, 1, 2], "none twice"


def test_random_views_repeat_under_a_seed_and_stay_inside():
    drawn = starts(random_views(n=50), SIZE + 3)
    assert drawn == starts(random_views(n=50), SIZE + 3) and set(drawn) == {0, 1, 2, 3}
    assert drawn != starts(random_views(n=50), SIZE + 3, seed=1)


@pytest.mark.parametrize("views", [even_views(), random_views(), adaptive_views(), tile_views(), whole_view()])
def test_a_clip_no_longer_than_a_crop_has_one_view(views):
    assert starts(views, SIZE) == [0] == starts(views, 10)
    assert len(next(heard(tile_views(), 10).views())) == SIZE


def test_the_whole_clip_is_filled_up_to_the_next_step():
    views, step = whole_view(step_s=0.1), SIZE
    for length, filled in ((SIZE // 2, SIZE), (SIZE, SIZE), (2 * SIZE + 1, 3 * SIZE), (3 * step, 3 * step)):
        assert heard(views, length).stretches == [(0, filled)]


@pytest.mark.parametrize("frames", [1, 3])
def test_tiles_are_a_step_apart_and_cover_a_clip_filled_evenly_on_both_sides(frames):
    length, step = SIZE + 1000, frames * HOP
    steps = -(-1000 // step)
    tiles = heard(tile_views(step_frames=frames), length)
    assert [s for s, _ in tiles.stretches] == [k * step for k in range(steps + 1)] and tiles.stretches[-1].stop == len(
        tiles.wave
    )
    left = (SIZE + steps * step - length) // 2
    assert tiles.wave[left] == 1 and tiles.wave[left + length - 1] == length


def test_tiles_take_their_step_in_seconds_and_leave_no_gap():
    assert starts(tile_views(step_s=0.05), 2 * SIZE) == [0, SIZE // 2, SIZE]
    assert (
        starts(tile_views(step_s=9.0), 3 * SIZE) == [0, SIZE, 2 * SIZE] == starts(tile_views(step_frames=64), 3 * SIZE)
    )


def test_tiles_of_the_first_place_by_hand():
    # A tile is 256 frames of 690 samples, a step 64 frames: 10 s are filled to 176,640 + 6 * 44,160 = 441,600 samples, seven tiles.
    settings = ClipConfig(crop_s=256 * 690 / 44100, trim_db=None)
    tiles = heard(tile_views(), 441_000, settings=settings)
    assert len(tiles.wave) == 441_600 and [s for s, _ in tiles.stretches] == list(range(0, 264_961, 44_160))
    assert tiles.wave[300] == 1 and tiles.wave[299] == 0


def test_adaptive_views_are_as_few_as_overlap_enough():
    for length, expected in ((SIZE, 1), (SIZE + 1, 2), (SIZE + SIZE // 2, 2), (SIZE + SIZE // 2 + 1, 3), (3 * SIZE, 5)):
        found = starts(adaptive_views(), length)
        assert len(found) == expected and found[0] == 0 and found[-1] == length - SIZE
    assert starts(adaptive_views(overlap=0.0), 3 * SIZE) == [0, SIZE, 2 * SIZE]
    assert starts(adaptive_views(n=3), 101 * SIZE) == [0, 50 * SIZE, 100 * SIZE], "no more than n"


def test_varied_views_put_a_short_clip_at_different_places():
    assert first_samples(varied_views(n=3), SIZE - 100) == [0, 50, 100]
    assert first_samples(varied_views(n=1), SIZE - 100) == [50]
    assert starts(varied_views(n=3), SIZE + 10) == [0, 5, 10]
    assert first_samples(varied_views(n=9), SIZE - 1) == [0, 1], "no place twice"


def test_varied_views_of_a_looped_clip_start_anywhere_in_the_loop():
    settings = dataclasses.replace(SETTINGS, pad_mode="wrap_right")
    views = list(heard(varied_views(n=5), 5, settings=settings).views())
    assert [view[0].item() for view in views] == [1, 5, 4, 3, 2] and all(len(view) == SIZE for view in views)
    for view in views:
        assert (view[5:] == view[:-5]).all(), "it repeats after its length"


def test_padded_views_have_silence_on_both_sides_of_the_whole_clip():
    short, long = heard(padded_views((1, 4), step_s=0.01), SIZE + 300).views()
    for view, frames in ((short, 1), (long, 4)):
        spare = len(view) - SIZE - 300
        assert len(view) % 441 == 0 and frames * HOP * 2 <= spare < frames * HOP * 2 + 441
        torch.testing.assert_close(view, fit_length(torch.arange(1.0, SIZE + 301), len(view), "constant_center"))


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("even", {"n": 0}, "n is 0"),
        ("random", {"n": -1}, "n is -1"),
        ("varied", {"n": 0}, "n is 0"),
        ("adaptive", {"n": 0}, "n is 0"),
        ("whole", {"n": 2}, "a clip has one whole"),
        ("whole", {"step_s": 0}, "step_s is 0"),
        ("padded", {"frames": ()}, "one number of frames"),
        ("padded", {"frames": (8, -1)}, "none below 0"),
        ("padded", {"step_s": -1.0}, "step_s is -1.0"),
        ("tiles", {"step_frames": 0}, "step_frames is 0"),
        ("tiles", {"step_s": float("nan")}, "step_s is nan"),
        ("adaptive", {"overlap": 1}, "overlap is 1"),
    ],
)
def test_options_out_of_range_are_refused(kind, options, said):
    with pytest.raises(OptionError, match=said):
        VIEWS.build(kind, **options)


@pytest.mark.parametrize("kind", VIEWS.names())
@given(
    length=st.integers(1, 12 * SIZE),
    fill=st.sampled_from(["constant_center", "constant_right", "wrap_right", "wrap_center", "edge_center"]),
)
def test_views_lie_inside_the_wave_and_every_kind_hears_sound(kind, length, fill):
    clip = heard(VIEWS.build(kind), length, settings=dataclasses.replace(SETTINGS, pad_mode=fill))
    assert 1 <= len(clip.stretches) and all(0 <= start < stop <= len(clip.wave) for start, stop in clip.stretches)
    if kind in ("whole", "padded"):
        assert all(stop - start >= max(length, SIZE) for start, stop in clip.stretches)
    else:
        assert all(stop - start == SIZE for start, stop in clip.stretches)
    if kind in ("even", "varied", "tiles", "whole", "padded"):
        assert all(view.any() for view in clip.views())


@pytest.mark.parametrize("how", VIEWS.names())
def test_every_kind_can_be_sent_to_a_worker_that_is_not_forked(how):
    kind, wave = VIEWS.build(how), torch.randn(5000)
    again = pickle.loads(pickle.dumps(kind))
    settings = ClipConfig(crop_s=0.05)
    one, other = (k(wave, settings, torch.Generator().manual_seed(1)) for k in (kind, again))
    assert torch.equal(one.wave, other.wave) and list(one.stretches) == list(other.stretches)
