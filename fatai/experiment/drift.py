"""Drift: predictions of a few clips that a run stores at its end, compared with those of today's versions and machine.

The clips are the middle `CLIP_S` seconds of up to `N_CLIPS` held-out clips, one channel, at the rate of their file, so
that decoding, resampling, spectrogram and networks take part. Each is predicted by its middle crop: random views are
drawn by the samples, and would all be others after the least change of a decoder. Networks run in float32 on the CPU,
whatever the run was trained on, so that machines differ by rounding alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fatai.audio.io import audio_info, load_audio, save_audio
from fatai.audio.waveform import is_silent
from fatai.ensemble.ensemble import ensemble
from fatai.errors import AudioError, CheckpointError
from fatai.experiment.manifest import environment_notes, read_manifest
from fatai.experiment.run_folder import FinishedRun, TrainedFold, predict_jointly
from fatai.inference.predictions import Predictions
from fatai.inference.predictor import ClipPredictions, Predictor
from fatai.inference.tta import build_views, fill_priors

__all__ = ["CLIP_S", "N_CLIPS", "DriftResult", "measure_drift", "store_reference"]

N_CLIPS = 16
CLIP_S = 4.0
_MAX_SR = 48000  # of a stored clip; a file of a higher rate is stored at that of the recipe
_FOLDER, _PROBS = "reference", "probs.csv"
_SHOWN = 10


@dataclass(frozen=True)
class DriftResult:
    """Predictions of the stored clips of a run, then and now.

    Attributes
    ----------
    run
        The run folder.
    then, now
        Predictions of the same clips and tags, averaged over the folds.
    changes
        What has changed on the way: versions, system and device, one sentence each.
    """

    run: Path
    then: Predictions
    now: Predictions
    changes: tuple[str, ...]

    @property
    def difference(self) -> np.ndarray:
        """Signed differences of probabilities, now minus then, float64, shape (clips, tags)."""
        return self.now.probs - self.then.probs

    @property
    def largest(self) -> float:
        """The largest difference without its sign, within [0, 1]."""
        return float(np.abs(self.difference).max())

    def table(self) -> pd.DataFrame:
        """Return a row for each clip and tag, with the columns run, fname, tag, then, now and difference."""
        n_clips, n_tags = self.difference.shape
        return pd.DataFrame({
            "run": str(self.run),
            "fname": np.repeat(np.array(self.then.fnames, dtype=object), n_tags),
            "tag": list(self.then.tags) * n_clips,
            "then": self.then.probs.ravel(), "now": self.now.probs.ravel(), "difference": self.difference.ravel(),
        })

    def tag_table(self) -> pd.DataFrame:
        """Return the mean and the largest signed difference of each tag, columns tag, mean and largest, most first."""
        return _summary("tag", self.then.tags, self.difference.T)

    def clip_table(self) -> pd.DataFrame:
        """Return the mean and the largest signed difference of each clip, columns fname, mean and largest."""
        return _summary("fname", self.then.fnames, self.difference)

    def __str__(self) -> str:
        n_clips, n_tags = self.difference.shape
        lines = [f"{self.run}: {n_clips} clips, {n_tags} tags; largest difference of probabilities {self.largest:.2g}"]
        lines += [f"  {change}" for change in self.changes] or ["  versions and machine are those of the run"]
        if self.largest:
            lines.append("now minus then, mean and largest:")
            for table in (self.tag_table(), self.clip_table()):
                rows = table.head(_SHOWN).itertuples(index=False)
                lines += [f"  {mean:+.2e} {largest:+.2e}  {name}" for name, mean, largest in rows]
                lines.append(f"  ... {len(table) - _SHOWN} more" if len(table) > _SHOWN else "")
        return "\n".join(lines).rstrip()


def _summary(column: str, names: Sequence[str], difference: np.ndarray) -> pd.DataFrame:
    """Return a row for each row of signed differences (names, n), the largest without its sign first."""
    at = np.abs(difference).argmax(axis=1)
    table = pd.DataFrame({
        column: list(names), "mean": difference.mean(axis=1), "largest": difference[np.arange(len(at)), at],
    })
    return table.sort_values("largest", key=np.abs, ascending=False, kind="stable", ignore_index=True)


def store_reference(run: str | Path, table: pd.DataFrame) -> int:
    """Store pieces of clips in a run folder, and what its networks predict for them.

    Parameters
    ----------
    run
        The run folder with the weights of its folds.
    table
        Clips, columns fname and path; up to `N_CLIPS` are taken, evenly spaced in the order of their names, without
        silent ones and those that cannot be read.

    Returns
    -------
    The number of stored clips.
    """
    opened = FinishedRun.open(run)
    folder = opened.folder / _FOLDER
    names: list[str] = []
    (folder / _PROBS).unlink(missing_ok=True)
    rows = table.sort_values("fname", kind="stable")
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(N_CLIPS, len(rows))).round().astype(int))
    for name, path in rows[["fname", "path"]].iloc[chosen].itertuples(index=False):
        piece = _middle(str(path), opened)
        if piece is not None:
            wave, sr = piece
            folder.mkdir(exist_ok=True)
            save_audio(_clip_path(folder, len(names)), wave, sr)
            names.append(str(name))
    if names:
        _predict(opened, names).to_csv(folder / _PROBS)
    return len(names)


def measure_drift(run: str | Path) -> DriftResult:
    """Predict the stored clips of a run again and compare.

    Raises
    ------
    CheckpointError
        If `run` is not a run with weights, or has no stored clips, as runs of versions before 0.2.
    """
    opened = FinishedRun.open(run)
    path = opened.folder / _FOLDER / _PROBS
    if not path.is_file():
        raise CheckpointError(
            f"{run} has no stored predictions in {_FOLDER}/{_PROBS}; runs store them since version 0.2: train the run "
            f"again (fatai-submit reproduce {run}), or compare predictions of your own sounds"
        )
    then = Predictions.from_csv(path)
    if len(then) > N_CLIPS:
        raise CheckpointError(f"{path} has {len(then)} rows; expected at most {N_CLIPS}, as a run stores them")
    now = _predict(opened, then.fnames)
    if now.unreadable:
        raise CheckpointError(f"stored clips of {run} cannot be read: {', '.join(now.unreadable)}")
    manifest = read_manifest(opened.folder) or {}
    return DriftResult(opened.folder, then, now.select(then.fnames, then.tags), tuple(_changes(manifest)))


def _middle(path: str, opened: FinishedRun) -> tuple[Tensor, int] | None:
    """Return the middle of a clip, shape (samples,), and its rate; None if it is silent or cannot be read."""
    settings = opened.recipe.settings()
    channel = "auto" if settings.channel == "each" else settings.channel
    try:
        info = audio_info(path)
        sr = info.sr if info.sr <= _MAX_SR else settings.sr
        offset_s = max(0.0, (info.seconds - CLIP_S) / 2)
        wave = load_audio(path, sr, offset_s=offset_s, duration_s=CLIP_S, channel=channel)
    except AudioError:
        return None
    return None if is_silent(settings.trim(wave)) else (wave, sr)


def _clip_path(folder: Path, number: int) -> Path:
    return folder / f"{number:02d}.flac"


def _predict(opened: FinishedRun, names: Sequence[str]) -> Predictions:
    """Predict the stored clips by their middle crop with every fold, averaged, in float32 on the CPU."""
    recipe, cpu = opened.recipe, torch.device("cpu")
    settings = replace(recipe.settings(), channel="mean")  # stored clips have one channel
    paths = [_clip_path(opened.folder / _FOLDER, number) for number in range(len(names))]

    def predict(fold: TrainedFold) -> ClipPredictions:
        predictor = Predictor(fold.model, settings, build_views("even", 1), len(fold.tags), device=cpu)
        return predictor.predict(paths, desc="stored clips")

    outputs = predict_jointly(replace(opened, device=cpu).folds(), predict)
    parts = [fill_priors(names, fold.tags, output, fold.prior) for fold, output in outputs]
    return ensemble(parts, how=recipe.tta.fold_average)


def _changes(manifest: dict[str, Any]) -> Iterator[str]:
    """Yield the versions and parts of the machine that differ from those of a manifest, which may be untrusted."""
    for section, noted in environment_notes().items():
        before = manifest.get(section)
        for name, value in noted.items():
            then = before.get(name, "not noted") if isinstance(before, dict) else "not noted"
            if name != "threads" and then != value:
                yield f"{name} was {str(then)[:100]} and is {value}"
