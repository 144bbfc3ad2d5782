"""A recipe and a data folder to a run folder: folds, out-of-fold and test predictions, a checked submission, a manifest."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.callback import schedule as _  # noqa: F401 - gives learners fit_one_cycle
from fastai.data.core import TfmdDL
from fastai.optimizer import Adam
from fastai.torch_core import set_seed

from fatai import __version__
from fatai.atomic import write_text_atomic
from fatai.data.blocks import FATDataLoaders, WaveToSpec, readable
from fatai.data.fat2019 import FATData, read_layout
from fatai.data.folds import make_folds
from fatai.data.labels import multi_hot
from fatai.data.sampling import Balanced, SampledDL
from fatai.errors import CheckpointError, DataError
from fatai.infer.ensemble import ensemble
from fatai.infer.predictions import Predictions
from fatai.infer.tta import predict_clips, with_priors
from fatai.recipes.recipe import Recipe, Stage, built, load_recipe
from fatai.registry import AUGMENTATIONS, MIXERS, SCHEDULES, VIEWS
from fatai.score.ranking import lwlrap
from fatai.train.callbacks import ClampGradients, FollowSchedule, KeepBest, StopOnNaN, quiet_unless_terminal
from fatai.train.crossval import fit_folds, load_weights, notes_of, save_weights
from fatai.train.history import History
from fatai.train.learner import FatLearner, fat_learner, named_loss, named_model
from fatai.train.precision import autocast_for, fast_layout

__all__ = ["RunResult", "fit_stage", "predict_with_run", "run_recipe"]

# The arithmetic of torch's Adam, which the published systems use; fastai's own defaults are sqr_mom 0.99 and eps 1e-5.
_OPTIMIZERS = {
    "adam": partial(Adam, decouple_wd=False, sqr_mom=0.999, eps=1e-8),
    "adamw": partial(Adam, decouple_wd=True, sqr_mom=0.999, eps=1e-8),
}
_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class RunResult:
    """What a run made: its folder, lwlrap by fold and out of fold, the predictions, and the training files that could not be read."""

    out: Path
    fold_scores: dict[int, float]
    oof_score: float
    oof: Predictions
    test: Predictions | None
    unreadable: tuple[str, ...]
    seconds: float


def fit_stage(learn: FatLearner, stage: Stage, *, first: bool = True) -> FatLearner:
    """Fit a learner as a stage of a recipe says; its `path` takes history.csv and, while it lasts, the best weights.

    Parameters
    ----------
    first
        Whether history.csv begins anew.
    """
    learn.path.mkdir(parents=True, exist_ok=True)
    learn.loss_func = named_loss(stage.loss, learn.model, **stage.loss_options)
    learn.opt_func, learn.no_decay, learn.wd, learn.opt = _OPTIMIZERS[stage.optimizer], stage.no_decay, stage.wd, None
    # Those that write files go to this fit alone: among the learner's own callbacks they would overwrite them at every validate().
    cbs: list[Any] = [StopOnNaN(), History(learn.path / "history.csv", stage.name, append=not first)]
    cbs += [built(AUGMENTATIONS, change) for change in stage.augment]
    if stage.mixup is not None:
        cbs.append(built(MIXERS, stage.mixup))
    if stage.clamp_gradients is not None:
        cbs.append(ClampGradients(stage.clamp_gradients))
    checkpoints = learn.path / learn.model_dir
    if stage.keep == "best" and len(learn.dls.valid_ds):
        # A file left by another fit would be loaded if the score were never a number.
        (checkpoints / "best.pth").unlink(missing_ok=True)
        cbs.append(KeepBest(monitor="lwlrap", fname="best"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*numpy.core.*", category=DeprecationWarning)
        if stage.schedule == "one_cycle":
            learn.fit_one_cycle(stage.epochs, stage.lr, cbs=cbs, **stage.schedule_options)
        else:
            schedule = SCHEDULES.build(stage.schedule, stage.epochs, stage.lr, **stage.schedule_options)
            learn.fit(stage.epochs, stage.lr, cbs=[*cbs, FollowSchedule(schedule)])
    shutil.rmtree(checkpoints, ignore_errors=True)
    return learn


def run_recipe(
    data: str | Path | FATData,
    recipe: str | Path | Recipe,
    out: str | Path,
    *,
    only: Sequence[int] | None = None,
    predict_test: bool = True,
    num_workers: int | None = None,
    cache_dir: str | Path | None = None,
    command: str = "",
    say: Callable[[str], None] = print,
) -> RunResult:
    """Train the folds of a recipe and write a run folder.

    Parameters
    ----------
    data
        A folder in the competition's layout, or what `read_layout` made of it.
    recipe
        A recipe, its name, or a path that ends in .toml.
    out
        The run folder; it must not hold a run yet.
    only
        Folds to train; all if None.
    predict_test
        Whether to predict the test part, where there is one, and to write the submission.
    cache_dir
        Where a recipe with `clips.cache` keeps its cache; None is the user's cache folder.
    command
        What the user typed, for the manifest.
    say
        What takes a line of progress.

    Raises
    ------
    DataError, RecipeError, LabelError
        Each says what is wrong with the data or the recipe.
    """
    started = time.monotonic()
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    data = data if isinstance(data, FATData) else read_layout(data, corrupted=recipe.clips.corrupted)
    out = _new_folder(Path(out))
    settings = recipe.settings()
    table, unreadable = _training_table(data, recipe)
    targ = multi_hot(table["labels"], data.tags)
    folds = make_folds(targ, how=recipe.folds.how, n=recipe.folds.n, seed=recipe.folds.seed)
    write_text_atomic(out / "recipe.toml", recipe.resolved())
    write_text_atomic(out / "folds.csv", pd.DataFrame({"fname": table["fname"], "fold": folds}).to_csv(index=False, lineterminator="\n"))
    say(f"{recipe.name}: {len(table)} clips, {len(data.tags)} tags, {recipe.folds.n} folds")
    test_parts: list[Predictions] = []

    def fit_fold(fold: int, fold_table: pd.DataFrame) -> np.ndarray:
        say(f"fold {fold}: training on {int((folds != fold).sum())} clips, held out {int((folds == fold).sum())}")
        # Before the loaders: they draw their shuffle's seed when they are made.
        set_seed(recipe.seed + fold, reproducible=True)
        first = recipe.stages[0]
        dls = FATDataLoaders.from_df(
            fold_table, vocab=data.tags, fn_col="fname", path_col="path", label_col="labels", valid_col="is_valid", settings=settings,
            bs=first.bs, num_workers=num_workers, check_files=False, cache=recipe.clips.cache, cache_dir=cache_dir,
        )
        learn = quiet_unless_terminal(fat_learner(
            dls, recipe.model.arch, width=recipe.model.width, arch_options=recipe.model.options, precision=recipe.precision,
            path=out / f"fold_{fold}",
        ))
        for stage in recipe.stages:
            _set_batches(learn, stage)
            fit_stage(learn, stage, first=stage is first)
        notes = {"tags": list(data.tags), "in_channels": dls.to_spec.n_channels, "prior": [float(p) for p in dls.prior()]}
        save_weights(out / f"fold_{fold}" / _WEIGHTS, learn.model, {"fatai": json.dumps(notes)})
        listen = {"how": recipe.listen.how, "n": recipe.listen.n, "seed": recipe.seed}
        held_out = learn.tta(items=fold_table[fold_table["is_valid"]], what=f"fold {fold}: held-out clips", **listen)
        if predict_test and len(data.test):
            test_parts.append(learn.tta(items=data.test, what=f"fold {fold}: test clips", **listen))
        score = lwlrap(held_out.probs, targ[folds == fold])
        say(f"fold {fold}: lwlrap {score:.4f}")
        return held_out.probs

    folded = fit_folds(table, folds, len(data.tags), fit_fold, lambda probs, rows: lwlrap(probs, targ[rows]), only=only)
    trained = ~np.isnan(folded.oof).any(axis=1)
    oof = Predictions(tuple(table["fname"][trained]), data.tags, folded.oof[trained])
    oof.to_csv(out / "oof.csv")
    oof_score = lwlrap(oof.probs, targ[trained])
    say(f"out of fold: lwlrap {oof_score:.4f} over {int(trained.sum())} clips")
    test = _write_test(out, data, test_parts, say) if test_parts else None
    result = RunResult(out, folded.scores, oof_score, oof, test, unreadable, time.monotonic() - started)
    write_text_atomic(out / "manifest.json", json.dumps(_manifest(data, recipe, result, command), indent=2) + "\n")
    say(f"{out}: done in {result.seconds:.0f} s")
    return result


def _new_folder(out: Path) -> Path:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists already and is not empty; choose another folder for this run, or remove it")
    out.mkdir(parents=True, exist_ok=True)
    return out


def _training_table(data: FATData, recipe: Recipe) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The curated clips that can be read, and the names of those that can't."""
    table = data.curated
    good, faults = readable([Path(p) for p in table["path"]])
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults)
        warnings.warn(f"{len(faults)} training files cannot be read and are left out:\n{listed}", stacklevel=3)
    if good.sum() < recipe.folds.n:
        raise DataError(f"{data.path} has {int(good.sum())} readable curated clips, too few for {recipe.folds.n} folds")
    return table[good].reset_index(drop=True), tuple(table["fname"][~good])


