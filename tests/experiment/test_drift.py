"""Predictions of clips that a run stores, compared with those of a changed network, versions or sound."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from fatai.audio.io import load_audio, save_audio
from fatai.errors import CheckpointError
from fatai.experiment.drift import CLIP_S, N_CLIPS, measure_drift, store_reference
from fatai.experiment.ensemble_folder import EnsembleFolder
from fatai.experiment.run_folder import FinishedRun
from fatai.inference.predictions import Predictions
from fatai.models.checkpoint import load_weights, read_metadata, save_weights


@pytest.fixture
def finished(tiny_run, tmp_path):
    """A copy of a finished run, to be changed."""
    return shutil.copytree(tiny_run.out, tmp_path / "run")


def shift_output(run, fold, tag, by):
    """Add a number to the logit of a tag in a fold's network."""
    opened = FinishedRun.open(run)
    trained = [f for f in opened.folds() if f.name == f"fold_{fold}"][0]
    path = run / f"fold_{fold}" / "model.safetensors"
    notes = read_metadata(path)
    bias = [p for name, p in trained.model.named_parameters() if p.shape == (len(trained.tags),)][-1]
    bias.data[trained.tags.index(tag)] += by
    save_weights(path, trained.model, {"fatai": notes["fatai"]})
    load_weights(path, trained.model)


def test_a_run_stores_pieces_of_held_out_clips_and_a_finished_run_has_no_drift(finished, sample):
    stored = Predictions.from_csv(finished / "reference" / "probs.csv")
    assert len(stored) == N_CLIPS and set(stored.fnames) <= set(Predictions.from_csv(finished / "oof.csv").fnames)
    for number, name in enumerate(stored.fnames):
        piece, clip = (
            load_audio(path, None)
            for path in (finished / "reference" / f"{number:02d}.flac", sample / "train_curated" / name)
        )
        start = max(0, (len(clip) - len(piece)) // 2)
        assert len(piece) == min(len(clip), round(CLIP_S * 44100))
        np.testing.assert_allclose(piece, clip[start:start + len(piece)].clamp(-1, 1), atol=4.6e-5)
    drift = measure_drift(finished)
    assert drift.largest < 1e-6 and drift.changes == ()


def test_the_difference_of_one_network_has_its_sign_and_its_tag(finished):
    tag = Predictions.from_csv(finished / "oof.csv").tags[3]
    shift_output(finished, 1, tag, 0.5)
    drift = measure_drift(finished)
    k = drift.then.tags.index(tag)
    others = np.delete(drift.difference, k, axis=1)
    assert (drift.difference[:, k] > 1e-3).all() and np.abs(others).max() < 1e-6
    worst = drift.tag_table().iloc[0]
    assert worst["tag"] == tag and worst["largest"] == pytest.approx(drift.largest)
    assert drift.clip_table()["largest"].iloc[0] == pytest.approx(drift.largest)
    row = drift.table().loc[lambda t: (t["tag"] == tag)].iloc[0]
    assert row["difference"] == pytest.approx(row["now"] - row["then"]) and row["fname"] == drift.then.fnames[0]


def test_the_command_ends_with_1_above_the_tolerance_and_names_other_versions(finished, main_with, tmp_path):
    assert main_with("drift", finished).returncode == 0
    shift_output(finished, 0, Predictions.from_csv(finished / "oof.csv").tags[0], -2)
    manifest = json.loads((finished / "manifest.json").read_text())
    manifest["versions"]["torch"] = "1.0"
    (finished / "manifest.json").write_text(json.dumps(manifest))
    ended = main_with("drift", finished, "--out", tmp_path / "drift.csv")
    assert ended.returncode == 1 and "torch was 1.0 and is " in ended.stdout
    assert ended.stdout.strip().endswith("above the tolerance of 0.0001")
    assert main_with("drift", finished, "--tolerance", 1).returncode == 0
    table = pd.read_csv(tmp_path / "drift.csv")
    assert list(table.columns) == ["run", "fname", "tag", "then", "now", "difference"]
    assert table["difference"].min() < -1e-3


def test_all_runs_of_an_ensemble_are_compared(finished, main_with, tmp_path):
    folder = tmp_path / "ensemble"
    for name in ("a", "b"):
        shutil.copytree(finished, folder / name)
    EnsembleFolder(folder, ("a", "b"), (1.0, 2.0)).save()
    ended = main_with("drift", folder)
    assert ended.returncode == 0 and all(f"{folder / name}: " in ended.stdout for name in ("a", "b"))
    again = main_with("reproduce", folder)
    assert again.returncode == 2 and f"is an ensemble; give one of its runs, such as {folder / 'b'}" in again.stderr


def test_a_run_without_stored_clips_is_refused_with_a_remedy(finished, main_with):
    shutil.rmtree(finished / "reference")
    ended = main_with("drift", finished)
    assert ended.returncode == 2 and "runs store them since version 0.2" in ended.stderr
    assert f"fatai-submit reproduce {finished}" in ended.stderr


def test_stored_clips_that_were_changed_are_noticed(finished):
    wave = load_audio(finished / "reference" / "03.flac", None)
    save_audio(finished / "reference" / "03.flac", wave.flip(0), 44100)
    drift = measure_drift(finished)
    assert drift.clip_table()["fname"].iloc[0] == drift.then.fnames[3] and drift.largest > 1e-4
    (finished / "reference" / "03.flac").unlink()
    with pytest.raises(CheckpointError, match=f"cannot be read: {drift.then.fnames[3]}"):
        measure_drift(finished)


def test_silent_and_unreadable_clips_are_not_stored(finished, sample, tmp_path):
    save_audio(tmp_path / "silent.wav", np.zeros(44100, dtype=np.float32), 44100)
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    name = Predictions.from_csv(finished / "oof.csv").fnames[0]
    table = pd.DataFrame({
        "fname": ["a", "b", name],
        "path": [str(tmp_path / "silent.wav"), str(tmp_path / "broken.wav"), str(sample / "train_curated" / name)],
    })
    assert store_reference(finished, table) == 1
    assert Predictions.from_csv(finished / "reference" / "probs.csv").fnames == (name,)
    assert store_reference(finished, table.iloc[:2]) == 0 and not (finished / "reference" / "probs.csv").exists()
    with pytest.raises(CheckpointError, match="no stored predictions"):
        measure_drift(finished)
