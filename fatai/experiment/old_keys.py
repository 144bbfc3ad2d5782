"""Keys and values of recipes of earlier versions, which are refused with the new ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fatai.errors import RecipeError

__all__ = ["OLD_KEYS", "OLD_VALUES", "refuse_old_keys"]

OLD_KEYS = {
    "published": "reference_score",
    "listen": "tta",
    "front_end.normalise": "normalize",
    "clips.short_fill": "pad_mode",
    "clips.corrupted": "corrupted_files",
    "folds.how": "splitter",
    "folds.only": "run_folds",
    "folds.column": "group_col",
    "stages.like": "extends",
    "stages.lr_first": "lr_min",
    "stages.no_decay": "no_weight_decay",
    "stages.clamp_gradients": "clip_grad_value",
    "stages.clip_norm": "clip_grad_norm",
    "stages.accumulate": "grad_accum",
    "stages.stop_after": "early_stopping_patience",
    "stages.stop_at_rate": "min_lr_stop",
    "stages.keep": "checkpoint",
    "stages.items": "item_tfms",
    "stages.changes_off": "no_aug_epochs",
    "stages.noisy": "noisy_labels",
    "stages.noisy_labels.name": "method",
    "stages.noisy_labels.keep": "keep_threshold",
    "stages.noisy_labels.add": "add_threshold",
    "stages.noisy_labels.least": "min_prob",
    "stages.noisy_labels.shares": "source_weights",
    "stages.sampling_options.shares": "weights",
    "stages.mixup.share": "lam",
    "stages.mixup.replaces": "overwrite",
    "stages.mixup.reach": "steepness",
    "stages.augment.rounds": "n_masks",
    "stages.augment.tries": "n_tries",
    "stages.augment.colour": "color",
    "stages.augment.share": "fraction",
    "stages.augment.least_s": "min_s",
    "stages.augment.wraps": "rollover",
    "stages.augment.even": "log_uniform",
    "stages.schedule_options.up": "pct_start",
    "stages.noisy_weight": "noisy_sample_weight",
    "stages.noisy_share": "noisy_fold_split",
    "stages.fresh": "reinit",
    "stages.solve": "linear_probe",
    "tta.how": "views",
    "tta.mean": "average",
    "tta.fold_mean": "fold_average",
    "members.until": "last_stage",
    "members.changes": "overrides",
    "options.draws": "samples_per_epoch",
    "options.stop_after": "early_stopping_patience",
    "options.of": "average",
}
"""Keys of earlier versions and their new names, by the path of the (new) section that they stood in."""

OLD_VALUES: dict[str, dict[str, Any]] = {
    "clips.trim_db": {"none": False},
    "clips.pad_mode": {
        "zeros_both": "constant_center", "zeros_right": "constant_right", "wrap_both": "wrap_center",
        "edge_both": "edge_center", "min_both": "minimum_center",
    },
    "clips.channels": {
        "one": "mono", "same3": "repeat3", "ramp": "coord", "ramp_time": "coord_time", "image3": "imagenet",
    },
    "folds.splitter": {
        "stratified_argmax": "stratified", "plain": "kfold", "grouped": "group", "given": "predefined",
    },
    "stages.checkpoint": {"best_of_all": "best_overall"},
    "stages.noisy_labels.method": {
        "kept": "previous", "ninth": "ninth_place_low_loss", "first": "first_place_corrections",
        "fourth": "fourth_place_second_head", "fourth_pseudo": "fourth_place_pseudo_labels",
        "third": "third_place_pseudo_labels", "gold": "gold_plan_confidence", "36th": "kaggle_fat_soft_labels",
    },
    "stages.mixup.name": {
        "mixup_first": "mixup_first_place", "mixup_fourth": "mixup_fourth_place", "mixer_first": "mixer_first_place",
        "mixup_or_third": "mixup_or_third_place",
    },
    "stages.augment.name": {
        "flip": "time_reverse", "lighting": "brightness_contrast", "speed": "speed_perturb", "loop_fill": "repeat_pad",
        "to_longest": "trim_to_longest", "content_shrink": "random_time_crop", "third_effects": "third_place_effects",
        "spec_augment_first": "spec_augment_first_place", "spec_augment_fourth": "spec_augment_fourth_place",
    },
    "stages.augment.color": {"either": "random"},
    "stages.augment.width": {"share": "fraction", "centre": "center"},
    "stages.item_tfms.name": {"speed": "speed_perturb"},
    "stages.mixup.partner": {"set": "dataset"},
    "stages.loss": {"smooth_ninth": "smooth_ninth_place"},
    "stages.schedule": {"stairs": "step_decay", "warmup_steps": "warmup_multistep"},
}
"""Values of earlier versions and what replaces them, by the path of their (new) key."""


def refuse_old_keys(plain: Any, where: str) -> None:
    """Raise `RecipeError` with the new names if nested tables use keys or values of an earlier version."""
    found = list(_old_keys(plain, "", ""))
    if found:
        raise RecipeError(f"{where} is written for an earlier version of fatai: {', '.join(found)}")


def _old_keys(plain: Any, path: str, section: str) -> Iterator[str]:
    """Yield a phrase per old key; `section` is the path without list indices and in new names."""
    if isinstance(plain, (list, tuple)):
        for k, value in enumerate(plain):
            yield from _old_keys(value, f"{path}{k}.", section)
    elif isinstance(plain, dict):
        for key, value in plain.items():
            new = OLD_KEYS.get(f"{section}{key}", key)
            if new != key:
                yield f"the key {path}{key} is now {new}"
            replaced = OLD_VALUES.get(f"{section}{new}", {})
            if isinstance(value, str) and value in replaced:
                yield f"{path}{key} = {value!r} is now {str(replaced[value]).lower()}"
            yield from _old_keys(value, f"{path}{key}.", f"{section}{new}.")
