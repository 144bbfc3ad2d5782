"""Mixing clips and their labels in training: linear, OR, one after the other, between class.

Each mixer is a fastai callback (`cbs=MixUpOr()`, or `mixup=` of `fat_learner`) with `draw` and `mix`, a pure function of
`fatai.augment.functional_mixup`; what they share is told in `fatai.augment.mixup_base`. Linear mixing is `LinearMixUp`; fastai's `MixUp` keeps its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from fastcore.meta import delegates
from torch import Tensor

from fatai.augment.base import chance, checked_range, integers, plain, rows_of, uniform
from fatai.augment.mixup_base import Mixer, Pairs
from fatai.augment.functional_mixup import between_class, concat_sigmoid, level_db, mix_linear, mix_or
from fatai.errors import OptionError
from fatai.registry import MIXERS, did_you_mean

__all__ = ["BetweenClass", "LinearMixUp", "OneOfMixers", "MixUpOr", "SigmoidConcat"]


class _Share(NamedTuple):
    """The own clip's share, float64 (pairs,)."""

    share: Tensor


def draw_share(n: int, lam: float | tuple[float, float], generator: torch.Generator | None = None) -> Tensor:
    """`n` numbers of Beta(lam, lam), or of U(low, high) where `lam` is a pair; float64 (n,)."""
    if isinstance(lam, (tuple, list)):
        return uniform(n, lam[0], lam[1], generator)
    # What torch's own Beta draws from, but with a generator.
    return torch._sample_dirichlet(torch.full((n, 2), float(lam), dtype=torch.float64), generator)[:, 0]


def _checked_lam(lam: float | tuple[float, float]) -> None:
    if isinstance(lam, (tuple, list)):
        checked_range(lam, "lam", low=0, high=1)
    elif not lam > 0:
        raise OptionError(f"lam is {lam}; expected a > 0 for Beta(a, a), or a pair (low, high) for U(low, high)")


