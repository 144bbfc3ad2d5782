"""Only regular, small files are read."""

import json
import os

import pytest

from fatai.errors import StorageError
from fatai.io.json import parse_json, read_json_limited, read_text_limited


def test_text_and_json_are_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"tag": "café"}', encoding="utf-8")
    assert read_text_limited(path) == '{"tag": "café"}' and read_json_limited(path) == {"tag": "café"}
    (tmp_path / "link.json").symlink_to(path)
    assert read_json_limited(tmp_path / "link.json") == {"tag": "café"}


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_only_regular_files_are_opened(tmp_path, make):
    make(tmp_path / "a.json")
    with pytest.raises(StorageError, match="a.json is not a regular file and was not opened"):
        read_text_limited(tmp_path / "a.json")


def test_large_files_are_not_read(tmp_path):
    (tmp_path / "a.json").write_text("12345")
    assert read_json_limited(tmp_path / "a.json", 5) == 12345
    with pytest.raises(StorageError, match="has 5 bytes; expected at most 4"):
        read_json_limited(tmp_path / "a.json", 4)


def test_invalid_json_is_a_value_error(tmp_path):
    for text in ("", "[" * 100_000, '{"a": '):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(ValueError):
            read_json_limited(tmp_path / "a.json")
        with pytest.raises(ValueError):
            parse_json(text.encode())
    (tmp_path / "a.json").write_bytes(json.dumps("é", ensure_ascii=False).encode("latin-1"))
    with pytest.raises(UnicodeDecodeError):
        read_json_limited(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError):
        read_json_limited(tmp_path / "b.json")
