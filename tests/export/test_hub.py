"""Models on a Hugging Face Hub of loopback, by the real huggingface_hub: shared, loaded, and refused."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.hub_server import Repository
from helpers.small_model import CALIBRATED, SETTINGS, TAGS, Bomb, network
from safetensors.torch import load, save
from starlette.testclient import TestClient

from fatai.errors import CheckpointError, DataError, OptionError, StorageError
from fatai.experiment.held_out import held_out_scores, scored_model
from fatai.export.hub import download_model_folder, is_repo_id
from fatai.export.learner import initial_weights, push_learner
from fatai.export.model_card import ScoreNote, score_notes
from fatai.export.model_folder import save_model_folder
from fatai.export.pretrained import load_pretrained
from fatai.inference.learner import fat_learner
from fatai.inference.predictions import Predictions
from fatai.metrics.calibration import Calibration

hub = pytest.importorskip("huggingface_hub")
import huggingface_hub.constants as constants  # noqa: E402

NAME = "owner/dawn-birds"


@pytest.fixture
def server(hub_server):
    """An empty Hub."""
    return hub_server


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The files of a model folder by name."""
    prior, notes = np.array([0.5, 0.25, 0.25]), {"scores": [score_note()], "recipe": {"name": "ninth"}, "fold": 0}
    folder = save_model_folder(
        tmp_path_factory.mktemp("saved") / "model", network(), TAGS, SETTINGS, prior, calibration=CALIBRATED,
        training=notes,
    )
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def shared(server, saved):
    """The model in a repository."""
    server.repositories[NAME] = Repository()
    server.repositories[NAME].commit({**saved, "README.md": b"A model.", ".gitattributes": b"*.safetensors"})
    return server


@pytest.fixture
def clip(tmp_path, rng):
    import soundfile as sf

    sf.write(tmp_path / "clip.wav", 0.1 * rng.standard_normal(60_000), 44100)
    return tmp_path / "clip.wav"


def score_note(**values):
    known = dict(metric="lwlrap", value=0.8765, low=0.81, high=0.92, n_clips=64, clips="held-out clips", selected=False)
    return ScoreNote(**{**known, **values}).model_dump()


def tamper(server, **files):
    """Commit files by name, with __ for a dot; None deletes one."""
    return server.repositories[NAME].commit({name.replace("__", "."): content for name, content in files.items()})


