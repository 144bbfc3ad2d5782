"""A fit that goes on where a killed one stopped: the whole state of a learner at an epoch's end, in one file.

What is kept: the network, the optimiser, gradients that are not applied yet, the place in the schedule, best scores and waiting times of
trackers, the recorder's values, every generator (torch's on all devices, numpy's, Python's, those of loaders, samplers and random changes).
The file is safetensors with some JSON beside it, so nothing in it can be executed on reading, and it is written whole or not at all.

A fit continued from it ends byte-equal to the unbroken one if the same data, options, number of workers and threads meet, and if the device
computes the same twice. Of several processes that share batches the first writes one file, with the generators of all.

fastai's own `start_epoch` skips epochs too, but restores nothing, and trackers fail on the epochs it skips.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from fastai.callback.core import Callback, CancelEpochException
from fastai.callback.schedule import ParamScheduler
from fastai.callback.tracker import TrackerCallback
from fastai.callback.training import GradientAccumulation
from fastai.learner import Learner, Recorder
from fastai.torch_core import get_model, rank_distrib
from fastcore.foundation import L
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fatai.io.atomic import remove_temp_files, write_file
from fatai.errors import CheckpointError
from fatai.io.json import parse_json
from fatai.distributed import SINGLE_PROCESS, ProcessGroup

__all__ = ["ResumePoint", "ResumeTraining", "resume_point"]

# What callbacks of fastai know from earlier epochs; those of fatai say it themselves, as `kept_on_resume`.
_KEPT: tuple[tuple[type, tuple[str, ...]], ...] = (
    (Recorder, ("lrs", "iters", "losses", "values")),
    (TrackerCallback, ("best", "new_best", "wait")),
    (ParamScheduler, ("hps",)),
    (GradientAccumulation, ("count",)),
)
_MANY = 16


class ResumePoint(NamedTuple):
    """Where a state file stands: epochs that are done, epochs of the whole fit, and what was noted beside them."""

    done: int
    epochs: int
    notes: dict[str, Any]


class ResumeTraining(Callback):
    """Write the state after each epoch; a fit that finds a state at `path` goes on from there.

    To be given to the fit, `learn.fit_one_cycle(9, cbs=ResumeTraining("state.safetensors"))`, not to the learner. The file stays when the fit is
    done, and a fit that finds one of a finished fit does nothing but end as that one ended; delete it when its outcome is stored.

    Parameters
    ----------
    path
        The state file.
    notes
        What must be the same for the fit to go on, such as digests of the recipe and the data; strings, numbers, lists of them.

    Raises
    ------
    CheckpointError
        When the fit begins: a file that can't be read, or one of another fit (other notes, epochs, batches an epoch, network), saying what
        differs.
    """

    # The last to see an epoch's end, when all others know how it ended.
    order = 90

    def __init__(self, path: str | Path, notes: Mapping[str, Any] | None = None):
        self.path_of_state = Path(path)
        self.notes = json.loads(json.dumps(dict(notes or {})))
        self.skip_to = 0
        self._paused: list[Callback] = []

    def before_fit(self) -> None:
        self._wake()
        self.run = not hasattr(self.learn, "lr_finder") and not hasattr(self.learn, "gather_preds")
        self.skip_to = 0
        if self.run and not rank_distrib():
            remove_temp_files(self.path_of_state)
        if self.run and self.path_of_state.exists():
            header = _header(self.path_of_state)
            self._check(header)
            self.skip_to = header["done"]
        self.skip_to = group_of(self.learn).broadcast(self.skip_to)

    def _check(self, header: dict[str, Any]) -> None:
        now = {"epochs": self.learn.n_epoch, "batches": len(self.learn.dls.train), **self.notes}
        then = {"epochs": header["epochs"], "batches": header["batches"], **header["notes"]}
        told = [f"{k} was {then.get(k)!r} and is {now.get(k)!r}" for k in {**then, **now} if then.get(k) != now.get(k)]
        if told:
            raise CheckpointError(
                f"{self.path_of_state} is the state of another fit: {'; '.join(told)}. Fit as then, or delete the file"
            )

    def before_epoch(self) -> None:
        if self.learn.epoch < self.skip_to:
            # Nobody else may see the end of an epoch that did not take place: trackers would look for its scores.
            self._paused = [cb for cb in self.learn.cbs if cb is not self and cb.run]
            for cb in self._paused:
                cb.run = False
            raise CancelEpochException

    def after_epoch(self) -> None:
        skipped = self.learn.epoch < self.skip_to
        self._wake()
        if not skipped:
            save_state(self.path_of_state, self.learn, self.notes)
        elif self.learn.epoch == self.skip_to - 1:
            load_state(self.path_of_state, self.learn)

    def _wake(self) -> None:
        for cb in self._paused:
            cb.run = True
        self._paused = []


def resume_point(path: str | Path) -> ResumePoint | None:
    """Where the state at `path` stands; None if there is none. Raises `CheckpointError` if it can't be read."""
    if not Path(path).exists():
        return None
    header = _header(Path(path))
    return ResumePoint(header["done"], header["epochs"], header["notes"])


