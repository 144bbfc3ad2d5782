"""Rank the windows of an index: the most similar to an example, the most likely, the most uncertain.

Scores are (windows,), higher is better. Windows are scored part by part, so memory does not grow with their number.
From `APPROXIMATE_WINDOWS` on, similar windows come from an approximate index of the library usearch, if it is
installed; below, and without it, all windows are compared. Of windows that overlap in a sound only the best is kept.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fatai.errors import OptionError, ShapeError
from fatai.inference.search.index import SoundIndex
from fatai.io.atomic import write_file
from fatai.io.progress import track
from fatai.registry import did_you_mean

__all__ = [
    "RankedWindows", "build_vectors", "likely_windows", "rank_windows", "similar_windows", "uncertain_windows",
    "uncertainty",
]

APPROXIMATE_WINDOWS = 50_000
"""Windows from which on similar ones are looked up approximately."""

VECTORS = "vectors.usearch"
_MIN_CANDIDATES = 8
_USEARCH = "install usearch for searches of many windows in milliseconds: pip install 'fatai[index]'"


class RankedWindows(NamedTuple):
    """Rows of an index, int64 (windows,), the best first, and their scores, float64 (windows,)."""

    rows: np.ndarray
    scores: np.ndarray


def rank_windows(
    index: SoundIndex,
    score: Callable[[np.ndarray], np.ndarray],
    n: int,
    *,
    name: str = "features",
    exclude: Collection[int] = (),
    overlapping: bool = False,
) -> RankedWindows:
    """Return the `n` windows with the highest scores.

    Parameters
    ----------
    index
        The windows.
    score
        Maps the values of a part, (windows, values), to scores (windows,); windows of NaN are left out.
    n
        Number of windows, at least 1; fewer if there are no more.
    name
        The values: "features", or "probs", those of the network's tags.
    exclude
        Rows to leave out.
    overlapping
        Whether to keep windows that overlap a better one.

    Raises
    ------
    OptionError
        If `n` is below 1.
    """
    if n < 1:
        raise OptionError(f"n is {n}; expected at least one window")
    excluded = np.fromiter(exclude, dtype=np.int64, count=len(exclude))
    n_kept = n if overlapping else _candidates(index) * n
    rows, scores = np.zeros(0, np.int64), np.zeros(0)
    for first, values in index.blocks(name):
        new = np.asarray(score(values), dtype=np.float64)
        allowed = ~np.isnan(new)
        allowed[excluded[(excluded >= first) & (excluded < first + len(new))] - first] = False
        rows = np.concatenate([rows, first + np.flatnonzero(allowed)])
        scores = np.concatenate([scores, new[allowed]])
        best = np.argsort(-scores, kind="stable")[:n_kept]
        rows, scores = rows[best], scores[best]
    return _first(index, RankedWindows(rows, scores), n, overlapping)


def _candidates(index: SoundIndex) -> int:
    """Return how many windows to look at for each that is asked for: a better one may overlap so many."""
    # On both sides, and the last window of a sound, which ends with it, is off the others' grid.
    return max(_MIN_CANDIDATES, 2 * math.ceil(index.settings.window_s / index.settings.step_s) + 2)


def _first(index: SoundIndex, ranked: RankedWindows, n: int, overlapping: bool) -> RankedWindows:
    """Return the first `n` windows, without those that overlap a better one."""
    if overlapping:
        return RankedWindows(ranked.rows[:n], ranked.scores[:n])
    kept: list[int] = []
    taken: dict[int, list[tuple[float, float]]] = {}
    for k, row in enumerate(ranked.rows.tolist()):
        start, end = index.start_s[row], index.end_s[row]
        others = taken.setdefault(int(index.file[row]), [])
        if any(start < other_end and other_start < end for other_start, other_end in others):
            continue
        others.append((start, end))
        kept.append(k)
        if len(kept) == n:
            break
    return RankedWindows(ranked.rows[kept], ranked.scores[kept])


def similar_windows(
    index: SoundIndex, examples: np.ndarray, n: int, *, exclude: Collection[int] = (), overlapping: bool = False
) -> RankedWindows:
    """Return the windows most similar to any of some examples, by the cosine of their features, in [-1, 1].

    Parameters
    ----------
    index, n, exclude, overlapping
        As in `rank_windows`.
    examples
        Features of the examples, shape (examples, features).

    Raises
    ------
    ShapeError
        If `examples` has another number of features.
    """
    n_features = index.settings.n_features
    if examples.ndim != 2 or examples.shape[1] != n_features or not len(examples):
        raise ShapeError(f"examples has shape {examples.shape}; expected (examples, {n_features}), as in the index")
    if len(index) >= APPROXIMATE_WINDOWS:
        found = _approximate(index, examples, _candidates(index) * n + len(exclude))
        if found is not None:
            rows = np.setdiff1d(found, np.fromiter(exclude, dtype=np.int64, count=len(exclude)))
            scores = cosine_similarity(examples, index.features(rows))
            best = np.argsort(-scores, kind="stable")
            return _first(index, RankedWindows(rows[best], scores[best].astype(np.float64)), n, overlapping)

    return rank_windows(index, partial(cosine_similarity, examples), n, exclude=exclude, overlapping=overlapping)


def cosine_similarity(examples: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Return the highest cosine of each window with any example, (windows,), in [-1, 1].

    Parameters
    ----------
    examples, features
        Shapes (examples, features) and (windows, features).

    Examples
    --------
    >>> cosine_similarity(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[3.0, 4.0], [-1.0, -1.0]])).round(3).tolist()
    [0.8, -0.707]
    """
    return (_unit(features) @ _unit(examples).T).max(axis=1)


