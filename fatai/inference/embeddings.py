"""Embeddings: features of clips from a network without its head, the mean over the views of each clip.

On disk an array `NAME.npy`, float32 (clips, features), which is never pickled, and beside it `NAME.csv` with the column
`fname`, row by row.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fatai.data.config import ClipConfig
from fatai.data.spectrograms import ClipSpectrograms
from fatai.errors import DataError, OptionError, ShapeError
from fatai.inference.predictor import ClipPredictions, Predictor
from fatai.inference.tta import build_views, names_and_paths
from fatai.io.atomic import write_file, write_text
from fatai.io.csv import Duplicates, format_names, read_csv
from fatai.io.lazy import pandas as pd
from fatai.models.base import SpectrogramModel
from fatai.models.multi_task import TwoHeadModel

__all__ = ["Embeddings", "embed_clips"]


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Features of clips.

    Parameters
    ----------
    fnames
        Name of each clip; no name twice.
    values
        Shape (clips, features), float32; a row of NaN for a clip that cannot be read.

    Raises
    ------
    ShapeError
        If there is not one row per name.
    DataError
        If a name appears twice.
    """

    fnames: tuple[str, ...]
    values: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "fnames", tuple(str(name) for name in self.fnames))
        object.__setattr__(self, "values", np.asarray(self.values, dtype=np.float32))
        if self.values.ndim != 2 or len(self.values) != len(self.fnames):
            raise ShapeError(
                f"values has shape {self.values.shape}; expected ({len(self.fnames)}, features), a row for each fname"
            )
        names = pd.Series(self.fnames)
        if names.duplicated().any():
            raise DataError(f"fnames has {format_names(names[names.duplicated()].tolist())} more than once")

    def __len__(self) -> int:
        return len(self.fnames)

    @property
    def readable(self) -> np.ndarray:
        """Return True for clips that could be read, bool (clips,)."""
        return ~np.isnan(self.values).any(axis=1)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an .npy file and the names beside it as .csv; each is complete or not there.

        Raises
        ------
        OptionError
            If `path` does not end in .npy.
        """
        file = _check_npy(path)
        with write_file(file) as temporary:
            np.save(temporary, self.values, allow_pickle=False)
        names = pd.DataFrame({"fname": list(self.fnames)})
        write_text(file.with_suffix(".csv"), names.to_csv(index=False, lineterminator="\n"))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Embeddings:
        """Load what `save` wrote; nothing in the files is executed.

        Raises
        ------
        DataError
            If a file is missing or of another kind, or names and rows do not match.
        """
        file = _check_npy(path)
        names = _read_names(file.with_suffix(".csv"))
        try:
            # Mapped first: a header that declares more than the file has is detected before memory is allocated.
            values = np.load(file, mmap_mode="r", allow_pickle=False)
        except (EOFError, OSError, ValueError, OverflowError) as e:
            raise DataError(
                f"{file} cannot be read as an array: {e}; expected what fatai-submit embed writes"
            ) from None
        is_float32 = isinstance(values, np.ndarray) and values.dtype == np.float32
        if not is_float32 or values.ndim != 2 or len(values) != len(names):
            raise DataError(
                f"{file} is not a float32 array of {len(names)} rows, one for each name in "
                f"{file.with_suffix('.csv').name}"
            )
        return cls(names, np.array(values))


def _read_names(path: Path) -> tuple[str, ...]:
    table = read_csv(path)
    if table.columns != ("fname",):
        raise DataError(f"{path}: the columns are {format_names(table.columns)}; expected fname alone")
    names, seen = [], Duplicates()
    for row in table.rows:
        if error := seen.error(row):
            raise DataError(f"{path}: {error}")
        names.append(row.cells[0])
    return tuple(names)


class _Encoder(nn.Module):
    """A network without its head: spectrograms (batch, channels, mels, frames) to features (batch, features)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        inner = model.model if isinstance(model, TwoHeadModel) else model
        if not isinstance(inner, SpectrogramModel):
            raise OptionError(
                f"the model is a {type(inner).__name__}; expected a SpectrogramModel, which has embed(spec)"
            )
        self.model = inner
        self.train(inner.training)

    def forward(self, spec: Tensor) -> Tensor:
        return self.model.embed(spec)

    def count_features(self, to_spec: ClipSpectrograms, samples: int, device: torch.device) -> int:
        """Return the number of features, by one run over `samples` zeros."""
        was_training = self.training
        with torch.inference_mode():
            features = self.eval()(to_spec.spec(torch.zeros(1, samples, device=device)))
        self.train(was_training)
        return features.shape[1]


def _identity(values: Tensor) -> Tensor:
    return values


def embed_clips(
    model: nn.Module,
    settings: ClipConfig,
    items: Any,
    *,
    n: int | None = None,
    views: str = "even",
    precision: str = "fp32",
    bs: int = 64,
    num_workers: int = 0,
    seed: int = 0,
    **options: Any,
) -> Embeddings:
    """Compute features of clips, the mean over the views of each.

    Parameters
    ----------
    model
        A `SpectrogramModel`, as all of `MODELS` are.
    settings
        How clips are read.
    items
        Paths, one path, or a table with the column `path` and, if the names are not those of the files, `fname`.
    n, views, seed, options
        Views, as in `learn.tta`.
    precision
        A name of `fatai.training.autocast.PRECISIONS`.
    bs, num_workers
        Views per batch, and processes that read clips.

    Returns
    -------
    `Embeddings` with float32 values (clips, features). A clip that cannot be read has a row of NaN; one warning lists
    such clips.

    Raises
    ------
    OptionError
        If the model has no features to return, or an option of the views is wrong.
    """
    names, paths = names_and_paths(items)
    output = clip_features(
        model, settings, paths, n=n, views=views, precision=precision, bs=bs, num_workers=num_workers, seed=seed,
        **options,
    )
    warn_of_unreadable(output, len(names))
    return Embeddings(tuple(names), output.probs)


def clip_features(
    model: nn.Module, settings: ClipConfig, paths: Sequence[str], *, n: int | None = None, views: str = "even",
    precision: str = "fp32", bs: int = 64, num_workers: int = 0, seed: int = 0, **options: Any,
) -> ClipPredictions:
    """Compute features of clips as `embed_clips` does, with what is wrong with each clip, and without a warning."""
    encoder, to_spec = _Encoder(model), ClipSpectrograms(settings)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    n_features = encoder.count_features(to_spec, settings.crop_samples, device)
    return Predictor(
        encoder, settings, build_views(views, n, **options), n_features, to_spec=to_spec, activation=_identity,
        precision=precision, bs=bs, num_workers=num_workers, seed=seed,
    ).predict(paths, desc="embedding")


def warn_of_unreadable(output: ClipPredictions, n_clips: int) -> None:
    """Warn of clips whose features are NaN, if there are any."""
    if output.errors:
        listed = "\n".join(f"  {error}" for error in output.errors.values())
        warnings.warn(
            f"{len(output.errors)} of {n_clips} clips cannot be read; their row is NaN:\n{listed}", stacklevel=3
        )


def _check_npy(path: str | os.PathLike[str]) -> Path:
    if Path(path).suffix != ".npy":
        raise OptionError(f"the path is {path}; expected a name that ends in .npy: the clip names go beside it as .csv")
    return Path(path)
