"""What all mixers share: who is mixed with whom, and what becomes of labels and weights.

A mixer is a fastai callback that pairs the clips of a training batch with partners, draws what it needs with a row for each pair, and
applies a pure function of `fatai.augment.functional_mixup`. Labels follow, and so do the weights and the marks of noisy clips that the loss was
given (`TagLoss.sample_weight`, `TagLoss.noisy`): by the shares of the two clips. Validation never sees a mixture. A clip that is drawn as its own partner
stays as it is, so a batch of one is safe.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fatai.audio.waveform import fit_length
from fatai.augment.base import BatchAugmentation, chance, checked_p, like_tensor, plain, rows_of
from fatai.augment.functional_mixup import LABEL_RULES, mix_labels, mix_linear
from fatai.errors import OptionError, ShapeError
from fatai.losses.composite import weighted_loss
from fatai.registry import did_you_mean

__all__ = ["Mixed", "Mixer", "PARTNERS", "Pairs"]

PARTNERS = ("batch", "set")
"""Where partners come from: the same batch, or the whole training set."""


class Pairs(NamedTuple):
    """Who is mixed with whom: rows of the own clips, rows of their partners, and whether they are mixed at all; each (pairs,)."""

    own: Tensor
    other: Tensor
    mixed: Tensor


class Mixed(NamedTuple):
    """A mixed batch: its values, its labels, its pairs, and the own clip's share in each (1 where nothing was mixed)."""

    x: Tensor
    targ: Tensor
    pairs: Pairs
    share: Tensor


