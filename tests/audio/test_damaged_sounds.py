"""Damaged sound files, and the error or the result of each."""

import os
import struct

import numpy as np
import pytest
import soundfile

from fatai.audio.io import audio_info, check_audio, load_audio
from fatai.audio.stream import stream_audio
from fatai.cli.paths import sound_files, sounds_by_name
from fatai.data.audit.dataset import check_dataset
from fatai.data.datasets.fat2019 import load_dataset
from fatai.data.tables import check_readable
from fatai.errors import AudioError
from fatai.inference.events.formats import write_events
from fatai.inference.events.progress_log import FileEvents
from fatai.inference.predictions import Predictions
from fatai.metrics.thresholds import Thresholds

SR = 44100


@pytest.fixture
def clip(tmp_path, rng):
    """A function that writes a second of quiet noise under a name and returns its path."""

    def written(name="clip.wav", samples=None, sr=SR, **options):
        soundfile.write(tmp_path / name, 0.1 * rng.standard_normal(SR) if samples is None else samples, sr, **options)
        return tmp_path / name

    return written


@pytest.mark.parametrize("read", [audio_info, check_audio, load_audio, lambda path: list(stream_audio(path, SR))])
class TestRefused:
    def test_a_pipe_is_refused_without_blocking(self, tmp_path, read):
        os.mkfifo(tmp_path / "pipe.wav")
        with pytest.raises(AudioError, match="pipe.wav: this is a device, a pipe or a socket"):
            read(tmp_path / "pipe.wav")

    def test_a_device_that_never_ends_is_refused(self, tmp_path, read):
        (tmp_path / "zeros.wav").symlink_to("/dev/zero")
        with pytest.raises(AudioError, match="this is a device, a pipe or a socket"):
            read(tmp_path / "zeros.wav")

    def test_a_name_with_a_zero_byte_is_refused(self, tmp_path, read):
        with pytest.raises(AudioError, match=r"a\\x00b.wav.*cannot contain a zero byte"):
            read(tmp_path / "a\0b.wav")

    @pytest.mark.parametrize("sr", [1, 999, 1_000_001])
    def test_a_rate_that_no_recorder_has_is_refused(self, clip, read, sr):
        path = clip()
        whole = bytearray(path.read_bytes())
        whole[24:28] = struct.pack("<I", sr)
        path.write_bytes(whole)
        with pytest.raises(AudioError, match=f"the header declares {sr:,} Hz; expected 1,000 to 1,000,000"):
            read(path)


@pytest.mark.parametrize("value", [3e38, -3e38, 1e13])
@pytest.mark.parametrize("read", [check_audio, load_audio])
def test_samples_whose_power_would_overflow_are_refused(clip, read, value):
    samples = np.zeros(1000, np.float32)
    samples[500] = value
    with pytest.raises(AudioError, match="samples far beyond full scale"):
        read(clip(samples=samples, subtype="FLOAT"))


def test_floats_on_the_scale_of_32_bit_integers_are_read(clip):
    samples = np.array([2.0**31, -2.0**31, 1.0], np.float32)
    with pytest.warns(UserWarning, match="the scale of 32-bit integers"):
        wave = load_audio(clip(samples=samples, subtype="FLOAT"))
    np.testing.assert_array_equal(wave, samples / 2.0**31)


def test_ten_hours_are_not_read_at_once_but_streamed_and_read_in_sections(tmp_path):
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(1, np.int16), 1000)
    whole = bytearray(path.read_bytes()[:44])
    whole[40:44] = struct.pack("<I", 72_000_000)
    path.write_bytes(whole)
    os.truncate(path, 44 + 72_000_000)
    with pytest.raises(
        AudioError, match="long.wav: 600 min with 1 channels at 1,000 Hz are too much.*fatai-submit tag"
    ):
        load_audio(path)
    with pytest.raises(AudioError, match="too much"):
        check_audio(path)
    assert len(load_audio(path, sr=None)) == 36_000_000, "as it is, it fits"
    assert len(load_audio(path, offset_s=35_999.0)) == SR
    assert len(next(stream_audio(path, 1000))) > 0


