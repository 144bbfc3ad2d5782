"""Distillation: the targets of training clips are mixed with the probabilities that a teacher gives them.

Binary cross-entropy is linear in the target, so the targets (1 - weight) * labels + weight * probabilities are the
same as the two losses mixed. Probabilities are computed once for each clip, not for each crop, with the views of the
teacher's recipe and without its calibration, and kept in the fold's folder. They are computed again if the files of the
teacher have been written again since.

A fold learns from those networks of the teacher that held out the same clips as it does, so that its score is out of
fold: a network that was trained on a clip would reveal its label to the student. Where the teacher has no such network,
all of its networks are averaged, and the student's out-of-fold score is optimistic.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from fatai.callbacks.sample_weights import SampleWeights
from fatai.data.labels import multi_hot
from fatai.distributed import SINGLE_PROCESS, ProcessGroup
from fatai.ensemble.members import read_folds
from fatai.errors import FataiError, OptionError
from fatai.experiment.manifest import read_manifest
from fatai.experiment.recipe import load_recipe
from fatai.experiment.run_folder import WEIGHTS, FinishedRun, trained_model
from fatai.experiment.schema import Stage
from fatai.export.pretrained import is_model_folder
from fatai.inference.learner import FatLearner
from fatai.inference.predictions import Predictions
from fatai.noisy_labels.selection import LabelSelection

__all__ = ["Student", "check_teachers", "honest_fold", "teacher_callback", "teacher_selection"]


@dataclass(frozen=True)
class Student:
    """A fold that learns from a teacher.

    Attributes
    ----------
    folder
        Where the probabilities of the teacher are kept.
    tags
        Names of the tags.
    held_out
        Names of the clips that the fold holds out.
    unlabelled
        Clips without labels, columns fname and path; None without any.
    group
        Processes that train the fold together.
    """

    folder: Path
    tags: tuple[str, ...]
    held_out: tuple[str, ...]
    unlabelled: pd.DataFrame | None = None
    group: ProcessGroup = SINGLE_PROCESS


def check_teachers(stages: Sequence[Stage], held_out: Sequence[Sequence[str]]) -> bool:
    """Check that the teachers of some stages can be opened, and return True if none involves the held-out clips.

    A teacher does if a network that a fold learns from was trained on them, also by a teacher of its own, or was
    selected by their scores.

    Parameters
    ----------
    stages
        Stages of a recipe.
    held_out
        Names of the clips that each fold holds out.

    Raises
    ------
    CheckpointError
        If a teacher is neither a run nor a model folder.
    """
    teachers = {teacher for stage in stages for teacher in stage.teacher or ()}
    for teacher in teachers:
        if not is_model_folder(teacher):
            FinishedRun.open(teacher)
    return not any(_involves(teacher, names) for teacher in teachers for names in held_out)


def _involves(teacher: str, held_out: Sequence[str]) -> bool:
    if honest_fold(teacher, held_out) is None:
        return True
    notes = read_manifest(Path(teacher)) or {}
    return notes.get("teacher_saw_held_out") is True or FinishedRun.open(teacher).recipe.selects_on_held_out


def honest_fold(teacher: str | Path, held_out: Sequence[str]) -> int | None:
    """Return the fold of a run whose network was trained on none of the clips; None if there is no such network."""
    if is_model_folder(teacher):
        return None
    try:
        folds = read_folds(Path(teacher) / "folds.csv")
    except FataiError:
        return None
    numbers = {folds.get(name, -1) for name in held_out}
    trained = FinishedRun.open(teacher).fold_numbers
    return next(iter(numbers)) if len(numbers) == 1 and numbers <= set(trained) else None


def teacher_selection(student: Student, stage: Stage) -> LabelSelection | None:
    """Return the unlabelled clips of a stage with the probabilities of its teachers as targets; None without any."""
    if stage.teacher_clips is None or student.unlabelled is None:
        return None
    targ = teacher_probs(student, stage.teacher or (), student.unlabelled, "unlabelled")
    names = tuple(str(name) for name in student.unlabelled["fname"])
    clips = pd.DataFrame(
        {"fname": list(names), "kept": True, "changed": True, "score": float("nan"), "reason": "teacher"}
    )
    return LabelSelection(
        "teacher", names, student.tags, targ.astype(np.float32), np.ones(len(names), dtype=np.float32),
        ("corrected",) * len(names), clips,
    )


def teacher_callback(
    student: Student, stage: Stage, learn: FatLearner, selection: LabelSelection | None
) -> SampleWeights:
    """Return the callback that replaces the labels of training clips by targets mixed with those of the teachers.

    Parameters
    ----------
    student, stage
        The fold that learns, and its stage.
    learn
        The learner of the fold.
    selection
        The unlabelled clips, whose targets are the teachers' alone.
    """
    table, targets = learn.dls.files(0), {}
    if selection is not None and student.unlabelled is not None:
        targets = dict(zip(map(str, student.unlabelled["path"]), selection.targ, strict=True))
        table = table[~table["path"].astype(str).isin(targets)]
    probs = teacher_probs(student, stage.teacher or (), table, "labelled")
    mixed = (1 - stage.teacher_weight) * multi_hot(table["labels"], learn.tags) + stage.teacher_weight * probs
    return SampleWeights({}, noisy=(), targets={**targets, **dict(zip(map(str, table["path"]), mixed, strict=True))})


def teacher_probs(student: Student, teachers: Sequence[str], table: pd.DataFrame, part: str) -> np.ndarray:
    """Return the mean probabilities of some teachers, float64 (clips, tags); computed once for a fold and part."""
    names = _digest(teachers)  # stages may differ in theirs
    files = student.group.broadcast(_digest(line for teacher in teachers for line in _file_stamps(Path(teacher))))
    kept = student.folder / f"teacher_{names}_{files}_{part}.csv"
    # By number: clips of several folders may have the same name.
    items = pd.DataFrame({"fname": [str(i) for i in range(len(table))], "path": table["path"].to_numpy()})
    if student.group.broadcast(kept.is_file()):
        stored = Predictions.from_csv(kept)
        if stored.fnames == tuple(items["fname"]):
            return np.array(stored.probs)
    probs = np.mean([_predict(student, teacher, items) for teacher in teachers], axis=0)
    if student.group.is_main:
        kept.parent.mkdir(parents=True, exist_ok=True)
        Predictions(tuple(items["fname"]), student.tags, probs).to_csv(kept)
        _remove_former(kept, teachers, f"teacher_{names}_*_{part}.csv")
    return probs


def _digest(lines: Iterable[str]) -> str:
    return hashlib.blake2b("\n".join(lines).encode(errors="surrogateescape"), digest_size=4).hexdigest()


def _file_stamps(teacher: Path) -> Iterator[str]:
    """Yield the name, size and time of modification of each file that a teacher's probabilities depend on."""
    for pattern in ("config.json", "recipe.toml", "folds.csv", WEIGHTS, f"fold_*/{WEIGHTS}"):
        for path in sorted(teacher.glob(pattern)):
            stat = path.stat()
            yield f"{path.relative_to(teacher)} {stat.st_size} {stat.st_mtime_ns}"


