"""Several predictions to one; and how good that one is, found on clips from which nothing of it was learnt.

Whatever a blend learns, it learns from *out-of-fold* predictions: each clip's come from a model that never saw it. And the score told of a
blend is *nested*: weights or networks fitted on some folds are scored on another, which they did not see. So a blend that learns much by
heart shows. What is not nested are the models: those that predicted the fold learnt from were trained on the fold that is scored, whose
tags so reach the fit in a roundabout way. This is common practice, and small beside what nesting takes away.

The test predictions of a run are means over its folds' models, its out-of-fold predictions come from one of them at a time: a blend meets
surer predictions than it was fitted on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fatai.errors import OptionError
from fatai.ensemble import stacking
from fatai.ensemble.weight_search import WEIGHT_RULES, WeightSearch, Rule
from fatai.ensemble.averaging import Averager, Fitted, WeightedAverage, FittableEnsemble, normalized_weights
from fatai.ensemble.members import Given, Member, OutOfFold, aligned, members_of, out_of_fold
from fatai.inference.predictions import Predictions
from fatai.inference.ground_truth import Table
from fatai.registry import ENSEMBLES, did_you_mean
from fatai.metrics.ranking import lwlrap

__all__ = ["EnsembleResult", "ensemble_report", "ensemble", "nested_cv_predict"]


@dataclass(frozen=True)
class EnsembleResult:
    """A blend and what is known of it.

    Attributes
    ----------
    predictions
        The blend; `predictions.held_out` is its nested out-of-fold lwlrap, None without a truth.
    members
        Names of what was blended.
    weights
        What each counted, summing to 1; None if the blend has no weights.
    alone
        Out-of-fold lwlrap of each member on the clips of `oof`; None without a truth.
    oof
        The blend's nested out-of-fold predictions; None without a truth.
    """

    predictions: Predictions
    members: tuple[str, ...]
    weights: tuple[float, ...] | None
    alone: tuple[float, ...] | None
    oof: Predictions | None

    def __str__(self) -> str:
        """A row for each member, then the blend: weight and out-of-fold lwlrap, as far as they are known."""
        scores = [""] * len(self.members) if self.alone is None else [f"{score:.4f}" for score in self.alone]
        weights = [""] * len(self.members) if self.weights is None else [f"{weight:.3f}" for weight in self.weights]
        nested = "" if self.predictions.oof_score is None else f"{self.predictions.oof_score:.4f}"
        rows = [("member", "weight", "oof lwlrap"), *zip(self.members, weights, scores), ("blend, nested", "", nested)]
        wide = max(len(name) for name, *_ in rows)
        return "\n".join(f"{name:<{wide}}  {weight:>6}  {score:>10}".rstrip() for name, weight, score in rows)


def ensemble(
    predictions: Sequence[Given],
    how: str = "mean",
    weights: Sequence[float] | str | None = None,
    *,
    oof: Sequence[Given] | None = None,
    truth: Table | None = None,
    **options: object,
) -> Predictions:
    """Averager predictions of the same clips and tags; rows and columns are matched by name, so their order may differ.

    Parameters
    ----------
    predictions
        `Predictions`, CSV files of them, or run folders (their test.csv), one or more: of models, of folds, of snapshots. The first one's
        order of rows and columns is kept.
    how
        A name of `ENSEMBLES`; `options` are its own.
    weights
        One number >= 0 for each of `predictions` (only their ratios count); None weighs all alike; "lwlrap" weighs each by the score of
        its out-of-fold predictions. Without those, by the score that the predictions carry as `oof_score`, as those of `learn.tta()` on the
        validation part do, or that a run's manifest names.
    oof
        Out-of-fold predictions, in the order of `predictions`; None takes those of the run folders, where all are run folders.
    truth
        The tags of the clips in `oof`, a table as in `Predictions.score`; clips that only some of them have are left out.

    Returns
    -------
    Predictions within [0, 1]; a clip that was unreadable to any is unreadable. With out-of-fold predictions and their truth, `oof_score` is
    the blend's nested out-of-fold lwlrap.

    Raises
    ------
    SubmissionError
        If the clips or tags are not the same, with the names that differ.
    OptionError
        If the weights do not fit, `how` is "weighted" and there are none, or something is to be learnt and there is nothing to learn from.
    UnknownNameError
        If there is no such `how`.

    Examples
    --------
    >>> one = Predictions(["a.wav", "b.wav"], ["Bark", "Meow"], [[0.5, 0.25], [1.0, 0.0]])
    >>> two = Predictions(["b.wav", "a.wav"], ["Bark", "Meow"], [[0.5, 0.5], [0.0, 0.75]])
    >>> ensemble([one, two], weights=[3, 1]).probs.tolist()
    [[0.375, 0.375], [0.875, 0.125]]
    """
    return ensemble_report(predictions, how, weights, oof=oof, truth=truth, **options).predictions


def ensemble_report(
    predictions: Sequence[Given],
    how: str = "mean",
    weights: Sequence[float] | str | None = None,
    *,
    oof: Sequence[Given] | None = None,
    truth: Table | None = None,
    **options: object,
) -> EnsembleResult:
    """What `ensemble` returns, with the weights found and the scores of members and blend; arguments and errors are the same."""
    members = members_of(predictions)
    first = members[0].predictions
    stack = np.stack([aligned(first, m.predictions, i).probs for i, m in enumerate(members, start=1)])
    known = _known(members, oof, truth)
    if isinstance(weights, str) and known is None:
        weights = _carried(weights, members)
    plan = _plan(how, weights, options, len(members), known is not None)
    fitted = _fitted(plan, known)
    unreadable = tuple(dict.fromkeys(name for m in members for name in m.predictions.unreadable))
    alone = nested = score = None
    if known is not None:
        alone = tuple(lwlrap(probs, known.targ) for probs in known.stack)
        if len(np.unique(known.folds)) > 1:
            nested = Predictions(known.fnames, first.tags, _nested(plan, known))
            score = lwlrap(nested.probs, known.targ)
    blended = Predictions(first.fnames, first.tags, fitted(stack), unreadable, score)
    found = tuple(float(w) for w in fitted.weights) if isinstance(fitted, WeightedAverage) else None
    return EnsembleResult(blended, tuple(m.name for m in members), found, alone, nested)


def nested_cv_predict(
    known: OutOfFold, how: str = "mean", weights: Sequence[float] | str | None = None, **options: object
) -> np.ndarray:
    """EnsembleResult probabilities of clips with known tags, (clips, tags), each fold's from what was fitted on the others alone."""
    return _nested(_plan(how, weights, options, len(known.stack), True), known)


