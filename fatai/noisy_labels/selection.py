"""Doubtful clips beside what models think of them, and what a method makes of them.

Conventions: `given` and `probs` are (clips, tags), rows known by `fnames`, columns by `tags`. Rows of tables and of probabilities are
matched by name, never by position: a file of predictions in another order than the labels gives the same result. A method of `NOISY` maps
a `NoisyLabelData` to a `LabelSelection`; nothing is changed in place, nothing is random, and equal clips are told apart by name, so the order of rows
decides nothing.

A model that trained on a clip has learnt its label, right or wrong, and can't judge it. `attach_predictions` refuses such predictions where it is told
what the models trained on; `out_of_fold_mean` makes honest ones from several models.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from fatai.data.folds import noisy_fold_masks
from fatai.data.labels import check_labels, multi_hot, parse_labels
from fatai.errors import DataError, OptionError, ShapeError

__all__ = [
    "LabelSelection",
    "NoisyLabelData",
    "Method",
    "check_no_leakage",
    "checked_probs",
    "make_selection",
    "attach_predictions",
    "out_of_fold_mean",
]


@dataclass(frozen=True, eq=False)
class NoisyLabelData:
    """Clips with doubtful labels, and how likely models find each tag in them; `attach_predictions` makes one.

    Attributes
    ----------
    fnames, tags
        Names of the rows and of the columns.
    given
        bool, shape (clips, tags): the labels as given.
    probs
        float64, shape (clips, tags), within [0, 1]; or None where no model was asked.
    out_of_fold
        Whether it was said that no row comes from a model that trained on its clip, although models trained on some of the clips.
    """

    fnames: tuple[str, ...]
    tags: tuple[str, ...]
    given: np.ndarray
    probs: np.ndarray | None = None
    out_of_fold: bool = False

    def __len__(self) -> int:
        return len(self.fnames)

    def probs_for(self, method: str) -> np.ndarray:
        """The probabilities, which `method` can't do without."""
        if self.probs is None:
            raise OptionError(
                f"{method} needs probabilities of the clips; give probs and fnames, of models that didn't train on them"
            )
        return self.probs


