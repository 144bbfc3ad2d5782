"""Test-time augmentation: predict clips by the mean over several views of each.

The functions behind `learn.tta`, `learn.predict` and the same methods of model folders; the batches are those of
`fatai.inference.predictor`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fatai.data.clip_names import unique_names
from fatai.errors import AudioError, DataError
from fatai.inference.predictions import Predictions
from fatai.inference.predictor import ClipPredictions, Predictor
from fatai.inference.view_store import view_writer
from fatai.inference.views import Views
from fatai.registry import VIEWS
from fatai.training.learner import TagLearner
from fatai.training.precision import learner_precision

__all__ = ["TagScore", "TagScores", "build_views"]


def build_views(views: str, n: int | None = None, **options: Any) -> Views:
    """Build a kind of view by name.

    Parameters
    ----------
    views
        A name of `VIEWS`.
    n
        Number of views; None takes the default of the kind. Leave it out for kinds whose number follows from the length
        of the clip.
    options
        Options of the kind, such as `step_s` of "tiles".
    """
    return VIEWS.build(views, **({} if n is None else {"n": n}), **options)


def learner_predictor(learn: TagLearner, views: Views, **options: Any) -> Predictor:
    """Return a predictor with the network, front end, loss activation and precision of a learner.

    Parameters
    ----------
    views
        The views of a clip.
    options
        Of `Predictor`: `bs`, `num_workers`, `seed`, `average`, `group`.
    """
    return Predictor(
        learn.model, learn.clip_config, views, len(learn.tags), to_spec=learn.dls.to_spec, activation=learn.activation,
        precision=learner_precision(learn), device=learn.dls.device, **options,
    )


def predict_files(
    predictor: Predictor,
    names: Sequence[str],
    paths: Sequence[str],
    tags: Sequence[str],
    *,
    save_views: str | os.PathLike[str] | None = None,
    desc: str = "predicting",
) -> ClipPredictions:
    """Predict sound files, and store the probabilities of every view if asked for.

    Parameters
    ----------
    names, paths
        Name and path of each clip.
    tags
        Name of each column of the predictor's output, for the stored views.
    save_views
        An .npz file for the probabilities of every view, which `load_views` reads; None stores nothing.
    desc
        Text beside the progress bar.

    Returns
    -------
    Float64 probabilities (clips, tags) and the errors of unreadable clips.
    """
    sr = predictor.settings.sr
    with nullcontext() if save_views is None else view_writer(save_views, names, tags, sr) as writer:
        return predictor.predict(paths, on_views=None if writer is None else writer.add, desc=desc)


def names_and_paths(items: Any) -> tuple[list[str], list[str]]:
    """Return the name and the path of each clip; files of one name are called by their shortest unique path.

    Parameters
    ----------
    items
        A table with a column `path` and, if the names are not those of the files, `fname`; a list of paths; or one
        path.

    Raises
    ------
    DataError
        If a table has no column `path`.
    """
    if isinstance(items, pd.DataFrame):
        if "path" not in items.columns:
            columns = ", ".join(map(str, items.columns))
            raise DataError(
                f"the table has the columns {columns}; expected a column 'path' among them, or a list of paths"
            )
        paths = [str(p) for p in items["path"]]
        names = [str(n) for n in items["fname"]] if "fname" in items.columns else [Path(p).name for p in paths]
    else:
        paths = [str(p) for p in ([items] if isinstance(items, (str, Path)) else items)]
        names = [Path(p).name for p in paths]
    return unique_names(names, paths), paths


def with_priors(
    names: Sequence[str],
    tags: Sequence[str],
    output: ClipPredictions,
    prior: np.ndarray | None,
) -> Predictions:
    """Return `Predictions` with the row `prior` for each unreadable clip, after one warning that lists such clips.

    Parameters
    ----------
    names, tags
        Name of each row and of each column.
    output
        Probabilities (clips, tags), with rows of NaN for unreadable clips.
    prior
        Fraction of the training clips with each tag, shape (tags,); may be None if all clips could be read.
    """
    probs = output.probs.copy()
    if output.errors:
        listed = "\n".join(f"  {error}" for error in output.errors.values())
        warnings.warn(
            f"{len(output.errors)} of {len(names)} clips cannot be read; their row is the training prior of each tag:\n"
            f"{listed}",
            stacklevel=3,
        )
        probs[list(output.errors)] = prior
    return Predictions(tuple(names), tuple(tags), probs, unreadable=tuple(names[i] for i in output.errors))


def predict_clip(predictor: Predictor, clip: str | Path | np.ndarray) -> np.ndarray:
    """Return the probabilities (outputs,) of one clip, a path or an array (samples,).

    Raises
    ------
    AudioError
        If the clip cannot be read.
    """
    output = predictor.predict([clip])
    if output.errors:
        raise AudioError(output.errors[0])
    return output.probs[0]


class TagScore(NamedTuple):
    """A tag and its probability, within [0, 1]."""

    tag: str
    prob: float


class TagScores(list):
    """Tags with their probabilities, best first; prints as a short table."""

    @classmethod
    def sorted(cls, tags: Sequence[str], probs: np.ndarray) -> TagScores:
        """Return the tags by falling probability, given `probs` (tags,); equal ones keep their order."""
        return cls(TagScore(tags[i], float(probs[i])) for i in np.argsort(-probs, kind="stable"))

    def __repr__(self) -> str:
        return "\n".join(f"{prob:6.1%}  {tag}" for tag, prob in self[:10]) + ("\n..." if len(self) > 10 else "")