def refuse(match, error=CheckpointError, **options):
    """Check that loading fails with one sentence."""
    with pytest.raises(error, match=match) as caught:
        load_pretrained(NAME, device="cpu", **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    return str(caught.value)


def downloaded(tmp_path):
    """Return the names of the files in the cache of the repository, whole or not, except locks."""
    return [file for file in (tmp_path / "cache").rglob("*") if file.is_file() and ".locks" not in file.parts]


# Round trips

def test_a_pushed_learner_predicts_the_same_where_it_is_loaded(server, small_dls, sample, tmp_path):
    learn = fat_learner(small_dls, arch="m1", width=0.125, precision="fp32")
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
    ramp = np.linspace(-3, 3, len(learn.tags))
    learn.calibration = Calibration(tuple(learn.tags), (1.0,) * len(ramp), tuple(ramp.tolist()))
    commit = learn.push_to_hub(NAME, dataset="ESC-10, 60 clips", license="cc-by-4.0", n=1)
    items = sorted((sample / "test").iterdir())[:3]
    for revision in (None, commit, "main"):
        loaded = load_pretrained(NAME, revision=revision, device="cpu")
        np.testing.assert_allclose(loaded.tta(items, n=2).probs, learn.tta(items=items, n=2).probs, atol=1e-5)
    assert sorted(server.repositories[NAME].files()) == [
        ".gitattributes", "README.md", "config.json", "model.safetensors", "reference.wav"
    ]
    assert loaded.training["train_clips"] == len(small_dls.train_ds)
    scores = [ScoreNote(**note) for note in loaded.training["scores"]]
    learn.calibration, calibrated = None, learn.tta(n=1)
    preds = learn.tta(n=1)
    truth = small_dls.files(1)[["fname", "labels"]]
    assert scores[0].value == pytest.approx(preds.score(truth)) and scores[0].n_clips == len(small_dls.valid_ds)
    assert calibrated.score(truth) != pytest.approx(preds.score(truth)), "or the calibration shows nothing"
    assert scores[0].low == pytest.approx(preds.interval(truth).low) and [s.metric for s in scores] == ["lwlrap", "map"]


def test_the_card_has_metadata_that_the_client_of_the_hub_reads(server, saved, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in saved.items():
        (folder / name).write_bytes(content)
    load_pretrained(folder, device="cpu").push_to_hub(NAME, dataset="Dawn | 2024", license="cc-by-4.0")
    text = server.repositories[NAME].files()["README.md"].decode()
    data = hub.ModelCard(text).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("fatai", "audio-classification", "cc-by-4.0")
    result = data.eval_results[0]
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("lwlrap", 0.8765, "Dawn | 2024")
    assert result.metric_args == {"low": 0.81, "high": 0.92, "clips": 64, "confidence_level": 0.95}
    assert data.model_name == "dawn-birds" and "m1" in data.tags
    for part in ("| lwlrap | 0.876 | 0.810 to 0.920 (95%) | 64 held-out clips |", "Rain, on a roof", "44,100 Hz",
                 'load_pretrained("owner/dawn-birds")', "Dawn \\| 2024", "recipe: `ninth`, fold 0",
                 "license: cc-by-4.0"):
        assert part in text, part
    assert "missing" not in text.lower() and "optimistic" not in text


def test_the_card_says_what_is_missing(server, saved, tmp_path):
    model = replace(
        load_saved(saved, tmp_path), training={"recipe": {"name": "x", "model": {"pretrained": "/home/me/best.pt"}}}
    )
    model.push_to_hub(NAME)
    files = server.repositories[NAME].files()
    text = files["README.md"].decode()
    for part in ("Missing: no score", "data: missing", "license: missing"):
        assert part in text
    assert hub.ModelCard(text).data.eval_results is None
    assert b"/home/me" not in files["config.json"] and b"best.pt" in files["config.json"]


def load_saved(saved, tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir()
    for name, content in saved.items():
        (folder / name).write_bytes(content)
    return load_pretrained(folder, device="cpu")


def test_scores_of_notes_are_those_of_the_metrics():
    targ = np.array([[1, 0], [0, 1], [1, 1]])
    notes = score_notes(np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.6]]), targ, "held-out clips", selected=True)
    assert [(n["metric"], n["value"], n["n_clips"]) for n in notes] == [("lwlrap", 1.0, 3), ("map", 1.0, 3)]
    assert [n["metric"] for n in score_notes(np.array([[0.9], [0.2]]), np.array([[1], [0]]), "clips")] == ["map"]
    assert score_notes(np.array([[0.9, 0.1]]), np.array([[0, 0]]), "clips") == []


def test_predict_and_tag_are_those_of_the_parts(shared, clip):
    model = load_pretrained(NAME, device="cpu")
    best = model.predict(clip)
    np.testing.assert_allclose(
        [best_of.prob for best_of in sorted(best)], model.tta(clip).select(["clip.wav"], sorted(TAGS)).probs[0]
    )
    assert [s.prob for s in best] == sorted((s.prob for s in best), reverse=True)
    import soundfile as sf

    wave, sr = sf.read(clip)
    assert [s.tag for s in model.predict(wave, sr)] == [s.tag for s in best]
    # The calibration has thresholds, of which the second is never reached.
    expected = model.tagger(step_s=0.25).tag(clip, threshold=dict(zip(TAGS, (0.5, 1.0, 0.2), strict=True)))
    assert model.tag(clip, step_s=0.25) == expected and expected
    assert model.tag(clip, threshold=1.0) == []
    plain = replace(model, calibration=None)
    assert plain.tag(clip) == plain.tagger().tag(clip, threshold=0.5)


