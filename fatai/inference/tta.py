"""Clips to probabilities: the views of each are listened to, and their answers become one.

Each clip is read once, all its views are cut from it, and views of several clips share a batch. The answer for a clip depends on its sound
alone: neither on the clips beside it, nor on its place among them, nor on the number of workers.
"""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from fastcore.basics import patch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fatai.data.blocks import ClipConfig, WaveToSpec
from fatai.data.labels import multi_hot
from fatai.errors import AudioError, DataError, OptionError
from fatai.inference.view_store import ViewWriter, views_file
from fatai.inference.predictions import Predictions
from fatai.inference.views import ClipViews, Views
from fatai.io.progress import track
from fatai.registry import VIEWS, did_you_mean
from fatai.metrics.ranking import lwlrap
from fatai.audio.waveform import trim_silence
from fatai.distributed import SINGLE_PROCESS, ProcessGroup
from fatai.callbacks.failure import split_on_oom, translate_errors
from fatai.training.learner import FatLearner
from fatai.training.precision import inference

__all__ = ["MEANS", "TagScore", "TagScores", "build_views", "predict_clips"]

MEANS = ("probs", "logits")
"""What the answers of a clip's views are averaged as: probabilities (most systems), or logits (the gold-only plan)."""
_WAITING = 8  # batches' worth of samples that wait for others of their length


def build_views(how: str, n: int | None = None, **options: Any) -> Views:
    """A kind of view by name; without `n` as many as the kind itself chooses. For kinds whose number follows from the clip, give none."""
    return VIEWS.build(how, **({} if n is None else {"n": n}), **options)


class _Views(Dataset):
    """Item i: what is heard of clip i, or the sentence that says why it cannot be read."""

    def __init__(self, clips: Sequence[str | Path | np.ndarray], settings: ClipConfig, views: Views, seed: int):
        self.clips, self.settings, self.views, self.seed = clips, settings, views, seed

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, i: int) -> ClipViews | str:
        clip = self.clips[i]
        try:
            if isinstance(clip, np.ndarray):
                wave = torch.from_numpy(np.ascontiguousarray(clip, dtype=np.float32))
                wave = wave if self.settings.trim_db is None else trim_silence(wave, self.settings.trim_db)
            else:
                wave = self.settings.read(clip)
        except AudioError as e:
            return str(e)
        # Seeded by the sound, not by the place in the list: a clip has the same views in any order and in any company.
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + zlib.crc32(wave.numpy().data)) % 2**63)
        return self.views(wave, self.settings, generator)


class ClipPredictions(NamedTuple):
    """What `predict_clips` returns: `probs` (clips, tags), NaN rows where a clip could not be read; and why, by its position."""

    probs: np.ndarray
    faults: dict[int, str]


