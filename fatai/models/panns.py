"""PANNs, networks trained on AudioSet: their base class, and the plain ones, `cnn6`, `cnn10`, `cnn14`.

Keys and shapes of the state are those of the published files, so `pretrained="Cnn14_mAP=0.431.pth"` loads one. The
front end is not part of the model: published weights need the front end "panns" (32 kHz, 64 mels from 50 to 14,000 Hz,
decibels). `resnet22`, `resnet38` and `resnet54` are in `fatai.models.panns_resnet`, the MobileNets in
`fatai.models.panns_mobilenet`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from fatai.errors import OptionError, ShapeError
from fatai.models.base import SpectrogramModel
from fatai.models.checkpoint import LoadReport, load_checkpoint
from fatai.models.layers import AttentionPool, TagAttentionPool, scale_channels
from fatai.models.weights import locate_weights
from fatai.registry import MODELS, did_you_mean

__all__ = ["Cnn6", "Cnn10", "Cnn14", "PannsBlock", "PannsModel", "SOURCE"]

SOURCE = "PANNs, arXiv:1912.10211, https://github.com/qiuqiangkong/audioset_tagging_cnn (MIT); own code"

# Kinds of heads, and the modules of each that are newly initialized for other tags.
HEADS = {
    "published": ("fc_audioset",),
    "attention": ("attention_pool", "fc_audioset"),
    "tag_attention": ("att_block",),
}
# Published files hold the front end as weights too; and the file of one network may be loaded into a model with another
# head.
_IGNORED = ("spectrogram_extractor.", "logmel_extractor.", "fc_audioset.", "att_block.", "attention_pool.")


class PannsModel(SpectrogramModel):
    """Batch norm per mel bin, a body of convolutions, mean over frequency, and a head over time.

    Parameters
    ----------
    width
        Scales the channels of every layer; published weights need 1.
    n_mels
        Mel bins of the input. Published weights were trained on 64; with another number `bn0` is newly initialized.
    head
        "published": maximum plus mean over time, dropout, `fc1`, ReLU, and from these activations, without a second
        dropout, the logits. "attention": context gating and attention over time (see `AttentionPool`) instead of `fc1`,
        dropout, logits. "tag_attention": `fc1` for each segment of time, then attention for each tag (see
        `TagAttentionPool`), as in the published decision-level networks.
    pretrained
        True or the name of published weights, see `fatai.models.weights`; or the path of a file of them, or of a model
        of this class. The classifier is loaded if it has `n_tags` tags and is newly initialized otherwise. With several
        input channels a network for one channel is loaded into the first, and the others have no influence at first.

    Attributes
    ----------
    halvings
        Number of times that the body halves frames and mels.
    embedding
        Outputs of `fc1` at width 1; `embed` returns them, after the ReLU.
    row_dropout
        Dropout before `fc1`.
    first_conv
        Key of the weights that are applied to the input channels.
    pretrained
        The `LoadReport` of the weights; None without.

    Raises
    ------
    OptionError
        If `head` is unknown, or `n_mels` too small for the halvings.
    CheckpointError
        If `pretrained` does not fit.

    Notes
    -----
    The published networks mask stripes of the input in training, after `bn0`; here that is an augmentation, before it.
    """

    halvings: ClassVar[int] = 5
    embedding: ClassVar[int] = 2048
    row_dropout: ClassVar[float] = 0.5
    first_conv: ClassVar[str] = "conv_block1.conv1.weight"

    def __init__(
        self, n_tags: int, in_channels: int = 1, *, width: float = 1.0, n_mels: int = 64, head: str = "published",
        pretrained: bool | str | os.PathLike[str] | None = None,
    ):
        super().__init__(n_tags, in_channels)
        self.min_frames = 2**self.halvings
        if head not in HEADS:
            raise OptionError(f"head={head!r}; {did_you_mean(head, list(HEADS))}")
        if n_mels < self.min_frames:
            raise OptionError(
                f"n_mels={n_mels}; expected at least {self.min_frames}: "
                f"{type(self).__name__} halves them {self.halvings} times"
            )
        self.n_mels = self.min_mels = n_mels
        self.head = head
        self.head_names = HEADS[head]
        # Channels differ in scale (a log-mel and its slope), so each has its own statistics for each bin.
        self.bn0 = nn.BatchNorm2d(in_channels * n_mels)
        self._add_head(self.add_body(width), scale_channels(self.embedding, width))
        for m in self.modules():
            if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(m.weight)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)
        self.pretrained = self._load(locate_weights(type(self).__name__.lower(), pretrained)) if pretrained else None

    def _add_head(self, channels: int, hidden: int) -> None:
        if self.head == "attention":
            self.attention_pool = AttentionPool(channels)
            self.fc_audioset = nn.Linear(channels, self.n_tags)
        else:
            self.fc1 = nn.Linear(channels, hidden)
            if self.head == "published":
                self.fc_audioset = nn.Linear(hidden, self.n_tags)
            else:
                self.att_block = TagAttentionPool(hidden, self.n_tags)

    def _load(self, path: str | os.PathLike[str]) -> LoadReport:
        reinit = [f"{name}." for name in self.head_names] + ["bn0."] * (self.n_mels != 64)
        ignore = [*_IGNORED, *["fc1."] * (self.head == "attention")]
        return load_checkpoint(self, path, reinit=reinit, ignore=ignore, first_channel=("bn0.", self.first_conv))

    def add_body(self, width: float) -> int:
        """Add the modules of the body and return the number of channels of its maps."""
        raise NotImplementedError

    def maps(self, x: Tensor) -> Tensor:
        """Return maps (batch, channels, frames, mels) of a normalized input of that shape, halved `halvings` times."""
        raise NotImplementedError

    def prepare_input(self, spec: Tensor) -> Tensor:
        """Check and pad spectrograms (batch, channels, mels, frames); each mel bin has its own batch norm.

        Raises
        ------
        ShapeError
            As for every model; and if the number of mel bins is not `n_mels`, or a single clip in training is so small
            that a batch norm would get one number per channel.
        """
        if spec.ndim == 4 and spec.shape[2] != self.n_mels:
            raise ShapeError(
                f"the input of the model has {spec.shape[2]} mel bins, shape {tuple(spec.shape)}; it was built with "
                f"n_mels={self.n_mels}: take a front end with as many, or build it with the n_mels of yours"
            )
        spec = super().prepare_input(spec)
        if self.training and len(spec) == 1 and max(spec.shape[2:]) < 2 * self.min_frames:
            raise ShapeError(
                f"the input of the model is one clip, shape {tuple(spec.shape)}, halved to one number per channel; "
                f"batch norm needs several in training: take more clips and a bs above 1, or give it at least "
                f"{2 * self.min_frames} frames"
            )
        return spec

    def embed(self, spec: Tensor) -> Tensor:
        """Return features (batch, features) of spectrograms (batch, channels, mels, frames), averaged over segments."""
        features = super().embed(spec)
        return features.mean(dim=2) if features.ndim == 3 else features

    def features(self, spec: Tensor) -> Tensor:
        """Return features (batch, features), with `head="tag_attention"` (batch, features, segments)."""
        batch, channels, mels, frames = spec.shape
        x = self.bn0(spec.reshape(batch, channels * mels, frames, 1)).view(spec.shape)
        rows = self.maps(x.transpose(2, 3)).mean(dim=3)
        if self.head == "attention":
            return self.attention_pool(rows)
        if self.head == "published":
            pooled = F.dropout(rows.amax(dim=2) + rows.mean(dim=2), self.row_dropout, self.training)
            return F.relu(self.fc1(pooled))
        smoothed = F.max_pool1d(rows, 3, stride=1, padding=1) + F.avg_pool1d(rows, 3, stride=1, padding=1)
        segments = F.relu(self.fc1(F.dropout(smoothed, self.row_dropout, self.training).transpose(1, 2)))
        return segments.transpose(1, 2)

    def classify(self, features: Tensor) -> Tensor:
        """Return logits (batch, tags) of features, see `features`."""
        if self.head == "published":
            return self.fc_audioset(features)
        dropped = F.dropout(features, 0.5, self.training)
        return self.fc_audioset(dropped) if self.head == "attention" else self.att_block(dropped)


class PannsBlock(nn.Module):
    """Convolutions with batch norm and ReLU, averages over squares of `pool` by `pool`, dropout of 0.2.

    Parameters
    ----------
    kernel
        3 for two convolutions of 3x3, 5 for one of 5x5.
    pool
        1 for maps that keep their size.
    """

    def __init__(self, in_channels: int, out_channels: int, *, kernel: int = 3, pool: int = 2):
        super().__init__()
        self.pool = pool
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.two_convs = kernel == 3
        if self.two_convs:
            self.conv2 = nn.Conv2d(out_channels, out_channels, kernel, padding=kernel // 2, bias=False)
            self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps (batch, out_channels, frames, mels), smaller by `pool`."""
        x = F.relu(self.bn1(self.conv1(x)))
        if self.two_convs:
            x = F.relu(self.bn2(self.conv2(x)))
        return F.dropout(F.avg_pool2d(x, self.pool) if self.pool > 1 else x, 0.2, self.training)


