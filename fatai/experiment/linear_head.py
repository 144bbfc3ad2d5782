"""Linear probe as a stage: a logistic regression per tag on frozen features becomes the last layer of the network."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fatai.data.labels import multi_hot
from fatai.errors import OptionError
from fatai.inference.learner import FatLearner
from fatai.inference.linear_probe import LinearProbe

__all__ = ["solve_last_layer"]

_LAST = "fc_audioset"


def solve_last_layer(learn: FatLearner, *, C: float = 2.0, max_iter: int = 1000) -> None:  # noqa: N803 - scikit-learn's name
    """Fit the last layer of a PANNs network on the features of the training clips, with all other weights frozen.

    The gold plan's author did so. Each clip has one view, its middle. The features are standardized for the fit, and
    the layer includes the standardization: its logits are those of the regressions.

    Parameters
    ----------
    C, max_iter
        As in `LinearProbe.fit`.

    Raises
    ------
    OptionError
        If the network has another last layer.
    """
    last = getattr(learn.model, _LAST, None)
    if not isinstance(last, nn.Linear) or getattr(learn.model, "head", None) != "published":
        raise OptionError(
            "linear_probe needs a PANNs network with its published head, which ends in a linear layer, not "
            f"{type(learn.model).__name__}"
        )
    table = learn.dls.files(0)
    # At the learner's precision, as in the predictions later: standardizing magnifies rounding errors.
    embeddings = learn.embed(table, n=1)
    targ = multi_hot(table["labels"], learn.tags)
    probe = LinearProbe.fit(
        embeddings.values[embeddings.readable], targ[embeddings.readable], learn.tags, C=C, max_iter=max_iter
    )
    weight, bias = folded_layer(probe)
    with torch.no_grad():
        last.weight.copy_(torch.from_numpy(weight).to(last.weight))
        last.bias.copy_(torch.from_numpy(bias).to(last.bias))


def folded_layer(probe: LinearProbe) -> tuple[np.ndarray, np.ndarray]:
    """Return the float64 weight (tags, features) and bias (tags,) of the layer on raw features that equals a probe."""
    weight = probe.coef / probe.scale
    return weight, probe.intercept - weight @ probe.mean
