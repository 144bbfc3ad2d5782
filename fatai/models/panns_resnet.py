"""The residual networks of PANNs: `resnet22`, `resnet38`, `resnet54`, which halve maps by average pooling."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from fatai.models.layers import scale_channels
from fatai.models.panns import SOURCE, PannsBlock, PannsModel
from fatai.registry import MODELS

__all__ = ["ResNet22", "ResNet38", "ResNet54", "ResidualBlock"]


class ResidualBlock(nn.Module):
    """Convolutions beside a shortcut; dropout of 0.1 before the last convolution.

    The last batch norm starts with weight 0, so that a new block returns its (projected) input.

    Parameters
    ----------
    channels
        Output channels of each convolution.
    kernels
        Their kernel sizes: (3, 3), or (1, 3, 1) for a bottleneck.
    halve
        True to halve the maps by average pooling first.
    """

    def __init__(self, in_channels: int, channels: Sequence[int], kernels: Sequence[int], *, halve: bool = False):
        super().__init__()
        self.halve, self.n_convs = halve, len(kernels)
        sizes = zip([in_channels, *channels[:-1]], channels, kernels, strict=True)
        for k, (n_in, n_out, kernel) in enumerate(sizes, 1):
            self.add_module(f"conv{k}", nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2, bias=False))
            self.add_module(f"bn{k}", last := nn.BatchNorm2d(n_out))
        nn.init.zeros_(last.weight)
        self.downsample: nn.Sequential | None = None
        if halve or in_channels != channels[-1]:
            projection = [nn.Conv2d(in_channels, channels[-1], 1, bias=False), nn.BatchNorm2d(channels[-1])]
            self.downsample = nn.Sequential(*[nn.AvgPool2d(2)] * halve, *projection)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps (batch, channels[-1], frames, mels), halved if `halve`."""
        shortcut = x if self.downsample is None else self.downsample(x)
        if self.halve:
            x = F.avg_pool2d(x, 2)
        for k in range(1, self.n_convs):
            x = F.relu(self.get_submodule(f"bn{k}")(self.get_submodule(f"conv{k}")(x)))
        x = F.dropout(x, 0.1, self.training)
        return F.relu(self.get_submodule(f"bn{self.n_convs}")(self.get_submodule(f"conv{self.n_convs}")(x)) + shortcut)


class _ResNet(PannsModel):
    """A double convolution, four layers of `depths` residual blocks, and a double convolution of 2048 channels."""

    depths: ClassVar[Sequence[int]]
    bottleneck: ClassVar[bool] = False

    def add_body(self, width: float) -> int:
        """Add the blocks."""
        n_in, last = scale_channels(64, width), scale_channels(2048, width)
        self.conv_block1 = PannsBlock(self.in_channels, n_in)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for k, depth in enumerate(self.depths):
            n = scale_channels(64 * 2**k, width)
            channels, kernels = ((n, n, 4 * n), (1, 3, 1)) if self.bottleneck else ((n, n), (3, 3))
            blocks = []
            for i in range(depth):
                blocks.append(ResidualBlock(n_in, channels, kernels, halve=k > 0 and i == 0))
                n_in = channels[-1]
            layers[f"layer{k + 1}"] = nn.Sequential(*blocks)
        self.resnet = nn.Sequential(layers)
        self.conv_block_after1 = PannsBlock(n_in, last, pool=1)
        return last

    def maps(self, x: Tensor) -> Tensor:
        """Return maps (batch, channels, frames, mels)."""
        x = F.avg_pool2d(self.resnet(self.conv_block1(x)), 2)
        return self.conv_block_after1(F.dropout(x, 0.2, self.training))


@MODELS.register("resnet22", source=SOURCE)
class ResNet22(_ResNet):
    """Eight residual blocks of two convolutions; 0.430 mean average precision on AudioSet."""

    depths = (2, 2, 2, 2)


@MODELS.register("resnet38", source=SOURCE)
class ResNet38(_ResNet):
    """Sixteen residual blocks of two convolutions; 0.434 mean average precision on AudioSet."""

    depths = (3, 4, 6, 3)


@MODELS.register("resnet54", source=SOURCE)
class ResNet54(_ResNet):
    """Sixteen residual bottlenecks of three convolutions; 0.429 mean average precision on AudioSet."""

    depths, bottleneck = (3, 4, 6, 3), True
