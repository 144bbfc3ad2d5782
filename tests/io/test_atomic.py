"""A file is complete or unchanged after any error while it is written."""

import os
import subprocess
import sys

import pytest

from fatai.errors import StorageError
from fatai.io.atomic import write_file, write_text


def names(folder):
    return sorted(f.name for f in folder.iterdir())


def test_the_file_takes_its_name_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "folder" / "scores.csv"
    with write_file(path) as temp:
        assert temp.parent == path.parent and temp.suffix == ".csv" and temp != path
        temp.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole" and names(path.parent) == ["scores.csv"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="disk"), write_file(path) as temp:
        temp.write_text("ha")
        raise RuntimeError("disk on fire")
    assert path.read_text() == "old" and names(tmp_path) == ["scores.csv"]


def test_an_error_without_an_old_file_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), write_file(tmp_path / "scores.csv") as temp:
        temp.write_text("ha")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_a_block_that_writes_nothing_is_an_error_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), write_file(path):
        pass
    assert path.read_text() == "old"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs SIGKILL")
def test_a_killed_process_leaves_the_old_file(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("old")
    program = ("import os, signal, sys; from fatai.io.atomic import write_file\n"
               "with write_file(sys.argv[1]) as temp, open(temp, 'w') as f:\n"
               "    f.write('half'); f.flush(); os.kill(os.getpid(), signal.SIGKILL)\n")
    ended = subprocess.run([sys.executable, "-c", program, path])
    assert ended.returncode == -9
    assert path.read_text() == "old"
    # The rest of the file has a name that is not read by mistake.
    (left,) = set(names(tmp_path)) - {"scores.csv"}
    assert left.startswith(".scores.") and left.endswith(".part.csv")


def test_two_writers_at_once_do_not_mix(tmp_path):
    path = tmp_path / "scores.csv"
    with write_file(path) as one, write_file(path) as two:
        one.write_text("one")
        two.write_text("two")
    assert path.read_text() == "one" and names(tmp_path) == ["scores.csv"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "target.csv", tmp_path / "link.csv"
    target.write_text("old")
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink() and target.read_text() == "new" and names(tmp_path / "far") == ["target.csv"]


def test_a_relative_path_may_lead_through_a_linked_folder(tmp_path, monkeypatch):
    (tmp_path / "far" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/inner")
    monkeypatch.chdir(tmp_path)
    write_text("link/../scores.csv", "new")
    assert (tmp_path / "far" / "scores.csv").read_text() == "new" and names(tmp_path / "far") == ["inner", "scores.csv"]


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("kind", [os.mkfifo, os.mkdir])
def test_only_regular_files_are_replaced(tmp_path, kind, linked):
    # As root, one could replace /dev/zero for the whole machine.
    path = tmp_path / "existing"
    kind(path)
    name = tmp_path / "link.csv" if linked else path
    if linked:
        name.symlink_to(path)
    with pytest.raises(StorageError, match="existing: cannot be written .*something else has this name"):
        write_text(name, "whole")
    assert not path.is_file() and names(tmp_path) == sorted({path.name, name.name})


@pytest.mark.parametrize("stem", ["a" * 250, "é" * 120])
def test_the_longest_names_are_fine(tmp_path, stem):
    write_text(tmp_path / f"{stem}.csv", "x")
    assert names(tmp_path) == [f"{stem}.csv"]


def test_text_is_utf8_and_newlines_stay_as_they_are(tmp_path):
    write_text(tmp_path / "text", "é\n\r\n")
    assert (tmp_path / "text").read_bytes() == b"\xc3\xa9\n\r\n"
