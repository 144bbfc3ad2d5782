"""The 9th place of Freesound Audio Tagging 2019 by hand, on curated clips: python examples/system_ninth.py DATA OUT.csv

One learns: a fit with the published rates, then a refit that lowers them on a plateau, the best epoch kept. Without arguments it takes the
bundled sounds and a sixteenth of the width for an epoch each: 10 s on two busy cores, lwlrap 0.27, which is little more than chance. As
published: width 1, 65 epochs, bs 64; the same with noisy clips and folds is `fatai-submit run DATA --recipe ninth_full`.
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
    dls = FATDataLoaders.from_path(data, front_end="ninth", crop_s=4, bs=16, seed=0)
    options = {
        "loss_func": "bce",
        "loss_options": {"reduction": "sum"},
        "wd": 0.01,
        "no_decay": "bias",
        "cbs": ClipGradValue(1.0),
    }
    learn = quiet_unless_terminal(
        fat_learner(dls, "m3", width=width, mixup="mixup", spec_augment="spec_augment", **options)
    )
    learn.fit(epochs, 1e-3, cbs=[SaveBestModel(), schedule_callback("warmup_cosine", epochs, 1e-3)])
    learn.fit(
        epochs,
        1e-4,
        cbs=[SaveBestModel(), schedule_callback("plateau", epochs, 1e-4, monitor="valid_loss"), StopAtLR(1e-7)],
    )
    preds = learn.tta(items=sorted((data / "test").iterdir()), how="random", n=4)
    preds.to_submission(out, sample=data / "sample_submission.csv")
    print(f"{out}: {len(preds)} clips, held-out lwlrap {learn.tta(n=4).oof_score:.3f}")


if __name__ == "__main__":
    given = [Path(a) for a in sys.argv[1:]]
    main(given[0] if given else fat_sample(), given[1] if len(given) > 1 else Path("submission.csv"))
