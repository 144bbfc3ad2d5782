"""Downloads of one file from a local server: resumed, retried, verified."""

import hashlib
import shutil

import pytest
from helpers.full_disk import fill_disk

from fatai.errors import DataError, StorageError
from fatai.io.fetch import fetch

DATA = bytes(range(256)) * 40_000


def test_an_interrupted_file_is_resumed(server, tmp_path):
    server.files["a.bin"], server.breaks["a.bin"] = DATA, 3_000_000
    assert (
        fetch(server.url + "a.bin", tmp_path / "a.bin", checksum=f"md5:{hashlib.md5(DATA).hexdigest()}").read_bytes()
        == DATA
    )
    assert server.requests == [("a.bin", None), ("a.bin", "bytes=3000000-")]
    fetch(server.url + "a.bin", tmp_path / "a.bin")
    assert len(server.requests) == 2 and [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_partial_files_of_an_earlier_call_are_used(server, tmp_path):
    server.files["a.bin"] = DATA
    (tmp_path / "a.bin.part").write_bytes(DATA[:1000])
    assert fetch(server.url + "a.bin", tmp_path / "a.bin").read_bytes() == DATA and server.requests == [
        ("a.bin", "bytes=1000-")
    ]
    (tmp_path / "b.bin.part").write_bytes(DATA)
    server.files["b.bin"] = DATA
    assert fetch(server.url + "b.bin", tmp_path / "b.bin").read_bytes() == DATA


def test_a_server_without_ranges_sends_the_whole_file_again(server, tmp_path):
    server.files["a.bin"], server.breaks["a.bin"], server.ranges = DATA, 5000, False
    assert fetch(server.url + "a.bin", tmp_path / "a.bin").read_bytes() == DATA


def test_a_partial_file_longer_than_the_file_is_discarded(server, tmp_path):
    server.files["a.bin"] = DATA
    (tmp_path / "a.bin.part").write_bytes(DATA + b"more")
    assert fetch(server.url + "a.bin", tmp_path / "a.bin").read_bytes() == DATA


def test_a_busy_server_is_retried_and_a_missing_file_is_not(server, tmp_path):
    server.files["a.bin"], server.errors = b"x", [503, 429]
    assert fetch(server.url + "a.bin", tmp_path / "a.bin").read_bytes() == b"x"
    with pytest.raises(DataError, match="returned 404"):
        fetch(server.url + "none.bin", tmp_path / "none.bin")
    assert len(server.requests) == 4
    server.errors = [500] * 9
    with pytest.raises(DataError, match="in 3 tries .500 .*0 bytes are kept"):
        fetch(server.url + "a.bin", tmp_path / "other.bin", tries=3)


def test_a_wrong_checksum_removes_the_file(server, tmp_path):
    server.files["a.bin"] = b"x"
    with pytest.raises(DataError, match="the md5 is 9dd4e461268c8034f5c8564e155c67a6, expected 00"):
        fetch(server.url + "a.bin", tmp_path / "a.bin", checksum="md5:00")
    assert not list(tmp_path.iterdir())


def test_a_file_larger_than_allowed_is_refused_before_it_is_written(server, tmp_path):
    server.files["a.bin"] = DATA
    with pytest.raises(DataError, match="has 10,240,000 bytes or more; expected at most 5,000"):
        fetch(server.url + "a.bin", tmp_path / "a.bin", max_bytes=5000)
    assert not list(tmp_path.iterdir())
    (tmp_path / "a.bin.part").write_bytes(DATA[:4000])
    with pytest.raises(DataError, match="has 10,240,000 bytes or more"):
        fetch(server.url + "a.bin", tmp_path / "a.bin", max_bytes=len(DATA) - 1)
    assert fetch(server.url + "a.bin", tmp_path / "a.bin", max_bytes=len(DATA)).read_bytes() == DATA


def test_only_web_addresses_are_opened(tmp_path):
    (tmp_path / "secret").write_text("x")
    with pytest.raises(DataError, match="no web address"):
        fetch((tmp_path / "secret").as_uri(), tmp_path / "copy")


def test_a_file_is_never_seen_under_its_name_before_it_is_verified(server, tmp_path, monkeypatch):
    server.files["a.bin"], seen = b"x", []
    monkeypatch.setattr("fatai.io.fetch.file_digest", lambda path, algorithm: seen.append(path.name) or "00")
    fetch(server.url + "a.bin", tmp_path / "a.bin", checksum="md5:00")
    assert seen == ["a.bin.part"] and (tmp_path / "a.bin").read_bytes() == b"x"


def test_a_file_larger_than_the_disk_is_refused_before_it_is_written(server, tmp_path, monkeypatch):
    server.files["a.bin"] = DATA
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 0))
    with pytest.raises(StorageError, match=r"a.bin needs 10,240,000 more bytes, and .* has 0 free; make room"):
        fetch(server.url + "a.bin", tmp_path / "a.bin")
    assert not list(tmp_path.iterdir()) and len(server.requests) == 1


def test_a_disk_that_fills_up_ends_the_download_at_once(server, tmp_path, monkeypatch):
    server.files["a.bin"] = DATA
    fill_disk(monkeypatch)
    with pytest.raises(StorageError, match="a.bin.part: cannot be written .No space left on device.: the disk is full"):
        fetch(server.url + "a.bin", tmp_path / "a.bin")
    assert len(server.requests) == 1 and not (tmp_path / "a.bin").exists()
