"""A step of the 3rd place's ladder by hand: python examples/system_third_place_noisy.py DATA OUT.csv

One learns: curated clips teach a model that judges the noisy ones; those whose labels it ranks highest join the curated ones, and a new
model begins. Without arguments it takes the bundled sounds, a sixteenth of the width and the best 20 noisy clips: 14 s on two busy cores.
As published: width 1, 150 epochs, 6 blocks, the best 1,000 to 5,000; `--recipe third_place_noisy` climbs the whole ladder with five folds.
"""

import sys
from pathlib import Path

import pandas as pd

from fatai.all import (
    FATDataLoaders,
    select_noisy_labels,
    fat_learner,
    fat_sample,
    quiet_unless_terminal,
    load_dataset,
    schedule_callback,
)

SOUND = {
    "front_end": "third_2d",
    "crop_s": 4,
    "trim_db": None,
    "pad_mode": "constant_right",
    "bs": 16,
    "valid_col": "is_valid",
}


def main(data: Path, out: Path, width: float = 1 / 16, epochs: int = 1, best: int = 20) -> None:
    read = load_dataset(data)
    table, chosen = (
        read.curated[["fname", "path", "labels"]].assign(is_valid=[i % 5 == 0 for i in range(len(read.curated))]),
        None,
    )
    for step in ("curated", "with the best noisy clips"):
        dls = FATDataLoaders.from_df(
            table, fn_col="fname", path_col="path", label_col="labels", vocab=read.tags, **SOUND
        )
        learn = quiet_unless_terminal(
            fat_learner(dls, "cnn2d_multilevel", width=width, loss_func="lsep", mixup="mixup_or")
        )
        learn.fit(epochs, 5e-3, cbs=schedule_callback("linear_one_cycle", epochs, 5e-3))
        print(f"{step}: {len(table)} clips, held-out lwlrap {learn.tta(how='whole').oof_score:.3f}")
        if chosen is None:
            judged = learn.tta(items=read.noisy, how="whole")
            chosen = select_noisy_labels(
                read.noisy, read.tags, "scoring", k=best, probs=judged.probs, fnames=judged.fnames
            )
            noisy = read.noisy[read.noisy["fname"].isin(chosen.fnames)][["fname", "path", "labels"]]
            table = pd.concat([table, noisy.assign(is_valid=False)], ignore_index=True)
    learn.tta(items=read.test, how="whole").to_submission(out, sample=read.sample)


if __name__ == "__main__":
    given = [Path(a) for a in sys.argv[1:]]
    main(given[0] if given else fat_sample(), given[1] if len(given) > 1 else Path("submission.csv"))
