"""ResNets from scratch with fastai's head.

The public kernel "CNN 2D Basic Solution Powered by fast.ai" trained `resnet18`, without pretraining, on three equal
channels. The bodies are torchvision's and fastai's, cut and headed by fastai's own functions; fastai is imported
when a model is built.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fatai.errors import OptionError
from fatai.models.base import SpectrogramModel
from fatai.models.layers import scale_channels
from fatai.registry import MODELS

__all__ = ["FastaiNet", "RESNETS", "XRESNETS", "resnet_body"]

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
XRESNETS = (
    "xresnet18",
    "xresnet34",
    "xresnet50",
    "xresnet101",
    "xresnet152",
    "xresnet18_deep",
    "xresnet34_deep",
    "xresnet50_deep",
    "xresnet18_deeper",
    "xresnet34_deeper",
    "xresnet50_deeper",
)
SOURCE = "kernel 'CNN 2D Basic Solution Powered by fast.ai'; fastai (Apache-2.0) and torchvision (BSD-3-Clause)"


def resnet_body(arch: str, in_channels: int, width: float = 1.0) -> tuple[nn.Sequential, int]:
    """Return a torchvision ResNet without weights, pooling and last layer, and the number of channels of its maps.

    Parameters
    ----------
    arch
        One of `RESNETS`.
    in_channels
        Channels of the input (batch, in_channels, mels, frames).
    width
        Scales the four stages; the stem keeps its 64 channels.
    """
    import torchvision.models.resnet as torchvision_resnet
    from fastai.vision.learner import create_body

    block, layers = {
        "resnet18": (torchvision_resnet.BasicBlock, [2, 2, 2, 2]),
        "resnet34": (torchvision_resnet.BasicBlock, [3, 4, 6, 3]),
        "resnet50": (torchvision_resnet.Bottleneck, [3, 4, 6, 3]),
        "resnet101": (torchvision_resnet.Bottleneck, [3, 4, 23, 3]),
        "resnet152": (torchvision_resnet.Bottleneck, [3, 8, 36, 3]),
    }[arch]

    class ScaledResNet(torchvision_resnet.ResNet):
        def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
            return super()._make_layer(block, scale_channels(planes, width), *args, **kwargs)

    resnet = ScaledResNet(block, layers)  # type: ignore[arg-type]
    return create_body(resnet, n_in=in_channels, pretrained=False, cut=-2), resnet.inplanes


def xresnet_body(arch: str, in_channels: int, width: float = 1.0) -> tuple[nn.Sequential, int]:
    """Return a fastai XResNet of `XRESNETS` and the number of channels of its maps, as `resnet_body` does."""
    from fastai.vision.learner import create_body
    from fastai.vision.models import xresnet

    if not width > 0:
        raise OptionError(f"width={width!r}; expected a factor above 0, such as 0.5")
    net = getattr(xresnet, arch)(pretrained=False, c_in=in_channels, widen=width)
    # Its input channels are right already: create_body does not change the first layer for three.
    return create_body(net, n_in=3, pretrained=False, cut=-4), net[-1].in_features


class FastaiNet(SpectrogramModel):
    """A body with fastai's head: maximum and average over positions, then two layers with batch norm and dropout.

    Parameters
    ----------
    body
        Maps spectrograms (batch, in_channels, mels, frames) to maps of `n_features` channels.
    n_features
        Channels of the last maps.
    split
        Number of children of the body that form the first of three layer groups; the rest is the second, the head the
        third.
    dropout
        Before the last layer of the head; half of it before the 512 units.
    """

    # One position of the last map.
    min_mels = min_frames = 32

    def __init__(
        self, n_tags: int, in_channels: int, *, body: nn.Sequential, n_features: int, split: int, dropout: float = 0.5
    ):
        from fastai.torch_core import apply_init
        from fastai.vision.learner import create_head

        super().__init__(n_tags, in_channels)
        head = create_head(n_features, n_tags, ps=dropout)
        apply_init(head, nn.init.kaiming_normal_)
        self.body, self.pool, self.head = body, head[:2], head[2:]
        self.split = split

    def features(self, spec: Tensor) -> Tensor:
        """Return features (batch, features) of spectrograms (batch, channels, mels, frames)."""
        return self.pool(self.body(spec))

    def classify(self, features: Tensor) -> Tensor:
        """Return logits (batch, tags) of features (batch, features)."""
        return self.head(features)

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the body's first stages, of the others, and of the head: fastai's three groups."""
        return [list(part.parameters()) for part in (self.body[:self.split], self.body[self.split:], self.head)]


def _register(arch: str) -> None:
    make_body, split = (xresnet_body, 3) if arch in XRESNETS else (resnet_body, 6)

    def build(n_tags: int, in_channels: int = 1, *, width: float = 1.0, dropout: float = 0.5) -> FastaiNet:
        body, n_features = make_body(arch, in_channels, width)
        return FastaiNet(n_tags, in_channels, body=body, n_features=n_features, split=split, dropout=dropout)

    library = "fastai" if arch in XRESNETS else "torchvision"
    build.__doc__ = f"Build {arch} of {library} without pretrained weights, with fastai's head."
    build.__qualname__ = build.__name__ = arch
    MODELS.register(arch, source=SOURCE)(build)


for _arch in (*RESNETS, *XRESNETS):
    _register(_arch)
