"""Every command that takes sounds or tables, on odd ones: a result, or one sentence that says why not.

The inputs are made by scripts that lie beside the project where it is developed; elsewhere these tests are skipped.
"""

import shutil

import pandas as pd
import pytest
from helpers.odd_inputs import make_odd_sounds, make_odd_tables
from starlette.testclient import TestClient

from fatai.audio.folders import is_hidden
from fatai.experiment.run_folder import Tagger
from fatai.web.security import SecurityMiddleware
from fatai.web.tagger_app import tagger_app

pytestmark = pytest.mark.slow

QUICK = "--recipe quick --epochs 1 --folds 2 --bs 8 --arch m1 --width 0.125 --crop-s 0.5"
UNREADABLE = "nan_one.wav"

# {run} is a run on other sounds, {mine} one on these, {sounds} their folder, {table} and {list} list them, {classes} is
# a folder for each tag. Exit code 0 unless another one follows.
ON_SOUNDS = [
    "scan {table}", "scan {classes}", "run {table} --dry-run", "stats {table} --recipe quick",
    f"run {{table}} {QUICK} --out {{out}}/a", f"run {{classes}} {QUICK} --out {{out}}/b",
    "lr-find {table} --recipe quick --steps 20 --bs 4 --arch m1 --width 0.125",
    "show-augs {table} --recipe quick --augment time_warp --out {out}/augs.png",
    "tune {table} --recipe quick --arch m1 --budget 30s --trials 1 --epochs 1 --inner-folds 2 --out {out}/tune",
    "predict {run} {sounds}", "predict {run} {sounds} --out {out}/p.csv", ("predict {run} {sounds} --strict", 3),
    "predict {run} {table} --out {out}/t.csv", "predict {run} --input-list {list} --channel each",
    "predict {run} {sounds} --save-views {out}/views --out {out}/v.csv",
    "predict {mine} {sounds} --labels {out}/labels.csv",
    "tag {run} {sounds}", "tag {run} {sounds} --out {out}/e.csv", ("tag {run} --input-list {list} --strict", 3),
    *(f"tag {{run}} {{sounds}} --format {name} --out {{out}}/{name}" for name in ("json", "audacity", "raven")),
    "embed {run} {sounds} --out {out}/e.npy", "index {run} {sounds} --out {out}/index",
    "score {mine} --truth {table}", "calibrate {mine} --truth {table} --thresholds f1", "report {mine}",
    "review {mine}", "review {mine} --out {out}/issues.csv", "reproduce {mine} --out {out}/again",
    "drift {mine}",
    "export {mine} {out}/m.onnx", "ensemble {oof} {oof} --out {out}/ens.csv", ("check {oof} --sample {table}", 2),
    ("relabel {table} --predictions {oof} --method fullmatch --out {out}/relabelled.csv", 2),
]
# {table} is each of the tables. Where it is a table of labels, these take it; refusals are a sentence and exit code 2.
ON_TABLES = [
    "scan {table}", "predict {run} {table} --out {out}/p.csv", "score {predicted} --truth {table}",
    f"run {{table}} {QUICK} --out {{out}}/run", "run {plain} --corrections {table} --dry-run",
    "stats {table} --recipe quick", "predict {run} --input-list {table}",
    "ensemble {table} {predicted} --out {out}/e.csv", "check {table} --sample {predicted}",
    "check {predicted} --sample {table}",
    "relabel {table} --predictions {predicted} --method fullmatch --out {out}/r.csv",
    "labels {table} --out {out}/labels.csv",
]
# Commands that take neither sounds nor tables; serve is called by its page below, find takes an index.
OTHERS = {"demo", "doctor", "download", "models", "recipes", "weights", "serve", "find", "push", "background"}


def words(command):
    """A command of the lists above and its exit code."""
    return command if isinstance(command, tuple) else (command, 0)


