"""The table of all models."""

import pytest
import torch

from fatai.models import MODELS, create_model
from fatai.models.summary import model_table


@pytest.fixture(scope="module")
def table():
    return {row.name: row for row in model_table()}


def test_every_model_is_listed_in_order(table):
    assert list(table) == MODELS.names()


@pytest.mark.parametrize(
    ("name", "in_channels", "parameters"),
    [
        ("m3", 1, 26_129_489),
        ("resnet18", 3, 11_744_832),
        ("cnn2d_multilevel", 2, 9_248_771),
        ("aux_skip_attention", 3, 17_326_950),
        ("cnn14", 1, 79_837_712),
    ],
)
def test_parameters_are_those_published_for_eighty_tags(table, name, in_channels, parameters):
    assert (table[name].in_channels, table[name].parameters) == (in_channels, parameters)


def test_rows_have_a_description_and_a_source(table):
    assert all(row.description.endswith(".") and row.source for row in table.values())


def test_smallest_inputs(table):
    smallest = {name: (row.min_mels, row.min_frames, row.n_mels) for name, row in table.items()}
    assert smallest["m3"] == (16, 16, None)
    assert smallest["cnn2d_multilevel"] == (32, 32, None) and smallest["cnn1d_multilevel"] == (128, 32, 128)
    assert smallest["skip_attention"] == (16, 16, None) and smallest["cnn14"] == (64, 32, 64)


def test_another_number_of_tags_and_channels_is_counted():
    rows = {row.name: row for row in model_table(n_tags=10, in_channels=2)}
    # Both convolutions of the first block see the input.
    another_channel, fewer_tags = 2 * 64 * 9, (80 - 10) * (128 + 1)
    assert rows["m1"].parameters == 6_380_753 + another_channel - fewer_tags and rows["m1"].in_channels == 2


def test_the_smallest_input_is_not_padded_and_below_it_is(table):
    for name in ("m1", "resnet18_cbam", "cnn2d_multilevel"):
        row, model = table[name], create_model(name, 4, width=0.125)
        spec = torch.zeros(1, 1, row.min_mels, row.min_frames)
        model.eval()
        assert model.prepare_input(spec) is spec
        assert model.prepare_input(spec[:, :, 1:, 1:]).shape == spec.shape