def _unit(features: np.ndarray) -> np.ndarray:
    """Return rows of length 1."""
    return features / np.linalg.norm(features, axis=1, keepdims=True).clip(min=1e-12)


def _approximate(index: SoundIndex, examples: np.ndarray, n: int) -> np.ndarray | None:
    """Return rows near some examples (examples, features) by usearch; None if it or its file is not there."""
    try:
        from usearch.index import Index
    except ImportError:
        warnings.warn(f"all {len(index):,} windows are compared; {_USEARCH}", stacklevel=3)
        return None
    path = index.folder / VECTORS
    if not path.is_file():
        build_vectors(index)
    vectors = Index.restore(str(path), view=True)
    if vectors is None or vectors.ndim != examples.shape[1] or len(vectors) != len(index):
        vectors = build_vectors(index)
    keys = [np.asarray(vectors.search(example, n).keys, dtype=np.int64) for example in examples]
    return np.unique(np.concatenate(keys))


def build_vectors(index: SoundIndex) -> Any:
    """Write the approximate index of usearch, `vectors.usearch`, or add the windows that it lacks; return it.

    Features are rounded to 16 bits in it; similar windows are compared again by those of the index.

    Raises
    ------
    MissingDependencyError
        If usearch is not installed.
    """
    try:
        from usearch.index import Index
    except ImportError as e:
        from fatai.errors import MissingDependencyError

        raise MissingDependencyError(_USEARCH) from e
    path, vectors = index.folder / VECTORS, None
    if path.is_file():
        vectors = Index.restore(str(path), view=False)
    if vectors is None or vectors.ndim != index.settings.n_features or len(vectors) > len(index):
        vectors = Index(ndim=index.settings.n_features, metric="cos", dtype="f16")
    n_known = len(vectors)
    for first, features in track(index.blocks(), "vectors", total=len(index._parts)):
        new = features[max(0, n_known - first):]
        if len(new):
            vectors.add(np.arange(first + len(features) - len(new), first + len(features), dtype=np.uint64), new)
    with write_file(path) as temporary:
        vectors.save(str(temporary))
    return vectors


def likely_windows(
    index: SoundIndex, tag: str, n: int, *, exclude: Collection[int] = (), overlapping: bool = False
) -> RankedWindows:
    """Return the windows with the highest probability of a tag by the network of the index.

    Parameters
    ----------
    index, n, exclude, overlapping
        As in `rank_windows`.
    tag
        One of `index.tags`.

    Raises
    ------
    OptionError
        If the network has no such tag.
    """
    if tag not in index.tags:
        hint = (
            did_you_mean(tag, list(index.tags)) if index.tags
            else "it was made with published weights, which predict no tags: give an example or labels"
        )
        raise OptionError(f"the network of {index.folder} has no tag {tag!r}; {hint}")
    column = index.tags.index(tag)
    return rank_windows(
        index, lambda probs: probs[:, column], n, name="probs", exclude=exclude, overlapping=overlapping
    )


def uncertain_windows(
    index: SoundIndex, n: int, *, exclude: Collection[int] = (), overlapping: bool = False
) -> RankedWindows:
    """Return the windows with the highest `uncertainty` of any tag by the network of the index.

    Parameters
    ----------
    index, n, exclude, overlapping
        As in `rank_windows`.

    Raises
    ------
    OptionError
        If the network predicts no tags.
    """
    if not index.tags:
        raise OptionError(
            f"{index.folder} was made with published weights, which predict no tags; give --labels with answers"
        )
    return rank_windows(
        index, lambda probs: uncertainty(probs).max(axis=1), n, name="probs", exclude=exclude, overlapping=overlapping
    )


def uncertainty(probs: np.ndarray) -> np.ndarray:
    """Return how near probabilities are to 0.5: 1 there, 0 at 0 and 1; the shape stays.

    Examples
    --------
    >>> uncertainty(np.array([0.5, 0.9, 0.0])).round(2).tolist()
    [1.0, 0.2, 0.0]
    """
    return 1 - np.abs(2 * probs - 1)
