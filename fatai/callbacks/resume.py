"""Resume a fit that was killed: the whole state of a learner at the end of an epoch, in one file.

The state holds the network, the optimizer, gradients that are not applied yet, the position in the schedule, best
scores and patience of trackers, the values of the recorder, and every random generator (torch's on all devices,
numpy's, Python's, those of loaders, samplers and augmentations). The file is that of `torch.save`, read with
`weights_only=True`, so that nothing in it can be executed, and it is written completely or not at all.

A resumed fit ends byte-equal to an uninterrupted one with the same data, options, number of workers and threads, on a
device that computes deterministically. Of several processes that share batches the main process writes one file, with
the generators of all.

fastai's own `start_epoch` skips epochs too, but restores nothing, and trackers fail on the epochs it skips.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from fastai.callback.core import Callback, CancelEpochException
from fastai.callback.schedule import ParamScheduler
from fastai.callback.tracker import TrackerCallback
from fastai.callback.training import GradientAccumulation
from fastai.learner import Learner, Recorder
from fastai.torch_core import get_model, rank_distrib
from fastcore.foundation import L
from torch import Tensor

from fatai.augment.base import BatchAugmentation
from fatai.callbacks.base import ResumableCallback, is_training
from fatai.distributed import SINGLE_PROCESS, ProcessGroup
from fatai.errors import CheckpointError
from fatai.io.atomic import remove_temp_files
from fatai.models.checkpoint import read_checkpoint, save_checkpoint

__all__ = ["ResumePoint", "ResumeTraining", "resume_point"]

_FORMAT = 2
# State of fastai's callbacks from earlier epochs; those of fatai declare it as `ResumableCallback.resume_state`.
_FASTAI_STATE: tuple[tuple[type, tuple[str, ...]], ...] = (
    (Recorder, ("lrs", "iters", "losses", "values")),
    (TrackerCallback, ("best", "new_best", "wait")),
    (ParamScheduler, ("hps",)),
    (GradientAccumulation, ("count",)),
)


@runtime_checkable
class _DistributedLearner(Protocol):
    """A learner that is trained by several processes."""

    group: ProcessGroup


class ResumePoint(NamedTuple):
    """Position of a state file: epochs done, epochs of the whole fit, and the notes stored with it."""

    done: int
    epochs: int
    notes: dict[str, Any]


class ResumeTraining(Callback):
    """Write the state of the learner after each epoch; continue from it if a state exists when the fit begins.

    Pass it to the fit, `learn.fit_one_cycle(9, cbs=ResumeTraining("state.pt"))`, not to the learner. The file remains
    when the fit is done, and a fit that finds the state of a finished one restores its end and trains nothing; delete
    it when the result is stored.

    Parameters
    ----------
    path
        The state file.
    notes
        Values that must be the same for the fit to continue, such as digests of the recipe and the data: strings,
        numbers, lists of them.

    Raises
    ------
    CheckpointError
        When the fit begins: the file cannot be read, or it belongs to another fit (other notes, epochs, batches per
        epoch, network); the differences are listed.
    """

    # The last callback at the end of an epoch, when the others are in their final state.
    order = 90

    def __init__(self, path: str | Path, notes: Mapping[str, Any] | None = None):
        self.path_of_state = Path(path)
        self.notes = json.loads(json.dumps(dict(notes or {})))
        self.skip_to = 0
        self._paused: list[Callback] = []

    def before_fit(self) -> None:
        """Find the epoch to continue from."""
        self._unpause()
        self.run = is_training(self.learn)
        self.skip_to = 0
        if self.run and not rank_distrib():
            remove_temp_files(self.path_of_state)
        if self.run and self.path_of_state.exists():
            state = _read_state(self.path_of_state)
            self._check_same_fit(state)
            self.skip_to = state["done"]
        self.skip_to = process_group(self.learn).broadcast(self.skip_to)

    def _check_same_fit(self, state: dict[str, Any]) -> None:
        now = {"epochs": self.learn.n_epoch, "batches": len(self.learn.dls.train), **self.notes}
        then = {"epochs": state["epochs"], "batches": state["batches"], **state["notes"]}
        names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
        if names:
            differences = "; ".join(f"{name} was {then.get(name)!r} and is {now.get(name)!r}" for name in names)
            raise CheckpointError(
                f"{self.path_of_state} is the state of another fit: {differences}. "
                "Fit with the same options, or delete the file"
            )

    def before_epoch(self) -> None:
        """Skip an epoch that is done."""
        if self.learn.epoch < self.skip_to:
            # No other callback may see the end of an epoch that did not take place: trackers would look for its scores.
            self._paused = [cb for cb in self.learn.cbs if cb is not self and cb.run]
            for cb in self._paused:
                cb.run = False
            raise CancelEpochException

    def after_epoch(self) -> None:
        """Write the state, or restore it after the last epoch that was skipped."""
        skipped = self.learn.epoch < self.skip_to
        self._unpause()
        if not skipped:
            save_state(self.path_of_state, self.learn, self.notes)
        elif self.learn.epoch == self.skip_to - 1:
            load_state(self.path_of_state, self.learn)

    def after_cancel_fit(self) -> None:
        """Let the other callbacks run again, if the fit ended while it skipped epochs."""
        self._unpause()

    def _unpause(self) -> None:
        for cb in self._paused:
            cb.run = True
        self._paused = []


def resume_point(path: str | Path) -> ResumePoint | None:
    """Return the position of the state at `path`; None if there is no such file.

    Raises
    ------
    CheckpointError
        If the file cannot be read.
    """
    if not Path(path).exists():
        return None
    state = _read_state(Path(path))
    return ResumePoint(state["done"], state["epochs"], state["notes"])


def save_state(path: str | Path, learn: Learner, notes: Mapping[str, Any]) -> None:
    """Write the state of a learner whose epoch `learn.epoch` has ended.

    Raises
    ------
    StorageError
        If the file cannot be written; the file of the epoch before is kept.
    """
    generators = process_group(learn).all_gather(_generator_states(learn))
    if rank_distrib():
        return
    state = {
        "format": _FORMAT,
        "done": learn.epoch + 1,
        "epochs": learn.n_epoch,
        "batches": len(learn.dls.train),
        "notes": dict(notes),
        "model": dict(get_model(learn.model).state_dict()),
        "opt": learn.opt.state_dict(),
        "grads": _gradients(learn),
        "train_iter": learn.train_iter,
        "smooth_loss": vars(learn.recorder.smooth_loss),
        "scaler": _scaler_state(learn),
        "callbacks": {key: _callback_state(cb, names) for key, cb, names in _callbacks_with_state(learn)},
        "generators": generators,
    }
    save_checkpoint(path, _to_plain(state, "state"))


def load_state(path: str | Path, learn: Learner) -> None:
    """Restore the state that `save_state` wrote; the optimizer and the callbacks of the learner must exist.

    Raises
    ------
    CheckpointError
        If the file cannot be read, or belongs to another network, optimizer or other callbacks.
    """
    state = _read_state(Path(path))
    try:
        _load_model(Path(path), learn, state["model"])
        _load_optimizer(learn, state)
        _load_callbacks(learn, state["callbacks"])
        # With more processes than before, the new ones continue with their own seed.
        if rank_distrib() < len(state["generators"]):
            _set_generators(learn, state["generators"][rank_distrib()])
    except CheckpointError:
        raise
    except (KeyError, IndexError, TypeError, AttributeError, AssertionError, ValueError, RuntimeError) as e:
        raise CheckpointError(
            f"{path} does not fit the optimizer or the callbacks of this learner ({e!r}); "
            "fit with the same options, or delete the file"
        ) from e


def process_group(learn: Learner) -> ProcessGroup:
    """Return the processes that train a learner together."""
    return learn.group if isinstance(learn, _DistributedLearner) else SINGLE_PROCESS


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = read_checkpoint(path)
    except CheckpointError as e:
        raise CheckpointError(
            f"{path} cannot be read as the state of a fit ({e}); delete it to start the fit again"
        ) from None
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is not a state of this version of fatai; delete it to start the fit again")
    counts = [state.get(name) for name in ("done", "epochs", "batches")]
    if (
        not isinstance(state.get("notes"), dict)
        or not all(isinstance(n, int) for n in counts)
        or not 1 <= state["done"] <= state["epochs"]
    ):
        raise CheckpointError(f"{path} is a damaged state of a fit; delete it to start the fit again")
    return state


# Model and optimizer

def _load_model(path: Path, learn: Learner, saved: dict[str, Tensor]) -> None:
    model = get_model(learn.model)
    current = model.state_dict()
    different = sorted(
        k for k in {**current, **saved} if k not in current or k not in saved or current[k].shape != saved[k].shape
    )
    if different:
        listed = ", ".join(different[:3]) + " ..." * (len(different) > 3)
        raise CheckpointError(f"{path} is the state of another network: {listed} differ")
    model.load_state_dict(saved)


def _load_optimizer(learn: Learner, state: dict[str, Any]) -> None:
    parameters = _parameters(learn)
    learn.opt.load_state_dict(_on_devices(state["opt"], parameters))
    for i, grad in state["grads"].items():
        zeros = torch.zeros_like(parameters[i])
        parameters[i].grad = zeros if grad is None else zeros.copy_(grad)
    learn.train_iter = state["train_iter"]
    vars(learn.recorder.smooth_loss).update(state["smooth_loss"])
    if state["scaler"]:
        learn.scaler.load_state_dict(state["scaler"])


def _parameters(learn: Learner) -> list[Tensor]:
    """Return the parameters of the optimizer, in its order."""
    return [p for group in learn.opt.param_lists for p in group]


def _gradients(learn: Learner) -> dict[int, Tensor | None]:
    """Return the gradients that wait to be applied, by the index of their parameter; None for one that is all 0."""
    grads = {i: p.grad for i, p in enumerate(_parameters(learn)) if p.grad is not None}
    return {i: grad if grad.any() else None for i, grad in grads.items()}


def _on_devices(opt: dict[str, Any], parameters: list[Tensor]) -> dict[str, Any]:
    """Return an optimizer's state on the devices of its parameters, in their memory layout: kernels round by layout."""
    if not isinstance(opt.get("state"), list):
        return opt
    for p, state in zip(parameters, opt["state"], strict=True):
        for name, value in state.items():
            if isinstance(value, Tensor):
                same = value.shape == p.shape
                state[name] = torch.empty_like(p, dtype=value.dtype).copy_(value) if same else value.to(p.device)
    return {**opt, "hypers": L(opt["hypers"])}


