"""Feed damaged sounds and malicious files to the commands and check the results for each file."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fatai.audio.io import AUDIO_EXTENSIONS
from fatai.data.datasets.fat2019 import fat_sample
from fatai.experiment.recipe import load_recipe
from fatai.experiment.run import run_recipe
from fatai.experiment.run_folder import trained_model

from .models import caches, model_folders, pickles, runs
from .sandbox import Outcome, commands_in_child
from .sounds import Damaged, create, damaged_sounds
from .texts import recipes, tables

__all__ = ["Report", "files_through_commands", "sounds_through_commands"]

RECIPE = """
name = "tiny"
[clips]
crop_s = 0.5
[folds]
n = 2
[model]
arch = "m1"
width = 0.125
[[stages]]
name = "fit"
epochs = 1
bs = 16
[tta]
n = 2
"""
_GOOD = 24


@dataclass
class Report:
    """Number of files tried, by kind, and the faults found."""

    tried: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")

    def count(self, kind: str, n: int = 1) -> None:
        self.tried[kind] = self.tried.get(kind, 0) + n

    def check(self, outcome: Outcome, expectation: Callable[[Outcome], str] = lambda outcome: "") -> None:
        """Record the fault of an outcome, or the expectation that it fails."""
        try:
            fault = outcome.fault or expectation(outcome)
        except (OSError, ValueError, LookupError) as e:
            fault = f"its output cannot be read: {e!r}; exit {outcome.code}: {outcome.err.strip()[-300:]}"
        if fault:
            self.faults.append(f"fatai-submit {' '.join(outcome.args)[:300]!a}: {fault[:1500]}")
        self.slowest = max(self.slowest, (outcome.slowest_s, outcome.slowest))

    def __str__(self) -> str:
        lines = [f"{n:6d}  {kind}" for kind, n in self.tried.items()]
        lines.append(
            f"{sum(self.tried.values()):6d}  in all; "
            f"the slowest file took {self.slowest[0]:.1f} s: {self.slowest[1][-60:]}"
        )
        return "\n".join([*lines, f"{len(self.faults)} faults", *self.faults])


def sounds_through_commands(work: Path, report: Report, *, every: int = 1) -> Path:
    """Feed every `every`-th damaged sound of each kind to `scan`, `run`, `predict` and `tag`; return the run."""
    sample = fat_sample()
    damaged = _select(list(damaged_sounds(sorted((sample / "test").iterdir())[:8])), every)
    data, run = work / "data", work / "runs" / "tiny"
    rows, training = _data_of(data, sample, damaged)
    (work / "tiny.toml").write_text(RECIPE)
    sounds = sorted(entry.path for entry in os.scandir(data / "test") if _is_sound(entry))
    singly = [
        str(data / "test" / os.fsdecode(d.name)) for d in damaged if d.kind in ("a wrong suffix", "hardly any sample")
    ]
    singly = [path for path in singly if Path(path).is_file()]
    short = [path for path in sounds if "ten_hours" not in path]
    for d in damaged:
        report.count(f"sounds: {d.kind}")
    expectations: list[tuple[list[str], Callable[[Outcome], str]]] = [
        (["scan", str(data), "--json"], lambda o: _scanned(o, rows, training)),
        (["scan", str(data), "--max-findings", "100000"], lambda o: ""),
        (
            ["run", str(data), "--recipe", str(work / "tiny.toml"), "--out", str(run), "--num-workers", "0"],
            lambda o: _predicted(run, rows),
        ),
        (
            ["predict", str(run), str(data / "test"), "--out", str(work / "p.csv")],
            lambda o: _rows(work / "p.csv", len(sounds)),
        ),
        (["predict", str(run), *singly, "--out", str(work / "q.csv")], lambda o: _rows(work / "q.csv", len(singly))),
        (["predict", str(run), str(data / "test")], lambda o: _printed(o, len(sounds))),
        (
            ["tag", str(run), str(data / "test"), "--out", str(work / "events.csv")],
            lambda o: _tagged(o, work, sounds),
        ),
        (["tag", str(run), *short, "--out", str(work / "labels"), "--format", "audacity"], lambda o: ""),
        (["tag", str(run), *short], lambda o: ""),
    ]
    outcomes = commands_in_child([args for args, _ in expectations], work)
    for (_, expectation), outcome in zip(expectations, outcomes, strict=True):
        report.check(outcome, expectation)
    return run


def _select(damaged: list[Damaged], every: int) -> list[Damaged]:
    """Select every `every`-th of each kind, and all that are no regular files."""
    seen: dict[str, int] = {}
    selected = []
    for d in damaged:
        number = seen[d.kind] = seen.get(d.kind, -1) + 1
        if number % every == 0 or d.kind == "no file":
            selected.append(d)
    return selected


def _is_sound(entry: os.DirEntry) -> bool:
    return Path(entry.name).suffix.lower() in AUDIO_EXTENSIONS and not os.path.isdir(entry.path)


def _data_of(data: Path, sample: Path, damaged: Sequence[Damaged]) -> tuple[list[str], list[str]]:
    """Make a data set with damaged test and training clips; return the names of the test and damaged training rows."""
    shutil.rmtree(data, ignore_errors=True)
    for part in ("train_curated", "test"):
        (data / part).mkdir(parents=True)
    with open(sample / "sample_submission.csv", newline="") as f:
        header = next(csv.reader(f))
    with open(sample / "train_curated.csv", newline="") as f:
        good = list(csv.reader(f))[1:][::120 // _GOOD]
    for fname, _ in good:
        shutil.copy(sample / "train_curated" / fname, data / "train_curated")
    listed = [d for d in damaged if _is_text(d.name)]
    training = listed[::7]
    for d in training:
        create(d, data / "train_curated")
    for d in damaged:
        create(d, data / "test")
    rows = [d.name.decode() for d in listed]
    labels = [*good, *([d.name.decode(), good[k % len(good)][1]] for k, d in enumerate(training))]
    _write(data / "train_curated.csv", [["fname", "labels"], *labels])
    _write(data / "sample_submission.csv", [header, *([name, *["0"] * (len(header) - 1)] for name in rows)])
    return rows, [d.name.decode() for d in training]


def _is_text(name: bytes) -> bool:
    """Return whether a table can hold the name: UTF-8 without outer spaces."""
    try:
        return name.decode("utf-8") == name.decode("utf-8").strip()
    except UnicodeDecodeError:
        return False


def _write(path: Path, rows: Sequence[Sequence[str]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows(rows)


def _scanned(outcome: Outcome, rows: list[str], training: list[str]) -> str:
    report = json.loads(outcome.out)
    missing = [f for f in report["findings"]["missing"] if f["part"] == "test"]
    found = report["files"]["test"] + len(missing)
    if found != len(rows):
        return f"it lists {found} of {len(rows)} test rows"
    lost = (
        report["files"]["curated"] + len([f for f in report["findings"]["missing"] if f["part"] == "curated"]) - _GOOD
    )
    return "" if lost == len(training) else f"it lists {lost} of {len(training)} damaged training rows"


def _predicted(run: Path, rows: list[str]) -> str:
    for name in ("test.csv", "submission.csv"):
        with open(run / name, newline="", encoding="utf-8") as f:
            header, *table = csv.reader(f)
        if header[-1] == "status":
            table = [row[:-1] for row in table]
        if [row[0] for row in table] != rows:
            return f"{name} has {len(table)} rows; expected the {len(rows)} of the sample, in its order"
        if not all(math.isfinite(float(cell)) and 0 <= float(cell) <= 1 for row in table for cell in row[1:]):
            return f"{name} has a value that is no probability"
    return ""


def _rows(path: Path, expected: int) -> str:
    with open(path, newline="", encoding="utf-8") as f:
        got = len(list(csv.reader(f))) - 1
    return "" if got == expected else f"{path.name} has {got} rows for {expected} sounds"


def _printed(outcome: Outcome, expected: int) -> str:
    got = sum(": " in line and (", " in line or "cannot be read" in line) for line in outcome.out.splitlines())
    return "" if got == expected else f"it printed {got} lines for {expected} sounds"


def _tagged(outcome: Outcome, work: Path, sounds: list[str]) -> str:
    """Check that each file has its events in the log, or a sentence in the warning."""
    with open(work / "events.csv.journal", encoding="ascii") as f:
        entries = [json.loads(line) for line in f][1:]
    if sorted(entry["file"] for entry in entries) != sorted(sounds):
        return f"its log lists {len(entries)} of {len(sounds)} sounds"
    n_reported = sum(
        entry.get("fault", "\0").splitlines()[0].encode("utf-8", "backslashreplace").decode() in outcome.err
        for entry in entries
    )
    faults = sum("fault" in entry for entry in entries)
    return "" if n_reported == faults else f"it reports {n_reported} of {faults} faults"


def files_through_commands(work: Path, run: Path, report: Report, *, every: int = 1) -> None:
    """Feed every `every`-th malicious table, recipe, model folder, run, weights file and cache to the commands.

    Parameters
    ----------
    run
        The run that `sounds_through_commands` returned, in `work`.
    """
    outside = work / "outside"
    outside.mkdir()
    sentinel, allowed = outside / "was_executed", work / "inside"
    allowed.mkdir()
    tried = list(_hostile(allowed, run, sentinel))[::every]
    made = []
    for kind, make, args in tried:
        report.count(f"files: {kind}")
        make()
        made.append(args)
    for outcome in commands_in_child(made, allowed):
        report.check(outcome)
    if os.listdir(outside):
        report.faults.append(f"something was executed or written outside: {os.listdir(outside)}")


def _hostile(allowed: Path, run: Path, sentinel: Path) -> Iterator[tuple[str, Callable[[], Any], list[str]]]:
    """Yield kind, function that creates the files, and the command that reads them."""
    sample, numbers = _small_sample(fat_sample(), allowed / "small"), itertools.count()
    good_run, model, sound = (
        allowed / "good_run",
        allowed / "good_model",
        str(next(iter(sorted((sample / "test").iterdir())))),
    )
    shutil.copytree(run, good_run)
    trained_model(good_run).save(model)
    for make, args in _tables(allowed, sample, good_run):
        yield "tables", make, args
    for content in recipes().values():
        path = allowed / f"recipe_{next(numbers)}" / "hostile.toml"
        yield "recipes", _writer(path, content), ["run", str(sample), "--recipe", str(path), "--dry-run"]
    for _, change in model_folders(model, sentinel):
        folder = allowed / f"model_{next(numbers)}"
        yield (
            "model folders",
            _changed_copy(model, folder, change),
            ["predict", str(folder), sound, "--out", f"{folder}.csv"],
        )
    labels = str(sample / "train_curated.csv")
    for _, command, change in runs(good_run, sentinel):
        folder = allowed / f"run_{next(numbers)}"
        args = {
            "predict": ["predict", str(folder), sound, "--out", f"{folder}.csv"],
            "calibrate": ["predict", str(folder), sound, "--calibrate", "--out", f"{folder}.csv"],
            "resume": [
                "run",
                str(run.parents[1] / "data"),
                "--recipe",
                str(good_run / "recipe.toml"),
                "--out",
                str(folder),
                "--resume",
            ],
            "score": ["score", str(folder), str(good_run), "--truth", labels],
            "ensemble": ["ensemble", str(folder), str(good_run), "--truth", labels, "--out", f"{folder}.csv"],
        }[command]
        yield "runs", _changed_copy(good_run, folder, change), args
    for content in pickles(sentinel).values():
        path = allowed / f"weights_{next(numbers)}.pth"
        recipe = path.with_suffix(".toml")
        recipe.write_text(f'name = "x"\n[model]\narch = "cnn6"\nwidth = 0.125\noptions = {{ pretrained = "{path}" }}\n')
        yield (
            "weights",
            _writer(path, content),
            ["run", str(sample), "--recipe", str(recipe), "--out", f"{path}.run"],
        )
    for k, (kind, (_, change)) in enumerate(itertools.product(("wave", "features"), list(caches()))):
        # A different setting each, so that each has its own cache folder.
        path = allowed / f"cached_{k}.toml"
        path.write_text(RECIPE.replace("crop_s = 0.5", f'crop_s = 0.5\ntrim_db = {50 + k / 100}\ncache = "{kind}"'))
        yield (
            "caches",
            _damaged_cache(allowed, sample, path, change),
            ["run", str(sample), "--recipe", str(path), "--out", f"{path}.run"],
        )
    journals = (
        b"",
        b"{}\n",
        b"[" * 100_000 + b"\n",
        b'{"made": "fatai events 1", "by": {}}\n',
        b"\xff\n",
        b'{"made": 1}\n{"file": 3}\n',
    )
    for content in (*journals, bytes(999)):
        path = allowed / f"events_{next(numbers)}.csv"
        yield (
            "journals",
            _writer(Path(f"{path}.journal"), content),
            ["tag", str(good_run), sound, "--out", str(path)],
        )


def _small_sample(sample: Path, folder: Path) -> Path:
    """A tenth of the bundled sample."""
    for table, part in (("train_curated.csv", "train_curated"), ("sample_submission.csv", "test")):
        header, *rows = (sample / table).read_text().splitlines()
        (folder / part).mkdir(parents=True)
        for row in rows[::10]:
            shutil.copy(sample / part / row.split(",")[0], folder / part)
        (folder / table).write_text("\n".join([header, *rows[::10]]) + "\n")
    return folder


def _tables(allowed: Path, sample: Path, good_run: Path) -> Iterator[tuple[Callable[[], Any], list[str]]]:
    numbers = itertools.count()
    labels, submission = str(sample / "train_curated.csv"), sample / "sample_submission.csv"
    header, row = submission.read_text().splitlines()[:2]
    label_row = (sample / "train_curated.csv").read_text().splitlines()[1]
    scored = (good_run / "oof.csv").read_text().splitlines()

    dry = ["--recipe", str(good_run / "recipe.toml"), "--dry-run"]

    def new_path() -> Path:
        return allowed / f"table_{next(numbers)}" / "hostile.csv"

    for content in tables("fname,labels", label_row, labels=True).values():
        path = new_path()
        yield _copy_sample_with(path.parent, sample, "train_curated.csv", content), ["scan", str(path.parent), "--json"]
        path = new_path()
        yield _copy_sample_with(path.parent, sample, "train_curated.csv", content), ["run", str(path.parent), *dry]
        corrected = ["run", str(sample), *dry, "--corrections"]
        for args in (["score", str(good_run / "oof.csv"), "--truth"], corrected):
            path = new_path()
            yield _writer(path, content), [*args, str(path)]
    for content in tables(header, row, labels=False).values():
        path = new_path()
        make = _copy_sample_with(path.parent, sample, "sample_submission.csv", content)
        yield make, ["scan", str(path.parent), "--json"]
        path = new_path()
        yield _writer(path, content), ["check", str(path), "--sample", str(submission)]
        path = new_path()
        yield _writer(path, content), ["check", str(submission), "--sample", str(path)]
    for content in tables(scored[0], scored[1], labels=False).values():
        path = new_path()
        yield _writer(path, content), ["score", str(path), "--truth", labels]
        path = new_path()
        yield _writer(path, content), ["ensemble", str(path), str(good_run / "test.csv"), "--out", f"{path}.out"]


def _writer(path: Path, content: bytes) -> Callable[[], Any]:
    def make() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return make


def _copy_sample_with(folder: Path, sample: Path, name: str, content: bytes) -> Callable[[], Any]:
    """Copy the sample with one of its tables replaced."""
    def make() -> None:
        folder.mkdir()
        for entry in sample.iterdir():
            if entry.name != name:
                (folder / entry.name).symlink_to(entry)
        (folder / name).write_bytes(content)

    return make


def _damaged_cache(allowed: Path, sample: Path, recipe: Path, change: Callable[[Path], Any]) -> Callable[[], Any]:
    """Fill the cache of a recipe where the command will find it, and damage it."""
    def make() -> None:
        caches = allowed / "fatai" / "clips"
        caches.mkdir(parents=True, exist_ok=True)
        before = set(caches.iterdir())
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            run_recipe(
                sample, load_recipe(recipe), f"{recipe}.good", num_workers=0, cache_dir=caches, log=lambda line: None
            )
        change(next(iter(set(caches.iterdir()) - before)))

    return make


def _changed_copy(good: Path, folder: Path, change: Callable[[Path], Any]) -> Callable[[], Any]:
    def make() -> None:
        shutil.copytree(good, folder)
        change(folder)

    return make
