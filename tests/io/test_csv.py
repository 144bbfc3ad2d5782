"""Tables are read row by row, errors name the line, and written numbers read back as the same values."""

import io

import numpy as np
import pytest

from fatai.errors import DataError
from fatai.inference.prediction_files import PredictionWriter, read_sample_submission, row_chunks
from fatai.io.csv import format_names, read_csv


def table(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_rows_have_their_lines_and_blank_lines_are_skipped(tmp_path):
    read = read_csv(table(tmp_path / "a.csv", "\ufefffname, Bark\n\na.wav,1\n\nb.wav,0\n"))
    assert read.columns == ("fname", "Bark")
    assert [tuple(row) for row in read.rows] == [(3, ["a.wav", "1"]), (5, ["b.wav", "0"])]


@pytest.mark.parametrize(("text", "message"), [
    ("", "the file is empty"),
    ("fname,Bark,Bark\n", "line 1: the column 'Bark' appears twice"),
    ("fname\na.wav\n", "the header begins 'fname'; expected fname, then one column per tag"),
    ("fname,Bark\na.wav,0.5,1\n", r"line 2 \('a.wav'\): 3 cells; expected 2"),
    ("fname,Bark\na.wav,1\na.wav,0\n", "line 3: the row of 'a.wav' is a duplicate, it is on line 2 already"),
    ("fname,Bark\n,1\n", "line 2: the fname is empty"),
    ("fname,Bark\na.wav,1_0\n", r"column 'Bark': '1_0' is not a number"),
    ("fname,Bark\na.wav,nan\n", r"column 'Bark': 'nan' is not finite"),
    ("fname,Bark\na.wav,1.5\n", r"column 'Bark': '1.5' is outside \[0, 1\]"),
])
def test_errors_name_the_line(tmp_path, text, message):
    path = table(tmp_path / "a.csv", text)
    with pytest.raises(DataError, match=f"a.csv: .*{message}"):
        list(row_chunks(path).chunks)


@pytest.mark.parametrize("rows", [1, 2, 3, 100])
def test_chunks_joined_are_the_table(tmp_path, rng, rows):
    probs, fnames = rng.random((7, 3)), [f"{i}.wav" for i in range(7)]
    text = io.StringIO()
    PredictionWriter(text, ("Bark", "Meow", "Purr")).write(fnames, probs)
    path = table(tmp_path / "a.csv", text.getvalue())
    tags, chunks = row_chunks(path, rows)
    parts = list(chunks)
    assert tags == ("Bark", "Meow", "Purr") and sum((part.fnames for part in parts), []) == fnames
    assert np.array_equal(np.concatenate([part.probs for part in parts]), probs)
    assert all(len(part.fnames) == len(part.probs) <= rows for part in parts)
    assert read_sample_submission(path) == (tuple(fnames), tags)


def test_names_are_shortened():
    assert format_names(["a", "b"]) == "'a', 'b'" and format_names("abcde", 2) == "'a', 'b' and 3 more"


def test_columns_without_a_name_may_be_several(tmp_path):
    assert read_csv(table(tmp_path / "a.csv", "fname,labels,,\na.wav,Bark,,\n")).columns == ("fname", "labels", "", "")
