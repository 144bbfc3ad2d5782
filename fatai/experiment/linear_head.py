"""Linear probe as a stage: a logistic regression per tag on frozen features becomes the last layer of the network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from fatai.data.labels import multi_hot
from fatai.errors import OptionError
from fatai.experiment.frozen_features import FrozenFeatures
from fatai.inference.learner import FatLearner
from fatai.inference.linear_probe import LinearProbe
from fatai.models.efficientat import EfficientAT
from fatai.models.panns import PannsModel

__all__ = ["solve_last_layer"]

EMBEDDINGS = "embeddings.npy"


def solve_last_layer(
    learn: FatLearner,
    *,
    C: float | Sequence[float] = 2.0,  # noqa: N803 - scikit-learn's name
    max_iter: int = 1000,
    features: FrozenFeatures | None = None,
) -> None:
    """Fit the last layer of a network of PANNs or EfficientAT on the features of the training clips.

    All other weights are frozen, as the gold plan's author had them. Each clip has one view, its middle. The features
    are standardized for the fit, and the layer includes the standardization: its logits are those of the regressions.
    The learner's `path` gets the features of the training clips, embeddings.npy.

    Parameters
    ----------
    C, max_iter
        As in `LinearProbe.fit`.
    features
        Features that several folds share; None embeds the training clips.

    Raises
    ------
    OptionError
        If the network has another last layer.
    """
    last = last_layer(learn.model)
    table = learn.dls.files(0)
    # At the learner's precision, as in the predictions later: standardizing magnifies rounding errors.
    embeddings = learn.embed(table, n=1) if features is None else features.embed(learn, last, table)
    if learn.group.is_main:
        embeddings.save(learn.path / EMBEDDINGS)
    targ = multi_hot(table["labels"], learn.tags)
    probe = LinearProbe.fit(
        embeddings.values[embeddings.readable], targ[embeddings.readable], learn.tags, C=C, max_iter=max_iter
    )
    weight, bias = folded_layer(probe)
    with torch.no_grad():
        last.weight.copy_(torch.from_numpy(weight).to(last.weight))
        last.bias.copy_(torch.from_numpy(bias).to(last.bias))


def last_layer(model: nn.Module) -> nn.Linear:
    """Return the layer that maps the features of `embed` to the logits; raises `OptionError` if there is none."""
    if isinstance(model, (PannsModel, EfficientAT)) and model.head == "published":
        last = model.fc_audioset if isinstance(model, PannsModel) else model.classifier[-1]
        assert isinstance(last, nn.Linear)
        return last
    raise OptionError(
        "linear_probe needs a network of PANNs or EfficientAT with its published head, which ends in a linear layer, "
        f"not {type(model).__name__}"
    )


def folded_layer(probe: LinearProbe) -> tuple[np.ndarray, np.ndarray]:
    """Return the float64 weight (tags, features) and bias (tags,) of the layer on raw features that equals a probe."""
    weight = probe.coef / probe.scale
    return weight, probe.intercept - weight @ probe.mean
