"""Scale a recipe down by one rule for all recipes, so that small versions of different recipes can be compared.

=================  ===============  =======================================  ==========================
..                 full             small                                    tiny
=================  ===============  =======================================  ==========================
width of networks  as published     a quarter                                a sixteenth
clips trained on   as published     as many as in 40 epochs of curated ones  one epoch in each stage
an epoch           as published     every training clip once                 every training clip once
clips in a batch   as published     16 at most                               16 at most
folds              as published     2 at most                                2 at most
views of a clip    as published     4 at most; tiles that don't overlap      2 at most; tiles likewise
seconds of a crop  as published     as published                             4 at most
=================  ===============  =======================================  ==========================

Networks with pretrained weights keep their width, and those of timm have none.

The epochs of the stages keep their published ratios, with at least one epoch each; a recipe that trains on many noisy
clips has fewer epochs, because each has more clips. Lengths in epochs (of a warm-up, of a cycle, without augmentation
at the end) shrink with the epochs of their stage; learning rates with the square root of the batch size; numbers of
noisy clips, published for 19,815 clips, with the number there are. Everything else stays: front end, losses,
augmentations, weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fatai.errors import OptionError
from fatai.experiment.epochs import multiply_options, with_epochs
from fatai.experiment.estimate import max_clips
from fatai.experiment.recipe import Recipe, validated
from fatai.experiment.schema import Stage
from fatai.registry import did_you_mean

__all__ = ["SCALES", "Scale", "scale_recipe"]

_PUBLISHED_NOISY = 19_815
_IN_CLIPS = ("n", "k")  # options of noisy-label methods that are numbers of clips
_OVERLAPPING = ("step_frames", "step_s")


@dataclass(frozen=True)
class Scale:
    """A column of the table of scales.

    Attributes
    ----------
    width
        Factor of the width of networks.
    passes
        Clips trained on, in epochs of the curated clips; 0 is one epoch per stage.
    bs, folds, n_views, crop_s
        Upper bounds of clips per batch, folds, views of a clip and seconds of a crop.
    """

    width: float
    passes: int
    bs: int = 16
    folds: int = 2
    n_views: int = 4
    crop_s: float = math.inf


SCALES: dict[str, Scale | None] = {
    "full": None,
    "small": Scale(1 / 4, 40),
    "tiny": Scale(1 / 16, 0, n_views=2, crop_s=4.0),
}
"""Scales by name; None leaves a recipe as it is."""


def scale_recipe(
    recipe: Recipe, scale: str | Scale, n_noisy: int | None = None, n_curated: int | None = None
) -> Recipe:
    """Return a recipe in another size.

    Parameters
    ----------
    scale
        A name of `SCALES`, or a `Scale`; the table of this module has the rule.
    n_noisy
        Number of noisy clips; None leaves numbers of noisy clips as they are.
    n_curated
        Number of curated clips, held-out ones included; None counts epochs instead of clips, as if all stages had the
        same number.

    Raises
    ------
    OptionError
        If there is no scale of that name.

    Examples
    --------
    >>> from fatai.experiment.recipe import load_recipe
    >>> small = scale_recipe(load_recipe("fastai_kernel"), "small")
    >>> small.model.width, [stage.epochs for stage in small.stages], small.stages[0].bs
    (0.25, [2, 3, 7, 7, 17, 3], 16)
    """
    if isinstance(scale, str) and scale not in SCALES:
        raise OptionError(f"scale is {scale!r}; {did_you_mean(scale, list(SCALES))}")
    config = SCALES[scale] if isinstance(scale, str) else scale
    if config is None:
        return recipe
    plain = recipe.model_dump()
    if not _has_fixed_width(recipe):
        plain["model"]["width"] = (recipe.model.width or 1.0) * config.width
    plain["clips"]["crop_s"] = min(config.crop_s, recipe.clips.crop_s)
    n_folds = _scale_folds(plain["folds"], config)
    _scale_tta(plain["tta"], config, plain["clips"]["crop_s"])
    for stage in plain["stages"]:
        _scale_noisy(stage, config, n_noisy)
    epochs = _epochs(plain["stages"], config, n_folds, n_noisy or 0, n_curated)
    for stage, n_epochs in zip(plain["stages"], epochs, strict=True):
        _scale_stage(stage, n_epochs, config)
    return validated(plain, f"{recipe.name} in a smaller size")


def _has_fixed_width(recipe: Recipe) -> bool:
    """Return True if the width cannot be scaled: weights are of one width, and networks of timm have none."""
    return bool(recipe.model.options.get("pretrained")) or recipe.model.arch.startswith("timm:")


def _scale_folds(folds: dict[str, Any], config: Scale) -> int:
    """Reduce the folds in place and return their number."""
    n_folds = min(config.folds, folds["n"])
    if folds["splitter"] == "predefined":
        # The column defines the number of folds; train only some of them.
        folds["run_folds"] = list(folds["run_folds"] or range(folds["n"]))[:n_folds]
        return folds["n"]
    if folds["run_folds"] is not None:
        folds["run_folds"] = sorted({fold % n_folds for fold in folds["run_folds"]})
    folds["n"] = n_folds
    return n_folds


def _scale_tta(tta: dict[str, Any], config: Scale, crop_s: float) -> None:
    """Reduce the views in place."""
    if tta["views"] == "tiles":
        tta["options"] = {**{k: v for k, v in tta["options"].items() if k not in _OVERLAPPING}, "step_s": crop_s}
    elif tta["views"] not in ("whole", "padded"):
        tta["n"] = min(config.n_views, tta["n"] or config.n_views)


def _epochs(
    stages: list[dict[str, Any]], config: Scale, n_folds: int, n_noisy: int, n_curated: int | None
) -> list[int]:
    """Return the epochs of each stage: 1 to those before, together as many clips as the passes over curated ones."""
    before = [stage["epochs"] for stage in stages]
    clips, pass_clips = [1] * len(stages), 1
    if n_curated is not None:
        pass_clips = round(n_curated * (1 - 1 / n_folds))
        clips = [max_clips(Stage.model_validate(stage), pass_clips, n_noisy, n_folds) for stage in stages]
    factor = config.passes * pass_clips / sum(n * k for n, k in zip(before, clips, strict=True))
    return [min(n, max(1, math.floor(n * factor + 0.5))) for n in before]


def _scale_noisy(stage: dict[str, Any], config: Scale, n_noisy: int | None) -> None:
    if stage["noisy_labels"] is not None and n_noisy is not None:
        # At least as many clips as folds, so that they can be split among the folds.
        factor = min(1.0, n_noisy / _PUBLISHED_NOISY)
        stage["noisy_labels"] = multiply_options(stage["noisy_labels"], _IN_CLIPS, factor, min_value=config.folds)


def _scale_stage(stage: dict[str, Any], epochs: int, config: Scale) -> None:
    """Change epochs, batch size and what depends on them in place."""
    bs = min(config.bs, stage["bs"])
    lr_factor = math.sqrt(bs / stage["bs"])
    stage.update(with_epochs(stage, epochs))
    if "start_lr" in stage["schedule_options"]:
        stage["schedule_options"]["start_lr"] *= lr_factor
    stage.update(bs=bs, lr=stage["lr"] * lr_factor)
    if stage["lr_min"] is not None:
        stage["lr_min"] *= lr_factor
    stage["sampling_options"] = {k: v for k, v in stage["sampling_options"].items() if k != "n"}
