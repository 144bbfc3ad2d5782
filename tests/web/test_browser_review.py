"""The label review in Chromium by keyboard, mouse and touch, to corrections that a run applies."""

import pytest
from helpers.browser import open_page, players, serving

from fatai.data.datasets.fat2019 import load_dataset
from fatai.data.labels import read_corrections
from fatai.report.label_review import load_review, write_review

pytestmark = pytest.mark.slow


@pytest.fixture
def page_file(issue_run):
    run, _ = issue_run
    write_review(run, run / "review.html")
    return (run / "review.html").as_uri()


def downloaded(page, path):
    with page.expect_download() as download:
        page.click("#csv")
    assert download.value.suggested_filename == "corrections.csv"
    download.value.save_as(path)
    return dict(read_corrections(path).set_index("fname")["labels"])


def shown(page):
    return page.locator("h2").inner_text()


def to_clip(page, fname):
    """Step forward to the first label issue of a clip."""
    for _ in range(10):
        if shown(page) == fname:
            return
        page.keyboard.press("ArrowRight")
    raise AssertionError(f"{fname} does not come")


def test_corrections_by_keyboard_are_in_the_csv_and_a_run_applies_them(
    chromium, issue_run, page_file, sample, tmp_path
):
    from playwright.sync_api import expect

    run, ((first, a), (second, b), (third, c)) = issue_run
    with open_page(chromium, page_file) as page:
        expect(page.locator("audio")).to_have_count(1)
        assert players(page)[0] > 0
        to_clip(page, first)
        assert (
            page.locator(".question").inner_text()
            == f"Is {a} present? Given, but predicted with 2 %; Rain is likelier."
        )
        page.keyboard.press("r")
        page.keyboard.press("Enter")
        expect(page.locator("#progress")).to_have_text("1 of 3 clips decided, 1 of them corrected")
        to_clip(page, third)
        page.keyboard.press("x")
        expect(page.locator("#progress")).to_have_text("2 of 3 clips decided, 2 of them corrected")
        to_clip(page, second)
        page.keyboard.press("k")
        expect(page.locator("#progress")).to_have_text("3 of 3 clips decided, 2 of them corrected")
        assert downloaded(page, tmp_path / "corrections.csv") == {first: ["Rain"], third: None}
        # The page keeps the decisions.
        page.reload()
        expect(page.locator("#progress")).to_have_text("3 of 3 clips decided, 2 of them corrected")
    labels = load_dataset(sample, tmp_path / "corrections.csv").curated.set_index("fname")["labels"]
    assert labels[first] == ["Rain"] and labels[second] == [b] and third not in labels.index


def test_tags_are_chosen_by_number_and_a_decision_can_be_withdrawn(chromium, issue_run, page_file, tmp_path):
    from playwright.sync_api import expect

    run, ((first, a), (second, b), _) = issue_run
    with open_page(chromium, page_file) as page:
        to_clip(page, second)
        page.keyboard.press("r")
        chips = page.locator("#choice .chip")
        assert [chip.split()[-1] for chip in chips.all_inner_texts()[:2]] == [b, "Rooster"]
        assert [chips.nth(k).get_attribute("aria-pressed") for k in range(3)] == ["true", "true", "false"]
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        assert downloaded(page, tmp_path / "1.csv") == {second: ["Rooster"]}
        to_clip_back(page, second)
        expect(page.locator("#decision")).to_have_text("Decided: Rooster.")
        page.keyboard.press("u")
        expect(page.locator("#decision")).to_have_text("")
        assert downloaded(page, tmp_path / "2.csv") == {}
        # A clip without any tag is not a correction.
        page.keyboard.press("r")
        page.keyboard.press("1")
        page.keyboard.press("2")
        page.keyboard.press("Enter")
        expect(page.locator("#fault")).to_contain_text("would have no tag left")
        page.keyboard.press("Escape")
        expect(page.locator("#choice")).to_have_count(0)


def to_clip_back(page, fname):
    for _ in range(10):
        if shown(page) == fname:
            return
        page.keyboard.press("ArrowLeft")
    to_clip(page, fname)


def test_space_plays_and_pauses(chromium, page_file):
    from playwright.sync_api import expect

    with open_page(chromium, page_file) as page:
        expect(page.locator("audio")).to_have_count(1)
        players(page)
        page.keyboard.press(" ")
        page.wait_for_timeout(250)
        assert page.evaluate("() => document.querySelector('audio').currentTime > 0")
        page.keyboard.press("ArrowRight")
        assert page.evaluate("() => document.querySelectorAll('audio').length <= 1")


def test_the_page_is_usable_by_touch_on_a_phone(chromium, issue_run, page_file, tmp_path):
    from playwright.sync_api import expect

    run, ((first, a), *_) = issue_run
    options = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True, "color_scheme": "dark"}
    with open_page(chromium, page_file, **options) as page:
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        fname = shown(page)
        page.tap("#remove")
        expect(page.locator("#progress")).to_contain_text("1 of 3")
        assert downloaded(page, tmp_path / "c.csv") == {fname: None}
        for button in ("keep", "relabel", "remove", "undo", "play"):
            assert page.locator(f"#{button}").bounding_box()["height"] >= 36


