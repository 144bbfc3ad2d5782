"""Learn to train on spectrograms as images: python examples/system_fastai_kernel.py DATA OUT.csv.

The kernel "CNN 2D Basic Solution Powered by fast.ai": spectrograms as images, a search for the learning rate, one-cycle
fits in sequence, the last ones with a rate per layer group. Without arguments it uses the bundled sounds, a sixteenth
of the width and an epoch per cycle: 22 s on two busy cores, lwlrap 0.31 on the validation fifth. As published: width 1,
bs 64 and 5 to 50 epochs per cycle.
"""

import sys
from pathlib import Path

from fatai.all import BrightnessContrast, FATDataLoaders, TimeReverse, fat_learner, fat_sample, quiet_unless_terminal


def main(data: Path, out: Path, width: float = 1 / 16, epochs: int = 1) -> None:
    """Train, predict the test clips and write a submission."""
    dls = FATDataLoaders.from_path(data, front_end="fastai_kernel", crop_s=2, bs=16, valid_pct=0.2, seed=0)
    learn = quiet_unless_terminal(fat_learner(
        dls, "resnet18", width=width, augment=[TimeReverse(), BrightnessContrast()], wd=0.01,
        splitter=lambda m: m.layer_groups(),
    ))
    print("suggested learning rate:", learn.lr_find(num_it=20, show_plot=False))
    for lr in (1e-2, 3e-3, 1e-3, slice(1e-3, 3e-3), slice(1e-4, 1e-3)):
        learn.fit_one_cycle(epochs, lr, pct_start=0.3)
    preds = learn.tta(items=sorted((data / "test").iterdir()), n=4)
    preds.to_submission(out, sample=data / "sample_submission.csv")
    print(f"{out}: {len(preds)} clips, validation lwlrap {learn.tta(n=4).oof_score:.3f}")


if __name__ == "__main__":
    paths = [Path(arg) for arg in sys.argv[1:]]
    main(paths[0] if paths else fat_sample(), paths[1] if len(paths) > 1 else Path("submission.csv"))