@dataclass(frozen=True, eq=False)
class LabelSelection:
    """The clips that a method trains on, with targets and weights, and what became of every clip.

    Attributes
    ----------
    method
        What chose them.
    fnames
        The clips that stay, in the order of the table they came from; one that is there as noisy and as corrected has two rows.
    tags
        Names of the columns of `targ`.
    targ
        float32, shape (kept, tags), read-only: 0 and 1, or soft targets within [0, 1].
    weight
        float32, read-only, shape (kept,), or (kept, tags) where a method weighs tags: what `TagLoss.sample_weight` takes.
    source
        "noisy" or "corrected" for each row: what `fatai.data.samplers.Mixture` draws by. Only the former are noisy to `TagLoss.noisy`.
    shares
        How often to draw from each source, "curated" among them, where the method says so.
    clips
        What became of every clip: `fname`, `kept`, `changed` (whether its labels are others than those given), `score` (what the method
        ranked by; NaN where it didn't) and `why`.
    """

    method: str
    fnames: tuple[str, ...]
    tags: tuple[str, ...]
    targ: np.ndarray
    weight: np.ndarray
    source: tuple[str, ...]
    clips: pd.DataFrame
    shares: Mapping[str, float] | None = None

    def __len__(self) -> int:
        return len(self.fnames)

    def __str__(self) -> str:
        reasons = ", ".join(f"{n} {why}" for why, n in self.clips["why"].value_counts().items())
        return f"{self.method}: {int(self.clips['kept'].sum())} of {len(self.clips)} clips kept ({reasons})"

    @property
    def noisy(self) -> np.ndarray:
        """bool, shape (kept,): what `TagLoss.noisy` takes."""
        return np.array([source == "noisy" for source in self.source], dtype=bool)

    @property
    def soft(self) -> bool:
        """Whether some target is neither 0 nor 1, so that no list of labels can say it."""
        return not np.isin(self.targ, (0, 1)).all()

    @property
    def labels(self) -> list[list[str]]:
        """The tags of each row, in the order of `tags`; an `OptionError` for soft targets."""
        if self.soft:
            raise OptionError(
                f"{self.method} gives soft targets, which no list of labels can say: train on targ, or choose another method"
            )
        return [[self.tags[k] for k in np.flatnonzero(row)] for row in self.targ]

    @property
    def table(self) -> pd.DataFrame:
        """The rows as a table of labels: `fname`, `labels` (lists), `source`, `noisy`, and `weight` where clips, not tags, are weighed.

        Loaders made of it tell weights and marks to `fatai.callbacks.sample_weights.SampleWeights`.
        """
        columns: dict[str, Any] = {
            "fname": list(self.fnames),
            "labels": pd.Series(self.labels, dtype=object),
            "source": list(self.source),
            "noisy": self.noisy,
        }
        return pd.DataFrame({**columns, "weight": self.weight} if self.weight.ndim == 1 else columns)

    @property
    def weight_of(self) -> dict[str, Any]:
        """Clip to weight, a number or one for each tag: what `fatai.callbacks.sample_weights.SampleWeights` takes."""
        return dict(zip(self.fnames, self.weight))

    @property
    def target_of(self) -> dict[str, np.ndarray]:
        """Clip to its row of `targ`, for targets that no list of labels can say; of a clip with two rows the corrected one."""
        return dict(zip(self.fnames, self.targ))

    def times(self, factor: float) -> LabelSelection:
        """The same with every weight times `factor`, for a stage that trusts noisy clips less."""
        if not 0 <= factor < np.inf:
            raise OptionError(f"factor is {factor}; expected a number of at least 0")
        return replace(self, weight=_fixed(self.weight * factor))

    def split(self, *, how: str = "all", n: int = 5, seed: int = 42) -> tuple[LabelSelection, ...]:
        """What each fold trains on: `how` is "all" (shared), "own" (3rd place) or "others" (4th), as in `fatai.data.folds.noisy_shares`.

        The clips are split sorted by name; rows of one clip stay together. `clips` still tells of all of them.
        """
        names = sorted(set(self.fnames))
        shares = noisy_fold_masks(len(names), split=how, n=n, seed=seed)
        sets = [{names[i] for i in np.flatnonzero(share)} for share in shares]
        return tuple(self._rows([i for i, name in enumerate(self.fnames) if name in mine]) for mine in sets)

    def _rows(self, rows: list[int]) -> LabelSelection:
        return replace(
            self,
            fnames=tuple(self.fnames[i] for i in rows),
            targ=_fixed(self.targ[rows]),
            weight=_fixed(self.weight[rows]),
            source=tuple(self.source[i] for i in rows),
        )


Method: TypeAlias = Callable[[NoisyLabelData], LabelSelection]
"""What an entry of `NOISY` builds."""


