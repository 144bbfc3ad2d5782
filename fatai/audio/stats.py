"""Mean and standard deviation of the spectrograms of a data set, in one pass and without storing them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fatai.audio.spectrogram import FrontEnd
from fatai.errors import DataError, OptionError, ShapeError

__all__ = ["SpectrogramStats", "spectrogram_stats"]


class SpectrogramStats:
    """Running mean and standard deviation of spectrograms, per row and over all, in float64.

    Frames count equally, so a long clip has more weight than a short one. Memory is two numbers per row for any number
    of frames.

    Attributes
    ----------
    frames
        Number of frames so far.

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
        """Add the frames of a batch of spectrograms.

        Parameters
        ----------
        spec
            Shape (batch, rows, frames), not normalized; the number of rows is the same in every batch.

        Raises
        ------
        ShapeError
            If the shape does not fit.
        DataError
            If a value is not finite.
        """
        if spec.ndim != 3 or not spec.shape[1]:
            raise ShapeError(
                f"got spectrograms of shape {tuple(spec.shape)}; expected (batch, rows, frames): one clip is spec[None]"
            )
        rows = spec.detach().transpose(0, 1).flatten(1).cpu().double().numpy()
        if not rows.size:
            return
        if not np.isfinite(rows).all():
            raise DataError(
                "the spectrograms have values that are not finite; find their clip and leave it out"
            )
        means = rows.mean(1)
        self._add(rows.shape[1], means, ((rows - means[:, None]) ** 2).sum(1))

    def merge(self, other: SpectrogramStats) -> None:
        """Add the frames of other statistics, for instance those of another process."""
        if other.frames:
            self._add(other.frames, other._means, other._squares)

    def _add(self, frames: int, means: np.ndarray, squares: np.ndarray) -> None:
        """Merge means and squares (rows,) by Chan's formula; a difference of sums of squares would lose precision."""
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

    def _check_not_empty(self) -> None:
        if not self.frames:
            raise DataError("no frames were added, so there is no mean; add spectrograms first")

    @property
    def bin_mean(self) -> np.ndarray:
        """Mean of each row, shape (rows,)."""
        self._check_not_empty()
        return self._means.copy()

    @property
    def bin_std(self) -> np.ndarray:
        """Population standard deviation of each row, shape (rows,)."""
        self._check_not_empty()
        return np.sqrt(self._squares / self.frames)

    @property
    def mean(self) -> float:
        """Mean over all rows, a scalar."""
        return float(self.bin_mean.mean())

    @property
    def std(self) -> float:
        """Population standard deviation over all rows, a scalar: the spread within the rows and between them."""
        return float(np.sqrt((self.bin_std ** 2).mean() + self.bin_mean.var()))

    def settings(self, normalize: str = "global") -> dict[str, Any]:
        """Return the settings `normalize`, `mean` and `std` of a `FrontEnd`.

        Parameters
        ----------
        normalize
            "global" for one mean and standard deviation, "bin" for one per row.

        Raises
        ------
        OptionError
            If `normalize` is another value.

        Examples
        --------
        >>> stats = SpectrogramStats()
        >>> stats.add(torch.tensor([[[1.0, 3.0]]]))
        >>> stats.settings()
        {'normalize': 'global', 'mean': 2.0, 'std': 1.0}
        """
        if normalize == "global":
            return {"normalize": normalize, "mean": self.mean, "std": self.std}
        if normalize == "bin":
            return {"normalize": normalize, "mean": tuple(self.bin_mean.tolist()), "std": tuple(self.bin_std.tolist())}
        raise OptionError(
            f"normalize={normalize!r}; expected 'global' or 'bin', the two that use statistics of a data set"
        )


def spectrogram_stats(front_end: FrontEnd, waves: Iterable[Tensor]) -> SpectrogramStats:
    """Compute the statistics of the spectrograms of clips before normalization.

    Parameters
    ----------
    front_end
        Settings of the spectrograms; `normalize` and `clamp` are ignored.
    waves
        Shape (samples,) or (batch, samples), of any lengths, at the rate of the front end. They are consumed one at a
        time.

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
