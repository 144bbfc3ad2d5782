"""A run folder to a tagger of sound of any length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastcore.meta import delegates

from fatai.errors import CheckpointError
from fatai.export.pretrained import is_model_folder
from fatai.inference.events.tagger import SlidingWindowTagger
from fatai.experiment.run_folder import FinishedRun, model_folder
from fatai.metrics.calibration import CALIBRATION, Calibration

__all__ = ["Tagger"]


@delegates(SlidingWindowTagger.__init__, but=["precision", "calibration", "activation"])
class Tagger(SlidingWindowTagger):
    """Tags sound of any length with every fold of a finished run, averaged, or with a model folder.

    `Tagger("runs/demo").tag("forest.flac")` lists what is heard, from when to when. Options are those of `SlidingWindowTagger`; with `calibrated`
    the calibration of the run or of the model folder is applied.

    Raises
    ------
    CheckpointError
        If `run` is neither a run nor a model folder, its weights don't fit, its folds don't know the same tags, or it has no
        calibration that was asked for.
    """

    def __init__(self, run: str | Path, *, calibrated: bool = False, **options: Any):
        if is_model_folder(run):
            held = model_folder(run, calibrated)
            super().__init__([held.model], held.tags, held.settings, calibration=held.calibration, **options)
            return
        opened = FinishedRun.open(run)
        calibration = Calibration.from_json(opened.folder / CALIBRATION) if calibrated else None
        folds = list(opened.folds())
        for fold in folds:
            if fold.tags != folds[0].tags:
                raise CheckpointError(
                    f"{run}: {fold.name} has other tags than {folds[0].name}; expected folds of one run"
                )
        super().__init__(
            [fold.model for fold in folds], folds[0].tags, opened.recipe.settings(), precision=opened.recipe.precision,
            calibration=calibration, **options,
        )
