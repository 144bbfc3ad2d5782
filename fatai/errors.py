"""Exceptions of fatai.

Each is a `FataiError` and also the builtin exception that it resembles, so both `except FataiError` and `except
ValueError` work. A message states the problem with the given value, what was expected, and a remedy.
"""

__all__ = [
    "AudioError",
    "CacheError",
    "CheckpointError",
    "DataError",
    "FataiError",
    "FrontEndError",
    "LabelError",
    "MissingDependencyError",
    "OptionError",
    "RecipeError",
    "ShapeError",
    "StorageError",
    "SubmissionError",
    "UnknownNameError",
    "WorkerError",
]


class FataiError(Exception):
    """Base of all exceptions of fatai; the command line prints the message and exits with 2."""

    def __str__(self) -> str:
        # The message alone: KeyError would print its repr, OSError may print an errno.
        return " ".join(str(a) for a in self.args)


class AudioError(FataiError, OSError):
    """A sound file is missing, empty, truncated, or not sound."""


class CacheError(FataiError, OSError):
    """A cache cannot be built or read."""


class CheckpointError(FataiError, ValueError):
    """Model weights do not fit the model, or a file is not safe to read."""


class DataError(FataiError, ValueError):
    """A folder, table or array does not have the expected content."""


class FrontEndError(FataiError, ValueError):
    """Settings of a front end are out of range or contradict each other."""


class LabelError(FataiError, ValueError):
    """A label cell has unknown tags."""


class MissingDependencyError(FataiError, ImportError):
    """An optional package is not installed."""


class OptionError(FataiError, ValueError):
    """An option is unknown, or its value is out of range."""


class RecipeError(FataiError, ValueError):
    """A recipe has an unknown key, or a value of the wrong type."""


class ShapeError(FataiError, ValueError):
    """An array or tensor has the wrong shape."""


class StorageError(FataiError, OSError):
    """A file cannot be written, or the file system fails."""


class SubmissionError(FataiError, ValueError):
    """Predictions do not fit the sample submission or each other."""


class UnknownNameError(FataiError, KeyError):
    """No registry entry has this name."""


class WorkerError(FataiError, RuntimeError):
    """A worker process died, or the device is out of memory."""
