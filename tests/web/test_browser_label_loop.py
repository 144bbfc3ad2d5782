"""The label loop in Chromium: answers by key, other tags, training, and a page without a server."""

import pytest
from helpers.browser import open_page, players, serving
from helpers.tone_index import write_tones

from fatai.inference.search.labels import read_window_labels

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def indexed(tiny_run, tmp_path_factory):
    from fatai.experiment.encoder import load_encoder
    from fatai.inference.search.index import index_sounds

    folder = tmp_path_factory.mktemp("indexed")
    encoder, source = load_encoder(tiny_run.out)
    index_sounds(folder / "index", encoder, write_tones(folder / "sounds", 24), source=source)
    return folder


def answer_all(page, n):
    from playwright.sync_api import expect

    for _ in range(n):
        page.keyboard.press("y" if "low" in page.locator("h2").inner_text() else "n")
    expect(page.locator("#progress")).to_contain_text(f"{n} of {n} windows answered")


def test_answers_by_key_train_a_probe_and_the_next_session_continues(chromium, indexed):
    from playwright.sync_api import expect

    labels = indexed / "labels.csv"
    options = ("--tag", "low", "--example", indexed / "sounds" / "low0.wav", "--labels", labels, "-n", "8", "--user",
               "anna", "--serve")
    with serving("review", indexed / "index", *options) as (_, address), open_page(chromium, address) as page:
        expect(page.locator("audio")).to_have_count(1)
        assert players(page)[0] > 0 and page.locator(".question").inner_text().startswith("Is low in this window? (")
        expect(page.locator("#rounds")).to_contain_text("Not trained yet")
        answer_all(page, 8)
        assert len(read_window_labels(labels)) == 8
        # Another tag, by a new name.
        page.keyboard.press("r")
        page.locator("#filter").fill("thunder clap")
        page.keyboard.press("Enter")
        expect(page.locator("#decision")).to_contain_text("thunder clap")
        page.click("#train")
        expect(page.locator("#rounds")).to_contain_text("8 answers: trained on")
        expect(page.locator("#progress")).to_contain_text("0 of 8 windows answered")
        answer_all(page, 8)
        page.click("#train")
        expect(page.locator("#rounds")).to_contain_text("16 answers: trained on")
        page.keyboard.press("y")
        expect(page.locator("#progress")).to_contain_text("1 of")
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("u")
        expect(page.locator("#progress")).to_contain_text("0 of")
        page.screenshot(path=str(indexed / "page.png"))
    table = read_window_labels(labels)
    assert len(table) == 16 and ["thunder clap"] in table["labels"].tolist()
    with serving("review", indexed / "index", *options) as (_, address), open_page(chromium, address) as page:
        expect(page.locator("#progress")).to_contain_text("0 of 8 windows answered")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_without_a_server_gives_labels_on_a_phone(chromium, indexed, main_with, tmp_path, scheme):
    from playwright.sync_api import expect

    ended = main_with("review", indexed / "index", "--tag", "low", "--example", indexed / "sounds" / "low0.wav",
                      "--labels", tmp_path / "none.csv", "-n", "4", "--out", tmp_path / "page.html")
    assert ended.returncode == 0, ended.stderr
    size = {"viewport": {"width": 390, "height": 780}, "color_scheme": scheme}
    with open_page(chromium, (tmp_path / "page.html").as_uri(), **size) as page:
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        expect(page.locator("audio")).to_have_count(1)
        answer_all(page, 4)
        with page.expect_download() as download:
            page.click("#csv")
        assert download.value.suggested_filename == "labels.csv"
        download.value.save_as(tmp_path / "labels.csv")
    table = read_window_labels(tmp_path / "labels.csv")
    assert len(table) == 4 and all(("low" in row.file) == (row.labels == ["low"]) for row in table.itertuples())


def test_found_windows_are_a_page_with_players_on_a_phone_too(chromium, indexed, main_with, tmp_path):
    main_with("find", indexed / "index", indexed / "sounds" / "low0.wav", "-n", "5", "--out", tmp_path / "found.html")
    for width in (390, 1280):
        size = {"viewport": {"width": width, "height": 800}}
        with open_page(chromium, (tmp_path / "found.html").as_uri(), **size) as page:
            assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
            assert len(players(page)) == 5
