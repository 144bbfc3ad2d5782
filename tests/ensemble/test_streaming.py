"""Prediction files averaged and concatenated a chunk at a time: the same bytes as all at once."""

import tracemalloc
from functools import partial

import pytest

from fatai.ensemble import streaming
from fatai.ensemble.ensemble import ensemble
from fatai.ensemble.streaming import average_files, concat_files
from fatai.errors import DataError, OptionError, SubmissionError
from fatai.inference.prediction_files import row_chunks
from fatai.inference.predictions import Predictions

TAGS = ("Bark", "Meow", "Purr")


@pytest.fixture
def files(tmp_path, rng):
    """Three models' predictions of 10,000 clips: more than two chunks."""
    names = tuple(f"{i:05d}.wav" for i in range(10_000))
    paths = [tmp_path / f"model_{k}.csv" for k in range(3)]
    for path in paths:
        Predictions(names, TAGS, rng.random((len(names), 3))).to_csv(path)
    return paths


@pytest.mark.parametrize(
    ("how", "weights", "options"), [("mean", None, {}), ("weighted", [3, 1, 0], {}), ("gmean", None, {"floor": 1e-3})]
)
def test_averaging_row_by_row_gives_the_bytes_of_averaging_all(files, tmp_path, how, weights, options):
    assert average_files(files, tmp_path / "rows.csv", how, weights, **options) == 10_000
    ensemble(files, how, weights, **options).to_csv(tmp_path / "all.csv")
    assert (tmp_path / "rows.csv").read_bytes() == (tmp_path / "all.csv").read_bytes()


def test_averaging_takes_the_memory_of_a_chunk(tmp_path, monkeypatch):
    chunk = 512  # tracing memory is slow
    monkeypatch.setattr(streaming, "row_chunks", partial(row_chunks, rows=chunk))
    header, numbers = ",".join(f"tag {k}" for k in range(40)), ",0.5" * 40

    def peak(n):
        paths = [tmp_path / f"{n}_{k}.csv" for k in range(2)]
        for path in paths:
            path.write_text(f"fname,{header}\n" + "".join(f"{i}.wav{numbers}\n" for i in range(n)))
        tracemalloc.start()
        try:
            average_files(paths, tmp_path / "out.csv")
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    # A row's numbers alone take 2 x 40 x 8 bytes; only the name of a row is kept, to find duplicates.
    assert (peak(3 * chunk) - peak(2 * chunk)) / chunk < 2 * 250


def test_mismatches_are_named(files, tmp_path):
    with pytest.raises(OptionError, match="how is 'rank_tag', which needs all clips at once"):
        average_files(files, tmp_path / "out.csv", "rank_tag")
    with pytest.raises(OptionError, match="expected one number for each of the 3 predictions"):
        average_files(files, tmp_path / "out.csv", "weighted", [1, 2])
    with pytest.raises(OptionError, match="files is empty"):
        average_files([], tmp_path / "out.csv")
    for weights, message in (([1, 2, -1], "expected finite numbers >= 0"), (None, "needs weights")):
        with pytest.raises(OptionError, match=message):
            average_files(files, tmp_path / "out.csv", "weighted", weights)
    preds = Predictions.from_csv(files[0])
    preds.select(preds.fnames, TAGS[::-1]).to_csv(tmp_path / "tags.csv")
    preds.select(preds.fnames[::-1]).to_csv(tmp_path / "order.csv")
    preds.select(preds.fnames[:-1]).to_csv(tmp_path / "fewer.csv")
    for name, message in (
        ("tags", "has other tags"),
        ("order", "has other rows .* from row 1 to 4096"),
        ("fewer", "from row 8193 to"),
    ):
        with pytest.raises(SubmissionError, match=message):
            average_files([files[0], tmp_path / f"{name}.csv"], tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_concatenated_parts_are_the_whole_and_a_clip_in_two_parts_is_an_error(files, tmp_path):
    preds = Predictions.from_csv(files[0])
    parts = [tmp_path / f"part_{k}.csv" for k in range(3)]
    for k, path in enumerate(parts):
        preds.select(preds.fnames[k * 4000:(k + 1) * 4000]).to_csv(path)
    assert concat_files(parts, tmp_path / "whole.csv") == 10_000
    assert (tmp_path / "whole.csv").read_bytes() == files[0].read_bytes()
    with pytest.raises(DataError, match="part_0.csv: .*'00000.wav' is a duplicate"):
        concat_files([*parts, parts[0]], tmp_path / "twice.csv")
    assert not (tmp_path / "twice.csv").exists()


@pytest.mark.parametrize("cell", ["1_0", "nan", "1.5", "-0.1", "x", ""])
def test_a_cell_that_is_not_a_probability_is_named(tmp_path, cell):
    path = tmp_path / "bad.csv"
    path.write_text(f"fname,Bark\na.wav,0.5\nb.wav,{cell}\n")
    with pytest.raises(DataError, match=r"line 3 \('b.wav'\), column 'Bark'"):
        list(row_chunks(path).chunks)
