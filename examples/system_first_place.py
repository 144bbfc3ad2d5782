"""Learn to train on noisy clips and average models: python examples/system_first_place.py DATA OUT.csv.

The 1st place of Freesound Audio Tagging 2019: a network with skip connections, attention and auxiliary heads, a
separate loss for noisy clips, sigmoid mixing of clips, predictions of tiles, and the geometric mean of two seeds.
Without arguments it uses the bundled sounds and a sixteenth of the width: 19 s on two busy cores. As published: width
1, up to 700 epochs of 32,768 draws, bs 128, five folds, seven such models and three stacked on them.
"""

import sys
from pathlib import Path

from fatai.all import (
    FATDataLoaders,
    RandomResizedCrop,
    SampleWeights,
    ensemble,
    fat_learner,
    fat_sample,
    quiet_unless_terminal,
    set_seed,
)


def main(data: Path, out: Path, width: float = 1 / 16, epochs: int = 1) -> None:
    """Train two seeds, predict the test clips and write a submission."""
    parts, loss = [], {"curated_weight": 0.5, "noisy_weight": 0.5}
    for seed in (42, 43):
        set_seed(seed)
        dls = FATDataLoaders.from_path(data, noisy=True, front_end="first", crop_s=4, bs=16, seed=0)
        learn = quiet_unless_terminal(fat_learner(
            dls, "aux_skip_attention", width=width, loss_func="split", loss_options=loss, mixup="mixer_first_place",
            spec_augment="spec_augment_first_place", augment=["repeat_pad", RandomResizedCrop()], cbs=SampleWeights(),
        ))
        learn.fit_one_cycle(epochs, 9e-4)
        parts.append(learn.tta(items=sorted((data / "test").iterdir()), views="tiles", step_s=4))
    ensemble(parts, how="gmean").to_submission(out, sample=data / "sample_submission.csv")
    print(f"{out}: two seeds; lwlrap of the last {learn.tta(views='tiles', step_s=4).oof_score:.3f}")


if __name__ == "__main__":
    paths = [Path(arg) for arg in sys.argv[1:]]
    main(paths[0] if paths else fat_sample(), paths[1] if len(paths) > 1 else Path("submission.csv"))
