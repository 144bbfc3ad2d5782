"""Learn to get from folders of calls to detections in a recording: python examples/bird_calls.py FOLDER RECORDING OUT.

FOLDER has a folder of sounds for each species. With published weights on this machine (`fatai-submit weights get
mn04_as`) recipe `probe` fits them in seconds, else recipe `quick` trains a network. OUT gets the run with its report,
and a selection table of the recording for Raven. Without arguments, bundled sounds are sorted into folders and a
narrow network trains for three epochs: 10 s of processor time, lwlrap 0.39, little more than chance.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import pandas as pd

from fatai.all import Recipe, Tagger, fat_sample, load_recipe, run_recipe, run_report, write_events
from fatai.inference.events.progress_log import FileEvents
from fatai.models.weights import weights_path


def sort_sample(into: Path) -> tuple[Path, Path]:
    """Copy the bundled clips with a single tag to one folder per tag; return the folder and another clip."""
    sample = fat_sample()
    table = pd.read_csv(sample / "train_curated.csv")
    for fname, tag in table[~table["labels"].str.contains(",")].itertuples(index=False):
        (into / tag).mkdir(parents=True, exist_ok=True)
        shutil.copy(sample / "train_curated" / fname, into / tag)
    return into, sorted((sample / "test").iterdir())[0]


def best_recipe() -> Recipe:
    """Return recipe `probe` if its weights are on this machine, else `quick`."""
    return load_recipe("probe" if weights_path("mn04_as").is_file() else "quick")


def main(folder: Path, recording: Path, out: Path, recipe: Recipe) -> None:
    """Train on a folder, write a report, and tag a recording."""
    run = run_recipe(folder, recipe, out / "run", report=run_report)
    events = Tagger(run.out).tag(recording)
    write_events(out / "selections.txt", [FileEvents(str(recording), events)], "raven")
    print(f"{run.out / 'report.html'}: lwlrap out of fold {run.oof_score:.3f}")
    print(f"{out / 'selections.txt'}: {len(events)} detections")
    for event in events:
        print(f"{event.start_s:7.2f} to {event.end_s:7.2f} s  {event.tag}  {event.prob:.2f}")


if __name__ == "__main__":
    if len(sys.argv) == 4:
        main(*map(Path, sys.argv[1:]), best_recipe())
    else:
        with tempfile.TemporaryDirectory() as scratch:
            small = load_recipe("quick").override(arch="m1", width=0.125, epochs=3, crop_s=1.0, n_views=1)
            main(*sort_sample(Path(scratch, "calls")), Path(scratch, "out"), small)
