"""Reproduced runs: the same bytes, or the differences; and the generators that seeds cover."""

import json
import random
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.load import DataLoader
from fastai.torch_core import set_seed

from fatai.augment.wave import PitchShift
from fatai.errors import CheckpointError, DataError
from fatai.experiment.reproduce import compare_files, reproduce_run
from fatai.experiment.run import run_recipe


@pytest.fixture
def finished(tiny_run, tmp_path):
    """A copy of a finished run, to be changed."""
    return shutil.copytree(tiny_run.out, tmp_path / "run")


def changed(run, change):
    path = run / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_a_reproduced_run_is_the_same_bytes(few_clips, tiny_recipe, tmp_path, main_with):
    finished = tmp_path / "run"
    run_recipe(few_clips, tiny_recipe.override(epochs=1), finished, num_workers=0, log=lambda line: None)
    ended = main_with("reproduce", finished)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip().endswith(f"{finished}-reproduced is the same as {finished}, byte for byte")
    again = compare_files(finished, f"{finished}-reproduced")
    assert again.same and again.environment == () and set(again.files.values()) == {"same bytes"}
    assert {"recipe.toml", "oof.csv", "test.csv", "submission.csv", "folds.csv", "fold_1/model.safetensors"} <= set(
        again.files
    )


def test_differences_are_listed(finished, tmp_path, main_with):
    other = shutil.copytree(finished, tmp_path / "other")
    text = (other / "oof.csv").read_text().splitlines()
    cells = text[1].split(",")
    text[1] = ",".join(
        [cells[0], str(float(cells[1]) + 0.25 if float(cells[1]) < 0.5 else float(cells[1]) - 0.25), *cells[2:]]
    )
    (other / "oof.csv").write_text("\n".join(text) + "\n")
    (other / "fold_1" / "model.safetensors").write_bytes(b"other")
    (other / "test.csv").unlink()

    def otherwise(manifest):
        manifest["versions"]["torch"] = "1.0"
        manifest["data"]["digest"] = "ff"
        manifest["lwlrap"]["folds"]["0"] = 0.125

    changed(other, otherwise)
    result = compare_files(finished, other)
    assert not result.same
    assert result.files["oof.csv"] == "probabilities differ by at most 0.25"
    assert result.files["fold_1/model.safetensors"] == "other bytes"
    assert result.files["test.csv"] == f"not in {other}" and result.files["folds.csv"] == "same bytes"
    assert (
        len(result.environment) == 2
        and result.environment[0].startswith("version of torch was ")
        and result.environment[0].endswith("is 1.0")
    )
    assert result.environment[1].startswith("digest of the data was ") and result.scores["fold 0"][1] == 0.125
    assert "The files differ. What else differs:\n  version of torch was" in str(result)


def test_a_run_without_a_valid_manifest_is_not_reproduced(finished, tmp_path, sample, main_with):
    with pytest.raises(CheckpointError, match="is not a finished run"):
        reproduce_run(tmp_path / "nothing")
    changed(finished, lambda manifest: manifest["run_options"].update(data="nowhere"))
    ended = main_with("reproduce", finished)
    assert ended.returncode == 2 and "give their path: fatai-submit reproduce" in ended.stderr
    with pytest.raises(DataError, match="exists and is not empty"):
        reproduce_run(finished, sample, finished)
    changed(finished, lambda manifest: manifest["run_options"].update(run_folds="all of them"))
    with pytest.raises(CheckpointError, match="as run_options; expected data, run_folds"):
        reproduce_run(finished, sample)
    changed(finished, lambda manifest: manifest.pop("run_options"))
    with pytest.raises(CheckpointError, match="the run is of an earlier version of fatai"):
        reproduce_run(finished, sample)
    changed(finished, lambda manifest: manifest.update(finished=None))
    with pytest.raises(CheckpointError, match="is not a finished run"):
        reproduce_run(finished, sample)


class Draws(torch.utils.data.Dataset):
    """Items of random numbers, one from each generator."""

    def __len__(self):
        return 8

    def __getitem__(self, i):
        return torch.tensor([random.random(), np.random.rand(), float(torch.rand(()))])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_seed_fixes_the_draws_of_python_numpy_and_torch_also_in_workers(workers):
    def drawn():
        set_seed(5, reproducible=True)
        loader = DataLoader(Draws(), bs=2, num_workers=workers, shuffle=True)
        return torch.cat([batch for epoch in range(2) for batch in loader])

    one, other = drawn(), drawn()
    assert torch.equal(one, other)
    assert len(one[:, 2].unique()) == 16, "neither workers nor epochs repeat each other"


def test_a_seed_fixes_the_draws_of_audiomentations():
    pytest.importorskip("audiomentations")
    pitch, wave = PitchShift(engine="audiomentations", p=1.0), torch.randn(1, 22050) / 10
    one, again, other = ((set_seed(seed), pitch.augment(wave, 22050))[1] for seed in (3, 3, 4))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_a_run_of_a_table_of_sounds_is_reproduced(sample, tiny_recipe, tmp_path):
    table = pd.read_csv(sample / "train_curated.csv").iloc[::4]
    (tmp_path / "sounds").symlink_to(sample / "train_curated")
    own = table.rename(columns={"fname": "file", "labels": "tags"}).assign(file="sounds/" + table["fname"])
    own.to_csv(tmp_path / "my.csv", index=False)
    run_recipe(tmp_path / "my.csv", tiny_recipe, tmp_path / "run", run_folds=[0], num_workers=0, log=lambda line: None)
    assert reproduce_run(tmp_path / "run", log=lambda line: None).same
    (tmp_path / "my.csv").rename(tmp_path / "elsewhere.csv")
    with pytest.raises(DataError, match="no longer at .*my.csv'; give their path: fatai-submit reproduce .* DATA"):
        reproduce_run(tmp_path / "run", log=lambda line: None)
