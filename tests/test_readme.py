"""The Python code of the README and of the start page runs."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
START_BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "start.md").read_text(encoding="utf-8"), re.S)


def test_the_figures_of_speed_are_those_of_the_summary():
    table = (ROOT / "benchmarks" / "results" / "summary.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    ratios = {baseline: ratio for _, _, baseline, _, ratio, _ in rows[1:]}
    (sentence,) = re.findall(r"^On one core[^#]*?results/summary\.md\)", README, re.S | re.M)
    expected = [ratios[name] for name in ("librosa, file by file", "torch.stft and mel filters", "scikit-learn")]
    assert re.findall(r"([\d.]+) times", sentence) == [f"{float(ratio):.2g}" for ratio in expected[:2]] + [expected[2]]


@pytest.mark.parametrize("epochs", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_the_ten_lines_run_and_the_submission_is_valid(epochs, tmp_path, monkeypatch, capsys, sample):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len([line for line in code.splitlines() if line]) <= 10 and code.count("fit_one_cycle(10,") == 1
    exec(compile(code.replace("fit_one_cycle(10,", f"fit_one_cycle({epochs},"), "README.md", "exec"), {})
    from fatai.inference.predictions import check_submission

    check_submission(tmp_path / "submission.csv", sample / "sample_submission.csv")
    score = float(re.search(r"test lwlrap (0\.\d+)", capsys.readouterr().out)[1])
    assert 0 < score <= 1 and (epochs == 1 or score > 0.4), "on bundled sounds; chance is about 0.3"


def test_the_training_of_the_start_page_runs(tmp_path, monkeypatch, few_clips):
    monkeypatch.chdir(tmp_path)
    (block,) = [text for text in START_BLOCKS if "ResumeTraining(" in text]
    names = {}
    exec("from fatai.all import *", names)
    names["dls"] = names["FATDataLoaders"].from_path(
        few_clips, front_end="ninth", crop_s=0.5, bs=8, seed=0, num_workers=0
    )
    exec(compile(block, "docs/start.md", "exec"), names)
    assert (tmp_path / "state.pt").exists() and names["learn"].final_record
    plt.close("all")


@pytest.mark.parametrize("command", sorted(set(re.findall(r"^\$ fatai-submit ([\w-]+)", README, re.M))))
def test_every_command_of_the_readme_exists(command):
    from typer.main import get_command

    from fatai.cli import app

    assert command in get_command(app).commands
