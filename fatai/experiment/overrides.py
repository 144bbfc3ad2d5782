"""Settings that the command line and callers may replace in a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike

__all__ = ["Overrides"]


@dataclass(frozen=True)
class Overrides:
    """Values that replace those of a recipe; None keeps the recipe's value.

    Attributes
    ----------
    n_folds
        Number of folds, at least 2.
    run_folds
        Folds to train, counted from 0.
    epochs, bs, lr
        Epochs, clips per batch and maximum learning rate of every stage.
    arch, width
        Name of the model, and the factor of its channels.
    weights
        File of pretrained weights of the model.
    crop_s
        Seconds of a crop.
    n_views
        Views of each clip that are averaged in test-time augmentation.
    seed
        Fold k starts from seed + k.
    precision
        "auto", "fp32" or "bf16".
    """

    n_folds: int | None = None
    run_folds: tuple[int, ...] | None = None
    epochs: int | None = None
    bs: int | None = None
    lr: float | None = None
    arch: str | None = None
    width: float | None = None
    weights: str | PathLike[str] | None = None
    crop_s: float | None = None
    n_views: int | None = None
    seed: int | None = None
    precision: str | None = None
