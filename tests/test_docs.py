"""README, CONTRIBUTING and the documentation: code and shell blocks run, tables match the registries."""

import ast
import contextlib
import doctest
import importlib.util
import io
import re
import shlex
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
# Options that shorten the training of a page to seconds.
SMALL = {"--epochs": "1", "--arch": "m1", "--width": "0.125", "--crop-s": "0.5", "--n-views": "2"}


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of each block of code; `console` blocks are run, `sh` blocks are not."""
    return re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)


# A block of code, its language and text, and the output that the page shows below it.
SHOWN = re.compile(r"^```(\w+)\n(.*?)^```\n(?:\n```output\n(.*?)^```\n)?", re.M | re.S)


def printed(block: str, names: dict) -> str:
    """Execute Python code; return what it prints, and as in a notebook the value of an expression at its end."""
    *body, last = ast.parse(block).body
    is_value = isinstance(last, ast.Expr)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(ast.Module(body if is_value else [*body, last], []), "page", "exec"), names)
        value = eval(compile(ast.Expression(last.value), "page", "eval"), names) if is_value else None
        if value is not None:
            print(repr(value))
    return out.getvalue()


# What differs from one training to another: its commit, the tags that it predicts, and numbers; names of clips, too.
_, *TAGS = (ROOT / "fatai/data/datasets/sample/sample_submission.csv").read_text().split("\n")[0].split(",")
VARIES = {
    r"\b[0-9a-f]{40}\b": "COMMIT", r"\b\w+\.(ogg|wav|flac)\b": "SOUND", "|".join(TAGS): "TAG",
    r"-?\d+(?:[.,:]\d+)*": "0",
}


def without_results(text: str) -> str:
    """Replace what may differ from one training to another."""
    for pattern, name in VARIES.items():
        text = re.sub(pattern, name, text)
    return text


def assert_shown(expected: str, got: str, where: str) -> None:
    """Compare output with that of a page, where ... stands for any text; results may differ, their places may not."""
    wanted, found = without_results(expected), without_results(got)
    wanted = re.sub(r"\s+\.\.\.\s*$", "...", wanted)  # at the end also for nothing
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.OutputChecker().check_output(wanted, found, flags), f"{where} shows\n{expected}\nand prints\n{got}"


def commands(page: str, languages: tuple[str, ...]) -> list[list[str]]:
    """Words of every line that calls fatai-submit, comments left out."""
    lines = [
        line[2:]
        for language, text in blocks(page)
        if language in languages
        for line in text.splitlines()
        if line.startswith("$ ")
    ]
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line[:1] == ["fatai-submit"]]


RUNNING = [page for page in PAGES if any(language in ("python", "console") for language, _ in blocks(page))]


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def reader_folder(tmp_path, monkeypatch, sample, tiny_run, hub_server):
    """The files of a reader: data, sounds with a table, a long recording, and a run; the Hub is one on loopback."""
    import soundfile as sf

    monkeypatch.chdir(tmp_path)
    shutil.copytree(sample, "DATA")
    table = pd.read_csv("DATA/train_curated.csv", dtype=str).rename(columns={"fname": "file", "labels": "tags"})
    shutil.copytree("DATA/train_curated", "my_sounds/audio")
    table.to_csv("my_sounds/labels.csv", index=False)
    for row in table.head(20).itertuples():
        folder = Path("my_folders") / row.tags.split(",")[0]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path("my_sounds/audio") / row.file, folder)
    waves = [sf.read(Path("my_sounds/audio") / name)[0] for name in table["file"][:3]]
    sf.write("recording.wav", np.concatenate([np.concatenate([np.zeros(22050), wave]) for wave in waves]), 44100)
    shutil.copytree(tiny_run.out, "runs/mine")
    Path("corrections.csv").write_text(f"fname,labels\n{table['file'][0]},remove\n", encoding="utf-8")
    df = table.assign(file="audio/" + table["file"], is_valid=[k % 4 == 0 for k in range(len(table))])
    yield {"df": df}
    plt.close("all")


@pytest.fixture
def restored_registries():
    """Remove the names that a page registers."""
    from fatai.registry import FRONT_ENDS, LOSSES, MODELS

    entries_before = []
    for registry in (FRONT_ENDS, LOSSES, MODELS):
        registry.names()
        entries_before.append((registry, dict(registry._entries)))
    yield
    for registry, entries in entries_before:
        registry._entries = entries


def shortened(words: list[str]) -> list[str]:
    if words[0] != "run" or "--dry-run" in words:
        return words
    # The views of recipe default, which is taken where none is named, are tiles, whose number follows from the clip.
    small = {option: value for option, value in SMALL.items() if "--recipe" in words or option != "--n-views"}
    return words + [word for option, value in small.items() if option not in words for word in (option, value)]


def test_output_of_a_page_is_compared_but_for_results():
    names = {}
    assert printed("x = 3\nprint('a', x)\nx + 1", names) == "a 3\n4\n" and printed("x = 2", names) == ""
    assert_shown("lwlrap 0.91 of 3 clips\n...\nend\n", "lwlrap 0.4 of 12 clips\nand\nmore\nend\n", "a page")
    assert_shown("a.wav: Rain 0.9, Dog_bark 0.2\n", "01582ee2.ogg: Rooster 0.1, Baby_cry 0.0\n", "a page")
    assert_shown("lwlrap 0.91\n...\n", "lwlrap 0.4\n", "a page")
    with pytest.raises(AssertionError, match="a page shows"):
        assert_shown("lwlrap 0.91\n", "accuracy 0.91\n", "a page")
    (block, without) = SHOWN.findall("```python\nx\n```\n\n```output\n3\n```\n\n```python\ny\n```\n\ntext\n")
    assert block == ("python", "x\n", "3\n") and without == ("python", "y\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNING)
def test_blocks_of_a_page_run(page, reader_folder, restored_registries, main_with):
    text = (ROOT / page).read_text(encoding="utf-8")
    if "--out runs/mine" in text or '"runs/mine")' in text and page == "CONTRIBUTING.md":
        shutil.rmtree("runs/mine")
    names = {"__name__": "__main__", **reader_folder}
    for language, block, output in SHOWN.findall(text):
        out = ""
        if language == "python":
            shorter = re.sub(r"\b(fit(?:_one_cycle)?\()\d+", r"\g<1>1", block)
            out = printed(shorter, names)
        elif language == "toml":
            Path("my.toml").write_text(block, encoding="utf-8")
        elif language == "console":
            for line in block.splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                assert words[0] == "fatai-submit", (
                    f"{page}: {line}: only fatai-submit is run; use sh for other commands"
                )
                ended = main_with(*shortened(words[1:]))
                assert ended.returncode == 0, f"{page}: {line}\n{ended.stderr}"
                out += ended.stdout
        if output:
            assert_shown(output, out, f"{page}: {block}")
        plt.close("all")


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page, ("sh", "console"))])
def test_commands_and_options_of_a_page_exist(page):
    from typer.main import get_command

    from fatai.cli import app

    for words in commands(page, ("sh", "console")):
        command = get_command(app)
        while words and words[0] in getattr(command, "commands", {}):
            command, words = command.commands[words[0]], words[1:]
        assert not hasattr(command, "commands") or not words or words[0].startswith("-"), (
            f"{page}: there is no command {words[0]}"
        )
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} | {
            "--help"
        }
        for word in words:
            if re.match(r"--?[a-z]", word):
                assert word.split("=")[0] in known, f"{page}: {command.name} has no option {word}"


def test_each_way_to_add_something_takes_less_than_20_lines():
    shown = [text for language, text in blocks("CONTRIBUTING.md") if language in ("python", "toml")]
    assert len(shown) == 5
    assert all(len([line for line in text.splitlines() if line.strip()]) < 20 for text in shown)


def test_tables_name_everything_in_the_registries(generate):
    from fatai.registry import AUGMENTATIONS, ENSEMBLES, FRONT_ENDS, LOSSES, MIXERS, MODELS, NOISY, SCHEDULES, VIEWS

    pages = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    marks = set(re.findall(r"<!-- table: ([\w ]+) -->", pages))
    assert marks == set(generate.TABLES)
    for mark, registry in {
        "augmentations": AUGMENTATIONS,
        "blends": ENSEMBLES,
        "front ends": FRONT_ENDS,
        "losses": LOSSES,
        "mixers": MIXERS,
        "models": MODELS,
        "noisy": NOISY,
        "schedules": SCHEDULES,
        "views": VIEWS,
    }.items():
        table = generate.on_page_markdown(f"<!-- table: {mark} -->")
        assert re.findall(r"^\| `([^`]+)` \|", table, re.M) == registry.names()
        assert all(registry.source(name).replace("|", "\\|") in table for name in registry.names())


def test_measured_results_are_read_from_the_results_folder(generate, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "RESULTS", tmp_path)
    assert generate.measured("ninth") == "" and "Not measured yet." in generate.recipe_page("ninth")
    assert "(`python -m benchmarks.esc10`): not measured yet." in generate.results_page()
    (tmp_path / "systems.md").write_text(
        "# Systems\n\n| system | OOF lwlrap | 95 % | test lwlrap | 95 % | parameters |\n|---|---|---|---|---|---|\n"
        "| ninth | 0.81 ± 0.01 | 0.78 to 0.84 | 0.79 ± 0.01 | 0.75 to 0.83 | 1,000 |\n"
        "| ninth, curated | 0.80 | 0.7 to 0.8 | 0.7 | 0.6 to 0.8 | 1 |\n", encoding="utf-8",
    )
    assert generate.measured("ninth") == "lwlrap 0.79 ± 0.01 on test clips, 0.81 ± 0.01 out of fold"
    page = generate.recipe_page("ninth")
    assert "| ninth, curated | 0.80 |" in page and "ot measured yet" not in page
    assert generate.measured("quick") == ""
    (tmp_path / "esc10.md").write_text(
        "about\n\naccuracy 0.91, 95 % interval 0.88 to 0.94; lwlrap 0.9\n", encoding="utf-8"
    )
    assert generate.measured("esc10") == "ESC-10, five folds: accuracy 0.91, 95 % interval 0.88 to 0.94"
    assert (
        "benchmarks.esc10`): not" not in generate.results_page()
        and "benchmarks.gpu`): not measured yet." in generate.results_page()
    )


def test_links_of_the_readme_exist_and_pictures_are_small():
    for page in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"(?:\]\(|src=\")([^)#:\"]+)[)\"]", (ROOT / page).read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), f"{page} links to {target}"
    for picture in (ROOT / "docs").rglob("*.png"):
        assert picture.stat().st_size <= 150_000, picture
