"""The 1st place's networks: maps of all stages, pooled to one size, weighted by attention (CBAM) and merged.

`aux_skip_attention` adds a head on each skip, `rnn_aux_skip_attention` also a bidirectional LSTM over time. In training
those two return a tuple of logits, (main, third skip, second, first), whose losses the 1st place weighted by 1.0, 0.4,
0.2 and 0.1 (`aux_weights`, which `fat_learner` passes to `AuxLoss`); in evaluation they return the main logits alone.
Its input had three channels: a log-mel spectrogram and two orders of deltas.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fatai.errors import OptionError
from fatai.models.base import SpectrogramModel, in_float32
from fatai.models.layers import CBAM, init_kaiming, scale_channels
from fatai.registry import MODELS

__all__ = ["SkipAttentionNet", "aux_skip_attention", "rnn_aux_skip_attention", "skip_attention"]

SOURCE = "1st place of Freesound Audio Tagging 2019, github.com/lRomul/argus-freesound (MIT); own code"
AUX_WEIGHTS = (1.0, 0.4, 0.2, 0.1)


def conv_bn_relu(in_channels: int, out_channels: int) -> list[nn.Module]:
    """Return a 3x3 convolution without bias, batch norm and ReLU; maps keep their size."""
    return [nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()]


class SkipAttentionNet(SpectrogramModel):
    """Four stages that halve their maps, three skips, attention over all their channels, and a merging convolution.

    Parameters
    ----------
    base
        Channels of the first stage; each further one has twice as many. `width` scales it.
    dropout
        Before the first layer of a head; half of it before the second.
    reduction, kernel_size
        Options of the attention, see `CBAM`.
    hidden
        Units of a head, in multiples of `base`.
    aux_weights
        Weight of each output in training, main output first; None for no auxiliary heads.
    recurrent
        True for a bidirectional LSTM over time on the merged maps.
    width
        Scales the channels of every layer.

    Raises
    ------
    OptionError
        If `aux_weights` does not have 4 numbers.
    """

    # Four halvings.
    min_mels = min_frames = 16

    def __init__(
        self,
        n_tags: int,
        in_channels: int = 1,
        *,
        base: int = 64,
        dropout: float = 0.4,
        reduction: int = 16,
        kernel_size: int = 7,
        hidden: int = 4,
        aux_weights: Sequence[float] | None = AUX_WEIGHTS,
        recurrent: bool = False,
        width: float = 1.0,
    ):
        super().__init__(n_tags, in_channels)
        if aux_weights is not None and len(aux_weights) != 4:
            raise OptionError(f"aux_weights={aux_weights!r}; expected 4 numbers: main output, then last skip to first")
        base = scale_channels(base, width)
        depth = 8 * base
        ins, outs = (in_channels, base, 2 * base, 4 * base), (base, 2 * base, 4 * base, depth)
        self.stages = nn.ModuleList(
            nn.Sequential(*conv_bn_relu(i, o), *conv_bn_relu(o, o), nn.AvgPool2d(2))
            for i, o in zip(ins, outs, strict=True)
        )
        init_kaiming(self.stages)
        self.skips = nn.ModuleList(
            nn.Sequential(nn.AvgPool2d(by), *conv_bn_relu(o, depth)) for by, o in zip((8, 4, 2), outs[:-1], strict=True)
        )
        self.attention = CBAM(4 * depth, form="plain", reduction=reduction, kernel_size=kernel_size)
        self.merge = nn.Sequential(*conv_bn_relu(4 * depth, depth))
        self.lstm = nn.LSTM(depth, depth, batch_first=True, bidirectional=True) if recurrent else None
        self.embedding = nn.Linear(2 * depth, depth) if recurrent else None

        make_head = partial(_head, depth, hidden * base, n_tags, dropout)
        self.head = make_head()
        self.aux_weights = None if aux_weights is None else tuple(float(w) for w in aux_weights)
        self.aux_heads = nn.ModuleList() if aux_weights is None else nn.ModuleList(make_head() for _ in self.skips)
        self.head_names = ("head", "aux_heads")

    def forward(self, spec: Tensor) -> Any:
        """Return logits (batch, tags) of spectrograms (batch, channels, mels, frames).

        In training with auxiliary heads it is a tuple of logits: main output, then those of the last skip to the first.
        """
        features, skipped = self._maps_to_rows(self.prepare_input(spec))
        main = in_float32(self.classify, features)
        if not (self.training and self.aux_heads):
            return main
        aux = [in_float32(head, maps.mean(dim=(2, 3))) for head, maps in zip(self.aux_heads, skipped, strict=True)]
        return main, *aux[::-1]

    def features(self, spec: Tensor) -> Tensor:
        """Return features (batch, features) of spectrograms (batch, channels, mels, frames)."""
        return self._maps_to_rows(spec)[0]

    def classify(self, features: Tensor) -> Tensor:
        """Return logits (batch, tags) of features (batch, features)."""
        return self.head(features)

    def _maps_to_rows(self, spec: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the features of the main head, (batch, features), and the maps of the skips, first stage first."""
        stage_maps, x = [], spec
        for stage in self.stages:
            x = stage(x)
            stage_maps.append(x)
        skipped = [skip(maps) for skip, maps in zip(self.skips, stage_maps[:-1], strict=True)]
        merged = self.merge(self.attention(torch.cat([x, *skipped], dim=1)))
        if self.lstm is None or self.embedding is None:
            return merged.mean(dim=(2, 3)), skipped
        states, _ = self.lstm(merged.mean(dim=2).transpose(1, 2))
        return self.embedding(states).mean(dim=1), skipped


