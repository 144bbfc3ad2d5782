"""Crops, time warp, time reversal, brightness and contrast of spectrograms, and properties of all of them."""

import math

import pytest
import torch
import torch.nn.functional as F

from fatai.audio.channels import ImageNet
from fatai.augment.base import SpecAugmentation
from fatai.augment.spec import (
    Boxes,
    BrightnessContrast,
    RandomResizedCrop,
    RandomTimeCrop,
    TimeReverse,
    TimeWarp,
    brightness_contrast,
    resized_crop,
    time_warp,
)
from fatai.augment.spec_augment import Bands
from fatai.errors import OptionError, ShapeError
from fatai.registry import AUGMENTATIONS

ON_SPEC = [name for name in AUGMENTATIONS.names() if isinstance(AUGMENTATIONS.build(name), SpecAugmentation)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# All augmentations of spectrograms


@pytest.mark.parametrize("name", ON_SPEC)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_and_dtype_stay_and_the_input_too(name, dtype):
    spec = torch.randn(6, 3, 64, 100, dtype=dtype)
    before = spec.clone()
    got = AUGMENTATIONS.build(name, p=1.0).augment(spec)
    assert got.shape == spec.shape and got.dtype == dtype and got.isfinite().all()
    assert torch.equal(spec, before) and not torch.equal(got, spec)


@pytest.mark.parametrize("name", ON_SPEC)
def test_a_seed_repeats_and_another_differs(name):
    spec, augmentation = torch.randn(8, 1, 64, 100), AUGMENTATIONS.build(name, p=0.5)
    first, again, other = (augmentation.augment(spec, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("name", ON_SPEC)
def test_without_a_generator_the_global_one_decides(name):
    spec, augmentation = torch.randn(8, 1, 64, 100), AUGMENTATIONS.build(name)
    torch.manual_seed(3)
    first = augmentation.augment(spec)
    torch.manual_seed(3)
    assert torch.equal(augmentation.augment(spec), first)


@pytest.mark.parametrize("name", ON_SPEC)
def test_p_0_returns_the_same_tensor_and_p_changes_that_fraction(name):
    spec = torch.randn(400, 1, 64, 100)
    assert AUGMENTATIONS.build(name, p=0.0).augment(spec) is spec
    changed = (AUGMENTATIONS.build(name, p=0.3).augment(spec, generator()) != spec).flatten(1).any(1)
    assert 0.2 < float(changed.double().mean()) < 0.4


@pytest.mark.parametrize("name", ON_SPEC)
def test_the_clips_not_chosen_are_untouched_and_the_draws_do_not_hang_on_p(name):
    spec = torch.randn(40, 1, 64, 100)
    whole = AUGMENTATIONS.build(name, p=1.0).augment(spec, generator(5))
    half = AUGMENTATIONS.build(name, p=0.5).augment(spec, generator(5))
    same_as_whole = (half == whole).flatten(1).all(1)
    untouched = (half == spec).flatten(1).all(1)
    assert (same_as_whole | untouched).all() and 5 < int(same_as_whole.sum()) < 35


@pytest.mark.parametrize("name", ON_SPEC)
@pytest.mark.parametrize("shape", [(1, 1, 64, 100), (2, 1, 1, 1), (1, 2, 5, 3)])
def test_a_batch_of_one_and_tiny_spectrograms_pass(name, shape):
    assert AUGMENTATIONS.build(name, p=1.0).augment(torch.randn(shape)).shape == shape


def test_a_clip_without_batch_dimension_raises():
    with pytest.raises(
        ShapeError, match=r"\(64, 100\); expected \(batch, channels, mels, frames\): one clip is spec\[None\]"
    ):
        TimeReverse().augment(torch.zeros(64, 100))


@pytest.mark.parametrize("name", ON_SPEC)
def test_an_unknown_option_raises(name):
    with pytest.raises(OptionError, match="has no option 'befor_mixing'; did you mean before_mixing?"):
        AUGMENTATIONS.build(name, befor_mixing=True)


@pytest.mark.parametrize("name", ON_SPEC)
def test_every_augmentation_has_source_and_description(name):
    assert AUGMENTATIONS.source(name) and AUGMENTATIONS.describe(name).endswith(".")


# Random resized crop


def box(top, left, height, width):
    return Boxes(*torch.tensor([[top], [left], [height], [width]]))


@pytest.mark.parametrize("at", [(0, 0, 6, 7), (2, 3, 10, 12), (15, 0, 1, 20), (4, 19, 8, 1)])
def test_a_resized_crop_is_torchs_interpolation_of_the_cut_piece(at):
    spec = torch.randn(1, 2, 16, 20)
    top, left, height, width = at
    expected = F.interpolate(
        spec[:, :, top : top + height, left : left + width], size=(16, 20), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(resized_crop(spec, box(*at)), expected)


def test_the_whole_as_box_changes_nothing():
    spec = torch.randn(1, 1, 9, 13)
    assert torch.equal(resized_crop(spec, box(0, 0, 9, 13)), spec)


def test_boxes_differ_from_clip_to_clip():
    spec = torch.randn(2, 1, 8, 8)
    both = resized_crop(spec, Boxes(*torch.tensor([[0, 2], [1, 3], [4, 5], [6, 2]])))
    assert torch.equal(both[:1], resized_crop(spec[:1], box(0, 1, 4, 6)))
    assert torch.equal(both[1:], resized_crop(spec[1:], box(2, 3, 5, 2)))


def test_boxes_keep_area_and_ratio():
    boxes = RandomResizedCrop().draw(5000, 128, 256, generator())
    area = boxes.height * boxes.width / (128 * 256)
    ratio = boxes.width / boxes.height
    found = ~((boxes.height == 128) & (boxes.width == 256))
    # The 1st place's ranges, for 128 x 256 pictures; a pixel of rounding either way.
    assert (
        float(area[found].min()) > 0.8 - 0.01
        and float(ratio[found].min()) > 1.7 - 0.03
        and float(ratio[found].max()) < 2.3 + 0.03
    )
    assert (boxes.top + boxes.height <= 128).all() and (boxes.left + boxes.width <= 256).all()
    assert float(found.double().mean()) > 0.98


def test_a_box_that_never_fits_is_the_whole():
    boxes = RandomResizedCrop(scale=(1.0, 1.0), ratio=(2.0, 2.0)).draw(3, 10, 10, generator())
    assert boxes.height.tolist() == boxes.width.tolist() == [10, 10, 10] and boxes.top.tolist() == [0, 0, 0]


# Time warp


def test_a_warp_keeps_its_ends_and_moves_the_frame():
    spec = torch.arange(11.0).view(1, 1, 1, 11)
    got = time_warp(spec, torch.tensor([4.0]), torch.tensor([6.0]))[0, 0, 0]
    assert got[0] == 0 and got[10] == 10 and got[6] == 4
    # Left of frame 6 the old frames run at 4 / 6 of their pace, right of it at 6 / 4.
    torch.testing.assert_close(got[:7], torch.arange(7) * 4 / 6)
    torch.testing.assert_close(got[6:], 4 + torch.arange(5) * 6 / 4)


def test_time_warp_moves_frames_up_to_its_rate():
    warp = TimeWarp(rate=0.1).draw(5000, 64, 101, generator())
    shift = (warp.target - warp.source).abs()
    assert 9 < float(shift.max()) <= 10 and float(warp.target.min()) > 0 and float(warp.target.max()) < 100


# Time reversal, time crop


def test_time_reverse_reverses_frames():
    spec = torch.randn(2, 1, 3, 4)
    got = TimeReverse(p=1).augment(spec)
    assert torch.equal(got[..., 0], spec[..., 3]) and torch.equal(got.flip(-1), spec)


def test_random_time_crop_by_hand():
    spec = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]).view(1, 1, 2, 4)
    kept = Bands(torch.tensor([[1]]), torch.tensor([[3]]))
    assert RandomTimeCrop().apply(spec, kept)[0, 0].tolist() == [[1, 2, 3, 1], [1, 6, 7, 1]]
    assert RandomTimeCrop(fill="zero").apply(spec, kept)[0, 0].tolist() == [[0, 2, 3, 0], [0, 6, 7, 0]]


def test_random_time_crop_keeps_a_quarter_to_all():
    kept = RandomTimeCrop().draw(5000, 128, 400, generator())
    length = (kept.stop - kept.start).double()
    assert float(length.min()) < 103 and float(length.min()) >= 100 and float(length.max()) > 397
    assert float(length.mean()) == pytest.approx(0.625 * 400, rel=0.02)


# Brightness and contrast


def test_brightness_contrast_by_hand():
    # logit(0.8) = ln 4; (ln 4 + ln 2) * 2 = ln 64, whose sigmoid is 64 / 65.
    pixels = torch.full((1, 1, 1, 1), 0.8, dtype=torch.float64)
    got = brightness_contrast(pixels, torch.tensor([math.log(2)]), torch.tensor([2.0]))
    assert got.item() == pytest.approx(64 / 65, rel=1e-6)


def test_brightness_contrast_draws_the_ranges_of_the_fastai_kernel():
    drawn = BrightnessContrast(max_lighting=0.1).draw(20000, 1, 1, generator())
    augmentation, contrast = drawn.brightness.sigmoid(), drawn.contrast
    assert 0.45 <= float(augmentation.min()) < 0.451 and 0.549 < float(augmentation.max()) <= 0.55
    assert 0.9 <= float(contrast.min()) < 0.901 and 1.11 < float(contrast.max()) <= 1 / 0.9
    assert float((drawn.brightness == 0).double().mean()) == pytest.approx(0.25, abs=0.02)
    assert float((contrast == 1).double().mean()) == pytest.approx(0.25, abs=0.02)


def test_brightness_contrast_of_images_changes_their_pixels():
    levels = torch.randint(0, 256, (3, 8, 8)).float()
    picture = ImageNet()(levels)
    lighting = BrightnessContrast(scale="imagenet")
    drawn = lighting.draw(3, 8, 8, generator())
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    got = lighting.apply(picture, drawn) * std[:, None, None] + mean[:, None, None]
    expected = brightness_contrast((levels / 255)[:, None], drawn.brightness, drawn.contrast)
    torch.testing.assert_close(got, expected.expand_as(got), atol=1e-5, rtol=0)


def test_brightness_contrast_of_other_spectrograms_keeps_their_range():
    spec = torch.randn(4, 1, 8, 8) * 20 - 30
    got = BrightnessContrast(p_lighting=1).augment(spec)
    assert (got.amin((1, 2, 3)) >= spec.amin((1, 2, 3)) - 1e-3).all() and (
        got.amax((1, 2, 3)) <= spec.amax((1, 2, 3)) + 1e-3
    ).all()
    flat = torch.full((1, 1, 4, 4), 7.0)
    torch.testing.assert_close(BrightnessContrast().augment(flat), flat)


@pytest.mark.parametrize(("build", "message"), [
    (lambda: RandomResizedCrop(scale=(0.9, 0.8)), r"scale is \(0.9, 0.8\); expected two numbers in rising order"),
    (lambda: RandomResizedCrop(n_tries=0), "n_tries is 0; expected at least 1"),
    (lambda: TimeWarp(rate=0.5), "rate is 0.5; expected a fraction of the frames from 0 to below 0.5"),
    (lambda: RandomTimeCrop(fill="noise"), "fill is 'noise'; known: zero, mean, min"),
    (lambda: BrightnessContrast(max_lighting=1.0), "max_lighting is 1.0"),
    (lambda: BrightnessContrast(scale="grey"), "scale is 'grey'"),
    (lambda: BrightnessContrast(p_lighting=2), "p_lighting is 2"),
])
def test_wrong_options_raise(build, message):
    with pytest.raises(OptionError, match=message):
        build()
