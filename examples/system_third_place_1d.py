"""The 3rd place of Freesound Audio Tagging 2019 by hand, its 1-D network: python examples/system_third_place_1d.py DATA OUT.csv

One learns: all that `system_third_place_2d` does, with a network over time, to which the bins of a short transform are channels. Without
arguments it takes the bundled sounds, a sixteenth of the width and crops of 4 s: 17 s on two busy cores. As published: width 1, 100 epochs,
changes off for the last 10, bs 20, crop_s 15.
"""

import sys
from pathlib import Path

import system_third_place_2d

from fatai.all import fat_sample


def main(data: Path, out: Path) -> None:
    system_third_place_2d.main(data, out, front_end="third_1d", arch="cnn1d_multilevel")


if __name__ == "__main__":
    given = [Path(a) for a in sys.argv[1:]]
    main(given[0] if given else fat_sample(), given[1] if len(given) > 1 else Path("submission.csv"))
