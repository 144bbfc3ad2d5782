"""The trackers of experiments that a run logs to: a fit of theirs for each stage of each fold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastai.callback.core import Callback
from fastai.learner import Recorder

from fatai.callbacks.trackers import LogTagScores, MLflowCallback
from fatai.distributed import ProcessGroup
from fatai.errors import MissingDependencyError, OptionError
from fatai.registry import did_you_mean

__all__ = ["TRACKERS", "stage_trackers"]

StageCallbacks = Callable[[int, int, ProcessGroup], list[Callback]]
_Callbacks = Callable[[int, int, bool], list[Callback]]  # of fold, stage, and whether samples are logged


def stage_trackers(tracker: str, out: str | Path) -> StageCallbacks:
    """Return the function of fold, stage and process group that makes the callbacks of a tracker.

    Each process logs the folds that it trains alone. Of processes that share the batches of a fold only the main one
    logs, without samples.

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
        make = TRACKERS[tracker](Path(out))
    except ModuleNotFoundError as e:
        raise MissingDependencyError(
            f"the tracker {tracker} needs more packages ({e.name} is missing): pip install 'fatai[track]'"
        ) from None

    def callbacks(fold: int, stage: int, group: ProcessGroup) -> list[Callback]:
        # The main process would predict samples alone and wait for the parts of the others without end.
        return make(fold, stage, group.world_size == 1) if group.is_main else []

    return callbacks


def _tensorboard(out: Path) -> _Callbacks:
    from fastai.callback.tensorboard import TensorBoardCallback

    def callbacks(fold: int, stage: int, samples: bool) -> list[Callback]:
        # Tracing a network is not possible in mixed precision.
        tracker = TensorBoardCallback(
            out / "tensorboard" / f"fold_{fold}_stage_{stage}", trace_model=False, log_preds=samples
        )

        def log(scores: Mapping[str, float], step: int) -> None:
            for name, score in scores.items():
                tracker.writer.add_scalar(name, score, step)

        return [tracker, LogTagScores(log)]

    return callbacks


def _wandb(out: Path) -> _Callbacks:
    import wandb
    from fastai.callback.wandb import WandbCallback

    def callbacks(fold: int, stage: int, samples: bool) -> list[Callback]:
        out.mkdir(parents=True, exist_ok=True)
        name = out.resolve().name
        wandb.init(
            project="fatai", group=name, name=f"{name} fold {fold} stage {stage}", dir=out,
            config={"fold": fold, "stage": stage},
        )
        # Added to the step that fastai's callback has begun.
        scores = LogTagScores(lambda scores, step: wandb.log(dict(scores), commit=False))
        return [WandbCallback(log_preds=samples), scores, _FinishWandb(wandb)]

    return callbacks


class _FinishWandb(Callback):
    """End the run of Weights & Biases with the fit, after its other callbacks."""

    order = Recorder.order + 3

    def __init__(self, wandb: Any):
        self.wandb = wandb

    def after_fit(self) -> None:
        """End the run."""
        self.wandb.finish()


def _mlflow(out: Path) -> _Callbacks:
    import mlflow

    def callbacks(fold: int, stage: int, samples: bool) -> list[Callback]:
        mlflow.set_experiment("fatai")
        name = out.resolve().name
        tags = {"run": name, "fold": str(fold), "stage": str(stage)}
        return [MLflowCallback(run_name=f"{name} fold {fold} stage {stage}", tags=tags)]

    return callbacks


TRACKERS: dict[str, Callable[[Path], _Callbacks]] = {
    "tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow,
}
"""For each tracker, the function from a run folder to the callbacks of fold and stage, with or without samples."""
