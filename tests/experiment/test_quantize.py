"""Runs exported in 8 bits: which clips calibrate and which are scored, and the loss that is printed."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from fatai.data.datasets.fat2019 import load_dataset
from fatai.ensemble.members import read_folds
from fatai.errors import DataError
from fatai.experiment import quantize
from fatai.experiment.quantize import choose_models, export_int8
from fatai.experiment.run_folder import trained_model

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason=f"{package} is of the optional extra: pip install 'fatai[onnx]'")


def split_clips(run, fold, sample):
    """Examples and scored clips of a run's export."""
    return quantize._split_clips(choose_models(run, fold), load_dataset(sample).curated, 0)


def test_each_clip_is_scored_by_the_network_of_its_fold_and_none_that_calibrates(tiny_run, sample):
    folds = read_folds(tiny_run.out / "folds.csv")
    examples, scored, what = split_clips(tiny_run.out, None, sample)
    assert len(examples) and len(scored) and not set(examples["fname"]) & set(scored["fname"])
    assert [models for models in scored["models"]] == [[folds[name]] for name in scored["fname"]]
    assert what == "held-out clips, each by networks not trained on it"


def test_one_fold_is_calibrated_on_its_training_clips_and_scored_on_its_held_out_clips(tiny_run, sample):
    folds = read_folds(tiny_run.out / "folds.csv")
    examples, scored, what = split_clips(tiny_run.out, 1, sample)
    assert {folds[name] for name in examples["fname"]} == {0}
    assert {folds[name] for name in scored["fname"]} == {1} and what == "held-out clips"


def test_the_command_prints_the_loss_and_writes_it_into_the_file(tiny_run, tmp_path, main_with, sample):
    import onnxruntime

    ended = main_with("export", tiny_run.out, tmp_path / "small.onnx", "--int8", "--fold", 1, "--data", sample)
    assert ended.returncode == 0, ended.stderr
    session = onnxruntime.InferenceSession(str(tmp_path / "small.onnx"), providers=["CPUExecutionProvider"])
    notes = session.get_modelmeta().custom_metadata_map
    assert notes["precision"] == "int8" and notes["scored_on"].endswith(" held-out clips")
    score, in_float = float(notes["lwlrap"]), float(notes["lwlrap_fp32"])
    assert f"lwlrap {score:.4f}, {in_float:.4f} in float32, a loss of {in_float - score:+.4f}, on" in ended.stdout
    assert f"on {notes['scored_on']}" in ended.stdout and "in float32 onnxruntime differs from torch" in ended.stdout
    model = trained_model(tiny_run.out, 1)
    wave = np.sin(np.arange(int(notes["samples"])) / 20)[None].astype(np.float32)
    got = session.run(["probs"], {"wave": wave})[0]
    expected = model.predict(wave[0], sr=model.settings.sr, n=1)
    assert tuple(json.loads(notes["tags"])) == model.tags and got.shape == (1, len(expected))


@pytest.mark.slow
def test_the_score_in_float32_is_that_of_the_networks_themselves(tiny_run, tmp_path, sample):
    from fatai.data.labels import multi_hot
    from fatai.metrics.ranking import lwlrap

    result = export_int8(choose_models(tiny_run.out), tmp_path / "mean.onnx", sample)
    _, scored, _ = split_clips(tiny_run.out, None, sample)
    probs = np.stack([
        trained_model(tiny_run.out, models[0]).tta([path], n=4).probs[0]
        for path, models in zip(scored["path"], scored["models"], strict=True)
    ])
    # The folds may be predicted in bfloat16, which moves a few ranks.
    expected = lwlrap(probs, multi_hot(scored["labels"], trained_model(tiny_run.out, 0).tags))
    assert result.n_scored == len(scored) and result.float_score == pytest.approx(expected, abs=0.02)
    assert result.bytes < result.float_bytes and result.loss == result.float_score - result.score


def test_a_model_folder_needs_data_and_its_clips_may_have_been_trained_on(tiny_run, tmp_path, sample):
    folder = trained_model(tiny_run.out, 0).save(tmp_path / "model")
    chosen = choose_models(folder)
    with pytest.raises(DataError, match="a model folder notes no data.*--data DATA"):
        export_int8(chosen, tmp_path / "model.onnx")
    _, scored, what = quantize._split_clips(chosen, load_dataset(sample).curated, 0)
    assert what == "clips that the network may have been trained on" and set(map(tuple, scored["models"])) == {(0,)}


def test_data_that_are_gone_or_have_other_tags_are_named(tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run.out, run)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["run_options"]["data"] = str(tmp_path / "gone")
    (run / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="the data of .* are no longer where it notes them"):
        export_int8(choose_models(run, 0), tmp_path / "x.onnx")
    (tmp_path / "others").mkdir()
    pd.DataFrame({"path": ["a.wav"], "labels": ["Zebra"]}).to_csv(tmp_path / "others" / "sounds.csv", index=False)
    (tmp_path / "others" / "a.wav").write_bytes(b"")
    with pytest.raises(DataError, match="has 0 clips with tags of the network"):
        export_int8(choose_models(run, 0), tmp_path / "x.onnx", tmp_path / "others" / "sounds.csv")


@pytest.mark.parametrize(("arguments", "message"), [
    (("model", "--int8"), "only an ONNX graph has it; give a name that ends in .onnx"),
    (("model.onnx", "--data", "."), "only --int8 reads clips; add it, or leave --data out"),
])
def test_options_that_do_not_fit_are_refused(arguments, message, tiny_run, tmp_path, main_with):
    name, *options = arguments
    ended = main_with("export", tiny_run.out, tmp_path / name, *options)
    assert ended.returncode == 2 and message in " ".join(ended.stderr.split())
