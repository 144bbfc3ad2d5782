"""What people give by mistake: each is refused before anything is computed, by a message that says what to do."""

import re
import shutil

import pytest


@pytest.fixture
def empty(tmp_path):
    """An empty folder, where a file is expected."""
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


@pytest.mark.parametrize("command", [
    "predict {run} {sample}/test --out {empty}",
    "predict {run} {sample}/test --labels {empty}",
    "embed {run} {sample}/test --out {empty}",
    "report {run} --out {empty}",
    "review {run} --out {empty}",
    "drift {run} --out {empty}",
    "ensemble {run} --out {empty}",
    "lr-find {sample} --out {empty}",
    "stats {sample} --out {empty}",
])
def test_a_folder_in_place_of_a_file_to_write_is_refused_at_once(command, main_with, tiny_run, sample, empty):
    ended = main_with(*command.format(run=tiny_run.out, sample=sample, empty=empty).split())
    assert ended.returncode == 2 and f"'{empty}' is a directory" in ended.stderr
    assert not list(empty.iterdir())


@pytest.mark.parametrize("command", [
    "run {sample} --out {file}", "tune {sample} --out {file}", "predict {run} {sample}/test --save-views {file}",
    "index {run} {sample}/test --out {file}",
])
def test_a_file_in_place_of_a_folder_to_write_is_refused_at_once(command, main_with, tiny_run, sample, tmp_path):
    (tmp_path / "file").write_text("mine")
    ended = main_with(*command.format(run=tiny_run.out, sample=sample, file=tmp_path / "file").split())
    assert ended.returncode == 2 and "is a file" in ended.stderr
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("fold", [2, 7, -1])
def test_a_fold_that_holds_out_no_clip_is_refused_before_the_folder_is_made(fold, main_with, sample, tmp_path):
    out = tmp_path / "run"
    ended = main_with("run", sample, "--recipe", "quick", "--folds", 2, "--fold", fold, "--out", out)
    assert ended.returncode == 2 and f"the folds to train are [{fold}]; expected one or more of [0, 1]" in ended.stderr
    assert not out.exists()


@pytest.mark.parametrize("command, option", [
    ("predict RUN --how mean", "--how"), ("score p.csv --labels t.csv", "--labels"), ("demo --budget 3", "--budget"),
])
def test_a_former_option_is_not_replaced_by_one_that_the_command_lacks(command, option, main_with):
    ended = main_with(*command.split())
    assert ended.returncode == 2 and f"No such option: {option}" in ended.stderr and "has become" not in ended.stderr


@pytest.mark.parametrize("command, words", [
    ("score {run} --truth {sample}/truth/test.csv", "has no oof.csv; .* --resume"),
    ("score {run} --truth {sample}/truth/test.csv --part test", "has no test.csv; .* test part"),
    ("ensemble {run} --out e.csv", "has no test.csv"),
    ("ensemble {run} --out e.csv --weights lwlrap", "has no test.csv"),
    ("calibrate {run} --truth {sample}/train_curated.csv", "has no oof.csv"),
    ("review {run} --data {sample}", "has no oof.csv"),
    ("review {run}x --data {sample}", "there is no folder .*x"),
])
def test_a_run_that_was_stopped_is_named_as_such(command, words, main_with, tiny_run, sample, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run.out, run, ignore=shutil.ignore_patterns("oof.csv", "test.csv"))
    ended = main_with(*command.format(run=run, sample=sample).split())
    assert ended.returncode == 2 and re.search(words, ended.stderr), ended.stderr


@pytest.mark.parametrize("options, words", [
    (["--recipe", "probe", "--epochs", 3], "fits logistic regressions, .*: leave out --epochs and --lr"),
    (["--recipe", "probe", "--lr", "1e-3"], "fits logistic regressions, .*: leave out --epochs and --lr"),
    (["--budget", "5x"], "the duration is '5x'; expected hours, minutes or seconds"),
])
def test_options_without_a_meaning_are_refused_before_the_data_are_read(options, words, main_with, tmp_path):
    ended = main_with("run", tmp_path / "data", *options, "--out", tmp_path / "run")
    assert ended.returncode == 2 and re.search(words, ended.stderr), ended.stderr