def test_the_server_saves_every_decision_and_a_new_one_continues(chromium, issue_run):
    from playwright.sync_api import expect

    run, ((first, a), (second, b), (third, c)) = issue_run
    path = run / "corrections.csv"
    path.write_text("fname,labels\nelsewhere.wav,remove\n")
    with serving("review", run, "--serve") as (_, address):
        with open_page(chromium, address) as page:
            expect(page.locator("audio")).to_have_count(1)
            assert players(page)[0] > 0
            to_clip(page, first)
            page.keyboard.press("r")
            page.keyboard.press("Enter")
            expect(page.locator("#progress")).to_contain_text("1 of 3")
            assert dict(read_corrections(path).set_index("fname")["labels"]) == {"elsewhere.wav": None, first: ["Rain"]}
            to_clip(page, second)
            page.keyboard.press("k")
            expect(page.locator("#progress")).to_contain_text("2 of 3")
            assert downloaded(page, run / "again.csv") == {"elsewhere.wav": None, first: ["Rain"]}
    with serving("review", run, "--serve") as (_, address), open_page(chromium, address) as page:
        expect(page.locator("#progress")).to_have_text("2 of 3 clips decided, 1 of them corrected")
        assert shown(page) == third, "it starts with the first undecided clip"
    assert len(load_review(run).clips) == 3


def test_the_page_of_another_server_does_not_save(chromium, issue_run):
    from playwright.sync_api import expect

    run, _ = issue_run
    with serving("review", run, "--serve") as (_, address), open_page(chromium, address, expected="403") as page:
        expect(page.locator("audio")).to_have_count(1)
        page.route(
            "**/decide", lambda route: route.continue_(headers={**route.request.headers, "x-fatai-token": "old"})
        )
        page.keyboard.press("x")
        expect(page.locator("#fault")).to_contain_text(
            "not saved: this page belongs to a server that has ended; reload it"
        )
        expect(page.locator("#progress")).to_contain_text("0 of 3")
    assert not (run / "corrections.csv").exists()


SLOW_SERVER = """
    const answered = fetch, wait = ms => new Promise(resolve => setTimeout(resolve, ms));
    let underWay = 0;
    window.mostUnderWay = 0;
    window.fetch = async (...request) => {
        if (request[0] !== "/decide") return answered(...request);
        window.mostUnderWay = Math.max(window.mostUnderWay, ++underWay);
        await wait(500);
        const response = await answered(...request);
        await wait(500);
        underWay -= 1;
        return response;
    };
"""


def test_keys_faster_than_the_server_decide_on_the_clip_shown_and_are_saved_in_order(chromium, issue_run):
    from playwright.sync_api import expect

    run, ((first, a), *_) = issue_run

    def press(*keys):
        for key in keys:
            page.keyboard.press(key)
            page.wait_for_timeout(50)

    with serving("review", run, "--serve") as (_, address), open_page(chromium, address) as page:
        page.context.add_init_script(SLOW_SERVER)
        page.reload()
        expect(page.locator("audio")).to_have_count(1)
        to_clip(page, first)
        press("r", "Enter")
        removed = shown(page)
        press("x")
        kept = shown(page)
        assert len({first, removed, kept}) == 3, "the next clip comes at once"
        press("r", "Enter", "u", "x", "k")  # the last word on the last clip holds
        expect(page.locator("#progress")).to_have_text("0 of 3 clips decided, 0 of them corrected; 6 being saved")
        expect(page.locator("#decision")).to_have_text("Decided: the given tags are right.")
        # A download waits for what is not saved yet.
        assert downloaded(page, run / "downloaded.csv") == {first: ["Rain"], removed: None}
        expect(page.locator("#progress")).to_have_text("3 of 3 clips decided, 2 of them corrected")
        expect(page.locator("#fault")).to_have_text("")
        assert page.evaluate("mostUnderWay") == 1, "two requests at once could arrive in the wrong order"
    assert dict(read_corrections(run / "corrections.csv").set_index("fname")["labels"]) == {
        first: ["Rain"],
        removed: None,
    }


def test_a_refused_decision_is_withdrawn_and_named_and_the_others_are_saved(chromium, issue_run):
    from playwright.sync_api import expect

    run, _ = issue_run
    with serving("review", run, "--serve") as (_, address), open_page(chromium, address, expected="403") as page:
        expect(page.locator("audio")).to_have_count(1)
        refused, tokens = shown(page), iter(["old"])

        def spoil_the_first(route):
            token = next(tokens, route.request.headers["x-fatai-token"])
            route.continue_(headers={**route.request.headers, "x-fatai-token": token})

        page.route("**/decide", spoil_the_first)
        page.keyboard.press("x")
        saved = shown(page)
        page.keyboard.press("x")
        expect(page.locator("#progress")).to_have_text("1 of 3 clips decided, 1 of them corrected")
        expect(page.locator("#fault")).to_have_text(
            f"not saved: this page belongs to a server that has ended; reload it ({refused})"
        )
        assert dict(read_corrections(run / "corrections.csv").set_index("fname")["labels"]) == {saved: None}
        to_clip_back(page, refused)
        expect(page.locator("#decision")).to_have_text("")
        page.keyboard.press("x")
        expect(page.locator("#progress")).to_contain_text("2 of 3")
        expect(page.locator("#fault")).to_have_text("")


def test_decisions_wait_while_the_server_does_not_answer(chromium, issue_run):
    from playwright.sync_api import expect

    run, _ = issue_run
    with serving("review", run, "--serve") as (_, address), open_page(chromium, address, expected="ERR_FAILED") as page:
        expect(page.locator("audio")).to_have_count(1)
        page.route("**/decide", lambda route: route.abort())
        names = {shown(page)}
        page.keyboard.press("x")
        names.add(shown(page))
        page.keyboard.press("x")
        expect(page.locator("#fault")).to_contain_text("not saved yet")
        expect(page.locator("#progress")).to_contain_text("0 of 3 clips decided, 0 of them corrected; 2 being saved")
        page.unroute("**/decide")
        expect(page.locator("#progress")).to_have_text("2 of 3 clips decided, 2 of them corrected")
        expect(page.locator("#fault")).to_have_text("")
    assert set(read_corrections(run / "corrections.csv")["fname"]) == names
