"""The sections of a recipe: typed, checked settings, each value that has a name looked up in its registry."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from fatai.data.cache import CACHE_KINDS
from fatai.data.datasets.fat2019 import CORRUPTED_HOW
from fatai.data.folds import FOLD_MAKERS
from fatai.errors import FataiError
from fatai.registry import (
    AUGMENTATIONS,
    CHANNELS,
    LOSSES,
    MIXERS,
    MODELS,
    NOISY,
    SCHEDULES,
    VIEWS,
    Registry,
    did_you_mean,
)
from fatai.audio.waveform import PAD_MODES
from fatai.training.learner import NO_WEIGHT_DECAY

__all__ = ["KEPT", "Clips", "Folds", "Listen", "Model", "Section", "Seed", "Stage", "built"]

KEPT = "kept"
"""As the name of a stage's noisy method: the clips that were chosen before."""


def _among(known: Collection[str] | Registry, free: Callable[[str], bool] = lambda value: False) -> AfterValidator:
    """What refuses a name that isn't among the known ones, with the nearest; what is `free` passes."""

    def check(value: str) -> str:
        if not free(value) and value not in known:
            raise ValueError(did_you_mean(value, known.names() if isinstance(known, Registry) else list(known)))
        return value

    return AfterValidator(check)


def _buildable(registry: Registry, named: dict[str, Any]) -> dict[str, Any]:
    """A table of `name` and options, of which the registry makes something."""
    if not isinstance(named.get("name"), str):
        raise ValueError(f"needs a name; known: {', '.join(registry.names())}")
    try:
        registry.build(named["name"], **_options(named))
    except (FataiError, TypeError) as e:
        raise ValueError(str(e)) from e
    return named


def _options(named: dict[str, Any]) -> dict[str, Any]:
    """All but the name; a TOML array is a tuple."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in named.items() if k != "name"}


def built(registry: Registry, named: dict[str, Any]) -> Any:
    """What a table of `name` and options in a recipe means."""
    return registry.build(named["name"], **_options(named))


Seed = Annotated[int, Field(ge=0, le=1 << 31)]
"""What Python, numpy and torch take, with the number of a fold added."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Clips(Section):
    """How a clip is read and cut."""

    crop_s: float = Field(2.0, ge=0.05, le=600)
    trim_db: Annotated[float, Field(ge=0, allow_inf_nan=False)] | Literal["none"] = 60.0
    pad_mode: Annotated[str, _among(PAD_MODES)] = "constant_center"
    channels: Annotated[str, _among(CHANNELS)] | None = None
    corrupted: Annotated[str, _among(CORRUPTED_HOW)] = "keep"
    cache: Annotated[str, _among(("none", *CACHE_KINDS))] = "none"


class Folds(Section):
    """How the curated clips are split; `only` names the folds that are trained, counted from 0, where a system trained not all of them.

    `column` is the column of train_curated.csv that says what stays together ("grouped") or which fold a clip is in ("given").
    """

    how: Annotated[str, _among(FOLD_MAKERS)] = "stratified_argmax"
    n: int = Field(5, ge=2, le=100)
    seed: Seed = 2019
    only: tuple[int, ...] | None = None
    column: str | None = None

    @model_validator(mode="after")
    def _only_folds_there_are(self) -> Folds:
        if self.only is not None and (not self.only or not all(0 <= fold < self.n for fold in self.only)):
            raise ValueError(f"only is {list(self.only)}; expected one or more of the folds 0 to {self.n - 1}")
        return self

    @model_validator(mode="after")
    def _a_column_where_it_is_read(self) -> Folds:
        reads = self.how in ("grouped", "given")
        if reads and self.column is None:
            raise ValueError(f"how is {self.how!r}, which reads a column of train_curated.csv; give its name as column")
        if not reads and self.column is not None:
            raise ValueError(
                f"column is {self.column!r}, but folds made by {self.how!r} read none; expected grouped or given"
            )
        return self


class Model(Section):
    """Which network; `options` are those of its builder."""

    arch: Annotated[str, _among(MODELS, free=lambda arch: arch.startswith("timm:"))] = "m3"
    width: float | None = Field(None, gt=0, le=16)
    options: dict[str, Any] = {}

    @field_validator("options")
    @classmethod
    def _left_to_the_data(cls, value: dict[str, Any]) -> dict[str, Any]:
        taken = sorted(value.keys() & {"name", "n_tags", "in_channels"})
        if taken:
            raise ValueError(f"{taken[0]} is no option: the data and the front end tell it")
        return value


