"""False alarms per hour of each tag of a run, on background that its folds were not trained on.

A run folder has `background.csv`, with the columns tag, threshold, events, hours and per_hour, and the probabilities
behind it, `background.safetensors`, from which other thresholds are set. Each sound is predicted by the fold that was
not trained on it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fatai.data.background import background_folds
from fatai.data.datasets.fat2019 import FATDataset
from fatai.errors import AudioError, CheckpointError, DataError
from fatai.experiment.run_folder import FinishedRun
from fatai.inference.events.false_alarms import count_events, limit_false_alarms
from fatai.inference.events.recording_tagger import RecordingTagger
from fatai.inference.events.segments import expand_threshold
from fatai.inference.events.tagger import SlidingWindowTagger
from fatai.io.atomic import write_file, write_text
from fatai.io.json import parse_json
from fatai.registry import did_you_mean

__all__ = ["BackgroundProbs", "load_background", "measure_background"]

TABLE, PROBS = "background.csv", "background.safetensors"
THRESHOLD = 0.5
"""Threshold of a run that has no thresholds of its own, as in fatai-submit tag."""
_FORMAT = "fatai background 1"


@dataclass(frozen=True, eq=False)
class BackgroundProbs:
    """Probabilities of the steps of background, as the tagger computes them.

    Attributes
    ----------
    tags
        Name of each tag.
    probs
        float32 (steps, tags), the steps of all sounds one after another.
    starts
        bool (steps,), True at the first step of each sound.
    hours
        Length of the sounds.
    is_calibrated
        Whether the calibration of the run was applied.
    """

    tags: tuple[str, ...]
    probs: np.ndarray
    starts: np.ndarray
    hours: float
    is_calibrated: bool = False

    @classmethod
    def measure(cls, tagger: RecordingTagger, paths: Iterable[str | Path]) -> BackgroundProbs:
        """Tag sounds without any tag; a sound that cannot be read is left out with a warning.

        Raises
        ------
        DataError
            If no sound can be read.
        """
        probs, starts, seconds = [], [], 0.0
        for path in paths:
            try:
                with warnings.catch_warnings():
                    # Silence is background, and has no events.
                    warnings.filterwarnings("ignore", message=".*silent")
                    steps = list(tagger.frame_probs(path))
            except AudioError as e:
                warnings.warn(f"a sound of background cannot be read and is left out: {e}", stacklevel=2)
                continue
            probs.append(np.stack([np.zeros_like(step.probs) if step.is_silent else step.probs for step in steps]))
            starts.append(np.arange(len(steps)) == 0)
            seconds += steps[-1].end_s
        if not probs:
            raise DataError("no sound of background can be read; expected sound files that hold none of the tags")
        return cls(
            tuple(tagger.tags), np.concatenate(probs).astype(np.float32), np.concatenate(starts), seconds / 3600,
            tagger.calibration is not None,
        )

    @classmethod
    def join(cls, parts: Sequence[BackgroundProbs]) -> BackgroundProbs:
        """Join the probabilities of several folds with the same tags."""
        return cls(
            parts[0].tags, np.concatenate([part.probs for part in parts]),
            np.concatenate([part.starts for part in parts]), sum(part.hours for part in parts),
            parts[0].is_calibrated,
        )

    def table(self, thresholds: Sequence[float] | np.ndarray) -> pd.DataFrame:
        """Return a row for each tag: tag, threshold, events, hours and per_hour, the most false alarms first.

        `thresholds` has one number for each tag.
        """
        events = count_events(self.probs, self.starts, np.asarray(thresholds))
        table = pd.DataFrame({
            "tag": self.tags, "threshold": np.round(thresholds, 4), "events": events, "hours": round(self.hours, 4),
            "per_hour": (events / self.hours).round(2),
        })
        return table.sort_values("per_hour", ascending=False, kind="stable").reset_index(drop=True)

    def thresholds(self, max_per_hour: float) -> dict[str, float]:
        """Return the lowest threshold of each tag with at most so many false alarms per hour."""
        limits = limit_false_alarms(self.probs, self.starts, self.hours, max_per_hour)
        return dict(zip(self.tags, limits.tolist(), strict=True))

    def save(self, path: str | Path) -> None:
        """Write a .safetensors file; it is complete or not there."""
        arrays = {"probs": self.probs, "starts": self.starts.astype(np.uint8)}
        values = {"tags": self.tags, "hours": self.hours, "is_calibrated": self.is_calibrated}
        notes = {"format": _FORMAT, "notes": json.dumps(values)}
        with write_file(path) as temporary:
            save_file(arrays, str(temporary), metadata=notes)

    @classmethod
    def load(cls, path: str | Path) -> BackgroundProbs:
        """Load what `save` wrote; nothing in the file is executed.

        Raises
        ------
        CheckpointError
            If the file is something else, or damaged.
        """
        try:
            with safe_open(str(path), framework="np") as f:
                notes = dict(f.metadata() or {})
                probs, starts = f.get_tensor("probs"), f.get_tensor("starts").astype(bool)
            values = parse_json(notes["notes"])
            tags, hours = tuple(str(tag) for tag in values["tags"]), float(values["hours"])
            if notes.get("format") != _FORMAT or probs.shape != (len(starts), len(tags)) or not hours > 0:
                raise ValueError("its arrays do not fit")
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as e:
            raise CheckpointError(
                f"{path} cannot be read as probabilities of background ({e}); train the run again, or give --background"
            ) from None
        return cls(tags, probs, starts, hours, bool(values["is_calibrated"]))


def measure_background(out: Path, data: FATDataset, n_folds: int, log: Callable[[str], None]) -> None:
    """Write background.csv and its probabilities into a run folder, and log and warn of tags that are detected in it.

    Parameters
    ----------
    out
        The run folder with the weights of its folds.
    data
        The result of `readable_background`; nothing is done without background.
    n_folds
        Number of folds of the recipe.
    log
        Function for lines of progress.
    """
    if data.background is None:
        return
    run, parts = FinishedRun.open(out), []
    thresholds: float | dict[str, float] | None = None
    folds, settings = background_folds(data.background, n_folds), run.recipe.settings()
    calibration = run.calibration()
    for number, fold in zip(run.fold_numbers, run.folds(), strict=True):
        paths = data.background["path"][folds == number]
        if len(paths):
            tagger = SlidingWindowTagger(
                [fold.model], fold.tags, settings, precision=run.recipe.precision, calibration=calibration,
                prior=fold.prior,
            )
            parts.append(BackgroundProbs.measure(tagger, paths))
            thresholds = tagger.thresholds or THRESHOLD
    if thresholds is None:
        return
    measured = BackgroundProbs.join(parts)
    table = measured.table(expand_threshold(thresholds, measured.tags))
    write_text(out / TABLE, table.to_csv(index=False, lineterminator="\n"))
    measured.save(out / PROBS)
    detected = table[table["events"] > 0]
    listed = ", ".join(f"{row.tag} {row.per_hour:g}" for row in detected.head(5).itertuples())
    rest = f" and {len(detected) - 5} more tags" if len(detected) > 5 else ""
    log(
        f"background: {60 * measured.hours:.1f} minutes without any tag, each predicted by a fold not trained on it; "
        f"false alarms per hour at its threshold: {listed + rest if len(detected) else 'none'}"
    )
    if len(detected):
        warnings.warn(
            f"{out}: the models detect tags in background that has none ({listed}{rest} per hour); "
            f"see {TABLE}, and set thresholds with fatai-submit tag --max-false-alarms-per-hour, or add such sounds to "
            "the background",
            stacklevel=3,
        )


def load_background(run: str | Path, tags: Sequence[str], *, is_calibrated: bool) -> BackgroundProbs:
    """Load the probabilities of background of a run.

    Raises
    ------
    CheckpointError
        If it has none, or of other tags, or with the calibration where it is not asked for.
    """
    path = Path(run) / PROBS
    if not path.is_file():
        raise CheckpointError(
            f"{run} was trained without background; give --background FOLDER of sounds that hold none of the tags, "
            "such as fatai-submit background writes"
        )
    found = BackgroundProbs.load(path)
    unknown = next((tag for tag in tags if tag not in found.tags), None)
    if unknown is not None:
        raise CheckpointError(f"{path} lacks the tag {unknown!r}; {did_you_mean(unknown, list(found.tags))}")
    if found.is_calibrated != is_calibrated:
        raise CheckpointError(
            f"{path} holds probabilities {'after' if found.is_calibrated else 'without'} calibration, and tagging is "
            f"{'with' if is_calibrated else 'without'} it; give --background FOLDER to predict it alike"
        )
    return found
