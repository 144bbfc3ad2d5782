"""A batch as waves, linear spectrograms or the input of the network, whichever an augmentation acts on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from fatai.audio.channels import Coord, Deltas
from fatai.audio.front_ends import FrontEnd, Spectrogram
from fatai.data.tensors import TensorSpec, TensorWave
from fatai.data.transforms import WaveToSpec
from fatai.errors import OptionError, ShapeError

__all__ = ["BatchInput", "check_spec_batch", "finish_power", "linear_power", "restore_type", "to_plain_tensor"]


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


@lru_cache(maxsize=8)
def _linear_front_end(settings: FrontEnd, device: torch.device) -> Spectrogram:
    return settings.replace(log="none", normalize="none", mean=0.0, std=1.0, clamp=None).build().to(device)


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
