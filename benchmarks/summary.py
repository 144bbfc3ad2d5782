"""The works that users wait for in one table: fatai, what one would take instead, and the limit of the machine.

Every row has the milliseconds of both, measured in alternating rounds, their ratio, and a limit that no way of the kind
passes, measured in the same run: decoding and Fourier transforms alone, or the products of matrices that the processor
computes at its peak; a dash where there is none. All on one thread; times are those of the thread, so that other work
on the machine counts only as far as it takes caches and clock from both. Spectrograms and scores of both are compared
first.

    python -m benchmarks.summary [--rounds 5] [--clips 40] [--out benchmarks/results/summary.md]

torchlibrosa is compared where it is installed (`pip install torchlibrosa`).
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Limits the threads of the libraries, before they are loaded.
from benchmarks.front_end import fatai_way, load, one_core, plain_way, wav_files  # isort: skip

import librosa
import numpy as np
import torch
from sklearn.metrics import label_ranking_average_precision_score
from torch import Tensor

from benchmarks import lsep, lwlrap
from benchmarks.loader import loaders, read_all
from benchmarks.models import N_TAGS, capabilities, gflop, steps
from benchmarks.timing import alternate, write_report
from fatai.audio.front_ends import front_end
from fatai.audio.io import load_audio
from fatai.audio.spectrogram import FrontEnd, Spectrogram
from fatai.data.datasets.fat2019 import fat_sample
from fatai.metrics.ranking import lwlrap as fatai_lwlrap
from fatai.registry import LOSSES
from fatai.training.autocast import best_dtype

DEFAULT_NETWORK = ("m3", 0.25, 2.0)  # architecture, width and seconds of a crop of recipe default
BATCH = 16


@dataclass(frozen=True)
class Row:
    """A work with its times in milliseconds; `limit_ms` None where there is no simpler limit."""

    work: str
    fatai_ms: float
    baseline: str
    baseline_ms: float
    limit: str = "-"
    limit_ms: float | None = None

    def __str__(self) -> str:
        limit = "-" if self.limit_ms is None else f"{self.limit}: {self.limit_ms:.3g}"
        times = f"{self.fatai_ms:.3g} | {self.baseline} | {self.baseline_ms:.3g}"
        return f"| {self.work} | {times} | {self.baseline_ms / self.fatai_ms:.3g} | {limit} |"


def transforms_alone(samples: int, s: FrontEnd) -> Callable[[], object]:
    """Return a function that computes the Fourier transforms of so many samples, cut into frames before."""
    frames = torch.randn(samples // s.hop_length + 1, s.n_fft)
    return lambda: torch.fft.rfft(frames)


def from_file(files: list[Path], rounds: int) -> Row:
    """Compare the ways from a WAV file to the spectrogram of front end ninth."""
    module, decibels = front_end("ninth").build(), front_end("ninth", normalize="none").build()
    difference = max(np.abs(plain_way(f, module.settings) - fatai_way(f, decibels).numpy()).max() for f in files)
    assert difference < 0.1, f"{difference} dB"
    samples = sum(len(load_audio(f, module.settings.sr)) for f in files)
    transforms = transforms_alone(samples, module.settings)

    def limit() -> None:
        for file in files:
            load_audio(file, module.settings.sr)
        transforms()

    ours, plain, least = alternate(
        rounds,
        lambda: [fatai_way(f, module) for f in files],
        lambda: [plain_way(f, module.settings) for f in files],
        limit,
    )
    ms = 1e3 / len(files)
    return Row("a WAV file to its spectrogram", ours * ms, "librosa, file by file", plain * ms, "decoding and FFT",
               least * ms)


def torch_way(s: FrontEnd) -> Callable[[Tensor], Tensor]:
    """Return log-mel spectrograms by torch.stft and a product with librosa's mel filters."""
    window = torch.hann_window(s.n_fft)
    filters = torch.from_numpy(
        librosa.filters.mel(sr=s.sr, n_fft=s.n_fft, n_mels=s.n_mels, fmin=s.fmin, fmax=s.fmax, htk=s.htk, norm=s.norm)
    )

    def spectrograms(waves: Tensor) -> Tensor:
        spectra = torch.stft(waves, s.n_fft, s.hop_length, window=window, pad_mode=s.pad_mode, return_complex=True)
        return 10 * torch.log10((filters @ spectra.abs() ** 2).clamp(min=s.amin))

    return spectrograms


def torchlibrosa_way(s: FrontEnd) -> Callable[[Tensor], Tensor] | None:
    """Return log-mel spectrograms by torchlibrosa; None where it is not installed."""
    try:
        from torchlibrosa.stft import LogmelFilterBank, Spectrogram
    except ImportError:
        return None
    spectra = Spectrogram(n_fft=s.n_fft, hop_length=s.hop_length, pad_mode=s.pad_mode, freeze_parameters=True)
    mels = LogmelFilterBank(sr=s.sr, n_fft=s.n_fft, n_mels=s.n_mels, fmin=s.fmin, fmax=s.fmax, amin=s.amin, top_db=None)
    return lambda waves: mels(spectra(waves))[:, 0].transpose(1, 2)