def save_state(path: str | Path, learn: Learner, notes: Mapping[str, Any]) -> None:
    """Write the state of a learner whose epoch `learn.epoch` has ended."""
    generators = group_of(learn).all_gather(_generator_states(learn))
    if rank_distrib():
        return
    tensors: dict[str, Tensor] = {f"model/{name}": value for name, value in get_model(learn.model).state_dict().items()}
    grads = {i: p.grad for i, p in enumerate(_parameters(learn)) if p.grad is not None}
    state = {
        "opt": learn.opt.state_dict(),
        "grads": {i: grad if grad.any() else None for i, grad in grads.items()},
        "train_iter": learn.train_iter,
        "smooth_loss": vars(learn.recorder.smooth_loss),
        "scaler": _scaler_state(learn),
        "callbacks": {key: {n: getattr(cb, n) for n in names if hasattr(cb, n)} for key, cb, names in _kept(learn)},
        "generators": generators[0],
        "generators_of_others": generators[1:],
    }
    header = {
        "format": 1,
        "done": learn.epoch + 1,
        "epochs": learn.n_epoch,
        "batches": len(learn.dls.train),
        "notes": dict(notes),
        "state": _pack(state, tensors, "state"),
    }
    with write_file(path) as beside:
        save_file(_storable(tensors), str(beside), metadata={"fatai_resume": json.dumps(header)})


def load_state(path: str | Path, learn: Learner) -> None:
    """Put a learner, whose optimiser and callbacks exist, into the state that `save_state` wrote."""
    header = _header(Path(path))
    with safe_open(str(path), framework="pt") as f:
        tensors = {key: f.get_tensor(key) for key in f.keys()}
    try:
        state = _unpack(header["state"], tensors)
        _load_model(
            Path(path), learn, {k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")}
        )
        parameters = _parameters(learn)
        learn.opt.load_state_dict(_placed(state["opt"], parameters))
        for i, grad in state["grads"].items():
            like = torch.zeros_like(parameters[i])
            parameters[i].grad = like if grad is None else like.copy_(grad)
        learn.train_iter = state["train_iter"]
        vars(learn.recorder.smooth_loss).update(state["smooth_loss"])
        if state["scaler"]:
            learn.scaler.load_state_dict(state["scaler"])
        for key, cb, names in _kept(learn):
            for name, value in state["callbacks"].get(key, {}).items():
                if name in names:
                    setattr(cb, name, value)
            if hasattr(cb, "resumed"):
                cb.resumed()
        generators = [state["generators"], *state.get("generators_of_others", ())]
        # More processes than before: those that are new go on with what they were seeded with.
        if rank_distrib() < len(generators):
            _set_generators(learn, generators[rank_distrib()])
    except (KeyError, IndexError, TypeError, AttributeError, AssertionError) as e:
        raise CheckpointError(
            f"{path} does not fit this learner's optimiser or callbacks ({e!r}); fit as then, or delete the file"
        ) from e


def group_of(learn: Learner) -> ProcessGroup:
    """The processes that train a learner with this one."""
    return getattr(learn, "group", SINGLE_PROCESS)


def _header(path: Path) -> dict[str, Any]:
    try:
        with safe_open(str(path), framework="pt") as f:
            header = parse_json((f.metadata() or {})["fatai_resume"])
        if header["format"] == 1 and all(isinstance(header[k], int) for k in ("done", "epochs", "batches")):
            return {**header, "notes": dict(header["notes"])}
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as e:
        raise CheckpointError(f"{path} cannot be read as the state of a fit ({e}); delete it to begin anew") from None
    raise CheckpointError(f"{path} is of another version of fatai; delete it to begin anew")


def _load_model(path: Path, learn: Learner, saved: dict[str, Tensor]) -> None:
    model = get_model(learn.model)
    own = model.state_dict()
    odd = sorted(k for k in {**own, **saved} if k not in own or k not in saved or own[k].shape != saved[k].shape)
    if odd:
        raise CheckpointError(
            f"{path} is the state of another network: {', '.join(odd[:3])}{' ...' * (len(odd) > 3)} differ"
        )
    model.load_state_dict(saved)


def _parameters(learn: Learner) -> list[Tensor]:
    """What the optimiser steps, in its order."""
    return [p for group in learn.opt.param_lists for p in group]


def _placed(opt: dict[str, Any], parameters: list[Tensor]) -> dict[str, Any]:
    """An optimiser's state on the devices of its parameters, and laid out in memory as they are: kernels round by layout."""
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


def _kept(learn: Learner) -> Iterator[tuple[str, Callback, tuple[str, ...]]]:
    """Callbacks that know something from earlier epochs: a key, the callback, the names of what it knows."""
    seen: dict[str, int] = {}
    for cb in learn.cbs:
        names = tuple(n for kind, known in _KEPT if isinstance(cb, kind) for n in known) + tuple(
            getattr(type(cb), "kept_on_resume", ())
        )
        if names:
            kind_name = type(cb).__name__
            seen[kind_name] = seen.get(kind_name, 0) + 1
            yield f"{kind_name}{seen[kind_name]}", cb, names


# Generators

def _own_generators(learn: Learner) -> list[torch.Generator]:
    """Generators that random changes and samplers were given."""
    holders = [x for cb in learn.cbs for x in (cb, *getattr(cb, "changes", ()))]
    for loader in learn.dls.loaders:
        sampler = getattr(loader, "sampler", None)
        holders += [sampler, getattr(sampler, "sampler", None)]
    found = [vars(h).get("generator") for h in holders if hasattr(h, "__dict__")]
    return [g for g in found if isinstance(g, torch.Generator)]


def _loader_generators(learn: Learner) -> list[random.Random]:
    return [loader.rng for loader in learn.dls.loaders if isinstance(getattr(loader, "rng", None), random.Random)]


def _generator_states(learn: Learner) -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": np.random.get_state(legacy=False),
        "python": random.getstate(),
        "loaders": [rng.getstate() for rng in _loader_generators(learn)],
        "own": [g.get_state() for g in _own_generators(learn)],
    }


