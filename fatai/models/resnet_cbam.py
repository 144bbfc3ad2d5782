"""The 36th place's residual network with attention inside its blocks.

Its published code calls a convolution that it does not define; here it is a plain 3x3 convolution.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fatai.models.base import SpectrogramModel
from fatai.models.layers import CBAM, init_kaiming, prior_linear, scale_channels
from fatai.registry import MODELS

__all__ = ["AttentionResNet", "resnet18_cbam"]

SOURCE = "36th place of Freesound Audio Tagging 2019, github.com/adam9500370/Kaggle-FAT (no licence file); own code"


class AttentionBlock(nn.Module):
    """Two 3x3 convolutions with batch norm beside a shortcut, ReLU6; CBAM before the sum. Maps shrink by `stride`.

    Parameters
    ----------
    attention
        True for the CBAM. Without it the second batch norm starts with weight 0, so that the block is the shortcut at
        first.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, attention: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.attention: nn.Module = CBAM(out_channels, form="normed") if attention else nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            projection = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return maps (batch, out_channels, mels, frames), smaller by the stride."""
        first = F.relu6(self.bn1(self.conv1(x)))
        return F.relu6(self.attention(self.bn2(self.conv2(first))) + self.shortcut(x))


class AttentionResNet(SpectrogramModel):
    """A three-convolution stem, four stages of two blocks, average over positions, dropout, and a `prior_linear` layer.

    Parameters
    ----------
    attention
        True for a CBAM in each block.
    dropout
        Before the last layer.
    width
        Scales all channels.
    """

    # Five halvings; one more in time, since batch norm in training needs two positions of a single clip.
    min_mels, min_frames = 32, 64

    def __init__(
        self, n_tags: int, in_channels: int = 1, *, attention: bool = True, dropout: float = 0.5, width: float = 1.0
    ):
        super().__init__(n_tags, in_channels)
        half, *stages = (scale_channels(c, width) for c in (32, 64, 128, 256, 512))
        stem: list[nn.Module] = []
        for i, o, stride in ((in_channels, half, 2), (half, half, 1), (half, stages[0], 1)):
            stem += [nn.Conv2d(i, o, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU6()]
        blocks: list[nn.Module] = []
        for i, o, stride in zip([stages[0], *stages[:-1]], stages, (1, 2, 2, 2), strict=True):
            blocks += [
                AttentionBlock(i, o, stride=stride, attention=attention),
                AttentionBlock(o, o, stride=1, attention=attention),
            ]
        self.body = nn.Sequential(*stem, nn.MaxPool2d(3, stride=2, padding=1), *blocks)
        self.head = nn.Sequential(nn.Dropout(dropout), prior_linear(stages[-1], n_tags))
        self._init_weights(attention)

    def _init_weights(self, attention: bool) -> None:
        init_kaiming(self.body, mode="fan_out")
        for m in self.body.modules():
            if isinstance(m, AttentionBlock) and not attention:
                nn.init.zeros_(m.bn2.weight)
            elif isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, std=0.01)
                nn.init.zeros_(m.bias)

    def features(self, spec: Tensor) -> Tensor:
        """Return features (batch, features) of spectrograms (batch, channels, mels, frames)."""
        return self.body(spec).mean(dim=(2, 3))

    def classify(self, features: Tensor) -> Tensor:
        """Return logits (batch, tags) of features (batch, features)."""
        return self.head(features)


@MODELS.register("resnet18_cbam", source=SOURCE)
def resnet18_cbam(
    n_tags: int, in_channels: int = 1, *, attention: bool = True, dropout: float = 0.5, width: float = 1.0
) -> AttentionResNet:
    """Build ResNet-18 with a deep stem, ReLU6 and CBAM in every block: the 36th place's."""
    return AttentionResNet(n_tags, in_channels, attention=attention, dropout=dropout, width=width)
