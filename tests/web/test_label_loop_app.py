"""The label loop on a server: answers are written at once, training asks about other windows."""

import re

import pytest
from helpers.tone_index import tone, tone_encoder, write_tones
from starlette.testclient import TestClient

from fatai.inference.search.index import SoundIndex, index_sounds
from fatai.inference.search.label_loop import LabelLoop
from fatai.inference.search.labels import read_window_labels
from fatai.report.window_review import WindowReview, write_window_review
from fatai.web.label_loop_app import label_loop_app
from fatai.web.security import SecurityMiddleware


@pytest.fixture
def loop(tmp_path):
    index_sounds(tmp_path / "index", tone_encoder(()), write_tones(tmp_path / "sounds", 30))
    example = tone_encoder(()).encode_sound(tone(303, seed=77)).features
    return LabelLoop(SoundIndex(tmp_path / "index"), "low", tmp_path / "labels.csv", examples=example, user="anna")


@pytest.fixture
def client(loop):
    return TestClient(SecurityMiddleware(label_loop_app(WindowReview(loop, 8))), "http://127.0.0.1:8000")


def post(client, path, answer=None):
    token = re.search(r'data-token="([^"]+)"', client.get("/").text)[1]
    return client.post(path, json=answer, headers={"x-fatai-token": token})


def test_answers_are_written_and_training_asks_about_other_windows(client, loop):
    data = client.get("/data").json()
    assert len(data["clips"]) == 8 and data["tag"] == "low" and data["rounds"] == [] and data["decided"] == {}
    for clip in data["clips"]:
        answer = {"file": clip["file"], "labels": ["low"] if "low" in clip["name"] else ["other"]}
        assert post(client, "/decide", answer).status_code == 200
    table = read_window_labels(loop.file.path)
    assert len(table) == 8 and set(table["user"]) == {"anna"}
    assert all((row.labels == ["low"]) == (row.absent == []) for row in table.itertuples())
    trained = post(client, "/train").json()
    assert trained["rounds"][0]["answers"] == 8 and "other" in trained["tags"]
    assert not {clip["file"] for clip in trained["clips"]} & {clip["file"] for clip in data["clips"]}
    assert client.get("/labels.csv").text == loop.file.path.read_text()


def test_a_withdrawn_answer_leaves_what_was_known_before(client, loop):
    window = client.get("/data").json()["clips"][0]["file"]
    loop.file.write(window, ["loud"], ["high"])
    post(client, "/decide", {"file": window, "labels": ["low"]})
    assert loop.file.decisions()[window] == {"labels": ["low", "loud"], "absent": ["high"]}
    post(client, "/decide", {"file": window, "labels": []})
    assert loop.file.decisions()[window] == {"labels": ["loud"], "absent": ["high", "low"]}
    post(client, "/decide", {"file": window})
    assert loop.file.decisions()[window] == {"labels": ["loud"], "absent": ["high"]}


def test_windows_are_played_and_others_do_not_exist(client):
    clip = client.get("/data").json()["clips"][0]
    media = client.get(f"/clip/{clip['row']}").json()
    assert media["seconds"] == 1 and media["sound"].startswith("data:audio/")
    assert client.get("/clip/30").status_code == 404


@pytest.mark.parametrize(("answer", "words"), [
    ({"file": "/etc/passwd", "labels": ["low"]}, "no window of this index"), ({"file": 5}, "an answer is"),
    ({"file": "{window}", "labels": "low"}, "list of tags"), ({"file": "{window}", "labels": None}, "list of tags"),
    ({"file": "{window}", "labels": ["a,b"]}, "cannot be written"),
    ({"file": "{window}#t=0,1", "labels": ["low"]}, "no window of this index"),
])
def test_invalid_answers_are_refused(client, loop, answer, words):
    if answer["file"] != 5:
        answer["file"] = answer["file"].replace("{window}", client.get("/data").json()["clips"][0]["file"])
    response = post(client, "/decide", answer)
    assert response.status_code == 422 and words in response.json()["error"] and not loop.file.path.exists()


def test_answers_and_training_need_the_token_of_the_page(client, loop):
    window = client.get("/data").json()["clips"][0]["file"]
    for path in ("/decide", "/train"):
        assert client.post(path, json={"file": window, "labels": ["low"]}).status_code == 403
    assert not loop.file.path.exists() and loop.rounds == []


def test_the_page_in_one_file_holds_its_sounds(loop, tmp_path):
    write_window_review(WindowReview(loop, 3), tmp_path / "review.html")
    page = (tmp_path / "review.html").read_text()
    assert page.count("data:audio/") == 3 and 'data-mode="windows"' in page and 'id="train"' not in page


def test_labels_that_another_program_damaged_are_an_error_of_the_page(client, loop):
    loop.file.path.write_text("file,start,end,labels\n,0,1,low\n")
    for path in ("/labels.csv", "/data"):
        response = client.get(path)
        assert response.status_code == 422 and "row 1 (line 2)" in response.json()["error"]
