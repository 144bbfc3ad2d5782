"""Cross-validation splits of multi-label clips, and checks for leakage between folds.

Conventions: `targ` is multi-hot, shape (clips, tags); a label counts where it is above 0. *Folds* are an int array,
shape (clips,): the number, from 0, of the fold that holds the clip out. The same seed gives the same folds.

Splitters
---------
stratified
    scikit-learn's StratifiedKFold on the first tag of each clip, as in the 9th place's system.
multilabel
    Iterative stratification of all tags (Sechidis, Tsoumakas, Vlahavas 2011), as in the 3rd place's system and the gold
    plan.
kfold
    scikit-learn's KFold, shuffled, as in the systems of the 1st and the 4th place.
sliced
    Contiguous slices of a random permutation, as in the 36th place's system.
group
    scikit-learn's StratifiedGroupKFold on the tag combination of each clip: no group is in two folds.
predefined
    A column holds the fold of each clip, as in scikit-learn's PredefinedSplit.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fatai.errors import DataError, OptionError, ShapeError
from fatai.io.lazy import pandas as pd
from fatai.registry import did_you_mean

__all__ = ["SPLITTERS", "absent_tags", "find_leaks", "fold_table", "make_folds", "warn_about_folds", "warn_about_leaks"]

ALWAYS_TRAINING = -1
"""Fold number of clips that no fold holds out, such as noisy ones."""

_USES_GROUPS = ("group", "predefined")


def make_folds(
    targ: np.ndarray,
    *,
    splitter: str = "stratified",
    n: int = 5,
    seed: int = 2019,
    groups: Sequence[Any] | None = None,
    tags: Sequence[str] | None = None,
) -> np.ndarray:
    """Assign each clip to the fold that holds it out.

    A tag with fewer clips than folds cannot be in every fold; a warning names such tags.

    Parameters
    ----------
    targ
        Multi-hot targets, shape (clips, tags).
    splitter
        A key of `SPLITTERS`, described in the module's docstring. Choose "multilabel" if most clips have several tags,
        and "group" if several clips come from one recording or site.
    n
        Number of folds, at least 2; ignored by "predefined", where the column determines it.
    seed
        Seed of the shuffle.
    groups
        One value per clip: for "group" what must stay in one fold (a recording, a site), for "predefined" the fold.
    tags
        Names of the columns of `targ`, for messages.

    Returns
    -------
    int64, shape (clips,), values 0 to n - 1; every fold holds out at least one clip.

    Raises
    ------
    OptionError
        If `splitter` is unknown, `n` is below 2 or above the number of clips, or `groups` are missing or fewer than
        folds.
    ShapeError
        If `targ` is not two-dimensional, or `groups` has another length.
    DataError
        If a clip has no value in a predefined fold column.

    Examples
    --------
    >>> make_folds(np.eye(2)[[0, 0, 1, 1]], n=2, seed=0).tolist()
    [1, 0, 0, 1]
    >>> make_folds(np.ones((3, 1)), splitter="predefined", groups=["b", "a", "b"]).tolist()
    [1, 0, 1]
    """
    targ = np.asarray(targ)
    _check_arguments(targ, splitter, n, groups)
    positive = targ > 0
    if splitter in ("stratified", "multilabel"):
        _warn_rare(positive, n, tags)
    return SPLITTERS[splitter](positive, n, seed, [] if groups is None else list(groups))


def _check_arguments(targ: np.ndarray, splitter: str, n: int, groups: Sequence[Any] | None) -> None:
    if splitter not in SPLITTERS:
        raise OptionError(f"splitter is {splitter!r}; {did_you_mean(splitter, list(SPLITTERS))}")
    if targ.ndim != 2 or not targ.shape[1]:
        raise ShapeError(f"targ has shape {targ.shape}; expected (clips, tags), as multi_hot returns it")
    if groups is not None and len(groups) != len(targ):
        raise ShapeError(f"there are {len(groups)} groups for {len(targ)} clips; expected one for each clip")
    if splitter in _USES_GROUPS and groups is None:
        raise OptionError(f"splitter {splitter!r} needs groups; expected one value per clip, such as a table's column")
    if splitter != "predefined" and not 2 <= n <= len(targ):
        raise OptionError(f"n is {n}; expected 2 to {len(targ)} folds, since there are {len(targ)} clips")


def _from_splits(splits: Iterable[tuple[np.ndarray, np.ndarray]], n_clips: int) -> np.ndarray:
    """Convert scikit-learn's pairs of (training, test) indices to fold numbers, shape (clips,)."""
    folds = np.full(n_clips, -1, dtype=np.int64)
    for k, (_, test) in enumerate(splits):
        folds[test] = k
    return folds


