"""Splits: multi-label stratified, grouped, given; leakage check.

Conventions: `targ` is multi-hot, shape (clips, tags); a label counts where it is above 0. *Folds* are an int array, shape (clips,): the
number, from 0, of the fold that holds the clip out. Everything is repeated exactly by the same seed.

Methods
-------
stratified_argmax
    scikit-learn's StratifiedKFold on the first tag of each clip, as the 9th place split.
multilabel
    Iterative stratification of all tags (Sechidis, Tsoumakas, Vlahavas 2011), as the 3rd place and the gold plan split.
plain
    scikit-learn's KFold, shuffled, as the 1st and the 4th place split.
sliced
    Contiguous slices of a random permutation, as the 36th place split.
grouped
    No group on two sides, and the tags spread as evenly as whole groups allow.
given
    A column that says which fold a clip is in.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fatai.errors import DataError, OptionError, ShapeError
from fatai.registry import did_you_mean

__all__ = [
    "FOLD_MAKERS",
    "AbsentTags",
    "Leak",
    "absent_tags",
    "find_leaks",
    "fold_table",
    "make_folds",
    "noisy_shares",
    "warn_about_folds",
    "warn_about_leaks",
]

ALWAYS_TRAINING = -1
"""Fold number of clips that no fold holds out, such as noisy ones."""


def make_folds(
    targ: np.ndarray,
    *,
    how: str = "stratified_argmax",
    n: int = 5,
    seed: int = 2019,
    groups: Sequence[Any] | None = None,
    tags: Sequence[str] | None = None,
) -> np.ndarray:
    """Give every clip the fold that holds it out.

    Parameters
    ----------
    targ
        Multi-hot, shape (clips, tags).
    how
        A name of `FOLD_MAKERS`; the module's text says what each does.
    n
        Number of folds. With "given" it is the column that says how many there are, and `n` is not used.
    groups
        One value per clip: for "grouped" what must stay together (a recording, a site), for "given" the fold.
    tags
        Names of the columns, for messages.

    Returns
    -------
    int64, shape (clips,), values 0 to n - 1; every fold holds out at least one clip.

    Raises
    ------
    OptionError
        An unknown `how`, fewer than 2 folds or more than clips, groups missing or too few.
    ShapeError
        `targ` that is no table, or groups of another length.

    A tag with fewer clips than folds can't be in every fold: that warns, naming the tags, and never fails.

    Examples
    --------
    >>> make_folds(np.eye(2)[[0, 0, 1, 1]], n=2, seed=0).tolist()
    [1, 0, 0, 1]
    >>> make_folds(np.ones((3, 1)), how="given", groups=["b", "a", "b"]).tolist()
    [1, 0, 1]
    """
    if how not in FOLD_MAKERS:
        raise OptionError(f"no way to make folds is named {how!r}; {did_you_mean(how, list(FOLD_MAKERS))}")
    targ = np.asarray(targ)
    if targ.ndim != 2 or not targ.shape[1]:
        raise ShapeError(f"targ has shape {targ.shape}; expected (clips, tags), as multi_hot makes it")
    if groups is not None and len(groups) != len(targ):
        raise ShapeError(f"there are {len(groups)} groups for {len(targ)} clips; expected one for each clip")
    if how in ("grouped", "given") and groups is None:
        raise OptionError(f"folds made by {how!r} need groups: one value per clip, such as a column of the table")
    if how != "given" and not 2 <= n <= len(targ):
        raise OptionError(f"n is {n}; expected 2 to {len(targ)} folds, since there are {len(targ)} clips")
    positive = targ > 0
    if how in ("stratified_argmax", "multilabel"):
        _warn_rare(positive, n, tags)
    return FOLD_MAKERS[how](positive, n, seed, [] if groups is None else list(groups))


def _from_splits(splits: Any, n_clips: int) -> np.ndarray:
    """Fold numbers from scikit-learn's pairs of indices."""
    folds = np.full(n_clips, -1, dtype=np.int64)
    for k, (_, oof_score) in enumerate(splits):
        folds[oof_score] = k
    return folds


def _stratified_argmax(positive: np.ndarray, n: int, seed: int, groups: Sequence[Any]) -> np.ndarray:
    from sklearn.model_selection import StratifiedKFold

    first_tag = positive.argmax(1)
    if np.bincount(first_tag).max() < n:
        # scikit-learn refuses when no class reaches n clips; nothing can be stratified then.
        return _plain(positive, n, seed, groups)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        return _from_splits(
            StratifiedKFold(n, shuffle=True, random_state=seed).split(positive, first_tag), len(positive)
        )


def _multilabel(positive: np.ndarray, n: int, seed: int, groups: Sequence[Any]) -> np.ndarray:
    from iterstrat.ml_stratifiers import MultilabelStratifiedKFold

    if positive.shape[1] == 1:
        # One column alone is not multi-label to scikit-learn; with its opposite it is, and means the same.
        positive = np.concatenate([positive, ~positive], 1)
    folds = _from_splits(
        MultilabelStratifiedKFold(n, shuffle=True, random_state=seed).split(positive, positive.astype(int)),
        len(positive),
    )
    # With hardly more clips than folds, the stratification may leave a fold empty; training on such a fold could not be scored.
    return folds if len(np.unique(folds)) == n else _plain(positive, n, seed, groups)


