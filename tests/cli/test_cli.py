"""The real command, as a user types it."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import soundfile
from helpers.processes import new_processes

from fatai import __version__
from fatai.cli import main, training
from fatai.data.datasets.fat2019 import load_dataset
from fatai.data.labels import read_labels
from fatai.errors import DataError
from fatai.experiment.recipe import load_recipe, tomllib
from fatai.models.weights import WEIGHTS

COMMANDS = [
    "run",
    "predict",
    "ensemble",
    "check",
    "score",
    "demo",
    "recipes",
    "doctor",
    "models",
    "weights",
    "scan",
    "stats",
    "download",
    "relabel",
    "index",
    "find",
    "labels",
    "background",
    "tag",
    "calibrate",
    "show-augs",
    "lr-find",
    "export",
    "push",
    "embed",
    "reproduce",
    "drift",
    "serve",
    "review",
    "report",
]


def fatai_submit(*args, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "fatai.cli", *map(str, args)], capture_output=True, text=True, timeout=300, cwd=cwd
    )


def test_help_lists_the_commands_within_a_second():
    before = os.times()
    shown = fatai_submit("--help")
    after = os.times()
    assert shown.returncode == 0 and all(re.search(rf"\b{c}\b", shown.stdout) for c in COMMANDS)
    seconds = after.children_user - before.children_user + after.children_system - before.children_system
    assert seconds < 1.5, "computed, whatever else the machine does; with torch it would be several"


def test_importing_fatai_loads_neither_torch_nor_fastai():
    code = (
        "import sys, fatai; print([m for m in ('torch', 'fastai', 'numpy', 'pandas', 'librosa') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_command_itself_loads_neither_torch_nor_fastai():
    code = (
        "import sys, fatai.cli; "
        "print([m for m in ('torch', 'fastai', 'numpy', 'pandas', 'librosa') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_in_its_help(command, main_with):
    shown = main_with(command, "--help")
    assert shown.returncode == 0 and f"Example: fatai-submit {command}" in shown.stdout


@pytest.mark.parametrize("words, offered", [
    ("fatai-submit repr", ["reproduce"]),
    ("fatai-submit run --cro", ["--crop-s"]),
    ("fatai-submit recipes sh", ["show"]),
])
def test_a_shell_completes_commands_and_options(words, offered):
    env = {
        **os.environ,
        "_FATAI_SUBMIT_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    code = (
        "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr)); "
        "sys.argv[0] = 'fatai-submit'; from fatai.cli import app; app(prog_name='fatai-submit')"
    )
    completed = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert completed.stdout.split() == offered and completed.stderr == "False\n", "torch takes seconds"


def parameters():
    """Every parameter of every command, with the command's name."""
    from typer.main import get_command

    from fatai.cli import app

    for name, command in get_command(app).commands.items():
        for parameter in command.params:
            if parameter.name not in ("help", "ctx") and name not in ("recipes", "weights"):
                yield name, parameter


def test_the_same_option_has_the_same_help_everywhere():
    texts: dict[str, set[str]] = {}
    for name, parameter in parameters():
        assert parameter.help and parameter.help.strip()[-1] in ".?)", (
            f"{name}: {parameter.name} has no sentence of help"
        )
        key = parameter.metavar if parameter.metavar in ("DATA", "RUN") else parameter.name
        texts.setdefault(key, set()).add(parameter.help)
    same = (
        "DATA", "epochs", "crop_s", "width", "seed", "recipe", "tta", "n_views", "calibrate", "step_s",
        "num_workers", "input_list", "shard", "nproc", "host", "port",
    )
    for key in same:
        assert len(texts[key]) == 1, f"{key} is explained in {len(texts[key])} ways"
    assert len(texts["RUN"]) == 3, "a finished run, and one that may be a model folder or an index"


def test_a_run_is_always_the_first_argument():
    first: dict[str, str] = {}
    for name, parameter in parameters():
        if parameter.param_type_name == "argument":
            first.setdefault(name, parameter.metavar)
            assert parameter.metavar != "RUN" or first[name] == "RUN", f"{name}: RUN comes after {first[name]}"
    with_run = {name for name, metavar in first.items() if metavar == "RUN"}
    assert with_run == {
        "predict", "tag", "serve", "report", "review", "export", "push", "embed", "calibrate", "reproduce",
        "drift",
    }


