"""The Python code of the README runs."""

import re
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def test_the_ten_lines_run_and_the_submission_is_valid(tmp_path, monkeypatch, capsys, sample):
    monkeypatch.chdir(tmp_path)
    code = BLOCKS[0]
    assert len([line for line in code.splitlines() if line]) <= 10
    exec(compile(code, "README.md", "exec"), {})
    from fatai.inference.predictions import check_submission

    check_submission(tmp_path / "submission.csv", sample / "sample_submission.csv")
    score = float(re.search(r"test lwlrap (0\.\d+)", capsys.readouterr().out)[1])
    assert score > 0.4, "ten epochs on bundled sounds; chance is about 0.3"


def test_the_three_loaders_load_the_same_clips(tmp_path, monkeypatch, sample):
    monkeypatch.chdir(tmp_path)
    audio = tmp_path / "my_sounds" / "audio"
    audio.mkdir(parents=True)
    table = (
        pd.read_csv(sample / "train_curated.csv", dtype=str)
        .head(12)
        .rename(columns={"fname": "file", "labels": "tags"})
    )
    for name in table["file"]:
        shutil.copy(sample / "train_curated" / name, audio / name)
    table.to_csv(tmp_path / "my_sounds" / "labels.csv", index=False)
    df = table.assign(file="audio/" + table["file"], is_valid=[k % 4 == 0 for k in range(12)])
    lines = [line for line in BLOCKS[1].splitlines() if line]
    assert len(lines) == 3
    from fatai.all import FATDataLoaders

    for line in lines:
        dls = eval(line, {"FATDataLoaders": FATDataLoaders, "df": df})
        assert len(dls.files(0)) + len(dls.files(1)) == 12


def test_the_code_on_training_runs(tmp_path, monkeypatch, sample):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec("from fatai.all import *", names)
    names["dls"] = names["FATDataLoaders"].from_path(
        sample, front_end="ninth", crop_s=0.5, bs=16, seed=0, num_workers=0
    )
    exec(compile(BLOCKS[2], "README.md", "exec"), names)
    assert (tmp_path / "state.safetensors").exists() and names["learn"].final_record
    assert names["learn"].show_augs() is not None
    plt.close("all")


@pytest.mark.parametrize("command", sorted(set(re.findall(r"^\$ fatai-submit ([\w-]+)", README, re.M))))
def test_every_command_of_the_readme_exists(command):
    from typer.main import get_command

    from fatai.cli import app

    assert command in get_command(app).commands
