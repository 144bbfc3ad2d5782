"""Results of session fixtures that are made by one process of pytest-xdist and read by the others."""

import pickle
from pathlib import Path

from filelock import FileLock


def made_once(path: Path, make):
    """Return the result of `make()`, pickled at `path` by the first process that asks for it; others wait.

    After an error nothing is stored.
    """
    with FileLock(path.with_suffix(".lock")):
        if path.exists():
            return pickle.loads(path.read_bytes())
        made = make()
        path.write_bytes(pickle.dumps(made))
        return made
