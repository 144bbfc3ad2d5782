"""Trackers with their real packages and without a network; those that are not installed are skipped."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastai.callback.core import Callback

from fatai.callbacks.trackers import LogTagScores, MLflowCallback, tag_scores_of_epoch
from fatai.distributed import SINGLE_PROCESS, ProcessGroup
from fatai.errors import MissingDependencyError, OptionError
from fatai.experiment.tracking import stage_trackers
from fatai.inference.learner import fat_learner
from fatai.metrics.ranking import lwlrap_per_class


@pytest.fixture
def learn(small_dls):
    learn = fat_learner(small_dls, arch="m1", width=0.125, precision="fp32")
    with learn.no_bar(), learn.no_logging():
        yield learn


def validation_scores(learn):
    """Return the lwlrap of each tag by `get_preds`."""
    probs, targ = learn.get_preds(ds_idx=1)
    scores, weights = lwlrap_per_class(probs.numpy(), targ.numpy())
    return {f"tag_lwlrap/{tag}": s for tag, s, w in zip(learn.tags, scores, weights, strict=True) if w > 0}


def test_scores_of_the_tags_are_those_of_the_validation_clips(learn):
    logged = []
    learn.fit(1, 1e-3, cbs=LogTagScores(lambda scores, step: logged.append((scores, step))))
    (scores, step), = logged
    assert scores == pytest.approx(validation_scores(learn)) and step == len(learn.dls.train)
    assert len(scores) == len(learn.tags)


def test_without_a_metric_that_stores_predictions_there_are_no_scores(small_dls):
    learn = fat_learner(small_dls, arch="m1", width=0.125, metrics=[])
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
    assert tag_scores_of_epoch(learn) == {}


def read_events(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return events


def test_fastais_tensorboard_callback_logs_losses_metrics_and_samples(learn, tmp_path):
    pytest.importorskip("tensorboard")
    from fastai.callback.tensorboard import TensorBoardCallback

    learn.fit(1, 1e-3, cbs=TensorBoardCallback(tmp_path, trace_model=False, n_preds=3))
    events = read_events(tmp_path)
    scalars = {name: events.Scalars(name)[-1].value for name in events.Tags()["scalars"]}
    assert scalars["lwlrap"] == pytest.approx(learn.recorder.values[-1][2])
    assert scalars["valid_loss"] == pytest.approx(learn.recorder.values[-1][1])
    assert {point.step for point in events.Scalars("train_loss")} == set(range(1, len(learn.dls.train) + 1))
    assert events.Tags()["images"] == ["Sample results"]


def test_fastais_wandb_callback_logs_settings_metrics_and_a_table(learn, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from fastai.callback.wandb import WandbCallback

    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(project="test", mode="offline", dir=tmp_path)
    try:
        learn.fit(1, 1e-3, cbs=WandbCallback(n_preds=4))
        assert run.summary["lwlrap"] == pytest.approx(learn.recorder.values[-1][2])
        assert (run.config["arch"], run.config["train clips"]) == ("m1", len(learn.dls.train_ds))
        table, = Path(run.dir).rglob("*.table.json")
        rows = json.loads(table.read_text())
    finally:
        wandb.finish()
    assert rows["columns"] == ["Spectrogram", "Sound", "Ground_Truth", "Predictions"] and len(rows["data"]) == 4
    assert all(row[:2] == ["Image", "Audio"] and row[2] in learn.tags for row in rows["data"])


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    yield mlflow
    while mlflow.active_run():
        mlflow.end_run()


def test_mlflow_gets_settings_losses_metrics_and_the_score_of_each_tag(learn, mlflow):
    learn.fit(2, 1e-3, cbs=MLflowCallback(every=1, run_name="first"))
    assert mlflow.active_run() is None
    run, = mlflow.search_runs(output_format="list")
    assert run.info.run_name == "first" and run.info.status == "FINISHED"
    assert run.data.params["arch"] == "m1" and run.data.params["epochs"] == "2"
    assert run.data.metrics["lwlrap"] == pytest.approx(learn.recorder.values[-1][2])
    assert run.data.metrics["valid_loss"] == pytest.approx(learn.recorder.values[-1][1])
    scores = {name: value for name, value in run.data.metrics.items() if name.startswith("tag_lwlrap/")}
    assert scores == pytest.approx(validation_scores(learn))
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "train_loss")
    assert len({point.step for point in history}) >= 2 * len(learn.dls.train) - 1


def test_mlflow_logs_into_an_active_run_and_leaves_it_open(learn, mlflow):
    with mlflow.start_run() as active:
        learn.fit(1, 1e-3, cbs=MLflowCallback())
        learn.fit(1, 1e-4, cbs=MLflowCallback())
        assert mlflow.active_run().info.run_id == active.info.run_id
    assert len(mlflow.search_runs(output_format="list")) == 1


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_one_sentence_before_the_run(tracker, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, f"fastai.callback.{tracker}", raising=False)
    monkeypatch.setitem(sys.modules, tracker, None)
    with pytest.raises(MissingDependencyError, match=r"fatai\[track\]"):
        stage_trackers(tracker, tmp_path)


def test_an_unknown_tracker_gets_a_suggestion(tmp_path, main_with, sample):
    with pytest.raises(OptionError, match="did you mean tensorboard"):
        stage_trackers("tensorbord", tmp_path)
    ended = main_with("run", sample, "--tracker", "comet", "--out", tmp_path / "run")
    assert ended.returncode == 2 and "known: tensorboard, wandb, mlflow" in ended.stderr
    assert not (tmp_path / "run").exists()


def test_of_processes_that_share_batches_the_main_one_begins_a_run_of_wandb(tmp_path, monkeypatch):
    begun, samples = [], []
    fastai_module = SimpleNamespace(WandbCallback=lambda log_preds: samples.append(log_preds))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **options: begun.append(options["name"])))
    monkeypatch.setitem(sys.modules, "fastai.callback.wandb", fastai_module)
    callbacks = stage_trackers("wandb", tmp_path / "run")
    assert callbacks(0, 0, ProcessGroup(1, 2)) == [] and begun == []
    assert len(callbacks(0, 0, ProcessGroup(0, 2))) == 3 and begun == ["run fold 0 stage 0"]
    callbacks(1, 0, SINGLE_PROCESS)
    assert samples == [False, True], "samples are predicted by all processes together, or by a single one"


@pytest.mark.slow
def test_processes_that_share_batches_log_their_fold_to_tensorboard(sample, tmp_path):
    pytest.importorskip("tensorboard")
    ended = subprocess.run(
        [
            sys.executable, "-m", "fatai.cli", "run", sample, "--recipe", "quick", "--epochs", "1", "--folds", "2",
            "--arch", "m1", "--width", "0.125", "--crop-s", "0.5", "--n-views", "1", "--no-predict", "--nproc", "2",
            "--fold", "0", "--tracker", "tensorboard", "--out", tmp_path / "run",
        ],
        capture_output=True, text=True, timeout=500,
    )
    assert ended.returncode == 0, ended.stderr
    events = read_events(tmp_path / "run" / "tensorboard" / "fold_0_stage_0")
    assert {"lwlrap", "tag_lwlrap/Rain", "train_loss"} <= set(events.Tags()["scalars"]) and not events.Tags()["images"]


@pytest.mark.slow
@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "mlflow"])
def test_a_run_logs_each_fold(tracker, sample, tmp_path):
    pytest.importorskip(tracker)
    import os

    environment = {
        **os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true", "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_TRACKING_URI": (tmp_path / "mlruns").as_uri(),
    }
    ended = subprocess.run(
        [
            sys.executable, "-m", "fatai.cli", "run", sample, "--recipe", "quick", "--epochs", "1", "--folds", "2",
            "--arch", "m1", "--width", "0.125", "--crop-s", "0.5", "--n-views", "1", "--no-predict", "--nproc", "1",
            "--tracker", tracker, "--out", tmp_path / "run",
        ],
        env=environment, capture_output=True, text=True,
    )
    assert ended.returncode == 0, ended.stderr
    if tracker == "tensorboard":
        for fold in range(2):
            events = read_events(tmp_path / "run" / "tensorboard" / f"fold_{fold}_stage_0")
            assert {"lwlrap", "tag_lwlrap/Rain", "train_loss"} <= set(events.Tags()["scalars"])
            assert events.Tags()["images"] == ["Sample results"]
    elif tracker == "wandb":
        runs = list((tmp_path / "run" / "wandb").glob("offline-run-*"))
        assert len(runs) == 2 and all(list(run.rglob("*.table.json")) and list(run.glob("*.wandb")) for run in runs)
        assert all(b"tag_lwlrap/Rain" in next(run.glob("*.wandb")).read_bytes() for run in runs)
    else:
        import mlflow

        mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
        runs = mlflow.search_runs(experiment_names=["fatai"], output_format="list")
        assert sorted(run.info.run_name for run in runs) == ["run fold 0 stage 0", "run fold 1 stage 0"]
        assert all("tag_lwlrap/Rain" in run.data.metrics for run in runs)


def test_a_run_of_mlflow_ends_with_a_fit_that_fails(learn, monkeypatch):
    runs = []
    fake = SimpleNamespace(
        active_run=lambda: runs[-1] if runs else None, end_run=lambda: runs.pop(), log_params=lambda params: None,
        start_run=lambda: runs.append(SimpleNamespace(info=SimpleNamespace(run_id=1))),
        get_run=lambda run_id: SimpleNamespace(data=SimpleNamespace(params={})),
    )
    monkeypatch.setitem(sys.modules, "mlflow", fake)

    class FailingCallback(Callback):
        def before_batch(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn.fit(1, 1e-3, cbs=[MLflowCallback(), FailingCallback()])
    assert runs == []
