"""history.html in Chromium: it follows the run, can be held, and rests when the run is done."""

import json
import shutil

import pytest
from helpers.browser import open_page

from fatai.report.history import run_history

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_follows_a_run_to_its_end(chromium, tiny_run, tmp_path, width):
    from playwright.sync_api import expect

    run, history = tmp_path / "run", tmp_path / "run" / "fold_1" / "history.csv"
    shutil.copytree(tiny_run.out, run)
    manifest, epochs = json.loads((run / "manifest.json").read_text()), history.read_text().splitlines()
    (run / "manifest.json").write_text(json.dumps({**manifest, "finished": None}))
    history.write_text("\n".join(epochs[:2]) + "\n")
    size = {"viewport": {"width": width, "height": 800}, "color_scheme": "dark" if width < 500 else "light"}
    with open_page(chromium, run_history(run).as_uri(), **size) as page:
        expect(page.locator("#progress")).to_contain_text("3 of 4 epochs")
        expect(page.locator("#age")).to_contain_text("s ago")
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        # Held, it stays as it is.
        page.locator("#refresh").uncheck()
        history.write_text("\n".join(epochs) + "\n")
        run_history(run)
        page.wait_for_timeout(6000)
        expect(page.locator("#progress")).to_contain_text("3 of 4 epochs")
        page.locator("#refresh").check()
        expect(page.locator("#progress")).to_contain_text("4 of 4 epochs")
        (run / "manifest.json").write_text(json.dumps(manifest))
        run_history(run)
        expect(page.locator("#progress")).to_contain_text("The run is done.")
        expect(page.locator("#refresh")).to_have_count(0)
