"""The check of a data set: every problem is found and named, and nothing else."""

import json
import re
import shutil

import numpy as np
import pytest
import soundfile as sf

from fatai.data.audit.audio_file import audio_digest, check_audio_file
from fatai.data.audit.dataset import check_dataset
from fatai.data.audit.report import FINDING_KINDS
from fatai.data.datasets.fat2019 import fat_sample
from fatai.errors import DataError

SR = 44100


def noise(seed, seconds=0.3, sr=SR, level=0.1):
    return (np.random.default_rng(seed).standard_normal(int(seconds * sr)) * level).clip(-0.9, 0.9).astype(np.float32)


def put(path, wave, sr=SR, subtype="PCM_16"):
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, wave, sr, subtype=subtype)


@pytest.fixture
def data(tmp_path):
    """Six curated and two test clips with nothing wrong."""
    for k in range(6):
        put(tmp_path / "train_curated" / f"c{k}.wav", noise(k))
    for k in range(2):
        put(tmp_path / "test" / f"t{k}.wav", noise(10 + k))
    (tmp_path / "train_curated.csv").write_text(
        "fname,labels\n" + "".join(f"c{k}.wav,{'Bark' if k % 2 else 'Purr'}\n" for k in range(6))
    )
    (tmp_path / "sample_submission.csv").write_text("fname,Bark,Purr\nt0.wav,0,0\nt1.wav,0,0\n")
    return tmp_path


def found_in(report):
    return [(f.kind, f.part, f.fname) for f in report.findings]


def test_a_good_data_set_has_no_findings(data):
    report = check_dataset(data)
    assert report.findings == () and "no problems found" in report.to_text()
    assert len(report.files) == 8 and report.tags == ("Bark", "Purr")
    assert report.hours == pytest.approx({"curated": 1.8 / 3600, "test": 0.6 / 3600})


def make_empty(path):
    sf.write(path, np.zeros(0, np.float32), SR, subtype="PCM_16")


@pytest.mark.parametrize(
    ("kind", "spoil", "detail"),
    [
        ("unreadable", lambda p: p.write_bytes(p.read_bytes()[:30]), "cut short"),
        ("cut", lambda p: p.write_bytes(p.read_bytes()[:-882]), r"0\.290 s are there; its header declares 26,460"),
        ("unreadable", lambda p: p.write_text("<html>not found</html>"), "web page"),
        ("empty", lambda p: p.write_bytes(b""), "0 bytes"),
        ("empty", make_empty, "no samples"),
        (
            "not_finite",
            lambda p: put(p, np.array([0.1, 0.2, np.nan, 0.1] * 9, np.float32), subtype="FLOAT"),
            "sample 2 is nan",
        ),
        ("not_finite", lambda p: put(p, np.array([0.1, -np.inf] * 9, np.float32), subtype="FLOAT"), "sample 1 is -inf"),
        ("silent", lambda p: put(p, np.zeros(SR, np.float32)), r"all samples are 0 \(1\.00 s\)"),
        ("silent", lambda p: put(p, noise(3, level=1e-4).clip(-3e-4, 3e-4)), "-70 dB|-71 dB"),
        ("silent", lambda p: put(p, noise(3, level=1e-4).clip(-3e-4, 3e-4) + 0.1), "-70 dB|-71 dB"),
        ("silent", lambda p: put(p, np.full(SR, 0.25, np.float32)), r"all samples are equal \(1\.00 s\)"),
        ("clipped", lambda p: put(p, (noise(3, level=2.0) * 50).clip(-1, 1)), "in a row at full scale"),
        ("rate", lambda p: put(p, noise(3), sr=22050), "22,050 Hz; most files have 44,100 Hz"),
        ("channels", lambda p: put(p, np.stack([noise(3), noise(4)], 1)), "2 channels"),
    ],
)
def test_each_problem_of_a_file_is_found_and_described(data, kind, spoil, detail):
    spoil(data / "train_curated" / "c3.wav")
    report = check_dataset(data)
    assert found_in(report) == [(kind, "curated", "c3.wav")]
    assert re.search(detail, report.findings[0].detail)
    assert f"{FINDING_KINDS[kind]} (1)" in report.to_text()


