"""Views of a clip to probabilities: what is listened to, and how the answers become one.

A *view* is a stretch of `crop_s` seconds. A kind of view is a function of (wave, settings, generator) that returns (views, samples):
each clip is read once, all its views are cut from it, and views of several clips share a batch. A clip no longer than a crop has one
view, whatever was asked for, because all would be the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from fastcore.basics import patch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fatai.data.blocks import ClipSettings, WaveToSpec
from fatai.errors import AudioError, DataError, OptionError
from fatai.infer.predictions import Predictions
from fatai.progress import track
from fatai.registry import VIEWS
from fatai.sound.waveform import fit_length, trim_silence
from fatai.train.learner import FatLearner
from fatai.train.precision import inference

__all__ = ["TagScore", "TagScores", "even_views", "predict_clips", "random_views", "whole_view"]

Views = Callable[[Tensor, ClipSettings, torch.Generator], Tensor]
_WAITING = 8  # batches' worth of samples that wait for others of their length


def _cut(wave: Tensor, starts: Iterable[int], size: int) -> Tensor:
    return torch.stack([wave[s:s + size] for s in starts])


def _checked(n: int) -> None:
    if n < 1:
        raise OptionError(f"n is {n}; expected at least one view")


@VIEWS.register("random", source="FAT2019 9th place kernel: 5 views while training, 25 at the end")
def random_views(n: int = 25) -> Views:
    """`n` crops that start anywhere, drawn for each clip from its own seed."""
    _checked(n)

    def views(wave: Tensor, settings: ClipSettings, generator: torch.Generator) -> Tensor:
        filled, size = settings.fit(wave), settings.crop_samples
        last = filled.shape[-1] - size
        starts = torch.randint(last + 1, (n if last else 1,), generator=generator)
        return _cut(filled, starts.tolist(), size)

    return views


@VIEWS.register("even", source="FAT2019 36th place repository: 8 crops from the first frame to the last")
def even_views(n: int = 8) -> Views:
    """`n` crops evenly spaced from the start to the end; one alone is the middle."""
    _checked(n)

    def views(wave: Tensor, settings: ClipSettings, generator: torch.Generator) -> Tensor:
        filled, size = settings.fit(wave), settings.crop_samples
        last = filled.shape[-1] - size
        if last == 0 or n == 1:
            return _cut(filled, [last // 2], size)
        return _cut(filled, [round(last * i / (n - 1)) for i in range(n)], size)

    return views


@VIEWS.register("whole", source="common practice of full-length evaluation: PANNs, FAT2019 3rd place")
def whole_view(n: int = 1, *, step_s: float = 0.5) -> Views:
    """The whole clip, filled up to the next multiple of `step_s` seconds; `n` has to be 1.

    Clips of the same filled length share a batch, and what a clip is filled up to depends on itself alone: so its answer doesn't change
    with its neighbours, and no more than `step_s` of it is filling.
    """
    _checked(n)
    if n != 1:
        raise OptionError(f"n is {n}; expected 1: a clip has one whole")
    if not step_s > 0:
        raise OptionError(f"step_s is {step_s}; expected seconds above 0")

    def views(wave: Tensor, settings: ClipSettings, generator: torch.Generator) -> Tensor:
        filled = settings.fit(wave)
        step = max(1, round(step_s * settings.sr))
        return fit_length(filled, -(-filled.shape[-1] // step) * step, settings.short_fill)[None]

    return views


class _Views(Dataset):
    """Item i: all views of clip i, shape (views, samples), or the sentence that says why it cannot be read."""

    def __init__(self, clips: Sequence[str | Path | np.ndarray], settings: ClipSettings, views: Views, seed: int):
        self.clips, self.settings, self.views, self.seed = clips, settings, views, seed

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, i: int) -> Tensor | str:
        clip = self.clips[i]
        try:
            if isinstance(clip, np.ndarray):
                wave = torch.from_numpy(np.ascontiguousarray(clip, dtype=np.float32))
                wave = wave if self.settings.trim_db is None else trim_silence(wave, self.settings.trim_db)
            else:
                wave = self.settings.read(clip)
        except AudioError as e:
            return str(e)
        # One generator for each clip: its views don't depend on which clips come before it, nor on the number of workers.
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + i) % 2**63)
        return self.views(wave, self.settings, generator)


class ClipAnswers(NamedTuple):
    """What `predict_clips` returns: `probs` (clips, tags), NaN rows where a clip could not be read; and why, by its position."""

    probs: np.ndarray
    faults: dict[int, str]


def _batches(items: Iterable[Tensor | str], bs: int, faults: dict[int, str]) -> Iterator[tuple[Tensor, Tensor]]:
    """Pack views of equal length into batches: pairs of waves (views, samples) and the clip each view belongs to.

    A batch has at most `bs` views, fewer of long ones: no more samples than `bs` of the shortest so far. Views wait for others of their
    length; when more than a few batches wait, the fullest goes.
    """
    waiting: dict[int, list[tuple[Tensor, int]]] = {}
    shortest = held = 0

    def batch(samples: int) -> tuple[Tensor, Tensor]:
        nonlocal held
        views = waiting.pop(samples)
        held -= samples * len(views)
        return torch.stack([view for view, _ in views]), torch.tensor([owner for _, owner in views])

    for i, views in enumerate(items):
        if isinstance(views, str):
            faults[i] = views
            continue
        for view in views:
            samples = len(view)
            shortest = min(shortest or samples, samples)
            waiting.setdefault(samples, []).append((view, i))
            held += samples
            if len(waiting[samples]) >= max(1, bs * shortest // samples):
                yield batch(samples)
            elif held > _WAITING * bs * shortest:
                yield batch(max(waiting, key=lambda s: s * len(waiting[s])))
    for samples in sorted(waiting):
        yield batch(samples)


def predict_clips(
    model: nn.Module,
    settings: ClipSettings,
    clips: Sequence[str | Path | np.ndarray],
    n_tags: int,
    *,
    views: Views,
    to_spec: WaveToSpec | None = None,
    activation: Callable[[Tensor], Tensor] = torch.sigmoid,
    arithmetic: AbstractContextManager | None = None,
    device: torch.device | str | None = None,
    bs: int = 64,
    num_workers: int = 0,
    seed: int = 0,
    what: str = "listening",
) -> ClipAnswers:
    """Probabilities of every tag for every clip: the mean over its views.

    Memory holds one batch of views at a time. The answer for a clip depends neither on the others nor on `num_workers`.

    Parameters
    ----------
    clips
        Paths, or arrays of samples at the settings' rate.
    views
        What `VIEWS.build(...)` returns.
    arithmetic
        Context in which the network runs (mixed precision); float32 if None.
    bs
        Views in a batch.
    """
    device = torch.device(device) if device is not None else next((p.device for p in model.parameters()), torch.device("cpu"))
    to_spec = to_spec or WaveToSpec(settings)
    loader: DataLoader = DataLoader(_Views(clips, settings, views, seed), batch_size=None, num_workers=num_workers)
    sums, counts = torch.zeros(len(clips), n_tags, dtype=torch.float64), torch.zeros(len(clips), dtype=torch.float64)
    faults: dict[int, str] = {}
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), arithmetic or nullcontext():
            for waves, owners in _batches(track(loader, what, total=len(clips)), bs, faults):
                logits = model(to_spec.spec(waves.to(device, non_blocking=True)))
                probs = activation(logits.float()).double().cpu()
                sums.index_add_(0, owners, probs)
                counts.index_add_(0, owners, torch.ones(len(owners), dtype=torch.float64))
    finally:
        model.train(was_training)
    return ClipAnswers((sums / counts[:, None]).numpy(), faults)


def _clips_of(learn: FatLearner, ds_idx: int, dl: Any, items: Any) -> tuple[list[str], list[str]]:
    """File names, as the table or the path gives them, and paths."""
    if items is None:
        source = learn.dls.loaders[ds_idx] if dl is None else dl
        items = source.dataset.items
    if isinstance(items, pd.DataFrame):
        if "path" not in items.columns:
            raise DataError(f"the table has no column 'path', only {', '.join(map(str, items.columns))}; give it one, or a list of paths")
        paths = [str(p) for p in items["path"]]
        names = [str(n) for n in items["fname"]] if "fname" in items.columns else [Path(p).name for p in paths]
        return names, paths
    if isinstance(items, (str, Path)):
        items = [items]
    return [Path(p).name for p in items], [str(p) for p in items]


@patch
def tta(
    self: FatLearner,
    ds_idx: int = 1,
    dl: Any = None,
    *,
    n: int = 8,
    how: str = "even",
    items: Any = None,
    bs: int | None = None,
    num_workers: int | None = None,
    seed: int = 0,
    what: str = "listening",
) -> Predictions:
    """Predict clips by the mean over several views of each.

    Parameters
    ----------
    ds_idx, dl, items
        Which clips: a part of the data loaders (1 the validation part), another loader, or a list of paths or a table with a column `path`.
    n, how
        Number and kind (a name of `VIEWS`) of the views.
    seed
        Of random views: the same seed hears the same.

    Returns
    -------
    `Predictions` in the clips' order, every clip with a row: one that cannot be read has the share of training clips with each tag; it is
    warned of and listed in `unreadable`.
    """
    names, paths = _clips_of(self, ds_idx, dl, items)
    answers = predict_clips(
        self.model, self.settings, paths, len(self.tags), views=VIEWS.build(how, n=n), to_spec=self.dls.to_spec,
        activation=getattr(self.loss_func, "activation", torch.sigmoid), arithmetic=inference(self), device=self.dls.device,
        bs=bs or self.dls.bs, num_workers=self.dls.loaders[0].num_workers if num_workers is None else num_workers, seed=seed, what=what,
    )
    return with_priors(names, self.tags, answers, self.dls.prior() if answers.faults else None)


def with_priors(names: Sequence[str], tags: Sequence[str], answers: ClipAnswers, prior: np.ndarray | None) -> Predictions:
    """`Predictions` in which a clip that could not be read has the row `prior`, after one warning that lists such clips."""
    probs = answers.probs.copy()
    if answers.faults:
        listed = "\n".join(f"  {fault}" for fault in answers.faults.values())
        warnings.warn(f"{len(answers.faults)} of {len(names)} clips cannot be read; their row is the training prior of each tag:\n{listed}",
                      stacklevel=3)
        probs[list(answers.faults)] = prior
    return Predictions(tuple(names), tuple(tags), probs, unreadable=tuple(names[i] for i in answers.faults))


class TagScore(NamedTuple):
    """A tag and its probability."""

    tag: str
    prob: float


class TagScores(list):
    """Tags with their probabilities, best first; prints as a short table."""

    def __repr__(self) -> str:
        return "\n".join(f"{prob:6.1%}  {tag}" for tag, prob in self[:10]) + ("\n..." if len(self) > 10 else "")


@patch
def predict(self: FatLearner, item: str | Path | np.ndarray, *, n: int = 8, how: str = "even") -> TagScores:
    """Tags of one clip with their probabilities, best first.

    Parameters
    ----------
    item
        A path, or an array of samples at the learner's rate, shape (samples,).
    n, how
        Views, as in `tta`.

    Returns
    -------
    A list of all tags as `TagScore(tag, prob)`; never empty, however unsure the model is.

    Raises
    ------
    AudioError
        If the file cannot be read.
    """
    answers = predict_clips(
        self.model, self.settings, [item], len(self.tags), views=VIEWS.build(how, n=n), to_spec=self.dls.to_spec,
        activation=getattr(self.loss_func, "activation", torch.sigmoid), arithmetic=inference(self), device=self.dls.device,
    )
    if answers.faults:
        raise AudioError(answers.faults[0])
    order = np.argsort(-answers.probs[0], kind="stable")
    return TagScores(TagScore(self.tags[i], float(answers.probs[0, i])) for i in order)
