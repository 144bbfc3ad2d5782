"""SpecAugment: width rules, fills, presets."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fatai.augment.spec_augment import FILLS, Bands, Masks, MaskSettings, SpecAugment, mask_spec
from fatai.errors import OptionError
from fatai.registry import AUGMENTATIONS

PRESETS = [name for name in AUGMENTATIONS.names() if name.startswith("spec_augment")]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def widths(bands):
    return bands.stop - bands.start


def drawn(n=20000, mels=64, frames=256, name="spec_augment", **options):
    return AUGMENTATIONS.build(name, **options).draw(n, mels, frames, generator())


def band(start, stop):
    return Bands(torch.tensor([[start]]), torch.tensor([[stop]]))


NONE = band(0, 0)


def test_ninth_place_draws_two_of_each_up_to_9_bins_and_76_frames():
    masks = drawn()
    assert masks.freq.start.shape == masks.time.start.shape == (20000, 2)
    # int(U(0, 0.15) * 64) and int(U(0, 0.30) * 256): the widest are int(9.6 - 0) and int(76.8 - 0).
    assert set(widths(masks.freq).flatten().tolist()) == set(range(10))
    assert set(widths(masks.time).flatten().tolist()) == set(range(77))
    assert int(masks.freq.start.min()) == 0 and int(masks.freq.stop.max()) == 64
    assert int(masks.time.start.min()) == 0 and int(masks.time.stop.max()) == 256


def test_the_fraction_rule_gives_the_last_width_the_rest_of_its_range():
    # U(0, 9.6) reaches 9 in 0.6 of 9.6 draws, each smaller width in 1 of 9.6.
    counts = widths(drawn(n=100000).freq).flatten().bincount().double()
    torch.testing.assert_close(counts / counts.sum(), torch.tensor([1.0] * 9 + [0.6]).double() / 9.6, atol=2e-3, rtol=0)


def test_panns_draws_whole_numbers_below_64_frames_and_an_eighth_of_the_bins():
    masks = drawn(name="spec_augment_panns", frames=1001)
    assert set(widths(masks.freq).flatten().tolist()) == set(range(8))
    assert set(widths(masks.time).flatten().tolist()) == set(range(64))
    counts = widths(masks.freq).flatten().bincount().double()
    torch.testing.assert_close(counts / counts.sum(), torch.full((8,), 1 / 8).double(), atol=1e-2, rtol=0)
    assert set(widths(drawn(name="spec_augment_panns", mels=128).freq).flatten().tolist()) == set(range(16))


def test_kaggle_fat_masks_are_doubly_random_and_stop_at_a_width_of_none():
    masks = drawn(100000, 128, 197, name="spec_augment_kaggle_fat")
    # f is one of 0 to 24, and the width uniform from 0 to f - 1, in the mean (f - 1) / 2; 0 if f is 0.
    first = widths(masks.freq)[:, 0].double()
    assert first.max() == 23 and widths(masks.time).max() == 37
    assert float(first.mean()) == pytest.approx(sum(range(24)) / 2 / 25, rel=0.02)
    # The second mask is missing whenever the first drew f = 0, so it is 24/25 of the first in the mean.
    assert float(widths(masks.freq)[:, 1].double().mean()) == pytest.approx(sum(range(24)) / 2 / 25 * 24 / 25, rel=0.02)


def test_fourth_place_masks_once_around_a_center():
    masks = drawn(mels=128, name="spec_augment_fourth_place")
    assert masks.freq.start.shape == (20000, 1) and widths(masks.time).sum() == 0
    inner = (masks.freq.start > 0) & (masks.freq.stop < 128)
    assert set(widths(masks.freq)[inner].tolist()) == {2 * half for half in range(8, 32)}


def test_first_place_draws_one_or_two_masks_of_each_kind():
    masks = drawn(name="spec_augment_first_place", mels=128)
    none = (widths(masks.freq)[:, 1] == 0) & (widths(masks.time)[:, 1] == 0)
    # Half of the clips have one round; of the others few draw two empty second masks: 1 / 19.2 * 1 / 51.2 of them.
    assert float(none.double().mean()) == pytest.approx(0.5 + 0.5 / 19.2 / 51.2, abs=0.02)
    assert widths(masks.freq).max() == 19 and widths(masks.time).max() == 51


def test_gold_plan_masks_at_most_20_bins():
    masks = drawn(name="spec_augment_gold_plan", frames=1001)
    assert widths(masks.freq).max() == 20 and widths(masks.time).max() == 100


@pytest.mark.parametrize("name", PRESETS)
@given(mels=st.integers(1, 70), frames=st.integers(1, 300), seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_masks_lie_inside_and_one_never_covers_an_axis(name, mels, frames, seed):
    masks = AUGMENTATIONS.build(name).draw(5, mels, frames, generator(seed))
    for bands, size in ((masks.freq, mels), (masks.time, frames)):
        assert (bands.start >= 0).all() and (bands.stop <= size).all()
        assert (widths(bands) >= 0).all() and (widths(bands) < size).all()


@pytest.mark.parametrize(("fill", "value"), [("zero", 0.0), ("mean", 3.5), ("min", 1.0)])
def test_a_mask_worked_by_hand(fill, value):
    spec = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).view(1, 1, 2, 3)
    got = mask_spec(spec, Masks(band(1, 2), band(0, 1)), fill)
    assert got[0, 0].tolist() == [[value, 2.0, 3.0], [value] * 3]


def test_mean_and_minimum_are_those_of_each_clip_and_channel_before_any_mask():
    spec = torch.arange(2 * 2 * 2 * 2, dtype=torch.float32).view(2, 2, 2, 2)
    both = Bands(torch.tensor([[0], [0]]), torch.tensor([[1], [1]]))
    none = Bands(torch.zeros(2, 1).long(), torch.zeros(2, 1).long())
    assert mask_spec(spec, Masks(both, none), "min")[:, :, 0, 0].tolist() == [[0, 4], [8, 12]]
    assert mask_spec(spec, Masks(both, none), "mean")[:, :, 0, 0].tolist() == [[1.5, 5.5], [9.5, 13.5]]


def test_masks_of_no_width_leave_the_clip_unchanged():
    spec = torch.randn(3, 1, 8, 9)
    assert torch.equal(mask_spec(spec, Masks(*[Bands(torch.zeros(3, 2).long(), torch.zeros(3, 2).long())] * 2)), spec)
    assert torch.equal(SpecAugment(freq=0.0, time=None).augment(spec), spec)


def test_unmasked_values_stay_and_masks_are_the_same_in_all_channels():
    spec = torch.rand(16, 3, 64, 100) + 1
    got = SpecAugment().augment(spec)
    hidden = got == 0
    assert torch.equal(got[~hidden], spec[~hidden])
    assert torch.equal(hidden[:, 0], hidden[:, 1]) and hidden.any() and not hidden.all()


@pytest.mark.parametrize("fill", FILLS)
def test_dtype_stays_half(fill):
    got = SpecAugment(fill=fill).augment(torch.randn(2, 1, 64, 64, dtype=torch.float16))
    assert got.dtype == torch.float16 and got.isfinite().all()


@pytest.mark.parametrize(("options", "message"), [
    ({"width": "fractions"}, "width is 'fractions'; did you mean fraction?"),
    ({"fill": "nought"}, "fill is 'nought'; known: zero, mean, min"),
    ({"freq": 1.5}, "freq is 1.5; expected a fraction of the axis between 0.0 and 1.0"),
    ({"time": -3}, "time is -3"),
    ({"freq": (8, 31)}, r"freq is \(8, 31\); expected a fraction"),
    ({"width": "center", "freq": 0.2}, "freq is 0.2; the width rule 'center' takes a pair"),
    ({"n_masks": 0}, r"n_masks is \(0, 0\); expected two numbers in rising order within \[1, inf\]"),
    ({"p": 1.2}, "p is 1.2; expected a probability"),
    ({"domain": "wave"}, "SpecAugment changes spectrograms"),
    ({"domain": "logs"}, "domain is 'logs'; did you mean log?"),
])
def test_wrong_options_raise(options, message):
    with pytest.raises(OptionError, match=message):
        SpecAugment(**options)


def test_settings_are_plain_values():
    assert MaskSettings() == MaskSettings(1.0, (2, 2), 0.15, 0.30, "fraction", "zero")


def test_presets_take_overrides_and_name_wrong_ones():
    assert AUGMENTATIONS.build("spec_augment_first_place", fill="zero").masks == MaskSettings(
        0.5, (1, 2), 0.15, 0.20, "fraction", "zero"
    )
    with pytest.raises(OptionError, match="has no option 'fil'; did you mean fill?"):
        AUGMENTATIONS.build("spec_augment_first_place", fil="zero")
