"""The kernel "CNN 2D Basic Solution Powered by fast.ai" by hand: python examples/system_fastai_kernel.py DATA OUT.csv

One learns: spectrograms as pictures, a search for the rate, one-cycle fits one after another, the last with a rate for each group of
layers. Without arguments it takes the bundled sounds, a sixteenth of the width and an epoch a cycle: 22 s on two busy cores, lwlrap 0.31
on the held-out fifth. As published: width 1, bs 64 and 5 to 50 epochs a cycle.
"""

import sys
from pathlib import Path

from fatai.all import FATDataLoaders, TimeReverse, BrightnessContrast, fat_learner, fat_sample, quiet_unless_terminal


def main(data: Path, out: Path, width: float = 1 / 16, epochs: int = 1) -> None:
    dls = FATDataLoaders.from_path(data, front_end="fastai_kernel", crop_s=2, bs=16, valid_pct=0.2, seed=0)
    learn = fat_learner(
        dls,
        "resnet18",
        width=width,
        augment=[TimeReverse(), BrightnessContrast()],
        wd=0.01,
        splitter=lambda m: m.layer_groups(),
    )
    quiet_unless_terminal(learn)
    print("the search suggests", learn.lr_find(num_it=20, show_plot=False))
    for lr in (1e-2, 3e-3, 1e-3, slice(1e-3, 3e-3), slice(1e-4, 1e-3)):
        learn.fit_one_cycle(epochs, lr, pct_start=0.3)
    preds = learn.tta(items=sorted((data / "test").iterdir()), n=4)
    preds.to_submission(out, sample=data / "sample_submission.csv")
    print(f"{out}: {len(preds)} clips, held-out lwlrap {learn.tta(n=4).oof_score:.3f}")


if __name__ == "__main__":
    given = [Path(a) for a in sys.argv[1:]]
    main(given[0] if given else fat_sample(), given[1] if len(given) > 1 else Path("submission.csv"))
