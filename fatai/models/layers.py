"""Blocks, pooling and heads that several model families share.

Conventions: a *spec* is (batch, channels, mels, frames); a *map* is what convolutions make of it, of the same four
dimensions; *features* are (batch, features), one row per clip; *logits* are (batch, tags), before the sigmoid.
Nothing here needs anything but torch.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fatai.errors import OptionError

__all__ = [
    "AttentionPool",
    "CBAM",
    "ConcatPool",
    "GRUPool",
    "MultiSampleDropout",
    "TagAttentionPool",
    "bn_head",
    "init_kaiming",
    "match_layout",
    "prior_linear",
    "publish_body_as_features",
    "scale_channels",
]


class ConcatPool(nn.Module):
    """Concatenate average and maximum over mels and frames: maps (batch, c, mels, frames) to (batch, 2 c).

    Parameters
    ----------
    order
        "avg_max" as the 9th place, or "max_avg" as fastai; it matters for weights that were trained with one of them.
    """

    def __init__(self, order: str = "avg_max"):
        super().__init__()
        if order not in ("avg_max", "max_avg"):
            raise OptionError(f"order={order!r}; expected 'avg_max' (9th place) or 'max_avg' (fastai)")
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 2 c)."""
        pooled = [x.mean(dim=(2, 3)), x.amax(dim=(2, 3))]
        return torch.cat(pooled if self.order == "avg_max" else pooled[::-1], dim=1)

    def extra_repr(self) -> str:
        """Return the options shown in the representation."""
        return f"order={self.order!r}"


class CBAM(nn.Module):
    """Convolutional block attention: maps (batch, c, mels, frames) weighted by channel, then by position.

    The channel gate is the sum of a two-layer perceptron on the average and on the maximum over positions; the spatial
    gate is a convolution over the average and the maximum across channels. Both end in a sigmoid.

    Parameters
    ----------
    channels
        Channels of the maps.
    form
        "plain", the 1st place's: no biases, ReLU, [average, maximum]. "normed", the 36th's: biases, ReLU6, [maximum,
        average], and a batch norm (momentum 0.01, initial weight 0) in the spatial gate, which is therefore one half
        everywhere at first.
    reduction
        Channels divided by hidden units of the perceptron.
    kernel_size
        Kernel size of the spatial gate's convolution; odd.

    Notes
    -----
    Source: S. Woo et al., "CBAM: Convolutional Block Attention Module", arXiv:1807.06521.
    """

    def __init__(self, channels: int, *, form: str = "plain", reduction: int = 16, kernel_size: int = 7):
        super().__init__()
        if form not in ("plain", "normed"):
            raise OptionError(f"form={form!r}; expected 'plain' (1st place) or 'normed' (36th)")
        if kernel_size % 2 != 1:
            raise OptionError(
                f"kernel_size={kernel_size}; expected an odd number, such as 7, for a gate as large as the maps"
            )
        self.normed = form == "normed"
        hidden = max(channels // reduction, 1)
        self.channel_gate = nn.Sequential(
            nn.Linear(channels, hidden, bias=self.normed), nn.ReLU6() if self.normed else nn.ReLU(),
            nn.Linear(hidden, channels, bias=self.normed),
        )
        self.spatial_gate = nn.Sequential(nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False))
        if self.normed:
            norm = nn.BatchNorm2d(1, momentum=0.01)
            nn.init.zeros_(norm.weight)
            self.spatial_gate.append(norm)

    def forward(self, x: Tensor) -> Tensor:
        """Return the weighted maps (batch, c, mels, frames)."""
        by_channel = self.channel_gate(x.mean(dim=(2, 3))) + self.channel_gate(x.amax(dim=(2, 3)))
        x = x * by_channel.sigmoid()[:, :, None, None]
        pooled = [x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)]
        return x * self.spatial_gate(torch.cat(pooled[::-1] if self.normed else pooled, dim=1)).sigmoid()


class GRUPool(nn.Module):
    """Final states of a bidirectional GRU: (batch, c, mels, frames) or (batch, c, frames) to (batch, 2 hidden).

    The average over mels is taken first, and channels are layer-normed: the 3rd place's aggregation.
    """

    def __init__(self, channels: int, hidden: int = 128):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.gru = nn.GRU(channels, hidden, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 2 hidden)."""
        frames = (x.mean(dim=2) if x.ndim == 4 else x).transpose(1, 2)
        _, last = self.gru(self.norm(frames))
        return last.transpose(0, 1).flatten(1)


class AttentionPool(nn.Module):
    """Weighted mean over time of gated frames: (batch, features, frames) to (batch, features).

    Context gating multiplies each feature by a sigmoid of a linear map of all features of its frame. The weights are a
    softmax over time of a linear map of the frames before gating, one number a frame.

    Parameters
    ----------
    features
        Features of a frame.
    gated
        True for context gating.

    Notes
    -----
    Source: A. Miech et al., "Learnable pooling with Context Gating for video classification", arXiv:1706.06905; own
    code.
    """

    def __init__(self, features: int, *, gated: bool = True):
        super().__init__()
        self.gate = nn.Linear(features, features) if gated else None
        self.attention = nn.Linear(features, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, features)."""
        frames = x.transpose(1, 2)
        weights = self.attention(frames).softmax(dim=1)
        gated = frames if self.gate is None else frames * self.gate(frames).sigmoid()
        return (weights * gated).sum(dim=1)


