"""Of two processes that write the same output, the second is refused, however the first one ends."""

import os
import signal

import pytest
from helpers.locks import locked_elsewhere

from fatai.errors import StorageError
from fatai.io.lock import lock_output

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such locks")

def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("make", [lambda out: None, lambda out: out.mkdir(), lambda out: out.write_text("old")])
def test_another_process_is_refused_and_named_until_the_first_is_killed(make, tmp_path):
    out = tmp_path / "runs" / "mine"
    out.parent.mkdir()
    make(out)
    before = names(out.parent)
    with locked_elsewhere(out) as process:
        with pytest.raises(StorageError, match=rf"mine is being written by another command \(process {process.pid} on"):
            with lock_output(out):
                pass
        with lock_output(out.with_name("other")):
            pass  # another name in the same folder is free
        process.send_signal(signal.SIGKILL)
        process.wait()
        with lock_output(out):
            pass
    assert names(out.parent) == before


def test_a_link_is_locked_as_what_it_points_to(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with locked_elsewhere(tmp_path / "real"), pytest.raises(StorageError, match="link is being written"):
        with lock_output(tmp_path / "link"):
            pass


def test_one_process_does_not_lock_twice(tmp_path):
    with lock_output(tmp_path / "out.csv"):
        with pytest.raises(StorageError, match="this process"), lock_output(tmp_path / "out.csv"):
            pass
    with lock_output(tmp_path / "out.csv"):
        pass


def test_nothing_is_left_after_an_error_not_even_the_folders_of_the_lock(tmp_path):
    with pytest.raises(RuntimeError), lock_output(tmp_path / "a" / "b" / "out.csv"):
        raise RuntimeError
    assert names(tmp_path) == []


@pytest.mark.parametrize("path", ["/dev/null", "/dev/null/out.csv", "/", "n" * 255, "n" * 300])
def test_what_cannot_be_locked_is_left_to_the_writer(path, tmp_path):
    with lock_output(tmp_path / path):
        pass
    assert names(tmp_path) == [] and not os.path.exists("/dev/.null.fatai.lock")
