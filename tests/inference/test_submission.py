"""The check of a submission finds every planted problem, names its row or column, and finds nothing else."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fatai.errors import DataError, SubmissionError
from fatai.inference.submission import check_submission, submission_problems

SAMPLE = "fname,Bark,Meow,Oboe\na.wav,0,0,0\nb.wav,0,0,0\nc.wav,0,0,0\n"
FINE = "fname,Bark,Meow,Oboe\na.wav,0.1,0.2,0.3\nb.wav,0,1,1e-7\nc.wav,0.5,0.5,0.5\n"


@pytest.fixture
def problems(tmp_path):
    """Return the problems of a submission's text against the sample."""
    (tmp_path / "sample.csv").write_text(SAMPLE)

    def check(text):
        path = tmp_path / "submission.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return submission_problems(path, tmp_path / "sample.csv")

    return check


@pytest.mark.parametrize("text", [
    FINE,
    FINE.replace("\n", "\r\n"),
    FINE.rstrip("\n"),
    "\ufeff" + FINE,
    # Rows in another order are matched by name.
    "fname,Bark,Meow,Oboe\nc.wav,0.5,0.5,0.5\na.wav,0.1,0.2,0.3\nb.wav,0,1,0\n",
])
def test_a_valid_submission_has_no_problems(problems, text):
    assert problems(text) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("b.wav,0,1,1e-7\n", "", ["the row of 'b.wav' is missing"]),
        ("a.wav,", "d.wav,0,0,0\na.wav,", ["line 2: the row of 'd.wav' is not in the sample"]),
        ("c.wav,", "a.wav,0,0,0\nc.wav,", ["line 4: the row of 'a.wav' is a duplicate, it is on line 2 already"]),
        ("b.wav", "B.wav", ["line 3: the row of 'B.wav' is not in the sample", "the row of 'b.wav' is missing"]),
        ("b.wav", "", ["line 3: the fname is empty", "the row of 'b.wav' is missing"]),
        ("Bark,Meow", "Meow,Bark", ["the columns 'Meow' and 'Bark' are swapped (columns 2 and 3)"]),
        (
            "Bark,Meow,Oboe",
            "Meow,Oboe,Bark",
            [
                "the columns are in another order: column 2 is 'Meow'; expected 'Bark'",
                "the columns are in another order: column 3 is 'Oboe'; expected 'Meow'",
                "the columns are in another order: column 4 is 'Bark'; expected 'Oboe'",
            ],
        ),
        ("fname", "file", ["the column 'fname' is missing", "the column 'file' is not in the sample"]),
        ("Meow", "Meew", ["the column 'Meow' is missing", "the column 'Meew' is not in the sample"]),
        (",Oboe", "", ["the column 'Oboe' is missing"]),
        (",Oboe", ",Oboe,Purr", ["the column 'Purr' is not in the sample"]),
        ("0.2", "nan", ["line 2 ('a.wav'), column 'Meow': 'nan' is not finite"]),
        ("0.2", "inf", ["line 2 ('a.wav'), column 'Meow': 'inf' is not finite"]),
        ("0.2", "1.0000001", ["line 2 ('a.wav'), column 'Meow': '1.0000001' is outside [0, 1]"]),
        ("0.2", "-1e-9", ["line 2 ('a.wav'), column 'Meow': '-1e-9' is outside [0, 1]"]),
        ("0.2", "", ["line 2 ('a.wav'), column 'Meow': '' is not a number"]),
        (
            "0.1,0.2",
            "x,y",
            [
                "line 2 ('a.wav'), column 'Bark': 'x' is not a number",
                "line 2 ('a.wav'), column 'Meow': 'y' is not a number",
            ],
        ),
        ("0.1,0.2,0.3", "0.1,0.2", ["line 2 ('a.wav'): 3 cells; expected 4, as in the header"]),
        ("0.3", "0.3,0.4", ["line 2 ('a.wav'): 5 cells; expected 4, as in the header"]),
    ],
)
def test_a_planted_problem_is_named_and_nothing_else(problems, old, new, expected):
    assert old in FINE
    assert problems(FINE.replace(old, new, 1)) == expected