def _scaler_state(learn: Learner) -> dict[str, Any] | None:
    scaler = getattr(learn, "scaler", None)
    return None if scaler is None else scaler.state_dict()


# Callbacks

def _callbacks_with_state(learn: Learner) -> Iterator[tuple[str, Callback, tuple[str, ...]]]:
    """Yield the callbacks that have state from earlier epochs: a key, the callback, the names of its attributes."""
    counts: dict[str, int] = {}
    for cb in learn.cbs:
        names = tuple(name for kind, attributes in _FASTAI_STATE if isinstance(cb, kind) for name in attributes)
        if isinstance(cb, ResumableCallback):
            names += cb.resume_state
        if names:
            kind_name = type(cb).__name__
            counts[kind_name] = counts.get(kind_name, 0) + 1
            yield f"{kind_name}{counts[kind_name]}", cb, names


def _callback_state(cb: Callback, names: tuple[str, ...]) -> dict[str, Any]:
    """Return attributes of a callback; a list of scalar tensors, such as the losses of all batches, as one tensor."""
    state = {name: getattr(cb, name) for name in names if hasattr(cb, name)}
    return {
        name: torch.stack([v.as_subclass(Tensor) for v in value]) if _is_list_of_scalars(value) else value
        for name, value in state.items()
    }


