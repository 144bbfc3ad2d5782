"""Learn to fine-tune with sound effects and layer groups: python examples/system_gold_plan.py DATA OUT.csv.

The curated stage of the gold-only plan: a PANNs network with attention over time, a lower learning rate for its encoder
than for its head, effects on waveforms, a mean of logits. Without arguments it uses the bundled sounds, a sixteenth of
the width and crops of 4 s: 10 s on two busy cores. As planned: width 1, 20 epochs, bs 32, crop_s 10, and
arch_options={"head": "attention", "pretrained": "Cnn14_mAP=0.431.pth"}; `--recipe gold_plan` adds its noisy stages.
"""

import sys
from pathlib import Path

from fatai.all import AddNoise, FATDataLoaders, Gain, Shift, fat_learner, fat_sample, quiet_unless_terminal


def main(data: Path, out: Path, width: float = 1 / 16, epochs: int = 1, crop_s: float = 4.0) -> None:
    """Train, predict the test clips and write a submission."""
    dls = FATDataLoaders.from_path(
        data, front_end="panns", crop_s=crop_s, trim_db=None, pad_mode="constant_right", bs=16, seed=0
    )
    learn = quiet_unless_terminal(fat_learner(
        dls, "cnn14", width=width, arch_options={"head": "attention"}, loss_func="smooth_positives",
        mixup="mixup_gold_plan", spec_augment="spec_augment_gold_plan", augment=[Gain(), AddNoise(), Shift()],
        splitter=lambda m: m.layer_groups(),
    ))
    learn.fit_one_cycle(epochs, slice(1e-4, 2e-4), wd=1e-4)
    preds = learn.tta(items=sorted((data / "test").iterdir()), views="varied", n=2, average="logits")
    preds.to_submission(out, sample=data / "sample_submission.csv")
    score = learn.tta(views="varied", n=2, average="logits").oof_score
    print(f"{out}: {len(preds)} clips, validation lwlrap {score:.3f}")


if __name__ == "__main__":
    paths = [Path(arg) for arg in sys.argv[1:]]
    main(paths[0] if paths else fat_sample(), paths[1] if len(paths) > 1 else Path("submission.csv"))
