"""An index of windows: parts are complete or absent, a killed call continues, and its rows stay what they are."""

import json

import numpy as np
import pytest
import soundfile as sf
from helpers.tone_index import SR, tone, tone_encoder, write_tones

from fatai.errors import DataError, OptionError
from fatai.inference.search.index import SoundIndex, index_sounds, is_sound_index


@pytest.fixture
def encoder():
    return tone_encoder()


def content(index):
    table = index.table(range(len(index)))
    return list(table.itertuples(index=False, name=None)), index.features(range(len(index)))


def test_windows_have_the_times_and_features_of_their_sound(encoder, tmp_path):
    sf.write(tmp_path / "a.wav", np.concatenate([tone(300), tone(2500), tone(300, 0.7)]), SR)
    result = index_sounds(tmp_path / "index", encoder, [tmp_path / "a.wav"])
    index = SoundIndex(tmp_path / "index")
    assert (result.windows, result.sounds, len(index)) == (5, 1, 5)
    times = index.table(range(5))
    assert times["start"].tolist() == [0, 0.5, 1.0, 1.5, 1.7] and times["end"].tolist() == [1, 1.5, 2.0, 2.5, 2.7]
    assert set(times["file"]) == {str(tmp_path / "a.wav")}
    expected = encoder.encode_sound(tone(300)).features[0]
    assert np.corrcoef(index.features([0])[0], expected)[0, 1] > 0.99
    probs = np.concatenate([values for _, values in index.blocks("probs")])
    assert probs[0, 0] > 0.5 > probs[2, 0] and np.allclose(probs.sum(1), 1, atol=1e-6)


def test_a_last_window_that_repeats_the_one_before_is_left_out_and_so_is_silence(encoder, tmp_path):
    sf.write(tmp_path / "a.wav", tone(300, 1.001), SR)
    sf.write(tmp_path / "b.wav", np.zeros(3 * SR), SR)
    result = index_sounds(tmp_path / "index", encoder, [tmp_path / "a.wav", tmp_path / "b.wav"])
    assert (result.windows, result.silent, result.sounds) == (1, 5, 2)
    again = index_sounds(tmp_path / "index", encoder, [tmp_path / "a.wav", tmp_path / "b.wav"])
    assert (again.windows, again.skipped) == (0, 2)


@pytest.mark.parametrize("calls_before_kill", [1, 2, 4])
def test_a_killed_call_continues_after_the_last_part_within_a_sound(encoder, tmp_path, monkeypatch, calls_before_kill):
    sounds = write_tones(tmp_path / "sounds", 3, seconds=4.3)
    index_sounds(tmp_path / "whole", encoder, sounds, bs=2, part_windows=4)
    n_encoded, encode = 0, type(encoder).encode

    def killed(self, waves):
        nonlocal n_encoded
        if n_encoded == calls_before_kill:
            raise KeyboardInterrupt
        n_encoded += 1
        return encode(self, waves)

    encoder.n_features  # noqa: B018 - is computed once, by a call of encode
    monkeypatch.setattr(type(encoder), "encode", killed)
    with pytest.raises(KeyboardInterrupt):
        index_sounds(tmp_path / "broken", encoder, sounds, bs=2, part_windows=4)
    monkeypatch.undo()
    assert len(SoundIndex(tmp_path / "broken")) == 4 * (calls_before_kill // 2)
    index_sounds(tmp_path / "broken", encoder, sounds, bs=2, part_windows=4)
    (rows, features), (expected, values) = (content(SoundIndex(tmp_path / name)) for name in ("broken", "whole"))
    assert rows == expected and len(rows) == 3 * 8 and np.allclose(features, values, atol=1e-5)


def test_sounds_are_added_later_and_rows_stay(encoder, tmp_path):
    sounds = write_tones(tmp_path / "sounds", 6)
    index_sounds(tmp_path / "index", encoder, sounds[:3])
    before, _ = content(SoundIndex(tmp_path / "index"))
    result = index_sounds(tmp_path / "index", encoder, sounds)
    after, _ = content(SoundIndex(tmp_path / "index"))
    assert (result.sounds, result.skipped) == (3, 3) and after[:3] == before and len(after) == 6


def test_an_unreadable_sound_is_reported_and_tried_again(encoder, tmp_path):
    good, bad = write_tones(tmp_path / "sounds", 2)
    saved = bad.read_bytes()
    bad.write_bytes(b"not a sound")
    with pytest.warns(UserWarning, match="1 sounds cannot be read.*\n.*high1.wav"):
        result = index_sounds(tmp_path / "index", encoder, [good, bad, tmp_path / "missing.wav"][:2])
    assert list(result.errors) == [str(bad)] and result.sounds == 1
    bad.write_bytes(saved)
    assert index_sounds(tmp_path / "index", encoder, [good, bad]).sounds == 1
    assert len(SoundIndex(tmp_path / "index")) == 2


def test_another_network_other_windows_and_changed_sounds_are_refused(encoder, tmp_path):
    sounds = write_tones(tmp_path / "sounds", 2)
    index_sounds(tmp_path / "index", encoder, sounds)
    with pytest.raises(DataError, match="another network"):
        index_sounds(tmp_path / "index", tone_encoder(()), sounds)
    with pytest.raises(DataError, match=r"step_s 0\.5, and 0\.25 is asked for"):
        index_sounds(tmp_path / "index", encoder, sounds, step_s=0.25)
    sf.write(sounds[0], tone(300, 2), SR)
    with pytest.raises(DataError, match=r"low0\.wav has changed since it was indexed"):
        index_sounds(tmp_path / "index", encoder, sounds)
    with pytest.raises(DataError, match="is no index of sounds"):
        index_sounds(tmp_path / "sounds", encoder, sounds)
    with pytest.raises(OptionError, match="step_s is 2"):
        index_sounds(tmp_path / "other", encoder, sounds, step_s=2)


@pytest.mark.parametrize("damage", ["cut", "other", "settings"])
def test_damaged_files_are_named(encoder, tmp_path, damage):
    index_sounds(tmp_path / "index", encoder, write_tones(tmp_path / "sounds", 2))
    part = tmp_path / "index" / "part_000000.safetensors"
    if damage == "cut":
        part.write_bytes(part.read_bytes()[:-8])
    elif damage == "other":
        from safetensors.numpy import save_file

        save_file({"features": np.zeros((2, 3), np.float32)}, str(part))
    else:
        settings = json.loads((tmp_path / "index" / "index.json").read_text())
        (tmp_path / "index" / "index.json").write_text(json.dumps({**settings, "n_features": -1}))
    with pytest.raises(DataError, match="index.json" if damage == "settings" else "part_000000"):
        SoundIndex(tmp_path / "index")


def test_rows_of_a_segment_are_the_same_window_or_those_that_share_half(encoder, tmp_path):
    sf.write(tmp_path / "a.wav", tone(300, 3), SR)
    index_sounds(tmp_path / "index", encoder, [tmp_path / "a.wav"])
    index, path = SoundIndex(tmp_path / "index"), str(tmp_path / "a.wav")
    assert index.rows_of(path, 0.5, 1.5).tolist() == [1]
    assert index.rows_of(path, 0.4, 1.3).tolist() == [0, 1]
    assert index.rows_of(path, 1.1, 1.3).tolist() == [1, 2]
    assert index.rows_of(path, 0.0, None).tolist() == [0, 1, 2, 3, 4]
    assert index.rows_of("elsewhere.wav", 0, 1).tolist() == []
    assert not is_sound_index(tmp_path)
