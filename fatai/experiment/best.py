"""The best weights of several stages, of which each may be fitted by another learner in another process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastai.torch_core import rank_distrib
from safetensors.torch import load_file, save_file

from fatai.io.atomic import write_file
from fatai.errors import CheckpointError
from fatai.models.checkpoint import read_metadata
from fatai.callbacks.checkpoint import SaveBestModel

__all__ = ["BestOfStages"]

_SCORE = "best"


class BestOfStages(SaveBestModel):
    """As `SaveBestModel`, beginning with what an earlier stage left, and leaving the best of both for a later one.

    Parameters
    ----------
    before
        File of the best weights of earlier stages and their score; None, or no such file, where there are none.
    after
        File that takes the best weights so far when the fit ends; None where nobody asks for them.
    load, fname
        As in `SaveBestModel`; with `load` the best of this and of earlier stages is put back at the end.
    """

    def __init__(self, before: Path | None, after: Path | None, **kwargs: Any):
        super().__init__(**kwargs)
        self.before, self.after = before, after

    def before_fit(self) -> None:
        super().before_fit()
        if self.run and self.before is not None and self.before.exists():
            try:
                self.best = float(read_metadata(self.before)[_SCORE])
            except (KeyError, ValueError) as e:
                raise CheckpointError(
                    f"{self.before} does not say how good its weights are ({e!r}); begin the fold anew"
                ) from None

    @property
    def path_of_best(self) -> Path | None:
        """The file of the best weights of this stage, or else of those before it."""
        earlier = self.before if self.before is not None and self.before.exists() else None
        return super().path_of_best or earlier

    def after_fit(self) -> None:
        best = self.path_of_best
        if self.run and self.after is not None and best is not None and not rank_distrib():
            with write_file(self.after) as beside:
                save_file(load_file(best), str(beside), metadata={_SCORE: repr(float(self.best))})
        super().after_fit()
