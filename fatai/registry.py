"""Registries of builders by name, each with its source; an unknown name raises an error that suggests the nearest one.

A builder is a function or class; `@MODELS.register("m3", source="...")` above it is all that a new entry needs.
The entries live in the package that implements them; a registry imports that package at its first look-up.
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
    "AUGMENTATIONS", "CHANNELS", "ENSEMBLES", "FRONT_ENDS", "LOSSES", "MIXERS", "MODELS", "NOISY",
    "SCHEDULES", "VIEWS", "Registry",
]

Builder = TypeVar("Builder", bound=Callable[..., Any])


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return the end of an error message: the nearest of `known` to `name`, or all of them if none is near.

    Examples
    --------
    >>> did_you_mean("cnn9avg", ["m3", "cnn9_avg"]), did_you_mean("zebra", ["m1", "m2"])
    ('did you mean cnn9_avg?', 'known: m1, m2')
    """
    lowered = {k.lower(): k for k in known}
    near = get_close_matches(str(name).lower(), list(lowered), n=1, cutoff=0.6)
    if near:
        return f"did you mean {lowered[near[0]]}?"
    return f"known: {', '.join(known)}" if known else "none are known"


class Registry:
    """Named builders of one kind of object.

    Parameters
    ----------
    kind
        Name of an entry in the singular, for messages: "model".
    module
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

    def __init__(self, kind: str, module: str = ""):
        self.kind, self.module = kind, module
        self._entries: dict[str, tuple[Callable[..., Any], str]] = {}
        self._patterns: dict[str, tuple[Callable[..., Any], str]] = {}
        self._suggesters: list[Callable[[str], str | None]] = []

    def register(self, name: str, *, source: str) -> Callable[[Builder], Builder]:
        """Return a decorator that adds a builder.

        Parameters
        ----------
        name
            Name of the entry.
        source
            Origin of the idea: a paper, a repository, its licence.

        Raises
        ------
        OptionError
            By the decorator, if another builder has the name already.
        """

        def add(builder: Builder) -> Builder:
            taken = self._entries.get(name)
            if taken is not None and taken[0].__qualname__ != builder.__qualname__:
                raise OptionError(
                    f"a {self.kind} named {name!r} is registered already (source: {taken[1]}); choose another name"
                )
            self._entries[name] = (builder, source)
            return builder

        return add

    def register_pattern(
        self, substring: str, *, source: str, suggest: Callable[[str], str | None] | None = None
    ) -> Callable[[Builder], Builder]:
        """Return a decorator that adds a builder for every name with a given substring, such as "timm:" or "+".

        The builder is called with the whole name as its first argument.

        Parameters
        ----------
        substring
            Part of the names.
        source
            As in `register`.
        suggest
            Maps an unknown name to the one of this pattern that was probably meant, or to None.
        """

        def add(builder: Builder) -> Builder:
            self._patterns[substring] = (builder, source)
            if suggest is not None:
                self._suggesters.append(suggest)
            return builder

        return add

    def _look_up(self, name: str) -> tuple[Callable[..., Any], str]:
        self._load()
        try:
            return self._entries[name]
        except (KeyError, TypeError):
            for substring, (builder, source) in self._patterns.items():
                if isinstance(name, str) and substring in name:
                    named = functools.partial(builder, name)
                    named.__doc__ = builder.__doc__
                    return named, source
            raise UnknownNameError(f"no {self.kind} named {name!r}; {self.suggestion(name)}") from None

    def suggestion(self, name: str) -> str:
        """Return the end of a message about an unknown name: the nearest name, or all of them if none is near."""
        self._load()
        meant = next((found for suggest in self._suggesters if (found := suggest(str(name)))), None)
        return f"did you mean {meant}?" if meant else did_you_mean(name, self.names())

    def _load(self) -> None:
        if self.module:
            importlib.import_module(self.module)

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._entries or isinstance(name, str) and any(part in name for part in self._patterns)

    def names(self) -> list[str]:
        """Return all names, sorted; the endless ones of a pattern are left out."""
        self._load()
        return sorted(self._entries)

    def source(self, name: str) -> str:
        """Return the origin of an entry: a paper, a repository, its licence."""
        return self._look_up(name)[1]

    def builder(self, name: str) -> Callable[..., Any]:
        """Return the function or class registered as `name`."""
        return self._look_up(name)[0]

    def describe(self, name: str) -> str:
        """Return the first line of the builder's docstring."""
        return (inspect.getdoc(self.builder(name)) or "").split("\n")[0]

    def build(self, name: str, /, *args: Any, **options: Any) -> Any:
        """Call the builder of `name` with the given arguments and return its result.

        Raises
        ------
        UnknownNameError
            If no entry has the name; the message suggests the nearest one.
        OptionError
            If the builder has no parameter of an option's name; the message suggests the nearest one.
        """
        builder = self.builder(name)
        parameters = inspect.signature(builder).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            for option in options:
                if option not in parameters:
                    raise OptionError(
                        f"{self.kind} {name!r} has no option {option!r}; {did_you_mean(option, list(parameters))}"
                    )
        return builder(*args, **options)


FRONT_ENDS = Registry("front end", module="fatai.audio.front_ends")
CHANNELS = Registry("kind of channels", module="fatai.audio.channels")
MODELS = Registry("model", module="fatai.models")
LOSSES = Registry("loss", module="fatai.losses")
MIXERS = Registry("mixer", module="fatai.augment.mixup")
AUGMENTATIONS = Registry("augmentation", module="fatai.augment")
SCHEDULES = Registry("schedule", module="fatai.callbacks.schedulers")
NOISY = Registry("noisy-label method", module="fatai.noisy_labels.methods")
VIEWS = Registry("kind of view", module="fatai.inference.views")
ENSEMBLES = Registry("ensemble", module="fatai.ensemble.ensemble")
# Not for entries of users: they let a learner write model folders and reports, whose packages import its own or lie
# above it.
EXPORTS = Registry("export", module="fatai.export.learner")
REPORTS = Registry("report", module="fatai.report.learner")
