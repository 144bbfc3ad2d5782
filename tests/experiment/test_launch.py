"""Runs in several processes: the same as in one, and a clear end when one of them is lost."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from helpers.processes import in_processes

from fatai.cli import training
from fatai.data.datasets.fat2019 import fat_sample
from fatai.distributed import SINGLE_PROCESS, ProcessGroup
from fatai.errors import OptionError
from fatai.experiment.estimate import Costs, RunEstimate, StageEstimate
from fatai.experiment.launch import in_process_group, processes_for, split_work, start_processes, start_shards
from fatai.experiment.overrides import Overrides
from fatai.experiment.recipe import load_recipe
from fatai.experiment.run import run_recipe
from fatai.inference.predictions import Predictions
from fatai.report.html import run_report

RECIPE = """
name = "together"
precision = "fp32"
[clips]
crop_s = {crop_s}
cache = "{cache}"
[folds]
n = 2
[model]
arch = "m1"
width = 0.125
[[stages]]
epochs = {epochs}
bs = 16
lr = 5e-3
{changes}
[tta]
views = "random"
n = 2
"""
CHANGES = 'augment = [{ name = "spec_augment" }]\nmixup = { name = "mixup" }'
SAME = (
    "oof.csv",
    "test.csv",
    "submission.csv",
    "folds.csv",
    "recipe.toml",
    "fold_0/model.safetensors",
    "fold_1/model.safetensors",
)


def recipe_file(folder, epochs=2, crop_s=0.5, cache="none", changes=CHANGES):
    file = folder / "together.toml"
    file.write_text(RECIPE.format(epochs=epochs, crop_s=crop_s, cache=cache, changes=changes))
    return file


def test_processes_split_folds_if_there_are_enough_and_batches_otherwise():
    lines = []
    group = ProcessGroup(1, 2)
    folds = split_work(group, 2, lines.append)
    folds.log("fold 1: starts")
    assert (folds.fold_group, folds.batch_group) == (group, SINGLE_PROCESS) and lines == ["process 1: fold 1: starts"]
    batches = split_work(group, 1, lines.append)
    batches.log("not printed: only the main process logs")
    assert (batches.fold_group, batches.batch_group) == (SINGLE_PROCESS, group) and len(lines) == 1
    split_work(ProcessGroup(0, 2), 1, lines.append).log("printed")
    assert lines[1:] == ["2 processes share every batch", "printed"]
    assert split_work(SINGLE_PROCESS, 1, print).log is print


def test_less_than_one_process_is_refused():
    with pytest.raises(OptionError, match="number of processes is 0; expected at least 1"):
        start_processes(0, ["run"])


def test_each_process_gets_the_arguments_of_the_command(monkeypatch):
    started = []
    monkeypatch.setattr("torch.distributed.run.run", started.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("FATAI_PARENT_REPORTS", "")
    start_processes(2, ["run", "data", "--nproc", "2", "--num-workers", "0"])
    (args,) = started
    assert args.nproc_per_node == "2" and args.module and args.training_script == "fatai.cli"
    assert args.training_script_args == ["run", "data", "--nproc", "2", "--num-workers", "0"]


@pytest.mark.parametrize("n_parameters, n_folds, cores, gib, expected", [
    (1_600_000, 3, 2, 8, 2), (1_600_000, 3, 8, 8, 3), (1_600_000, 5, 8, 4, 2), (1_600_000, 5, 8, 1, 1),
    (1_600_000, 1, 8, 8, 1), (1_600_000, 5, 1, 8, 1), (2_000_000, 5, 8, 64, 1),
])
def test_small_networks_train_a_fold_per_core_within_the_memory(n_parameters, n_folds, cores, gib, expected):
    assert processes_for(n_parameters, n_folds, cores, gib * 2**30) == expected


@pytest.fixture
def started(monkeypatch):
    """Numbers of processes and of their threads that a command starts, on two free cores without a GPU."""
    found = []
    monkeypatch.setattr("fatai.experiment.launch.start_processes", lambda n, *_, threads: found.append((n, threads)))
    monkeypatch.setattr("fatai.experiment.launch.available_cores", lambda: 2)
    monkeypatch.setattr("fastai.torch_core.default_device", lambda: "cpu")
    for name in ("run", "run_ensemble"):
        monkeypatch.setattr(training.Training, name, lambda self, **options: found.append("here"))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    return found


@pytest.mark.parametrize("options, expected", [
    ([], (2, 1)), (["--nproc", "1"], "here"), (["--nproc", "2"], (2, None)), (["--fold", "0"], "here"),
    (["--recipe", "ninth"], "here"), (["--threads", "1"], "here"), (["--recipe", "probe"], "here"),
    (["--recipe", "best"], (2, 1)), (["--recipe", "pretrained"], (2, 1)), (["--recipe", "best", "--fold", "0"], "here"),
    (["--recipe", "ensembles/ninth"], "here"),
])
def test_a_command_trains_the_folds_of_a_small_network_side_by_side(options, expected, started, main_with, tmp_path):
    ended = main_with("run", fat_sample(), "--out", tmp_path / "run", *options)
    assert started == [expected] and ended.returncode == 0
    assert ("2 folds are trained side by side" in ended.stdout) == (expected == (2, 1))


@pytest.mark.parametrize("options, expected", [
    (["--dry-run"], True), (["--time-limit", "70s"], True), (["--dry-run", "--nproc", "1"], False),
])
def test_an_estimate_is_that_of_folds_side_by_side(options, expected, started, monkeypatch, main_with, tmp_path):
    stage = StageEstimate("fit", 30, 100, 1600, 16, 20.0)
    estimate = RunEstimate("default", 1_600_000, 3, (stage,), 10.0, 2**30, "cpu")  # two rounds on two cores
    monkeypatch.setattr("fatai.experiment.estimate.estimate_run", lambda *args, **kwargs: estimate)
    ended = main_with("run", fat_sample(), "--out", tmp_path / "run", *options)
    assert ended.returncode == 0 and not started
    assert ("2 folds side by side: at most 0:01:00, and 2 times the memory" in ended.stdout) == expected, ended.stdout


@pytest.mark.parametrize("name, n_members", [("default", 1), ("best", 3)])
def test_the_processes_of_a_run_within_a_budget_get_its_plan(
    name, n_members, started, monkeypatch, main_with, tmp_path
):
    def start(n, *_, threads):
        started.append((n, threads))
        monkeypatch.setattr("fatai.experiment.budget._Cost._costs_of", measured_again)
        process = training.Training(fat_sample(), name, tmp_path / "run", Overrides(), budget="8h")
        folds.extend(recipe.folds.n for _, recipe in process.members)

    def measured_again(self, recipe):
        raise AssertionError("a process measures by itself")

    folds = []
    monkeypatch.setattr("fatai.experiment.launch.start_processes", start)
    monkeypatch.setattr("fatai.experiment.budget._Cost._costs_of", lambda self, recipe: Costs((0.1,), 0.0))
    ended = main_with("run", fat_sample(), "--recipe", name, "--budget", "8h", "--out", tmp_path / "run")
    assert ended.returncode == 0 and started == [(2, 1)], ended.stderr
    assert folds == [5] * n_members and "FATAI_PLANNED_RECIPE" not in os.environ
    assert f"{n_members} member" in ended.stdout and ", 2 folds side by side" in ended.stdout


def test_a_run_within_a_budget_is_continued_with_its_own_recipe(started, monkeypatch, main_with, tmp_path):
    (tmp_path / "recipe.toml").write_text(load_recipe("quick").resolved())
    ended = main_with("run", fat_sample(), "--budget", "8h", "--resume", "--out", tmp_path)
    assert ended.returncode == 2 and not started
    assert f"{tmp_path} holds a run of recipe quick, not of default; give --recipe quick" in ended.stderr


def test_a_run_within_a_budget_is_continued_at_its_size_and_changed_options_differ_from_it(capsys, tmp_path):
    kept = load_recipe("quick").override(epochs=7)
    (tmp_path / "recipe.toml").write_text(kept.resolved())
    continued = training.Training(
        fat_sample(), "quick", tmp_path, Overrides(values={"clips.trim_db": 30}), budget="9h", resume=True
    )
    differences = continued.loaded[1].differences(kept)
    assert [line.split()[:3] for line in differences] == [["clips.trim_db", "is", "30.0"]], "which a run refuses"
    assert capsys.readouterr().out == (
        f"{tmp_path} goes on at the size that it began with: --budget 9h is not planned again\n"
    )


@pytest.mark.slow
def test_folds_side_by_side_have_the_files_of_folds_one_after_another(tmp_path):
    env = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    command = [sys.executable, "-m", "fatai.cli", "run", str(fat_sample()), "--epochs", "2", "--width", "0.0625"]
    for name, options in (("two", []), ("one", ["--nproc", "1"])):
        ended = subprocess.run(
            [*command, "--out", str(tmp_path / name), *options], env=env, capture_output=True, text=True, timeout=300,
            check=True,
        )
        assert ("side by side" in ended.stdout) == (name == "two" and len(os.sched_getaffinity(0)) > 1)
        assert ("fold 1: epoch 1  train_loss" in ended.stdout) == ("side by side" in ended.stdout)
    for name in ("oof.csv", "test.csv", "fold_0/model.safetensors", "fold_1/model.safetensors"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name


@pytest.mark.parametrize("option", [["--nproc", "3"], ["--nproc=3"]])
def test_each_shard_gets_its_number_and_starts_no_processes(monkeypatch, option):
    started = []

    class Done:
        def __init__(self, words, env):
            started.append(words[3:])

        def wait(self):
            return 0

    monkeypatch.setattr("fatai.experiment.launch.subprocess.Popen", Done)
    start_shards(3, ["predict", "run", *option, "--out", "a.csv"], "it")
    assert started == [["predict", "run", "--out", "a.csv", "--shard", f"{k}/3"] for k in (1, 2, 3)]
    with pytest.raises(OptionError, match="number of processes is 0; expected at least 1"):
        start_shards(0, [], "it")


def checked_group_size():
    try:
        with in_process_group(3):
            return "entered"
    except OptionError as e:
        return str(e)


def test_another_number_of_processes_than_asked_for_is_refused():
    # accelerate launch --cpu --num_processes 2 starts a single one; nobody is to wait for the other.
    assert (
        in_processes(2, checked_group_size)
        == ["--nproc is 3, but torchrun started 2 processes; set the number in one place only"] * 2
    )


def run_it(recipe, out, seed, run_folds):
    """Run a recipe; return its score, the names of its clips and the progress lines."""
    lines = []
    changed = load_recipe(recipe).override(seed=seed)
    result = run_recipe(
        fat_sample(), changed, out, run_folds=run_folds, cache_dir=out.parent / "cache", log=lines.append,
        report=run_report,
    )
    return result.oof_score, result.oof.fnames, lines


@pytest.mark.slow
def test_two_processes_with_folds_of_their_own_write_the_bytes_of_one(tmp_path):
    recipe = recipe_file(tmp_path, cache="device")
    one = run_it(recipe, tmp_path / "one", 1, None)
    two = in_processes(2, run_it, recipe, tmp_path / "two", 1, None)
    assert two[0][:2] == two[1][:2] == one[:2]
    for name in SAME:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
    assert {str(f.relative_to(tmp_path / "two")) for f in (tmp_path / "two").rglob("*")} == {
        str(f.relative_to(tmp_path / "one")) for f in (tmp_path / "one").rglob("*")}
    assert (tmp_path / "two" / "report.html").is_file()
    caches = list((tmp_path / "cache").iterdir())
    clips = [f for f in caches[0].rglob("*.i16")]
    assert len(caches) == 1 and len(clips) == 120, "one cache, every clip in it once"


def children(pid):
    """Process numbers of the processes that `pid` started."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as f:
                    if int(f.read().rsplit(")", 1)[1].split()[1]) == pid:
                        found.append(int(entry))
            except OSError:
                continue
    return found


