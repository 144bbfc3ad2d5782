"""Spectra by compiled loops, by torch and by NumPy are equal."""

import multiprocessing
import runpy
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fatai.audio import _numba_kernels
from fatai.audio.stft import ShortTimeSpectra, bin_powers
from fatai.registry import FRONT_ENDS


def mel_like(rows: int, bins: int, *, seed: int = 0) -> torch.Tensor:
    """Filters (rows, bins) of all widths; the first has no bin, as filters narrower than the spacing of the bins."""
    generator = torch.Generator().manual_seed(seed)
    filters = torch.zeros(rows, bins)
    for i in range(1, rows):
        first = int(torch.randint(0, bins - 1, (), generator=generator))
        last = int(torch.randint(first + 1, bins + 1, (), generator=generator))
        filters[i, first:last] = torch.rand(last - first, generator=generator)
    return filters


def by_numpy(wave: torch.Tensor, spectra: ShortTimeSpectra) -> np.ndarray:
    """Compute levels (batch, rows, frames) in float64."""
    n = spectra.n_fft
    window = np.zeros(n)
    left = (n - spectra.win_length) // 2
    window[left:left + spectra.win_length] = scipy.signal.get_window("hann", spectra.win_length)
    frames = np.lib.stride_tricks.sliding_window_view(wave.double().numpy(), n, axis=-1)[:, ::spectra.hop_length]
    levels = np.abs(np.fft.rfft(frames * window)) ** spectra.power
    return (levels @ spectra.filters.double().numpy().T).transpose(0, 2, 1)


@given(n_fft=st.integers(2, 300), hop=st.integers(1, 200), rows=st.integers(1, 9), more=st.integers(0, 900),
       power=st.sampled_from([1.0, 2.0]), batch=st.integers(0, 3), fraction=st.floats(0.1, 1))
