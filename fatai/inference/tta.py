"""Test-time augmentation: predict clips by the mean over several views of each.

The functions behind `learn.tta`, `learn.predict` and the same methods of model folders; the batches are those of
`fatai.inference.predictor`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fatai.audio.folders import find_sounds
from fatai.audio.waveform import SILENCE_DB
from fatai.data.clip_names import unique_names
from fatai.errors import AudioError, DataError
from fatai.inference.predictions import Predictions
from fatai.inference.predictor import SHORT_S, ClipPredictions, Predictor
from fatai.inference.view_store import view_writer
from fatai.inference.views import Views
from fatai.io.csv import format_names
from fatai.io.lazy import is_data_frame
from fatai.metrics.calibration import Calibration
from fatai.registry import VIEWS

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
        A table with a column `path` and, if the names are not those of the files, `fname`; a list of paths, or of pairs
        of a name and a path; one path; or a folder, for the sounds below it.

    Raises
    ------
    DataError
        If a table has no column `path`, or a folder no sounds.
    """
    if is_data_frame(items):
        if "path" not in items.columns:
            columns = ", ".join(map(str, items.columns))
            raise DataError(
                f"the table has the columns {columns}; expected a column 'path' among them, or a list of paths"
            )
        paths = [str(p) for p in items["path"]]
        names = [str(n) for n in items["fname"]] if "fname" in items.columns else [Path(p).name for p in paths]
    else:
        several = _sounds_at(items) if isinstance(items, (str, Path)) else items
        pairs = [item if isinstance(item, tuple) else (Path(item).name, item) for item in several]
        names, paths = [str(name) for name, _ in pairs], [str(path) for _, path in pairs]
    return unique_names(names, paths), paths


def _sounds_at(path: str | Path) -> list[str | Path | tuple[str, Path]]:
    """Return a path as a list; of a folder the sounds below it, called by their path relative to it."""
    folder = Path(path)
    if not folder.is_dir():
        return [path]
    found = find_sounds(folder)
    if not found:
        raise DataError(f"there are no sound files below {folder}; expected .wav, .flac, .ogg, .mp3 or similar")
    return [(str(file.relative_to(folder)), file) for file in found]


def with_priors(
    names: Sequence[str],
    tags: Sequence[str],
    output: ClipPredictions,
    prior: np.ndarray | None,
) -> Predictions:
    """Return `Predictions` with the row `prior` for each unreadable or silent clip, after warnings that list them.

    Parameters
    ----------
    names, tags
        Name of each row and of each column.
    output
        Probabilities (clips, tags), with rows of NaN for unreadable clips.
    prior
        Fraction of the training clips with each tag, shape (tags,); may be None if all clips could be read. Rows of
        silent clips are then left as the network predicts them.
    """
    if output.errors:
        listed = "\n".join(f"  {error}" for error in output.errors.values())
        warnings.warn(
            f"{len(output.errors)} of {len(names)} clips cannot be read; their row is the training prior of each tag:\n"
            f"{listed}",
            stacklevel=3,
        )
    if output.silent:
        _warn_of_silence([names[i] for i in output.silent], len(names), prior is not None)
    if output.short:
        warnings.warn(
            f"{len(output.short)} of {len(names)} clips are short, with at most {SHORT_S:g} s of sound; their tags are "
            f"uncertain: {format_names([names[i] for i in output.short])}",
            stacklevel=3,
        )
    return fill_priors(names, tags, output, prior)


def fill_priors(
    names: Sequence[str], tags: Sequence[str], output: ClipPredictions, prior: np.ndarray | None
) -> Predictions:
    """Return what `with_priors` returns, without its warnings."""
    probs = output.probs.copy()
    if output.errors:
        probs[list(output.errors)] = prior
    if output.silent and prior is not None:
        probs[list(output.silent)] = prior
    unreadable, silent = (tuple(names[i] for i in part) for part in (output.errors, output.silent))
    return Predictions(tuple(names), tuple(tags), probs, unreadable=unreadable, silent=silent)


def _warn_of_silence(names: Sequence[str], n_clips: int, has_prior: bool) -> None:
    row = "the training prior of each tag" if has_prior else "that of the network, since no training prior is stored"
    warnings.warn(
        f"{len(names)} of {n_clips} clips are silent (no peak reaches {SILENCE_DB:g} dB of full scale); their row is "
        f"{row}; amplify a recording that is quiet: {format_names(names)}",
        stacklevel=4,
    )


def predict_clip(
    predictor: Predictor, clip: str | Path | np.ndarray, tags: Sequence[str], prior: Callable[[], np.ndarray],
    calibration: Calibration | None = None,
) -> np.ndarray:
    """Return the probabilities (tags,) of one clip, a path or an array (samples,).

    They are calibrated; those of a silent clip are `prior()`, which is not.

    Raises
    ------
    AudioError
        If the clip cannot be read.
    """
    output = predictor.predict([clip])
    if output.errors:
        raise AudioError(output.errors[0])
    name = Path(clip).name if isinstance(clip, (str, Path)) else "the given samples"
    preds = with_priors([name], tags, output, prior() if output.silent else None)
    return (preds if calibration is None else preds.calibrated(calibration)).probs[0]


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
