"""The page of a search: what it states, and that it is complete without a network whatever was found."""

import re

import numpy as np
import pytest

from fatai.experiment.recipe import load_recipe
from fatai.experiment.search_space import Dimension, make_space
from fatai.experiment.study import Trial
from fatai.experiment.tune import OuterScores, TuneResult
from fatai.metrics.bootstrap import Difference, Interval
from fatai.report.tuning import tune_report

BASE = load_recipe("quick")
DIMENSIONS = [
    Dimension(key="stages.lr", factor=4, log=True),
    Dimension(key="stages.loss", choices=["focal"]),
    Dimension(key="clips.crop_s", factor=2),
]
SPACE = make_space(DIMENSIONS, BASE)
BOTH = Interval(0.5, 0.4, 0.6, 0.95), Interval(0.52, 0.42, 0.62, 0.95)
OUTER = OuterScores(29, *BOTH, Difference(0.02, -0.1, 0.1, 0.95))


def trial(number, state, score, lr=0.003, loss="bce", note=""):
    labels = {"stages.lr": lr, "stages.loss": loss, "clips.crop_s": 1.5}
    return Trial(number, state, score, labels, 3.0, {1: 0.2, 4: 0.25}, note)


TRIALS = (trial(0, "complete", 0.61), trial(1, "pruned", None, 0.01), trial(2, "complete", 0.65, 0.002, "focal"),
          trial(3, "failed", None, note="<script>alert(1)</script>"), trial(4, "interrupted", None))


def page(tmp_path, **changed):
    values = {
        "trials": TRIALS, "best": TRIALS[2], "importances": {"stages.lr": 0.8, "stages.loss": 0.2}, "outer": OUTER,
        **changed,
    }
    return tune_report(TuneResult(tmp_path, BASE, BASE, SPACE, **values)).read_text(encoding="utf-8")


def test_the_page_gives_both_scores_and_their_difference(tmp_path):
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page(tmp_path)))
    assert "5 trials: 2 complete, 1 pruned, 1 failed, 1 interrupted" in text
    assert "0.520 lwlrap of tuned.toml on 29 outer clips" in text and "0.500 lwlrap of quick on the same clips" in text
    assert "0.020 better, 95 % interval -0.100 to 0.100" in text and "these clips show no difference" in text


def test_the_page_is_one_file_that_asks_nothing_from_elsewhere(tmp_path):
    text = page(tmp_path)
    assert text.count('<svg class="figure"') == 4 and not re.search(r'(src|href)="(?!data:|#)', text)
    assert "http:" not in text and "https:" not in text and "$" not in text, "no mathematics that browsers don't draw"
    assert page(tmp_path) == text


@pytest.mark.parametrize("trials", [(), TRIALS[1:2], TRIALS[:1], TRIALS[3:]])
def test_a_search_that_was_stopped_early_has_a_page_too(trials, tmp_path):
    text = page(tmp_path, trials=trials, best=None, importances={}, outer=None)
    assert "Not scored on the outer clips" in text and "<script" not in text


def test_many_trials_have_a_row_each(tmp_path):
    rng = np.random.default_rng(0)
    trials = tuple(trial(k, "complete", float(rng.random()), float(rng.uniform(0.001, 0.01))) for k in range(60))
    assert page(tmp_path, trials=trials, best=trials[0]).count('<th scope="row">') == 60