def _stratified(positive: np.ndarray, n: int, seed: int, groups: Sequence[Any]) -> np.ndarray:
    from sklearn.model_selection import StratifiedKFold

    first_tag = positive.argmax(1)
    if np.bincount(first_tag).max() < n:
        # scikit-learn raises when no class reaches n clips; nothing can be stratified then.
        return _kfold(positive, n, seed, groups)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        splits = StratifiedKFold(n, shuffle=True, random_state=seed).split(positive, first_tag)
        return _from_splits(splits, len(positive))


def _multilabel(positive: np.ndarray, n: int, seed: int, groups: Sequence[Any]) -> np.ndarray:
    from iterstrat.ml_stratifiers import MultilabelStratifiedKFold

    if positive.shape[1] == 1:
        # scikit-learn does not treat a single column as multi-label; with its complement it does, and means the same.
        positive = np.concatenate([positive, ~positive], 1)
    splitter = MultilabelStratifiedKFold(n, shuffle=True, random_state=seed)
    folds = _from_splits(splitter.split(positive, positive.astype(int)), len(positive))
    # With hardly more clips than folds, the stratification may leave a fold empty, which could not be scored.
    return folds if len(np.unique(folds)) == n else _kfold(positive, n, seed, groups)


def _kfold(positive: np.ndarray, n: int, seed: int, groups: Sequence[Any]) -> np.ndarray:
    from sklearn.model_selection import KFold

    return _from_splits(KFold(n, shuffle=True, random_state=seed).split(positive), len(positive))


def _sliced(positive: np.ndarray, n: int, seed: int, groups: Sequence[Any]) -> np.ndarray:
    order = np.random.RandomState(seed).permutation(len(positive))
    return _from_splits(((part, part) for part in np.array_split(order, n)), len(positive))


def _group(positive: np.ndarray, n: int, seed: int, groups: Sequence[Any]) -> np.ndarray:
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    codes, names = pd.factorize(np.asarray(groups, dtype=object), use_na_sentinel=False)
    if len(names) < n:
        raise OptionError(f"there are {len(names)} groups for {n} folds; expected at least one for each fold")
    combination = np.unique(positive, axis=0, return_inverse=True)[1].ravel()
    # scikit-learn raises when no class reaches n clips; nothing can be stratified then.
    classes = combination if np.bincount(combination).max() >= n else np.zeros_like(combination)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        splits = StratifiedGroupKFold(n, shuffle=True, random_state=seed).split(positive, classes, codes)
        folds = _from_splits(splits, len(positive))
    if len(np.unique(folds)) == n:
        return folds
    # Stratification may leave a fold empty, which could not be scored; GroupKFold balances sizes and fills every fold.
    return _from_splits(GroupKFold(n).split(positive, groups=codes), len(positive))


def _predefined(positive: np.ndarray, n: int, seed: int, groups: Sequence[Any]) -> np.ndarray:
    values = [str(v).strip() for v in groups]
    for k, (value, cell) in enumerate(zip(values, groups, strict=True)):
        if not value or cell is None or cell != cell:
            raise DataError(f"clip {k} has no fold ({cell!r}); expected one in every row of the column")
    try:
        # Fold 10 comes after fold 9, and 1.0 is the fold 1.
        ordered: np.ndarray = np.array([float(v) for v in values])
    except ValueError:
        ordered = np.array(values, dtype=str)
    names, folds = np.unique(ordered, return_inverse=True)
    if len(names) < 2:
        only = values[0] if values else ""
        raise OptionError(f"the predefined folds hold only the value {only!r}; expected at least two different ones")
    return folds.astype(np.int64)


