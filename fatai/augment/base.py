"""What random changes share: draws, which clips are changed, and where in a training batch it happens.

A change first draws all it needs from torch's generator (the global one, or one that is handed in), as small tensors with a row for each
clip, and then applies a pure function. As a fastai callback it acts on training batches only, before the model.

The places of a batch, in their order: "wave" (the samples), "power" (the linear spectrogram), "log" (the spectrogram as the network sees
it, whatever its scale), "bn0" (behind the input norm of a PANNs network, inside the model). At each place come the changes of single clips
that shall precede mixing, then mixing, then those that follow it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeVar, cast

import torch
from fastai.callback.core import Callback as FastaiCallback
from torch import Tensor

from fatai.data.blocks import WaveToSpec
from fatai.data.tensors import TensorWave
from fatai.errors import OptionError, ShapeError
from fatai.registry import did_you_mean
from fatai.audio.channels import Coord, Deltas
from fatai.audio.front_ends import FrontEnd, Spectrogram

__all__ = ["BatchAugmentation", "PLACES", "SpecAugmentation", "augmentation_callbacks", "set_augmentation"]

PLACES = ("wave", "power", "log", "bn0")
"""Where in a batch a change acts."""

# Three steps a place: before mixing, mixing, after it. All lie between SampleWeights (-8) and fastai's cast to plain tensors (9).
_ORDER = {"wave": -4, "power": -1, "log": 2, "bn0": 5}

Drawn = TypeVar("Drawn", bound=tuple)


def uniform(shape: int | Sequence[int], low: float, high: float, generator: torch.Generator | None = None) -> Tensor:
    """Numbers of U(low, high), float64 on the CPU."""
    size = (shape,) if isinstance(shape, int) else tuple(shape)
    return low + (high - low) * torch.rand(size, generator=generator, dtype=torch.float64)


def integers(
    shape: int | Sequence[int], low: int | Tensor, high: int | Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Whole numbers from `low` to `high`, both included, which may be tensors that fit `shape`; int64 on the CPU."""
    return (low + torch.floor(uniform(shape, 0, 1, generator) * (high - low + 1))).long()


def chance(n: int, p: float, generator: torch.Generator | None = None) -> Tensor:
    """Which of `n` clips are chosen, each with probability `p`, bool."""
    return uniform(n, 0, 1, generator) < p


def rows_of(drawn: Drawn, rows: Tensor) -> Drawn:
    """The draws of some clips: every tensor of a tuple, named or not, indexed by `rows`."""
    parts = [rows_of(d, rows) if isinstance(d, tuple) else d[rows] for d in drawn]
    return type(drawn)(*parts) if hasattr(drawn, "_fields") else type(drawn)(parts)


def checked_p(p: float, what: str = "p") -> float:
    """A probability, or an `OptionError`."""
    if not 0 <= p <= 1:
        raise OptionError(f"{what} is {p}; expected a probability between 0 and 1")
    return p


def checked_range(
    values: Sequence[float], what: str, *, low: float = -float("inf"), high: float = float("inf")
) -> None:
    """Two numbers in rising order within [low, high], or an `OptionError`."""
    if len(values) != 2 or not low <= values[0] <= values[1] <= high:
        within = "" if low == -float("inf") and high == float("inf") else f" within [{low:g}, {high:g}]"
        raise OptionError(f"{what} is {tuple(values)}; expected two numbers in rising order{within}")


def plain(x: Any) -> Tensor:
    """`x` as torch's own tensor: two of fastai's tensor types in one operation are an error."""
    return x.as_subclass(Tensor) if isinstance(x, Tensor) else torch.as_tensor(x)


def like_tensor(old: Any, values: Tensor, **known: Any) -> Tensor:
    """`values` with the type of `old` and what it knows, some of it replaced."""
    if type(old) is Tensor:
        return values
    new = values.as_subclass(type(old))
    new.__dict__ = {**old.__dict__, **known}
    return new


@lru_cache(maxsize=8)
def _linear(settings: FrontEnd, device: torch.device) -> Spectrogram:
    return settings.replace(log="none", normalize="none", mean=0.0, std=1.0, clamp=None).build().to(device)


def linear_power(module: Spectrogram, wave: Tensor) -> Tensor:
    """The spectrogram before its logarithm and normalisation, of waves (batch, samples): shape (batch, rows, frames), never below 0."""
    return _linear(module.settings, wave.device)(wave)


def _spectrogram(to_spec: WaveToSpec) -> Spectrogram:
    return cast(Spectrogram, to_spec.module[0])


