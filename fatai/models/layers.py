"""Blocks, pooling and heads that several model families share.

Conventions: a *spec* is (batch, channels, mels, frames); a *map* is what convolutions make of it, of the same four
dimensions; *features* are (batch, features), one row per clip; *logits* are (batch, tags), before the sigmoid.
Nothing here needs anything but torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fatai.errors import OptionError, ShapeError

__all__ = [
    "AttentionPool",
    "BuiltAs",
    "CBAM",
    "ConcatPool",
    "GRUPool",
    "MultiSampleDropout",
    "SpectrogramModel",
    "TagAttentionPool",
    "bn_head",
    "count_parameters",
    "in_float32",
    "kaiming_convs",
    "laid_out_like",
    "prior_linear",
    "scaled",
]


class BuiltAs(NamedTuple):
    """The name and the options that `create_model` built a network with."""

    arch: str
    options: dict[str, Any]


class SpectrogramModel(nn.Module):
    """What every fatai model is: spectrograms in, logits out, with an embedding between.

    A subclass sets `min_mels` and `min_frames` and writes `features` (maps to one row per clip) and `classify` (rows to
    logits). Inputs that are shorter or narrower than the smallest are padded with copies of their last frame or
    highest bin, which needs no knowledge of what silence is in the units of the spectrogram.

    Parameters
    ----------
    n_tags
        Number of logits.
    in_channels
        Channels of the spectrogram.

    Attributes
    ----------
    min_mels, min_frames : the smallest input that is used as it is.
    n_mels : number of mel bins that the model is tied to, None when any number will do.
    head_names : submodules that belong to the head; what is left is the body.
    built_as : what `create_model` was asked for; None of a network that was built otherwise.
    """

    min_mels: int = 1
    min_frames: int = 1
    n_mels: int | None = None
    head_names: tuple[str, ...] = ("head",)
    built_as: BuiltAs | None = None

    def __init__(self, n_tags: int, in_channels: int):
        super().__init__()
        for name, value in (("n_tags", n_tags), ("in_channels", in_channels)):
            if not isinstance(value, int) or value < 1:
                raise OptionError(f"{name}={value!r} is not a number of at least 1")
        self.n_tags, self.in_channels = n_tags, in_channels

    def forward(self, spec: Tensor) -> Tensor:
        """Logits (batch, tags) of spectrograms (batch, channels, mels, frames); in float32 within autocast too."""
        return in_float32(self.classify, self.features(self.prepared(spec)))

    def embed(self, spec: Tensor) -> Tensor:
        """Features (batch, features) of spectrograms (batch, channels, mels, frames): what the head sees."""
        return self.features(self.prepared(spec))

    def features(self, spec: Tensor) -> Tensor:
        """One row per clip from spectrograms of sufficient size."""
        raise NotImplementedError

    def classify(self, features: Tensor) -> Tensor:
        """Logits from features."""
        raise NotImplementedError

    def prepared(self, spec: Tensor) -> Tensor:
        """`spec`, checked, and padded to the smallest size that the model can use.

        Raises
        ------
        ShapeError
            If it is no spectrogram, or has other channels or (where the model is tied to them) other mel bins.
        """
        shape = tuple(spec.shape)
        if spec.ndim != 4 or 0 in shape:
            raise ShapeError(
                f"the model got an input of shape {shape}; expected (batch, channels, mels, frames), none of them 0"
            )
        if shape[1] != self.in_channels:
            raise ShapeError(
                f"the model got {shape[1]} channels in an input of shape {shape}; it was built with in_channels={self.in_channels}: "
                "build it for the channels that your front end makes"
            )
        if self.n_mels is not None and shape[2] > self.n_mels:
            raise ShapeError(
                f"the model got {shape[2]} mel bins in an input of shape {shape}; it was built with n_mels={self.n_mels}"
            )
        if self.training and shape[0] == 1 and any(isinstance(m, nn.BatchNorm1d) for m in self.modules()):
            raise ShapeError(
                f"the model got one clip, shape {shape}; batch norm of its head needs at least 2 in training: raise bs"
            )
        more_mels, more_frames = max(self.min_mels - shape[2], 0), max(self.min_frames - shape[3], 0)
        if more_mels or more_frames:
            return F.pad(spec, (0, more_frames, 0, more_mels), mode="replicate")
        return spec

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Parameters of the body, then of the head: for learning rates that differ, as a fastai splitter returns them."""
        head = {id(p) for name in self.head_names for p in self.get_submodule(name).parameters()}
        return [[p for p in self.parameters() if id(p) not in head], [p for p in self.parameters() if id(p) in head]]