SPLITTERS: dict[str, Callable[..., np.ndarray]] = {
    "stratified": _stratified,
    "multilabel": _multilabel,
    "kfold": _kfold,
    "sliced": _sliced,
    "group": _group,
    "predefined": _predefined,
}
"""Splitters of `make_folds` by name, described in the module's docstring."""


def _name(tag: int, tags: Sequence[str] | None) -> str:
    return str(tags[tag]) if tags is not None else f"tag {tag}"


def _warn_rare(positive: np.ndarray, n: int, tags: Sequence[str] | None) -> None:
    count = positive.sum(0)
    rare = [f"{_name(int(k), tags)} ({count[k]})" for k in np.flatnonzero((count > 0) & (count < n))]
    if rare:
        warnings.warn(
            f"tags with fewer clips than the {n} folds: {', '.join(rare)}; some folds hold none of them out, so scores "
            "of these tags are unreliable",
            stacklevel=3,
        )


def fold_table(folds: np.ndarray, targ: np.ndarray, tags: Sequence[str]) -> pd.DataFrame:
    """Count the clips of each tag that each fold holds out.

    Parameters
    ----------
    folds
        Fold of each clip, shape (clips,); -1 for clips that are never held out.
    targ
        Multi-hot targets, shape (clips, tags).
    tags
        Names of the columns of `targ`.

    Returns
    -------
    A row per tag, a column per fold, and a column "all" with the number of clips that have the tag.

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
    """Tags that are absent from folds; both are dicts from fold number to tag names, without the folds that lack none.

    Attributes
    ----------
    validation
        Tags of no held-out clip, which cannot be scored in this fold.
    training
        Tags of no training clip, which cannot be learned in this fold.
    """

    validation: dict[int, list[str]]
    training: dict[int, list[str]]


def absent_tags(folds: np.ndarray, targ: np.ndarray, tags: Sequence[str]) -> AbsentTags:
    """Find the tags without a training or validation clip, for each fold.

    Parameters
    ----------
    folds
        Fold of each clip, shape (clips,).
    targ
        Multi-hot targets, shape (clips, tags).
    tags
        Names of the columns of `targ`.
    """
    table = fold_table(folds, targ, tags)
    numbers = [int(k) for k in table.columns if k != "all"]
    validation = {k: list(table.index[table[k] == 0]) for k in numbers}
    training = {k: list(table.index[table[k] == table["all"]]) for k in numbers}
    return AbsentTags({k: t for k, t in validation.items() if t}, {k: t for k, t in training.items() if t})


def warn_about_folds(folds: np.ndarray, targ: np.ndarray, tags: Sequence[str]) -> AbsentTags:
    """Warn about tags that are absent from folds, and return them; parameters as in `absent_tags`."""
    absent = absent_tags(folds, targ, tags)
    messages = [f"fold {k} holds out no clip of {', '.join(names)}" for k, names in absent.validation.items()]
    messages += [f"fold {k} has no training clip of {', '.join(names)}" for k, names in absent.training.items()]
    if messages:
        warnings.warn("; ".join(messages), stacklevel=2)
    return absent


def noisy_fold_masks(n_clips: int, *, split: str = "all", n: int = 5, seed: int = 42) -> np.ndarray:
    """Select the noisy clips that each fold trains on.

    Parameters
    ----------
    n_clips
        Number of noisy clips.
    split
        "all": every fold trains on all clips (9th, 36th, 1st place). "own": a shuffled KFold splits the clips, and fold
        k trains on the k-th part only (3rd place). "others": fold k trains on all parts but the k-th (4th place).
    n
        Number of folds.
    seed
        Seed of the shuffle.

    Returns
    -------
    bool, shape (n, n_clips): True where the fold trains on the clip.

    Raises
    ------
    OptionError
        If `split` is unknown, or `n` is below 2 or above `n_clips`.
    """
    if split not in ("all", "own", "others"):
        raise OptionError(f"split is {split!r}; expected all, own or others")
    if split == "all":
        return np.ones((n, n_clips), dtype=bool)
    if not 2 <= n <= n_clips:
        raise OptionError(f"n is {n}; expected 2 to {n_clips} folds, since there are {n_clips} noisy clips")
    parts = _kfold(np.zeros((n_clips, 1), dtype=bool), n, seed, [])[None] == np.arange(n)[:, None]
    return parts if split == "own" else ~parts


class Leak(NamedTuple):
    """A file, sound or group that occurs in more than one fold.

    Attributes
    ----------
    kind
        "file", "sound" or "group".
    key
        The file name, the digest of the sound, or the group.
    files
        Names of the clips.
    folds
        Folds of the clips, sorted.
    """

    kind: str
    key: str
    files: tuple[str, ...]
    folds: tuple[int, ...]


def find_leaks(
    folds: Sequence[int] | np.ndarray,
    fnames: Sequence[str],
    *,
    hashes: Sequence[str | None] | None = None,
    groups: Sequence[Any] | None = None,
) -> list[Leak]:
    """Find file names, sounds and groups that are in more than one fold.

    Parameters
    ----------
    folds
        Fold of each clip, shape (clips,); -1 for clips that every fold trains on, such as noisy ones.
    fnames
        Name of each clip.
    hashes
        Digest of each clip's decoded sound (`fatai.data.audit.audio_file.audio_digest`), None where it could not be
        read.
    groups
        Group of each clip; None or "" where it is unknown.

    Returns
    -------
    Files first, then sounds, then groups, each in the order of the clips.

    Raises
    ------
    ShapeError
        If `fnames`, `hashes` or `groups` is not of the length of `folds`.

    Examples
    --------
    >>> find_leaks([0, 1, -1, 1], ["a.wav", "b.wav", "a.wav", "c.wav"], hashes=["x", "y", "z", "y"])
    [Leak(kind='file', key='a.wav', files=('a.wav', 'a.wav'), folds=(-1, 0))]
    """
    columns: dict[str, Sequence[Any] | None] = {"file": fnames, "sound": hashes, "group": groups}
    leaks: list[Leak] = []
    for kind, keys in columns.items():
        if keys is None:
            continue
        if len(keys) != len(folds):
            raise ShapeError(f"there are {len(keys)} {kind} keys for {len(folds)} clips; expected one for each clip")
        leaks += _leaks_of_kind(kind, keys, folds, fnames)
    return leaks


def find_sound_leaks(
    folds: Sequence[int] | np.ndarray, fnames: Sequence[str], sounds: Sequence[str | None]
) -> list[Leak]:
    """Find equal sounds in more than one fold; arguments as in `find_leaks`, `sounds` being its `hashes`."""
    return _leaks_of_kind("sound", sounds, folds, fnames)


def _leaks_of_kind(
    kind: str, keys: Sequence[Any], folds: Sequence[int] | np.ndarray, fnames: Sequence[str]
) -> list[Leak]:
    clips_of: dict[Any, list[int]] = {}
    for k, key in enumerate(keys):
        if key is not None and key == key and key != "":
            clips_of.setdefault(key, []).append(k)
    leaks = []
    for key, clips in clips_of.items():
        found = tuple(sorted({int(folds[k]) for k in clips}))
        if len(found) > 1:
            leaks.append(Leak(kind, str(key), tuple(str(fnames[k]) for k in clips), found))
    return leaks


def warn_about_leaks(leaks: Sequence[Leak]) -> None:
    """Issue one warning that lists leaks, at most five of each kind."""
    parts = []
    for kind in ("file", "sound", "group"):
        of_kind = [leak for leak in leaks if leak.kind == kind]
        if of_kind:
            some = ", ".join(leak.key if kind != "sound" else " = ".join(leak.files) for leak in of_kind[:5])
            more = ", ..." if len(of_kind) > 5 else ""
            parts.append(f"{len(of_kind)} {kind}{'s' * (len(of_kind) > 1)} ({some}{more})")
    if parts:
        warnings.warn(
            f"in training and validation of one split: {'; '.join(parts)}; the scores are too high, split by group "
            "instead: splitter = \"group\" in a recipe, with group_col = \"sound\" for copies of a sound; or "
            "a valid_col",
            stacklevel=2,
        )
