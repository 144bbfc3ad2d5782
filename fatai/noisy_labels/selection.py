"""Noisy clips with out-of-fold predictions, and the subset that a method selects.

Conventions: `given` and `probs` are (clips, tags), rows identified by `fnames`, columns by `tags`. Rows of tables and
of probabilities are matched by name, never by position: a file of predictions in another order than the labels gives
the same result. A method of `NOISY` maps a `NoisyLabelData` to a `LabelSelection`; nothing is changed in place, nothing
is random, and ties are broken by name, so the order of rows has no influence.

A model that was trained on a clip has learned its label, right or wrong, so its predictions carry no information about
the label. `attach_predictions` refuses such predictions if it is given the names of the training clips;
`out_of_fold_mean` averages those of several models without them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from fatai.data.clip_names import match_clips, unique_names
from fatai.data.folds import noisy_fold_masks
from fatai.data.labels import check_labels, multi_hot, parse_labels
from fatai.errors import DataError, OptionError, ShapeError

__all__ = ["LabelSelection", "NoisyLabelData", "attach_predictions", "out_of_fold_mean"]


@dataclass(frozen=True, eq=False)
class NoisyLabelData:
    """Clips with noisy labels, and the probabilities that models give each tag; created by `attach_predictions`.

    Attributes
    ----------
    fnames, tags
        Names of the rows and of the columns.
    given
        bool, shape (clips, tags): the labels as given.
    probs
        float64, shape (clips, tags), within [0, 1]; None without predictions.
    out_of_fold
        True if the caller has declared that no row comes from a model that was trained on its clip, although models
        were trained on some of the clips.
    """

    fnames: tuple[str, ...]
    tags: tuple[str, ...]
    given: np.ndarray
    probs: np.ndarray | None = None
    out_of_fold: bool = False

    def __len__(self) -> int:
        return len(self.fnames)

    def probs_for(self, method: str) -> np.ndarray:
        """Return the probabilities, (clips, tags), that `method` needs; an `OptionError` if there are none."""
        if self.probs is None:
            raise OptionError(
                f"{method} needs probabilities of the clips; give probs and fnames, of models that were not trained "
                "on them"
            )
        return self.probs


@dataclass(frozen=True, eq=False)
class LabelSelection:
    """The clips that a method selects for training, with targets and weights, and the outcome for every clip.

    Attributes
    ----------
    method
        Name of the method.
    fnames
        The selected clips, in the order of their table; a clip that is there as noisy and as corrected has two rows.
    tags
        Names of the columns of `targ`.
    targ
        float32, shape (selected, tags), read-only: 0 and 1, or soft targets within [0, 1].
    weight
        float32, read-only, shape (selected,), or (selected, tags) where a method weights tags: the sample weights of a
        loss.
    source
        "noisy" or "corrected" for each row, as for `fatai.data.samplers.MixtureSampler`. Only the former are noisy to a
        loss.
    clips
        The outcome for every clip: `fname`, `kept`, `changed` (True if its labels are not those given), `score` (by
        which the method ranked; NaN where it didn't) and `reason`.
    source_weights
        Probability of drawing from each source, "curated" among them, if the method sets it.
    """

    method: str
    fnames: tuple[str, ...]
    tags: tuple[str, ...]
    targ: np.ndarray
    weight: np.ndarray
    source: tuple[str, ...]
    clips: pd.DataFrame
    source_weights: Mapping[str, float] | None = None

    def __len__(self) -> int:
        return len(self.fnames)

    def __str__(self) -> str:
        reasons = ", ".join(f"{n} {reason}" for reason, n in self.clips["reason"].value_counts().items())
        return f"{self.method}: {int(self.clips['kept'].sum())} of {len(self.clips)} clips kept ({reasons})"

    @property
    def noisy(self) -> np.ndarray:
        """Flags of noisy rows for a loss: bool, shape (selected,)."""
        return np.array([source == "noisy" for source in self.source], dtype=bool)

    @property
    def is_soft(self) -> bool:
        """True if some target is neither 0 nor 1, so that no list of labels can express it."""
        return not np.isin(self.targ, (0, 1)).all()

    @property
    def labels(self) -> list[list[str]]:
        """The tags of each row, in the order of `tags`; an `OptionError` for soft targets."""
        if self.is_soft:
            raise OptionError(
                f"{self.method} gives soft targets, which lists of labels cannot express: train on targ, or choose "
                "another method"
            )
        return [[self.tags[k] for k in np.flatnonzero(row)] for row in self.targ]

    @property
    def table(self) -> pd.DataFrame:
        """The rows as a table of labels.

        Columns `fname`, `labels` (lists), `source`, `noisy`, and `weight` unless tags are weighted.
        `fatai.callbacks.sample_weights.SampleWeights` reads weights and flags from loaders made of it.
        """
        columns: dict[str, Any] = {
            "fname": list(self.fnames),
            "labels": pd.Series(self.labels, dtype=object),
            "source": list(self.source),
            "noisy": self.noisy,
        }
        return pd.DataFrame({**columns, "weight": self.weight} if self.weight.ndim == 1 else columns)

    @property
    def weights_by_fname(self) -> dict[str, Any]:
        """Clip to weight, a number or (tags,), as for `fatai.callbacks.sample_weights.SampleWeights`."""
        return dict(zip(self.fnames, self.weight, strict=True))

    @property
    def targets_by_fname(self) -> dict[str, np.ndarray]:
        """Clip to its row of `targ`, (tags,), for soft targets; of a clip with two rows the corrected one."""
        return dict(zip(self.fnames, self.targ, strict=True))

    def scale_weights(self, factor: float) -> LabelSelection:
        """Return the selection with every weight multiplied by `factor`, at least 0."""
        if not 0 <= factor < np.inf:
            raise OptionError(f"factor is {factor}; expected a number of at least 0")
        return replace(self, weight=_read_only(self.weight * factor))

    def per_fold(self, *, split: str = "all", n: int = 5, seed: int = 42) -> tuple[LabelSelection, ...]:
        """Return the selection of each fold; `clips` still lists all clips.

        Parameters
        ----------
        split
            "all" (every fold gets all), "own" (3rd place: the k-th part) or "others" (4th place: all but the k-th
            part), as in `fatai.data.folds.noisy_fold_masks`. The clips are split sorted by name; rows of one clip stay
            together.
        n
            Number of folds.
        seed
            Seed of the shuffle.

        Raises
        ------
        OptionError
            If `split` is unknown, or there are fewer clips than folds to split among.
        """
        names = sorted(set(self.fnames))
        masks = noisy_fold_masks(len(names), split=split, n=n, seed=seed)
        parts = [{names[i] for i in np.flatnonzero(mask)} for mask in masks]
        return tuple(self._take([i for i, name in enumerate(self.fnames) if name in part]) for part in parts)

    def _take(self, rows: list[int]) -> LabelSelection:
        return replace(
            self,
            fnames=tuple(self.fnames[i] for i in rows),
            targ=_read_only(self.targ[rows]),
            weight=_read_only(self.weight[rows]),
            source=tuple(self.source[i] for i in rows),
        )


Method: TypeAlias = Callable[[NoisyLabelData], LabelSelection]
"""Type of the methods that `NOISY` builds."""


def attach_predictions(
    table: pd.DataFrame,
    tags: Sequence[str],
    probs: Any = None,
    fnames: Iterable[str] | None = None,
    *,
    trained_on: Iterable[str] = (),
    out_of_fold: bool = False,
) -> NoisyLabelData:
    """Join the labels of a noisy table with the probabilities that models give its clips.

    Parameters
    ----------
    table
        Columns `fname` and `labels` (lists, or cells with commas or semicolons); no clip twice. With a column `path`,
        files of one name are called by their shortest unique path.
    tags
        The vocabulary: the order of the columns of `probs`.
    probs
        Shape (predicted clips, tags), within [0, 1]; None for methods that need no predictions.
    fnames
        The clip of each row of `probs`, in any order: its name, or with a column `path` its path or an end of it that
        no other clip has; clips that are not in `table` are left out.
    trained_on
        Names of the clips that the models behind `probs` were trained on, or their paths where `table` has a column
        `path`. None of the table's may be among them, unless `out_of_fold`.
    out_of_fold
        True if every row comes only from models that were not trained on its clip, as rows of `out_of_fold_mean` do.

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
    names, tags = _checked_names(table), tuple(tags)
    given = _given_labels(names, table["labels"], tags)
    if probs is None:
        return NoisyLabelData(names, tags, given)
    if fnames is None:
        raise OptionError("got probs without fnames; expected the clip of each row, since rows are matched by name")
    paths = _paths(table, names)
    training_clips = {str(name) for name in trained_on}
    training_names = (name for name, path in zip(names, paths, strict=True) if {name, path} & training_clips)
    check_no_leakage(names, training_names, out_of_fold=out_of_fold)
    matched = _match_rows(names, tags, probs, _names_of(fnames, names, paths))
    return NoisyLabelData(names, tags, given, _read_only(matched, np.float64), out_of_fold)


def _checked_names(table: pd.DataFrame) -> tuple[str, ...]:
    if not {"fname", "labels"} <= set(table.columns):
        raise DataError(f"the table has the columns {', '.join(map(str, table.columns))}; expected fname and labels")
    names = tuple(str(name) for name in table["fname"])
    names = tuple(unique_names(names, _paths(table, names)))
    _check_unique(names, "the table")
    return names


def _paths(table: pd.DataFrame, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the path of each clip; its name in a table without paths."""
    return tuple(str(path) for path in table["path"]) if "path" in table.columns else names


def _names_of(keys: Iterable[str], names: tuple[str, ...], paths: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of clips that are called by a name, a path or an end of it; unknown ones stay."""
    keys = [str(key) for key in keys]
    matched = match_clips(keys, names, paths)
    return tuple(names[matched[key][0]] if key in matched else key for key in keys)


def _given_labels(names: tuple[str, ...], cells: pd.Series, tags: tuple[str, ...]) -> np.ndarray:
    parsed = pd.DataFrame(
        {"fname": list(names), "labels": pd.Series([parse_labels(cell) for cell in cells], dtype=object)}
    )
    check_labels(parsed, tags)
    return _read_only(multi_hot(parsed["labels"], tags), bool)


def check_no_leakage(fnames: Iterable[str], trained_on: Iterable[str], *, out_of_fold: bool) -> None:
    """Raise `DataError` if predicted clips are among the training clips, unless rows are declared out of fold."""
    training_clips = set(trained_on)
    leaked = [] if out_of_fold else [name for name in fnames if name in training_clips]
    if leaked:
        raise DataError(
            f"the models were trained on {_name_some(leaked)}, so their predictions cannot reveal wrong labels: "
            "predict each clip by the folds that left it out (out_of_fold_mean) and pass out_of_fold=True"
        )


def out_of_fold_mean(probs: Any, fnames: Sequence[str], trained_on: Sequence[Collection[str]]) -> np.ndarray:
    """Average the predictions for each clip over the models that were not trained on it.

    Parameters
    ----------
    probs
        Shape (models, clips, tags): each model's probabilities.
    fnames
        Names of the clips.
    trained_on
        For each model the names of the clips that it was trained on, noisy ones too.

    Returns
    -------
    float64, shape (clips, tags).

    Raises
    ------
    DataError
        If every model was trained on a clip.
    ShapeError
        If the shape of `probs` does not fit `fnames` and `trained_on`.

    Examples
    --------
    >>> out_of_fold_mean([[[0.9], [0.2]], [[0.5], [0.4]]], ["a.wav", "b.wav"], [{"a.wav"}, set()]).round(3).tolist()
    [[0.5], [0.3]]
    """
    probs = np.asarray(probs, dtype=np.float64)
    if probs.ndim != 3 or probs.shape[:2] != (len(trained_on), len(fnames)):
        raise ShapeError(
            f"probs has shape {probs.shape}; expected (models, clips, tags) with {len(trained_on)} models and "
            f"{len(fnames)} clips, one for each entry of trained_on and of fnames"
        )
    unseen = np.array([[name not in names for name in fnames] for names in map(set, trained_on)], dtype=bool)
    unseen = unseen.reshape(probs.shape[:2])
    n_models = unseen.sum(0)
    if not n_models.all():
        seen_by_all = [name for name, n in zip(fnames, n_models, strict=True) if not n]
        raise DataError(
            f"every model was trained on {_name_some(seen_by_all)}; split such clips over the folds (split='own' or "
            "'others'), so that some models leave them out"
        )
    return np.where(unseen[..., None], probs, 0).sum(0) / n_models[:, None]


def make_selection(
    method: str,
    data: NoisyLabelData,
    keep: np.ndarray,
    reason: np.ndarray | str,
    *,
    targ: np.ndarray | None = None,
    weight: np.ndarray | float = 1.0,
    score: np.ndarray | None = None,
    tags: Sequence[str] | None = None,
    changed: bool | None = None,
) -> LabelSelection:
    """Build the selection of the clips of `data` where `keep`, in their order.

    Parameters
    ----------
    method
        Name of the method.
    data
        All clips.
    keep
        bool, shape (clips,).
    reason
        A phrase for each clip, or for all, that follows a number of clips: "not among the best 1000".
    targ
        Shape (clips, tags) over all clips, kept or not; None means the given labels.
    weight
        A number, or shape (clips,) or (clips, tags) over all clips.
    score
        Shape (clips,): the numbers by which the method ranked.
    tags
        Names of the columns of `targ`, where they aren't those of `data`.
    changed
        True if labels changed; None compares `targ` with the given labels.
    """
    labels = data.given if targ is None else targ
    differs = (labels != data.given).any(1) if changed is None else np.full(len(data), changed)
    clips = pd.DataFrame({
        "fname": list(data.fnames), "kept": keep, "changed": differs & keep,
        "score": np.full(len(data), np.nan) if score is None else score, "reason": reason,
    })
    weight = np.full(len(data), weight) if np.ndim(weight) == 0 else np.asarray(weight)
    fnames = tuple(name for name, kept in zip(data.fnames, keep, strict=True) if kept)
    source = ("noisy",) * len(fnames)
    return LabelSelection(
        method, fnames, tuple(tags or data.tags), _read_only(labels[keep]), _read_only(weight[keep]), source, clips
    )


def check_probs(probs: Any, fnames: Sequence[str], tags: Sequence[str]) -> np.ndarray:
    """Return probabilities as float64, shape (clips, tags).

    Parameters
    ----------
    probs
        Shape (clips, tags), within [0, 1]: an array, a tensor or nested lists.
    fnames, tags
        Names of the rows and of the columns.

    Raises
    ------
    DataError
        If a value is outside of [0, 1] or NaN, or a name is there twice.
    ShapeError
        If the shape does not fit the names.
    """
    probs = np.asarray(probs.detach().cpu() if hasattr(probs, "detach") else probs, dtype=np.float64)
    if probs.shape != (len(fnames), len(tags)):
        raise ShapeError(
            f"probs has shape {probs.shape}; expected {(len(fnames), len(tags))}: a row for each fname, a column for "
            "each tag"
        )
    _check_unique(fnames, "fnames")
    invalid = ~((probs >= 0) & (probs <= 1))  # written so that NaN is invalid too
    if invalid.any():
        clip, tag = np.argwhere(invalid)[0]
        raise DataError(
            f"probs holds {probs[clip, tag]} for {fnames[clip]}, tag {tags[tag]}; expected numbers within [0, 1]: "
            "take the sigmoid of logits first, and leave out clips that no fold predicted"
        )
    return probs


def _match_rows(names: tuple[str, ...], tags: tuple[str, ...], probs: Any, fnames: tuple[str, ...]) -> np.ndarray:
    """Return the rows of `probs` in the order of `names`, checked."""
    probs = check_probs(probs, fnames, tags)
    row = {name: i for i, name in enumerate(fnames)}
    missing = [name for name in names if name not in row]
    if missing:
        raise DataError(
            f"there are no probabilities of {_name_some(missing)}; predict every clip of the table, or leave these "
            "out of it"
        )
    return probs[[row[name] for name in names]]


def _check_unique(names: Sequence[str], where: str) -> None:
    series = pd.Series(list(names), dtype=object)
    repeated = series[series.duplicated()]
    if len(repeated):
        raise DataError(
            f"{where} names {_name_some(list(dict.fromkeys(repeated)))} more than once; expected every clip once"
        )


def _name_some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _read_only(values: np.ndarray, dtype: Any = np.float32) -> np.ndarray:
    """Return a read-only copy, of any shape."""
    copy = np.array(values, dtype=dtype)
    copy.setflags(write=False)
    return copy
