"""fatai: audio tagging on fastai.

`from fatai.all import *` is for notebooks; `import fatai` alone loads neither torch nor fastai. It sets how the threads
of OpenMP wait (`fatai.threads`), so import it before torch.
"""

from __future__ import annotations

import importlib
from typing import Any

from fatai.threads import wait_passively

__version__ = "0.2.0"

# Names and the modules that define them, imported on first use (PEP 562), so that `import fatai` stays quick.
_MODULES = {
    "FATDataLoaders": "fatai.data.blocks",
    "Predictions": "fatai.inference.predictions",
    "ensemble": "fatai.ensemble.ensemble",
    "fat_learner": "fatai.inference.learner",
    "fat_sample": "fatai.data.datasets.fat2019",
    "load_audio": "fatai.audio.io",
    "load_pretrained": "fatai.export.pretrained",
    "lwlrap": "fatai.metrics.ranking",
    "lwlrap_per_class": "fatai.metrics.ranking",
}

__all__ = ["__version__", *_MODULES]  # noqa: F822

wait_passively()


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'fatai' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
