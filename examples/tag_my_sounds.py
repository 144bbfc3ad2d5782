"""Learn to train on folders of sounds, one folder per tag: python examples/tag_my_sounds.py FOLDER FILE.

Then the tags of FILE are predicted. Without arguments some bundled sounds are sorted into folders first.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import pandas as pd

from fatai.all import FATDataLoaders, fat_learner, fat_sample, quiet_unless_terminal

EPOCHS = 10


def sort_sample(into: Path) -> tuple[Path, Path]:
    """Copy the bundled clips with a single tag to one folder per tag; return the folder and another clip."""
    sample = fat_sample()
    table = pd.read_csv(sample / "train_curated.csv")
    for fname, tag in table[~table["labels"].str.contains(",")].itertuples(index=False):
        (into / tag).mkdir(parents=True, exist_ok=True)
        shutil.copy(sample / "train_curated" / fname, into / tag)
    return into, sorted((sample / "test").iterdir())[0]


def main(folder: Path, file: Path) -> None:
    """Train on a folder and print the tags of a file."""
    dls = FATDataLoaders.from_folder(folder, crop_s=1, bs=16, seed=0)
    learn = quiet_unless_terminal(fat_learner(dls, arch="m1", width=0.25))
    learn.fit_one_cycle(EPOCHS, 3e-3)
    print(f"{file.name}:")
    print(learn.predict(file))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(*sort_sample(Path(scratch)))