def test_a_revision_stays_the_same_model(shared, saved):
    first = shared.repositories[NAME].branches["main"]
    other = network(seed=5)
    weights = load_pretrained(NAME, device="cpu").model.state_dict()
    replace(load_pretrained(NAME, device="cpu"), model=other).push_to_hub(NAME)
    assert torch.equal(load_pretrained(NAME, revision=first, device="cpu").model.state_dict()["head.4.weight"],
                       weights["head.4.weight"])
    assert torch.equal(load_pretrained(NAME, device="cpu").model.head[-1].weight, other.head[-1].weight)
    refuse("owner/dawn-birds has no revision v9; expected a branch, a tag or a commit", DataError, revision="v9")


def test_a_folder_of_that_name_comes_first(shared, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("owner").mkdir()
    save_model_folder(NAME, network(seed=5), TAGS, SETTINGS, np.array([0.5, 0.25, 0.25]))
    assert torch.equal(load_pretrained(NAME, device="cpu").model.head[-1].weight, network(seed=5).head[-1].weight)
    assert not shared.requests
    refuse("revision and token are for repositories of the Hub, owner/name; owner/dawn-birds is a folder", OptionError,
           revision="main")


@pytest.mark.parametrize("text", ["name", "a/b/c", "/a/b", "./b", "../b", "a/", "a b/c", "C:\\a/b", ".a/b", "ä/b"])
def test_paths_are_no_repositories(text):
    assert not is_repo_id(text)


# Who may read and write

def test_a_private_repository_needs_the_token_of_its_owner(server, saved, tmp_path, monkeypatch):
    load_saved(saved, tmp_path).push_to_hub(NAME, private=True)
    assert server.repositories[NAME].private
    server.tokens["hf_other"] = "other"
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    for token in (None, False, "hf_other"):
        refuse("has no repository owner/dawn-birds, or it is private and no valid token .*hf auth login", DataError,
               token=token)
    assert load_pretrained(NAME, token="hf_owner", device="cpu").tags == TAGS


def test_a_wrong_token_is_one_sentence(shared, saved, tmp_path):
    refuse(r"returned 401 \(Invalid credentials in Authorization header\); the token is not valid", DataError,
           token="hf_wrong")
    with pytest.raises(DataError, match="owner/dawn-birds: http.* returned 401 .*; the token is not valid"):
        load_saved(saved, tmp_path).push_to_hub(NAME, token="hf_wrong")


def test_a_repository_of_others_is_not_written(shared, saved, tmp_path):
    shared.tokens["hf_other"] = "other"
    before = shared.repositories[NAME].branches["main"]
    model = load_saved(saved, tmp_path)
    for name in (NAME, "owner/new"):
        with pytest.raises(DataError, match=f"{name}: .* returned 403 .*take a token with write access"):
            model.push_to_hub(name, token="hf_other")
    for push in (model.push_to_hub, lambda name: push_learner(None, name, tta={})):  # before the learner predicts
        with pytest.raises(OptionError, match="the repository is 'dawn'; expected owner/name"):
            push("dawn")
    assert shared.repositories[NAME].branches["main"] == before and list(shared.repositories) == [NAME]


def test_a_repository_with_a_pickle_is_not_written(shared, saved, tmp_path):
    commit = tamper(shared, pytorch_model__bin=b"x")
    with pytest.raises(CheckpointError, match="holds pytorch_model.bin, which could be code, so load_pretrained would"):
        load_saved(saved, tmp_path).push_to_hub(NAME)
    assert shared.repositories[NAME].branches["main"] == commit


# Tampered repositories

@pytest.mark.parametrize("name", ["evil.pkl", "pytorch_model.bin", "sub/module.py", "weights.PT"])
def test_an_extra_file_that_could_be_code_is_refused_before_anything_is_downloaded(shared, tmp_path, name):
    shared.repositories[NAME].commit({name: pickle.dumps(Bomb(tmp_path / "executed"))})
    refuse(f"owner/dawn-birds holds {name}, which could be code; nothing was downloaded")
    assert not downloaded(tmp_path) and not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "reference.wav"])
def test_a_pickle_in_place_of_a_file_is_refused(shared, tmp_path, name):
    shared.repositories[NAME].commit({name: pickle.dumps(Bomb(tmp_path / "executed"))})
    message = refuse(name)
    assert not (tmp_path / "executed").exists() and "cache" not in message


