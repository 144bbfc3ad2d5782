"""One callable for every engine: the rows of `predict`, whatever holds the sounds."""

import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor

import fsspec
import numpy as np
import pandas as pd
import pytest
import soundfile
from helpers.processes import new_processes

from fatai.errors import OptionError
from fatai.experiment.ensemble_folder import EnsembleFolder
from fatai.experiment.run_folder import predict_with_run, trained_model
from fatai.experiment.tag_batch import TagBatch


@pytest.fixture(scope="module")
def clips(sample):
    return [str(path) for path in sorted((sample / "test").iterdir())[:5]]


@pytest.fixture(scope="module")
def expected(tiny_run, clips):
    return predict_with_run(tiny_run.out, clips)


def probs(found, tags):
    return np.stack([found[tag] for tag in tags], axis=1)


def test_paths_have_the_rows_of_predict(tiny_run, clips, expected, tmp_path):
    missing = str(tmp_path / "missing.wav")
    found = TagBatch(tiny_run.out)({"path": np.array([*clips, missing]), "id": np.arange(6)})
    assert list(found) == ["path", "id", *expected.tags, "status", "reason"]
    np.testing.assert_allclose(probs(found, expected.tags)[:5], expected.probs, atol=1e-6)
    assert found["status"].tolist() == ["ok"] * 5 + ["unreadable"] and found["id"].tolist() == list(range(6))
    assert found["reason"].tolist()[:5] == [""] * 5 and missing in found["reason"][5]
    with pytest.warns(UserWarning, match="cannot be read"):
        prior = predict_with_run(tiny_run.out, [missing])
    np.testing.assert_allclose(probs(found, expected.tags)[5], prior.probs[0], atol=1e-12)


def test_samples_bytes_and_urls_have_the_rows_of_their_files(tiny_run, clips, expected):
    tagger = TagBatch(tiny_run.out)
    waves = [soundfile.read(path, dtype="float32") for path in clips]
    contents = [open(path, "rb").read() for path in clips]
    files = fsspec.filesystem("memory")
    for k, content in enumerate(contents):
        files.pipe_file(f"/sounds/{k}.ogg", content)
    batches = [
        {"audio": [wave for wave, _ in waves], "sample_rate": np.array([rate for _, rate in waves])},
        {"audio": [np.stack([wave, wave]) for wave, _ in waves], "sample_rate": waves[0][1]},
        {"bytes": contents},
        {"path": [f"memory://sounds/{k}.ogg" for k in range(5)]},
    ]
    for batch in batches:
        found = tagger(batch)
        np.testing.assert_allclose(probs(found, expected.tags), expected.probs, atol=1e-4, err_msg=str(list(batch)))
        assert "audio" not in found and "bytes" not in found and set(found["status"]) == {"ok"}
        assert {np.shape(column) for column in found.values()} == {(5,)}, "one rate is given for all rows"


def test_bad_rows_have_a_reason_and_leave_the_others_alone(tiny_run, clips, expected):
    silent = np.zeros(22050, np.float32)
    found = TagBatch(tiny_run.out)({"audio": [np.zeros((0,)), silent, np.ones((9, 3, 2))], "sample_rate": 22050})
    assert found["status"].tolist() == ["unreadable", "silent", "unreadable"]
    assert all(found["reason"]) and "-60 dB" in found["reason"][1] and "shape (9, 3, 2)" in found["reason"][2]
    found = TagBatch(tiny_run.out)({"path": ["memory://sounds/none.ogg", "nope://x.ogg", clips[0]]})
    assert found["status"].tolist() == ["unreadable", "unreadable", "ok"]
    assert "memory://sounds/none.ogg" in found["reason"][0] and "nope" in found["reason"][1]
    np.testing.assert_allclose(probs(found, expected.tags)[2], expected.probs[0], atol=1e-6)
    found = TagBatch(tiny_run.out)({"bytes": [b"words, not sound"]})
    assert found["status"].tolist() == ["unreadable"] and "row 0" in found["reason"][0]


