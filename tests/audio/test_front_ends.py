"""Every front end equals librosa with the settings of the published system, for all kinds of clips."""

import copy
import pickle

import librosa
import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fatai.audio.front_ends import FrontEnd, SpectrogramStats, front_end, spectrogram_stats
from fatai.audio.io import load_audio
from fatai.audio.pcen import PCEN, smoothing
from fatai.audio.stft import pad_ends
from fatai.errors import DataError, FrontEndError, OptionError, ShapeError, UnknownNameError
from fatai.registry import CHANNELS, FRONT_ENDS

pytestmark = pytest.mark.filterwarnings("ignore:n_fft=.* is too large", "ignore:Empty filters")

# Copied independently of the package from the publications of the systems' authors.
TRANSFORMS = {
    "ninth": dict(sr=44100, n_fft=1920, hop_length=690),
    "fastai_kernel": dict(sr=44100, n_fft=2560, hop_length=694),
    "panns": dict(sr=32000, n_fft=1024, hop_length=320, pad_mode="reflect"),
    "panns_plan": dict(sr=32000, n_fft=1024, hop_length=320, pad_mode="reflect"),
    "kaggle_fat": dict(sr=44100, n_fft=2048, hop_length=441),
    "third_2d": dict(sr=44100, n_fft=2048, hop_length=1024, pad_mode="reflect"),
    "third_1d": dict(sr=44100, n_fft=256, hop_length=128, pad_mode="reflect"),
    "first": dict(sr=44100, n_fft=2560, hop_length=690),
    "baseline": dict(sr=44100, n_fft=2048, hop_length=441),
    "efficientat": dict(
        sr=32000, n_fft=1024, win_length=800, hop_length=320, pad_mode="reflect",
        window=scipy.signal.get_window("hann", 800, fftbins=False),
    ),
}
MELS = {
    "ninth": dict(n_mels=64, fmin=20, fmax=22050),
    "fastai_kernel": dict(n_mels=128, fmin=20, fmax=22050),
    "panns": dict(n_mels=64, fmin=50, fmax=14000),
    "panns_plan": dict(n_mels=64, fmin=50, fmax=16000, norm=None),
    "kaggle_fat": dict(n_mels=128, fmin=20, fmax=22050),
    "third_2d": dict(n_mels=128, fmin=5, fmax=22050),
    "first": dict(n_mels=128, fmin=20, fmax=22050),
    "baseline": dict(n_mels=96, fmin=20, fmax=20000, htk=True, norm=None),
}
DECIBELS = {"ninth": 80.0, "fastai_kernel": 80.0, "first": 80.0, "panns": None, "panns_plan": None}
# Largest errors of a level; the filter of efficientat is rounded to float32 before the transform.
TOLERANCE = {name: 1e-3 if name in DECIBELS else 5e-4 if name == "efficientat" else 1e-4 for name in TRANSFORMS}
NAMES = list(TRANSFORMS)
CLIPS = ("long", "clip 2", "clip 3", "1 s", "30 ms", "silence", "one sample", "full-scale noise", "full-scale sine",
         "loud and faint")
SHAPES_OF_8_S = {
    "ninth": (64, 512),
    "fastai_kernel": (128, 509),
    "panns": (64, 801),
    "panns_plan": (64, 801),
    "kaggle_fat": (128, 801),
    "third_2d": (128, 345),
    "third_1d": (129, 2757),
    "first": (128, 512),
    "baseline": (96, 798),
    "efficientat": (128, 800),
}


@pytest.fixture(scope="module")
def waves(sample):
    """Real clips of several lengths, and extreme ones, by rate and name."""
    files = sorted(sample.rglob("*.ogg"))[:60:20]
    rng = np.random.default_rng(1)
    found = {}
    for sr in (44100, 32000):
        clips = [load_audio(f, sr) for f in files]
        noise = torch.from_numpy(rng.uniform(-1, 1, sr).astype(np.float32))
        found[sr] = {
            "long": torch.cat(clips),
            "clip 2": clips[1],
            "clip 3": clips[2],
            "1 s": clips[0][:sr],
            "30 ms": clips[0][: int(0.03 * sr)],
            "silence": torch.zeros(sr),
            "one sample": torch.tensor([0.5]),
            "full-scale noise": noise,
            "full-scale sine": torch.sin(torch.arange(sr) * (2 * np.pi * 1000 / sr)),
            # The faint part lies within 80 dB of the loud one, and near the rounding of its transform in float32.
            "loud and faint": torch.sin(torch.arange(sr) * (2 * np.pi * 100 / sr)) + 1e-4 * noise,
        }
    return found


