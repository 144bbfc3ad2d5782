"""From sound file to spectrogram: milliseconds per clip of the plain way and of fatai's, on one core.

The plain way is librosa's, clip by clip: load, effects.trim, melspectrogram, power_to_db. fatai's reads, trims and
transforms the same clips one at a time with the same settings, and also normalizes them, which the plain way does not.
First the decibels of every clip are compared; then rounds of the two alternate, and the median round counts. Files of
another sample rate than the front end's (for panns) are resampled by the same library in both ways, which is about half
of fatai's time.

    python -m benchmarks.front_end [FOLDER OR FILES] [--rounds 7] [--clips 40] [--out benchmarks/results/front_end.md]

Files other than WAV are converted once, before the clock starts; the default is those of the bundled sample.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[variable] = "1"  # read when the libraries below are loaded

import librosa  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from fatai.audio.front_ends import front_end  # noqa: E402
from fatai.audio.io import AUDIO_EXTENSIONS, load_audio, save_audio  # noqa: E402
from fatai.audio.spectrogram import FrontEnd, Spectrogram  # noqa: E402
from fatai.audio.waveform import trim_silence  # noqa: E402
from fatai.data.datasets.fat2019 import fat_sample  # noqa: E402
from fatai.io.atomic import write_text  # noqa: E402

FRONT_ENDS = ("ninth", "fastai_kernel", "panns")
TRIM_DB = 60.0


def plain_way(path: Path, s: FrontEnd) -> np.ndarray:
    """Return the decibels of one clip, shape (mels, frames), by librosa alone."""
    wave, _ = librosa.load(path, sr=s.sr)
    wave, _ = librosa.effects.trim(wave, top_db=TRIM_DB)
    mels = librosa.feature.melspectrogram(
        y=wave,
        sr=s.sr,
        n_fft=s.n_fft,
        hop_length=s.hop_length,
        n_mels=s.n_mels,
        fmin=s.fmin,
        fmax=s.fmax,
        pad_mode=s.pad_mode,
    )
    return librosa.power_to_db(mels, top_db=s.top_db).astype(np.float32)


def fatai_way(path: Path, module: Spectrogram) -> torch.Tensor:
    """Return the spectrogram of one clip as a network gets it, shape (mels, frames)."""
    with torch.inference_mode():
        return module(trim_silence(load_audio(path, module.settings.sr), TRIM_DB)[None])[0]


def one_core() -> None:
    """Restrict this process to one core and one thread."""
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def wav_files(sources: list[Path], clips: int, folder: Path) -> list[Path]:
    """Return up to `clips` WAV files, evenly picked; other formats are converted into `folder`."""
    paths = [
        f
        for s in sources
        for f in (sorted(s.rglob("*")) if s.is_dir() else [s])
        if f.suffix.lower() in AUDIO_EXTENSIONS
    ]
    if not paths:
        raise SystemExit(f"no sound files in {', '.join(map(str, sources))}")
    picked = [paths[i] for i in np.linspace(0, len(paths) - 1, min(clips, len(paths))).astype(int)]
    return [f if f.suffix.lower() == ".wav" else save_audio(folder / f"{i}_{f.stem}.wav", load_audio(f, 44100), 44100)
            for i, f in enumerate(picked)]


def seconds(function: Callable[[Path], object], files: list[Path]) -> float:
    """Return the processor seconds for all files: on an idle core, those of the clock."""
    start = time.process_time()
    for file in files:
        function(file)
    return time.process_time() - start


def measure(name: str, files: list[Path], rounds: int) -> tuple[float, float, float]:
    """Return the median milliseconds per clip of the plain way and of fatai's, and the largest difference in dB."""
    module, decibels = front_end(name).build(), front_end(name, normalize="none").build()

    def plain(file: Path) -> np.ndarray:
        return plain_way(file, module.settings)

    def ours(file: Path) -> torch.Tensor:
        return fatai_way(file, module)

    difference = max(float(np.abs(plain(f) - fatai_way(f, decibels).numpy()).max()) for f in files)
    seconds(ours, files[:2])
    times = [(seconds(plain, files), seconds(ours, files)) for _ in range(rounds)]
    plain_ms, ours_ms = (statistics.median(t) * 1e3 / len(files) for t in zip(*times, strict=True))
    return plain_ms, ours_ms, difference


def load() -> str:
    """Return a sentence on the load of the machine, which takes caches away from both ways."""
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return f"Load of the machine: {busy:.1f} on {os.cpu_count()} cores, the benchmark included."


def main(argv: list[str] | None = None) -> str:
    """Run the benchmark, write its report and return the table."""
    parser = argparse.ArgumentParser(description="Milliseconds per clip, from file to spectrogram, on one core.")
    parser.add_argument("sources", nargs="*", type=Path, help="folders or sound files; by default the bundled sample")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "front_end.md")
    args = parser.parse_args(argv)
    one_core()
    lines = [
        "| front end | librosa, ms per clip | fatai, ms per clip | times as fast | largest difference, dB |",
        "|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        files = wav_files(args.sources or [fat_sample()], args.clips, Path(folder))
        length = statistics.mean(load_audio(f, None).shape[-1] / 44100 for f in files)
        for name in FRONT_ENDS:
            plain_ms, ours_ms, difference = measure(name, files, args.rounds)
            lines.append(f"| {name} | {plain_ms:.2f} | {ours_ms:.2f} | {plain_ms / ours_ms:.2f} | {difference:.5f} |")
    about = (
        f"{len(files)} WAV files of {length:.1f} s on average, 44.1 kHz; median of {args.rounds} alternating rounds, "
        f"one core of {platform.machine()}; torch {torch.__version__}, librosa {librosa.__version__}. {load()}"
    )
    table = "\n".join([about, "", *lines])
    print(table)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    kind = "a folder of ESC-10" if any("esc" in str(s).lower() for s in args.sources) else "the bundled sample"
    given = f"{' ESC10' if 'ESC' in kind else ''} --clips {args.clips} --rounds {args.rounds}"
    write_text(
        args.out,
        f"# From sound file to spectrogram\n\n    python -m benchmarks.front_end{given}\n\nOn {kind}: {table}\n",
    )
    return table


if __name__ == "__main__":
    main(sys.argv[1:])