def _plain(positive: np.ndarray, n: int, seed: int, groups: Sequence[Any]) -> np.ndarray:
    from sklearn.model_selection import KFold

    return _from_splits(KFold(n, shuffle=True, random_state=seed).split(positive), len(positive))


def _sliced(positive: np.ndarray, n: int, seed: int, groups: Sequence[Any]) -> np.ndarray:
    folds = np.empty(len(positive), dtype=np.int64)
    for k, part in enumerate(np.array_split(np.random.RandomState(seed).permutation(len(positive)), n)):
        folds[part] = k
    return folds


def _grouped(positive: np.ndarray, n: int, seed: int, groups: Sequence[Any]) -> np.ndarray:
    """Hand out whole groups, the biggest first, each to the fold where it makes the shares of the tags least uneven."""
    codes, names = pd.factorize(np.asarray(groups, dtype=object), use_na_sentinel=False)
    if len(names) < n:
        raise OptionError(f"there are {len(names)} groups for {n} folds; expected at least one for each fold")
    # The last column counts clips, so that folds are of one size even where tags don't tell.
    amounts = np.concatenate([positive, np.ones((len(positive), 1))], 1)
    per_group = np.zeros((len(names), amounts.shape[1]))
    np.add.at(per_group, codes, amounts)
    per_group /= np.maximum(per_group.sum(0), 1)
    order = np.random.RandomState(seed).permutation(len(names))
    order = order[np.argsort(-per_group[order].sum(1), kind="stable")]
    held, fold_of = np.zeros((n, amounts.shape[1])), np.empty(len(names), dtype=np.int64)
    for k, group in enumerate(order):
        # Sum of squares after giving the group to each fold; what all of them share is left out.
        cost = (per_group[group] * (2 * held + per_group[group])).sum(1)
        free = np.bincount(fold_of[order[:k]], minlength=n) == 0
        if free.sum() == len(order) - k:
            cost[~free] = np.inf
        fold_of[group] = cost.argmin()
        held[fold_of[group]] += per_group[group]
    return fold_of[codes]


def _given(positive: np.ndarray, n: int, seed: int, groups: Sequence[Any]) -> np.ndarray:
    values = [str(v).strip() for v in groups]
    for k, (value, cell) in enumerate(zip(values, groups)):
        if not value or cell is None or cell != cell:
            raise DataError(f"clip {k} has no fold ({cell!r}); expected one in every row of the column")
    try:
        # Fold 10 comes after fold 9, and 1.0 is the fold 1.
        numbers = [float(v) for v in values]
    except ValueError:
        names, folds = np.unique(np.array(values, dtype=str), return_inverse=True)
    else:
        names, folds = np.unique(np.array(numbers), return_inverse=True)
    if len(names) < 2:
        raise OptionError(
            f"the given folds hold only the value {values[0] if values else ''!r}; expected at least two different ones"
        )
    return folds.astype(np.int64)


FOLD_MAKERS: dict[str, Callable[..., np.ndarray]] = {
    "stratified_argmax": _stratified_argmax,
    "multilabel": _multilabel,
    "plain": _plain,
    "sliced": _sliced,
    "grouped": _grouped,
    "given": _given,
}


def _name(tag: int, tags: Sequence[str] | None) -> str:
    return str(tags[tag]) if tags is not None else f"tag {tag}"


def _warn_rare(positive: np.ndarray, n: int, tags: Sequence[str] | None) -> None:
    count = positive.sum(0)
    rare = [f"{_name(int(k), tags)} ({count[k]})" for k in np.flatnonzero((count > 0) & (count < n))]
    if rare:
        warnings.warn(
            f"fewer clips than the {n} folds have: {', '.join(rare)}; some folds hold none of them out, so their scores "
            "say little about these tags",
            stacklevel=3,
        )


def fold_table(folds: np.ndarray, targ: np.ndarray, tags: Sequence[str]) -> pd.DataFrame:
    """How many clips of each tag each fold holds out: a row per tag, a column per fold, and "all".

    Examples
    --------
    >>> fold_table(np.array([0, 1, 1]), np.array([[1, 0], [0, 1], [1, 1]]), ["Bark", "Purr"])
          0  1  all
    Bark  1  1    2
    Purr  0  2    2
    """
    positive = np.asarray(targ) > 0
    numbers = [int(k) for k in np.unique(folds) if k != ALWAYS_TRAINING]
    columns: dict[Any, np.ndarray] = {k: positive[np.asarray(folds) == k].sum(0) for k in numbers}
    return pd.DataFrame({**columns, "all": positive.sum(0)}, index=list(tags))


class AbsentTags(NamedTuple):
    """Tags that a fold lacks; each a dict from the fold's number to the names, without folds that lack none.

    `oof_score`: no clip that the fold holds out has the tag, so it can't be scored there.
    `training`: every clip with the tag is held out (or there is none at all), so it can't be learnt there.
    """

    oof_score: dict[int, list[str]]
    training: dict[int, list[str]]