@pytest.mark.parametrize(
    ("kinds", "spoil", "detail"),
    [
        (["downmix", "channels"], lambda p: put(p, np.stack([noise(3), -noise(3)], 1)), "cancel .* the loudest"),
        (["downmix", "channels"], lambda p: put(p, np.stack([0 * noise(3), noise(3)], 1)), "channel 2, the loudest"),
        (["downmix"], lambda p: put(p, noise(3) * np.float32(32768), subtype="FLOAT"), "scale of 16-bit integers"),
        (["coding"], lambda p: put(p, noise(3), subtype="ULAW"), "coded as mu-law, with 8 bits"),
        (["coding"], lambda p: put(p, noise(3), subtype="PCM_U8"), "8 bits for each sample"),
    ],
)
def test_files_whose_channels_or_floats_are_not_taken_as_they_are_are_listed(data, kinds, spoil, detail):
    spoil(data / "train_curated" / "c3.wav")
    report = check_dataset(data)
    assert found_in(report) == [(kind, "curated", "c3.wav") for kind in kinds]
    assert re.search(detail, report.findings[0].detail)


def test_files_in_opposite_phase_are_no_duplicates_of_each_other(data):
    for k, seed in ((3, 30), (4, 40)):
        put(data / "train_curated" / f"c{k}.wav", np.stack([noise(seed), -noise(seed)], 1))
    assert not check_dataset(data).of_kind("duplicate")


