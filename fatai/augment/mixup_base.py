"""Base class of the mixers: pairs of clips, and mixing of labels and sample weights.

A mixer is a fastai callback that pairs the clips of a training batch with partners, draws all numbers with a row for
each pair, and applies a pure function of `fatai.augment.functional_mixup`. Labels are mixed too, and so are the sample
weights and the flags of noisy clips that the loss was given (`TagLoss.sample_weight`, `TagLoss.noisy`), by the weights
of the two clips. Validation batches are never mixed. A clip that is drawn as its own partner stays as it is, so a batch
of one is safe.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fatai.audio.waveform import fit_length
from fatai.augment.base import BatchAugmentation, find_front_end
from fatai.augment.batch_input import BatchInput, restore_type, to_plain_tensor
from fatai.augment.draws import check_probability, draw_bernoulli, take_rows
from fatai.augment.functional_mixup import LABEL_RULES, mix_labels, mix_linear
from fatai.errors import OptionError, ShapeError
from fatai.losses.composite import weighted_loss
from fatai.registry import did_you_mean

__all__ = ["Mixed", "Mixer", "PARTNERS", "Pairs"]

PARTNERS = ("batch", "dataset")
"""Sources of the partners: the same batch, or the whole training set."""


class Pairs(NamedTuple):
    """Pairs of clips: rows of the clips, rows of their partners, and True where they are mixed; each (pairs,)."""

    rows: Tensor
    partners: Tensor
    mixed: Tensor


class Mixed(NamedTuple):
    """A mixed batch.

    Attributes
    ----------
    x
        Values in the mixer's domain, shape (pairs, ...).
    targ
        Labels, shape (pairs, tags).
    pairs
        The pairs behind each row.
    lam
        Weight of the clip against its partner, float64, shape (pairs,); 1 where nothing was mixed.
    """

    x: Tensor
    targ: Tensor
    pairs: Pairs
    lam: Tensor


class _PartnerBatch(NamedTuple):
    """Partners of the clips of a batch: their input, labels and further targets."""

    batch: BatchInput
    targ: Tensor
    rest: tuple[Tensor, ...]


class Mixer(BatchAugmentation):
    """Base of all mixers: pairs, labels, weights. A mixer adds `draw` and `mix`.

    Parameters
    ----------
    p
        Probability for each clip to be mixed.
    domain
        "wave", "power" (the linear spectrogram), "log" (the input of the network), "bn0" (behind the input norm of a
        PANNs network).
    labels
        "linear" (weighted by lam) or "or" (the tags of either clip).
    partner
        "batch": a random permutation of the batch. "dataset": clips drawn from the whole training set, with
        replacement, and loaded for it.
    generator
        Of the draws; None is torch's global one.

    Raises
    ------
    OptionError
        If a value is unknown, or partners from the data set are asked for behind bn0.
    """

    rederives_channels = False

    def __init__(
        self, *, p: float = 1.0, domain: str = "log", labels: str = "linear", partner: str = "batch",
        generator: torch.Generator | None = None,
    ):
        super().__init__(domain, 0, generator)
        if labels not in LABEL_RULES:
            raise OptionError(f"labels is {labels!r}; {did_you_mean(labels, LABEL_RULES)}")
        if partner not in PARTNERS:
            raise OptionError(f"partner is {partner!r}; {did_you_mean(partner, PARTNERS)}")
        if partner == "dataset" and domain == "bn0":
            raise OptionError(
                "partner='dataset' needs clips from outside of the batch, which don't pass the network: take "
                "partner='batch'"
            )
        self.p, self.labels, self.partner = check_probability(p), labels, partner
        self._partners: Iterator[Any] | None = None

    def draw_pairs(self, n: int, generator: torch.Generator | None = None) -> Pairs:
        """Draw the partners of `n` clips."""
        rows = torch.arange(n)
        partners = torch.randperm(n, generator=generator) if self.partner == "batch" else rows
        # Of partners from the data set the i-th is for the i-th clip; in the batch no clip is mixed with itself.
        may_mix = (partners != rows) | (self.partner == "dataset")
        return Pairs(rows, partners, draw_bernoulli(n, self.p, generator) & may_mix)

    def draw(self, n: int, generator: torch.Generator | None = None) -> Any:
        """Draw all other random numbers for `n` pairs: a named tuple of tensors with `n` rows, on the CPU."""
        raise NotImplementedError

    def mix(self, x: Tensor, other: Tensor, drawn: Any, levels: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Mix pairs; a pure function.

        Parameters
        ----------
        x, other
            Clips and partners, shape (pairs, ...).
        drawn
            Of `draw`.
        levels
            Of the clips and the partners in dB, each (pairs,).

        Returns
        -------
        The mixtures, shaped like `x`, and the weight of the clip in each, (pairs,).
        """
        raise NotImplementedError

    def mix_targ(self, targ: Tensor, other: Tensor, lam: Tensor, drawn: Any) -> Tensor:
        """Return the labels (pairs, tags) of the mixtures of clips and partners with weights `lam`, (pairs,)."""
        return mix_labels(targ, other, lam, self.labels)

    def levels(self, x: Tensor, batch: BatchInput | None = None) -> Tensor:
        """Return the level of each clip of `x`, (batch, ...), in dB, (batch,); 0 unless the mixer needs levels."""
        return torch.zeros(len(x), device=x.device)

    def augment(
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
            The batch in the mixer's domain, shape (batch, ...).
        targ
            Shape (batch, tags), floats.
        partners
            Values and labels of the partners where they come from the data set; None takes them from the batch.
        levels
            Of the clips and the partners, in dB, each (batch,); None measures them where the mixer needs them.
        generator
            In place of the mixer's own.

        Raises
        ------
        ShapeError
            If `targ` is not multi-hot floats with a row for each clip.
        """
        _check_targets(x, targ)
        generator = generator or self.generator
        other_x, other_targ = (x, targ) if partners is None else partners
        pairs = self.draw_pairs(len(x), generator)
        drawn = self.draw(len(pairs.rows), generator)
        if not pairs.mixed.any() and torch.equal(pairs.rows, torch.arange(len(x))):
            return Mixed(x, targ, pairs, torch.ones(len(x), dtype=torch.float64))
        levels = levels or (self.levels(x), self.levels(other_x))
        return self._mix_pairs((x, targ), (other_x, other_targ), levels, pairs, drawn)

    def _mix_pairs(
        self,
        clips: tuple[Tensor, Tensor],
        partners: tuple[Tensor, Tensor],
        levels: tuple[Tensor, Tensor],
        pairs: Pairs,
        drawn: Any,
    ) -> Mixed:
        """Mix values and labels of clips and partners, each (values, labels), where the pairs are mixed."""
        (x, targ), (other_x, other_targ), (level, other_level) = clips, partners, levels
        mixed = pairs.mixed.nonzero().flatten()
        rows, others = pairs.rows[mixed].to(x.device), pairs.partners[mixed].to(x.device)
        row_draws = take_rows(drawn, mixed)
        x_rows, other_rows = x.index_select(0, rows), other_x.index_select(0, others)  # faster than x[rows] on a CPU
        values, weights = self.mix(x_rows, other_rows, row_draws, (level[rows], other_level[others]))
        targets = self.mix_targ(targ[rows], other_targ[others], weights.to(targ), row_draws)
        first, at = pairs.rows.to(x.device), mixed.to(x.device)
        lam = torch.ones(len(pairs.rows), dtype=torch.float64).index_copy(0, mixed, weights.cpu().double())
        mixtures = x.index_select(0, first).index_copy_(0, at, values)
        return Mixed(mixtures, targ[first].index_copy(0, at, targets), pairs, lam)

    # In the batch

    def augment_values(self, x: Tensor, batch: BatchInput) -> Tensor:
        """Return the mixtures, (pairs, ...), and replace the learner's labels and sample weights by theirs."""
        if not len(self.learn.yb):
            raise OptionError(f"{type(self).__name__} mixes labels with sounds, but these batches have no labels")
        targ, rest = self.learn.yb[0], self.learn.yb[1:]
        from_batch = self.partner == "batch"
        partners = _PartnerBatch(batch, targ, rest) if from_batch else self._next_partners(len(x))
        other = x if from_batch else _fit_to(self._values(partners.batch).to(x.device), x, self.domain)
        levels = self.levels(x, batch), self.levels(other, partners.batch)
        channels = batch.derived_channels(x) if self.rederives_channels and self.domain == "log" else None
        first, other = (x, other) if channels is None else (x[:, :1], other[:, :1])
        given = None if from_batch else (other, to_plain_tensor(partners.targ))
        done = self.augment(first, to_plain_tensor(targ), given, levels=levels)
        if done.x is first:
            return x
        # Weights that SampleWeights has given to the loss are no longer in the batch, but in that of the partners.
        mixed_rest = [
            self._mix_numbers(to_plain_tensor(a), to_plain_tensor(b), done)
            for a, b in zip(rest, partners.rest, strict=False)
        ]
        self.learn.yb = (restore_type(done.targ, targ), *mixed_rest)
        self._mix_weights(() if from_batch else partners.rest, len(x), done)
        return done.x if channels is None else channels(done.x[:, 0])

    def _mix_numbers(self, numbers: Tensor, other: Tensor, done: Mixed) -> Tensor:
        """Mix any numbers of the clips, (batch, ...), by the weights of a mixed batch."""
        rows, others = done.pairs.rows.to(numbers.device), done.pairs.partners.to(numbers.device)
        return mix_linear(numbers[rows], other[others].to(numbers), done.lam)

    def _mix_weights(self, of_partners: Sequence[Tensor], n: int, done: Mixed) -> None:
        """Mix the weights and noisy flags that the loss was given; `of_partners` has those of another batch."""
        loss = weighted_loss(self.learn.loss_func)
        if loss is not None:
            others = [*of_partners[:2], None, None]
            weight = self._mix_given(loss.sample_weight, others[0], n, done)
            loss.set_batch(weight, self._mix_given(loss.noisy, others[1], n, done))

    def _mix_given(self, numbers: Tensor | None, other: Tensor | None, n: int, done: Mixed) -> Tensor | None:
        """Mix numbers (batch,) or (batch, tags) with the partners' (None: from the batch); others stay as they are."""
        if numbers is None or numbers.ndim == 0 or len(numbers) != n:
            return numbers
        numbers = to_plain_tensor(numbers)
        partner_numbers = numbers if other is None else to_plain_tensor(other).view_as(numbers)
        return self._mix_numbers(numbers if numbers.is_floating_point() else numbers.float(), partner_numbers, done)

    # Partners from the whole training set

    def _next_partners(self, n: int) -> _PartnerBatch:
        to_spec = find_front_end(self.learn.dls)
        if to_spec is not None:
            to_spec.deferred = self.domain in ("wave", "power")
        batch = None if self._partners is None else next(self._partners, None)
        if batch is None:
            self._partners = self._load_partners()
            batch = next(self._partners)
        targets = batch[getattr(self.learn.dls.train, "n_inp", 1):]
        inputs = BatchInput.from_tensor(batch[0], to_spec)
        return _PartnerBatch(inputs, targets[0][:n], tuple(r[:n] for r in targets[1:]))

    def _load_partners(self) -> Iterator[Any]:
        """Load as many clips as an epoch needs, drawn with replacement, as the training clips are loaded."""
        loader = self.learn.dls.train
        drawn = torch.randint(
            len(loader.dataset), (max(1, len(loader)) * loader.bs,), generator=self.generator
        ).tolist()
        return iter(loader.new(shuffle=False, drop_last=False, get_idxs=partial(list, drawn)))

    def before_train(self) -> None:
        """Start with new partners."""
        self._partners = None

    def after_train(self) -> None:
        """Free the partners."""
        self._partners = None

    def after_cancel_train(self) -> None:
        """Free the partners."""
        self._partners = None


def _check_targets(x: Tensor, targ: Tensor) -> None:
    if not targ.is_floating_point() or targ.ndim != 2 or len(targ) != len(x):
        raise ShapeError(
            f"labels have shape {tuple(targ.shape)} and type {targ.dtype}; mixing needs multi-hot floats of shape "
            f"({len(x)}, tags): read them with a MultiCategoryBlock"
        )


def _fit_to(other: Tensor, x: Tensor, domain: str) -> Tensor:
    """Take as many partners as there are clips in `x`, and pad them with silence or cut them to the length of `x`."""
    pad_mode = "constant_right" if domain in ("wave", "power") else "minimum_center"
    left = 0 if other.shape[-1] < x.shape[-1] else None
    return fit_length(other[:len(x)], x.shape[-1], pad_mode, left=left, cut="right")
