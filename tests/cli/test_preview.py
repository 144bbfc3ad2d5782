"""The commands show-augs and lr-find, and the functions that they call."""

import itertools
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastai.callback.schedule import steep, valley
from typer.testing import CliRunner

from fatai.augment.mixup import LinearMixUp, MixUpOr
from fatai.augment.show import augmented, show_each
from fatai.augment.spec import TimeReverse
from fatai.cli import app
from fatai.data.blocks import FATDataLoaders
from fatai.errors import DataError, OptionError, UnknownNameError
from fatai.experiment.recipe import load_recipe
from fatai.experiment.run import preview_learner
from fatai.experiment.stage import stage_augmentations
from fatai.inference.learner import fat_learner
from fatai.registry import AUGMENTATIONS, MIXERS
from fatai.training.lr_finder import LRFinderResult, find_lr

RECIPE = """
name = "shown"
[clips]
crop_s = 0.5
cache = "features"
[model]
arch = "m1"
width = 0.125
[folds]
n = 2
[[stages]]
name = "first"
bs = 8
wd = 0.5
optimizer = "adam"
clip_grad_value = 1.0
loss = "focal"
mixup = { name = "mixup_or", p = 1.0 }
augment = [{ name = "time_reverse", p = 0.5 }, { name = "gain", p = 0.25, gain_db = [-6.0, -3.0] }]
[[stages]]
name = "second"
augment = [{ name = "cutout" }]
"""


@pytest.fixture
def recipe(tmp_path):
    """A recipe with random changes, as a file."""
    path = tmp_path / "my.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    plt.close("all")


def submit(*args):
    """What a command printed, or the error that it ended with."""
    ended = CliRunner().invoke(app, [str(a) for a in args])
    if ended.exception is not None:
        raise ended.exception
    return ended.stdout


# Random changes

def test_show_augs_draws_every_change_of_all_stages_and_those_that_are_asked_for(sample, recipe, tmp_path):
    printed = submit(
        "show-augs",
        sample,
        "--recipe",
        recipe,
        "--augment",
        "noise",
        "--mixup",
        "mixup",
        "-n",
        2,
        "--out",
        tmp_path / "a.png",
    )
    assert (
        printed
        == f"{tmp_path / 'a.png'}: 2 clips before and after time_reverse, gain, mixup_or, stage first, cutout, noise, "
        "mixup\n"
    )
    picture = plt.imread(tmp_path / "a.png")
    height, width = picture.shape[:2]
    assert height > width > 600, "eight rows of two clips"
    assert picture.std() > 0.1 and sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "my.toml"]


def test_show_augs_draws_the_changes_of_the_recipe_that_run_takes_without_a_name(sample, tmp_path):
    printed = submit("show-augs", sample, "-n", 1, "--crop-s", 0.5, "--out", tmp_path / "a.png")
    assert printed.endswith("1 clips before and after gain, shift, noise, spec_augment, mixup_or, stage fit\n")


@pytest.mark.slow
def test_everything_that_is_registered_can_be_shown(sample, tmp_path):
    names = [("--augment", n) for n in AUGMENTATIONS.names()] + [("--mixup", n) for n in MIXERS.names()]
    printed = submit(
        "show-augs",
        sample,
        "--recipe",
        "quick",
        *[w for pair in names for w in pair],
        "-n",
        2,
        "--out",
        tmp_path / "a.png",
    )
    assert all(name in printed for _, name in names)


