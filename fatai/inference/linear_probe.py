"""Tags from frozen embeddings: features standardised, then a logistic regression for each tag.

The executed half of the gold-only plan for Freesound Audio Tagging 2019: embeddings of PANNs' CNN14, one-vs-rest of standard scaling and
logistic regression (lbfgs, C = 2, at most 1,000 iterations), judged out of fold and fitted again on all clips.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy.special import expit, logit

from fatai.io.atomic import write_file
from fatai.data.folds import make_folds
from fatai.errors import CheckpointError, DataError, OptionError, ShapeError
from fatai.inference.embeddings import Embeddings
from fatai.inference.predictions import Predictions
from fatai.inference.ground_truth import Table, read_truth
from fatai.io.progress import track
from fatai.metrics.ranking import lwlrap
from fatai.io.json import parse_json

__all__ = ["LinearProbeFit", "LinearProbe", "fit_embedding_tagger"]

_FORMAT = "fatai embedding tagger 1"
_FLOOR = 1e-7  # probability of a tag that no clip has
_MAX_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """sigmoid(coef @ ((x - mean) / scale) + intercept) for each tag.

    Attributes
    ----------
    tags, prior
        Name of each tag and its share of the clips that this was fitted on.
    mean, scale
        Of each feature, float64 (features,).
    coef, intercept
        Float64 (tags, features) and (tags,).
    """

    tags: tuple[str, ...]
    prior: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    coef: np.ndarray
    intercept: np.ndarray

    def __post_init__(self) -> None:
        tags, features = len(self.tags), len(self.mean)
        expected = {
            "prior": (tags,),
            "mean": (features,),
            "scale": (features,),
            "coef": (tags, features),
            "intercept": (tags,),
        }
        for name, shape in expected.items():
            values = getattr(self, name)
            if values.shape != shape or not np.isfinite(values).all():
                raise ShapeError(
                    f"{name} has shape {values.shape}; expected {shape}, finite, for {tags} tags and {features} features"
                )
        if (
            not tags
            or len(set(self.tags)) < tags
            or (self.scale <= 0).any()
            or ((self.prior < 0) | (self.prior > 1)).any()
        ):
            raise DataError("a tag is named twice, a scale is not above 0, or a prior is no share")

    @classmethod
    def fit(
        cls, values: np.ndarray, targ: np.ndarray, tags: Sequence[str], *, C: float = 2.0, max_iter: int = 1000,
    ) -> LinearProbe:
        """Learn from features (clips, features) and flags (clips, tags); a tag that no or every clip has keeps its share.

        `C` is the inverse strength of the penalty on the coefficients.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        targ = np.asarray(targ, dtype=bool)
        if values.ndim != 2 or targ.shape != (len(values), len(tags)) or not len(values):
            raise ShapeError(
                f"values has shape {values.shape} and targ {targ.shape}; expected (clips, features) and (clips, {len(tags)})"
            )
        if not C > 0 or max_iter < 1:
            raise OptionError(f"C is {C} and max_iter {max_iter}; expected C above 0 and an iteration or more")
        scaler = StandardScaler().fit(values.astype(np.float64))
        scaled, prior = scaler.transform(values.astype(np.float64)), targ.mean(axis=0)
        coef, intercept = np.zeros((len(tags), values.shape[1])), logit(np.clip(prior, _FLOOR, 1 - _FLOOR))
        for k in track(range(len(tags)), "logistic regressions"):
            if 0 < prior[k] < 1:
                learnt = LogisticRegression(C=C, max_iter=max_iter).fit(scaled, targ[:, k])
                coef[k], intercept[k] = learnt.coef_[0], learnt.intercept_[0]
        return cls(tuple(tags), prior, scaler.mean_, scaler.scale_, coef, intercept)

    def predict(self, embeddings: Embeddings) -> Predictions:
        """Probabilities of every tag; a clip that could not be read has the prior, and is named in `unreadable`."""
        if embeddings.values.shape[1] != len(self.mean):
            raise ShapeError(
                f"the embeddings have {embeddings.values.shape[1]} features; expected {len(self.mean)}: those of the network "
                "that this was fitted on"
            )
        readable = embeddings.readable
        probs = np.tile(self.prior, (len(embeddings), 1))
        probs[readable] = expit((embeddings.values[readable] - self.mean) / self.scale @ self.coef.T + self.intercept)
        unreadable = tuple(name for name, good in zip(embeddings.fnames, readable) if not good)
        return Predictions(embeddings.fnames, self.tags, probs, unreadable)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a .safetensors file with the tags in its notes, whole or not at all."""
        arrays = {
            name: np.ascontiguousarray(getattr(self, name)) for name in ("prior", "mean", "scale", "coef", "intercept")
        }
        with write_file(path) as beside:
            save_file(arrays, str(beside), metadata={"format": _FORMAT, "tags": json.dumps(self.tags)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LinearProbe:
        """Read what `save` wrote; whoever it comes from, nothing in it is executed.

        Raises
        ------
        CheckpointError
            If there is no such file, or it is none of the kind; the message says what is wrong.
        """
        try:
            if os.path.getsize(path) > _MAX_BYTES:
                raise CheckpointError(f"{path} has {os.path.getsize(path):,} bytes; at most {_MAX_BYTES:,} are read")
            with safe_open(str(path), framework="np") as f:
                notes = dict(f.metadata() or {})
                if notes.get("format") != _FORMAT or sorted(f.keys()) != [
                    "coef",
                    "intercept",
                    "mean",
                    "prior",
                    "scale",
                ]:
                    raise CheckpointError(f"{path} is no embedding tagger; expected what `LinearProbe.save` writes")
                arrays = {key: np.asarray(f.get_tensor(key), dtype=np.float64) for key in f.keys()}
            tags = parse_json(notes["tags"])
            if not isinstance(tags, list) or not all(isinstance(tag, str) and tag for tag in tags):
                raise CheckpointError(f"{path}: its tags are no list of names")
            return cls(tuple(tags), **arrays)
        except CheckpointError:
            raise
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as e:
            raise CheckpointError(f"{path} cannot be read as an embedding tagger: {e}") from None


class LinearProbeFit(NamedTuple):
    """What `fit_embedding_tagger` found.

    `tagger` is fitted on all clips; `oof` has each clip from the tagger that did not see its fold, with the lwlrap as `oof_score`; `scores`
    is the lwlrap of each fold; `folds` the fold of each clip of `oof`.
    """

    tagger: LinearProbe
    oof: Predictions
    scores: dict[int, float]
    folds: np.ndarray

    def predict(self, embeddings: Embeddings) -> Predictions:
        """Other clips by `tagger`; `oof_score` tells the out-of-fold lwlrap, so that `ensemble` can weigh them."""
        return replace(self.tagger.predict(embeddings), oof_score=self.oof.oof_score)


def fit_embedding_tagger(
    embeddings: Embeddings,
    truth: Table,
    tags: Sequence[str],
    *,
    folds: Mapping[str, int] | int = 5,
    seed: int = 42,
    C: float = 2.0,
    max_iter: int = 1000,
) -> LinearProbeFit:
    """Fit a tagger out of fold and on all clips.

    Parameters
    ----------
    embeddings
        Of the training clips; those that could not be read, or that the truth lacks, are left out.
    truth
        As in `Predictions.against`.
    folds
        The fold of each clip by name; or their number, then they are stratified over all tags and shuffled by `seed`.
    C, max_iter
        Inverse strength of the penalty, and iterations at most; as published.

    Raises
    ------
    DataError
        If clips lack a fold, or there are fewer than two folds.
    """
    known = read_truth(truth, tags)
    used = [i for i, (name, good) in enumerate(zip(embeddings.fnames, embeddings.readable)) if good and name in known]
    fnames, values = tuple(embeddings.fnames[i] for i in used), embeddings.values[used]
    if not fnames:
        raise DataError("no clip is in both the embeddings and the truth: is this their truth?")
    targ = np.array([known[name] for name in fnames], dtype=bool)
    if isinstance(folds, Mapping):
        lacking = [name for name in fnames if name not in folds]
        if lacking:
            raise DataError(f"there is no fold for {lacking[0]!r} ({len(lacking)} such clips)")
        numbers = np.array([folds[name] for name in fnames])
    else:
        numbers = make_folds(targ, splitter="multilabel", n=folds, seed=seed, tags=tags)
    if len(set(numbers.tolist())) < 2:
        raise DataError(
            "all clips are in one fold; expected two or more, so that each clip has a tagger that never saw it"
        )
    probs, scores = np.empty(targ.shape), {}
    for number in sorted(set(numbers.tolist())):
        held = numbers == number
        fitted = LinearProbe.fit(values[~held], targ[~held], tags, C=C, max_iter=max_iter)
        probs[held] = fitted.predict(Embeddings(tuple(np.array(fnames, dtype=object)[held]), values[held])).probs
        scores[number] = lwlrap(probs[held], targ[held])
    score = lwlrap(probs, targ)
    oof = Predictions(fnames, tuple(tags), probs, oof_score=None if np.isnan(score) else score)
    return LinearProbeFit(LinearProbe.fit(values, targ, tags, C=C, max_iter=max_iter), oof, scores, numbers)
