"""Many clips into one table: in chunks, in shards, continued after a kill, also by the command."""

import shutil

import pandas as pd
import pytest

from fatai.errors import DataError, OptionError
from fatai.experiment import bulk_predict
from fatai.experiment.bulk_predict import Shard, merge_shards, parse_shard, predict_to_csv, run_identity
from fatai.experiment.ensemble_folder import EnsembleFolder
from fatai.experiment.run_folder import predict_with_run
from fatai.inference.predictions import Predictions


@pytest.fixture
def items(sample):
    paths = sorted((sample / "test").iterdir())[:7]
    return pd.DataFrame({"fname": [p.name for p in paths], "path": paths})


class KilledError(Exception):
    pass


def test_a_list_is_predicted_in_chunks_and_continues_after_a_kill(tiny_run, items, tmp_path, monkeypatch):
    whole, out = predict_with_run(tiny_run.out, items), tmp_path / "tags.csv"
    predicted = []

    def killed_after_four(run, part, **options):
        if len(predicted) == 4:
            raise KilledError
        predicted.extend(name for name, _ in part)
        return predict_with_run(run, part, **options)

    monkeypatch.setattr(bulk_predict, "predict_with_run", killed_after_four)
    with pytest.raises(KilledError):
        predict_to_csv(tiny_run.out, items, out, chunk=2, num_workers=0)
    journal = tmp_path / "tags.csv.journal"
    with journal.open("a") as f:
        f.write('["half a line')  # as left by a process that is killed while it writes
    monkeypatch.setattr(bulk_predict, "predict_with_run", predict_with_run)
    with pytest.raises(DataError, match="was written for other clips, another run or other options"):
        predict_to_csv(tiny_run.out, items[:6], out, chunk=2)
    # Another number of workers, or none given, continues: it does not change the predictions.
    assert not out.exists() and predict_to_csv(tiny_run.out, items, out, chunk=2) == 7 and not journal.exists()
    got = Predictions.from_csv(out)
    assert got.fnames == whole.fnames and abs(got.probs - whole.probs).max() < 1e-6
    assert predicted == list(items["fname"][:4]), "each clip was predicted once before the kill"


def test_shards_are_consecutive_and_join_to_the_whole(tiny_run, items, tmp_path):
    out = tmp_path / "tags.csv"
    for k in (1, 3):
        shard = parse_shard(f"{k}/3")
        predict_to_csv(tiny_run.out, items[shard.rows(7)], shard.file(out))
    with pytest.raises(DataError, match="the shards 2/3 of .* are missing"):
        merge_shards(out)
    predict_to_csv(tiny_run.out, items[Shard(2, 3).rows(7)], tmp_path / "tags.2-of-3.csv", keep_journal=True)
    assert merge_shards(out) == 7 and [f.name for f in tmp_path.iterdir()] == ["tags.csv"]
    assert Predictions.from_csv(out).fnames == tuple(items["fname"])
    with pytest.raises(DataError, match="there are no shards of"):
        merge_shards(out)


@pytest.mark.parametrize("n", [0, 1, 5, 7, 100])
def test_every_row_is_in_one_shard(n):
    rows = [i for k in range(1, 6) for i in range(n)[Shard(k, 5).rows(n)]]
    assert rows == list(range(n))


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3"])
def test_an_invalid_shard_is_refused(text):
    with pytest.raises(OptionError, match="expected its number and the number of shards, such as 2/8"):
        parse_shard(text)


def test_two_clips_of_one_name_are_refused(tiny_run, items, tmp_path):
    with pytest.raises(DataError, match="two clips are named"):
        predict_to_csv(tiny_run.out, pd.concat([items, items[:1]]), tmp_path / "tags.csv")


def test_the_command_takes_lists_and_shards_and_keeps_files_of_the_same_name_apart(
    tiny_run, items, tmp_path, main_with, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for folder, path in zip(("a", "b"), items["path"], strict=False):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.ogg").write_bytes(path.read_bytes())
    (tmp_path / "list.txt").write_text(f"a/same.ogg\nb/same.ogg\n\n{items['path'][2]}\nnowhere.wav\n")
    for k in (1, 2):
        ended = main_with("predict", tiny_run.out, "--input-list", "list.txt", "--out", "tags.csv", "--shard", f"{k}/2")
        assert ended.returncode == 0, ended.stderr
    assert "nowhere.wav" in ended.stderr
    assert main_with("predict", "--merge", "tags.csv").returncode == 0
    assert Predictions.from_csv(tmp_path / "tags.csv").fnames == (
        "a/same.ogg",
        "b/same.ogg",
        items["fname"][2],
        "nowhere.wav",
    )
    for k in (1, 2):
        options = ("--input-list", "list.txt", "--out", "e.csv", "--threshold", "0.05", "--shard", f"{k}/2")
        ended = main_with("tag", tiny_run.out, *options)
        assert ended.returncode == 0, ended.stderr
    ended = main_with("predict", "--merge", "e.csv")
    assert ended.returncode == 0, ended.stderr
    events = pd.read_csv(tmp_path / "e.csv")
    assert list(dict.fromkeys(events["file"])) == ["a/same.ogg", "b/same.ogg", str(items["path"][2])]
    ended = main_with("predict", tiny_run.out)
    assert ended.returncode == 2 and "expected either sounds or an --input-list of them" in ended.stderr
    ended = main_with("tag", tiny_run.out, "a", "--shard", "1/2")
    assert ended.returncode == 2 and "give --out" in ended.stderr


def test_a_journal_with_the_tags_and_no_whole_row_begins_anew(tiny_run, items, tmp_path):
    out = tmp_path / "tags.csv"
    predict_to_csv(tiny_run.out, items[:2], out, keep_journal=True)
    journal, whole = tmp_path / "tags.csv.journal", out.read_bytes()
    header, tags, first = journal.read_text().splitlines()[:3]
    journal.write_text("\n".join([header, tags, first[:20]]))
    assert predict_to_csv(tiny_run.out, items[:2], out) == 2 and out.read_bytes() == whole


def test_a_shard_without_clips_is_a_table_without_rows(tiny_run, items, tmp_path):
    out = tmp_path / "tags.csv"
    for k in (1, 2):
        shard = Shard(k, 2)
        predict_to_csv(tiny_run.out, items[:1][shard.rows(1)], shard.file(out), keep_journal=True)
    assert merge_shards(out) == 1 and Predictions.from_csv(out).fnames == tuple(items["fname"][:1])


def test_other_sounds_of_the_same_names_are_other_clips(tiny_run, items):
    moved = items.assign(path=list(items["path"])[::-1])
    assert run_identity(tiny_run.out, items, {}) != run_identity(tiny_run.out, moved, {})


def test_an_ensemble_whose_member_has_changed_is_another_one(tiny_run, items, tmp_path):
    shutil.copytree(tiny_run.out, tmp_path / "a")
    EnsembleFolder(tmp_path, ("a",), (1.0,)).save()
    before = run_identity(tmp_path, items, {})
    shutil.copy(tmp_path / "a" / "fold_0" / "model.safetensors", tmp_path / "a" / "fold_1" / "model.safetensors")
    assert run_identity(tmp_path, items, {}) != before
