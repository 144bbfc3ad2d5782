"""Stacking: a model whose inputs are the predictions of other models, fitted on out-of-fold predictions.

Conventions: `probs` is float64, shape (models, clips, tags), in [0, 1]; the network takes float32 inputs (clips, models
x tags) and targets (clips, tags), 0 and 1. A stacked prediction may order the tags of a clip as none of the models
does.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fatai.device import inference_device
from fatai.ensemble.averaging import FittedEnsemble
from fatai.errors import OptionError
from fatai.metrics.ranking import lwlrap
from fatai.registry import ENSEMBLES

__all__ = ["LogisticStacking", "MLPStacking"]

_VALID_EVERY = 5  # one clip of five validates: it decides when the learning rate falls and when the fit ends


@dataclass(frozen=True)
class LogisticStacking:
    """Stack models by one logistic regression per tag; options as in `logreg`."""

    C: float
    max_iter: int
    across_tags: bool
    floor: float

    def fit(self, probs: np.ndarray, targ: np.ndarray) -> FittedEnsemble:
        """Fit on predictions (models, clips, tags) and bool targets (clips, tags)."""
        inputs = self._inputs(probs)
        present = np.asarray(targ, dtype=bool).T
        classifiers = [self._fit_tag(inputs(tag), clips) for tag, clips in enumerate(present)]

        def predict(probs: np.ndarray) -> np.ndarray:
            inputs, stacked = self._inputs(probs), probs.mean(axis=0)
            for tag, classifier in enumerate(classifiers):
                if classifier is not None:
                    stacked[:, tag] = classifier.predict_proba(inputs(tag))[:, 1]
            return stacked

        return predict

    def _fit_tag(self, inputs: np.ndarray, present: np.ndarray) -> Any:
        """Return a fitted classifier, or None if all clips agree: such a tag keeps the models' mean."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        if present.all() or not present.any():
            return None
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=self.C, max_iter=self.max_iter))
        return classifier.fit(inputs, present)

    def _inputs(self, probs: np.ndarray) -> Callable[[int], np.ndarray]:
        """Return a function from a tag's position to its inputs, shape (clips, inputs)."""
        clipped = np.clip(probs, self.floor, 1 - self.floor)
        logits = np.log(clipped) - np.log1p(-clipped)
        if self.across_tags:
            flat = logits.transpose(1, 0, 2).reshape(logits.shape[1], -1)
            return lambda tag: flat
        return lambda tag: logits[:, :, tag].T


@ENSEMBLES.register(
    "logreg",
    source="stacking by one-vs-rest logistic regression, as the gold plan's classifier on embeddings; own code",
)
def logreg(
    *,
    C: float = 1.0,  # noqa: N803 - as scikit-learn has it
    max_iter: int = 1000,
    across_tags: bool = False,
    floor: float = 1e-7,
) -> LogisticStacking:
    """Stack by a logistic regression per tag on the models' standardized logits.

    A tag that no clip or every clip has keeps the mean of the models.

    Parameters
    ----------
    C
        Inverse strength of the penalty; lower it where few clips are labeled.
    max_iter
        Maximum number of iterations of the solver.
    across_tags
        Use the logits of all tags as inputs, not only those of the tag itself; needs many clips.
    floor
        Probabilities are kept this far away from 0 and 1 before the logit.

    Raises
    ------
    OptionError
        If `C` or `max_iter` is not positive, or `floor` not in (0, 0.5).
    """
    if not C > 0 or max_iter < 1 or not 0 < floor < 0.5:
        raise OptionError(
            f"C is {C}, max_iter {max_iter} and floor {floor}; expected C above 0, at least one iteration, and floor "
            "in (0, 0.5)"
        )
    return LogisticStacking(C, max_iter, across_tags, floor)


@dataclass(frozen=True)
class MLPStacking:
    """Stack models by a gated network; options as in `mlp`."""

    reduction: int
    dropout: float
    lr: float
    patience: int
    factor: float
    base: int
    bs: int
    samples_per_epoch: int
    early_stopping_patience: int
    max_epochs: int
    seed: int

    def fit(self, probs: np.ndarray, targ: np.ndarray) -> FittedEnsemble:
        """Fit on predictions (models, clips, tags) and bool targets (clips, tags)."""
        network = fit_network(_flatten(probs), np.asarray(targ, dtype=np.float32), self)
        return lambda probs: predict_probs(network, _flatten(probs))