def test_help_shows_every_command_once_in_its_panel(main_with):
    from typer.main import get_command

    from fatai.cli import app

    shown = main_with("--help").stdout
    for panel in ("Train", "Predict", "Evaluate", "Data", "Labels", "Models", "Competition"):
        assert re.search(rf"^{panel}:$", shown, re.M)
    for name in get_command(app).commands:
        assert len(re.findall(rf"^  {name} ", shown, re.M)) == 1, name


@pytest.mark.parametrize(("args", "replacement"), [
    (["train", "DATA"], "the command train has become: fatai-submit run --no-predict"),
    (["compare", "RUN"], "the command compare has become: fatai-submit score RUN... --truth TRUTH"),
    (["suspects", "RUN"], "the command suspects has become: fatai-submit review RUN --out issues.csv"),
    (["repeat", "RUN"], "the command repeat has become: fatai-submit reproduce"),
    (["merge", "p.csv"], "the command merge has become: fatai-submit predict --merge"),
    (["panns-logreg", "DATA"], "the command panns-logreg has become: fatai-submit run --recipe panns_logreg"),
    (["run", "DATA", "--only-fold", "1"], "the option --only-fold of run has become --fold"),
    (["run", "DATA", "--workers=2"], "the option --workers of run has become --num-workers"),
    (["run", "DATA", "--reuse", "RUN"], "the option --reuse of run has become --reuse-run"),
    (["predict", "RUN", "--list", "l.txt"], "the option --list of predict has become --input-list"),
    (["predict", "RUN", "--processes", "2"], "the option --processes of predict has become --nproc"),
    (["predict", "RUN", "--keep-views", "v"], "the option --keep-views of predict has become --save-views"),
    (["serve", "RUN", "--calibrated"], "the option --calibrated of serve has become --calibrate"),
    (["tag", "a.wav", "--model", "RUN"], "the option --model of tag has become RUN as the first argument"),
])
def test_a_former_name_is_an_error_that_gives_the_new_one(args, replacement, main_with):
    ended = main_with(*args)
    assert ended.returncode == 2 and replacement in ended.stderr and ended.stderr.count("\n") == 1


def test_version():
    assert fatai_submit("--version").stdout.strip() == f"fatai {__version__}"


