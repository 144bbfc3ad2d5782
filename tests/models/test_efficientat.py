"""EfficientAT's networks: sizes, keys and outputs as published; other tags and channels; any size of input."""

import numpy as np
import pytest
import torch
from helpers.weights import esc10_clip, published_mn04
from torch import nn
from torchvision.models.mobilenetv3 import MobileNetV3, _mobilenet_v3_conf
from torchvision.ops.misc import SqueezeExcitation

from fatai.audio.io import load_audio
from fatai.errors import CheckpointError, OptionError, ShapeError
from fatai.models import count_parameters, create_model
from fatai.models.checkpoint import save_checkpoint
from fatai.models.efficientat import WIDTHS
from fatai.registry import FRONT_ENDS

# Millions of parameters at 527 tags, of the table in the authors' repository.
PUBLISHED = {"mn04": 0.983, "mn05": 1.43, "mn10": 4.88, "mn20": 17.91, "mn30": 39.09, "mn40": 68.43}


def with_statistics(model):
    """Give batch norms statistics and weights as after training, so that every layer matters."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for m in norms:
            m.weight.uniform_(0.5, 1.5)
            m.bias.normal_(0, 0.1)
            m.momentum = 1.0
        model.train()(torch.randn(8, model.in_channels, 64, 64) + torch.randn(8, model.in_channels, 64, 1))
    return model.eval()


def by_torchvision(state, width, n_tags):
    """Build torchvision's MobileNetV3-Large with a sigmoid in squeeze and excitation, and the weights of a state."""
    rows, last = _mobilenet_v3_conf("mobilenet_v3_large", width_mult=width)
    oracle = MobileNetV3(rows, last, num_classes=n_tags)
    for m in oracle.modules():
        if isinstance(m, SqueezeExcitation):
            m.scale_activation = nn.Sigmoid()
    renamed = {}
    for key, value in state.items():
        key = key.replace("conc_se_layers.0.", "").replace("classifier.2.", "classifier.0.")
        key = key.replace("classifier.5.", "classifier.3.")
        renamed[key] = value[:, :, None, None] if ".fc" in key and value.ndim == 2 else value
    first = renamed["features.0.0.weight"]
    renamed["features.0.0.weight"] = torch.cat([first, torch.zeros(len(first), 2, 3, 3)], 1)
    oracle.load_state_dict(renamed)
    return oracle.eval()


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_published(name):
    with torch.device("meta"):
        assert count_parameters(create_model(name, 527)) / 1e6 == pytest.approx(PUBLISHED[name], abs=0.006)


@pytest.mark.parametrize(("name", "width"), [("mn04", 1.0), ("mn10", 0.3)])
def test_output_is_that_of_torchvisions_network(name, width):
    model = with_statistics(create_model(name, 5, width=width))
    oracle = by_torchvision(model.state_dict(), WIDTHS[name] * width, 5)
    spec = torch.randn(2, 1, 128, 101)
    with torch.no_grad():
        found, expected = model(spec), oracle(spec.expand(-1, 3, -1, -1))
    assert expected.std(dim=0).min() > 0
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_dropout_is_before_the_last_layer():
    model = create_model("mn04", 5, dropout=0.4)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.4]
    assert create_model("mn04", 5).classifier[4].p == 0.2 and isinstance(model.classifier[5], nn.Linear)


@pytest.fixture(scope="module")
def reference():
    """The published network, the reference outputs, and the spectrograms of the twelve clips."""
    folder = published_mn04()
    model = create_model("mn04", 527, pretrained=folder / "mn04_as_mAP_432.pt").eval()
    stored = np.load(folder / "reference.npz")
    to_spec = FRONT_ENDS.build("efficientat")
    specs = [to_spec(load_audio(esc10_clip(name), 32000)[None])[:, None] for name in stored["filename"]]
    return model, stored, specs


def outputs(model, spec):
    with torch.no_grad():
        return {"pooled": model.body(spec).mean((2, 3)), "hidden": model.embed(spec), "logits": model(spec)}


def test_published_weights_give_the_reference_for_each_clip_alone(reference):
    model, stored, specs = reference
    for i, spec in enumerate(specs):
        for key, value in outputs(model, spec).items():
            assert np.abs(value[0].numpy() - stored[key][i]).max() <= 1e-4, (stored["filename"][i], key)


def test_published_weights_give_the_reference_in_batches_of_equal_length(reference):
    model, stored, specs = reference
    lengths = {spec.shape[-1] for spec in specs}
    for frames in lengths:
        rows = [i for i, spec in enumerate(specs) if spec.shape[-1] == frames]
        for key, value in outputs(model, torch.cat([specs[i] for i in rows])).items():
            assert np.abs(value.numpy() - stored[key][rows]).max() <= 1e-4, (frames, key)
    assert len(lengths) < len(specs), "some of the clips share a batch"