def _remove_former(kept: Path, teachers: Sequence[str], pattern: str) -> None:
    """Remove probabilities of former files of the teachers, with a warning: epochs may have learned from them."""
    for former in sorted(set(kept.parent.glob(pattern)) - {kept}):
        former.unlink()
        warnings.warn(
            f"files of the teacher {', '.join(teachers)} changed after {kept.parent} began to learn from it: its "
            "probabilities are computed again, but epochs and folds that ended before learned from the former ones; "
            "start a new run to learn from the present ones alone",
            stacklevel=2,
        )


def _predict(student: Student, teacher: str, items: pd.DataFrame) -> np.ndarray:
    """Return the probabilities of one teacher, (clips, tags), in the order of the student's tags."""
    honest = honest_fold(teacher, student.held_out)
    if is_model_folder(teacher):
        parts, tta = [trained_model(teacher)], {}
    else:
        opened, recipe = FinishedRun.open(teacher), load_recipe(Path(teacher) / "recipe.toml")
        parts = [trained_model(teacher, k) for k in (opened.fold_numbers if honest is None else [honest])]
        tta = {"views": recipe.tta.views, "n": recipe.tta.n, "average": recipe.tta.average, **recipe.tta.options}
    probs = []
    for part in parts:
        missing = [tag for tag in student.tags if tag not in part.tags]
        if missing:
            raise OptionError(
                f"the teacher {teacher} has no tag {missing[0]!r} ({len(missing)} such tags); expected a run on the "
                "same tags"
            )
        columns = [part.tags.index(tag) for tag in student.tags]
        predicted = replace(part, calibration=None).tta(items, desc=f"teacher {Path(teacher).name}", **tta)
        probs.append(predicted.probs[:, columns])
    return np.mean(probs, axis=0)
