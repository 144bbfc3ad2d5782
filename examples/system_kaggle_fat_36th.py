"""The 36th place of Freesound Audio Tagging 2019 by hand: python examples/system_kaggle_fat_36th.py DATA OUT.csv

One learns: PCEN, all noisy clips with soft labels, SGD with steps, two bodies and the mean of what they say. Without arguments it takes the
bundled sounds and a sixteenth of the width: 14 s on two busy cores. As published: width 1, 216 epochs, bs 128, lr 0.1, five folds.
"""

import sys
from functools import partial
from pathlib import Path

from fatai.all import (
    SGD,
    FATDataLoaders,
    SampleWeights,
    select_noisy_labels,
    ensemble,
    fat_learner,
    fat_sample,
    quiet_unless_terminal,
)
from fatai.all import load_dataset, schedule_callback


def main(data: Path, out: Path, width: float = 1 / 16, epochs: int = 1) -> None:
    read, bodies = load_dataset(data, corrupted_files="noisy"), []
    soft = select_noisy_labels(read.noisy, read.tags, "kaggle_fat_soft_labels", positive=0.8)
    dls = FATDataLoaders.from_path(
        read, noisy=True, front_end="kaggle_fat", crop_s=1.96, pad_mode="wrap_right", bs=16, seed=0
    )
    for arch in ("resnet18_cbam", "mobilenetv3_large"):
        learn = quiet_unless_terminal(
            fat_learner(
                dls,
                arch,
                width=width,
                loss_func="bce_mass+lovasz",
                opt_func=partial(SGD, mom=0.9, decouple_wd=False),
                wd=1e-4,
                mixup="mixup_kaggle_fat",
                spec_augment="spec_augment_kaggle_fat",
                cbs=SampleWeights(targets=soft.targets_by_fname),
            )
        )
        learn.fit(epochs, 0.03, cbs=schedule_callback("warmup_multistep", epochs, 0.03))
        bodies.append(learn.tta(items=read.test, n=2))
    ensemble(bodies).to_submission(out, sample=read.sample)
    print(f"{out}: the mean of {len(bodies)} bodies, of which the last has lwlrap {learn.tta(n=2).oof_score:.3f}")


if __name__ == "__main__":
    given = [Path(a) for a in sys.argv[1:]]
    main(given[0] if given else fat_sample(), given[1] if len(given) > 1 else Path("submission.csv"))