class ConcatPool(nn.Module):
    """Average and maximum over mels and frames, beside each other: maps (batch, c, mels, frames) to (batch, 2 c).

    Parameters
    ----------
    order
        "avg_max" as the 9th place does, or "max_avg" as fastai does.
    """

    def __init__(self, order: str = "avg_max"):
        super().__init__()
        if order not in ("avg_max", "max_avg"):
            raise OptionError(f"order={order!r}; expected 'avg_max' (9th place) or 'max_avg' (fastai)")
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        pooled = [x.mean(dim=(2, 3)), x.amax(dim=(2, 3))]
        return torch.cat(pooled if self.order == "avg_max" else pooled[::-1], dim=1)

    def extra_repr(self) -> str:
        return f"order={self.order!r}"


class CBAM(nn.Module):
    """Convolutional block attention: maps (batch, c, mels, frames) weighted by channel, then by place.

    The channel gate is a two-layer perceptron on the average and on the maximum over places, summed; the spatial gate a
    convolution over average and maximum across channels; a sigmoid ends both.

    Parameters
    ----------
    channels
        Channels of the maps.
    form
        "plain", the 1st place's: no biases, ReLU, [average, maximum]. "normed", the 36th's: biases, ReLU6, [maximum, average], and a
        batch norm (momentum 0.01, weight 0 at first) in the spatial gate, which therefore starts as one half everywhere.
    reduction
        Channels over hidden units of the perceptron.
    kernel_size
        Of the spatial gate's convolution; odd.

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
                f"kernel_size={kernel_size}; expected an odd number, such as 7: the gate must be as large as the maps"
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
        by_channel = self.channel_gate(x.mean(dim=(2, 3))) + self.channel_gate(x.amax(dim=(2, 3)))
        x = x * by_channel.sigmoid()[:, :, None, None]
        pooled = [x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)]
        return x * self.spatial_gate(torch.cat(pooled[::-1] if self.normed else pooled, dim=1)).sigmoid()


class GRUPool(nn.Module):
    """Final states of a bidirectional GRU over frames: maps (batch, c, mels, frames) or (batch, c, frames) to (batch, 2 hidden).

    Mels are averaged first, and channels layer-normed: the 3rd place's aggregation.
    """

    def __init__(self, channels: int, hidden: int = 128):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.gru = nn.GRU(channels, hidden, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        frames = (x.mean(dim=2) if x.ndim == 4 else x).transpose(1, 2)
        _, last = self.gru(self.norm(frames))
        return last.transpose(0, 1).flatten(1)


class AttentionPool(nn.Module):
    """Weighted mean over time of gated frames: (batch, features, frames) to (batch, features).

    Context gating multiplies each feature by a sigmoid of a linear map of all features of its frame. The weights are a softmax over
    time of a linear map of the frames before gating, one number a frame.

    Parameters
    ----------
    features
        Features of a frame.
    gated
        Whether frames are gated.

    Notes
    -----
    Source: A. Miech et al., "Learnable pooling with Context Gating for video classification", arXiv:1706.06905; own code.
    """

    def __init__(self, features: int, *, gated: bool = True):
        super().__init__()
        self.gate = nn.Linear(features, features) if gated else None
        self.attention = nn.Linear(features, 1)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.transpose(1, 2)
        weights = self.attention(frames).softmax(dim=1)
        gated = frames if self.gate is None else frames * self.gate(frames).sigmoid()
        return (weights * gated).sum(dim=1)


class TagAttentionPool(nn.Module):
    """Attention over time for each tag, straight to logits: (batch, features, frames) to (batch, tags).

    The probability of a tag is the mean of its probabilities in the frames, weighted by a softmax over time of a linear map of the frames,
    cut to [-10, 10]. Returned is its logit, computed without leaving the logarithm.

    Notes
    -----
    Source: the attention block of PANNs, arXiv:1912.10211, without its batch norm, which it never used; own code.
    """

    def __init__(self, features: int, n_tags: int):
        super().__init__()
        self.att = nn.Conv1d(features, n_tags, 1)
        self.cla = nn.Conv1d(features, n_tags, 1)

    def forward(self, x: Tensor) -> Tensor:
        log_weights = self.att(x).clamp(-10, 10).log_softmax(dim=2)
        logits = self.cla(x)
        present, absent = ((log_weights + F.logsigmoid(sign * logits)).logsumexp(dim=2) for sign in (1, -1))
        return present - absent


class MultiSampleDropout(nn.Module):
    """A linear layer whose logits are averaged over several dropout masks in training; at prediction a plain linear layer.

    Parameters
    ----------
    in_features, out_features
        As in `nn.Linear`.
    samples
        Number of masks; the 9th place tried 16.
    p
        Share of features that each mask drops.

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
        if not self.training:
            return self.linear(x)
        # The mean over masks commutes with the linear map: one matrix product does for all masks.
        masks = F.dropout(torch.ones(self.samples, *x.shape, dtype=x.dtype, device=x.device), self.p)
        return self.linear(x * masks.mean(0))

    def extra_repr(self) -> str:
        return f"samples={self.samples}, p={self.p}"


