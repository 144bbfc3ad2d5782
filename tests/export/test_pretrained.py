"""Model folders: written and read back; untrusted content is refused."""

import json
import math
import pickle
import struct
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from helpers.small_model import CALIBRATED, SETTINGS, TAGS, Bomb, network
from safetensors.torch import load_file, save_file

from fatai.audio.front_ends import front_end
from fatai.data.config import ClipConfig
from fatai.errors import CheckpointError, FataiError, OptionError
from fatai.experiment.run_folder import Tagger, predict_with_run, thresholds_of_run
from fatai.export.model_folder import save_model_folder
from fatai.export.pretrained import is_model_folder, load_pretrained
from fatai.inference.learner import fat_learner
from fatai.inference.predictor import Predictor
from fatai.inference.tta import build_views
from fatai.models import create_model
from fatai.models.multi_task import TwoHeadModel


def save(folder, model=None, **options):
    return save_model_folder(folder, model or network(), TAGS, SETTINGS, np.array([0.5, 0.25, 0.25]), **options)


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / "model", calibration=CALIBRATED, training={"epochs": 3, "note": "Übung"})


@pytest.fixture
def clips(tmp_path, rng):
    """A long clip and a short one."""
    paths = [tmp_path / "long.wav", tmp_path / "short.wav"]
    for path, seconds in zip(paths, (1.3, 0.2), strict=True):
        sf.write(path, 0.1 * rng.standard_normal(round(seconds * 44100)), 44100)
    return paths


def change_config(folder, **values):
    """Change values in the config of a folder; `a__b` is key b of section a."""
    config = json.loads((folder / "config.json").read_text())
    for key, value in values.items():
        *parents, last = key.split("__")
        section = config
        for parent in parents:
            section = section[parent]
        section[last] = value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_folder_holds_three_plain_files(folder):
    assert sorted(f.name for f in folder.iterdir()) == ["config.json", "model.safetensors", "reference.wav"]
    config = json.loads((folder / "config.json").read_text())
    assert config["tags"] == list(TAGS) and config["network"] == {
        "arch": "m1",
        "options": {"width": 0.125},
        "two_heads": False,
    }
    assert config["clips"]["front_end"]["hop_length"] == 1380 and config["clips"]["front_end"]["mean"] == -35.7
    assert config["training"] == {"epochs": 3, "note": "Übung"} and config["versions"]["torch"] == version("torch")
    assert config["calibration"]["thresholds"] == [0.5, None, 0.2]
    assert (
        sf.info(folder / "reference.wav").subtype == "PCM_16" and sf.info(folder / "reference.wav").samplerate == 44100
    )


def test_the_loaded_model_is_the_saved_one(folder, clips):
    loaded, model = load_pretrained(folder, device="cpu"), network()
    assert (loaded.tags, loaded.settings, loaded.calibration) == (TAGS, SETTINGS, CALIBRATED)
    assert loaded.prior.tolist() == [0.5, 0.25, 0.25] and loaded.training["epochs"] == 3 and not loaded.model.training
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[key], value)
    expected = Predictor(model, SETTINGS, build_views("even", 2), 3).predict(clips).probs
    np.testing.assert_allclose(replace(loaded, calibration=None).tta(clips, n=2).probs, expected, atol=1e-6)
    np.testing.assert_allclose(loaded.tta(clips, n=2).probs, CALIBRATED.apply(expected), atol=1e-5)


def test_the_stored_logits_are_those_of_front_end_and_network(folder):
    wave, _ = sf.read(folder / "reference.wav", dtype="float32")
    with torch.no_grad():
        logits = network()(SETTINGS.front_end.build()(torch.from_numpy(wave[None]))[:, None])[0]
    stored = json.loads((folder / "config.json").read_text())["logits"]
    # The clip is as long as a crop, and its ends are not silent: nothing is trimmed or padded.
    np.testing.assert_allclose(stored, logits, atol=1e-5)


