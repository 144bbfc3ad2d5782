"""Spectrograms of batches of clips, the input of a network; needs torch alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fatai.data.config import ClipConfig

__all__ = ["ClipSpectrograms"]


class ClipSpectrograms:
    """Convert waves (batch, samples) to spectrograms (batch, channels, mels, frames) on their device.

    Parameters
    ----------
    config
        Front end and channels.

    Attributes
    ----------
    n_channels
        Channels of the spectrograms.
    module
        The front end followed by the channels, without gradients.
    """

    def __init__(self, config: ClipConfig):
        self.config = config
        channels = config.channels_module()
        self.n_channels = int(channels.n_channels)  # type: ignore[arg-type]
        self.module = nn.Sequential(config.front_end.build(), channels).eval()

    def spec(self, wave: Tensor) -> Tensor:
        """Convert plain waves (batch, samples) to plain spectrograms (batch, channels, mels, frames)."""
        return self.run(self.module, wave)

    def run(self, module: nn.Module, batch: Tensor) -> Tensor:
        """Apply `module`, or a part of it, to a batch, after it has moved to the device of the batch."""
        device = next(iter(self.module.buffers()), batch).device
        if device != batch.device:
            self.module.to(batch.device)
        with torch.no_grad():
            return module(batch)
