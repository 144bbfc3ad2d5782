"""What is written is read by every loader, whole or not at all."""

import pandas as pd
import pytest

from fatai.data.labels import apply_corrections, read_corrections, read_labels
from fatai.errors import DataError, LabelError, OptionError
from fatai.noisy_labels.io import write_corrections, write_labels
from fatai.noisy_labels.methods import select_noisy_labels

TAGS = ["Bark", "Meow", "Purr"]
TABLE = pd.DataFrame({"fname": ["d.wav", "b.wav", "a.wav"], "labels": [["Bark", "Purr"], ["Meow"], ["Purr"]]})
PROBS = {"fnames": ["d.wav", "b.wav", "a.wav"], "probs": [[0.9, 0.1, 0.9], [0.9, 0.3, 0.9], [0.1, 0.2, 0.3]]}


@pytest.fixture
def relabelled():
    """a is dropped, b becomes Bark and Purr, d stays."""
    return select_noisy_labels(TABLE, TAGS, "relabelall_1.3", **PROBS)


def test_relabelled_tables_read_back(relabelled, tmp_path):
    path = tmp_path / "new" / "train_noisy_relabelled.csv"
    write_labels(relabelled, path)
    assert path.read_bytes() == b'fname,labels\nd.wav,"Bark,Purr"\nb.wav,"Bark,Purr"\n'
    pd.testing.assert_frame_equal(
        read_labels(path, tags=TAGS), relabelled.table[["fname", "labels"]], check_dtype=False
    )


def test_a_relabelled_table_serves_as_corrections_too(relabelled, tmp_path):
    write_labels(relabelled, tmp_path / "new.csv")
    assert read_corrections(tmp_path / "new.csv", tags=TAGS)["labels"].tolist() == [["Bark", "Purr"]] * 2


def test_corrections_lead_from_the_given_table_to_the_chosen_one(relabelled, tmp_path):
    write_corrections(relabelled, tmp_path / "corrections.csv")
    assert (tmp_path / "corrections.csv").read_text() == 'fname,labels\nb.wav,"Bark,Purr"\na.wav,remove\n'
    corrected = apply_corrections(TABLE, read_corrections(tmp_path / "corrections.csv", tags=TAGS))
    assert corrected["fname"].tolist() == list(relabelled.fnames) and corrected["labels"].tolist() == relabelled.labels


def test_weights_are_a_column_where_they_differ_from_1(tmp_path):
    gold = select_noisy_labels(TABLE, TAGS, "gold_plan_confidence", **PROBS)
    write_labels(gold, tmp_path / "gold.csv")
    assert read_labels(tmp_path / "gold.csv")["weight"].tolist() == ["0.9"]
    write_labels(gold, tmp_path / "gold.csv", weights=False)
    assert list(read_labels(tmp_path / "gold.csv").columns) == ["fname", "labels"]


def test_nothing_kept_is_a_table_without_rows(tmp_path):
    options = {"keep_threshold": 1.0, "add_threshold": None}
    write_labels(select_noisy_labels(TABLE, TAGS, "gold_plan_confidence", **PROBS, **options), tmp_path / "none.csv")
    assert len(read_labels(tmp_path / "none.csv")) == 0


@pytest.mark.parametrize("write", [write_labels, write_corrections])
def test_soft_targets_and_double_rows_raise(write, tmp_path):
    with pytest.raises(OptionError, match="kaggle_fat_soft_labels gives soft targets"):
        write(select_noisy_labels(TABLE, TAGS, "kaggle_fat_soft_labels"), tmp_path / "soft.csv")
    fixes = pd.DataFrame({"fname": ["b.wav"], "labels": [["Purr"]]})
    with pytest.raises(DataError, match="first_place_corrections gives clips as noisy and as corrected ones"):
        write(select_noisy_labels(TABLE, TAGS, "first_place_corrections", corrections=fixes), tmp_path / "twice.csv")
    assert list(tmp_path.iterdir()) == []


def test_weights_of_tags_raise_or_are_left_out(tmp_path):
    gold = select_noisy_labels(TABLE, TAGS, "gold_plan_confidence", **PROBS, class_weight=[1, 2, 3])
    with pytest.raises(OptionError, match="weights each tag of a clip, .* weights=False"):
        write_labels(gold, tmp_path / "gold.csv")
    write_labels(gold, tmp_path / "gold.csv", weights=False)


def test_an_error_on_the_way_leaves_the_old_file(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("old")
    odd = pd.DataFrame({"fname": ["a.wav", "b.wav"], "labels": [["Bark"], ["Knock, knock"]]})
    with pytest.raises(LabelError, match="'Knock, knock' cannot be written"):
        write_labels(select_noisy_labels(odd, ["Bark", "Knock, knock"], "as_given"), path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
