"""The gold-only plan by hand, its curated stage: python examples/system_gold_plan.py DATA OUT.csv

One learns: a network of PANNs with attention over time, a slower body than head, changes of sound, a mean of logits. Without arguments it
takes the bundled sounds, a sixteenth of the width and crops of 4 s: 10 s on two busy cores. As planned: width 1, 20 epochs, bs 32, crop_s
10, and arch_options={"head": "attention", "pretrained": "Cnn14_mAP=0.431.pth"}; `--recipe gold_plan` adds its noisy stages.
"""

import sys
from pathlib import Path

from fatai.all import AddNoise, FATDataLoaders, Gain, Shift, fat_learner, fat_sample, quiet_unless_terminal


def main(data: Path, out: Path, width: float = 1 / 16, epochs: int = 1, crop_s: float = 4.0) -> None:
    dls = FATDataLoaders.from_path(
        data, front_end="panns", crop_s=crop_s, trim_db=None, pad_mode="constant_right", bs=16, seed=0
    )
    learn = fat_learner(
        dls,
        "cnn14",
        width=width,
        arch_options={"head": "attention"},
        loss_func="smooth_positives",
        mixup="mixup_gold_plan",
        spec_augment="spec_augment_gold_plan",
        augment=[Gain(), AddNoise(), Shift()],
        splitter=lambda m: m.layer_groups(),
    )
    quiet_unless_terminal(learn).fit_one_cycle(epochs, slice(1e-4, 2e-4), wd=1e-4)
    preds = learn.tta(items=sorted((data / "test").iterdir()), how="varied", n=2, mean="logits")
    preds.to_submission(out, sample=data / "sample_submission.csv")
    print(f"{out}: {len(preds)} clips, held-out lwlrap {learn.tta(how='varied', n=2, mean='logits').oof_score:.3f}")


if __name__ == "__main__":
    given = [Path(a) for a in sys.argv[1:]]
    main(given[0] if given else fat_sample(), given[1] if len(given) > 1 else Path("submission.csv"))
