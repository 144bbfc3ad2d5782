"""fatai: audio tagging on fastai.

`from fatai.all import *` is the notebook door; `import fatai` alone loads neither torch nor fastai.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Name to home: loaded when first asked for (PEP 562), so that `import fatai` and `fatai-submit --help` stay quick.
_HOMES = {
    "FATDataLoaders": "fatai.data.blocks",
    "Predictions": "fatai.infer.predictions",
    "ensemble": "fatai.infer.ensemble",
    "fat_learner": "fatai.all",  # whole, because views give learners their tta and predict
    "fat_sample": "fatai.data.fat2019",
    "load_audio": "fatai.sound.files",
    "load_pretrained": "fatai.infer.pretrained",
    "lwlrap": "fatai.score.ranking",
    "lwlrap_per_class": "fatai.score.ranking",
}

__all__ = ["__version__", *_HOMES]  # noqa: F822


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fatai' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
