"""Base classes of the augmentations of waves: choice of clips, draws, and application clip by clip.

Conventions are those of `fatai.augment.wave`: an augmentation draws all its random numbers first, with a row for each
clip, and then applies a pure function to each chosen clip.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fatai.audio.waveform import fit_length
from fatai.augment.base import BatchAugmentation
from fatai.augment.batch_input import BatchInput
from fatai.augment.draws import check_probability, check_range, draw_bernoulli, draw_uniform, take_rows
from fatai.errors import ShapeError

__all__ = ["Numbers", "UniformAugmentation", "WaveAugmentation"]


class Numbers(NamedTuple):
    """One random number, or a row of them, for each clip: shape (clips,) or (clips, n)."""

    value: Tensor


class WaveAugmentation(BatchAugmentation):
    """A random change of single waves: `draw`, then `apply`, for clips chosen with probability `p`.

    Parameters
    ----------
    p
        Probability for each clip; 0 switches the augmentation off, 1 changes every clip.
    before_mixing
        True changes the clips before they are mixed, False the mixtures.
    generator
        Of the draws; None is torch's global one, and the only one that suits loader workers.
    """

    def __init__(self, *, p: float = 0.5, before_mixing: bool = True, generator: torch.Generator | None = None):
        super().__init__("wave", -1 if before_mixing else 1, generator)
        self.p = check_probability(p)

    def draw(self, n: int, samples: int, sr: int, generator: torch.Generator | None = None) -> Any:
        """Draw all random numbers for `n` clips: a named tuple of tensors with `n` rows, on the CPU."""
        raise NotImplementedError

    def apply(self, wave: Tensor, drawn: Any, sr: int) -> Tensor:
        """Return one changed wave, of any length; a pure function.

        Parameters
        ----------
        wave
            Shape (samples,).
        drawn
            This clip's numbers of `draw`, without their first dimension.
        sr
            Rate in Hz.
        """
        raise NotImplementedError

    def augment(self, wave: Tensor, sr: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw and apply.

        Parameters
        ----------
        wave
            Shape (batch, samples).
        sr
            Its rate in Hz.
        generator
            In place of the augmentation's own.

        Returns
        -------
        A new tensor of the same shape, or `wave` itself if no clip was chosen.

        Raises
        ------
        ShapeError
            If `wave` is not of two dimensions.
        """
        if wave.ndim != 2:
            raise ShapeError(
                f"got waves of shape {tuple(wave.shape)}; expected (batch, samples): one clip is wave[None]"
            )
        chosen, drawn = self._draw_chosen(len(wave), wave.shape[1], sr, generator)
        if not chosen.any():
            return wave
        rows = [
            self._augment_row(row, take_rows(drawn, torch.tensor(i)), sr) if chosen[i] else row
            for i, row in enumerate(wave)
        ]
        return torch.stack(rows)

    def _augment_row(self, row: Tensor, drawn: Any, sr: int) -> Tensor:
        return fit_length(self.apply(row, drawn, sr), len(row), "constant_right", cut="right")

    def augment_item(self, wave: Tensor, sr: int) -> Tensor:
        """Draw and apply for one clip (samples,) at `sr` Hz, whose length may change."""
        if len(wave) == 0:
            return wave
        chosen, drawn = self._draw_chosen(1, len(wave), sr, None)
        return self.apply(wave, take_rows(drawn, torch.tensor(0)), sr) if chosen[0] else wave

    def _draw_chosen(self, n: int, samples: int, sr: int, generator: torch.Generator | None) -> tuple[Tensor, Any]:
        generator = generator or self.generator
        return draw_bernoulli(n, self.p, generator), self.draw(n, samples, sr, generator)

    def augment_values(self, x: Tensor, batch: BatchInput) -> Tensor:
        """Return the augmented waves, (batch, samples) like `x`."""
        return self.augment(x, batch.rate)


class UniformAugmentation(WaveAugmentation):
    """An augmentation by one number, uniform in a range.

    Parameters
    ----------
    bounds
        Lowest and highest number.
    name
        Name of `bounds` in error messages.
    low, high
        What `bounds` must lie within.
    p, before_mixing, generator
        As in `WaveAugmentation`.

    Raises
    ------
    OptionError
        If `bounds` are not two numbers in rising order within [low, high].
    """

    def __init__(
        self, bounds: tuple[float, float], name: str, *, low: float = -math.inf, high: float = math.inf, **kwargs: Any
    ):
        super().__init__(**kwargs)
        check_range(bounds, name, low=low, high=high)
        self.bounds = bounds

    def draw(self, n: int, samples: int, sr: int, generator: torch.Generator | None = None) -> Any:
        """Draw a number for each of `n` clips."""
        return Numbers(draw_uniform(n, *self.bounds, generator))
