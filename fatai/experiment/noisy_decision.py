"""Decide within a run whether noisy clips help: one fold is trained with them and without them, and its clips decide.

The networks of the run, trained on curated clips, stay if they do not. The steps:

1. The network of the first trained fold predicts the noisy clips, none of which it was trained on. Those whose given
   labels it confirms are selected, with its confidence as their weight.
2. The fold is trained again on curated and selected clips, in as many steps.
3. The two are compared on the held-out clips of this fold, by a paired bootstrap. If the interval of the difference
   lies above 0, the other folds are trained again, each with a selection by its own network, and all of them replace
   the first ones. No selection of a fold involves a network that was trained on its held-out clips, and noisy clips
   that are copies of curated ones are left out.

The held-out clips of the first fold are those that the choice was made on, so its score, and by as much the out-of-fold
score, is the better one of two; those of the other folds are not affected.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fatai.data.copies import sound_groups
from fatai.data.labels import multi_hot
from fatai.distributed import ProcessGroup
from fatai.errors import CheckpointError, DataError
from fatai.experiment.epochs import with_epochs
from fatai.experiment.fold import FoldContext, FoldResult, predict_items, train_fold, trained_learner
from fatai.experiment.launch import no_log
from fatai.experiment.recipe import Recipe
from fatai.experiment.schema import Stage
from fatai.inference.predictions import Predictions
from fatai.io.atomic import write_text
from fatai.io.json import read_json_limited
from fatai.metrics.bootstrap import score_difference
from fatai.metrics.classification import main_metric, main_score
from fatai.noisy_labels.methods import gold_plan_confidence
from fatai.noisy_labels.selection import LabelSelection, attach_predictions

__all__ = ["NOISY_DECISION", "NoisyDecision", "decide_on_noisy", "replace_folds"]

NOISY_DECISION = "noisy_decision.json"
"""Name of the file in a run folder."""

_FOLDER = "with_noisy"
_KEEP = 0.5  # probability from which on a given label counts as confirmed
_MAX_NOISY = 5  # noisy clips that are looked at, for each curated one
_CONFIDENCE = 0.9  # of the interval that has to lie above 0
_MIN_SELECTED = 2


@dataclass(frozen=True)
class NoisyDecision:
    """Scores of a fold's held-out clips with and without noisy clips, and the choice.

    Attributes
    ----------
    fold
        The fold that decided.
    noisy, selected
        Noisy clips that were looked at, and those that its network confirmed.
    without, with_noisy
        lwlrap of its held-out clips, or with one tag their average precision; `with_noisy` is None if too few clips
        were selected to train with.
    low, high
        90 % interval of their difference.
    used
        True if all folds were trained with noisy clips.
    finished
        False while the other folds are trained.
    folds
        The folds that were trained with noisy clips, if they are used and all of them are finished.
    """

    fold: int
    noisy: int
    selected: int
    without: float
    with_noisy: float | None
    low: float
    high: float
    used: bool
    finished: bool = True
    folds: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.with_noisy is None:
            return f"noisy clips not used: the network of fold {self.fold} confirms {self.selected} of {self.noisy}"
        return (
            f"noisy clips {'used' if self.used else 'not used'}: fold {self.fold} scores {self.with_noisy:.4f} with "
            f"{self.selected} of {self.noisy} and {self.without:.4f} without, a difference of "
            f"{self.with_noisy - self.without:.4f}, 90 % interval {self.low:.4f} to {self.high:.4f}; this fold's "
            "score is the better one of the two"
        )

    def save(self, out: Path) -> None:
        """Write the file into a run folder."""
        write_text(out / NOISY_DECISION, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, out: Path) -> NoisyDecision | None:
        """Read the file of a run folder; None if there is none.

        Raises
        ------
        CheckpointError
            If it is not valid.
        """
        path = out / NOISY_DECISION
        if not path.is_file():
            return None
        try:
            values = read_json_limited(path)
            return cls(**{**values, "folds": tuple(values.get("folds", ()))})
        except (OSError, ValueError, TypeError, AttributeError) as e:
            raise CheckpointError(f"{path} cannot be read ({e}); delete it to decide again") from None


def decide_on_noisy(
    context: FoldContext,
    noisy: pd.DataFrame,
    table: pd.DataFrame,
    folds: np.ndarray,
    results: Mapping[int, FoldResult],
    fold_group: ProcessGroup,
) -> tuple[dict[int, FoldResult], NoisyDecision]:
    """Return the results of all folds, trained with or without noisy clips, and the decision.

    Parameters
    ----------
    context
        What all folds have in common.
    noisy
        Readable noisy clips: fname, path, labels.
    table, folds
        Curated clips, and the fold of each, shape (clips,).
    results
        Of each fold, trained on curated clips.
    fold_group
        Processes that train different folds.
    """
    trial = _Trial(context, _sample(noisy, table, context.recipe.seed), table, folds, results, fold_group)
    decision = NoisyDecision.load(context.out)
    if decision is None or not decision.finished:
        decision = trial.decide()
        trial.save(decision)
    elif not trial.folder.is_dir():
        return dict(results), decision
    if not decision.used:
        trial.remove()
        return dict(results), decision
    trained = trial.train_others()
    decision = replace(decision, finished=True, folds=tuple(sorted(results)))
    trial.save(decision)
    if trial.is_main:
        replace_folds(context.out)
    trial.wait()
    return trained, decision


def replace_folds(out: Path) -> None:
    """Move the folds that were trained with noisy clips to their places, if all of them are; also after a kill."""
    decision, folder = NoisyDecision.load(out), out / _FOLDER
    if decision is None or not decision.finished or not decision.used or not folder.is_dir():
        return
    for trained in sorted(folder.glob("fold_*")):
        shutil.rmtree(out / trained.name, ignore_errors=True)
        trained.rename(out / trained.name)
    shutil.rmtree(folder)


def check_decided_folds(out: Path, run_folds: Sequence[int]) -> None:
    """Raise `CheckpointError` if a run whose folds use noisy clips is continued with further folds."""
    decision = NoisyDecision.load(out)
    further = sorted(set(run_folds) - set(decision.folds)) if decision is not None and decision.folds else []
    if further:
        assert decision is not None
        raise CheckpointError(
            f"{out} has been trained with noisy clips in fold {', '.join(map(str, decision.folds))}, and fold "
            f"{further[0]} would be without them; continue it with the same folds, or train all folds in another folder"
        )


def max_tried(n_noisy: int, n_curated: int) -> int:
    """Return the largest number of noisy clips that a network predicts to select some of them."""
    return min(n_noisy, _MAX_NOISY * n_curated)


def _sample(noisy: pd.DataFrame, curated: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return the noisy clips that are no copies of curated ones, or a random part of very many, in their order."""
    groups = sound_groups([*curated["path"], *noisy["path"]])
    known = set(groups[:len(curated)])
    noisy = noisy[[group not in known for group in groups[len(curated):]]]
    n = max_tried(len(noisy), len(curated))
    return noisy.sample(n, random_state=seed).sort_index().reset_index(drop=True)


