"""Sections of a recipe as typed, validated settings; every name is looked up in its registry.

The field names are the keys of the TOML file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from fatai.audio.downmix import CHANNEL_NAMES, MAX_CHANNEL
from fatai.audio.waveform import PAD_MODES
from fatai.data.cache_writer import CACHES
from fatai.data.datasets.fat2019 import CORRUPTED_FILES_ACTIONS
from fatai.data.folds import SPLITTERS
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
from fatai.training.network import NO_WEIGHT_DECAY

__all__ = ["TTA", "Clips", "Folds", "Model", "Section", "Stage"]

_TRAINING_REGISTRIES = (AUGMENTATIONS, LOSSES, MIXERS, NOISY, SCHEDULES)
PREVIOUS = "previous"
"""As the `method` of a stage's `noisy_labels`: the clips that an earlier stage selected."""

WITHOUT_TRAINING = {"trains": False}
"""Context of a validation that leaves the registries of stages out, whose entries need fastai."""


_SAMPLING_OPTIONS = {"shuffle": ["n"], "balanced": ["n", "max_repeats"], "mixture": ["n", "weights"]}


def _trains(info: ValidationInfo) -> bool:
    """Return False if the recipe is validated for predictions alone."""
    return (info.context or {}).get("trains", True)


def _among(known: Collection[str] | Registry, allow: Callable[[str], bool] = lambda value: False) -> AfterValidator:
    """Return a validator that refuses names neither known nor accepted by `allow`, and suggests the nearest.

    Names of a training registry are not looked up if the recipe is validated for predictions alone.
    """
    of_training = isinstance(known, Registry) and known in _TRAINING_REGISTRIES

    def check(value: str, info: ValidationInfo) -> str:
        if of_training and not _trains(info):
            return value
        if not allow(value) and value not in known:
            raise ValueError(
                known.suggestion(value) if isinstance(known, Registry) else did_you_mean(value, list(known))
            )
        return value

    return AfterValidator(check)


def build_named(registry: Registry, table: dict[str, Any], key: str = "name") -> Any:
    """Build the entry of a registry that a table of a recipe names.

    Parameters
    ----------
    table
        The name, under `key`, and the options of the registered builder; lists become tuples.

    Examples
    --------
    >>> build_named(AUGMENTATIONS, {"name": "gain", "p": 0.5}).p
    0.5
    """
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items() if k != key}
    return registry.build(table[key], **options)


def _checked(registry: Registry, table: dict[str, Any], key: str = "name") -> dict[str, Any]:
    """Return a table after building its entry once; raises `ValueError` where that fails."""
    if not isinstance(table.get(key), str):
        raise ValueError(f"needs a {key}; known: {', '.join(registry.names())}")
    try:
        build_named(registry, table, key)
    except (FataiError, TypeError) as e:
        raise ValueError(str(e)) from e
    return table


Seed = Annotated[int, Field(ge=0, le=1 << 31)]
"""A seed that Python, numpy and torch accept, also after a fold's number is added."""


