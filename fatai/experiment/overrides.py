"""Settings that the command line and callers may replace in a recipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from fatai.errors import OptionError, RecipeError
from fatai.registry import did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Overrides", "find_values", "parse_settings", "set_value"]


@dataclass(frozen=True)
class Overrides:
    """Values that replace those of a recipe; None keeps the recipe's value.

    Attributes
    ----------
    n_folds
        Number of folds, at least 2.
    run_folds
        Folds to train, counted from 0.
    epochs, bs, lr
        Epochs, clips per batch and maximum learning rate of every stage.
    arch, width
        Name of the model, and the factor of its channels. If the recipe's front end is that of the published weights of
        its model, it becomes that of the new model's; a recipe that starts from such weights then starts from the new
        model's.
    weights
        Pretrained weights of the model: a name of `fatai.models.weights.WEIGHTS`, or a file. With published weights, a
        model that is named with them has their front end and width, unless those are given.
    crop_s
        Seconds of a crop.
    channel
        Channel of sound files, as in the recipe.
    n_views
        Views of each clip that are averaged in test-time augmentation.
    seed
        Fold k starts from seed + k.
    precision
        "auto", "fp32" or "bf16".
    values
        Any other setting by its dotted key, such as {"clips.channels": "deltas", "stages.0.lr": 1e-3};
        "stages.lr" is that of every stage.
    """

    n_folds: int | None = None
    run_folds: tuple[int, ...] | None = None
    epochs: int | None = None
    bs: int | None = None
    lr: float | None = None
    arch: str | None = None
    width: float | None = None
    weights: str | PathLike[str] | None = None
    crop_s: float | None = None
    channel: str | int | None = None
    n_views: int | None = None
    seed: int | None = None
    precision: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)


_FIXED_BY = {
    "n_folds": "folds", "crop_s": "crop_s", "arch": "width", "width": "width", "bs": "bs", "epochs": "epochs",
}
_FIXED_BY_KEY = {"folds.n": "folds", "model.arch": "width", "folds.group_col": "splitter"}


def fixed_settings(overrides: Overrides) -> set[str]:
    """Return the names of a recipe's `auto` that overrides leave nothing to decide of.

    Examples
    --------
    >>> sorted(fixed_settings(Overrides(n_folds=3, values={"front_end.sr": 8000, "stages.0.epochs": 3})))
    ['epochs', 'folds', 'front_end', 'sr']
    """
    fixed = {name for field_name, name in _FIXED_BY.items() if getattr(overrides, field_name) is not None}
    for key in overrides.values:
        fixed.add(_FIXED_BY_KEY.get(key, key.split(".")[-1]))
        fixed.update({"front_end"} if key.split(".")[0] == "front_end" else ())
    return fixed


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """Parse settings such as "clips.channels=deltas" or "stages.0.lr=1e-3" into dotted keys and values.

    A value is read as in a recipe (`2.0`, `true`, `[1, 2]`, `{ name = "mixup_or", p = 0.5 }`); anything that is not
    valid TOML is text, so that text needs no quotation marks.

    Raises
    ------
    OptionError
        If a setting has no "=", or nothing before it.

    Examples
    --------
    >>> parse_settings(["clips.channels=deltas", "stages.0.bs=16"])
    {'clips.channels': 'deltas', 'stages.0.bs': 16}
    """
    values = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise OptionError(f"{setting!r} is not a setting; expected KEY=VALUE, such as stages.0.lr=1e-3")
        values[key.strip()] = _toml_value(value.strip())
    return values


def _toml_value(text: str) -> Any:
    """Return a TOML value, or the text itself if it is not one."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if list(parsed) == ["value"] else text


def set_value(plain: dict[str, Any], key: str, value: Any) -> None:
    """Set the value of a dotted key in nested tables in place.

    In a list, a number or a name picks a table ("stages.0.lr", "stages.augment.gain.p"); without, each table is meant.

    Raises
    ------
    RecipeError
        If a part of the key before the last one leads to no table; the message names it.

    Examples
    --------
    >>> plain = {"stages": [{"bs": 8}, {"bs": 8}]}
    >>> set_value(plain, "stages.1.bs", 16)
    >>> set_value(plain, "stages.lr", 0.1)
    >>> plain
    {'stages': [{'bs': 8, 'lr': 0.1}, {'bs': 16, 'lr': 0.1}]}
    """
    *parts, last = key.split(".")
    for table in _tables(plain, parts, key):
        table[last] = value


def find_values(plain: dict[str, Any], key: str) -> list[Any]:
    """Return the values that a dotted key leads to in nested tables, as `set_value` would set them.

    Raises
    ------
    RecipeError
        If a part of the key leads to no table, or a table has no such value; the message names it.

    Examples
    --------
    >>> find_values({"stages": [{"augment": [{"name": "gain", "p": 0.5}, {"name": "noise", "p": 0.1}]}]},
    ...             "stages.augment.gain.p")
    [0.5]
    """
    *parts, last = key.split(".")
    tables = _tables(plain, parts, key)
    for table in tables:
        if last not in table:
            raise RecipeError(f"{key}: unknown key {last!r}; {did_you_mean(last, list(table))}")
    return [table[last] for table in tables]


def _tables(table: Any, parts: list[str], key: str) -> list[dict[str, Any]]:
    """Return the tables that the parts of a dotted key lead to."""
    if isinstance(table, (list, tuple)):
        if parts and parts[0].isdigit():
            if int(parts[0]) >= len(table):
                raise RecipeError(f"{key}: there is no number {parts[0]}; expected 0 to {len(table) - 1}")
            return _tables(table[int(parts[0])], parts[1:], key)
        named = [item for item in table if parts and _is_named(item, parts[0])]
        rest = parts[1:] if named else parts
        return [found for item in named or table for found in _tables(item, rest, key)]
    if not isinstance(table, dict):
        raise RecipeError(f"{key} leads into {table!r}, which is not a table of settings")
    if not parts:
        return [table]
    if parts[0] not in table:
        raise RecipeError(f"{key}: unknown key {parts[0]!r}; {did_you_mean(parts[0], list(table))}")
    return _tables(table[parts[0]], parts[1:], key)


def _is_named(table: Any, name: str) -> bool:
    """Return True if a table has this name and no key of it, which would come first."""
    return isinstance(table, dict) and table.get("name") == name and name not in table
