"""Results that are made once: in one process, or by one process of pytest-xdist for all others."""

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


def once(function):
    """Return a function that calls `function` once, and then repeats its result whatever it is given."""
    results = []

    def repeat(*args, **options):
        if not results:
            results.append(function(*args, **options))
        return results[0]

    return repeat
