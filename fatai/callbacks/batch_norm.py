"""Batch norm in eval mode during training, for networks that start from published weights."""

from __future__ import annotations

from fastai.callback.core import Callback, TrainEvalCallback
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["FreezeBatchNorm"]


class FreezeBatchNorm(Callback):
    """Train with the stored means and variances of batch norms, which stay as they are.

    Small batches of few clips estimate them badly, and a published network has them from millions of clips. The last
    layer group is left out where there are several, as `slice(lr)` and `freeze` split them: a new head has nothing
    stored yet. Weights and biases of batch norms are trained unless their group is frozen.

    Notes
    -----
    fastai's `BnFreeze` leaves out every batch norm whose weights are trained, so it does nothing after `unfreeze`.
    """

    run_after = TrainEvalCallback
    run_valid = False

    def before_train(self) -> None:
        """Set batch norms to eval mode, after fastai set the whole network to training mode."""
        groups = self.opt.param_lists
        head = {id(p) for p in groups[-1]} if len(groups) > 1 else set()
        for module in self.model.modules():
            if isinstance(module, _BatchNorm) and not any(id(p) in head for p in module.parameters()):
                module.eval()