def levels_of_baseline(y: np.ndarray) -> np.ndarray:
    """Magnitude of windows of 1,102 samples, the first of which starts with the clip, shape (1025, frames)."""
    y = np.pad(y, (0, max(0, 1102 - len(y))))
    starts = range(0, len(y) - 1102 + 1, 441)
    window = scipy.signal.get_window("hann", 1102)
    return np.abs(np.stack([np.fft.rfft(y[i:i + 1102] * window, n=2048) for i in starts], 1))


def kaldi_filters(n_mels: int, n_fft: int, sr: int, fmin: float, fmax: float) -> np.ndarray:
    """Filters of Kaldi's mel-computations.cc, one after the other: triangles over 1127 ln(1 + f / 700)."""
    def mel(f):
        return 1127.0 * np.log(1 + f / 700)

    step = (mel(fmax) - mel(fmin)) / (n_mels + 1)
    filters = np.zeros((n_mels, n_fft // 2 + 1))
    for band in range(n_mels):
        left = mel(fmin) + band * step
        center, right = left + step, left + 2 * step
        for k in range(n_fft // 2):
            m = mel(k * sr / n_fft)
            if left < m < right:
                filters[band, k] = (m - left) / step if m <= center else (right - m) / step
    return filters


def levels_of_efficientat(y: np.ndarray, transform: dict) -> np.ndarray:
    """Power of the clip, at least a window long, behind the filter x[t] - 0.97 * x[t - 1], shape (513, frames)."""
    y = np.pad(y, (0, max(0, 800 - len(y))))
    return np.abs(librosa.stft(scipy.signal.lfilter([1, -0.97], 1, y)[1:], **transform)) ** 2


def recursive_pcen(mels: np.ndarray, gain=0.5, bias=1e-3, power=0.2, b=(6401**0.5 - 1) / 3200, eps=1e-9) -> np.ndarray:
    """One frame after the other."""
    smooth, frames = mels[:, 0], []
    for frame in mels.T:
        smooth = (1 - b) * smooth + b * frame
        frames.append((frame * (eps + smooth) ** -gain + bias) ** power - bias ** power)
    return np.stack(frames, 1)


def mels_by_librosa(name: str, wave: torch.Tensor) -> np.ndarray:
    y = wave.double().numpy()
    transform = dict(TRANSFORMS[name])
    sr = transform.pop("sr")
    levels = levels_of_baseline(y) if name == "baseline" else np.abs(librosa.stft(y, **transform))
    if name == "efficientat":
        return kaldi_filters(128, 1024, 32000, 0.0, 15000.0) @ levels_of_efficientat(y, transform)
    if name in DECIBELS:
        levels = levels ** 2
    if name not in MELS:
        return levels
    return librosa.filters.mel(sr=sr, n_fft=transform["n_fft"], dtype=np.float64, **MELS[name]) @ levels


def by_librosa(name: str, wave: torch.Tensor) -> np.ndarray:
    """Before any normalization."""
    mels = mels_by_librosa(name, wave)
    if name in DECIBELS:
        return librosa.power_to_db(mels, top_db=DECIBELS[name])
    if name == "kaggle_fat":
        b = (6401 ** 0.5 - 1) / 3200  # 40 frames
        start = scipy.signal.lfilter_zi([b], [1, b - 1]) * mels[:, :1]
        return librosa.pcen(
            mels, sr=44100, hop_length=441, gain=0.5, bias=1e-3, power=0.2, time_constant=0.4, eps=1e-9, zi=start
        )
    return np.log(mels + {"baseline": 1e-3, "efficientat": 1e-5}.get(name, 1e-4))


def largest(a, b) -> float:
    assert a.shape == b.shape
    return float(np.abs(np.asarray(a) - np.asarray(b)).max())


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("name", NAMES)
def test_front_end_equals_librosa(name, clip, waves):
    plain = front_end(name, normalize="none")
    wave = waves[plain.sr][clip]
    spec = plain.build()(wave[None])[0]
    assert spec.dtype == torch.float32 and spec.is_contiguous()
    assert largest(spec, by_librosa(name, wave)) <= TOLERANCE[name]
    assert plain.build()(wave[None][:0]).shape == (0, *spec.shape)


@pytest.mark.parametrize("clip", CLIPS)
def test_pcen_equals_its_recursion(clip, waves):
    wave = waves[44100][clip]
    expected = recursive_pcen(mels_by_librosa("kaggle_fat", wave))
    for trainable in (False, True):
        spec = FRONT_ENDS.build("kaggle_fat", pcen_trainable=trainable)(wave[None])[0].detach()
        assert largest(spec, expected) <= 1e-4


def test_the_named_front_ends_are_those_tested_here():
    assert set(NAMES) <= set(FRONT_ENDS.names())


@pytest.mark.parametrize("name", NAMES)
def test_length_and_rows_of_8_s(name):
    module = FRONT_ENDS.build(name)
    settings_ = module.settings
    assert (
        module(torch.zeros(1, 8 * settings_.sr)).shape[1:]
        == (settings_.rows, settings_.frames(8 * settings_.sr))
        == SHAPES_OF_8_S[name]
    )


@pytest.mark.parametrize("name", NAMES)
def test_front_end_has_a_source_a_sentence_and_known_channels(name):
    assert len(FRONT_ENDS.source(name)) > 10 and FRONT_ENDS.describe(name).endswith(".")
    channels = CHANNELS.build(front_end(name).channels)
    spec = FRONT_ENDS.build(name)(torch.randn(2, 8000))
    assert channels(spec).shape == (2, channels.n_channels, *spec.shape[1:])


@pytest.mark.parametrize("clip", CLIPS)
def test_ninth_is_standardized_by_its_constants_and_first_divided_by_100(clip, waves):
    wave = waves[44100][clip]
    assert largest(FRONT_ENDS.build("ninth")(wave[None])[0], (by_librosa("ninth", wave) + 35.7) / 21.6) <= 1e-3 / 21.6
    assert largest(FRONT_ENDS.build("first")(wave[None])[0], by_librosa("first", wave) / 100) <= 1e-3 / 100


@pytest.mark.parametrize("clip", CLIPS)
def test_efficientat_is_standardized_by_its_constants(clip, waves):
    wave = waves[32000][clip]
    expected = (by_librosa("efficientat", wave) + 4.5) / 5
    assert largest(FRONT_ENDS.build("efficientat")(wave[None])[0], expected) <= 1e-4


@pytest.mark.parametrize("clip", CLIPS)
def test_fastai_kernel_is_an_image_of_256_levels(clip, waves):
    wave = waves[44100][clip]
    picture = FRONT_ENDS.build("fastai_kernel")(wave[None])[0].numpy()
    db = by_librosa("fastai_kernel", wave)
    z = (db - db.mean()) / (db.std() + 1e-6)
    if z.max() - z.min() <= 1e-6:
        assert (picture == 0).all()
        return
    exact = 255 * (z - z.min()) / (z.max() - z.min())
    assert picture.min() == 0 and picture.max() >= 254 and (picture == np.floor(picture)).all()
    # Cutting down to whole levels turns an error of 0.001 dB into a level, but only next to one.
    assert (
        (picture <= exact + 1e-3 * 255 / np.ptp(db) + 1e-4) & (picture > exact - 1 - 1e-3 * 255 / np.ptp(db) - 1e-4)
    ).all()


def test_a_clip_by_its_own_mean_and_deviation(waves):
    for clip, wave in waves[44100].items():
        spec = FRONT_ENDS.build("ninth", normalize="clip", eps=1e-7)(wave[None])[0]
        db = by_librosa("ninth", wave)
        if np.ptp(db) > 1:
            assert largest(spec, (db - db.mean()) / (db.std() + 1e-7)) <= 1e-3, clip
        else:
            assert spec.isfinite().all(), clip


def test_plan_with_statistics_of_each_row_is_cut_at_10(waves):
    mean, std = np.linspace(-30, 10, 64), np.linspace(0.5, 20, 64)
    wave = waves[32000]["1 s"]
    expected = np.clip((by_librosa("panns_plan", wave) - mean[:, None]) / std[:, None], -10, 10)
    spec = FRONT_ENDS.build("panns_plan", mean=mean, std=std)(wave[None])[0]
    assert largest(spec, expected) <= 1e-3 / 0.5 and spec.abs().max() == 10
    with pytest.raises(FrontEndError, match="one of mean and std; expected both"):
        FRONT_ENDS.build("panns_plan", mean=mean)


@pytest.mark.parametrize("name", [*NAMES, "kaggle_fat trained"])
def test_each_clip_of_a_batch_equals_the_clip_alone(name, waves):
    module = FRONT_ENDS.build(name.split()[0], pcen_trainable="trained" in name).eval()
    clips = waves[module.settings.sr]
    batch = torch.stack([clips["full-scale noise"], clips["silence"], clips["1 s"], 1e-3 * clips["1 s"].flip(0)])
    with torch.no_grad():
        together = module(batch)
        alone = torch.cat([module(wave[None]) for wave in batch])
    assert (together - alone).abs().max() <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_float32_within_autocast_and_from_other_types(name, waves):
    module = FRONT_ENDS.build(name)
    wave = waves[module.settings.sr]["clip 2"][None]
    plain = module(wave)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(wave), plain)
    assert torch.equal(module(wave.double()), plain)
    assert torch.equal(module(wave.half()), module(wave.half().float()))


def test_stays_float32_in_a_network_of_half_the_width(waves):
    wave = waves[44100]["clip 2"][None]
    for name in ("ninth", "kaggle_fat"):
        module = FRONT_ENDS.build(name, pcen_trainable=name == "kaggle_fat")
        assert torch.equal(torch.nn.Sequential(copy.deepcopy(module)).half()(wave), module(wave))


def test_the_state_dict_has_trainable_parameters_only():
    assert all(not FRONT_ENDS.build(name).state_dict() for name in NAMES)
    trainable = FRONT_ENDS.build("kaggle_fat", pcen_trainable=True)
    assert {k: tuple(v.shape) for k, v in trainable.state_dict().items()} == {
        f"pcen.0.log_{c}": (128, 1) for c in ("gain", "bias", "power", "b")}


def test_a_copy_through_pickle_computes_the_same(waves):
    wave = waves[44100]["1 s"][None]
    module = FRONT_ENDS.build("ninth")
    assert torch.equal(pickle.loads(pickle.dumps(module))(wave), module(wave))


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_front_end_on_a_gpu_equals_that_on_the_cpu(name, waves):
    module = FRONT_ENDS.build(name, **({"normalize": "none"}))
    clips = waves[module.settings.sr]
    batch = torch.stack([clips["full-scale noise"], clips["silence"], clips["1 s"]])
    here = module(batch)
    assert (copy.deepcopy(module).cuda()(batch.cuda()).cpu() - here).abs().max() <= TOLERANCE[name]


def test_trainable_pcen_learns_all_four_constants_of_each_row(waves):
    module = FRONT_ENDS.build("kaggle_fat", pcen_trainable=True)
    module(waves[44100]["1 s"][None]).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert (parameter.grad.abs() > 0).all(), name


def test_gradient_of_pcen_is_that_of_differences():
    torch.manual_seed(3)
    pcen = PCEN(2, trainable=True).double()
    mels = torch.rand(1, 2, 70, dtype=torch.float64, requires_grad=True)  # longer than one block of the smoother
    assert torch.autograd.gradcheck(pcen, (mels,), atol=1e-4)


def test_pcen_of_a_constant_is_its_closed_form():
    out = PCEN(1, gain=0.5, bias=1e-3, power=0.2)(torch.full((1, 1, 200), 4.0))
    assert out[0, 0].tolist() == pytest.approx([(2.0 + 1e-3) ** 0.2 - 1e-3 ** 0.2] * 200, abs=1e-6)  # 4 * 4 ** -0.5 = 2
    assert smoothing(40) == pytest.approx((6401 ** 0.5 - 1) / 3200) and round(smoothing(40), 5) == 0.02469
    with pytest.raises(FrontEndError, match="gain=0.0 cannot be trained"):
        PCEN(1, gain=0.0, trainable=True)


@pytest.mark.parametrize(("htk", "norm"), [(False, "slaney"), (False, None), (True, "slaney"), (True, None)])
def test_mel_filters_equal_librosas(htk, norm):
    settings = FrontEnd(n_fft=2048, n_mels=96, fmin=20, fmax=20000, htk=htk, norm=norm)
    mine = settings.filters()
    theirs = librosa.filters.mel(
        sr=44100, n_fft=2048, n_mels=96, fmin=20, fmax=20000, htk=htk, norm=norm, dtype=np.float64
    )
    assert mine.dtype == torch.float32 and np.array_equal(mine, theirs.astype(np.float32)), "rounded once"
    centres = librosa.mel_frequencies(n_mels=98, fmin=20, fmax=20000, htk=htk)[1:-1]
    assert settings.frequencies_hz() == pytest.approx(centres)


@pytest.mark.parametrize(("n_mels", "fmin", "fmax"), [(128, 0.0, 15000.0), (40, 20.0, 16000.0)])
def test_kaldi_filters_are_triangles_over_the_mel_scale(n_mels, fmin, fmax):
    settings_ = FrontEnd(
        sr=32000, n_fft=1024, n_mels=n_mels, fmin=fmin, fmax=fmax, htk=True, norm=None, mel_triangles="mel"
    )
    assert largest(settings_.filters(), kaldi_filters(n_mels, 1024, 32000, fmin, fmax)) < 1e-6
    narrow = settings_.replace(norm="slaney").filters().double().numpy()
    edges = librosa.mel_frequencies(n_mels + 2, fmin=fmin, fmax=fmax, htk=True)
    assert largest(narrow * (edges[2:] - edges[:-2])[:, None] / 2, settings_.filters()) < 1e-6
    slaney = settings_.replace(htk=False).filters()
    assert largest(slaney, settings_.filters()) > 0.1, "over Slaney's scale"


@pytest.mark.parametrize("factor", [0.5, 1.0])
def test_preemphasis_is_librosas_from_the_second_sample_on(factor, waves):
    wave = waves[44100]["1 s"]
    plain = FrontEnd(n_fft=1024, hop_length=256, n_mels=64)
    filtered = torch.from_numpy(librosa.effects.preemphasis(wave.numpy(), coef=factor)[1:])
    expected = plain.build()(filtered[None])
    assert largest(plain.replace(preemphasis=factor).build()(wave[None]), expected) <= 1e-3
    assert plain.replace(preemphasis=factor).build()(wave[None, :1]).shape == (1, 64, 1)


def test_clips_below_the_smallest_length_are_extended_by_zeros(waves):
    module, wave = FRONT_ENDS.build("efficientat"), waves[32000]["1 s"]
    for samples in (1, 2, 799, 800):
        short = wave[None, :samples]
        padded = torch.nn.functional.pad(short, (0, 800 - samples))
        assert torch.equal(module(short), module(padded)) and module(short).shape[-1] == 3


def test_the_symmetric_window_is_scipys_and_the_same_in_a_traced_graph():
    spectra = FRONT_ENDS.build("efficientat").spectra[0]
    expected = np.pad(scipy.signal.get_window("hann", 800, fftbins=False), 112)
    assert largest(spectra._float64_window(None), expected) < 1e-12
    wave = torch.randn(1, 8000)
    module = FRONT_ENDS.build("efficientat")
    traced = torch.export.export(module, (wave,)).module()
    torch.testing.assert_close(traced(wave), module(wave), atol=1e-4, rtol=0)


@given(samples=st.integers(1, 40), reach=st.integers(0, 100), mode=st.sampled_from(["constant", "reflect", "edge"]))
@settings(deadline=None, max_examples=100)
def test_ends_are_padded_as_numpy_does(samples, reach, mode):
    wave = np.random.default_rng(samples).normal(size=(2, samples)).astype(np.float32)
    assert np.array_equal(
        pad_ends(torch.from_numpy(wave), reach, mode).numpy(), np.pad(wave, ((0, 0), (reach, reach)), mode=mode)
    )


@pytest.mark.parametrize(
    "changes",
    [
        dict(pad_mode="reflect"),
        dict(pad_mode="edge"),
        dict(center=False),
        dict(win_length=800),
        dict(win_length=801, center=False),
        dict(power=1.0),
        dict(power=1.5),
        dict(n_mels=None),
        dict(n_mels=40, htk=True),
        dict(n_mels=40, norm=None),
        dict(top_db=None),
        dict(top_db=40.0),
        dict(n_mels=None, power=1.0),
        dict(n_fft=1023, hop_length=100),
        dict(fmin=500.0, fmax=4000.0),
        dict(log="none"),
    ],
)
def test_every_setting_of_the_transform_is_librosas(changes, waves):
    s = FrontEnd(n_fft=1024, hop_length=256, n_mels=64, top_db=80.0).replace(**changes)
    y = waves[44100]["clip 2"].double().numpy()
    levels = np.abs(
        librosa.stft(
            y, n_fft=s.n_fft, hop_length=s.hop_length, win_length=s.win_length, center=s.center, pad_mode=s.pad_mode
        )
    )
    levels = levels ** s.power
    if s.n_mels:
        levels = (
            librosa.filters.mel(
                sr=44100,
                n_fft=s.n_fft,
                n_mels=s.n_mels,
                fmin=s.fmin,
                fmax=s.fmax,
                htk=s.htk,
                norm=s.norm,
                dtype=np.float64,
            )
            @ levels
        )
    spec = s.build()(waves[44100]["clip 2"][None])[0]
    assert spec.shape == (s.rows, s.frames(len(y)))
    if s.log == "none":
        assert np.allclose(spec, levels, rtol=1e-4, atol=1e-7)
        return
    to_db = {1.0: librosa.amplitude_to_db, 2.0: librosa.power_to_db}.get(s.power)
    expected = (
        to_db(levels, top_db=s.top_db) if to_db else librosa.power_to_db(levels ** (2 / s.power), top_db=s.top_db)
    )
    assert largest(spec, expected) <= 1e-3


def test_stacked_windows_are_the_single_ones_on_top_of_each_other(waves):
    wave = waves[44100]["1 s"][None]
    stacked = FrontEnd(windows=(512, 1024, 2048), hop_length=441, n_mels=32, top_db=80.0, normalize="clip")
    spec = stacked.build()(wave)
    single = [
        FrontEnd(n_fft=n, hop_length=441, n_mels=32, top_db=80.0, normalize="clip").build()(wave)
        for n in (512, 1024, 2048)
    ]
    assert torch.equal(spec, torch.cat(single, 1))
    assert torch.equal(CHANNELS.build("windows", n_windows=3)(spec), torch.stack(single, 1))
    assert FrontEnd(windows=(512, 1024), log="pcen", power=1.0, n_mels=32).build()(wave).shape == (1, 64, 87)


@given(samples=st.integers(1, 9000), name=st.sampled_from(NAMES))
@settings(deadline=None, max_examples=40)
def test_frames_and_samples_are_each_others_inverse(samples, name):
    settings_ = front_end(name)
    frames = settings_.frames(samples)
    assert FRONT_ENDS.build(name)(torch.zeros(1, samples)).shape[-1] == frames
    fewest = settings_.samples(frames)
    assert settings_.frames(fewest) == frames and (fewest == 1 or frames == 1 or settings_.frames(fewest - 1) < frames)


# ---- settings -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("changes", "message"), [
    (dict(pad_mode="wrap"), "pad_mode='wrap'; expected one of 'constant', 'reflect', 'edge'"),
    (dict(log="log"), "log='log'; expected one of"),
    (dict(hop_length=0), "hop_length=0; expected a number above 0"),
    (dict(top_db=-80.0), "top_db=-80.0"),
    (dict(fmin=-1.0), "fmin=-1.0; expected 0 or more"),
    (dict(preemphasis=1.5), "preemphasis=1.5; expected at most 1"),
    (dict(min_samples=0), "min_samples=0; expected a number above 0"),
    (dict(mel_triangles="bark"), "mel_triangles='bark'; expected one of 'hz', 'mel'"),
    (dict(fmax=30000.0), "expected fmin < fmax <= 22050.0 Hz"),
    (dict(fmin=9000.0, fmax=8000.0), "fmin=9000.0, fmax=8000.0"),
    (dict(win_length=4096), "no longer than the transform"),
    (dict(windows=(512, 0)), "windows=.512, 0.; expected at most 8, of 1 to 131072 samples"),
    (dict(windows=(512, 1024), center=False), "center is true"),
    (dict(windows=(512, 1024), n_mels=None), "set n_mels"),
    (dict(normalize="bin"), "one mean for each of the 128 rows.*spectrogram_stats"),
    (dict(normalize="global", mean=(1.0, 2.0)), "needs mean as one number, got 2"),
    (dict(std=0.0), "std must be above 0"),
])
def test_contradicting_settings_are_named(changes, message):
    with pytest.raises(FrontEndError, match=message):
        FrontEnd(**changes)


