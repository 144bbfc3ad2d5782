"""Layer-wise decay of the learning rate: the earlier a layer, the smaller its steps."""

from __future__ import annotations

from fastai.callback.core import Callback

from fatai.errors import OptionError

__all__ = ["LayerDecay"]


class LayerDecay(Callback):
    """Set the learning rate of every layer to that of the layer behind it times `decay`.

    The layers are the optimizer's parameter groups, the last of which keeps the rate of the schedule; so any schedule,
    `fine_tune` and `lr_find` work as usual, and of `slice(a, b)` only b counts. `fat_learner(..., layer_decay=0.75)`
    makes a group of every layer and adds this callback.

    Parameters
    ----------
    decay
        Above 0, at most 1, which changes nothing; 0.65 to 0.85 is common for transformers.

    Raises
    ------
    OptionError
        If `decay` is out of range.

    Notes
    -----
    As in BEiT (arXiv:2106.08254) and timm's `param_groups_layer_decay`.
    """

    run_valid = False

    def __init__(self, decay: float = 0.75):
        if not 0 < decay <= 1:
            raise OptionError(f"layer_decay is {decay}; expected a number above 0 and at most 1, such as 0.75")
        self.decay = decay

    def before_step(self) -> None:
        """Derive the rates of all groups from that of the last."""
        last = len(self.opt.hypers) - 1
        lr = self.opt.hypers[last]["lr"]
        self.opt.set_hyper("lr", [lr * self.decay ** (last - k) for k in range(last + 1)])