def test_other_files_are_not_downloaded(shared, tmp_path):
    tamper(shared, notes__txt=b"x" * 1000)
    load_pretrained(NAME, device="cpu")
    names = {file.name for file in downloaded(tmp_path) if "snapshots" in file.parts}
    assert names == {"config.json", "model.safetensors", "reference.wav"}


def test_changed_weights_are_refused(shared, saved):
    state = load(saved["model.safetensors"])
    state["blocks.0.conv1.weight"] *= 1.1
    tamper(shared, model__safetensors=save(state))
    refuse("^owner/dawn-birds: the scores of the reference clip have drifted")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tags": ["Bark", "Meow"]}, "^owner/dawn-birds/config.json: prior holds 3 numbers for 2 tags"),
        ({"network": {"arch": "m2", "options": {"width": 0.125}}}, "owner/dawn-birds/model.safetensors does not fit"),
        ({"run": "rm -rf"}, "^owner/dawn-birds/config.json: unknown key run"),
        ({"logits": []}, "^owner/dawn-birds/config.json holds no logits of the reference clip"),
    ],
)
def test_a_changed_config_is_refused(shared, saved, change, message):
    tamper(shared, config__json=json.dumps({**json.loads(saved["config.json"]), **change}).encode())
    refuse(message)


def test_a_changed_front_end_is_refused(shared, saved):
    config = json.loads(saved["config.json"])
    config["clips"]["front_end"]["mean"] = -30.0
    tamper(shared, config__json=json.dumps(config).encode())
    refuse("have drifted")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "reference.wav"])
def test_a_missing_file_is_refused(shared, tmp_path, name):
    shared.repositories[NAME].commit({name: None})
    refuse(f"owner/dawn-birds holds no model of fatai: it lacks {name}")
    assert not downloaded(tmp_path)


@pytest.mark.parametrize(("name", "n_bytes"), [("config.json", 1 << 25), ("model.safetensors", 1 << 40)])
def test_oversized_files_are_refused_before_anything_is_downloaded(shared, tmp_path, name, n_bytes):
    shared.sizes[name] = n_bytes
    refuse(f"owner/dawn-birds/{name} has {n_bytes:,} bytes; expected at most")
    shared.sizes[name] = None
    refuse(f"the server does not state the size of {name}")
    assert not downloaded(tmp_path)


def test_a_larger_config_than_stated_is_refused(shared, saved):
    shared.sizes["config.json"] = 1000
    tamper(shared, config__json=saved["config.json"] + b" " * (1 << 24))
    refuse("owner/dawn-birds/config.json has 16,.* bytes; expected at most 16,777,216")


def test_a_link_out_of_the_cache_is_refused(shared, saved, tmp_path):
    load_pretrained(NAME, device="cpu")
    (tmp_path / "elsewhere.json").write_bytes(saved["config.json"])
    link = next((tmp_path / "cache").rglob("snapshots/*/config.json"))
    link.unlink()
    link.symlink_to(tmp_path / "elsewhere.json")
    refuse("owner/dawn-birds/config.json is a link and was not opened")


# Networks that fail

def test_once_downloaded_no_network_is_needed(shared, saved, tmp_path, monkeypatch, clip):
    commit = shared.repositories[NAME].branches["main"]
    probs = load_pretrained(NAME, device="cpu").tta(clip).probs
    n_requests = len(shared.requests)
    assert np.array_equal(load_pretrained(NAME, revision=commit, device="cpu").tta(clip).probs, probs)
    assert len(shared.requests) == n_requests, "a commit that is in the cache asks nothing"
    shared.close()
    with pytest.warns(UserWarning, match=f"cannot be reached; owner/dawn-birds is .* from the cache.*{commit[:10]}"):
        assert np.array_equal(load_pretrained(NAME, device="cpu").tta(clip).probs, probs)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert np.array_equal(load_pretrained(NAME, device="cpu").tta(clip).probs, probs)


def test_a_server_that_is_down_is_replaced_by_the_cache(shared, recwarn):
    load_pretrained(NAME, device="cpu")
    shared.status = 503
    assert load_pretrained(NAME, device="cpu").tags == TAGS
    assert any("loaded from the cache" in str(w.message) for w in recwarn)