def _known(members: Sequence[Member], oof: Sequence[Given] | None, truth: Table | None) -> OutOfFold | None:
    """Out-of-fold predictions beside their truth, as far as they were given."""
    if truth is None:
        if oof is not None:
            raise OptionError("oof is given without truth: pass the table of their tags, truth=")
        return None
    if oof is not None:
        given = members_of(oof, "oof", part="oof.csv")
        if len(given) != len(members):
            raise OptionError(
                f"oof holds {len(given)} predictions; expected {len(members)}, one for each of those to blend, in order"
            )
        parts, folds = [m.predictions for m in given], [m.folds for m in given]
    else:
        lacking = [m.name for m in members if m.oof is None]
        if lacking:
            raise OptionError(
                f"{lacking[0]} has no out-of-fold predictions for the truth to judge ({len(lacking)} such); "
                "blend run folders that hold an oof.csv, or pass oof=[...]"
            )
        parts, folds = [m.oof for m in members if m.oof is not None], [m.folds for m in members]
    return out_of_fold(parts, truth, members[0].predictions.tags, folds)


def _plan(
    how: str, weights: Sequence[float] | str | None, options: dict[str, object], n: int, learns: bool
) -> FittableEnsemble | WeightedAverage:
    """The blend of `n` with its weights, or how to find them."""
    blend: Averager | FittableEnsemble = ENSEMBLES.build(how, **options)
    if isinstance(blend, FittableEnsemble):
        if weights is not None:
            raise OptionError(f"how={how!r} finds what each counts by itself; leave weights out")
        if not learns:
            raise OptionError(
                f"how={how!r} is learnt from out-of-fold predictions: blend run folders or pass oof=[...], and pass truth="
            )
        return blend
    if isinstance(weights, str):
        return WeightSearch(blend, _rule(weights))
    return WeightedAverage(blend, normalized_weights(how, weights, n))


def _rule(name: str) -> Rule:
    if name not in WEIGHT_RULES:
        raise OptionError(f"weights is {name!r}; {did_you_mean(name, list(WEIGHT_RULES))}, or a list of numbers")
    return WEIGHT_RULES[name]


def _carried(rule: str, members: Sequence[Member]) -> list[float]:
    """The scores that predictions carry."""
    _rule(rule)
    silent = [m.name for m in members if m.predictions.oof_score is None]
    if silent:
        raise OptionError(
            f"weights={rule!r} is learnt out of fold, and {silent[0]} carries no score ({len(silent)} such): "
            "pass oof=[...] and truth=, or blend run folders, or what learn.tta() makes of the validation part"
        )
    return [m.predictions.oof_score for m in members if m.predictions.oof_score is not None]


def _fitted(plan: FittableEnsemble | WeightedAverage, known: OutOfFold | None) -> Fitted:
    if isinstance(plan, WeightedAverage):
        return plan
    assert known is not None
    return plan.fit(known.stack, known.targ)


def _nested(plan: FittableEnsemble | WeightedAverage, known: OutOfFold) -> np.ndarray:
    probs = np.empty(known.targ.shape)
    for fold in np.unique(known.folds):
        held = known.folds == fold
        fitted = _fitted(plan, known._replace(stack=known.stack[:, ~held], targ=known.targ[~held]))
        # Ranks within a tag are taken within the fold, as those of a test set are within it.
        probs[held] = fitted(known.stack[:, held])
    return probs
