"""Combine several predictions into one, and estimate its score on clips from which nothing of it was fitted.

What an ensemble fits, it fits on *out-of-fold* predictions: each clip is predicted by a model that was not trained on
it. The reported score is *nested*: weights or networks fitted on some folds are scored on another fold, so that
overfitting shows. Not nested are the models themselves: those that predicted the folds of the fit were trained on the
fold that is scored, whose tags thus reach the fit indirectly. This is common practice, and a small effect beside the
one that nesting removes.

The test predictions of a run are means over the models of its folds, its out-of-fold predictions come from one model
each: on test clips an ensemble gets more confident inputs than those it was fitted on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fatai.ensemble import stacking  # noqa: F401 - fills ENSEMBLES
from fatai.ensemble.averaging import Averager, FittableEnsemble, FittedEnsemble, WeightedAverage, normalized_weights
from fatai.ensemble.members import Member, OutOfFold, PredictionSource, align, align_out_of_fold, load_members
from fatai.ensemble.streaming import warn_of_unreadable
from fatai.ensemble.weight_search import WEIGHT_RULES, Rule, WeightSearch
from fatai.errors import OptionError
from fatai.inference.ground_truth import Table
from fatai.inference.predictions import Predictions
from fatai.metrics.classification import main_score
from fatai.registry import ENSEMBLES, did_you_mean

__all__ = ["EnsembleResult", "ensemble", "ensemble_report", "nested_cv_predict"]

Plan = FittableEnsemble | WeightedAverage


@dataclass(frozen=True)
class EnsembleResult:
    """Combined predictions with the weights and scores of their members.

    Attributes
    ----------
    predictions
        The combined predictions; `predictions.oof_score` is their nested out-of-fold lwlrap, None without a truth.
    members
        Names of the predictions that were combined.
    weights
        Weight of each member, summing to 1; None if the method has no weights.
    member_scores
        Out-of-fold lwlrap of each member on the clips of `oof`; None without a truth.
    oof
        The nested out-of-fold predictions; None without a truth.
    """

    predictions: Predictions
    members: tuple[str, ...]
    weights: tuple[float, ...] | None
    member_scores: tuple[float, ...] | None
    oof: Predictions | None

    def __str__(self) -> str:
        scores = [""] * len(self.members) if self.member_scores is None else [f"{s:.4f}" for s in self.member_scores]
        weights = [""] * len(self.members) if self.weights is None else [f"{weight:.3f}" for weight in self.weights]
        nested = "" if self.predictions.oof_score is None else f"{self.predictions.oof_score:.4f}"
        rows = [
            ("member", "weight", "oof lwlrap"),
            *zip(self.members, weights, scores, strict=True),
            ("ensemble, nested", "", nested),
        ]
        width = max(len(name) for name, *_ in rows)
        return "\n".join(f"{name:<{width}}  {weight:>6}  {score:>10}".rstrip() for name, weight, score in rows)


def ensemble(
    predictions: Sequence[PredictionSource],
    how: str = "mean",
    weights: Sequence[float] | str | None = None,
    *,
    oof: Sequence[PredictionSource] | None = None,
    truth: Table | None = None,
    **options: object,
) -> Predictions:
    """Combine predictions of the same clips and tags; rows and columns are matched by name, so their order may differ.

    Parameters
    ----------
    predictions
        One or more `Predictions`, CSV files of them, or run folders (their test.csv): of models, folds or snapshots.
        The order of rows and columns is that of the first.
    how
        A name in `ENSEMBLES`; `options` are passed to its builder.
    weights
        One number >= 0 per prediction, of which only the ratios count; None for equal weights; "lwlrap" for the score
        of the out-of-fold predictions. Without those, the score stored with the predictions as `oof_score` is used:
        `learn.tta()` on the validation set stores it, and the manifest of a run holds it.
    oof
        Out-of-fold predictions, in the order of `predictions`; None uses those of the run folders, if all are run
        folders.
    truth
        Tags of the clips in `oof`, a table as in `Predictions.score`; clips that only some members have are left out.

    Returns
    -------
    Predictions in [0, 1]; a clip that is unreadable in any member is marked unreadable. With out-of-fold predictions
    and their truth, `oof_score` is the nested out-of-fold lwlrap.

    Raises
    ------
    SubmissionError
        If the clips or tags differ; the message names them.
    OptionError
        If the weights do not fit, if `how` is "weighted" and there are none, or if the method must be fitted and there
        is nothing to fit it on.
    UnknownNameError
        If `how` is not in `ENSEMBLES`.

    Examples
    --------
    >>> one = Predictions(["a.wav", "b.wav"], ["Bark", "Meow"], [[0.5, 0.25], [1.0, 0.0]])
    >>> two = Predictions(["b.wav", "a.wav"], ["Bark", "Meow"], [[0.5, 0.5], [0.0, 0.75]])
    >>> ensemble([one, two], weights=[3, 1]).probs.tolist()
    [[0.375, 0.375], [0.875, 0.125]]
    """
    return ensemble_report(predictions, how, weights, oof=oof, truth=truth, **options).predictions


def ensemble_report(
    predictions: Sequence[PredictionSource],
    how: str = "mean",
    weights: Sequence[float] | str | None = None,
    *,
    oof: Sequence[PredictionSource] | None = None,
    truth: Table | None = None,
    **options: object,
) -> EnsembleResult:
    """Combine predictions as `ensemble`, and also return weights and scores; parameters and errors are the same."""
    members = load_members(predictions)
    first = members[0].predictions
    probs = np.stack([align(first, m.predictions, i).probs for i, m in enumerate(members, start=1)])
    known = _out_of_fold(members, oof, truth)
    if isinstance(weights, str) and known is None:
        weights = _stored_scores(weights, members)
    plan = _plan(how, weights, options, len(members), known is not None)
    combine = _fit(plan, known)
    member_scores = None if known is None else tuple(main_score(each, known.targ) for each in known.probs)
    nested = _nested_predictions(plan, known, first.tags)
    score = None if known is None or nested is None else main_score(nested.probs, known.targ)
    unreadable = tuple(dict.fromkeys(name for m in members for name in m.predictions.unreadable))
    warn_of_unreadable([name for name in unreadable if any(name not in m.predictions.unreadable for m in members)])
    silent = tuple(dict.fromkeys(name for m in members for name in m.predictions.silent))
    return EnsembleResult(
        Predictions(first.fnames, first.tags, combine(probs), unreadable, score, silent),
        tuple(m.name for m in members),
        tuple(float(w) for w in combine.weights) if isinstance(combine, WeightedAverage) else None,
        member_scores,
        nested,
    )


def nested_cv_predict(
    oof: OutOfFold, how: str = "mean", weights: Sequence[float] | str | None = None, **options: object
) -> np.ndarray:
    """Predict each fold by an ensemble fitted on the other folds.

    Parameters
    ----------
    oof
        Out-of-fold predictions with their truth and folds.
    how, weights, options
        As in `ensemble`.

    Returns
    -------
    Probabilities, shape (clips, tags), in the order of `oof`.
    """
    return _nested_probs(_plan(how, weights, options, len(oof.probs), True), oof)


def _out_of_fold(
    members: Sequence[Member], oof: Sequence[PredictionSource] | None, truth: Table | None
) -> OutOfFold | None:
    """Align out-of-fold predictions, given or of the run folders, with their truth; None without a truth."""
    if truth is None:
        if oof is not None:
            raise OptionError("oof is given without truth; expected the table of their tags as truth=")
        return None
    members_with_oof = _members_of_folders(members) if oof is None else _members_given(members, oof)
    parts = [m.oof for m in members_with_oof if m.oof is not None]
    return align_out_of_fold(parts, truth, members[0].predictions.tags, [m.folds for m in members_with_oof])


def _members_given(members: Sequence[Member], oof: Sequence[PredictionSource]) -> list[Member]:
    given = [m._replace(oof=m.predictions) for m in load_members(oof, "oof", part="oof.csv")]
    if len(given) != len(members):
        raise OptionError(
            f"oof holds {len(given)} predictions; expected {len(members)}, one for each member, in the same order"
        )
    return given


def _members_of_folders(members: Sequence[Member]) -> Sequence[Member]:
    missing = [m.name for m in members if m.oof is None]
    if missing:
        raise OptionError(
            f"{missing[0]} has no out-of-fold predictions to compare with the truth ({len(missing)} in all); "
            "expected run folders with an oof.csv, or oof=[...]"
        )
    return members


def _plan(
    how: str, weights: Sequence[float] | str | None, options: dict[str, object], n: int, can_fit: bool
) -> Plan:
    """Build the method for `n` members, with its weights if they are known."""
    method: Averager | FittableEnsemble = ENSEMBLES.build(how, **options)
    if isinstance(method, FittableEnsemble):
        if weights is not None:
            raise OptionError(f"how={how!r} finds the weights itself; leave weights out")
        if not can_fit:
            raise OptionError(
                f"how={how!r} is fitted on out-of-fold predictions; expected run folders or oof=[...], and truth="
            )
        return method
    if isinstance(weights, str):
        return WeightSearch(method, _rule(weights))
    return WeightedAverage(method, normalized_weights(how, weights, n))


def _rule(name: str) -> Rule:
    if name not in WEIGHT_RULES:
        raise OptionError(f"weights is {name!r}, not a list of numbers; {did_you_mean(name, list(WEIGHT_RULES))}")
    return WEIGHT_RULES[name]


def _stored_scores(rule: str, members: Sequence[Member]) -> list[float]:
    """Return the out-of-fold scores that are stored with the predictions."""
    _rule(rule)
    missing = [m.name for m in members if m.predictions.oof_score is None]
    if missing:
        raise OptionError(
            f"weights={rule!r} needs an out-of-fold score of each member, and {missing[0]} has none "
            f"({len(missing)} in all): pass oof=[...] and truth=, or run folders, or predictions of learn.tta() for "
            "the validation set"
        )
    return [m.predictions.oof_score for m in members if m.predictions.oof_score is not None]


def _fit(plan: Plan, known: OutOfFold | None) -> FittedEnsemble:
    if isinstance(plan, WeightedAverage):
        return plan
    assert known is not None
    return plan.fit(known.probs, known.targ)


def _nested_predictions(plan: Plan, known: OutOfFold | None, tags: tuple[str, ...]) -> Predictions | None:
    if known is None or len(np.unique(known.folds)) < 2:
        return None
    return Predictions(known.fnames, tags, _nested_probs(plan, known))


def _nested_probs(plan: Plan, known: OutOfFold) -> np.ndarray:
    probs = np.empty(known.targ.shape)
    for fold in np.unique(known.folds):
        valid = known.folds == fold
        combine = _fit(plan, known._replace(probs=known.probs[:, ~valid], targ=known.targ[~valid]))
        # Ranks within a tag are taken within the fold, as those of a test set are within the test set.
        probs[valid] = combine(known.probs[:, valid])
    return probs