def _is_list_of_scalars(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, Tensor) and v.ndim == 0 for v in value)


def _load_callbacks(learn: Learner, states: dict[str, dict[str, Any]]) -> None:
    for key, cb, names in _callbacks_with_state(learn):
        for name, value in states.get(key, {}).items():
            if name in names:
                one_by_one = isinstance(value, Tensor) and isinstance(getattr(cb, name, None), list)
                setattr(cb, name, list(value.unbind()) if one_by_one else value)
        if isinstance(cb, ResumableCallback):
            cb.after_resume()


# Generators

def _torch_generators(learn: Learner) -> list[torch.Generator]:
    """Return the generators that augmentations and samplers were given."""
    found = [cb.generator for cb in learn.cbs if isinstance(cb, BatchAugmentation)]
    for loader in learn.dls.loaders:
        sampler = getattr(loader, "sampler", None)
        samplers = [s for s in (sampler, getattr(sampler, "sampler", None)) if hasattr(s, "__dict__")]
        found += [vars(s).get("generator") for s in samplers]
    return [generator for generator in found if isinstance(generator, torch.Generator)]


def _loader_generators(learn: Learner) -> list[random.Random]:
    return [loader.rng for loader in learn.dls.loaders if isinstance(getattr(loader, "rng", None), random.Random)]


def _generator_states(learn: Learner) -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": np.random.get_state(legacy=False),
        "python": random.getstate(),
        "loaders": [rng.getstate() for rng in _loader_generators(learn)],
        "torch_generators": [g.get_state() for g in _torch_generators(learn)],
    }


def _set_generators(learn: Learner, states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
    np.random.set_state(states["numpy"])
    random.setstate(states["python"])
    for rng, state in zip(_loader_generators(learn), states["loaders"], strict=False):
        rng.setstate(state)
    for generator, state in zip(_torch_generators(learn), states["torch_generators"], strict=False):
        generator.set_state(state)


def _to_plain(value: Any, where: str) -> Any:
    """Return a value of the types that `torch.load(weights_only=True)` accepts, tensors on the CPU.

    Raises
    ------
    CheckpointError
        If it holds anything but tensors, numbers, text, and containers of them; `where` names the place in the state.
    """
    if isinstance(value, Tensor):
        value = value.detach().as_subclass(Tensor).cpu()
        # torch.save writes the whole storage of a view.
        return value if value.untyped_storage().nbytes() == value.nbytes else value.clone()
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, dict):
        return {_to_plain(k, where): _to_plain(v, f"{where}/{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple, L)):
        plain = [_to_plain(v, f"{where}/{i}") for i, v in enumerate(value)]
        return tuple(plain) if isinstance(value, tuple) else plain
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise CheckpointError(
        f"{where} is a {type(value).__name__}, which a resume state cannot hold; "
        "expected numbers, tensors, lists or dicts"
    )
