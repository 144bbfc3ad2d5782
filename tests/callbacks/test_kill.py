"""Runs that are killed at any moment and resumed end as the uninterrupted run, byte for byte."""

import multiprocessing
import os
import random
import subprocess
import sys
import time
from contextlib import suppress

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
    """Run the command in a process whose server has loaded the libraries already."""
    import torch

    from fatai.cli import main

    torch.set_num_threads(1)
    # As in a process that a shell starts; the start method of the server is for the children of the server only.
    multiprocessing.set_start_method(None, force=True)
    with open(log, "a") as f:
        os.dup2(f.fileno(), 1)
        os.dup2(f.fileno(), 2)
    sys.argv = ["fatai-submit", *args]
    main()


def count_epochs(out):
    """Return the number of epochs in the histories of the folds."""
    n_epochs = 0
    for file in out.glob("fold_*/history.csv"):
        with suppress(FileNotFoundError):  # a stage that begins replaces it
            n_epochs += len(file.read_text().splitlines()) - 1
    return n_epochs


def file_names(out):
    return {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_at_any_moment_and_resumed_ends_as_the_uninterrupted_one(sample, tmp_path, workers):
    (tmp_path / "killed.toml").write_text(RECIPE)
    args = ["run", str(sample), "--recipe", str(tmp_path / "killed.toml"), "--num-workers", str(workers)]
    uninterrupted, log = tmp_path / "uninterrupted", tmp_path / "log.txt"
    # The real command; those that are killed start with libraries loaded, which would take most of the time.
    subprocess.run(
        [sys.executable, "-m", "fatai.cli", *args, "--out", str(uninterrupted)], check=True, capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    expected = {name: (uninterrupted / name).read_bytes() for name in SAME}
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["fatai.cli", "fatai.experiment.run"])

    def start(out):
        process = server.Process(target=submit, args=([*args, "--resume", "--out", str(out)], str(log)))
        process.start()
        return process

    def check_finished(process, out):
        process.join(200)
        assert process.exitcode == 0, log.read_text()[-3000:]
        assert file_names(out) == file_names(uninterrupted)
        for name in SAME:
            assert (out / name).read_bytes() == expected[name], f"{name} of {out.name}"

    clock = time.monotonic()
    check_finished(start(tmp_path / "run_0"), tmp_path / "run_0")
    seconds = time.monotonic() - clock
    draw, killed_at, number = random.Random(2019 + workers), [], 1
    while len(killed_at) < KILLS:
        out = tmp_path / f"run_{number}"
        # By progress, not by the clock: on a loaded machine all moments of a clock can be those after the last epoch.
        goal = count_epochs(out) + draw.randrange(3)
        process = start(out)
        while process.exitcode is None and count_epochs(out) < goal:
            process.join(0.02)
        process.join(draw.uniform(0, 0.2 * seconds))
        if process.exitcode is None:
            process.kill()
            process.join()
            killed_at.append(count_epochs(out))
        else:
            check_finished(process, out)
            number += 1
    check_finished(start(tmp_path / f"run_{number}"), tmp_path / f"run_{number}")
    assert len(set(killed_at)) >= 4 and max(killed_at) > 4, (
        f"kills in several epochs, of the second fold too; they were at {killed_at}"
    )
