"""Clips to what a network's head sees of them: one row of features for each, the mean over its views.

On disk an array `NAME.npy`, float32 (clips, features), which is never pickled, and beside it `NAME.csv` with the column `fname`, row by
row.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from fatai.io.atomic import write_file, write_text
from fatai.data.transforms import WaveToSpec
from fatai.data.config import ClipConfig
from fatai.errors import DataError, OptionError, ShapeError
from fatai.io.csv import Duplicates, read_csv, format_names
from fatai.inference.predictor import Predictor
from fatai.inference.tta import build_views, names_and_paths
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
        Shape (clips, features), float32; a row of NaN for a clip that could not be read.
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
        if len(set(self.fnames)) < len(self.fnames):
            raise DataError(
                f"fnames holds {format_names(pd.Series(self.fnames)[pd.Series(self.fnames).duplicated()].tolist())} more than once"
            )

    def __len__(self) -> int:
        return len(self.fnames)

    @property
    def readable(self) -> np.ndarray:
        """Which clips could be read, bool (clips,)."""
        return ~np.isnan(self.values).any(axis=1)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an .npy file and the names beside it as .csv, each whole or not at all."""
        file = _npy(path)
        with write_file(file) as beside:
            np.save(beside, self.values, allow_pickle=False)
        write_text(
            file.with_suffix(".csv"),
            pd.DataFrame({"fname": list(self.fnames)}).to_csv(index=False, lineterminator="\n"),
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Embeddings:
        """Read what `save` wrote; whoever it comes from, nothing in it is executed.

        Raises
        ------
        DataError
            If a file is missing or is none of the kind, or names and rows don't go together.
        """
        file = _npy(path)
        table = read_csv(file.with_suffix(".csv"))
        if table.columns != ("fname",):
            raise DataError(f"{file.with_suffix('.csv')}: its columns are {format_names(table.columns)}; expected fname alone")
        names, seen = [], Duplicates()
        for row in table.rows:
            if fault := seen.error(row):
                raise DataError(f"{file.with_suffix('.csv')}: {fault}")
            names.append(row.cells[0])
        try:
            # Mapped first: a header that declares more than the file holds is found out before memory is taken.
            values = np.load(file, mmap_mode="r", allow_pickle=False)
        except (EOFError, OSError, ValueError, OverflowError) as e:
            raise DataError(
                f"{file} cannot be read as an array: {e}; expected what fatai-submit embed writes"
            ) from None
        if (
            not isinstance(values, np.ndarray)
            or values.dtype != np.float32
            or values.ndim != 2
            or len(values) != len(names)
        ):
            raise DataError(
                f"{file} is no float32 array of {len(names)} rows, one for each name in {file.with_suffix('.csv').name}"
            )
        return cls(tuple(names), np.array(values))


class _Encoder(nn.Module):
    """A network without its head: spectrograms (batch, channels, mels, frames) to features (batch, features)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        inner = model.model if isinstance(model, TwoHeadModel) else model
        if not isinstance(inner, SpectrogramModel):
            raise OptionError(f"the model is a {type(inner).__name__}; expected a SpectrogramModel, which has embed(spec)")
        self.model = inner
        self.train(inner.training)

    def forward(self, spec: Tensor) -> Tensor:
        return self.model.embed(spec)

    def count_features(self, to_spec: WaveToSpec, samples: int, device: torch.device) -> int:
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
        A name of `fatai.training.precision.PRECISIONS`.
    bs, num_workers
        Views per batch, and processes that read clips.

    Returns
    -------
    `Embeddings` with float32 values (clips, features). A clip that cannot be read has a row of NaN; one warning lists such clips.

    Raises
    ------
    OptionError
        If the model has no features to return, or an option of the views is wrong.
    """
    names, paths = names_and_paths(items)
    encoder, to_spec = _Encoder(model), WaveToSpec(settings)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    predictor = Predictor(
        encoder, settings, build_views(views, n, **options), encoder.count_features(to_spec, settings.crop_samples, device),
        to_spec=to_spec, activation=_identity, precision=precision, bs=bs, num_workers=num_workers, seed=seed,
    )
    output = predictor.predict(paths, desc="embedding")
    if output.errors:
        listed = "\n".join(f"  {error}" for error in output.errors.values())
        warnings.warn(
            f"{len(output.errors)} of {len(names)} clips cannot be read; their row is NaN:\n{listed}", stacklevel=2
        )
    return Embeddings(tuple(names), output.probs)


def _npy(path: str | os.PathLike[str]) -> Path:
    if Path(path).suffix != ".npy":
        raise OptionError(f"{path} does not end in .npy; give it that suffix: the names go beside it as .csv")
    return Path(path)
