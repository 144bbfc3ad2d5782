"""Base classes of the augmentations, and the callback that runs them in training.

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

from typing import Any

import torch
from fastai.callback.core import Callback as FastaiCallback
from torch import Tensor

from fatai.augment.batch_input import BatchInput, check_spec_batch
from fatai.augment.draws import check_probability, draw_bernoulli, take_rows
from fatai.data.tensors import TensorWave
from fatai.data.transforms import WaveToSpec
from fatai.errors import OptionError
from fatai.registry import did_you_mean

__all__ = [
    "AugmentBatch",
    "BatchAugmentation",
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
            spec = x[:, None]
            augmented = self.augment(spec)
            return x if augmented is spec else augmented[:, 0]
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