def test_five_problems_at_once_are_each_named(data):
    curated = data / "train_curated"
    make_empty(curated / "c0.wav")
    put(curated / "c1.wav", np.zeros(SR, np.float32))
    (curated / "c2.wav").write_bytes((curated / "c2.wav").read_bytes()[:30])
    put(curated / "c3.wav", np.stack([noise(3), noise(3) / 2], 1))
    put(curated / "c4.wav", noise(4), sr=SR // 2)
    assert found_in(check_dataset(data)) == [(kind, "curated", f"c{k}.wav") for kind, k in
                                (("unreadable", 2), ("empty", 0), ("silent", 1), ("rate", 4), ("channels", 3))]


def test_a_loud_peak_alone_is_not_clipped(data):
    wave = noise(3)
    wave[::2000] = 1.0
    put(data / "train_curated" / "c3.wav", wave)
    assert check_dataset(data).findings == ()


def test_clipping_is_counted_by_hand_across_the_border_of_blocks(tmp_path, monkeypatch):
    wave = np.zeros(40, np.float32)
    wave[5:8] = 1.0     # one sample of three has both samples before it at full scale
    wave[14:24] = -1.0  # eight, over the border at 16
    wave[30:32] = 1.0   # none
    put(tmp_path / "a.wav", wave, subtype="FLOAT")
    assert check_audio_file(tmp_path / "a.wav").clipped == 9
    monkeypatch.setattr("fatai.data.audit.audio_file._BLOCK", 16)
    assert check_audio_file(tmp_path / "a.wav").clipped == 9


def test_a_digest_is_the_same_in_any_lossless_format_and_block_size(tmp_path, monkeypatch):
    wave = np.rint(noise(1) * 32767).astype(np.int16)
    put(tmp_path / "a.wav", wave)
    put(tmp_path / "b.flac", wave)
    put(tmp_path / "c.wav", np.stack([wave, wave], 1))
    one = audio_digest(tmp_path / "a.wav")
    monkeypatch.setattr("fatai.data.audit.audio_file._BLOCK", 1000)
    assert len(one) == 32 and {audio_digest(tmp_path / n) for n in ("a.wav", "b.flac", "c.wav")} == {one}
    put(tmp_path / "d.wav", wave[:-1])
    assert audio_digest(tmp_path / "d.wav") != one
    assert audio_digest(tmp_path / "none.wav") is None


def test_the_same_sound_in_training_and_test_is_reported_as_a_leak(data):
    shutil.copy(data / "train_curated" / "c0.wav", data / "test" / "t1.wav")
    shutil.copy(data / "train_curated" / "c1.wav", data / "train_curated" / "c2.wav")
    found = check_dataset(data).of_kind("duplicate")
    assert [str(f) for f in found] == [
        "curated/c2.wav: same samples as curated/c1.wav",
        "test/t1.wav: same samples as curated/c0.wav - a leak from training to test",
    ]


def test_several_silent_files_are_silent_not_duplicates(data):
    for k in (1, 2):
        put(data / "train_curated" / f"c{k}.wav", np.zeros(SR, np.float32))
    assert {f.kind for f in check_dataset(data).findings} == {"silent"}


def test_label_typos_come_with_the_nearest_tag(data):
    (data / "train_curated.csv").write_text(
        "fname,labels\nc0.wav,Brak\nc1.wav,\nc2.wav,Purr\nc3.wav,Purr\nc4.wav,Bark\nc5.wav,Bark\n"
    )
    report = check_dataset(data)
    assert found_in(report) == [("label", "curated", "c0.wav"), ("no_label", "curated", "c1.wav")]
    assert report.findings[0].detail == "unknown tag 'Brak'; did you mean Bark?"


def test_without_a_vocabulary_a_rare_label_similar_to_a_frequent_one_is_reported(tmp_path):
    for k in range(22):
        put(tmp_path / "train_curated" / f"{k}.wav", noise(k, 0.05))
    labels = ["Walk_and_footsteps"] * 20 + ["Walk_and_footstep", "Sneeze"]
    (tmp_path / "train_curated.csv").write_text(
        "fname,labels\n" + "".join(f"{k}.wav,{label}\n" for k, label in enumerate(labels))
    )
    report = check_dataset(tmp_path)
    assert found_in(report) == [("label", "curated", "20.wav")]
    assert "'Walk_and_footstep' occurs 1 times, 'Walk_and_footsteps' 20 times" in report.findings[0].detail


def test_missing_and_extra_files_and_shared_names_are_listed(data):
    (data / "train_curated" / "c0.wav").unlink()
    put(data / "test" / "more.wav", noise(99))
    (data / "train_noisy.csv").write_text("fname,labels\nc1.wav,Bark\n")
    put(data / "train_noisy" / "c1.wav", noise(98))
    assert found_in(check_dataset(data)) == [
        ("name", "noisy", "c1.wav"),
        ("missing", "curated", "c0.wav"),
        ("extra", "test", "more.wav"),
    ]


def test_absent_folders_and_tables_are_one_finding_each(data):
    shutil.rmtree(data / "test")
    put(data / "train_noisy" / "n.wav", noise(98))
    report = check_dataset(data)
    found = [str(f) for f in report.findings]
    assert found == ["test: 2 rows, but no folder test/", "noisy: 1 files in train_noisy/, but no table of them"]


def test_json_and_tables_agree_with_the_files(data):
    put(data / "train_curated" / "c0.wav", noise(0, 3.0))
    report = check_dataset(data, n_folds=2)
    found = json.loads(report.to_json())
    assert list(found["findings"]) == list(FINDING_KINDS) and found["files"] == {"curated": 6, "test": 2}
    assert found["durations"]["curated"]["0-0.5 s"] == 5 and found["durations"]["curated"]["2-4 s"] == 1
    assert {tag: row["all"] for tag, row in found["tags_per_fold"].items()} == {"Bark": 3, "Purr": 3}
    assert all(row["0"] + row["1"] == 3 for row in found["tags_per_fold"].values())
    samples = 7 * 13230 + 132300
    assert found["estimates"]["cache_wave_bytes"] == 2 * samples
    # The front end "ninth" has hop 690 and 64 bands; a centered frame starts at every hop.
    assert found["estimates"]["cache_features_bytes"] == 2 * 64 * (7 * (1 + 13230 // 690) + 1 + 132300 // 690)
    assert found["estimates"]["training_clips"] == 6 and found["estimates"]["front_end_ms_per_crop"] > 0


def test_predefined_folds_and_tags_absent_from_them_are_shown(data):
    folds = [0, 0, 0, 1, 1, 1]
    rows = "".join(f"c{k}.wav,{'Bark' if k < 3 else 'Purr'},{folds[k]}\n" for k in range(6))
    (data / "train_curated.csv").write_text("fname,labels,fold\n" + rows)
    text = check_dataset(data).to_text()
    assert "fold 0 holds out no clip of: Purr" in text and "fold 1 holds out no clip of: Bark" in text


def test_a_long_list_is_shortened_in_the_text_only(data):
    for k in range(6):
        put(data / "train_curated" / f"x{k}.wav", noise(50 + k))
    report = check_dataset(data)
    assert "... and 4 more" in report.to_text(max_per_kind=2)
    assert len(json.loads(report.to_json())["findings"]["extra"]) == 6


def test_a_folder_without_tables_raises(tmp_path):
    with pytest.raises(DataError, match="no train_curated.csv, train_noisy.csv or sample_submission.csv"):
        check_dataset(tmp_path)
    with pytest.raises(DataError, match="there is no folder"):
        check_dataset(tmp_path / "none")


def test_the_bundled_sample_has_no_findings():
    report = check_dataset(fat_sample())
    assert report.findings == () and len(report.files) == 252
