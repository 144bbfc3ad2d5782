"""The server of `run --watch`: its pages, and that it lives as long as the run."""

import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

from fatai.report.history import run_history
from fatai.web.security import SecurityMiddleware
from fatai.web.watch import POLICY, Watch


@pytest.fixture
def run(tiny_run, tmp_path):
    out = tmp_path / "ensemble" / "run"
    shutil.copytree(tiny_run.out, out)
    run_history(out)
    return out


def client_of(folder):
    watch = Watch(folder)
    return watch, TestClient(SecurityMiddleware(watch.app(), policy=POLICY), "http://127.0.0.1:8000")


def test_the_pages_of_a_run_are_served_and_nothing_else(run):
    _, client = client_of(run)
    page = (run / "history.html").read_text(encoding="utf-8")
    assert client.get("/").text == client.get("/history.html").text == page
    (run / "report.html").write_text("the report")
    assert client.get("/report.html").text == "the report"
    for path in ("/recipe.toml", "/fold_0/history.csv", "/%2e%2e/history.html", "/..%2fhistory.html", "/x/y/z"):
        assert client.get(path).status_code == 404, path
    assert client.post("/").status_code == 405
    assert client.get("/", headers={"host": "example.com"}).status_code == 400


def test_the_members_of_an_ensemble_are_served_and_a_link_out_of_it_is_not(run, tmp_path):
    _, client = client_of(run.parent)
    assert client.get("/run/history.html").text == (run / "history.html").read_text(encoding="utf-8")
    (tmp_path / "history.html").write_text("of somebody else")
    (run.parent / "outside").symlink_to(tmp_path)
    assert client.get("/outside/history.html").status_code == 404


def test_before_the_run_has_a_page_another_one_waits_for_it(tmp_path):
    _, client = client_of(tmp_path / "none")
    assert "The run begins" in client.get("/").text and 'http-equiv="refresh"' in client.get("/").text


def test_scripts_and_styles_of_the_pages_are_allowed_and_those_of_others_are_not(run):
    _, client = client_of(run)
    response = client.get("/")
    own = re.search(r'Content-Security-Policy" content="([^"]+)"', response.text)[1]
    directives = set(response.headers["content-security-policy"].split("; "))
    assert set(own.split("; ")) <= directives and "frame-ancestors 'none'" in directives
    assert not re.search("https?:|[*]", response.headers["content-security-policy"])


def test_a_server_waits_for_a_page_that_is_open_and_for_no_other(run, monkeypatch):
    clock = {"now": 100.0}
    watch, client = client_of(run)

    def sleep(seconds):
        clock["now"] += 1
        if clock["now"] >= asked_at:
            client.get("/")

    monkeypatch.setattr("fatai.web.watch.time", SimpleNamespace(monotonic=lambda: clock["now"], sleep=sleep))
    asked_at = 103.0
    watch.wait_for_open_page()
    assert clock["now"] == 100, "nobody has opened it"
    client.get("/")
    clock["now"] += 1
    watch.wait_for_open_page()
    assert clock["now"] == 103
    asked_at = 1000.0
    clock["now"] += 1
    watch.wait_for_open_page()
    assert 103 < clock["now"] < 115, "the page was closed just before"
    clock["now"] = ended = 200.0
    watch.wait_for_open_page()
    assert clock["now"] == ended, "the page was closed long before"


def fetch(address):
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=60).read().decode()


FETCHED_AND_ENDED = """
import sys, urllib.error, urllib.request
from pathlib import Path
from fatai.web.watch import watching

fetch = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
with watching(Path(sys.argv[1]), 0) as address:
    try:
        fetch(address + "none", timeout=60)  # no page, which the server would wait for
    except urllib.error.HTTPError as e:
        print(e.code)
try:
    fetch(address, timeout=60)
except OSError:
    print("ended")
"""


def test_the_server_runs_as_long_as_the_block(run):
    done = subprocess.run([sys.executable, "-c", FETCHED_AND_ENDED, run], capture_output=True, text=True)
    assert done.stdout.split() == ["404", "ended"], done.stderr


def test_a_port_that_is_in_use_is_an_error_that_names_the_option(run):
    code = "import sys; from pathlib import Path; from fatai.web.watch import watching\n" \
           "with watching(Path(sys.argv[1]), int(sys.argv[2])): pass"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        done = subprocess.run([sys.executable, "-c", code, run, str(port)], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode and re.search(f"OptionError: .*port {port} .*choose another --watch", last), done.stderr


def test_the_server_ends_with_a_run_that_is_killed(run):
    code = f"""
import sys, time
from pathlib import Path
from fatai.web.watch import watching
with watching(Path({str(run)!r}), 0) as address:
    print(address, flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with process:
        address = process.stdout.readline().strip()
        process.kill()
    deadline = time.monotonic() + 120
    with pytest.raises(OSError):
        while time.monotonic() < deadline:
            assert fetch(address) == (run / "history.html").read_text(encoding="utf-8")
            time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("nproc", ["1", "2"])
def test_a_run_prints_one_address_and_trains_as_without(few_clips, tmp_path, nproc):
    options = ("--recipe", "quick", "--epochs", "1", "--arch", "m1", "--width", "0.125", "--crop-s", "0.5",
               "--n-views", "2", "--nproc", nproc)
    for name, watch in (("with", ["--watch", "0"]), ("without", [])):
        ended = subprocess.run(
            [sys.executable, "-m", "fatai.cli", "run", few_clips, *options, "--out", tmp_path / name, *watch],
            capture_output=True, text=True,
        )
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.count("watch the training at http://127.0.0.1:") == len(watch) / 2
    assert (tmp_path / "with" / "oof.csv").read_bytes() == (tmp_path / "without" / "oof.csv").read_bytes()
