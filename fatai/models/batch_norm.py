"""Fold batch norms into the convolutions and linear layers before them, for faster predictions."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from fatai.models.openvino import OpenVINOModel

__all__ = ["fold_batch_norm"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_MAX_DIFFERENCE = 1e-3  # of the largest output; folding changes the last digits alone


def fold_batch_norm(model: nn.Module, spec: Tensor) -> nn.Module:
    """Return a network with the same outputs in evaluation mode and fewer batch norms.

    Parameters
    ----------
    model
        A network in evaluation mode; it stays as it is, and shares the weights that folding does not change.
    spec
        An example of its input, such as one spectrogram (1, channels, mels, frames). It is computed to find the batch
        norms whose input is the output of a layer, and again to compare the outputs.

    Returns
    -------
    The folded network, or `model` itself where nothing can be folded, OpenVINO runs it, which folds by itself, or the
    output would change by more than 0.001 of its largest value, as where another layer takes the values before a batch
    norm as well.
    """
    if any(isinstance(module, OpenVINOModel) for module in model.modules()):
        return model
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(spec.device.type, enabled=False):
        spec = spec.float().clone()  # not an inference tensor, in whatever mode the caller is
        pairs, expected = _find_pairs(model, spec)
        if not pairs:
            return model
        folded = _fold(model, pairs)
        got = folded(spec)
    close = torch.allclose(got, expected, rtol=0, atol=_MAX_DIFFERENCE * (1e-6 + float(expected.abs().max())))
    return folded if close else model


def _find_pairs(model: nn.Module, spec: Tensor) -> tuple[list[tuple[str, str]], Tensor]:
    """Return the names of layers and of the batch norms that take their output, and the output of the network."""
    names = {module: name for name, module in model.named_modules()}
    made: dict[int, tuple[nn.Module, Tensor]] = {}  # with the tensor, so that no other gets its id
    calls: Counter[nn.Module] = Counter()
    pairs: list[tuple[nn.Module, nn.Module]] = []

    def after_layer(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        calls[layer] += 1
        made[id(output)] = layer, output

    def before_norm(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[norm] += 1
        if id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])][0], norm))

    hooks = [
        *(m.register_forward_hook(after_layer) for m in names if type(m) in (*_CONVOLUTIONS, nn.Linear)),
        *(m.register_forward_pre_hook(before_norm) for m in names if type(m) in _NORMS and m.track_running_stats),
    ]
    try:
        output = model(spec)
    finally:
        for hook in hooks:
            hook.remove()
    once = [pair for pair in pairs if calls[pair[0]] == calls[pair[1]] == 1]
    return [(names[layer], names[norm]) for layer, norm in once], output


def _fold(model: nn.Module, pairs: list[tuple[str, str]]) -> nn.Module:
    """Return a copy of a network with layers that do the work of their batch norms; unchanged tensors are shared."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    folded = copy.deepcopy(model, shared)
    for layer_name, norm_name in pairs:
        layer, norm = folded.get_submodule(layer_name), folded.get_submodule(norm_name)
        fuse: Callable[..., nn.Module] = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        folded.set_submodule(layer_name, fuse(layer, norm))
        folded.set_submodule(norm_name, nn.Identity())
    return folded
