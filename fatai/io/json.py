"""Read small text and JSON files: regular files only, at most `MAX_BYTES`.

Opening a pipe in the place of a file blocks without end, and a device has no end: both may lie in an untrusted folder.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from fatai.errors import StorageError

__all__ = ["parse_json", "read_json_limited", "read_text_limited"]

MAX_BYTES = 1 << 24


def read_text_limited(path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> str:
    """Return the UTF-8 text of a regular file of at most `max_bytes`.

    Raises
    ------
    StorageError
        If `path` is a folder, a pipe, a device or a larger file; it is not opened.
    OSError
        If there is no such file, or it cannot be read.
    UnicodeDecodeError
        If the file is not UTF-8.
    """
    info = os.stat(path)
    if not stat.S_ISREG(info.st_mode):
        raise StorageError(f"{path} is not a regular file and was not opened; expected a text file")
    if info.st_size > max_bytes:
        raise StorageError(f"{path} has {info.st_size:,} bytes; expected at most {max_bytes:,}")
    return Path(path).read_text(encoding="utf-8")


def read_json_limited(path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> Any:
    """Return the content of a JSON file; raises as `read_text_limited` and `parse_json` do."""
    return parse_json(read_text_limited(path, max_bytes))


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises
    ------
    ValueError
        If the text is not JSON, or nested too deeply.

    Examples
    --------
    >>> parse_json('{"lwlrap": 0.75}')
    {'lwlrap': 0.75}
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("JSON nested too deeply; expected fewer lists within lists") from None
