"""ResNets with fastai's head against fastai's own."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from fatai.errors import OptionError
from fatai.models import MODELS, count_parameters, create_model
from fatai.models.backbones import RESNETS, XRESNETS, resnet_body


def with_weights_of(model, other):
    """Load the state of `other`, whose entries are in the same order with other names, into `model`."""
    state, wanted = other.state_dict(), model.state_dict()
    assert [v.shape for v in state.values()] == [v.shape for v in wanted.values()]
    model.load_state_dict(dict(zip(wanted, state.values(), strict=True)))
    return model


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("arch", ["resnet18", "xresnet18"])
def test_logits_are_those_of_fastai_with_the_same_weights(arch, in_channels):
    from fastai.vision.learner import create_vision_model
    from fastai.vision.models import resnet18, xresnet

    fastai_arch = resnet18 if arch == "resnet18" else xresnet.xresnet18
    theirs = create_vision_model(fastai_arch, 7, pretrained=False, n_in=in_channels).eval()
    ours = with_weights_of(create_model(arch, 7, in_channels), theirs).eval()
    spec = torch.randn(2, in_channels, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(spec), theirs(spec))


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "xresnet18"])
def test_layer_groups_are_those_of_fastai(arch):
    from fastai.vision.learner import create_vision_model, model_meta
    from fastai.vision.models import resnet18, resnet50, xresnet

    fastai_arch = {"resnet18": resnet18, "resnet50": resnet50, "xresnet18": xresnet.xresnet18}[arch]
    with torch.device("meta"):
        theirs, ours = create_vision_model(fastai_arch, 80, pretrained=False), create_model(arch, 80, 3)
    split = model_meta[fastai_arch]["split"](theirs)
    assert [[p.shape for p in group] for group in ours.layer_groups()] == [[p.shape for p in group] for group in split]


def test_head_is_as_published():
    model = create_model("resnet18", 80, 3)
    kinds = [(type(m), getattr(m, "p", None)) for m in model.head.modules() if not list(m.children())]
    assert kinds == [
        (nn.BatchNorm1d, None), (nn.Dropout, 0.25), (nn.Linear, None), (nn.ReLU, None),
        (nn.BatchNorm1d, None), (nn.Dropout, 0.5), (nn.Linear, None),
    ]
    maps = torch.randn(2, 512, 3, 4)
    assert torch.allclose(model.pool(maps), torch.cat([maps.amax((2, 3)), maps.mean((2, 3))], 1), atol=1e-6)


@pytest.mark.parametrize("name", [*RESNETS, *XRESNETS])
def test_width_changes_stages_only(name):
    with torch.device("meta"):
        wide, narrow = create_model(name, 4), create_model(name, 4, width=0.25)
    assert wide.body[0].state_dict().keys() == narrow.body[0].state_dict().keys()
    assert count_parameters(wide.body[0]) == count_parameters(narrow.body[0])
    if not name.endswith(("deep", "deeper")):       # the stages that fastai's deep ones append keep their 256 channels
        assert wide.head[0].num_features == 4 * narrow.head[0].num_features
    assert count_parameters(narrow) < count_parameters(wide) / 5
    assert name in MODELS.describe(name)


@pytest.mark.parametrize("name", ["resnet18", "xresnet18"])
def test_width_is_checked(name):
    with pytest.raises(OptionError, match="width=0"):
        create_model(name, 4, width=0)


def test_body_returns_the_channels_of_its_maps():
    for arch, expansion in (("resnet18", 1), ("resnet50", 4)):
        body, n_features = resnet_body(arch, 2, width=0.125)
        assert n_features == 64 * expansion
        with torch.no_grad():
            assert body.eval()(torch.randn(1, 2, 64, 64)).shape == (1, n_features, 2, 2)


def test_importing_the_models_imports_neither_fastai_nor_timm():
    code = "import sys, fatai.models; print([m for m in ('fastai', 'timm', 'torchvision') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
