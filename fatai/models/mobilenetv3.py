"""The 36th place's MobileNetV3, large and small: inverted residual blocks, some with squeeze and excitation.

Differences from the paper (arXiv:1905.02244), all of them published: ReLU6 for ReLU; squeeze and excitation after the
depthwise activation. The published code also creates an expansion and a squeeze in blocks that never use them. They are
kept, so that the number of parameters is the published one, but frozen: an unused parameter that requires a gradient
stops distributed training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor, nn

from fatai.models.base import SpectrogramModel
from fatai.models.layers import prior_linear, scale_channels
from fatai.registry import MODELS

__all__ = ["InvertedResidual", "MobileNetV3", "SqueezeExcite", "mobilenetv3_large", "mobilenetv3_small"]

SOURCE = "36th place of Freesound Audio Tagging 2019, github.com/adam9500370/Kaggle-FAT (no licence file); own code"


@dataclass(frozen=True)
class Row:
    """One block.

    Attributes
    ----------
    kernel
        Kernel size of the depthwise convolution.
    expanded, out
        Channels inside and at the output.
    squeeze
        True for squeeze and excitation.
    hswish
        True for h-swish, False for ReLU6.
    stride
        Stride of the depthwise convolution.
    """

    kernel: int
    expanded: int
    out: int
    squeeze: bool
    hswish: bool
    stride: int


LARGE = (
    Row(3, 16, 16, False, False, 1),
    Row(3, 64, 24, False, False, 2),
    Row(3, 72, 24, False, False, 1),
    Row(5, 72, 40, True, False, 2),
    Row(5, 120, 40, True, False, 1),
    Row(5, 120, 40, True, False, 1),
    Row(3, 240, 80, False, True, 2),
    Row(3, 200, 80, False, True, 1),
    Row(3, 184, 80, False, True, 1),
    Row(3, 184, 80, False, True, 1),
    Row(3, 480, 112, True, True, 1),
    Row(3, 672, 112, True, True, 1),
    Row(5, 672, 160, True, True, 2),
    Row(5, 960, 160, True, True, 1),
    Row(5, 960, 160, True, True, 1),
)
SMALL = (
    Row(3, 16, 16, True, False, 2), Row(3, 72, 24, False, False, 2), Row(3, 88, 24, False, False, 1),
    Row(5, 96, 40, True, True, 2), Row(5, 240, 40, True, True, 1), Row(5, 240, 40, True, True, 1),
    Row(5, 120, 48, True, True, 1), Row(5, 144, 48, True, True, 1),
    Row(5, 288, 96, True, True, 2), Row(5, 576, 96, True, True, 1), Row(5, 576, 96, True, True, 1),
)


def activation(hswish: bool) -> nn.Module:
    """Return h-swish or ReLU6."""
    return nn.Hardswish() if hswish else nn.ReLU6()


class SqueezeExcite(nn.Module):
    """Weight the channels of maps (batch, c, mels, frames) by a perceptron on their averages."""

    def __init__(self, channels: int, reduction: int = 4):
        super().__init__()
        hidden = channels // reduction
        self.gate = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU6(), nn.Linear(hidden, channels), nn.Hardsigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of the same shape."""
        return x * self.gate(x.mean(dim=(2, 3)))[:, :, None, None]


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, squeeze, projection; a shortcut where the shape does not change. See `Row`."""

    def __init__(self, in_channels: int, row: Row):
        super().__init__()
        wide = row.expanded
        self.expand = nn.Sequential(
            nn.Conv2d(in_channels, wide, 1, bias=False), nn.BatchNorm2d(wide), activation(row.hswish)
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(wide, wide, row.kernel, stride=row.stride, padding=row.kernel // 2, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            activation(row.hswish),
        )
        self.squeeze = SqueezeExcite(wide)
        self.project = nn.Sequential(nn.Conv2d(wide, row.out, 1, bias=False), nn.BatchNorm2d(row.out))
        self.shortcut = row.stride == 1 and in_channels == row.out
        self.expands, self.squeezes = wide != in_channels, row.squeeze
        self.expand.requires_grad_(self.expands)
        self.squeeze.requires_grad_(self.squeezes)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps (batch, out, mels, frames) of maps (batch, in_channels, mels, frames), smaller by the stride."""
        inner = self.depthwise(self.expand(x) if self.expands else x)
        inner = self.project(self.squeeze(inner) if self.squeezes else inner)
        return x + inner if self.shortcut else inner


