"""Full-length inference: clips grouped by length against batches padded to the longest clip.

    python -m benchmarks.whole_clips [FOLDER] [--clips 160] [--rounds 5] [--out benchmarks/results/whole_clips.md]

The plain way takes the clips in their order and pads every batch to the longest clip of the dataset, as code with one
input size does. fatai's is the view "whole": a clip is padded to the next half second and batched with clips of that
length. Reading is left out: both start from waves in memory. Every score of the grouped way is compared with that of
the clip alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from fatai.audio.io import AUDIO_EXTENSIONS
from fatai.audio.waveform import Section, fit_length
from fatai.data.config import ClipConfig
from fatai.data.datasets.fat2019 import fat_sample
from fatai.data.transforms import WaveToSpec
from fatai.errors import AudioError
from fatai.inference.predictor import Predictor
from fatai.inference.views import ClipViews, Views, whole_view
from fatai.io.atomic import write_text
from fatai.models import create_model

N_TAGS = 80


def padded_to(samples: int) -> Views:
    """Return a view of the whole clip, padded to a common length."""
    return lambda wave, settings, generator: ClipViews(
        fit_length(wave, samples, settings.pad_mode), [Section(0, samples)]
    )


def readable_waves(folder: Path, n: int, settings: ClipConfig) -> list[np.ndarray]:
    """Return up to `n` readable, trimmed waves."""
    waves = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in AUDIO_EXTENSIONS):
        try:
            waves.append(settings.read(path).numpy())
        except AudioError:
            continue
        if len(waves) == n:
            break
    return waves


def main() -> None:
    """Run the benchmark and write its report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=fat_sample())
    parser.add_argument("--clips", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bs", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/whole_clips.md"))
    args = parser.parse_args()
    read = ClipConfig(crop_s=0.5)
    waves = readable_waves(args.folder, args.clips, read)
    settings = ClipConfig(crop_s=0.5, trim_db=None)
    seconds = sorted(len(wave) / settings.sr for wave in waves)
    torch.manual_seed(0)
    model, to_spec = create_model("m1", N_TAGS, width=0.5).eval(), WaveToSpec(settings)
    ways = {"padded to the longest": padded_to(max(map(len, waves))), "grouped by length": whole_view()}

    def run(views: Views, clips: list[np.ndarray]) -> np.ndarray:
        return Predictor(model, settings, views, N_TAGS, to_spec=to_spec, bs=args.bs).predict(clips).probs

    times: dict[str, list[float]] = {way: [] for way in ways}
    for k in range(args.rounds + 1):
        for way, views in ways.items():
            start = time.perf_counter()
            run(views, waves)
            if k:  # the first round warms up
                times[way].append(time.perf_counter() - start)
    together, alone = run(whole_view(), waves), np.concatenate([run(whole_view(), [wave]) for wave in waves])
    median = {way: statistics.median(values) for way, values in times.items()}
    ratio = median["padded to the longest"] / median["grouped by length"]
    lines = [
        "# Full-length inference",
        "",
        f"    python -m benchmarks.whole_clips --clips {args.clips} --rounds {args.rounds}",
        "",
        f"{len(waves)} clips of {seconds[0]:.1f} to {seconds[-1]:.1f} s, median {statistics.median(seconds):.1f} s; "
        f"m1 at half width, batches of {args.bs}, medians of {args.rounds} alternating rounds.",
        "",
        "| way | seconds |",
        "|---|---|",
        *(f"| {way} | {median[way]:.2f} |" for way in ways),
        "",
        f"Grouped by length is {ratio:.2f}x as fast. A clip's score among others differs from its score alone by at "
        f"most {np.abs(together - alone).max():.1e}.",
    ]
    print("\n".join(lines))
    write_text(args.out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
