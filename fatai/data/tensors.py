"""`TensorWave` and `TensorSpec`: tensors with metadata that can be shown and played.

Conventions: a wave is (samples,) or (batch, samples); a spectrogram (channels, mels, frames) or with a batch in front.
Metadata (`sr`, `front_end`, the wave of a spectrogram) is one value for a whole batch; fastai's collation and
operations keep it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from fastai.basics import TensorBase
from fastai.torch_core import TensorImageBase
from torch import Tensor

from fatai.audio.frequency_axis import format_hz, frequency_ticks
from fatai.audio.front_ends import FrontEnd

__all__ = ["TensorSpec", "TensorWave"]

# Perceptually uniform, and readable with every kind of color vision.
_COLORMAP = "magma"


def _axis(ctx: Any, figsize: tuple[float, float]) -> Any:
    if ctx is not None:
        return ctx
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=figsize)[1]


def in_notebook() -> bool:
    """Return whether audio players can be displayed: the code runs in an IPython kernel with a front end."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def _player(wave: np.ndarray, sr: int) -> Any:
    from IPython.display import Audio

    # At its own level: normalized to its peak, a quiet clip would be loud and a silent one divide by zero.
    return Audio(np.clip(wave, -1, 1), rate=sr, normalize=False)


def audio_players(waves: list[tuple[np.ndarray, int, str]]) -> Any:
    """Create audio players side by side, for a notebook.

    Parameters
    ----------
    waves
        For each player the samples, shape (samples,), clipped to [-1, 1], the sample rate in Hz, and the title.

    Returns
    -------
    An IPython HTML object.
    """
    from html import escape

    from IPython.display import HTML

    cells = [
        f'<div style="margin:4px"><div style="font:12px sans-serif">{escape(title)}</div>'
        f"{_player(wave, sr)._repr_html_()}</div>"
        for wave, sr, title in waves
    ]
    return HTML(f'<div style="display:flex;flex-wrap:wrap">{"".join(cells)}</div>')


class TensorWave(TensorBase):
    """A waveform with values in [-1, 1], shape (samples,) or (batch, samples); `TensorWave(x, sr=sr)` creates one.

    Attributes
    ----------
    sr
        Sample rate in Hz.
    """

    sr: int = 44100

    def show(self, ctx: Any = None, title: str | None = None, **kwargs: Any) -> Any:
        """Draw the waveform over time in seconds.

        Parameters
        ----------
        ctx
            matplotlib axes; None creates a figure.
        title
            Title of the axes.

        Returns
        -------
        The axes.
        """
        axis = _axis(ctx, (6, 2))
        wave = self.detach().cpu().as_subclass(Tensor).reshape(-1).numpy()
        axis.plot(np.arange(len(wave)) / self.sr, wave, linewidth=0.5)
        axis.set(xlabel="seconds", ylim=(-1, 1), title=title)
        return axis

    def hear(self) -> Any:
        """Create an audio player, for a notebook."""
        return _player(self.detach().cpu().as_subclass(Tensor).reshape(-1).numpy(), self.sr)


class TensorFrames(TensorBase):
    """Cached features without channels, shape (rows, frames) or (batch, rows, frames)."""


class TensorSpec(TensorImageBase):
    """A spectrogram, shape (channels, mels, frames) or (batch, channels, mels, frames).

    It is deliberately no `TensorImage`, which fastai would normalize and rescale as a photograph.

    Attributes
    ----------
    front_end
        The front end that computed it, which determines Hz and seconds of its axes; None if unknown.
    wave
        The waves of the spectrograms, shape (batch, samples); None if unknown, or if the spectrogram was changed since.
    """

    front_end: FrontEnd | None = None
    wave: TensorWave | None = None

    def show(self, ctx: Any = None, title: str | None = None, **kwargs: Any) -> Any:
        """Draw the first channel of the first spectrogram, frequency in Hz upwards and seconds to the right.

        Parameters
        ----------
        ctx
            matplotlib axes; None creates a figure.
        title
            Title of the axes.

        Returns
        -------
        The axes.
        """
        axis = _axis(ctx, (4, 3))
        values = self.detach().float().cpu().as_subclass(Tensor)
        image = values.reshape(-1, *values.shape[-2:])[0].numpy()
        seconds = image.shape[1] * (self.front_end.seconds_per_frame if self.front_end else 1.0)
        extent = (0, seconds, 0, image.shape[0])
        axis.imshow(image, origin="lower", aspect="auto", cmap=_COLORMAP, interpolation="nearest", extent=extent)
        if self.front_end:
            _label_axes(axis, self.front_end, image.shape[0])
        axis.set_title(title, fontsize=9)
        return axis

    def hear(self) -> Any:
        """Create an audio player of the wave, for a notebook; raise `AttributeError` if the wave is unknown."""
        if self.wave is None:
            raise AttributeError("this spectrogram does not carry its wave: take it from a batch of the data loaders")
        return TensorWave(torch.as_tensor(self.wave)).hear()


def _label_axes(axis: Any, front_end: FrontEnd, rows: int) -> None:
    ticks = frequency_ticks(front_end, rows)
    axis.set_yticks([rows * height for _, height in ticks], [format_hz(hz) for hz, _ in ticks])
    axis.set_ylabel("Hz")
    axis.set_xlabel("seconds")
