"""The report in Chromium: players, no requests, light and dark, phone width."""

import pytest
from helpers.browser import open_page, players

from fatai.report.html import run_report

pytestmark = pytest.mark.slow

PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}


@pytest.fixture(scope="module")
def address(tiny_run, sample, tmp_path_factory):
    return run_report(tiny_run.out, sample, tmp_path_factory.mktemp("report") / "report.html").as_uri()


def background(page):
    return page.evaluate("() => getComputedStyle(document.body).backgroundColor")


def test_every_player_has_a_sound_and_every_picture_a_size(chromium, address):
    with open_page(chromium, address) as page:
        seconds = players(page)
        assert len(seconds) == 12 and min(seconds) > 0.4
        sizes = page.evaluate(
            "() => [...document.querySelectorAll('main svg, main img')].map(e => e.getBoundingClientRect().width)"
        )
        assert len(sizes) > 25 and min(sizes) > 250
        loaded = page.evaluate("""() => Promise.all(
            [...document.querySelectorAll('svg image')].map(i => new Promise(done => {
            const loaded = new Image(); loaded.onload = () => done(loaded.naturalWidth);
            loaded.onerror = () => done(0); loaded.src = i.getAttribute('href'); })))""")
        assert min(loaded) > 1


def test_one_sound_plays_at_a_time(chromium, address):
    with open_page(chromium, address) as page:
        playing = page.evaluate("""async () => {
            const [one, two] = document.querySelectorAll('audio');
            one.loop = two.loop = true;
            await one.play(); await two.play();
            await new Promise(done => setTimeout(done, 100));
            return [one.paused, two.paused];
        }""")
        assert playing == [True, False]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_system_and_can_be_switched(chromium, address, scheme):
    light, dark = "rgb(255, 255, 255)", "rgb(20, 23, 27)"
    with open_page(chromium, address, color_scheme=scheme) as page:
        first, other = (light, dark) if scheme == "light" else (dark, light)
        assert background(page) == first
        page.click("#theme")
        assert background(page) == other
        ink = page.evaluate("() => getComputedStyle(document.querySelector('svg.figure text')).fill")
        assert ink == page.evaluate("() => getComputedStyle(document.body).color")
        page.click("#theme")
        assert background(page) == first


def test_a_phone_shows_it_without_scrolling_sideways(chromium, address):
    with open_page(chromium, address, **PHONE) as page:
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 360
        ends = page.evaluate("""() => [...document.querySelectorAll('.card, audio, .wide, section > svg')]
            .map(e => e.getBoundingClientRect().right)""")
        assert (
            max(ends) <= 360
            and page.evaluate("() => parseFloat(getComputedStyle(document.querySelector('td')).fontSize)") >= 12
        )
        heights = page.evaluate(
            "() => [...document.querySelectorAll('section > .wide tr')].map(e => e.getBoundingClientRect().height)"
        )
        assert len(heights) > 20 and max(heights) < 80, "names are not broken letter by letter"
        page.click("nav a[href='#clips']")
        assert page.evaluate("() => Math.abs(document.getElementById('clips').getBoundingClientRect().top) < 100")


def test_the_tables_of_tags_and_confusions_fit_a_phone(chromium, address):
    with open_page(chromium, address, viewport={"width": 390, "height": 780}) as page:
        sizes = page.evaluate("""() => [...document.querySelectorAll('#tags .wide, #confusions .wide:has(table)')]
            .map(e => e.clientWidth - e.scrollWidth)""")
        assert sizes == [0, 0]
        assert page.evaluate("() => document.documentElement.scrollWidth") == 390