def of_a_batch(rounds: int) -> list[Row]:
    """Compare log-mel spectrograms of a batch in memory, with the settings of PANNs."""
    settings = front_end("panns", normalize="none")
    module, waves = Spectrogram(settings), 0.1 * torch.randn(BATCH, settings.sr * 4)
    others = {"torch.stft and mel filters": torch_way(settings), "torchlibrosa": torchlibrosa_way(settings)}
    baselines = {name: way for name, way in others.items() if way is not None}
    with torch.inference_mode():
        for way in baselines.values():
            torch.testing.assert_close(way(waves), module(waves), atol=0.05, rtol=0)
        ours, least, *times = alternate(
            rounds, lambda: module(waves), transforms_alone(waves.numel(), settings),
            *(lambda way=way: way(waves) for way in baselines.values()),
        )
    ms = 1e3 / BATCH
    return [Row("4 s of sound in memory to a spectrogram", ours * ms, name, time * ms, "FFT", least * ms)
            for name, time in zip(baselines, times, strict=True)]


def crops_of_a_batch(data: Path, rounds: int) -> Row:
    """Compare random crops of clips that are held in memory, and of clips that are decoded in every epoch."""
    with tempfile.TemporaryDirectory() as folder:
        held, decoded = (loaders(data, cache, Path(folder), 4.0) for cache in ("device", "none"))
        n = len(held.train) * held.bs
        ours, plain = alternate(
            rounds, lambda: read_all(held, front_end=False), lambda: read_all(decoded, front_end=False)
        )
    ms = 1e3 / n
    return Row("a random crop of 4 s in a batch", ours * ms, "decoded in every epoch", plain * ms)


def peak_gflops(dtype: torch.dtype, rounds: int) -> float:
    """Return the GFLOP per second of a product of large matrices."""
    a, b = (torch.randn(1024, 1024).to(dtype) for _ in range(2))
    (s,) = alternate(rounds, lambda: a @ b)
    return 2 * 1024**3 / s / 1e9


def networks(rounds: int) -> list[Row]:
    """Prediction and training of a batch by the network of recipe default."""
    arch, width, crop_s = DEFAULT_NETWORK
    settings = front_end("ninth")
    spec = torch.randn(BATCH, 3, settings.n_mels, int(crop_s * settings.sr / settings.hop_length) + 1)
    ways, forward = steps(arch, spec, width), gflop(arch, spec, 3, width=width)
    peak = peak_gflops(best_dtype(torch.device("cpu")), rounds)
    rows = []
    network = f"the network of `default`, a crop of {crop_s:g} s"
    for mode, work, factor in (("infer", f"predictions of {network}", 1), ("train", f"training of {network}", 3)):
        ours, plain = alternate(rounds, ways[mode, "auto"], ways[mode, "fp32"])
        limit = f"matrix products at {peak:.0f} GFLOP/s", factor * forward / peak * 1e3
        rows.append(Row(work, ours * 1e3 / BATCH, "torch in float32", plain * 1e3 / BATCH, *limit))
    return rows


def scores(rounds: int) -> list[Row]:
    """Score a test set of the competition's size."""
    probs, targ = lwlrap.case(5000, N_TAGS)
    weight = targ.sum(1)
    of_clips: dict[str, Callable[[], float]] = {
        "scikit-learn": lambda: label_ranking_average_precision_score(targ, probs, sample_weight=weight),
        "clip by clip": lambda: lwlrap.plain_way(probs, targ),
    }
    for way in of_clips.values():
        assert abs(way() - fatai_lwlrap(probs, targ)) < 1e-9
    ours, *times = alternate(rounds, lambda: fatai_lwlrap(probs, targ), *of_clips.values())
    return [Row(f"lwlrap of 5,000 clips x {N_TAGS} tags", ours * 1e3, name, time * 1e3)
            for name, time in zip(of_clips, times, strict=True)]


def losses(rounds: int) -> Row:
    """Compare LSEP of a batch with its gradient; the limit is a loss of single tags."""
    logits, targ = 3 * torch.randn(128, N_TAGS), (torch.rand(128, N_TAGS) < 2 / N_TAGS).float()
    ours, bce = LOSSES.build("lsep"), torch.nn.functional.binary_cross_entropy_with_logits
    pairs, sums, least = alternate(
        rounds, *(lambda loss=loss: lsep.with_gradient(loss, logits, targ) for loss in (lsep.plain_way, ours, bce))
    )
    return Row(f"LSEP and its gradient, 128 clips x {N_TAGS} tags", sums * 1e3, "all pairs of tags", pairs * 1e3,
               "binary cross-entropy", least * 1e3)


def main(argv: list[str] | None = None) -> str:
    """Run the benchmark, write its report and return the table."""
    parser = argparse.ArgumentParser(description="fatai beside what one would take instead, and the limit.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "summary.md")
    args = parser.parse_args(argv)
    one_core()
    torch.manual_seed(2019)
    before = load()
    with tempfile.TemporaryDirectory() as folder:
        files = wav_files([fat_sample()], args.clips, Path(folder))
        rows = [from_file(files, args.rounds)]
    rows += [*of_a_batch(args.rounds), crops_of_a_batch(fat_sample(), args.rounds), *networks(args.rounds),
             *scores(args.rounds), losses(args.rounds)]
    processor = capabilities().get("cpu_name") or platform.machine()
    about = (
        f"One thread of {os.cpu_count()} cores, {processor}; torch {torch.__version__}, librosa {librosa.__version__}; "
        f"medians of {args.rounds} alternating rounds, in milliseconds of the thread. {before} On a busy machine "
        "all times are longer than on an idle one."
    )
    lines = ["| work | fatai, ms | instead | ms | times as fast | limit, ms |", "|---|---|---|---|---|---|"]
    table = "\n".join([about, "", *lines, *map(str, rows)])
    return write_report("Beside what one would take instead", "python -m benchmarks.summary", table, args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
