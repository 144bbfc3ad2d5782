"""Per-channel energy normalization: an automatic gain for each row of a spectrogram, then a root."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fatai.errors import FrontEndError

__all__ = ["PCEN", "smoothing"]

_BLOCK = 64  # frames per matrix product


def smoothing(frames: float) -> float:
    """Return the weight of the newest frame for a time constant of `frames` frames, as in `librosa.pcen`.

    Examples
    --------
    >>> round(smoothing(40), 5)
    0.02469
    """
    return (math.sqrt(1 + 4 * frames ** 2) - 1) / (2 * frames ** 2)


class PCEN(nn.Module):
    """Per-channel energy normalization (PCEN).

    Maps magnitudes S of shape (batch, rows, frames) to the same shape: with a smoother M_t = (1 - b) M_(t-1) + b S_t
    that starts at M_0 = S_0, the output is (S * (eps + M) ** -gain + bias) ** power - bias ** power. S is not scaled by
    2 ** 31, as librosa's examples do.

    Parameters
    ----------
    rows
        Number of rows of the spectrogram.
    gain
        Strength of the automatic gain: 0 none, 1 full.
    bias, power
        Offset and exponent of the compression; a lower power compresses more.
    b
        Weight of the newest frame in the smoother; see `smoothing` for a time in frames.
    eps
        Added to the smoother, against a division by 0.
    trainable
        True makes gain, bias, power and b parameters, one each per row, stored as logarithms; gradients then flow
        through the smoother.

    Raises
    ------
    FrontEndError
        If a constant is to be trained from a value that has no logarithm.

    References
    ----------
    arXiv:1607.05666; constants and trainable form of Kaggle-FAT.
    """

    def __init__(
        self,
        rows: int,
        *,
        gain: float = 0.5,
        bias: float = 1e-3,
        power: float = 0.2,
        b: float = 0.02469,
        eps: float = 1e-9,
        trainable: bool = False,
    ):
        super().__init__()
        self.eps, self.trainable = eps, trainable
        for name, value in dict(gain=gain, bias=bias, power=power, b=b).items():
            if trainable:
                if not value > 0:
                    raise FrontEndError(
                        f"PCEN's {name}={value} cannot be trained; expected a value above 0, whose logarithm is stored"
                    )
                self.register_parameter(f"log_{name}", nn.Parameter(torch.full((rows, 1), math.log(value))))
            else:
                self.register_buffer(f"fixed_{name}", torch.full((rows, 1), float(value)), persistent=False)

    def constant(self, name: str) -> Tensor:
        """Return "gain", "bias", "power" or "b", shape (rows, 1)."""
        return getattr(self, f"log_{name}").exp() if self.trainable else getattr(self, f"fixed_{name}")

    def forward(self, spec: Tensor) -> Tensor:
        """Normalize magnitudes of shape (batch, rows, frames)."""
        gain, bias, power, b = (self.constant(name) for name in ("gain", "bias", "power", "b"))
        smooth = _smooth(spec, b)
        # (eps + M) ** -gain by logarithms, which keep their precision where M is far below eps.
        amplified = spec * (-gain * (math.log(self.eps) + torch.log1p(smooth / self.eps))).exp()
        return (amplified + bias) ** power - bias ** power


def _smooth(spec: Tensor, b: Tensor) -> Tensor:
    """Apply the first-order recursion along the frames, from the first frame on, block by block.

    Within a block it is a product with the powers of the decay, all of which are at most 1, so no precision is lost.

    Parameters
    ----------
    spec
        Shape (batch, rows, frames).
    b
        Shape (rows, 1).
    """
    decay = 1 - b  # (rows, 1)
    step = torch.arange(min(_BLOCK, spec.shape[-1]), device=spec.device)
    lags = step[:, None] - step  # (to, from)
    kernel = ((b[..., None] * decay[..., None] ** lags.clamp(min=0)).masked_fill(lags < 0, 0)).mT  # (rows, from, to)
    fading = decay ** (step + 1)  # (rows, to)
    state, blocks = spec[..., :1], []
    for block in spec.split(len(step), -1):
        n = block.shape[-1]
        within = (block.transpose(0, 1) @ kernel[:, :n, :n]).transpose(0, 1)
        blocks.append(within + fading[:, :n] * state)
        state = blocks[-1][..., -1:]
    return torch.cat(blocks, -1)
