"""Tables of labels: cells, CSVs, targets, corrections."""

import unicodedata

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import MultiLabelBinarizer

from fatai.data.labels import (
    apply_corrections,
    check_labels,
    join_labels,
    multi_hot,
    parse_labels,
    read_corrections,
    read_labels,
    read_table,
    unique_tags,
)
from fatai.errors import DataError, LabelError

TAGS = ["Bark", "Meow", "Purr"]
NAMES = st.text(
    st.characters(blacklist_characters=",;", blacklist_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]),
    min_size=1,
    max_size=8,
).map(lambda name: unicodedata.normalize("NFC", name)).filter(
    lambda name: name[0] not in "[({" and ";" not in name and name.lower() not in ("nan", "none", "null")
)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("Bark", ["Bark"]),
        ("Bark,Meow", ["Bark", "Meow"]),
        ("Bark;Meow", ["Bark", "Meow"]),
        (" Bark , Meow ;Purr", TAGS),
        ("", []),
        (",;,", []),
        ("Bark,,Bark", ["Bark"]),
        (None, []),
        (float("nan"), []),
        (pd.NA, []),
        (["Meow", "Bark"], ["Meow", "Bark"]),
        (("Bark", "Bark"), ["Bark"]),
        (np.array(["Bark"]), ["Bark"]),
        ({"Purr", "Bark"}, ["Bark", "Purr"]),
        ("Fill_(with_liquid)", ["Fill_(with_liquid)"]),
        ("NA", ["NA"]),
        ("None", []),
        (" null ", []),
        ("['Rain', 'loud']", ["Rain", "loud"]),
        ('["Bird\'s", \'a,b\']', ["Bird's", "a,b"]),
        ("('Rain',)", ["Rain"]),
        ("['Rain' 'loud']", ["Rain", "loud"]),
        ("[Rain, loud]", ["Rain", "loud"]),
        ("[]", []),
        ("[3]", ["3"]),
        ("[noise]", ["[noise]"]),
        ("(unknown)", ["(unknown)"]),
        ("Cafe\u0301", ["Caf\u00e9"]),
        ("Walk and footsteps", ["Walk and footsteps"]),
    ],
)
def test_a_cell_gives_its_tags_in_order_and_once(cell, expected):
    assert parse_labels(cell) == expected


def test_another_separator_leaves_commas_in_tags():
    assert parse_labels("Hi-hat, closed|Bark", "|") == ["Hi-hat, closed", "Bark"]


def test_a_number_is_no_cell_of_labels():
    with pytest.raises(LabelError, match="5 .int."):
        parse_labels(5)


@given(st.lists(NAMES, unique=True, max_size=5))
def test_joining_and_parsing_are_inverse(labels):
    assert parse_labels(join_labels(labels)) == labels


@pytest.mark.parametrize("tag", ["a,b", "a;b", " a", "", "None", "['a']", "Cafe\u0301"])
def test_a_tag_that_would_not_be_parsed_back_is_not_joined(tag):
    with pytest.raises(LabelError, match="cannot be written"):
        join_labels(["Bark", tag])


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_keeps_order_and_other_columns_and_the_word_na(tmp_path):
    csv = write(tmp_path / "t.csv", 'site,labels,fname\nNA,"Purr,Bark", b.wav\n,,a.wav\n')
    table = read_labels(csv)
    assert list(table.columns) == ["fname", "labels", "site"]
    assert table["fname"].tolist() == ["b.wav", "a.wav"]
    assert table["labels"].tolist() == [["Purr", "Bark"], []]
    assert table["site"].tolist() == ["NA", ""]


def test_words_for_missing_values_are_no_tags_and_are_named(tmp_path):
    csv = write(tmp_path / "t.csv", "fname,labels\n1.wav,NA\n2.wav,None\n003,NaN\n4.wav,null\n5.wav,NaN\n")
    with pytest.warns(UserWarning, match=r"t\.csv: .*count as empty.*: None \(1\), NaN \(2\), null \(1\)"):
        table = read_labels(csv)
    assert table["labels"].tolist() == [["NA"], [], [], [], []] and table["fname"].tolist()[2] == "003"


