"""A second head for noisy labels beside the first: one network that answers twice while it trains."""

from __future__ import annotations

from torch import Tensor, nn

from fatai.errors import OptionError

__all__ = ["TwoHeadModel"]


class TwoHeadModel(nn.Module):
    """A network with twice the tags, of which predictions are the first half: multitask learning with noisy labels, as the 4th place.

    Parameters
    ----------
    model
        Maps a spec to logits (batch, 2 tags), all layers but the last shared by both heads.
    n_tags
        Tags of one head.

    Returns
    -------
    Logits: (batch, 2 tags) while training, which `fatai.noisy_labels.methods.second_head` makes targets for; (batch, tags) in evaluation.
    """

    def __init__(self, model: nn.Module, n_tags: int):
        super().__init__()
        if getattr(model, "aux_weights", None):
            raise OptionError(
                f"{type(model).__name__} has auxiliary outputs; a second head needs a network with one output"
            )
        self.model, self.n_tags = model, n_tags

    def forward(self, spec: Tensor) -> Tensor:
        logits = self.model(spec)
        return logits if self.training else logits[:, : self.n_tags]
