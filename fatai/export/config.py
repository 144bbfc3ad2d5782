"""The config.json of a model folder, validated and bounded, since the file may be untrusted.

Every number that determines how much memory or time a model takes has a limit far above any sensible value. No value is
a path.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)

from fatai.audio.front_ends import FrontEnd
from fatai.audio.waveform import PAD_MODES
from fatai.data.config import ClipConfig
from fatai.errors import CheckpointError, FataiError
from fatai.io.json import read_text_limited
from fatai.metrics.calibration import Calibration
from fatai.models.base import BuiltAs
from fatai.models.timm_sources import is_remote
from fatai.registry import did_you_mean

__all__ = ["FORMAT", "ModelConfig", "Network", "check_bounds"]

FORMAT = "fatai model 1"
MAX_BYTES = 1 << 24
_MAX_TAGS = 100_000
_MAX_OPTION = 4096
_MAX_SAMPLES = 1 << 26  # of a crop
_MAX_CELLS = 1 << 27  # of its spectrogram
_MAX_TRANSFORMED = 1 << 31  # samples in all windows of its transforms together

_RENAMED_KEYS = {"clips.short_fill": "clips.pad_mode", "clips.front_end.normalise": "clips.front_end.normalize"}
_CHANNELS = {"one": "mono", "same3": "repeat3", "image3": "imagenet", "ramp": "coord", "ramp_time": "coord_time"}
_RENAMED_VALUES = {
    "clips.channels": _CHANNELS,
    "clips.front_end.channels": _CHANNELS,
    "clips.pad_mode": {
        "zeros_both": "constant_center",
        "zeros_right": "constant_right",
        "wrap_both": "wrap_center",
        "edge_both": "edge_center",
        "min_both": "minimum_center",
    },
}

Number = Annotated[int | float, Field(ge=-_MAX_OPTION, le=_MAX_OPTION)]
Scalar = bool | Number | Annotated[str, Field(max_length=100)] | None


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Network(_Section):
    """A model by name with its options, as `create_model` takes them.

    Attributes
    ----------
    arch
        A name in `MODELS`, or "timm:NAME".
    options
        Options of its builder; `pretrained` is refused.
    two_heads
        If true the network has twice the tags, and only the first half of its outputs is predicted.
    """

    arch: str = Field(max_length=200)
    options: dict[str, Scalar | tuple[Scalar, ...]] = {}
    two_heads: bool = False

    @model_validator(mode="after")
    def _refuse_pretrained(self) -> Network:
        if "pretrained" in self.options:
            raise ValueError(
                "options hold pretrained, which would load other weights; expected only the weights of the folder"
            )
        return self

    @field_validator("arch")
    @classmethod
    def _refuse_remote(cls, value: str) -> str:
        if is_remote(value):
            raise ValueError(f"{value!r} would be read from elsewhere; expected the name of an architecture")
        return value

    @classmethod
    def from_built(cls, built: BuiltAs, two_heads: bool = False) -> Network:
        """Describe a network built by `create_model`, leaving out the source of its initial weights."""
        options = {name: value for name, value in built.options.items() if name != "pretrained"}
        return _validate(
            cls, {"arch": built.arch, "options": options, "two_heads": two_heads}, f"the network {built.arch}"
        )


def _refuse_unknown_keys(value: Any) -> Any:
    """Check that a stored `ClipConfig` has no keys beside its fields."""
    if isinstance(value, ClipConfig):
        return value
    front_end = value.get("front_end") if isinstance(value, dict) else None
    for section, kind in ((value, ClipConfig), (front_end, FrontEnd)):
        if not isinstance(section, dict):
            raise ValueError(f"{kind.__name__} is a {type(section).__name__}; expected an object")
        known = [f.name for f in fields(kind)]
        unknown = [key for key in section if key not in known]
        if unknown:
            raise ValueError(f"the unknown key {unknown[0][:40]!r}; {did_you_mean(unknown[0][:40], known)}")
    return value


def check_bounds(settings: ClipConfig) -> ClipConfig:
    """Return the settings if they can be computed with reasonable memory and time.

    Raises
    ------
    ValueError
        If a crop has too many samples, frames or transformed samples, or `pad_mode` is unknown.
    UnknownNameError
        If `channels` is unknown.
    """
    front_end = settings.front_end
    sizes = (
        settings.crop_samples,
        settings.crop_frames * front_end.rows,
        settings.crop_frames * sum(front_end.transforms),
    )
    if any(size > limit for size, limit in zip(sizes, (_MAX_SAMPLES, _MAX_CELLS, _MAX_TRANSFORMED), strict=True)):
        raise ValueError(
            f"a crop of {settings.crop_s:g} s has {sizes[0]} samples and {settings.crop_frames} frames of "
            f"{front_end.rows} rows and transforms of {front_end.transforms}, which is too much to compute: shorten "
            "it, or lengthen the hop"
        )
    if settings.pad_mode not in PAD_MODES:
        raise ValueError(f"pad_mode is {settings.pad_mode!r}; {did_you_mean(settings.pad_mode, PAD_MODES)}")
    settings.channels_module()  # raises for an unknown name
    return settings


Clips = Annotated[
    ClipConfig, BeforeValidator(_refuse_unknown_keys), AfterValidator(check_bounds), PlainSerializer(asdict)
]
Tag = Annotated[str, Field(min_length=1, max_length=200)]
Prior = Annotated[float, Field(ge=0, le=1)]


class ModelConfig(_Section):
    """All of a model except its weights.

    Attributes
    ----------
    format
        `FORMAT`.
    network
        Architecture and options.
    clips
        How clips are read and turned into spectrograms, including normalization and channels.
    tags
        Meaning of the logits, in their order.
    prior
        Fraction of the training clips that have each tag, in [0, 1]; predicted for clips that cannot be read.
    calibration
        `Calibration.to_dict`, with its thresholds; None if the model has none.
    training
        Notes on the training, for people.
    versions
        Versions of Python and of packages when the folder was written.
    logits
        Output of the network for the reference clip, one per tag, computed in float32.
    """

    format: Literal["fatai model 1"]
    network: Network
    clips: Clips
    tags: tuple[Tag, ...] = Field(min_length=1, max_length=_MAX_TAGS)
    prior: tuple[Prior, ...]
    calibration: dict[str, Any] | None = None
    training: dict[str, Any] = {}
    versions: dict[str, str] = {}
    logits: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _match_tags(self) -> ModelConfig:
        if len(set(self.tags)) < len(self.tags):
            raise ValueError("tags names one twice; expected each tag once")
        for name in ("prior", "logits"):
            if len(getattr(self, name)) not in (len(self.tags), 0 if name == "logits" else -1):
                raise ValueError(
                    f"{name} holds {len(getattr(self, name))} numbers for {len(self.tags)} tags; expected one for each"
                )
        calibration = self.load_calibration()
        if calibration is not None and calibration.tags != self.tags:
            raise ValueError("the calibration has other tags than the model; expected the same, in the same order")
        return self

    def load_calibration(self) -> Calibration | None:
        """Return the validated calibration; None if there is none."""
        return None if self.calibration is None else Calibration.from_dict(self.calibration)

    @classmethod
    def from_values(cls, **values: Any) -> ModelConfig:
        """Validate values in memory; raise `CheckpointError` if they cannot be stored."""
        return _validate(cls, {"format": FORMAT, **values}, "this model cannot be stored")

    @classmethod
    def read(cls, path: Path) -> ModelConfig:
        """Read a config.json.

        Raises
        ------
        CheckpointError
            If the file is not JSON, has another format, or a key or value is not valid; the message names the file and
            the key. A key or value of an older version is named with its new name.
        """
        try:
            stored = json.loads(read_text_limited(path, MAX_BYTES), parse_constant=_refuse_constant)
        except (OSError, ValueError, RecursionError) as e:
            raise CheckpointError(f"{path} is not JSON ({e}); expected the config.json of a model folder") from None
        if not isinstance(stored, dict) or stored.get("format") != FORMAT:
            raise CheckpointError(f'{path} does not hold "format": "{FORMAT}"; expected a file of save_pretrained')
        if renamed := "; ".join(_renamed(stored)):
            raise CheckpointError(f"{path}: {renamed}; rename it, or save the model again")
        return _validate(cls, stored, str(path))

    def to_json(self) -> str:
        """Return the text of a config.json."""
        return json.dumps(self.model_dump(), allow_nan=False, indent=1) + "\n"


def _renamed(stored: dict[str, Any]) -> Iterator[str]:
    """Yield a sentence for each key and value of an older version."""
    for old, new in _RENAMED_KEYS.items():
        section, key = _section(stored, old)
        if key in section:
            yield f"the key {old} is now {new}"
    for path, new_values in _RENAMED_VALUES.items():
        section, key = _section(stored, path)
        value = section.get(key)
        if isinstance(value, str) and value in new_values:
            yield f"{path} = {value!r} is now {new_values[value]!r}"


def _section(stored: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """Return the object that holds a dotted key, and the last part of the key."""
    *parents, key = path.split(".")
    section: Any = stored
    for parent in parents:
        section = section.get(parent) if isinstance(section, dict) else None
    return (section if isinstance(section, dict) else {}), key


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def _validate(kind: Any, values: dict[str, Any], where: str) -> Any:
    try:
        return kind.model_validate(values)
    except ValidationError as e:
        errors = e.errors(include_url=False, include_input=False, include_context=False)[:3]
        raise CheckpointError(f"{where}: {'; '.join(map(_message, errors))}") from None
    except (FataiError, TypeError, OverflowError, RecursionError) as e:
        raise CheckpointError(f"{where}: {e}") from None


def _message(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])[:80]
    if error["type"] == "extra_forbidden":
        return f"unknown key {key}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" if key else message