def test_a_table_saved_by_a_spreadsheet_is_read(tmp_path):
    csv = tmp_path / "t.csv"
    csv.write_bytes("\ufefffname,labels\r\na.wav,Bark;Meow\r\n".encode())
    assert read_labels(csv)["labels"].tolist() == [["Bark", "Meow"]]


def test_columns_of_other_names(tmp_path):
    csv = write(tmp_path / "t.csv", "filename,category\na.wav,Bark|Meow\n")
    table = read_labels(csv, fn_col="filename", label_col="category", label_delim="|")
    assert table.to_dict("records") == [{"fname": "a.wav", "labels": ["Bark", "Meow"]}]


def test_an_unknown_label_names_table_row_file_and_nearest_tag(tmp_path):
    csv = write(tmp_path / "train_curated.csv", "fname,labels\na.wav,Bark\nb.wav,\"Purr,Meov\"\n")
    with pytest.raises(
        LabelError, match=r"train_curated\.csv, row 2 \(line 3\), b\.wav: unknown tag 'Meov'; did you mean Meow\?"
    ):
        read_labels(csv, tags=TAGS)


def test_a_label_similar_to_none_raises_with_the_known_tags():
    table = pd.DataFrame({"fname": ["a.wav"], "labels": [["Xylophone"]]})
    with pytest.raises(LabelError, match="known: Bark, Meow, Purr"):
        check_labels(table, TAGS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,labels\na.wav,Bark\n", "no column 'fname': rename one, or pass the names to .*; did you mean name"),
        ("fname,tags\na.wav,Bark\n", "no column 'labels'"),
        ("fname,labels\na.wav,Bark\n,Meow\n", r"row 2 \(line 3\) has no file name"),
        (
            "fname,labels\na.wav,Bark\nb.wav,Bark\na.wav,Meow\n",
            r"a\.wav twice, in row 1 \(line 2\) and row 3 \(line 4\)",
        ),
        ("", "is empty; expected a header with fname, labels"),
        (
            "fname,labels\na.wav,Bark,Meow\nb.wav,Bark\n",
            r'row 1 \(line 2\) has 3 cells, but the header 2; put "quotes" around',
        ),
        ("fname,labels\na.wav,Bark\nb.wav\n", r"row 2 \(line 3\) has 1 cells"),
        ("\nfname,labels\n\na.wav,Bark\n\n,Meow\n", r"row 2 \(line 6\) has no file name"),
        ('fname,labels,note\na.wav,Bark,"two\nlines"\n,Meow,\n', r"row 2 \(line 4\) has no file name"),
        ("sep=;\nfname;labels\na.wav;Bark\na.wav;Bark\n", r"row 1 \(line 3\) and row 2 \(line 4\)"),
        ("fname,labels,labels\na.wav,Bark,Meow\n", "column 'labels' twice"),
        ('fname,labels\na.wav,"Bark\n', "no table of cells"),
    ],
)
def test_an_invalid_table_raises_with_the_problem(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_labels(write(tmp_path / "t.csv", text))


def test_no_table_at_all(tmp_path):
    with pytest.raises(DataError, match="there is no table .*t.csv; expected a CSV with the columns fname, labels"):
        read_labels(tmp_path / "t.csv")


def test_a_table_of_a_western_windows_is_read_with_a_warning(tmp_path):
    csv = tmp_path / "t.csv"
    csv.write_bytes("fname,labels\né.wav,Caf\u00e9\n".encode("cp1252"))
    with pytest.warns(UserWarning, match="was read as Windows-1252"):
        table = read_table(csv, ["fname"])
    assert table.to_numpy().tolist() == [["é.wav", "Caf\u00e9"]]


def test_bytes_of_no_encoding_raise_with_the_line_and_the_remedy(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"fname,labels\na.wav,\x81\n")
    with pytest.raises(DataError, match=r"t\.csv, line 2 is not text in UTF-8 \(.*\); save the table as CSV in UTF-8$"):
        read_table(tmp_path / "t.csv", ["fname"])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_encoding_and_separator_are_found(tmp_path, encoding, delimiter):
    text = delimiter.join(["fname", "labels", "site"]) + "\r\n" + delimiter.join(["a.wav", '"Bark, Meow"', ""]) + "\r\n"
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    assert read_labels(tmp_path / "t.csv").to_dict("records") == [
        {"fname": "a.wav", "labels": ["Bark", "Meow"], "site": ""}
    ]


@pytest.mark.parametrize("text", [
    "fname,labels\na.wav,Bark,\n", "fname,labels,\na.wav,Bark,\n", "fname,labels,,\na.wav,Bark,,\n",
    "sep=;\nfname;labels\na.wav;Bark\n",
])
def test_what_spreadsheets_add_is_left_out(tmp_path, text):
    assert read_table(write(tmp_path / "t.csv", text), ["fname"]).to_dict("records") == [
        {"fname": "a.wav", "labels": "Bark"}
    ]


@given(st.lists(st.lists(st.sampled_from(TAGS), unique=True, max_size=3), max_size=6))
def test_multi_hot_is_scikit_learns(labels):
    targ = multi_hot(labels, TAGS)
    assert targ.dtype == np.float32 and targ.shape == (len(labels), 3)
    np.testing.assert_array_equal(targ, MultiLabelBinarizer(classes=TAGS).fit_transform(labels).reshape(-1, 3))


def test_columns_follow_the_vocabulary_not_the_alphabet():
    np.testing.assert_array_equal(multi_hot([["Bark"], ["Purr", "Bark"]], ["Purr", "Bark"]), [[0, 1], [1, 1]])


def test_multi_hot_names_the_clip_and_the_nearest_tag():
    with pytest.raises(LabelError, match="clip 1 has the unknown tag 'bark'; did you mean Bark"):
        multi_hot([["Bark"], ["bark"]], TAGS)


def test_tags_are_sorted_as_plain_text():
    assert unique_tags([["b", "a"], ["B"], [], ["Z_(x)"]]) == ("B", "Z_(x)", "a", "b")


def curated():
    return pd.DataFrame(
        {"fname": ["a", "b", "c"], "labels": [["Bark"], ["Meow"], ["Purr", "Bark"]], "site": ["1", "2", "3"]}
    )


def test_corrections_relabel_and_remove_and_leave_the_rest(tmp_path):
    csv = write(tmp_path / "corrections.csv", "fname,labels\nb,remove\nc,\"Meow;Purr\"\n")
    before = curated()
    after = apply_corrections(before, read_corrections(csv, tags=TAGS))
    assert after["fname"].tolist() == ["a", "c"] and after["labels"].tolist() == [["Bark"], ["Meow", "Purr"]]
    assert after["site"].tolist() == ["1", "3"] and after.index.tolist() == [0, 1]
    pd.testing.assert_frame_equal(before, curated())


def test_corrections_of_other_clips_do_nothing_here(tmp_path):
    csv = write(tmp_path / "corrections.csv", "fname,labels\nx,remove\n")
    assert apply_corrections(curated(), read_corrections(csv))["fname"].tolist() == ["a", "b", "c"]


def test_everything_may_be_removed(tmp_path):
    csv = write(tmp_path / "corrections.csv", "fname,labels\na,remove\nb,remove\nc,remove\n")
    after = apply_corrections(curated(), read_corrections(csv, tags=TAGS))
    assert len(after) == 0 and list(after.columns) == ["fname", "labels", "site"]


@pytest.mark.parametrize(("row", "message"), [
    ("a,", r"row 1 \(line 2\), a: no labels"), ('a,"remove,Bark"', "either tags or 'remove' alone"),
    ("a,Barc", "unknown tag 'Barc'; did you mean Bark"),
])
def test_an_invalid_correction_raises_with_its_row(tmp_path, row, message):
    with pytest.raises(LabelError, match=message):
        read_corrections(write(tmp_path / "corrections.csv", f"fname,labels\n{row}\n"), tags=TAGS)
