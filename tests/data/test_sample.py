"""The bundled sample: small, free, and its test part from other recordings."""

import csv
import importlib.util
import re
import struct
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from fatai.data.datasets.fat2019 import fat_sample, load_dataset

PARTS = ("train_curated", "train_noisy", "test")
SCRIPT = Path(__file__).parents[2] / "examples" / "make_sample.py"


def rows(name):
    with (fat_sample() / name).open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


@pytest.fixture(scope="module")
def files():
    return sorted(f for part in PARTS for f in (fat_sample() / part).iterdir())


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_sample", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_it_is_at_most_four_megabytes():
    assert sum(f.stat().st_size for f in fat_sample().rglob("*") if f.is_file()) <= 4_000_000


def test_every_file_is_a_mono_ogg_at_44100_hz_of_half_a_second_to_four(files):
    for file in files:
        info = sf.info(str(file))
        assert (info.format, info.subtype, info.samplerate, info.channels) == ("OGG", "VORBIS", 44100, 1)
        assert 0.5 <= info.duration <= 4.1


def test_names_are_eight_hex_digits_and_none_occurs_twice(files):
    assert all(re.fullmatch(r"[0-9a-f]{8}\.ogg", f.name) for f in files)
    assert len({f.name for f in files}) == len(files) == 252


def test_every_clip_has_a_loud_part(files):
    for file in files:
        wave, _ = sf.read(file, dtype="float32")
        assert np.abs(wave).max() > 0.1


def test_every_recording_is_cc0_and_every_file_is_accounted_for(files):
    attribution = rows("attribution.csv")
    assert {r["license"] for r in attribution} == {"CC0"}
    assert all(
        "creativecommons.org/publicdomain/zero/" in r["license_url"] and r["title"] and r["author"] for r in attribution
    )
    assert all(r["url"] == f"https://freesound.org/s/{r['freesound_id']}/" for r in attribution)
    used = {name for r in attribution for name in r["files"].split()}
    assert used == {f"{f.parent.name}/{f.name}" for f in files}


def test_no_recording_is_in_both_training_and_test():
    for r in rows("attribution.csv"):
        sides = {name.startswith("test/") for name in r["files"].split()}
        assert len(sides) == 1 and (r["esc10_fold"] == "5") == sides.pop()


def test_the_attribution_agrees_with_the_true_labels():
    tags = {}
    for r in rows("attribution.csv"):
        for name in r["files"].split():
            tags.setdefault(name, set()).add(r["tag"])
    truth = {f"train_curated/{r['fname']}": r["labels"] for r in rows("train_curated.csv")}
    truth |= {
        f"{part}/{r['fname']}": r["labels"] for part in ("train_noisy", "test") for r in rows(f"truth/{part}.csv")
    }
    assert {name: set(labels.split(",")) for name, labels in truth.items()} == tags


def test_tags_are_balanced_and_about_one_clip_in_six_has_two():
    for table in ("train_curated.csv", "truth/test.csv", "truth/train_noisy.csv"):
        cells = [r["labels"].split(",") for r in rows(table)]
        assert 1 / 8 < sum(len(c) == 2 for c in cells) / len(cells) < 1 / 4
        counts = Counter(label for c in cells for label in c)
        assert len(counts) == 10 and max(counts.values()) - min(counts.values()) <= 3


def test_some_noisy_labels_are_wrong_and_most_are_right():
    true = {r["fname"]: set(r["labels"].split(",")) for r in rows("truth/train_noisy.csv")}
    given = {r["fname"]: set(r["labels"].split(",")) for r in rows("train_noisy.csv")}
    assert true.keys() == given.keys()
    assert 0.25 < np.mean([true[f] != given[f] for f in true]) < 0.55


def test_the_columns_of_the_submission_are_the_tags_in_plain_order():
    header = (fat_sample() / "sample_submission.csv").read_text().splitlines()[0].split(",")
    assert header[0] == "fname" and header[1:] == sorted(header[1:]) and len(header) == 11


def test_the_loader_never_reads_the_truth(tmp_path):
    data = load_dataset(fat_sample())
    paths = [*data.curated["path"], *data.noisy["path"], *data.test["path"], str(data.sample)]
    assert not any("truth" in path for path in paths)
    source = Path(__file__).parents[2] / "fatai"
    users = {
        f.relative_to(source).as_posix()
        for f in source.rglob("*.py")
        if re.search(r"""["'/]truth["'/]""", f.read_text())
    }
    assert users == {"data/datasets/download.py", "cli/demo.py"}, (
        "only the download, which writes it, and the demo, which computes scores from it, may use the truth"
    )


def test_the_folder_has_a_readme(files):
    text = (fat_sample() / "README.md").read_text()
    assert "120 curated, 72 noisy and 60 test clips" in text and "CC0" in text and "make_sample.py" in text


def test_the_serial_number_of_an_ogg_is_replaced_and_it_still_plays(script, tmp_path):
    wave = np.sin(np.arange(44100) / 20).astype(np.float32) / 2
    sf.write(tmp_path / "a.ogg", wave, 44100, format="OGG", subtype="VORBIS")
    data = (tmp_path / "a.ogg").read_bytes()
    fixed = script.with_fixed_serial(data, 0x1234)
    assert len(fixed) == len(data) and struct.unpack("<I", fixed[14:18])[0] == 0x1234
    (tmp_path / "b.ogg").write_bytes(fixed)
    np.testing.assert_array_equal(sf.read(tmp_path / "a.ogg")[0], sf.read(tmp_path / "b.ogg")[0])
    # The checksum that libsndfile wrote is the oracle of ours.
    serial = struct.unpack("<I", data[14:18])[0]
    assert script.with_fixed_serial(data, serial) == data


def test_a_window_contains_the_loud_moment(script, rng):
    wave = np.full(5 * 44100, 1e-2, np.float32)
    wave[100_000:101_000] = 0.5
    moment = script.moments_of({"freesound_id": "1"}, wave)[0]
    for _ in range(20):
        cut = script.cut(moment, 1.0, rng)
        assert len(cut) == 44100 and np.count_nonzero(np.abs(cut) > 0.5) >= 500


@pytest.mark.slow
def test_the_script_makes_the_same_sample_again(script, tmp_path):
    """Needs the ESC-10 clips beside the project; another version of libsndfile may encode differently."""
    esc10 = Path(__file__).parents[3] / "shared" / "data" / "esc10"
    if not esc10.is_dir():
        pytest.skip("no ESC-10 at hand")
    script.main(esc10 / "audio", esc10 / "esc10.csv", tmp_path)
    for name in (
        "train_curated.csv",
        "train_noisy.csv",
        "sample_submission.csv",
        "attribution.csv",
        "truth/test.csv",
        "README.md",
    ):
        assert (tmp_path / name).read_bytes() == (fat_sample() / name).read_bytes()
    for file in sorted(fat_sample().glob("t*/*.ogg")):
        again = sf.info(str(tmp_path / file.relative_to(fat_sample())))
        assert again.frames == sf.info(str(file)).frames