def bn_head(features: int, hidden: int, n_tags: int, *, dropout_samples: int = 0) -> nn.Sequential:
    """Head of the 9th place: batch norm, linear, PReLU with one slope, batch norm, linear.

    With `dropout_samples` the last layer is a `MultiSampleDropout` (p 0.1) of that many masks.
    """
    last = MultiSampleDropout(hidden, n_tags, samples=dropout_samples) if dropout_samples else nn.Linear(hidden, n_tags)
    return nn.Sequential(
        nn.BatchNorm1d(features), nn.Linear(features, hidden), nn.PReLU(), nn.BatchNorm1d(hidden), last
    )


def prior_linear(features: int, n_tags: int) -> nn.Linear:
    """Linear layer that starts from the belief that one tag in `n_tags` is present: weights N(0, 0.01), biases -ln(n_tags - 1).

    The 36th place's, after focal loss (arXiv:1708.02002).
    """
    linear = nn.Linear(features, n_tags)
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.constant_(linear.bias, -math.log(max(n_tags - 1, 1)))
    return linear


def in_float32(head: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
    """What `head` makes of `features`, in float32 within autocast too.

    The head costs nothing, and bfloat16 logits have so few digits that tags would tie.
    """
    device = features.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return head(features)
    with torch.autocast(features.device.type, enabled=False):
        return head(features.float())


def laid_out_like(maps: Tensor, other: Tensor) -> Tensor:
    """`maps` in the precision and memory layout of `other`, so that both can be joined without another pass over either.

    Within autocast a network's input is still float32, and of one channel, where both layouts are the same bytes: beside such maps
    `torch.cat` would make a float32 map in the first layout, which the next convolution copies twice.
    """
    maps = maps.to(other.dtype)
    if other.is_contiguous() or not other.is_contiguous(memory_format=torch.channels_last):
        return maps
    maps = maps.contiguous(memory_format=torch.channels_last)
    n, channels, height, width = maps.shape
    return maps.as_strided((n, channels, height, width), (channels * height * width, 1, channels * width, channels))


def scaled(channels: int, width: float) -> int:
    """`channels` times `width`, to the nearest multiple of 8 and never below 8; unchanged at width 1.

    Examples
    --------
    >>> scaled(64, 0.5), scaled(64, 0.01), scaled(337, 1.0)
    (32, 8, 337)
    """
    if not width > 0:
        raise OptionError(f"width={width!r}; expected a factor above 0, such as 0.5")
    return channels if width == 1 else max(8, 8 * round(channels * width / 8))


def kaiming_convs(module: nn.Module, *, mode: Literal["fan_in", "fan_out"] = "fan_in") -> None:
    """Kaiming-normal weights and zero biases for every 2-D convolution inside `module`."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode=mode, nonlinearity="relu")
            if m.bias is not None:
                nn.init.zeros_(m.bias)


def count_parameters(modules: nn.Module | Sequence[nn.Module], *, trainable: bool = False) -> int:
    """Number of parameters in a module, or in several; only those that train if `trainable`."""
    several = [modules] if isinstance(modules, nn.Module) else modules
    return sum(p.numel() for m in several for p in m.parameters() if p.requires_grad or not trainable)
