"""Events in recordings of any length: by hand with a network that measures loudness, then with a trained one."""

import io
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch
from torch import nn

from fatai.audio import stream
from fatai.data.config import ClipConfig
from fatai.errors import AudioError, CheckpointError, OptionError, ShapeError
from fatai.experiment.run_folder import FinishedRun, Tagger
from fatai.inference.events import tagger as tagger_module
from fatai.inference.events.progress_log import read_event_log
from fatai.inference.events.segments import SoundEvent
from fatai.inference.events.tagger import SlidingWindowTagger
from fatai.models import create_model

SR = 44100
SETTINGS = ClipConfig(crop_s=0.2, trim_db=None)


class Loud(nn.Module):
    """The logit of "Loud" is high where the mean level is; that of "Never" is always low."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, spec):
        self.batches.append(len(spec))
        # "ninth" standardizes dB: 0 is its mean level of -36 dB.
        return torch.stack([6 * (spec.mean((1, 2, 3)) - 0.5), torch.full((len(spec),), -9.0)], 1)


def tagger(**options):
    return SlidingWindowTagger([Loud()], ["Loud", "Never"], SETTINGS, **options)


def noise(rng, seconds, *loud):
    """Return noise at -60 dB with stretches (start, end) of noise at -6 dB."""
    wave = 0.001 * rng.standard_normal(round(seconds * SR))
    for start, end in loud:
        wave[round(start * SR):round(end * SR)] *= 500
    return wave.clip(-0.9, 0.9).astype(np.float32)


def test_loud_stretches_are_found_where_they_are(rng):
    found = tagger(step_s=0.05).tag(noise(rng, 5, (1, 1.8), (3, 3.5)))
    assert [e.tag for e in found] == ["Loud", "Loud"]
    for event, (start, end) in zip(found, [(1, 1.8), (3, 3.5)], strict=True):
        assert abs(event.start_s - start) <= 0.15 and abs(event.end_s - end) <= 0.15 and event.prob > 0.9
    table = pd.DataFrame(found)
    assert list(table.columns) == ["start_s", "end_s", "tag", "prob"] and len(table) == 2


def test_a_steps_probability_is_the_mean_of_the_networks_over_the_windows_that_cover_it(rng):
    wave = noise(rng, 0.5, (0.2, 0.3))
    steps = list(tagger(step_s=0.1).frame_probs(wave))
    front_end, network = SETTINGS.front_end.build(), Loud()

    def window_prob(start_s):
        start = round(start_s * SR)
        return torch.sigmoid(network(front_end(torch.from_numpy(wave[None, start:start + 8820]))[:, None]))[0, 0].item()

    windows = [window_prob(s) for s in (0, 0.1, 0.2, 0.3)]
    np.testing.assert_allclose([s.start_s for s in steps], [0, 0.1, 0.2, 0.3, 0.4], atol=1e-9)
    np.testing.assert_allclose([s.end_s for s in steps], [0.1, 0.2, 0.3, 0.4, 0.5], atol=1e-9)
    expected = [windows[0], *np.convolve(windows, [0.5, 0.5], "valid"), windows[3]]
    np.testing.assert_allclose([s.probs[0] for s in steps], expected, atol=1e-5)


@pytest.mark.parametrize("weights", [None, [3, 1]])
def test_several_networks_are_averaged(rng, weights):
    class Other(Loud):
        def forward(self, spec):
            return super().forward(spec) - 3

    wave = noise(rng, 1, (0.3, 0.6))
    both = SlidingWindowTagger([Loud(), Other()], ["Loud", "Never"], SETTINGS, weights=weights)
    alone = [SlidingWindowTagger([network], ["Loud", "Never"], SETTINGS) for network in (Loud(), Other())]
    expected = np.average([[s.probs for s in one.frame_probs(wave)] for one in alone], axis=0, weights=weights)
    np.testing.assert_allclose([s.probs for s in both.frame_probs(wave)], expected, atol=1e-9)


def test_batch_norms_are_folded_after_the_first_windows_of_a_recording(rng, monkeypatch):
    network, is_own = create_model("m1", 2, width=0.125).eval(), []
    one = SlidingWindowTagger([network], ["Loud", "Never"], SETTINGS, bs=4)
    long, short = noise(rng, 2, (0.3, 0.6)), noise(rng, 0.5, (0.1, 0.3))
    expected = [[s.probs for s in one.frame_probs(wave)] for wave in (long, short)]

    network.register_forward_hook(lambda module, inputs, out: is_own.append(module is network))  # also of its copy
    monkeypatch.setattr(tagger_module, "MIN_FOLDED_WINDOWS", 8)
    got = [[s.probs for s in one.frame_probs(long)]]
    assert is_own[:2] == [True] * 2 and is_own[-2:] == [False] * 2
    is_own.clear()
    got.append([s.probs for s in one.frame_probs(short)])
    assert is_own and all(is_own), "a short recording has the same probabilities before a long one and after it"
    for probs, same in zip(got, expected, strict=True):
        np.testing.assert_allclose(probs, same, atol=1e-5)


def probs_of(tagger, sound, sr=None):
    return np.array([[s.start_s, s.end_s, *s.probs] for s in tagger.frame_probs(sound, sr)])


def test_path_bytes_and_samples_give_the_same(tmp_path, rng):
    wave = np.round(noise(rng, 1.23, (0.5, 0.9)) * 32768) / 32768
    sf.write(tmp_path / "a.wav", wave, SR)
    expected = probs_of(tagger(), wave)
    assert (
        expected[-1, 1] == pytest.approx(1.23) and expected[0, 0] == 0 and (expected[1:, 0] == expected[:-1, 1]).all()
    )
    for sound in (
        tmp_path / "a.wav",
        str(tmp_path / "a.wav"),
        (tmp_path / "a.wav").read_bytes(),
        torch.from_numpy(wave),
        np.stack([wave, wave]),
        (wave * 32768).astype(np.int16),
    ):
        np.testing.assert_allclose(probs_of(tagger(), sound), expected, atol=1e-5)


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (48000, 2), (22050, 5), (96000, 1)])
def test_any_rate_and_number_of_channels(tmp_path, rng, rate, channels):
    seconds = np.arange(3 * rate) / rate
    tone = np.where((seconds > 1) & (seconds < 2), 0.5, 0.0005) * rng.standard_normal(len(seconds)).clip(-1, 1)
    sf.write(tmp_path / "a.flac", np.repeat(tone[:, None], channels, 1), rate)

    class Louder(Loud):
        def forward(self, spec):
            return super().forward(spec[:, :, :20])  # mels that 8 kHz has, too

    found = SlidingWindowTagger([Louder()], ["Loud", "Never"], SETTINGS, step_s=0.05).tag(tmp_path / "a.flac")
    assert len(found) == 1 and abs(found[0].start_s - 1) <= 0.15 and abs(found[0].end_s - 2) <= 0.15


@pytest.mark.parametrize("samples", [1, 100, 8819, 8820, 8821, 9000, 17_640])
def test_short_recordings_are_covered_to_their_end(rng, samples):
    rows = probs_of(tagger(step_s=0.1), noise(rng, 1, (0, 1))[:samples])
    assert rows[0, 0] == 0 and rows[-1, 1] == pytest.approx(samples / SR) and (np.diff(rows[:, 0]) > 0).all()


def test_neither_blocks_nor_batches_change_the_probabilities(tmp_path, rng, monkeypatch):
    sf.write(tmp_path / "a.wav", noise(rng, 2.345, (0.5, 1.5)), SR)
    expected = probs_of(tagger(), tmp_path / "a.wav")
    for block, bs in ((1000, 1), (8820, 5), (50_000, 1000)):
        monkeypatch.setattr(stream, "_BLOCK", block)
        np.testing.assert_allclose(probs_of(tagger(bs=bs), tmp_path / "a.wav"), expected, atol=1e-5)


def test_no_network_is_run_on_silence():
    sliding = tagger(bs=4)
    wave = np.zeros(SR, np.float32)
    wave[20_000] = 0.5
    rows = probs_of(sliding, wave)
    assert sum(sliding.networks[0].batches) == 2, "two windows contain the click"
    assert (rows[rows[:, 1] < 20_000 / SR - 0.2][:, 2:] == 0).all()
    assert tagger().tag(np.zeros(SR)) == []
    without_silence = tagger(silence_db=-float("inf"))
    list(without_silence.frame_probs(np.zeros(SR, np.float32)))
    assert sum(without_silence.networks[0].batches) == 9


def test_memory_does_not_grow_with_length(tmp_path):
    """Peak of Python's and NumPy's memory; what torch holds is bounded by the same batches."""
    def peak(seconds):
        sf.write(tmp_path / "a.flac", np.zeros(seconds * 8000), 8000)
        list(tagger().frame_probs(tmp_path / "a.flac"))
        tracemalloc.start()
        for _ in tagger().frame_probs(tmp_path / "a.flac"):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(240) < 1.2 * peak(60) + 100_000


def test_thresholds_and_top_choose_what_is_reported(rng):
    wave = noise(rng, 1, (0, 1))
    assert {e.tag for e in tagger().tag(wave, threshold=0.0)} == {"Loud", "Never"}
    assert {e.tag for e in tagger().tag(wave, threshold=0.0, top=1)} == {"Loud"}
    assert tagger().tag(wave, threshold={"Loud": 1.0, "Never": 0.5}) == []
    assert tagger().tag(wave) == [SoundEvent(0.0, 1.0, "Loud", pytest.approx(1, abs=0.01))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_s": 0.3}, "step_s is 0.3; expected 0.01 to 0.2 seconds"),
        ({"step_s": 0}, "step_s is 0;"),
        ({"bs": 0}, "bs is 0"),
    ],
)
def test_options_out_of_range_are_errors(options, message):
    with pytest.raises(OptionError, match=message):
        tagger(**options)
    with pytest.raises(OptionError, match="there are no networks"):
        SlidingWindowTagger([], ["Loud"], SETTINGS)


def test_unreadable_recordings_are_an_error(tmp_path, rng):
    sf.write(tmp_path / "whole.flac", noise(rng, 30, (0, 30)), SR)
    encoded = (tmp_path / "whole.flac").read_bytes()
    damaged = encoded[:len(encoded) // 2] + bytes(200) + encoded[len(encoded) // 2 + 200:]
    (tmp_path / "damaged.flac").write_bytes(damaged)
    with pytest.raises(AudioError, match="damaged.flac: the file is damaged"):
        tagger().tag(tmp_path / "damaged.flac")
    with pytest.raises(AudioError, match="bytes: the file is damaged"):
        tagger().tag(damaged)
    with pytest.raises(AudioError, match="not finite"):
        tagger().tag(np.full(SR, np.nan))
    with pytest.raises(ShapeError, match="transpose"):
        tagger().tag(np.zeros((SR, 2)))


def test_a_recording_without_its_end_is_tagged_as_far_as_it_goes(tmp_path, rng):
    sf.write(tmp_path / "whole.wav", noise(rng, 4, (1, 2)), SR)
    path = tmp_path / "cut.wav"
    path.write_bytes((tmp_path / "whole.wav").read_bytes()[:44 + 2 * 3 * SR])
    with pytest.warns(UserWarning, match="cut.wav: read to its end at 3.000 s"):
        events = tagger().tag(path)
    assert events == tagger().tag(tmp_path / "whole.wav") != []


def test_many_files_are_tagged_into_a_log(tmp_path, rng):
    paths = [tmp_path / f"{k}.wav" for k in range(3)]
    for k, path in enumerate(paths):
        sf.write(path, noise(rng, 1, (0.2 * k, 0.5)), SR)
    paths.append(tmp_path / "broken.wav")
    paths[-1].write_bytes(b"RIFF")
    counts = tagger().tag_files(paths, tmp_path / "log")
    assert (counts.tagged, counts.skipped, list(counts.errors)) == (3, 0, [str(paths[-1])])
    assert list(read_event_log(tmp_path / "log")) == [(str(path), tagger().tag(path)) for path in paths[:3]]
    again = tagger().tag_files(paths[:3], tmp_path / "log")
    assert (again.tagged, again.skipped) == (0, 3)


def test_a_log_is_bound_to_the_networks_and_settings(tmp_path, rng, tiny_run):
    sf.write(tmp_path / "a.wav", noise(rng, 0.6), SR)
    sliding = Tagger(tiny_run.out)
    identity = sliding.identity()
    assert Tagger(tiny_run.out).identity() == identity
    with torch.no_grad():
        next(sliding.networks[0].parameters()).flatten()[0] += 1
    assert sliding.identity() != identity != Tagger(tiny_run.out, step_s=0.1).identity()


def test_the_tagger_of_a_run_averages_its_folds(tiny_run, sample):
    sliding, run = Tagger(tiny_run.out, calibrate=False), FinishedRun.open(tiny_run.out)
    clip = sorted((sample / "test").iterdir())[0]
    parts = [
        SlidingWindowTagger([fold.model], fold.tags, run.recipe.settings(), precision=run.recipe.precision)
        for fold in run.folds()
    ]
    expected = np.mean([probs_of(part, clip) for part in parts], axis=0)
    np.testing.assert_allclose(probs_of(sliding, clip), expected, atol=1e-6)
    assert sliding.tags == tiny_run.test.tags and sliding.window_s == 0.5
    encoded = io.BytesIO(clip.read_bytes()).getvalue()
    assert sliding.tag(encoded, threshold=0.1, top=2) == sliding.tag(clip, threshold=0.1, top=2)


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="is not a finished run; expected recipe.toml"):
        Tagger(tmp_path)
