"""Give a stage of a recipe another number of epochs, and change the settings that are lengths in epochs with it."""

from __future__ import annotations

from typing import Any

__all__ = ["multiply_options", "with_epochs"]

_OF_SCHEDULES = ("warmup_epochs", "every", "cycle")  # options that are lengths in epochs


def with_epochs(stage: dict[str, Any], epochs: int) -> dict[str, Any]:
    """Return the plain table of a stage with other epochs.

    Lengths of its schedule, and the last epochs without augmentation or mixing, change by the same factor; a single
    epoch has no such last ones.

    Examples
    --------
    >>> stage = {"epochs": 40, "schedule_options": {"warmup_epochs": 4}, "no_aug_epochs": 8, "no_mixup_epochs": None}
    >>> with_epochs(stage, 10)
    {'epochs': 10, 'schedule_options': {'warmup_epochs': 1}, 'no_aug_epochs': 2, 'no_mixup_epochs': None}
    """
    factor = epochs / stage["epochs"]

    def scaled(value: int | None) -> int | None:
        return None if value is None or epochs == 1 else max(1, round(value * factor))

    options = multiply_options(stage["schedule_options"], _OF_SCHEDULES, factor)
    return {
        **stage, "epochs": epochs, "schedule_options": options,
        "no_aug_epochs": scaled(stage["no_aug_epochs"]), "no_mixup_epochs": scaled(stage["no_mixup_epochs"]),
    }


def multiply_options(
    options: dict[str, Any], names: tuple[str, ...], factor: float, *, min_value: int = 1
) -> dict[str, Any]:
    """Multiply the named options; integers stay integers of at least `min_value`."""
    def scaled(value: Any) -> Any:
        return max(min_value, round(value * factor)) if isinstance(value, int) else value * factor

    return {key: scaled(value) if key in names else value for key, value in options.items()}
