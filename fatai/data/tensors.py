"""`TensorWave` and `TensorSpec`: tensors that know their rate, show themselves and play themselves.

Conventions: a wave is (samples,) or (batch, samples); a spectrogram (channels, mels, frames) or with a batch in front. What a tensor
knows (`sr`, `front_end`, the wave that a spectrogram came from) is one value for a whole batch, as fastai's collation keeps it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from fastai.basics import TensorBase
from fastai.torch_core import TensorImageBase
from torch import Tensor

from fatai.audio.front_ends import FrontEnd

__all__ = ["TensorFrames", "TensorSpec", "TensorWave", "in_notebook", "audio_players"]

# Perceptually uniform and readable for every kind of colour vision.
_COLOURS = "magma"


def _axis(ctx: Any, figsize: tuple[float, float]) -> Any:
    if ctx is not None:
        return ctx
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=figsize)[1]


def in_notebook() -> bool:
    """Whether a player could be shown: an IPython kernel with a front end is running."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def _player(wave: np.ndarray, sr: int) -> Any:
    from IPython.display import Audio

    # At its own level: scaled to its peak, a quiet clip would sound loud and a silent one divide by zero.
    return Audio(np.clip(wave, -1, 1), rate=sr, normalize=False)


def audio_players(waves: list[tuple[np.ndarray, int, str]]) -> Any:
    """Audio players side by side.

    Parameters
    ----------
    waves
        For each player the samples (samples,), the rate in Hz, and the words above it.

    Returns
    -------
    An IPython HTML object.
    """
    from html import escape

    from IPython.display import HTML

    cells = [
        f'<div style="margin:4px"><div style="font:12px sans-serif">{escape(title)}</div>{_player(wave, sr)._repr_html_()}</div>'
        for wave, sr, title in waves
    ]
    return HTML(f'<div style="display:flex;flex-wrap:wrap">{"".join(cells)}</div>')


class TensorWave(TensorBase):
    """Sound as samples in [-1, 1], shape (samples,) or (batch, samples); `sr` is its rate in Hz."""

    @property
    def rate(self) -> int:
        return int(getattr(self, "sr", 44100))

    def show(self, ctx: Any = None, title: str | None = None, **kwargs: Any) -> Any:
        """Draw the waveform over seconds."""
        axis = _axis(ctx, (6, 2))
        wave = self.detach().cpu().as_subclass(Tensor).reshape(-1).numpy()
        axis.plot(np.arange(len(wave)) / self.rate, wave, linewidth=0.5)
        axis.set(xlabel="seconds", ylim=(-1, 1), title=title)
        return axis

    def hear(self) -> Any:
        """A player for a notebook."""
        return _player(self.detach().cpu().as_subclass(Tensor).reshape(-1).numpy(), self.rate)


class TensorFrames(TensorBase):
    """Features that come from a cache, shape (rows, frames) or (batch, rows, frames), before they become the channels of a `TensorSpec`."""


class TensorSpec(TensorImageBase):
    """A spectrogram, shape (channels, mels, frames) or (batch, channels, mels, frames).

    `front_end` describes how it was made and gives its axes their Hz and seconds; `wave`, where it is known, is the sound that it shows.
    It is deliberately no `TensorImage`: fastai would normalize and rescale that as a photograph.
    """

    def show(self, ctx: Any = None, title: str | None = None, **kwargs: Any) -> Any:
        """Draw the first channel, frequency in Hz upwards and seconds to the right."""
        axis = _axis(ctx, (4, 3))
        values = self.detach().float().cpu().as_subclass(Tensor)
        picture = values.reshape(-1, *values.shape[-2:])[0].numpy()
        made_by: FrontEnd | None = getattr(self, "front_end", None)
        seconds = picture.shape[1] * (made_by.seconds_per_frame if made_by else 1.0)
        extent = (0, seconds, 0, picture.shape[0])
        axis.imshow(picture, origin="lower", aspect="auto", cmap=_COLOURS, interpolation="nearest", extent=extent)
        if made_by:
            centres = made_by.frequencies_hz()
            at = np.linspace(0, len(centres) - 1, 5).round().astype(int)
            axis.set_yticks(at + 0.5, [f"{centres[i]:,.0f}" for i in at])
            axis.set_ylabel("Hz")
            axis.set_xlabel("seconds")
        axis.set_title(title, fontsize=9)
        return axis

    def hear(self) -> Any:
        """A player for the sound behind the spectrogram, where it is known."""
        wave = getattr(self, "wave", None)
        if wave is None:
            raise AttributeError("this spectrogram does not carry its sound: take it from a batch of the data loaders")
        return TensorWave(torch.as_tensor(wave)).hear()
