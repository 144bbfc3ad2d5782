"""Learn to train a model and write a submission: python examples/train_and_submit.py DATA OUT.csv.

Without arguments it uses the bundled sounds. The same as `fatai-submit run`, with a single validation set instead of
folds.
"""

import sys
from pathlib import Path

from fatai.all import FATDataLoaders, check_submission, fat_learner, fat_sample, quiet_unless_terminal

EPOCHS = 10


def main(data: Path, out: Path) -> None:
    """Train, predict the test clips, write a submission and check it."""
    dls = FATDataLoaders.from_path(data, front_end="ninth", crop_s=1, bs=16, seed=0)
    learn = quiet_unless_terminal(fat_learner(dls, arch="m1", width=0.25))
    learn.fit_one_cycle(EPOCHS, 3e-3)
    preds = learn.tta(items=sorted((data / "test").iterdir()), n=4)
    preds.to_submission(out, sample=data / "sample_submission.csv")
    check_submission(out, data / "sample_submission.csv")
    print(f"{out}: {len(preds.fnames)} clips, {len(preds.tags)} tags")


if __name__ == "__main__":
    paths = [Path(arg) for arg in sys.argv[1:]]
    main(paths[0] if paths else fat_sample(), paths[1] if len(paths) > 1 else Path("submission.csv"))
