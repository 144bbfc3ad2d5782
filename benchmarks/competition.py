"""Every step of the competition but the training itself, at its real size: time and memory of each.

    python -m benchmarks.competition [DATA] [--divide 1] [--work FOLDER] [--only STEP ...] [--limit-s SECONDS]
                                     [--out benchmarks/results/competition.md]

DATA is a folder in the competition's layout whose sounds the clips are made of; by default the bundled sample. FOLDER
gets clips in the numbers, lengths and with as many tags as those of FSDKaggle2019: 4,970 curated ones, among them the
six that are known as corrupted, 19,815 noisy and 3,361 test clips, 16-bit WAV at 44.1 kHz. One noisy file in eight is
written, the others are hard links to one of them, so that their labels are wrong as most noisy ones are. `--divide 20`
makes a twentieth of each part.

Every step is a process of its own, on one thread: its processor time is counted, besides the time on the clock, and the
peak of its memory (VmHWM, sampled ten times a second). Steps that were done before are not done again, and several
commands may share the work, each with its own steps. Scores mean little: one epoch of a narrow network, and an ensemble
whose members are tiny networks on the levels of mel bands.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from benchmarks.timing import write_report
from fatai.audio.io import load_audio
from fatai.data.cache import ClipCache
from fatai.data.datasets.fat2019 import CORRUPTED_FILES, fat_sample, load_dataset
from fatai.data.labels import multi_hot
from fatai.experiment.clip_tables import folded_table
from fatai.experiment.manifest import write_folds
from fatai.experiment.recipe import load_recipe
from fatai.inference.predictions import Predictions
from fatai.io.atomic import write_text
from fatai.io.json import read_json_limited
from fatai.metrics.ranking import lwlrap

_SR = 44100
_TAGS = tuple(f"Tag_{k:02d}" for k in range(80))
_N_MEMBERS = 15
_N_FOLDS = 5  # of a member
_RECIPE = "ninth"
_POLL_S = 0.1
_LINKS = 8  # names of a noisy file


class Part(NamedTuple):
    """Clips of a part: how many with 1, 2, ... tags, and the median and spread of their lengths in seconds."""

    name: str
    n_with: tuple[int, ...]
    median_s: float
    sigma: float
    max_s: float


PARTS = (
    Part("train_curated", (4269, 627, 69, 4, 0, 1), 4.9, 1.05, 30.0),
    Part("train_noisy", (16566, 2558, 504, 141, 38, 6, 2), 21.0, 0.6, 15.0),  # most are cut to 15 s
    Part("test", (2884, 421, 53, 3), 6.6, 1.1, 30.0),
)


def make_clips(source: Path, folder: Path, divide: int = 1) -> None:
    """Write clips and tables in the competition's layout.

    Parameters
    ----------
    source
        A folder in the competition's layout, whose curated sounds are cut and mixed.
    folder
        Where the clips are written.
    divide
        The number of clips is divided by it.
    """
    sounds = _decoded(source)
    for number, part in enumerate(PARTS):
        rng = np.random.default_rng((2019, number))
        n_tags = np.repeat(np.arange(1, len(part.n_with) + 1), np.maximum(0, np.array(part.n_with) // divide))
        rng.shuffle(n_tags)
        names = _names(part, len(n_tags), rng)
        labels = _labels(n_tags, rng)
        seconds = np.exp(rng.normal(np.log(part.median_s), part.sigma, len(names))).clip(0.3, part.max_s)
        (folder / part.name).mkdir(parents=True, exist_ok=True)
        n_written = len(names) // _LINKS if part.name == "train_noisy" else len(names)
        originals = rng.integers(max(1, n_written), size=len(names))
        for k, name in enumerate(names):
            path = folder / part.name / name
            if path.exists():
                continue
            if k < n_written:
                rng = np.random.default_rng((number, k))  # of the clip, so that an interrupted writing is continued
                _write_clip(path, [sounds[tag] for tag in labels[k]], round(seconds[k] * _SR), rng)
            else:
                os.link(folder / part.name / names[originals[k]], path)
        if part.name != "test":
            _write_rows(folder / f"{part.name}.csv", ("fname", "labels"), [
                (name, ",".join(_TAGS[tag] for tag in tags)) for name, tags in zip(names, labels, strict=True)
            ])
        else:
            _write_rows(folder / "sample_submission.csv", ("fname", *_TAGS), [
                (name, *[0] * len(_TAGS)) for name in sorted(names)
            ])


def _decoded(source: Path) -> list[np.ndarray]:
    """Return a sound for each of the competition's tags, int16 (samples,): those of the source at several speeds."""
    curated = load_dataset(source).curated
    by_tag = curated.groupby(curated["labels"].map(lambda tags: tags[0]))["path"].apply(list)
    joined = [
        np.concatenate([(load_audio(path, _SR).numpy() * 8192).astype(np.int16) for path in paths[:4]])
        for paths in by_tag
    ]
    sounds = []
    for k in range(len(_TAGS)):
        sound, speed = joined[k % len(joined)], 1 + 0.25 * (k // len(joined))
        sounds.append(sound[(np.arange(int(len(sound) / speed)) * speed).astype(int)])
    return sounds


def _names(part: Part, n: int, rng: np.random.Generator) -> list[str]:
    given = list(CORRUPTED_FILES) if part.name == "train_curated" else []
    numbers = rng.choice(2**32, size=n + len(given), replace=False)
    drawn = [f"{number:08x}.wav" for number in numbers]
    return [*given, *(name for name in drawn if name not in given)][:n]


def _labels(n_tags: np.ndarray, rng: np.random.Generator) -> list[list[int]]:
    """Return different tags for each clip; all tags are about as frequent."""
    pool = rng.permutation(np.resize(np.arange(len(_TAGS)), int(n_tags.sum())))
    ends = np.cumsum(n_tags)
    return [sorted(set(pool[end - n:end].tolist())) for n, end in zip(n_tags, ends, strict=True)]


def _write_clip(path: Path, sounds: list[np.ndarray], n: int, rng: np.random.Generator) -> None:
    mixed = np.zeros(n, dtype=np.int16)
    for sound in sounds:
        start = rng.integers(len(sound))
        gain = rng.uniform(0.2, 1.0) / len(sounds)
        mixed += (np.resize(np.roll(sound[:n + start], -start), n) * np.float32(gain)).astype(np.int16)
    beside = path.with_suffix(".part")
    with wave.open(str(beside), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(_SR)
        file.writeframes(mixed.tobytes())
    beside.rename(path)


def _write_rows(path: Path, head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])


def split_folds(data: Path) -> None:
    """Read the tables, check every curated file, and split them."""
    table, _, folds = folded_table(load_dataset(data, corrupted_files="drop"), load_recipe(_RECIPE))
    print(f"{len(table)} clips in {folds.max() + 1} folds of {np.bincount(folds).min()} to {np.bincount(folds).max()}")


def build_cache(data: Path, part: str, n: int | None = None) -> None:
    """Write the features of a part, or of its first clips, in the cache of a run."""
    loaded = load_dataset(data, corrupted_files="drop")
    table = loaded.curated if part == "train_curated" else loaded.noisy
    assert table is not None
    cache = ClipCache.open_or_build(list(table["path"][:n]), load_recipe(_RECIPE).settings(), kind="features")
    print(f"{len(cache)} clips, {cache.nbytes / 1e9:.2f} GB")


def write_members(data: Path, folder: Path) -> None:
    """Write members of an ensemble: folds, and out-of-fold and test predictions of tiny networks.

    Each member has five networks of one hidden layer, trained for a second on the means and the standard deviations
    over time of half of the mel bands.
    """
    loaded, rng = load_dataset(data), np.random.default_rng(0)
    targ = torch.from_numpy(multi_hot(loaded.curated["labels"], loaded.tags)).float()
    values = _band_levels([*loaded.curated["path"], *loaded.test["path"]])
    train, test = values[:len(targ)], values[len(targ):]
    n_bands = train.shape[1] // 2
    fold_numbers = rng.integers(0, _N_FOLDS, len(targ))
    for k in range(_N_MEMBERS):
        member = folder / f"member_{k:02d}"
        member.mkdir(parents=True, exist_ok=True)
        write_folds(member, list(loaded.curated["fname"]), fold_numbers, list(loaded.curated["labels"]))
        bands = rng.permutation(n_bands)[:n_bands // 2]
        columns = [*bands, *(n_bands + bands)]
        oof, mean = torch.zeros_like(targ), torch.zeros(len(test), len(loaded.tags))
        for fold in range(_N_FOLDS):
            is_held_out = torch.from_numpy(fold_numbers == fold)
            model = _fitted(train[~is_held_out][:, columns], targ[~is_held_out], seed=_N_FOLDS * k + fold)
            with torch.no_grad():
                oof[is_held_out] = model(train[is_held_out][:, columns]).sigmoid()
                mean += model(test[:, columns]).sigmoid() / _N_FOLDS
        print(f"member {k}: lwlrap {lwlrap(oof.numpy(), targ.numpy()):.3f}")
        for name, table, probs in (("oof.csv", loaded.curated, oof), ("test.csv", loaded.test, mean)):
            Predictions(tuple(table["fname"]), loaded.tags, probs.double().numpy().round(6)).to_csv(member / name)


def _band_levels(paths: list[str | Path]) -> torch.Tensor:
    """Return means and standard deviations over time of the mel bands of clips, standardized, (clips, 2 * bands)."""
    cache = ClipCache.open_or_build(paths, load_recipe(_RECIPE).settings(), kind="features")
    specs = (cache.crop(i) for i in range(len(cache)))
    levels = torch.stack([torch.cat([spec.mean(1), spec.std(1, correction=0)]) for spec in specs])
    return (levels - levels.mean(0)) / levels.std(0).clamp(min=1e-6)


def _fitted(values: torch.Tensor, targ: torch.Tensor, seed: int, n_steps: int = 100) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(values.shape[1], 64), nn.ReLU(), nn.Linear(64, targ.shape[1]))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(n_steps):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(model(values), targ).backward()
        optimizer.step()
    return model


class Step(NamedTuple):
    """A step: its title, the arguments of its process, and what it gave, from its folder of work."""

    title: str
    arguments: list[str]
    note: Callable[[Path], str] = lambda work: ""


def steps(source: Path, work: Path, divide: int, n_noisy: int) -> dict[str, Step]:
    """Return every step by its name, in their order."""
    data, run = work / "data", work / "run"
    members = [work / "members" / f"member_{k:02d}" for k in range(_N_MEMBERS)]

    def python(call: str) -> list[str]:
        return ["-c", f"from pathlib import Path; from benchmarks.competition import *; {call}"]

    def command(*arguments: object) -> list[str]:
        return ["-m", "fatai.cli", *map(str, arguments)]

    def megabytes(name: str) -> Callable[[Path], str]:
        return lambda work: f"{(work / name).stat().st_size / 1e6:.1f} MB"

    def last_line(name: str) -> Callable[[Path], str]:
        return lambda work: _last_line((work / f"{name}.txt").read_text())

    def blend(method: str, out: str) -> list[str]:
        options = ["--truth", data / "train_curated.csv", "--sample", data / "sample_submission.csv"]
        return command("ensemble", *members, "--method", method, *options, "--out", work / out)

    return {
        "make": Step(
            "write the clips (not a step of fatai)",
            python(f"make_clips(Path({str(source)!r}), Path({str(data)!r}), {divide})"),
            lambda work: f"{sum(f.stat().st_size / f.stat().st_nlink for f in data.rglob('*.wav')) / 1e9:.1f} GB",
        ),
        "scan": Step("`scan`: read every file", command("scan", data)),
        "folds": Step(
            "tables, check of the curated files, folds", python(f"split_folds(Path({str(data)!r}))"), last_line("folds")
        ),
        "cache": Step(
            "features of the curated clips",
            python(f"build_cache(Path({str(data)!r}), 'train_curated')"), last_line("cache"),
        ),
        "noisy_cache": Step(
            f"features of {n_noisy:,} noisy clips",
            python(f"build_cache(Path({str(data)!r}), 'train_noisy', {n_noisy})"), last_line("noisy_cache"),
        ),
        "train": Step(
            "`run`: one epoch of `ninth` at width 0.05, fold 0, held-out clips by 4 views, report",
            command(
                "run", data, "--recipe", _RECIPE, "--fold", 0, "--epochs", 1, "--width", 0.05, "--n-views", 4,
                "--set", "clips.cache=features", "--num-workers", 0, "--nproc", 1, "--no-predict", "--resume",
                "--out", run,
            ),
        ),
        "predict": Step(
            "`predict`: the test clips by tiles",
            command("predict", run, data, "--tta", "tiles", "--out", work / "test.csv"), megabytes("test.csv"),
        ),
        "predict_noisy": Step(
            "`predict`: all noisy clips, one view each",
            command("predict", run, data / "train_noisy", "--tta", "even", "--n-views", 1, "--out", work / "noisy.csv"),
            megabytes("noisy.csv"),
        ),
        "choose": Step(
            "`relabel`: the 9th place's choice of noisy clips",
            command(
                "relabel", data, "--predictions", work / "noisy.csv", "--method", "ninth_place_low_loss",
                "--out", work / "chosen.csv",
            ),
            lambda work: f"{len(pd.read_csv(work / 'chosen.csv')):,} clips",
        ),
        "members": Step(
            f"train and write {_N_MEMBERS} members of tiny networks (not a step of fatai)",
            python(f"write_members(Path({str(data)!r}), Path({str(work / 'members')!r}))"),
        ),
        "blend": Step(
            f"`ensemble`: {_N_MEMBERS} members, minmax_tag, scores, checked submission",
            blend("minmax_tag", "submission.csv"), megabytes("submission.csv"),
        ),
        "forward": Step(f"`ensemble`: {_N_MEMBERS} members, forward selection", blend("forward", "forward.csv")),
        "report": Step(
            "`report` of the run", command("report", run, "--data", data, "--out", work / "report.html"),
            megabytes("report.html"),
        ),
        "check": Step(
            "`check` of the submission",
            command("check", work / "submission.csv", "--sample", data / "sample_submission.csv"),
        ),
    }


class Measured(NamedTuple):
    """Seconds on the clock and of the processor, and the peak of memory in MB, of a step."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    note: str


def measure(step: Step, name: str, work: Path, limit_s: float | None = None) -> Measured:
    """Run a step in a process; its output goes into a file.

    Parameters
    ----------
    limit_s
        Seconds on the clock after which the step is stopped; its note is then the last line of its output.

    Raises
    ------
    SystemExit
        If it fails.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(work / "cache")}
    start, peak_kb, is_stopped = time.monotonic(), 0, False
    with (work / f"{name}.txt").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *step.arguments], stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            peak_kb = max(peak_kb, _peak_kb(process.pid))
            if limit_s is not None and not is_stopped and time.monotonic() - start > limit_s:
                is_stopped = True
                process.kill()
            time.sleep(_POLL_S)
    printed = (work / f"{name}.txt").read_text()
    if status and not is_stopped:
        raise SystemExit(f"{name} failed:\n{printed[-3000:]}")
    note = f"stopped: {_last_line(printed)}" if is_stopped else step.note(work)
    return Measured(time.monotonic() - start, usage.ru_utime + usage.ru_stime, peak_kb / 1024, note)