def test_unknown_names_and_settings_suggest_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean ninth"):
        front_end("nineth")
    with pytest.raises(OptionError, match="no setting 'n_mel'; did you mean n_mels"):
        front_end("ninth", n_mel=3)


@pytest.mark.parametrize(
    "wave", [torch.zeros(100), torch.zeros(2, 0), torch.zeros(1, 1, 100), torch.zeros(1, 100, dtype=torch.int16)]
)
def test_waves_of_another_shape_or_type_are_refused(wave):
    with pytest.raises(ShapeError, match=r"expected floats of shape \(batch, samples\)"):
        FRONT_ENDS.build("ninth")(wave)


def test_settings_are_plain_values():
    settings_ = front_end("ninth", mean=[-35.7] * 64, std=np.full(64, 21.6), normalize="bin")
    assert hash(settings_) == hash(copy.deepcopy(settings_)) and isinstance(settings_.std, tuple)
    assert front_end(settings_, n_fft=2048) == settings_.replace(n_fft=2048) != settings_
    assert (front_end("ninth").n_mels, front_end("ninth", n_mels=32).n_mels) == (64, 32)


def test_a_custom_front_end_registers_like_the_others(waves, monkeypatch):
    monkeypatch.setattr(FRONT_ENDS, "_entries", dict(FRONT_ENDS._entries))

    @FRONT_ENDS.register("mine", source="this test")
    def mine(*, n_mels: int = 8):
        return FrontEnd(sr=8000, n_fft=256, hop_length=80, n_mels=n_mels).build()

    assert FRONT_ENDS.build("mine")(torch.zeros(1, 8000)).shape == (1, 8, 101)
    assert front_end("mine", n_mels=4).rows == 4

    @FRONT_ENDS.register("bare", source="this test")
    def bare():
        return torch.nn.Identity()

    with pytest.raises(FrontEndError, match="'bare' has no settings; give its module an attribute `settings`"):
        front_end("bare")


