"""A run folder to a tagger of sound of any length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastcore.meta import delegates

from fatai.errors import CheckpointError
from fatai.infer.tagger import WindowTagger
from fatai.recipes.finished import FinishedRun

__all__ = ["Tagger"]


@delegates(WindowTagger.__init__, but=["precision", "activation"])
class Tagger(WindowTagger):
    """Tags sound of any length with every fold of a finished run, averaged.

    `Tagger("runs/demo").tag("forest.flac")` lists what is heard, from when to when. Options are those of `WindowTagger`.

    Raises
    ------
    CheckpointError
        If `run` is no run folder, its weights don't fit its recipe, or its folds don't know the same tags.
    """

    def __init__(self, run: str | Path, **options: Any):
        opened = FinishedRun.open(run)
        folds = list(opened.folds())
        for fold in folds:
            if fold.tags != folds[0].tags:
                raise CheckpointError(f"{run}: {fold.name} has other tags than {folds[0].name}; expected folds of one run")
        super().__init__(
            [fold.model for fold in folds], folds[0].tags, opened.recipe.settings(), precision=opened.recipe.precision, **options,
        )