@pytest.fixture(scope="module")
def inputs(sample, tiny_run, tmp_path_factory):
    """Paths of the odd sounds by the names that commands have for them."""
    folder = tmp_path_factory.mktemp("inputs")
    sounds, classes, table, listed = (folder / name for name in ("sounds", "classes", "sounds.csv", "list.txt"))
    make_odd_sounds(sample, sounds)
    names = sorted(file.name for file in sounds.iterdir() if not is_hidden(file.name))
    for k, name in enumerate(names):
        (classes / f"tag{k % 2}").mkdir(parents=True, exist_ok=True)
        shutil.copy(sounds / name, classes / f"tag{k % 2}")
    tags = [("Bark", "Meow")[k % 2] for k in range(len(names))]
    pd.DataFrame({"fname": [f"sounds/{name}" for name in names], "labels": tags}).to_csv(table, index=False)
    listed.write_text("".join(f"{sounds / name}\n" for name in names))
    return {"sounds": sounds, "classes": classes, "table": table, "list": listed, "run": tiny_run.out}


@pytest.fixture(scope="module")
def mine(inputs, tmp_path_factory):
    """A run on the odd sounds, with thresholds."""
    from fatai.experiment.calibrate import calibrate_run
    from fatai.experiment.recipe import load_recipe
    from fatai.experiment.run import run_recipe

    recipe = load_recipe("quick").override(arch="m1", width=0.125, epochs=1, crop_s=0.5, n_views=2, bs=8)
    out = tmp_path_factory.mktemp("mine") / "run"
    run_recipe(inputs["table"], recipe, out, num_workers=0)
    calibrate_run(out, inputs["table"], thresholds="f1")
    return out


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", ON_SOUNDS, ids=lambda command: words(command)[0])
def test_a_command_on_odd_sounds_ends_well(inputs, mine, main_with, tmp_path, command):
    text, expected = words(command)
    paths = {**inputs, "mine": mine, "oof": mine / "oof.csv", "out": tmp_path}
    done = main_with(*text.format(**paths).split())
    assert done.returncode == expected, done.stderr[-800:]
    assert expected != 2 or done.stderr.splitlines()[-1]


@pytest.mark.filterwarnings("ignore")
def test_the_page_answers_to_every_odd_sound(inputs, tiny_run):
    app = SecurityMiddleware(tagger_app(Tagger(tiny_run.out), "test"))
    with TestClient(app, "http://127.0.0.1:8000") as client:
        for file in sorted(inputs["sounds"].iterdir()):
            response = client.post("/tag", files={"sound": (file.name, file.read_bytes())})
            is_bad = file.name == UNREADABLE or is_hidden(file.name)
            assert response.status_code == (response.status_code if is_bad else 200), (file.name, response.text)
            assert response.status_code in (200, 415, 422) and (not is_bad or file.name in response.json()["error"])


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    return make_odd_tables(tmp_path_factory.mktemp("odd") / "tables")


@pytest.fixture(scope="module")
def predicted(tables, tiny_run, tmp_path_factory):
    """A file of predictions of the clips of the tables."""
    from fatai.experiment.run_folder import predict_with_run

    path = tmp_path_factory.mktemp("predicted") / "p.csv"
    predict_with_run(tiny_run.out, sorted((tables / "audio").iterdir())).to_csv(path)
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", ON_TABLES)
def test_a_command_on_odd_tables_ends_well(tables, predicted, tiny_run, main_with, tmp_path, command):
    codes = {}
    for table in sorted(file for file in tables.iterdir() if file.is_file()):
        out = tmp_path / table.name
        out.mkdir()
        paths = {"table": table, "plain": tables / "plain.csv", "predicted": predicted, "run": tiny_run.out, "out": out}
        done = main_with(*command.format(**paths).split())
        codes[table.name] = done.returncode
        assert done.returncode in (0, 1, 2), (table.name, done.stderr[-800:])
        assert done.returncode != 2 or any(line.startswith("fatai-submit: ") for line in done.stderr.splitlines())
    if command.split()[0] in ("scan", "run", "stats") and "--corrections" not in command or "{run} {table}" in command:
        # The only table without an answer has no rows.
        assert {name for name, code in codes.items() if code == 2} == {"empty_rows.csv"}


def test_every_command_is_tried():
    from typer.main import get_command

    from fatai.cli import app

    tried = {words(command)[0].split()[0] for command in [*ON_SOUNDS, *ON_TABLES]}
    assert set(get_command(app).commands) == tried | OTHERS
