"""Search spaces: which settings of a recipe a search changes, and within which bounds.

A space is a list of `Dimension`, each with the dotted key of a setting as `--set` takes it. In a file it is a list of
TOML tables:

    [[tune]]
    key = "stages.lr"
    factor = 4              # from a quarter to four times the recipe's value
    log = true

    [[tune]]
    key = "stages.augment.spec_augment.p"
    low = 0.0
    high = 1.0

    [[tune]]
    key = "stages.loss"
    choices = ["bce", "focal"]

The value of the recipe itself always belongs to the space: bounds are widened to it, and it is one of the choices.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fatai.errors import RecipeError
from fatai.experiment.overrides import find_values
from fatai.experiment.recipe import Recipe, parse_toml
from fatai.experiment.schema import build_named
from fatai.io.json import read_text_limited
from fatai.registry import AUGMENTATIONS, MIXERS

__all__ = ["Dimension", "SearchSpace", "default_space", "load_space"]

_MAX_BYTES = 64 * 1024
_MAX_DIMENSIONS = 100
# Of these the scores of trials could not be compared, or they are no part of a system.
_FIXED = ("auto", "decided", "folds", "name", "reference_score", "seed", "source", "summary")


class Dimension(BaseModel):
    """A setting and the values that are searched: between bounds, or one of several choices.

    Attributes
    ----------
    key
        Dotted key of the setting, such as "stages.lr" (of every stage), "stages.0.lr" or, in a list of tables with a
        name, "stages.augment.gain.p".
    low, high
        Bounds of a number, both included; whole numbers where both are whole and the recipe's value is.
    factor
        In place of bounds: from the recipe's value divided by this to that times this.
    log
        Search on a logarithmic scale.
    choices
        In place of bounds: the values, of any type.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str = Field(min_length=1, max_length=200)
    low: float | None = Field(None, allow_inf_nan=False)
    high: float | None = Field(None, allow_inf_nan=False)
    factor: float | None = Field(None, gt=1, le=1000)
    log: bool = False
    choices: tuple[Any, ...] | None = Field(None, min_length=1, max_length=100)

    @model_validator(mode="after")
    def _may_be_searched(self) -> Dimension:
        if self.key.split(".")[0] in _FIXED:
            raise ValueError(f"{self.key} cannot be searched: expected a setting of clips, front end, model or stages")
        return self

    @model_validator(mode="after")
    def _one_way_to_give_values(self) -> Dimension:
        bounds = (self.low is not None) + (self.high is not None)
        if bounds == 1 or (bounds > 0) + (self.factor is not None) + (self.choices is not None) != 1:
            raise ValueError(f"{self.key} needs either low and high, or factor, or choices")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"{self.key}: low is {self.low:g} and high is {self.high:g}; expected low < high")
        if self.log and (self.choices is not None or (self.low is not None and self.low <= 0)):
            raise ValueError(f"{self.key}: log needs a low bound above 0")
        return self


@dataclass(frozen=True)
class SearchDimension:
    """A dimension for one recipe: its values, the recipe's own among them.

    Attributes
    ----------
    base
        The recipe's own value, as in `value_of`.
    choices
        Labels of the choices; None between bounds.
    """

    key: str
    base: Any
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    whole: bool = False
    choices: tuple[Any, ...] | None = None

    def __str__(self) -> str:
        if self.choices is not None:
            return f"{self.key}: {', '.join(map(str, self.choices))}"
        return f"{self.key}: {self.low:g} to {self.high:g}{', logarithmic' if self.log else ''}"

    def value_of(self, label: Any) -> Any:
        """Return the value for the recipe of a searched number or the label of a choice."""
        return json.loads(label[len(_JSON):]) if isinstance(label, str) and label.startswith(_JSON) else label


_JSON = "json:"