def _last_line(printed: str) -> str:
    return ([""] + printed.strip().splitlines())[-1]


def _peak_kb(pid: int) -> int:
    """Return the peak of the memory of a process so far, in kB; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def _rows(results: dict[str, Measured], known: dict[str, Step]) -> Iterator[str]:
    yield "| step | CPU s | s on the clock | peak MB | result |"
    yield "|---|---:|---:|---:|---|"
    for name, step in known.items():
        if name in results:
            found = results[name]
            yield f"| {step.title} | {found.cpu_s:,.0f} | {found.wall_s:,.0f} | {found.peak_mb:,.0f} | {found.note} |"


def main(argv: list[str] | None = None) -> str:
    """Run the steps that are not done and write the report."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("data", type=Path, nargs="?")
    options.add_argument("--divide", type=int, default=1, help="Divide the number of clips by this.")
    options.add_argument("--work", type=Path, default=Path("runs") / "competition")
    options.add_argument("--n-noisy", type=int, default=2000, help="Noisy clips whose features are written.")
    options.add_argument("--limit-s", type=float, help="Seconds on the clock after which a step is stopped.")
    options.add_argument("--only", nargs="+", metavar="STEP")
    options.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "competition.md")
    args = options.parse_args(argv)
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    known = steps((args.data or fat_sample()).resolve(), work, args.divide, args.n_noisy)
    for name, step in known.items():
        if not (work / f"{name}.json").exists() and (args.only is None or name in args.only):
            found = measure(step, name, work, args.limit_s)
            write_text(work / f"{name}.json", json.dumps(found))
            print(f"{name}: {found}", file=sys.stderr, flush=True)
    stored = {name: work / f"{name}.json" for name in known}
    results = {name: Measured(*read_json_limited(path)) for name, path in stored.items() if path.exists()}
    source = "sample" if args.data is None else args.data.name
    counts = ", ".join(f"{sum(n // args.divide for n in part.n_with):,} {part.name}" for part in PARTS)
    text = (
        f"Clips: {counts}, made of the sounds of {source}. Each step is a process with one thread; its peak is VmHWM. "
        "Time on the clock depends on what else the machine does."
    )
    given = "" if args.data is None else f" {source}"
    command = f"python -m benchmarks.competition{given} --divide {args.divide} --n-noisy {args.n_noisy}"
    table = "\n".join([text, "", *_rows(results, known)])
    return write_report("The competition at its real size", command, table, args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