@MIXERS.register("mixup", source="Zhang et al., arXiv:1710.09412; as the FAT2019 9th place kernel draws it")
class LinearMixUp(Mixer):
    """A share of one clip and the rest of another, labels likewise; as it stands, the 9th place's: one Beta(0.4, 0.4) for the whole batch.

    Parameters
    ----------
    lam
        A number a draws the own clip's share from Beta(a, a), a pair from U(low, high).
    per
        "batch": one share, and one coin of `p`, for the whole batch. "clip": for each its own. "pair": neighbours are mixed into one, which
        halves the batch (PANNs); an odd clip at the end stays, and `p` must be 1.
    larger
        Whether the own clip gets the larger of the two shares: max(lam, 1 - lam).
    p, domain, labels, partner, generator
        As in `Mixer`.
    """

    @delegates(Mixer.__init__)
    def __init__(
        self, *, lam: float | tuple[float, float] = 0.4, per: str = "batch", larger: bool = False, **kwargs: Any
    ):
        super().__init__(**kwargs)
        _checked_lam(lam)
        if per not in ("batch", "clip", "pair"):
            raise OptionError(f"per is {per!r}; {did_you_mean(per, ('batch', 'clip', 'pair'))}")
        if per == "pair" and (self.p != 1 or self.partner != "batch"):
            raise OptionError(
                f"per='pair' mixes neighbours: expected p=1 and partner='batch', not p={self.p} and partner={self.partner!r}"
            )
        self.lam, self.per, self.larger = lam, per, larger

    def draw_pairs(self, n: int, generator: torch.Generator | None = None) -> Pairs:
        if self.per == "pair":
            own = torch.arange(0, n, 2)
            other = (own + 1).clamp(max=n - 1)
            return Pairs(own, other, own != other)
        pairs = super().draw_pairs(n, generator)
        if self.per == "clip":
            return pairs
        mixed = chance(1, self.p, generator) & ((pairs.own != pairs.other) | (self.partner == "set"))
        return pairs._replace(mixed=mixed)

    def draw(self, n: int, generator: torch.Generator | None = None) -> _Share:
        share = draw_share(1 if self.per == "batch" else n, self.lam, generator).expand(n)
        return _Share(torch.maximum(share, 1 - share) if self.larger else share)

    def mix(self, x: Tensor, other: Tensor, drawn: _Share, levels: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return mix_linear(x, other, drawn.share), drawn.share


@MIXERS.register("mixup_kaggle_fat", source="FAT2019 36th place repository; own code")
@delegates(LinearMixUp.__init__)
def mixup_kaggle_fat(**kwargs: Any) -> LinearMixUp:
    """Mixup of the 36th place: for each clip Beta(0.4, 0.4), the own share being the larger."""
    return LinearMixUp(**{"per": "clip", "larger": True, **kwargs})


@MIXERS.register("mixup_first", source="FAT2019 1st place (argus-freesound, MIT), mixer Add; own code")
@delegates(LinearMixUp.__init__)
def mixup_first(**kwargs: Any) -> LinearMixUp:
    """Mixup of the 1st place: for each clip U(0, 0.5) of another one."""
    return LinearMixUp(**{"per": "clip", "lam": (0.5, 1.0), **kwargs})


@MIXERS.register("mixup_fourth", source="FAT2019 4th place repository (MIT); own code")
@delegates(LinearMixUp.__init__)
def mixup_fourth(**kwargs: Any) -> LinearMixUp:
    """Mixup of the 4th place: in half of the clips, Beta(1, 1) of the linear spectrogram."""
    return LinearMixUp(**{"p": 0.5, "per": "clip", "lam": 1.0, "domain": "power", **kwargs})


@MIXERS.register("mixup_panns", source="PANNs, arXiv:1912.10211 (MIT); own code")
@delegates(LinearMixUp.__init__)
def mixup_panns(**kwargs: Any) -> LinearMixUp:
    """Mixup of PANNs: neighbours in pairs, Beta(1, 1), behind bn0; half a batch remains."""
    return LinearMixUp(**{"per": "pair", "lam": 1.0, "domain": "bn0", **kwargs})


@MIXERS.register("mixup_gold_plan", source="Gold-only plan notebook, FAT2019; own code")
@delegates(LinearMixUp.__init__)
def mixup_gold_plan(**kwargs: Any) -> LinearMixUp:
    """Mixup of the gold plan: Beta(0.4, 0.4) in half of the clips."""
    return LinearMixUp(**{"p": 0.5, "per": "clip", **kwargs})


class _Placed(NamedTuple):
    """The longer clip's share, and where the shorter begins, 0 to 1; float64 (pairs,)."""

    share: Tensor
    place: Tensor


@MIXERS.register("mixup_or", source="FAT2019 3rd place repository (Apache-2.0), write-up; own code")
class MixUpOr(Mixer):
    """Two sounds at once, the shorter somewhere within the longer, with the labels of both.

    Parameters
    ----------
    share
        Of the longer clip, uniform; the shorter gets the rest. Clips of the same length get one half each. Length is that of the sound,
        without the silence that fills a clip up to the batch's.
    replaces
        Whether to repeat the published code's slip: where the shorter clip is, the longer is not heard.
    p, domain, labels, partner, generator
        As in `Mixer`. The 3rd place takes partners from the whole training set: partner="set".
    """

    remakes_channels = True

    @delegates(Mixer.__init__)
    def __init__(
        self,
        *,
        share: tuple[float, float] = (0.4, 0.6),
        replaces: bool = False,
        p: float = 0.5,
        domain: str = "wave",
        labels: str = "or",
        **kwargs: Any,
    ):
        super().__init__(p=p, domain=domain, labels=labels, **kwargs)
        checked_range(share, "share", low=0, high=1)
        self.share, self.replaces = share, replaces

    def draw(self, n: int, generator: torch.Generator | None = None) -> _Placed:
        return _Placed(uniform(n, *self.share, generator), uniform(n, 0, 1, generator))

    def mix(self, x: Tensor, other: Tensor, drawn: _Placed, levels: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return mix_or(x, other, *drawn, domain=self.place, replaces=self.replaces)


class _Reach(NamedTuple):
    """How steep the hand-over is; int64 (pairs,)."""

    reach: Tensor


@MIXERS.register("sigmoid_concat", source="FAT2019 1st place (argus-freesound, MIT); own code")
class SigmoidConcat(Mixer):
    """The partner first, handed over smoothly to the own clip in the middle, with the labels of both.

    Parameters
    ----------
    reach
        Smallest and largest of the whole numbers of which the hand-over's steepness is drawn; see `concat_sigmoid`.
    p, domain, labels, partner, generator
        As in `Mixer`.
    """

    @delegates(Mixer.__init__)
    def __init__(self, *, reach: tuple[int, int] = (3, 12), labels: str = "or", **kwargs: Any):
        super().__init__(labels=labels, **kwargs)
        checked_range(reach, "reach", low=1)
        self.reach = reach

    def draw(self, n: int, generator: torch.Generator | None = None) -> _Reach:
        return _Reach(integers(n, *self.reach, generator=generator))

    def mix(self, x: Tensor, other: Tensor, drawn: _Reach, levels: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return concat_sigmoid(x, other, drawn.reach), torch.full((len(x),), 0.5)


@MIXERS.register(
    "between_class",
    source="Tokozume et al., arXiv:1711.10282; FAT2019 4th place (MIT), here with a partner clip; own code",
)
class BetweenClass(Mixer):
    """Mixing by loudness as the ear hears it, labels linear in the drawn share; see `between_class`.

    Parameters
    ----------
    lam
        As in `LinearMixUp`.
    p, domain, labels, partner, generator
        As in `Mixer`. In the "log" domain levels are those of the waves that the batch carries; without them all clips are equally loud.
    """

    @delegates(Mixer.__init__)
    def __init__(self, *, lam: float | tuple[float, float] = 1.0, domain: str = "wave", **kwargs: Any):
        super().__init__(domain=domain, **kwargs)
        _checked_lam(lam)
        self.lam = lam

    def draw(self, n: int, generator: torch.Generator | None = None) -> _Share:
        return _Share(draw_share(n, self.lam, generator))

    def levels(self, x: Tensor, batch: Any) -> Tensor:
        if self.place in ("wave", "power"):
            return level_db(x, self.place)
        wave = getattr(batch, "wave", None)
        return super().levels(x, batch) if wave is None else level_db(plain(wave), "wave")

    def mix(self, x: Tensor, other: Tensor, drawn: _Share, levels: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return between_class(x, other, drawn.share, *levels, domain=self.place), drawn.share


class _Choice(NamedTuple):
    """Which mixer each pair takes, int64 (pairs,), and the draws of every mixer."""

    which: Tensor
    drawn: Any


class OneOfMixers(Mixer):
    """Each clip is mixed by one of several mixers, which is drawn.

    Parameters
    ----------
    mixers
        Names of `MIXERS`, or mixers of this one's domain; their draws, mixtures and label rules count, the rest is said here.
    weights
        How often each is taken, relative to one another; None takes all alike.
    p, domain, partner, generator
        As in `Mixer`.
    """

    @delegates(Mixer.__init__, but=["labels"])
    def __init__(self, mixers: Sequence[str | Mixer], *, weights: Sequence[float] | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.mixers = [MIXERS.build(m, domain=self.place) if isinstance(m, str) else m for m in mixers]
        weights = [1.0] * len(self.mixers) if weights is None else list(weights)
        if not self.mixers or len(weights) != len(self.mixers) or min(weights) < 0 or sum(weights) <= 0:
            raise OptionError(
                f"weights is {weights} for {len(self.mixers)} mixers; expected a number from 0 up for each, not all 0"
            )
        odd = next((m for m in self.mixers if m.place != self.place), None)
        if odd is not None:
            raise OptionError(
                f"{type(odd).__name__} acts on the {odd.place}; expected mixers of one domain, here {self.place!r}"
            )
        self.weights = torch.tensor(weights, dtype=torch.float64)
        self.remakes_channels = any(m.remakes_channels for m in self.mixers)

    def draw(self, n: int, generator: torch.Generator | None = None) -> _Choice:
        upper = self.weights.cumsum(0) / self.weights.sum()
        which = torch.bucketize(uniform(n, 0, 1, generator), upper, right=True).clamp(max=len(self.mixers) - 1)
        return _Choice(which, tuple(m.draw(n, generator) for m in self.mixers))

    def levels(self, x: Tensor, batch: Any) -> Tensor:
        asks = next((m for m in self.mixers if type(m).levels is not Mixer.levels), None)
        return super().levels(x, batch) if asks is None else asks.levels(x, batch)

    def mix(self, x: Tensor, other: Tensor, drawn: _Choice, levels: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        mixed, share = x.clone(), torch.ones(len(x), dtype=torch.float64, device=x.device)
        for mixer, rows, row_draws in self._parts(drawn):
            at = rows.to(x.device)
            values, shares = mixer.mix(x[at], other[at], row_draws, (levels[0][at], levels[1][at]))
            mixed, share = mixed.index_copy(0, at, values), share.index_copy(0, at, shares.to(share))
        return mixed, share

    def mix_targ(self, targ: Tensor, other: Tensor, share: Tensor, drawn: _Choice) -> Tensor:
        mixed = targ
        for mixer, rows, row_draws in self._parts(drawn):
            at = rows.to(targ.device)
            mixed = mixed.index_copy(0, at, mixer.mix_targ(targ[at], other[at], share[at], row_draws))
        return mixed

    def _parts(self, drawn: _Choice) -> list[tuple[Mixer, Tensor, Any]]:
        """Each mixer that is taken at all, with its pairs and their draws."""
        rows = [(drawn.which == i).nonzero().flatten() for i in range(len(self.mixers))]
        return [(m, r, rows_of(d, r)) for m, r, d in zip(self.mixers, rows, drawn.drawn, strict=True) if len(r)]


@MIXERS.register("mixer_first", source="FAT2019 1st place (argus-freesound, MIT); own code")
@delegates(Mixer.__init__, but=["labels"])
def mixer_first(**kwargs: Any) -> OneOfMixers:
    """The 1st place's: four of five clips, 0.6 of them one after the other, 0.4 with a share of up to one half of another."""
    options = {"p": 0.8, **kwargs}
    return OneOfMixers(["sigmoid_concat", "mixup_first"], weights=[0.6, 0.4], **options)


@MIXERS.register("mixup_or_third", source="FAT2019 3rd place repository (Apache-2.0); own code")
@delegates(MixUpOr.__init__)
def mixup_or_third(**kwargs: Any) -> MixUpOr:
    """OR mixing with partners from the whole training set, as in the 3rd place's code."""
    return MixUpOr(**{"partner": "set", **kwargs})
