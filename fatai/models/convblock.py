"""The 9th place's networks: blocks whose second convolution also takes the input of the block.

`m0` to `m4` are the five that its technical report compares; `m3` is the one that its kernel trained (0.872 in
cross-validation; M0 0.855, M1 0.868, M2 0.867, M4 0.865).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fatai.errors import OptionError
from fatai.models.base import SpectrogramModel
from fatai.models.layers import ConcatPool, bn_head, init_kaiming, match_layout, scale_channels
from fatai.registry import MODELS

__all__ = ["ConvBlock", "ConvBlockNet", "m0", "m1", "m2", "m3", "m4"]

SOURCE = "9th place of Freesound Audio Tagging 2019, modelling kernel and DCASE 2019 technical report; own code"


class ConvBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and ReLU, then 2x2 average pooling: maps of `in_channels` to `out_channels`.

    Parameters
    ----------
    concat
        True to pass the input of the block and the output of the first convolution, in this order, to the second one.
    pool
        True to halve the maps at the end.
    """

    def __init__(self, in_channels: int, out_channels: int, *, concat: bool = True, pool: bool = True):
        super().__init__()
        self.concat, self.pool = concat, pool
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels + in_channels * concat, out_channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps (batch, out_channels, mels, frames), halved if `pool`."""
        # In place: the backward pass needs neither of the values between batch norm and ReLU.
        first = F.relu(self.bn1(self.conv1(x)), inplace=True)
        both = torch.cat([match_layout(x, first), first], 1) if self.concat else first
        second = F.relu(self.bn2(self.conv2(both)), inplace=True)
        return F.avg_pool2d(second, 2) if self.pool else second


class ConvBlockNet(SpectrogramModel):
    """Convolution blocks, concatenated pooled maps of some of them, and a two-layer head.

    Parameters
    ----------
    channels
        Output channels of each block.
    pooled
        Blocks, counted from 0, whose output is pooled globally into the features.
    hidden
        Units of the head.
    width
        Scales `channels` and `hidden`; below 1 for a smaller, faster model.
    concat
        See `ConvBlock`.
    last_pool
        True if the last block halves its maps too.
    pool
        "avg_max" (both, see `ConcatPool`) or "max".
    dropout_samples
        Masks of multi-sample dropout before the last layer; 0 for no dropout, as published.

    Raises
    ------
    OptionError
        If `pool` is unknown.
    """

    def __init__(
        self,
        n_tags: int,
        in_channels: int = 1,
        *,
        channels: Sequence[int],
        pooled: Sequence[int],
        hidden: int,
        width: float = 1.0,
        concat: bool = True,
        last_pool: bool = False,
        pool: str = "avg_max",
        dropout_samples: int = 0,
    ):
        super().__init__(n_tags, in_channels)
        if pool not in ("avg_max", "max"):
            raise OptionError(f"pool={pool!r}; expected 'avg_max' or 'max'")
        outs = [scale_channels(c, width) for c in channels]
        ins = [in_channels, *outs[:-1]]
        last = len(outs) - 1
        self.blocks = nn.ModuleList(
            ConvBlock(i, o, concat=concat, pool=last_pool or k < last)
            for k, (i, o) in enumerate(zip(ins, outs, strict=True))
        )
        self.pooled = tuple(pooled)
        self.concat_pool = ConcatPool("avg_max") if pool == "avg_max" else None
        n_features = sum(outs[k] for k in self.pooled) * (2 if self.concat_pool else 1)
        self.head = bn_head(n_features, scale_channels(hidden, width), n_tags, dropout_samples=dropout_samples)
        self.min_mels = self.min_frames = 2 ** (len(outs) - 1 + last_pool)
        init_kaiming(self)

    def features(self, spec: Tensor) -> Tensor:
        """Return features (batch, features) of spectrograms (batch, channels, mels, frames)."""
        rows, x = [], spec
        for k, block in enumerate(self.blocks):
            x = block(x)
            if k in self.pooled:
                rows.append(self.concat_pool(x) if self.concat_pool is not None else x.amax(dim=(2, 3)))
        return torch.cat(rows, dim=1)

    def classify(self, features: Tensor) -> Tensor:
        """Return logits (batch, tags) of features (batch, features)."""
        return self.head(features)


@MODELS.register("m0", source=SOURCE)
def m0(n_tags: int, in_channels: int = 1, *, width: float = 1.0, dropout_samples: int = 0) -> ConvBlockNet:
    """Build four plain double-convolution blocks, 64 to 512, global maximum: the 9th place's M0."""
    return ConvBlockNet(
        n_tags,
        in_channels,
        channels=(64, 128, 256, 512),
        pooled=(3,),
        hidden=128,
        width=width,
        concat=False,
        last_pool=True,
        pool="max",
        dropout_samples=dropout_samples,
    )


@MODELS.register("m1", source=SOURCE)
def m1(n_tags: int, in_channels: int = 1, *, width: float = 1.0, dropout_samples: int = 0) -> ConvBlockNet:
    """Build four input-concatenating blocks, 64 to 512, last one pooled: the 9th place's M1."""
    return ConvBlockNet(
        n_tags, in_channels, channels=(64, 128, 256, 512), pooled=(3,), hidden=128, width=width, last_pool=True,
        dropout_samples=dropout_samples,
    )


@MODELS.register("m2", source=SOURCE)
def m2(n_tags: int, in_channels: int = 1, *, width: float = 1.0, dropout_samples: int = 0) -> ConvBlockNet:
    """Build four input-concatenating blocks, 64 to 512, pyramid of the last three: the 9th place's M2."""
    return ConvBlockNet(
        n_tags,
        in_channels,
        channels=(64, 128, 256, 512),
        pooled=(1, 2, 3),
        hidden=256,
        width=width,
        dropout_samples=dropout_samples,
    )


@MODELS.register("m3", source=SOURCE)
def m3(n_tags: int, in_channels: int = 1, *, width: float = 1.0, dropout_samples: int = 0) -> ConvBlockNet:
    """Build five input-concatenating blocks, 64 to 1024, pyramid of the last four: M3, the 9th place's best."""
    return ConvBlockNet(
        n_tags, in_channels, channels=(64, 128, 256, 512, 1024), pooled=(1, 2, 3, 4), hidden=256, width=width,
        dropout_samples=dropout_samples,
    )


@MODELS.register("m4", source=SOURCE)
def m4(n_tags: int, in_channels: int = 1, *, width: float = 1.0, dropout_samples: int = 0) -> ConvBlockNet:
    """Build five input-concatenating blocks, 64 to 1024, last one pooled: the 9th place's M4."""
    return ConvBlockNet(
        n_tags,
        in_channels,
        channels=(64, 128, 256, 512, 1024),
        pooled=(4,),
        hidden=256,
        width=width,
        dropout_samples=dropout_samples,
    )
