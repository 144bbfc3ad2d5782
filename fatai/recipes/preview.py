"""A fold of a recipe as a learner that is ready for its first stage, to look at before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fatai.data.fat2019 import FATData, read_layout
from fatai.data.folds import make_folds
from fatai.data.labels import multi_hot
from fatai.errors import DataError
from fatai.recipes.fold import _OPTIMIZERS, FoldJob, _set_batches, fold_learner
from fatai.recipes.recipe import Recipe, Stage, built
from fatai.recipes.run import _training_table
from fatai.registry import AUGMENTATIONS, MIXERS
from fatai.train.callbacks import ClampGradients
from fatai.train.learner import FatLearner, named_loss

__all__ = ["preview_learner", "stage_changes"]


def stage_changes(stage: Stage) -> list[tuple[str, Any]]:
    """The random changes of a stage with their names: what it augments with, then its mixer."""
    changes = [(change["name"], built(AUGMENTATIONS, change)) for change in stage.augment]
    return changes if stage.mixup is None else [*changes, (stage.mixup["name"], built(MIXERS, stage.mixup))]


def preview_learner(
    data: str | Path | FATData, recipe: Recipe, fold: int = 0, *, num_workers: int | None = None, cache_dir: str | Path | None = None,
) -> FatLearner:
    """A learner of one fold with the clips, batches, loss, optimiser and random changes of the recipe's first stage, seeded as its run is.

    Raises
    ------
    DataError
        No such fold; and what else is wrong with the data.
    """
    if not 0 <= fold < recipe.folds.n:
        raise DataError(f"there is no fold {fold}; {recipe.name} has the folds 0 to {recipe.folds.n - 1}")
    data = data if isinstance(data, FATData) else read_layout(data, corrupted=recipe.clips.corrupted)
    table, _ = _training_table(data, recipe)
    folds = make_folds(multi_hot(table["labels"], data.tags), how=recipe.folds.how, n=recipe.folds.n, seed=recipe.folds.seed)
    job = FoldJob(data, recipe, Path(), digest="", num_workers=num_workers, cache_dir=cache_dir)
    learn = fold_learner(job, fold, table.assign(is_valid=folds == fold))
    stage = recipe.stages[0]
    _set_batches(learn, stage)
    learn.loss_func = named_loss(stage.loss, learn.model, **stage.loss_options)
    learn.opt_func, learn.no_decay, learn.wd = _OPTIMIZERS[stage.optimizer], stage.no_decay, stage.wd
    learn.add_cbs([change for _, change in stage_changes(stage)])
    if stage.clamp_gradients is not None:
        learn.add_cb(ClampGradients(stage.clamp_gradients))
    return learn
