"""Take screenshots of the served pages for the documentation: python tests/helpers/screenshots.py RUN FOLDER."""

import io
import sys
from pathlib import Path

from PIL import Image

from fatai.data.datasets.fat2019 import fat_sample
from helpers.browser import launch_chromium, serving

MAX_BYTES = 150_000


def save_screenshot(page, path):
    """Save a screenshot with few colors, so that the file is small."""
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(96)
    image.save(path, optimize=True)
    assert path.stat().st_size <= MAX_BYTES, f"{path} has {path.stat().st_size:,} bytes"


def main(run, folder):
    from playwright.sync_api import expect

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    appearances = {
        "": {"viewport": {"width": 860, "height": 780}},
        "_phone": {"viewport": {"width": 390, "height": 780}, "color_scheme": "dark"},
    }
    with launch_chromium() as browser:
        for suffix, options in appearances.items():
            with serving("serve", run) as (_, address):
                page = browser.new_page(**options)
                page.goto(address)
                page.set_input_files("#files", [str(path) for path in sorted((fat_sample() / "test").iterdir())[7:8]])
                expect(page.locator(".lanes")).to_have_count(1)
                page.evaluate("() => { document.querySelector('audio').currentTime = 0.4; }")
                page.wait_for_timeout(500)
                save_screenshot(page, folder / f"tagger{suffix}.png")
            with serving("review", run, "--serve", "--corrections", folder / ".none.csv") as (_, address):
                page = browser.new_page(**options)
                page.goto(address)
                expect(page.locator("audio")).to_have_count(1)
                if not suffix:
                    page.keyboard.press("r")
                page.wait_for_timeout(500)
                save_screenshot(page, folder / f"review{suffix}.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