def test_without_a_network_the_error_comes_within_seconds(saved, server, tmp_path, monkeypatch):
    server.close()
    start = time.perf_counter()
    refuse("cannot be reached .*, and owner/dawn-birds is not complete in the cache; check the connection", DataError)
    model = load_saved(saved, tmp_path)
    with pytest.raises(DataError, match="cannot be reached"):
        model.push_to_hub(NAME)
    assert time.perf_counter() - start < 10
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refuse("is not in the cache, and HF_HUB_OFFLINE forbids to download it", DataError)


def test_an_interrupted_download_goes_on(shared, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda s: None)
    shared.breaks["model.safetensors"] = [500, 600]
    try:
        loaded = load_pretrained(NAME, device="cpu")
    except DataError:
        # huggingface_hub 1.0 continues in the next call only.
        shared.breaks["model.safetensors"].clear()
        loaded = load_pretrained(NAME, device="cpu")
    assert loaded.tags == TAGS and not shared.breaks["model.safetensors"]


def test_a_download_that_breaks_off_leaves_nothing_half(shared, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda s: None)
    shared.breaks["model.safetensors"] = [0] * 100
    refuse("cannot be reached|the connection broke", DataError)
    assert not [file for file in downloaded(tmp_path) if file.name == "model.safetensors"]
    shared.breaks.clear()
    assert load_pretrained(NAME, device="cpu").tags == TAGS


def test_a_full_disk_is_refused_before_the_download(shared, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 100))
    refuse("owner/dawn-birds needs .* more bytes, and .* has 100 free; make room, or name another folder", StorageError)
    assert not downloaded(tmp_path)


def test_a_disk_that_fills_up_is_one_sentence(shared, tmp_path, monkeypatch):
    import errno

    import huggingface_hub.file_download

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub.file_download, "http_get", full)
    refuse("cannot be written .No space left on device.: the disk is full; make room", StorageError)
    assert not [file for file in downloaded(tmp_path) if "snapshots" in file.parts]


# Commands