def test_an_unreadable_clip_gets_the_prior(folder, tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    with pytest.warns(UserWarning, match="broken.wav"):
        predicted = load_pretrained(folder, device="cpu").tta(tmp_path / "broken.wav")
    assert predicted.unreadable == ("broken.wav",) and predicted.probs[0].tolist() == [0.5, 0.25, 0.25]


def test_a_saved_learner_predicts_the_same(small_dls, sample, tmp_path):
    learn = fat_learner(small_dls, arch="m1", width=0.125, precision="fp32")
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
    loaded = load_pretrained(learn.save_pretrained(tmp_path / "model", training={"by": "test"}), device="cpu")
    assert loaded.tags == tuple(small_dls.tags) and loaded.training["by"] == "test" and loaded.training["loss"] == "BCE"
    assert loaded.training["train_clips"] == len(small_dls.train_ds)
    assert 0 <= loaded.training["last_epoch"]["lwlrap"] <= 1
    items = sorted((sample / "test").iterdir())[:3]
    np.testing.assert_allclose(loaded.tta(items, n=2).probs, learn.tta(items=items, n=2).probs, atol=1e-5)
    assert loaded.tta(items, n=2).fnames == tuple(f.name for f in items)


def test_a_given_sound_may_be_the_reference(small_dls, sample, tmp_path):
    learn = fat_learner(small_dls, arch="m1", width=0.125, precision="fp32")
    clip = sorted((sample / "test").iterdir())[0]
    learn.final_record = [0.25, None, math.nan]  # as after an epoch without validation
    folder = learn.save_pretrained(tmp_path / "model", reference=clip)
    assert json.loads((folder / "config.json").read_text())["training"]["last_epoch"] == {"train_loss": 0.25}
    ours, theirs = sf.read(folder / "reference.wav")[0], sf.read(clip)[0]
    np.testing.assert_allclose(ours, theirs[:len(ours)], atol=1 / 32768)
    assert load_pretrained(folder).tags == tuple(small_dls.tags)


def test_fastais_own_export_still_works(small_dls, sample, tmp_path):
    from fastai.learner import load_learner

    learn = fat_learner(small_dls, arch="m1", width=0.125, precision="fp32", path=tmp_path)
    item = sorted((sample / "test").iterdir())[0]
    before = learn.predict(item, n=1)
    learn.export("learner.pkl")
    after = load_learner(tmp_path / "learner.pkl").predict(item, n=1)
    assert [t.tag for t in before] == [t.tag for t in after]
    np.testing.assert_allclose([t.prob for t in before], [t.prob for t in after], atol=1e-6)


def test_a_network_with_two_heads_keeps_both(tmp_path):
    torch.manual_seed(3)
    model = TwoHeadModel(create_model("m0", 6, 1, width=0.125), 3).eval()
    loaded = load_pretrained(save(tmp_path / "model", model), device="cpu")
    spec = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert loaded.model(spec).shape == (2, 3) and torch.equal(loaded.model(spec), model(spec))


def test_networks_with_a_fixed_number_of_bins_and_of_timm_are_rebuilt(tmp_path):
    settings = ClipConfig(front_end("panns", n_mels=32), crop_s=0.4)
    vit = {"spec_size": settings.spec_size, "drop_path_rate": 0.1}
    for arch, options in (
        ("cnn14", {"width": 0.02, "n_mels": 32}), ("timm:mobilenetv3_small_050", {}), ("timm:test_vit", vit)
    ):
        model = create_model(arch, 2, 1, **options).eval()
        folder = save_model_folder(tmp_path / arch.replace(":", "_"), model, ("a", "b"), settings, np.array([0.5, 0.5]))
        loaded = load_pretrained(folder, device="cpu")
        assert type(loaded.model) is type(model) and loaded.model.built_as.options == options


def test_commands_accept_a_folder(folder, clips, tmp_path, main_with):
    predicted = predict_with_run(folder, clips, n=2, calibrate=False, save_views=tmp_path / "views")
    np.testing.assert_allclose(
        predicted.probs, Predictor(network(), SETTINGS, build_views("even", 2), 3).predict(clips).probs, atol=1e-6
    )
    assert (tmp_path / "views" / "model.npz").exists()
    assert predict_with_run(folder, clips, n=2) == predicted.calibrated(CALIBRATED)
    assert thresholds_of_run(folder) == CALIBRATED.thresholds
    tagger = Tagger(folder, step_s=0.25)
    assert tagger.calibration == CALIBRATED and tagger.window_s == 0.5
    np.testing.assert_allclose(
        [s.probs for s in tagger.frame_probs(clips[0])],
        [s.probs for s in load_pretrained(folder).tagger(step_s=0.25).frame_probs(clips[0])],
        atol=1e-6,
    )
    ended = main_with("predict", folder, clips[0])
    assert ended.returncode == 0 and ended.stdout.startswith("long.wav: ")


def test_a_silent_clip_gets_the_prior_alone_and_among_others(folder):
    loaded, silence = load_pretrained(folder), np.zeros(44100, dtype=np.float32)
    assert loaded.calibration is not None
    with pytest.warns(UserWarning, match="silent"):
        assert [prob for _, prob in loaded.predict(silence)] == [0.5, 0.25, 0.25]


def test_a_missing_calibration_is_an_error(tmp_path, clips):
    plain = save(tmp_path / "model")
    with pytest.raises(CheckpointError, match="has no calibration"):
        predict_with_run(plain, clips, calibrate=True)
    with pytest.raises(CheckpointError, match="has no calibration"):
        Tagger(plain, calibrate=True)
    assert Tagger(plain).calibration is None


# Refused at saving

def test_a_network_that_was_not_built_by_name_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="a Linear that was not built by name"):
        save(tmp_path / "model", torch.nn.Linear(1, 1))
    assert not (tmp_path / "model" / "config.json").exists()


