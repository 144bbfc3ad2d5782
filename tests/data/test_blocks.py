"""From tables of files to batches of spectrograms."""

import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch

from fatai.audio.front_ends import front_end
from fatai.data.blocks import AudioBlock, FATDataLoaders
from fatai.data.config import ClipConfig
from fatai.data.tensors import TensorSpec, TensorWave
from fatai.data.transforms import CenterCrop, LoadClip, RandomCrop
from fatai.errors import DataError, LabelError, OptionError

SR = 44100


@pytest.fixture
def tones(tmp_path):
    """Six tones of 1 s in two folders, and their table."""
    rows = []
    for k in range(6):
        tag = "low" if k < 3 else "high"
        (tmp_path / tag).mkdir(exist_ok=True)
        sf.write(
            tmp_path / tag / f"{k}.wav", 0.5 * np.sin(np.arange(SR) * (0.02 if k < 3 else 0.5)), SR, subtype="PCM_16"
        )
        rows.append({"name": f"{tag}/{k}", "tag": tag, "is_held_out": k in (2, 5)})
    return tmp_path, pd.DataFrame(rows)


def load(root, df, **options):
    return FATDataLoaders.from_df(
        df, root, fn_col="name", label_col="tag", suff=".wav", crop_s=0.5, bs=2, num_workers=0, **options
    )


