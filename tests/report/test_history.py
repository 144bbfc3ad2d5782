"""history.html, the page of a run while it trains: what it shows, and when it is drawn."""

import json
import re
import shutil
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from fatai.experiment import live_history
from fatai.experiment.live_history import UpdateHistory
from fatai.experiment.recipe import load_recipe
from fatai.inference.learner import fat_learner
from fatai.report.history import run_history, run_progress


@pytest.fixture
def unfinished(tiny_run, tmp_path):
    """A run of two folds with two epochs each, of which three epochs have ended."""
    out = tmp_path / "my <run>"
    shutil.copytree(tiny_run.out, out)
    history = (out / "fold_1" / "history.csv").read_text().splitlines()
    (out / "fold_1" / "history.csv").write_text("\n".join(history[:2]) + "\n")
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, "finished": None}))
    return out


def test_while_a_run_trains_its_page_shows_the_progress_and_the_last_epochs(unfinished):
    path = run_history(unfinished)
    assert path == unfinished / "history.html"
    page = path.read_text(encoding="utf-8")
    assert "3 of 4 epochs, about 0:00:" in page and 'id="refresh"' in page and "data-finished" not in page
    assert "my &lt;run&gt;" in page and "<run>" not in page
    last = pd.read_csv(unfinished / "fold_0" / "history.csv").iloc[-1]
    assert f"{last['train_loss']:.3f}" in page and f"{last['lwlrap']:.3f}" in page and "1 of 2</td>" in page
    assert page.count('<svg class="figure"') == 1
    outside = re.findall(r"""(?:src|href)="(?!data:|#)([^"]*)""", page)
    assert outside == [], "nothing is loaded from elsewhere"
    assert [p.name for p in unfinished.iterdir() if "history" in p.name] == ["history.html"]


def test_a_finished_run_has_a_page_that_says_so_and_rests(tiny_run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(tiny_run.out, out)
    (out / "report.html").write_text("report")
    page = run_history(out).read_text(encoding="utf-8")
    assert "data-finished" in page and "The run is done." in page and 'href="report.html"' in page
    assert 'id="refresh"' not in page and "4 of 4 epochs." in page


def test_a_run_without_epochs_has_a_page(unfinished):
    for fold in (0, 1):
        (unfinished / f"fold_{fold}" / "history.csv").unlink()
    page = run_history(unfinished).read_text(encoding="utf-8")
    assert "0 of 4 epochs." in page and "No epoch has ended yet." in page


def test_stages_without_epochs_are_listed_until_the_run_is_done(unfinished, tiny_run):
    (unfinished / "fold_1" / "history.csv").unlink()
    page = run_history(unfinished).read_text(encoding="utf-8")
    folds = re.findall(r'<th scope="row">(fold \d)</th><td class="words">\w+</td><td>(\d of \d)</td>', page)
    assert folds == [("fold 0", "2 of 2"), ("fold 1", "0 of 2")]
    shutil.copy(tiny_run.out / "manifest.json", unfinished / "manifest.json")
    assert "0 of 2" not in run_history(unfinished).read_text(encoding="utf-8")


def test_an_ensemble_lists_its_members_and_is_drawn_with_each(unfinished, tiny_run):
    out = unfinished.parent / "ensemble"
    shutil.copytree(tiny_run.out, out / "done")
    shutil.copytree(unfinished, out / "training")
    members = "".join(f'[[members]]\nname = "{name}"\nrecipe = "quick"\n' for name in ("done", "training", "later"))
    (out / "ensemble.toml").write_text(f'name = "e"\nhow = "mean"\n{members}', encoding="utf-8")
    run_history(out / "done")
    assert run_history(out / "training") == out / "training" / "history.html"
    page = (out / "history.html").read_text(encoding="utf-8")
    assert "1 of 3 members." in page and 'href="done/history.html"' in page and "done/" not in page.split("later")[1]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", page)
    assert cells[:3] == ["4 of 4", "done", "3 of 4"] and cells[3].startswith("about 0:00:")
    assert cells[4:] == ["–", "to come"]
    shutil.copy(tiny_run.out / "manifest.json", out / "manifest.json")
    page = run_history(out).read_text(encoding="utf-8")
    assert "The run is done." in page and "a run in another folder" in page, "a reused one"


def test_folds_that_are_trained_again_with_noisy_clips_have_curves_of_their_own(unfinished):
    shutil.copytree(unfinished / "fold_0", unfinished / "with_noisy" / "fold_0")
    page = run_history(unfinished).read_text(encoding="utf-8")
    assert "5 of 4 epochs, since folds are trained again." in page and "fold 0 with noisy clips" in page


@pytest.mark.parametrize(("options", "planned", "left"), [
    ({"nproc": 1}, 40, 54.0), ({"nproc": 2}, 40, 27.0), ({"nproc": 8}, 40, 27.0),
    ({"run_folds": [1], "nproc": 1}, 20, 24.0), ({}, 40, 54.0),
])
def test_the_time_to_go_is_that_of_the_epochs_that_have_ended(options, planned, left):
    recipe = load_recipe("quick").override(epochs=20)
    seconds = {"fold_0": np.full(4, 1.5)}
    tables = {name: pd.DataFrame({"stage": "fit", "epoch": range(4), "seconds": s}) for name, s in seconds.items()}
    assert run_progress(tables, recipe, {"run_options": options}) == (4, planned, 6.0, left)


def fit(small_dls, history, tmp_path, epochs=3):
    learn = fat_learner(small_dls, "m1", width=0.125, path=tmp_path)
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs, 1e-3, cbs=[UpdateHistory(tmp_path, history)])


def test_the_page_is_drawn_after_each_epoch_and_takes_a_small_share_of_quick_ones(small_dls, tmp_path, monkeypatch):
    clock, drawn = SimpleNamespace(now=0.0), []
    monkeypatch.setattr(live_history, "time", SimpleNamespace(monotonic=lambda: clock.now))
    fit(small_dls, drawn.append, tmp_path)
    assert drawn == [tmp_path] * 3
    # Drawn in a second, the next one comes twenty seconds later, or at the end.
    def draw(out):
        drawn.append(out)
        clock.now += 1
    drawn.clear()
    fit(small_dls, draw, tmp_path, epochs=4)
    assert drawn == [tmp_path] * 2


def test_a_page_that_cannot_be_drawn_is_a_warning(small_dls, tmp_path):
    def fail(out):
        raise ValueError("no page")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        fit(small_dls, fail, tmp_path, epochs=2)
    assert "cannot be drawn (ValueError: no page)" in str([str(w.message) for w in caught])
