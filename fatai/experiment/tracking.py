"""The trackers of experiments that a run logs to: a fit of theirs for each stage of each fold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastai.callback.core import Callback
from fastai.learner import Recorder

from fatai.callbacks.trackers import LogTagScores, MLflowCallback
from fatai.errors import MissingDependencyError, OptionError
from fatai.registry import did_you_mean

__all__ = ["TRACKERS", "stage_trackers"]

StageCallbacks = Callable[[int, int], list[Callback]]


def stage_trackers(tracker: str, out: str | Path) -> StageCallbacks:
    """Return the function of fold and stage that makes the callbacks of a tracker.

    Parameters
    ----------
    tracker
        A name in `TRACKERS`.
    out
        The run folder. TensorBoard writes to `tensorboard/` and Weights & Biases to `wandb/` in it; the name of the
        folder is that of the runs of Weights & Biases and MLflow.

    Raises
    ------
    OptionError
        If there is no such tracker.
    MissingDependencyError
        If its package is not installed.
    """
    if tracker not in TRACKERS:
        raise OptionError(f"the tracker is {tracker!r}; {did_you_mean(tracker, list(TRACKERS))}")
    try:
        return TRACKERS[tracker](Path(out))
    except ModuleNotFoundError as e:
        raise MissingDependencyError(
            f"the tracker {tracker} needs more packages ({e.name} is missing): pip install 'fatai[track]'"
        ) from None


def _tensorboard(out: Path) -> StageCallbacks:
    from fastai.callback.tensorboard import TensorBoardCallback

    def callbacks(fold: int, stage: int) -> list[Callback]:
        # Tracing a network is not possible in mixed precision.
        tracker = TensorBoardCallback(out / "tensorboard" / f"fold_{fold}_stage_{stage}", trace_model=False)

        def log(scores: Mapping[str, float], step: int) -> None:
            for name, score in scores.items():
                tracker.writer.add_scalar(name, score, step)

        return [tracker, LogTagScores(log)]

    return callbacks


def _wandb(out: Path) -> StageCallbacks:
    import wandb
    from fastai.callback.wandb import WandbCallback

    def callbacks(fold: int, stage: int) -> list[Callback]:
        out.mkdir(parents=True, exist_ok=True)
        name = out.resolve().name
        wandb.init(
            project="fatai", group=name, name=f"{name} fold {fold} stage {stage}", dir=out,
            config={"fold": fold, "stage": stage},
        )
        # Added to the step that fastai's callback has begun.
        scores = LogTagScores(lambda scores, step: wandb.log(dict(scores), commit=False))
        return [WandbCallback(log_preds=True), scores, _FinishWandb(wandb)]

    return callbacks


class _FinishWandb(Callback):
    """End the run of Weights & Biases with the fit, after its other callbacks."""

    order = Recorder.order + 3

    def __init__(self, wandb: Any):
        self.wandb = wandb

    def after_fit(self) -> None:
        """End the run."""
        self.wandb.finish()


def _mlflow(out: Path) -> StageCallbacks:
    import mlflow

    def callbacks(fold: int, stage: int) -> list[Callback]:
        mlflow.set_experiment("fatai")
        name = out.resolve().name
        tags = {"run": name, "fold": str(fold), "stage": str(stage)}
        return [MLflowCallback(run_name=f"{name} fold {fold} stage {stage}", tags=tags)]

    return callbacks


TRACKERS: dict[str, Callable[[Path], StageCallbacks]] = {
    "tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow,
}
"""For each tracker, the function from a run folder to the callbacks of fold and stage."""
