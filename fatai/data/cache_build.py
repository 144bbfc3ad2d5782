"""Makes what a cache of clips lacks: in parallel, by one process at a time, each clip's file whole or not at all."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fatai.io.atomic import write_file, write_text
from fatai.data.cache import DTYPES, SUFFIXES, ClipCache, clip_name, describe, recipe_of, short_digest, stored_names
from fatai.data.config import ClipConfig
from fatai.errors import AudioError, CacheError, FataiError
from fatai.io.progress import track

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["build", "stored_values"]

_LOCK = "build.lock"
_AT_ONCE = 256  # clips handed to the threads together, so that a long list of files isn't a long list of promises
T = TypeVar("T", bound=ClipCache)


def build(
    kind_of_cache: Callable[..., T],
    files: Sequence[str | Path],
    settings: ClipConfig,
    kind: str,
    root: Path,
    threads: int | None,
) -> T:
    """What `ClipCache.open_or_build` does."""
    text = describe(recipe_of(settings, kind))
    folder, paths = root / short_digest(text), [str(f) for f in files]
    rows = 1 if kind == "wave" else settings.front_end.rows
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names, faults = _names(paths, kind)
        if _missing(names, _sizes(folder, kind, rows)):
            with _alone(folder) as alone:
                if alone:
                    _sweep(folder)
                write_text(folder / "settings.json", text)
                _make(folder, settings, kind, paths, names, faults, rows, threads)
        sizes = _sizes(folder, kind, rows)
    except FataiError:
        raise
    except OSError as e:
        raise CacheError(
            f"the cache {folder} cannot be built ({e.strerror or e}); choose another cache_dir, or cache='none'"
        ) from e
    for i in _missing(names, sizes):
        faults.setdefault(i, f"{paths[i]}: the file was changed while its cache was made; start again")
    lengths = np.array([sizes.get(name, 0) for name in names], dtype=np.int64)
    return kind_of_cache(folder, kind, rows, paths, np.array(names, dtype="S"), lengths, faults)


def _names(paths: Sequence[str], kind: str) -> tuple[list[str], dict[int, str]]:
    """Name of each clip's file, "" where the sound file cannot be found, and a sentence for each of those."""
    names, faults = [], {}
    for i, path in enumerate(paths):
        try:
            names.append(_name(path, kind))
        except OSError as e:
            names.append("")
            faults[i] = f"{path}: the file cannot be found ({e.strerror}); check the folder and the name in the table"
    return names, faults


def _name(path: str, kind: str) -> str:
    return "-".join(clip_name(path, os.stat(path))) + SUFFIXES[kind]


def _sizes(folder: Path, kind: str, rows: int) -> dict[str, int]:
    """Samples or frames of every whole clip that is there, by the name of its file."""
    width = rows * DTYPES[kind].itemsize
    found = {entry.name: entry.stat().st_size for entry in stored_names(folder) if not entry.name.startswith(".")}
    # After a power cut a file may have its name and not all of its bytes.
    return {name: size // width for name, size in found.items() if size and size % width == 0}


def _missing(names: Sequence[str], sizes: dict[str, int]) -> list[int]:
    return [i for i, name in enumerate(names) if name and name not in sizes]


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Wait until no other process builds in `folder`, and keep others waiting; False where the system knows no such lock."""
    with open(folder / _LOCK, "ab") as lock:
        if fcntl is None:
            yield False
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that builds the cache {folder}", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            # Some network file systems have no locks. Clips are whole or absent all the same; work may be done twice.
            yield False
            return
        yield True


def _sweep(folder: Path) -> None:
    """Take away what killed processes left half-written; nobody else writes now."""
    for path in [entry.path for entry in stored_names(folder) if entry.name.startswith(".")]:
        os.unlink(path)
    for path in [entry.path for entry in os.scandir(folder) if entry.name.startswith(".") and entry.is_file()]:
        os.unlink(path)


def _make(
    folder: Path,
    settings: ClipConfig,
    kind: str,
    paths: Sequence[str],
    names: Sequence[str],
    faults: dict[int, str],
    rows: int,
    threads: int | None,
) -> None:
    """Write the clips that are missing, and take away those that they replace."""
    todo = list({names[i]: i for i in _missing(names, _sizes(folder, kind, rows))}.values())
    before: dict[str, list[str]] = {}
    for entry in stored_names(folder):
        before.setdefault(entry.name.split("-")[0], []).append(entry.path)
    module = settings.front_end.build().eval() if kind == "features" else None

    def make(i: int) -> str:
        name = names[i]
        try:
            values = stored_values(settings, module, paths[i])
            unchanged = _name(paths[i], kind) == name
        except (AudioError, FileNotFoundError) as e:
            return str(e)
        if unchanged:
            with write_file(folder / name[:2] / name) as beside:
                values.tofile(beside)
        for old in before.get(name.split("-")[0], ()):
            if not old.endswith(name):
                Path(old).unlink(missing_ok=True)
        return ""

    for i, fault in zip(todo, track(_on_threads(make, todo, threads), f"caching {kind}", total=len(todo))):
        if fault:
            faults[i] = fault


def _on_threads(make: Callable[[int], str], todo: Sequence[int], threads: int | None) -> Iterator[str]:
    """Results of `make`, in order. Decoding, resampling and torch let other threads run, and threads die with a killed process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    before = torch.get_num_threads()
    # Each clip is one thread's work: faster than many threads on one short clip, and the same bytes on any number of cores.
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads or cores) as pool:
            for at in range(0, len(todo), _AT_ONCE):
                yield from pool.map(make, todo[at:at + _AT_ONCE])
    finally:
        torch.set_num_threads(before)


def stored_values(settings: ClipConfig, module: nn.Module | None, path: str | Path) -> np.ndarray:
    """What the cache keeps of a sound file: int16 (samples,), or behind the front end `module` float16 (frames, rows)."""
    wave = settings.read(path)
    if module is None:
        return _to_int16(wave)
    with torch.no_grad():
        spec = module(settings.fit(wave)[None])[0]
    highest = float(spec.abs().max())
    if not highest <= torch.finfo(torch.float16).max:
        raise CacheError(f"{path}: the features reach {highest:.3g}, 16-bit floats only 65,504; choose cache='wave'")
    return spec.T.contiguous().numpy().astype(DTYPES["features"])


def _to_int16(wave: Tensor) -> np.ndarray:
    return (wave * 32768).round_().clamp_(-32768, 32767).numpy().astype(DTYPES["wave"])
