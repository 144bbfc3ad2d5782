"""The outputs of ONNX graphs are those of front end and network, without torch."""

import copy
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fatai.audio.front_ends import front_end
from fatai.cli import app
from fatai.data.config import ClipConfig
from fatai.data.spectrograms import ClipSpectrograms
from fatai.errors import CheckpointError, MissingDependencyError, OptionError
from fatai.experiment.run_folder import trained_model
from fatai.export import onnx as onnx_export
from fatai.export.onnx import export_onnx, write_graph
from fatai.export.pretrained import Pretrained, load_pretrained
from fatai.models import create_model

TAGS = ("Bark", "Meow, loud", "Rain")

needs_onnx = pytest.mark.usefixtures("onnx_packages")


@pytest.fixture
def onnx_packages():
    """The optional extra `onnx`."""
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is of the optional extra: pip install 'fatai[onnx]'")


def pretrained(arch, name, crop_s=0.7, network=None, **options):
    settings = ClipConfig(front_end(name), crop_s=crop_s)
    torch.manual_seed(4)
    model = network or create_model(arch, len(TAGS), settings.channels_module().n_channels, **options).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # statistics as after training: not 0 and 1
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    return Pretrained(model, TAGS, settings, np.full(3, 1 / 3), None, {}, {})


def sounds(samples):
    """Noise, a tone that ends, a faint click, silence: (4, samples)."""
    torch.manual_seed(7)
    t = torch.arange(samples) / 44100
    click = torch.zeros(samples)
    click[samples // 2] = 1e-3
    return torch.stack([0.2 * torch.randn(samples), 0.5 * (2765 * t).sin() * (t < 0.2), click, torch.zeros(samples)])


def spread_logits(model, waves):
    """Scale the last layer so that the logits for `waves` have mean 0 and standard deviation 1 for every tag."""
    with torch.inference_mode():
        logits = torch.from_numpy(torch_output(model, waves)).double().logit()
    last = [module for module in model.model.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.no_grad():
        last.weight /= logits.std(0)[:, None].float()
        last.bias.copy_((last.bias - logits.mean(0)) / logits.std(0))
    return model


def run_onnx(path, waves):
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(
        None, {"wave": waves.numpy()}
    )[0]


def torch_output(model, waves):
    """Probabilities of the front end that training uses, and the network."""
    with torch.inference_mode():
        spec = model.settings.channels_module()(model.settings.front_end.build()(waves))
        return model.model(spec).sigmoid().numpy()


@needs_onnx
@pytest.mark.parametrize(
    ("arch", "name", "options"),
    [
        ("m3", "ninth", {"width": 0.125}),
        ("m1", "efficientat", {"width": 0.125}),  # Kaldi's filters and preemphasis
        pytest.param("cnn14", "panns", {"width": 0.25}, marks=pytest.mark.slow),
        pytest.param("cnn2d_multilevel", "third_2d", {"width": 0.2}, marks=pytest.mark.slow),
        pytest.param("m3", "ninth", {}, marks=pytest.mark.slow),
        pytest.param("cnn14", "panns", {}, marks=pytest.mark.slow),
        pytest.param("cnn2d_multilevel", "third_2d", {}, marks=pytest.mark.slow),
        pytest.param("m1", "kaggle_fat", {"width": 0.125}, marks=pytest.mark.slow),
        pytest.param("m1", "first", {"width": 0.125}, marks=pytest.mark.slow),
        pytest.param("m1", "baseline", {"width": 0.125}, marks=pytest.mark.slow),
        pytest.param(
            "cnn1d_multilevel", "third_1d", {"width": 0.1, "n_mels": 129, "aggregation": "gru"}, marks=pytest.mark.slow
        ),
    ],
)
def test_the_output_of_a_graph_is_that_of_front_end_and_network(tmp_path, arch, name, options):
    model = pretrained(arch, name, **options)
    waves = sounds(model.settings.crop_samples)
    difference = export_onnx(spread_logits(model, waves), tmp_path / "model.onnx")
    expected = torch_output(model, waves)
    assert np.ptp(expected, axis=0).min() > 0.2, "equal outputs for all sounds would prove nothing"
    output = run_onnx(tmp_path / "model.onnx", waves)
    assert output.dtype == np.float32 and output.shape == (4, 3) and difference <= 1e-4
    np.testing.assert_allclose(output, expected, atol=1e-4)
    for i in (0, 3):  # any number of waves
        np.testing.assert_allclose(run_onnx(tmp_path / "model.onnx", waves[i:i + 1]), expected[i:i + 1], atol=1e-4)


@needs_onnx
def test_faint_bins_beside_a_loud_tone_are_exact_in_a_graph(tmp_path):
    settings = pretrained("cnn1d_multilevel", "third_1d", width=0.1, n_mels=129).settings
    module, waves = ClipSpectrograms(settings).module, sounds(settings.crop_samples)
    write_graph(module, waves, tmp_path / "front_end.onnx", name="the front end", output="spec", tolerance=1e-3)
    np.testing.assert_allclose(run_onnx(tmp_path / "front_end.onnx", waves), module(waves), atol=1e-3)


@needs_onnx
@pytest.mark.slow
def test_the_output_of_a_graph_of_a_deep_network_is_that_of_the_network(tmp_path):
    model = pretrained("mn04", "efficientat", width=0.5)
    waves = sounds(model.settings.crop_samples)
    spec = model.settings.front_end.build()(waves)[:, None]
    for module in model.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # random statistics overflow in so deep a network
            module.momentum = 1.0
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.kaiming_normal_(module.weight)
    model.model.train()(spec)
    model.model.eval()
    difference = export_onnx(spread_logits(model, waves), tmp_path / "model.onnx")
    expected = torch_output(model, waves)
    assert difference <= 1e-4 and np.ptp(expected, axis=0).min() > 0.2
    np.testing.assert_allclose(run_onnx(tmp_path / "model.onnx", waves), expected, atol=1e-4)


@needs_onnx
@pytest.mark.parametrize(
    ("arch", "name", "options"),
    [
        ("timm:test_vit", "fastai_kernel", {"spec_size": (128, 44), "imagenet_input": True}),
        pytest.param("timm:mobilenetv3_small_050", "ninth", {}, marks=pytest.mark.slow),
    ],
)
def test_networks_of_timm_become_graphs(tmp_path, arch, name, options):
    model = pretrained(arch, name, **options)
    waves = sounds(model.settings.crop_samples)
    export_onnx(spread_logits(model, waves), tmp_path / "model.onnx")
    # The features of an untrained network hardly differ between sounds: spreading them enlarges rounding as well.
    np.testing.assert_allclose(run_onnx(tmp_path / "model.onnx", waves), torch_output(model, waves), atol=5e-3)


WITHOUT_TORCH = """
import json, sys
sys.modules["torch"] = sys.modules["fatai"] = None  # an import of either fails
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
notes = session.get_modelmeta().custom_metadata_map
wave = np.sin(np.arange(int(notes["samples"])) / 20)[None].astype(np.float32)
probs = session.run(["probs"], {"wave": wave})[0][0].tolist()
print(json.dumps([notes["sample_rate"], json.loads(notes["tags"]), probs]))
"""


@pytest.fixture(scope="module")
def run_graph(tiny_run, tmp_path_factory):
    """A graph that the command has written for a run."""
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    ended = CliRunner().invoke(app, ["export", str(tiny_run.out), str(path)])
    assert ended.exit_code == 0, ended.output
    assert "model.onnx: mean of the folds 0, 1: wave (batch, 22050) at 44100 Hz to probs" in ended.stdout
    return path


@needs_onnx
def test_a_graph_of_a_run_needs_no_torch(run_graph, tiny_run):
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(run_graph)], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    rate, tags, probs = json.loads(ended.stdout)
    models, sound = [trained_model(tiny_run.out, k) for k in (0, 1)], torch.arange(22050, dtype=torch.float64) / 20
    expected = np.mean([torch_output(model, sound.sin().float()[None])[0] for model in models], 0)
    assert rate == "44100" and tuple(tags) == models[0].tags
    np.testing.assert_allclose(probs, expected, atol=1e-4)


@needs_onnx
def test_a_run_becomes_the_average_of_its_folds(run_graph, tiny_run):
    waves = sounds(22050)
    folds = np.stack([torch_output(trained_model(tiny_run.out, k), waves) for k in (0, 1)])
    assert abs(folds[0] - folds[1]).max() > 1e-3, "equal folds would prove nothing"
    np.testing.assert_allclose(run_onnx(run_graph, waves), folds.mean(0), atol=1e-4)


def test_the_command_exports_all_folds_or_the_one_that_is_chosen(tiny_run, tmp_path, main_with, monkeypatch):
    exported = []

    def export(models, *args, **options):
        exported.append(([model.digest() for model in models], options))
        return 0.0

    monkeypatch.setattr(onnx_export, "export_onnx", export)
    for arguments, source in (
        ((), "mean of the folds 0, 1: "), (("--folds", "all"), "mean of the folds 0, 1: "),
        (("--fold", 1), "fold 1 alone of 2 folds, "),
    ):
        ended = main_with("export", tiny_run.out, tmp_path / "model.onnx", *arguments)
        assert ended.returncode == 0 and f"model.onnx: {source}wave (batch, 22050)" in ended.stdout, ended.stdout
    assert exported[0] == exported[1], "the same graph"
    assert exported[2][0] == [trained_model(tiny_run.out, 1).digest()] == exported[0][0][1:]


def test_folds_are_averaged_as_the_recipe_says(tiny_run, tmp_path, main_with, monkeypatch):
    averages = []
    monkeypatch.setattr(
        onnx_export, "export_onnx", lambda models, path, *, average, weights, tolerance: averages.append(average) or 0.0
    )
    run = tmp_path / "run"
    shutil.copytree(tiny_run.out, run)
    recipe = (run / "recipe.toml").read_text()
    assert recipe.count('fold_average = "mean"') == 1
    (run / "recipe.toml").write_text(recipe.replace('fold_average = "mean"', 'fold_average = "gmean"'))
    assert "gmean of the folds 0, 1" in main_with("export", run, tmp_path / "model.onnx").stdout
    assert averages == ["gmean"]


class Small(torch.nn.Module):
    """A network of few operations, on the mean of each third of the mel bands."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(3, len(TAGS))

    def forward(self, spec):
        return self.head(spec[:, 0, :63].unflatten(1, (3, 21)).mean((2, 3)))


@needs_onnx
def test_networks_become_their_geometric_mean(tmp_path):
    first = pretrained("", "ninth", network=Small())
    waves = sounds(first.settings.crop_samples)
    second = replace(first, model=copy.deepcopy(spread_logits(first, waves).model))
    with torch.no_grad():
        second.model.head.bias += 2
    each = np.stack([torch_output(model, waves) for model in (first, second)])
    export_onnx([first, second], tmp_path / "model.onnx", average="gmean")
    assert abs(np.sqrt(each.prod(0)) - each.mean(0)).max() > 1e-3
    np.testing.assert_allclose(run_onnx(tmp_path / "model.onnx", waves), np.sqrt(each.prod(0)), atol=1e-4)


@needs_onnx
def test_models_that_do_not_belong_together_and_unknown_averages_are_refused(tmp_path):
    model = pretrained("m1", "ninth", width=0.125)
    with pytest.raises(OptionError, match="model 1 has other tags or clip settings than model 0"):
        export_onnx([model, replace(model, tags=("a", "b", "c"))], tmp_path / "model.onnx")
    with pytest.raises(OptionError, match="average is 'means'; did you mean mean"):
        export_onnx([model, model], tmp_path / "model.onnx", average="means")
    with pytest.raises(OptionError, match="there is no model to export"):
        export_onnx([], tmp_path / "model.onnx")


@needs_onnx
def test_a_different_output_is_refused_and_nothing_written(tmp_path, monkeypatch):
    class Wrong:
        def __init__(self, *_, **__):
            pass

        def run(self, *_):
            return [np.full((2, 3), np.nan)]

    monkeypatch.setattr(onnx_export, "import_runtime", lambda: type("Runtime", (), {"InferenceSession": Wrong}))
    with pytest.raises(CheckpointError, match="the outputs of onnxruntime differ from torch's by nan"):
        write_graph(torch.nn.Linear(8, 3), torch.randn(2, 8), tmp_path / "model.onnx", name="a layer")
    assert not list(tmp_path.iterdir())


@needs_onnx
def test_a_network_with_an_operation_that_onnx_lacks_is_refused(tmp_path):
    class Odd(torch.nn.Module):
        def forward(self, spec):
            return torch.linalg.eigvals(spec[:, 0, :3, :3]).real

    with pytest.raises(CheckpointError, match="the network Odd cannot be written as ONNX"):
        export_onnx(pretrained("", "ninth", network=Odd()), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"onnxruntime is missing\): pip install 'fatai\[onnx\]'"):
        export_onnx(pretrained("m1", "ninth", width=0.125), tmp_path / "model.onnx")


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(OptionError, match="does not end in .onnx"):
        export_onnx(pretrained("m1", "ninth", width=0.125), tmp_path / "model.pb")


def test_a_fold_becomes_a_model_folder(tiny_run, tmp_path, main_with, sample):
    ended = main_with("export", tiny_run.out, tmp_path / "model", "--fold", 1)
    assert ended.returncode == 0 and "load it with load_pretrained" in ended.stdout
    assert "model: fold 1 alone of 2 folds, 10 tags" in ended.stdout
    loaded, fold = load_pretrained(tmp_path / "model"), trained_model(tiny_run.out, 1)
    assert loaded.training["fold"] == 1 and loaded.training["recipe"]["model"]["arch"] == "m1"
    items = sorted((sample / "test").iterdir())[:2]
    np.testing.assert_allclose(
        loaded.tta(items, n=2).probs, fold.tta(items, n=2).probs, atol=2e-2
    )  # folds may be predicted in bfloat16
    assert trained_model(tmp_path / "model").tags == fold.tags


def test_a_model_folder_without_fold_gets_the_first_one_and_says_so(tiny_run, tmp_path, main_with):
    run = tmp_path / "run"
    shutil.copytree(tiny_run.out, run)
    ended = main_with("export", run, tmp_path / "model")
    assert ended.returncode == 0 and "fold 0 alone of 2 folds" in ended.stdout
    shutil.rmtree(run / "fold_0")
    ended = main_with("export", run, tmp_path / "other")
    assert ended.returncode == 0 and "alone of" not in ended.stdout, "there is no choice"
    assert load_pretrained(tmp_path / "model").training["fold"] == 0
    assert load_pretrained(tmp_path / "other").training["fold"] == 1


@pytest.mark.parametrize(("arguments", "message"), [
    (("model", "--folds", "all"), "holds one fold; give a name that ends in .onnx, or --fold K for one of 0, 1"),
    (("model.onnx", "--folds", "1"), "it is '1'; expected all, or --fold K for a single fold"),
    (("model.onnx", "--folds", "all", "--fold", "1"), "all is given together with --fold 1; give one of the two"),
])
def test_folds_that_cannot_be_exported_are_refused_with_the_remedy(arguments, message, tiny_run, tmp_path, main_with):
    name, *options = arguments
    ended = main_with("export", tiny_run.out, tmp_path / name, *options)
    assert ended.returncode == 2 and message in " ".join(ended.stderr.split()) and not list(tmp_path.iterdir())


def test_a_missing_fold_is_named(tiny_run):
    with pytest.raises(OptionError, match="has no fold 7; expected one of 0, 1"):
        trained_model(tiny_run.out, 7)
