"""Weights from files: keys that match are loaded, others are named, and nothing in a file is executed."""

import io
import os
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from fatai.errors import CheckpointError, FataiError
from fatai.models import create_model
from fatai.models.checkpoint import load_checkpoint, read_weights

CHANNELS = (8, 16, 32, 64, 128, 256)        # an eighth of the published ones
FRONT_END = {
    "spectrogram_extractor.stft.conv_real.weight": (513, 1, 1024),
    "spectrogram_extractor.stft.conv_imag.weight": (513, 1, 1024),
    "logmel_extractor.melW": (513, 64),
}


def published_shapes(channels=(64, 128, 256, 512, 1024, 2048), n_tags=527):
    """Return keys and shapes of the published CNN14 file without its front end."""
    shapes = {}

    def norm(key, n):
        shapes.update({f"{key}.{part}": (n,) for part in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{key}.num_batches_tracked"] = ()

    norm("bn0", 64)
    for k, (n_in, n_out) in enumerate(zip((1, *channels[:-1]), channels, strict=True), 1):
        shapes[f"conv_block{k}.conv1.weight"] = (n_out, n_in, 3, 3)
        shapes[f"conv_block{k}.conv2.weight"] = (n_out, n_out, 3, 3)
        norm(f"conv_block{k}.bn1", n_out)
        norm(f"conv_block{k}.bn2", n_out)
    last = channels[-1]
    shapes |= {
        "fc1.weight": (last, last),
        "fc1.bias": (last,),
        "fc_audioset.weight": (n_tags, last),
        "fc_audioset.bias": (n_tags,),
    }
    return shapes


def fake_state(n_tags=527, front_end=True):
    """Return a random state like that of a published CNN14 with an eighth of the channels."""
    shapes = published_shapes(CHANNELS, n_tags) | (FRONT_END if front_end else {})
    state = {}
    for key, shape in shapes.items():
        state[key] = (
            torch.tensor(7)
            if key.endswith("tracked")
            else torch.randn(shape) / max(1, torch.Size(shape[1:]).numel()) ** 0.5
        )
        if key.endswith("running_var"):
            state[key] = torch.rand(shape) + 0.5
    return state


def saved(path, state, **options):
    torch.save({"iteration": 600_000, "model": state}, path, **options)
    return path


def cnn14(path=None, n_tags=3, **options):
    return create_model("cnn14", n_tags, pretrained=path, **({"width": 0.125} | options)).eval()


def test_cnn14_has_the_published_keys_and_shapes():
    with torch.device("meta"):
        model = create_model("cnn14", 527)
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == published_shapes()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_published_file_loads_and_reports_the_keys_not_used(tmp_path, legacy):
    state = fake_state()
    model = cnn14(saved(tmp_path / "Cnn14.pth", state, _use_new_zipfile_serialization=not legacy))
    classifier = {"fc_audioset.weight", "fc_audioset.bias"}
    for key, value in model.state_dict().items():
        assert key in classifier or torch.equal(value, state[key]), key
    report = model.pretrained
    assert set(report.initialized) == classifier and set(report.unexpected) == set(FRONT_END)
    assert not report.first_channel
    assert set(report.loaded) == set(published_shapes()) - classifier
    text = str(report)
    assert "Cnn14.pth: 79 tensors loaded" in text and "newly initialized: fc_audioset.weight" in text
    assert "in the file but not in the model: logmel_extractor.melW" in text and str(tmp_path) not in text


def test_as_many_tags_keep_the_published_classifier(tmp_path):
    state = fake_state()
    model = cnn14(saved(tmp_path / "w.pth", state), n_tags=527)
    assert torch.equal(model.fc_audioset.weight, state["fc_audioset.weight"]) and not model.pretrained.initialized


def test_without_a_file_nothing_is_reported():
    assert cnn14().pretrained is None


@pytest.mark.parametrize("form", ["bare", "state_dict", "parallel", "half", "safetensors", "safetensors named pth"])
def test_files_of_other_forms_load_too(tmp_path, form):
    state = fake_state(n_tags=3, front_end=False)
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form.startswith("safetensors"):
        save_file(state, path)
    elif form == "state_dict":
        torch.save({"state_dict": state, "epoch": 3}, path)
    elif form == "parallel":
        torch.save({f"module.{key}": value for key, value in state.items()}, path)
    else:
        torch.save({k: v.half() if form == "half" and v.ndim else v for k, v in state.items()}, path)
    loaded = cnn14(path).state_dict()
    tolerance = 0.01 if form == "half" else 0
    for key, value in state.items():
        torch.testing.assert_close(loaded[key], value, atol=tolerance, rtol=0)
    assert loaded["fc1.weight"].dtype == torch.float32


def test_files_from_before_batches_were_counted_load(tmp_path):
    state = {k: v for k, v in fake_state(n_tags=3).items() if not k.endswith("tracked")}
    assert len(cnn14(saved(tmp_path / "w.pth", state)).pretrained.initialized) == 13


@pytest.mark.parametrize("in_channels", [2, 3, 4])
def test_more_channels_begin_as_the_network_of_the_first(tmp_path, in_channels):
    path = saved(tmp_path / "w.pth", fake_state(n_tags=3))
    one, several = cnn14(path), cnn14(path, in_channels=in_channels)
    assert several.pretrained.first_channel == (
        "bn0.weight", "bn0.bias", "bn0.running_mean", "bn0.running_var", "conv_block1.conv1.weight",
    )
    spec = torch.randn(2, in_channels, 64, 64)
    torch.testing.assert_close(several(spec), one(spec[:, :1]))
    assert several.bn0.running_var[64:].eq(1).all() and several.bn0.running_mean[64:].eq(0).all()
    several(spec).square().sum().backward()
    assert several.conv_block1.conv1.weight.grad[:, 1:].abs().sum() > 0          # so training can begin to use them


def test_a_network_of_three_channels_is_not_loaded_into_one(tmp_path):
    torch.save(cnn14(in_channels=3).state_dict(), tmp_path / "w.pth")
    assert not cnn14(tmp_path / "w.pth", in_channels=3).pretrained.first_channel
    with pytest.raises(CheckpointError, match=r"bn0.weight has shape \(192,\), the model's is \(64,\)"):
        cnn14(tmp_path / "w.pth")


def test_another_number_of_mels_initializes_the_batch_norm(tmp_path):
    path = saved(tmp_path / "w.pth", fake_state(n_tags=3))
    model = cnn14(path, n_mels=128)
    assert model.pretrained.initialized == ("bn0.weight", "bn0.bias", "bn0.running_mean", "bn0.running_var")
    assert model(torch.randn(1, 1, 128, 64)).shape == (1, 3)


@pytest.mark.parametrize(("head", "initialized", "unexpected"), [
    ("attention", "attention_pool.gate.weight", "fc1.weight"),
    ("tag_attention", "att_block.cla.weight", "fc_audioset.weight"),
])
def test_heads_of_the_gold_plan_load_the_published_body(tmp_path, head, initialized, unexpected):
    report = cnn14(saved(tmp_path / "w.pth", fake_state()), head=head).pretrained
    assert initialized in report.initialized and unexpected in report.unexpected
    assert "conv_block6.conv2.weight" in report.loaded


def test_a_decision_level_file_loads_its_attention(tmp_path):
    state = {k: v for k, v in fake_state().items() if not k.startswith("fc_audioset")}
    state |= {f"att_block.{part}.weight": torch.randn(3, 256, 1) for part in ("att", "cla")}
    state |= {f"att_block.{part}.bias": torch.randn(3) for part in ("att", "cla", "bn_att")}
    model = cnn14(saved(tmp_path / "w.pth", state), head="tag_attention")
    assert torch.equal(model.att_block.cla.weight, state["att_block.cla.weight"]) and not model.pretrained.initialized
    assert "att_block.bn_att.bias" in model.pretrained.unexpected


@pytest.mark.parametrize("name", ["cnn6", "resnet22", "resnet54", "mobilenetv1", "mobilenetv2"])
def test_every_network_loads_weights_that_it_saved(tmp_path, name):
    model = create_model(name, 3, width=0.125).eval()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    again = create_model(name, 3, width=0.125, pretrained=tmp_path / "w.pth").eval()
    spec = torch.randn(1, 1, 64, 64)
    assert torch.equal(again(spec), model(spec)) and not again.pretrained.initialized
    wider = create_model(name, 3, in_channels=2, width=0.125, pretrained=tmp_path / "w.pth").eval()
    torch.testing.assert_close(wider(spec.expand(-1, 2, -1, -1)), model(spec))


def test_a_missing_key_is_named(tmp_path):
    state = fake_state()
    del state["conv_block3.conv2.weight"]
    with pytest.raises(
        CheckpointError, match=r"w.pth does not fit Cnn14: it lacks conv_block3.conv2.weight; build the model"
    ):
        cnn14(saved(tmp_path / "w.pth", state))


def test_an_unknown_key_is_named(tmp_path):
    state = fake_state() | {"conv_block7.conv1.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"it holds the unknown conv_block7.conv1.weight"):
        cnn14(saved(tmp_path / "w.pth", state))


def test_a_wrong_shape_is_named_with_both_shapes(tmp_path):
    state = fake_state()
    state["conv_block2.conv1.weight"] = torch.zeros(16, 9, 3, 3)
    with pytest.raises(
        CheckpointError, match=r"conv_block2.conv1.weight has shape \(16, 9, 3, 3\), the model's is \(16, 8, 3, 3\)"
    ):
        cnn14(saved(tmp_path / "w.pth", state))


def test_many_faults_are_counted_and_the_model_is_unchanged(tmp_path):
    model = create_model("m1", 3, width=0.125)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    lacking = sum(not key.endswith("tracked") for key in before) - 1
    path = saved(tmp_path / "w.pth", {"blocks.0.conv1.weight": torch.full((8, 1, 3, 3), 5.0)})
    with pytest.raises(CheckpointError, match=rf"it lacks blocks.0.conv1.bias; .* and {lacking - 4} more"):
        load_checkpoint(model, path)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_any_model_can_be_loaded_with_a_new_head(tmp_path):
    old, new = create_model("m1", 5, width=0.125), create_model("m1", 3, width=0.125)
    torch.save(old.state_dict(), tmp_path / "w.pth")
    report = load_checkpoint(new, tmp_path / "w.pth", reinit=["head.4."])
    assert report.initialized == ("head.4.weight", "head.4.bias")
    assert torch.equal(new.head[1].weight, old.head[1].weight)


class Malicious:
    """Create a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("form", ["new", "legacy", "bare pickle", "beside the weights"])
def test_code_in_a_file_is_refused_and_not_executed(tmp_path, form):
    path, witness = tmp_path / "evil.pth", tmp_path / "executed"
    if form == "bare pickle":
        path.write_bytes(pickle.dumps({"model": Malicious(witness)}, protocol=2))
    elif form == "beside the weights":
        torch.save({"model": fake_state(), "optimizer": Malicious(witness)}, path)
    else:
        torch.save(Malicious(witness), path, _use_new_zipfile_serialization=form == "new")
    with pytest.raises(CheckpointError) as caught:
        cnn14(path)
    assert not witness.exists()
    text = str(caught.value)
    assert "evil.pth" in text and "\n" not in text and "weights_only=False" not in text
    assert "could run code" in text and "system" in text
    assert caught.value.__cause__ is None


def test_the_malicious_file_of_these_tests_would_have_worked(tmp_path):
    pickle.loads(pickle.dumps(Malicious(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


def test_a_compressed_archive_is_refused(tmp_path):
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(1_000_000)}, buffer)
    path = tmp_path / "small.pth"
    with zipfile.ZipFile(buffer) as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for member in plain.infolist():
            packed.writestr(member.filename, plain.read(member))
    assert path.stat().st_size < 100_000
    with pytest.raises(CheckpointError, match="compressed archive"):
        read_weights(path)


def test_a_file_over_the_bound_is_not_read(tmp_path):
    path = saved(tmp_path / "w.pth", {"w": torch.zeros(1000)})
    with pytest.raises(CheckpointError, match=r"bytes; at most 1,000 are read"):
        read_weights(path, max_bytes=1000)
    assert read_weights(path)["w"].shape == (1000,)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"RIFF not weights", b"\x80\x02}q\x00", b"\x10" + b"\x00" * 7 + b"{not a header"]
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"w.pth cannot be read as weights .*expected a file of torch.save"):
        read_weights(path)


@pytest.mark.filterwarnings("ignore:.*TorchScript archive")
def test_torchscript_is_refused_without_advice_to_run_it(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "version"):
            archive.writestr(f"w/{name}", b"3\n")
    with pytest.raises(CheckpointError, match="it holds other things") as caught:
        read_weights(tmp_path / "w.pth")
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("safe", [False, True])
def test_a_truncated_file_is_refused(tmp_path, safe):
    path = tmp_path / "w"
    save_file({"w": torch.zeros(1000)}, path) if safe else saved(path, {"w": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        read_weights(path)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
@pytest.mark.parametrize(("content", "message"), [
    ([torch.zeros(1)], "holds a list; expected named tensors"),
    (torch.zeros(1), "holds a Tensor; expected named tensors"),
    ({}, "expected named tensors"),
    ({"a": torch.zeros(1), "lr": 0.1}, "holds a float under 'lr'"),
    ({0: torch.zeros(1)}, "holds a Tensor under 0"),
    ({"a": torch.zeros(3).to_sparse()}, "expected a dictionary of names to dense tensors"),
    ({"a": torch.zeros(3, device="meta")}, "expected a dictionary of names to dense tensors"),
])
def test_files_without_named_tensors_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=message):
        read_weights(tmp_path / "w.pth")


def test_integers_in_place_of_weights_are_refused(tmp_path):
    state = fake_state()
    state["fc1.bias"] = torch.zeros(256, dtype=torch.int64)
    with pytest.raises(CheckpointError, match=r"torch.int64 under fc1.bias; the model expects torch.float32"):
        cnn14(saved(tmp_path / "w.pth", state))


def test_a_missing_file_is_named_and_both_kinds_of_except_catch_it(tmp_path):
    for kind in (FataiError, ValueError):
        with pytest.raises(kind, match="there is no file .*nowhere.pth; give the path"):
            cnn14(tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match="there is no file"):
        read_weights(tmp_path)