@settings(deadline=None, max_examples=60)
def test_kernels_torch_and_numpy_agree(n_fft, hop, rows, more, power, batch, fraction):
    spectra = ShortTimeSpectra(n_fft, max(1, round(fraction * n_fft)), hop, power, mel_like(rows, n_fft // 2 + 1))
    wave = torch.from_numpy(np.random.default_rng(more).uniform(-1, 1, (batch, n_fft + more)).astype(np.float32))
    expected = by_numpy(wave, spectra)
    got = spectra(wave)
    assert got.dtype == torch.float32 and got.is_contiguous() and got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-9)
    if batch:
        by_torch = spectra(wave.requires_grad_())
        assert by_torch.requires_grad and not got.requires_grad
        np.testing.assert_allclose(by_torch.detach(), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("limits", [{"amin": 1e-10}, {"top_db": 80.0}, {"amin": 1e-10, "top_db": 80.0}])
def test_levels_above_the_limits_are_those_of_float64(limits):
    """A loud tone, and 100 dB below it noise that gets fainter still: float32 alone is wrong by decibels there."""
    generator = torch.Generator().manual_seed(1)
    at = torch.arange(44100)
    tone = torch.sin(at * (2 * np.pi * 300 / 44100)) * (1 - 0.999 * (at > 22050))
    wave = tone + torch.logspace(-5, -8, 44100) * torch.randn(44100, generator=generator)
    filters = mel_like(40, 513)
    spectra = ShortTimeSpectra(1024, 1024, 256, 2.0, filters, **limits)
    levels, expected = spectra(wave[None])[0].numpy(), by_numpy(wave[None], spectra)[0]
    floor = max(limits.get("amin", 0.0), expected.max() * 10 ** (-limits.get("top_db", 500.0) / 10))
    assert 0.05 < (expected > floor).mean() <= 1
    decibels = 10 * np.log10(np.maximum(levels, floor)) - 10 * np.log10(np.maximum(expected, floor))
    assert np.abs(decibels).max() <= 1e-3


def test_only_frames_with_inexact_levels_are_found():
    levels = np.array([[5.0, 0.5, 3.0, 3.0], [9.0, 9.0, 2.0, 9.0]], np.float32)
    sums, min_fraction = np.array([10.0, 10.0, 10.0, 40.0], np.float32), np.array([0.1, 0.3], np.float32)
    # Too small against the sums are 0.5 (below 1), 2 (below 3) and 3 and 9 (below 4 and 12); 0.5 is not above the
    # floor.
    assert _numba_kernels.find_inexact_frames(levels, sums, min_fraction, 0.6).tolist() == [2, 3]
    assert _numba_kernels.find_inexact_frames(levels, sums, min_fraction, 0.4).tolist() == [1, 2, 3]
    assert _numba_kernels.find_inexact_frames(levels, sums, min_fraction, 9.0).tolist() == []


@given(
    hnp.arrays(np.float32, (3, 17), elements=st.floats(0, 2.0**99, width=32)),
    st.sampled_from([10.0, 20.0]),
    st.floats(1e-30, 1),
)
@settings(deadline=None, max_examples=60)
def test_decibels_are_those_of_the_logarithm(levels, scale, floor):
    expected = scale * np.log10(np.maximum(levels.astype(np.float64), np.float32(floor)))
    _numba_kernels.to_decibels(levels, scale, floor)
    np.testing.assert_allclose(levels, expected, rtol=3e-7, atol=3e-6)


def test_decibels_of_every_mantissa():
    levels = np.ldexp(np.arange(1 << 23, 1 << 24, 61, dtype=np.float32), -23)[None]
    expected = 10 * np.log10(levels.astype(np.float64))
    _numba_kernels.to_decibels(levels, 10.0, 1e-10)
    assert np.abs(levels - expected).max() <= 1e-6


def test_levels_that_are_not_finite_have_no_finite_decibels():
    levels = np.array([[np.inf, np.nan, 1.0, 0.0]], np.float32)
    _numba_kernels.to_decibels(levels, 10.0, 1e-10)
    assert levels.tolist() == [[np.inf, np.inf, 0.0, pytest.approx(-100)]]


@pytest.mark.parametrize("name", FRONT_ENDS.names())
def test_a_front_end_gives_the_same_when_the_wave_needs_a_gradient(name):
    """With a gradient torch computes what compiled loops compute otherwise."""
    module = FRONT_ENDS.build(name)
    wave = torch.randn(2, 30000, generator=torch.Generator().manual_seed(4)) * torch.logspace(0, -4, 30000)
    wave[1] = 0
    by_kernels, by_torch = module(wave), module(wave.clone().requires_grad_())
    assert by_torch.requires_grad and not by_kernels.requires_grad
    apart = (by_kernels - by_torch).detach().abs()
    if module.settings.normalize == "image":  # whole numbers: a rounding error is a level, but only next to one
        assert apart.max() <= 1 and apart.mean() <= 1e-3
    else:
        assert apart.max() <= 1e-3


def test_levels_are_scaled_to_an_image():
    levels = np.array([[-80.0, -60.0], [-40.0, 0.0]], np.float32)
    _numba_kernels.to_image(levels, levels.min(), levels.max(), 1e-12)
    assert levels.tolist() == [[0, 63], [127, 255]]  # 63.75 and 127.5 are rounded down
    flat = np.full((2, 3), 7.0, np.float32)
    _numba_kernels.to_image(flat, flat.min(), flat.max(), 1e-12)
    assert (flat == 0).all()


def test_values_that_are_not_finite_affect_their_frame_only():
    wave = torch.zeros(2, 1000)
    wave[0, 900], wave[1, 900] = torch.nan, torch.inf
    spec = ShortTimeSpectra(100, 100, 100, 2.0, torch.ones(3, 51), amin=1e-10, top_db=80.0)(wave)
    assert spec[:, :, 9].isnan().all() and (spec[:, :, :9] == 0).all()


def test_a_view_with_gaps_is_read_as_it_is():
    wave = torch.randn(2, 4000)
    spectra = ShortTimeSpectra(256, 256, 100, 2.0, mel_like(5, 129))
    assert torch.equal(spectra(wave[:, ::2]), spectra(wave[:, ::2].contiguous()))
    assert torch.equal(spectra(wave.T.contiguous().T), spectra(wave))


def test_threads_at_once_get_their_own_spectra():
    spectra = ShortTimeSpectra(1024, 1024, 256, 2.0, mel_like(20, 513), amin=1e-10)
    waves = torch.randn(16, 1, 20000, generator=torch.Generator().manual_seed(2))
    alone = [spectra(wave) for wave in waves]
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(a, b) for a, b in zip(alone, pool.map(spectra, waves), strict=True))


def test_without_a_cache_folder_kernels_are_compiled_each_time(monkeypatch):
    monkeypatch.setattr(numba.core.caching.CompileResultCacheImpl, "_locator_classes", [])
    function = runpy.run_path(_numba_kernels.__file__)["find_inexact_frames"]
    ones = np.ones((1, 1), np.float32)
    assert function(ones, ones[0], 2 * ones[0], 0.5).tolist() == [0]


def _sum(spectra: ShortTimeSpectra, wave: torch.Tensor, results) -> None:
    results.put(float(spectra(wave).sum()))


def test_a_forked_worker_computes_the_same():
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("processes cannot be forked here")
    spectra, wave = ShortTimeSpectra(256, 256, 100, 2.0, mel_like(5, 129)), torch.randn(1, 3000)
    here, context = float(spectra(wave).sum()), multiprocessing.get_context("fork")
    results = context.Queue()
    worker = context.Process(target=_sum, args=(spectra, wave, results))
    worker.start()
    assert results.get(timeout=60) == here
    worker.join()


def test_a_module_with_buffers_in_shared_memory_keeps_its_window(rng):
    # As it is sent to loader workers that are not forked.
    wave = torch.from_numpy(rng.standard_normal((2, 9000)).astype(np.float32))
    spectra = ShortTimeSpectra(1024, 1024, 512, 2.0, mel_like(16, 513), amin=1e-10)
    before = spectra(wave)
    spectra.share_memory()
    overwritten = [torch.full((1024,), torch.nan) for _ in range(200)]
    assert torch.equal(spectra(wave), before) and len(overwritten) == 200


@pytest.mark.parametrize("n_fft", [1, 2, 3, 6, 7, 16, 441, 1024, 1920, 2042])  # 2042 is twice a prime
def test_powers_by_matrix_products_are_those_of_the_transform_of_numpy(n_fft):
    frames = np.random.default_rng(n_fft).normal(size=(2, 3, n_fft))
    expected = np.abs(np.fft.rfft(frames)) ** 2
    powers = bin_powers(torch.from_numpy(frames))
    assert powers.dtype == torch.float64
    np.testing.assert_allclose(powers, expected, rtol=0, atol=1e-13 * expected.max())