def test_all_problems_are_listed(problems):
    assert problems("fname,Bark,Meow,Oboe\na.wav,2,nan,0\na.wav,0,0,0\nd.wav,0,0,0\n") == [
        "line 2 ('a.wav'), column 'Bark': '2' is outside [0, 1]",
        "line 2 ('a.wav'), column 'Meow': 'nan' is not finite",
        "line 3: the row of 'a.wav' is a duplicate, it is on line 2 already",
        "line 4: the row of 'd.wav' is not in the sample",
        "the row of 'b.wav' is missing",
        "the row of 'c.wav' is missing",
    ]


def test_a_file_that_is_not_a_table_is_one_problem(problems, tmp_path):
    assert len(problems("")) == 1 and "the file is empty" in problems("")[0]
    assert len(problems(b"\x89PNG\r\n\x1a\n")) == 1
    assert problems("fname,Bark,Bark,Oboe\n") == [
        f"{tmp_path / 'submission.csv'}: line 1: the column 'Bark' appears twice"
    ]
    (tmp_path / "sample.csv").write_text(SAMPLE)
    assert submission_problems(tmp_path / "none.csv", tmp_path / "sample.csv")[0].startswith(
        f"{tmp_path / 'none.csv'}: no such file"
    )


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.floats(0, 1), min_size=2, max_size=2), min_size=1, max_size=6), st.data())
def test_one_invalid_cell_is_found(tmp_path_factory, rows, data):
    folder = tmp_path_factory.mktemp("submission")

    def write(name, cells):
        text = io.StringIO()
        csv.writer(text).writerows(cells)
        (folder / name).write_text(text.getvalue())
        return folder / name

    cells = [["fname", "Bark", "Meow"], *([f"{i}.wav", *map(repr, row)] for i, row in enumerate(rows))]
    sample = write("sample.csv", cells)
    assert submission_problems(write("submission.csv", cells), sample) == []
    line, column = data.draw(st.integers(1, len(rows))), data.draw(st.integers(1, 2))
    cells[line][column] = data.draw(
        st.sampled_from(["nan", "NaN", "-inf", "", "1,5", "0x1", "True", "1.1", "-0.1", "1e3"])
    )
    (found,) = submission_problems(write("submission.csv", cells), sample)
    assert found.startswith(f"line {line + 1} ('{line - 1}.wav'), column '{cells[0][column]}': {cells[line][column]!r}")


def test_the_sample_itself_must_be_a_table(tmp_path):
    (tmp_path / "fine.csv").write_text(FINE)
    for text, message in [
        ("", "is empty"),
        ("id,Bark\n", "the header begins 'id, Bark'"),
        (SAMPLE + "a.wav,0,0,0\n", "line 5: .* duplicate"),
    ]:
        (tmp_path / "sample.csv").write_text(text)
        with pytest.raises(DataError, match=message):
            submission_problems(tmp_path / "fine.csv", tmp_path / "sample.csv")


def test_the_error_lists_twenty_problems_and_counts_the_rest(tmp_path):
    (tmp_path / "sample.csv").write_text("fname,Bark\n" + "".join(f"{i},0\n" for i in range(23)))
    (tmp_path / "submission.csv").write_text("fname,Bark\n")
    with pytest.raises(SubmissionError) as e:
        check_submission(tmp_path / "submission.csv", tmp_path / "sample.csv")
    lines = str(e.value).split("\n")
    assert lines[0] == f"{tmp_path / 'submission.csv'} does not match {tmp_path / 'sample.csv'}:"
    assert (
        lines[1] == "  the row of '0' is missing"
        and lines[20] == "  the row of '19' is missing"
        and lines[21] == "  and 3 more"
    )
    assert len(lines) == 22


def test_a_valid_submission_raises_nothing(tmp_path):
    (tmp_path / "sample.csv").write_text(SAMPLE)
    (tmp_path / "submission.csv").write_text(FINE)
    check_submission(tmp_path / "submission.csv", tmp_path / "sample.csv")
