"""Smaller versions of a recipe, all by one rule, so that small versions of different recipes can be compared.

=================  ===============  =======================================  ==========================
..                 full             small                                    tiny
=================  ===============  =======================================  ==========================
width of networks  as published     a quarter                                a sixteenth
clips seen         as published     as many as in 40 epochs of curated ones  one epoch in each stage
an epoch           as published     every training clip once                 every training clip once
clips in a batch   as published     16 at most                               16 at most
folds              as published     2 at most                                2 at most
views of a clip    as published     4 at most; tiles that don't overlap      2 at most; tiles likewise
seconds of a crop  as published     as published                             4 at most
=================  ===============  =======================================  ==========================

What follows from it: the epochs of stages are to each other as published, at least one each; a recipe that trains on many noisy clips has
fewer of them, because each sees more. Lengths in epochs (of a warm-up, of a cycle, without changes at the end) shrink as the epochs of
their stage do; learning rates shrink with the square root of the batch; numbers of noisy clips, which were chosen from 19,815, shrink with
the number there are. All else stays: sound, losses, changes, shares.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fatai.errors import OptionError
from fatai.experiment.clips import most_clips
from fatai.experiment.recipe import Recipe, validated
from fatai.experiment.schema import Stage
from fatai.registry import did_you_mean

__all__ = ["SCALES", "Scale", "scaled"]

_PUBLISHED_NOISY = 19_815
_IN_EPOCHS = ("warmup_epochs", "every", "cycle")  # options of schedules that are lengths in epochs
_IN_CLIPS = ("n", "k")  # options of noisy methods that are numbers of clips
_OVERLAPPING = ("step_frames", "step_s")


@dataclass(frozen=True)
class Scale:
    """A column of the rule: factor of widths, passes over curated clips (0: an epoch a stage), clips of a batch, folds, views, seconds."""

    width: float
    passes: int
    bs: int = 16
    folds: int = 2
    views: int = 4
    crop_s: float = math.inf


SCALES: dict[str, Scale | None] = {
    "full": None,
    "small": Scale(1 / 4, 40),
    "tiny": Scale(1 / 16, 0, views=2, crop_s=4.0),
}
"""The sizes by name; None leaves a recipe as it is."""


def scaled(recipe: Recipe, size: str | Scale, n_noisy: int | None = None, n_curated: int | None = None) -> Recipe:
    """A recipe in another size.

    Parameters
    ----------
    size
        A name of `SCALES`, or a size of one's own; the module's text has the rule.
    n_noisy
        How many noisy clips there are; None leaves numbers of noisy clips as they are.
    n_curated
        How many curated clips there are, held-out ones among them; None counts epochs instead of clips, as if all stages saw as many.

    Examples
    --------
    >>> from fatai.experiment.recipe import load_recipe
    >>> small = scaled(load_recipe("fastai_kernel"), "small")
    >>> small.model.width, [stage.epochs for stage in small.stages], small.stages[0].bs
    (0.25, [2, 3, 7, 7, 17, 3], 16)
    """
    if isinstance(size, str) and size not in SCALES:
        raise OptionError(f"scale is {size!r}; {did_you_mean(size, list(SCALES))}")
    scale = SCALES[size] if isinstance(size, str) else size
    if scale is None:
        return recipe
    plain = recipe.model_dump()
    plain["model"]["width"] = (recipe.model.width or 1.0) * scale.width
    plain["clips"]["crop_s"] = crop_s = min(scale.crop_s, recipe.clips.crop_s)
    n_folds = min(scale.folds, recipe.folds.n)
    if recipe.folds.splitter == "predefined":
        # A column says how many there are; fewer of them are trained.
        plain["folds"]["run_folds"] = list(recipe.folds.run_folds or range(recipe.folds.n))[:n_folds]
        n_folds = recipe.folds.n
    elif recipe.folds.run_folds is not None:
        plain["folds"]["run_folds"] = sorted({fold % n_folds for fold in recipe.folds.run_folds})
    plain["folds"]["n"] = n_folds
    tta = plain["tta"]
    if tta["views"] == "tiles":
        tta["options"] = {**{k: v for k, v in tta["options"].items() if k not in _OVERLAPPING}, "step_s": crop_s}
    elif tta["views"] not in ("whole", "padded"):
        tta["n"] = min(scale.views, tta["n"] or scale.views)
    for stage in plain["stages"]:
        _fewer_noisy(stage, scale, n_noisy)
    for stage, epochs in zip(
        plain["stages"], _epochs(plain["stages"], scale, n_folds, n_noisy or 0, n_curated), strict=True
    ):
        _shrink(stage, epochs, scale)
    return validated(plain, f"{recipe.name} in a smaller size")


def _epochs(stages: list[dict[str, Any]], scale: Scale, n_folds: int, n_noisy: int, n_curated: int | None) -> list[int]:
    """Epochs of each stage: at least one, never more than before, and together as many clips as the passes have."""
    before = [stage["epochs"] for stage in stages]
    clips, of_a_pass = [1] * len(stages), 1
    if n_curated is not None:
        of_a_pass = round(n_curated * (1 - 1 / n_folds))
        clips = [most_clips(Stage.model_validate(stage), of_a_pass, n_noisy, n_folds) for stage in stages]
    share = scale.passes * of_a_pass / sum(n * k for n, k in zip(before, clips, strict=True))
    return [min(n, max(1, math.floor(n * share + 0.5))) for n in before]


def _fewer_noisy(stage: dict[str, Any], scale: Scale, n_noisy: int | None) -> None:
    if stage["noisy_labels"] is not None and n_noisy is not None:
        # Fewer clips than folds could not be shared out among them.
        stage["noisy_labels"] = _times(stage["noisy_labels"], _IN_CLIPS, min(1.0, n_noisy / _PUBLISHED_NOISY), least=scale.folds)


def _shrink(stage: dict[str, Any], epochs: int, scale: Scale) -> None:
    share, bs = epochs / stage["epochs"], min(scale.bs, stage["bs"])
    slower = math.sqrt(bs / stage["bs"])
    stage["schedule_options"] = _times(stage["schedule_options"], _IN_EPOCHS, share)
    if "start_lr" in stage["schedule_options"]:
        stage["schedule_options"]["start_lr"] *= slower
    stage.update(epochs=epochs, bs=bs, lr=stage["lr"] * slower)
    if stage["lr_min"] is not None:
        stage["lr_min"] *= slower
    if stage["no_aug_epochs"] is not None:
        stage["no_aug_epochs"] = max(1, round(stage["no_aug_epochs"] * share)) if epochs > 1 else None
    stage["sampling_options"] = {k: v for k, v in stage["sampling_options"].items() if k != "n"}


def _times(options: dict[str, Any], names: tuple[str, ...], factor: float, *, least: int = 1) -> dict[str, Any]:
    """Options with some numbers times `factor`; whole ones stay whole, and at least `least`."""
    def smaller(value: Any) -> Any:
        return max(least, round(value * factor)) if isinstance(value, int) else value * factor

    return {key: smaller(value) if key in names else value for key, value in options.items()}