class TagAttentionPool(nn.Module):
    """Attention over time for each tag, straight to logits: (batch, features, frames) to (batch, tags).

    The probability of a tag is the mean of its probabilities in the frames, weighted by a softmax over time of a linear
    map of the frames, clamped to [-10, 10]. Its logit is returned, computed from logarithms throughout.

    Notes
    -----
    Source: the attention block of PANNs, arXiv:1912.10211, without its batch norm, which is unused there; own code.
    """

    def __init__(self, features: int, n_tags: int):
        super().__init__()
        self.att = nn.Conv1d(features, n_tags, 1)
        self.cla = nn.Conv1d(features, n_tags, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, tags)."""
        log_weights = self.att(x).clamp(-10, 10).log_softmax(dim=2)
        logits = self.cla(x)
        present, absent = ((log_weights + F.logsigmoid(sign * logits)).logsumexp(dim=2) for sign in (1, -1))
        return present - absent


class MultiSampleDropout(nn.Module):
    """A linear layer whose outputs are averaged over several dropout masks in training; plain in evaluation.

    Parameters
    ----------
    in_features, out_features
        As in `nn.Linear`.
    samples
        Number of masks; the 9th place tried 16.
    p
        Probability that a mask drops a feature.

    Notes
    -----
    Source: H. Inoue, "Multi-Sample Dropout for Accelerated Training and Better Generalization", arXiv:1905.09788.
    """

    def __init__(self, in_features: int, out_features: int, *, samples: int = 16, p: float = 0.1):
        super().__init__()
        if samples < 1:
            raise OptionError(f"samples={samples}; expected at least 1 dropout mask")
        self.samples, self.p = samples, p
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, out_features) of (batch, in_features)."""
        if not self.training:
            return self.linear(x)
        # The mean over masks commutes with the linear map: one matrix product is enough for all masks.
        masks = F.dropout(torch.ones(self.samples, *x.shape, dtype=x.dtype, device=x.device), self.p)
        return self.linear(x * masks.mean(0))

    def extra_repr(self) -> str:
        """Return the options shown in the representation."""
        return f"samples={self.samples}, p={self.p}"


def bn_head(features: int, hidden: int, n_tags: int, *, dropout_samples: int = 0) -> nn.Sequential:
    """Return the head of the 9th place: batch norm, linear, PReLU with one slope, batch norm, linear.

    With `dropout_samples` above 0 the last layer is a `MultiSampleDropout` (p 0.1) with that many masks.
    """
    last = MultiSampleDropout(hidden, n_tags, samples=dropout_samples) if dropout_samples else nn.Linear(hidden, n_tags)
    return nn.Sequential(
        nn.BatchNorm1d(features), nn.Linear(features, hidden), nn.PReLU(), nn.BatchNorm1d(hidden), last
    )


def prior_linear(features: int, n_tags: int) -> nn.Linear:
    """Return a linear layer whose initial probability of each tag is 1 / `n_tags`.

    Weights are drawn from N(0, 0.01), biases are -ln(n_tags - 1): the 36th place's, after focal loss
    (arXiv:1708.02002).
    """
    linear = nn.Linear(features, n_tags)
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.constant_(linear.bias, -math.log(max(n_tags - 1, 1)))
    return linear


def match_layout(maps: Tensor, other: Tensor) -> Tensor:
    """Return `maps` in the precision and memory layout of `other`, so that `torch.cat` makes no further copy.

    Both have shape (batch, channels, mels, frames). Within autocast a network's input is still float32, and of one
    channel, for which both layouts are the same bytes: with such maps `torch.cat` would make a float32 map in the
    contiguous layout, which the next convolution copies twice.
    """
    maps = maps.to(other.dtype)
    if other.is_contiguous() or not other.is_contiguous(memory_format=torch.channels_last):
        return maps
    maps = maps.contiguous(memory_format=torch.channels_last)
    n, channels, height, width = maps.shape
    return maps.as_strided((n, channels, height, width), (channels * height * width, 1, channels * width, channels))


def scale_channels(channels: int, width: float) -> int:
    """Return `channels` times `width`, rounded to a multiple of 8 and at least 8; unchanged at width 1.

    Raises
    ------
    OptionError
        If `width` is not above 0.

    Examples
    --------
    >>> scale_channels(64, 0.5), scale_channels(64, 0.01), scale_channels(337, 1.0)
    (32, 8, 337)
    """
    if not width > 0:
        raise OptionError(f"width={width!r}; expected a factor above 0, such as 0.5")
    return channels if width == 1 else max(8, 8 * round(channels * width / 8))


def init_kaiming(module: nn.Module, *, mode: Literal["fan_in", "fan_out"] = "fan_in") -> None:
    """Initialize every 2-D convolution inside `module` with Kaiming-normal weights and zero biases."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode=mode, nonlinearity="relu")
            if m.bias is not None:
                nn.init.zeros_(m.bias)


def publish_body_as_features(model: nn.Module) -> None:
    """Name the submodule `body` "features" in the state of a model, as published files do.

    Every model has a method `features`, so that the submodule cannot have the name itself.
    """
    model.register_state_dict_post_hook(_to_published)
    model.register_load_state_dict_pre_hook(_from_published)


def _to_published(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    _rename(state, f"{prefix}body.", f"{prefix}features.")


def _from_published(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    _rename(state, f"{prefix}features.", f"{prefix}body.")


def _rename(state: dict[str, Any], old: str, new: str) -> None:
    for key in [key for key in state if key.startswith(old)]:
        state[new + key.removeprefix(old)] = state.pop(key)