class _Cnn(PannsModel):
    """Consecutive blocks with `channels`; those after the first `halvings` keep the size of the maps."""

    channels: ClassVar[Sequence[int]]
    kernel: ClassVar[int] = 3

    def add_body(self, width: float) -> int:
        """Add the blocks."""
        n_in = self.in_channels
        for k, channels in enumerate(self.channels, 1):
            n_out = scale_channels(channels, width)
            self.add_module(
                f"conv_block{k}", PannsBlock(n_in, n_out, kernel=self.kernel, pool=2 if k <= self.halvings else 1)
            )
            n_in = n_out
        return n_in

    def maps(self, x: Tensor) -> Tensor:
        """Return maps (batch, channels, frames, mels)."""
        for k in range(1, len(self.channels) + 1):
            x = self.get_submodule(f"conv_block{k}")(x)
        return x


@MODELS.register("cnn6", source=SOURCE)
class Cnn6(_Cnn):
    """Four 5x5 convolutions, 64 to 512; 0.343 mean average precision on AudioSet."""

    channels, kernel, halvings, embedding = (64, 128, 256, 512), 5, 4, 512


@MODELS.register("cnn10", source=SOURCE)
class Cnn10(_Cnn):
    """Four double 3x3 convolutions, 64 to 512; 0.380 mean average precision on AudioSet."""

    channels, halvings, embedding = (64, 128, 256, 512), 4, 512


@MODELS.register("cnn14", source=SOURCE)
class Cnn14(_Cnn):
    """Six double 3x3 convolutions, 64 to 2048; 0.431 mean average precision on AudioSet."""

    channels = (64, 128, 256, 512, 1024, 2048)
