"""Predict batches of sounds inside any engine for large data: one picklable callable from columns to columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fatai.audio.stream import stream_audio
from fatai.audio.waveform import SILENCE_DB
from fatai.data.config import ClipConfig
from fatai.ensemble.ensemble import ensemble
from fatai.errors import AudioError, OptionError, ShapeError
from fatai.experiment.ensemble_folder import EnsembleFolder, is_ensemble_folder
from fatai.experiment.run_folder import (
    FinishedRun,
    TrainedFold,
    choose_views,
    find_calibration,
    load_model_folder,
    predict_jointly,
    with_channel,
)
from fatai.experiment.schema import TTA
from fatai.export.pretrained import Pretrained, is_model_folder
from fatai.inference.prediction_files import status_column
from fatai.inference.predictions import Predictions
from fatai.inference.predictor import ClipPredictions, Predictor
from fatai.inference.tta import fill_priors
from fatai.io.lazy import is_data_frame
from fatai.io.lazy import pandas as pd
from fatai.metrics.calibration import Calibration
from fatai.models.openvino import with_backend

__all__ = ["TagBatch"]

_INPUTS = ("path", "bytes", "audio")


class TagBatch:
    """Predict the tags of a batch of sounds; a callable for Ray Data, Dask, Spark and other engines.

    `TagBatch("runs/demo")({"path": np.array(["a.wav", "b.flac"])})` returns a dict of arrays with one row for each
    sound. It can be pickled, which stores the path of the run and not its weights; each process loads the run once.

    Parameters
    ----------
    run
        A run or model folder, that of an ensemble such as recipe `best` writes, or a loaded `Pretrained`.
    views, n, average, calibrate, channel, backend, bs, options
        As in `predict_with_run`. Samples have one channel, unless they are of shape (channels, samples) and `channel`
        says which to take.

    Examples
    --------
    Ray Data: `ds.map_batches(TagBatch, fn_constructor_args=("runs/demo",), batch_format="numpy", concurrency=4)`.
    Dask: `frame.map_partitions(TagBatch("runs/demo"))`. Spark: `frame.mapInPandas(TagBatch("runs/demo").map, schema)`.
    """

    def __init__(
        self,
        run: str | Path | Pretrained,
        *,
        views: str | None = None,
        n: int | None = None,
        average: str | None = None,
        calibrate: bool | None = None,
        channel: str | int | None = None,
        backend: str = "torch",
        bs: int = 64,
        **options: Any,
    ):
        self.run, self.views, self.n, self.average = run, views, n, average
        self.calibrate, self.channel, self.backend, self.bs, self.options = calibrate, channel, backend, bs, options

    def __call__(self, batch: Mapping[str, Any] | pd.DataFrame) -> dict[str, np.ndarray] | pd.DataFrame:
        """Predict a batch.

        Parameters
        ----------
        batch
            Columns of equal length, as a mapping to arrays or as a data frame. One of them holds the sounds: `path`,
            paths, segments ("rec.wav#t=1,2") or URLs of fsspec ("s3://bucket/a.wav"); `bytes`, the bytes of sound
            files; or `audio`, samples of shape (samples,) or (channels, samples) for each row, with their rate in Hz in
            the column `sample_rate`.

        Returns
        -------
        Of the type of `batch`: its columns except samples and bytes; a column of probabilities, float64, for each tag;
        `status` ("ok", "unreadable" or "silent") and `reason`, which is empty for "ok". Rows that are not "ok" have the
        prior.

        Raises
        ------
        OptionError
            If there is no column of sounds or no `sample_rate`, or a tag has the name of a column.
        CheckpointError
            As `predict_with_run`.
        """
        columns = {str(name): batch[name] for name in batch}
        found = self._predict(columns)
        if not is_data_frame(batch):
            return found
        assert not isinstance(batch, Mapping)
        given = {name: column for name, column in columns.items() if name in found}
        texts = dict.fromkeys((status_column(self.tags), "reason"), str)  # of the frame's own type: Parquet infers it
        return pd.DataFrame({**found, **given}, index=batch.index).astype(texts)

    def map(self, batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        """Yield the result of each data frame, as Spark's `mapInPandas` expects it."""
        for batch in batches:
            found = self(batch)
            assert not isinstance(found, dict)
            yield found

    @property
    def tags(self) -> tuple[str, ...]:
        """Names of the tags."""
        return self._loaded.tags

    @property
    def _loaded(self) -> _LoadedRun | _LoadedEnsemble:
        if isinstance(self.run, Pretrained):
            calibration = None if self.calibrate is False else self.run.calibration
            model = with_backend(self.run.model, self.backend)
            return _LoadedRun.of_model(replace(self.run, model=model, calibration=calibration))
        folder = Path(self.run)
        files = (f for pattern in ("*", "*/*", "*/fold_*/*") for f in folder.glob(pattern))  # those of members, too
        return _load(folder, self.calibrate, self.backend, max((f.stat().st_mtime_ns for f in files), default=0))

    def _predict(self, columns: dict[str, Any]) -> dict[str, np.ndarray]:
        kind = next((name for name in _INPUTS if name in columns), None)
        if kind is None:
            raise OptionError(
                f"the batch has the columns {', '.join(columns) or '(none)'}; expected one of {', '.join(_INPUTS)}"
            )
        loaded = self._loaded
        sounds = _Sounds.of(kind, columns)
        kept = {name: np.asarray(column) for name, column in columns.items() if name not in ("bytes", "audio")}
        if "sample_rate" in kept:  # one rate may be given for all rows
            kept["sample_rate"] = np.broadcast_to(kept["sample_rate"], (len(sounds),))
        status = status_column(loaded.tags)
        for name in (*kept, "reason"):
            if name in loaded.tags:
                raise OptionError(f"{name!r} is a column and a tag; rename the column")
        probs, reasons, statuses = np.zeros((0, len(loaded.tags))), [""] * len(sounds), ["ok"] * len(sounds)
        if len(sounds):
            predictions, errors = loaded.predict(sounds, self)
            probs = predictions.probs
            for i in map(int, predictions.silent):
                statuses[i], reasons[i] = "silent", _SILENT
            for i, error in errors.items():
                statuses[i], reasons[i] = "unreadable", error
        return {
            **kept, **{tag: probs[:, k].copy() for k, tag in enumerate(loaded.tags)},
            status: np.array(statuses, dtype=object), "reason": np.array(reasons, dtype=object),
        }


