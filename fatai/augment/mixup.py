"""Mixup: mixing clips and their labels in training, linear, OR, one after the other, and between class.

Each mixer is a fastai callback (`cbs=MixUpOr()`, or `mixup=` of `fat_learner`) with `draw` and `mix`, a pure function
of `fatai.augment.functional_mixup`; `fatai.augment.mixup_base` has the rest. Linear mixing is `LinearMixUp`; fastai's
`MixUp` keeps its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from fastcore.meta import delegates
from torch import Tensor

from fatai.audio.waveform import exact_dtype
from fatai.augment.batch_input import BatchInput
from fatai.augment.draws import check_range, draw_bernoulli, draw_integers, draw_uniform, take_rows
from fatai.augment.functional_mixup import between_class, concat_sigmoid, level_db, mix_linear, mix_or
from fatai.augment.mixup_base import Mixer, Pairs
from fatai.errors import OptionError
from fatai.registry import MIXERS, did_you_mean

__all__ = ["BetweenClass", "LinearMixUp", "MixUpOr", "OneOfMixers", "SigmoidConcat"]


class _LamDraws(NamedTuple):
    """Weight of the clip against its partner, float64, shape (pairs,)."""

    lam: Tensor


def draw_lam(n: int, lam: float | tuple[float, float], generator: torch.Generator | None = None) -> Tensor:
    """Draw `n` numbers of Beta(lam, lam), or of U(low, high) where `lam` is a pair; float64, shape (n,)."""
    if isinstance(lam, (tuple, list)):
        return draw_uniform(n, lam[0], lam[1], generator)
    # The function behind torch's own Beta, which takes no generator.
    return torch._sample_dirichlet(torch.full((n, 2), float(lam), dtype=torch.float64), generator)[:, 0]


def _check_lam(lam: float | tuple[float, float]) -> None:
    if isinstance(lam, (tuple, list)):
        check_range(lam, "lam", low=0, high=1)
    elif not lam > 0:
        raise OptionError(f"lam is {lam}; expected a > 0 for Beta(a, a), or a pair (low, high) for U(low, high)")


@MIXERS.register("mixup", source="Zhang et al., arXiv:1710.09412; as the FAT2019 9th place kernel draws it")
class LinearMixUp(Mixer):
    """Mix clips and labels linearly; the defaults are the 9th place's: one Beta(0.4, 0.4) for the whole batch.

    Parameters
    ----------
    lam
        A number a draws the clip's weight from Beta(a, a), a pair from U(low, high).
    per
        "batch": one weight, and one draw of `p`, for the whole batch. "clip": for each its own. "pair": neighbors are
        mixed into one, which halves the batch (PANNs); an odd clip at the end stays, and `p` must be 1.
    larger
        True gives the clip the larger of the two weights: max(lam, 1 - lam).
    p, domain, labels, partner, generator
        As in `Mixer`.

    Raises
    ------
    OptionError
        If `lam` is out of range, `per` is unknown, or does not go with `p` and `partner`.
    """

    @delegates(Mixer.__init__)
    def __init__(
        self, *, lam: float | tuple[float, float] = 0.4, per: str = "batch", larger: bool = False, **kwargs: Any
    ):
        super().__init__(**kwargs)
        _check_lam(lam)
        if per not in ("batch", "clip", "pair"):
            raise OptionError(f"per is {per!r}; {did_you_mean(per, ('batch', 'clip', 'pair'))}")
        if per == "pair" and (self.p != 1 or self.partner != "batch"):
            raise OptionError(
                f"per='pair' mixes neighbors: expected p=1 and partner='batch', not p={self.p} and "
                f"partner={self.partner!r}"
            )
        self.lam, self.per, self.larger = lam, per, larger

    def draw_pairs(self, n: int, generator: torch.Generator | None = None) -> Pairs:
        """Draw the partners of `n` clips, or pair neighbors."""
        if self.per == "pair":
            rows = torch.arange(0, n, 2)
            partners = (rows + 1).clamp(max=n - 1)
            return Pairs(rows, partners, rows != partners)
        pairs = super().draw_pairs(n, generator)
        if self.per == "clip":
            return pairs
        may_mix = (pairs.rows != pairs.partners) | (self.partner == "dataset")
        return pairs._replace(mixed=draw_bernoulli(1, self.p, generator) & may_mix)

    def draw(self, n: int, generator: torch.Generator | None = None) -> _LamDraws:
        """Draw the weights of `n` pairs."""
        lam = draw_lam(1 if self.per == "batch" else n, self.lam, generator).expand(n)
        return _LamDraws(torch.maximum(lam, 1 - lam) if self.larger else lam)

    def mix(self, x: Tensor, other: Tensor, drawn: _LamDraws, levels: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the mixtures, shaped like `x`, and the drawn weights, (pairs,)."""
        return mix_linear(x, other, drawn.lam), drawn.lam


