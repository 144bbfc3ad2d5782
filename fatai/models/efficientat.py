"""EfficientAT's MobileNets, `mn04` to `mn40`: MobileNetV3-Large of several widths, trained on AudioSet by its authors.

Keys and shapes of the state are those of the published files, so `pretrained="mn04_as_mAP_432.pt"` loads one. The front
end is not part of the model: published weights need the front end "efficientat". The rows of blocks are those of the
paper, arXiv:1905.02244; unlike there, squeeze and excitation ends in a sigmoid, and its averages are over both axes of
the map.
"""

from __future__ import annotations

import os
from dataclasses import replace

import torch
from torch import Tensor, nn

from fatai.errors import OptionError, ShapeError
from fatai.models.base import SpectrogramModel
from fatai.models.checkpoint import LoadReport, load_checkpoint
from fatai.models.layers import AttentionPool, publish_body_as_features
from fatai.models.mobilenetv3 import LARGE, Row
from fatai.models.weights import locate_weights
from fatai.registry import MODELS, did_you_mean

__all__ = ["EfficientAT", "WIDTHS"]

SOURCE = "EfficientAT, arXiv:2211.04772, https://github.com/fschmid56/EfficientAT (MIT); own code"
WIDTHS = {"mn04": 0.4, "mn05": 0.5, "mn10": 1.0, "mn20": 2.0, "mn30": 3.0, "mn40": 4.0}
"""Factor for the channels of each published network."""

# Kinds of heads, and the modules of each that are newly initialized for other tags.
HEADS = {"published": ("classifier.5",), "attention": ("attention_pool", "classifier")}
# Five halvings.
_STRIDE = 32


def make_divisible(channels: float) -> int:
    """Round to a multiple of 8, at least 8, that is not more than 10 % below `channels`: MobileNet's rule.

    Examples
    --------
    >>> make_divisible(6.4), make_divisible(28.8), make_divisible(44.8), make_divisible(11.9)
    (8, 32, 48, 16)
    """
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def conv_bn(
    in_channels: int,
    out_channels: int,
    kernel: int = 1,
    *,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = nn.Hardswish,
) -> nn.Sequential:
    """Return convolution, batch norm, and activation."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels, eps=0.001, momentum=0.01),
        *([] if activation is None else [activation()]),
    )


class SqueezeExcite(nn.Module):
    """Weight the channels of maps (batch, c, mels, frames) by a perceptron on their averages."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = make_divisible(channels // 4)
        self.fc1, self.fc2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of the same shape."""
        return x * self.fc2(self.fc1(x.mean(dim=(2, 3))).relu()).sigmoid()[:, :, None, None]


class ConcurrentSqueezeExcite(nn.Module):
    """The published container of squeeze and excitation, over channels alone; it gives the keys of the state."""

    def __init__(self, channels: int):
        super().__init__()
        self.conc_se_layers = nn.ModuleList([SqueezeExcite(channels)])

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of the same shape as `x`, (batch, c, mels, frames)."""
        return self.conc_se_layers[0](x)


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, squeeze, projection; a shortcut where the shape does not change. See `Row`."""

    def __init__(self, in_channels: int, row: Row):
        super().__init__()
        activation = nn.Hardswish if row.hswish else nn.ReLU
        inner = row.expanded
        self.shortcut = row.stride == 1 and in_channels == row.out
        self.block = nn.Sequential(
            *([] if inner == in_channels else [conv_bn(in_channels, inner, activation=activation)]),
            conv_bn(inner, inner, row.kernel, stride=row.stride, groups=inner, activation=activation),
            *([ConcurrentSqueezeExcite(inner)] if row.squeeze else []),
            conv_bn(inner, row.out, activation=None),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return maps (batch, out, mels, frames) of maps (batch, in_channels, mels, frames), smaller by the stride."""
        return x + self.block(x) if self.shortcut else self.block(x)


