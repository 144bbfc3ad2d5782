"""Learn to use learning-rate schedules and save the best epoch: python examples/system_ninth.py DATA OUT.csv.

The 9th place of Freesound Audio Tagging 2019 on curated clips: a fit with the published schedule, then a second one
that lowers the rate on a plateau, each keeping its best epoch. Without arguments it uses the bundled sounds and a
sixteenth of the width for an epoch each: 10 s on two busy cores, lwlrap 0.27, little more than chance. As published:
width 1, 65 epochs, bs 64; the same with noisy clips and folds is `fatai-submit run DATA --recipe ninth_full`.
"""

import sys
from pathlib import Path

from fatai.all import (
    ClipGradValue,
    FATDataLoaders,
    SaveBestModel,
    StopAtLR,
    fat_learner,
    fat_sample,
    quiet_unless_terminal,
    schedule_callback,
)


def main(data: Path, out: Path, width: float = 1 / 16, epochs: int = 1) -> None:
    """Train twice, predict the test clips and write a submission."""
    dls = FATDataLoaders.from_path(data, front_end="ninth", crop_s=4, bs=16, seed=0)
    learn = quiet_unless_terminal(fat_learner(
        dls, "m3", width=width, mixup="mixup", spec_augment="spec_augment", loss_func="bce",
        loss_options={"reduction": "sum"}, wd=0.01, no_weight_decay="bias", cbs=ClipGradValue(1.0),
    ))
    learn.fit(epochs, 1e-3, cbs=[SaveBestModel(), schedule_callback("warmup_cosine", epochs, 1e-3)])
    plateau = schedule_callback("plateau", epochs, 1e-4, monitor="valid_loss")
    learn.fit(epochs, 1e-4, cbs=[SaveBestModel(), plateau, StopAtLR(1e-7)])
    preds = learn.tta(items=sorted((data / "test").iterdir()), views="random", n=4)
    preds.to_submission(out, sample=data / "sample_submission.csv")
    print(f"{out}: {len(preds)} clips, validation lwlrap {learn.tta(n=4).oof_score:.3f}")


if __name__ == "__main__":
    paths = [Path(arg) for arg in sys.argv[1:]]
    main(paths[0] if paths else fat_sample(), paths[1] if len(paths) > 1 else Path("submission.csv"))
