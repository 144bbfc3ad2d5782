"""`run --watch` in Chromium: the page follows a real training to its end, and stays when the server has ended."""

import pytest
from helpers.accessibility import faults
from helpers.browser import open_page, serving

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_follows_a_training_and_stays_when_it_ends(chromium, few_clips, tmp_path, width):
    from playwright.sync_api import expect

    options = ("--recipe", "quick", "--epochs", "3", "--arch", "m1", "--width", "0.125", "--crop-s", "0.5",
               "--n-views", "2", "--nproc", "1", "--out", tmp_path / "run")
    size = {"viewport": {"width": width, "height": 800}, "color_scheme": "dark" if width < 500 else "light"}
    with serving("run", few_clips, *options, option="--watch") as (process, address):
        # Only of the last click, after the server has ended.
        with open_page(chromium, address, expected="ERR_CONNECTION_REFUSED", **size) as page:
            expect(page.locator("#progress")).to_contain_text("of 6 epochs")
            assert faults(page) == []
            expect(page.locator("#progress")).to_contain_text("The run is done.")
            assert process.wait(timeout=300) == 0
            expect(page.locator("#gone")).to_be_hidden()
            expect(page.locator("#refresh")).to_have_count(0)
            page.get_by_role("link", name="Report").click()
            expect(page.locator("#gone")).to_contain_text("as history.html and report.html")
            assert page.url == address and faults(page) == []
            assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        assert (tmp_path / "run" / "report.html").is_file()


def test_links_of_an_ensemble_lead_to_its_members(chromium, tmp_path, tiny_run):
    import shutil

    from fatai.report.history import run_history
    from fatai.web.watch import watching

    out = tmp_path / "both"
    for name in ("first", "second"):
        shutil.copytree(tiny_run.out, out / name)
    members = "".join(f'[[members]]\nname = "{name}"\nrecipe = "quick"\n' for name in ("first", "second", "third"))
    (out / "ensemble.toml").write_text(f'name = "both"\nhow = "mean"\n{members}', encoding="utf-8")
    run_history(out / "first")
    with watching(out, 0) as address, open_page(chromium, address) as page:
        page.get_by_role("link", name="first").click()
        page.wait_for_selector("text=4 of 4 epochs")
        assert page.url == f"{address}first/history.html"
        page.go_back()
        assert page.get_by_role("link").count() == 1, "the second has no page yet, and the third no run"