@dataclass
class _Trial:
    """Folds that are trained with noisy clips, in a folder of their own."""

    context: FoldContext
    noisy: pd.DataFrame
    table: pd.DataFrame
    folds: np.ndarray
    results: Mapping[int, FoldResult]
    fold_group: ProcessGroup

    @property
    def folder(self) -> Path:
        return self.context.out / _FOLDER

    @property
    def is_main(self) -> bool:
        return bool(self.context.group.is_main and self.fold_group.is_main)

    def wait(self) -> None:
        """Wait for all processes."""
        self.context.group.barrier()
        self.fold_group.barrier()

    def save(self, decision: NoisyDecision) -> None:
        """Write the decision; the main process logs it."""
        self.wait()
        if self.is_main:
            decision.save(self.context.out)
            self.context.log(str(decision))
        self.wait()

    def remove(self) -> None:
        """Remove the trained fold."""
        self.wait()
        if self.is_main:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.wait()

    def decide(self) -> NoisyDecision:
        """Train the first fold with noisy clips and compare."""
        fold = min(self.results)
        targ = multi_hot(self.table["labels"], self.context.data.tags)[self.folds == fold]
        oof = self.results[fold].oof
        assert oof is not None
        without = main_score(oof.probs, targ)
        selection = self._select_in_turn([fold])[fold] if len(self.noisy) else None
        if selection is None or len(selection) < _MIN_SELECTED:
            n_selected = 0 if selection is None else len(selection)
            return NoisyDecision(fold, len(self.noisy), n_selected, without, None, 0.0, 0.0, used=False)
        trained = self._train([fold], {fold: selection})[fold].oof
        assert trained is not None
        n_tags = len(self.context.data.tags)
        try:
            difference = score_difference(
                trained.probs, oof.probs, targ, main_metric(n_tags), confidence_level=_CONFIDENCE
            )
            low, high = difference.low, difference.high
        except DataError:  # no held-out clip has a tag
            low, high = 0.0, 0.0
        used = low > 0
        score = main_score(trained.probs, targ)
        return NoisyDecision(
            fold, len(self.noisy), len(selection), without, score, low, high, used=used, finished=not used
        )

    def train_others(self) -> dict[int, FoldResult]:
        """Train all folds with noisy clips that are not trained yet, and return the results of all."""
        folds = sorted(self.results)
        return self._train(folds, self._select_in_turn(folds))

    def _select_in_turn(self, folds: list[int]) -> dict[int, LabelSelection]:
        """Select noisy clips by the network of each fold; each process predicts with networks of its own."""
        for fold in folds[self.fold_group.rank::self.fold_group.world_size]:
            self._predictions(fold)
        self.wait()
        return {fold: self._select(fold) for fold in folds}

    def _select(self, fold: int) -> LabelSelection:
        predictions = self._predictions(fold)
        paths = self.noisy["path"].tolist()
        data = attach_predictions(self.noisy, self.context.data.tags, predictions.probs, paths)
        return gold_plan_confidence(keep_threshold=_KEEP, add_threshold=None, min_prob=_KEEP)(data)

    def _predictions(self, fold: int) -> Predictions:
        """Predict the noisy clips with the network of a fold, or read what it predicted."""
        path = self.folder / f"noisy_{fold}.csv"
        if self.context.group.broadcast(path.is_file()):
            return Predictions.from_csv(path)
        learn = trained_learner(self.context, fold, self.table.assign(is_valid=self.folds == fold))
        with learn.distrib_ctx(group=self.context.group):
            predictions = predict_items(self.context, learn, self.noisy, f"fold {fold}: noisy clips")
        if self.context.group.is_main:
            self.folder.mkdir(exist_ok=True)
            predictions.to_csv(path)
        self.context.group.barrier()
        return Predictions.from_csv(path)

    def _train(self, folds: list[int], selections: Mapping[int, LabelSelection]) -> dict[int, FoldResult]:
        """Train folds with their selections, each process some of them, then read the results of all."""
        def train(fold: int, context: FoldContext) -> FoldResult:
            table = self.table.assign(is_valid=self.folds == fold)
            n_train = int((self.folds != fold).sum())
            recipe = with_clips(context.recipe, n_train, n_train + len(selections[fold]))
            with_noisy = replace(context, recipe=recipe, out=self.folder, noisy=self.noisy)
            return train_fold(with_noisy, fold, table, 0, selections[fold])

        rank, n = self.fold_group.rank, self.fold_group.world_size
        results = {fold: train(fold, self.context) for fold in folds[rank::n]}
        self.wait()
        silent = replace(self.context, log=no_log)
        return {fold: results[fold] if fold in results else train(fold, silent) for fold in folds}


def with_clips(recipe: Recipe, n_before: int, n_after: int) -> Recipe:
    """Return a recipe with as many steps on another number of training clips.

    Examples
    --------
    >>> from fatai.experiment.recipe import load_recipe
    >>> with_clips(load_recipe("quick"), 160, 320).stages[0].epochs
    20
    """
    def changed(stage: Stage) -> Stage:
        if stage.sampling_options.get("n") is not None:  # an epoch has so many clips, whatever they are drawn from
            return stage
        steps = [max(1, n // min(stage.bs, n)) for n in (n_before, n_after)]
        epochs = max(1, round(stage.epochs * steps[0] / steps[1]))
        return Stage.model_validate(with_epochs(stage.model_dump(), epochs))

    return recipe.model_copy(update={"stages": tuple(changed(stage) for stage in recipe.stages)})


def noisy_notes(decision: NoisyDecision | None) -> dict[str, Any]:
    """Return a decision for the manifest; empty if there was none."""
    return {} if decision is None else {"noisy_decision": {**asdict(decision), "in_words": str(decision)}}