class MobileNetV3(SpectrogramModel):
    """Stem, blocks, a wide 1x1 convolution, average over positions, a 1x1 layer, dropout, and a `prior_linear`.

    Parameters
    ----------
    rows
        The blocks.
    last_squeeze
        True for squeeze and excitation after the wide convolution, before its batch norm.
    dropout
        Before the last layer.
    width
        Scales all channels but the tags.
    """

    # Five halvings; one more in time, since batch norm in training needs two positions of a single clip.
    min_mels, min_frames = 32, 64

    def __init__(
        self,
        n_tags: int,
        in_channels: int = 1,
        *,
        rows: tuple[Row, ...],
        last_squeeze: bool,
        dropout: float = 0.5,
        width: float = 1.0,
    ):
        super().__init__(n_tags, in_channels)
        rows = tuple(
            replace(row, expanded=scale_channels(row.expanded, width), out=scale_channels(row.out, width))
            for row in rows
        )
        stem, last, hidden = scale_channels(16, width), rows[-1].expanded, scale_channels(1280, width)
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, stem, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(stem),
            nn.Hardswish(),
            *(InvertedResidual(i, row) for i, row in zip([stem, *(row.out for row in rows[:-1])], rows, strict=True)),
            nn.Conv2d(rows[-1].out, last, 1, bias=False),
            *([SqueezeExcite(last)] if last_squeeze else []),
            nn.BatchNorm2d(last),
            nn.Hardswish(),
        )
        # On one position per clip a 1x1 convolution is a linear layer.
        self.widen = nn.Sequential(nn.Linear(last, hidden, bias=False), nn.Hardswish())
        self.head = nn.Sequential(nn.Dropout(dropout), prior_linear(hidden, n_tags))
        self._init_weights(hidden)

    def _init_weights(self, hidden: int) -> None:
        for m in self.body.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.normal_(m.weight, std=math.sqrt(2 / (m.kernel_size[0] * m.kernel_size[1] * m.out_channels)))
            elif isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, std=0.01)
                nn.init.zeros_(m.bias)
        for m in self.widen.modules():
            if isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, std=math.sqrt(2 / hidden))

    def features(self, spec: Tensor) -> Tensor:
        """Return features (batch, features) of spectrograms (batch, channels, mels, frames)."""
        return self.widen(self.body(spec).mean(dim=(2, 3)))

    def classify(self, features: Tensor) -> Tensor:
        """Return logits (batch, tags) of features (batch, features)."""
        return self.head(features)


@MODELS.register("mobilenetv3_large", source=SOURCE)
def mobilenetv3_large(n_tags: int, in_channels: int = 1, *, dropout: float = 0.5, width: float = 1.0) -> MobileNetV3:
    """Build MobileNetV3-Large with ReLU6 and h-swish: the 36th place's."""
    return MobileNetV3(n_tags, in_channels, rows=LARGE, last_squeeze=False, dropout=dropout, width=width)


@MODELS.register("mobilenetv3_small", source=SOURCE)
def mobilenetv3_small(n_tags: int, in_channels: int = 1, *, dropout: float = 0.5, width: float = 1.0) -> MobileNetV3:
    """Build MobileNetV3-Small with ReLU6 and h-swish: the 36th place's alternative."""
    return MobileNetV3(n_tags, in_channels, rows=SMALL, last_squeeze=True, dropout=dropout, width=width)
