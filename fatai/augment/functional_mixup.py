"""Mixtures of two clips and of their labels, as pure functions.

Conventions: clips come in rows, those of the batch in `x`, their partners in `other`; time is the last dimension. By
its `domain` a row holds samples ("wave", shape (batch, samples)), the linear spectrogram ("power", (batch, rows,
frames)) or the input of the network ("log", (batch, channels, mels, frames)). `lam` is the weight of the clip in `x`,
its partner gets 1 - lam; numbers for each pair have shape (batch,). Shape, dtype and device of results are those of
`x`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fatai.audio.waveform import exact_dtype
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
"""Labels of a mixture: the mean of both weighted by lam, or the union (their sum, 1 at most)."""

# Silence is -100 dB, as in librosa: with the logarithm of 0 every other clip would be infinitely loud.
_SILENT_POWER = 1e-10


def expand_like(numbers: Tensor, like: Tensor) -> Tensor:
    """Return a number for each clip, (batch,), as (batch, 1, ...) with the dimensions, dtype and device of `like`."""
    return numbers.to(like).view(-1, *[1] * (like.ndim - 1))


def mix_linear(x: Tensor, other: Tensor, lam: Tensor) -> Tensor:
    """Compute lam * x + (1 - lam) * other.

    Parameters
    ----------
    x, other
        Shape (batch, ...).
    lam
        Shape (batch,), within [0, 1].

    Examples
    --------
    >>> mix_linear(torch.tensor([[1.0, 2.0]]), torch.tensor([[5.0, 2.0]]), torch.tensor([0.75]))
    tensor([[2., 2.]])
    """
    return torch.lerp(other, x, expand_like(lam, x))


def mix_labels(targ: Tensor, other: Tensor, lam: Tensor, rule: str = "linear") -> Tensor:
    """Mix labels by a name of `LABEL_RULES`.

    Parameters
    ----------
    targ, other
        Shape (batch, tags), floats within [0, 1].
    lam
        Shape (batch,), within [0, 1].
    rule
        "linear" or "or".

    Raises
    ------
    OptionError
        If the rule is unknown.

    Examples
    --------
    >>> targ, partner = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    >>> mix_labels(targ, partner, torch.tensor([0.25])), mix_labels(targ, partner, torch.tensor([0.25]), "or")
    (tensor([[0.2500, 1.0000, 0.0000]]), tensor([[1., 1., 0.]]))
    """
    if rule not in LABEL_RULES:
        raise OptionError(f"the rule for labels is {rule!r}; expected 'linear' or 'or'")
    return mix_linear(targ, other, lam) if rule == "linear" else (targ + other).clamp(max=1)


class Content(NamedTuple):
    """The sound of each clip without its padding: [start, stop) and the value of silence, each (batch,)."""

    start: Tensor
    stop: Tensor
    silence: Tensor

    @property
    def length(self) -> Tensor:
        """Length in frames or samples, int64, shape (batch,)."""
        return self.stop - self.start


def content(x: Tensor, domain: str) -> Content:
    """Find the sound of each clip between the silence that pads it at either end.

    Silence is exactly 0 in waves and linear spectrograms, and the clip's smallest value in others. A clip that is
    nothing but silence counts as all content.

    Parameters
    ----------
    x
        Shape (batch, ..., time).
    domain
        "wave", "power" or "log".
    """
    silence = x.new_zeros(len(x)) if domain in ("wave", "power") else x.flatten(1).amin(1)
    is_sound = (x != expand_like(silence, x)).flatten(1, -2).any(1) if x.ndim > 2 else x != expand_like(silence, x)
    if x.device.type == "cpu":  # NumPy stops at the first sample of sound
        values = is_sound.numpy()
        start, padding = (torch.from_numpy(part.argmax(-1)) for part in (values, values[:, ::-1]))
    else:
        start, padding = is_sound.int().argmax(-1), is_sound.flip(-1).int().argmax(-1)
    return Content(start, x.shape[-1] - padding, silence)


def mix_or(
    x: Tensor, other: Tensor, lam: Tensor, position: Tensor, *, domain: str = "wave", overwrite: bool = False
) -> tuple[Tensor, Tensor]:
    """Mix a longer clip with a shorter one somewhere in it, as the 3rd place did.

    Parameters
    ----------
    x, other
        Clips and partners. Their length is that of their `content`.
    lam
        Weight of the longer clip, about one half; the shorter gets the rest. Clips of the same length get one half
        each.
    position
        Where the shorter clip begins, from 0 (with the longer) to 1 (it ends with the longer).
    domain
        "wave", "power" or "log".
    overwrite
        True repeats a slip of the published code: where the shorter clip is, the longer one is left out.

    Returns
    -------
    mixed : Tensor
        Shape and dtype of `x`.
    lam : Tensor
        Shape (batch,), float64 on a CPU and float32 elsewhere: the weight of the clip in `x`.

    Examples
    --------
    >>> long, short = torch.tensor([[1.0, 1.0, 1.0, 1.0]]), torch.tensor([[0.0, 2.0, 4.0, 0.0]])
    >>> mix_or(long, short, torch.tensor([0.5]), torch.tensor([0.99]))
    (tensor([[0.5000, 0.5000, 1.5000, 2.5000]]), tensor([0.5000], dtype=torch.float64))
    >>> mix_or(long, short, torch.tensor([0.5]), torch.tensor([0.99]), overwrite=True)[0]
    tensor([[0.5000, 0.5000, 1.0000, 2.0000]])
    """
    lam, position = (v.to(x.device, exact_dtype(x.device)) for v in (lam, position))
    sound, partner = content(x, domain), content(other, domain)
    same, swap = sound.length == partner.length, sound.length < partner.length
    lam = torch.where(same, 0.5, lam)
    outer, inner = _select(swap, partner, sound), _select(swap, sound, partner)
    begin = outer.start + (position * (outer.length - inner.length + 1)).long()
    begin = torch.where(same, outer.start, begin)
    weight = torch.where(swap, 1 - lam, lam)
    if x.device.type == "cpu" and x.ndim == 2 and domain == "wave":
        pairs = [(b, a) if swapped else (a, b) for a, b, swapped in zip(x, other, swap.tolist(), strict=True)]
        return _mix_waves(pairs, inner, begin, lam, overwrite & ~same, like=x), weight
    long, short = (torch.where(expand_like(swap, x).bool(), a, b) for a, b in ((other, x), (x, other)))
    inside, moved = _move(short, inner, begin)
    mixed = mix_linear(long, moved, lam)
    if overwrite:
        overwritten = inside & ~expand_like(same, x).bool()
        mixed = torch.where(overwritten, moved * expand_like(1 - lam, x), mixed)
    return mixed, weight


def _select(condition: Tensor, one: Content, other: Content) -> Content:
    return Content(*(torch.where(condition, a, b) for a, b in zip(one, other, strict=True)))


def _move(x: Tensor, sound: Content, begin: Tensor) -> tuple[Tensor, Tensor]:
    """Move the sound of each clip to `begin`, (batch,); return a mask of the sound there, and the moved clips."""
    at = torch.arange(x.shape[-1], device=x.device) - begin[:, None]
    inside = (at >= 0) & (at < sound.length[:, None])
    source = torch.where(inside, at + sound.start[:, None], 0)
    shape = [len(x), *[1] * (x.ndim - 2), x.shape[-1]]
    inside = inside.view(shape)
    return inside, torch.where(inside, x.gather(-1, source.view(shape).expand_as(x)), expand_like(sound.silence, x))


def _mix_waves(
    pairs: Sequence[tuple[Tensor, Tensor]], inner: Content, begin: Tensor, lam: Tensor, overwrite: Tensor, *,
    like: Tensor,
) -> Tensor:
    """Mix pairs of a longer and a shorter wave (samples,) one by one, within a core's cache; the same values."""
    mixed, moved = torch.empty_like(like), torch.zeros_like(like[:1]).flatten()
    weights, rest = expand_like(lam, like)[:, 0], expand_like(1 - lam, like)[:, 0]
    numbers = zip(*(v.tolist() for v in (inner.start, inner.length, begin, overwrite)), strict=True)
    for k, ((long, short), (start, length, first, overwrites)) in enumerate(zip(pairs, numbers, strict=True)):
        there = slice(first, min(first + length, len(moved)))
        moved[there] = short[start:start + there.stop - first]
        torch.lerp(moved, long, weights[k], out=mixed[k])
        if overwrites:
            torch.mul(moved[there], rest[k], out=mixed[k, there])
        moved[there] = 0
    return mixed


