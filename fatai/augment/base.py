"""Base classes of the augmentations: random draws, a batch in its domains, and the callbacks that run them in training.

An augmentation has a `domain` to act in, draws all its random numbers first (`draw`: small tensors with a row for each
clip, from torch's global generator or from one of its own) and then applies a pure function (`apply`). Each is a fastai
callback, so `cbs=Gain()` is enough; when a fit begins it adds the one `AugmentBatch` of the learner, which runs all of
them on every training batch.

The domains of a batch, in the order in which they are run: "wave" (the samples), "power" (the linear spectrogram),
"log" (the input of the network, whatever its scale), "bn0" (behind the input norm of a PANNs network, inside the
model). In each domain come the augmentations with `before_mixing`, then the mixers, then the other augmentations. The
spectrogram is rendered once, after the last change of a wave or a linear spectrogram.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar, cast

import torch
from fastai.callback.core import Callback as FastaiCallback
from torch import Tensor

from fatai.audio.channels import Coord, Deltas
from fatai.audio.front_ends import FrontEnd, Spectrogram
from fatai.data.tensors import TensorSpec, TensorWave
from fatai.data.transforms import WaveToSpec
from fatai.errors import OptionError, ShapeError
from fatai.registry import did_you_mean

__all__ = [
    "AugmentBatch",
    "BatchAugmentation",
    "BatchInput",
    "DOMAINS",
    "SpecAugmentation",
    "TrainOnlyCallback",
    "augmentation_callbacks",
    "set_augmentation",
]

DOMAINS = ("wave", "power", "log", "bn0")
"""The domains in which an augmentation can act."""

# Three steps a domain: before mixing, mixing, after it.
_ORDER = {"wave": -4, "power": -1, "log": 2, "bn0": 5}

Drawn = TypeVar("Drawn", bound=tuple)


# Random draws and checks


def draw_uniform(
    shape: int | Sequence[int], low: float, high: float, generator: torch.Generator | None = None
) -> Tensor:
    """Draw numbers from U(low, high); float64 of the given shape, on the CPU."""
    size = (shape,) if isinstance(shape, int) else tuple(shape)
    return low + (high - low) * torch.rand(size, generator=generator, dtype=torch.float64)


def draw_integers(
    shape: int | Sequence[int], low: int | Tensor, high: int | Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Draw whole numbers from `low` to `high`, both included.

    Parameters
    ----------
    shape
        Shape of the result.
    low, high
        Numbers, or tensors that broadcast to `shape`.
    generator
        Of the draws; None is torch's global one.

    Returns
    -------
    int64 of that shape, on the CPU.
    """
    return (low + torch.floor(draw_uniform(shape, 0, 1, generator) * (high - low + 1))).long()


def draw_bernoulli(n: int, p: float, generator: torch.Generator | None = None) -> Tensor:
    """Draw `n` booleans, each True with probability `p`; bool, shape (n,), on the CPU."""
    return draw_uniform(n, 0, 1, generator) < p


def take_rows(drawn: Drawn, rows: Tensor) -> Drawn:
    """Return the draws of some clips.

    Parameters
    ----------
    drawn
        A tuple, named or not, of tensors with a row for each clip, or of such tuples.
    rows
        Positions of the clips, int64 of any shape.
    """
    parts = [take_rows(d, rows) if isinstance(d, tuple) else d[rows] for d in drawn]
    return type(drawn)(*parts) if hasattr(drawn, "_fields") else type(drawn)(parts)


def check_probability(p: float, name: str = "p") -> float:
    """Return `p`; raise `OptionError` if it is not within [0, 1]."""
    if not 0 <= p <= 1:
        raise OptionError(f"{name} is {p}; expected a probability between 0 and 1")
    return p


def check_range(
    values: Sequence[float], name: str, *, low: float = -float("inf"), high: float = float("inf")
) -> None:
    """Raise `OptionError` unless `values` are two numbers in rising order within [low, high]."""
    if len(values) != 2 or not low <= values[0] <= values[1] <= high:
        within = "" if low == -float("inf") and high == float("inf") else f" within [{low:g}, {high:g}]"
        raise OptionError(f"{name} is {tuple(values)}; expected two numbers in rising order{within}")


def check_spec_batch(spec: Tensor) -> Tensor:
    """Return `spec`; raise `ShapeError` if its shape is not (batch, channels, mels, frames)."""
    if spec.ndim != 4:
        raise ShapeError(
            f"got spectrograms of shape {tuple(spec.shape)}; expected (batch, channels, mels, frames): one clip is "
            "spec[None]"
        )
    return spec


