"""The rounds of a run: every fold trained until noisy clips are to be judged, then a choice that all folds go on with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from fatai.io.atomic import write_text
from fatai.experiment.fold import FoldContext, FoldResult, train_fold
from fatai.experiment.schema import build_named
from fatai.registry import NOISY
from fatai.distributed import SINGLE_PROCESS, ProcessGroup
from fatai.noisy_labels.selection import LabelSelection, NoisyLabelData, attach_predictions, out_of_fold_mean

__all__ = ["SelfTrainingRounds"]


class SelfTrainingRounds:
    """Trains the folds of a run round by round.

    What a choice made of each noisy clip is written to `noisy_<stage>.csv` in the run's folder: fname, kept, changed, score, why.

    Parameters
    ----------
    only
        The folds that take part.
    group
        Processes among which the folds are shared out; those that train every fold together stand in the job.
    """

    def __init__(self, job: FoldContext, only: Sequence[int], group: ProcessGroup = SINGLE_PROCESS):
        self.job, self.only, self.group = job, list(only), group
        self.rounds = job.recipe.rounds()
        self.chosen: LabelSelection | None = None  # by the last stage that chose, for all folds
        self.learnt: dict[int, set[str]] = {fold: set() for fold in self.only}  # noisy clips behind each fold's weights
        self.judgements: list[np.ndarray] = []

    def until_last(self, table: pd.DataFrame, folds: np.ndarray) -> None:
        """Train all rounds but the last."""
        for number in range(len(self.rounds) - 1):
            results = self._trained(number, table, folds)
            self.judgements = [result.noisy.probs for result in results.values() if result.noisy is not None]

    def last(self, table: pd.DataFrame, folds: np.ndarray) -> dict[int, FoldResult]:
        """Train the last round of every fold."""
        return self._trained(len(self.rounds) - 1, table, folds)

    def _trained(self, number: int, table: pd.DataFrame, folds: np.ndarray) -> dict[int, FoldResult]:
        """What a round gave in each fold: trained by this process, or read from what another one wrote."""
        parts = self._parts(number)

        def trained(fold: int, job: FoldContext) -> FoldResult:
            return train_fold(job, fold, table.assign(is_valid=folds == fold), number, parts.get(fold))

        results = {fold: trained(fold, self.job) for fold in self.only[self.group.rank::self.group.world_size]}
        self.group.barrier()
        silent = replace(self.job, say=lambda line: None)
        return {fold: results[fold] if fold in results else trained(fold, silent) for fold in self.only}

    def _parts(self, number: int) -> dict[int, LabelSelection]:
        """The noisy clips that each fold trains on in a round; empty for a round of curated clips alone."""
        stage = self.job.recipe.stages[self.rounds[number].start]
        if stage.selects_noisy:
            self.chosen = build_named(NOISY, stage.noisy_labels, "method")(self._judged())
            if self.group.is_main and self.job.group.is_main:
                self.job.say(f"stage {stage.name}: {self.chosen}")
                told = self.chosen.clips.to_csv(index=False, lineterminator="\n")
                write_text(self.job.out / f"noisy_{self.rounds[number].start}.csv", told)
        if stage.reinit:
            self.learnt = {fold: set() for fold in self.only}
        if stage.noisy_labels is None:
            return {}
        assert self.chosen is not None
        recipe = self.job.recipe
        # Fewer clips than folds cannot be shared out.
        how = stage.noisy_fold_split if len(set(self.chosen.fnames)) >= recipe.folds.n else "all"
        shares = self.chosen.times(stage.noisy_sample_weight).split(how=how, n=recipe.folds.n, seed=recipe.folds.seed)
        for fold in self.only:
            self.learnt[fold] |= set(shares[fold].fnames)
        return {fold: shares[fold] for fold in self.only}

    def _judged(self) -> NoisyLabelData:
        noisy, tags = self.job.noisy, self.job.data.tags
        assert noisy is not None
        if not self.judgements:
            return attach_predictions(noisy, tags)
        stack, learnt = np.stack(self.judgements), [self.learnt[fold] for fold in self.only]
        known = set.intersection(*learnt) if len(self.only) < self.job.recipe.folds.n else set()
        judged = ~noisy["fname"].isin(known).to_numpy()
        if judged.any() and not judged.all():
            self.job.say(
                f"{int((~judged).sum())} noisy clips were trained on by every fold that takes part: left out, for want of a judge"
            )
            noisy, stack = noisy[judged].reset_index(drop=True), stack[:, judged]
        names = list(noisy["fname"])
        probs = out_of_fold_mean(stack, names, learnt)
        return attach_predictions(noisy, tags, probs, names, out_of_fold=True)
