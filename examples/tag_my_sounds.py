"""Train on folders of sounds, one folder a tag, and tag a file: python examples/tag_my_sounds.py FOLDER FILE

Without arguments it sorts some bundled sounds into folders first.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import pandas as pd

from fatai.all import FATDataLoaders, fat_learner, fat_sample, quiet_unless_terminal

EPOCHS = 10


def sorted_sample(into: Path) -> tuple[Path, Path]:
    """The bundled clips with a single tag as one folder a tag, and a clip that is in none of them."""
    sample = fat_sample()
    table = pd.read_csv(sample / "train_curated.csv")
    for fname, tag in table[~table["labels"].str.contains(",")].itertuples(index=False):
        (into / tag).mkdir(parents=True, exist_ok=True)
        shutil.copy(sample / "train_curated" / fname, into / tag)
    return into, sorted((sample / "test").iterdir())[0]


def main(folder: Path, file: Path) -> None:
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
            main(*sorted_sample(Path(scratch)))
