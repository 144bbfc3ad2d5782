"""The 3rd place of Freesound Audio Tagging 2019 by hand, its 2d network: python examples/system_third_place_2d.py DATA OUT.csv

One learns: a network over time and frequency, with a map of the frequencies; the ranking loss LSEP, mixtures that have the labels of both,
effects that are switched off for the last epochs, whole clips at the end. Without arguments it takes the bundled sounds, a sixteenth of
the width and crops of 4 s: 18 s on two busy cores. As published: width 1, 100 epochs, changes off for the last 10, bs 20, crop_s 15.
"""

import sys
from pathlib import Path

from fatai.all import (
    DisableAugmentation,
    ChunkShuffle,
    FATDataLoaders,
    MixUpOr,
    ItemAugmentations,
    fat_learner,
    fat_sample,
    quiet_unless_terminal,
    schedule_callback,
)


def main(
    data: Path,
    out: Path,
    front_end: str = "third_2d",
    arch: str = "cnn2d_multilevel",
    width: float = 1 / 16,
    epochs: int = 2,
    crop_s: float = 4.0,
) -> None:
    dls = FATDataLoaders.from_path(
        data, front_end=front_end, crop_s=crop_s, trim_db=None, pad_mode="constant_right", bs=16, seed=0
    )
    learn = quiet_unless_terminal(
        fat_learner(
            dls,
            arch,
            width=width,
            arch_options={"n_blocks": 5, "base_depth": 100},
            loss_func="lsep",
            wd=0.0,
            mixup=MixUpOr(partner="dataset"),
            augment=["trim_to_longest", "third_place_effects"],
            cbs=[ItemAugmentations(ChunkShuffle()), DisableAugmentation(1)],
        )
    )
    learn.fit(epochs, 5e-3, cbs=schedule_callback("linear_one_cycle", epochs, 5e-3))
    preds = learn.tta(items=sorted((data / "test").iterdir()), views="whole")
    preds.to_submission(out, sample=data / "sample_submission.csv")
    print(f"{out}: {len(preds)} clips, held-out lwlrap {learn.tta(views='whole').oof_score:.3f}")


if __name__ == "__main__":
    given = [Path(a) for a in sys.argv[1:]]
    main(given[0] if given else fat_sample(), given[1] if len(given) > 1 else Path("submission.csv"))