def attach_predictions(
    table: pd.DataFrame,
    tags: Sequence[str],
    probs: Any = None,
    fnames: Iterable[str] | None = None,
    *,
    trained_on: Iterable[str] = (),
    out_of_fold: bool = False,
) -> NoisyLabelData:
    """Put the labels of a noisy table beside the probabilities that models give its clips.

    Parameters
    ----------
    table
        Columns `fname` and `labels` (lists, or cells with commas or semicolons); no clip twice.
    tags
        The vocabulary: the order of the columns of `probs`.
    probs
        Shape (predicted clips, tags), within [0, 1]; None for methods that ask no model.
    fnames
        The clip of each row of `probs`, in any order; clips that `table` lacks are left out.
    trained_on
        Names of the clips that the models behind `probs` trained on. None of the table's may be among them, unless
    out_of_fold
        every row comes only from models that did not train on its clip, as rows of `out_of_fold_mean` do.

    Returns
    -------
    The clips of `table`, in its order.

    Raises
    ------
    DataError
        A clip that is there twice, has no probabilities, or was trained on; a value that is no probability.
    LabelError
        A label that is not in `tags`.
    ShapeError
        `probs` that do not fit their names.

    Examples
    --------
    >>> table = pd.DataFrame({"fname": ["b.wav", "a.wav"], "labels": ["Meow", "Bark"]})
    >>> attach_predictions(table, ["Bark", "Meow"], [[0.9, 0.2], [0.4, 0.3]], ["a.wav", "b.wav"]).probs.tolist()
    [[0.4, 0.3], [0.9, 0.2]]
    """
    for column in ("fname", "labels"):
        if column not in table.columns:
            raise DataError(
                f"the table has the columns {', '.join(map(str, table.columns))}; expected fname and labels"
            )
    names, tags = tuple(str(name) for name in table["fname"]), tuple(tags)
    _refuse_twice(names, "the table")
    parsed = pd.DataFrame(
        {"fname": list(names), "labels": pd.Series([parse_labels(cell) for cell in table["labels"]], dtype=object)}
    )
    check_labels(parsed, tags)
    given = _fixed(multi_hot(parsed["labels"], tags), bool)
    if probs is None:
        return NoisyLabelData(names, tags, given)
    if fnames is None:
        raise OptionError("probs come without fnames; name the clip of each row, since rows are matched by name")
    check_no_leakage(names, trained_on, out_of_fold=out_of_fold)
    return NoisyLabelData(
        names,
        tags,
        given,
        _fixed(_matched(names, tags, probs, tuple(str(name) for name in fnames)), np.float64),
        out_of_fold,
    )


def check_no_leakage(fnames: Iterable[str], trained_on: Iterable[str], *, out_of_fold: bool) -> None:
    """Raise a `DataError` if models judge clips that they trained on; with `out_of_fold`, rows are said to be from models that did not."""
    learnt = set(trained_on)
    seen = [] if out_of_fold else [name for name in fnames if name in learnt]
    if seen:
        raise DataError(
            f"the models trained on {_some(seen)}, so they know the labels that they are to judge: predict each clip by the "
            "folds that left it out (out_of_fold_mean) and say out_of_fold=True"
        )


def out_of_fold_mean(stack: Any, fnames: Sequence[str], trained_on: Sequence[Collection[str]]) -> np.ndarray:
    """Mean over the models that did not train on a clip, for each clip.

    Parameters
    ----------
    stack
        Shape (models, clips, tags): each model's probabilities.
    fnames
        Names of the clips.
    trained_on
        For each model the names of the clips that it trained on, noisy ones too.

    Returns
    -------
    float64, shape (clips, tags).

    Raises
    ------
    DataError
        If a clip was trained on by every model.

    Examples
    --------
    >>> out_of_fold_mean([[[0.9], [0.2]], [[0.5], [0.4]]], ["a.wav", "b.wav"], [{"a.wav"}, set()]).round(3).tolist()
    [[0.5], [0.3]]
    """
    stack = np.asarray(stack, dtype=np.float64)
    if stack.ndim != 3 or stack.shape[:2] != (len(trained_on), len(fnames)):
        raise ShapeError(
            f"stack has shape {stack.shape}; expected (models, clips, tags) with {len(trained_on)} models and {len(fnames)} "
            "clips, one for each entry of trained_on and of fnames"
        )
    honest = np.array([[name not in names for name in fnames] for names in map(set, trained_on)], dtype=bool).reshape(
        stack.shape[:2]
    )
    judges = honest.sum(0)
    if not judges.all():
        lost = [name for name, n in zip(fnames, judges) if not n]
        raise DataError(
            f"every model trained on {_some(lost)}; share such clips over the folds (how='own' or 'others'), so that some "
            "leave them out"
        )
    return np.where(honest[..., None], stack, 0).sum(0) / judges[:, None]