@MIXERS.register("mixup_kaggle_fat", source="FAT2019 36th place repository; own code")
@delegates(LinearMixUp.__init__)
def mixup_kaggle_fat(**kwargs: Any) -> LinearMixUp:
    """Build mixup of the 36th place: for each clip Beta(0.4, 0.4), the clip's weight being the larger."""
    return LinearMixUp(**{"per": "clip", "larger": True, **kwargs})


@MIXERS.register("mixup_first_place", source="FAT2019 1st place (argus-freesound, MIT), mixer Add; own code")
@delegates(LinearMixUp.__init__)
def mixup_first_place(**kwargs: Any) -> LinearMixUp:
    """Build mixup of the 1st place: for each clip U(0, 0.5) of another one."""
    return LinearMixUp(**{"per": "clip", "lam": (0.5, 1.0), **kwargs})


@MIXERS.register("mixup_fourth_place", source="FAT2019 4th place repository (MIT); own code")
@delegates(LinearMixUp.__init__)
def mixup_fourth_place(**kwargs: Any) -> LinearMixUp:
    """Build mixup of the 4th place: in half of the clips, Beta(1, 1) of the linear spectrogram."""
    return LinearMixUp(**{"p": 0.5, "per": "clip", "lam": 1.0, "domain": "power", **kwargs})


@MIXERS.register("mixup_panns", source="PANNs, arXiv:1912.10211 (MIT); own code")
@delegates(LinearMixUp.__init__)
def mixup_panns(**kwargs: Any) -> LinearMixUp:
    """Build mixup of PANNs: neighbors in pairs, Beta(1, 1), behind bn0; half a batch remains."""
    return LinearMixUp(**{"per": "pair", "lam": 1.0, "domain": "bn0", **kwargs})


@MIXERS.register("mixup_gold_plan", source="Gold-only plan notebook, FAT2019; own code")
@delegates(LinearMixUp.__init__)
def mixup_gold_plan(**kwargs: Any) -> LinearMixUp:
    """Build mixup of the gold plan: Beta(0.4, 0.4) in half of the clips."""
    return LinearMixUp(**{"p": 0.5, "per": "clip", **kwargs})


class _OrDraws(NamedTuple):
    """Weight of the longer clip, and where the shorter begins, 0 to 1; each float64, shape (pairs,)."""

    lam: Tensor
    position: Tensor


