"""Predictions: checks, CSV round trip, scores against ground truth, selection, submissions."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fatai.errors import DataError, LabelError, SubmissionError
from fatai.inference.predictions import Predictions, check_submission, submission_problems
from fatai.io import csv as csv_rows

TAGS = ("Bark", "Meow", "Oboe")


@pytest.fixture
def preds():
    return Predictions(["a.wav", "b.wav"], TAGS, [[0.9, 0.2, 0.1], [0.4, 0.3, 0.35]], unreadable=["b.wav"])


@pytest.fixture
def file(tmp_path):
    """Return a function that writes a CSV file and returns its path."""

    def write(text, name="table.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_names_and_numbers_are_stored(preds):
    assert (preds.fnames, preds.tags, preds.unreadable) == (("a.wav", "b.wav"), TAGS, ("b.wav",))
    assert preds.probs.tolist() == [[0.9, 0.2, 0.1], [0.4, 0.3, 0.35]] and preds.probs.dtype == np.float64
    assert len(preds) == 2 and repr(preds) == "Predictions(2 clips, 3 tags, 1 unreadable)"


def test_probabilities_are_a_copy_that_cannot_be_written(preds):
    given = np.full((1, 1), 0.5)
    kept = Predictions(["a"], ["Bark"], given)
    given[0, 0] = 0.1
    assert kept.probs[0, 0] == 0.5
    with pytest.raises(ValueError, match="read-only"):
        preds.probs[0, 0] = 1


def test_a_tensor_with_a_graph_is_accepted():
    assert Predictions(["a"], ["Bark"], torch.tensor([[0.25]], requires_grad=True)).probs.tolist() == [[0.25]]


def test_equal_means_same_names_and_numbers(preds):
    assert preds == Predictions(preds.fnames, preds.tags, preds.probs, preds.unreadable)
    assert preds != Predictions(preds.fnames, preds.tags, preds.probs)
    assert preds != Predictions(preds.fnames, preds.tags, preds.probs * 0.5, preds.unreadable)
    assert preds != "preds"


@pytest.mark.parametrize(("fnames", "tags", "probs", "message"), [
    (["a"], TAGS, [[0.1, 0.2]], r"shape \(1, 2\); expected \(1, 3\)"),
    (["a", "a"], TAGS, np.zeros((2, 3)), "fnames has 'a' more than once"),
    (["a"], ["Bark", "Bark"], np.zeros((1, 2)), "tags has 'Bark' more than once"),
    (["a", ""], TAGS, np.zeros((2, 3)), "fnames has an empty name, at position 1"),
    ("a", TAGS, np.zeros((1, 3)), "fnames is the text 'a'; expected a sequence"),
    (["a", "b"], TAGS, [[0, 0, 0], [0, math.nan, 0]], "nan for 'b', tag 'Meow' .1 such values.*sigmoid"),
    (["a"], TAGS, [[0, 1.5, -3]], "1.5 for 'a', tag 'Meow' .2 such values"),
    (["a"], TAGS, [[0, math.inf, 0]], "inf for 'a'"),
    (["a"], TAGS, [["x", "y", "z"]], "cannot be read as a table of numbers"),
])
def test_invalid_tables_of_probabilities_are_an_error(fnames, tags, probs, message):
    with pytest.raises(SubmissionError, match=message):
        Predictions(fnames, tags, probs)


def test_unreadable_clips_must_be_among_the_clips():
    with pytest.raises(SubmissionError, match="unreadable has 'c'; expected names of fnames"):
        Predictions(["a"], ["Bark"], [[0.5]], unreadable=["c"])


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=5),
    st.sampled_from(["{}.wav", 'with "quotes", {}', "ton é {}"]),
)
def test_a_csv_file_reads_back_as_the_same_numbers(tmp_path_factory, rows, name):
    path = tmp_path_factory.mktemp("csv") / "preds.csv"
    preds = Predictions(
        [name.format(i) for i in range(len(rows))], ["Bark, loud", "Meow"], np.array(rows).reshape(len(rows), 2)
    )
    preds.to_csv(path)
    assert Predictions.from_csv(path) == preds
    again = path.with_name("again.csv")
    Predictions.from_csv(path).to_csv(again)
    assert again.read_bytes() == path.read_bytes()


def test_a_csv_file_has_a_header_and_the_shortest_numbers(preds, tmp_path):
    Predictions(preds.fnames, preds.tags, preds.probs).to_csv(tmp_path / "new" / "preds.csv")
    assert (
        tmp_path / "new" / "preds.csv"
    ).read_bytes() == b"fname,Bark,Meow,Oboe\na.wav,0.9,0.2,0.1\nb.wav,0.4,0.3,0.35\n"


def test_negative_zero_is_written_as_zero(tmp_path):
    Predictions(["a"], ["Bark"], [[-0.0]]).to_csv(tmp_path / "p.csv")
    assert (tmp_path / "p.csv").read_text() == "fname,Bark\na,0.0\n"


def test_a_spreadsheet_s_csv_file_is_read(file):
    """Byte order mark, carriage returns, blank lines, spaces around column names."""
    path = file("\ufefffname, Bark ,Meow\r\na,0.5,1e-3\r\n\r\nb,0,1\r\n")
    assert Predictions.from_csv(path) == Predictions(["a", "b"], ["Bark", "Meow"], [[0.5, 0.001], [0, 1]])


@pytest.mark.parametrize(("text", "message"), [
    ("", "the file is empty; expected a header"),
    ("name,Bark\na,0.5\n", "the header begins 'name, Bark'; expected fname"),
    ("fname\na\n", "the header begins 'fname'; expected fname, then one column per tag"),
    ("fname,Bark,\na,0.5,0.5\n", "each with a name"),
    ("fname,Bark,Bark\na,0.5,0.5\n", "line 1: the column 'Bark' appears twice"),
    ("fname,Bark\na,0.5\nb\n", "line 3 .'b'.: 1 cells; expected 2"),
    ("fname,Bark\na,0.5,0.5\n", "line 2 .'a'.: 3 cells; expected 2"),
    ("fname,Bark\na,0.5\n\nb,0.1\na,0.2\n", "line 5: the row of 'a' is a duplicate, it is on line 2 already"),
    ("fname,Bark\n,0.5\n", "line 2: the fname is empty"),
    ("fname,Bark,Meow\na,0.5,loud\n", "line 2 .'a'., column 'Meow': 'loud' is not a number"),
    ("fname,Bark,Meow\na,0.5,\n", "line 2 .'a'., column 'Meow': '' is not a number"),
    ("fname,Bark\na,1_0\n", "column 'Bark': '1_0' is not a number"),
    ("fname,Bark\na,nan\n", "column 'Bark': 'nan' is not finite"),
    ("fname,Bark\na,-inf\n", "column 'Bark': '-inf' is not finite"),
    ("fname,Bark\na,1.01\n", "column 'Bark': '1.01' is outside"),
    ('fname,Bark\n"a,0.5\n', "line 2: not a CSV row"),
    (b"fname,Bark\n\xff\x81,0.5\n", "line 2 is not text in UTF-8 .*save the table as CSV in UTF-8"),
    (b"RIFF\x00\x00WAVEfmt \x10", "table.csv: "),
])
def test_bad_csv_files_are_named_by_line_and_column(file, text, message):
    with pytest.raises(DataError, match=message) as e:
        Predictions.from_csv(file(text))
    assert "table.csv" in str(e.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="none.csv: no such file"):
        Predictions.from_csv(tmp_path / "none.csv")
    with pytest.raises(DataError, match="no such file"):
        Predictions.from_csv(tmp_path)


def test_a_file_too_large_is_not_read(file, monkeypatch):
    monkeypatch.setattr(csv_rows, "MAX_CSV_BYTES", 10)
    with pytest.raises(DataError, match="expected a table of at most"):
        Predictions.from_csv(file("fname,Bark\na,0.5\n"))


def test_a_frame_has_a_column_for_the_names(preds):
    frame = preds.to_frame()
    assert list(frame.columns) == ["fname", *TAGS] and frame.loc[1].tolist() == ["b.wav", 0.4, 0.3, 0.35]


def test_rows_and_columns_are_selected_in_the_order_given(preds):
    picked = preds.select(["b.wav", "a.wav"], ["Oboe", "Bark"])
    assert picked == Predictions(["b.wav", "a.wav"], ["Oboe", "Bark"], [[0.35, 0.4], [0.1, 0.9]], ["b.wav"])
    assert preds.select(["a.wav"]) == Predictions(["a.wav"], TAGS, [[0.9, 0.2, 0.1]])
    with pytest.raises(SubmissionError, match="lack the clips 'c.wav'"):
        preds.select(["c.wav"])
    with pytest.raises(SubmissionError, match="lack the tags 'Purr'"):
        preds.select(["a.wav"], ["Purr"])


def test_a_long_list_of_names_is_truncated(preds):
    with pytest.raises(SubmissionError, match="lack the clips '0', '1', '2' and 7 more"):
        preds.select(map(str, range(10)))


def test_the_likeliest_tags(preds):
    top = preds.top(2)
    assert top.values.tolist() == [
        ["a.wav", 1, "Bark", 0.9], ["a.wav", 2, "Meow", 0.2], ["b.wav", 1, "Bark", 0.4], ["b.wav", 2, "Oboe", 0.35],
    ]
    assert len(preds.top(9)) == 6 and len(preds.top(0)) == 0
    assert Predictions(["a"], TAGS, [[0.5, 0.7, 0.5]]).top(3)["tag"].tolist() == ["Meow", "Bark", "Oboe"]


# Against ground truth. Clip a: Bark first, 1. Clip b: Meow third and Oboe second, 1/2 and 2/3. Mean of three: 13/18.

LABELS = "fname,labels\nb.wav,\"Meow,Oboe\"\na.wav,Bark\n"
COLUMNS = "fname,Meow,Bark,Oboe\nb.wav,1,0,1\na.wav,0,1,0\n"


@pytest.mark.parametrize("text", [
    LABELS, LABELS.replace("Meow,Oboe", "Oboe; Meow"), COLUMNS, COLUMNS.replace("1", "True").replace("0", "False"),
])
def test_score_against_both_layouts_of_ground_truth_in_any_order(preds, file, text):
    assert preds.score(file(text)) == pytest.approx(13 / 18)
    aligned = preds.align_with(file(text))
    assert aligned.probs.tolist() == preds.probs.tolist() and aligned.targ.tolist() == [
        [True, False, False],
        [False, True, True],
    ]


@pytest.mark.parametrize(
    "labels",
    [
        ["Meow,Oboe", "Bark"],
        [["Meow", "Oboe"], ["Bark"]],
        [("Oboe", "Meow"), ("Bark",)],
        [np.array(["Oboe", "Meow"]), np.array(["Bark"])],
    ],
)
def test_score_against_a_data_frame(preds, labels):
    assert preds.score(pd.DataFrame({"fname": ["b.wav", "a.wav"], "labels": labels})) == pytest.approx(13 / 18)


@pytest.mark.parametrize("missing", [None, math.nan, pd.NA, ""])
def test_a_clip_without_labels_is_ignored(preds, missing):
    truth = pd.DataFrame({"fname": ["a.wav", "b.wav"], "labels": pd.Series(["Bark", missing], dtype=object)})
    assert preds.score(truth) == 1.0


def test_clips_of_only_one_side_are_an_error_unless_partial(preds, file):
    truth = file("fname,labels\na.wav,Meow\nz.wav,Bark\n")
    with pytest.raises(DataError, match="the truth lacks 'b.wav'; the predictions lack 'z.wav': .*partial=True"):
        preds.score(truth)
    assert preds.score(truth, partial=True) == 0.5
    with pytest.raises(DataError, match="no clip is in both"):
        preds.score(file("fname,labels\nz.wav,Bark\n"), partial=True)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (
            "fname,labels\na.wav,Barc\nb.wav,Meow\n",
            LabelError,
            "line 2: 'Barc' is not a tag of the predictions; did you mean Bark",
        ),
        ("name,labels\na,Bark\n", DataError, "no column of file names: it has name, labels; call one fname"),
        ("name,Bark,Meow\na,1,0\n", DataError, "the columns are 'name', 'Bark', 'Meow'; expected fname"),
        (
            "fname,tag_name\na.wav,Bark\n",
            DataError,
            "expected a column labels or a column for each tag; there is none for 'Bark', 'Meow', 'Oboe'",
        ),
        ("fname,Bark,Meow\na.wav,1,0\n", DataError, "there is none for 'Oboe'"),
        ("fname,Bark,Meow,Oboe,Purr\na.wav,1,0,0,0\n", DataError, "the columns 'Purr' are not tags"),
        ("fname,Bark,Meow,Oboe\na.wav,1,0.5,0\n", DataError, "line 2, column 'Meow': '0.5'; expected 0 or 1"),
        (
            "fname,labels\na.wav,Bark\na.wav,Meow\n",
            DataError,
            "line 3: the row of 'a.wav' is a duplicate, it is on line 2",
        ),
        ("fname,labels\na.wav\n", DataError, "line 2 .'a.wav'.: 1 cells; expected 2"),
    ],
)
def test_an_invalid_truth_is_named_by_line(preds, file, text, error, message):
    with pytest.raises(error, match=message):
        preds.score(file(text))


def test_a_duplicate_in_a_frame_is_named_by_the_line_its_csv_file_would_have(preds):
    with pytest.raises(DataError, match="the truth table: line 3: the row of 'a.wav' is a duplicate, it is on line 2"):
        preds.score(pd.DataFrame({"fname": ["a.wav", "a.wav"], "labels": ["Bark", "Bark"]}))


# Submissions.


SAMPLE = "fname,Meow,Bark\nb.wav,0,0\na.wav,0,0\n"


def test_a_submission_has_the_rows_and_columns_of_the_sample(file, tmp_path):
    sample, out = file(SAMPLE), tmp_path / "out" / "submission.csv"
    preds = Predictions(["a.wav", "b.wav", "c.wav"], ["Bark", "Meow"], [[0.9, 0.2], [0.4, 0.30000000000000004], [0, 0]])
    preds.to_submission(out, sample=sample)
    assert out.read_bytes() == b"fname,Meow,Bark\nb.wav,0.30000000000000004,0.4\na.wav,0.2,0.9\n"
    assert submission_problems(out, sample) == []
    check_submission(out, sample)


@pytest.mark.parametrize(("fnames", "tags", "message"), [
    (["a.wav"], ["Bark", "Meow"], "lack the clips 'b.wav'"),
    (["a.wav", "b.wav"], ["Bark"], "lack the tags 'Meow'"),
    (["a.wav", "b.wav"], ["Bark", "Meow", "Oboe"], "no column for the tags 'Oboe'"),
])
def test_predictions_that_do_not_match_leave_the_old_submission(file, tmp_path, fnames, tags, message):
    out = tmp_path / "submission.csv"
    out.write_text("old")
    with pytest.raises(SubmissionError, match=message):
        Predictions(fnames, tags, np.zeros((len(fnames), len(tags)))).to_submission(out, sample=file(SAMPLE))
    assert out.read_text() == "old" and {f.name for f in tmp_path.iterdir()} == {"submission.csv", "table.csv"}


def test_a_submission_is_checked_before_it_takes_its_name(file, tmp_path, monkeypatch):
    out = tmp_path / "submission.csv"
    out.write_text("old")
    monkeypatch.setattr(
        "fatai.inference.predictions._write_csv",
        lambda path, preds: path.write_text("fname,Meow,Bark\nb.wav,0.5,0.5\n"),
    )
    with pytest.raises(SubmissionError, match="the row of 'a.wav' is missing"):
        Predictions(["a.wav", "b.wav"], ["Bark", "Meow"], np.zeros((2, 2))).to_submission(out, sample=file(SAMPLE))
    assert out.read_text() == "old" and {f.name for f in tmp_path.iterdir()} == {"submission.csv", "table.csv"}


# Confidence intervals.


def test_scores_per_tag_worst_first_with_the_number_of_clips(preds, file):
    # Of clip b, Oboe ranks second behind Bark, Meow third; of two present tags, precision 1/2 and 2/3.
    table = preds.per_tag(file(LABELS))
    assert table["tag"].tolist() == ["Oboe", "Meow", "Bark"] and table["clips"].tolist() == [1, 1, 1]
    np.testing.assert_allclose(table["lwlrap"], [1 / 2, 2 / 3, 1])
    np.testing.assert_allclose(table["weight"], [1 / 3] * 3)
    # In its column, each tag's clip comes first.
    np.testing.assert_allclose(table[["ap", "auc"]], np.ones((3, 2)))


def test_a_tag_that_no_clip_has_comes_last_without_a_score(preds):
    table = preds.per_tag(pd.DataFrame({"fname": ["a.wav", "b.wav"], "labels": ["Meow", "Meow"]}))
    assert table["tag"].tolist() == ["Meow", "Bark", "Oboe"] and table["clips"].tolist() == [2, 0, 0]
    assert table["lwlrap"].isna().tolist() == [False, True, True]


def test_the_interval_of_the_score(preds, file):
    found = preds.interval(file(LABELS), n_resamples=200, confidence_level=0.9)
    assert found.value == pytest.approx(13 / 18) and found.confidence_level == 0.9
    # Two clips: drawn both, or one of them twice.
    assert (found.low, found.high) == (pytest.approx(7 / 12), 1)
    assert preds.interval(file(LABELS), "auc").value == 1


def test_compare_matches_clips_and_tags_by_name(preds, file):
    other = Predictions(["b.wav", "a.wav"], ["Oboe", "Bark", "Meow"], [[0.9, 0.1, 0.8], [0.3, 0.2, 0.1]])
    # The other has clip b right, 1 and 1, and Bark second in clip a: 5/6.
    found = preds.compare(other, file(LABELS))
    assert found.value == pytest.approx(13 / 18 - 5 / 6) and str(found).startswith(
        "0.111 worse, 95 % interval -0.417 to 0.500"
    )
    with pytest.raises(SubmissionError, match="lack the clips 'a.wav'"):
        preds.compare(other.select(["b.wav"]), file(LABELS))
