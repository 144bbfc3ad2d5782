"""The served review: allowed decisions are written at once, others are refused."""

import re

import pytest
from starlette.testclient import TestClient

from fatai.data.labels import read_corrections
from fatai.report.label_review import load_review
from fatai.web.review_app import review_app
from fatai.web.security import SecurityMiddleware


@pytest.fixture
def client(issue_run):
    run, _ = issue_run
    return TestClient(SecurityMiddleware(review_app(load_review(run), run / "corrections.csv")), "http://127.0.0.1:8000")


@pytest.fixture
def token(client):
    return re.search(r'data-token="([^"]+)"', client.get("/").text)[1]


def decide(client, token, decision):
    return client.post("/decide", json=decision, headers={"x-fatai-token": token})


def test_a_decision_is_written_at_once_and_survives_a_reload(client, token, issue_run):
    run, ((first, a), (second, _), _) = issue_run
    assert decide(client, token, {"file": first, "labels": ["Rain"]}).json() == {"file": first, "decided": 1}
    assert decide(client, token, {"file": second, "labels": None}).json() == {"file": second, "decided": 2}
    table = read_corrections(run / "corrections.csv").set_index("fname")["labels"]
    assert table[first] == ["Rain"] and table[second] is None
    assert client.get("/data").json()["decided"] == {first: ["Rain"], second: None}
    assert client.get("/corrections.csv").text == (run / "corrections.csv").read_text()
    # As another server reads it.
    again = TestClient(SecurityMiddleware(review_app(load_review(run), run / "corrections.csv")), "http://localhost")
    assert again.get("/data").json()["decided"] == {first: ["Rain"], second: None}
    assert decide(client, token, {"file": first}).json() == {"file": first, "decided": 1}


@pytest.mark.parametrize(("decision", "status", "words"), [
    ({"file": "../../etc/passwd", "labels": None}, 422, "no clip of this review"),
    ({"file": "{first}", "labels": ["Rian"]}, 422, "did you mean Rain"),
    ({"file": "{first}", "labels": []}, 422, "no tag left"),
    ({"file": "{first}", "labels": "Rain"}, 422, "list of tags"),
    ({"file": "{first}", "labels": [1]}, 422, "list of tags"),
    ({"file": 5}, 422, "a decision is"), ([], 422, "a decision is"), ("x", 422, "a decision is"),
    ({"file": "{first}", "labels": ["x" * 70_000]}, 413, "65,536"),
])
def test_invalid_decisions_are_refused(client, token, issue_run, decision, status, words):
    run, ((first, _), *_) = issue_run
    if isinstance(decision, dict) and decision["file"] == "{first}":
        decision = {**decision, "file": first}
    response = decide(client, token, decision)
    assert response.status_code == status and words in response.json()["error"]
    assert not (run / "corrections.csv").exists()


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 60_000])
def test_bodies_that_are_not_json_are_refused(client, token, body):
    response = client.post("/decide", content=body, headers={"x-fatai-token": token})
    assert response.status_code == 422 and response.json()["error"] == "the decision is not JSON"


@pytest.mark.parametrize("headers", [{}, {"x-fatai-token": "guess"}, {"x-fatai-token": "\xe9"}])
def test_a_decision_needs_the_token_of_the_page(client, issue_run, headers):
    run, ((first, _), *_) = issue_run
    headers = {name: value.encode("latin-1") for name, value in headers.items()}
    response = client.post("/decide", json={"file": first, "labels": None}, headers=headers)
    assert (
        response.status_code == 403 and "reload" in response.json()["error"] and not (run / "corrections.csv").exists()
    )


def test_other_pages_and_hosts_are_refused_even_with_the_token(client, token, issue_run):
    run, ((first, _), *_) = issue_run
    for headers, status in (
        ({"origin": "http://evil.com"}, 403),
        ({"host": "evil.com"}, 400),
        ({"sec-fetch-site": "cross-site"}, 403),
    ):
        response = client.post(
            "/decide", json={"file": first, "labels": None}, headers={"x-fatai-token": token, **headers}
        )
        assert response.status_code == status
    assert not (run / "corrections.csv").exists()


def test_clips_have_picture_and_sound_and_are_addressed_by_number_only(client):
    clip = client.get("/clip/0").json()
    assert clip["seconds"] > 0 and clip["sound"].startswith("data:audio/")
    assert client.get("/clip/3").status_code == 404 and "no clip 3; the review has 3" in client.get("/clip/3").text
    for address in ("/clip/-1", "/clip/..%2f..%2fetc%2fpasswd", "/clip/a.wav"):
        assert client.get(address).status_code == 404


def test_the_served_page_names_only_files_of_the_server(client):
    shown = client.get("/").text
    for name in re.findall(r'(?:src|href)="(/[^"]+)"', shown):
        assert client.get(name).status_code == 200
    assert "://" not in shown and "Every decision is saved at once" in shown


def test_a_full_disk_is_reported(client, token, issue_run, monkeypatch):
    run, ((first, _), *_) = issue_run

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fatai.io.atomic.os.replace", full)
    response = decide(client, token, {"file": first, "labels": None})
    assert (
        response.status_code == 500
        and "the disk is full" in response.json()["error"]
        and client.get("/data").json()["decided"] == {}
    )
