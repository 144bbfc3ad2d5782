"""Score against the number of clips per tag, by linear probes on subsets of the training clips, out of fold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fatai.errors import DataError
from fatai.inference.linear_probe import LinearProbe
from fatai.metrics.classification import main_score

__all__ = ["LearningCurve", "few_shot_curve"]


@dataclass(frozen=True)
class LearningCurve:
    """Scores of held-out clips by the number of training clips of each tag.

    Attributes
    ----------
    counts
        Training clips of each tag, rising; the last is the mean number of all of them.
    scores
        Mean score of each count over the draws, at most 1.
    """

    counts: tuple[float, ...]
    scores: tuple[float, ...]

    def at_twice(self) -> float:
        """Extrapolate the score with twice the clips by a power law of the error, whose slope the whole curve gives.

        Examples
        --------
        >>> round(LearningCurve((1, 2, 4), (0.2, 0.6, 0.8)).at_twice(), 3)
        0.9
        """
        errors = 1 - np.array(self.scores)
        known = errors > 0
        if known.sum() < 2:
            return self.scores[-1]
        slope = np.polyfit(np.log(np.array(self.counts)[known]), np.log(errors[known]), 1)[0]
        return float(1 - errors[-1] * 2.0 ** min(slope, 0.0))


def few_shot_curve(
    values: np.ndarray,
    targ: np.ndarray,
    folds: np.ndarray,
    *,
    counts: Sequence[int] | None = None,
    C: float = 0.01,  # noqa: N803 - scikit-learn's name
    n_draws: int = 3,
    seed: int = 0,
    score: Callable[[np.ndarray, np.ndarray], float] = main_score,
) -> LearningCurve:
    """Fit linear probes on few training clips of each tag, and score the held-out clips of all folds.

    The clips of a tag are drawn at random among a fold's training clips; a clip with several tags counts for the tag
    that it is drawn for.

    Parameters
    ----------
    values, targ, C
        As in `LinearProbe.fit`.
    folds
        Shape (clips,): the fold that holds out each clip.
    counts
        Clips of each tag; None takes 1, 2, 4 and so on, up to half of the mean number of a tag's training clips. All
        training clips are added as the last count.
    n_draws, seed
        Draws of each count, whose scores are averaged, and their seed.
    score
        Function of probabilities and flags, both (clips, tags).

    Raises
    ------
    DataError
        If there are fewer than two folds.
    """
    targ = np.asarray(targ, dtype=bool)
    if len(set(folds.tolist())) < 2:
        raise DataError("all clips are in one fold; expected at least two folds, so that each clip can be predicted")
    per_tag = float(np.mean([targ[folds != k].sum(axis=0).mean() for k in set(folds.tolist())]))
    counts = tuple(_doublings(per_tag / 2)) if counts is None else tuple(counts)
    rng, scores = np.random.default_rng(seed), []
    for n in counts:
        draws = [score(_out_of_fold(values, targ, folds, C, n, rng), targ) for _ in range(n_draws)]
        scores.append(float(np.mean(draws)))
    scores.append(score(_out_of_fold(values, targ, folds, C, None, rng), targ))
    return LearningCurve((*counts, round(per_tag, 1)), tuple(scores))


def _doublings(last: float) -> Iterator[int]:
    n = 1
    while n <= last:
        yield n
        n *= 2


def _out_of_fold(
    values: np.ndarray, targ: np.ndarray, folds: np.ndarray, penalty: float, n: int | None, rng: np.random.Generator
) -> np.ndarray:
    """Return the probabilities (clips, tags) of each clip by a probe on `n` clips of each tag of the other folds."""
    probs, tags = np.empty(targ.shape), [str(k) for k in range(targ.shape[1])]
    for fold in sorted(set(folds.tolist())):
        train = np.flatnonzero(folds != fold)
        chosen = train if n is None else _draw(targ, train, n, rng)
        probe = LinearProbe.fit(values[chosen], targ[chosen], tags, C=penalty)
        probs[folds == fold] = probe.probs(values[folds == fold])
    return probs


def _draw(targ: np.ndarray, train: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `n` clips of each tag, or all where there are fewer; a clip that is drawn for two tags is there once."""
    drawn = [rng.permutation(train[targ[train, k]])[:n] for k in range(targ.shape[1])]
    return np.unique(np.concatenate(drawn))
