"""Batch norms folded into the layers before them."""

import pytest
import torch
from torch import nn

from fatai.models import MODELS, create_model
from fatai.models.batch_norm import fold_batch_norm
from fatai.models.summary import PUBLISHED_CHANNELS

NARROW = {"width": 0.25}


def trained(model):
    """Give batch norms statistics and weights other than 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                tensor.data.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def n_norms(model):
    return sum(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in model.modules())


@pytest.mark.parametrize("name", ["m3", "cnn2d_multilevel", "cnn1d_multilevel", "skip_attention", "cnn10", "mn04"])
def test_outputs_are_equal_with_fewer_batch_norms(name):
    assert name in MODELS.names()
    options = NARROW if name == "m3" else {}
    model = trained(create_model(name, 5, PUBLISHED_CHANNELS.get(name, 1), **options))
    spec = torch.randn(3, PUBLISHED_CHANNELS.get(name, 1), 128 if "1d" in name or name == "mn04" else 64, 96)
    before, weights = n_norms(model), {k: v.clone() for k, v in model.state_dict().items()}
    folded = fold_batch_norm(model, spec[:1])
    assert n_norms(folded) < before == n_norms(model)
    with torch.inference_mode():
        torch.testing.assert_close(folded(spec), model(spec), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items()), "the network stays as it is"


class TwoUses(nn.Module):
    """A convolution whose output passes a batch norm and also goes around it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

    def forward(self, spec):
        maps = self.conv(spec)
        return (self.norm(maps) + maps).mean((2, 3))


class CalledTwice(TwoUses):
    """A convolution that is called twice, once with a batch norm."""

    def forward(self, spec):
        return self.norm(self.conv(spec)).mean((2, 3)) + self.conv(spec).mean((2, 3))


class NormFirst(TwoUses):
    """A batch norm that no layer stands before."""

    def forward(self, spec):
        return self.conv(self.norm(spec.expand(-1, 2, -1, -1))[:, :1]).mean((2, 3))


@pytest.mark.parametrize("kind", [TwoUses, CalledTwice, NormFirst])
def test_a_network_that_cannot_be_folded_is_returned_as_it_is(kind):
    model = trained(kind())
    assert fold_batch_norm(model, torch.randn(1, 1, 8, 8)) is model


def test_only_folded_weights_are_copied():
    model = trained(create_model("m3", 5, width=0.25))
    folded = fold_batch_norm(model, torch.randn(1, 1, 64, 96))
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in folded.parameters()}
    assert model.head[-1].weight.data_ptr() in shared and model.blocks[0].conv1.weight.data_ptr() not in shared