def finish_power(module: Spectrogram, power: Tensor) -> Tensor:
    """What `linear_power` left out: (batch, rows, frames) to the same shape.

    Examples
    --------
    >>> from fatai.registry import FRONT_ENDS
    >>> module, wave = FRONT_ENDS.build("ninth"), torch.randn(2, 9000)
    >>> bool(torch.allclose(finish_power(module, linear_power(module, wave)), module(wave), atol=1e-4))
    True
    """
    parts = power.split(module.settings.bins, 1)
    spec = torch.cat([module._normalized(module._log(i, part)) for i, part in enumerate(parts)], 1)
    return module._standardised(spec).contiguous()


class BatchAugmentation(FastaiCallback):
    """A random change of training batches, and its switch.

    A subclass writes `change_batch`. `active` may be set to False at any time, for instance for the last epochs; `augmentation_callbacks` finds all
    that a learner has. Nothing happens in validation or prediction.

    Parameters
    ----------
    place
        One of `PLACES`.
    step
        -1 before mixing, 0 mixing itself, 1 after it.
    generator
        Where the draws come from; None is torch's global generator.
    """

    run_valid = False
    is_random_change = True

    def __init__(self, place: str, step: int, generator: torch.Generator | None = None):
        if place not in PLACES:
            raise OptionError(f"domain is {place!r}; {did_you_mean(place, PLACES)}")
        self.place, self.order, self.generator = place, _ORDER[place] + step, generator
        self.active = True
        self._hook: Any = None

    def change_batch(self, x: Tensor, batch: Tensor) -> Tensor:
        """The changed batch.

        Parameters
        ----------
        x
            What the place holds: waves (batch, samples), linear spectrograms (batch, rows, frames), or (batch, channels, mels, frames).
        batch
            The input of the network, which may know more: its rate, its front end.

        Returns
        -------
        `x` itself when nothing changed.
        """
        raise NotImplementedError

    def before_batch(self) -> None:
        if self.active and self.place != "bn0":
            with torch.no_grad():
                x = self.xb[0]
                value = self._reach(x)
                self.learn.xb = (self._put_back(x, value, self.change_batch(value, x)), *self.xb[1:])

    # The front end and what it still has to do.

    @property
    def _to_spec(self) -> WaveToSpec | None:
        transforms = getattr(getattr(self.learn.dls.train, "after_batch", None), "fs", ())
        return next((t for t in transforms if isinstance(t, WaveToSpec)), None)

    def _front_end(self) -> WaveToSpec:
        to_spec = self._to_spec
        if to_spec is None:
            raise OptionError(
                f"{type(self).__name__} acts on the {self.place}, but these data loaders have no front end to make spectrograms anew: "
                "take FATDataLoaders, or domain='log'"
            )
        return to_spec

    def _reach(self, x: Tensor) -> Tensor:
        """The batch as this place sees it."""
        if self.place == "log":
            return plain(x)
        if isinstance(x, TensorWave):
            if self.place == "wave":
                return plain(x)
            raise OptionError(
                f"{type(self).__name__} acts on the {self.place}, but this learner's batches are waves: take domain='wave'"
            )
        held = getattr(x, "held", None)
        wave = held if self.place == "wave" or held is None or held.ndim == 2 else None
        if self.place == "power" and held is not None and wave is None:
            return held
        if wave is None:
            wave = getattr(x, "wave", None)
        if wave is None:
            raise OptionError(
                f"{type(self).__name__} acts on the {self.place}, but the spectrograms of this batch don't carry their waves: "
                "read waves instead of stored features, or take domain='log'"
            )
        return plain(wave) if self.place == "wave" else linear_power(_spectrogram(self._front_end()), plain(wave))

    def _put_back(self, x: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """The network's input with the change in it; below the logarithm the last change makes the spectrogram, others hold their value."""
        changed = after is not before
        if self.place == "log":
            # A sound that no longer belongs to the picture is worse than none.
            return like_tensor(x, after, wave=None) if changed else x
        if isinstance(x, TensorWave):
            return like_tensor(x, after) if changed else x
        if not changed and getattr(x, "held", None) is None:
            return x
        old_wave = getattr(x, "wave", None)
        known: dict[str, Any] = {
            "wave": like_tensor(old_wave, after) if self.place == "wave" and old_wave is not None else None
        }
        if self._more_below_log():
            return like_tensor(x, plain(x), held=after, **known)
        to_spec = self._front_end()
        if self.place == "wave":
            spec = to_spec.spec(after)
        else:
            spec = to_spec.module[1](finish_power(_spectrogram(to_spec), after))
        return like_tensor(x, spec, held=None, **known)

    def _more_below_log(self) -> bool:
        """Whether another change of waves or powers is still to come in this batch."""
        changes = (
            cb for cb in self.learn.cbs.sorted("order") if isinstance(cb, BatchAugmentation) and cb.active and cb.run
        )
        return [cb for cb in changes if cb.place in ("wave", "power")][-1] is not self

    def made_channels(self, x: Tensor) -> Deltas | Coord | None:
        """What makes derivatives or ramps from the first channel of spectrograms (batch, channels, mels, frames), if they have such."""
        to_spec = self._to_spec
        channels = to_spec.module[1] if to_spec is not None else None
        return channels if isinstance(channels, (Deltas, Coord)) and x.shape[1] == channels.n_channels else None

    def with_channels(self, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Change spectrograms (batch, channels, mels, frames); derivatives and ramps are made anew."""
        channels = self.made_channels(x)
        if channels is None:
            return change(x)
        first = x[:, :1]
        changed = change(first)
        return x if changed is first else channels(changed[:, 0])

    # Inside the model, behind bn0.

    def before_fit(self) -> None:
        self._unhook()
        if self.place != "bn0":
            return
        bn0 = dict(self.learn.model.named_modules()).get("bn0")
        if bn0 is None:
            raise OptionError(
                f"{type(self).__name__} acts behind bn0, which {type(self.learn.model).__name__} doesn't have: "
                "take a PANNs network, or domain='log'"
            )
        self._hook = bn0.register_forward_hook(self._behind_bn0)

    def after_fit(self) -> None:
        self._unhook()

    def after_cancel_fit(self) -> None:
        self._unhook()

    def _unhook(self) -> None:
        if getattr(self, "_hook", None) is not None:
            self._hook.remove()
        self._hook = None

    def _behind_bn0(self, module: torch.nn.Module, inputs: Any, out: Tensor) -> Tensor | None:
        """Forward hook: the norm works on (batch, mels, frames, channels) or (batch, mels, channels, frames)."""
        # Two checks: a learner that was interrupted still says it trains, and a frozen norm is in eval mode while the rest trains.
        if not (self.active and self.learn.training and self.learn.model.training):
            return None
        channels = self.learn.xb[0].shape[1]
        frames_last = out.shape[2] == channels and out.shape[3] != channels
        spec = out.transpose(1, 2) if frames_last else out.permute(0, 3, 1, 2)
        changed = self.change_inside(spec)
        if changed is spec:
            return None
        return changed.transpose(1, 2) if frames_last else changed.permute(0, 2, 3, 1)

    def change_inside(self, spec: Tensor) -> Tensor:
        """As `change_batch`, for a tensor (batch, channels, mels, frames) inside the model, which needs its gradient."""
        return self.change_batch(spec, spec)


def checked_spec(spec: Tensor) -> Tensor:
    """A batch of spectrograms, or a `ShapeError`."""
    if spec.ndim != 4:
        raise ShapeError(
            f"got spectrograms of shape {tuple(spec.shape)}; expected (batch, channels, mels, frames): one clip is spec[None]"
        )
    return spec


class SpecAugmentation(BatchAugmentation):
    """A random change of single spectrograms: `draw`, then `apply`, for clips chosen with probability `p`.

    Parameters
    ----------
    p
        Probability for each clip.
    domain
        "log": the spectrogram as the network sees it. "power": the linear spectrogram, before logarithm and normalisation. "bn0": behind
        the input norm of a PANNs network.
    before_mixing
        Whether clips are changed before they are mixed, or the mixtures.
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
        self.p = checked_p(p)

    def draw(self, n: int, mels: int, frames: int, generator: torch.Generator | None = None) -> Any:
        """All random numbers for `n` clips, on the CPU."""
        raise NotImplementedError

    def apply(self, spec: Tensor, drawn: Any) -> Tensor:
        """The changed spectrograms; a pure function."""
        raise NotImplementedError

    def change(self, spec: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw and apply.

        Parameters
        ----------
        spec
            Shape (batch, channels, mels, frames).
        generator
            Instead of the change's own.

        Returns
        -------
        A new tensor of the same shape, or `spec` itself if no clip was chosen.
        """
        n, _, mels, frames = checked_spec(spec).shape
        generator = generator or self.generator
        chosen = chance(n, self.p, generator)
        drawn = self.draw(n, mels, frames, generator)
        if chosen.all():
            return self.apply(spec, drawn)
        rows = chosen.nonzero().flatten()
        if len(rows) == 0:
            return spec
        on_device = rows.to(spec.device)
        return spec.index_copy(0, on_device, self.apply(spec[on_device], rows_of(drawn, rows)))

    def change_batch(self, x: Tensor, batch: Tensor) -> Tensor:
        if self.place == "power":
            return self.change(x[:, None])[:, 0]
        return self.with_channels(x, self.change)

    def change_inside(self, spec: Tensor) -> Tensor:
        return self.change(spec)


def augmentation_callbacks(learn: Any) -> list[Any]:
    """Every random change of a learner that has a switch `active`: of batches, of mixing, of items."""
    return [cb for cb in learn.cbs if getattr(cb, "is_random_change", False)]


def set_augmentation(learn: Any, on: bool) -> None:
    """Switch all random changes of a learner on or off; those of items obey from the next epoch on, the others at once."""
    for change in augmentation_callbacks(learn):
        change.active = on
