"""`FusedAdam`: fastai's Adam, with all parameters updated in one pass over memory by torch's fused kernels."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import Any

import torch
from fastai.optimizer import Optimizer, adam_step, average_grad, average_sqr_grad, l2_reg, step_stat, weight_decay
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw

__all__ = ["FusedAdam"]

_DEVICES = ("cpu", "cuda")
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class FusedAdam(Optimizer):
    """Adam with the options, the hyperparameters and, up to rounding, the steps of fastai's.

    Parameters
    ----------
    params
        Parameters, or lists of parameters with hyperparameters of their own.
    lr
        Learning rate.
    mom, sqr_mom
        Decay of the averages of gradients and of their squares.
    eps
        Added to the root of the latter.
    wd
        Weight decay of parameters whose state has no `do_wd = False`.
    decouple_wd
        True decays weights directly (AdamW), False adds the decay to the gradients (Adam).
    """

    def __init__(
        self, params: Any, lr: float = 1e-3, mom: float = 0.9, sqr_mom: float = 0.99, eps: float = 1e-5,
        wd: float = 0.01, decouple_wd: bool = True,
    ):
        cbs = [weight_decay if decouple_wd else l2_reg, partial(average_grad, dampening=True), average_sqr_grad,
               step_stat, adam_step]
        super().__init__(params, cbs, lr=lr, mom=mom, sqr_mom=sqr_mom, eps=eps, wd=wd)
        self.decouple_wd = decouple_wd

    def step(self, closure: None = None) -> None:
        """Update the parameters that have a gradient."""
        parts = self.all_params(with_grad=True)
        if closure is not None or not all(_can_fuse(p) for p, *_ in parts):
            super().step(closure)
            return
        groups: dict[tuple, list[Tensor]] = defaultdict(list)
        for p, _, state, hyper in parts:
            decay = hyper["wd"] if state.get("do_wd", True) else 0.0
            key = (*(hyper[name] for name in ("lr", "mom", "sqr_mom", "eps")), decay)
            groups[key].append(p)
        with torch.no_grad():
            for key, group in groups.items():
                self._step_group(group, *key)

    def _step_group(
        self, params: list[Tensor], lr: float, mom: float, sqr_mom: float, eps: float, decay: float
    ) -> None:
        """Update parameters that have the same hyperparameters."""
        states = [self._state_of(p) for p in params]
        (adamw if self.decouple_wd else adam)(
            params, [_laid_out(p.grad, p) for p in params],  # type: ignore[arg-type]
            [s["grad_avg"] for s in states], [s["sqr_avg"] for s in states], [], [s["step"] for s in states],
            fused=True, amsgrad=False, beta1=mom, beta2=sqr_mom, lr=lr, weight_decay=decay, eps=eps, maximize=False,
        )

    def _state_of(self, p: Tensor) -> dict[str, Any]:
        """Return the state of a parameter, also one that was saved by fastai's Adam."""
        state = self.state[p]
        for name in ("grad_avg", "sqr_avg"):
            state[name] = _laid_out(state[name], p) if name in state else torch.zeros_like(p)
        state["step"] = torch.as_tensor(state.get("step", 0), dtype=torch.float32).to(p.device)
        return state


def _can_fuse(p: Tensor) -> bool:
    return p.device.type in _DEVICES and p.dtype in _DTYPES and not p.grad.is_sparse  # type: ignore[union-attr]


def _laid_out(x: Tensor, like: Tensor) -> Tensor:
    """Return values in the memory layout of a parameter of their shape, which the kernels take for granted."""
    return x if x.stride() == like.stride() else torch.empty_like(like).copy_(x)
