"""The generated pages of the site: each module has one place in the reference, and the pictures are drawn."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def hook(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_module_is_on_one_page_of_the_reference_and_each_page_has_some():
    generate = hook("generate")
    found = generate.reference_modules()
    listed = [module for modules in found.values() for module in modules]
    files = [f for package in generate._REFERENCE for f in (ROOT / "fatai" / package).rglob("*.py")]
    paths = [".".join(f.relative_to(ROOT / "fatai").with_suffix("").parts) for f in files if f.stem[0] != "_"]
    assert sorted(listed) == sorted(paths) and all(found.values())


def test_no_package_is_missing_in_the_reference():
    generate = hook("generate")
    elsewhere = {"cli", "diagnostics", "io", "recipes", "web"}
    packages = {p.name for p in (ROOT / "fatai").iterdir() if (p / "__init__.py").is_file()}
    assert packages - elsewhere == set(generate._REFERENCE)


def test_headings_of_the_reference_are_what_a_module_is_for():
    page = hook("generate").reference_page("scores")
    assert page.startswith("# Score, calibrate and compare\n")
    assert "## Ranking of the tags of a clip\n\n`fatai.metrics.ranking`\n\n::: fatai.metrics.ranking\n" in page


@pytest.mark.parametrize("name", ["crops", "front_ends", "resolutions"])
def test_pictures_have_a_spectrogram_for_each_title(name):
    from fatai.registry import FRONT_ENDS

    axes = [axis for axis in hook("figures").FIGURES[name]().axes if axis.axison]
    titles = [axis.get_title(loc).split("\n")[0] for axis in axes for loc in ("center", "left") if axis.get_title(loc)]
    assert len(titles) == len(axes) and all(axis.images or axis.collections for axis in axes)
    assert name != "front_ends" or titles == FRONT_ENDS.names()
    assert name == "front_ends" or len(titles) in (4, 6)
