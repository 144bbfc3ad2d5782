"""Curricula of noisy clips: the 3rd place's iteration, the gold plan's two stages, and when to change the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fatai.errors import DataError, OptionError
from fatai.noisy_labels.selection import LabelSelection, NoisyLabelData
from fatai.registry import NOISY

__all__ = ["CurriculumStage", "LossSuggestion", "gold_plan_stages", "noisy_curriculum", "suggest_loss"]


def noisy_curriculum(
    fit_and_predict: Callable[[LabelSelection | None], NoisyLabelData],
    *,
    ks: Sequence[int] = (1000, 2000, 3000, 4000, 5000),
    cardinality: float | None = None,
    pseudo_labels: bool = True,
) -> Iterator[LabelSelection]:
    """Iterate over the selections of the 3rd place's curriculum.

    Train with the best 1,000 clips, then the best 2,000 by the new models, and so on; then with pseudo-labels.

    Parameters
    ----------
    fit_and_predict
        Trains with the selected clips (None at first: curated ones only) and returns the noisy clips with predictions
        of the new models. From the second time on each clip must be predicted by folds that left it out
        (`LabelSelection.per_fold(split="own")`, `out_of_fold_mean`, `attach_predictions(..., out_of_fold=True)`):
        otherwise the clips of one step would look best in the next because they were trained on.
    ks
        Numbers of clips that the steps keep.
    cardinality
        Mean number of tags a clip for the threshold of the pseudo-labels, as in
        `fatai.noisy_labels.pseudo_labels.third_place_pseudo_labels`.
    pseudo_labels
        True adds a last step that gives predicted labels to all clips but the best ones.

    Yields
    ------
    The selection of each step, before the training with it: stopping the loop stops training.

    Raises
    ------
    DataError
        If clips are predicted by models that may have trained on them, or other clips are predicted than before.
    OptionError
        If `ks` do not grow.
    """
    if not ks or list(ks) != sorted(set(ks)):
        raise OptionError(f"ks are {list(ks)}; expected numbers of clips that grow, such as 1000, 2000")
    steps = [NOISY.build("scoring", k=k) for k in ks]
    if pseudo_labels:
        steps.append(NOISY.build("third_place_pseudo_labels", k=ks[-1], cardinality=cardinality))
    selection: LabelSelection | None = None
    names: frozenset[str] | None = None
    for method in steps:
        data = fit_and_predict(selection)
        names = _checked_names(data, selection, names)
        selection = method(data)
        yield selection


def _checked_names(
    data: NoisyLabelData, selection: LabelSelection | None, names: frozenset[str] | None
) -> frozenset[str]:
    """Return the names of the predicted clips; raise `DataError` if others were predicted before, or on leakage."""
    if selection is not None and not data.out_of_fold:
        raise DataError(
            f"the models were trained on {len(selection)} of the clips that they predict; predict each by the folds "
            "that left it out (LabelSelection.per_fold, out_of_fold_mean), and pass "
            "attach_predictions(..., out_of_fold=True)"
        )
    if names is not None and names != frozenset(data.fnames):
        raise DataError(
            f"{len(data)} clips are predicted, not the {len(names)} of the step before; expected all noisy clips each "
            "time"
        )
    return frozenset(data.fnames)


@dataclass(frozen=True)
class CurriculumStage:
    """A stage of training.

    Attributes
    ----------
    name
        For messages.
    noisy_weight
        Factor of the sample weights of noisy clips (`LabelSelection.scale_weights`), at least 0.
    epochs
        At least 1.
    unfreeze
        True trains more layers than the stage before.

    Raises
    ------
    OptionError
        If a value is out of range.
    """

    name: str
    noisy_weight: float
    epochs: int
    unfreeze: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.noisy_weight < np.inf or self.epochs < 1:
            raise OptionError(
                f"stage {self.name} has noisy_weight {self.noisy_weight} and {self.epochs} epochs; expected a weight "
                "of at least 0 and at least 1 epoch"
            )


def gold_plan_stages(
    *, epochs: tuple[int, int] = (4, 8), weights: tuple[float, float] = (0.5, 1.0), unfreeze: bool = False,
) -> tuple[CurriculumStage, CurriculumStage]:
    """Build the gold plan's curriculum: from the curated checkpoint, stage a, then stage b.

    After each stage the plan predicts all noisy clips out of fold again and asks `suggest_loss`.

    Parameters
    ----------
    epochs
        Of the two stages; the plan has 3-5 and 5-10.
    weights
        Factor of the weights of noisy clips in the two stages; the plan has 0.5 and 0.75-1.
    unfreeze
        True trains more layers in stage b.

    Examples
    --------
    >>> [(stage.name, stage.noisy_weight, stage.epochs) for stage in gold_plan_stages(weights=(0.5, 0.75))]
    [('a', 0.5, 4), ('b', 0.75, 8)]
    """
    return CurriculumStage("a", weights[0], epochs[0]), CurriculumStage("b", weights[1], epochs[1], unfreeze)


class LossSuggestion(NamedTuple):
    """The loss to continue with, and the reason."""

    loss: str
    reason: str


def suggest_loss(
    scores: Sequence[float], loss: str = "bce", *, drop: float = 0.01, patience: int = 2
) -> LossSuggestion:
    """Suggest to keep a loss, or to fall back to one that tolerates wrong labels: to "gce", and from that to "sce".

    The gold plan changes the loss when lwlrap becomes unstable; here that is when it stays more than `drop` below its
    best for `patience` epochs.

    Parameters
    ----------
    scores
        Validation lwlrap after each epoch with noisy clips, that of the curated checkpoint first. NaN counts as a drop.
    loss
        Name of the present loss.
    drop
        Tolerated loss of lwlrap, at least 0.
    patience
        In epochs, at least 1.

    Raises
    ------
    OptionError
        If `drop` or `patience` is out of range.

    Examples
    --------
    >>> suggest_loss([0.70, 0.72, 0.69, 0.70]).loss, suggest_loss([0.70, 0.72, 0.69, 0.715]).loss
    ('gce', 'bce')
    """
    if not drop >= 0 or patience < 1:
        raise OptionError(f"drop is {drop} and patience {patience}; expected at least 0 and at least 1 epoch")
    values = np.nan_to_num(np.asarray(scores, dtype=np.float64), nan=-np.inf)
    # Without an earlier score there is no drop.
    best = values[:-patience].max(initial=-np.inf)
    if len(values) <= patience or not (values[-patience:] < best - drop).all():
        return LossSuggestion(loss, f"lwlrap is not more than {drop} below its best for {patience} epochs")
    if loss == "sce":
        return LossSuggestion(
            loss, "lwlrap dropped, but there is no further loss to fall back to: weigh noisy clips less, or select "
            "fewer"
        )
    return LossSuggestion(
        "sce" if loss == "gce" else "gce",
        f"lwlrap was more than {drop} below its best {best:.4f} for {patience} epochs",
    )
