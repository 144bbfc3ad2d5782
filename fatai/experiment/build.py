"""Build the network of a recipe for the tags and input channels of a data set."""

from __future__ import annotations

import warnings

from torch import nn

from fatai.data.config import ClipConfig
from fatai.errors import RecipeError
from fatai.experiment.recipe import Recipe
from fatai.models import count_parameters
from fatai.models.base import without_memory
from fatai.models.efficientat import WIDTHS, EfficientAT
from fatai.models.multi_task import TwoHeadModel
from fatai.models.timm_models import pin_timm_source
from fatai.models.timm_sources import is_remote, known_arch
from fatai.training.network import named_model

__all__ = ["check_network", "pin_network", "recipe_parameters"]

_TWO_HEADS = "fourth_place_second_head"


def has_two_heads(recipe: Recipe) -> bool:
    """Return True if a stage trains noisy labels with a second head."""
    methods = ((stage.noisy_labels or {}).get("method") for stage in recipe.stages)
    return any(method == _TWO_HEADS for method in methods)


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

    Raises
    ------
    RecipeError
        If `pretrained` is False and the recipe names a repository or a folder as the architecture.
    """
    if not pretrained and is_remote(recipe.model.arch):
        raise RecipeError(
            f"model.arch is {recipe.model.arch!r}, which would be read from elsewhere; expected the name of an "
            "architecture, as a run writes it into its recipe.toml"
        )
    return _network(recipe if pretrained else _without_weights(recipe), n_tags, in_channels, recipe.settings())


def recipe_parameters(recipe: Recipe, n_tags: int) -> int:
    """Count the parameters of the network of a recipe without allocating or loading weights."""
    settings = recipe.settings()
    in_channels = int(settings.channels_module().n_channels)  # type: ignore[arg-type]
    with without_memory():
        return count_parameters(_network(_without_weights(recipe), n_tags, in_channels, settings))


def check_network(recipe: Recipe, n_tags: int) -> None:
    """Build the network of a recipe with its pretrained weights, so that errors come before anything is trained."""
    in_channels = int(recipe.settings().channels_module().n_channels)  # type: ignore[arg-type]
    if not recipe.model.options.get("pretrained"):
        recipe_parameters(recipe, n_tags)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # training gives the same warnings
        recipe_network(recipe, n_tags, in_channels)


def pin_network(recipe: Recipe) -> Recipe:
    """Return the recipe with its network as a run records it, so that it computes the same on other machines.

    A repository or folder of timm becomes the architecture that it stands for. With a network that rounding harms, the
    precision "auto" becomes the one that it means there. Any other recipe is returned as it is.

    Raises
    ------
    CheckpointError
        If the repository or folder cannot be read.
    UnknownNameError
        If timm has no network of the name.
    """
    if recipe.precision == "auto" and recipe.model.arch in WIDTHS:
        recipe = recipe.model_copy(update={"precision": EfficientAT.auto_precision})
    if not is_remote(recipe.model.arch):
        if recipe.model.arch.startswith("timm:"):
            known_arch(recipe.model.arch.removeprefix("timm:"))
        return recipe
    arch, options = pin_timm_source(recipe.model.arch, recipe.model.options)
    model = recipe.model.model_copy(update={"arch": arch, "options": options})
    return recipe.model_copy(update={"model": model})


def _without_weights(recipe: Recipe) -> Recipe:
    """Return the recipe without a file of pretrained weights."""
    options = {k: v for k, v in recipe.model.options.items() if k != "pretrained"}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"options": options})})


def _network(recipe: Recipe, n_tags: int, in_channels: int, clip_config: ClipConfig) -> nn.Module:
    config, two_heads = recipe.model, has_two_heads(recipe)
    n_outputs = n_tags * (2 if two_heads else 1)
    model = named_model(
        config.arch, n_outputs, in_channels, clip_config, width=config.width, options=config.options
    )
    return TwoHeadModel(model, n_tags) if two_heads else model
