"""The windows of each kind of view, by hand."""

import dataclasses
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fatai.audio.waveform import fit_length
from fatai.data.config import ClipConfig
from fatai.errors import OptionError
from fatai.inference.views import (
    adaptive_views,
    even_views,
    padded_views,
    random_views,
    tile_views,
    varied_views,
    whole_view,
)
from fatai.registry import VIEWS

SETTINGS = ClipConfig(crop_s=0.1, trim_db=None)  # 4,410 samples at 44.1 kHz; a frame of "ninth" is 690
SIZE, HOP = SETTINGS.crop_samples, SETTINGS.front_end.hop_length


def clip_views(views, length, seed=0, settings=SETTINGS):
    return views(torch.arange(1.0, length + 1), settings, torch.Generator().manual_seed(seed))


def starts(views, length, **options):
    return [start for start, _ in clip_views(views, length, **options).windows]


def first_samples(views, length, **options):
    """Return the position of the clip's first sample in each view."""
    return [view.tolist().index(1.0) for view in clip_views(views, length, **options).views()]


def test_even_views_run_from_the_first_sample_to_the_last():
    assert starts(even_views(n=5), SIZE + 100) == [0, 25, 50, 75, 100]
    assert starts(even_views(n=1), SIZE + 100) == [50], "a single one is the middle"
    assert starts(even_views(n=5), SIZE + 2) == [0, 1, 2], "without repeats"


def test_random_views_repeat_under_a_seed_and_stay_inside():
    drawn = starts(random_views(n=50), SIZE + 3)
    assert drawn == starts(random_views(n=50), SIZE + 3) and set(drawn) == {0, 1, 2, 3}
    assert drawn != starts(random_views(n=50), SIZE + 3, seed=1)


@pytest.mark.parametrize("views", [even_views(), random_views(), adaptive_views(), tile_views(), whole_view()])
def test_a_clip_no_longer_than_a_crop_has_one_view(views):
    assert starts(views, SIZE) == [0] == starts(views, 10)
    assert len(next(clip_views(tile_views(), 10).views())) == SIZE


