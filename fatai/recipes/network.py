"""The network that a recipe names, for the tags and channels of some data."""

from __future__ import annotations

from torch import nn

from fatai.models.two_heads import TwoHeads
from fatai.recipes.recipe import Recipe
from fatai.train.learner import named_model

__all__ = ["has_two_heads", "recipe_network"]


def has_two_heads(recipe: Recipe) -> bool:
    """Whether some stage teaches noisy labels to a head of their own."""
    return any(stage.noisy is not None and stage.noisy["name"] == "fourth" for stage in recipe.stages)


def recipe_network(recipe: Recipe, n_tags: int, in_channels: int) -> nn.Module:
    """The network of a recipe with newly drawn weights."""
    network, twice = recipe.model, has_two_heads(recipe)
    model = named_model(
        network.arch, n_tags * (2 if twice else 1), in_channels, recipe.settings().front_end, width=network.width, options=network.options,
    )
    return TwoHeads(model, n_tags) if twice else model
