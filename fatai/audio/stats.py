"""Mean and spread of the spectrograms of a data set, in one pass and without keeping them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fatai.errors import DataError, OptionError, ShapeError
from fatai.audio.spectrogram import FrontEnd

__all__ = ["SpectrogramStats", "spectrogram_stats"]


class SpectrogramStats:
    """Mean and standard deviation of spectrograms that come one batch at a time, per row and over all, in float64.

    Frames count equally, so a long clip weighs more than a short one. Memory is two numbers a row, however many frames come.

    Examples
    --------
    >>> stats = SpectrogramStats()
    >>> for value in (1.0, 3.0):
    ...     stats.add(torch.full((1, 2, 5), value))
    >>> stats.mean, stats.std, stats.bin_mean.tolist()
    (2.0, 1.0, [2.0, 2.0])
    """

    def __init__(self) -> None:
        self.frames = 0
        self._means = np.zeros(0)
        self._squares = np.zeros(0)  # summed squares of the deviations from the means

    def add(self, spec: Tensor) -> None:
        """Count in the frames of spectrograms (batch, rows, frames), not normalized."""
        if spec.ndim != 3 or not spec.shape[1]:
            raise ShapeError(
                f"got spectrograms of shape {tuple(spec.shape)}; expected (batch, rows, frames): one clip is spec[None]"
            )
        rows = spec.detach().transpose(0, 1).flatten(1).double().cpu().numpy()
        if not rows.size:
            return
        if not np.isfinite(rows).all():
            raise DataError(
                "the spectrograms have values that are not finite; find the clip that they come from and leave it out"
            )
        means = rows.mean(1)
        self._count_in(rows.shape[1], means, ((rows - means[:, None]) ** 2).sum(1))

    def merge(self, other: SpectrogramStats) -> None:
        """Count in what `other` has counted, for instance in another process."""
        if other.frames:
            self._count_in(other.frames, other._means, other._squares)

    def _count_in(self, frames: int, means: np.ndarray, squares: np.ndarray) -> None:
        """Chan's formula, which loses no digits where a difference of sums of squares does."""
        if not self.frames:
            self.frames, self._means, self._squares = frames, means, squares
            return
        if len(means) != len(self._means):
            raise ShapeError(
                f"got spectrograms of {len(means)} rows after some of {len(self._means)}; use one front end for all"
            )
        total, shift = self.frames + frames, means - self._means
        self._squares = self._squares + squares + shift ** 2 * (self.frames * frames / total)
        self._means = self._means + shift * (frames / total)
        self.frames = total

    def _check_any(self) -> None:
        if not self.frames:
            raise DataError("no frames were counted, so they have no mean; add spectrograms first")

    @property
    def bin_mean(self) -> np.ndarray:
        """Mean of each row, shape (rows,)."""
        self._check_any()
        return self._means.copy()

    @property
    def bin_std(self) -> np.ndarray:
        """Population standard deviation of each row, shape (rows,)."""
        self._check_any()
        return np.sqrt(self._squares / self.frames)

    @property
    def mean(self) -> float:
        """Over all rows."""
        return float(self.bin_mean.mean())

    @property
    def std(self) -> float:
        """Over all rows: spread within the rows and between them."""
        return float(np.sqrt((self.bin_std ** 2).mean() + self.bin_mean.var()))

    def settings(self, normalize: str = "global") -> dict[str, Any]:
        """Values of a `FrontEnd` that standardise so: with one mean and deviation ("global"), or with those of each row ("bin")."""
        if normalize == "global":
            return {"normalize": normalize, "mean": self.mean, "std": self.std}
        if normalize == "bin":
            return {"normalize": normalize, "mean": tuple(self.bin_mean.tolist()), "std": tuple(self.bin_std.tolist())}
        raise OptionError(
            f"normalize={normalize!r}; expected 'global' or 'bin', the two that need statistics of a data set"
        )


def spectrogram_stats(front_end: FrontEnd, waves: Iterable[Tensor]) -> SpectrogramStats:
    """Statistics of clips as `front_end` sees them before it normalizes.

    Parameters
    ----------
    front_end
        Its `normalize` and `clamp` are left aside.
    waves
        Of any lengths, shape (samples,) or (batch, samples), at the rate of the front end; each is dropped before the next is taken.

    Examples
    --------
    >>> from fatai.audio.front_ends import front_end
    >>> plan = front_end("panns_plan")
    >>> stats = spectrogram_stats(plan, [torch.randn(32000), torch.randn(48000)])
    >>> plan.replace(clamp=10.0, **stats.settings("bin")).normalize
    'bin'
    """
    module = front_end.replace(normalize="none", mean=0.0, std=1.0, clamp=None).build()
    stats = SpectrogramStats()
    with torch.no_grad():
        for wave in waves:
            stats.add(module(wave if wave.ndim == 2 else wave[None]))
    return stats
