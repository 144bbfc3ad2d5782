"""No page has a serious or critical fault of accessibility by axe-core, on desktop and phone, light and dark."""

import json
import shutil

import pytest
from helpers.accessibility import faults
from helpers.browser import open_page, serving
from helpers.tone_index import write_tones

pytestmark = pytest.mark.slow

APPEARANCES = [
    {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    for width in (1280, 390) for scheme in ("light", "dark")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def index(tiny_run, folder):
    from fatai.experiment.encoder import load_encoder
    from fatai.inference.search.index import index_sounds

    encoder, source = load_encoder(tiny_run.out)
    index_sounds(folder / "index", encoder, write_tones(folder / "sounds", 8), source=source)
    return folder / "index"


def check(chromium, address, act=lambda page: None):
    """Open a page in each appearance, act on it, and check it."""
    for options in APPEARANCES:
        with open_page(chromium, address, **options) as page:
            act(page)
            assert faults(page) == [], f"{address} with {options}"
            assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


def choose_other_tags(page):
    page.wait_for_selector("audio")
    page.keyboard.press("r")
    page.wait_for_selector("#choice")


def test_a_fault_is_found(chromium):
    with open_page(chromium, "data:text/html,<html lang=en><title>x</title><main><img src='data:,'></main>") as page:
        assert [fault.split(":")[0] for fault in faults(page)] == ["critical image-alt"]


def test_the_report(chromium, tiny_run, sample, folder):
    from fatai.report.html import run_report

    def open_all(page):
        page.evaluate("() => document.querySelectorAll('details').forEach(e => { e.open = true; })")

    check(chromium, run_report(tiny_run.out, sample, folder / "report.html").as_uri(), open_all)


@pytest.mark.parametrize("finished", [True, False])
def test_the_page_of_a_training(chromium, tiny_run, tmp_path, finished):
    from fatai.report.history import run_history

    run = tmp_path / "run"
    shutil.copytree(tiny_run.out, run)
    if not finished:
        manifest = json.loads((run / "manifest.json").read_text())
        (run / "manifest.json").write_text(json.dumps({**manifest, "finished": None}))
    check(chromium, run_history(run).as_uri())


def test_the_page_of_an_ensemble_that_trains(chromium, tiny_run, tmp_path):
    from fatai.report.history import run_history

    shutil.copytree(tiny_run.out, tmp_path / "ensemble" / "first")
    members = "".join(f'[[members]]\nname = "{name}"\nrecipe = "quick"\n' for name in ("first", "second"))
    (tmp_path / "ensemble" / "ensemble.toml").write_text(f'name = "both"\nhow = "mean"\n{members}', encoding="utf-8")
    run_history(tmp_path / "ensemble" / "first")
    check(chromium, run_history(tmp_path / "ensemble").as_uri())


def test_the_review(chromium, issue_run):
    from fatai.report.label_review import write_review

    run, _ = issue_run
    write_review(run, run / "review.html")
    check(chromium, (run / "review.html").as_uri(), choose_other_tags)


def test_the_label_loop_and_the_windows_that_are_found(chromium, index, main_with, tmp_path):
    example = index.parent / "sounds" / "low0.wav"
    options = ("--tag", "low", "--example", example, "--labels", tmp_path / "labels.csv", "-n", "4")
    main_with("review", index, *options, "--out", tmp_path / "review.html")
    check(chromium, (tmp_path / "review.html").as_uri(), choose_other_tags)
    main_with("find", index, example, "-n", "3", "--out", tmp_path / "found.html")
    check(chromium, (tmp_path / "found.html").as_uri())


def test_the_tagger(chromium, tiny_run, sample, tmp_path):
    import numpy as np
    import soundfile as sf
    from playwright.sync_api import expect

    sf.write(tmp_path / "silent.wav", np.zeros(22050), 44100)
    sounds = [tmp_path / "silent.wav", *sorted((sample / "test").iterdir())[:1]]

    def upload(page):
        page.set_input_files("#files", [str(path) for path in sounds])
        expect(page.locator(".lanes")).to_have_count(2)

    with serving("serve", tiny_run.out) as (_, address):
        check(chromium, address)
        check(chromium, address, upload)