# ---- statistics ---------------------------------------------------------------------------------------------

@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.floats(-1e4, 1e4))
@settings(deadline=None, max_examples=50)
def test_statistics_of_pieces_are_those_of_the_whole(lengths, offset):
    rng = np.random.default_rng(sum(lengths))
    pieces = [rng.normal(offset, 3, size=(2, 5, n)).astype(np.float32) for n in lengths]
    stats, halves = SpectrogramStats(), [SpectrogramStats(), SpectrogramStats()]
    for i, piece in enumerate(pieces):
        stats.add(torch.from_numpy(piece))
        halves[i % 2].add(torch.from_numpy(piece))
    halves[0].merge(halves[1])
    whole = np.concatenate([p.transpose(1, 0, 2).reshape(5, -1) for p in pieces], 1).astype(np.float64)
    for counted in (stats, halves[0]):
        assert counted.frames == whole.shape[1]
        assert (counted.mean, counted.std) == (
            pytest.approx(whole.mean(), abs=1e-8),
            pytest.approx(whole.std(), abs=1e-8),
        )
        assert counted.bin_mean == pytest.approx(whole.mean(1), abs=1e-8) and counted.bin_std == pytest.approx(
            whole.std(1), abs=1e-8
        )


def test_statistics_of_a_data_set_standardize_it(waves):
    plan = front_end("panns_plan")
    clips = [waves[32000][name] for name in ("long", "clip 2", "1 s")]
    stats = spectrogram_stats(plan.replace(clamp=1.0), iter(clips))
    whole = np.concatenate([by_librosa("panns_plan", clip) for clip in clips], 1)
    assert stats.bin_mean == pytest.approx(whole.mean(1), abs=1e-3) and stats.bin_std == pytest.approx(
        whole.std(1), abs=1e-3
    )
    assert (stats.mean, stats.std) == (pytest.approx(whole.mean(), abs=1e-3), pytest.approx(whole.std(), abs=1e-3))
    module = front_end("panns_plan", **stats.settings("bin"), clamp=None).build()
    spec = torch.cat([module(clip[None]) for clip in clips], -1)
    assert spec.mean(-1).abs().max() < 1e-4 and (spec.std(-1, correction=0) - 1).abs().max() < 1e-4
    assert front_end("ninth", **stats.settings()).mean == stats.mean


