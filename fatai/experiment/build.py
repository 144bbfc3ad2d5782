"""Build the network of a recipe for the tags and input channels of a data set."""

from __future__ import annotations

import torch
from torch import nn

from fatai.audio.front_ends import FrontEnd
from fatai.experiment.recipe import Recipe
from fatai.models import count_parameters
from fatai.models.multi_task import TwoHeadModel
from fatai.training.learner import named_model

__all__ = ["recipe_parameters"]

_TWO_HEADS = "fourth_place_second_head"


def has_two_heads(recipe: Recipe) -> bool:
    """Return True if a stage trains noisy labels with a second head."""
    return any(stage.noisy_labels is not None and stage.noisy_labels["method"] == _TWO_HEADS for stage in recipe.stages)


def recipe_network(recipe: Recipe, n_tags: int, in_channels: int, *, pretrained: bool = True) -> nn.Module:
    """Build the network of a recipe with newly initialized weights.

    Parameters
    ----------
    n_tags, in_channels
        Numbers of outputs and of input channels.
    pretrained
        Whether to load the weights of the model's option `pretrained`; False if all weights will be replaced.

    Returns
    -------
    A map from spectrograms (clips, in_channels, mels, frames) to logits (clips, n_tags), or (clips, 2 * n_tags) with
    two heads.
    """
    front_end = recipe.settings().front_end
    return _network(recipe if pretrained else _without_weights(recipe), n_tags, in_channels, front_end)


def recipe_parameters(recipe: Recipe, n_tags: int) -> int:
    """Count the parameters of the network of a recipe without allocating or loading weights."""
    settings = recipe.settings()
    in_channels = int(settings.channels_module().n_channels)  # type: ignore[arg-type]
    with torch.device("meta"):
        return count_parameters(_network(_without_weights(recipe), n_tags, in_channels, settings.front_end))


def _without_weights(recipe: Recipe) -> Recipe:
    """Return the recipe without a file of pretrained weights."""
    options = {k: v for k, v in recipe.model.options.items() if k != "pretrained"}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"options": options})})


def _network(recipe: Recipe, n_tags: int, in_channels: int, front_end: FrontEnd) -> nn.Module:
    config, two_heads = recipe.model, has_two_heads(recipe)
    n_outputs = n_tags * (2 if two_heads else 1)
    model = named_model(
        config.arch, n_outputs, in_channels, front_end, width=config.width, options=config.options
    )
    return TwoHeadModel(model, n_tags) if two_heads else model
