"""Background: sounds that hold none of the tags, to train with as negative clips and to count false alarms on.

They are the sounds of a folder `background/` in the data folder, or beside the table of sounds; and the clips whose
only tag is called background, in a table or as a folder of classes. `fatai-submit background` generates some.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fatai.audio.background import BACKGROUNDS, synthesize_background
from fatai.audio.folders import find_sounds
from fatai.audio.io import audio_info, save_audio
from fatai.audio.segments import segment_path, split_segment
from fatai.io.lazy import pandas as pd

__all__ = ["background_folds", "find_background", "split_background", "write_background"]

NAME = "background"
"""Name of the folder and of the tag; capital letters do not matter for the tag."""

SEGMENT_S = 30.0
"""Longer sounds are cut into segments of this many seconds."""


def split_background(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split a table of clips into those with other tags, and those whose only tag is background.

    Parameters
    ----------
    table
        Columns `fname`, `path` and `labels` (lists of tags).

    Returns
    -------
    The rows with other tags or none; and columns `fname` and `path` of the others.
    """
    is_background = np.array([[tag.casefold() for tag in row] == [NAME] for row in table["labels"]], dtype=bool)
    rest, found = (table[chosen].reset_index(drop=True) for chosen in (~is_background, is_background))
    return rest, found[["fname", "path"]]


def find_background(folder: Path, used: Sequence[str] = ()) -> pd.DataFrame:
    """List the sounds in `folder/background` and below.

    Parameters
    ----------
    folder
        The data folder.
    used
        Paths of clips, which are no background.

    Returns
    -------
    Columns `fname` and `path`, in order of the paths.
    """
    root, taken = folder / NAME, {split_segment(path).path for path in used}
    files = [file for file in find_sounds(root) if str(file) not in taken] if root.is_dir() else []
    return pd.DataFrame(
        {"fname": [file.relative_to(folder).as_posix() for file in files], "path": [str(file) for file in files]},
        dtype=str,
    )


def cut_background(table: pd.DataFrame) -> pd.DataFrame:
    """Cut sounds that are longer than `SEGMENT_S` into segments of this length; a rest below half of it is left out.

    Parameters
    ----------
    table
        Columns `fname` and `path`; all files can be read.
    """
    rows: list[tuple[str, str]] = []
    for row in table.itertuples():
        seconds = 0.0 if split_segment(row.path).end_s is not None else audio_info(row.path).seconds
        if seconds <= 1.5 * SEGMENT_S:
            rows.append((row.fname, row.path))
            continue
        starts = np.arange(0, seconds - SEGMENT_S / 2, SEGMENT_S)
        for start in starts:
            end = min(start + SEGMENT_S, seconds)
            rows.append((segment_path(row.fname, start, end), segment_path(row.path, start, end)))
    return pd.DataFrame(rows, columns=["fname", "path"])


def background_folds(table: pd.DataFrame, n: int) -> np.ndarray:
    """Return the fold that holds out each clip of background, int64 (clips,): by file, or with few files by stretches.

    Parameters
    ----------
    table
        The result of `cut_background`.
    n
        Number of folds.

    Examples
    --------
    >>> background_folds(pd.DataFrame({"path": ["a.wav", "b.wav", "c.wav#t=0,30", "c.wav#t=30,60"]}), 2).tolist()
    [0, 1, 0, 0]
    """
    files = [split_segment(path).path for path in table["path"]]
    number = pd.factorize(np.array(files, dtype=object))[0]
    if len(set(files)) >= n:
        return (number % n).astype(np.int64)
    return np.arange(len(table), dtype=np.int64) * n // max(len(table), 1)


def write_background(
    folder: str | Path, *, seconds: float = 30.0, sr: int = 32000, n: int = 4, kinds: Sequence[str] = tuple(BACKGROUNDS)
) -> list[Path]:
    """Write generated sounds without events, `n` of each kind, as FLAC; return their paths.

    Parameters
    ----------
    folder
        Folder to write, such as `my_sounds/background`.
    seconds, sr
        As in `synthesize_background`.
    n
        Number of sounds of each kind; there is one of silence.
    kinds
        Names in `BACKGROUNDS`; leave out those that are one of your tags.

    Raises
    ------
    OptionError
        If there is no such kind.
    """
    paths = []
    for kind in kinds:
        for seed in range(1 if kind == "silence" else n):
            paths.append(Path(folder, f"{kind}_{seed}.flac"))
            save_audio(paths[-1], synthesize_background(kind, seconds, sr, seed), sr, subtype="PCM_16")
    return paths
