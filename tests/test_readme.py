"""The Python code of the README and of the start page runs."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
START_BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "start.md").read_text(encoding="utf-8"), re.S)


def test_the_ten_lines_run_and_the_submission_is_valid(tmp_path, monkeypatch, capsys, sample):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len([line for line in code.splitlines() if line]) <= 10
    exec(compile(code, "README.md", "exec"), {})
    from fatai.inference.predictions import check_submission

    check_submission(tmp_path / "submission.csv", sample / "sample_submission.csv")
    score = float(re.search(r"test lwlrap (0\.\d+)", capsys.readouterr().out)[1])
    assert score > 0.4, "ten epochs on bundled sounds; chance is about 0.3"


def test_the_training_of_the_start_page_runs(tmp_path, monkeypatch, sample):
    monkeypatch.chdir(tmp_path)
    (block,) = [text for text in START_BLOCKS if "ResumeTraining(" in text]
    names = {}
    exec("from fatai.all import *", names)
    names["dls"] = names["FATDataLoaders"].from_path(
        sample, front_end="ninth", crop_s=0.5, bs=16, seed=0, num_workers=0
    )
    exec(compile(block, "docs/start.md", "exec"), names)
    assert (tmp_path / "state.pt").exists() and names["learn"].final_record
    plt.close("all")


@pytest.mark.parametrize("command", sorted(set(re.findall(r"^\$ fatai-submit ([\w-]+)", README, re.M))))
def test_every_command_of_the_readme_exists(command):
    from typer.main import get_command

    from fatai.cli import app

    assert command in get_command(app).commands
