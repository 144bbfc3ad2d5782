"""Self-training: train all folds round by round; between rounds, select noisy clips by the predictions of all folds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from fatai.distributed import SINGLE_PROCESS, ProcessGroup
from fatai.experiment.fold import FoldContext, FoldResult, train_fold
from fatai.experiment.launch import no_log
from fatai.experiment.schema import Stage, build_named
from fatai.io.atomic import write_text
from fatai.noisy_labels.selection import LabelSelection, NoisyLabelData, attach_predictions, out_of_fold_mean
from fatai.registry import NOISY

__all__ = ["SelfTrainingRounds"]


class SelfTrainingRounds:
    """Train the folds of a run round by round.

    Each selection is written to `noisy_<stage>.csv` in the run folder, with a row per noisy clip: fname, kept, changed,
    score, reason.

    Parameters
    ----------
    context
        What all folds have in common; its `group` trains every fold together.
    run_folds
        Numbers of the folds to train.
    group
        Processes that train different folds.
    """

    def __init__(self, context: FoldContext, run_folds: Sequence[int], group: ProcessGroup = SINGLE_PROCESS):
        self.context, self.run_folds, self.group = context, list(run_folds), group
        self.rounds = context.recipe.rounds()
        self.selection: LabelSelection | None = None  # the last one, for all folds
        # Noisy clips that the weights of each fold were trained on.
        self.trained_on: dict[int, set[str]] = {fold: set() for fold in self.run_folds}
        self.noisy_probs: list[np.ndarray] = []  # of each fold, (noisy clips, tags)

    def train_before_last(self, table: pd.DataFrame, folds: np.ndarray) -> None:
        """Train all rounds but the last.

        Parameters
        ----------
        table
            One row per curated clip: fname, path, labels.
        folds
            Shape (clips,): the fold that holds out each clip.
        """
        for number in range(len(self.rounds) - 1):
            results = self._train_round(number, table, folds)
            self.noisy_probs = [result.noisy.probs for result in results.values() if result.noisy is not None]

    def train_last(self, table: pd.DataFrame, folds: np.ndarray) -> dict[int, FoldResult]:
        """Train the last round and return the result of each fold.

        Parameters
        ----------
        table, folds
            As in `train_before_last`; `folds` has shape (clips,).
        """
        return self._train_round(len(self.rounds) - 1, table, folds)

    def _train_round(self, number: int, table: pd.DataFrame, folds: np.ndarray) -> dict[int, FoldResult]:
        """Train this process's folds, then read the results that the other processes wrote."""
        parts = self._fold_selections(number)

        def train(fold: int, context: FoldContext) -> FoldResult:
            return train_fold(context, fold, table.assign(is_valid=folds == fold), number, parts.get(fold))

        results = {fold: train(fold, self.context) for fold in self.run_folds[self.group.rank::self.group.world_size]}
        self.group.barrier()
        silent = replace(self.context, log=no_log)
        return {fold: results[fold] if fold in results else train(fold, silent) for fold in self.run_folds}

    def _fold_selections(self, number: int) -> dict[int, LabelSelection]:
        """Return the noisy clips that each fold trains on in a round; empty for a round on curated clips alone."""
        stage = self.context.recipe.stages[self.rounds[number].start]
        if stage.selects_noisy:
            self.selection = self._select(stage, number)
        if stage.reinit:
            self.trained_on = {fold: set() for fold in self.run_folds}
        if stage.noisy_labels is None:
            return {}
        assert self.selection is not None
        folds = self.context.recipe.folds
        # Fewer clips than folds cannot be split among them.
        split = stage.noisy_fold_split if len(set(self.selection.fnames)) >= folds.n else "all"
        weighted = self.selection.scale_weights(stage.noisy_sample_weight)
        parts = weighted.per_fold(split=split, n=folds.n, seed=folds.seed)
        for fold in self.run_folds:
            self.trained_on[fold] |= set(parts[fold].fnames)
        return {fold: parts[fold] for fold in self.run_folds}

    def _select(self, stage: Stage, number: int) -> LabelSelection:
        """Apply the method of a stage; the main process logs and writes the selection."""
        assert stage.noisy_labels is not None
        selection: LabelSelection = build_named(NOISY, stage.noisy_labels, "method")(self._noisy_data())
        if self.group.is_main and self.context.group.is_main:
            self.context.log(f"stage {stage.name}: {selection}")
            text = selection.clips.to_csv(index=False, lineterminator="\n")
            write_text(self.context.out / f"noisy_{self.rounds[number].start}.csv", text)
        return selection

    def _noisy_data(self) -> NoisyLabelData:
        """Return the noisy clips with their mean predictions by models that were not trained on them."""
        noisy, tags = self.context.noisy, self.context.data.tags
        assert noisy is not None
        if not self.noisy_probs:
            return attach_predictions(noisy, tags)
        probs, trained_on = np.stack(self.noisy_probs), [self.trained_on[fold] for fold in self.run_folds]
        partial = len(self.run_folds) < self.context.recipe.folds.n
        in_all = set.intersection(*trained_on) if partial else set()
        scorable = ~noisy["fname"].isin(in_all).to_numpy()
        if scorable.any() and not scorable.all():
            self.context.log(
                f"{int((~scorable).sum())} noisy clips are in every fold's training set, so no model can score them "
                "out of fold; skipped"
            )
            noisy, probs = noisy[scorable].reset_index(drop=True), probs[:, scorable]
        names = list(noisy["fname"])
        return attach_predictions(noisy, tags, out_of_fold_mean(probs, names, trained_on), names, out_of_fold=True)
