"""Comparison of runs."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from fatai.data.labels import multi_hot, read_labels
from fatai.errors import CheckpointError, OptionError
from fatai.experiment.compare import ComparedRun, Comparison, compare_runs
from fatai.inference.predictions import Predictions
from fatai.metrics.bootstrap import Difference, Interval, score_difference, score_interval
from fatai.models import count_parameters, create_model


@pytest.fixture(scope="module")
def runs(tiny_run, sample, tmp_path_factory):
    """A run, one with nearly the true labels as predictions, and one without the duration in its manifest."""
    folder = tmp_path_factory.mktemp("compared")
    oof = Predictions.from_csv(tiny_run.out / "oof.csv")
    labels = read_labels(sample / "train_curated.csv")
    targ = multi_hot(labels.set_index("fname")["labels"].loc[list(oof.fnames)], oof.tags)
    for name, weight in [("plain", 0.0), ("better", 0.8), ("cut off", 0.0)]:
        shutil.copytree(tiny_run.out, folder / name)
        probs = np.clip((1 - weight) * oof.probs + weight * targ, 0, 1)
        Predictions(oof.fnames, oof.tags, probs).to_csv(folder / name / "oof.csv")
    manifest = json.loads((folder / "cut off" / "manifest.json").read_text())
    del manifest["seconds"]
    (folder / "cut off" / "manifest.json").write_text(json.dumps(manifest))
    return [folder / name for name in ("plain", "better", "cut off")], targ


def test_the_best_run_comes_first_and_the_others_are_compared_with_it(runs, sample):
    folders, targ = runs
    compared = compare_runs(folders, sample / "train_curated.csv", n_resamples=200)
    assert [row.name for row in compared.rows] == [str(folders[k]) for k in (1, 0, 2)] and compared.clips == 120
    plain, better = (Predictions.from_csv(folders[k] / "oof.csv").probs for k in (0, 1))
    assert compared.rows[0].score == score_interval(better, targ, n_resamples=200)
    assert compared.rows[0].against_best is None
    assert (
        compared.rows[1].against_best == score_difference(plain, better, targ, n_resamples=200)
        and compared.rows[1].against_best.is_significant
    )
    assert compared.rows[0].parameters == count_parameters(create_model("m1", 10, 1, width=0.125))
    assert compared.rows[0].seconds > 0 and compared.rows[2].seconds is None


def test_the_command_prints_a_row_per_run(runs, sample, main_with):
    folders, _ = runs
    ended = main_with("score", *folders, "--truth", sample / "train_curated.csv")
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert "lwlrap" in lines[0] and len(lines) == 5 and lines[1].startswith(str(folders[1]))
    assert " *" in lines[2] and "   -  " in lines[3] and "120 clips" in lines[4]
    ended = main_with("score", *folders[:2], "--truth", sample / "truth" / "test.csv", "--part", "test")
    assert ended.returncode == 0 and "60 clips" in ended.stdout, ended.stderr


def test_differences_that_round_to_zero_have_no_minus():
    score, difference = Interval(0.5, 0.4, 0.6, 0.95), Difference(2e-5, -4e-4, 3e-4, 0.95)
    rows = (ComparedRun("a", score, None, None, 1), ComparedRun("b", score, difference, None, 1))
    assert "  0.0000, 0.000 to 0.000  " in str(Comparison(rows, 10))


def test_unfinished_runs_and_unknown_parts_are_refused(runs, sample, tmp_path):
    (tmp_path / "recipe.toml").write_text('name = "x"')
    with pytest.raises(CheckpointError, match="holds no oof.csv"):
        compare_runs([tmp_path], sample / "train_curated.csv")
    with pytest.raises(OptionError, match="expected oof or test"):
        compare_runs(runs[0], sample / "train_curated.csv", part="train")
    other = pd.DataFrame({"fname": ["nobody.wav"], "labels": ["Rain"]})
    with pytest.raises(Exception, match="no clip is in the truth"):
        compare_runs(runs[0], other)
