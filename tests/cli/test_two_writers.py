"""A command is refused while another one writes the same output, and leaves it alone."""

import json
import os

import pytest
from helpers.locks import locked_elsewhere

from fatai.experiment.run import run_recipe

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such locks")

COMMANDS = {
    "run": lambda run, data, out: ["run", data, "--recipe", "quick", "--out", out],
    "run --resume": lambda run, data, out: ["run", data, "--recipe", "quick", "--resume", "--out", out],
    "run ensembles/": lambda run, data, out: ["run", data, "--recipe", "ensembles/third_place", "--out", out],
    "reproduce": lambda run, data, out: ["reproduce", run, data, "--out", out],
    "demo": lambda run, data, out: ["demo", "--out", out],
    "predict": lambda run, data, out: ["predict", run, data / "test", "--out", out],
    "predict --save-views": lambda run, data, out: ["predict", run, data / "test", "--save-views", out],
    "tag": lambda run, data, out: ["tag", run, data / "test", "--out", out],
    "ensemble": lambda run, data, out: ["ensemble", run, run, "--out", out],
    "export": lambda run, data, out: ["export", run, out],
    "embed": lambda run, data, out: ["embed", run, data / "test", "--out", f"{out}.npy"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_second_command_is_refused_in_a_sentence(command, tiny_run, sample, tmp_path, main_with):
    *arguments, out = COMMANDS[command](tiny_run.out, sample, tmp_path / "out")
    with locked_elsewhere(out) as process:
        before = sorted(tmp_path.iterdir())
        ended = main_with(*arguments, out)
        after = sorted(tmp_path.iterdir())
    assert ended.returncode == 2 and f"is being written by another command (process {process.pid} on" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1 and after == before


def test_a_demo_does_not_remove_the_folder_of_one_that_is_running(tmp_path, main_with):
    out = tmp_path / "demo"
    out.mkdir()
    (out / "manifest.json").write_text(json.dumps({"command": "fatai-submit demo", "data": {}}))
    with locked_elsewhere(out):
        assert "is being written by another command" in main_with("demo", "--out", out).stderr
    assert (out / "manifest.json").exists()


def test_resuming_does_not_remove_the_temporary_files_of_a_running_command(sample, tiny_recipe, tmp_path, main_with):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".model.0123.part.safetensors").write_text("half")
    with locked_elsewhere(out), pytest.raises(OSError, match="is being written by another command"):
        run_recipe(sample, tiny_recipe, out, resume=True, num_workers=0)
    assert (out / ".model.0123.part.safetensors").exists()


def test_shards_of_one_output_are_written_at_once(tiny_run, sample, tmp_path, main_with):
    with locked_elsewhere(tmp_path / "out.1-of-2.csv"):
        arguments = ("predict", tiny_run.out, sample / "test", "--n-views", 1, "--out", tmp_path / "out.csv", "--shard")
        assert main_with(*arguments, "2/2").returncode == 0
        assert "is being written by another command" in main_with(*arguments, "1/2").stderr
