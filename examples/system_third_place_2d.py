"""Learn to train with a ranking loss and predict whole clips: python examples/system_third_place_2d.py DATA OUT.csv.

The 2-D network of the 3rd place of Freesound Audio Tagging 2019: a channel with the frequency of each bin, the ranking
loss LSEP, mixtures with the labels of both clips, effects that are off in the last epochs, whole clips at the end.
Without arguments it uses the bundled sounds, a sixteenth of the width and crops of 4 s: 18 s on two busy cores. As
published: width 1, 100 epochs, augmentation off for the last 10, bs 20, crop_s 15.
"""

import sys
from pathlib import Path

from fatai.all import (
    ChunkShuffle,
    DisableAugmentation,
    FATDataLoaders,
    ItemAugmentations,
    MixUpOr,
    fat_learner,
    fat_sample,
    quiet_unless_terminal,
    schedule_callback,
)

SOUND = {"crop_s": 4.0, "trim_db": None, "pad_mode": "constant_right"}
NETWORK = {"width": 1 / 16, "arch_options": {"n_blocks": 5, "base_depth": 100}}


def main(
    data: Path, out: Path, front_end: str = "third_2d", arch: str = "cnn2d_multilevel", epochs: int = 2,
) -> None:
    """Train, predict the test clips and write a submission."""
    dls = FATDataLoaders.from_path(data, front_end=front_end, bs=16, seed=0, **SOUND)
    learn = quiet_unless_terminal(fat_learner(
        dls, arch, loss_func="lsep", wd=0.0, mixup=MixUpOr(partner="dataset"),
        augment=["trim_to_longest", "third_place_effects"],
        cbs=[ItemAugmentations(ChunkShuffle()), DisableAugmentation(1)], **NETWORK,
    ))
    learn.fit(epochs, 5e-3, cbs=schedule_callback("linear_one_cycle", epochs, 5e-3))
    preds = learn.tta(items=sorted((data / "test").iterdir()), views="whole")
    preds.to_submission(out, sample=data / "sample_submission.csv")
    print(f"{out}: {len(preds)} clips, validation lwlrap {learn.tta(views='whole').oof_score:.3f}")


if __name__ == "__main__":
    paths = [Path(arg) for arg in sys.argv[1:]]
    main(paths[0] if paths else fat_sample(), paths[1] if len(paths) > 1 else Path("submission.csv"))