def to_plain_tensor(x: Any) -> Tensor:
    """Return `x`, of any shape, as torch's own tensor type: two fastai tensor types in one operation are an error."""
    return x.as_subclass(Tensor) if isinstance(x, Tensor) else torch.as_tensor(x)


def restore_type(values: Tensor, like: Any, **attributes: Any) -> Tensor:
    """Return `values`, of any shape, with the tensor type and the attributes of `like`, some of them replaced."""
    if type(like) is Tensor:
        return values
    typed = values.as_subclass(type(like))
    typed.__dict__ = {**like.__dict__, **attributes}
    return typed


# A batch in its domains


@lru_cache(maxsize=8)
def _linear_front_end(settings: FrontEnd, device: torch.device) -> Spectrogram:
    return settings.replace(log="none", normalize="none", mean=0.0, std=1.0, clamp=None).build().to(device)


def linear_power(module: Spectrogram, wave: Tensor) -> Tensor:
    """Compute the spectrogram of a front end before its logarithm and normalization.

    Parameters
    ----------
    module
        The front end.
    wave
        Shape (batch, samples).

    Returns
    -------
    Shape (batch, rows, frames), at least 0.
    """
    return _linear_front_end(module.settings, wave.device)(wave)


def finish_power(module: Spectrogram, power: Tensor) -> Tensor:
    """Apply logarithm and normalization of a front end to a linear spectrogram.

    Parameters
    ----------
    module
        The front end.
    power
        Shape (batch, rows, frames), as `linear_power` returns it.

    Returns
    -------
    The same shape.

    Examples
    --------
    >>> from fatai.registry import FRONT_ENDS
    >>> module, wave = FRONT_ENDS.build("ninth"), torch.randn(2, 9000)
    >>> bool(torch.allclose(finish_power(module, linear_power(module, wave)), module(wave), atol=1e-4))
    True
    """
    return module.from_linear(power)