def test_whole_pads_the_clip_to_the_next_step():
    views, step = whole_view(step_s=0.1), SIZE
    for length, padded in ((SIZE // 2, SIZE), (SIZE, SIZE), (2 * SIZE + 1, 3 * SIZE), (3 * step, 3 * step)):
        assert clip_views(views, length).windows == [(0, padded)]


@pytest.mark.parametrize("frames", [1, 3])
def test_tiles_are_a_step_apart_and_cover_a_clip_padded_evenly_on_both_sides(frames):
    length, step = SIZE + 1000, frames * HOP
    steps = -(-1000 // step)
    tiles = clip_views(tile_views(step_frames=frames), length)
    assert [s for s, _ in tiles.windows] == [k * step for k in range(steps + 1)]
    assert tiles.windows[-1].stop == len(tiles.wave)
    left = (SIZE + steps * step - length) // 2
    assert tiles.wave[left] == 1 and tiles.wave[left + length - 1] == length


def test_tiles_take_a_step_in_seconds_and_leave_no_gap():
    assert starts(tile_views(step_s=0.05), 2 * SIZE) == [0, SIZE // 2, SIZE]
    assert (
        starts(tile_views(step_s=9.0), 3 * SIZE) == [0, SIZE, 2 * SIZE] == starts(tile_views(step_frames=64), 3 * SIZE)
    )


def test_tiles_of_the_first_place_by_hand():
    # A tile is 256 frames of 690 samples, a step 64 frames: 10 s are padded to 176,640 + 6 * 44,160 = 441,600 samples,
    # seven tiles.
    settings = ClipConfig(crop_s=256 * 690 / 44100, trim_db=None)
    tiles = clip_views(tile_views(), 441_000, settings=settings)
    assert len(tiles.wave) == 441_600 and [s for s, _ in tiles.windows] == list(range(0, 264_961, 44_160))
    assert tiles.wave[300] == 1 and tiles.wave[299] == 0


def test_adaptive_views_are_the_fewest_that_overlap_enough():
    for length, expected in ((SIZE, 1), (SIZE + 1, 2), (SIZE + SIZE // 2, 2), (SIZE + SIZE // 2 + 1, 3), (3 * SIZE, 5)):
        found = starts(adaptive_views(), length)
        assert len(found) == expected and found[0] == 0 and found[-1] == length - SIZE
    assert starts(adaptive_views(overlap=0.0), 3 * SIZE) == [0, SIZE, 2 * SIZE]
    assert starts(adaptive_views(n=3), 101 * SIZE) == [0, 50 * SIZE, 100 * SIZE], "no more than n"


def test_varied_views_place_a_short_clip_at_different_positions():
    assert first_samples(varied_views(n=3), SIZE - 100) == [0, 50, 100]
    assert first_samples(varied_views(n=1), SIZE - 100) == [50]
    assert starts(varied_views(n=3), SIZE + 10) == [0, 5, 10]
    assert first_samples(varied_views(n=9), SIZE - 1) == [0, 1], "without repeats"


def test_varied_views_of_a_repeated_clip_start_anywhere_in_the_period():
    settings = dataclasses.replace(SETTINGS, pad_mode="wrap_right")
    views = list(clip_views(varied_views(n=5), 5, settings=settings).views())
    assert [view[0].item() for view in views] == [1, 5, 4, 3, 2] and all(len(view) == SIZE for view in views)
    for view in views:
        assert (view[5:] == view[:-5]).all(), "periodic with the length of the clip"


def test_padded_views_have_silence_on_both_sides_of_the_whole_clip():
    short, long = clip_views(padded_views((1, 4), step_s=0.01), SIZE + 300).views()
    for view, frames in ((short, 1), (long, 4)):
        spare = len(view) - SIZE - 300
        assert len(view) % 441 == 0 and frames * HOP * 2 <= spare < frames * HOP * 2 + 441
        torch.testing.assert_close(view, fit_length(torch.arange(1.0, SIZE + 301), len(view), "constant_center"))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("even", {"n": 0}, "n is 0"),
        ("random", {"n": -1}, "n is -1"),
        ("varied", {"n": 0}, "n is 0"),
        ("adaptive", {"n": 0}, "n is 0"),
        ("whole", {"n": 2}, "one view per clip"),
        ("whole", {"step_s": 0}, "step_s is 0"),
        ("padded", {"frames": ()}, "one or more numbers of frames"),
        ("padded", {"frames": (8, -1)}, "0 or above"),
        ("padded", {"step_s": -1.0}, "step_s is -1.0"),
        ("tiles", {"step_frames": 0}, "step_frames is 0"),
        ("tiles", {"step_s": float("nan")}, "step_s is nan"),
        ("adaptive", {"overlap": 1}, "overlap is 1"),
    ],
)
def test_options_out_of_range_are_errors(kind, options, message):
    with pytest.raises(OptionError, match=message):
        VIEWS.build(kind, **options)


@pytest.mark.parametrize("kind", VIEWS.names())
@given(
    length=st.integers(1, 12 * SIZE),
    pad_mode=st.sampled_from(["constant_center", "constant_right", "wrap_right", "wrap_center", "edge_center"]),
)
def test_views_lie_inside_the_wave_and_contain_sound(kind, length, pad_mode):
    clip = clip_views(VIEWS.build(kind), length, settings=dataclasses.replace(SETTINGS, pad_mode=pad_mode))
    assert 1 <= len(clip.windows) and all(0 <= start < stop <= len(clip.wave) for start, stop in clip.windows)
    if kind in ("whole", "padded"):
        assert all(stop - start >= max(length, SIZE) for start, stop in clip.windows)
    else:
        assert all(stop - start == SIZE for start, stop in clip.windows)
    if kind in ("even", "varied", "tiles", "whole", "padded"):
        assert all(view.any() for view in clip.views())


@pytest.mark.parametrize("name", VIEWS.names())
def test_every_kind_can_be_pickled_for_a_worker(name):
    kind, wave = VIEWS.build(name), torch.randn(5000)
    again = pickle.loads(pickle.dumps(kind))
    settings = ClipConfig(crop_s=0.05)
    one, other = (k(wave, settings, torch.Generator().manual_seed(1)) for k in (kind, again))
    assert torch.equal(one.wave, other.wave) and list(one.windows) == list(other.windows)
