"""Where a network looks, and what its first layer looks for.

Grad-CAM (R. Selvaraju et al., arXiv:1610.02391; own code): the last maps of the convolutions, each weighted by how much the tag's logit
grows with it on average over its places, summed, and what speaks against the tag left out. It is as coarse as the maps, and drawn out
evenly between their places. It tells what the last maps contribute; a network that also reads earlier levels sees more than it shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fatai.errors import OptionError, ShapeError
from fatai.models.panns import PannsModel
from fatai.models.base import SpectrogramModel
from fatai.models.multi_task import TwoHeads

__all__ = ["filter_mosaic", "first_filters", "grad_cam"]


def grad_cam(model: nn.Module, spec: Tensor, tag: int | Sequence[int]) -> Tensor:
    """Where in each spectrogram a network finds a tag.

    Parameters
    ----------
    model
        Maps a spec to logits (batch, tags); it is run as in evaluation and left as it was.
    spec
        Shape (batch, channels, mels, frames), on the model's device.
    tag
        Column of the tag, one for all clips or one for each.

    Returns
    -------
    Float32 (batch, mels, frames) within [0, 1], on the device of `spec`: 1 at the place that speaks for the tag most, 0 where nothing
    does. All 0 where the maps don't speak for it anywhere. Networks that convolve over time alone say no frequency: all mels are alike.

    Raises
    ------
    OptionError
        If the network has no maps of convolutions, as transformers have none, or there is no such tag.

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
    >>> grad_cam(net, torch.tensor([[[[0.0, 1.0], [-3.0, 4.0]]]]), 0)   # what is below 0 speaks against the tag
    tensor([[[0.0000, 0.2500],
             [0.0000, 1.0000]]])
    """
    if spec.ndim != 4 or 0 in spec.shape:
        raise ShapeError(
            f"got a spectrogram of shape {tuple(spec.shape)}; expected (batch, channels, mels, frames), none of them 0"
        )
    batch, _, mels, frames = spec.shape
    inner = model.model if isinstance(model, TwoHeads) else model
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        # A recurrent layer of cuDNN goes back in training only; frozen weights leave the input to begin from.
        with torch.inference_mode(False), torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
            seen = spec.detach().as_subclass(Tensor).float().clone().requires_grad_()
            maps, logits = _last_maps(model, seen)
            columns = torch.as_tensor(tag, device=logits.device).expand(batch)
            if int(columns.min()) < 0 or int(columns.max()) >= logits.shape[1]:
                raise OptionError(f"tag is {tag}; expected the column of one of {logits.shape[1]} tags, counted from 0")
            slopes, = torch.autograd.grad(logits.gather(1, columns[:, None]).sum(), maps)
    finally:
        for module, training in modes.items():
            module.training = training
    places = tuple(range(2, maps.ndim))
    heat = (slopes.mean(places, keepdim=True) * maps.detach()).sum(1).relu().float()
    if heat.ndim == 2:
        heat = heat[:, None]
    elif isinstance(inner, PannsModel):
        heat = heat.transpose(1, 2)  # whose maps are (frames, mels)
    return _stretched(heat, inner, (mels, frames))


def first_filters(model: nn.Module) -> Tensor:
    """Weights of the first convolution, float32 (filters, input channels, mels, frames), as they lie on a spectrogram.

    Those of a convolution over time alone reach over all mels, which are its input channels. Raises `OptionError` if there is none.
    """
    conv = next((m for m in model.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d))), None)
    if conv is None:
        raise OptionError(f"{type(model).__name__} has no convolution, so there are no filters to show")
    weight = conv.weight.detach().float().cpu().as_subclass(Tensor)
    inner = model.model if isinstance(model, TwoHeads) else model
    if weight.ndim == 4:
        return weight.transpose(2, 3) if isinstance(inner, PannsModel) else weight
    channels = getattr(inner, "in_channels", 1)
    return weight.unflatten(1, (channels, -1)) if weight.shape[1] % channels == 0 else weight[:, None]


def filter_mosaic(filters: Tensor, n: int = 64) -> Tensor:
    """The first `n` filters beside each other, eight in a row or as many as make a square, the first at the top left.

    Parameters
    ----------
    filters
        Shape (filters, channels, mels, frames); the first channel is shown.

    Returns
    -------
    Float32 (rows, columns) within [-1, 1], the lowest row first as in a spectrogram: each filter divided by its own largest weight, with
    a gap of zeros between them.

    Examples
    --------
    >>> filter_mosaic(torch.tensor([1.0, -4.0]).view(2, 1, 1, 1)).tolist()
    [[1.0, 0.0, -1.0]]
    """
    shown = filters[:n, 0]
    across = max(8, math.ceil(len(shown) ** 0.5)) if len(shown) > 8 else len(shown)
    shown = shown / shown.abs().amax((1, 2), keepdim=True).clamp(min=torch.finfo(shown.dtype).tiny)
    down = math.ceil(len(shown) / across)
    padded = F.pad(torch.cat([shown, shown.new_zeros(across * down - len(shown), *shown.shape[1:])]), (0, 1, 0, 1))
    # (down, across, rows, columns): what is on top comes last, as the highest frequency does.
    grid = padded.view(down, across, *padded.shape[1:]).flip(0)
    return grid.permute(0, 2, 1, 3).reshape(down * padded.shape[1], -1)[:-1, :-1]


def _last_maps(model: nn.Module, spec: Tensor) -> tuple[Tensor, Tensor]:
    """The last maps with several places that a part of the network which holds convolutions returns, and the logits."""
    holders = [m for m in model.modules() if any(_looks_around(c) for c in m.modules())]
    found: dict[int, Tensor] = {}

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim in (3, 4) and output.requires_grad and output[0, 0].numel() > 1:
            found[output.ndim] = output

    handles = [m.register_forward_hook(keep) for m in holders]
    try:
        logits = model(spec)
    finally:
        for handle in handles:
            handle.remove()
    # Maps over mels and frames where there are any; what follows them over time alone is the head.
    maps = found.get(4, found.get(3))
    if maps is None:
        raise OptionError(
            f"{_name(model)} has no maps of convolutions; Grad-CAM can only say where a convolutional network looks"
        )
    return maps, logits


def _looks_around(module: nn.Module) -> bool:
    """Whether it is a convolution, and not one that only cuts its input into patches, as transformers begin."""
    if not isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return False
    return not all(step >= size > 1 for step, size in zip(module.stride, module.kernel_size))


def _name(model: nn.Module) -> str:
    built_as = getattr(model, "built_as", None)
    return built_as.arch if built_as else type(model).__name__


def _stretched(heat: Tensor, model: nn.Module, size: tuple[int, int]) -> Tensor:
    """Heat (batch, rows, columns) of the maps, over the mels and frames of the input, each clip's highest 1."""
    seen = size
    if isinstance(model, SpectrogramModel):
        # Small inputs are padded at their ends; nothing of that is shown.
        seen = (max(size[0], model.min_mels), max(size[1], model.min_frames))
    wide = F.interpolate(heat[:, None], seen, mode="bilinear", align_corners=False)[:, 0, :size[0], :size[1]]
    highest = wide.amax((1, 2), keepdim=True)
    return wide / highest.masked_fill(highest <= 0, 1)