def test_a_network_that_was_changed_is_refused(tmp_path):
    model = network()
    model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match="has the unknown extra.bias, extra.weight"):
        save(tmp_path / "model", model)
    assert not is_model_folder(tmp_path / "model")


def test_another_activation_is_refused(small_dls, tmp_path):
    loss = torch.nn.CrossEntropyLoss()
    loss.activation = lambda logits: logits.softmax(-1)
    learn = fat_learner(small_dls, arch="m1", width=0.125, loss_func=loss)
    with pytest.raises(OptionError, match="another function than the sigmoid"):
        learn.save_pretrained(tmp_path / "model")


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(CheckpointError, match="holds thesis.txt"):
        save(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.txt"]


def test_links_are_not_written_through(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").symlink_to(outside)
    with pytest.raises(CheckpointError, match="is a link"):
        save(tmp_path / "model")
    assert outside.read_text() == "mine"


def test_an_earlier_folder_is_replaced(folder):
    save(folder, network(seed=5))
    assert torch.equal(load_pretrained(folder, device="cpu").model.head[-1].weight, network(seed=5).head[-1].weight)
    assert load_pretrained(folder).calibration is None


# Refused at loading: drift

def test_drift_beyond_the_limit_is_refused_and_less_is_not(folder):
    stored = json.loads((folder / "config.json").read_text())["logits"]
    slope = math.exp(-stored[0]) / (1 + math.exp(-stored[0])) ** 2
    load_pretrained(change_config(folder, logits=[stored[0] + 0.8e-4 / slope, *stored[1:]]))
    with pytest.raises(CheckpointError, match="have drifted by 0.00012 .*made with .*torch"):
        load_pretrained(change_config(folder, logits=[stored[0] + 1.2e-4 / slope, *stored[1:]]))


def test_drift_of_saturated_probabilities_shows_in_the_logits(tmp_path):
    model = network()
    with torch.no_grad():
        model.head[-1].bias.fill_(-30)
    folder = save(tmp_path / "model", model)
    load_pretrained(folder)
    stored = json.loads((folder / "config.json").read_text())["logits"]
    with pytest.raises(CheckpointError, match="have drifted"):
        load_pretrained(change_config(folder, logits=[v + 1 for v in stored]))


@pytest.mark.parametrize(
    "change",
    [
        {"clips__front_end__mean": -30.0},
        {"clips__front_end__hop_length": 690},
        {"clips__crop_s": 0.25},
        {"clips__front_end__top_db": 20.0},
    ],
)
def test_a_changed_front_end_drifts(folder, change):
    with pytest.raises(CheckpointError, match="have drifted"):
        load_pretrained(change_config(folder, **change))


def test_changed_weights_drift(folder):
    state = load_file(folder / "model.safetensors")
    state["blocks.0.conv1.weight"] *= 1.1
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="have drifted"):
        load_pretrained(folder)


def test_weights_with_nan_are_refused(folder):
    state = load_file(folder / "model.safetensors")
    state["head.4.bias"] = torch.full((3,), math.nan)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="is not finite"):
        load_pretrained(folder)


def test_a_changed_reference_drifts(folder):
    wave, sr = sf.read(folder / "reference.wav")
    sf.write(folder / "reference.wav", wave[::-1] ** 3, sr)
    with pytest.raises(CheckpointError, match="have drifted"):
        load_pretrained(folder)


# Refused at loading: untrusted folders

@pytest.fixture
def mark(tmp_path):
    return tmp_path / "executed"


@pytest.fixture
def untouched(tmp_path, mark):
    """Check after the test that nothing was executed or written beside the folder."""
    yield
    assert not mark.exists() and sorted(f.name for f in tmp_path.iterdir() if f.name != "outside") == ["model"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "reference.wav"])
@pytest.mark.parametrize(
    "dump", [lambda bomb, f: f.write_bytes(pickle.dumps(bomb)), lambda bomb, f: torch.save(bomb, f)]
)
def test_a_pickle_in_place_of_a_file_is_refused(folder, mark, untouched, name, dump):
    dump(Bomb(mark), folder / name)
    with pytest.raises(CheckpointError, match=name):
        load_pretrained(folder)