def test_statistics_do_not_store_spectrograms():
    stats = SpectrogramStats()
    for _ in range(3):
        stats.add(torch.randn(4, 8, 1000))
    assert len(pickle.dumps(stats)) < 1000


def test_invalid_spectrograms_are_named():
    stats = SpectrogramStats()
    with pytest.raises(DataError, match="no frames were added"):
        _ = stats.mean
    with pytest.raises(ShapeError, match=r"shape \(3, 4\).*spec\[None\]"):
        stats.add(torch.zeros(3, 4))
    with pytest.raises(DataError, match="not finite"):
        stats.add(torch.full((1, 2, 3), torch.nan))
    stats.add(torch.zeros(1, 2, 3))
    stats.add(torch.zeros(1, 2, 0))
    assert stats.frames == 3
    with pytest.raises(ShapeError, match="3 rows after some of 2"):
        stats.add(torch.zeros(1, 3, 3))
    with pytest.raises(OptionError, match="normalize='clip'; expected 'global' or 'bin'"):
        stats.settings("clip")


@pytest.mark.parametrize("name", ["ninth", "fastai_kernel", "first", "panns", "kaggle_fat", "third_2d"])
def test_from_linear_leaves_its_argument_as_it_is(name):
    module = FRONT_ENDS.build(name)
    levels = torch.rand(2, module.settings.rows, 20)
    given_levels = levels.clone()
    module.from_linear(levels)
    assert torch.equal(levels, given_levels)