def _label(value: Any) -> Any:
    """Return a choice as a plain value: numbers and text as they are, tables and lists as JSON."""
    if isinstance(value, (bool, int, float)) or (isinstance(value, str) and not value.startswith(_JSON)):
        return value
    return _JSON + json.dumps(value, sort_keys=True)


@dataclass(frozen=True)
class SearchSpace:
    """The dimensions of a search for one recipe.

    Attributes
    ----------
    dimensions
        In the order in which they are drawn.
    """

    dimensions: tuple[SearchDimension, ...]

    def base(self) -> dict[str, Any]:
        """Return the labels of the recipe's own values by key."""
        return {dimension.key: dimension.base for dimension in self.dimensions}

    def values(self, labels: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values for `Overrides.values` by key."""
        return {d.key: d.value_of(labels[d.key]) for d in self.dimensions}

    def to_toml(self) -> str:
        """Return the space as the text of a file for `load_space`."""
        return tomli_w.dumps({"tune": [_table(dimension) for dimension in self.dimensions]})


def _table(dimension: SearchDimension) -> dict[str, Any]:
    if dimension.choices is not None:
        return {"key": dimension.key, "choices": [dimension.value_of(label) for label in dimension.choices]}
    bound = int if dimension.whole else float
    return {"key": dimension.key, "low": bound(dimension.low), "high": bound(dimension.high), "log": dimension.log}


def default_space(recipe: Recipe) -> SearchSpace:
    """Return what is searched if nothing else is asked for, of what the recipe has.

    Learning rate, width, crop, weight decay, loss, and the probabilities of mixing and of each augmentation.

    Examples
    --------
    >>> from fatai.experiment.recipe import load_recipe
    >>> for dimension in default_space(load_recipe("quick")).dimensions:
    ...     print(dimension)
    stages.lr: 0.00075 to 0.012, logarithmic
    model.width: 0.125 to 0.5, logarithmic
    clips.crop_s: 0.75 to 3, logarithmic
    stages.wd: 0.001 to 0.1, logarithmic
    stages.loss: bce, focal, lsep
    """
    names = {table["name"]: None for stage in recipe.stages for table in stage.augment}
    wanted = [
        Dimension(key="stages.lr", factor=4, log=True),
        Dimension(key="model.width", factor=2, log=True),
        Dimension(key="clips.crop_s", factor=2, log=True),
        Dimension(key="stages.wd", factor=10, log=True),
        *([] if any(stage.loss_options for stage in recipe.stages) else [_LOSSES]),
        Dimension(key="stages.mixup.p", low=0, high=1),
        *(Dimension(key=f"stages.augment.{name}.p", low=0, high=1) for name in names),
    ]
    found = []
    for dimension in wanted:
        try:
            found.append(_for_recipe(dimension, recipe))
        except RecipeError:  # a key that this recipe has not, or whose stages differ
            continue
    return SearchSpace(tuple(found))


_LOSSES = Dimension(key="stages.loss", choices=("bce", "focal", "lsep"))


def load_space(path: str | Path, recipe: Recipe) -> SearchSpace:
    """Load a search space for a recipe from a TOML file of tables `[[tune]]`.

    Raises
    ------
    RecipeError
        If the file is no such list, or a key or its bounds do not fit the recipe; the message names file and key.
    """
    try:
        text = read_text_limited(Path(path), _MAX_BYTES)
    except (OSError, ValueError) as e:
        raise RecipeError(f"the search space {path} cannot be read as text: {e}") from None
    tables = parse_toml(text, str(path)).get("tune")
    if not isinstance(tables, list) or not 1 <= len(tables) <= _MAX_DIMENSIONS:
        raise RecipeError(f"{path} has no list of tables [[tune]], 1 to {_MAX_DIMENSIONS}; expected key, low and high")
    return make_space([_dimension(table, str(path)) for table in tables], recipe, str(path))


def make_space(dimensions: Iterable[Dimension], recipe: Recipe, where: str = "the search space") -> SearchSpace:
    """Return the space of dimensions for a recipe; raises `RecipeError` if one does not fit it, or a key is twice."""
    found: dict[str, SearchDimension] = {}
    for dimension in dimensions:
        if dimension.key in found:
            raise RecipeError(f"{where}: {dimension.key} is given twice; leave one of them out")
        try:
            found[dimension.key] = _for_recipe(dimension, recipe)
        except RecipeError as e:
            raise RecipeError(f"{where}: {e}") from None
    return SearchSpace(tuple(found.values()))


def _dimension(table: Any, where: str) -> Dimension:
    try:
        return Dimension.model_validate(table)
    except ValidationError as e:
        faults = "; ".join(
            f"{'.'.join(map(str, x['loc'])) or 'a table'}: {x['msg'].removeprefix('Value error, ')}"
            for x in e.errors()[:10]
        )
        raise RecipeError(f"{where}: {faults}") from None


def _for_recipe(dimension: Dimension, recipe: Recipe) -> SearchDimension:
    """Resolve a dimension for a recipe, and build the recipe at its ends, so that wrong values are found at once."""
    base = _base_value(recipe, dimension.key)
    resolved = _choices(dimension, base) if dimension.choices is not None else _bounds(dimension, base)
    ends = resolved.choices if resolved.choices is not None else (resolved.low, resolved.high)
    for end in ends:
        value = int(end) if resolved.whole else resolved.value_of(end)
        recipe.override(values={dimension.key: value})  # raises RecipeError with the key
    return resolved


def _choices(dimension: Dimension, base: Any) -> SearchDimension:
    assert dimension.choices is not None
    labels = dict.fromkeys(_label(value) for value in (base, *dimension.choices))
    return SearchDimension(dimension.key, _label(base), choices=tuple(labels))


def _bounds(dimension: Dimension, base: Any) -> SearchDimension:
    if isinstance(base, bool) or not isinstance(base, (int, float)):
        raise RecipeError(f"{dimension.key} is {base!r} in the recipe, which is no number; give choices")
    if (dimension.log or dimension.factor) and base <= 0:
        raise RecipeError(f"{dimension.key} is {base:g} in the recipe; a factor and log need a value above 0")
    factor = dimension.factor or 1.0
    low = base / factor if dimension.low is None else min(dimension.low, base)
    high = base * factor if dimension.high is None else max(dimension.high, base)
    whole = isinstance(base, int)
    resolved = SearchDimension(dimension.key, base, low, high, dimension.log, whole)
    return replace(resolved, low=max(1, round(low)) if factor > 1 else round(low), high=round(high)) if whole else (
        resolved
    )


def _base_value(recipe: Recipe, key: str) -> Any:
    """Return the recipe's own value of a key, also one that an augmentation or mixer has by default."""
    values = [_plain(value) for value in find_values(_with_defaults(recipe, key), key)]
    if any(value != values[0] for value in values):
        raise RecipeError(f"{key} differs between stages ({', '.join(map(str, values))}); give the number of a stage")
    if not values or values[0] is None:
        raise RecipeError(f"{key} is not set in the recipe; set it there, so that the search has a value to begin with")
    return values[0]


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _with_defaults(recipe: Recipe, key: str) -> dict[str, Any]:
    """Return the plain tables of a recipe, with the last part of `key` filled in where a builder has it by default."""
    plain, option = recipe.model_dump(), key.rpartition(".")[2]
    for stage in plain["stages"]:
        for registry, tables in ((AUGMENTATIONS, stage["augment"]), (MIXERS, [stage["mixup"]])):
            _fill_in(registry, [table for table in tables if table], option)
    return plain


def _fill_in(registry: Any, tables: Sequence[dict[str, Any]], option: str) -> None:
    for table in tables:
        default = getattr(build_named(registry, table), option, None)
        if option not in table and isinstance(default, (int, float)):
            table[option] = default
