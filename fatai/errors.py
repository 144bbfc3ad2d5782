"""Exceptions that a caller may catch.

Each is a `FataiError` and also the builtin it resembles, so both `except FataiError` and `except ValueError` work.
Messages say what was given, what was expected and what to do.
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
    """Anything that fatai raises on purpose; the command line prints it as one sentence and exits with 2."""

    def __str__(self) -> str:
        # KeyError would print the repr of its message, OSError may print an errno: a message is a sentence here.
        return " ".join(str(a) for a in self.args)


class AudioError(FataiError, OSError):
    """A sound file that is missing, empty, cut off, or no sound file at all."""


class CacheError(FataiError, OSError):
    """A cache that cannot be built or read."""


class CheckpointError(FataiError, ValueError):
    """Model weights that do not fit, or a file that is not safe to read."""


class DataError(FataiError, ValueError):
    """A folder or table that is not laid out as expected."""


class FrontEndError(FataiError, ValueError):
    """Front-end settings that contradict each other."""


class LabelError(FataiError, ValueError):
    """A label cell that does not name known tags."""


class MissingDependencyError(FataiError, ImportError):
    """An optional package that is not installed."""


class OptionError(FataiError, ValueError):
    """An option that is unknown, or whose value is out of range."""


class RecipeError(FataiError, ValueError):
    """A recipe with an unknown key or a value of the wrong type."""


class ShapeError(FataiError, ValueError):
    """An array of the wrong shape."""


class StorageError(FataiError, OSError):
    """A file that cannot be written, or a file system that answers with errors."""


class SubmissionError(FataiError, ValueError):
    """Predictions that do not fit the sample submission or each other."""


class UnknownNameError(FataiError, KeyError):
    """A name that no registry entry has."""


class WorkerError(FataiError, RuntimeError):
    """A process that reads sound, or the memory of the device, is gone."""
