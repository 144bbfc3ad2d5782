"""A fold of a recipe as a learner that is ready for its first stage, to look at before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastcore.meta import delegates

from fatai.data.datasets.fat2019 import FATDataset
from fatai.experiment.recipe import Recipe
from fatai.experiment.run import recipe_learner
from fatai.experiment.stage import curated_alone, prepare_stage
from fatai.inference.learner import FatLearner

__all__ = ["preview_learner"]


@delegates(recipe_learner)
def preview_learner(data: str | Path | FATDataset, recipe: Recipe, fold: int = 0, **kwargs: Any) -> FatLearner:
    """As `recipe_learner`, with the batches of curated clips, loss, optimiser and random changes of the first stage."""
    learn = recipe_learner(data, recipe, fold, **kwargs)
    learn.add_cbs(prepare_stage(learn, curated_alone(recipe.stages[0])))
    return learn
