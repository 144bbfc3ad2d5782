"""Train one model, tag the test clips, write a submission: python examples/train_and_submit.py DATA OUT.csv

Without arguments it takes the bundled sounds. The same as `fatai-submit run`, by hand and with a single held-out part instead of folds.
"""

import sys
from pathlib import Path

from fatai.all import FATDataLoaders, check_submission, fat_learner, fat_sample, quiet_unless_terminal

EPOCHS = 10


def main(data: Path, out: Path) -> None:
    dls = FATDataLoaders.from_path(data, front_end="ninth", crop_s=1, bs=16, seed=0)
    learn = quiet_unless_terminal(fat_learner(dls, arch="m1", width=0.25))
    learn.fit_one_cycle(EPOCHS, 3e-3)
    preds = learn.tta(items=sorted((data / "test").iterdir()), n=4)
    preds.to_submission(out, sample=data / "sample_submission.csv")
    check_submission(out, data / "sample_submission.csv")
    print(f"{out}: {len(preds.fnames)} clips, {len(preds.tags)} tags")


if __name__ == "__main__":
    given = [Path(a) for a in sys.argv[1:]]
    main(given[0] if given else fat_sample(), given[1] if len(given) > 1 else Path("submission.csv"))
