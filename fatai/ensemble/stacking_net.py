"""The network that stacks: its layers, its training on rows of probabilities, its answer.

Conventions: inputs are float32, (clips, models x tags), within [0, 1]; targets float32, (clips, tags), 0 and 1.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from fatai.metrics.ranking import lwlrap

if TYPE_CHECKING:
    from fatai.ensemble.stacking import MLPStack

__all__ = ["StackingNet", "fit_network", "network_answer"]

_HELD_OUT = 5  # one clip of so many tells when to slow down and stop


class StackingNet(nn.Module):
    """Inputs weighed by a gate that sees them all, then two hidden layers; after the 1st place's FCNet, written anew.

    The gate is a squeeze to 1 / `reduction` of the inputs and back, through a sigmoid. Hidden layers have 2 `base` and `base` units.
    Shapes: (clips, n_in) to logits (clips, n_tags).
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
        return self.layers(inputs * self.gate(inputs))


def fit_network(inputs: np.ndarray, targ: np.ndarray, settings: MLPStack) -> StackingNet:
    """A network trained on `inputs` and `targ`; the same arguments give the same network on the same machine."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    order = np.random.default_rng(settings.seed).permutation(len(inputs))
    n_held_out = max(1, len(inputs) // _HELD_OUT)
    # Of one clip alone nothing can be held out.
    oof_score, own = order[:n_held_out], order[n_held_out:] if len(order) > 1 else order
    x, y = torch.from_numpy(inputs[own]).to(device), torch.from_numpy(targ[own]).to(device)
    # Dropout and the first weights draw from torch's global generator, which is left as it was found.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        network = StackingNet(
            inputs.shape[1], targ.shape[1], reduction=settings.reduction, dropout=settings.dropout, base=settings.base,
        ).to(device)
        opt = torch.optim.Adam(network.parameters(), lr=settings.lr)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            opt, mode="max", factor=settings.factor, patience=settings.patience
        )
        best, best_score, waited = deepcopy(network), -1.0, 0
        for _ in range(settings.max_epochs):
            _train(network, opt, x, y, settings)
            score = lwlrap(network_answer(network, inputs[oof_score]), targ[oof_score])
            plateau.step(score)
            waited += 1
            # Held-out clips without any tag have no score; the last weights are then as good as any.
            if score > best_score or np.isnan(score):
                best, best_score, waited = deepcopy(network), score, waited if np.isnan(score) else 0
            if waited >= settings.stop_after:
                break
    return best.eval()


def _train(network: StackingNet, opt: torch.optim.Optimizer, x: Tensor, y: Tensor, settings: MLPStack) -> None:
    """One epoch."""
    network.train()
    for rows in torch.randint(len(x), (settings.draws,)).to(x.device).split(settings.bs):
        loss = nn.functional.binary_cross_entropy_with_logits(network(x[rows]), y[rows])
        opt.zero_grad()
        loss.backward()
        opt.step()


def network_answer(network: StackingNet, inputs: np.ndarray) -> np.ndarray:
    """Probabilities, float64, (clips, tags)."""
    network.eval()
    device = next(network.parameters()).device
    with torch.inference_mode():
        return network(torch.from_numpy(inputs).to(device)).double().sigmoid().cpu().numpy()