_SILENT = f"silent: no peak reaches {SILENCE_DB:g} dB of full scale"


class _Sounds:
    """The sounds of a batch: paths or URLs of files, bytes of files, or samples with their rate, one for each row."""

    def __init__(self, sounds: Sequence[str | bytes | tuple[Any, int]]):
        self.sounds = sounds

    @classmethod
    def of(cls, kind: str, columns: Mapping[str, Any]) -> _Sounds:
        """Take the sounds from a column of one of `_INPUTS`."""
        if kind == "audio":
            if "sample_rate" not in columns:
                raise OptionError("the batch has a column audio; expected a column sample_rate, in Hz, beside it")
            rates = np.broadcast_to(np.asarray(columns["sample_rate"]), (len(columns[kind]),))
            return cls([(sound, int(rate)) for sound, rate in zip(columns[kind], rates, strict=True)])
        return cls([bytes(sound) if kind == "bytes" else str(sound) for sound in columns[kind]])

    def __len__(self) -> int:
        return len(self.sounds)

    def clips(self, settings: ClipConfig) -> tuple[list[Any], dict[int, str]]:
        """Return a path or samples at the settings' rate for each row, and why there are none, by position.

        A row without a sound has an empty path, which cannot be read either.
        """
        errors: dict[int, str] = {}
        clips: list[Any] = []
        for i, sound in enumerate(self.sounds):
            try:
                clips.append(sound if isinstance(sound, str) else _samples(sound, f"row {i}", settings))
            except (AudioError, OptionError, ShapeError) as e:
                errors[i] = str(e)
                clips.append("")
        return clips, errors


