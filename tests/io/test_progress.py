"""Progress yields all items, with plain lines every few seconds or, on a terminal, a bar."""

import itertools
import sys

import pytest

from fatai.io import progress
from fatai.io.progress import track


@pytest.fixture
def seconds_per_read(monkeypatch):
    """A clock that advances by this much at every read."""

    def set_clock(step):
        clock = itertools.count(0, step)
        monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))

    return set_clock


@pytest.fixture
def in_terminal(monkeypatch):
    """A function to call in the test, which has another standard error than the fixtures."""

    def pretend():
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        monkeypatch.setenv("TERM", "xterm")

    return pretend


def test_short_loops_print_nothing(capsys):
    assert list(track(range(1000), "reading clips")) == list(range(1000))
    assert capsys.readouterr() == ("", "")


def test_long_loops_print_their_progress_on_standard_error(capsys, seconds_per_read):
    seconds_per_read(8)  # reads at 0 s, 8 s, 16 s (a line; read once more, 24 s), ...
    assert list(track("abcde", "reading clips")) == list("abcde")
    out, err = capsys.readouterr()
    assert out == "" and err == "reading clips: 1 of 5\nreading clips: 3 of 5\n"


def test_without_a_length_only_the_count_is_printed(capsys, seconds_per_read):
    seconds_per_read(100)
    assert list(track(iter("ab"), "reading clips")) == ["a", "b"]
    assert capsys.readouterr().err == "reading clips: 0\nreading clips: 1\n"


def test_a_length_may_be_given(capsys, seconds_per_read):
    seconds_per_read(100)
    list(track(iter("ab"), "reading clips", total=2))
    assert capsys.readouterr().err == "reading clips: 0 of 2\nreading clips: 1 of 2\n"


def test_items_are_taken_one_at_a_time():
    taken = []
    tracked = track((taken.append(i) or i for i in range(5)), "reading clips")
    assert next(tracked) == 0 and taken == [0]


def test_a_terminal_gets_a_bar(capsys, in_terminal):
    in_terminal()
    assert list(track(range(5), "reading clips")) == list(range(5))
    out, err = capsys.readouterr()
    assert out == "" and "reading clips" in err


def test_an_error_is_not_changed_on_a_terminal(in_terminal):
    in_terminal()

    def failing():
        yield 1
        raise ValueError("bad clip")

    with pytest.raises(ValueError, match="bad clip"):
        list(track(failing(), "reading clips"))
