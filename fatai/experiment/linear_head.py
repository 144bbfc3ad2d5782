"""A stage that trains nothing by steps: a logistic regression for each tag on frozen features becomes the network's last layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fatai.data.labels import multi_hot
from fatai.errors import OptionError
from fatai.inference import embeddings
from fatai.inference.linear_probe import LinearProbe
from fatai.inference.learner import FatLearner

__all__ = ["solve_last_layer"]

_LAST = "fc_audioset"


def solve_last_layer(learn: FatLearner, *, C: float = 2.0, max_iter: int = 1000) -> None:
    """Fit the last layer of a PANNs network on the features of the training clips, as the gold plan's author did with frozen weights.

    One view is heard of each clip, its middle. Features are standardised first; the layer holds that too, so the network's logits are those
    of the regressions.

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
            f"solve needs a network of PANNs with its published head and linear last layer, not {type(learn.model).__name__}"
        )
    table = learn.dls.files(0)
    # In the arithmetic in which the learner will listen: standardising magnifies how it rounds.
    held = learn.embed(table, n=1)
    targ = multi_hot(table["labels"], learn.tags)
    fitted = LinearProbe.fit(held.values[held.readable], targ[held.readable], learn.tags, C=C, max_iter=max_iter)
    slopes = fitted.coef / fitted.scale
    values: dict[str, Any] = {"weight": slopes, "bias": fitted.intercept - slopes @ fitted.mean}
    with torch.no_grad():
        for name, value in values.items():
            own = getattr(last, name)
            own.copy_(torch.from_numpy(value).to(own))