@dataclass(frozen=True, eq=False)
class _LoadedRun:
    """Networks of a run or a model, ready to predict."""

    folds: tuple[TrainedFold, ...]
    settings: ClipConfig
    calibration: Calibration | None
    precision: str
    tta: TTA = TTA()
    seed: int = 0

    @classmethod
    def of_model(cls, model: Pretrained) -> _LoadedRun:
        fold = TrainedFold("model", model.model, tuple(model.tags), model.prior)
        return cls((fold,), model.settings, model.calibration, model.precision)

    @classmethod
    def of_run(cls, run: FinishedRun, calibrate: bool | None) -> _LoadedRun:
        recipe = run.recipe
        return cls(
            tuple(run.folds()), recipe.settings(), run.calibration(calibrate), recipe.precision, recipe.tta, recipe.seed
        )

    @property
    def tags(self) -> tuple[str, ...]:
        return self.folds[0].tags

    def predict(self, sounds: _Sounds, options: TagBatch) -> tuple[Predictions, dict[int, str]]:
        """Predict sounds, named by their position, and return the reasons of unreadable ones by position."""
        views = choose_views(self.tta, options.views, options.n, options.options)
        settings = with_channel(self.settings, options.channel)
        clips, errors = sounds.clips(settings)

        def predict(fold: TrainedFold) -> ClipPredictions:
            predictor = Predictor(
                fold.model, settings, views, len(fold.tags), precision=self.precision, bs=options.bs, seed=self.seed,
                average=options.average or self.tta.average,
            )
            return predictor.predict(clips)

        names, parts = [str(i) for i in range(len(clips))], []
        for fold, output in predict_jointly(self.folds, predict):
            errors = {**output.errors, **errors}
            parts.append(fill_priors(names, fold.tags, output, fold.prior))
        found = parts[0] if len(parts) == 1 else ensemble(parts, how=self.tta.fold_average)
        return found if self.calibration is None else found.calibrated(self.calibration), errors


@dataclass(frozen=True, eq=False)
class _LoadedEnsemble:
    """Runs of an ensemble, ready to predict; `weights` has one number for each."""

    runs: tuple[_LoadedRun, ...]
    weights: tuple[float, ...]
    how: str
    calibration: Calibration | None

    @classmethod
    def of_folder(cls, folder: EnsembleFolder, calibrate: bool | None, backend: str) -> _LoadedEnsemble:
        runs = tuple(_LoadedRun.of_run(FinishedRun.open(run, backend=backend), False) for run in folder.runs)
        calibration = find_calibration(folder.folder, calibrate)
        return cls(runs, tuple(folder.runs.values()), folder.how, calibration)

    @property
    def tags(self) -> tuple[str, ...]:
        return self.runs[0].tags

    def predict(self, sounds: _Sounds, options: TagBatch) -> tuple[Predictions, dict[int, str]]:
        """As `_LoadedRun.predict`; members may have other rates, so each decodes the sounds for itself."""
        parts = [run.predict(sounds, options) for run in self.runs]
        errors = {i: error for _, failed in reversed(parts) for i, error in failed.items()}
        found = ensemble([part for part, _ in parts], self.how, list(self.weights))
        return found if self.calibration is None else found.calibrated(self.calibration), errors


@lru_cache(maxsize=2)
def _load(folder: Path, calibrate: bool | None, backend: str, changed_ns: int) -> _LoadedRun | _LoadedEnsemble:
    """Load a run, an ensemble or a model folder once per process; `changed_ns` makes a changed folder another one."""
    if is_model_folder(folder):
        return _LoadedRun.of_model(load_model_folder(folder, calibrate, backend))
    if is_ensemble_folder(folder):
        return _LoadedEnsemble.of_folder(EnsembleFolder.open(folder), calibrate, backend)
    return _LoadedRun.of_run(FinishedRun.open(folder, backend=backend), calibrate)


def _samples(sound: bytes | tuple[Any, int], name: str, settings: ClipConfig) -> np.ndarray:
    """Decode bytes, or resample samples, to (samples,) at the settings' rate."""
    channel = "auto" if settings.channel == "each" else settings.channel
    if isinstance(sound, bytes):
        try:
            blocks = list(stream_audio(sound, settings.sr, channel=channel))
        except AudioError as e:
            raise AudioError(f"{name}: {e}") from None
    else:
        samples, rate = np.asarray(sound[0]), sound[1]
        if samples.dtype == object:  # lists of channels, as Arrow stores them
            samples = np.stack([np.asarray(channel) for channel in samples])
        blocks = list(stream_audio(samples, settings.sr, sr_from=rate, channel=channel))
    return torch.cat(blocks).numpy()
