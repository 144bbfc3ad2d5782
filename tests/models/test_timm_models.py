"""Networks of timm against timm's own: logits, options, sizes, layers, pretrained weights, channels."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.optim import param_groups_layer_decay
from torch import nn

from fatai.errors import CheckpointError, OptionError, ShapeError, UnknownNameError
from fatai.models import MODELS, count_parameters, create_model
from fatai.models.checkpoint import save_weights
from fatai.models.timm_models import pin_timm_source

SMALL = "mobilenetv3_small_050"


def with_weights_of(model, other):
    """Load the state of `other`, whose entries are in the same order with other names, into `model`."""
    state, wanted = other.state_dict(), model.state_dict()
    assert [v.shape for v in state.values()] == [v.shape for v in wanted.values()]
    model.load_state_dict(dict(zip(wanted, state.values(), strict=True)))
    return model


def theirs(arch, n_tags=5, **options):
    """Return a network of timm, in evaluation mode, whose batch norms have seen something."""
    torch.manual_seed(1)
    net = timm.create_model(arch, num_classes=n_tags, **options)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
    return net.eval()


def same_logits(ours, net, *size):
    x = torch.randn(2, *size)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("in_channels", [1, 2, 3, 4])
def test_timm_logits_are_those_of_timm_with_the_same_weights(in_channels):
    import timm

    theirs = timm.create_model("mobilenetv3_small_050", num_classes=5, in_chans=in_channels).eval()
    ours = with_weights_of(create_model("timm:mobilenetv3_small_050", 5, in_channels), theirs).eval()
    spec = torch.randn(2, in_channels, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(spec), theirs(spec))


@pytest.mark.parametrize(
    ("name", "smallest"), [("resnet10t", (32, 64)), ("test_vit", (1, 1)), ("inception_v3", (128, 128))]
)
def test_timm_networks_take_any_size_and_learn(name, smallest):
    model = create_model(f"timm:{name}", 5, dropout=0.1)
    assert (model.min_mels, model.min_frames) == smallest and model.training
    for size in [(1, 1), (64, 33), (96, 200)]:
        model(torch.randn(2, 1, *size)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    groups = model.layer_groups()
    assert sum(p.numel() for group in groups for p in group) == count_parameters(model)
    with pytest.raises(ShapeError, match="3 channels.*in_channels=1"):
        model(torch.randn(2, 3, 64, 64))


def test_timm_network_of_one_size_gets_the_resized_spectrogram():
    model = create_model("timm:test_vit", 3).eval()
    spec = torch.randn(1, 1, 64, 200)
    resized = nn.functional.interpolate(spec, model.fixed_size, mode="bilinear")
    with torch.no_grad():
        torch.testing.assert_close(model(spec), model(resized))
        assert not torch.allclose(model(spec), model(torch.randn_like(spec)))


def test_timm_models_trained_on_single_clips_use_two_positions():
    create_model("timm:resnet10t", 3)(torch.randn(1, 1, 1, 1))


def test_timm_errors_name_the_remedy():
    with pytest.raises(UnknownNameError, match="resnet10x.*did you mean resnet10t"):
        create_model("timm:resnet10x", 3)
    with pytest.raises(OptionError, match="in_channels=5.*1 to 4"):
        create_model("timm:resnet10t", 3, 5)
    with pytest.raises(OptionError, match="no option 'width'"):
        create_model("timm:resnet10t", 3, width=0.5)
    assert "pytorch-image-models" in MODELS.source("timm:resnet10t")


def test_timm_can_be_built_on_the_meta_device():
    with torch.device("meta"):
        assert count_parameters(create_model("timm:resnet18", 1000, 3)) == 11_689_512    # of He et al.'s ResNet-18




# Names


def test_unknown_names_get_three_suggestions():
    with pytest.raises(UnknownNameError) as e:
        create_model("timm:zzzz", 3)
    assert len(str(e.value)) < 200 and str(e.value).count(",") == 1 and " or " in str(e.value)
    with pytest.raises(UnknownNameError, match=r"no weights 'a1_in1' of resnet18; did you mean a1_in1k, "):
        create_model("timm:resnet18.a1_in1", 3)
    with pytest.raises(UnknownNameError, match="write timm:hf-hub:someone/net"):
        create_model("timm:someone/net", 3)


def test_a_name_of_timm_without_its_prefix_is_suggested_with_it():
    with pytest.raises(UnknownNameError, match="did you mean timm:efficientnet_b0?"):
        create_model("efficientnet_b0", 3)
    with pytest.raises(UnknownNameError, match="did you mean m3?"):
        create_model("m33", 3)
    with pytest.raises(UnknownNameError, match="known: "):
        MODELS.build("../../x/y", 3)


# Options


def test_options_are_those_of_timm():
    model = create_model(f"timm:{SMALL}", 5, drop_path_rate=0.5)
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert rates and max(rates) > 0.4
    assert model.built_as.options == {"drop_path_rate": 0.5}


def test_unknown_options_name_the_nearest():
    with pytest.raises(OptionError, match="050 has no option 'drop_pth_rate'; did you mean drop_path_rate?"):
        create_model(f"timm:{SMALL}", 5, drop_pth_rate=0.5)


@pytest.mark.parametrize(
    "option",
    ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "num_classes", "features_only"],
)
def test_options_that_read_files_or_follow_from_the_data_are_refused(option):
    with pytest.raises(OptionError, match=f"{option}' cannot be set"):
        create_model(f"timm:{SMALL}", 5, **{option: "x"})


# Sizes


@pytest.mark.parametrize(
    ("arch", "spec_size", "built_for"),
    [
        ("test_vit", (64, 126), (64, 128)),              # patches of 16
        ("swin_tiny_patch4_window7_224", (64, 126), (64, 128)),    # patches of 4, halved three times
        ("test_vit", None, (160, 160)),
    ],
)
def test_transformers_are_built_for_the_size_of_the_spectrogram(arch, spec_size, built_for):
    with torch.device("meta"):
        model = create_model(f"timm:{arch}", 3, spec_size=spec_size)
        assert model.fixed_size == built_for
        assert model(torch.zeros(2, 1, *(spec_size or (64, 126)))).shape == (2, 3)


def test_a_vit_for_the_size_of_the_spectrogram_is_timm_s_for_that_size():
    net = theirs("test_vit", img_size=(64, 128), in_chans=1)
    ours = with_weights_of(create_model("timm:test_vit", 5, spec_size=(64, 128)), net)
    same_logits(ours, net, 1, 64, 128)


def test_img_size_of_the_user_is_exact_or_an_error():
    assert create_model("timm:test_vit", 3, img_size=[32, 64], spec_size=(64, 128)).fixed_size == (32, 64)
    assert create_model("timm:test_vit", 3, img_size=32).fixed_size == (32, 32)
    with pytest.raises(OptionError, match="resnet10t has no option 'img_size'"):
        create_model("timm:resnet10t", 3, img_size=64)
    with pytest.raises(OptionError, match=r"img_size=\(64,\); expected mels and frames"):
        create_model("timm:test_vit", 3, img_size=(64,))


def test_networks_of_any_size_ignore_that_of_the_spectrogram():
    model = create_model("timm:resnet10t", 3, spec_size=(64, 126))
    assert model.fixed_size is None and count_parameters(model) == count_parameters(create_model("timm:resnet10t", 3))


def test_a_dynamic_transformer_takes_any_size_padded_to_whole_patches():
    net = theirs("test_vit", in_chans=1, dynamic_img_size=True)
    ours = with_weights_of(create_model("timm:test_vit", 5, dynamic_img_size=True), net).eval()
    assert ours.fixed_size is None
    spec = torch.randn(2, 1, 64, 200)
    padded = torch.cat([spec, spec[..., -1:].expand(-1, -1, -1, 8)], -1)
    with torch.no_grad():
        torch.testing.assert_close(ours(spec), net(padded), rtol=1e-4, atol=1e-5)


# Layers


@pytest.mark.parametrize("arch", [SMALL, "test_vit", "test_convnext", "test_resnet", "test_efficientnet"])
def test_layers_are_those_of_timm_s_layer_decay(arch):
    model, net = create_model(f"timm:{arch}", 5, 3), timm.create_model(arch, num_classes=5)
    scales = {
        id(p): group["lr_scale"] for group in param_groups_layer_decay(net, layer_decay=0.5) for p in group["params"]
    }
    expected = {name: scales[id(p)] for name, p in net.named_parameters()}
    names = {id(p): name for name, p in model.named_parameters()}
    layers = model.layers()
    classifier = net.pretrained_cfg["classifier"]
    for k, layer in enumerate(layers):
        for p in layer:
            name = names[id(p)].removeprefix("body.").replace("head.1.", f"{classifier}.")
            assert expected.pop(name) == 0.5 ** (len(layers) - 1 - k), name
    assert not expected and len(layers) > 3


@pytest.mark.parametrize("arch", [SMALL, "test_vit", "test_convnext", "resnet10t"])
@pytest.mark.parametrize("split", ["layers", "layer_groups"])
def test_groups_hold_every_parameter_once_and_the_head_is_the_last(arch, split):
    model = create_model(f"timm:{arch}", 5)
    groups = getattr(model, split)()
    grouped = [id(p) for group in groups for p in group]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    assert {id(p) for p in model.head.parameters()} <= {id(p) for p in groups[-1]}
    assert id(next(model.body.parameters())) in {id(p) for p in groups[0]} and len(groups) > 3


# Weights


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt"])
def test_weights_of_a_file_of_timm_with_and_without_its_classifier(suffix, tmp_path):
    net, path = theirs(SMALL, 7), tmp_path / f"w.{suffix}"
    save_file(net.state_dict(), path) if suffix == "safetensors" else torch.save({"state_dict": net.state_dict()}, path)
    same_logits(create_model(f"timm:{SMALL}", 7, 3, pretrained=path), net, 3, 64, 64)
    other = create_model(f"timm:{SMALL}", 4, 3, pretrained=str(path))
    net.reset_classifier(0)
    with torch.no_grad():
        x = torch.randn(2, 3, 64, 64)
        torch.testing.assert_close(other.eval().embed(x), net(x), rtol=1e-4, atol=1e-5)


def test_the_first_convolution_and_positions_are_adapted_as_timm_does(tmp_path):
    net = theirs("test_vit", 7)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    overlay = {"file": str(tmp_path / "w.safetensors"), "num_classes": 7}
    options = {"in_chans": 1, "img_size": (64, 128)}
    expected = timm.create_model("test_vit", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=7, **options)
    ours = create_model("timm:test_vit", 7, 1, pretrained=tmp_path / "w.safetensors", spec_size=(64, 126))
    same_logits(ours, expected.eval(), 1, 64, 128)


def test_weights_of_an_own_network_are_read_again(tmp_path):
    model = create_model(f"timm:{SMALL}", 5, 2).eval()
    save_weights(tmp_path / "model.safetensors", model, {})
    again = create_model(f"timm:{SMALL}", 5, 2, pretrained=tmp_path / "model.safetensors")
    same_logits(again, model, 2, 64, 64)


@pytest.mark.parametrize("arch", ["test_resnet", "mobilenetv3_small_075"])
def test_weights_of_another_architecture_are_one_sentence(arch, tmp_path):
    save_file(theirs(arch).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=f"w.safetensors does not fit timm's {SMALL}: .*; build") as e:
        create_model(f"timm:{SMALL}", 5, 3, pretrained=tmp_path / "w.safetensors")
    assert len(str(e.value)) < 600 and "\n" not in str(e.value)


def test_a_file_that_is_missing_or_holds_code_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="there is no file"):
        create_model(f"timm:{SMALL}", 5, pretrained=tmp_path / "none.pth")
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "code.pth")
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        create_model(f"timm:{SMALL}", 5, pretrained=tmp_path / "code.pth")


def test_networks_that_timm_has_no_weights_for_say_so():
    arch = next(name for name in timm.list_models("mobilenetv3*") if not timm.models.is_model_pretrained(name))
    with pytest.raises(CheckpointError, match=f"no pretrained weights for {arch}; give a file"):
        create_model(f"timm:{arch}", 5, pretrained=True)


# Channels "imagenet"


def test_networks_of_another_standardization_get_what_they_were_trained_with():
    image = torch.rand(2, 3, 160, 160)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    net = theirs("test_vit")
    assert net.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    ours = with_weights_of(create_model("timm:test_vit", 5, 3, imagenet_input=True), net).eval()
    with torch.no_grad():
        torch.testing.assert_close(ours((image - mean) / std), net((image - 0.5) / 0.5), rtol=1e-4, atol=1e-5)
    assert create_model("timm:resnet10t", 5, 3, imagenet_input=True, mean=(0.485, 0.456, 0.406)).scale == ()
    with pytest.raises(OptionError, match="for 1 channels"):
        create_model("timm:test_vit", 5, 1, imagenet_input=True)


# Folders and repositories


@pytest.fixture
def saved(tmp_path):
    """A folder as timm saves a network, and the network."""
    net = theirs("test_vit", 7, img_size=64)
    timm.models.save_for_hf(net, tmp_path / "net", model_args={"img_size": 64}, safe_serialization=True)
    return tmp_path / "net", net


def test_a_folder_of_timm_is_a_network_with_its_weights(saved):
    folder, net = saved
    ours = create_model(f"timm:local-dir:{folder}", 7, 3, pretrained=True)
    same_logits(ours, net, 3, 64, 64)
    assert ours.built_as.arch == "timm:test_vit" and ours.built_as.options["img_size"] == (64, 64)
    assert create_model("timm:test_vit", 7, 3, pretrained=f"local-dir:{folder}", img_size=64).fixed_size == (64, 64)
    untrained = create_model(f"timm:local-dir:{folder}", 7, 3)
    assert untrained.fixed_size == (64, 64) and not torch.equal(untrained.body.norm.weight + 1, net.norm.weight)


def test_a_pinned_name_is_that_of_the_architecture(saved):
    arch, options = pin_timm_source(f"timm:local-dir:{saved[0]}", {"pretrained": True, "img_size": None})
    assert arch == "timm:test_vit" and options["pretrained"] == f"local-dir:{saved[0]}"
    assert options["img_size"] == (64, 64)
    assert options["mean"] == options["std"] == (0.5, 0.5, 0.5)
    assert pin_timm_source("timm:test_vit", {"pretrained": True}) == ("timm:test_vit", {"pretrained": True})


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"architecture": "../x"}, "timm has no network named"),
        ({"arch": "test_vit"}, "names no architecture"),
        ("{", "cannot be read"),
        ({"architecture": "test_vit", "model_args": {"checkpoint_path": "/etc/passwd"}}, "cannot be set"),
        ({"architecture": "test_vit", "model_args": {"img_size": {"a": 1}}}, "expected numbers or text"),
    ],
)
def test_a_config_is_not_trusted(config, expected, tmp_path):
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises((CheckpointError, OptionError, UnknownNameError), match=expected):
        create_model(f"timm:local-dir:{tmp_path}", 3)


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="has no config.json"):
        create_model(f"timm:local-dir:{tmp_path}", 3)