class Stage(Section):
    """One fit: how long, how fast, towards what, from which clips and batches.

    Attributes
    ----------
    lr_first
        Learning rate of a network's first layers, where `lr` is that of the last; between them it grows by equal factors from group to
        group. Networks have the groups body and head, those with fastai's head three.
    optimizer, momentum, sqr_mom
        "adam" couples weight decay to the gradient, "adamw" doesn't; "amsgrad" is torch's and takes `no_decay = "none"` or no decay;
        `momentum` is that of "sgd", `sqr_mom` the second beta of "adam" and "adamw".
    clamp_gradients, clip_norm
        Limits of every element and of the norm of all gradients.
    accumulate
        Batches whose gradients make one step.
    stop_after, stop_at_rate
        End early when lwlrap got no better for so many epochs, or when the learning rate has come down so far.
    keep
        Which weights the stage leaves: "best" (of the epoch with the best lwlrap), "last", or "best_of_all": the best epoch of this stage
        and of the ones before it, as far back as one that keeps "best" or begins with fresh weights.
    mixup, augment
        The `name` of a mixer with its options; names of augmentations with theirs, in their order.
    items
        Changes of whole clips as they are read, before they are cropped: names of augmentations of waves with their options.
    changes_off
        In how many last epochs nothing is mixed or changed at random.
    sampling
        "balanced" draws all tags alike, as `fatai.data.samplers.Balanced`; "mixture" draws from the sources (curated, noisy, corrected)
        with the shares in `sampling_options`, or with those of the noisy method.
    noisy
        The `name` of a method of `NOISY` with its options: the clips that it chooses join the curated ones in this stage. What the models
        of the stage before think of each noisy clip is the mean over the folds that never trained on it. "kept" takes the last choice
        again.
    noisy_weight
        Times the weights of the method.
    noisy_share
        Which chosen clips a fold gets: "all", "own" (its share) or "others" (all but its share), as in `fatai.data.folds.noisy_shares`.
    fresh
        Whether to begin with new weights instead of those of the stage before.
    solve
        Instead of training: `C` and `max_iter` of logistic regressions on the frozen features, which become the last layer of a network
        of PANNs. Of the other settings only `bs` counts.
    """

    name: str = "fit"
    epochs: int = Field(20, ge=1, le=100_000)
    bs: int = Field(64, ge=1, le=100_000)
    lr: float = Field(1e-3, gt=0, le=100)
    lr_first: float | None = Field(None, gt=0, le=100)
    schedule: Annotated[str, _among(SCHEDULES)] = "one_cycle"
    schedule_options: dict[str, Any] = {}
    optimizer: Literal["adam", "adamw", "amsgrad", "sgd"] = "adamw"
    momentum: float = Field(0.9, ge=0, lt=1)
    sqr_mom: float = Field(0.999, ge=0, lt=1)
    wd: float = Field(0.01, ge=0)
    no_decay: Annotated[str, _among(NO_WEIGHT_DECAY)] = "norm_and_bias"
    loss: Annotated[str, _among(LOSSES, free=lambda loss: "+" in loss)] = "bce"
    loss_options: dict[str, Any] = {}
    clamp_gradients: float | None = Field(None, gt=0)
    clip_norm: float | None = Field(None, gt=0)
    accumulate: int = Field(1, ge=1, le=10_000)
    stop_after: int | None = Field(None, ge=1)
    stop_at_rate: float | None = Field(None, gt=0)
    keep: Literal["best", "last", "best_of_all"] = "best"
    mixup: dict[str, Any] | None = None
    augment: tuple[dict[str, Any], ...] = ()
    items: tuple[dict[str, Any], ...] = ()
    changes_off: int | None = Field(None, ge=1)
    sampling: Literal["shuffle", "balanced", "mixture"] = "shuffle"
    sampling_options: dict[str, Any] = {}
    noisy: dict[str, Any] | None = None
    noisy_weight: float = Field(1.0, ge=0, le=1000)
    noisy_share: Literal["all", "own", "others"] = "all"
    fresh: bool = False
    solve: dict[Literal["C", "max_iter"], float] | None = None

    @field_validator("noisy")
    @classmethod
    def _known_method(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return value if value is None or value == {"name": KEPT} else _buildable(NOISY, value)

    @model_validator(mode="after")
    def _amsgrad_decays_all(self) -> Stage:
        if self.optimizer == "amsgrad" and self.wd and self.no_decay != "none":
            raise ValueError('amsgrad decays every parameter alike; say wd = 0, no_decay = "none", or take "adam"')
        return self

    @model_validator(mode="after")
    def _loss_and_rates_can_be_built(self) -> Stage:
        for registry, name, options, arguments in [
            (LOSSES, self.loss, self.loss_options, ()),
            (SCHEDULES, self.schedule, self.schedule_options, (self.epochs, self.lr)),
        ]:
            try:
                registry.build(name, *arguments, **options)
            except (FataiError, TypeError) as e:
                raise ValueError(f"the {registry.kind} {name!r}: {e}") from e
        return self

    @field_validator("mixup")
    @classmethod
    def _known_mixer(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return value if value is None else _buildable(MIXERS, value)

    @field_validator("augment")
    @classmethod
    def _known_augmentations(cls, value: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        return tuple(_buildable(AUGMENTATIONS, change) for change in value)

    @field_validator("items")
    @classmethod
    def _known_changes_of_waves(cls, value: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        for change in value:
            if not hasattr(built(AUGMENTATIONS, _buildable(AUGMENTATIONS, change)), "change_item"):
                raise ValueError(
                    f"{change['name']} doesn't change single waves as they are read; it belongs into augment"
                )
        return value


class Listen(Section):
    """The views at the end, by name, with their options; without `n` as many as their kind chooses.

    `mean` is taken over a clip's views, `fold_mean` over what the folds' models say of test clips: "mean" or "gmean" (geometric).
    """

    how: Annotated[str, _among(VIEWS)] = "even"
    n: int | None = Field(None, ge=1, le=1000)
    options: dict[str, Any] = {}
    mean: Literal["probs", "logits"] = "probs"
    fold_mean: Literal["mean", "gmean"] = "mean"

    @model_validator(mode="after")
    def _views_can_be_built(self) -> Listen:
        _buildable(VIEWS, {"name": self.how, **({} if self.n is None else {"n": self.n}), **self.options})
        return self
