"""The built site: pages, search, and what a browser shows and requests. Only the first notebook is executed."""

import functools
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SEARCHES = {
    "wandb": "howto/trackers.html",
    "glossary": "glossary.html",
    "cuda out of memory": "troubleshooting.html#cuda-out-of-memory",
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("docs") / "site"
    made = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT, env={**os.environ, "NOTEBOOKS": "00_*"}, capture_output=True, text=True,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {p.relative_to(site).as_posix(): p.read_text(encoding="utf-8") for p in site.rglob("*.html")}


@pytest.fixture
def address(site, monkeypatch):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_pages_are_there_and_the_generated_ones_are_filled(site, pages):
    for name in ("index", "start", "tutorial", "recipes/ninth", "notebooks/00_start", "reference/training"):
        assert f"{name}.html" in pages
    assert (site / "llms.txt").is_file()
    assert "cnn2d_multilevel" in pages["models.html"] and "fat_learner" in pages["reference/training.html"]


def test_the_page_of_a_notebook_shows_its_outputs(site, pages):
    notebook = pages["notebooks/00_start.html"]
    assert "<audio" in notebook and 'class="dataframe"' in notebook and "test lwlrap 0." in notebook
    shown = re.findall(r'<img[^>]*src="?([^" >]+\.png)', notebook)
    assert shown and all((site / "notebooks" / picture).is_file() for picture in shown)
    assert str(ROOT) not in notebook


def test_pages_fetch_nothing_from_elsewhere(site, pages):
    for name, html in pages.items():
        fetched = re.findall(r"<(?:script|img|iframe|audio|source)[^>]*\ssrc=[\"']?(?:https?:)?//[^\"'> ]+", html)
        fetched += re.findall(
            r"<link[^>]*rel=[\"']?(?:stylesheet|preconnect|preload|icon)[^>]*href=[\"']?(?:https?:)?//[^\"'> ]+", html
        )
        assert fetched == [], f"{name} fetches {fetched[0]}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", style.read_text(encoding="utf-8")), style


@pytest.mark.parametrize(("query", "location"), SEARCHES.items())
def test_the_search_index_has_the_words_on_their_page(site, query, location):
    found = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    (entry,) = [entry for entry in found if entry["location"] == location]
    assert all(word in f"{entry['title']} {entry['text']}".lower() for word in query.split())


def test_the_search_of_a_browser_finds_pages(chromium, address):
    from helpers.browser import open_page

    with open_page(chromium, address) as page:
        for query, location in SEARCHES.items():
            field = page.locator("input[name=query]")
            field.fill("")
            field.press_sequentially(query)  # the theme searches as keys are released
            page.locator(f".md-search-result a[href*='{location.split('#')[0]}']").first.wait_for(state="attached")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["index", "howto/inputs", "notebooks/00_start"])
def test_pages_fit_their_window_and_log_no_errors(chromium, address, name, width):
    from helpers.browser import open_page

    scheme = "dark" if width == 390 else "light"
    with open_page(
        chromium, f"{address}{name}.html", viewport={"width": width, "height": 900}, color_scheme=scheme
    ) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["index", "start", "notebooks/00_start"])
def test_pages_have_no_serious_fault_of_accessibility(chromium, address, name, scheme):
    from helpers.accessibility import faults
    from helpers.browser import open_page

    for width in (1280, 390):
        options = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
        with open_page(chromium, f"{address}{name}.html", **options) as page:
            assert faults(page) == [], f"{width} pixels"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_open_search_has_no_serious_fault_of_accessibility(chromium, address, scheme):
    from helpers.accessibility import faults
    from helpers.browser import open_page

    for width in (1280, 390):
        options = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme, "reduced_motion": "reduce"}
        with open_page(chromium, f"{address}index.html", **options) as page:
            page.keyboard.press("/")
            page.locator("input[name=query]").press_sequentially("recipe default")
            page.locator(".md-search-result mark").first.wait_for()
            page.locator(".md-search-result__link").first.hover()
            page.wait_for_timeout(1000)  # until colors and sizes have changed
            assert faults(page) == [], f"{width} pixels"
