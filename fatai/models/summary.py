"""A table of all models: size, smallest input, source."""

from __future__ import annotations

from dataclasses import dataclass

from fatai.models import count_parameters, create_model
from fatai.models.backbones import RESNETS, XRESNETS
from fatai.models.base import without_memory
from fatai.registry import MODELS

__all__ = ["ModelRow", "model_table"]

# Channels of the input as published where they are not 1; parameter counts depend on them.
PUBLISHED_CHANNELS = dict.fromkeys(
    (*RESNETS, *XRESNETS, "skip_attention", "aux_skip_attention", "rnn_aux_skip_attention"), 3
)
PUBLISHED_CHANNELS["cnn2d_multilevel"] = 2


@dataclass(frozen=True)
class ModelRow:
    """One model.

    Attributes
    ----------
    name
        Name for `create_model`.
    parameters
        Number of parameters, for the given tags and channels.
    in_channels
        Channels of the spectrogram that this number is for.
    min_mels, min_frames
        Smallest input that is used without padding.
    n_mels
        Mel bins that the model requires, None if it works with any number.
    description
        The model in a sentence.
    source
        Paper, repository and licence.
    """

    name: str
    parameters: int
    in_channels: int
    min_mels: int
    min_frames: int
    n_mels: int | None
    description: str
    source: str


def model_table(n_tags: int = 80, in_channels: int | None = None) -> list[ModelRow]:
    """Return a row for each registered model with its default options, sorted by name, without allocating weights.

    Parameters
    ----------
    n_tags
        Number of logits.
    in_channels
        Channels of the spectrogram; None for those that each model was published with.

    Examples
    --------
    >>> [(row.name, row.parameters, row.min_frames) for row in model_table() if row.name in ("m1", "m3")]
    [('m1', 6380753, 16), ('m3', 26129489, 16)]
    """
    rows = []
    for name in MODELS.names():
        channels = PUBLISHED_CHANNELS.get(name, 1) if in_channels is None else in_channels
        with without_memory():
            model = create_model(name, n_tags, channels)
        rows.append(ModelRow(
            name, count_parameters(model), channels, model.min_mels, model.min_frames, model.n_mels,
            description=MODELS.describe(name), source=MODELS.source(name),
        ))
    return rows
