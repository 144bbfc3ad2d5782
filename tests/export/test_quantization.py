"""Graphs of 8-bit integers: which layers are quantized, what stays in float32, and how near the outputs are."""

import json

import numpy as np
import pytest
import torch
from helpers.once import once

from fatai.audio.front_ends import front_end
from fatai.data.config import ClipConfig
from fatai.errors import CheckpointError
from fatai.export import quantization
from fatai.export.pretrained import Pretrained
from fatai.export.quantization import QuantizedGraph, quantize_models

onnx = pytest.importorskip("onnx", reason="onnx is of the optional extra: pip install 'fatai[onnx]'")
pytest.importorskip("onnxscript", reason="onnxscript is of the optional extra: pip install 'fatai[onnx]'")

TAGS = ("Bark", "Meow, loud", "Rain")


class Network(torch.nn.Module):
    """Two convolutions and two linear layers, of which the last one has the tags."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(1, 8, 3), torch.nn.Conv2d(8, 16, 3)
        self.hidden, self.last = torch.nn.Linear(16, 16), torch.nn.Linear(16, len(TAGS))
        with torch.no_grad():
            self.last.weight *= scale

    def forward(self, spec):
        features = self.second(self.first(spec).relu()).relu().mean((2, 3))
        return self.last(self.hidden(features).relu())


def pretrained(network):
    settings = ClipConfig(front_end("ninth"), crop_s=0.3)
    return Pretrained(network.eval(), TAGS, settings, np.full(3, 1 / 3), None, {}, {})


def noise(clips, settings):
    torch.manual_seed(3)
    return torch.randn(clips, settings.crop_samples) * torch.logspace(-3, 0, clips)[:, None]


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """Two networks in one graph, and the waves whose activations were measured."""
    torch.manual_seed(0)
    models = [pretrained(Network()), pretrained(Network())]
    waves = noise(12, models[0].settings)
    return models, waves, quantize_models(models, waves, tmp_path_factory.mktemp("int8"))


def weights_of(path):
    return {tensor.name: tensor.data_type for tensor in onnx.load(str(path)).graph.initializer}


def test_layers_before_the_last_one_have_weights_of_8_bits_and_the_front_end_stays_as_it_is(quantized):
    _, _, graph = quantized
    assert (graph.n_models, graph.layers, graph.quantized, graph.first) == (2, 8, 6, 0)
    types = weights_of(graph.path)
    for network in range(2):
        for layer in ("first", "second", "hidden"):
            assert types[f"networks.models.{network}.{layer}.weight_quantized"] == onnx.TensorProto.INT8
        assert types[f"networks.models.{network}.last.weight"] == onnx.TensorProto.FLOAT
    kept = {name for name in weights_of(graph.float_path) if name.startswith("front_end")}
    assert kept <= set(types), "nothing of the front end is quantized"


def test_the_graph_of_8_bits_is_near_to_the_one_in_float32_and_its_weights_have_a_scale_for_each_channel(quantized):
    models, waves, graph = quantized
    for k, model in enumerate(models):
        spec = model.settings.channels_module()(model.settings.front_end.build()(waves))
        with torch.inference_mode():
            expected = model.model(spec).sigmoid().numpy()
        in_float = graph.probs([wave[None] for wave in waves], k, quantized=False)
        in_int8 = graph.probs([wave[None] for wave in waves], k, quantized=True)
        np.testing.assert_allclose(in_float, expected, atol=1e-4)
        difference = np.abs(in_int8 - in_float).max()
        assert 0 < difference < 0.05, "equal outputs would prove that nothing was quantized"
    scale = next(t for t in onnx.load(str(graph.path)).graph.initializer
                 if t.name == "networks.models.0.second.weight_scale")
    assert list(scale.dims) == [16]
    assert graph.rms < 0.03 and graph.difference <= 1e-4


def test_clips_of_several_crops_get_the_mean_of_their_crops(quantized):
    _, waves, graph = quantized
    each = graph.probs([wave[None] for wave in waves[:3]], 0, quantized=True)
    np.testing.assert_allclose(graph.probs([waves[:3]], 0, quantized=True)[0], each.mean(0), atol=1e-6)


def test_the_saved_file_has_one_output_and_the_notes(quantized, tmp_path):
    import onnxruntime

    _, waves, graph = quantized
    graph.save(tmp_path / "model.onnx", {"precision": "int8"})
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    notes = session.get_modelmeta().custom_metadata_map
    assert [output.name for output in session.get_outputs()] == ["probs"]
    assert notes["precision"] == "int8" and tuple(json.loads(notes["tags"])) == TAGS and notes["models"] == "2"
    probs = session.run(None, {"wave": waves.numpy()})[0]
    each = [graph.probs([wave[None] for wave in waves], k, quantized=True) for k in range(2)]
    np.testing.assert_allclose(probs, np.mean(each, 0), atol=1e-6)


def test_more_first_layers_stay_in_float32_where_the_outputs_differ_more(tmp_path, monkeypatch):
    # The graph in float32 is the same for both limits.
    monkeypatch.setattr(quantization, "write_graph", once(quantization.write_graph))
    torch.manual_seed(0)
    model = pretrained(Network(scale=100.0))
    waves = noise(12, model.settings)
    graphs = [quantize_models([model], waves, tmp_path, max_rms=limit) for limit in (1.0, 0.0)]
    assert [graph.first for graph in graphs][0] == 0 and graphs[1].first > 0
    assert graphs[1].rms <= graphs[0].rms and graphs[1].quantized == 3 - graphs[1].first
    assert isinstance(graphs[1], QuantizedGraph)


def test_a_network_of_one_layer_is_refused(tmp_path):
    class Single(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.last = torch.nn.Linear(64, len(TAGS))

        def forward(self, spec):
            return self.last(spec[:, 0].mean(2))

    with pytest.raises(CheckpointError, match="has 1 layers with weights"):
        quantize_models([pretrained(Single())], noise(4, pretrained(Single()).settings), tmp_path)
