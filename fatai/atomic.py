"""Whole files or none: a file is written beside its name, then renamed over it."""

from __future__ import annotations

import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["remove_leftovers", "write_atomic", "write_text_atomic"]


@contextmanager
def write_atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a name beside `path` to write to; the file takes the name `path` when the block ends well.

    A block that raises, or a process that is killed, leaves what was at `path` before: nobody ever reads half a file.
    Missing folders are made. A link is followed, so the file that it points to is replaced, not the link. The suffix is kept,
    because some writers choose the format by it. Nothing is forced to the disk: this guards against a killed run, not against a power cut.

    Examples
    --------
    >>> import tempfile
    >>> name = Path(tempfile.mkdtemp(), "scores.csv")
    >>> with write_atomic(name) as beside:
    ...     _ = beside.write_text("fname,Bark")
    >>> name.read_text()
    'fname,Bark'
    """
    whole = Path(os.path.realpath(path))
    whole.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, since a rename is atomic only within one file system; the stem is cut because names end at 255 bytes.
    beside = whole.parent / f".{whole.stem[:40]}.{secrets.token_hex(6)}.part{whole.suffix}"
    try:
        yield beside
        os.replace(beside, whole)
    finally:
        beside.unlink(missing_ok=True)


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all; newlines are written as they are on every system.

    Of names that are not UTF-8 on the disk the bytes are told, `caf\\udce9.wav`: what is written can be read everywhere.
    """
    with write_atomic(path) as beside, open(beside, "w", encoding="utf-8", errors="backslashreplace", newline="") as f:
        f.write(text)


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove what killed processes left beside `path` while they wrote it; nobody else may be writing it now."""
    whole = Path(os.path.realpath(path))
    for part in whole.parent.glob(f".{glob.escape(whole.stem[:40])}.*.part{glob.escape(whole.suffix)}"):
        part.unlink(missing_ok=True)