def test_published_weights_in_bfloat16_are_within_a_fifth_of_the_spread_of_logits(reference):
    """The narrow layers magnify rounding: the root mean square error is 0.16, the spread among clips 1.31."""
    model, stored, specs = reference
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = torch.cat([model(spec) for spec in specs]).numpy()
    assert logits.dtype == np.float32
    errors = logits - stored["logits"]
    assert np.sqrt(np.square(errors).mean()) <= 0.2 * stored["logits"].std(0).mean()
    probs, expected = (1 / (1 + np.exp(-x)) for x in (logits, stored["logits"]))
    assert np.sqrt(np.square(probs - expected).mean()) <= 0.01


def test_published_weights_for_other_tags_keep_all_but_the_last_layer(reference):
    model, stored, specs = reference
    folder = published_mn04()
    other = create_model("mn04", 10, pretrained=folder / "mn04_as_mAP_432.pt").eval()
    assert other.pretrained.initialized == ("classifier.5.weight", "classifier.5.bias")
    with torch.no_grad():
        assert torch.equal(other.embed(specs[0]), model.embed(specs[0])) and other(specs[0]).shape == (1, 10)


def test_a_file_is_loaded_key_for_key_and_another_width_is_refused(tmp_path):
    model = with_statistics(create_model("mn04", 6, width=0.3))
    file = tmp_path / "weights.pt"
    save_checkpoint(file, model.state_dict())
    assert all(key.startswith(("features.", "classifier.")) for key in model.state_dict())
    spec = torch.randn(2, 1, 128, 50)
    again = create_model("mn04", 6, width=0.3, pretrained=file).eval()
    with torch.no_grad():
        assert torch.equal(again(spec), model(spec)) and not again.pretrained.initialized
    with pytest.raises(CheckpointError, match="weights.pt does not fit EfficientAT: .*has shape"):
        create_model("mn10", 6, pretrained=file)


def test_further_channels_have_no_influence_at_first(tmp_path):
    model = with_statistics(create_model("mn04", 6, width=0.3))
    file = tmp_path / "weights.pt"
    save_checkpoint(file, model.state_dict())
    wide = create_model("mn04", 6, 3, width=0.3, pretrained=file).eval()
    assert wide.pretrained.first_channel == ("features.0.0.weight",)
    spec = torch.randn(2, 3, 128, 50)
    with torch.no_grad():
        torch.testing.assert_close(wide(spec), model(spec[:, :1]), atol=1e-6, rtol=1e-5)


def test_the_last_layer_is_the_head_and_the_hidden_layer_the_embedding():
    model = create_model("mn04", 6)
    body, head = model.layer_groups()
    assert [tuple(p.shape) for p in head] == [(6, 512), (6,)]
    assert model.eval().embed(torch.randn(2, 1, 128, 50)).shape == (2, 512)


def test_one_clip_too_small_for_batch_norm_is_refused_in_training():
    model = create_model("mn04", 6, width=0.3)
    with pytest.raises(ShapeError, match="one number per channel; .*at least 2 in training.*more than 32 frames"):
        model(torch.randn(1, 1, 32, 32))
    assert model(torch.randn(1, 1, 32, 33)).shape == (1, 6)
    assert model.eval()(torch.randn(1, 1, 1, 1)).shape == (1, 6)


def test_a_width_of_zero_is_refused():
    with pytest.raises(OptionError, match=r"width=0.0; expected a factor above 0"):
        create_model("mn04", 6, width=0.0)


def test_attention_pools_the_frames_instead_of_the_hidden_layer(tmp_path):
    model = create_model("mn04", 6, head="attention", dropout=0.5).eval()
    spec = torch.randn(2, 1, 128, 200)
    with torch.no_grad():
        pooled = model.attention_pool(model.body(spec).mean(2))
        torch.testing.assert_close(model.embed(spec), pooled)
        torch.testing.assert_close(model(spec), model.classifier[1](pooled))
    save_checkpoint(tmp_path / "published.pt", create_model("mn04", 527).state_dict())
    loaded = create_model("mn04", 6, head="attention", pretrained=tmp_path / "published.pt").pretrained
    assert {key.split(".")[0] for key in loaded.initialized} == {"attention_pool", "classifier"}
    assert len(model.layer_groups()[1]) == 6
    with pytest.raises(OptionError, match="head='atention'; did you mean attention"):
        create_model("mn04", 6, head="atention")
