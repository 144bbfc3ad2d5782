"""The 3rd place's networks: features pooled from several levels of residual blocks, in two dimensions or over time.

The input of its 2-D network has two channels, a log-mel spectrogram and a ramp over its bins ("coord" of `CHANNELS`);
the 1-D network convolves over time alone, with the bins as channels. Its author calls the pooled levels "deep
supervision": there are no auxiliary losses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fatai.errors import OptionError
from fatai.models.base import SpectrogramModel
from fatai.models.layers import GRUPool, scale_channels
from fatai.models.prelu import ChannelPReLU
from fatai.registry import MODELS

__all__ = ["BackboneNet", "MultiLevelNet", "ResidualUnit", "cnn1d_multilevel", "cnn2d_multilevel"]

SOURCE = (
    "3rd place of Freesound Audio Tagging 2019, github.com/ex4sperans/freesound-classification (Apache-2.0); own code"
)

GRU_UNITS = 128
# Convolution, batch norm and max pooling by number of dimensions.
LAYERS: dict[int, tuple[Any, Any, Any]] = {
    1: (nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d),
    2: (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d),
}


class ResidualUnit(nn.Module):
    """Convolutions of width 1, 3 and 1, each with batch norm, beside an identity; one PReLU slope per channel.

    Parameters
    ----------
    depth
        Channels of the maps.
    ndim
        1 for maps (batch, depth, frames), 2 for (batch, depth, mels, frames); the output has the same shape.
    """

    def __init__(self, depth: int, ndim: int):
        super().__init__()
        conv, norm, _ = LAYERS[ndim]
        self.inner = nn.Sequential(
            conv(depth, depth, 1), norm(depth), ChannelPReLU(depth),
            conv(depth, depth, 3, padding=1), norm(depth), ChannelPReLU(depth),
            conv(depth, depth, 1), norm(depth),
        )
        self.activation = ChannelPReLU(depth)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of the same shape."""
        return self.activation(self.inner(x) + x)


class GlobalMax(nn.Module):
    """Maximum over all dimensions but batch and channels: (batch, c, ...) to (batch, c)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, c)."""
        return x.flatten(2).amax(dim=2)


def level_block(in_channels: int, depth: int, ndim: int) -> nn.Sequential:
    """Return batch norm, convolution, max pooling by 2, batch norm, PReLU and a residual unit."""
    conv, norm, pool = LAYERS[ndim]
    return nn.Sequential(
        norm(in_channels),
        conv(in_channels, depth, 3, padding=1),
        pool(2),
        norm(depth),
        ChannelPReLU(depth),
        ResidualUnit(depth, ndim),
    )


def level_head(features: int, n_tags: int, dropout: float) -> nn.Sequential:
    """Return batch norm, a linear layer of the same width, batch norm, PReLU, dropout and a linear layer."""
    return nn.Sequential(
        nn.BatchNorm1d(features),
        nn.Linear(features, features),
        nn.BatchNorm1d(features),
        nn.PReLU(features),
        nn.Dropout(dropout),
        nn.Linear(features, n_tags),
    )


class MultiLevelNet(SpectrogramModel):
    """Blocks of increasing depth; the pooled maps of all blocks from `first_pooled` on are the features.

    Parameters
    ----------
    ndim
        2 to convolve over mels and frames; 1 over frames, with mels and channels together as input channels.
    n_blocks
        Number of blocks, each of which halves the maps.
    base_depth, growth
        Block k, counted from 0, has int(growth^k base_depth) channels; `width` scales `base_depth`.
    first_pooled
        First block whose maps are pooled into the features; the published commands skip block 0.
    aggregation
        "max", a global maximum, or "gru", see `GRUPool`.
    dropout
        Before the last layer; published: 0 in the basic recipe, 0.5 with augmentation, 0.7 with noisy clips.
    n_mels
        For `ndim` 1: mel bins that the model requires; spectrograms with fewer are padded.
    width
        Scales `base_depth`.

    Raises
    ------
    OptionError
        If `first_pooled` is not the number of a block, or `aggregation` is unknown.
    """

    def __init__(
        self,
        n_tags: int,
        in_channels: int = 1,
        *,
        ndim: int,
        n_blocks: int = 5,
        base_depth: int = 100,
        growth: float = 1.5,
        first_pooled: int = 1,
        aggregation: str = "max",
        dropout: float = 0.5,
        width: float = 1.0,
        n_mels: int = 128,
    ):
        super().__init__(n_tags, in_channels)
        if not 0 <= first_pooled < n_blocks:
            raise OptionError(
                f"first_pooled={first_pooled}; expected a block from 0 to {n_blocks - 1}, since n_blocks={n_blocks}"
            )
        if aggregation not in ("max", "gru"):
            raise OptionError(f"aggregation={aggregation!r}; expected 'max' or 'gru'")
        base = scale_channels(base_depth, width)
        depths = [int(growth ** k * base) for k in range(n_blocks)]
        self.ndim, self.first_pooled = ndim, first_pooled
        self.min_mels = self.min_frames = 2 ** n_blocks
        if ndim == 1:
            self.n_mels = self.min_mels = n_mels
        ins = [in_channels * (n_mels if ndim == 1 else 1), *depths]
        self.blocks = nn.ModuleList(level_block(i, depth, ndim) for i, depth in zip(ins[:-1], depths, strict=True))
        pooled = depths[first_pooled:]
        self.pools = nn.ModuleList(
            GRUPool(depth, GRU_UNITS) if aggregation == "gru" else GlobalMax() for depth in pooled
        )
        n_features = 2 * GRU_UNITS * len(pooled) if aggregation == "gru" else sum(pooled)
        self.head = level_head(n_features, n_tags, dropout)

    def features(self, spec: Tensor) -> Tensor:
        """Return features (batch, features) of spectrograms (batch, channels, mels, frames)."""
        x = spec if self.ndim == 2 else spec.flatten(1, 2)
        rows = []
        for k, block in enumerate(self.blocks):
            x = block(x)
            if k >= self.first_pooled:
                rows.append(self.pools[k - self.first_pooled](x))
        return torch.cat(rows, dim=1)

    def classify(self, features: Tensor) -> Tensor:
        """Return logits (batch, tags) of features (batch, features)."""
        return self.head(features)


