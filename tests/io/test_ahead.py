"""Items that a thread computes while the current one is used."""

import threading
import time

import pytest

from fatai.io.ahead import read_ahead


def test_the_next_items_are_computed_while_one_is_used():
    both = threading.Barrier(2, timeout=30)  # passes only if the second item is computed while the first is in use

    def items():
        yield 1
        both.wait()
        yield 2

    ahead = read_ahead(items(), lambda _: 1, 4)
    assert next(ahead) == 1
    both.wait()
    assert list(ahead) == [2]


def test_no_more_waits_than_fits_and_a_larger_item_waits_alone():
    computed = []

    def items():
        for size in (2, 2, 2, 9, 1):
            computed.append(size)
            yield size

    ahead = read_ahead(items(), lambda size: size, 4)
    got = [next(ahead)]
    deadline = time.monotonic() + 30
    while len(computed) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert computed == [2, 2, 2, 9], "two wait, and the next stands before the queue"
    assert got + list(ahead) == [2, 2, 2, 9, 1]


def test_an_error_comes_after_the_items_before_it():
    def items():
        yield "a"
        raise KeyboardInterrupt

    ahead = read_ahead(items(), len, 4)
    assert next(ahead) == "a"
    with pytest.raises(KeyboardInterrupt):
        next(ahead)


def test_closing_ends_the_thread():
    before = threading.active_count()
    ahead = read_ahead(iter(range(10_000)), lambda _: 1, 8)
    assert next(ahead) == 0 and threading.active_count() == before + 1
    ahead.close()
    assert threading.active_count() == before
