"""Trackers of experiments: scores of each tag for any tracker, and MLflow.

TensorBoard and Weights & Biases have callbacks in fastai, which log losses, metrics and samples of the validation part;
MLflow dropped its own for fastai.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from fastai.callback.core import Callback
from fastai.learner import Recorder
from fastai.torch_core import rank_distrib

from fatai.callbacks.base import is_training
from fatai.errors import MissingDependencyError
from fatai.metrics.ranking import lwlrap_per_class

__all__ = ["LogTagScores", "MLflowCallback", "tag_scores_of_epoch"]


def tag_scores_of_epoch(learn: Any) -> dict[str, float]:
    """Return the lwlrap of each tag on the validation clips of the epoch that has just ended, as "tag_lwlrap/TAG".

    Tags without clips are left out; empty if the learner has no metric that stores the predictions, as `LwLRAP` does.
    """
    stored = [metric for metric in learn.recorder.metrics if getattr(metric, "probs", None)]
    if not stored:
        return {}
    probs, targ = (np.concatenate([part.numpy() for part in parts]) for parts in (stored[0].probs, stored[0].targs))
    per_tag = zip(learn.tags, *lwlrap_per_class(probs, targ), strict=True)
    return {f"tag_lwlrap/{tag}": float(score) for tag, score, weight in per_tag if weight > 0}


class LogTagScores(Callback):
    """Pass the lwlrap of each tag to a tracker after every epoch.

    Parameters
    ----------
    log
        Function of the scores by name and the number of the last batch.
    """

    order = Recorder.order + 2

    def __init__(self, log: Callable[[Mapping[str, float], int], Any]):
        self.log = log

    def after_epoch(self) -> None:
        """Log the scores."""
        if is_training(self.learn) and not rank_distrib():
            self.log(tag_scores_of_epoch(self.learn), self.train_iter)


class MLflowCallback(Callback):
    """Log a fit to MLflow: settings, losses and learning rates of batches, metrics of epochs, lwlrap of each tag.

    A run that is active is used; without one, a run is started and ended with the fit. `mlflow.set_tracking_uri` or the
    variable `MLFLOW_TRACKING_URI` names the server or the file.

    Parameters
    ----------
    every
        Batches from one logged loss to the next.
    options
        Of `mlflow.start_run`, such as `run_name`.

    Raises
    ------
    MissingDependencyError
        If MLflow is not installed.
    """

    order = Recorder.order + 1

    def __init__(self, *, every: int = 10, **options: Any):
        try:
            import mlflow
        except ImportError:
            raise MissingDependencyError("this tracker needs the package mlflow: pip install 'fatai[track]'") from None
        self.mlflow, self.every, self.options, self.is_own = mlflow, every, options, False

    def before_fit(self) -> None:
        """Start a run, if none is active, and log the settings."""
        self.run = is_training(self.learn) and not rank_distrib()
        if not self.run:
            return
        self.is_own = self.mlflow.active_run() is None
        if self.is_own:
            self.mlflow.start_run(**self.options)
        settings = {**self.learn.tracked_settings(), "epochs": self.n_epoch}
        known = self.mlflow.get_run(self.mlflow.active_run().info.run_id).data.params
        # A parameter of MLflow is written once; a later fit of the same run may have other settings.
        self.mlflow.log_params({key: value for key, value in settings.items() if key not in known})

    def after_batch(self) -> None:
        """Log the smoothed loss and the learning rates of a training batch."""
        if self.training and self.train_iter % self.every == 0:
            rates = {f"lr_{k}": float(group["lr"]) for k, group in enumerate(self.opt.hypers)}
            self.mlflow.log_metrics({"train_loss": float(self.smooth_loss), **rates}, step=self.train_iter)

    def after_epoch(self) -> None:
        """Log the losses and metrics of the epoch, and the scores of the tags."""
        pairs = zip(self.recorder.metric_names[1:-1], self.recorder.log[1:], strict=False)
        values = {name: float(value) for name, value in pairs if value is not None}
        scores = {_mlflow_name(name): value for name, value in tag_scores_of_epoch(self.learn).items()}
        self.mlflow.log_metrics({**values, **scores}, step=self.train_iter)

    def after_fit(self) -> None:
        """End the run if it was started here, however the fit ends: the next fit has a run of its own."""
        if self.is_own:
            self.is_own = False
            self.mlflow.end_run()

    after_cancel_fit = after_fit


def _mlflow_name(name: str) -> str:
    """Return a name with the characters that MLflow refuses replaced by underscores."""
    return "".join(c if c.isalnum() or c in "_-./ " else "_" for c in name)
