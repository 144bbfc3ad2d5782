"""Quicker imports: modules that are imported when the first of their names is looked up, and no garbage collection.

pandas, scipy and scikit-learn take as long to import as a sound takes to predict, which needs none of them. `from
fatai.io.lazy import pandas as pd` costs nothing until `pd.DataFrame` is evaluated.
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = ["LazyModule", "collection_paused", "is_data_frame", "librosa", "pandas", "signal", "special", "stats"]


class LazyModule(ModuleType):
    """Stand for a module, which is imported at the first look-up of an attribute.

    Parameters
    ----------
    name
        Absolute name of the module.

    Examples
    --------
    >>> LazyModule("math").sqrt(4.0)
    2.0
    """

    def __getattr__(self, name: str) -> Any:
        value = getattr(importlib.import_module(self.__name__), name)
        setattr(self, name, value)  # later look-ups of the name do not come here
        return value


@contextmanager
def collection_paused() -> Iterator[None]:
    """Pause the collector of cyclic garbage in the block, whatever its end.

    While large packages are imported it finds next to nothing, and walks over all their functions again and again.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


if TYPE_CHECKING:
    import librosa
    import pandas
    from scipy import signal, special, stats
else:
    librosa, pandas = LazyModule("librosa"), LazyModule("pandas")
    signal, special, stats = (LazyModule(f"scipy.{name}") for name in ("signal", "special", "stats"))


def is_data_frame(value: Any) -> bool:
    """Return True if `value` is a pandas data frame; pandas is not imported to find that out."""
    loaded = sys.modules.get("pandas")
    return loaded is not None and isinstance(value, loaded.DataFrame)