@pytest.mark.parametrize(
    "args, words",
    [
        (["run", "nowhere", "--out", "new"], "there is no folder nowhere"),
        (["run", "{empty}", "--out", "new"], "no train_curated.csv"),
        (["run", "{sample}", "--recipe", "nineth", "--out", "new"], r"'nineth' \(a file .*\); did you mean ninth\?$"),
        (["run", "{sample}", "--recipe", "nowhere.toml", "--out", "new"], "there is no recipe file nowhere.toml"),
        (["run", "{sample}", "--arch", "m33", "--out", "new"], "did you mean m3"),
        (["run", "{sample}", "--folds", "1", "--out", "new"], "folds.n is 1"),
        (["run", "{sample}", "--recipe", "quick", "--out", "{run}"], "exists and is not empty"),
        (["predict", "{empty}", "{sample}"], "is not a finished run"),
        (["predict", "{run}", "nowhere.wav"], "there is no file or folder nowhere.wav"),
        (["score", "nowhere.csv", "--truth", "{sample}/truth/test.csv"], "nowhere.csv"),
        (["score", "{run}/test.csv", "--truth", "{sample}/train_curated.csv"], "truth"),
        (["ensemble", "{run}", "{run}/oof.csv", "--out", "e.csv"], "oof.csv|clips|missing|lack"),
        (["ensemble", "{run}", "--weights", "a", "--out", "e.csv"], "expected numbers"),
        (["check", "{run}/oof.csv", "--sample", "{sample}/sample_submission.csv"], "does not match"),
        (["recipes", "show", "nineth"], "did you mean ninth"),
        (["download", "esc51", "new"], "did you mean esc50"),
        (["stats", "{sample}", "--front-end", "nineth"], "did you mean ninth"),
        (["scan", "nowhere"], "nowhere"),
        (
            ["relabel", "{sample}", "--predictions", "{run}/test.csv", "--method", "scoring_9", "--out", "r.csv"],
            "lack|no prediction|predict",
        ),
        (["review", "{empty}", "--data", "{sample}", "--out", "issues.csv"], "oof.csv"),
        (["doctor", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_an_error_that_the_user_can_fix_is_one_sentence_and_exit_code_2(
    args, words, main_with, tiny_run, sample, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    filled = [a.format(sample=sample, run=tiny_run.out, empty=tmp_path / "empty") for a in args]
    ended = main_with(*filled)
    assert ended.returncode == 2, ended.stderr
    assert re.search(words, ended.stderr) and "Traceback" not in ended.stderr, ended.stderr


def test_the_installed_command_ends_with_one_sentence_too(tmp_path):
    ended = fatai_submit("download", "esc51", "new", cwd=tmp_path)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and "did you mean esc50" in ended.stderr


def test_an_unknown_option_is_exit_code_2_too():
    assert fatai_submit("run", "x", "--epoch", "3").returncode == 2


def test_run_check_score_predict_and_ensemble_in_a_row(main_with, sample, few_clips, tmp_path):
    recipe = tmp_path / "my.toml"
    shown = main_with("recipes", "show", "quick").stdout
    recipe.write_text(shown.replace('arch = "m3"', 'arch = "m1"').replace("width = 0.25", "width = 0.125"))
    ran = main_with(
        "run", few_clips, "--recipe", recipe, "--epochs", 1, "--crop-s", 0.5, "--out", tmp_path / "run",
        "--num-workers", 0,
    )
    assert ran.returncode == 0, ran.stderr
    assert "out of fold: lwlrap" in ran.stdout and "\r" not in ran.stdout + ran.stderr, (
        "no bars where there is no terminal"
    )
    assert re.search(r"epoch 0 .*lwlrap 0\.\d+", ran.stdout)
    submission, template = tmp_path / "run" / "submission.csv", few_clips / "sample_submission.csv"
    assert "is valid" in main_with("check", submission, "--sample", template).stdout
    truth = pd.read_csv(sample / "truth" / "test.csv")
    truth[truth["fname"].isin(pd.read_csv(template)["fname"])].to_csv(tmp_path / "truth.csv", index=False)
    scored = main_with("score", tmp_path / "run" / "test.csv", "--truth", tmp_path / "truth.csv", "--per-tag").stdout
    assert re.match(r"lwlrap 0\.\d{4}, 95 % interval 0\.\d{3} to [01]\.\d{3}\n", scored)
    assert len(scored.splitlines()) == 11
    tagged = main_with("predict", tmp_path / "run", few_clips, "--out", tmp_path / "again.csv")
    assert tagged.returncode == 0 and (tmp_path / "again.csv").read_text().count("\n") == 21
    blended = main_with(
        "ensemble", tmp_path / "run", tmp_path / "again.csv", "--sample", template, "--out", tmp_path / "blend.csv"
    )
    assert (
        blended.returncode == 0
        and "is valid" in main_with("check", tmp_path / "blend.csv", "--sample", template).stdout
    )
    one = next((few_clips / "test").iterdir())
    assert re.match(rf"{one.name}: \w+ 0\.\d\d, ", main_with("predict", tmp_path / "run", one).stdout)


def submit(args, out, err):
    """Run a command in this process, which Ctrl-C ends, with its output in files."""
    # Children of a job in the background inherit that it ignores Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.argv = ["fatai-submit", *args]
    main()


def test_ctrl_c_ends_cleanly(few_clips, tmp_path):
    options = "--recipe quick --epochs 500 --arch m1 --width 0.0625 --crop-s 0.5 --num-workers 0".split()
    args = ["run", str(few_clips), *options, "--out", str(tmp_path / "run")]
    out, err = tmp_path / "out", tmp_path / "err"
    process = new_processes().Process(target=submit, args=(args, str(out), str(err)))
    process.start()
    try:
        while process.is_alive() and not (out.exists() and "\nepoch" in out.read_text()):
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGINT)
        process.join(60)
    finally:
        process.kill()
    printed = err.read_text()
    assert process.exitcode == 130 and "Traceback" not in printed and printed.strip().endswith("stopped"), printed


def test_recipes_lists_them_all(main_with):
    from fatai.experiment.recipe import recipe_names

    listed = main_with("recipes").stdout
    assert all(re.search(rf"^{name} ", listed, re.M) for name in recipe_names())


def test_models_lists_names_parameters_smallest_inputs_and_sources(main_with):
    listed = main_with("models", "--tags", 80).stdout
    assert re.search(r"^m3 +26,129,489 +16x16 +9th place", listed, re.M)
    assert re.search(r"^cnn14 +79,837,712 ", listed, re.M)


def test_weights_are_listed_with_what_is_here_and_downloaded(main_with, server, tmp_path, monkeypatch):
    content = b"weights"
    entry = replace(
        WEIGHTS["mn04_as"],
        url=server.url + "mn04_as_mAP_432.pt",
        checksum=f"sha256:{hashlib.sha256(content).hexdigest()}",
    )
    monkeypatch.setitem(WEIGHTS, "mn04_as", entry)
    monkeypatch.setenv("FATAI_WEIGHTS", str(tmp_path / "files"))
    server.files["mn04_as_mAP_432.pt"] = content
    listed = main_with("weights").stdout
    assert re.search(r"^mn04_as +mn04 +AudioSet, mAP 0.432 +4 MB +MIT +not here$", listed, re.M)
    assert re.search(r"^cnn14 +cnn14 +AudioSet, mAP 0.431 +327 MB +CC BY 4.0 +not here$", listed, re.M)
    assert listed.endswith(f"files: {tmp_path / 'files'}\n")
    got = main_with("weights", "get", "mn04_as")
    assert got.returncode == 0 and "mn04 trained on AudioSet, license MIT" in got.stdout
    assert "use it with: fatai-submit run DATA --recipe finetune --arch mn04\n" in got.stdout
    assert (tmp_path / "files" / "mn04_as_mAP_432.pt").read_bytes() == content
    assert re.search(r"^mn04_as .* here$", main_with("weights").stdout, re.M)
    wrong = main_with("weights", "get", "mn04")
    assert wrong.returncode == 2 and "did you mean mn04_as" in wrong.stderr
    server.errors = [404]
    (tmp_path / "files" / "mn04_as_mAP_432.pt").unlink()
    refused = main_with("weights", "get", "mn04_as")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "returned 404" in refused.stderr


def test_scan_prints_text_or_json(main_with, few_clips):
    report = json.loads(main_with("scan", few_clips, "--json").stdout)
    assert not any(report["findings"].values()) and "cache of waves" in main_with("scan", few_clips).stdout


def test_stats_go_into_a_recipe(main_with, few_clips, tmp_path):
    ended = main_with("stats", few_clips, "--recipe", "quick", "--parts", "curated", "--out", tmp_path / "my.toml")
    assert ended.returncode == 0, ended.stderr
    shown = main_with("stats", few_clips, "--front-end", "ninth", "--parts", "curated").stdout
    numbers = tomllib.loads(shown)
    measured = tomllib.loads((tmp_path / "my.toml").read_text())["front_end"]
    assert {k: measured[k] for k in numbers} == numbers and numbers["mean"] != -35.7


def test_stats_measures_the_recipe_that_run_takes_at_the_rate_of_the_data(main_with, tmp_path, rng):
    for k in range(4):
        soundfile.write(tmp_path / f"{k}.wav", 0.1 * rng.standard_normal(16000), 16000)
    (tmp_path / "labels.csv").write_text("file,tags\n0.wav,a\n1.wav,b\n2.wav,a\n3.wav,b\n")
    ended = main_with("stats", tmp_path / "labels.csv", "--out", tmp_path / "my.toml")
    assert ended.returncode == 0 and "my.toml: default with the statistics" in ended.stdout, ended.stderr
    written = load_recipe(tmp_path / "my.toml")
    assert written.front_end["sr"] == 16000 and written.front_end["mean"] != -35.7
    assert written.auto is None and "front_end.sr = 16000" in written.decided


def test_review_writes_the_label_issues_of_a_run_as_a_table(main_with, tiny_run, sample, tmp_path):
    issues = tmp_path / "issues.csv"
    ended = main_with("review", tiny_run.out, "--data", sample, "--out", issues)
    assert ended.returncode == 0, ended.stderr
    written = pd.read_csv(issues)
    assert set(written["kind"]) <= {"wrong", "missing"} and written["labels"].notna().all() and len(written) > 0
    assert written["score"].is_monotonic_decreasing and f"{len(written)} label issues in 120 clips" in ended.stdout
    assert main_with("review", tiny_run.out, "--data", sample, "-n", 3, "--out", issues).returncode == 0
    few = pd.read_csv(issues)
    assert few["fname"].nunique() == 3 and set(few["fname"]) == set(written["fname"].drop_duplicates().head(3))


def test_relabel_writes_a_table_and_corrections_that_loaders_read(main_with, tiny_run, sample, tmp_path):
    noisy = tmp_path / "noisy.csv"
    assert main_with("predict", tiny_run.out, sample / "train_noisy", "--out", noisy).returncode == 0
    ended = main_with(
        "relabel", sample, "--predictions", noisy, "--method", "scoring_20", "--out", tmp_path / "kept.csv"
    )
    assert ended.returncode == 0, ended.stderr
    assert len(read_labels(tmp_path / "kept.csv")) == 20
    again = main_with(
        "relabel",
        sample,
        "--predictions",
        noisy,
        "--method",
        "scoring_20",
        "--out",
        tmp_path / "c.csv",
        "--corrections",
    )
    assert again.returncode == 0 and len(load_dataset(sample, corrections=tmp_path / "c.csv").noisy) == 20


@pytest.mark.parametrize("options", [(), ("--recipe", "quick")], ids=["default", "quick"])
def test_doctor_with_data_profiles_an_epoch(options, main_with, few_clips):
    printed = main_with("doctor", few_clips, *options).stdout
    assert all(w in printed for w in ("decode", "front end", "network", "an epoch of 40 clips"))


def test_doctor_names_versions_device_and_decoders(main_with):
    found = main_with("doctor")
    assert found.returncode == 0, found.stdout + found.stderr
    assert all(w in found.stdout for w in ("torch", "fastai", "libsndfile", "device", "cores", "no problems found"))


def test_the_console_script_is_installed():
    assert (Path(sys.executable).parent / "fatai-submit").exists()


@pytest.mark.slow
def test_a_demo_trains_and_prints_its_scores(tmp_path):
    command = [sys.executable, "-m", "fatai.cli", "demo", "--epochs", "1", "--out", str(tmp_path / "demo")]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"^fold 3 lwlrap 0\.\d{4}\nout-of-fold lwlrap 0\.\d{4}\ntest lwlrap 0\.\d{4}$", ended.stdout, re.M)
    assert (tmp_path / "demo" / "report.html").is_file()


class TestDemo:
    @pytest.fixture(autouse=True)
    def no_training(self, monkeypatch):
        """Stop the demo where it would begin to train."""
        def run(self, **options):
            raise DataError("training begins")

        monkeypatch.setattr(training.Training, "run", run)

    def earlier(self, out, command="fatai-submit demo --out demo"):
        (out / "fold_0").mkdir(parents=True)
        (out / "fold_0" / "model.safetensors").write_bytes(b"weights")
        (out / "manifest.json").write_text(json.dumps({"command": command, "data": {}}))
        for name in ("recipe.toml", "oof.csv", "report.html"):
            (out / name).write_text("x")

    def test_it_replaces_an_earlier_demo(self, tmp_path, main_with):
        self.earlier(tmp_path / "demo")
        assert "training begins" in main_with("demo", "--out", tmp_path / "demo").stderr
        assert not (tmp_path / "demo").exists()

    @pytest.mark.parametrize("command", ["fatai-submit run DATA --recipe quick", "fatai-submit demonstrate", "", None])
    def test_it_leaves_a_run_of_another_command(self, command, tmp_path, main_with):
        self.earlier(tmp_path / "run", command)
        assert "was not made by a demo" in main_with("demo", "--out", tmp_path / "run").stderr
        assert (tmp_path / "run" / "fold_0" / "model.safetensors").exists()

    @pytest.mark.parametrize(
        "name", ["thesis.txt", "notes/thesis.txt", "manifest.json.bak", "fold_0/thesis.txt", "fold_photos/1.jpg"]
    )
    def test_it_leaves_a_demo_with_a_file_of_the_user(self, name, tmp_path, main_with):
        self.earlier(tmp_path / "demo")
        (tmp_path / "demo" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "demo" / name).write_text("years of work")
        ended = main_with("demo", "--out", tmp_path / "demo")
        assert ended.returncode == 2 and "which no demo made" in ended.stderr
        assert (tmp_path / "demo" / name).read_text() == "years of work" and (tmp_path / "demo" / "oof.csv").exists()

    @pytest.mark.parametrize("make", [
        lambda out: out.write_text("a file"), lambda out: (out.mkdir(), (out / "a.txt").write_text("x")),
        lambda out: (out.mkdir(), (out / "recipe.toml").write_text("x")),
        lambda out: (out.mkdir(), (out / "manifest.json").write_text("{")),
    ])
    def test_it_leaves_what_is_no_run(self, make, tmp_path, main_with):
        make(tmp_path / "mine")
        assert "was not made by a demo" in main_with("demo", "--out", tmp_path / "mine").stderr
        assert (tmp_path / "mine").exists() and (not (tmp_path / "mine").is_dir() or any((tmp_path / "mine").iterdir()))
