"""Data-parallel training of one learner in several processes, each on its part of every batch.

The processes do together what one process would do: the batch has the same clips, `bs` counts the clips of all
processes, so the number of steps and the learning rate stay as they are. Gradients are averaged over clips (torch's
DistributedDataParallel), batch norms can use the whole batch, losses and metrics are those of all clips, each counted
once, in their order. Only the order of random draws and rounding differ from one process.

fastai's own callback for this needs accelerate and is not used here because of what it does wrong: it requires a GPU in
many places, splits the data set instead of the batches (so `bs` grows with the processes and batches hold other clips),
hides the loader from callbacks, gathers predictions in the order of processes, and continues to gather after its
context. `learn.distrib_ctx` of a `TagLearner` is the one below.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
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

from fatai.audio.waveform import exact_dtype
from fatai.callbacks.progress import PlainProgress
from fatai.distributed import ProcessGroup, fastai_env
from fatai.errors import OptionError, ShapeError
from fatai.training.recorder import loss_per_clip

__all__ = ["DistributedCallback", "distribute"]


@contextmanager
def distribute(learn: Learner, group: ProcessGroup, *, sync_bn: bool = True) -> Iterator[Learner]:
    """Fit, validate and predict in all processes of a group within the context.

    All processes must run the same calls in it. Only the main process shows progress; only it should write files
    (fastai's `rank_distrib()` is 0 there).

    Parameters
    ----------
    learn
        This process's copy of the learner.
    group
        The processes; with one process nothing changes.
    sync_bn
        Compute the statistics of batch norms over the whole batch in training. False computes them per process, which
        is faster.

    Raises
    ------
    OptionError
        If there are more processes than GPUs on this machine, or a batch has fewer clips than there are processes.
    """
    if group.world_size == 1:
        yield learn
        return
    _check_gpus(learn, group)
    with ExitStack() as stack:
        stack.enter_context(fastai_env(group))
        if not group.is_main:
            progress = [cb for cb in learn.cbs if isinstance(cb, (ProgressCallback, PlainProgress))]
            stack.enter_context(learn.removed_cbs(progress))
            stack.enter_context(learn.no_logging())
        stack.enter_context(learn.added_cbs(DistributedCallback(group, sync_bn=sync_bn)))
        stack.enter_context(contextmanager(replacing_yield)(learn, "group", group))
        yield learn


def _check_gpus(learn: Learner, group: ProcessGroup) -> None:
    n_gpus, n_local = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", group.world_size))
    if torch.device(learn.dls.device).type == "cuda" and n_local > n_gpus:
        raise OptionError(f"{n_local} processes run on a machine with {n_gpus} GPUs; start at most one process per GPU")


class DistributedCallback(Callback):
    """Split every batch of a learner among the processes of a group; added by `distribute`.

    Parameters
    ----------
    group, sync_bn
        As in `distribute`.
    """

    # After mixed precision, as fastai's own; before the recorder and other callbacks that look at the model.
    order = 11

    def __init__(self, group: ProcessGroup, *, sync_bn: bool = True):
        self.group, self.sync_bn = group, sync_bn
        self._original_classes: list[tuple[Any, type]] = []
        self._original_loss: AvgLoss | None = None

    def before_fit(self) -> None:
        """Split the batches of all loaders and average the recorded loss over all processes."""
        self._restore()
        for loader in self.learn.dls.loaders:
            self._shard(loader)
        if hasattr(self.learn, "recorder"):
            # Through vars, because fastai warns that the learner has an attribute `loss` as well.
            attributes = vars(self.learn.recorder)
            self._original_loss, attributes["loss"] = attributes["loss"], _AllReduceLoss()

    def before_train(self) -> None:
        """Split the batches of the training loader, which a callback may have replaced."""
        self._shard(self.learn.dl)

    def before_validate(self) -> None:
        """Split the batches of the validation loader, which may be a new one."""
        self._shard(self.learn.dl)

    def before_batch(self) -> None:
        """Set the number of the batch and wrap the model at the first training batch."""
        self.learn.dl.batch_number = self.learn.iter
        if self.training and not isinstance(self.learn.model, DistributedDataParallel):
            if self.sync_bn:
                _sync_batch_norms(self.learn.model, self._original_classes)
            unused = _has_unused_parameters(self.learn.model, self.learn.xb)
            self.learn.model = DistributedDataParallel(self.learn.model, find_unused_parameters=unused)

    def after_loss(self) -> None:
        """Scale the loss by this process's part of the batch."""
        if self.training:
            # The mean over processes is the mean over clips only if all have the same number of clips.
            counts = self.learn.dl.counts
            n_clips = find_bs(self.learn.yb) if self._accumulators() else sum(counts)
            self.learn.loss_grad = self.learn.loss_grad * (self.group.world_size * counts[self.group.rank] / n_clips)

    def after_backward(self) -> None:
        """Let gradient accumulation count the clips of all processes."""
        # fastai adds those of this process afterwards.
        for cb in self._accumulators():
            cb.count += sum(self.learn.dl.counts) - find_bs(self.learn.yb)

    def after_fit(self) -> None:
        """Undo all changes to the learner."""
        self._restore()

    after_cancel_fit = after_fit

    def _accumulators(self) -> list[GradientAccumulation]:
        return [cb for cb in self.learn.cbs if isinstance(cb, GradientAccumulation) and cb.run]

    def _shard(self, loader: Any) -> None:
        if isinstance(loader, _ShardedLoader):
            return
        if loader.bs is None or loader.bs < self.group.world_size:
            raise OptionError(
                f"a batch has {loader.bs} clips for {self.group.world_size} processes; expected at least one clip per "
                "process: take a larger bs or fewer processes"
            )
        # In place, so that callbacks that add transforms or exchange the data set work on the loader that is read from.
        self._original_classes.append((loader, type(loader)))
        # get_preds sets the order of a loader as an attribute of the object, which would hide the method of the class.
        get_order = vars(loader).pop("get_idxs", None)
        attributes = {"group": self.group, "get_order": get_order and staticmethod(get_order)}
        loader.__class__ = type(f"Sharded{type(loader).__name__}", (_ShardedLoader, type(loader)), attributes)

    def _restore(self) -> None:
        if isinstance(self.learn.model, DistributedDataParallel):
            self.learn.model = self.learn.model.module
        while self._original_classes:
            changed, original_class = self._original_classes.pop()
            if isinstance(changed, _ShardedLoader) and changed.get_order is not None:
                vars(changed)["get_idxs"] = changed.get_order
            changed.__class__ = original_class
        if self._original_loss is not None:
            vars(self.learn.recorder)["loss"], self._original_loss = self._original_loss, None


class _ShardedLoader:
    """Mixin for a fastai loader that gives each process its part of every batch, in the order of the batch.

    A process without a clip of a last, small batch gets the first clip of the batch as well, with weight 0 everywhere.
    """

    group: ProcessGroup
    batch_number = 0  # of the current batch
    get_order: Callable[[], Any] | None = None  # replaces the loader's own order of the clips

    def get_idxs(self) -> list[int]:
        """Draw the order of the clips in the main process and return this process's part of it."""
        loader: Any = self
        order = super().get_idxs() if self.get_order is None else self.get_order()  # type: ignore[misc]
        drawn = self.group.broadcast(list(order))[:len(loader) * loader.bs]
        batches = [drawn[i:i + loader.bs] for i in range(0, len(drawn), loader.bs)]
        self._counts = [self.group.split_counts(len(batch)) for batch in batches]
        rank, mine = self.group.rank, []
        for batch, counts in zip(batches, self._counts, strict=True):
            first = sum(counts[:rank])
            mine += batch[first:first + counts[rank]] or batch[:1]
        return mine

    @property
    def counts(self) -> list[int]:
        """Number of clips of the current batch in each process."""
        return self._counts[self.batch_number]

    @property
    def _local_bs(self) -> int:
        return self.group.split_counts(self.bs)[self.group.rank]  # type: ignore[attr-defined]

    def sample(self) -> Iterator[int]:
        """Yield this worker's clips, batch by batch."""
        loader: Any = self
        return (
            i for k, i in enumerate(loader._DataLoader__idxs) if k // self._local_bs % loader.num_workers == loader.offs
        )

    def chunkify(self, items: Any) -> Any:
        """Cut items into this process's parts of the batches."""
        return chunked(items, self._local_bs, False)

    def to_detach(self, b: Any, cpu: bool = True, gather: bool = True) -> Any:
        """Gather tensors of all processes.

        Parameters
        ----------
        b
            A tensor (clips, ...) of this process's clips, a number (mean over these clips), or a list or tuple of such.
        cpu
            Return tensors on the CPU.
        gather
            False returns the values of this process.

        Returns
        -------
        Tensors (clips of the whole batch, ...); for a number the mean over the clips of the whole batch.
        """
        if isinstance(b, (list, tuple)):
            return type(b)(self.to_detach(x, cpu, gather) for x in b)
        if not isinstance(b, Tensor):
            return b
        x = b.detach()
        if gather:
            x = self._gather(x).as_subclass(type(b)) if x.ndim else self._mean(x)
        return x.cpu() if cpu else x

    def _gather(self, x: Tensor) -> Tensor:
        n = self.counts[self.group.rank]
        if len(x) != max(1, n):
            raise ShapeError(f"the tensor to gather has shape {tuple(x.shape)}; expected a row for each of {n} clips")
        # Through the CPU, where any dtype can be sent.
        return self.group.gather_rows(x, self.counts).to(x.device)

    def _mean(self, x: Tensor) -> Tensor:
        weighted = x.to(exact_dtype(x.device)) * self.counts[self.group.rank]
        return (self.group.all_reduce(weighted) / sum(self.counts)).to(x.dtype)


class _AllReduceLoss(AvgLoss):
    """Mean loss over the clips of all processes; fastai weights batches by the clips of one process."""

    def accumulate(self, learn: Learner) -> None:
        n = sum(learn.dl.counts)
        self.total += learn.to_detach(loss_per_clip(learn)) * n
        self.count += n


class _AllReduceSum(torch.autograd.Function):
    """Sum over all processes, with gradients to the values of each."""

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


class _SyncBatchNorm:
    """Mixin for a batch norm on the CPU that takes its statistics over all processes; torch's needs GPUs."""

    def forward(self, x: Tensor) -> Tensor:
        norm: Any = self
        if not norm.training:
            return super().forward(x)  # type: ignore[misc]
        norm._check_input_dim(x)
        value = x if x.dtype == torch.float64 else x.float()
        mean, var, n = _global_moments(value)
        if norm.track_running_stats:
            _update_running_stats(norm, mean, var, n)
        out = (value - _per_channel(mean, x)) * _per_channel((var + norm.eps).rsqrt(), x)
        if norm.affine:
            out = out * _per_channel(norm.weight, x) + _per_channel(norm.bias, x)
        return out.to(x.dtype)


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Reshape (channels,) so that it broadcasts over x (batch, channels, ...)."""
    return values.view([1, -1] + [1] * (x.ndim - 2))


def _global_moments(value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, biased variance and count per channel of (batch, channels, ...) over all processes."""
    dims = [0, *range(2, value.ndim)]
    n_local = value.new_tensor([value.numel() / value.shape[1]])
    sums = _AllReduceSum.apply(torch.cat([value.sum(dims), n_local]))
    n = sums[-1].detach()
    mean = sums[:-1] / n
    # In a second round: the mean of squares minus the square of the mean loses float32 digits where means are large.
    var = _AllReduceSum.apply((value - _per_channel(mean, value)).square().sum(dims)) / n
    return mean, var, n


@torch.no_grad()
def _update_running_stats(norm: Any, mean: Tensor, var: Tensor, n: Tensor) -> None:
    norm.num_batches_tracked += 1
    weight = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), weight)
    norm.running_var.lerp_((var * n / (n - 1).clamp(min=1)).to(norm.running_var.dtype), weight)


def _has_unused_parameters(model: nn.Module, xb: Any) -> bool:
    """Return whether a batch leaves parameters without a gradient, which DistributedDataParallel must know."""
    buffers = [buffer.clone() for buffer in model.buffers()]
    trained = [p for p in model.parameters() if p.requires_grad]
    with torch.random.fork_rng():
        out = model(*xb)
    total = sum(part.float().sum() for part in (out if isinstance(out, (list, tuple)) else [out]))
    grads = torch.autograd.grad(total, trained, allow_unused=True)
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
    return any(grad is None for grad in grads)


def _sync_batch_norms(model: nn.Module, original_classes: list[tuple[Any, type]]) -> None:
    """Replace the batch norms of a model, in place, and append each with its class to `original_classes`."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
            original_classes.append((module, type(module)))
            if any(t.is_cuda for t in (*module.parameters(), *module.buffers())):
                module.__class__ = nn.SyncBatchNorm
                vars(module)["process_group"] = None
            else:
                module.__class__ = type(f"Sync{type(module).__name__}", (_SyncBatchNorm, type(module)), {})
