"""Learn to use a network over time alone: python examples/system_third_place_1d.py DATA OUT.csv.

The 1-D network of the 3rd place of Freesound Audio Tagging 2019: all of `system_third_place_2d`, with a network over
time whose input channels are the bins of a short transform. Without arguments it uses the bundled sounds, a sixteenth
of the width and crops of 4 s: 17 s on two busy cores. As published: width 1, 100 epochs, augmentation off for the last
10, bs 20, crop_s 15.
"""

import sys
from pathlib import Path

import system_third_place_2d

from fatai.all import fat_sample


def main(data: Path, out: Path) -> None:
    """Train, predict the test clips and write a submission."""
    system_third_place_2d.main(data, out, front_end="third_1d", arch="cnn1d_multilevel")


if __name__ == "__main__":
    paths = [Path(arg) for arg in sys.argv[1:]]
    main(paths[0] if paths else fat_sample(), paths[1] if len(paths) > 1 else Path("submission.csv"))
