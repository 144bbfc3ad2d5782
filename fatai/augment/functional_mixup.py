"""Two clips into one: what mixtures are made of, as pure functions.

Conventions: clips come in rows, own ones in `x`, their partners in `other`; time is the last dimension. By its `domain` a row holds samples
("wave", shape (batch, samples)), the linear spectrogram ("power", (batch, rows, frames)) or the spectrogram as the network sees it ("log",
(batch, channels, mels, frames)). Numbers for each pair have shape (batch,). Shape, dtype and device are those of `x`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fatai.errors import OptionError

__all__ = [
    "Content",
    "LABEL_RULES",
    "between_class",
    "concat_sigmoid",
    "content",
    "level_db",
    "mix_labels",
    "mix_linear",
    "mix_or",
]

LABEL_RULES = ("linear", "or")
"""Labels of a mixture: the shares' weighted mean of both, or what either has (their sum, 1 at most)."""

# Silence is -100 dB, as librosa has it: the logarithm of nothing would make every other clip infinitely loud.
_SILENT_POWER = 1e-10


def per_clip(numbers: Tensor, like: Tensor) -> Tensor:
    """A number for each clip, ready to be multiplied with `like`."""
    return numbers.to(like).view(-1, *[1] * (like.ndim - 1))


def mix_linear(x: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """`share` times the own clip plus 1 - `share` times its partner.

    Examples
    --------
    >>> mix_linear(torch.tensor([[1.0, 2.0]]), torch.tensor([[5.0, 2.0]]), torch.tensor([0.75]))
    tensor([[2., 2.]])
    """
    return torch.lerp(other, x, per_clip(share, x))


def mix_labels(targ: Tensor, other: Tensor, share: Tensor, rule: str = "linear") -> Tensor:
    """Labels of mixtures, shape (batch, tags), by a name of `LABEL_RULES`.

    Examples
    --------
    >>> own, partner = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    >>> mix_labels(own, partner, torch.tensor([0.25])), mix_labels(own, partner, torch.tensor([0.25]), "or")
    (tensor([[0.2500, 1.0000, 0.0000]]), tensor([[1., 1., 0.]]))
    """
    if rule not in LABEL_RULES:
        raise OptionError(f"the rule for labels is {rule!r}; expected 'linear' or 'or'")
    return mix_linear(targ, other, share) if rule == "linear" else (targ + other).clamp(max=1)


class Content(NamedTuple):
    """Where the sound of each clip is: its first frame or sample, the one behind its last, and the value of the silence around it."""

    start: Tensor
    stop: Tensor
    silence: Tensor

    @property
    def length(self) -> Tensor:
        return self.stop - self.start


def content(x: Tensor, domain: str) -> Content:
    """The clips without the silence that filled them up at either end.

    Silence is exactly 0 in waves and linear spectrograms, and in others the clip's smallest value, on which silence lies. A clip that is
    nothing but silence counts as all content.
    """
    silence = x.new_zeros(len(x)) if domain in ("wave", "power") else x.flatten(1).amin(1)
    sounds = (x != per_clip(silence, x)).flatten(1, -2).any(1) if x.ndim > 2 else x != per_clip(silence, x)
    size = x.shape[-1]
    start, behind = sounds.int().argmax(-1), sounds.flip(-1).int().argmax(-1)
    return Content(start, size - behind, silence)


def mix_or(
    x: Tensor, other: Tensor, share: Tensor, place: Tensor, *, domain: str = "wave", replaces: bool = False
) -> tuple[Tensor, Tensor]:
    """The 3rd place's mixture: a longer clip, and a shorter one somewhere in it.

    Parameters
    ----------
    x, other
        Own clips and partners. What counts is the length of their `content`.
    share
        Of the longer clip, about one half; the shorter gets the rest. Clips of the same length get one half each.
    place
        Where the shorter clip begins, from 0 (with the longer) to 1 (it ends with the longer).
    domain
        "wave", "power" or "log".
    replaces
        The slip of the published code: where the shorter clip is, the longer is not heard.

    Returns
    -------
    The mixtures, and the share of the own clip in each.

    Examples
    --------
    >>> long, short = torch.tensor([[1.0, 1.0, 1.0, 1.0]]), torch.tensor([[0.0, 2.0, 4.0, 0.0]])
    >>> mix_or(long, short, torch.tensor([0.5]), torch.tensor([0.99]))
    (tensor([[0.5000, 0.5000, 1.5000, 2.5000]]), tensor([0.5000], dtype=torch.float64))
    >>> mix_or(long, short, torch.tensor([0.5]), torch.tensor([0.99]), replaces=True)[0]
    tensor([[0.5000, 0.5000, 1.0000, 2.0000]])
    """
    share, place = share.to(x.device, torch.float64), place.to(x.device, torch.float64)
    own, partner = content(x, domain), content(other, domain)
    same = own.length == partner.length
    swap = own.length < partner.length
    share = torch.where(same, 0.5, share)
    long, short = (torch.where(per_clip(swap, x).bool(), a, b) for a, b in ((other, x), (x, other)))
    outer, inner = (
        Content(*(torch.where(swap, a, b) for a, b in zip(*pair))) for pair in ((partner, own), (own, partner))
    )
    begin = outer.start + (place * (outer.length - inner.length + 1)).long()
    begin = torch.where(same, outer.start, begin)
    at = torch.arange(x.shape[-1], device=x.device) - begin[:, None]
    inside = (at >= 0) & (at < inner.length[:, None])
    source = torch.where(inside, at + inner.start[:, None], 0)
    frames = [len(x), *[1] * (x.ndim - 2), x.shape[-1]]
    heard = inside.view(frames)
    moved = torch.where(heard, short.gather(-1, source.view(frames).expand_as(x)), per_clip(inner.silence, x))
    mixed = mix_linear(long, moved, share)
    if replaces:
        slipped = heard & ~per_clip(same, x).bool()
        mixed = torch.where(slipped, moved * per_clip(1 - share, x), mixed)
    return mixed, torch.where(swap, 1 - share, share)


def concat_sigmoid(x: Tensor, other: Tensor, reach: Tensor) -> Tensor:
    """The 1st place's smooth hand-over: the partner first, from the middle on the own clip.

    Parameters
    ----------
    x, other
        Own clips and partners.
    reach
        The own clip's share rises in time as a sigmoid from -reach to reach: the larger, the shorter the hand-over.

    Examples
    --------
    >>> concat_sigmoid(torch.ones(1, 4), torch.zeros(1, 4), torch.tensor([2.0]))  # sigmoids of -2, -1, 0, 1
    tensor([[0.1192, 0.2689, 0.5000, 0.7311]])
    """
    size = x.shape[-1]
    rise = torch.arange(size, device=x.device, dtype=torch.float64) * (2 / size) - 1
    share = (rise * reach.to(rise)[:, None]).sigmoid()
    return torch.lerp(other, x, share.to(x.dtype).view(len(x), *[1] * (x.ndim - 2), size))


def level_db(x: Tensor, domain: str, *, window: int = 4096) -> Tensor:
    """How loud clips are at their loudest, in dB, float64 (batch,).

    Parameters
    ----------
    x
        Waves (batch, samples): the largest root mean square of windows of `window` samples, half of it apart; or linear spectrograms
        (batch, rows, frames): the frame with the largest sum.
    domain
        "wave" or "power".

    Examples
    --------
    >>> level_db(torch.full((1, 5000), 0.1), "wave")
    tensor([-20.0000], dtype=torch.float64)
    """
    if domain == "wave":
        window = min(window, x.shape[-1])
        hop = max(1, window // 2)
        behind = (window - x.shape[-1]) % hop
        power = F.avg_pool1d(F.pad(x.double().square(), (0, behind))[:, None], window, hop)[:, 0].amax(-1)
    else:
        power = x.double().sum(1).amax(-1)
    return 10 * power.clamp(min=_SILENT_POWER).log10()


def between_class(
    x: Tensor, other: Tensor, share: Tensor, level: Tensor, other_level: Tensor, *, domain: str = "wave"
) -> Tensor:
    """Between-class mixing: the ear hears the own clip in the proportion `share`, whatever the levels of the two.

    The own clip's amplitude is weighted by t = 1 / (1 + 10 ** ((level - other_level) / 20) (1 - share) / share), its partner's by 1 - t.
    Waves are then divided by sqrt(t ** 2 + (1 - t) ** 2), the norm of the weights, which keeps the energy of unlike sounds; linear
    spectrograms take the squares of the normalized weights, the energy that such sounds have together; the log domain has no such law, and
    takes t and 1 - t.

    Parameters
    ----------
    x, other
        Own clips and partners.
    share
        In [0, 1].
    level, other_level
        Of `level_db`.
    domain
        "wave", "power" or "log".

    Source: arXiv:1711.10282; 4th place of FAT2019.

    Examples
    --------
    >>> own, partner, half, loud = torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([0.5]), torch.tensor([20.0])
    >>> between_class(own, partner, half, loud, loud)  # t = 1/2; 1/2 over sqrt(1/2)
    tensor([[0.7071, 0.7071]])
    >>> between_class(own, partner, half, loud, torch.tensor([0.0]), domain="log")  # t = 1 / (1 + 10)
    tensor([[0.0909, 0.0909]])
    """
    share, level, other_level = (v.to(x.device, torch.float64) for v in (share, level, other_level))
    t = 1 / (1 + 10 ** ((level - other_level) / 20) * (1 - share) / share)
    if domain not in ("wave", "power"):
        return mix_linear(x, other, t)
    norm = (t.square() + (1 - t).square()).sqrt()
    own, partner = t / norm, (1 - t) / norm
    if domain == "power":
        own, partner = own.square(), partner.square()
    return x * per_clip(own, x) + other * per_clip(partner, x)
