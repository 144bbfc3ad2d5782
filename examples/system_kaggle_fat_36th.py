"""Learn to train on soft labels of noisy clips: python examples/system_kaggle_fat_36th.py DATA OUT.csv.

The 36th place of Freesound Audio Tagging 2019: PCEN, all noisy clips with soft labels, SGD with steps, and the mean of
two networks. Without arguments it uses the bundled sounds and a sixteenth of the width: 14 s on two busy cores. As
published: width 1, 216 epochs, bs 128, lr 0.1, five folds.
"""

import sys
from functools import partial
from pathlib import Path

from fatai.all import (
    SGD,
    FATDataLoaders,
    SampleWeights,
    ensemble,
    fat_learner,
    fat_sample,
    load_dataset,
    quiet_unless_terminal,
    schedule_callback,
    select_noisy_labels,
)

SOUND = {"front_end": "kaggle_fat", "crop_s": 1.96, "pad_mode": "wrap_right"}


def main(data: Path, out: Path, width: float = 1 / 16, epochs: int = 1) -> None:
    """Train two networks, predict the test clips and write a submission."""
    dataset, parts = load_dataset(data, corrupted_files="noisy"), []
    soft = select_noisy_labels(dataset.noisy, dataset.tags, "kaggle_fat_soft_labels", positive=0.8)
    dls = FATDataLoaders.from_path(dataset, noisy=True, bs=16, seed=0, **SOUND)
    for arch in ("resnet18_cbam", "mobilenetv3_large"):
        learn = quiet_unless_terminal(fat_learner(
            dls, arch, width=width, loss_func="bce_mass+lovasz", opt_func=partial(SGD, mom=0.9, decouple_wd=False),
            wd=1e-4, mixup="mixup_kaggle_fat", spec_augment="spec_augment_kaggle_fat",
            cbs=SampleWeights(targets=soft.targets_by_fname),
        ))
        learn.fit(epochs, 0.03, cbs=schedule_callback("warmup_multistep", epochs, 0.03))
        parts.append(learn.tta(items=dataset.test, n=2))
    ensemble(parts).to_submission(out, sample=dataset.sample)
    print(f"{out}: the mean of {len(parts)} networks; lwlrap of the last {learn.tta(n=2).oof_score:.3f}")


if __name__ == "__main__":
    paths = [Path(arg) for arg in sys.argv[1:]]
    main(paths[0] if paths else fat_sample(), paths[1] if len(paths) > 1 else Path("submission.csv"))
