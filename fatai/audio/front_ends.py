"""Front ends of published systems by name; each consists of settings of a `FrontEnd`.

To add one, write a function that returns a module with the attribute `settings` and decorate it by
`@FRONT_ENDS.register("name", source="...")`. Any setting can be overridden: `front_end("ninth", n_mels=128)`. Rates are
those of the systems' files, so clips are resampled only for the systems at 32 kHz. Clips are padded by zeros where a
system used librosa's default; before version 0.10 that default was reflection, `pad_mode="reflect"`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fatai.audio.pcen import PCEN
from fatai.audio.spectrogram import FrontEnd, Spectrogram
from fatai.audio.stats import SpectrogramStats, spectrogram_stats
from fatai.errors import FrontEndError
from fatai.registry import FRONT_ENDS

__all__ = ["FrontEnd", "PCEN", "Spectrogram", "SpectrogramStats", "front_end", "spectrogram_stats"]


def front_end(name: str | FrontEnd, **overrides: Any) -> FrontEnd:
    """Return the settings registered as `name`, or those given, with some of them overridden.

    Raises
    ------
    UnknownNameError
        If no front end has the name.
    OptionError
        If there is no setting of the name of an override.
    FrontEndError
        If a value is out of range, or the registered module has no settings.

    Examples
    --------
    >>> front_end("ninth", n_mels=128).n_mels
    128
    """
    if isinstance(name, FrontEnd):
        return name.replace(**overrides)
    settings = getattr(FRONT_ENDS.build(name, **overrides), "settings", None)
    if not isinstance(settings, FrontEnd):
        raise FrontEndError(
            f"the front end {name!r} has no settings; give its module an attribute `settings` that is a FrontEnd"
        )
    return settings


@FRONT_ENDS.register("ninth", source="modeling kernel of the 9th place of Freesound Audio Tagging 2019; own code")
def ninth(**overrides: Any) -> Spectrogram:
    """64 mel bands, dB with top_db 80, standardized by one mean and standard deviation; 4 s give 256 frames."""
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
    """128 mel bands, dB with top_db 80, each clip an image of 256 levels, as ImageNet's; 2 s give 128 frames."""
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
    """32 kHz, 64 mel bands from 50 to 14,000 Hz, dB without a floor, reflected ends: the input of PANNs' weights."""
    return _PANNS.replace(**overrides).build()


@FRONT_ENDS.register("panns_plan", source="notebook 'Gold-only plan' for Freesound Audio Tagging 2019; own code")
def panns_plan(
    *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None, **overrides: Any
) -> Spectrogram:
    """As panns up to 16,000 Hz with filters of height 1; given mean and std per row, standardized and clamped to +-10.

    Parameters
    ----------
    mean, std
        One number per row, shape (rows,), as `spectrogram_stats` measures them; None for both returns decibels.
    **overrides
        Other settings of `FrontEnd`.
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
    """128 mel bands of the magnitude, PCEN, its constants fixed or learned (pcen_trainable); 100 frames per second."""
    return (
        FrontEnd(n_fft=2048, hop_length=441, power=1.0, n_mels=128, fmin=20.0, fmax=22050.0, log="pcen")
        .replace(**overrides)
        .build()
    )


@FRONT_ENDS.register("third_2d", source="3rd place of Freesound Audio Tagging 2019 (Apache-2.0); own code")
def third_2d(**overrides: Any) -> Spectrogram:
    """128 mel bands of the magnitude from 5 Hz, ln(x + 0.0001), reflected ends; the row's position as channel."""
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
    """129 bins of a transform of 256, ln(magnitude + 0.0001), reflected ends; hop of half a window, as in third_2d."""
    return FrontEnd(
        n_fft=256, hop_length=128, pad_mode="reflect", power=1.0, n_mels=None, log="ln", log_offset=1e-4,
    ).replace(**overrides).build()


@FRONT_ENDS.register("first", source="1st place of Freesound Audio Tagging 2019 (argus-freesound, MIT); own code")
def first(**overrides: Any) -> Spectrogram:
    """128 mel bands, dB with top_db 80, divided by 100, with two derivatives as channels; 4 s give 256 frames."""
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
    """96 HTK mel bands of the magnitude, 20 to 20,000 Hz, ln(x + 0.001), windows of 25 ms; 100 frames per second.

    Frames are not centred: the first window starts with the first sample.
    """
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


@FRONT_ENDS.register(
    "efficientat", source="EfficientAT, arXiv:2211.04772, https://github.com/fschmid56/EfficientAT (MIT); own code"
)
def efficientat(**overrides: Any) -> Spectrogram:
    """32 kHz, pre-emphasis, 128 Kaldi mel bands up to 15 kHz, (ln(x + 1e-5) + 4.5) / 5: the input of mn04 to mn40.

    As in the authors' evaluation: clips shorter than a window are extended by zeros.
    """
    return (
        FrontEnd(
            sr=32000,
            min_samples=800,
            preemphasis=0.97,
            n_fft=1024,
            win_length=800,
            hop_length=320,
            periodic=False,
            pad_mode="reflect",
            n_mels=128,
            fmax=15000.0,
            htk=True,
            norm=None,
            mel_triangles="mel",
            log="ln",
            log_offset=1e-5,
            normalize="global",
            mean=-4.5,
            std=5.0,
        )
        .replace(**overrides)
        .build()
    )