def test_data_frames_keep_their_index_and_may_be_empty(tiny_run, clips, expected):
    tagger = TagBatch(tiny_run.out)
    found, = tagger.map(iter([pd.DataFrame({"path": clips}, index=range(10, 15))]))
    assert list(found.index) == list(range(10, 15)) and list(found["path"]) == clips
    np.testing.assert_allclose(found[list(expected.tags)], expected.probs, atol=1e-6)
    empty = tagger(pd.DataFrame({"path": []}))
    assert list(empty.columns) == list(found.columns) and len(empty) == 0
    table = pd.DataFrame({"path": clips, "text": clips})
    types, no_rows = tagger(table).dtypes, tagger(table.head(0)).dtypes  # from which Dask infers its schema
    assert types["path"] == types["status"] == types["reason"] == table.dtypes["path"] and types.equals(no_rows)


def test_a_pickled_one_predicts_in_a_new_process(tiny_run, clips, expected):
    tagger = TagBatch(tiny_run.out)
    assert tagger.tags == expected.tags and len(pickle.dumps(tagger)) < 1000  # its path, not its weights
    with ProcessPoolExecutor(1, mp_context=new_processes()) as pool:
        found = pool.submit(tagger, {"path": clips[:2]}).result()
    np.testing.assert_allclose(probs(found, expected.tags), expected.probs[:2], atol=1e-6)


def test_a_loaded_model_is_taken_as_it_is(tiny_run, clips):
    model = trained_model(tiny_run.out)
    found = TagBatch(model, views="even", n=2)({"path": clips})
    np.testing.assert_allclose(probs(found, model.tags), model.tta(clips, n=2).probs, atol=1e-6)


def test_batches_that_cannot_be_predicted_are_refused(tiny_run, clips):
    tagger = TagBatch(tiny_run.out)
    with pytest.raises(OptionError, match="columns file; expected one of path, bytes, audio"):
        tagger({"file": clips})
    with pytest.raises(OptionError, match="sample_rate"):
        tagger({"audio": [np.zeros(100, np.float32)]})
    with pytest.raises(OptionError, match="is a column and a tag"):
        tagger({"path": clips, tagger.tags[0]: np.zeros(5)})


def test_an_ensemble_has_the_rows_of_predict(tiny_run, clips, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(tiny_run.out, tmp_path / name)
    shutil.rmtree(tmp_path / "b" / "fold_1")  # another model than a
    EnsembleFolder(tmp_path, ("a", "b"), (1.0, 3.0)).save()
    expected = predict_with_run(tmp_path, clips)
    found = TagBatch(tmp_path)({"path": [*clips, str(tmp_path / "missing.wav")]})
    np.testing.assert_allclose(probs(found, expected.tags)[:5], expected.probs, atol=1e-6)
    assert found["status"].tolist() == ["ok"] * 5 + ["unreadable"] and "missing.wav" in found["reason"][5]
    alone = predict_with_run(tiny_run.out, clips)
    assert np.abs(alone.probs - expected.probs).max() > 1e-4


def test_another_number_of_views_is_of_the_kind_of_the_recipe(tiny_run, clips, tmp_path):
    shutil.copytree(tiny_run.out, tmp_path / "run")
    recipe = (tmp_path / "run" / "recipe.toml").read_text()
    (tmp_path / "run" / "recipe.toml").write_text(recipe.replace('views = "even"', 'views = "random"'))
    expected = predict_with_run(tmp_path / "run", clips, n=3)
    found = TagBatch(tmp_path / "run", n=3)({"path": clips})
    np.testing.assert_allclose(probs(found, expected.tags), expected.probs, atol=1e-6)


def test_a_member_that_has_changed_is_loaded_again(tiny_run, clips, tmp_path):
    shutil.copytree(tiny_run.out, tmp_path / "a")
    EnsembleFolder(tmp_path, ("a",), (1.0,)).save()
    tagger = TagBatch(tmp_path)
    before = tagger({"path": clips[:1]})
    weights = (tmp_path / "a" / "fold_0" / "model.safetensors").read_bytes()
    (tmp_path / "a" / "fold_1" / "model.safetensors").write_bytes(weights)
    after = tagger({"path": clips[:1]})
    assert any(before[tag] != after[tag] for tag in tagger.tags)
