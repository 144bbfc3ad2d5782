"""In low precision all maps of a network stay channels_last, forwards and backwards: none is silently copied."""

import pytest
import torch

from fatai.models import create_model

LAST = torch.channels_last


def wrong_layouts(name, channels=2, **options):
    """Return the modules whose maps, or gradients of maps, are in another layout."""
    model = create_model(name, 4, channels, **options).to(memory_format=LAST)
    wrong, seen = [], []

    def check(label, x):
        if x.ndim == 4 and min(x.shape[1:]) > 1:
            seen.append(label)
            if not x.is_contiguous(memory_format=LAST):
                wrong.append(label)

    def watch(label):
        def hook(module, inputs, out):
            check(f"{label}: input", inputs[0])
            check(f"{label}: output", out)
            if out.requires_grad:
                out.register_hook(lambda grad: check(f"{label}: gradient", grad))

        return hook

    for label, module in model.named_modules():
        if label and not list(module.children()):
            module.register_forward_hook(watch(label))
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(4, channels, 64, 96).to(memory_format=LAST)).float().square().sum().backward()
    assert len(seen) > 20
    return wrong


@pytest.mark.parametrize(
    ("name", "options"),
    [("cnn2d_multilevel", {"n_blocks": 4, "base_depth": 16}), ("m3", {"width": 0.125}), ("m1", {"width": 0.125})],
)
def test_every_map_and_gradient_is_channels_last(name, options):
    assert wrong_layouts(name, **options) == []
