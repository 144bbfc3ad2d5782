"""The MobileNets of PANNs: `mobilenetv1`, `mobilenetv2`; maps are halved by average pooling, never by strides."""

from __future__ import annotations

from typing import ClassVar

import torch.nn as nn
from torch import Tensor

from fatai.models.layers import publish_body_as_features, scale_channels
from fatai.models.panns import SOURCE, PannsModel
from fatai.registry import MODELS

__all__ = ["InvertedResidual", "MobileNetV1", "MobileNetV2"]


def conv_bn(
    in_channels: int,
    out_channels: int,
    kernel: int,
    *,
    pool: int = 0,
    groups: int = 1,
    activation: type[nn.Module] | None = nn.ReLU,
) -> list[nn.Module]:
    """Return convolution, average pooling by `pool` (at 0 no layer, at 1 an identity), batch norm and activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, groups=groups, bias=False)
    ]
    if pool:
        layers.append(nn.AvgPool2d(pool))
    return [*layers, nn.BatchNorm2d(out_channels), *([] if activation is None else [activation()])]


class InvertedResidual(nn.Module):
    """Expand the channels `expand` times, convolve each, project; add the input where shapes are equal."""

    def __init__(self, in_channels: int, out_channels: int, *, pool: int, expand: int):
        super().__init__()
        inner = in_channels * expand
        self.add_input = pool == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            *(conv_bn(in_channels, inner, 1, activation=nn.ReLU6) if expand > 1 else []),
            *conv_bn(inner, inner, 3, pool=pool, groups=inner, activation=nn.ReLU6),
            *conv_bn(inner, out_channels, 1, activation=None),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return maps (batch, out_channels, frames, mels), smaller by `pool`."""
        return x + self.conv(x) if self.add_input else self.conv(x)


class _MobileNet(PannsModel):
    """A sequence of blocks, `body`, whose name in the state is the published `features`, a method of every model."""

    first_conv: ClassVar[str] = "features.0.0.weight"
    embedding: ClassVar[int] = 1024
    body: nn.Sequential

    def add_body(self, width: float) -> int:
        """Add the blocks, and the hooks that rename them in the state."""
        self.body, channels = self.make_body(width)
        publish_body_as_features(self)
        return channels

    def make_body(self, width: float) -> tuple[nn.Sequential, int]:
        """Return the blocks and the number of channels of their maps."""
        raise NotImplementedError

    def maps(self, x: Tensor) -> Tensor:
        """Return maps (batch, channels, frames, mels)."""
        return self.body(x)


@MODELS.register("mobilenetv1", source=SOURCE)
class MobileNetV1(_MobileNet):
    """Thirteen separable convolutions, 64 to 1024; 0.389 mean average precision on AudioSet."""

    # Output channels and pooling of each.
    blocks = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))

    def make_body(self, width: float) -> tuple[nn.Sequential, int]:
        """Return the blocks and the number of channels of their maps."""
        n_in = scale_channels(32, width)
        body = [nn.Sequential(*conv_bn(self.in_channels, n_in, 3, pool=2))]
        for channels, pool in self.blocks:
            n_out = scale_channels(channels, width)
            body.append(nn.Sequential(*conv_bn(n_in, n_in, 3, pool=pool, groups=n_in), *conv_bn(n_in, n_out, 1)))
            n_in = n_out
        return nn.Sequential(*body), n_in


@MODELS.register("mobilenetv2", source=SOURCE)
class MobileNetV2(_MobileNet):
    """Seventeen inverted residuals, 16 to 320; 0.383 mean average precision on AudioSet."""

    # Expansion, output channels, number and first pooling of each group; the sixth does not pool, unlike that for
    # images.
    groups = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 2), (6, 160, 3, 1), (6, 320, 1, 1))
    row_dropout = 0.0

    def make_body(self, width: float) -> tuple[nn.Sequential, int]:
        """Return the blocks and the number of channels of their maps."""
        n_in, last = scale_channels(32, width), scale_channels(1280, width)
        body: list[nn.Module] = [nn.Sequential(*conv_bn(self.in_channels, n_in, 3, pool=2, activation=nn.ReLU6))]
        for expand, channels, n, pool in self.groups:
            n_out = scale_channels(channels, width)
            for i in range(n):
                body.append(InvertedResidual(n_in, n_out, pool=pool if i == 0 else 1, expand=expand))
                n_in = n_out
        return nn.Sequential(*body, nn.Sequential(*conv_bn(n_in, last, 1, activation=nn.ReLU6))), last
