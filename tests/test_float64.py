"""No float64 on devices other than the CPU: Apple's GPUs have none."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from helpers.fake_gpu import DEVICE, FakeGPU, move
from torch import nn

from fatai.audio.stats import SpectrogramStats
from fatai.augment.base import SpecAugmentation
from fatai.augment.functional_wave import pink
from fatai.augment.wave import WaveAugmentation
from fatai.data.config import ClipConfig
from fatai.data.transforms import WaveToSpec
from fatai.ensemble.stacking import StackingNet, predict_probs
from fatai.inference import predictor
from fatai.inference.events import tagger
from fatai.inference.tta import build_views
from fatai.registry import AUGMENTATIONS, FRONT_ENDS, LOSSES, MIXERS

SR = 8000
SHAPES = {"wave": (8, 9600), "power": (8, 16, 60), "log": (8, 3, 16, 60), "bn0": (8, 3, 16, 60)}
DOMAINS = [(name, domain) for name in MIXERS.names() for domain in SHAPES]


def of_type(kind):
    return [name for name in AUGMENTATIONS.names() if isinstance(AUGMENTATIONS.build(name), kind)]


def generator():
    return torch.Generator().manual_seed(1)


def close(got, expected, **options):
    torch.testing.assert_close(got.cpu(), expected, **{"atol": 2e-3, "rtol": 1e-4, **options})


@pytest.fixture(autouse=True)
def _without_autocast(monkeypatch):
    """Let networks run on the fake GPU, which torch's autocast doesn't know."""
    is_enabled = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device != DEVICE.type and is_enabled(device))
    for module in (predictor, tagger):
        monkeypatch.setattr(module, "autocast_for", lambda device, precision: nullcontext())


@pytest.mark.parametrize("make", [lambda x: x.double(), lambda x: x.new_zeros(2, dtype=torch.float64),
                                  lambda x: torch.arange(3, device=DEVICE, dtype=torch.float64),
                                  lambda x: torch.zeros(2, dtype=torch.float64).to(DEVICE)])
def test_the_fake_gpu_has_no_float64(make):
    with FakeGPU():
        x = torch.ones(2).to(DEVICE)
        assert x.device == DEVICE and (x + 1).cpu().tolist() == [2, 2] and x.cpu().double().dtype == torch.float64
        with pytest.raises(TypeError, match="float64"):
            make(x)


@pytest.mark.parametrize(("name", "domain"), DOMAINS)
def test_mixers(name, domain):
    x, targ = torch.rand(SHAPES[domain]), torch.eye(8)
    mixer = MIXERS.build(name, partner="batch", domain=domain)
    expected = mixer.augment(x, targ, generator=generator())
    with FakeGPU():
        got = mixer.augment(x.to(DEVICE), targ.to(DEVICE), generator=generator())
        close(got.x, expected.x)
        close(got.targ, expected.targ)
    assert got.lam.device.type == "cpu" and got.lam.dtype == torch.float64


@pytest.mark.parametrize("name", of_type(SpecAugmentation))
def test_masks_and_other_changes_of_spectrograms(name):
    spec, augmentation = torch.rand(6, 3, 16, 60), AUGMENTATIONS.build(name, p=0.7)
    expected = augmentation.augment(spec, generator())
    with FakeGPU():
        close(augmentation.augment(spec.to(DEVICE), generator()), expected)


@pytest.mark.parametrize("name", of_type(WaveAugmentation))
def test_changes_of_waves(name):
    wave, augmentation = torch.rand(3, 4000) - 0.5, AUGMENTATIONS.build(name, p=1.0)
    expected = augmentation.augment(wave, SR, generator())
    with FakeGPU():
        close(augmentation.augment(wave.to(DEVICE), SR, generator()), expected)


def test_pink_noise():
    white = torch.randn(1000)
    expected = pink(white)
    with FakeGPU():
        close(pink(white.to(DEVICE)), expected)


@pytest.mark.parametrize("name", FRONT_ENDS.names())
def test_front_ends(name):
    module, wave = FRONT_ENDS.build(name), torch.rand(2, 20000) - 0.5
    expected = module(wave)
    with FakeGPU(), torch.no_grad():
        close(move(module)(wave.to(DEVICE)), expected, atol=0.02, rtol=1e-2)


@pytest.mark.parametrize("name", LOSSES.names())
def test_losses(name):
    options = {"counts": [1, 2, 3]} if name == "cb_bce" else {}
    loss, logits, targ = LOSSES.build(name, **options), torch.randn(4, 3), torch.eye(4)[:, :3]
    expected = loss(logits, targ)
    with FakeGPU():
        close(loss(logits.to(DEVICE), targ.to(DEVICE)), expected)


class Levels(nn.Module):
    """Logits from the mean of a spectrogram (batch, channels, mels, frames)."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, -2.0]))

    def forward(self, spec):
        return spec.mean((1, 2, 3))[:, None] * self.scale


@pytest.mark.parametrize("average", ["probs", "logits"])
def test_tta(average):
    settings, wave = ClipConfig(crop_s=0.1, trim_db=None), 0.1 * torch.randn(22050).numpy()
    network, views = Levels(), build_views("even", 3)
    expected = predictor.Predictor(network, settings, views, 2, average=average).predict([wave]).probs
    with FakeGPU():
        to_spec = WaveToSpec(settings)
        to_spec.module = move(to_spec.module)
        on_gpu = predictor.Predictor(move(network), settings, views, 2, to_spec=to_spec, average=average)
        assert on_gpu.device == DEVICE
        got = on_gpu.predict([wave]).probs
    np.testing.assert_allclose(got, expected, atol=1e-3)


def test_a_tagger_of_long_recordings():
    settings, wave = ClipConfig(crop_s=0.2, trim_db=None), 0.1 * torch.randn(22050).numpy()
    network = Levels()
    expected = [step.probs for step in tagger.SlidingWindowTagger([network], ["a", "b"], settings).frame_probs(wave)]
    with FakeGPU():
        on_gpu = tagger.SlidingWindowTagger([move(network)], ["a", "b"], settings)
        on_gpu._to_spec.module = move(on_gpu._to_spec.module)
        got = [step.probs for step in on_gpu.frame_probs(wave)]
    assert on_gpu.device == DEVICE
    np.testing.assert_allclose(got, expected, atol=1e-3)


def test_a_stacking_network():
    network, inputs = StackingNet(6, 3).eval(), np.random.default_rng(0).random((5, 6), np.float32)
    expected = predict_probs(network, inputs)
    with FakeGPU():
        got = predict_probs(move(network), inputs)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_statistics_of_spectrograms():
    stats, spec = SpectrogramStats(), torch.tensor([[[1.0, 3.0], [5.0, 7.0]]])
    with FakeGPU():
        stats.add(spec.to(DEVICE))
    assert stats.bin_mean.tolist() == [2, 6] and stats.mean == 4
