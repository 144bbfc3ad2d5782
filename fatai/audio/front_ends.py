"""The front ends of known systems, by name: each is values of the settings of a `FrontEnd`, and nothing else.

Another one is a function that returns a module with the attribute `settings`, under a line `@FRONT_ENDS.register("name", source="...")`.
Any setting of a named one can be changed: `front_end("ninth", n_mels=128)`.
Rates follow the systems' files, so clips are resampled only for those of 32 kHz. What lies beyond the ends of a clip is zeros where a
system used librosa's default; before its version 0.10 that was the clip mirrored, `pad_mode="reflect"`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fatai.errors import FrontEndError
from fatai.registry import FRONT_ENDS
from fatai.audio.pcen import PCEN
from fatai.audio.spectrogram import FrontEnd, Spectrogram
from fatai.audio.stats import SpectrogramStats, spectrogram_stats

__all__ = ["FrontEnd", "PCEN", "Spectrogram", "SpectrogramStats", "front_end", "spectrogram_stats"]


def front_end(name: str | FrontEnd, **overrides: Any) -> FrontEnd:
    """The description registered under `name`, or the one given, with some values changed."""
    if isinstance(name, FrontEnd):
        return name.replace(**overrides)
    settings = getattr(FRONT_ENDS.build(name, **overrides), "settings", None)
    if not isinstance(settings, FrontEnd):
        raise FrontEndError(
            f"the front end {name!r} has no description; give its module an attribute `settings` that is a FrontEnd"
        )
    return settings


@FRONT_ENDS.register("ninth", source="modeling kernel of the 9th place of Freesound Audio Tagging 2019; own code")
def ninth(**overrides: Any) -> Spectrogram:
    """64 mel, dB with top_db 80, one mean and standard deviation for all; 4 s are 256 frames."""
    return (
        FrontEnd(
            n_fft=1920,
            hop_length=690,
            n_mels=64,
            fmin=20.0,
            fmax=22050.0,
            top_db=80.0,
            normalize="global",
            mean=-35.7,
            std=21.6,
        )
        .replace(**overrides)
        .build()
    )


@FRONT_ENDS.register(
    "fastai_kernel",
    source="kernel 'CNN 2D Basic Solution Powered by fast.ai' of Freesound Audio Tagging 2019; own code",
)
def fastai_kernel(**overrides: Any) -> Spectrogram:
    """128 mel, dB with top_db 80, each clip a picture of 256 levels standardised like those of ImageNet; 2 s are 128 frames."""
    return (
        FrontEnd(
            n_fft=2560,
            hop_length=694,
            n_mels=128,
            fmin=20.0,
            fmax=22050.0,
            top_db=80.0,
            normalize="image",
            channels="imagenet",
        )
        .replace(**overrides)
        .build()
    )


_PANNS = FrontEnd(sr=32000, n_fft=1024, hop_length=320, pad_mode="reflect", n_mels=64, fmin=50.0, fmax=14000.0)


@FRONT_ENDS.register("panns", source="PANNs, arXiv:1912.10211 (audioset_tagging_cnn and torchlibrosa, MIT); own code")
def panns(**overrides: Any) -> Spectrogram:
    """32 kHz, 64 mel from 50 to 14,000 Hz, dB without a floor, mirrored ends, not normalized: what PANNs' weights expect."""
    return _PANNS.replace(**overrides).build()


@FRONT_ENDS.register("panns_plan", source="notebook 'Gold-only plan' for Freesound Audio Tagging 2019; own code")
def panns_plan(
    *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None, **overrides: Any
) -> Spectrogram:
    """As panns up to 16,000 Hz with filters of height 1; with a data set's mean and std of each row, standardised and cut to +-10.

    Without them it gives decibels; `spectrogram_stats` measures them.
    """
    plan = _PANNS.replace(fmax=16000.0, norm=None)
    if mean is not None or std is not None:
        if mean is None or std is None:
            raise FrontEndError(
                "panns_plan got one of mean and std; expected both, with a number for each row, or neither"
            )
        plan = plan.replace(
            n_mels=overrides.pop("n_mels", 64), normalize="bin", mean=tuple(mean), std=tuple(std), clamp=10.0
        )
    return plan.replace(**overrides).build()


@FRONT_ENDS.register(
    "kaggle_fat", source="Kaggle-FAT, 36th place of Freesound Audio Tagging 2019; PCEN: arXiv:1607.05666; own code"
)
def kaggle_fat(**overrides: Any) -> Spectrogram:
    """128 mel of the magnitude, then PCEN, its constants fixed or (pcen_trainable=True) learnt for each row; 100 frames a second."""
    return (
        FrontEnd(n_fft=2048, hop_length=441, power=1.0, n_mels=128, fmin=20.0, fmax=22050.0, log="pcen")
        .replace(**overrides)
        .build()
    )


@FRONT_ENDS.register("third_2d", source="3rd place of Freesound Audio Tagging 2019 (Apache-2.0); own code")
def third_2d(**overrides: Any) -> Spectrogram:
    """128 mel of the magnitude from 5 Hz, ln(x + 0.0001), mirrored ends, with the ramp of frequencies as a second channel."""
    return (
        FrontEnd(
            n_fft=2048,
            hop_length=1024,
            pad_mode="reflect",
            power=1.0,
            n_mels=128,
            fmin=5.0,
            fmax=22050.0,
            log="ln",
            log_offset=1e-4,
            channels="coord",
        )
        .replace(**overrides)
        .build()
    )


@FRONT_ENDS.register(
    "third_1d", source="3rd place of Freesound Audio Tagging 2019 (Apache-2.0), whose hop is not stated; own code"
)
def third_1d(**overrides: Any) -> Spectrogram:
    """129 bins of a transform of 256, ln(magnitude + 0.0001), mirrored ends; the hop of half a window is that of third_2d."""
    return FrontEnd(
        n_fft=256, hop_length=128, pad_mode="reflect", power=1.0, n_mels=None, log="ln", log_offset=1e-4,
    ).replace(**overrides).build()


@FRONT_ENDS.register("first", source="1st place of Freesound Audio Tagging 2019 (argus-freesound, MIT); own code")
def first(**overrides: Any) -> Spectrogram:
    """128 mel, dB with top_db 80, divided by 100, with the first two derivatives in time as channels; 4 s are 256 frames."""
    return (
        FrontEnd(
            n_fft=2560,
            hop_length=690,
            n_mels=128,
            fmin=20.0,
            fmax=22050.0,
            top_db=80.0,
            normalize="global",
            std=100.0,
            channels="deltas",
        )
        .replace(**overrides)
        .build()
    )


@FRONT_ENDS.register(
    "baseline", source="official baseline of DCASE 2019 Task 2 (dcase2019_task2_baseline, MIT); own code"
)
def baseline(**overrides: Any) -> Spectrogram:
    """96 HTK mel of the magnitude from 20 to 20,000 Hz, ln(x + 0.001), windows of 25 ms that start with the clip; 100 frames a second."""
    return (
        FrontEnd(
            n_fft=2048,
            win_length=1102,
            hop_length=441,
            center=False,
            framing="window",
            power=1.0,
            n_mels=96,
            fmin=20.0,
            fmax=20000.0,
            htk=True,
            norm=None,
            log="ln",
            log_offset=1e-3,
        )
        .replace(**overrides)
        .build()
    )