@pytest.mark.parametrize("name", ["model.pkl", "pytorch_model.bin", "learner.PTH", "custom_net.py", "stats.npy"])
def test_other_files_that_could_be_code_are_refused(folder, mark, untouched, name):
    (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(CheckpointError, match=f"holds {name}, which could be code"):
        load_pretrained(folder)


def test_a_readme_is_allowed(folder):
    (folder / "README.md").write_text("A model.")
    assert load_pretrained(folder).tags == TAGS


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "reference.wav"])
def test_links_and_missing_files_are_refused(folder, tmp_path, untouched, name):
    (folder / name).rename(tmp_path / "outside")
    with pytest.raises(CheckpointError, match=f"lacks {name}"):
        load_pretrained(folder)
    (folder / name).symlink_to(tmp_path / "outside")
    with pytest.raises(CheckpointError, match=f"{name} is a link"):
        load_pretrained(folder)
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(CheckpointError, match=f"{name} is not a regular file"):
        load_pretrained(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(
        CheckpointError,
        match="is not a folder; expected a model folder with model.safetensors, config.json, reference.wav",
    ):
        load_pretrained(tmp_path / "nowhere")


def write_tensors(folder, header):
    """Write a safetensors file that declares `header` and holds eight bytes."""
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))


def test_tensors_larger_than_their_file_are_refused(folder, untouched):
    write_tensors(folder, {"head.4.bias": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}})
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load_pretrained(folder)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load_pretrained(folder)


def test_weights_of_another_size_are_refused_before_they_are_read(folder, monkeypatch, untouched):
    state = load_file(folder / "model.safetensors")
    state["head.4.weight"] = torch.zeros(3, 1 << 20)
    save_file(state, folder / "model.safetensors")
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", None)
    with pytest.raises(CheckpointError, match="it has another shape of head.4.weight"):
        load_pretrained(folder)


def test_a_network_larger_than_its_weights_is_never_built(folder, untouched):
    # 64 x 4,000 channels would be a tensor of 600 GB.
    with pytest.raises(CheckpointError, match="another shape of blocks.0.bn1.bias"):
        load_pretrained(change_config(folder, network__options={"width": 4000.0}))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"weights": "../../etc/passwd"}, "unknown key weights"),
        ({"network__file": "/etc/passwd"}, "unknown key network.file"),
        ({"clips__path": "/etc"}, "unknown key 'path'"),
        ({"clips__front_end__n_mel": 64}, "unknown key 'n_mel'; did you mean n_mels"),
        ({"network__options": {"pretrained": "/etc/passwd"}}, "hold pretrained"),
        ({"network__options": {"pretrained": True}, "network__arch": "timm:resnet18"}, "hold pretrained"),
        ({"network__options": {"width": {"a": 1}}}, "network.options.width"),
        ({"network__options": {"width": 1e9}}, "network.options.width"),
        ({"network__options": {"color": 3}}, "has no option 'color'"),
        ({"network__arch": "m33"}, "no model named 'm33'; did you mean m3"),
        (
            {"network__arch": "timm:hf-hub:someone/model", "network__options": {}},
            "'timm:hf-hub:someone/model' would be read from elsewhere",
        ),
        (
            {"network__arch": "timm:local-dir:/etc", "network__options": {}},
            "'timm:local-dir:/etc' would be read from elsewhere",
        ),
        (
            {"network__arch": "timm:resnet18", "network__options": {"checkpoint_path": "/etc/passwd"}},
            "'checkpoint_path' cannot be set",
        ),
        ({"network__arch": "os.system"}, "no model named 'os.system'"),
        ({"network__two_heads": True}, "lacks model.blocks.0.bn1.bias"),
        ({"tags": ["Bark", "Meow"]}, "prior holds 3 numbers for 2 tags"),
        (
            {"tags": ["Bark", "Meow"], "prior": [0.5, 0.5], "logits": [0.0, 0.0], "calibration": None},
            "another shape of head.4.bias",
        ),
        ({"tags": ["Bark", "Bark", "Meow"]}, "names one twice"),
        ({"tags": ["Bark", "Meow", ""]}, "tags.2"),
        ({"tags": ["Rain", "Bark", "Meow"]}, "calibration has other tags"),
        ({"tags": []}, "tags"),
        ({"tags": "Bark"}, "tags"),
        ({"tags": [{"a": 1}, "b", "c"]}, "tags.0"),
        ({"prior": [0.5, 0.5, 2.0]}, "prior.2"),
        ({"logits": []}, "holds no logits"),
        ({"logits": [0.0]}, "logits holds 1 numbers for 3 tags"),
        ({"calibration": {"format": "x"}}, "fatai calibration 1"),
        ({"calibration__slope": [-1, 1, 1]}, "slope is -1"),
        ({"format": "fatai model 9"}, "\"format\": \"fatai model 1\""),
        ({"clips": []}, "ClipConfig is a list"),
        ({"clips__channels": "nine"}, "channels is 'nine'"),
        ({"clips__channels": "repeat3"}, "another shape of blocks.0.conv1.weight"),
        ({"clips__pad_mode": "hum"}, "pad_mode is 'hum'"),
        ({"clips__crop_s": 1e9}, "crop_s is 1000000000.0"),
        ({"clips__crop_s": "long"}, "clips.crop_s"),
        ({"clips__front_end__n_fft": 1 << 40}, "n_fft=1099511627776; expected at most"),
        ({"clips__front_end__n_mels": 1 << 40}, "n_mels=1099511627776; expected at most"),
        ({"clips__front_end__sr": 1 << 40}, "sr=1099511627776; expected at most"),
        ({"clips__front_end__windows": [512] * 100}, "at most 8"),
        ({"clips__front_end__windows": [1 << 40]}, "at most 8, of 1 to"),
        ({"clips__front_end__hop_length": 1, "clips__crop_s": 600}, "too much to compute"),
        ({"clips__front_end__hop_length": -5}, "hop_length=-5"),
        ({"clips__front_end__sr": "os.system"}, "front_end.sr"),
        ({"clips__front_end__mean": {"a": 1}}, "front_end.mean"),
        ({"clips__front_end__log": "exec"}, "log='exec'"),
        ({"clips__front_end__channels": "evil"}, "evil"),
        ({"clips__front_end__std": 1e999}, "Infinity is not a number"),
    ],
)
def test_invalid_configs_are_refused(folder, untouched, change, expected):
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(change_config(folder, **change))
    message = str(caught.value)
    assert (
        expected in message
        and (
            "config.json: " in message
            or "config.json does" in message
            or "model.safetensors does" in message
            or "config.json is not" in message
            or "config.json holds" in message
        )
        and len(message) < 1000
    )


