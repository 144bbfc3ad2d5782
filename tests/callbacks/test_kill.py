"""Runs that are killed at any moment and gone on with: they end as the run that nobody killed, to the byte."""

import multiprocessing
import os
import random
import subprocess
import sys
import time

import pytest

RECIPE = """
name = "killed"
[clips]
crop_s = 1.0
[folds]
n = 2
[model]
arch = "m1"
width = 0.1
[[stages]]
name = "mixed"
epochs = 3
bs = 10
schedule = "warmup_cosine"
clip_grad_value = 1.0
mixup = { name = "mixup" }
augment = [{ name = "spec_augment" }, { name = "gain" }]
[[stages]]
name = "plain"
epochs = 1
bs = 10
checkpoint = "last"
sampling = "balanced"
[tta]
views = "random"
n = 2
"""

KILLS = 20
SAME = (
    "oof.csv",
    "test.csv",
    "submission.csv",
    "folds.csv",
    "recipe.toml",
    "fold_0/model.safetensors",
    "fold_1/model.safetensors",
)


def submit(args, log):
    """The command in a process of its own, whose libraries its server has loaded already."""
    import torch

    from fatai.cli import main

    torch.set_num_threads(1)
    # As in a process that a shell starts; that of its server is for the server's children alone.
    multiprocessing.set_start_method(None, force=True)
    with open(log, "a") as f:
        os.dup2(f.fileno(), 1)
        os.dup2(f.fileno(), 2)
    sys.argv = ["fatai-submit", *args]
    main()


def begun_epochs(out):
    """How far a run got: epochs in the histories of its folds."""
    return sum(len(file.read_text().splitlines()) - 1 for file in out.glob("fold_*/history.csv"))


def held(out):
    return {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_at_any_moment_and_resumed_ends_as_the_uninterrupted_one(sample, tmp_path, workers):
    (tmp_path / "killed.toml").write_text(RECIPE)
    args = ["run", str(sample), "--recipe", str(tmp_path / "killed.toml"), "--num-workers", str(workers)]
    unbroken, log = tmp_path / "unbroken", tmp_path / "log.txt"
    # The real command; those that are killed begin with libraries loaded, or most of the minutes would go into that.
    subprocess.run(
        [sys.executable, "-m", "fatai.cli", *args, "--out", str(unbroken)], check=True, capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    wanted = {name: (unbroken / name).read_bytes() for name in SAME}
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["fatai.cli", "fatai.experiment.run"])

    def started(out):
        process = server.Process(target=submit, args=([*args, "--resume", "--out", str(out)], str(log)))
        process.start()
        return process

    def finished(process, out):
        process.join(200)
        assert process.exitcode == 0, log.read_text()[-3000:]
        assert held(out) == held(unbroken)
        for name in SAME:
            assert (out / name).read_bytes() == wanted[name], f"{name} of {out.name}"

    clock = time.monotonic()
    finished(started(tmp_path / "run_0"), tmp_path / "run_0")
    seconds = time.monotonic() - clock
    draw, stopped_at, number = random.Random(2019 + workers), [], 1
    while len(stopped_at) < KILLS:
        out = tmp_path / f"run_{number}"
        process = started(out)
        process.join(draw.uniform(0, 0.6 * seconds))
        if process.exitcode is None:
            process.kill()
            process.join()
            stopped_at.append(begun_epochs(out))
        else:
            finished(process, out)
            number += 1
    finished(started(tmp_path / f"run_{number}"), tmp_path / f"run_{number}")
    assert len(set(stopped_at)) >= 4 and max(stopped_at) > 4, (
        f"kills in several epochs, of the second fold too; they were at {stopped_at}"
    )
