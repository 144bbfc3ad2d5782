"""Multi-label and noise-robust losses, on logits.

What all of them share stands in `fatai.losses.base`, losses made of losses in `fatai.losses.composite`; this module registers both.
It needs torch alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fatai.errors import OptionError, ShapeError
from fatai.registry import LOSSES
from fatai.losses.composite import AuxLoss, Combined, Smoothed, SplitLoss, smooth_labels
from fatai.losses.base import OverTags, TagLoss, cross_entropy, focus, not_negative

__all__ = [
    "AuxLoss",
    "BCE",
    "ClassBCE",
    "Combined",
    "Focal",
    "GCE",
    "LSEP",
    "Lovasz",
    "Lq",
    "Lsoft",
    "MassBCE",
    "OverTags",
    "SCE",
    "Smoothed",
    "SplitLoss",
    "TagLoss",
    "class_weights",
    "smooth_labels",
]

# What log-sum-exp sees in place of a tag that has no part in it. Infinity would give inf - inf = NaN in the gradient of an empty sum;
# twice this is still a float32, and no logit comes near.
_ABSENT = -1e30


@LOSSES.register("bce", source="every system but the 3rd place's; ninth with reduction='sum'")
class BCE(OverTags):
    """Binary cross-entropy of each tag; soft targets are fine."""

    def per_tag(self, logits: Tensor, targ: Tensor) -> Tensor:
        return cross_entropy(logits, targ)


@LOSSES.register(
    "bce_mass", source="36th place: class-summed, clips weighted by their label mass; gamma as in its focal variant"
)
class MassBCE(TagLoss):
    """Cross-entropy summed over the tags, each clip weighted by the sum of its targets.

    With s the sum of a clip's targets, the mean over clips of s / mean(s) times the clip's loss; 0 for a batch without any target. About
    80 times the plain mean. `gamma` > 0 makes it focal.
    """

    def __init__(self, *, gamma: float = 0.0, reduction: str = "mean"):
        super().__init__(reduction=reduction)
        self.gamma = not_negative(gamma, "gamma")

    def per_clip(
        self, logits: Tensor, targ: Tensor, noisy: Tensor | None = None, tag_w: Tensor | None = None
    ) -> Tensor:
        mass = targ.sum(1)
        share = mass / mass.mean().clamp(min=torch.finfo(mass.dtype).tiny)
        values = focus(logits, targ, self.gamma) * cross_entropy(logits, targ)
        return share * (values if tag_w is None else tag_w * values).sum(1)


@LOSSES.register("bce_class", source="gold-plan: class weights 1/sqrt(frequency), mean 1")
class ClassBCE(OverTags):
    """Binary cross-entropy with a weight for each tag, higher for rare ones.

    Parameters
    ----------
    counts
        How many training clips have each tag, shape (tags,); the weights are `class_weights(counts)`. None weighs all alike, until
        `set_counts` is called.
    """

    weight: Tensor | None

    def __init__(self, counts: Sequence[float] | Tensor | None = None, *, reduction: str = "mean"):
        super().__init__(reduction=reduction)
        self.register_buffer("weight", None, persistent=False)
        if counts is not None:
            self.set_counts(counts)

    def set_counts(self, counts: Sequence[float] | Tensor) -> None:
        """Take the weights from how many training clips have each tag."""
        self.weight = class_weights(counts)

    def per_tag(self, logits: Tensor, targ: Tensor) -> Tensor:
        if self.weight is None:
            return cross_entropy(logits, targ)
        if len(self.weight) != logits.shape[1]:
            raise ShapeError(f"there are counts for {len(self.weight)} tags; the logits have {logits.shape[1]}")
        return cross_entropy(logits, targ) * self.weight.to(logits)


@LOSSES.register("focal", source="arXiv:1708.02002, without alpha; gamma 2 in the 3rd place's code, 1.5 in gold-plan")
class Focal(OverTags):
    """Cross-entropy times (1 - p)^gamma of the right answer, which quiets tags that are settled.

    For soft targets the factor is exp(-gamma BCE(logits, 1 - targ)), the 36th place's form, which is the same for 0 and 1. `gamma` = 0 is
    plain cross-entropy.
    """

    def __init__(self, *, gamma: float = 2.0, reduction: str = "mean"):
        super().__init__(reduction=reduction)
        self.gamma = not_negative(gamma, "gamma")

    def per_tag(self, logits: Tensor, targ: Tensor) -> Tensor:
        return focus(logits, targ, self.gamma) * cross_entropy(logits, targ)


@LOSSES.register("lsep", source="arXiv:1704.03135; 3rd place, here with a log-sum-exp that cannot overflow")
class LSEP(TagLoss):
    """Log-sum-exp over 0 and all differences (absent minus present): log(1 + sum of exp(s_j - s_i)).

    The double sum is a product of two sums, so memory grows with the tags, not with their square; but for soft targets, where a pair
    counts if targ_j < targ_i, all pairs are formed. Ranks only: adding a number to all logits of a clip changes nothing. Weights of tags
    multiply the pairs that they are in.

    Parameters
    ----------
    soft
        Whether targets may be soft. None looks at each batch, which on a GPU waits for it; False saves that: what is above one half is
        present.
    """

    def __init__(self, *, soft: bool | None = None, reduction: str = "mean"):
        super().__init__(reduction=reduction)
        self.soft = soft

    def per_clip(
        self, logits: Tensor, targ: Tensor, noisy: Tensor | None = None, tag_w: Tensor | None = None
    ) -> Tensor:
        soft = bool(((targ != 0) & (targ != 1)).any()) if self.soft is None else self.soft
        # exp(s_j - s_i) times the weights of both tags is exp of the difference of s + log w and s - log w.
        up = logits if tag_w is None else logits + tag_w.log().clamp(min=_ABSENT)
        down = logits if tag_w is None else logits - tag_w.log().clamp(min=_ABSENT)
        return _lsep_pairs(up, down, targ) if soft else _lsep_binary(up, down, targ > 0.5)


@LOSSES.register("lovasz", source="arXiv:1705.08790, binary hinge over a clip's tags; 36th place")
class Lovasz(TagLoss):
    """Lovasz hinge: the convex stand-in for 1 - Jaccard index of a clip's tags.

    Soft targets go into the same formula, as the 36th place did, though only 0 and 1 give the extension of a Jaccard index.
    """

    def per_clip(
        self, logits: Tensor, targ: Tensor, noisy: Tensor | None = None, tag_w: Tensor | None = None
    ) -> Tensor:
        errors, order = (1 - logits * (2 * targ - 1)).sort(dim=1, descending=True)
        ordered = targ.gather(1, order)
        total = ordered.sum(1, keepdim=True)
        # The union is never 0: it begins at total + 1 - first, and total includes the first.
        jaccard = 1 - (total - ordered.cumsum(1)) / (total + (1 - ordered).cumsum(1))
        steps = torch.cat([jaccard[:, :1], jaccard.diff(dim=1)], dim=1)
        values = errors.relu() * steps
        return (values if tag_w is None else values * tag_w.gather(1, order)).sum(1)


@LOSSES.register("gce", source="arXiv:1805.07836, generalised cross-entropy, tag by tag; gold-plan")
class GCE(OverTags):
    """(1 - p^q) / q of the right answer: cross-entropy as q goes to 0, absolute error at 1; soft targets weigh both answers."""

    def __init__(self, *, q: float = 0.7, reduction: str = "mean"):
        super().__init__(reduction=reduction)
        self.q = _exponent(q)

    def per_tag(self, logits: Tensor, targ: Tensor) -> Tensor:
        # expm1 of a log-probability keeps its digits where p is nearly 1.
        present, absent = (-torch.expm1(self.q * F.logsigmoid(x)) / self.q for x in (logits, -logits))
        return targ * present + (1 - targ) * absent


@LOSSES.register("sce", source="arXiv:1908.06112, symmetric cross-entropy, tag by tag over both answers; gold-plan")
class SCE(OverTags):
    """alpha times cross-entropy plus beta times its reverse, in which the target's logarithm has the floor `log_zero`.

    For 0 and 1 the reverse part is -`log_zero` |p - targ|, which bounds what one wrong label can do.
    """

    def __init__(self, *, alpha: float = 1.0, beta: float = 0.5, log_zero: float = -4.0, reduction: str = "mean"):
        super().__init__(reduction=reduction)
        self.alpha, self.beta = not_negative(alpha, "alpha"), not_negative(beta, "beta")
        if not log_zero < 0:
            raise OptionError(f"log_zero is {log_zero}; expected a number below 0: it stands for log(0)")
        self.log_zero = log_zero

    def per_tag(self, logits: Tensor, targ: Tensor) -> Tensor:
        log_present, log_absent = (t.log().clamp(min=self.log_zero) for t in (targ, 1 - targ))
        reverse = -torch.sigmoid(logits) * log_present - torch.sigmoid(-logits) * log_absent
        return self.alpha * cross_entropy(logits, targ) + self.beta * reverse


@LOSSES.register("lsoft", source="arXiv:1412.6596, soft bootstrapping; 1st place on noisy clips with beta 0.7")
class Lsoft(OverTags):
    """Cross-entropy against beta times the label plus 1 - beta times the model's own probability, through which no gradient flows.

    The 1st place clips probabilities at 1e-7, beyond which its gradient is 0; on logits that is needless, and left out.
    """

    def __init__(self, *, beta: float = 0.7, reduction: str = "mean"):
        super().__init__(reduction=reduction)
        if not 0 <= beta <= 1:
            raise OptionError(f"beta is {beta}; expected a number from 0 (trust the model) to 1 (trust the labels)")
        self.beta = beta

    def per_tag(self, logits: Tensor, targ: Tensor) -> Tensor:
        return cross_entropy(logits, self.beta * targ + (1 - self.beta) * torch.sigmoid(logits).detach())


@LOSSES.register("lq", source="arXiv:1805.07836 as the 1st place's code has it")
class Lq(OverTags):
    """(1 - (p targ + 1e-7)^q) / q, the mean over all tags: only present tags are taught, absent ones add a constant."""

    def __init__(self, *, q: float = 0.7, reduction: str = "mean"):
        super().__init__(reduction=reduction)
        self.q = _exponent(q)

    def per_tag(self, logits: Tensor, targ: Tensor) -> Tensor:
        return (1 - (torch.sigmoid(logits) * targ + 1e-7) ** self.q) / self.q


def class_weights(counts: Sequence[float] | Tensor) -> Tensor:
    """Weight of each tag, proportional to 1 / sqrt(count) with mean 1; a tag that no clip has counts as one that a single clip has.

    Examples
    --------
    >>> class_weights([100, 25])
    tensor([0.6667, 1.3333])
    """
    counts = torch.as_tensor(counts, dtype=torch.float32)
    if counts.ndim != 1 or not len(counts) or not bool((counts >= 0).all()):
        raise OptionError("counts must be a row of numbers >= 0, one for each tag: how many clips have it")
    weights = counts.clamp(min=1).rsqrt()
    return weights / weights.mean()


def _lsep_binary(up: Tensor, down: Tensor, present: Tensor) -> Tensor:
    """log(1 + sum over absent j and present i of exp(up_j - down_i)), as a product of two sums."""
    absent = up.masked_fill(present, _ABSENT).logsumexp(1)
    return F.softplus(absent + (-down).masked_fill(~present, _ABSENT).logsumexp(1))


def _lsep_pairs(up: Tensor, down: Tensor, targ: Tensor) -> Tensor:
    """The same over all pairs with targ_j < targ_i."""
    pairs = (up[:, :, None] - down[:, None, :]).masked_fill(targ[:, :, None] >= targ[:, None, :], _ABSENT)
    return F.softplus(pairs.flatten(1).logsumexp(1))


def _exponent(q: float) -> float:
    if not 0 < q <= 1:
        raise OptionError(f"q is {q}; expected a number above 0 (cross-entropy) and at most 1 (absolute error)")
    return float(q)