def _head(features: int, hidden: int, n_tags: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Dropout(dropout),
        nn.Linear(features, hidden),
        nn.PReLU(),
        nn.BatchNorm1d(hidden),
        nn.Dropout(dropout / 2),
        nn.Linear(hidden, n_tags),
    )


@MODELS.register("skip_attention", source=SOURCE)
def skip_attention(
    n_tags: int,
    in_channels: int = 1,
    *,
    base: int = 64,
    dropout: float = 0.2,
    reduction: int = 16,
    kernel_size: int = 7,
    hidden: int = 2,
    width: float = 1.0,
) -> SkipAttentionNet:
    """Build four stages with three skips and attention: the 1st place's, kernel 7 or 3."""
    return SkipAttentionNet(
        n_tags,
        in_channels,
        base=base,
        dropout=dropout,
        reduction=reduction,
        kernel_size=kernel_size,
        hidden=hidden,
        aux_weights=None,
        width=width,
    )


@MODELS.register("aux_skip_attention", source=SOURCE)
def aux_skip_attention(
    n_tags: int,
    in_channels: int = 1,
    *,
    base: int = 64,
    dropout: float = 0.4,
    reduction: int = 16,
    kernel_size: int = 7,
    hidden: int = 4,
    aux_weights: Sequence[float] = AUX_WEIGHTS,
    width: float = 1.0,
) -> SkipAttentionNet:
    """Build `skip_attention` with an auxiliary head on each skip: the 1st place's main model."""
    return SkipAttentionNet(
        n_tags, in_channels, base=base, dropout=dropout, reduction=reduction, kernel_size=kernel_size, hidden=hidden,
        aux_weights=aux_weights, width=width,
    )


@MODELS.register("rnn_aux_skip_attention", source=SOURCE)
def rnn_aux_skip_attention(
    n_tags: int,
    in_channels: int = 1,
    *,
    base: int = 64,
    dropout: float = 0.4,
    reduction: int = 16,
    kernel_size: int = 7,
    hidden: int = 4,
    aux_weights: Sequence[float] = AUX_WEIGHTS,
    width: float = 1.0,
) -> SkipAttentionNet:
    """Build `aux_skip_attention` with a bidirectional LSTM over the merged maps: the 1st place's."""
    return SkipAttentionNet(
        n_tags, in_channels, base=base, dropout=dropout, reduction=reduction, kernel_size=kernel_size, hidden=hidden,
        aux_weights=aux_weights, recurrent=True, width=width,
    )