class BackboneNet(SpectrogramModel):
    """A ResNet from scratch on the batch-normed spectrogram, a global maximum, and the head of `MultiLevelNet`.

    Parameters
    ----------
    backbone
        "resnet18" or "resnet34".
    in_channels
        3, or 1, which is repeated to 3.
    dropout
        Before the last layer.
    width
        Scales the stages of the ResNet.

    Raises
    ------
    OptionError
        For another backbone or number of channels.
    """

    min_mels = min_frames = 32

    def __init__(self, n_tags: int, in_channels: int = 1, *, backbone: str, dropout: float = 0.5, width: float = 1.0):
        from fatai.models.backbones import resnet_body

        super().__init__(n_tags, in_channels)
        if backbone not in ("resnet18", "resnet34"):
            raise OptionError(
                f"backbone={backbone!r}; expected 'resnet18', 'resnet34', or None for residual blocks"
            )
        if in_channels not in (1, 3):
            raise OptionError(
                f"in_channels={in_channels}; with backbone={backbone!r} expected 1 (repeated three times) or 3"
            )
        body, n_features = resnet_body(backbone, 3, width)
        self.body = nn.Sequential(nn.BatchNorm2d(3), *body, GlobalMax())
        self.head = level_head(n_features, n_tags, dropout)

    def features(self, spec: Tensor) -> Tensor:
        """Return features (batch, features) of spectrograms (batch, channels, mels, frames)."""
        return self.body(spec.expand(-1, 3, -1, -1))

    def classify(self, features: Tensor) -> Tensor:
        """Return logits (batch, tags) of features (batch, features)."""
        return self.head(features)


@MODELS.register("cnn2d_multilevel", source=SOURCE)
def cnn2d_multilevel(
    n_tags: int,
    in_channels: int = 1,
    *,
    n_blocks: int = 5,
    base_depth: int = 100,
    growth: float = 1.5,
    first_pooled: int = 1,
    aggregation: str = "max",
    dropout: float = 0.5,
    width: float = 1.0,
    backbone: str | None = None,
) -> MultiLevelNet | BackboneNet:
    """Build residual 2-D blocks with pooled levels, the 3rd place's; with `backbone` a ResNet instead of the blocks."""
    if backbone is not None:
        return BackboneNet(n_tags, in_channels, backbone=backbone, dropout=dropout, width=width)
    return MultiLevelNet(
        n_tags, in_channels, ndim=2, n_blocks=n_blocks, base_depth=base_depth, growth=growth, first_pooled=first_pooled,
        aggregation=aggregation, dropout=dropout, width=width,
    )


@MODELS.register("cnn1d_multilevel", source=SOURCE)
def cnn1d_multilevel(
    n_tags: int,
    in_channels: int = 1,
    *,
    n_mels: int = 128,
    n_blocks: int = 5,
    base_depth: int = 100,
    growth: float = 1.5,
    first_pooled: int = 1,
    aggregation: str = "max",
    dropout: float = 0.5,
    width: float = 1.0,
) -> MultiLevelNet:
    """Build residual 1-D blocks over time with pooled levels: the 3rd place's."""
    return MultiLevelNet(
        n_tags,
        in_channels,
        ndim=1,
        n_mels=n_mels,
        n_blocks=n_blocks,
        base_depth=base_depth,
        growth=growth,
        first_pooled=first_pooled,
        aggregation=aggregation,
        dropout=dropout,
        width=width,
    )