class Section(BaseModel):
    """Base of all sections: unknown keys are refused and values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Clips(Section):
    """How clips are loaded and cut.

    Attributes
    ----------
    crop_s
        Length of a training crop in seconds.
    trim_db
        Silence that is quieter than the clip's peak by this many dB is cut off at both ends; `False` keeps it.
    pad_mode
        Padding of clips that are shorter than a crop, a name of `fatai.audio.waveform.PAD_MODES`.
    channels
        Input channels of the network, a name of `CHANNELS`; None is the front end's own.
    channel
        Channel of sound files: "auto" (the mean, or the loudest where the mean cancels or only one has sound), "mean",
        "loudest", or a number from 1.
    corrupted_files
        Treatment of the competition's six corrupted files, as `corrupted_files` of
        `fatai.data.datasets.fat2019.load_dataset`.
    cache
        Where training reads clips from, a key of `fatai.data.cache_writer.CACHES`: "auto" holds decoded clips in memory
        if they fit, or else on disk.
    """

    crop_s: float = Field(2.0, ge=0.05, le=600)
    trim_db: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal[False] = 60.0
    pad_mode: Annotated[str, _among(PAD_MODES)] = "constant_center"
    channels: Annotated[str, _among(CHANNELS)] | None = None
    channel: Annotated[str, _among(tuple(name for name in CHANNEL_NAMES if name != "each"))] | Annotated[
        int, Field(strict=True, ge=1, le=MAX_CHANNEL)
    ] = "auto"
    corrupted_files: Annotated[str, _among(CORRUPTED_FILES_ACTIONS)] = "keep"
    cache: Annotated[str, _among(tuple(CACHES))] = "auto"

    @field_validator("trim_db", mode="before")
    @classmethod
    def _number_or_false(cls, value: Any) -> Any:
        # A 0, of any type, would count as false.
        if value is True or value is not False and value == 0:
            raise ValueError("expected a number of dB above 0, or false to keep silence")
        return value


class Folds(Section):
    """How the curated clips are split into folds.

    Attributes
    ----------
    splitter
        A name of `fatai.data.folds.SPLITTERS`.
    n, seed
        Number of folds and seed of the split.
    run_folds
        Folds that are trained, counted from 0; None trains all.
    group_col
        Column of train_curated.csv with the groups ("group") or the fold of each clip ("predefined"). With "group",
        "sound" makes a group of each sound and its copies under other names; it needs no column.
    select_on
        Clips by whose score a fold selects its epoch and stops early: "held_out", its own held-out clips, as the
        published systems did, which makes the out-of-fold score optimistic; or "inner", about a fifth of its training
        clips, which are then not trained on.
    """

    splitter: Annotated[str, _among(SPLITTERS)] = "stratified"
    n: int = Field(5, ge=2, le=100)
    seed: Seed = 2019
    run_folds: tuple[int, ...] | None = None
    group_col: str | None = None
    select_on: Literal["held_out", "inner"] = "held_out"

    @model_validator(mode="after")
    def _run_folds_exist(self) -> Folds:
        chosen = self.run_folds
        if chosen is not None and (not chosen or not all(0 <= fold < self.n for fold in chosen)):
            raise ValueError(f"run_folds is {list(chosen)}; expected one or more of the folds 0 to {self.n - 1}")
        return self

    @model_validator(mode="after")
    def _group_col_fits_splitter(self) -> Folds:
        needed = self.splitter in ("group", "predefined")
        if needed and self.group_col is None:
            raise ValueError(
                f"splitter is {self.splitter!r}, which reads a column of train_curated.csv; give its name as group_col"
            )
        if not needed and self.group_col is not None:
            raise ValueError(
                f"group_col is {self.group_col!r}, but the splitter {self.splitter!r} reads no column; "
                "expected group or predefined"
            )
        return self


class Model(Section):
    """Architecture of the network.

    Attributes
    ----------
    arch
        A name of `MODELS`, or "timm:" and the name of a timm model, "hf-hub:OWNER/NAME" or "local-dir:PATH".
    width
        Factor of the numbers of channels; None leaves them as published.
    options
        Options of the model's builder.
    """

    arch: Annotated[str, _among(MODELS, allow=lambda arch: arch.startswith("timm:"))] = "m3"
    width: float | None = Field(None, gt=0, le=16)
    options: dict[str, Any] = {}

    @field_validator("options")
    @classmethod
    def _without_reserved(cls, value: dict[str, Any]) -> dict[str, Any]:
        reserved = sorted(value.keys() & {"name", "n_tags", "in_channels"})
        if reserved:
            raise ValueError(f"{reserved[0]} cannot be set: it follows from the data and the front end")
        return value


class Stage(Section):
    """One fit: its clips, batches, loss, optimizer, schedule and checkpoint.

    Attributes
    ----------
    lr, lr_min
        Learning rate of the last layer group and, if given, of the first; between them it grows by equal factors.
        Networks have the groups body and head, those with fastai's head three, those of timm one per stage.
    freeze_bn
        Train with the stored means and variances of batch norms, as `fatai.callbacks.batch_norm.FreezeBatchNorm`: for
        published weights and few clips.
    layer_decay
        Factor of the learning rate from each layer to the one before it, as `fatai.callbacks.layer_decay.LayerDecay`;
        0.75 is usual for pretrained transformers. None leaves it out.
    optimizer, momentum, sqr_mom
        "adam" couples weight decay to the gradient, "adamw" does not; "amsgrad" is torch's and needs `no_weight_decay =
        "none"` or `wd = 0`; `momentum` is that of "sgd", `sqr_mom` the second beta of "adam" and "adamw".
    no_weight_decay
        Parameters without weight decay, a name of `fatai.training.network.NO_WEIGHT_DECAY`.
    clip_grad_value, clip_grad_norm
        Limits of each gradient element and of the norm of all gradients.
    grad_accum
        Batches whose gradients are accumulated before an optimizer step.
    early_stopping_patience, min_lr_stop
        End the stage when lwlrap has not improved for that many epochs, or when the learning rate has fallen to that
        value.
    ema_decay
        Validate with, save and end with an exponential moving average of the weights, whose decay warms up to this
        value, such as 0.999 (`fatai.callbacks.averaging.WeightAverage`); None takes the weights as they are.
    checkpoint
        Weights that the stage ends with: "last"; "best" (epoch of the best lwlrap), or "best_overall": the best epoch
        of this stage and the ones before it, back to the last stage with checkpoint "best" or `reinit`. The latter two
        make the out-of-fold score optimistic, unless `folds.select_on` is "inner".
    mixup, augment
        The `name` of a mixer with its options; a list of augmentations by `name` with their options, applied in order.
    item_tfms
        Augmentations of single waveforms as they are loaded, before they are cropped.
    no_aug_epochs
        Number of last epochs without mixing and augmentation.
    no_mixup_epochs
        Number of last epochs without mixing; None is `no_aug_epochs`.
    sampling, sampling_options
        "shuffle" draws every clip once in an epoch, or `n` clips: with few clips, an epoch of several passes spares
        most of the time for validation and checkpoints. "balanced" draws all tags equally often, as
        `fatai.data.samplers.BalancedSampler`; "mixture" draws from the sources (curated, noisy, corrected) with the
        `weights` in `sampling_options`, or with those of the noisy-label method.
    noisy_labels
        The `method` (a name of `NOISY`) and its options: the noisy clips that it selects are added to the curated ones
        in this stage. Its input is the mean prediction of the previous stages' models over the folds that were not
        trained on the clip. "previous" reuses the last selection.
    noisy_sample_weight
        Factor of the method's sample weights.
    noisy_fold_split
        Which selected clips a fold gets: "all", "own" (its part) or "others" (all but its part), as in
        `fatai.data.folds.noisy_fold_masks`.
    reinit
        Start from newly initialized weights instead of those of the stage before.
    teacher
        Finished runs or model folders, one or a list, whose mean probabilities the stage learns from
        (`fatai.experiment.distill`): any run, also one of recipe `probe`. Cannot be used together with `noisy_labels`.
    teacher_weight
        Share of the teacher's probabilities in the targets of curated clips; the rest is that of their labels.
    teacher_clips
        Further clips to learn from, whose targets are the teacher's probabilities alone: "noisy", the noisy clips
        without their labels, or a folder of sounds; None learns from curated clips.
    linear_probe
        Fit logistic regressions (`C`, `max_iter`) on the frozen features instead of training, as the last layer of a
        network of PANNs or EfficientAT. Of several values of `C` that of the lowest log loss over inner folds of the
        training clips is taken. Of the other settings only `bs` is used.
    """

    name: str = "fit"
    epochs: int = Field(20, ge=1, le=100_000)
    bs: int = Field(64, ge=1, le=100_000)
    lr: float = Field(1e-3, gt=0, le=100)
    lr_min: float | None = Field(None, gt=0, le=100)
    freeze_bn: bool = False
    layer_decay: float | None = Field(None, gt=0, le=1)
    schedule: Annotated[str, _among(SCHEDULES)] = "one_cycle"
    schedule_options: dict[str, Any] = {}
    optimizer: Literal["adam", "adamw", "amsgrad", "sgd"] = "adamw"
    momentum: float = Field(0.9, ge=0, lt=1)
    sqr_mom: float = Field(0.999, ge=0, lt=1)
    wd: float = Field(0.01, ge=0)
    no_weight_decay: Annotated[str, _among(NO_WEIGHT_DECAY)] = "norm_and_bias"
    loss: Annotated[str, _among(LOSSES, allow=lambda loss: "+" in loss)] = "bce"
    loss_options: dict[str, Any] = {}
    clip_grad_value: float | None = Field(None, gt=0)
    clip_grad_norm: float | None = Field(None, gt=0)
    grad_accum: int = Field(1, ge=1, le=10_000)
    early_stopping_patience: int | None = Field(None, ge=1)
    min_lr_stop: float | None = Field(None, gt=0)
    ema_decay: float | None = Field(None, ge=0, lt=1)
    checkpoint: Literal["best", "last", "best_overall"] = "last"
    mixup: dict[str, Any] | None = None
    augment: tuple[dict[str, Any], ...] = ()
    item_tfms: tuple[dict[str, Any], ...] = ()
    no_aug_epochs: int | None = Field(None, ge=1)
    no_mixup_epochs: int | None = Field(None, ge=1)
    sampling: Literal["shuffle", "balanced", "mixture"] = "shuffle"
    sampling_options: dict[str, Any] = {}
    noisy_labels: dict[str, Any] | None = None
    noisy_sample_weight: float = Field(1.0, ge=0, le=1000)
    noisy_fold_split: Literal["all", "own", "others"] = "all"
    reinit: bool = False
    teacher: tuple[str, ...] | None = None
    teacher_weight: float = Field(0.5, ge=0, le=1)
    teacher_clips: str | None = None
    linear_probe: dict[Literal["C", "max_iter"], float | tuple[float, ...]] | None = None

    @property
    def selects_noisy(self) -> bool:
        """True if the stage makes a new selection of noisy clips."""
        return self.noisy_labels is not None and self.noisy_labels.get("method") != PREVIOUS

    @field_validator("noisy_labels")
    @classmethod
    def _known_method(cls, value: dict[str, Any] | None, info: ValidationInfo) -> dict[str, Any] | None:
        if value is None or value == {"method": PREVIOUS} or not _trains(info):
            return value
        return _checked(NOISY, value, "method")

    @model_validator(mode="after")
    def _shuffling_has_a_number(self) -> Stage:
        options = self.sampling_options
        if self.sampling == "shuffle" and options:
            n = options.get("n")
            if options.keys() != {"n"} or not isinstance(n, int) or isinstance(n, bool) or n < 1:
                raise ValueError(
                    f'sampling_options is {options}; expected for sampling "shuffle" nothing but n, the number of '
                    "clips to draw in an epoch"
                )
        return self

    @model_validator(mode="after")
    def _sampling_options_are_known(self) -> Stage:
        known = _SAMPLING_OPTIONS[self.sampling]
        for name in self.sampling_options:
            if name not in known:
                raise ValueError(f"sampling {self.sampling!r} has no option {name!r}; {did_you_mean(name, known)}")
        return self

    @field_validator("teacher", mode="before")
    @classmethod
    def _one_teacher_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _teacher_fits(self) -> Stage:
        if self.teacher is None and self.teacher_clips is not None:
            raise ValueError("teacher_clips is set without a teacher; expected the folder of a run as teacher")
        if self.teacher is not None and not self.teacher:
            raise ValueError("teacher is an empty list; expected one or more folders of runs")
        if self.teacher is not None and (self.noisy_labels is not None or self.linear_probe is not None):
            other = "noisy_labels" if self.noisy_labels is not None else "linear_probe"
            raise ValueError(f"teacher and {other} both set the targets of the clips; leave one of them out")
        return self

    @field_validator("linear_probe")
    @classmethod
    def _check_linear_probe(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        given = value or {}
        penalties = given.get("C", 2.0) if isinstance(given.get("C"), tuple) else (given.get("C", 2.0),)
        if not penalties or not all(c > 0 for c in penalties):
            raise ValueError(f"C is {given['C']}; expected a number above 0, or a list of such numbers")
        if isinstance(given.get("max_iter"), tuple) or not given.get("max_iter", 1) >= 1:
            raise ValueError(f"max_iter is {given['max_iter']}; expected a whole number of at least 1")
        return value

    @model_validator(mode="after")
    def _one_way_to_split_lr(self) -> Stage:
        if self.lr_min is not None and self.layer_decay is not None:
            raise ValueError("lr_min and layer_decay both set the rates of earlier layers; leave one of them out")
        return self

    @model_validator(mode="after")
    def _amsgrad_decays_all(self) -> Stage:
        if self.optimizer == "amsgrad" and self.wd and self.no_weight_decay != "none":
            raise ValueError(
                'amsgrad applies weight decay to all parameters; set wd = 0 or no_weight_decay = "none", or use "adam"'
            )
        return self

    @model_validator(mode="after")
    def _loss_and_schedule_can_be_built(self, info: ValidationInfo) -> Stage:
        if not _trains(info):
            return self
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
    def _known_mixer(cls, value: dict[str, Any] | None, info: ValidationInfo) -> dict[str, Any] | None:
        return value if value is None or not _trains(info) else _checked(MIXERS, value)

    @field_validator("augment")
    @classmethod
    def _known_augmentations(
        cls, value: tuple[dict[str, Any], ...], info: ValidationInfo
    ) -> tuple[dict[str, Any], ...]:
        return tuple(_checked(AUGMENTATIONS, table) for table in value) if _trains(info) else value

    @field_validator("item_tfms")
    @classmethod
    def _known_item_tfms(
        cls, value: tuple[dict[str, Any], ...], info: ValidationInfo
    ) -> tuple[dict[str, Any], ...]:
        if not value or not _trains(info):
            return value
        from fatai.augment.wave import WaveAugmentation

        for table in value:
            if not isinstance(build_named(AUGMENTATIONS, _checked(AUGMENTATIONS, table)), WaveAugmentation):
                raise ValueError(f"{table['name']} does not transform single waveforms; put it in augment")
        return value


class TTA(Section):
    """Test-time augmentation: the views of a clip and how predictions are averaged.

    Attributes
    ----------
    views
        Kind of views, a name of `VIEWS`.
    n, options
        Number of views (None is the kind's default) and further options of the kind.
    average
        What is averaged over the views of a clip: "probs" or "logits".
    fold_average
        How the test predictions of the folds are averaged: "mean" or "gmean" (geometric mean).
    """

    views: Annotated[str, _among(VIEWS)] = "even"
    n: int | None = Field(None, ge=1, le=1000)
    options: dict[str, Any] = {}
    average: Literal["probs", "logits"] = "probs"
    fold_average: Literal["mean", "gmean"] = "mean"

    @model_validator(mode="after")
    def _views_can_be_built(self) -> TTA:
        _checked(VIEWS, {"name": self.views, **({} if self.n is None else {"n": self.n}), **self.options})
        return self
