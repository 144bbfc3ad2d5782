"""Noisy clips taken up step by step: the 3rd place's ladder, the gold plan's two stages, and when to change the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fatai.errors import DataError, OptionError
from fatai.registry import NOISY
from fatai.noisy_labels.selection import LabelSelection, NoisyLabelData

__all__ = ["LossSuggestion", "CurriculumStage", "gold_plan_stages", "noisy_curriculum", "suggest_loss"]


def noisy_curriculum(
    judge_again: Callable[[LabelSelection | None], NoisyLabelData],
    *,
    ks: Sequence[int] = (1000, 2000, 3000, 4000, 5000),
    cardinality: float | None = None,
    pseudo: bool = True,
) -> Iterator[LabelSelection]:
    """The 3rd place's iteration: the best 1,000 clips, training with them, the best 2,000 by the new models, and so on; then pseudo-labels.

    Parameters
    ----------
    judge_again
        Trains with the chosen clips (None at first: curated ones only) and returns the noisy clips judged by the new models. From the
        second time on each clip must be judged by folds that left it out (`LabelSelection.split(how="own")`, `out_of_fold_mean`,
        `judge(..., out_of_fold=True)`): otherwise the clips of one step would look best in the next because they were learnt.
    ks
        How many clips each step keeps.
    cardinality
        Mean number of tags a clip for the threshold of the pseudo-labels, as in `fatai.noisy_labels.pseudo_labels.third`.
    pseudo
        Whether a last step gives predicted labels to all clips but the best ones.

    Yields
    ------
    Each step's choice, before the training with it: stopping the loop stops training.

    Raises
    ------
    DataError
        If clips are judged by models that may have trained on them, or others are judged than before.
    OptionError
        If `ks` do not grow.
    """
    if not ks or list(ks) != sorted(set(ks)):
        raise OptionError(f"ks are {list(ks)}; expected numbers of clips that grow, such as 1000, 2000")
    steps = [NOISY.build("scoring", k=k) for k in ks] + (
        [NOISY.build("third", k=ks[-1], cardinality=cardinality)] if pseudo else []
    )
    chosen: LabelSelection | None = None
    names: frozenset[str] | None = None
    for method in steps:
        judged = judge_again(chosen)
        if chosen is not None and not judged.out_of_fold:
            raise DataError(
                f"the models trained on {len(chosen)} of the clips that they judge; predict each by the folds that left it out "
                "(LabelSelection.split, out_of_fold_mean), and say judge(..., out_of_fold=True)"
            )
        if names is not None and names != frozenset(judged.fnames):
            raise DataError(
                f"{len(judged)} clips are judged, others than the {len(names)} before; expected all noisy clips each time"
            )
        names = frozenset(judged.fnames)
        chosen = method(judged)
        yield chosen


@dataclass(frozen=True)
class CurriculumStage:
    """A stretch of training: how much noisy clips weigh beside curated ones (`LabelSelection.times`), epochs, and whether more layers learn."""

    name: str
    noisy_weight: float
    epochs: int
    unfreeze: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.noisy_weight < np.inf or self.epochs < 1:
            raise OptionError(
                f"stage {self.name} has noisy_weight {self.noisy_weight} and {self.epochs} epochs; expected a weight of at "
                "least 0 and at least 1 epoch"
            )


def gold_plan_stages(
    *, epochs: tuple[int, int] = (4, 8), weights: tuple[float, float] = (0.5, 1.0), unfreeze: bool = False,
) -> tuple[CurriculumStage, CurriculumStage]:
    """The gold plan's curriculum from the curated checkpoint: stage a, 3-5 epochs with noisy clips at 0.5; stage b, 5-10 at 0.75-1.

    `unfreeze` lets more layers learn in stage b. After each, out-of-fold predictions are made anew and `suggest_loss` is asked.

    Examples
    --------
    >>> [(stage.name, stage.noisy_weight, stage.epochs) for stage in gold_plan_stages(weights=(0.5, 0.75))]
    [('a', 0.5, 4), ('b', 0.75, 8)]
    """
    return CurriculumStage("a", weights[0], epochs[0]), CurriculumStage("b", weights[1], epochs[1], unfreeze)


class LossSuggestion(NamedTuple):
    """The loss to go on with, and why."""

    loss: str
    why: str


def suggest_loss(
    scores: Sequence[float], loss: str = "bce", *, drop: float = 0.01, patience: int = 2
) -> LossSuggestion:
    """Whether to go on with a loss, or to fall back to one that bears wrong labels: to "gce", and from that to "sce".

    The plan says to change when lwlrap destabilises; here that is when it stays more than `drop` below its best for `patience` epochs.

    Parameters
    ----------
    scores
        Validation lwlrap after each epoch with noisy clips, that of the curated checkpoint first. NaN counts as a drop.
    loss
        Name of the present loss.

    Examples
    --------
    >>> suggest_loss([0.70, 0.72, 0.69, 0.70]).loss, suggest_loss([0.70, 0.72, 0.69, 0.715]).loss
    ('gce', 'bce')
    """
    if not drop >= 0 or patience < 1:
        raise OptionError(f"drop is {drop} and patience {patience}; expected at least 0 and at least 1 epoch")
    values = np.nan_to_num(np.asarray(scores, dtype=np.float64), nan=-np.inf)
    # Nothing is known to be lost before there is a score to fall from.
    best = values[:-patience].max(initial=-np.inf)
    if len(values) <= patience or not (values[-patience:] < best - drop).all():
        return LossSuggestion(loss, f"lwlrap is not more than {drop} below its best for {patience} epochs")
    if loss == "sce":
        return LossSuggestion(
            loss, "lwlrap dropped, but no loss is left to fall back to: weigh noisy clips less, or choose fewer"
        )
    return LossSuggestion(
        "sce" if loss == "gce" else "gce",
        f"lwlrap was more than {drop} below its best {best:.4f} for {patience} epochs",
    )
