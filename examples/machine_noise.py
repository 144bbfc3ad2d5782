"""Learn to find rare events in machine noise with a limit of false alarms: python examples/machine_noise.py MINUTES.

Recordings of a machine are made from generated hum and hiss, with a bundled clip now and then. A network trains on
the clips, and on other hum and hiss as clips without any tag (a folder `background`). Thresholds are then set for at
most some false alarms per hour in background, as `fatai-submit tag --max-false-alarms-per-hour` does, and counted in
the recording. Without an argument it takes 4 minutes and a narrow network for three epochs, which has learned little:
17 s of processor time, 2 of 8 events true; with MINUTES, such as 60, a wider network for 40 epochs.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import pandas as pd

from fatai.all import Recipe, SoundEvent, Tagger, fat_sample, load_audio, load_recipe, run_recipe, save_audio
from fatai.audio.background import synthesize_background
from fatai.data.background import write_background
from fatai.experiment.false_alarms import BackgroundProbs

SR = 44100
EVERY_S = 40


def machine_recording(minutes: float, file: Path) -> pd.DataFrame:
    """Write machine noise with a test clip of the sample every 40 s; return start_s, end_s and tags of each."""
    sample, rows = fat_sample(), []
    noise = [synthesize_background(kind, 60 * minutes, SR, seed=100) for kind in ("hum", "hiss")]
    wave = 0.02 * sum(n / n.abs().max() for n in noise)
    clips = pd.read_csv(sample / "truth" / "test.csv").sample(frac=1, random_state=0).itertuples()
    for start in range(EVERY_S // 2, int(60 * minutes) - EVERY_S // 2, EVERY_S):
        clip = next(clips)
        sound = load_audio(sample / "test" / clip.fname, SR)[: 5 * SR]
        wave[start * SR : start * SR + len(sound)] += 0.3 * sound / sound.abs().max()
        rows.append((start, start + len(sound) / SR, clip.labels.split(",")))
    save_audio(file, wave, SR)
    return pd.DataFrame(rows, columns=["start_s", "end_s", "tags"])


def is_true(event: SoundEvent, truth: pd.DataFrame) -> bool:
    """Return whether a clip with the tag of an event sounds while the event lasts."""
    at_once = truth[(truth["start_s"] < event.end_s) & (truth["end_s"] > event.start_s)]
    return any(event.tag in tags for tags in at_once["tags"])


def main(folder: Path, minutes: float, max_per_hour: float, recipe: Recipe) -> None:
    """Train with background, set thresholds, and count events and false alarms."""
    data = folder / "data"
    shutil.copytree(fat_sample(), data)
    write_background(data / "background", n=2, kinds=["hum", "hiss"])
    run = run_recipe(data, recipe, folder / "run", predict_test=False)
    tagger = Tagger(run.out)
    background = BackgroundProbs.measure(tagger, write_background(folder / "more", n=2, kinds=["hum", "hiss"]))
    truth = machine_recording(minutes, folder / "machine.flac")
    for name, limit in {
        "0.5": 0.5,
        f"{max_per_hour:g} an hour": {tag: max(0.5, t) for tag, t in background.thresholds(max_per_hour).items()},
    }.items():
        events = tagger.tag(folder / "machine.flac", threshold=limit)
        true = [event for event in events if is_true(event, truth)]
        per_hour = 60 * (len(events) - len(true)) / minutes
        print(f"threshold {name}: {len(true)} of {len(events)} events are true, {per_hour:.0f} false alarms per hour")


if __name__ == "__main__":
    long = [float(minutes) for minutes in sys.argv[1:]]
    small = load_recipe("quick").override(crop_s=1.0, n_views=1, **(
        {"width": 0.25} if long else {"arch": "m1", "width": 0.125, "epochs": 3}
    ))
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch), long[0] if long else 4, 6, small)