@pytest.mark.parametrize(("change", "expected"), [
    ({"clips__short_fill": "zeros_both"}, "the key clips.short_fill is now clips.pad_mode"),
    (
        {"clips__front_end__normalise": "global"},
        "the key clips.front_end.normalise is now clips.front_end.normalize",
    ),
    ({"clips__channels": "same3"}, "clips.channels = 'same3' is now 'repeat3'"),
    ({"clips__pad_mode": "zeros_right"}, "clips.pad_mode = 'zeros_right' is now 'constant_right'"),
])
def test_keys_and_values_of_older_folders_are_refused_with_the_new_ones(folder, change, expected):
    with pytest.raises(CheckpointError, match="config.json: .*rename it, or save the model again") as caught:
        load_pretrained(change_config(folder, **change))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{",
        b"[" * 100_000,
        b'{"format": ' + b"9" * 5000 + b"}",
        b'{"format": "fatai model 1"}',
    ],
)
def test_text_that_is_not_a_config_is_refused(folder, untouched, text):
    (folder / "config.json").write_bytes(text)
    with pytest.raises(CheckpointError, match="config.json"):
        load_pretrained(folder)


def test_a_huge_config_is_not_read(folder, untouched, monkeypatch):
    with open(folder / "config.json", "r+b") as f:
        f.truncate(1 << 34)
    monkeypatch.setattr(Path, "read_bytes", None)
    with pytest.raises(CheckpointError, match="has 17,179,869,184 bytes"):
        load_pretrained(folder)


def test_a_long_or_odd_reference_is_refused(folder, untouched):
    for wave, message in (
        (np.zeros(61 * 8000), "61 s of WAV with 1 channels"),
        (np.zeros((800, 2)), "with 2 channels"),
    ):
        sf.write(folder / "reference.wav", wave, 8000)
        with pytest.raises(CheckpointError, match=message):
            load_pretrained(folder)
    (folder / "reference.wav").write_bytes(b"RIFF")
    with pytest.raises(CheckpointError, match="the reference clip cannot be read: .*reference.wav"):
        load_pretrained(folder)


def test_checkpoint_errors_can_be_caught_as_value_errors():
    assert issubclass(CheckpointError, FataiError) and issubclass(CheckpointError, ValueError)