def absent_tags(folds: np.ndarray, targ: np.ndarray, tags: Sequence[str]) -> AbsentTags:
    """Which tags are missing from which fold."""
    table = fold_table(folds, targ, tags)
    numbers = [int(k) for k in table.columns if k != "all"]
    oof_score = {k: list(table.index[table[k] == 0]) for k in numbers}
    training = {k: list(table.index[table[k] == table["all"]]) for k in numbers}
    return AbsentTags({k: t for k, t in oof_score.items() if t}, {k: t for k, t in training.items() if t})


def warn_about_folds(folds: np.ndarray, targ: np.ndarray, tags: Sequence[str]) -> AbsentTags:
    """Warn about the tags that folds lack, naming both, and return them."""
    absent = absent_tags(folds, targ, tags)
    told = [f"fold {k} holds out no clip of {', '.join(names)}" for k, names in absent.oof_score.items()]
    told += [f"fold {k} leaves no clip to learn from of {', '.join(names)}" for k, names in absent.training.items()]
    if told:
        warnings.warn("; ".join(told), stacklevel=2)
    return absent


def noisy_shares(n_clips: int, *, how: str = "all", n: int = 5, seed: int = 42) -> np.ndarray:
    """Which noisy clips train in which fold.

    Parameters
    ----------
    how
        "all": every clip in every fold (9th, 36th, 1st place). "own": the clips are split by a shuffled KFold, and fold k gets only the
        k-th part (3rd place). "others": fold k gets all but the k-th part (4th place).

    Returns
    -------
    bool, shape (n, n_clips).
    """
    if how not in ("all", "own", "others"):
        raise OptionError(
            f"how is {how!r}; expected all, own or others: which part of the noisy clips a fold trains on"
        )
    if how == "all":
        return np.ones((n, n_clips), dtype=bool)
    if not 2 <= n <= n_clips:
        raise OptionError(f"n is {n}; expected 2 to {n_clips} folds, since there are {n_clips} noisy clips")
    own = _plain(np.zeros((n_clips, 1), dtype=bool), n, seed, [])[None] == np.arange(n)[:, None]
    return own if how == "own" else ~own


class Leak(NamedTuple):
    """One thing that is on both sides of a split: what kind ("file", "sound" or "group"), what it is called, where it was found."""

    kind: str
    key: str
    files: tuple[str, ...]
    folds: tuple[int, ...]


def find_leaks(
    folds: Sequence[int] | np.ndarray, fnames: Sequence[str], *, hashes: Sequence[str | None] | None = None,
    groups: Sequence[Any] | None = None,
) -> list[Leak]:
    """What is both held out and trained on: the same file name, the same sound, the same group.

    Parameters
    ----------
    folds
        Fold of each clip; -1 for clips that every fold trains on, such as noisy ones.
    fnames
        Name of each clip.
    hashes
        Digest of each clip's decoded sound (`fatai.data.audit.audio_file.sound_digest`), None where it could not be read.
    groups
        What each clip belongs to; None where nothing is known.

    Returns
    -------
    Files first, then sounds, then groups, each in the order of the clips.

    Examples
    --------
    >>> find_leaks([0, 1, -1, 1], ["a.wav", "b.wav", "a.wav", "c.wav"], hashes=["x", "y", "z", "y"])
    [Leak(kind='file', key='a.wav', files=('a.wav', 'a.wav'), folds=(-1, 0))]
    """
    columns: list[tuple[str, Sequence[Any] | None]] = [("file", fnames), ("sound", hashes), ("group", groups)]
    leaks = []
    for kind, keys in columns:
        if keys is None:
            continue
        if len(keys) != len(folds):
            raise ShapeError(f"there are {len(keys)} {kind} keys for {len(folds)} clips; expected one for each clip")
        where: dict[Any, list[int]] = {}
        for k, key in enumerate(keys):
            if key is not None and key == key and key != "":
                where.setdefault(key, []).append(k)
        for key, clips in where.items():
            found = tuple(sorted({int(folds[k]) for k in clips}))
            if len(found) > 1:
                leaks.append(Leak(kind, str(key), tuple(str(fnames[k]) for k in clips), found))
    return leaks


def warn_about_leaks(leaks: Sequence[Leak]) -> None:
    """One warning that names what is on both sides of the split, at most five of each kind."""
    told = []
    for kind in ("file", "sound", "group"):
        of_kind = [leak for leak in leaks if leak.kind == kind]
        if of_kind:
            some = ", ".join(leak.key if kind != "sound" else " = ".join(leak.files) for leak in of_kind[:5])
            told.append(
                f"{len(of_kind)} {kind}{'s' * (len(of_kind) > 1)} ({some}{', ...' if len(of_kind) > 5 else ''})"
            )
    if told:
        warnings.warn(
            f"on both sides of a split: {'; '.join(told)}; scores of those folds are too good to be true - group the folds",
            stacklevel=2,
        )