@pytest.mark.parametrize("bad", [
    {"hop_length": 512.5}, {"n_mels": 64.0}, {"n_fft": 2048.0}, {"sr": 44100.0}, {"windows": (512.0, 1024)},
    {"n_mels": True}, {"n_mels": "64"}, {"min_samples": 1.5},
], ids=lambda bad: next(iter(bad)) + "=" + str(next(iter(bad.values()))))
def test_lengths_and_numbers_are_integers(bad):
    name = next(iter(bad))
    with pytest.raises(FrontEndError, match=f"{name}=.*expected.* integer"):
        FrontEnd(**bad)


def test_integers_of_numpy_are_integers():
    assert FrontEnd(n_mels=np.int64(32), windows=np.array([512, 1024])) == FrontEnd(n_mels=32, windows=(512, 1024))


@pytest.mark.parametrize("bad", [
    {"mean": float("nan")}, {"std": float("inf")}, {"mean": "x"}, {"mean": None}, {"fmin": "20"}, {"power": None},
], ids=lambda bad: next(iter(bad)) + "=" + str(next(iter(bad.values()))))
def test_settings_that_are_no_numbers_are_named(bad):
    with pytest.raises(FrontEndError, match=f"{next(iter(bad))}=.*expected"):
        FrontEnd(normalize="global", **bad)
