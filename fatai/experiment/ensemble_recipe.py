"""Ensembles as lists of recipes: the runs to train, the overrides of each, and how they are combined.

An ensemble is a TOML file with a `[[members]]` table for each run. Those that come with fatai are in `ensembles/`
beside the recipes and are named `ensembles/<name>`; any other TOML file with `members` is an ensemble, too.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import Field, ValidationError, field_validator, model_validator

from fatai.errors import FataiError, RecipeError, UnknownNameError
from fatai.experiment.old_keys import refuse_old_keys
from fatai.experiment.overrides import Overrides, fixed_settings
from fatai.experiment.recipe import (
    Recipe,
    load_recipe,
    parse_toml,
    recipe_names,
    recipe_text,
    validated,
    without_none,
)
from fatai.experiment.schema import Section
from fatai.models.weights import WEIGHTS
from fatai.registry import ENSEMBLES, did_you_mean

__all__ = [
    "EnsembleMember", "EnsembleRecipe", "StackerConfig", "ensemble_names", "ensemble_toml", "is_ensemble",
    "load_ensemble", "with_probe",
]

_FOLDER = "ensembles/"
_SECTIONS = ("clips", "folds", "model", "tta")


class EnsembleMember(Section):
    """A run of an ensemble.

    Attributes
    ----------
    name
        Name of its folder within the folder of the ensemble.
    recipe
        Its recipe, before the overrides.
    last_stage
        Name of the last stage to train; None trains all.
    overrides
        Tables and values that replace those of the recipe, such as `model = { arch = "m1" }`. Values under `stages`
        apply to every stage, but `noisy_labels` only to stages that have noisy labels. Values of `options` are added to
        the recipe's. What they give is not decided from the data; the width of another network still is.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    recipe: str
    last_stage: str | None = None
    overrides: dict[str, Any] = {}

    def overridden_recipe(self) -> Recipe:
        """Return the recipe with the overrides; raises `RecipeError` if they are not valid."""
        recipe = load_recipe(self.recipe)
        overrides = dict(self.overrides)
        fixed = _fixed(overrides)
        for key in ("front_end", "stages", *_SECTIONS):
            if not isinstance(overrides.get(key, {}), dict):
                value = str(overrides[key])[:40]
                raise RecipeError(f"member {self.name}: overrides.{key} is {value!r}; expected a table")
        if "front_end" in overrides:
            recipe = recipe.with_front_end(**overrides.pop("front_end"))
        plain = recipe.model_dump()
        plain["stages"] = self._stages(plain["stages"], overrides.pop("stages", {}))
        for section in _SECTIONS:
            given = overrides.pop(section, {})
            options = {**plain[section].get("options", {}), **given.get("options", {})}
            plain[section].update({**given, "options": options} if "options" in plain[section] else given)
        if plain["auto"] is not None:
            plain["auto"] = [name for name in plain["auto"] if name not in fixed]
        return validated({**plain, **overrides}, f"member {self.name}")

    def _stages(self, stages: tuple[dict[str, Any], ...], overrides: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the stages up to the last one, each with the overrides."""
        names = [stage["name"] for stage in stages]
        if self.last_stage is not None and self.last_stage not in names:
            raise RecipeError(
                f"member {self.name}: last_stage is {self.last_stage!r}; {did_you_mean(self.last_stage, names)}"
            )
        stop = len(names) if self.last_stage is None else names.index(self.last_stage) + 1
        return [
            {
                **stage,
                **{k: v for k, v in overrides.items() if k != "noisy_labels" or stage["noisy_labels"] is not None},
            }
            for stage in stages[:stop]
        ]


def _fixed(overrides: dict[str, Any]) -> set[str]:
    """Return the names of a recipe's `auto` that overrides leave nothing to decide of."""
    sections = {key: value for key, value in overrides.items() if isinstance(value, dict)}
    values = {f"{section}.{key}": value for section, table in sections.items() for key, value in table.items()}
    fixed = fixed_settings(Overrides(values=values))
    return fixed if "model.width" in values else fixed - {"width"}


class StackerConfig(Section):
    """A combination that is fitted on the members' out-of-fold predictions and joins them in the ensemble.

    Attributes
    ----------
    name
        Its name in the results.
    how, options
        As in `fatai.ensemble.ensemble.ensemble`.
    """

    name: str
    how: str
    options: dict[str, Any] = {}


class EnsembleRecipe(Section):
    """An ensemble.

    Attributes
    ----------
    summary, source, reference_score
        What the ensemble is in a few words, where it comes from, and its published score.
    how, options, weights
        As in `fatai.ensemble.ensemble.ensemble`.
    members
        The runs.
    stackers
        Combinations that are fitted on the members' out-of-fold predictions; the ensemble combines members and
        stackers.
    """

    name: str
    summary: Annotated[str, Field(max_length=90)] = ""
    source: str = ""
    reference_score: str = ""
    how: str = "mean"
    options: dict[str, Any] = {}
    weights: tuple[float, ...] | Literal["lwlrap"] | None = None
    members: tuple[EnsembleMember, ...] = Field(min_length=1, max_length=1000)
    stackers: tuple[StackerConfig, ...] = ()

    @field_validator("members")
    @classmethod
    def _unique_names(cls, value: tuple[EnsembleMember, ...]) -> tuple[EnsembleMember, ...]:
        names = [member.name for member in value]
        duplicate = next((name for name in names if names.count(name) > 1), None)
        if duplicate is not None:
            raise ValueError(f"two members are named {duplicate!r}; each needs a folder of its own")
        return value

    @model_validator(mode="after")
    def _known_methods(self) -> EnsembleRecipe:
        for how, options in [(self.how, self.options), *((s.how, s.options) for s in self.stackers)]:
            try:
                ENSEMBLES.build(how, **options)
            except (FataiError, TypeError) as e:
                raise ValueError(str(e)) from e
        return self


def ensemble_names() -> list[str]:
    """Return the names of the ensembles that come with fatai, as `--recipe` takes them."""
    folder = resources.files("fatai") / "recipes" / "ensembles"
    return sorted(_FOLDER + f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def is_ensemble(name: str | Path) -> bool:
    """Return True if a name is that of an ensemble of fatai, or of a TOML file that has members.

    A name without `ensembles/`, such as "best", is that of the ensemble if no recipe has it.
    """
    text = _full_name(str(name))
    if not text.endswith(".toml"):
        return text.startswith(_FOLDER)
    try:
        return "members" in parse_toml(recipe_text(text), text)
    except RecipeError:
        return False  # loading it as a recipe reports the error


def _full_name(text: str) -> str:
    """Return the name with its folder, of an ensemble whose name no recipe has."""
    is_short = _FOLDER + text in ensemble_names() and text not in recipe_names()
    return _FOLDER + text if is_short else text


def ensemble_text(name: str | Path) -> str:
    """Return the text of an ensemble's file; raises `RecipeError` if there is none."""
    text = _full_name(str(name))
    if not text.endswith(".toml"):
        if text not in ensemble_names():
            raise RecipeError(
                f"no ensemble named {text!r} (a file of yours must end in .toml); "
                f"{did_you_mean(text, ensemble_names())}"
            )
        return (resources.files("fatai") / "recipes" / f"{text}.toml").read_text(encoding="utf-8")
    return recipe_text(text)


def ensemble_toml(recipe: EnsembleRecipe) -> str:
    """Return an ensemble as TOML."""
    return tomli_w.dumps(without_none(recipe.model_dump()))


def with_probe(recipe: EnsembleRecipe, weights: str) -> EnsembleRecipe:
    """Return an ensemble with one more member: recipe `probe` with published weights, in the folds of the first member.

    Parameters
    ----------
    weights
        A name of `fatai.models.weights.WEIGHTS`, such as "mn04_as".

    Raises
    ------
    UnknownNameError
        If there are no such weights.
    """
    if weights not in WEIGHTS:
        raise UnknownNameError(f"no published weights named {weights!r}; {did_you_mean(weights, list(WEIGHTS))}")
    published = WEIGHTS[weights]
    folds = {"n": 5, **recipe.members[0].overrides.get("folds", {})}
    overrides = {
        "auto": ["splitter"], "folds": folds, "model": {"arch": published.arch, "options": {"pretrained": weights}},
        "front_end": {"name": published.front_end},
    }
    member = EnsembleMember(name="probe", recipe="probe", overrides=overrides)
    return recipe.model_copy(update={"members": (*recipe.members, member)})


def load_ensemble(name: str | Path) -> EnsembleRecipe:
    """Load an ensemble and validate the recipes of its members.

    Parameters
    ----------
    name
        A name ("ensembles/third_place"; "best"), or a path that ends in .toml.

    Raises
    ------
    RecipeError
        If there is no such ensemble or it is not valid; the message names file, key and what is allowed.
    """
    recipe = parse_ensemble(name)
    for member in recipe.members:
        try:
            member.overridden_recipe()
        except RecipeError as e:
            raise RecipeError(f"{name}: {e}") from None
    return recipe


def parse_ensemble(name: str | Path) -> EnsembleRecipe:
    """Load an ensemble without the recipes of its members; parameters and errors are those of `load_ensemble`."""
    text = str(name)
    plain = parse_toml(ensemble_text(name), text)
    refuse_old_keys(plain, text)
    try:
        return EnsembleRecipe.model_validate(plain)
    except ValidationError as e:
        faults = [
            f"{'.'.join(map(str, error['loc'])) or 'the ensemble'}: {error['msg'].removeprefix('Value error, ')}"
            for error in e.errors()
        ]
        raise RecipeError(f"{text}: " + "; ".join(faults)) from None
