"""Names to builders: listing, the source of each, near-miss suggestions.

A builder is a function or class; `@MODELS.register("m3", source="...")` above it is all that a new entry needs.
The entries live in the room that implements them; a registry imports that room when it is first asked.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

from fatai.errors import OptionError, UnknownNameError

__all__ = [
    "AUGMENTATIONS", "CHANNELS", "ENSEMBLES", "FRONT_ENDS", "LOSSES", "MIXERS", "MODELS", "NOISY", "SCHEDULES", "VIEWS",
    "Registry", "did_you_mean",
]

Builder = TypeVar("Builder", bound=Callable[..., Any])


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """End of a sentence that suggests the nearest of `known` to `name`, or lists them when none is near."""
    lowered = {k.lower(): k for k in known}
    near = get_close_matches(str(name).lower(), list(lowered), n=1, cutoff=0.6)
    if near:
        return f"did you mean {lowered[near[0]]}?"
    return f"known: {', '.join(known)}" if known else "none are known"


class Registry:
    """Named builders of one kind of thing.

    Parameters
    ----------
    kind
        What an entry is, in the singular, for messages: "model".
    home
        Module whose import registers fatai's own entries; imported at the first look-up.

    Examples
    --------
    >>> SHAPES = Registry("shape")
    >>> @SHAPES.register("square", source="Euclid")
    ... def square(side: float = 1.0) -> float:
    ...     return side * side
    >>> SHAPES.build("square", side=3.0), SHAPES.source("square"), SHAPES.names()
    (9.0, 'Euclid', ['square'])
    """

    def __init__(self, kind: str, home: str = ""):
        self.kind, self.home = kind, home
        self._entries: dict[str, tuple[Callable[..., Any], str]] = {}
        self._families: dict[str, tuple[Callable[..., Any], str]] = {}

    def register(self, name: str, *, source: str) -> Callable[[Builder], Builder]:
        """Decorator that adds a builder under `name`; a taken name is an `OptionError`."""

        def add(builder: Builder) -> Builder:
            taken = self._entries.get(name)
            if taken is not None and taken[0].__qualname__ != builder.__qualname__:
                raise OptionError(
                    f"a {self.kind} named {name!r} is registered already (source: {taken[1]}); choose another name"
                )
            self._entries[name] = (builder, source)
            return builder

        return add

    def register_pattern(self, mark: str, *, source: str) -> Callable[[Builder], Builder]:
        """Decorator for a builder of every name that holds `mark`, such as "timm:" or "+"; the name is its first argument."""

        def add(builder: Builder) -> Builder:
            self._families[mark] = (builder, source)
            return builder

        return add

    def _look_up(self, name: str) -> tuple[Callable[..., Any], str]:
        self._fill()
        try:
            return self._entries[name]
        except (KeyError, TypeError):
            for mark, (builder, source) in self._families.items():
                if isinstance(name, str) and mark in name:
                    named = functools.partial(builder, name)
                    named.__doc__ = builder.__doc__
                    return named, source
            raise UnknownNameError(f"no {self.kind} named {name!r}; {did_you_mean(name, self.names())}") from None

    def _fill(self) -> None:
        if self.home:
            importlib.import_module(self.home)

    def __contains__(self, name: object) -> bool:
        self._fill()
        return name in self._entries or isinstance(name, str) and any(mark in name for mark in self._families)

    def names(self) -> list[str]:
        """All names, sorted; those of a family are without number and are not listed."""
        self._fill()
        return sorted(self._entries)

    def source(self, name: str) -> str:
        """Where the idea comes from: a paper, a repository, its licence."""
        return self._look_up(name)[1]

    def builder(self, name: str) -> Callable[..., Any]:
        """The function or class behind `name`."""
        return self._look_up(name)[0]

    def about(self, name: str) -> str:
        """First line of the builder's docstring."""
        return (inspect.getdoc(self.builder(name)) or "").split("\n")[0]

    def build(self, name: str, /, *args: Any, **options: Any) -> Any:
        """Call the builder of `name`; an option that it does not take is an `OptionError` that lists those it takes."""
        builder = self.builder(name)
        parameters = inspect.signature(builder).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            for option in options:
                if option not in parameters:
                    raise OptionError(
                        f"{self.kind} {name!r} has no option {option!r}; {did_you_mean(option, list(parameters))}"
                    )
        return builder(*args, **options)


FRONT_ENDS = Registry("front end", home="fatai.audio.front_ends")
CHANNELS = Registry("kind of channels", home="fatai.audio.channels")
MODELS = Registry("model", home="fatai.models")
LOSSES = Registry("loss", home="fatai.losses.losses")
MIXERS = Registry("mixer", home="fatai.augment.mixup")
AUGMENTATIONS = Registry("augmentation", home="fatai.augment")
SCHEDULES = Registry("schedule", home="fatai.callbacks.schedulers")
NOISY = Registry("noisy-label method", home="fatai.noisy_labels.methods")
VIEWS = Registry("kind of view", home="fatai.inference.views")
ENSEMBLES = Registry("ensemble", home="fatai.ensemble.ensemble")
