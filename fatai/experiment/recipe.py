"""Recipes: complete systems as typed, validated settings, loaded from TOML files.

A recipe defines how clips are loaded, how folds are made, which model is trained in which stages, and the test-time
augmentation. An unknown key or a value of the wrong type is a `RecipeError` that names the file, the key and what is
allowed.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, fields
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import Field, ValidationError, field_validator, model_validator

from fatai.audio.front_ends import FrontEnd
from fatai.audio.front_ends import front_end as find_front_end
from fatai.data.config import ClipConfig
from fatai.errors import FataiError, RecipeError
from fatai.experiment.old_keys import refuse_old_keys
from fatai.experiment.overrides import Overrides, fixed_settings, set_value
from fatai.experiment.schema import TTA, WITHOUT_TRAINING, Clips, Folds, Model, Section, Seed, Stage
from fatai.export.config import check_bounds
from fatai.io.json import read_text_limited
from fatai.models import takes_weights
from fatai.models.weights import archs_with_weights, find_published
from fatai.registry import FRONT_ENDS, did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Recipe", "load_recipe", "parse_toml", "recipe_names", "recipe_text"]

# A recipe is a page long; files far beyond that are not parsed.
_MAX_BYTES = 256 * 1024
_MAX_STAGES = 100
_PRETRAINED = "model.options.pretrained"
_DEEP_KEY = re.compile(r"""(?<![\w-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){50}""")


AutoName = Literal["front_end", "crop_s", "splitter", "folds", "width", "bs", "epochs", "no_aug_epochs"]
"""Settings that a recipe may leave to the data."""


class Recipe(Section):
    """A complete system.

    Attributes
    ----------
    name, summary, source, reference_score
        Its name, what it is in a few words, where it comes from, and its published score.
    seed
        Fold k starts from seed + k.
    precision
        "bf16" is faster on devices that support it, "auto" uses it there; "fp32" is exact everywhere.
    auto
        Settings that are decided from the data when a run begins, by the rules of `fatai.training.defaults`, in
        this order; None decides nothing. Values given on the command line win.
    decided
        The settings that were decided so, each with its reason.
    steps_factor
        Factor of the epochs that a rule decides; None is 1.
    noisy_decision
        True trains the first fold again with noisy clips, if there are any, and uses them in all folds if they raise
        the score of its held-out clips by more than noise (`fatai.experiment.noisy_decision`).
    front_end
        `name` of a registered front end, and fields of `FrontEnd` that differ from it.
    clips, folds, model, tta
        The sections.
    stages
        Fits one after another; each starts from the weights that the one before ended with. In a file, `extends =
        "fit"` takes over the keys of an earlier stage of that name that the stage does not set itself.
    """

    name: str
    summary: Annotated[str, Field(max_length=90)] = ""
    source: str = ""
    reference_score: str = ""
    seed: Seed = 2019
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    auto: tuple[AutoName, ...] | None = None
    decided: dict[str, str] | None = None
    steps_factor: float | None = Field(None, gt=0, le=1000)
    noisy_decision: bool | None = None
    front_end: dict[str, Any] = {"name": "ninth"}
    clips: Clips = Clips()
    folds: Folds = Folds()
    model: Model = Model()
    stages: tuple[Stage, ...] = Field(default_factory=lambda: (Stage(),), min_length=1)
    tta: TTA = TTA()

    @field_validator("stages", mode="before")
    @classmethod
    def _resolve_extends(cls, value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            return value
        if len(value) > _MAX_STAGES:
            raise ValueError(f"there are {len(value)}; at most {_MAX_STAGES}")
        resolved: list[Any] = []
        for k, stage in enumerate(value):
            resolved.append(_extended(stage, k, resolved) if isinstance(stage, dict) and "extends" in stage else stage)
        return resolved

    @field_validator("front_end")
    @classmethod
    def _known_front_end(cls, value: dict[str, Any]) -> dict[str, Any]:
        known = [f.name for f in fields(FrontEnd)]
        for key in value:
            if key != "name" and key not in known:
                raise ValueError(f"has the unknown key {key!r}; {did_you_mean(key, ['name', *known])}")
        name = value.get("name")
        if name is not None and name not in FRONT_ENDS:
            raise ValueError(f"name is {name!r}; {did_you_mean(str(name), FRONT_ENDS.names())}")
        return value

    @field_validator("noisy_decision")
    @classmethod
    def _off_is_none(cls, value: bool | None) -> bool | None:
        return value or None

    @model_validator(mode="after")
    def _noisy_decision_fits(self) -> Recipe:
        if self.noisy_decision and (len(self.rounds()) > 1 or self.stages[0].noisy_labels is not None):
            raise ValueError(
                "noisy_decision adds noisy clips to a recipe of curated clips alone; leave it out, or noisy_labels and "
                "reinit of the stages"
            )
        return self

    @model_validator(mode="after")
    def _noisy_clips_are_the_same(self) -> Recipe:
        used = {stage.teacher_clips for stage in self.stages} - {None}
        used |= {"noisy"} if any(stage.noisy_labels is not None for stage in self.stages) else set()
        if len(used) > 1:
            raise ValueError(
                f"teacher_clips and noisy_labels of the stages use {' and '.join(sorted(map(str, used)))}; expected "
                'the same clips in all stages, those of one folder or "noisy"'
            )
        return self

    @model_validator(mode="after")
    def _previous_selection_exists(self) -> Recipe:
        selected = False
        for stage in self.stages:
            if stage.noisy_labels is not None and not stage.selects_noisy and not selected:
                raise ValueError(
                    f"stage {stage.name!r} reuses the previous selection, but no stage before it selects noisy clips"
                )
            selected = selected or stage.noisy_labels is not None
        return self

    @property
    def selects_on_held_out(self) -> bool:
        """True if a fold selects its epoch by the score of its held-out clips: the out-of-fold score is optimistic."""
        selects = [
            stage.linear_probe is None and (stage.checkpoint != "last" or stage.early_stopping_patience is not None)
            for stage in self.stages
        ]
        return self.folds.select_on == "held_out" and any(selects)

    def tracks_best(self, number: int) -> bool:
        """Return True if a later stage compares its best weights with those of stage `number`, counted from 0."""
        for later in self.stages[number + 1:]:
            if later.reinit or later.checkpoint == "best":
                return False
            if later.checkpoint == "best_overall":
                return True
        return False

    def predicts_noisy_after(self, number: int) -> bool:
        """Return True if the models of round `number` predict the noisy clips for the selection of the next round."""
        rounds = self.rounds()
        return number + 1 < len(rounds) and self.stages[rounds[number + 1].start].selects_noisy

    def rounds(self) -> list[range]:
        """Return the stage numbers of each round: consecutive stages on the same clips, without `reinit` in between."""
        stages = self.stages
        begins = [
            i for i, stage in enumerate(stages)
            if i == 0 or stage.reinit or stage.noisy_labels or stages[i - 1].noisy_labels
            or (stage.teacher, stage.teacher_clips) != (stages[i - 1].teacher, stages[i - 1].teacher_clips)
        ]
        return [range(a, b) for a, b in zip(begins, [*begins[1:], len(stages)], strict=True)]

    @model_validator(mode="after")
    def _front_end_fits(self) -> Recipe:
        try:
            check_bounds(self.settings())
        except (FataiError, TypeError) as e:
            raise ValueError(f"front_end: {e}") from e
        return self

    @property
    def n_run_folds(self) -> int:
        """Number of folds to train."""
        return self.folds.n if self.folds.run_folds is None else len(set(self.folds.run_folds))

    def settings(self) -> ClipConfig:
        """Return the settings with which clips are loaded."""
        overrides = {k: tuple(v) if isinstance(v, list) else v for k, v in self.front_end.items() if k != "name"}
        front_end = find_front_end(self.front_end.get("name", "ninth"), **overrides)
        trim_db = None if self.clips.trim_db is False else float(self.clips.trim_db)
        clips = self.clips
        return ClipConfig(front_end, clips.channels, clips.crop_s, trim_db, clips.pad_mode, clips.channel)

    def with_front_end(self, **values: Any) -> Recipe:
        """Return a copy whose front end has another `name` or other values; a new name drops the old values."""
        old = {} if values.get("name", self.front_end.get("name")) != self.front_end.get("name") else self.front_end
        plain = {**self.model_dump(), "front_end": {**old, **values}, "auto": _without(self.auto, {"front_end"})}
        return validated(plain, "the changed recipe")

    def override(self, overrides: Overrides | None = None, /, **settings: Any) -> Recipe:
        """Return a copy with some settings replaced, given as `Overrides` or as its fields by keyword.

        Raises
        ------
        RecipeError
            If a value does not fit; the message names its key.
        """
        new = overrides if overrides is not None else Overrides(**settings)

        def given(**options: Any) -> dict[str, Any]:
            return {k: v for k, v in options.items() if v is not None}

        values = dict(new.values)
        arch = values.get("model.arch", new.arch)
        weights = self._weights(new)
        front_end = values.pop("front_end.name", None) or self._front_end_for(arch, weights)
        plain = (self if front_end is None else self.with_front_end(name=front_end)).model_dump()
        plain["folds"].update(given(n=new.n_folds, run_folds=new.run_folds))
        has_own_width = self._has_own_width(arch, weights)
        if has_own_width:
            plain["model"]["width"] = None
        plain["model"].update(given(arch=new.arch, width=new.width))
        if weights is not None:
            self._check_takes_weights(arch, weights)
            plain["model"]["options"]["pretrained"] = weights if isinstance(weights, bool) else str(weights)
        plain["clips"].update(given(crop_s=new.crop_s, channel=new.channel))
        plain["tta"].update(given(n=new.n_views))
        for stage in plain["stages"]:
            stage.update(given(epochs=new.epochs, bs=new.bs, lr=new.lr))
        plain.update(given(seed=new.seed, precision=new.precision))
        for key, value in values.items():
            set_value(plain, key, value)
        plain["auto"] = _without(self.auto, {*fixed_settings(new), *(["width"] if has_own_width else [])})
        return validated(plain, "the changed recipe")

    def _weights(self, new: Overrides) -> Any:
        """Return the pretrained weights that overrides give; those of another network where it takes a recipe's own.

        A recipe that starts from the published weights of its network starts from those of the network that is named
        in its place. None leaves the recipe's as they are.

        Raises
        ------
        RecipeError
            If that network has no published weights.
        """
        given = new.values.get(_PRETRAINED, new.weights)
        arch, own = new.values.get("model.arch", new.arch), self.model.options.get("pretrained")
        of_own = find_published(self.model.arch, own)
        if given is not None or arch in (None, self.model.arch) or not of_own or of_own.arch != self.model.arch:
            return given
        if str(arch).startswith("timm:"):
            return True
        published = find_published(str(arch)) if takes_weights(str(arch)) else None
        if published is None:
            raise RecipeError(
                f"recipe {self.name} starts from published weights, and there are none for {arch}; choose one of "
                f"{', '.join(archs_with_weights())}, one of timm as timm:NAME, or recipe default, which needs none"
            )
        return published.name

    def _has_own_width(self, arch: Any, weights: Any) -> bool:
        """Return True if the width of a recipe is not meant for what replaces its network or weights.

        Networks of timm have none. Published weights are of the published width, and other weights of one that the
        number of clips does not decide.
        """
        arch = str(arch or self.model.arch)
        if arch.startswith("timm:"):
            return True
        return bool(weights) and ("width" in (self.auto or ()) or find_published(arch, weights) is not None)

    def _check_takes_weights(self, arch: Any, weights: Any) -> None:
        """Raise `RecipeError` if weights are given and the network has no published ones."""
        arch = str(arch or self.model.arch)
        if weights and not takes_weights(arch):
            raise RecipeError(
                f"weights {weights} are given, and recipe {self.name} trains {arch}, for which there are no "
                "published ones; give them to recipe finetune, probe or best, or with --arch a network that has some: "
                f"{', '.join(archs_with_weights())}, or one of timm as timm:NAME"
            )

    def _front_end_for(self, arch: Any, weights: Any) -> str | None:
        """Return the front end that follows from other weights or another network; None to keep the recipe's.

        It is that of the published weights that are given with another network, or to a recipe that decides on its
        front end by the data; and that of another network where both networks have published weights.
        """
        given = find_published(arch or self.model.arch, weights)
        if given and (arch not in (None, self.model.arch) or "front_end" in (self.auto or ())):
            return given.front_end
        old, new = find_published(self.model.arch), find_published(arch)
        follows = old and new and self.front_end.get("name") == old.front_end != new.front_end
        return new.front_end if new and follows else None

    def resolved(self) -> str:
        """Return the whole recipe as TOML, with all defaults and all constants of the front end."""
        plain = without_none(self.model_dump())
        front_end = without_none(asdict(self.settings().front_end))
        plain["front_end"] = {
            "name": self.front_end.get("name", "ninth"),
            **{k: v for k, v in front_end.items() if k != "name"},
        }
        return tomli_w.dumps(plain)

    def digest(self) -> str:
        """Return the SHA-256 of the resolved recipe."""
        return hashlib.sha256(self.resolved().encode()).hexdigest()

    def differences(self, other: Recipe) -> list[str]:
        """Return the differences from another recipe, both resolved, such as "stages.0.epochs is 9 and was 3"."""
        return differing_values(*(tomllib.loads(recipe.resolved()) for recipe in (self, other)))


def _extended(stage: dict[str, Any], number: int, earlier: list[Any]) -> dict[str, Any]:
    """Return the keys of a stage on top of those of the earlier stage that it extends."""
    base = stage["extends"]
    tables = [other for other in earlier if isinstance(other, dict)]
    known = {other["name"]: other for other in tables if isinstance(other.get("name"), str)}
    if not isinstance(base, str) or base not in known:
        raise ValueError(f"stage {number} extends {base!r}; {did_you_mean(str(base), list(known))}")
    return {**known[base], **{key: value for key, value in stage.items() if key != "extends"}}


def _without(names: Sequence[str] | None, left_out: Collection[str]) -> list[str] | None:
    """Return names without some of them; None stays None."""
    return None if names is None else [name for name in names if name not in left_out]


def differing_values(new: dict[str, Any], old: dict[str, Any]) -> list[str]:
    """Return the differences between nested tables, such as "stages.0.epochs is 9 and was 3"."""
    ours, theirs = dict(_flat(new)), dict(_flat(old))
    return [
        f"{key} is {ours.get(key, 'not set')} and was {theirs.get(key, 'not set')}"
        for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)
    ]


def _flat(plain: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value of nested tables with its dotted key."""
    if not isinstance(plain, (dict, list)) or not plain:
        yield at, plain
        return
    for key, value in plain.items() if isinstance(plain, dict) else enumerate(plain):
        yield from _flat(value, f"{at}.{key}" if at else str(key))


def without_none(plain: Any) -> Any:
    """Return nested tables without the keys that are None, since TOML has no null."""
    if isinstance(plain, dict):
        return {k: without_none(v) for k, v in plain.items() if v is not None}
    if isinstance(plain, (list, tuple)):
        return [without_none(v) for v in plain]
    return plain


def _allowed_keys(location: tuple[int | str, ...]) -> list[str]:
    """Return the keys of the section of a pydantic location."""
    section: Any = Recipe
    for part in location[:-1]:
        if isinstance(part, str):
            section = {"clips": Clips, "folds": Folds, "model": Model, "stages": Stage, "tta": TTA}.get(
                part, section
            )
    return list(section.model_fields)


def validated(plain: dict[str, Any], where: str, *, trains: bool = True) -> Recipe:
    """Validate plain tables as a recipe; `trains` is that of `load_recipe`.

    Raises
    ------
    RecipeError
        If keys or values are not valid; the message starts with `where` and lists every fault with what is allowed.
    """
    refuse_old_keys(plain, where)
    try:
        return Recipe.model_validate(plain, context=None if trains else WITHOUT_TRAINING)
    except ValidationError as e:
        raise RecipeError(f"{where}: " + "; ".join(_faults(e.errors()[:100]))) from None


def _faults(errors: list[Any]) -> Iterator[str]:
    """Yield a sentence for each pydantic error that does not follow from another one inside it."""
    for error in errors:
        loc = error["loc"]
        if any(other["loc"][:len(loc)] == loc for other in errors if other is not error):
            continue
        # Not the names of the types of a union, which pydantic adds.
        key = ".".join(str(part) for part in loc if not re.search(r"[(\[]|^constrained-", str(part))) or "the recipe"
        if error["type"] == "extra_forbidden":
            yield f"unknown key {key}; {did_you_mean(str(loc[-1]), _allowed_keys(loc))}"
            continue
        value = error.get("input")
        given = f" is {value!r}" if not isinstance(value, dict) and error["type"] != "missing" else ""
        yield f"{key}{given}: {error['msg'].removeprefix('Value error, ')}"


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with fatai."""
    return sorted(
        f.name.removesuffix(".toml")
        for f in (resources.files("fatai") / "recipes").iterdir()
        if f.name.endswith(".toml")
    )


def recipe_text(name: str) -> str:
    """Return the text of a recipe of fatai, or of a path that ends in .toml; raises `RecipeError` if there is none."""
    if str(name).endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise RecipeError(
                f"there is no recipe file {path}; expected a TOML file, or one of: {', '.join(recipe_names())}"
            )
        try:
            return read_text_limited(path, _MAX_BYTES)
        except (OSError, UnicodeDecodeError) as e:
            raise RecipeError(f"{path} cannot be read as text: {e}") from None
    if _is_ensemble(name):
        raise RecipeError(
            f"{name} is an ensemble, and one recipe is expected, such as that of one of its members: "
            f"fatai-submit recipes show {name}"
        )
    if name not in recipe_names():
        raise RecipeError(
            f"no recipe named {name!r} (a file of yours must end in .toml); {did_you_mean(name, recipe_names())}"
        )
    return ((resources.files("fatai") / "recipes") / f"{name}.toml").read_text(encoding="utf-8")


def _is_ensemble(name: str) -> bool:
    """Return True if `name`, with or without "ensembles/", is that of an ensemble of fatai and of no recipe."""
    file = resources.files("fatai") / "recipes" / "ensembles" / f"{name.removeprefix('ensembles/')}.toml"
    return name not in recipe_names() and re.fullmatch(r"(ensembles/)?\w+", name) is not None and file.is_file()


def load_recipe(name: str | Path, *, trains: bool = True) -> Recipe:
    """Load a recipe by name, or from a path that ends in .toml.

    Parameters
    ----------
    name
        Name or path.
    trains
        False leaves the losses, schedules, augmentations and noisy-label methods of the stages unchecked, for a recipe
        of which only the network and the clips are used; fastai is not imported then.

    Raises
    ------
    RecipeError
        If there is no such recipe, it is not valid TOML, or it has an unknown key, a key of an earlier version or a
        value of the wrong type; the message names file, key and what is allowed.
    """
    return validated(parse_toml(recipe_text(str(name)), str(name)), str(name), trains=trains)


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """Parse a TOML text into tables; raises `RecipeError` that names `where`."""
    if _DEEP_KEY.search(text):  # the time of the parser grows with the square of the depth
        raise RecipeError(f"{where} is not valid TOML: tables are nested too deeply")
    try:
        return tomllib.loads(text)
    except ValueError as e:  # besides TOML errors, numbers with more digits than Python converts
        raise RecipeError(f"{where} is not valid TOML: {str(e)[:300]}") from None
    except RecursionError:
        raise RecipeError(f"{where} is not valid TOML: tables are nested too deeply") from None