def make_selection(
    method: str,
    judged: NoisyLabelData,
    keep: np.ndarray,
    why: np.ndarray | str,
    *,
    targ: np.ndarray | None = None,
    weight: np.ndarray | float = 1.0,
    score: np.ndarray | None = None,
    tags: Sequence[str] | None = None,
    changed: bool | None = None,
) -> LabelSelection:
    """The clips of `judged` where `keep`, in its order.

    Parameters
    ----------
    keep
        bool, shape (clips,).
    why
        A phrase for each clip, or for all, that follows a number of clips: "are not among the best 1000".
    targ
        Shape (clips, tags) over all clips, kept or not; None means the given labels.
    weight
        A number, or shape (clips,) or (clips, tags) over all clips.
    score
        Shape (clips,): what the method ranked by.
    tags
        Names of the columns of `targ`, where they aren't those of `judged`.
    changed
        Whether labels changed; None compares `targ` with the given labels.
    """
    labels = judged.given if targ is None else targ
    differs = (labels != judged.given).any(1) if changed is None else np.full(len(judged), changed)
    clips = pd.DataFrame({
        "fname": list(judged.fnames), "kept": keep, "changed": differs & keep,
        "score": np.full(len(judged), np.nan) if score is None else score, "why": why,
    })
    weight = np.full(len(judged), weight) if np.ndim(weight) == 0 else np.asarray(weight)
    fnames = tuple(name for name, stays in zip(judged.fnames, keep) if stays)
    return LabelSelection(
        method,
        fnames,
        tuple(tags or judged.tags),
        _fixed(labels[keep]),
        _fixed(weight[keep]),
        ("noisy",) * len(fnames),
        clips,
    )


def checked_probs(probs: Any, fnames: Sequence[str], tags: Sequence[str]) -> np.ndarray:
    """`probs` as float64, (clips, tags); one shaped or named otherwise, or with a value outside [0, 1], is refused as `attach_predictions` says."""
    probs = np.asarray(probs.detach().cpu() if hasattr(probs, "detach") else probs, dtype=np.float64)
    if probs.shape != (len(fnames), len(tags)):
        raise ShapeError(
            f"probs has shape {probs.shape}; expected {(len(fnames), len(tags))}: a row for each fname, a column for each tag"
        )
    _refuse_twice(fnames, "fnames")
    odd = ~((probs >= 0) & (probs <= 1))  # written so that NaN is odd too
    if odd.any():
        clip, tag = np.argwhere(odd)[0]
        raise DataError(
            f"probs holds {probs[clip, tag]} for {fnames[clip]}, tag {tags[tag]}; expected numbers within [0, 1]: take the "
            "sigmoid of logits first, and leave out clips that no fold predicted"
        )
    return probs


def _matched(names: tuple[str, ...], tags: tuple[str, ...], probs: Any, fnames: tuple[str, ...]) -> np.ndarray:
    """The rows of `probs` of `names`, checked."""
    probs = checked_probs(probs, fnames, tags)
    row = {name: i for i, name in enumerate(fnames)}
    lacking = [name for name in names if name not in row]
    if lacking:
        raise DataError(
            f"there are no probabilities of {_some(lacking)}; predict every clip of the table, or leave these out of it"
        )
    return probs[[row[name] for name in names]]


def _refuse_twice(names: Sequence[str], where: str) -> None:
    twice = pd.Series(list(names), dtype=object)
    twice = twice[twice.duplicated()]
    if len(twice):
        raise DataError(f"{where} names {_some(list(dict.fromkeys(twice)))} more than once; expected every clip once")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _fixed(values: np.ndarray, dtype: Any = np.float32) -> np.ndarray:
    """A read-only copy."""
    copy = np.array(values, dtype=dtype)
    copy.setflags(write=False)
    return copy
