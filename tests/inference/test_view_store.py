"""Stored views: written in any order, read back sorted; malformed and malicious files."""

import pickle
import zipfile

import numpy as np
import pytest

from fatai.errors import DataError
from fatai.inference.view_store import load_views, view_writer

NAMES, TAGS = ["a.wav", "b.wav"], ["Bark", "Meow", "Rain"]


def write(path, rows):
    with view_writer(path, NAMES, TAGS, 10) as writer:
        for index, probs in rows:
            writer.add(np.array(index), np.array(probs))


def test_rows_come_back_sorted_by_clip_and_view(tmp_path):
    write(tmp_path / "v.npz", [
        ([[1, 0, 0, 20], [0, 1, 5, 25]], [[0.5, 0.25, 1.0], [0.0, 0.125, 0.75]]),
        ([[0, 0, 0, 20]], [[0.1, 0.2, 0.3]]),
    ])
    views = load_views(tmp_path / "v.npz")
    assert views.fnames == ("a.wav", "b.wav") and views.tags == ("Bark", "Meow", "Rain")
    assert (
        views.clip.tolist() == [0, 0, 1]
        and views.start_s.tolist() == [0, 0.5, 0]
        and views.end_s.tolist() == [2, 2.5, 2]
    )
    np.testing.assert_array_equal(views.probs, np.float32([[0.1, 0.2, 0.3], [0.0, 0.125, 0.75], [0.5, 0.25, 1.0]]))


def test_many_rows_are_copied_in_chunks(tmp_path, rng):
    probs = rng.random((40_000, 3), dtype=np.float32)
    order = rng.permutation(40_000)
    write(tmp_path / "v.npz", [([[1, k, k, k + 1] for k in order], probs[order])])
    np.testing.assert_array_equal(load_views(tmp_path / "v.npz").probs, probs)


def test_no_rows(tmp_path):
    write(tmp_path / "v.npz", [])
    assert load_views(tmp_path / "v.npz").probs.shape == (0, 3)


def test_a_context_that_raises_leaves_no_file(tmp_path):
    with pytest.raises(KeyError), view_writer(tmp_path / "v.npz", NAMES, TAGS, 10):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with (
        pytest.raises(DataError, match="the file for views is .*v.npy; expected a name that ends in .npz"),
        view_writer(tmp_path / "v.npy", NAMES, TAGS, 10),
    ):
        pass


@pytest.mark.parametrize(("change", "message"), [
    ({"clip": np.array([2])}, "clip has values up to 2 for 2 names"),
    ({"clip": np.array([-1])}, "clip has values"),
    ({"probs": np.full((1, 3), 2.0)}, r"outside \[0, 1\]"),
    ({"probs": np.full((1, 3), np.nan)}, r"outside \[0, 1\]"),
    ({"probs": np.zeros((1, 2))}, r"shape \(1, 2\) for 1 views and 3 tags"),
    ({"fnames": np.array([1, 2])}, "not one-dimensional arrays of text"),
    ({"start_s": np.zeros(2)}, "two floats per view"),
    ({"tags": np.array([{"a": 1}], dtype=object)}, "cannot be read"),
])
def test_arrays_that_do_not_match_are_an_error(tmp_path, change, message):
    good = {
        "fnames": np.array(NAMES),
        "tags": np.array(TAGS),
        "clip": np.array([0]),
        "start_s": np.zeros(1),
        "end_s": np.ones(1),
        "probs": np.full((1, 3), 0.5),
    }
    np.savez(tmp_path / "good.npz", **good)
    assert load_views(tmp_path / "good.npz").probs.shape == (1, 3)
    np.savez(tmp_path / "v.npz", **{**good, **change})
    with pytest.raises(DataError, match=message):
        load_views(tmp_path / "v.npz")


def test_files_that_are_not_npz_are_an_error(tmp_path):
    np.save(tmp_path / "v.npy", np.zeros(3))
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps({"a": 1}))
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }"
        archive.writestr("fnames.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    for name in ("v.npy", "pickle.npz", "bomb.npz", "nothing.npz"):
        with pytest.raises(DataError, match=f"{name}.*save_views"):
            load_views(tmp_path / name)