def _batches(items: Iterable[ClipViews | str], bs: int, faults: dict[int, str]) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Pack views of equal length into batches: pairs of waves (views, samples) and their places (views, 4).

    A place is the clip, the number of the view among the clip's, its first sample and the one behind its last. A batch has at most `bs`
    views, fewer of long ones: no more samples than `bs` of the shortest so far. Views wait for others of their length; when more than a
    few batches wait, the fullest goes.
    """
    waiting: dict[int, list[tuple[Tensor, tuple[int, int, int, int]]]] = {}
    shortest = held = 0

    def batch(samples: int) -> tuple[Tensor, np.ndarray]:
        nonlocal held
        views = waiting.pop(samples)
        held -= samples * len(views)
        return torch.stack([view for view, _ in views]), np.array([place for _, place in views])

    for i, heard in enumerate(items):
        if isinstance(heard, str):
            faults[i] = heard
            continue
        for number, (view, (start, stop)) in enumerate(zip(heard.views(), heard.stretches)):
            samples = stop - start
            shortest = min(shortest or samples, samples)
            # A copy: what waits must not keep the whole of a long clip in memory.
            waiting.setdefault(samples, []).append((view.clone(), (i, number, start, stop)))
            held += samples
            if len(waiting[samples]) >= max(1, bs * shortest // samples):
                yield batch(samples)
            elif held > _WAITING * bs * shortest:
                yield batch(max(waiting, key=lambda s: s * len(waiting[s])))
    for samples in sorted(waiting):
        yield batch(samples)


def predict_clips(
    model: nn.Module,
    settings: ClipConfig,
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
    mean: str = "probs",
    keep: ViewWriter | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
    what: str = "listening",
) -> ClipPredictions:
    """Probabilities of every tag for every clip: the mean over its views.

    Memory holds one clip and a few batches of views at a time.

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
    mean
        "probs": mean of the views' probabilities. "logits": probabilities of the mean of their logits.
    keep
        What takes the probabilities of every view, from `views_file`; then no clips are shared.
    group
        Processes that share the clips, every one of which gets all answers, in the clips' order.
    """
    if group.world_size > 1 and keep is None:
        return _together(
            group,
            clips,
            n_tags,
            lambda own: predict_clips(
                model,
                settings,
                own,
                n_tags,
                views=views,
                to_spec=to_spec,
                activation=activation,
                arithmetic=arithmetic,
                device=device,
                bs=bs,
                num_workers=num_workers,
                seed=seed,
                mean=mean,
                what=what,
            ),
        )
    if mean not in MEANS:
        raise OptionError(f"mean is {mean!r}; {did_you_mean(mean, MEANS)}")
    device = (
        torch.device(device)
        if device is not None
        else next((p.device for p in model.parameters()), torch.device("cpu"))
    )
    to_spec = to_spec or WaveToSpec(settings)
    loader: DataLoader = DataLoader(_Views(clips, settings, views, seed), batch_size=None, num_workers=num_workers)
    sums, counts = torch.zeros(len(clips), n_tags, dtype=torch.float64), torch.zeros(len(clips), dtype=torch.float64)
    faults: dict[int, str] = {}
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), arithmetic or nullcontext(), translate_errors(f"a batch of {bs} views"):
            for waves, places in _batches(track(loader, what, total=len(clips)), bs, faults):
                logits = split_on_oom(
                    lambda part: model(to_spec.spec(part.to(device, non_blocking=True))).float(), waves
                )
                probs = activation(logits) if mean == "probs" or keep is not None else logits
                if keep is not None:
                    keep.add(places, probs.cpu().numpy())
                owners = torch.from_numpy(places[:, 0])
                sums.index_add_(0, owners, (probs if mean == "probs" else logits).double().cpu())
                counts.index_add_(0, owners, torch.ones(len(owners), dtype=torch.float64))
    finally:
        model.train(was_training)
    means = sums / counts[:, None]
    return ClipPredictions((means if mean == "probs" else activation(means)).numpy(), faults)


def _together(
    group: ProcessGroup, clips: Sequence[Any], n_tags: int, answer: Callable[[Sequence[Any]], ClipPredictions]
) -> ClipPredictions:
    """The answers to all clips, of which each process listens to every `size`-th."""
    mine = range(group.rank, len(clips), group.world_size)
    own = answer([clips[i] for i in mine])
    probs = torch.zeros(len(clips), n_tags, dtype=torch.float64)
    probs[mine.start::group.world_size] = torch.from_numpy(own.probs)
    faults = group.all_gather({mine[k]: fault for k, fault in own.faults.items()})
    return ClipPredictions(
        group.all_reduce(probs).numpy(), dict(sorted((i, fault) for part in faults for i, fault in part.items()))
    )


def _clips_of(learn: FatLearner, ds_idx: int, dl: Any, items: Any) -> tuple[list[str], list[str]]:
    """File names, as the table or the path gives them, and paths."""
    if items is None:
        source = learn.dls.loaders[ds_idx] if dl is None else dl
        items = source.dataset.items
    return names_and_paths(items)


def names_and_paths(items: Any) -> tuple[list[str], list[str]]:
    """Of a table with a column `path` and maybe `fname`, of a list of paths, or of one path."""
    if isinstance(items, pd.DataFrame):
        if "path" not in items.columns:
            raise DataError(
                f"the table has no column 'path', only {', '.join(map(str, items.columns))}; give it one, or a list of paths"
            )
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
    n: int | None = None,
    how: str = "even",
    items: Any = None,
    bs: int | None = None,
    num_workers: int | None = None,
    seed: int = 0,
    mean: str = "probs",
    keep_views: str | os.PathLike[str] | None = None,
    what: str = "listening",
    **options: Any,
) -> Predictions:
    """Predict clips by the mean over several views of each.

    Parameters
    ----------
    ds_idx, dl, items
        Which clips: a part of the data loaders (1 the validation part), another loader, or a list of paths or a table with a column `path`.
    n, how, options
        Number and kind (a name of `VIEWS`) of the views, and the kind's own options: `learn.tta(how="tiles", step_s=0.5)`. None is the
        kind's own number, for "even" 8.
    seed
        Of random views: the same seed hears the same stretches of the same clip.
    mean
        "probs": mean of the views' probabilities. "logits": probabilities of the mean of their logits.
    keep_views
        An .npz file for the probabilities of every single view; `read_views` reads it.

    Returns
    -------
    `Predictions` in the clips' order, every clip with a row: one that cannot be read has the share of training clips with each tag; it is
    warned of and listed in `unreadable`. Those of the validation part carry their lwlrap as `oof_score`, with which `ensemble` weighs them.
    Calibrated if the learner has a `calibration`.
    """
    names, paths = _clips_of(self, ds_idx, dl, items)
    views = build_views(how, n, **options)
    with nullcontext() if keep_views is None else views_file(keep_views, names, self.tags, self.settings.sr) as keep:
        answers = predict_clips(
            self.model,
            self.settings,
            paths,
            len(self.tags),
            views=views,
            to_spec=self.dls.to_spec,
            activation=getattr(self.loss_func, "activation", torch.sigmoid),
            arithmetic=inference(self),
            device=self.dls.device,
            bs=bs or self.dls.bs,
            num_workers=self.dls.loaders[0].fake_l.num_workers if num_workers is None else num_workers,
            seed=seed,
            mean=mean,
            keep=keep,
            group=self.group,
            what=what,
        )
    predicted = with_priors(names, self.tags, answers, self.dls.prior() if answers.faults else None)
    if self.calibration is not None:
        predicted = predicted.calibrated(self.calibration)
    if dl is None and items is None and ds_idx == 1:
        score = lwlrap(predicted.probs, multi_hot(self.dls.files(1)["labels"], self.tags))
        return replace(predicted, oof_score=None if np.isnan(score) else score)
    return predicted


def with_priors(
    names: Sequence[str], tags: Sequence[str], answers: ClipPredictions, prior: np.ndarray | None
) -> Predictions:
    """`Predictions` in which a clip that could not be read has the row `prior`, after one warning that lists such clips."""
    probs = answers.probs.copy()
    if answers.faults:
        listed = "\n".join(f"  {fault}" for fault in answers.faults.values())
        warnings.warn(
            f"{len(answers.faults)} of {len(names)} clips cannot be read; their row is the training prior of each tag:\n{listed}",
            stacklevel=3,
        )
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
def predict(
    self: FatLearner,
    item: str | Path | np.ndarray,
    *,
    n: int | None = None,
    how: str = "even",
    mean: str = "probs",
    **options: Any,
) -> TagScores:
    """Tags of one clip with their probabilities, best first.

    Parameters
    ----------
    item
        A path, or an array of samples at the learner's rate, shape (samples,).
    n, how, mean, options
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
        self.model,
        self.settings,
        [item],
        len(self.tags),
        views=build_views(how, n, **options),
        to_spec=self.dls.to_spec,
        activation=getattr(self.loss_func, "activation", torch.sigmoid),
        arithmetic=inference(self),
        device=self.dls.device,
        mean=mean,
    )
    if answers.faults:
        raise AudioError(answers.faults[0])
    probs = answers.probs if self.calibration is None else self.calibration.select(self.tags).apply(answers.probs)
    order = np.argsort(-probs[0], kind="stable")
    return TagScores(TagScore(self.tags[i], float(probs[0, i])) for i in order)