def _set_batches(learn: FatLearner, stage: Stage) -> None:
    """Loaders that make a stage's batches."""
    bs = max(1, min(stage.bs, len(learn.dls.train_ds)))
    for dl in learn.dls.loaders:
        dl.bs = bs
    train = learn.dls.train
    if stage.sampling == "balanced":
        targ = multi_hot(learn.dls.files(0)["labels"], learn.dls.tags)
        learn.dls.loaders[0] = train.new(cls=SampledDL, sampler=Balanced(targ, **stage.sampling_options), bs=bs)
    elif isinstance(train, SampledDL):
        learn.dls.loaders[0] = train.new(cls=TfmdDL, bs=bs, shuffle=True, drop_last=True, n=None)


def _write_test(out: Path, data: FATData, parts: list[Predictions], say: Callable[[str], None]) -> Predictions:
    test = ensemble(parts, how="mean")
    test.to_csv(out / "test.csv")
    if data.sample is not None:
        test.to_submission(out / "submission.csv", sample=data.sample)
        say(f"submission: {out / 'submission.csv'}, {len(test.fnames)} clips, fits {data.sample.name}")
    return test


def _manifest(data: FATData, recipe: Recipe, result: RunResult, command: str) -> dict[str, Any]:
    """Enough to know what made a run, and to make it again."""
    packages = ("fatai", "fastai", "torch", "numpy", "pandas", "librosa", "soundfile", "soxr", "scikit-learn", "timm")
    return {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "command": command,
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(result.seconds, 1),
        "tags": list(data.tags),
        "lwlrap": {"folds": {str(k): v for k, v in result.fold_scores.items()}, "oof": result.oof_score},
        "unreadable": {"train": list(result.unreadable), "test": list(result.test.unreadable) if result.test else []},
        "data": {"folder": data.path.name, "digest": _digest(data), "curated": len(data.curated), "test": len(data.test)},
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in packages}},
        "machine": {"system": platform.platform(), "device": _device(), "threads": torch.get_num_threads()},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return __version__ if package == "fatai" else "not installed"


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _digest(data: FATData) -> str:
    """SHA-256 over the names, sizes and labels of the clips: changes when the data do, without reading all sound."""
    digest = hashlib.sha256()
    for part in (data.curated, data.noisy, data.test):
        if part is None:
            continue
        labels = part["labels"] if "labels" in part.columns else [()] * len(part)
        for fname, path, cell in zip(part["fname"], part["path"], labels):
            size = Path(path).stat().st_size if Path(path).is_file() else -1
            digest.update(f"{fname}\0{size}\0{','.join(cell)}\n".encode())
    return digest.hexdigest()


