"""Losses in the table of epochs, as one number for a clip whatever the reduction of the loss."""

from __future__ import annotations

from fastai.learner import AvgLoss, AvgSmoothLoss, Learner, Recorder
from fastai.torch_core import find_bs
from torch import Tensor

__all__ = ["loss_per_clip", "record_loss_per_clip"]


def loss_per_clip(learn: Learner) -> Tensor:
    """Return the mean loss of the clips of the current batch, also where the loss function adds them up."""
    loss = learn.loss.mean()
    return loss / find_bs(learn.yb) if getattr(learn.loss_func, "reduction", None) == "sum" else loss


class _LossPerClip(AvgLoss):
    """fastai's average loss; fastai itself takes every loss for a mean."""

    def accumulate(self, learn: Learner) -> None:
        n = find_bs(learn.yb)
        self.total += learn.to_detach(loss_per_clip(learn)) * n
        self.count += n


class _SmoothLossPerClip(AvgSmoothLoss):
    """fastai's smoothed training loss."""

    val: Tensor  # reset by fastai

    def accumulate(self, learn: Learner) -> None:
        self.count += 1
        self.val = loss_per_clip(learn).detach().to(self.val).lerp(self.val, self.beta)


def record_loss_per_clip(recorder: Recorder) -> None:
    """Let a recorder record losses per clip."""
    # Through vars, because fastai warns that the learner has attributes of these names as well.
    attributes = vars(recorder)
    if isinstance(attributes["loss"], _LossPerClip):
        return  # FetchPredsCallback removes and adds the recorder in the middle of an epoch, whose sums must stay
    attributes["loss"], attributes["smooth_loss"] = _LossPerClip(), _SmoothLossPerClip(recorder.smooth_loss.beta)
