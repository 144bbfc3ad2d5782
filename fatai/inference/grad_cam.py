"""Grad-CAM, and the filters of the first convolution.

Grad-CAM (R. Selvaraju et al., arXiv:1610.02391; own code): the last feature maps of the convolutions, each weighted by
the mean gradient of the tag's logit with respect to it, summed, and negative values set to 0. The heatmap is as coarse
as the maps, and interpolated between their positions. It shows the contribution of the last maps; a network that also
reads earlier levels uses more than it shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fatai.errors import OptionError, ShapeError
from fatai.models.base import SpectrogramModel
from fatai.models.multi_task import TwoHeadModel
from fatai.models.panns import PannsModel

__all__ = ["filter_mosaic", "first_filters", "grad_cam"]


def grad_cam(model: nn.Module, spec: Tensor, tag: int | Sequence[int]) -> Tensor:
    """Compute the evidence for a tag over each spectrogram.

    Parameters
    ----------
    model
        Maps a spectrogram to logits (batch, tags); it is run in evaluation mode and left as it was.
    spec
        Shape (batch, channels, mels, frames), on the model's device.
    tag
        Column of the tag, one for all clips or one for each.

    Returns
    -------
    Float32 (batch, mels, frames) within [0, 1], on the device of `spec`: 1 where the evidence for the tag is strongest,
    0 where there is none; all 0 for a clip without any. For networks that convolve over time alone, all mels of a frame
    are alike.

    Raises
    ------
    ShapeError
        If `spec` does not have four dimensions, or is empty.
    OptionError
        If the network has no feature maps of convolutions, as transformers, or there is no such tag.

    Examples
    --------
    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.conv = nn.Conv2d(1, 1, 1, bias=False)
    ...     def forward(self, spec):
    ...         return self.conv(spec).mean((2, 3))
    >>> net = Net()
    >>> _ = nn.init.ones_(net.conv.weight)
    >>> grad_cam(net, torch.tensor([[[[0.0, 1.0], [-3.0, 4.0]]]]), 0)   # values below 0 are evidence against the tag
    tensor([[[0.0000, 0.2500],
             [0.0000, 1.0000]]])
    """
    if spec.ndim != 4 or 0 in spec.shape:
        raise ShapeError(
            f"spec has shape {tuple(spec.shape)}; expected (batch, channels, mels, frames), none of them 0"
        )
    inner = model.model if isinstance(model, TwoHeadModel) else model
    with _evaluating(model):
        # Frozen weights have no gradients: the input is what the graph starts from.
        maps, logits = _last_maps(model, spec.detach().as_subclass(Tensor).float().clone().requires_grad_())
        gradients, = torch.autograd.grad(_tag_logits(logits, tag).sum(), maps)
    positions = tuple(range(2, maps.ndim))
    heat = (gradients.mean(positions, keepdim=True) * maps.detach()).sum(1).relu().float()
    if heat.ndim == 2:
        heat = heat[:, None]
    elif isinstance(inner, PannsModel):
        heat = heat.transpose(1, 2)  # their maps are (frames, mels)
    return _resize(heat, inner, (spec.shape[2], spec.shape[3]))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode with gradients; afterwards every module is returned to its own mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        # Without cuDNN, whose recurrent layers compute gradients in training mode only.
        with torch.inference_mode(False), torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def _tag_logits(logits: Tensor, tag: int | Sequence[int]) -> Tensor:
    """Return the logits (batch, 1) of one tag for all clips, or of one tag each, from logits (batch, tags)."""
    columns = torch.as_tensor(tag, device=logits.device).expand(len(logits))
    if int(columns.min()) < 0 or int(columns.max()) >= logits.shape[1]:
        raise OptionError(f"tag is {tag}; expected the column of one of {logits.shape[1]} tags, counted from 0")
    return logits.gather(1, columns[:, None])


def first_filters(model: nn.Module) -> Tensor:
    """Return the weights of the first convolution, oriented as a spectrogram.

    Returns
    -------
    Float32 (filters, input channels, mels, frames), on the CPU. The filters of a convolution over time alone span all
    mels, which are its input channels.

    Raises
    ------
    OptionError
        If the network has no convolution.
    """
    conv = next((m for m in model.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d))), None)
    if conv is None:
        raise OptionError(f"{type(model).__name__} has no convolution; expected a convolutional network")
    weight = conv.weight.detach().float().cpu().as_subclass(Tensor)
    inner = model.model if isinstance(model, TwoHeadModel) else model
    if weight.ndim == 4:
        return weight.transpose(2, 3) if isinstance(inner, PannsModel) else weight
    channels = inner.in_channels if isinstance(inner, SpectrogramModel) else 1
    return weight.unflatten(1, (channels, -1)) if weight.shape[1] % channels == 0 else weight[:, None]


def filter_mosaic(filters: Tensor, n: int = 64) -> Tensor:
    """Arrange the first `n` filters in a grid: eight per row, or as many as make a square, the first at the top left.

    Parameters
    ----------
    filters
        Shape (filters, channels, mels, frames); the first channel is shown.
    n
        Filters shown at most.

    Returns
    -------
    Float32 (rows, columns) within [-1, 1], the lowest row first as in a spectrogram: each filter divided by its largest
    absolute weight, with a gap of zeros between them.

    Examples
    --------
    >>> filter_mosaic(torch.tensor([1.0, -4.0]).view(2, 1, 1, 1)).tolist()
    [[1.0, 0.0, -1.0]]
    """
    shown = filters[:n, 0]
    per_row = max(8, math.ceil(len(shown) ** 0.5)) if len(shown) > 8 else len(shown)
    shown = shown / shown.abs().amax((1, 2), keepdim=True).clamp(min=torch.finfo(shown.dtype).tiny)
    rows = math.ceil(len(shown) / per_row)
    padded = F.pad(torch.cat([shown, shown.new_zeros(per_row * rows - len(shown), *shown.shape[1:])]), (0, 1, 0, 1))
    # (rows, per row, mels, frames): the top row comes last, as the highest frequency does.
    grid = padded.view(rows, per_row, *padded.shape[1:]).flip(0)
    return grid.permute(0, 2, 1, 3).reshape(rows * padded.shape[1], -1)[:-1, :-1]


def _last_maps(model: nn.Module, spec: Tensor) -> tuple[Tensor, Tensor]:
    """Return the last feature maps that a module with convolutions outputs, and the logits (batch, tags).

    Maps are (batch, channels, rows, columns) or (batch, channels, frames), with more than one position.
    """
    holders = [m for m in model.modules() if any(_is_overlapping_conv(c) for c in m.modules())]
    found: dict[int, Tensor] = {}

    def store(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim in (3, 4) and output.requires_grad and output[0, 0].numel() > 1:
            found[output.ndim] = output

    handles = [m.register_forward_hook(store) for m in holders]
    try:
        logits = model(spec)
    finally:
        for handle in handles:
            handle.remove()
    # Maps over mels and frames where there are any; maps over time alone after them belong to the head.
    maps = found.get(4, found.get(3))
    if maps is None:
        raise OptionError(f"{_name(model)} has no feature maps of convolutions; Grad-CAM needs a convolutional network")
    return maps, logits


def _is_overlapping_conv(module: nn.Module) -> bool:
    """Return whether a module is a convolution, other than one that cuts its input into patches as in transformers."""
    if not isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return False
    return not all(step >= size > 1 for step, size in zip(module.stride, module.kernel_size, strict=True))


def _name(model: nn.Module) -> str:
    if isinstance(model, SpectrogramModel) and model.built_as is not None:
        return model.built_as.arch
    return type(model).__name__


def _resize(heat: Tensor, model: nn.Module, size: tuple[int, int]) -> Tensor:
    """Interpolate heatmaps (batch, rows, columns) to (batch, mels, frames) and scale each to a maximum of 1."""
    padded = size
    if isinstance(model, SpectrogramModel):
        # Small inputs are padded at their ends; the padding is not shown.
        padded = (max(size[0], model.min_mels), max(size[1], model.min_frames))
    wide = F.interpolate(heat[:, None], padded, mode="bilinear", align_corners=False)[:, 0, :size[0], :size[1]]
    highest = wide.amax((1, 2), keepdim=True)
    return wide / highest.masked_fill(highest <= 0, 1)
