"""A second head for noisy labels: multi-task training on curated and noisy clips."""

from __future__ import annotations

from torch import Tensor, nn

from fatai.errors import OptionError
from fatai.models.base import SpectrogramModel

__all__ = ["TwoHeadModel"]


class TwoHeadModel(nn.Module):
    """A network with twice the tags, the first half of which are predictions: the 4th place's multi-task training.

    Parameters
    ----------
    model
        Maps a spectrogram to logits (batch, 2 tags); all layers but the last are shared by both heads.
    n_tags
        Tags of one head.

    Raises
    ------
    OptionError
        If the model has auxiliary outputs.
    """

    def __init__(self, model: nn.Module, n_tags: int):
        super().__init__()
        if isinstance(model, SpectrogramModel) and model.aux_weights:
            raise OptionError(
                f"{type(model).__name__} has auxiliary outputs; a second head needs a network with one output"
            )
        self.model, self.n_tags = model, n_tags

    def forward(self, spec: Tensor) -> Tensor:
        """Return logits: (batch, 2 tags) in training, (batch, tags) in evaluation."""
        logits = self.model(spec)
        return logits if self.training else logits[:, : self.n_tags]
