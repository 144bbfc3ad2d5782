"""Grad-CAM of networks that can be computed by hand, and of every family of models."""

import numpy as np
import pytest
import torch
from torch import nn

from fatai.errors import OptionError, ShapeError
from fatai.inference.grad_cam import first_filters, grad_cam
from fatai.models import MODELS, create_model
from fatai.models.base import SpectrogramModel
from fatai.models.multi_task import TwoHeadModel
from fatai.models.panns import PannsModel


class Linear(SpectrogramModel):
    """Two maps of 1x1 convolutions, their means, and a linear layer."""

    def __init__(self, min_size=1):
        super().__init__(2, 1)
        self.min_mels = self.min_frames = min_size
        self.conv = nn.Conv2d(1, 2, 1, bias=False)
        self.head = nn.Linear(2, 2)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([1.0, -2.0]).view(2, 1, 1, 1))
            self.head.weight.copy_(torch.tensor([[3.0, 1.0], [-1.0, 2.0]]))

    def features(self, spec):
        return self.conv(spec).mean((2, 3))

    def classify(self, features):
        return self.head(features)


SPEC = torch.tensor([[[[1.0, -2.0, 0.0], [0.5, 4.0, -1.0]]]])


def test_grad_cam_of_a_linear_network_by_hand():
    # Maps x and -2x; the first tag's gradients are (3, 1) / 6 each, so 3x - 2x = x; the second's (-1, 2) / 6, so -x -
    # 4x = -5x.
    np.testing.assert_allclose(grad_cam(Linear(), SPEC, 0)[0], [[0.25, 0, 0], [0.125, 1, 0]], atol=1e-6)
    np.testing.assert_allclose(grad_cam(Linear(), SPEC, 1)[0], [[0, 1, 0], [0, 0, 0.5]], atol=1e-6)


def test_each_clip_has_its_own_tag_and_scale():
    both = grad_cam(Linear(), torch.cat([SPEC, 10 * SPEC]), [0, 1])
    torch.testing.assert_close(both, torch.cat([grad_cam(Linear(), SPEC, 0), grad_cam(Linear(), SPEC, 1)]))


def test_without_evidence_for_a_tag_there_is_no_heat():
    assert grad_cam(Linear(), -SPEC.abs(), 0).abs().max() == 0


def test_padding_of_the_input_is_not_shown():
    # To 4 x 4 with copies of the last column and row: 4 of 16 positions, and gradients of 1 / 16, the same in all.
    np.testing.assert_allclose(grad_cam(Linear(min_size=4), SPEC, 0)[0], [[0.25, 0, 0], [0.125, 1, 0]], atol=1e-6)


def test_coarse_maps_are_interpolated_over_the_input():
    class Halved(Linear):
        def features(self, spec):
            return self.pooled(spec).mean((2, 3))

        def __init__(self):
            super().__init__()
            self.pooled = nn.Sequential(self.conv, nn.AvgPool2d(2))

    spec = torch.zeros(1, 1, 4, 6)
    spec[..., :2, 4:] = 1
    heat = grad_cam(Halved(), spec, 0)[0]
    np.testing.assert_allclose(heat[0], [0, 0, 0, 0.25, 0.75, 1], atol=1e-6)
    np.testing.assert_allclose(heat[:, 5], [1, 0.75, 0.25, 0], atol=1e-6)


class Transposed(PannsModel):
    """Frames before mels, as in PANNs; the map of a single convolution."""

    halvings, embedding = 0, 8

    def add_body(self, width):
        self.conv = nn.Conv2d(1, 8, 1, bias=False)
        return 8

    def maps(self, x):
        assert x.shape[2] != self.n_mels, "frames come first"
        return self.conv(x)


def test_maps_of_panns_are_transposed_back():
    net = Transposed(n_tags=2, n_mels=3)
    for weight in (net.conv.weight, net.fc1.weight, net.fc_audioset.weight):
        nn.init.ones_(weight)
    spec = torch.rand(1, 1, 3, 7)
    heat = grad_cam(net, spec, 1)[0]
    torch.testing.assert_close(heat, spec[0, 0] / spec.max(), atol=1e-4, rtol=0)
    assert first_filters(create_model("cnn6", 2, width=0.125))[:, :, :, 0].shape == (8, 1, 5)


def test_filters_of_panns_are_oriented_as_a_spectrogram():
    net = create_model("cnn10", 2, width=0.125)
    with torch.no_grad():
        net.conv_block1.conv1.weight.zero_()[0, 0, 2, 0] = 1  # last frame, lowest mel
    assert first_filters(net)[0, 0].tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]


FAMILIES = ("resnet18", "resnet18_cbam", "resnet22", "xresnet18", "mn04")
NAMES = [n for n in MODELS.names() if n in FAMILIES or not ("resnet" in n or n.startswith("mn"))]


@pytest.mark.parametrize("name", NAMES)
def test_grad_cam_of_every_family(name):
    channels = 3 if name in ("resnet18", "xresnet18") else 1
    net = create_model(name, 4, channels, width=0.125).train()
    spec = torch.randn(2, channels, net.n_mels or 64, 96)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    heat = grad_cam(net, spec, [1, 3])
    assert heat.shape == (2, net.n_mels or 64, 96) and heat.isfinite().all() and heat.min() >= 0
    assert set(heat.amax((1, 2)).tolist()) <= {0.0, 1.0}
    assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items()), "left as it was"
    assert all(p.grad is None for p in net.parameters())
    alone = grad_cam(net, spec[:1], 1)
    torch.testing.assert_close(heat[:1], alone, atol=1e-4, rtol=1e-3)
    filters = first_filters(net)
    assert filters.shape[1] == channels and filters.ndim == 4


def test_networks_over_time_alone_have_the_same_heat_in_all_mels():
    net = create_model("cnn1d_multilevel", 3, width=0.125)
    heat = torch.cat([grad_cam(net, torch.randn(1, 1, 128, 200), t) for t in range(3)])
    assert heat.max() > 0
    # Rows are interpolated from one row, whose weights add up to 1 but for rounding.
    torch.testing.assert_close(heat, heat[:, :1].expand_as(heat), atol=1e-6, rtol=1e-5)
    assert first_filters(net).shape[2] == 128


def test_a_second_head_is_ignored_and_frozen_weights_work():
    torch.manual_seed(1)
    inner = Linear().eval()
    frozen = TwoHeadModel(inner.requires_grad_(False), 1)
    with torch.inference_mode():
        heat = grad_cam(frozen, SPEC, 0)
    torch.testing.assert_close(heat, grad_cam(Linear(), SPEC, 0))
    with pytest.raises(OptionError, match="tag is 1; expected the column of one of 1 tags"):
        grad_cam(frozen, SPEC, 1)


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_networks_without_maps_are_an_error(arch):
    net = create_model(f"timm:{arch}", 2)
    with pytest.raises(
        OptionError, match=f"timm:{arch} has no feature maps of convolutions; Grad-CAM needs a convolutional"
    ):
        grad_cam(net, SPEC, 0)


def test_input_without_a_batch_and_networks_without_convolution_are_errors():
    with pytest.raises(ShapeError, match=r"shape \(1, 2, 3\); expected \(batch, channels, mels, frames\)"):
        grad_cam(Linear(), SPEC[0], 0)
    with pytest.raises(OptionError, match="Flatten has no convolution"):
        first_filters(nn.Flatten())