@ENSEMBLES.register("mlp", source="second level of the 1st place: a gated MLP on out-of-fold probabilities; own code")
def mlp(
    *,
    reduction: int = 16,
    dropout: float = 0.051,
    lr: float = 4.6e-5,
    patience: int = 5,
    factor: float = 0.658,
    base: int = 512,
    bs: int = 128,
    samples_per_epoch: int = 32768,
    early_stopping_patience: int = 30,
    max_epochs: int = 1000,
    seed: int = 0,
) -> MLPStacking:
    """Stack by the 1st place's network, trained on out-of-fold probabilities.

    The defaults are those of the source's first stacker; its others have (`reduction`, `dropout`, `lr`, `patience`,
    `factor`) = (2, 0.484, 3.9e-5, 9, 0.795) and (1, 0.166, 2.6e-5, 7, 0.554). A fifth of the clips validates the fit by
    lwlrap, and the weights of the best epoch are kept. The source drew from predictions of crops, this one draws from
    those of whole clips, which is what a run stores.

    Parameters
    ----------
    reduction
        The gate has a bottleneck of 1 / `reduction` of the inputs.
    dropout
        After each hidden layer, in [0, 1).
    lr
        Learning rate of Adam.
    patience, factor
        After `patience` epochs without a better validation score the learning rate is multiplied by `factor`, in (0,
        1).
    base
        Units of the second hidden layer; the first has twice as many.
    bs
        Batch size.
    samples_per_epoch
        Clips drawn with replacement in an epoch.
    early_stopping_patience
        The fit ends after this many epochs without a better validation score.
    max_epochs
        The fit ends at the latest after this many epochs.
    seed
        Of the validation split, the initial weights, dropout and the draws.

    Raises
    ------
    OptionError
        If an option is out of range.
    """
    counts = {
        "reduction": reduction,
        "base": base,
        "bs": bs,
        "samples_per_epoch": samples_per_epoch,
        "early_stopping_patience": early_stopping_patience,
        "max_epochs": max_epochs,
    }
    for name, value in counts.items():
        if value < 1:
            raise OptionError(f"{name} is {value}; expected a whole number above 0")
    if patience < 0:
        raise OptionError(f"patience is {patience}; expected a whole number of at least 0")
    if not (0 <= dropout < 1 and lr > 0 and 0 < factor < 1):
        raise OptionError(
            f"dropout is {dropout}, lr {lr} and factor {factor}; expected dropout in [0, 1), lr above 0 and "
            "factor in (0, 1)"
        )
    return MLPStacking(
        reduction, dropout, lr, patience, factor, base, bs, samples_per_epoch, early_stopping_patience, max_epochs, seed
    )


def _flatten(probs: np.ndarray) -> np.ndarray:
    """Put the predictions of all models side by side: float32, shape (clips, models x tags)."""
    return probs.transpose(1, 0, 2).reshape(probs.shape[1], -1).astype(np.float32)


class StackingNet(nn.Module):
    """Gate the inputs by a function of all of them, then two hidden layers; after the 1st place's FCNet, own code.

    The gate is a squeeze to 1 / `reduction` of the inputs and back, through a sigmoid. The hidden layers have 2 `base`
    and `base` units. Shapes: (clips, n_in) to logits (clips, n_tags).
    """

    def __init__(self, n_in: int, n_tags: int, *, reduction: int = 16, dropout: float = 0.051, base: int = 512):
        super().__init__()
        squeezed = max(1, n_in // reduction)
        self.gate = nn.Sequential(nn.Linear(n_in, squeezed), nn.ReLU(), nn.Linear(squeezed, n_in), nn.Sigmoid())
        self.layers = nn.Sequential(
            nn.Linear(n_in, 2 * base),
            nn.PReLU(),
            nn.Dropout(dropout),
            nn.Linear(2 * base, base),
            nn.PReLU(),
            nn.Dropout(dropout),
            nn.Linear(base, n_tags),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Map probabilities (clips, n_in) to logits (clips, n_tags)."""
        return self.layers(inputs * self.gate(inputs))


def fit_network(inputs: np.ndarray, targ: np.ndarray, settings: MLPStacking) -> StackingNet:
    """Train a network; the same arguments give the same network on the same machine.

    Parameters
    ----------
    inputs
        float32, shape (clips, models x tags), in [0, 1].
    targ
        float32, shape (clips, tags), 0 and 1.
    settings
        Options of `mlp`.

    Returns
    -------
    The network of the epoch with the best validation lwlrap, in evaluation mode.
    """
    device = inference_device()
    train, valid = _split(len(inputs), settings.seed)
    x, y = torch.from_numpy(inputs[train]).to(device), torch.from_numpy(targ[train]).to(device)
    # Dropout and the initial weights draw from torch's global generator, whose state is restored afterwards.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        network = StackingNet(
            inputs.shape[1], targ.shape[1], reduction=settings.reduction, dropout=settings.dropout, base=settings.base,
        ).to(device)
        return _train_until_no_better(network, x, y, inputs[valid], targ[valid], settings).eval()


def _split(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split positions into training and validation; a single clip is used for both."""
    order = np.random.default_rng(seed).permutation(n)
    n_valid = max(1, n // _VALID_EVERY)
    return (order[n_valid:] if n > 1 else order), order[:n_valid]


def _train_until_no_better(
    network: StackingNet, x: Tensor, y: Tensor, valid_inputs: np.ndarray, valid_targ: np.ndarray, settings: MLPStacking
) -> StackingNet:
    opt = torch.optim.Adam(network.parameters(), lr=settings.lr)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        opt, mode="max", factor=settings.factor, patience=settings.patience
    )
    best, best_score, waited = deepcopy(network), -1.0, 0
    for _ in range(settings.max_epochs):
        _train_epoch(network, opt, x, y, settings)
        score = lwlrap(predict_probs(network, valid_inputs), valid_targ)
        plateau.step(score)
        waited += 1
        # Validation clips without any tag have no score; the last weights are then as good as any.
        if score > best_score or np.isnan(score):
            best, best_score, waited = deepcopy(network), score, waited if np.isnan(score) else 0
        if waited >= settings.early_stopping_patience:
            break
    return best


def _train_epoch(network: StackingNet, opt: torch.optim.Optimizer, x: Tensor, y: Tensor, settings: MLPStacking) -> None:
    network.train()
    for rows in torch.randint(len(x), (settings.samples_per_epoch,)).to(x.device).split(settings.bs):
        loss = nn.functional.binary_cross_entropy_with_logits(network(x[rows]), y[rows])
        opt.zero_grad()
        loss.backward()
        opt.step()


def predict_probs(network: StackingNet, inputs: np.ndarray) -> np.ndarray:
    """Predict probabilities, float64 (clips, tags), from inputs, float32 (clips, models x tags)."""
    network.eval()
    device = next(network.parameters()).device
    with torch.inference_mode():
        return network(torch.from_numpy(inputs).to(device)).cpu().double().sigmoid().numpy()
