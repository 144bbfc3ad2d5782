"""Learn to select noisy clips by a model's predictions: python examples/system_third_place_noisy.py DATA OUT.csv.

A step of the curriculum of the 3rd place of Freesound Audio Tagging 2019: a model of the curated clips predicts the
noisy ones; those whose labels it ranks highest join the curated clips, and a new model is trained. Without arguments it
uses the bundled sounds, a sixteenth of the width and the best 20 noisy clips: 14 s on two busy cores. As published:
width 1, 150 epochs, 6 blocks, the best 1,000 to 5,000; `--recipe third_place_noisy` runs the whole curriculum with five
folds.
"""

import sys
from pathlib import Path

import pandas as pd

from fatai.all import (
    FATDataLoaders,
    fat_learner,
    fat_sample,
    load_dataset,
    quiet_unless_terminal,
    schedule_callback,
    select_noisy_labels,
)

SOUND = {"front_end": "third_2d", "crop_s": 4, "trim_db": None, "pad_mode": "constant_right", "bs": 16}
COLUMNS = {"fn_col": "fname", "path_col": "path", "label_col": "labels", "valid_col": "is_valid"}
NETWORK = {"width": 1 / 16, "loss_func": "lsep", "mixup": "mixup_or"}


def main(data: Path, out: Path, epochs: int = 1, n_best: int = 20) -> None:
    """Train on curated clips, then with the best noisy clips, and write a submission."""
    dataset = load_dataset(data)
    table = dataset.curated.assign(is_valid=[i % 5 == 0 for i in range(len(dataset.curated))])
    for step in ("curated", "with the best noisy clips"):
        dls = FATDataLoaders.from_df(table, vocab=dataset.tags, **COLUMNS, **SOUND)
        learn = quiet_unless_terminal(fat_learner(dls, "cnn2d_multilevel", **NETWORK))
        learn.fit(epochs, 5e-3, cbs=schedule_callback("linear_one_cycle", epochs, 5e-3))
        print(f"{step}: {len(table)} clips, validation lwlrap {learn.tta(views='whole').oof_score:.3f}")
        if step == "curated":
            noisy, preds = dataset.noisy, learn.tta(items=dataset.noisy, views="whole")
            scores = {"probs": preds.probs, "fnames": preds.fnames}
            best = select_noisy_labels(noisy, dataset.tags, "scoring", k=n_best, **scores)
            noisy = noisy[noisy["fname"].isin(best.fnames)].assign(is_valid=False)
            table = pd.concat([table, noisy], ignore_index=True)
    learn.tta(items=dataset.test, views="whole").to_submission(out, sample=dataset.sample)


if __name__ == "__main__":
    paths = [Path(arg) for arg in sys.argv[1:]]
    main(paths[0] if paths else fat_sample(), paths[1] if len(paths) > 1 else Path("submission.csv"))