@pytest.mark.parametrize("args, error, words", [
    ([], OptionError, "the recipe quick has no augmentation; name one with --augment or --mixup"),
    (["--augment", "gian"], UnknownNameError, "no augmentation named 'gian'; did you mean gain?"),
    (["--mixup", "mixup_nor"], UnknownNameError, "no mixer named 'mixup_nor'; did you mean mixup_or?"),
    (["--augment", "time_reverse", "--fold", "2"], OptionError, "fold is 2; quick has the folds 0 to 1"),
    (["--augment", "time_reverse", "-n", "61"], DataError, "there are 60 training clips.*at least n=61"),
])
def test_what_cannot_be_shown_is_an_error(sample, tmp_path, args, error, words):
    with pytest.raises(error, match=words):
        submit("show-augs", sample, "--recipe", "quick", *args, "--out", tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def pictures(row):
    """What is drawn in a row of axes."""
    return [axis.images[0].get_array() for axis in row if axis.images]


def test_each_row_shows_one_change_of_the_same_crops(small_dls):
    before = torch.get_rng_state()
    axes = show_each(
        small_dls,
        {"backwards": TimeReverse(p=0.01), "both": [TimeReverse(p=0.0), LinearMixUp(per="pair", lam=(0.25, 0.25))]},
        4,
        seed=3,
    )
    assert axes.shape == (3, 4) and torch.equal(torch.get_rng_state(), before)
    clean, backwards, mixed = (pictures(row) for row in axes)
    assert all((a[:, ::-1] == b).all() for a, b in zip(clean, backwards, strict=True)), (
        "alone, a change is shown on every clip"
    )
    assert len(mixed) == 2, "two pairs"
    np.testing.assert_allclose(mixed[0], 0.25 * clean[0] + 0.75 * clean[1], atol=1e-5)
    assert [row[0].get_ylabel() for row in axes] == [
        "before\nHz", "after backwards (p 0.01)\nHz", "after both\nHz"
    ]
    assert [row[0].get_xlabel() for row in axes] == ["", "", "seconds"] and {
        a.get_ylabel() for a in axes[:, 1:].flat if a.images
    } == {""}


def test_all_clips_share_one_scale_of_colours(small_dls):
    axes = show_each(small_dls, {"or": MixUpOr()}, 3)
    (x, _), _ = augmented(small_dls, [], 3)
    scales = {axis.images[0].get_clim() for axis in axes.flat}
    assert len(scales) == 1 and axes[0, 0].images[0].get_cmap().name == "magma", "a map for all kinds of colour vision"
    low, high = scales.pop()
    assert low == min(p.min() for p in pictures(axes[0])) and high == max(p.max() for p in pictures(axes[0]))


# A learner of one fold

def test_a_preview_learner_is_ready_for_the_first_stage(sample, recipe, tmp_path):
    learn = preview_learner(sample, load_recipe(recipe), 1, num_workers=0, cache_dir=tmp_path / "cache")
    other = preview_learner(sample, load_recipe(recipe), 0, num_workers=0, cache_dir=tmp_path / "cache")
    assert set(learn.dls.files(0)["fname"]) == set(other.dls.files(1)["fname"]), (
        "what one fold trains on, the other holds out"
    )
    assert learn.dls.train.bs == 8 and len(learn.dls.train_ds) == 60
    assert learn.wd == 0.5 and type(learn.loss_func).__name__ == "Focal"
    names = {type(cb).__name__ for cb in learn.cbs}
    assert names >= {"TimeReverse", "Gain", "MixUpOr", "ClipGradValue"} and "Cutout" not in names


def test_changes_of_a_stage_keep_their_order_and_options(recipe):
    changes = stage_augmentations(load_recipe(recipe).stages[0])
    assert [name for name, _ in changes] == ["time_reverse", "gain", "mixup_or"]
    assert changes[1][1].p == 0.25 and changes[1][1].bounds == (-6.0, -3.0)
    assert stage_augmentations(load_recipe("quick").stages[0]) == []


# Learning rates

@pytest.fixture(scope="module")
def few_dls(sample, clip_cache):
    """Loaders of small batches of short crops: a search is about the number of batches."""
    return FATDataLoaders.from_path(
        sample, channels="mono", crop_s=0.25, bs=4, valid_pct=0.25, seed=0, num_workers=0, check_files=False,
        cache="wave", cache_dir=clip_cache,
    )


def narrow(dls):
    torch.manual_seed(1)
    return fat_learner(dls, "m1", width=0.125, precision="fp32")


def test_find_lr_suggests_what_fastai_suggests(few_dls, tmp_path):
    ours, theirs = narrow(few_dls), narrow(few_dls)
    theirs.path = tmp_path
    few_dls.rng.seed(0)
    torch.manual_seed(2)
    expected = theirs.lr_find(num_it=40, show_plot=False, suggest_funcs=(valley, steep))
    few_dls.rng.seed(0)
    torch.manual_seed(2)
    found = find_lr(ours, steps=40)
    assert found.suggestions == {"valley": expected.valley, "steep": expected.steep}
    assert len(found.lrs) == len(found.losses) and found.lrs[0] == pytest.approx(1e-7)


def test_a_search_shows_its_batches(few_dls, monkeypatch, capsys):
    clock = itertools.count(0, 16)
    monkeypatch.setattr("fatai.io.progress.time", SimpleNamespace(monotonic=lambda: next(clock)))
    learn = narrow(few_dls)
    find_lr(learn, steps=20, show_progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "batches with growing learning rates: 0 of 20" and len(lines) > 6
    assert all(line.endswith(" of 20") for line in lines) and not [cb for cb in learn.cbs if "BatchProgress" in cb.name]


def test_a_search_leaves_the_learner_and_its_folder_as_they_were(few_dls, tmp_path):
    learn = narrow(few_dls)
    learn.path = tmp_path / "not there"
    before = [p.clone() for p in learn.model.state_dict().values()]
    find_lr(learn, steps=20)
    assert all(torch.equal(a, b) for a, b in zip(before, learn.model.state_dict().values(), strict=True))
    assert learn.path == tmp_path / "not there" and not learn.path.exists()


@pytest.mark.parametrize("options, words", [
    ({"steps": 19}, "steps is 19; expected at least 20"),
    ({"start_lr": 1.0, "end_lr": 0.1}, "start_lr is 1.0 and end_lr 0.1; expected 0 < start_lr < end_lr"),
    ({"start_lr": 0.0}, "start_lr is 0.0 .*expected 0 < start_lr"),
])
def test_a_search_that_cannot_be_is_refused(few_dls, options, words):
    with pytest.raises(OptionError, match=words):
        find_lr(narrow(few_dls), **options)


def test_a_loss_that_grows_at_once_is_told(few_dls):
    with pytest.raises(DataError, match=r"grew too large after \d+ of 30 batches"):
        find_lr(narrow(few_dls), steps=30, start_lr=1e6, end_lr=1e30)


@pytest.mark.parametrize("losses", [[1.0, 0.8, 0.5, 3.0, 90.0], [1.0, 1.5, 2.0, 3.0, 90.0]])
def test_the_picture_shows_the_descent_and_both_suggestions(tmp_path, losses):
    found = LRFinderResult(torch.logspace(-5, -1, 5), torch.tensor(losses), {"valley": 1e-4, "steep": 1e-3})
    found.draw(tmp_path / "lr.png", title="t")
    picture = plt.imread(tmp_path / "lr.png")[..., :3]
    for colour in ("#D55E00", "#009E73"):
        wanted = torch.tensor([int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)])
        assert ((torch.tensor(picture) - wanted).abs().amax(-1) < 0.02).sum() > 20, colour
    assert not plt.get_fignums()


def test_lr_find_prints_a_line_a_suggestion_and_repeats(sample, tmp_path):
    args = [
        "lr-find",
        sample,
        "--recipe",
        "quick",
        "--arch",
        "m1",
        "--width",
        0.125,
        "--crop-s",
        0.3,
        "--steps",
        24,
        "--bs",
        4,
        "--num-workers",
        0,
    ]
    printed = submit(*args, "--out", tmp_path / "lr.png")
    lines = printed.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["valley", "steep"] and all(
        1e-7 < float(li.split()[1]) < 10 for li in lines[:2]
    )
    assert (
        lines[2:] == [f"{tmp_path / 'lr.png'}: losses of 24 batches"] and plt.imread(tmp_path / "lr.png").shape[0] > 400
    )
    assert submit(*args).splitlines() == lines[:2], "the same seed, the same answer"
    without_recipe = [word for word in args if word not in ("--recipe", "quick")]
    assert [line.split()[0] for line in submit(*without_recipe).splitlines()] == ["valley", "steep"]
    with pytest.raises(OptionError, match="fold is 2; quick has the folds 0 to 1"):
        submit(*args, "--fold", 2)
