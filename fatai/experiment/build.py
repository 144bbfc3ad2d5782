"""The network that a recipe names, for the tags and channels of some data."""

from __future__ import annotations

import torch
from torch import nn

from fatai.models import count_parameters
from fatai.models.multi_task import TwoHeadModel
from fatai.experiment.recipe import Recipe
from fatai.audio.front_ends import FrontEnd
from fatai.training.learner import named_model

__all__ = ["has_two_heads", "recipe_network", "recipe_parameters"]


def has_two_heads(recipe: Recipe) -> bool:
    """Whether some stage teaches noisy labels to a head of their own."""
    return any(stage.noisy_labels is not None and stage.noisy_labels["method"] == "fourth_place_second_head" for stage in recipe.stages)


def recipe_network(recipe: Recipe, n_tags: int, in_channels: int, *, pretrained: bool = True) -> nn.Module:
    """The network of a recipe with newly drawn weights, and those of its option `pretrained`, unless all are to be replaced anyway."""
    return _network(recipe if pretrained else _unread(recipe), n_tags, in_channels, recipe.settings().front_end)


def recipe_parameters(recipe: Recipe, n_tags: int) -> int:
    """How many parameters the network of a recipe has; no weights are made or read."""
    settings = recipe.settings()
    in_channels = int(settings.channels_module().n_channels)  # type: ignore[arg-type]
    with torch.device("meta"):
        return count_parameters(_network(_unread(recipe), n_tags, in_channels, settings.front_end))


def _unread(recipe: Recipe) -> Recipe:
    """A recipe that names no file of weights."""
    options = {k: v for k, v in recipe.model.options.items() if k != "pretrained"}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"options": options})})


def _network(recipe: Recipe, n_tags: int, in_channels: int, front_end: FrontEnd) -> nn.Module:
    network, twice = recipe.model, has_two_heads(recipe)
    model = named_model(
        network.arch, n_tags * (2 if twice else 1), in_channels, front_end, width=network.width, options=network.options
    )
    return TwoHeadModel(model, n_tags) if twice else model