class Mixer(BatchAugmentation):
    """What all mixers share: pairs, labels, weights; a mixer adds `draw` and `mix`.

    Parameters
    ----------
    p
        Probability for each clip to be mixed.
    domain
        "wave", "power" (the linear spectrogram), "log" (the spectrogram as the network sees it), "bn0" (behind the input norm of a PANNs
        network).
    labels
        "linear" (by the shares) or "or" (what either clip has).
    partner
        "batch": a random permutation of the batch. "set": clips drawn from the whole training set, with replacement, and loaded for it.
    generator
        Of the draws; None is torch's global one.
    """

    remakes_channels = False

    def __init__(
        self, *, p: float = 1.0, domain: str = "log", labels: str = "linear", partner: str = "batch",
        generator: torch.Generator | None = None,
    ):
        super().__init__(domain, 0, generator)
        if labels not in LABEL_RULES:
            raise OptionError(f"labels is {labels!r}; {did_you_mean(labels, LABEL_RULES)}")
        if partner not in PARTNERS:
            raise OptionError(f"partner is {partner!r}; {did_you_mean(partner, PARTNERS)}")
        if partner == "set" and domain == "bn0":
            raise OptionError(
                "partner='set' needs clips from outside of the batch, which don't pass the network: take partner='batch'"
            )
        self.p, self.labels, self.partner = checked_p(p), labels, partner
        self._partners: Iterator[Any] | None = None

    def draw_pairs(self, n: int, generator: torch.Generator | None = None) -> Pairs:
        """Partners for `n` clips."""
        own = torch.arange(n)
        other = torch.randperm(n, generator=generator) if self.partner == "batch" else own
        # Of partners from elsewhere the i-th is for the i-th clip; in the batch nobody is mixed with himself.
        return Pairs(own, other, chance(n, self.p, generator) & ((other != own) | (self.partner == "set")))

    def draw(self, n: int, generator: torch.Generator | None = None) -> Any:
        """All other random numbers for `n` pairs, a named tuple on the CPU."""
        raise NotImplementedError

    def mix(self, x: Tensor, other: Tensor, drawn: Any, levels: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The mixtures of the pairs, and the share of the own clip in each; a pure function."""
        raise NotImplementedError

    def mix_targ(self, targ: Tensor, other: Tensor, share: Tensor, drawn: Any) -> Tensor:
        """The labels of the mixtures."""
        return mix_labels(targ, other, share, self.labels)

    def levels(self, x: Tensor, batch: Any) -> Tensor:
        """How loud each clip is in dB, where the mixer asks for it."""
        return torch.zeros(len(x), device=x.device)

    def change(
        self,
        x: Tensor,
        targ: Tensor,
        partners: tuple[Tensor, Tensor] | None = None,
        *,
        levels: tuple[Tensor, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> Mixed:
        """Draw and mix.

        Parameters
        ----------
        x
            What the domain holds, clips first.
        targ
            Shape (batch, tags), floats.
        partners
            Values and labels of the partners where they come from elsewhere; None takes them from the batch.
        levels
            Of the clips and the partners, in dB; None measures them where the mixer needs them.
        generator
            Instead of the mixer's own.
        """
        if not targ.is_floating_point() or targ.ndim != 2 or len(targ) != len(x):
            raise ShapeError(
                f"labels have shape {tuple(targ.shape)} and type {targ.dtype}; mixing needs multi-hot floats of shape "
                f"({len(x)}, tags): read them with a MultiCategoryBlock"
            )
        generator = generator or self.generator
        other_x, other_targ = (x, targ) if partners is None else partners
        pairs = self.draw_pairs(len(x), generator)
        drawn = self.draw(len(pairs.own), generator)
        all_stay = torch.equal(pairs.own, torch.arange(len(x)))
        rows = pairs.mixed.nonzero().flatten()
        share = torch.ones(len(pairs.own), dtype=torch.float64)
        if len(rows) == 0 and all_stay:
            return Mixed(x, targ, pairs, share)
        on_device = rows.to(x.device)
        own, other = pairs.own[rows].to(x.device), pairs.other[rows].to(x.device)
        own_levels, other_levels = levels or (self.levels(x, x), self.levels(other_x, other_x))
        row_draws = rows_of(drawn, rows)
        values, shares = self.mix(x[own], other_x[other], row_draws, (own_levels[own], other_levels[other]))
        targets = self.mix_targ(targ[own], other_targ[other], shares.to(targ), row_draws)
        first = pairs.own.to(x.device)
        return Mixed(
            (x if all_stay else x[first]).index_copy(0, on_device, values),
            (targ if all_stay else targ[first]).index_copy(0, on_device, targets),
            pairs, share.index_copy(0, rows, shares.double().cpu()),
        )

    # In the batch

    def change_batch(self, x: Tensor, batch: Tensor) -> Tensor:
        if not len(self.learn.yb):
            raise OptionError(f"{type(self).__name__} mixes labels with sounds, but these batches have no labels")
        targ, rest = self.learn.yb[0], self.learn.yb[1:]
        other_batch, other_targ, other_rest = (
            (batch, targ, rest) if self.partner == "batch" else self._next_partners(len(x))
        )
        other = x if other_batch is batch else _as_long(plain(self._reach(other_batch)).to(x.device), x, self.place)
        levels = self.levels(x, batch), self.levels(other, other_batch)
        channels = self.made_channels(x) if self.remakes_channels and self.place == "log" else None
        own, other = (x, other) if channels is None else (x[:, :1], other[:, :1])
        done = self.change(
            own, plain(targ), None if other_batch is batch else (other, plain(other_targ)), levels=levels
        )
        if done.x is own:
            return x
        # Weights that SampleWeights has told the loss are no longer in the batch, but in that of the partners.
        self.learn.yb = (
            like_tensor(targ, done.targ), *(self._shared(plain(a), plain(b), done) for a, b in zip(rest, other_rest)),
        )
        self._share_in_loss(other_rest if other_batch is not batch else (), len(x), done)
        return done.x if channels is None else channels(done.x[:, 0])

    def _shared(self, own: Tensor, other: Tensor, done: Mixed) -> Tensor:
        """Any numbers of the clips, mixed by their shares."""
        rows, others = done.pairs.own.to(own.device), done.pairs.other.to(own.device)
        return mix_linear(own[rows], other[others].to(own), done.share)

    def _share_in_loss(self, elsewhere: Sequence[Tensor], n: int, done: Mixed) -> None:
        """Weights and noisy marks that the loss was given for this batch, mixed; those of partners from elsewhere are in their batch."""
        loss = weighted_loss(self.learn.loss_func)
        for i, name in enumerate(("sample_weight", "noisy") if loss is not None else ()):
            own = getattr(loss, name)
            if not isinstance(own, Tensor) or own.ndim == 0 or len(own) != n:
                continue
            own = plain(own)
            other = own if self.partner == "batch" else plain(elsewhere[i]).view_as(own) if i < len(elsewhere) else own
            setattr(loss, name, self._shared(own if own.is_floating_point() else own.float(), other, done))

    # Partners from the whole training set

    def _next_partners(self, n: int) -> tuple[Any, Tensor, tuple[Tensor, ...]]:
        batch = None if self._partners is None else next(self._partners, None)
        if batch is None:
            self._partners = self._new_partners()
            batch = next(self._partners)
        targets = batch[getattr(self.learn.dls.train, "n_inp", 1):]
        return batch[0], targets[0][:n], tuple(r[:n] for r in targets[1:])

    def _new_partners(self) -> Iterator[Any]:
        """As many clips as an epoch needs, drawn with replacement, loaded as the training clips are."""
        loader = self.learn.dls.train
        drawn = torch.randint(
            len(loader.dataset), (max(1, len(loader)) * loader.bs,), generator=self.generator
        ).tolist()
        return iter(loader.new(shuffle=False, drop_last=False, get_idxs=partial(list, drawn)))

    def before_train(self) -> None:
        self._partners = None

    def after_train(self) -> None:
        self._partners = None

    def after_cancel_train(self) -> None:
        self._partners = None


def _as_long(other: Tensor, x: Tensor, place: str) -> Tensor:
    """Partners from elsewhere, as many and as long as the clips: silence behind, or cut."""
    silence = "constant_right" if place in ("wave", "power") else "minimum_center"
    left = 0 if other.shape[-1] < x.shape[-1] else None
    return fit_length(other[:len(x)], x.shape[-1], silence, left=left, cut="right")