@dataclass(eq=False)
class BatchInput:
    """The input of a network for one batch, in every domain.

    `at(domain)` computes a domain when it is first needed and keeps it; `replace(domain, values)` returns a new value
    without the domains that no longer fit.

    Attributes
    ----------
    wave
        Shape (batch, samples), or None where it is not known, or no longer belongs to the spectrogram.
    power
        The linear spectrogram, shape (batch, rows, frames), at least 0; None until it is computed.
    spec
        The spectrogram for the network, shape (batch, channels, mels, frames); None until it is rendered.
    sr
        Rate of the waves in Hz, where it is known.
    front_end
        Settings that the spectrograms were made with, where they are known.
    to_spec
        The batch transform of the data loaders that makes spectrograms of waves, if they have one.
    takes_wave
        True where the network takes waves; then "log", the input of the network, is the wave.

    Examples
    --------
    >>> batch = BatchInput(spec=torch.zeros(1, 1, 2, 3)).replace("log", torch.ones(1, 1, 2, 3))
    >>> batch.at("log").sum()
    tensor(6.)
    """

    wave: Tensor | None = None
    power: Tensor | None = None
    spec: Tensor | None = None
    sr: int | None = None
    front_end: FrontEnd | None = None
    to_spec: WaveToSpec | None = None
    takes_wave: bool = False

    @classmethod
    def from_tensor(cls, x: Tensor, to_spec: WaveToSpec | None = None) -> BatchInput:
        """Wrap the network's input.

        Parameters
        ----------
        x
            A `TensorWave` (batch, samples), or spectrograms (batch, channels, mels, frames), as `TensorSpec` with their
            waves and front end.
        to_spec
            The transform that made the spectrograms, or that makes them of waves.
        """
        if isinstance(x, TensorWave):
            front_end = None if to_spec is None else to_spec.config.front_end
            return cls(to_plain_tensor(x), None, None, x.sr, front_end, to_spec, takes_wave=to_spec is None)
        if not isinstance(x, TensorSpec):
            return cls(spec=to_plain_tensor(x), to_spec=to_spec)
        wave = None if x.wave is None else to_plain_tensor(x.wave)
        sr = x.front_end.sr if x.front_end is not None else None if x.wave is None else x.wave.sr
        return cls(wave, None, to_plain_tensor(x), sr, x.front_end, to_spec)

    @property
    def rate(self) -> int:
        """Rate of the waves in Hz; an `OptionError` where it is not known."""
        if self.sr is None:
            raise OptionError(
                "the sample rate of this batch is unknown; expected TensorWave, or TensorSpec with its front end"
            )
        return int(self.sr)

    def at(self, domain: str) -> Tensor:
        """Return the batch in a domain: (batch, samples), (batch, rows, frames) or (batch, channels, mels, frames).

        Raises
        ------
        OptionError
            If the batch cannot be had in that domain.
        """
        if self.takes_wave:
            return self._wave_input(domain)
        if domain == "wave":
            return self._source_wave()
        if domain == "power":
            if self.power is None:
                self.power = linear_power(self._spectrogram(), self._source_wave())
            return self.power
        if self.spec is None:
            self.spec = self._rendered()
        return self.spec

    def replace(self, domain: str, values: Tensor) -> BatchInput:
        """Return the batch with other values in a domain, of the shapes that `at` returns.

        A sound that no longer belongs to its spectrogram is dropped: the wave stays only if it is the domain that is
        replaced.
        """
        if self.takes_wave or domain == "wave":
            return dataclasses.replace(self, wave=values, power=None, spec=None)
        if domain == "power":
            return dataclasses.replace(self, wave=None, power=values, spec=None)
        return dataclasses.replace(self, wave=None, power=None, spec=values)

    def to_tensor(self, like: Tensor) -> Tensor:
        """Return the network's input, (batch, ...), with the type and attributes of `like`, which it came from.

        Of waves that the network does not take, it is their spectrograms.
        """
        if isinstance(like, TensorWave) and not self.takes_wave:
            wave = None if self.wave is None else restore_type(self.wave, like)
            return TensorSpec(self.at("log"), front_end=self.front_end, wave=wave)
        if not isinstance(like, TensorSpec):
            return restore_type(self.at("log"), like)
        wave = None if self.wave is None else restore_type(self.wave, like.wave)
        return restore_type(self.at("log"), like, wave=wave)

    def derived_channels(self, x: Tensor) -> Deltas | Coord | None:
        """Return the module that derives the further channels of `x`, (batch, channels, mels, frames), if any."""
        channels = self.to_spec.module[1] if self.to_spec is not None else None
        return channels if isinstance(channels, (Deltas, Coord)) and x.shape[1] == channels.n_channels else None

    def map_channels(self, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply a function to spectrograms (batch, channels, mels, frames), and derive derived channels again."""
        channels = self.derived_channels(x)
        if channels is None:
            return function(x)
        first = x[:, :1]
        changed = function(first)
        return x if changed is first else channels(changed[:, 0])

    def _wave_input(self, domain: str) -> Tensor:
        if domain == "power":
            raise OptionError("the batches of this learner are waves: take domain='wave'")
        return cast(Tensor, self.wave)

    def _source_wave(self) -> Tensor:
        if self.wave is None:
            raise OptionError(
                "the spectrograms of this batch don't carry their waves: read waves instead of stored features, or "
                "take domain='log'"
            )
        self._transform()
        return self.wave

    def _transform(self) -> WaveToSpec:
        if self.to_spec is None:
            raise OptionError(
                "these data loaders have no front end that could render the spectrograms again: take FATDataLoaders, "
                "or domain='log'"
            )
        return self.to_spec

    def _spectrogram(self) -> Spectrogram:
        return cast(Spectrogram, self._transform().module[0])

    def _rendered(self) -> Tensor:
        if self.power is not None:
            return self._transform().module[1](finish_power(self._spectrogram(), self.power))
        return self._transform().spec(self._source_wave())


# Callbacks


class AugmentBatch(FastaiCallback):
    """Run all augmentations of a learner on each training batch, in their order, and render the spectrogram once.

    The first `BatchAugmentation` of a fit adds it to the learner. Batches of validation get those alone that are
    `in_validation`, predictions by `tta` none. Where waves or linear spectrograms are changed, batches come as waves,
    so that the spectrograms which would be replaced are not computed.
    """

    # Behind SampleWeights (-8), before fastai's cast to plain tensors (9).
    order = -5

    def before_train(self) -> None:
        """Defer the spectrograms of the next batch, if an augmentation changes what they are made of."""
        self._defer(any(augmentation.domain in ("wave", "power") for augmentation in self.augmentations))

    before_validate = after_batch = before_train

    def after_train(self) -> None:
        """Compute the spectrograms with the batches again."""
        self._defer(False)

    # CancelFitException in a batch skips the other events.
    after_cancel_train = after_validate = after_cancel_validate = after_cancel_fit = after_train

    def _defer(self, deferred: bool) -> None:
        to_spec = self._to_spec
        if to_spec is not None:
            to_spec.deferred = deferred

    def before_batch(self) -> None:
        """Replace the input of the network by the augmented one; mixers replace the labels too."""
        x = self.xb[0]
        batch = start = BatchInput.from_tensor(x, self._to_spec)
        is_deferred = isinstance(x, TensorWave) and not batch.takes_wave
        with torch.no_grad():
            for augmentation in self.augmentations:
                batch = augmentation.augment_input(batch)
            if batch is not start or is_deferred:
                self.learn.xb = (batch.to_tensor(x), *self.xb[1:])

    @property
    def augmentations(self) -> list[BatchAugmentation]:
        """The augmentations of the current batches that act on the input of the network, in their order."""
        return [
            cb for cb in self.learn.cbs.sorted("order")
            if isinstance(cb, BatchAugmentation) and cb.active and cb.run and cb.domain != "bn0"
            and (self.learn.training or cb.in_validation)
        ]

    @property
    def _to_spec(self) -> WaveToSpec | None:
        return find_front_end(self.learn.dls)


def find_front_end(dls: Any) -> WaveToSpec | None:
    """Return the transform of data loaders that makes spectrograms of training batches, if they have one."""
    transforms = getattr(getattr(dls.train, "after_batch", None), "fs", ())
    return next((t for t in transforms if isinstance(t, WaveToSpec)), None)


class Augmentation(FastaiCallback):
    """A callback that changes training clips and can be switched off by `active = False`."""

    is_random = True
    """False for a change that stays on where random ones are switched off."""

    in_validation = False
    """True for a change of batches that is made in validation too."""

    active = True


class BatchAugmentation(Augmentation):
    """A random change of training batches that can be switched off.

    A subclass writes `augment_values`. `active` may be set to False at any time, for instance for the last epochs;
    `augmentation_callbacks` finds all augmentations of a learner. Nothing happens in prediction, nor in
    validation unless `in_validation` is True.

    Parameters
    ----------
    domain
        One of `DOMAINS`.
    step
        -1 before mixing, 0 for mixing itself, 1 after it.
    generator
        Of the draws; None is torch's global one.
    """

    run_valid = False

    def __init__(self, domain: str, step: int, generator: torch.Generator | None = None):
        if domain not in DOMAINS:
            raise OptionError(f"domain is {domain!r}; {did_you_mean(domain, DOMAINS)}")
        self.domain, self.order, self.generator = domain, _ORDER[domain] + step, generator
        self._hook: Any = None

    def augment_values(self, x: Tensor, batch: BatchInput) -> Tensor:
        """Return the augmented values of a batch.

        Parameters
        ----------
        x
            `batch.at(self.domain)`: waves (batch, samples), linear spectrograms (batch, rows, frames), or (batch,
            channels, mels, frames).
        batch
            The whole input of the network, with its rate and its front end.

        Returns
        -------
        `x` itself when nothing changed.
        """
        raise NotImplementedError

    def augment_input(self, batch: BatchInput) -> BatchInput:
        """Return the batch with this augmentation applied in its domain; `batch` itself when nothing changed."""
        x = self._values(batch)
        augmented = self.augment_values(x, batch)
        return batch if augmented is x else batch.replace(self.domain, augmented)

    def _values(self, batch: BatchInput) -> Tensor:
        try:
            return batch.at(self.domain)
        except OptionError as e:
            raise OptionError(f"{type(self).__name__} acts on the {self.domain}, but {e}") from e

    def before_fit(self) -> None:
        """Add `AugmentBatch` to the learner, or, in the domain "bn0", a hook to its model."""
        self._unhook()
        if self.domain == "bn0":
            self._hook = self._bn0().register_forward_hook(self._augment_output)
        elif not any(isinstance(cb, AugmentBatch) for cb in self.learn.cbs):
            self.learn.add_cb(AugmentBatch())

    def after_fit(self) -> None:
        """Remove the hook."""
        self._unhook()

    def after_cancel_fit(self) -> None:
        """Remove the hook."""
        self._unhook()

    # Inside the model, behind bn0

    def _bn0(self) -> torch.nn.Module:
        bn0 = dict(self.learn.model.named_modules()).get("bn0")
        if bn0 is None:
            raise OptionError(
                f"{type(self).__name__} acts behind bn0, which {type(self.learn.model).__name__} doesn't have: "
                "take a PANNs network, or domain='log'"
            )
        return bn0

    def _unhook(self) -> None:
        if getattr(self, "_hook", None) is not None:
            self._hook.remove()
        self._hook = None

    def _augment_output(self, module: torch.nn.Module, inputs: Any, out: Tensor) -> Tensor | None:
        """Forward hook; `out` is (batch, mels, frames, channels) or (batch, mels, channels, frames)."""
        # Two checks: after an interruption `training` of the learner is still True, and a frozen norm is in eval mode
        # while the rest trains.
        if not (self.active and self.learn.training and self.learn.model.training):
            return None
        channels = self.learn.xb[0].shape[1]
        frames_last = out.shape[2] == channels and out.shape[3] != channels
        spec = out.transpose(1, 2) if frames_last else out.permute(0, 3, 1, 2)
        augmented = self.augment_hidden(spec)
        if augmented is spec:
            return None
        return augmented.transpose(1, 2) if frames_last else augmented.permute(0, 2, 3, 1)

    def augment_hidden(self, spec: Tensor) -> Tensor:
        """Return the augmented values of a hidden tensor (batch, channels, mels, frames), with its gradient."""
        return self.augment_values(spec, BatchInput(spec=spec))


class SpecAugmentation(BatchAugmentation):
    """A random change of single spectrograms: `draw`, then `apply`, for clips chosen with probability `p`.

    Parameters
    ----------
    p
        Probability for each clip; 0 switches the augmentation off, 1 changes every clip.
    domain
        "log": the input of the network. "power": the linear spectrogram, before logarithm and normalization. "bn0":
        behind the input norm of a PANNs network.
    before_mixing
        True changes the clips before they are mixed, False the mixtures.
    generator
        Of the draws; None is torch's global one.
    """

    def __init__(
        self,
        *,
        p: float = 1.0,
        domain: str = "log",
        before_mixing: bool = True,
        generator: torch.Generator | None = None,
    ):
        if domain == "wave":
            raise OptionError(
                f"{type(self).__name__} changes spectrograms; expected the domain 'log', 'power' or 'bn0', not 'wave'"
            )
        super().__init__(domain, -1 if before_mixing else 1, generator)
        self.p = check_probability(p)

    def draw(self, n: int, mels: int, frames: int, generator: torch.Generator | None = None) -> Any:
        """Draw all random numbers for `n` clips: a named tuple of tensors with `n` rows, on the CPU."""
        raise NotImplementedError

    def apply(self, spec: Tensor, drawn: Any) -> Tensor:
        """Return the changed spectrograms, (batch, channels, mels, frames) like `spec`; a pure function."""
        raise NotImplementedError

    def augment(self, spec: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw and apply.

        Parameters
        ----------
        spec
            Shape (batch, channels, mels, frames).
        generator
            In place of the augmentation's own.

        Returns
        -------
        A new tensor of the same shape, or `spec` itself if no clip was chosen.
        """
        n, _, mels, frames = check_spec_batch(spec).shape
        generator = generator or self.generator
        chosen = draw_bernoulli(n, self.p, generator)
        drawn = self.draw(n, mels, frames, generator)
        if chosen.all():
            return self.apply(spec, drawn)
        rows = chosen.nonzero().flatten()
        if len(rows) == 0:
            return spec
        on_device = rows.to(spec.device)
        return spec.index_copy(0, on_device, self.apply(spec.index_select(0, on_device), take_rows(drawn, rows)))

    def augment_values(self, x: Tensor, batch: BatchInput) -> Tensor:
        """Return the spectrograms: (batch, rows, frames) in "power", else (batch, channels, mels, frames)."""
        if self.domain == "power":
            return self.augment(x[:, None])[:, 0]
        return batch.map_channels(x, self.augment)

    def augment_hidden(self, spec: Tensor) -> Tensor:
        """Return the augmented values of a tensor (batch, channels, mels, frames) inside the model."""
        return self.augment(spec)


def augmentation_callbacks(learn: Any) -> list[Augmentation]:
    """Return the callbacks of a learner that change clips at random: augmentations of batches and items, mixers."""
    return [cb for cb in learn.cbs if isinstance(cb, Augmentation) and cb.is_random]


def set_augmentation(learn: Any, on: bool) -> None:
    """Switch all augmentations of a learner on or off; those of items follow from the next epoch on."""
    for augmentation in augmentation_callbacks(learn):
        augmentation.active = on


class TrainOnlyCallback(FastaiCallback):
    """A callback that attaches something to the learner while an epoch trains, and detaches it however training ends.

    Subclasses write `attach` and `detach`.
    """

    def attach(self) -> None:
        """Attach what training needs."""
        raise NotImplementedError

    def detach(self) -> None:
        """Undo `attach`; called several times, also when nothing is attached."""
        raise NotImplementedError

    def before_train(self) -> None:
        """Attach."""
        self.detach()
        self.attach()

    def after_train(self) -> None:
        """Detach."""
        self.detach()

    def after_cancel_train(self) -> None:
        """Detach."""
        self.detach()

    def before_validate(self) -> None:
        """Detach, since an error in training skips the two events above."""
        self.detach()
