"""`weights get`, and networks that start from its files: each failure is one sentence, and leaves no half file."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.full_disk import fill_disk

from fatai.errors import CheckpointError
from fatai.models import create_model
from fatai.models.checkpoint import save_checkpoint
from fatai.models.weights import WEIGHTS

FILE = "mn04_as_mAP_432.pt"
CONTENT = bytes(range(256)) * 1000


class Code:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('executed').touch()",)


@pytest.fixture
def cache(server, tmp_path, monkeypatch):
    """The user's empty folder of weights; the release of mn04 is served with its checksum."""
    monkeypatch.delenv("FATAI_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def publish(content=CONTENT, checksum=None, url=server.url):
        server.files[FILE] = content
        checksum = hashlib.sha256(content).hexdigest() if checksum is None else checksum
        entry = replace(WEIGHTS["mn04_as"], url=url + FILE, checksum=f"sha256:{checksum}")
        monkeypatch.setitem(WEIGHTS, "mn04_as", entry)

    publish()
    server.publish = publish
    return tmp_path / "cache" / "fatai" / "weights"


def files(cache):
    return sorted(path.name for path in cache.iterdir()) if cache.exists() else []


def refused(ended, message):
    """Check that a command ended with one sentence that holds a message."""
    assert ended.returncode == 2 and message in ended.stderr, ended.stderr
    sentences = [line for line in ended.stderr.splitlines() if line.startswith("fatai-submit: ")]
    assert len(sentences) == 1 and ended.stderr.splitlines()[-1] == sentences[0] and "Traceback" not in ended.stderr


def test_a_wrong_hash(server, cache, main_with):
    server.publish(checksum="0" * 64)
    refused(main_with("weights", "get", "mn04_as"), f"expected {'0' * 64}; the file was removed, start again")
    assert files(cache) == []


def test_half_a_file_that_the_next_call_completes(server, cache, main_with, monkeypatch):
    monkeypatch.setattr("fatai.io.fetch._BLOCK", 1000)
    server.ranges, limit = False, 100_000

    class Cut(dict):
        """Cut every response."""

        def pop(self, name, default=None):
            return limit

    server.breaks = Cut()
    refused(main_with("weights", "get", "mn04_as"), "could not be downloaded in 3 tries")
    assert files(cache) == [f"{FILE}.part"], "not under its own name"
    server.breaks, server.ranges = {}, True
    assert main_with("weights", "get", "mn04_as").returncode == 0
    assert files(cache) == [FILE] and (cache / FILE).read_bytes() == CONTENT
    assert server.requests[-1] == (FILE, "bytes=100000-")


def test_no_network(server, cache, main_with):
    server.publish(url="http://127.0.0.1:9/")  # the port of no server
    refused(main_with("weights", "get", "mn04_as"), "check the connection and start again: 0 bytes are kept")
    assert files(cache) == []


def test_a_file_that_moved(server, cache, main_with):
    server.files.clear()
    refused(main_with("weights", "get", "mn04_as"), "the server returned 404")
    assert files(cache) == []


def test_no_room_on_the_disk(cache, main_with, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 100))
    refused(main_with("weights", "get", "mn04_as"), "needs 256,000 more bytes, and ")
    assert files(cache) == []


def test_a_disk_that_fills_up(cache, main_with, monkeypatch):
    fill_disk(monkeypatch)
    refused(main_with("weights", "get", "mn04_as"), "the disk is full; make room, then start again")
    assert FILE not in files(cache)


def other_network(path):
    save_checkpoint(path, create_model("m1", 6, width=0.125).state_dict())


def code(path):
    torch.save({"features.0.0.weight": Code()}, path)


def half(path):
    save_checkpoint(path, create_model("mn04", 6).state_dict())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("make", "message"), [(other_network, "does not fit EfficientAT"), (code, "mine.pt"), (half, "mine.pt")]
)
def test_files_that_a_network_refuses(cache, sample, main_with, make, message):
    make(Path("mine.pt"))
    content = Path("mine.pt").read_bytes()
    with pytest.raises(CheckpointError, match=message) as caught:
        create_model("mn04", 6, pretrained="mine.pt")
    assert "\n" not in str(caught.value)
    ended = main_with("run", sample, "--recipe", "probe", "--weights", "mine.pt", "--out", "run", "--fold", 0)
    refused(ended, message)
    assert not Path("executed").exists() and Path("mine.pt").read_bytes() == content
    assert not list(Path().glob("run/fold_0/*.safetensors")) and files(cache) == []
