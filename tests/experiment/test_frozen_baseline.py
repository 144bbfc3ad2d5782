"""The frozen network beside the score of `default`: scored on the same folds, and only where the weights are."""

from dataclasses import replace

import numpy as np
import pytest

from fatai.data.datasets.fat2019 import load_dataset
from fatai.data.labels import multi_hot
from fatai.experiment.adapt import adapt_recipe
from fatai.experiment.frozen_baseline import frozen_baseline, probe_curve, run_curve
from fatai.experiment.recipe import load_recipe
from fatai.experiment.run_result import RunSetup, _frozen_results
from fatai.inference.embeddings import Embeddings
from fatai.metrics.ranking import lwlrap
from fatai.models import create_model
from fatai.models.checkpoint import save_checkpoint
from fatai.models.weights import WEIGHTS


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A file of random weights in place of the published one of mn04."""
    monkeypatch.setenv("FATAI_WEIGHTS", str(tmp_path))
    monkeypatch.setitem(WEIGHTS, "mn04_as", replace(WEIGHTS["mn04_as"], checksum=""))
    save_checkpoint(tmp_path / WEIGHTS["mn04_as"].file_name, create_model("mn04", 527).state_dict())


@pytest.fixture
def few(sample):
    """Every tenth curated clip of the bundled data, without noisy and test clips."""
    data = load_dataset(sample)
    return replace(data, curated=data.curated.iloc[::10].reset_index(drop=True), noisy=None, test=data.test.iloc[:0])


@pytest.fixture
def features(few, monkeypatch):
    """Noise in place of the features of a network."""
    values = np.random.default_rng(0).standard_normal((len(few.curated), 6)).astype(np.float32)
    monkeypatch.setattr(
        "fatai.experiment.frozen_baseline.embed_clips",
        lambda model, settings, rows, **options: Embeddings(tuple(rows["fname"]), values),
    )


def test_the_baseline_predicts_each_clip_by_the_other_folds(few, weights, features):
    folds = np.arange(len(few.curated)) % 3
    found = frozen_baseline(few.curated, folds, few.tags)
    targ = multi_hot(few.curated["labels"], few.tags)
    assert 0 < found.score < lwlrap(targ.astype(float), targ), "noise predicts nothing out of fold"
    assert str(replace(found, score=0.9374, seconds=40.2)) == (
        "a frozen mn04 with a logistic regression: 0.937 out of fold in 40 s; --recipe probe"
    )


def test_without_the_file_of_weights_there_is_no_baseline(few, tmp_path, monkeypatch):
    monkeypatch.setenv("FATAI_WEIGHTS", str(tmp_path))
    assert frozen_baseline(few.curated, np.arange(len(few.curated)) % 3, few.tags) is None


@pytest.mark.parametrize("baseline", [True, False])
def test_default_prints_and_notes_the_baseline_unless_switched_off(few, weights, features, tmp_path, baseline):
    recipe, lines = adapt_recipe(load_recipe("default"), few), []
    folds = np.arange(len(few.curated)) % 3
    setup = RunSetup(tmp_path, few, recipe, few.curated, folds, (), [0, 1, 2])
    noted = _frozen_results(setup, lines.append, baseline=baseline)
    assert ("frozen_baseline" in noted) is baseline and len(lines) is int(baseline)
    assert not baseline or noted["frozen_baseline"] == {
        "text": lines[0], "weights": "mn04_as", "lwlrap": frozen_baseline(few.curated, folds, few.tags).score
    }
    own = replace(setup, recipe=recipe.override(arch="mn04", weights="mn04_as"))
    assert _frozen_results(own, lines.append, baseline=True) == {}, "it is not frozen itself"


def test_a_wrong_file_of_weights_costs_the_baseline_and_not_the_run(few, tmp_path, monkeypatch):
    monkeypatch.setenv("FATAI_WEIGHTS", str(tmp_path))
    (tmp_path / WEIGHTS["mn04_as"].file_name).write_bytes(b"half")
    recipe, folds = adapt_recipe(load_recipe("default"), few), np.arange(len(few.curated)) % 3
    setup = RunSetup(tmp_path, few, recipe, few.curated, folds, (), [0, 1, 2])
    with pytest.warns(UserWarning, match="no frozen network was scored beside this run: .* is not the published file"):
        noted = _frozen_results(setup, print, baseline=True)
    assert noted == {}


def test_a_run_of_probes_has_the_curve_of_its_stored_features(few, rng, tmp_path):
    recipe, folds = load_recipe("probe"), np.arange(len(few.curated)) % 2
    names = [str(name) for name in few.curated["fname"]]
    values = rng.standard_normal((len(names), 4)).astype(np.float32)
    tags = few.tags[:1]
    table = few.curated.assign(labels=[[tags[0]] if i < 9 else [] for i in range(len(names))])
    for fold in (0, 1):
        (tmp_path / f"fold_{fold}").mkdir()
        kept = np.flatnonzero(folds != fold)
        Embeddings(tuple(names[i] for i in kept), values[kept]).save(tmp_path / f"fold_{fold}" / "embeddings.npy")
        curve = run_curve(tmp_path, recipe, table, folds, tags)
        assert (curve == {}) is (fold == 0), "only with the features of all clips"
    expected = probe_curve(Embeddings(tuple(names), values), multi_hot(table["labels"], tags), folds)
    assert curve == expected and curve["counts"][:2] == [1, 2]


def test_a_curve_is_left_out_where_it_would_take_long_or_says_nothing(rng):
    targ = np.repeat(np.eye(2, dtype=bool), 8, axis=0)
    embeddings = Embeddings(tuple(map(str, range(16))), rng.standard_normal((16, 3)))
    curve = probe_curve(embeddings, targ, np.arange(16) % 4)
    assert curve["counts"][:2] == [1, 2] and len(curve["scores"]) == len(curve["counts"])
    assert probe_curve(embeddings, targ, np.zeros(16)) == {}
    assert probe_curve(embeddings, np.zeros((16, 4000)), np.arange(16) % 4) == {}