def _set_generators(learn: Learner, states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
    np.random.set_state(states["numpy"])
    random.setstate(states["python"])
    for rng, state in zip(_loader_generators(learn), states["loaders"]):
        rng.setstate(state)
    for generator, state in zip(_own_generators(learn), states["own"]):
        generator.set_state(state)


# Plain values to JSON and tensors, and back

def _storable(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Plain tensors on the CPU; copies where two share memory, which safetensors refuses."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in tensors.items():
        value = value.detach().as_subclass(Tensor).cpu().contiguous()
        where = value.untyped_storage().data_ptr()
        plain[key] = value.clone() if where in seen else value
        seen.add(where)
    return plain


def _pack(value: Any, tensors: dict[str, Tensor], at: str) -> Any:
    """What JSON can hold; tensors go to `tensors` under the name of their place. Containers become [kind, contents]."""
    if isinstance(value, (np.bool_, np.integer, np.floating)):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return ["path", str(value)]
    if isinstance(value, np.ndarray):
        return ["array", str(value.dtype), value.tolist()]
    if isinstance(value, Tensor):
        tensors[at] = value
        return ["tensor", at]
    if isinstance(value, dict):
        return ["dict", [[_pack(k, tensors, at), _pack(v, tensors, f"{at}/{k}")] for k, v in value.items()]]
    kind = "tuple" if isinstance(value, tuple) else "L" if isinstance(value, L) else "list"
    if kind == "tuple" or isinstance(value, (list, L)):
        items = list(value)
        if len(items) > _MANY and all(isinstance(v, Tensor) and v.ndim == 0 for v in items):
            # Losses of all batches: one tensor instead of thousands.
            tensors[at] = torch.stack([v.detach().cpu().as_subclass(Tensor) for v in items])
            return ["scalars", kind, at]
        if len(items) > _MANY and all(isinstance(v, float) for v in items):
            tensors[at] = torch.tensor(items, dtype=torch.float64)
            return ["floats", kind, at]
        return [kind, [_pack(v, tensors, f"{at}/{i}") for i, v in enumerate(items)]]
    raise CheckpointError(
        f"{at} is a {type(value).__name__}, which a resume state can't hold; expected numbers, tensors, lists or dicts"
    )


_MAKE = {"tuple": tuple, "list": list, "L": L}


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, list):
        return value
    kind, *rest = value
    if kind == "path":
        return Path(rest[0])
    if kind == "array":
        return np.array(rest[1], dtype=rest[0])
    if kind == "tensor":
        return tensors[rest[0]]
    if kind == "dict":
        return {_unpack(k, tensors): _unpack(v, tensors) for k, v in rest[0]}
    if kind == "scalars":
        return _MAKE[rest[0]](list(tensors[rest[1]].unbind()))
    if kind == "floats":
        return _MAKE[rest[0]](tensors[rest[1]].tolist())
    return _MAKE[kind](_unpack(v, tensors) for v in rest[0])