def test_commands_take_a_repository_in_place_of_a_run(shared, clip, main_with, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = load_pretrained(NAME, device="cpu")
    ended = main_with("predict", NAME, clip, "--out", "preds.csv")
    assert ended.returncode == 0, ended.stderr
    expected = model.tta(clip)
    np.testing.assert_allclose(Predictions.from_csv("preds.csv").probs, expected.probs, atol=1e-6)
    ended = main_with("tag", NAME, clip, "--format", "csv")
    assert ended.returncode == 0 and len(ended.stdout.splitlines()) == 1 + len(model.tag(clip)) > 1, ended.stderr


def test_serve_takes_a_repository_in_place_of_a_run(shared, clip, main_with, tmp_path, monkeypatch):
    apps = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fatai.web.server.serve", lambda app, host, port, *, log: apps.append(app))
    ended = main_with("serve", NAME)
    assert ended.returncode == 0 and len(apps) == 1, ended.stderr
    page = TestClient(apps[0], "http://127.0.0.1:8000")
    assert "<title>fatai: owner/dawn-birds</title>" in page.get("/").text
    sent = page.post("/tag", files={"sound": ("clip.wav", clip.read_bytes())})
    assert {row["tag"] for row in sent.json()["sounds"][0]["tags"]} == set(TAGS), sent.text


def test_a_run_that_is_neither_here_nor_on_the_hub_is_one_sentence(shared, clip, main_with, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = main_with("predict", "owner/none", clip)
    assert ended.returncode == 2 and "there is no folder owner/none, and on the Hugging Face Hub: " in ended.stderr
    assert "has no repository owner/none" in ended.stderr
    shared.requests.clear()
    Path("runs").mkdir()
    for run in ("runs/none", "none", "runs/birds/none"):
        assert f"{run} is not a finished run" in main_with("predict", run, clip).stderr
    assert not shared.requests, "a typing error in the name of a run is asked of no server"


def test_links_are_followed_in_the_cache_only(shared, tmp_path):
    snapshot = download_model_folder(NAME)
    assert load_pretrained(snapshot, device="cpu").tags == TAGS
    copied = shutil.copytree(snapshot.parents[1], tmp_path / "elsewhere" / snapshot.parents[1].name, symlinks=True)
    with pytest.raises(CheckpointError, match="is a link and was not opened"):
        load_pretrained(copied / "snapshots" / snapshot.name, device="cpu")


def test_the_command_pushes_a_fold_with_the_scores_of_its_held_out_clips(server, tiny_run, main_with, sample):
    ended = main_with("push", tiny_run.out, NAME, "--fold", 1, "--license", "cc0-1.0", "--private")
    assert ended.returncode == 0 and server.repositories[NAME].private, ended.stderr
    commit = server.repositories[NAME].branches["main"]
    assert f"owner/dawn-birds: fold 1 alone of 2 folds, 10 tags, commit {commit}; load it with" in ended.stdout
    loaded = load_pretrained(NAME, revision=commit, device="cpu")
    own, *_, everything, _ = [ScoreNote(**note) for note in loaded.training["scores"]]
    folds = pd.read_csv(tiny_run.out / "folds.csv", dtype=str)
    held_out = folds[folds["fold"] == "1"]
    expected = Predictions.from_csv(tiny_run.out / "oof.csv").select(list(held_out["fname"]))
    assert own.value == pytest.approx(expected.score(held_out[["fname", "labels"]])) and own.n_clips == len(held_out)
    assert own.is_own and not everything.is_own and everything.n_clips == len(folds)
    card = hub.ModelCard(server.repositories[NAME].files()["README.md"].decode())
    assert [r.dataset_split for r in card.data.eval_results] == ["held-out clips of fold 1"] * 2
    assert card.data.license == "cc0-1.0" and "- data: sample" in card.text and "recipe: `quick`, fold 1" in card.text


def test_a_dry_run_prints_the_card_and_uploads_nothing(server, saved, tmp_path, main_with):
    load_saved(saved, tmp_path)
    ended = main_with("push", tmp_path / "saved", NAME, "--dry-run", "--dataset", "Dawn")
    assert ended.returncode == 0 and ended.stdout.startswith("---\nlibrary_name: fatai\n"), ended.stderr
    assert "- data: Dawn" in ended.stdout and not server.requests
    ended = main_with("push", tmp_path / "saved", "dawn")
    assert ended.returncode == 2 and "fatai-submit: the repository is 'dawn'; expected owner/name" in ended.stderr


def test_scores_by_which_an_epoch_was_selected_are_called_optimistic(tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run.out, run)
    assert {note["selected"] for note in held_out_scores(run, 0)} == {False}
    text = (run / "recipe.toml").read_text()
    assert 'checkpoint = "last"' in text
    (run / "recipe.toml").write_text(text.replace('checkpoint = "last"', 'checkpoint = "best"'))
    assert {note["selected"] for note in held_out_scores(run, 0)} == {True}
    model = scored_model(run)
    assert "so it is optimistic" in model.model_card(NAME)
    (run / "oof.csv").unlink()
    assert held_out_scores(run, 0) == [] and "Missing: no score" in scored_model(run).model_card(NAME)


def test_the_weights_that_a_network_started_from_are_credited(tiny_run, tmp_path):
    assert initial_weights("mn04", True) == {"pretrained": "mn04_as (AudioSet, license MIT)"}
    assert initial_weights("mn04", "/home/me/mine.pt") == {"pretrained": "mine.pt"}
    assert initial_weights("mn04", None) == {} == initial_weights("mn04", {"odd": 1})


@pytest.mark.slow
def test_the_command_pushes_a_run_to_the_server_of_the_environment(server, tiny_run, tmp_path, sample):
    environment = {
        **os.environ, "HF_ENDPOINT": server.url, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "hf_owner", "no_proxy": "127.0.0.1,localhost",
    }
    command = [sys.executable, "-m", "fatai.cli"]
    ended = subprocess.run(
        [*command, "push", tiny_run.out, NAME, "--license", "cc0-1.0"], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert server.repositories[NAME].branches["main"] in ended.stdout
    script = f"from fatai.export.pretrained import load_pretrained as l; print(len(l({NAME!r}, device='cpu').tags))"
    loaded = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert loaded.stdout.strip().isdecimal(), loaded.stderr
