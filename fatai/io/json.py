"""Text and JSON that stand beside weights and tables: read only from what is a file, and no longer than a person's patience.

To open a pipe in the place of a file is to wait for ever, and a device never ends: both may lie in a folder that somebody else made.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from fatai.errors import StorageError

__all__ = ["parse_json", "read_json_limited", "read_text_limited"]

MOST_BYTES = 1 << 24


def read_text_limited(path: str | os.PathLike[str], most_bytes: int = MOST_BYTES) -> str:
    """The UTF-8 text of a file of at most `most_bytes`.

    Raises
    ------
    StorageError
        If it is a folder, a pipe or a device, or larger; nothing was opened.
    OSError
        If it is not there, or cannot be read.
    UnicodeDecodeError
        If it is no UTF-8.
    """
    about = os.stat(path)
    if not stat.S_ISREG(about.st_mode):
        raise StorageError(f"{path} is no file, and was not opened; expected a text file")
    if about.st_size > most_bytes:
        raise StorageError(f"{path} has {about.st_size:,} bytes; at most {most_bytes:,} are read")
    return Path(path).read_text(encoding="utf-8")


def read_json_limited(path: str | os.PathLike[str], most_bytes: int = MOST_BYTES) -> Any:
    """What a JSON file says; raises as `read_text_limited` and `parse_json` do."""
    return parse_json(read_text_limited(path, most_bytes))


def parse_json(text: str | bytes) -> Any:
    """What a JSON text says; raises `ValueError` for what is no JSON, and for lists within lists without end."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("lists within lists without end") from None
