"""Predictions in parts: resumed, whole files or none, joined in order, on any file system."""

import fsspec
import numpy as np
import pandas as pd
import pytest

from fatai.errors import DataError, OptionError
from fatai.experiment import parts
from fatai.experiment.bulk_predict import predict_to_csv
from fatai.experiment.engines import run_with_dask, run_with_ray
from fatai.experiment.parts import PartWriter, predict_in_parts

pytest.importorskip("pyarrow")


@pytest.fixture
def items(sample, tmp_path):
    """Twelve clips and one that is missing."""
    paths = [str(path) for path in sorted((sample / "test").iterdir())[:12]] + [str(tmp_path / "missing.wav")]
    return pd.DataFrame({"fname": [f"{k}.ogg" for k in range(13)], "path": paths})


@pytest.fixture
def expected(tiny_run, items, tmp_path):
    with pytest.warns(UserWarning, match="cannot be read"):
        predict_to_csv(tiny_run.out, items, tmp_path / "expected.csv")
    return (tmp_path / "expected.csv").read_bytes()


def test_a_csv_has_the_bytes_of_predict(tiny_run, items, expected, tmp_path):
    written = predict_in_parts(tiny_run.out, items, tmp_path / "tags.csv", rows=5)
    assert written == (13, 1)
    assert (tmp_path / "tags.csv").read_bytes() == expected
    assert [path.name for path in tmp_path.iterdir() if "tags" in path.name] == ["tags.csv"]


def test_parquet_in_memory_has_the_numbers_and_the_reasons(tiny_run, items, expected, tmp_path):
    predict_in_parts(tiny_run.out, items, "memory://out/tags.parquet", rows=5)
    with fsspec.open("memory://out/tags.parquet") as f:
        found = pd.read_parquet(f)
    wanted = pd.read_csv(tmp_path / "expected.csv")
    tags = [name for name in wanted.columns if name not in ("fname", "status")]
    assert list(found.columns) == ["fname", *tags, "status", "reason"]
    np.testing.assert_array_equal(found[tags], wanted[tags])
    assert list(found["fname"]) == list(wanted["fname"]) and list(found["status"]) == list(wanted["status"])
    assert str(tmp_path / "missing.wav") in found["reason"].iloc[-1]
    assert fsspec.filesystem("memory").ls("/out", detail=False) == ["/out/tags.parquet"]


def test_parts_that_are_there_are_not_predicted_again(tiny_run, items, expected, tmp_path, monkeypatch):
    calls = []

    class Interrupted(PartWriter):
        def __call__(self, part):
            calls.append(part["number"])
            if calls == [0, 1]:
                raise KeyboardInterrupt
            return super().__call__(part)

    monkeypatch.setattr(parts, "PartWriter", Interrupted)
    out = tmp_path / "tags.csv"
    with pytest.raises(KeyboardInterrupt):
        predict_in_parts(tiny_run.out, items, out, rows=5)
    left = sorted(path.name for path in (tmp_path / "tags.csv.parts").iterdir())
    assert left == ["part-000000.parquet", "parts.json"]
    with pytest.raises(DataError, match="other sounds, another run or other options"):
        predict_in_parts(tiny_run.out, items, out, rows=5, views="even")
    predict_in_parts(tiny_run.out, items, out, rows=5)
    assert calls == [0, 1, 1, 2] and out.read_bytes() == expected


def test_what_cannot_be_done_is_refused(tiny_run, items, tmp_path, monkeypatch):
    with pytest.raises(OptionError, match="did you mean dask"):
        predict_in_parts(tiny_run.out, items, tmp_path / "tags.csv", engine="desk")
    with pytest.raises(OptionError, match="expected one of them"):
        predict_in_parts(tiny_run.out, items, tmp_path / "tags.txt")
    with pytest.raises(OptionError, match="at least one sound"):
        predict_in_parts(tiny_run.out, items, tmp_path / "tags.csv", rows=0)
    with pytest.raises(DataError, match="two clips are named"):
        predict_in_parts(tiny_run.out, pd.concat([items, items]), tmp_path / "tags.csv")
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    for engine, run in (("ray", run_with_ray), ("dask", run_with_dask)):
        with pytest.raises(OptionError, match=rf'pip install "fatai\[{engine}\]"'):
            next(run(print, [], 1, None))
