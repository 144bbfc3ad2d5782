"""Linear probe: tags from frozen embeddings by standard scaling and one logistic regression per tag.

The executed half of the gold-only plan for Freesound Audio Tagging 2019: embeddings of PANNs' CNN14, one-vs-rest of
standard scaling and logistic regression (lbfgs, C = 2, at most 1,000 iterations), scored out of fold and fitted again
on all clips.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fatai.data.clip_names import pair_names
from fatai.data.folds import make_folds
from fatai.errors import CheckpointError, DataError, OptionError, ShapeError
from fatai.inference.embeddings import Embeddings
from fatai.inference.ground_truth import Table, read_truth
from fatai.inference.predictions import Predictions
from fatai.io.atomic import write_file
from fatai.io.json import parse_json
from fatai.io.lazy import special
from fatai.io.progress import track
from fatai.metrics.classification import main_score

__all__ = ["LinearProbe", "LinearProbeFit", "choose_penalty", "fit_linear_probe"]

_FORMAT = "fatai linear probe 1"
_ARRAYS = ("prior", "mean", "scale", "coef", "intercept")
_N_INNER = 5  # folds by which C is chosen
_MIN_PROB = 1e-7  # probability of a tag that no clip has
_MAX_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """Tag probabilities sigmoid(coef @ ((x - mean) / scale) + intercept) of features x (features,).

    Attributes
    ----------
    tags, prior
        Name of each tag, and the fraction of the training clips with it, float64 (tags,).
    mean, scale
        Mean and standard deviation of each feature, float64 (features,).
    coef, intercept
        Coefficients of the logistic regressions, float64 (tags, features) and (tags,).

    Raises
    ------
    ShapeError
        If an array has a wrong shape, or is not finite.
    DataError
        If a tag appears twice, or a scale or a prior is out of range.
    """

    tags: tuple[str, ...]
    prior: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    coef: np.ndarray
    intercept: np.ndarray

    def __post_init__(self) -> None:
        n_tags, n_features = len(self.tags), len(self.mean)
        shapes = ((n_tags,), (n_features,), (n_features,), (n_tags, n_features), (n_tags,))
        for name, shape in zip(_ARRAYS, shapes, strict=True):
            values = getattr(self, name)
            if values.shape != shape or not np.isfinite(values).all():
                raise ShapeError(
                    f"{name} has shape {values.shape}; expected {shape}, finite, for {n_tags} tags and {n_features} "
                    "features"
                )
        prior_in_range = ((self.prior >= 0) & (self.prior <= 1)).all()
        if not n_tags or len(set(self.tags)) < n_tags or (self.scale <= 0).any() or not prior_in_range:
            raise DataError("the probe has duplicate tags or none, a scale not above 0, or a prior outside [0, 1]")

    @classmethod
    def fit(
        cls,
        values: np.ndarray,
        targ: np.ndarray,
        tags: Sequence[str],
        *,
        C: float | Sequence[float] = 2.0,  # noqa: N803 - scikit-learn's name
        max_iter: int = 1000,
    ) -> LinearProbe:
        """Fit a probe; a tag that no or every clip has keeps its fraction as its probability.

        Parameters
        ----------
        values
            Features, shape (clips, features), without NaN.
        targ
            Flags, shape (clips, tags).
        tags
            Name of each tag.
        C
            Inverse strength of the penalty on the coefficients; lower it if the probe overfits. Of several values that
            of `choose_penalty` is taken.
        max_iter
            Iterations at most.

        Raises
        ------
        ShapeError
            If the shapes do not match.
        OptionError
            If `C` or `max_iter` is out of range.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        targ = np.asarray(targ, dtype=bool)
        if not isinstance(C, (int, float)):
            C = choose_penalty(values, targ, C, max_iter=max_iter)  # noqa: N806 - scikit-learn's name
        _check_fit(values, targ, len(tags), C, max_iter)
        scaler = StandardScaler().fit(values.astype(np.float64))
        scaled, prior = scaler.transform(values.astype(np.float64)), targ.mean(axis=0)
        coef = np.zeros((len(tags), values.shape[1]))
        intercept = special.logit(np.clip(prior, _MIN_PROB, 1 - _MIN_PROB))
        for k in track(range(len(tags)), "logistic regressions"):
            if 0 < prior[k] < 1:
                fitted = LogisticRegression(C=C, max_iter=max_iter).fit(scaled, targ[:, k])
                coef[k], intercept[k] = fitted.coef_[0], fitted.intercept_[0]
        return cls(tuple(tags), prior, scaler.mean_, scaler.scale_, coef, intercept)

    def probs(self, values: np.ndarray) -> np.ndarray:
        """Compute the probabilities, float64 (clips, tags), of features without NaN, shape (clips, features).

        Raises
        ------
        ShapeError
            If there is another number of features.
        """
        if values.shape[1] != len(self.mean):
            raise ShapeError(
                f"the embeddings have {values.shape[1]} features; expected {len(self.mean)}, those of the network that "
                "the probe was fitted on"
            )
        return special.expit((values - self.mean) / self.scale @ self.coef.T + self.intercept)

    def predict(self, embeddings: Embeddings) -> Predictions:
        """Predict clips from their embeddings; unreadable clips get the prior and are listed in `unreadable`.

        Returns
        -------
        `Predictions` with float64 probabilities (clips, tags).

        Raises
        ------
        ShapeError
            If the embeddings have another number of features.
        """
        readable = embeddings.readable
        probs = np.tile(self.prior, (len(embeddings), 1))
        probs[readable] = self.probs(embeddings.values[readable])
        unreadable = tuple(name for name, ok in zip(embeddings.fnames, readable, strict=True) if not ok)
        return Predictions(embeddings.fnames, self.tags, probs, unreadable)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a .safetensors file with the tags in its metadata; it is complete or not there."""
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        with write_file(path) as temporary:
            save_file(arrays, str(temporary), metadata={"format": _FORMAT, "tags": json.dumps(self.tags)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LinearProbe:
        """Load what `save` wrote; nothing in the file is executed.

        Raises
        ------
        CheckpointError
            If there is no such file, or it is not a probe; the message gives the reason.
        """
        try:
            if os.path.getsize(path) > _MAX_BYTES:
                raise CheckpointError(f"{path} has {os.path.getsize(path):,} bytes; expected at most {_MAX_BYTES:,}")
            with safe_open(str(path), framework="np") as f:
                metadata = dict(f.metadata() or {})
                if metadata.get("format") != _FORMAT or sorted(f.keys()) != sorted(_ARRAYS):
                    raise CheckpointError(f"{path} is not a linear probe; expected what `LinearProbe.save` writes")
                arrays = {key: np.asarray(f.get_tensor(key), dtype=np.float64) for key in f.keys()}
            tags = parse_json(metadata["tags"])
            if not isinstance(tags, list) or not all(isinstance(tag, str) and tag for tag in tags):
                raise CheckpointError(f"{path}: the tags are not a list of names")
            return cls(tuple(tags), **arrays)
        except CheckpointError:
            raise
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as e:
            raise CheckpointError(f"{path} cannot be read as a linear probe: {e}") from None


def choose_penalty(
    values: np.ndarray, targ: np.ndarray, Cs: Sequence[float], *, max_iter: int = 1000, seed: int = 42  # noqa: N803
) -> float:
    """Choose C for all tags by the lowest log loss over inner folds of the training clips.

    There are five folds, or as many as half of the tags have clips. With fewer than two the middle value is taken.

    Parameters
    ----------
    values, targ
        Features (clips, features) without NaN, and flags (clips, tags).
    Cs
        Values to choose from, each above 0.
    max_iter
        Iterations at most of each fit.
    seed
        Seed of the folds.

    Returns
    -------
    One of `Cs`.

    Raises
    ------
    OptionError
        If `Cs` is empty or holds a value that is not above 0.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, PredefinedSplit
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    ordered, counts = sorted(Cs), targ.sum(axis=0)
    if not ordered or not ordered[0] > 0:
        raise OptionError(f"C is {list(Cs)}; expected one or more numbers above 0")
    n = min(_N_INNER, int(np.median(counts[counts > 0]))) if counts.any() else 0
    if len(ordered) == 1 or n < 2:
        return ordered[len(ordered) // 2]
    search = GridSearchCV(
        make_pipeline(StandardScaler(), OneVsRestClassifier(LogisticRegression(max_iter=max_iter))),
        {"onevsrestclassifier__estimator__C": ordered}, scoring=_negative_log_loss,
        cv=PredefinedSplit(_inner_folds(targ, n, seed)), refit=False, error_score="raise",
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Label .* is present in all training examples")
        search.fit(values.astype(np.float64), targ.astype(int))
    return float(search.best_params_["onevsrestclassifier__estimator__C"])


def _inner_folds(targ: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Return the inner fold of each clip; tags that are rarer than folds, which are in some of them only, are fine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make_folds(targ, splitter="multilabel", n=n, seed=seed)


def _negative_log_loss(model: Any, values: np.ndarray, targ: np.ndarray) -> float:
    """Return minus the mean binary cross-entropy over clips and tags."""
    probs = np.clip(model.predict_proba(values).reshape(len(targ), -1)[:, -targ.shape[1]:], _MIN_PROB, 1 - _MIN_PROB)
    return float((targ * np.log(probs) + (1 - targ) * np.log1p(-probs)).mean())


def _check_fit(
    values: np.ndarray, targ: np.ndarray, n_tags: int, inverse_penalty: float, max_iter: int
) -> None:
    if values.ndim != 2 or targ.shape != (len(values), n_tags) or not len(values):
        raise ShapeError(
            f"values has shape {values.shape} and targ {targ.shape}; expected (clips, features) and (clips, {n_tags})"
        )
    if not inverse_penalty > 0 or max_iter < 1:
        raise OptionError(
            f"C is {inverse_penalty} and max_iter {max_iter}; expected C above 0 and at least one iteration"
        )


class LinearProbeFit(NamedTuple):
    """Result of `fit_linear_probe`.

    Attributes
    ----------
    probe
        Fitted on all clips.
    oof
        Predictions of each clip by the probe that was not fitted on its fold, with their lwlrap as `oof_score`, or
        with one tag their average precision.
    scores
        Fold number to that score.
    folds
        Fold number of each clip of `oof`, shape (clips,).
    """

    probe: LinearProbe
    oof: Predictions
    scores: dict[int, float]
    folds: np.ndarray

    def predict(self, embeddings: Embeddings) -> Predictions:
        """Predict other clips; the out-of-fold lwlrap is their `oof_score`, so that `ensemble` can weight them."""
        return replace(self.probe.predict(embeddings), oof_score=self.oof.oof_score)


def fit_linear_probe(
    embeddings: Embeddings,
    truth: Table,
    tags: Sequence[str],
    *,
    folds: Mapping[str, int] | int = 5,
    seed: int = 42,
    C: float | Sequence[float] = 2.0,  # noqa: N803 - scikit-learn's name
    max_iter: int = 1000,
) -> LinearProbeFit:
    """Fit a linear probe out of fold and on all clips.

    Parameters
    ----------
    embeddings
        Of the training clips; those that could not be read, or that the truth lacks, are left out.
    truth
        As in `Predictions.align_with`.
    tags
        The tags to predict.
    folds
        Fold of each clip by name; or a number of folds, which are stratified over all tags and shuffled.
    seed
        Seed of the shuffling.
    C, max_iter
        As in `LinearProbe.fit`; the defaults are the published values.

    Raises
    ------
    DataError
        If no clip is in both embeddings and truth, clips lack a fold, or there are fewer than two folds.
    """
    known = read_truth(truth, tags)
    names = pair_names(embeddings.fnames, list(known))
    readable = zip(embeddings.fnames, embeddings.readable, strict=True)
    used = [i for i, (name, ok) in enumerate(readable) if ok and name in names]
    if not used:
        raise DataError("no clip is in both the embeddings and the truth; is this the right truth?")
    fnames, values = tuple(embeddings.fnames[i] for i in used), embeddings.values[used]
    targ = np.array([known[names[name]] for name in fnames], dtype=bool)
    numbers = _fold_numbers(fnames, targ, tags, folds, seed)
    probs, scores = np.empty(targ.shape), {}
    for number in sorted(set(numbers.tolist())):
        valid = numbers == number
        fitted = LinearProbe.fit(values[~valid], targ[~valid], tags, C=C, max_iter=max_iter)
        probs[valid] = fitted.predict(Embeddings(tuple(np.array(fnames, dtype=object)[valid]), values[valid])).probs
        scores[number] = main_score(probs[valid], targ[valid])
    score = main_score(probs, targ)
    oof = Predictions(fnames, tuple(tags), probs, oof_score=None if np.isnan(score) else score)
    return LinearProbeFit(LinearProbe.fit(values, targ, tags, C=C, max_iter=max_iter), oof, scores, numbers)


def _fold_numbers(
    fnames: Sequence[str], targ: np.ndarray, tags: Sequence[str], folds: Mapping[str, int] | int, seed: int
) -> np.ndarray:
    """Return the fold number of each clip, integers (clips,), given flags `targ` (clips, tags)."""
    if isinstance(folds, Mapping):
        missing = [name for name in fnames if name not in folds]
        if missing:
            raise DataError(f"there is no fold for {missing[0]!r} ({len(missing)} such clips)")
        numbers = np.array([folds[name] for name in fnames])
    else:
        numbers = make_folds(targ, splitter="multilabel", n=folds, seed=seed, tags=tags)
    if len(set(numbers.tolist())) < 2:
        raise DataError("all clips are in one fold; expected at least two folds, so that each clip can be predicted")
    return numbers
