"""A small network with its tags and settings, as model folders hold them, and an object with code for pickles."""

import math
from pathlib import Path

import torch

from fatai.audio.front_ends import front_end
from fatai.data.config import ClipConfig
from fatai.metrics.calibration import Calibration
from fatai.metrics.thresholds import Thresholds
from fatai.models import create_model

TAGS = ("Bark", "Meow", "Rain, on a roof")
SETTINGS = ClipConfig(front_end("ninth", hop_length=1380), crop_s=0.5, trim_db=40.0, pad_mode="wrap_right")
CALIBRATED = Calibration(TAGS, (0.5, 1.0, 2.0), (0.0, 0.1, -0.2), thresholds=Thresholds(TAGS, (0.5, math.inf, 0.2)))


def network(seed=1):
    """A narrow network whose outputs differ from 1/2 and from each other."""
    torch.manual_seed(seed)
    model = create_model("m1", len(TAGS), 1, width=0.125).eval()
    with torch.no_grad():
        model.head[-1].bias.copy_(torch.tensor([1.5, -0.5, -2.0]))
    return model


class Bomb:
    """Create a file when unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)