@MIXERS.register("mixup_or", source="FAT2019 3rd place repository (Apache-2.0), write-up; own code")
class MixUpOr(Mixer):
    """Overlay two clips, the shorter somewhere within the longer, with the labels of both.

    Parameters
    ----------
    lam
        Lowest and highest weight of the longer clip, uniform; the shorter gets the rest. Clips of the same length get
        one half each. Length is that of the sound, without the silence that pads a clip to the length of the batch.
    overwrite
        True repeats a slip of the published code: where the shorter clip is, the longer one is left out.
    p, domain, labels, partner, generator
        As in `Mixer`. The 3rd place takes partners from the whole training set: partner="dataset".

    Raises
    ------
    OptionError
        If `lam` is no range within [0, 1].
    """

    rederives_channels = True

    @delegates(Mixer.__init__)
    def __init__(
        self,
        *,
        lam: tuple[float, float] = (0.4, 0.6),
        overwrite: bool = False,
        p: float = 0.5,
        domain: str = "wave",
        labels: str = "or",
        **kwargs: Any,
    ):
        super().__init__(p=p, domain=domain, labels=labels, **kwargs)
        check_range(lam, "lam", low=0, high=1)
        self.lam, self.overwrite = lam, overwrite

    def draw(self, n: int, generator: torch.Generator | None = None) -> _OrDraws:
        """Draw weights and positions of `n` pairs."""
        return _OrDraws(draw_uniform(n, *self.lam, generator), draw_uniform(n, 0, 1, generator))

    def mix(self, x: Tensor, other: Tensor, drawn: _OrDraws, levels: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the mixtures, shaped like `x`, and the weight of the clip in each, (pairs,)."""
        return mix_or(x, other, *drawn, domain=self.domain, overwrite=self.overwrite)


class _SteepnessDraws(NamedTuple):
    """Steepness of the cross-fade, int64, shape (pairs,)."""

    steepness: Tensor


@MIXERS.register("sigmoid_concat", source="FAT2019 1st place (argus-freesound, MIT); own code")
class SigmoidConcat(Mixer):
    """Cross-fade from the partner to the clip in the middle, with the labels of both.

    Parameters
    ----------
    steepness
        Lowest and highest whole number for the steepness of the cross-fade; see `concat_sigmoid`.
    p, domain, labels, partner, generator
        As in `Mixer`.

    Raises
    ------
    OptionError
        If `steepness` is no range from 1 up.
    """

    @delegates(Mixer.__init__)
    def __init__(self, *, steepness: tuple[int, int] = (3, 12), labels: str = "or", **kwargs: Any):
        super().__init__(labels=labels, **kwargs)
        check_range(steepness, "steepness", low=1)
        self.steepness = steepness

    def draw(self, n: int, generator: torch.Generator | None = None) -> _SteepnessDraws:
        """Draw the steepness of `n` pairs."""
        return _SteepnessDraws(draw_integers(n, *self.steepness, generator=generator))

    def mix(
        self, x: Tensor, other: Tensor, drawn: _SteepnessDraws, levels: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the cross-fades, shaped like `x`, and one half for each, (pairs,)."""
        return concat_sigmoid(x, other, drawn.steepness), torch.full((len(x),), 0.5)


@MIXERS.register(
    "between_class",
    source="Tokozume et al., arXiv:1711.10282; FAT2019 4th place (MIT), here with a partner clip; own code",
)
class BetweenClass(Mixer):
    """Mix by perceived loudness, labels linear in the drawn weight; see the function `between_class`.

    Parameters
    ----------
    lam
        As in `LinearMixUp`.
    p, domain, labels, partner, generator
        As in `Mixer`. In the "log" domain levels are those of the waves that the batch carries; without them all clips
        count as equally loud.
    """

    @delegates(Mixer.__init__)
    def __init__(self, *, lam: float | tuple[float, float] = 1.0, domain: str = "wave", **kwargs: Any):
        super().__init__(domain=domain, **kwargs)
        _check_lam(lam)
        self.lam = lam

    def draw(self, n: int, generator: torch.Generator | None = None) -> _LamDraws:
        """Draw the weights of `n` pairs."""
        return _LamDraws(draw_lam(n, self.lam, generator))

    def levels(self, x: Tensor, batch: BatchInput | None = None) -> Tensor:
        """Return the level of each clip in dB, (batch,): of `x`, or in the "log" domain of the waves in `batch`."""
        if self.domain in ("wave", "power"):
            return level_db(x, self.domain)
        if batch is None or batch.takes_wave or batch.wave is None:
            return super().levels(x, batch)
        return level_db(batch.wave, "wave")

    def mix(self, x: Tensor, other: Tensor, drawn: _LamDraws, levels: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the mixtures, shaped like `x`, and the drawn weights, (pairs,)."""
        return between_class(x, other, drawn.lam, *levels, domain=self.domain), drawn.lam


class _ChoiceDraws(NamedTuple):
    """Index of the mixer of each pair, int64 (pairs,), and the draws of every mixer."""

    choice: Tensor
    drawn: Any


class OneOfMixers(Mixer):
    """Mix each clip by one of several mixers, drawn at random.

    Parameters
    ----------
    mixers
        Names of `MIXERS`, or mixers of this one's domain; their draws, mixtures and label rules are used, their other
        options are not.
    weights
        Relative probability of each mixer; None draws all alike.
    p, domain, partner, generator
        As in `Mixer`.

    Raises
    ------
    OptionError
        If there are no mixers, `weights` do not fit them, or one acts in another domain.
    """

    @delegates(Mixer.__init__, but=["labels"])
    def __init__(self, mixers: Sequence[str | Mixer], *, weights: Sequence[float] | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.mixers = [MIXERS.build(m, domain=self.domain) if isinstance(m, str) else m for m in mixers]
        weights = [1.0] * len(self.mixers) if weights is None else list(weights)
        if not self.mixers or len(weights) != len(self.mixers) or min(weights) < 0 or sum(weights) <= 0:
            raise OptionError(
                f"weights is {weights} for {len(self.mixers)} mixers; expected a number from 0 up for each, not all 0"
            )
        odd = next((m for m in self.mixers if m.domain != self.domain), None)
        if odd is not None:
            raise OptionError(
                f"{type(odd).__name__} acts on the {odd.domain}; expected mixers of one domain, here {self.domain!r}"
            )
        self.weights = torch.tensor(weights, dtype=torch.float64)
        self.rederives_channels = any(m.rederives_channels for m in self.mixers)

    def draw(self, n: int, generator: torch.Generator | None = None) -> _ChoiceDraws:
        """Draw a mixer for each of `n` pairs, and the numbers of all mixers."""
        cumulative = self.weights.cumsum(0) / self.weights.sum()
        index = torch.bucketize(draw_uniform(n, 0, 1, generator), cumulative, right=True)
        return _ChoiceDraws(index.clamp(max=len(self.mixers) - 1), tuple(m.draw(n, generator) for m in self.mixers))

    def levels(self, x: Tensor, batch: BatchInput | None = None) -> Tensor:
        """Return the level of each clip in dB, shape (batch,), by the first mixer that needs levels."""
        measuring = next((m for m in self.mixers if type(m).levels is not Mixer.levels), None)
        return super().levels(x, batch) if measuring is None else measuring.levels(x, batch)

    def mix(
        self, x: Tensor, other: Tensor, drawn: _ChoiceDraws, levels: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the mixtures, shaped like `x`, and the weight of the clip in each, (pairs,)."""
        mixed, lam = x.clone(), torch.ones(len(x), dtype=exact_dtype(x.device), device=x.device)
        for mixer, rows, row_draws in self._parts(drawn):
            at = rows.to(x.device)
            values, weights = mixer.mix(x[at], other[at], row_draws, (levels[0][at], levels[1][at]))
            mixed, lam = mixed.index_copy(0, at, values), lam.index_copy(0, at, weights.to(lam))
        return mixed, lam

    def mix_targ(self, targ: Tensor, other: Tensor, lam: Tensor, drawn: _ChoiceDraws) -> Tensor:
        """Return the labels (pairs, tags), each by the rule of its mixer."""
        mixed = targ
        for mixer, rows, row_draws in self._parts(drawn):
            at = rows.to(targ.device)
            mixed = mixed.index_copy(0, at, mixer.mix_targ(targ[at], other[at], lam[at], row_draws))
        return mixed

    def _parts(self, drawn: _ChoiceDraws) -> list[tuple[Mixer, Tensor, Any]]:
        """Return each mixer that was drawn, with the rows of its pairs and their draws."""
        rows = [(drawn.choice == i).nonzero().flatten() for i in range(len(self.mixers))]
        return [(m, r, take_rows(d, r)) for m, r, d in zip(self.mixers, rows, drawn.drawn, strict=True) if len(r)]


@MIXERS.register("mixer_first_place", source="FAT2019 1st place (argus-freesound, MIT); own code")
@delegates(Mixer.__init__, but=["labels"])
def mixer_first_place(**kwargs: Any) -> OneOfMixers:
    """Build the 1st place's mixer: p 0.8, SigmoidConcat (60 %) or mixup with up to one half of another clip (40 %)."""
    options = {"p": 0.8, **kwargs}
    return OneOfMixers(["sigmoid_concat", "mixup_first_place"], weights=[0.6, 0.4], **options)


@MIXERS.register("mixup_or_third_place", source="FAT2019 3rd place repository (Apache-2.0); own code")
@delegates(MixUpOr.__init__)
def mixup_or_third_place(**kwargs: Any) -> MixUpOr:
    """Build OR mixing with partners from the whole training set, as in the 3rd place's code."""
    return MixUpOr(**{"partner": "dataset", **kwargs})