def test_files_damaged_in_the_middle_are_found_before_training(clip):
    whole, broken = clip("whole.flac"), clip("broken.flac")
    bits = bytearray(broken.read_bytes())
    bits[len(bits) // 2:len(bits) // 2 + 200] = bytes(200)
    broken.write_bytes(bits)
    nan = clip("nan.wav", samples=np.array([0, np.nan, 0], np.float32), subtype="FLOAT")
    good, faults = check_readable([whole, broken, nan])
    assert good.tolist() == [True, False, False]
    assert "broken.flac: the file is damaged" in faults[0] and "not finite" in faults[1]


def test_a_decoder_with_an_invalid_seek_prints_no_traceback(clip, capfd):
    # A W64 that ends within its header makes libsndfile seek to an invalid position.
    path = clip("clip.w64")
    whole = path.read_bytes()
    path.write_bytes(whole[:102])
    with pytest.raises(AudioError):
        load_audio(path)
    assert "Traceback" not in capfd.readouterr().err


class TestNames:
    def test_every_sound_below_a_folder_is_listed_once_under_a_name_of_its_own(self, tmp_path):
        for name in ("a/x.wav", "b/x.wav", "b/y.wav"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        (tmp_path / "b/nowhere.wav").symlink_to("nothing")
        (tmp_path / "b/itself.wav").symlink_to("itself.wav")
        (tmp_path / "b/folder.wav").mkdir()
        found = sound_files([tmp_path / "a", tmp_path / "b", tmp_path / "a"])
        assert [name for name, _ in found] == [
            "a/x.wav",
            "itself.wav",
            "nowhere.wav",
            "b/x.wav",
            "y.wav",
        ]

    def test_predictions_of_a_name_that_is_not_text_are_written_and_read(self, tmp_path):
        name = os.fsdecode(b"caf\xe9.wav")
        Predictions([name], ["Bark"], [[0.5]]).to_csv(tmp_path / "p.csv")
        assert Predictions.from_csv(tmp_path / "p.csv").fnames == (r"caf\udce9.wav",)

    def test_lists_of_names_that_are_not_text_or_in_utf_16_become_tables(self, tmp_path):
        (tmp_path / "list.txt").write_bytes(b"caf\xe9.wav\n")
        names = [name for name, _ in sounds_by_name([], tmp_path / "list.txt")]
        assert names == [os.fsdecode(b"caf\xe9.wav")]
        preds = Predictions(names, ["Bark"], [[0.5]])
        frames = [preds.top(1), preds.to_frame(), preds.decide(Thresholds(("Bark",), (0.5,)))]
        assert all(frame["fname"].tolist() == list(preds.fnames) for frame in frames)
        (tmp_path / "list.txt").write_text("blüte.wav\r\n", encoding="utf-16")
        assert [name for name, _ in sounds_by_name([], tmp_path / "list.txt")] == ["blüte.wav"]

    def test_events_of_the_longest_name_get_a_file(self, tmp_path):
        names = ["a" * 251 + ".wav", "a" * 250 + "b.wav"]
        write_events(
            tmp_path / "out", [FileEvents(str(tmp_path / name), []) for name in names], "audacity", root=tmp_path
        )
        written = os.listdir(tmp_path / "out")
        assert len(written) == 2 and all(name.endswith(".wav.txt") and name.startswith("a" * 200) for name in written)

    def test_a_layout_with_a_link_to_itself_is_read_and_scanned(self, tmp_path, clip):
        for part in ("train_curated", "test"):
            (tmp_path / part).mkdir()
        for k in range(4):
            clip(f"train_curated/{k}.wav")
        (tmp_path / "train_curated/itself.wav").symlink_to("itself.wav")
        long = "n" * 300 + ".wav"
        rows = "".join(f"{name},Bark\n" for name in ("0.wav", "1.wav", "2.wav", "3.wav", "itself.wav", long))
        (tmp_path / "train_curated.csv").write_text(f"fname,labels\n{rows}")
        (tmp_path / "test/nowhere.wav").symlink_to("nothing")
        with pytest.warns(UserWarning, match="rows without a sound file: 2 curated"):
            data = load_dataset(tmp_path)
        assert len(data.curated) == 4 and data.test["fname"].tolist() == ["nowhere.wav"]
        assert [(f.part, f.fname) for f in check_dataset(tmp_path).of_kind("missing")] == [
            ("curated", "itself.wav"), ("curated", long), ("test", "nowhere.wav"),
        ]


def test_an_unreadable_file_does_not_keep_tag_from_listing_the_rest(main_with, tiny_run, tmp_path, clip):
    whole = clip("b.wav")
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    ended = main_with("tag", tiny_run.out, tmp_path / "a.wav", whole, "--threshold", "0")
    assert (
        ended.returncode == 0 and f"{whole}: 0.00 to" in ended.stdout and "1 of 2 sounds cannot be read" in ended.stderr
    )
    assert main_with("tag", tiny_run.out, tmp_path / "a.wav").returncode == 2
