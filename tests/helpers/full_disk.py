"""A disk without free space, for files of downloads."""

import errno
from pathlib import Path


class _FullFile:
    def __init__(self, file):
        self.file = file

    def write(self, block):
        raise OSError(errno.ENOSPC, "No space left on device")

    def close(self):
        self.file.close()


def fill_disk(monkeypatch):
    """Make every write into a file that ends in .part fail, as on a full disk."""
    original = Path.open

    def opened(self, mode="r", *args, **options):
        file = original(self, mode, *args, **options)
        return _FullFile(file) if self.suffix == ".part" else file

    monkeypatch.setattr(Path, "open", opened)
