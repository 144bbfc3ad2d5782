"""What the config.json of a model folder says: typed and bounded, since the file may come from a stranger.

Every number that decides how much memory or time something takes has a limit far above any sensible value. Nothing in it is a path.
"""

from __future__ import annotations

import json
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
    model_validator,
)

from fatai.data.config import ClipConfig
from fatai.errors import CheckpointError, FataiError
from fatai.models.base import BuiltAs
from fatai.registry import did_you_mean
from fatai.metrics.calibration import Calibration
from fatai.io.json import read_text_limited
from fatai.audio.front_ends import FrontEnd
from fatai.audio.waveform import PAD_MODES

__all__ = ["FORMAT", "ModelConfig", "Network", "bounded"]

FORMAT = "fatai model 1"
MAX_BYTES = 1 << 24
_MAX_TAGS = 100_000
_MAX_OPTION = 4096
_MAX_SAMPLES = 1 << 26  # of a crop
_MAX_CELLS = 1 << 27  # of its spectrogram
_MAX_TRANSFORMED = 1 << 31  # samples that its transforms look at, counted in each of them

Number = Annotated[int | float, Field(ge=-_MAX_OPTION, le=_MAX_OPTION)]
Plain = bool | Number | Annotated[str, Field(max_length=100)] | None


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Network(_Section):
    """A named network with its options, as `create_model` takes them; with `two_heads` its first half answers."""

    arch: str = Field(max_length=200)
    options: dict[str, Plain | tuple[Plain, ...]] = {}
    two_heads: bool = False

    @model_validator(mode="after")
    def _brings_its_weights(self) -> Network:
        if "pretrained" in self.options:
            raise ValueError(
                "options hold pretrained, which would fetch other weights; expected those of the folder alone"
            )
        return self

    @classmethod
    def of(cls, built: BuiltAs, two_heads: bool = False) -> Network:
        """The network that was built so, without where its first weights came from."""
        options = {name: value for name, value in built.options.items() if name != "pretrained"}
        return _validated(
            cls, {"arch": built.arch, "options": options, "two_heads": two_heads}, f"the network {built.arch}"
        )


def _only_known(given: Any) -> Any:
    """A stored `ClipConfig`, with no key besides its fields."""
    if isinstance(given, ClipConfig):
        return given
    for value, kind in ((given, ClipConfig), (given.get("front_end") if isinstance(given, dict) else None, FrontEnd)):
        if not isinstance(value, dict):
            raise ValueError(f"{kind.__name__} is a {type(value).__name__}; expected an object")
        known = [f.name for f in fields(kind)]
        unknown = [key for key in value if key not in known]
        if unknown:
            raise ValueError(f"the unknown key {unknown[0][:40]!r}; {did_you_mean(unknown[0][:40], known)}")
    return given


def bounded(settings: ClipConfig) -> ClipConfig:
    """Settings that can be computed with; raises `ValueError` for those that would take more memory or time than any honest ones."""
    described = settings.front_end
    sizes = (
        settings.crop_samples,
        settings.crop_frames * described.rows,
        settings.crop_frames * sum(described.transforms),
    )
    if any(size > most for size, most in zip(sizes, (_MAX_SAMPLES, _MAX_CELLS, _MAX_TRANSFORMED))):
        raise ValueError(
            f"a crop of {settings.crop_s:g} s has {sizes[0]} samples and {settings.crop_frames} frames of {described.rows} "
            f"rows and transforms of {described.transforms}, which is too much to compute: shorten it, or lengthen the hop"
        )
    if settings.pad_mode not in PAD_MODES:
        raise ValueError(f"pad_mode is {settings.pad_mode!r}; {did_you_mean(settings.pad_mode, PAD_MODES)}")
    settings.channels_module()  # an unknown name is an error here
    return settings


Clips = Annotated[ClipConfig, BeforeValidator(_only_known), AfterValidator(bounded), PlainSerializer(asdict)]
Tag = Annotated[str, Field(min_length=1, max_length=200)]
Prior = Annotated[float, Field(ge=0, le=1)]


class ModelConfig(_Section):
    """All of a model but its weights.

    Attributes
    ----------
    clips
        How clips are read and what the front end makes of them, normalisation and channels included.
    tags
        What the logits mean, in their order.
    prior
        Share of the training clips that had each tag: the answer for a clip that cannot be read.
    calibration
        `Calibration.to_plain`, with its thresholds; None if the model has none.
    training
        What is told of the training; for people.
    versions
        Of Python and of packages, when the folder was written.
    logits
        What the network answered for the reference clip, in float32.
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
    def _one_of_each_for_each_tag(self) -> ModelConfig:
        if len(set(self.tags)) < len(self.tags):
            raise ValueError("tags names one twice; expected each tag once")
        for name in ("prior", "logits"):
            if len(getattr(self, name)) not in (len(self.tags), 0 if name == "logits" else -1):
                raise ValueError(
                    f"{name} holds {len(getattr(self, name))} numbers for {len(self.tags)} tags; expected one for each"
                )
        known = self.calibrated()
        if known is not None and known.tags != self.tags:
            raise ValueError("the calibration has other tags than the model; expected the same, in the same order")
        return self

    def calibrated(self) -> Calibration | None:
        """The calibration, checked."""
        return None if self.calibration is None else Calibration.from_plain(self.calibration)

    @classmethod
    def of(cls, **values: Any) -> ModelConfig:
        """From values in memory; raises `CheckpointError` if they cannot be stored."""
        return _validated(cls, {"format": FORMAT, **values}, "this model cannot be stored")

    @classmethod
    def read(cls, path: Path) -> ModelConfig:
        """From a file; raises `CheckpointError` that names it, the key and what is wrong."""
        try:
            held = json.loads(read_text_limited(path, MAX_BYTES), parse_constant=_no_number)
        except (OSError, ValueError, RecursionError) as e:
            raise CheckpointError(f"{path} is no JSON ({e}); expected the config.json of a model folder") from None
        if not isinstance(held, dict) or held.get("format") != FORMAT:
            raise CheckpointError(f"{path} does not say \"format\": \"{FORMAT}\"; expected what save_pretrained writes")
        return _validated(cls, held, str(path))

    def to_json(self) -> str:
        return json.dumps(self.model_dump(), allow_nan=False, indent=1) + "\n"


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _validated(kind: Any, plain: dict[str, Any], where: str) -> Any:
    try:
        return kind.model_validate(plain)
    except ValidationError as e:
        faults = []
        for error in e.errors(include_url=False, include_input=False, include_context=False)[:3]:
            key = ".".join(str(part) for part in error["loc"])[:80]
            message = (
                f"unknown key {key}"
                if error["type"] == "extra_forbidden"
                else error["msg"].removeprefix("Value error, ")
            )
            faults.append(message if not key or error["type"] == "extra_forbidden" else f"{key}: {message}")
        raise CheckpointError(f"{where}: {'; '.join(faults)}") from None
    except (FataiError, TypeError, OverflowError, RecursionError) as e:
        raise CheckpointError(f"{where}: {e}") from None