def predict_with_run(run: str | Path, items: pd.DataFrame | Sequence[str | Path], *, bs: int = 64, num_workers: int = 0) -> Predictions:
    """Predict clips with every fold of a finished run, averaged.

    Parameters
    ----------
    items
        Paths, or a table with columns fname and path.

    Raises
    ------
    CheckpointError
        If `run` is no run folder, or its weights don't fit its recipe.
    """
    run = Path(run)
    weights = sorted(run.glob(f"fold_*/{_WEIGHTS}"))
    if not (run / "recipe.toml").is_file() or not weights:
        raise CheckpointError(f"{run} is no finished run; expected recipe.toml and fold_0/{_WEIGHTS} in it, as fatai-submit run makes them")
    recipe = load_recipe(run / "recipe.toml")
    if isinstance(items, pd.DataFrame):
        names, paths = [str(n) for n in items["fname"]], [str(p) for p in items["path"]]
    else:
        names, paths = [Path(p).name for p in items], [str(p) for p in items]
    settings, listen = recipe.settings(), recipe.listen
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parts = []
    for path in weights:
        tags, in_channels, prior = _notes(path)
        network = recipe.model
        model = named_model(network.arch, len(tags), in_channels, settings.front_end, width=network.width, options=network.options)
        load_weights(path, model)
        model = fast_layout(model.to(device), device, recipe.precision)
        answers = predict_clips(
            model, settings, paths, len(tags), views=VIEWS.build(listen.how, n=listen.n), to_spec=WaveToSpec(settings),
            arithmetic=autocast_for(device, recipe.precision), device=device, bs=bs, num_workers=num_workers, seed=recipe.seed,
            what=path.parent.name.replace("_", " "),
        )
        parts.append(with_priors(names, tags, answers, prior))
    return ensemble(parts, how="mean")


def _notes(path: Path) -> tuple[list[str], int, np.ndarray]:
    """Tags, channels and prior that stand beside the weights; the file may come from a stranger, so nothing is taken on trust."""
    try:
        notes = json.loads(notes_of(path)["fatai"])
        tags, in_channels, prior = [str(t) for t in notes["tags"]], int(notes["in_channels"]), np.array(notes["prior"], dtype=np.float64)
    except (KeyError, TypeError, ValueError) as e:
        raise CheckpointError(f"{path} does not say its tags, channels and prior ({e}); expected weights of fatai-submit run") from None
    if not 0 < len(tags) <= 100_000 or not 0 < in_channels <= 64 or prior.shape != (len(tags),):
        raise CheckpointError(f"{path} names {len(tags)} tags, {in_channels} channels and {prior.shape} priors; these don't go together")
    return tags, in_channels, prior