class EfficientAT(SpectrogramModel):
    """Stem, fifteen blocks, a wide 1x1 convolution, average over positions, a hidden layer, dropout, and logits.

    Parameters
    ----------
    width
        Factor for all channels and the hidden layer.
    dropout
        Before the last layer.
    head
        "published": average over all positions, hidden layer, dropout, logits. "attention": average over frequency,
        context gating and attention over time (see `AttentionPool`) instead of the hidden layer, dropout, logits.
    pretrained
        File of published weights, or of a model of this class and width; see the attribute of this name. The last layer
        is loaded if it has `n_tags` tags and is newly initialized otherwise. With several input channels a network for
        one channel is loaded into the first, and the others have no influence at first.

    Attributes
    ----------
    pretrained
        The `LoadReport` of the weights; None without.

    Raises
    ------
    OptionError
        If `width` is not above 0, or `head` is unknown.
    CheckpointError
        If `pretrained` does not fit.

    Notes
    -----
    `embed` returns the activations of the hidden layer, 1280 times `width`, rounded as `make_divisible` does; with
    attention the pooled maps, 960 times `width`.
    """

    auto_precision = "fp32"  # bfloat16 changes probabilities by up to 0.08, and a step is no faster with it on a CPU

    def __init__(
        self,
        n_tags: int,
        in_channels: int = 1,
        *,
        width: float,
        dropout: float = 0.2,
        head: str = "published",
        pretrained: str | os.PathLike[str] | None = None,
    ):
        super().__init__(n_tags, in_channels)
        if head not in HEADS:
            raise OptionError(f"head={head!r}; {did_you_mean(head, list(HEADS))}")
        self.head, self.head_names = head, HEADS[head]
        if not width > 0:
            raise OptionError(f"width={width!r}; expected a factor above 0, such as 0.4")
        rows = [replace(r, expanded=make_divisible(r.expanded * width), out=make_divisible(r.out * width))
                for r in LARGE]
        stem, last, hidden = make_divisible(16 * width), 6 * rows[-1].out, make_divisible(1280 * width)
        self.body = nn.Sequential(
            conv_bn(in_channels, stem, 3, stride=2),
            *(InvertedResidual(i, row) for i, row in zip([stem, *(row.out for row in rows[:-1])], rows, strict=True)),
            conv_bn(rows[-1].out, last),
        )
        self._add_head(last, hidden, dropout)
        publish_body_as_features(self)
        self._init_weights()
        self.to(memory_format=torch.channels_last)  # on a CPU in training 1.6 times as fast: half of it is depthwise
        self.pretrained = None if pretrained is None else self._load(pretrained)

    def _add_head(self, channels: int, hidden: int, dropout: float) -> None:
        if self.head == "attention":
            self.attention_pool = AttentionPool(channels)
            self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels, self.n_tags))
        else:
            self.classifier = nn.Sequential(
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(channels, hidden),
                nn.Hardswish(),
                nn.Dropout(dropout),
                nn.Linear(hidden, self.n_tags),
            )

    def _init_weights(self) -> None:
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out")
            elif isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, std=0.01)
                nn.init.zeros_(m.bias)

    def _load(self, path: str | os.PathLike[str]) -> LoadReport:
        return load_checkpoint(
            self,
            path,
            reinit=[f"{name}." for name in self.head_names],
            ignore=["classifier."] if self.head == "attention" else [],
            first_channel=["features.0.0.weight"],
        )

    def prepare_input(self, spec: Tensor) -> Tensor:
        """Check spectrograms (batch, channels, mels, frames) of any size.

        Raises
        ------
        ShapeError
            As for every model; and if a single clip in training is so small that a batch norm would get one number per
            channel.
        """
        spec = super().prepare_input(spec)
        if self.training and len(spec) == 1 and max(spec.shape[2:]) <= _STRIDE:
            raise ShapeError(
                f"the input of the model is one clip, shape {tuple(spec.shape)}, reduced to one number per channel; "
                f"batch norm needs at least 2 in training: take more clips and a bs above 1, or give it more than "
                f"{_STRIDE} frames"
            )
        return spec

    def features(self, spec: Tensor) -> Tensor:
        """Return features (batch, features) of spectrograms (batch, channels, mels, frames)."""
        if self.head == "attention":
            return self.attention_pool(self.body(spec).mean(dim=2))
        return self.classifier[:4](self.body(spec))

    def classify(self, features: Tensor) -> Tensor:
        """Return logits (batch, tags) of features (batch, features)."""
        return self.classifier[-2:](features)


def _register(arch: str) -> None:
    def build(
        n_tags: int,
        in_channels: int = 1,
        *,
        width: float = 1.0,
        dropout: float = 0.2,
        head: str = "published",
        pretrained: bool | str | os.PathLike[str] | None = None,
    ) -> EfficientAT:
        return EfficientAT(
            n_tags, in_channels, width=WIDTHS[arch] * width, dropout=dropout, head=head,
            pretrained=locate_weights(arch, pretrained) if pretrained else None,
        )

    build.__doc__ = f"Build EfficientAT's MobileNetV3 of width {WIDTHS[arch]}; published weights need the width 1."
    build.__qualname__ = build.__name__ = arch
    MODELS.register(arch, source=SOURCE)(build)


for _arch in WIDTHS:
    _register(_arch)
