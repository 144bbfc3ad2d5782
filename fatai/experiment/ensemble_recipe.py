"""Ensembles as lists of recipes: which runs are trained, what changes in each, and how they become one.

A list is a TOML file with a `[[members]]` table for each run. Those that come with fatai lie in `ensembles/` beside the recipes and are
named `ensembles/<name>`; a file of one's own is told from a recipe by its members.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from fatai.errors import FataiError, RecipeError
from fatai.experiment.recipe import Recipe, load_recipe, parse_toml, recipe_text, validated
from fatai.experiment.schema import Section, refuse_old_keys
from fatai.registry import ENSEMBLES, did_you_mean

__all__ = ["EnsembleRecipe", "EnsembleMember", "ensemble_names", "ensemble_text", "is_ensemble", "load_ensemble"]

_FOLDER = "ensembles/"
_SECTIONS = ("clips", "folds", "model", "tta")


class EnsembleMember(Section):
    """One run.

    Attributes
    ----------
    name
        Of its folder within the ensemble's.
    recipe
        Of the run, before it is changed.
    last_stage
        Name of the stage that is the last; None trains all.
    overrides
        Tables and values of a recipe that take the place of its own: `model = { arch = "m1" }`; those under `stages` go to every stage,
        and `noisy_labels` only to stages that have noisy clips. Values of `options` are added to the recipe's.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    recipe: str
    last_stage: str | None = None
    overrides: dict[str, Any] = {}

    def changed_recipe(self) -> Recipe:
        """The recipe that the member is trained by; raises `RecipeError`."""
        recipe = load_recipe(self.recipe)
        overrides = dict(self.overrides)
        for key in ("front_end", "stages", *_SECTIONS):
            if not isinstance(overrides.get(key, {}), dict):
                raise RecipeError(f"member {self.name}: overrides.{key} is {str(overrides[key])[:40]!r}; expected a table")
        if "front_end" in overrides:
            recipe = recipe.with_front_end(**overrides.pop("front_end"))
        plain = recipe.model_dump()
        if self.last_stage is not None:
            names = [stage["name"] for stage in plain["stages"]]
            if self.last_stage not in names:
                raise RecipeError(f"member {self.name}: last_stage is {self.last_stage!r}; {did_you_mean(self.last_stage, names)}")
            plain["stages"] = plain["stages"][:names.index(self.last_stage) + 1]
        for stage in plain["stages"]:
            stage.update(
                {k: v for k, v in overrides.get("stages", {}).items() if k != "noisy_labels" or stage["noisy_labels"] is not None}
            )
        overrides.pop("stages", None)
        for section in _SECTIONS:
            given = overrides.pop(section, {})
            options = {**plain[section].get("options", {}), **given.get("options", {})}
            plain[section].update({**given, "options": options} if "options" in plain[section] else given)
        return validated({**plain, **overrides}, f"member {self.name}")


class StackerConfig(Section):
    """A blend that learns from the members, and joins them in the ensemble."""

    name: str
    how: str
    options: dict[str, Any] = {}


class EnsembleRecipe(Section):
    """An ensemble.

    Attributes
    ----------
    how, options, weights
        As in `fatai.ensemble.ensemble.ensemble`.
    stackers
        Blends that are learnt from the members' out-of-fold predictions; the ensemble is made of members and stackers.
    """

    name: str
    source: str = ""
    reference_score: str = ""
    how: str = "mean"
    options: dict[str, Any] = {}
    weights: tuple[float, ...] | Literal["lwlrap"] | None = None
    members: tuple[EnsembleMember, ...] = Field(min_length=1, max_length=1000)
    stackers: tuple[StackerConfig, ...] = ()

    @field_validator("members")
    @classmethod
    def _different_names(cls, value: tuple[EnsembleMember, ...]) -> tuple[EnsembleMember, ...]:
        names = [member.name for member in value]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two members are named {twice!r}; each needs a folder of its own")
        return value

    @model_validator(mode="after")
    def _known_blends(self) -> EnsembleRecipe:
        for how, options in [(self.how, self.options), *((s.how, s.options) for s in self.stackers)]:
            try:
                ENSEMBLES.build(how, **options)
            except (FataiError, TypeError) as e:
                raise ValueError(str(e)) from e
        return self


def ensemble_names() -> list[str]:
    """Lists that come with fatai, as `--recipe` takes them."""
    folder = (resources.files("fatai") / "recipes") / "ensembles"
    return sorted(_FOLDER + f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def is_ensemble(name: str | Path) -> bool:
    """Whether a name means a list rather than a recipe: one of fatai's, or a TOML file that has members."""
    text = str(name)
    if not text.endswith(".toml"):
        return text.startswith(_FOLDER)
    try:
        return "members" in parse_toml(recipe_text(text), text)
    except RecipeError:
        return False  # what is wrong with it is told by whoever reads it as a recipe


def ensemble_text(name: str | Path) -> str:
    """The file of a list as it is written; raises `RecipeError`."""
    text = str(name)
    if not text.endswith(".toml"):
        if text not in ensemble_names():
            raise RecipeError(
                f"no ensemble named {text!r}; {did_you_mean(text, ensemble_names())}; a file of yours must end in .toml"
            )
        return ((resources.files("fatai") / "recipes") / f"{text}.toml").read_text(encoding="utf-8")
    return recipe_text(text)


def load_ensemble(name: str | Path) -> EnsembleRecipe:
    """A list by name ("ensembles/third_place"), or from a path that ends in .toml; raises `RecipeError` that says what is wrong."""
    text = str(name)
    try:
        plain = parse_toml(ensemble_text(name), text)
        refuse_old_keys(plain, text)
        listed = EnsembleRecipe.model_validate(plain)
    except ValidationError as e:
        faults = [
            f"{'.'.join(map(str, error['loc'])) or 'the list'}: {error['msg'].removeprefix('Value error, ')}"
            for error in e.errors()
        ]
        raise RecipeError(f"{text}: " + "; ".join(faults)) from None
    for member in listed.members:
        member.changed_recipe()
    return listed