def of_rank(pid, rank):
    with open(f"/proc/{pid}/environ") as f:
        return f"\0RANK={rank}\0" in f.read()


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks for processes in /proc")
def test_a_killed_process_ends_the_run_with_a_message_and_the_run_resumes(tmp_path):
    command = [
        sys.executable,
        "-m",
        "fatai.cli",
        "run",
        str(fat_sample()),
        "--recipe",
        str(recipe_file(tmp_path, epochs=30)),
        "--fold",
        "0",
        "--nproc",
        "2",
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    out, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        [*command, "--out", str(out)], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    history = out / "fold_0" / "history.csv"
    deadline = time.monotonic() + 200
    while not history.exists() or len(history.read_text().splitlines()) < 4:
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.05)
    victim = next(pid for pid in children(process.pid) if of_rank(pid, 1))
    os.kill(victim, signal.SIGKILL)
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == 2
    last = stderr.strip().splitlines()[-1]
    assert re.match(
        r"fatai-submit: process 1 of 2 was killed \(signal 9; .*repeat the command with --resume$", last
    ), stderr
    assert "Traceback" not in stderr and not (out / "oof.csv").exists()
    for folder, more in ((out, ["--resume"]), (whole, [])):
        subprocess.run([*command, "--out", str(folder), *more], env=env, check=True, capture_output=True, timeout=300)
    assert len(history.read_text().splitlines()) == 31
    for name in ("oof.csv", "test.csv", "fold_0/model.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), f"{name}: as in an unbroken run"
    assert len(Predictions.from_csv(out / "test.csv")) == 60


@pytest.mark.slow
def test_a_list_predicted_by_two_processes_is_that_of_one_and_a_failed_shard_is_made_by_the_same_command(
    tiny_run, tmp_path
):
    env, out = {**os.environ, "OMP_NUM_THREADS": "1"}, tmp_path / "two.csv"
    sounds = sorted((fat_sample() / "test").iterdir())[:7]
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in sounds))

    def predicted(*args):
        arguments = ("predict", str(tiny_run.out), "--input-list", str(tmp_path / "list.txt"), *args)
        return subprocess.run(
            [sys.executable, "-m", "fatai.cli", *arguments], env=env, capture_output=True, text=True, timeout=300
        )

    assert predicted("--out", str(tmp_path / "one.csv")).returncode == 0
    # A folder at the path of the second shard: that shard fails, and the first is kept.
    part = tmp_path / "two.2-of-2.csv"
    part.mkdir()
    ended = predicted("--out", str(out), "--nproc", "2")
    assert ended.returncode == 2 and "Traceback" not in ended.stderr and not out.exists()
    assert (tmp_path / "two.1-of-2.csv").is_file()
    part.rmdir()
    ended = predicted("--out", str(out), "--nproc", "2")
    assert ended.returncode == 0 and f"{out}: 7 clips" in ended.stdout, ended.stderr
    two, one = Predictions.from_csv(out), Predictions.from_csv(tmp_path / "one.csv")
    assert two.fnames == one.fnames and abs(two.probs - one.probs).max() < 1e-6, (
        "different batches differ in rounding only"
    )
    assert sorted(f.name for f in tmp_path.iterdir()) == ["list.txt", "one.csv", "two.csv"]