def concat_sigmoid(x: Tensor, other: Tensor, steepness: Tensor) -> Tensor:
    """Cross-fade from the partner to the clip, with a sigmoid around the middle, as the 1st place did.

    Parameters
    ----------
    x, other
        Clips and partners, shape (batch, ..., time).
    steepness
        Shape (batch,). The clip's weight rises in time as a sigmoid from -steepness to steepness: the larger, the
        shorter the cross-fade.

    Returns
    -------
    The shape of `x`.

    Examples
    --------
    >>> concat_sigmoid(torch.ones(1, 4), torch.zeros(1, 4), torch.tensor([2.0]))  # sigmoids of -2, -1, 0, 1
    tensor([[0.1192, 0.2689, 0.5000, 0.7311]])
    """
    size = x.shape[-1]
    ramp = torch.arange(size, device=x.device, dtype=exact_dtype(x.device)) * (2 / size) - 1
    weight = (ramp * steepness.to(ramp)[:, None]).sigmoid()
    return torch.lerp(other, x, weight.to(x.dtype).view(len(x), *[1] * (x.ndim - 2), size))


def level_db(x: Tensor, domain: str, *, window: int = 4096) -> Tensor:
    """Measure the level of each clip's loudest part, in dB.

    Parameters
    ----------
    x
        Waves (batch, samples): the largest root mean square of windows of `window` samples, half of it apart; or linear
        spectrograms (batch, rows, frames): the frame with the largest sum.
    domain
        "wave" or "power".
    window
        In samples.

    Returns
    -------
    Shape (batch,), at least -100; float64 on a CPU and float32 elsewhere.

    Examples
    --------
    >>> level_db(torch.full((1, 5000), 0.1), "wave")
    tensor([-20.0000], dtype=torch.float64)
    """
    x = x.to(exact_dtype(x.device))
    if domain == "wave":
        window = min(window, x.shape[-1])
        hop = max(1, window // 2)
        padding = (window - x.shape[-1]) % hop
        power = F.avg_pool1d(F.pad(x.square(), (0, padding))[:, None], window, hop)[:, 0].amax(-1)
    else:
        power = x.sum(1).amax(-1)
    return 10 * power.clamp(min=_SILENT_POWER).log10()


def between_class(
    x: Tensor, other: Tensor, lam: Tensor, level: Tensor, other_level: Tensor, *, domain: str = "wave"
) -> Tensor:
    """Mix between classes: the clip makes up the fraction `lam` of the perceived loudness, whatever the levels.

    The clip's amplitude is weighted by t = 1 / (1 + 10 ** ((level - other_level) / 20) (1 - lam) / lam), its partner's
    by 1 - t. Waves are then divided by sqrt(t ** 2 + (1 - t) ** 2), the norm of the weights, which keeps the energy of
    unlike sounds; linear spectrograms take the squares of the normalized weights, the energy that such sounds have
    together; the log domain has no such law, and takes t and 1 - t.

    Parameters
    ----------
    x, other
        Clips and partners.
    lam
        Shape (batch,), within [0, 1].
    level, other_level
        As `level_db` returns them, shape (batch,).
    domain
        "wave", "power" or "log".

    Returns
    -------
    The shape of `x`.

    Source: arXiv:1711.10282; 4th place of FAT2019.

    Examples
    --------
    >>> x, partner, half, loud = torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([0.5]), torch.tensor([20.0])
    >>> between_class(x, partner, half, loud, loud)  # t = 1/2; 1/2 over sqrt(1/2)
    tensor([[0.7071, 0.7071]])
    >>> between_class(x, partner, half, loud, torch.tensor([0.0]), domain="log")  # t = 1 / (1 + 10)
    tensor([[0.0909, 0.0909]])
    """
    lam, level, other_level = (v.to(x.device, exact_dtype(x.device)) for v in (lam, level, other_level))
    t = 1 / (1 + 10 ** ((level - other_level) / 20) * (1 - lam) / lam)
    if domain not in ("wave", "power"):
        return mix_linear(x, other, t)
    norm = (t.square() + (1 - t).square()).sqrt()
    weight, other_weight = t / norm, (1 - t) / norm
    if domain == "power":
        weight, other_weight = weight.square(), other_weight.square()
    return x * expand_like(weight, x) + other * expand_like(other_weight, x)
