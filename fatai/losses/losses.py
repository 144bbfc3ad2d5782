"""One class for each formula: cross-entropies, ranking losses, and losses that tolerate wrong labels; all on logits.

Shapes, weights and reductions are described in `fatai.losses.base`, losses made of other losses in
`fatai.losses.composite`. This module needs torch alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fatai.errors import OptionError, ShapeError
from fatai.losses.base import PerTagLoss, TagLoss, binary_cross_entropy, check_non_negative, focal_factor
from fatai.registry import LOSSES

__all__ = [
    "BCE",
    "ClassBCE",
    "Focal",
    "GCE",
    "LSEP",
    "Lovasz",
    "Lq",
    "Lsoft",
    "MassBCE",
    "SCE",
    "class_weights",
]

# The logit of a tag that is left out of a log-sum-exp. Infinity would give inf - inf = NaN in the gradient of an empty
# sum; twice this is still a float32, and no logit comes near.
_ABSENT = -1e30


@LOSSES.register("bce", source="every system but the 3rd place's; ninth with reduction='sum'")
class BCE(PerTagLoss):
    """Binary cross-entropy of each tag; soft targets are fine."""

    def per_tag(self, logits: Tensor, targ: Tensor) -> Tensor:
        """Return the cross-entropy, shape (batch, tags)."""
        return binary_cross_entropy(logits, targ)


@LOSSES.register(
    "bce_mass", source="36th place: class-summed, clips weighted by their label mass; gamma as in its focal variant"
)
class MassBCE(TagLoss):
    """Cross-entropy summed over the tags, each clip weighted by the sum of its targets.

    With s the sum of a clip's targets, the mean over clips of s / mean(s) times the clip's loss; 0 for a batch without
    any target. With 80 tags it is about 80 times the plain mean, so lower the learning rate accordingly.

    Parameters
    ----------
    gamma
        Above 0 for the focal variant, see `Focal`.
    """

    def __init__(self, *, gamma: float = 0.0, reduction: str = "mean"):
        super().__init__(reduction=reduction)
        self.gamma = check_non_negative(gamma, "gamma")

    def per_clip(
        self, logits: Tensor, targ: Tensor, noisy: Tensor | None = None, tag_weight: Tensor | None = None
    ) -> Tensor:
        """Return the weighted sum over tags, shape (batch,)."""
        mass = targ.sum(1)
        weight = mass / mass.mean().clamp(min=torch.finfo(mass.dtype).tiny)
        values = focal_factor(logits, targ, self.gamma) * binary_cross_entropy(logits, targ)
        return weight * (values if tag_weight is None else tag_weight * values).sum(1)


@LOSSES.register("bce_class", source="gold-plan: class weights 1/sqrt(frequency), mean 1")
class ClassBCE(PerTagLoss):
    """Binary cross-entropy with a weight for each tag, higher for rare ones.

    Parameters
    ----------
    counts
        Number of training clips with each tag, shape (tags,); the weights are `class_weights(counts)`. With None all
        tags have equal weight until `set_counts` is called.
    """

    weight: Tensor | None

    def __init__(self, counts: Sequence[float] | Tensor | None = None, *, reduction: str = "mean"):
        super().__init__(reduction=reduction)
        self.register_buffer("weight", None, persistent=False)
        if counts is not None:
            self.set_counts(counts)

    def set_counts(self, counts: Sequence[float] | Tensor) -> None:
        """Set the weights from the number of training clips with each tag, shape (tags,)."""
        self.weight = class_weights(counts)

    def per_tag(self, logits: Tensor, targ: Tensor) -> Tensor:
        """Return the weighted cross-entropy, shape (batch, tags); `ShapeError` for another number of tags."""
        if self.weight is None:
            return binary_cross_entropy(logits, targ)
        if len(self.weight) != logits.shape[1]:
            raise ShapeError(
                f"bce_class has counts for {len(self.weight)} tags; the logits have {logits.shape[1]}: "
                "give a count for each tag"
            )
        return binary_cross_entropy(logits, targ) * self.weight.to(logits)


@LOSSES.register("focal", source="arXiv:1708.02002, without alpha; gamma 2 in the 3rd place's code, 1.5 in gold-plan")
class Focal(PerTagLoss):
    """Cross-entropy times (1 - p)^gamma, p the probability of the target class: tags that are easy weigh less.

    For soft targets the factor is exp(-gamma BCE(logits, 1 - targ)), the 36th place's form, which is the same for 0 and
    1.

    Parameters
    ----------
    gamma
        0 for plain cross-entropy; raise it when most tags are learned and the loss is dominated by them.
    """

    def __init__(self, *, gamma: float = 2.0, reduction: str = "mean"):
        super().__init__(reduction=reduction)
        self.gamma = check_non_negative(gamma, "gamma")

    def per_tag(self, logits: Tensor, targ: Tensor) -> Tensor:
        """Return the focal loss, shape (batch, tags)."""
        return focal_factor(logits, targ, self.gamma) * binary_cross_entropy(logits, targ)


@LOSSES.register("lsep", source="arXiv:1704.03135; 3rd place, here with a log-sum-exp that cannot overflow")
class LSEP(TagLoss):
    """Log-sum-exp over 0 and all differences (absent minus present): log(1 + sum of exp(s_j - s_i)).

    The double sum is a product of two sums, so memory grows with the number of tags, not with its square; for soft
    targets, where a pair counts if targ_j < targ_i, all pairs are formed. Only the order matters: adding a number to
    all logits of a clip changes nothing. The weight of a tag multiplies the pairs that include it.

    Parameters
    ----------
    soft
        True if targets may be soft. None checks each batch, which on a GPU waits for it; False saves that, and counts
        targets above one half as present.
    """

    def __init__(self, *, soft: bool | None = None, reduction: str = "mean"):
        super().__init__(reduction=reduction)
        self.soft = soft

    def per_clip(
        self, logits: Tensor, targ: Tensor, noisy: Tensor | None = None, tag_weight: Tensor | None = None
    ) -> Tensor:
        """Return the log-sum-exp over the pairs, shape (batch,)."""
        soft = bool(((targ != 0) & (targ != 1)).any()) if self.soft is None else self.soft
        # exp(s_j - s_i) times the weights of both tags is exp of the difference of s + log w and s - log w.
        up = logits if tag_weight is None else logits + tag_weight.log().clamp(min=_ABSENT)
        down = logits if tag_weight is None else logits - tag_weight.log().clamp(min=_ABSENT)
        return _lsep_pairs(up, down, targ) if soft else _lsep_binary(up, down, targ > 0.5)


@LOSSES.register("lovasz", source="arXiv:1705.08790, binary hinge over a clip's tags; 36th place")
class Lovasz(TagLoss):
    """Lovasz hinge: a convex surrogate of 1 - Jaccard index of a clip's tags.

    Soft targets are used in the same formula, as the 36th place did, though only 0 and 1 give the extension of a
    Jaccard index.
    """

    def per_clip(
        self, logits: Tensor, targ: Tensor, noisy: Tensor | None = None, tag_weight: Tensor | None = None
    ) -> Tensor:
        """Return the hinge of each clip, shape (batch,)."""
        errors, order = (1 - logits * (2 * targ - 1)).sort(dim=1, descending=True)
        ordered = targ.gather(1, order)
        total = ordered.sum(1, keepdim=True)
        # The union is never 0: it begins at total + 1 - first, and total includes the first.
        jaccard = 1 - (total - ordered.cumsum(1)) / (total + (1 - ordered).cumsum(1))
        steps = torch.cat([jaccard[:, :1], jaccard.diff(dim=1)], dim=1)
        values = errors.relu() * steps
        return (values if tag_weight is None else values * tag_weight.gather(1, order)).sum(1)


@LOSSES.register("gce", source="arXiv:1805.07836, generalised cross-entropy, tag by tag; gold-plan")
class GCE(PerTagLoss):
    """(1 - p^q) / q, p the probability of the target class; soft targets weigh both classes.

    Parameters
    ----------
    q
        Above 0, where the loss is cross-entropy, to 1, where it is the absolute error: larger values tolerate more
        wrong labels and train more slowly.
    """

    def __init__(self, *, q: float = 0.7, reduction: str = "mean"):
        super().__init__(reduction=reduction)
        self.q = _checked_exponent(q)

    def per_tag(self, logits: Tensor, targ: Tensor) -> Tensor:
        """Return the loss of each clip and tag, shape (batch, tags)."""
        # expm1 of a log-probability keeps its digits where p is nearly 1.
        present, absent = (-torch.expm1(self.q * F.logsigmoid(x)) / self.q for x in (logits, -logits))
        return targ * present + (1 - targ) * absent


@LOSSES.register("sce", source="arXiv:1908.06112, symmetric cross-entropy, tag by tag over both answers; gold-plan")
class SCE(PerTagLoss):
    """alpha times cross-entropy plus beta times its reverse, in which the target's logarithm is at least `log_zero`.

    For 0 and 1 the reverse part is -`log_zero` |p - targ|, so that a single wrong label has a bounded effect.

    Parameters
    ----------
    alpha, beta
        Weights of cross-entropy and of its reverse; raise `beta` for noisier labels.
    log_zero
        Value in place of log(0), below 0.
    """

    def __init__(self, *, alpha: float = 1.0, beta: float = 0.5, log_zero: float = -4.0, reduction: str = "mean"):
        super().__init__(reduction=reduction)
        self.alpha, self.beta = check_non_negative(alpha, "alpha"), check_non_negative(beta, "beta")
        if not log_zero < 0:
            raise OptionError(f"log_zero is {log_zero}; expected a number below 0: it stands for log(0)")
        self.log_zero = log_zero

    def per_tag(self, logits: Tensor, targ: Tensor) -> Tensor:
        """Return the loss of each clip and tag, shape (batch, tags)."""
        log_present, log_absent = (t.log().clamp(min=self.log_zero) for t in (targ, 1 - targ))
        reverse = -torch.sigmoid(logits) * log_present - torch.sigmoid(-logits) * log_absent
        return self.alpha * binary_cross_entropy(logits, targ) + self.beta * reverse


@LOSSES.register("lsoft", source="arXiv:1412.6596, soft bootstrapping; 1st place on noisy clips with beta 0.7")
class Lsoft(PerTagLoss):
    """Cross-entropy against beta times the label plus 1 - beta times the (detached) predicted probability.

    The 1st place clips probabilities at 1e-7, beyond which its gradient is 0; on logits that is unnecessary, and left
    out.

    Parameters
    ----------
    beta
        Trust in the labels, from 0 (predictions alone) to 1 (labels alone).
    """

    def __init__(self, *, beta: float = 0.7, reduction: str = "mean"):
        super().__init__(reduction=reduction)
        if not 0 <= beta <= 1:
            raise OptionError(f"beta is {beta}; expected a number from 0 (trust the model) to 1 (trust the labels)")
        self.beta = beta

    def per_tag(self, logits: Tensor, targ: Tensor) -> Tensor:
        """Return the loss of each clip and tag, shape (batch, tags)."""
        return binary_cross_entropy(logits, self.beta * targ + (1 - self.beta) * torch.sigmoid(logits).detach())


@LOSSES.register("lq", source="arXiv:1805.07836 as the 1st place's code has it")
class Lq(PerTagLoss):
    """(1 - (p targ + 1e-7)^q) / q, the mean over all tags: only present tags have a gradient.

    Parameters
    ----------
    q
        As in `GCE`.
    """

    def __init__(self, *, q: float = 0.7, reduction: str = "mean"):
        super().__init__(reduction=reduction)
        self.q = _checked_exponent(q)

    def per_tag(self, logits: Tensor, targ: Tensor) -> Tensor:
        """Return the loss of each clip and tag, shape (batch, tags)."""
        return (1 - (torch.sigmoid(logits) * targ + 1e-7) ** self.q) / self.q


def class_weights(counts: Sequence[float] | Tensor) -> Tensor:
    """Return a weight for each tag, proportional to 1 / sqrt(count) with mean 1.

    Parameters
    ----------
    counts
        Number of clips with each tag, shape (tags,), from 0 up; a count of 0 is treated as 1.

    Returns
    -------
    Float32, shape (tags,).

    Raises
    ------
    OptionError
        If `counts` is empty, not one-dimensional, or holds a negative number.

    Examples
    --------
    >>> class_weights([100, 25])
    tensor([0.6667, 1.3333])
    """
    counts = torch.as_tensor(counts, dtype=torch.float32)
    if counts.ndim != 1 or not len(counts) or not bool((counts >= 0).all()):
        raise OptionError("counts must be a row of numbers >= 0: the number of clips with each tag")
    weights = counts.clamp(min=1).rsqrt()
    return weights / weights.mean()


def _lsep_binary(up: Tensor, down: Tensor, present: Tensor) -> Tensor:
    """Return log(1 + sum over absent j and present i of exp(up_j - down_i)), shape (batch,), as two sums."""
    absent = up.masked_fill(present, _ABSENT).logsumexp(1)
    return F.softplus(absent + (-down).masked_fill(~present, _ABSENT).logsumexp(1))


def _lsep_pairs(up: Tensor, down: Tensor, targ: Tensor) -> Tensor:
    """Return the same over all pairs with targ_j < targ_i."""
    pairs = (up[:, :, None] - down[:, None, :]).masked_fill(targ[:, :, None] >= targ[:, None, :], _ABSENT)
    return F.softplus(pairs.flatten(1).logsumexp(1))


def _checked_exponent(q: float) -> float:
    if not 0 < q <= 1:
        raise OptionError(f"q is {q}; expected a number above 0 (cross-entropy) and at most 1 (absolute error)")
    return float(q)
