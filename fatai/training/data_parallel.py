"""A learner that several processes train, each on its part of every batch.

What one process would do with a batch, they do together: the batch is the same clips, `bs` counts those of all processes, so the number of
steps and the learning rate stay as they are. Gradients are averaged clip by clip (torch's DistributedDataParallel), batch norms see the
whole batch, losses and metrics are those of all clips, each counted once, in their order. What differs from one process is the order in
which random numbers are drawn, and rounding.

fastai has a callback for this, which needs accelerate and is not used here, for what it does wrong: it asks for a GPU in many places, cuts
the data set and not the batches (so `bs` grows with the processes and batches are other clips), hides the loader from callbacks, gathers
predictions in the order of processes, and goes on gathering behind its context. `learn.distrib_ctx` of a `FatLearner` is the one below.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.callback.training import GradientAccumulation
from fastai.learner import AvgLoss, Learner, replacing_yield
from fastai.torch_core import find_bs
from fastcore.basics import chunked
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from fatai.errors import OptionError, ShapeError
from fatai.callbacks.callbacks import PlainProgress
from fatai.distributed import ProcessGroup, fastai_env

__all__ = ["DistributedCallback", "distribute"]


@contextmanager
def distribute(learn: Learner, group: ProcessGroup, *, sync_bn: bool = True) -> Iterator[Learner]:
    """A context in which all processes of a group fit, validate and predict with their copies of a learner.

    All of them have to do the same in it. Only the first one shows progress; files are for the first one to write
    (fastai's `rank_distrib()` says which one that is).

    Parameters
    ----------
    sync_bn
        Whether batch norms see the whole batch in training; without it, each process those of its own clips, which is faster.

    Raises
    ------
    OptionError
        If a batch has fewer clips than there are processes, or a machine fewer GPUs.
    """
    if group.world_size == 1:
        yield learn
        return
    gpus, here = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", group.world_size))
    if torch.device(learn.dls.device).type == "cuda" and here > gpus:
        raise OptionError(
            f"{here} processes share batches on a machine with {gpus} GPUs; start at most one for each GPU"
        )
    silent = [cb for cb in learn.cbs if isinstance(cb, (ProgressCallback, PlainProgress))] if not group.is_main else []
    with ExitStack() as stack:
        stack.enter_context(fastai_env(group))
        if not group.is_main:
            stack.enter_context(learn.removed_cbs(silent))
            stack.enter_context(learn.no_logging())
        stack.enter_context(learn.added_cbs(DistributedCallback(group, sync_bn=sync_bn)))
        stack.enter_context(contextmanager(replacing_yield)(learn, "group", group))
        yield learn


class DistributedCallback(Callback):
    """Share every batch of a learner among the processes of a group; to be given by `distribute`."""

    # Behind mixed precision, as fastai's own; before the recorder and whatever looks at the model from then on.
    order = 11

    def __init__(self, group: ProcessGroup, *, sync_bn: bool = True):
        self.group, self.sync_bn = group, sync_bn
        self._put_back: list[tuple[Any, type]] = []

    def before_fit(self) -> None:
        self._undo()
        for loader in self.learn.dls.loaders:
            self._share(loader)
        if hasattr(self.learn, "recorder"):
            # Past fastai's warning that the learner has a loss as well.
            known = vars(self.learn.recorder)
            self._loss, known["loss"] = known["loss"], _LossOfAll()

    def before_train(self) -> None:
        self._share(self.learn.dl)

    def before_validate(self) -> None:
        self._share(self.learn.dl)

    def before_batch(self) -> None:
        self.learn.dl.at = self.learn.iter
        if self.training and not isinstance(self.learn.model, DistributedDataParallel):
            if self.sync_bn:
                _norm_over_all(self.learn.model, self._put_back)
            unused = _has_unused_parameters(self.learn.model, self.learn.xb)
            self.learn.model = DistributedDataParallel(self.learn.model, find_unused_parameters=unused)

    def after_loss(self) -> None:
        if self.training:
            # The mean over processes is that over clips only if all have as many.
            own = self.learn.dl.shares[self.group.rank]
            of = find_bs(self.learn.yb) if self._accumulating() else sum(self.learn.dl.shares)
            self.learn.loss_grad = self.learn.loss_grad * (self.group.world_size * own / of)

    def after_backward(self) -> None:
        # fastai then counts the clips of this process; the step is due when those of all are enough.
        for cb in self._accumulating():
            cb.count += sum(self.learn.dl.shares) - find_bs(self.learn.yb)

    def after_fit(self) -> None:
        self._undo()

    def _accumulating(self) -> list[GradientAccumulation]:
        return [cb for cb in self.learn.cbs if isinstance(cb, GradientAccumulation) and cb.run]

    def _share(self, loader: Any) -> None:
        if isinstance(loader, _SharedLoader):
            return
        if loader.bs is None or loader.bs < self.group.world_size:
            raise OptionError(
                f"batches of {loader.bs} clips cannot be shared by {self.group.world_size} processes; take a larger bs, or fewer"
            )
        # In place, so that callbacks that add transforms or exchange the data set meet the loader that is read from.
        self._put_back.append((loader, type(loader)))
        # get_preds gives a loader its order as a function of its own, which would go before that of the class.
        order = vars(loader).pop("get_idxs", None)
        known = {"group": self.group, "order": order and staticmethod(order)}
        loader.__class__ = type(f"Shared{type(loader).__name__}", (_SharedLoader, type(loader)), known)

    def _undo(self) -> None:
        if isinstance(self.learn.model, DistributedDataParallel):
            self.learn.model = self.learn.model.module
        while self._put_back:
            held, kind = self._put_back.pop()
            if isinstance(held, _SharedLoader) and held.order is not None:
                vars(held)["get_idxs"] = held.order
            held.__class__ = kind
        if hasattr(self, "_loss"):
            vars(self.learn.recorder)["loss"] = self._loss
            del self._loss


class _SharedLoader:
    """What makes a loader of fastai's give each process its part of every batch, in the batch's order.

    A process that is left without a clip of a last, small batch gets the batch's first one as well; it counts nowhere.
    """

    group: ProcessGroup
    at = 0  # the batch that is worked on
    order: Any = None  # what gives the clips' order instead of the loader itself

    def get_idxs(self) -> list[int]:
        loader: Any = self
        drawn = self.group.broadcast(list(super().get_idxs() if self.order is None else self.order()))  # type: ignore[misc]
        drawn = drawn[:len(loader) * loader.bs]
        batches = [drawn[i:i + loader.bs] for i in range(0, len(drawn), loader.bs)]
        self._shares = [self.group.split_counts(len(batch)) for batch in batches]
        rank, mine = self.group.rank, []
        for batch, shares in zip(batches, self._shares):
            first = sum(shares[:rank])
            mine += batch[first:first + shares[rank]] or batch[:1]
        return mine

    @property
    def shares(self) -> list[int]:
        """How many clips of the present batch each process has."""
        return self._shares[self.at]

    @property
    def _own_bs(self) -> int:
        return self.group.split_counts(self.bs)[self.group.rank]  # type: ignore[attr-defined]

    def sample(self) -> Iterator[int]:
        loader: Any = self
        return (
            i for k, i in enumerate(loader._DataLoader__idxs) if k // self._own_bs % loader.num_workers == loader.offs
        )

    def chunkify(self, items: Any) -> Any:
        return chunked(items, self._own_bs, False)

    def to_detach(self, b: Any, cpu: bool = True, gather: bool = True) -> Any:
        """Tensors with a row for each clip: the rows of the whole batch. Numbers: their mean over the clips of the batch."""
        if isinstance(b, (list, tuple)):
            return type(b)(self.to_detach(x, cpu, gather) for x in b)
        if not isinstance(b, Tensor):
            return b
        x, own = b.detach(), self.shares[self.group.rank]
        if gather and x.ndim:
            if len(x) != max(1, own):
                raise ShapeError(
                    f"a tensor of shape {tuple(x.shape)} is to be gathered; expected a row for each of {own} clips"
                )
            # Over the CPU, where any kind of number travels.
            x = self.group.gather_rows(x, self.shares).as_subclass(type(b)).to(x.device)
        elif gather:
            x = (self.group.all_reduce(x.double() * own) / sum(self.shares)).to(x.dtype)
        return x.cpu() if cpu else x


class _LossOfAll(AvgLoss):
    """The mean loss over all clips; fastai weighs batches by the clips of one process."""

    def accumulate(self, learn: Learner) -> None:
        n = sum(learn.dl.shares)
        self.total += learn.to_detach(learn.loss.mean()) * n
        self.count += n


class _Summed(torch.autograd.Function):
    """The sum over all processes, which each of them has part in."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total


class _NormOverAll:
    """What makes a batch norm on CPUs take mean and variance over the batches of all processes; torch's own needs GPUs."""

    def forward(self, x: Tensor) -> Tensor:
        norm: Any = self
        if not norm.training:
            return super().forward(x)  # type: ignore[misc]
        norm._check_input_dim(x)
        dims, wide = [0, *range(2, x.ndim)], [1, -1] + [1] * (x.ndim - 2)
        value = x if x.dtype == torch.float64 else x.float()
        sums = _Summed.apply(torch.cat([value.sum(dims), value.new_tensor([value.numel() / value.shape[1]])]))
        n = sums[-1].detach()
        mean = sums[:-1] / n
        # In a second round: the mean of squares less the square of the mean loses what large means leave of float32.
        var = _Summed.apply((value - mean.view(wide)).square().sum(dims)) / n
        if norm.track_running_stats:
            with torch.no_grad():
                norm.num_batches_tracked += 1
                share = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
                norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
                norm.running_var.lerp_((var * n / (n - 1).clamp(min=1)).to(norm.running_var.dtype), share)
        out = (value - mean.view(wide)) * (var + norm.eps).rsqrt().view(wide)
        if norm.affine:
            out = out * norm.weight.view(wide) + norm.bias.view(wide)
        return out.to(x.dtype)


def _has_unused_parameters(model: nn.Module, xb: Any) -> bool:
    """Whether a batch leaves some parameters without a gradient, which DistributedDataParallel has to be told; leaves no trace."""
    buffers = [buffer.clone() for buffer in model.buffers()]
    trained = [p for p in model.parameters() if p.requires_grad]
    with torch.random.fork_rng():
        out = model(*xb)
    total = sum(part.float().sum() for part in (out if isinstance(out, (list, tuple)) else [out]))
    grads = torch.autograd.grad(total, trained, allow_unused=True)
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), buffers):
            buffer.copy_(before)
    return any(grad is None for grad in grads)


def _norm_over_all(model: nn.Module, put_back: list[tuple[Any, type]]) -> None:
    """Exchange the batch norms of a model, in place; what they were is noted in `put_back`."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
            put_back.append((module, type(module)))
            on_gpu = any(t.is_cuda for t in (*module.parameters(), *module.buffers()))
            if on_gpu:
                module.__class__ = nn.SyncBatchNorm
                vars(module)["process_group"] = None
            else:
                module.__class__ = type(f"Shared{type(module).__name__}", (_NormOverAll, type(module)), {})