def test_a_batch_is_spectrograms_and_multi_hot_tags(small_dls):
    spec, targ = small_dls.one_batch()
    assert isinstance(spec, TensorSpec) and spec.shape == (16, 1, 64, small_dls.clip_config.front_end.frames(SR // 2))
    assert targ.shape == (16, 10) and set(targ.unique().tolist()) == {0.0, 1.0}


def test_vocabulary_is_the_sample_submissions_columns_in_its_order(sample, small_dls):
    columns = (sample / "sample_submission.csv").read_text().splitlines()[0].split(",")[1:]
    assert list(small_dls.tags) == list(small_dls.vocab) == columns


def test_valid_col_selects_the_validation_clips(tones):
    dls = load(*tones, valid_col="is_held_out")
    assert list(dls.files(1)["fname"]) == ["low/2", "high/5"] and len(dls.files(0)) == 4


def test_a_valid_col_of_words_is_parsed(tones):
    root, df = tones
    dls = load(root, df.assign(is_held_out=["no", "no", "yes", "no", "no", "yes"]), valid_col="is_held_out")
    assert len(dls.files(1)) == 2
    with pytest.raises(DataError, match="'maybe'; expected true or false"):
        load(root, df.assign(is_held_out="maybe"), valid_col="is_held_out")


def test_training_crops_vary_and_validation_crops_do_not(tones):
    def pair(ds):
        return [ds[0][0] for _ in range(2)]

    config = ClipConfig(crop_s=0.5)
    wave = TensorWave(torch.arange(SR * 2.0))
    torch.manual_seed(0)
    first, second = RandomCrop(config)(wave, split_idx=0), RandomCrop(config)(wave, split_idx=0)
    assert first.shape == (SR // 2,) and first[0] != second[0]
    center = CenterCrop(config)(wave, split_idx=1)
    assert center[0] == (2 * SR - SR // 2) // 2 and torch.equal(center, CenterCrop(config)(wave, split_idx=1))
    a, b = pair(load(*tones, valid_col="is_held_out").valid_ds)
    assert torch.equal(a, b)


def test_random_crops_reach_both_ends():
    config = ClipConfig(crop_s=0.1)
    wave = TensorWave(torch.arange(config.crop_samples + 2.0))
    starts = {int(RandomCrop(config)(wave, split_idx=0)[0]) for _ in range(200)}
    assert starts == {0, 1, 2}


def test_a_short_clip_is_padded_to_the_crop():
    cropped = CenterCrop(ClipConfig(crop_s=0.5))(TensorWave(torch.ones(100)), split_idx=1)
    assert cropped.shape == (SR // 2,) and float(cropped.sum()) == 100 and cropped[SR // 4] == 1


def test_the_spectrogram_of_a_batch_is_that_of_the_front_end(small_dls):
    spec, _ = small_dls.one_batch()
    expected = front_end("ninth").build()(spec.wave.as_subclass(torch.Tensor))
    torch.testing.assert_close(spec.as_subclass(torch.Tensor)[:, 0], expected)


def test_from_csv_from_folder_and_from_df_load_the_same_clips(tones):
    root, df = tones
    df.assign(name=df["name"] + ".wav").to_csv(root / "table.csv", index=False)
    by_csv = FATDataLoaders.from_csv(
        root, "table.csv", fn_col="name", label_col="tag", crop_s=0.5, bs=2, valid_pct=0, num_workers=0
    )
    by_folder = FATDataLoaders.from_folder(root, crop_s=0.5, bs=2, valid_pct=0, num_workers=0)
    by_df = load(root, df, valid_pct=0)
    assert {tuple(sorted(d.files(0)["path"])) for d in (by_csv, by_folder, by_df)} == {
        tuple(sorted(by_df.files(0)["path"]))
    }
    assert by_csv.tags == by_folder.tags == by_df.tags == ("high", "low")


def test_several_columns_of_labels_are_0_and_1_or_tags(tones):
    root, df = tones
    flags = df.assign(low=[1, 1, 1, 0, 0, 0], high=[0, 0, 0, 1, 1, 1], loud=[True, False] * 3)
    options = {"fn_col": "name", "suff": ".wav", "valid_pct": 0, "bs": 2, "num_workers": 0}
    dls = FATDataLoaders.from_df(flags, root, label_col=["low", "high", "loud"], **options)
    labels = [["low", "loud"], ["low"], ["low", "loud"], ["high"], ["high", "loud"], ["high"]]
    assert list(dls.files(0)["labels"]) == labels and dls.tags == ("high", "loud", "low")
    more = df.assign(more=["loud", "", "loud", None, "loud", "high"])
    dls = FATDataLoaders.from_df(more, root, label_col=["tag", "more"], **options)
    assert list(dls.files(0)["labels"]) == labels


def test_a_row_for_each_tag_is_joined_and_repeated_rows_stay(tones):
    root, df = tones
    twice = pd.concat([df, df.head(1), df.iloc[1:2].assign(tag="loud")], ignore_index=True)
    with pytest.warns(UserWarning, match=r"8 rows are 7 files; the tags of a file's rows were joined: low/1"):
        dls = load(root, twice, valid_pct=0)
    assert list(dls.files(0)["fname"]) == ["low/0", "low/1", "low/2", "high/3", "high/4", "high/5", "low/0"]
    assert dls.files(0)["labels"][1] == ["low", "loud"]


def test_from_csv_finds_separator_and_encoding(tones):
    root, df = tones
    df.to_csv(root / "mine.csv", sep=";", index=False, encoding="utf-16")
    dls = FATDataLoaders.from_csv(root, "mine.csv", suff=".wav", valid_pct=0, bs=2, num_workers=0)
    assert list(dls.files(0)["labels"]) == [[tag] for tag in df["tag"]]


def test_an_unknown_option_raises_with_the_nearest(tones):
    root, df = tones
    with pytest.raises(OptionError, match=r"no option 'valid_pc'; did you mean valid_pct"):
        load(root, df, valid_pc=0.5)
    with pytest.raises(OptionError, match="no option 'vaild'"):
        FATDataLoaders.from_folder(root, vaild="low")
    assert load(root, df, val_bs=1, shuffle=False, device="cpu", after_iter=None).valid.bs == 1


def test_the_first_folder_is_the_tag(tones):
    root, _ = tones
    (root / "low" / "site").mkdir()
    shutil.move(root / "low" / "0.wav", root / "low" / "site")
    dls = FATDataLoaders.from_folder(root, valid_pct=0, bs=2, num_workers=0)
    assert dls.tags == ("high", "low") and "low/site/0.wav" in list(dls.files(0)["fname"])
    with pytest.raises(DataError, match="is a file; expected a folder with a folder"):
        FATDataLoaders.from_folder(root / "low" / "1.wav")


def test_from_folder_can_hold_out_one_folder(tones):
    root, _ = tones
    for part in ("train", "test"):
        for tag in ("low", "high"):
            (root / "split" / part / tag).mkdir(parents=True)
            sf.write(root / "split" / part / tag / "a.wav", np.ones(SR) * 0.1, SR)
    dls = FATDataLoaders.from_folder(root / "split", valid="test", crop_s=0.5, bs=2, num_workers=0)
    assert len(dls.files(0)) == len(dls.files(1)) == 2 and dls.tags == ("high", "low")


def test_noisy_clips_are_in_training_only(sample):
    dls = FATDataLoaders.from_path(sample, noisy=True, crop_s=1, seed=0, num_workers=0)
    assert len(dls.files(0)) == 96 + 72 and not dls.files(1)["path"].str.contains("train_noisy").any()


def test_unreadable_training_files_are_left_out_with_one_warning(tones):
    root, df = tones
    (root / "low" / "0.wav").write_bytes(b"")
    with pytest.warns(UserWarning, match="1 of 6 training files.*left out") as caught:
        dls = load(root, df, valid_pct=0)
    assert len([w for w in caught if "training files" in str(w.message)]) == 1 and "0.wav" in str(caught[0].message)
    assert dls.unreadable == ("low/0",) and len(dls.files(0)) == 5


def test_no_readable_file_at_all_is_an_error(tones):
    root, df = tones
    with pytest.raises(DataError, match="none of the 6"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load(root, df.assign(name="nowhere/" + df["name"]))


def test_an_unknown_tag_names_the_row_and_the_nearest(tones):
    root, df = tones
    df.loc[3, "tag"] = "hihg"
    with pytest.raises(LabelError, match="high/3.*'hihg'; did you mean high"):
        load(root, df, vocab=["high", "low"])


def test_a_missing_column_is_named(tones):
    root, df = tones
    with pytest.raises(DataError, match="fn_col is 'fname'"):
        FATDataLoaders.from_df(df, root, fn_col="fname")


def test_fewer_clips_than_a_batch_still_train_on_all_of_them(tones):
    dls = FATDataLoaders.from_df(
        tones[1], tones[0], fn_col="name", label_col="tag", suff=".wav", crop_s=0.5, valid_pct=0, bs=64, num_workers=0,
    )
    assert len(dls.train) == 1 and dls.one_batch()[1].shape[0] == 6


def test_the_prior_is_the_fraction_of_training_clips_with_each_tag(tones):
    assert load(*tones, valid_col="is_held_out").prior().tolist() == [0.5, 0.5]
    root, df = tones
    assert load(root, df.assign(is_held_out=df["tag"] == "low"), valid_col="is_held_out").prior().tolist() == [1.0, 0.0]


def test_workers_load_the_same_batch_as_the_main_process(sample):
    def batch(workers):
        dls = FATDataLoaders.from_path(sample, crop_s=1, bs=8, seed=0, num_workers=workers)
        return next(iter(dls.valid))[0]

    torch.testing.assert_close(batch(0), batch(2))


def test_arrays_pass_through_as_waves():
    wave = LoadClip(ClipConfig(trim_db=None))(np.zeros(10, dtype=np.float64))
    assert isinstance(wave, TensorWave) and wave.dtype == torch.float32 and wave.sr == SR


def test_an_audio_block_has_no_spectrogram_transform():
    block = AudioBlock(ClipConfig(crop_s=0.5))
    assert not any("Spec" in type(t).__name__ for t in block.batch_tfms)


@pytest.mark.parametrize("bad", [{"crop_s": 0}, {"crop_s": float("nan")}, {"channels": "tow"}])
def test_invalid_clip_configs_raise(bad):
    with pytest.raises(OptionError, match="crop_s is|channels is 'tow'"):
        ClipConfig(**bad)


def test_corrections_apply_in_from_folder_and_from_df(sample, tmp_path):
    for tag, name in (("Bark", "a"), ("Bark", "b"), ("Rain", "c")):
        (tmp_path / "sounds" / tag).mkdir(parents=True, exist_ok=True)
        shutil.copy(sorted((sample / "test").iterdir())[0], tmp_path / "sounds" / tag / f"{name}.ogg")
    fixes = tmp_path / "fixes.csv"
    fixes.write_text("fname,labels\nBark/a.ogg,remove\nBark/b.ogg,\"Bark,Rain\"\nRain/z.ogg,Rain\n")
    with pytest.warns(UserWarning, match="1 of 3 corrections .* match no clip and have no effect: Rain/z.ogg"):
        dls = FATDataLoaders.from_folder(
            tmp_path / "sounds", corrections=fixes, valid_pct=0, crop_s=0.5, bs=2, num_workers=0
        )
    assert dict(zip(dls.files(0)["fname"], dls.files(0)["labels"], strict=True)) == {
        "Bark/b.ogg": ["Bark", "Rain"],
        "Rain/c.ogg": ["Rain"],
    }
    df = pd.DataFrame({"fname": ["Bark/a.ogg", "Rain/c.ogg"], "labels": ["Bark", "Rain"]})
    fixes.write_text("fname,labels\nBark/a.ogg,Raine\n")
    with pytest.raises(LabelError, match="fixes.csv, row 1 .*did you mean Rain"):
        FATDataLoaders.from_df(df, tmp_path / "sounds", corrections=fixes, vocab=["Bark", "Rain"], num_workers=0)


@pytest.mark.parametrize(
    ("column", "cells", "message"),
    [
        ("weight", [1, float("nan"), 1, 1, 1, 1], "row 2: the column 'weight' is 'nan'; expected sample weights"),
        ("weight", [1, 1, -1, 1, 1, 1], "row 3: the column 'weight' is '-1'"),
        ("noisy", ["no", "rather", "no", "no", "no", "no"], "row 2: the column 'noisy' holds 'rather'"),
        ("name", ["low/0", None, "low/2", "high/3", "high/4", "high/5"], "row 2 has no file name"),
        ("name", [" ", "low/1", "low/2", "high/3", "high/4", "high/5"], "row 1 has no file name"),
        ("tag", [""] * 6, "the table has no tags"),
        ("tag", ["a", 1, "a", "a", "a", "a"], r"row 2, column 'tag': .* is 1 \(int\).*label_col=\['tag'\]"),
        ("is_held_out", [True] * 6, "'is_held_out' holds out all 6 clips"),
    ],
    ids=["weight-nan", "weight-negative", "noisy", "no-name", "blank-name", "no-tags", "number", "all-held-out"],
)
def test_a_wrong_cell_names_its_row(tones, column, cells, message):
    root, df = tones
    with pytest.raises((DataError, LabelError), match=message):
        load(root, df.assign(**{column: cells}), valid_col="is_held_out")


@pytest.mark.parametrize("bad", [
    {"valid_pct": 1.0}, {"valid_pct": -0.1}, {"valid_pct": float("nan")}, {"bs": 0}, {"bs": 2.5}, {"vocab": "low"},
    {"vocab": ["low", "high", "low"]}, {"trim_db": -1}, {"trim_db": float("nan")}, {"pad_mode": "zero"},
], ids=lambda bad: "-".join(f"{name}={value}" for name, value in bad.items()))
def test_an_option_out_of_range_is_named(tones, bad):
    root, df = tones
    name = next(iter(bad))
    with pytest.raises(OptionError, match=f"{name} (is|has)"):
        FATDataLoaders.from_df(df, root, **{"fn_col": "name", "label_col": "tag", "suff": ".wav", "bs": 2, **bad})


def test_tables_that_are_none_and_columns_that_are_none_are_named(tones):
    root, df = tones
    with pytest.raises(OptionError, match="df is of type str; expected a data frame: from_csv"):
        FATDataLoaders.from_df("mine.csv", root)
    with pytest.raises(DataError, match="label_col is None"):
        FATDataLoaders.from_df(df, root, label_col=None)
    with pytest.raises(DataError, match="label_col is column number -4, but the table has 3 columns"):
        FATDataLoaders.from_df(df, root, label_col=-4)
    with pytest.raises(DataError, match="the table has no rows"):
        load(root, df.head(0))


def test_from_csv_names_the_file_and_the_line(tones):
    root, _ = tones
    (root / "mine.csv").write_text("fname,labels,weight\n\nlow/0.wav,low,1\n\nhigh/3.wav,high,x\n")
    with pytest.raises(DataError, match=r"mine\.csv, row 2 \(line 5\): the column 'weight' is 'x'"):
        FATDataLoaders.from_csv(root, "mine.csv")


def test_columns_by_position_that_the_names_contradict_are_told(tones):
    root, _ = tones
    rows = [f"low/{k}.wav,{k % 2},low,{int(k < 2)}" for k in range(3)]
    (root / "mine.csv").write_text("\n".join(["filename,fold,category,Loud", *rows]))
    with pytest.warns(UserWarning, match="the tags are those of the column 'fold', by its position.*'category'"):
        FATDataLoaders.from_csv(root, "mine.csv")
    with pytest.warns(UserWarning, match="the column 'Loud' holds only 0 and 1"):
        FATDataLoaders.from_csv(root, "mine.csv", label_col="Loud")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FATDataLoaders.from_csv(root, "mine.csv", label_col="category")
        FATDataLoaders.from_csv(root, "mine.csv", label_col=["Loud"])


def test_tags_that_are_likely_separated_by_bars_are_noticed(tones):
    root, _ = tones
    (root / "mine.csv").write_text("fname,labels\nlow/0.wav,low|soft\nlow/1.wav,low\nhigh/3.wav,high|soft\n")
    with pytest.warns(UserWarning, match=r"mine.csv: the cells of the column 'labels' hold \|.*give label_delim='\|'"):
        assert FATDataLoaders.from_csv(root, "mine.csv").vocab == ["high|soft", "low", "low|soft"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert FATDataLoaders.from_csv(root, "mine.csv", label_delim="|").vocab == ["high", "low", "soft"]
        (root / "mine.csv").write_text('fname,labels\nlow/0.wav,"low|soft,mono"\nlow/1.wav,low\nhigh/3.wav,high\n')
        assert "low|soft" in FATDataLoaders.from_csv(root, "mine.csv").vocab


def test_a_folder_to_hold_out_that_is_not_there_is_named(tones):
    root, _ = tones
    for part in ("train", "valid"):
        shutil.copytree(root / "low", root / "data" / part / "low")
    with pytest.raises(DataError, match=r"data/vaild/<tag>; did you mean valid\?"):
        FATDataLoaders.from_folder(root / "data", valid="vaild")
