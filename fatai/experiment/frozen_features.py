"""Features of a frozen network, which all folds of a run share: each clip is embedded once.

A linear probe trains the last layer alone, so that the features of a clip are the same in every fold. They are kept in
memory while the run lasts, with a digest of all weights below the last layer: where these differ, they are computed
again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from fatai.experiment.recipe import Recipe
from fatai.inference.embeddings import Embeddings, clip_features, warn_of_unreadable
from fatai.inference.learner import FatLearner
from fatai.inference.predictions import Predictions
from fatai.inference.predictor import ClipPredictions
from fatai.inference.tta import names_and_paths, with_priors
from fatai.training.precision import learner_precision

__all__ = ["FrozenFeatures", "shares_features"]

_MAX_BYTES = 2**30


def shares_features(recipe: Recipe) -> bool:
    """Return True if all folds are a last layer on the same features, of the middle of each clip.

    Without published weights, each fold has features of its own.
    """
    stages, tta = recipe.stages, recipe.tta
    is_probe = len(stages) == 1 and stages[0].linear_probe is not None and bool(recipe.model.options.get("pretrained"))
    return is_probe and tta.views == "even" and tta.n == 1 and not tta.options


class FrozenFeatures:
    """The features of clips by the network of a learner without its last layer, of the middle of each clip.

    Those of another network replace them.
    """

    def __init__(self) -> None:
        self._begin("")

    def _begin(self, digest: str) -> None:
        """Forget all features; the next ones are of the network of this digest."""
        self._digest = digest
        self._rows: dict[str, np.ndarray] = {}
        self._errors: dict[str, str] = {}
        self._silent: set[str] = set()
        self._short: set[str] = set()

    def embed(self, learn: FatLearner, last: nn.Linear, items: Any) -> Embeddings:
        """Return what `learn.embed(items, n=1)` does; clips of the learner's loaders are embedded with them.

        Parameters
        ----------
        learn
            A learner.
        last
            The last layer of its network.
        items
            As for `learn.embed`.
        """
        # In one go, so that the features depend neither on the fold nor on their number of batches.
        parts = [names_and_paths(learn.dls.files(k))[1] for k in range(2) if len(learn.dls.files(k))]
        names, paths = names_and_paths(items)
        self._compute(learn, last, [path for part in parts for path in part] + paths)
        output = self._output(paths)
        warn_of_unreadable(output, len(names))
        return Embeddings(tuple(names), output.probs)

    def predict(self, learn: FatLearner, last: nn.Linear, items: Any) -> Predictions:
        """Return what `learn.tta(items=items, n=1)` does, to the rounding of float32.

        Parameters
        ----------
        learn, last, items
            As for `embed`.
        """
        names, paths = names_and_paths(items)
        self._compute(learn, last, paths)
        output = self._output(paths)
        with torch.inference_mode():
            logits = last(torch.from_numpy(output.probs.astype(np.float32)).to(last.weight))
            probs = learn.activation(logits.float()).double().cpu().numpy()
        output = output._replace(probs=probs)
        return with_priors(names, learn.tags, output, learn.dls.prior() if output.errors or output.silent else None)

    def fits(self, last: nn.Linear, n_clips: int) -> bool:
        """Return True if the features of `n_clips` more take no more than a GiB of memory."""
        return 4 * last.in_features * (len(self._rows) + n_clips) <= _MAX_BYTES

    def _compute(self, learn: FatLearner, last: nn.Linear, paths: Sequence[str]) -> None:
        """Embed the clips that are not known."""
        digest = _digest(learn.model, last)
        if digest != self._digest:
            self._begin(digest)
        unknown = list(dict.fromkeys(path for path in paths if path not in self._rows))
        if not unknown:
            return
        output = clip_features(
            learn.model, learn.clip_config, unknown, n=1, precision=learner_precision(learn), bs=learn.dls.bs,
            num_workers=learn.dls.loaders[0].fake_l.num_workers,
        )
        self._rows |= dict(zip(unknown, output.probs.astype(np.float32), strict=True))
        self._errors |= {unknown[i]: error for i, error in output.errors.items()}
        self._silent |= {unknown[i] for i in output.silent}
        self._short |= {unknown[i] for i in output.short}

    def _output(self, paths: Sequence[str]) -> ClipPredictions:
        numbers = range(len(paths))
        return ClipPredictions(
            np.stack([self._rows[path] for path in paths]),
            {i: self._errors[paths[i]] for i in numbers if paths[i] in self._errors},
            tuple(i for i in numbers if paths[i] in self._silent), tuple(i for i in numbers if paths[i] in self._short),
        )


def _digest(model: nn.Module, last: nn.Linear) -> str:
    """Return a digest of the weights of a network but for its last layer."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in model.state_dict(keep_vars=True).items():
        if value is not last.weight and value is not last.bias:
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