def test_no_views_are_refused(main_with, tiny_run, sample):
    ended = main_with("predict", tiny_run.out, sample / "test", "--n-views", 0)
    assert ended.returncode == 2 and "greater than or equal to 1" in ended.stderr


def test_no_views_are_refused_by_the_function_too(tiny_run, sample):
    from fatai.errors import OptionError
    from fatai.experiment.run_folder import predict_with_run

    with pytest.raises(OptionError, match="n is 0"):
        predict_with_run(tiny_run.out, sorted((sample / "test").iterdir())[:1], n=0)


def test_windows_are_printed_with_the_meaning_of_their_score(main_with, tiny_run, sample, tmp_path):
    from fatai.inference.search.index import SoundIndex

    index, sound = tmp_path / "index", sorted((sample / "train_curated").iterdir())[0]
    assert main_with("index", tiny_run.out, sound, "--out", index).returncode == 0
    tag = SoundIndex(index).tags[0]
    found = main_with("find", index, sound)
    assert "cosine similarity" in found.stderr and "cosine" not in found.stdout
    assert f"probability of {tag} by the network" in main_with("find", index, "--tag", tag).stderr
    page = tmp_path / "found.html"
    assert "uncertainty" in main_with("find", index, "--uncertain", "--out", page).stdout
    assert "The score is the uncertainty" in page.read_text()


@pytest.mark.parametrize("command, words", [
    ("predict {run} {sample}/test --out {tmp}/tags.xlsx", "tags.xlsx; expected a name that ends in .csv or .parquet"),
    ("predict {run} {sample}/test --out {tmp}/tags.json", "tags.json; expected a name that ends in .csv or .parquet"),
    ("lr-find {sample} --out {tmp}/lr.txt", "lr.txt; expected a name that ends in .png, .svg, .pdf or .jpg"),
    ("show-augs {sample} --out {tmp}/augs.foo", "augs.foo; expected a name that ends in .png, .svg, .pdf or .jpg"),
    ("export {run} {tmp}/model.pt", "no .pt is written; expected model.onnx, or the name of a folder"),
    ("export {run} {tmp}/model.torchscript", "no .torchscript is written; expected model.onnx"),
])
def test_a_format_that_is_not_written_is_refused_at_once(command, words, main_with, tiny_run, sample, tmp_path):
    ended = main_with(*command.format(run=tiny_run.out, sample=sample, tmp=tmp_path).split())
    said = " ".join(ended.stderr.replace("│", " ").split())
    assert ended.returncode == 2 and words in said, ended.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["lr-find", "doctor", "stats"])
@pytest.mark.parametrize("name", ["best", "ensembles/best"])
def test_an_ensemble_in_place_of_a_recipe_is_called_one(command, name, main_with, sample):
    ended = main_with(command, sample, "--recipe", name)
    assert ended.returncode == 2 and f"{name} is an ensemble, and one recipe is expected" in ended.stderr


def test_a_search_for_a_learning_rate_that_a_recipe_does_not_have_is_refused(main_with, sample):
    ended = main_with("lr-find", sample, "--recipe", "panns_logreg")
    assert ended.returncode == 2 and "fits a logistic regression, which has no learning rate" in ended.stderr


def test_a_run_to_reuse_is_refused_without_an_ensemble(main_with, tiny_run, sample, tmp_path):
    out = tmp_path / "run"
    ended = main_with("run", sample, "--recipe", "quick", "--reuse-run", tiny_run.out, "--out", out)
    assert ended.returncode == 2 and "--reuse-run is given with recipe quick, and is for members" in ended.stderr
    assert not out.exists()
