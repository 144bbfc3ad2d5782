"""Names to builders."""

import pytest

from fatai.errors import FataiError, OptionError, UnknownNameError
from fatai.registry import Registry, did_you_mean


@pytest.fixture
def shapes():
    registry = Registry("shape")

    @registry.register("square", source="Euclid, Elements I.46")
    def square(side=1.0):
        """A square."""
        return side * side

    return registry


def test_build_calls_the_builder_with_its_options(shapes):
    assert shapes.build("square", side=3.0) == 9.0


def test_names_source_and_description(shapes):
    assert (shapes.names(), shapes.source("square"), shapes.describe("square")) == (
        ["square"],
        "Euclid, Elements I.46",
        "A square.",
    )


def test_an_unknown_name_suggests_the_nearest(shapes):
    with pytest.raises(UnknownNameError, match="no shape named 'sqare'; did you mean square\\?") as caught:
        shapes.build("sqare")
    assert isinstance(caught.value, KeyError) and isinstance(caught.value, FataiError)
    assert str(caught.value).startswith("no shape"), "a KeyError would print quotes around the sentence"


def test_an_unknown_option_is_named(shapes):
    with pytest.raises(OptionError, match="'square' has no option 'sides'; did you mean side"):
        shapes.build("square", sides=2)


def test_a_taken_name_is_refused(shapes):
    with pytest.raises(OptionError, match="registered already"):
        shapes.register("square", source="x")(lambda: 0)


def test_did_you_mean_lists_all_when_nothing_is_near():
    assert did_you_mean("zebra", ["m1", "m2"]) == "known: m1, m2"
