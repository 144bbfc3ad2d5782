"""MkDocs hook: generates tables of the registries and the pages of recipes, notebooks, results and reference.

A line `<!-- table: models -->` of a page becomes that table when the site is built. `python docs/generate.py` writes
the table of recipes into README.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README_TABLE = re.compile(r"(<!-- recipes -->\n).*?(<!-- /recipes -->)", re.S)
_MARK = re.compile(r"<!-- table: ([\w ]+) -->")
_PACKAGES = {
    "audio": "Audio",
    "metrics": "Metrics",
    "losses": "Losses",
    "models": "Models",
    "data": "Data",
    "augment": "Augmentation",
    "noisy_labels": "Noisy labels",
    "callbacks": "Callbacks",
    "training": "Training",
    "inference": "Inference",
    "export": "Export",
    "ensemble": "Ensembles",
    "experiment": "Recipes and runs",
    "report": "Reports",
}
_NOT_MEASURED = "not measured yet"
_LONG = {
    "systems": "Comparison of all systems", "esc10": "ESC-10 with its five folds",
    "gpu": "Recipes at full size on a GPU, on data of the competition's size",
}


def registry_table(name: str) -> str:
    """Return the table of a registry: names, descriptions and sources."""
    from fatai import registry

    entries = getattr(registry, name)
    return _table(
        ["name", "description", "source"],
        [_row([f"`{n}`", _cell(entries.describe(n)), _cell(entries.source(n))]) for n in entries.names()],
    )


def models() -> str:
    """Return the table of the models with their sizes."""
    from fatai.models.summary import model_table

    rows = [
        _row(
            [
                f"`{m.name}`",
                f"{m.parameters:,}",
                f"{m.n_mels or m.min_mels} x {m.min_frames}",
                _cell(m.description),
                _cell(m.source),
            ]
        )
        for m in model_table()
    ]
    return _table(["name", "parameters", "minimum input", "description", "source"], rows)


def front_ends() -> str:
    """Return the table of the front ends with their main values."""
    from fatai.audio.front_ends import front_end
    from fatai.registry import FRONT_ENDS

    rows = []
    for name in FRONT_ENDS.names():
        f = front_end(name)
        mels = f"{f.n_mels} from {f.fmin:,.0f} to {f.max_hz:,.0f} Hz" if f.n_mels else f"none: {f.bins} bins"
        window = f.win_length or f.n_fft
        lengths = [f"{samples} ({1000 * samples / f.sr:.1f} ms)" for samples in (window, f.hop_length)]
        rows.append(
            _row([f"`{name}`", f"{f.sr:,}", *lengths, mels, f.log, f.normalize, _cell(FRONT_ENDS.source(name))])
        )
    return _table(["name", "Hz", "window", "hop", "mel bands", "scale", "normalization", "source"], rows)


def recipes() -> str:
    """Return the table of the recipes with published and measured scores."""
    from fatai.experiment.recipe import load_recipe, recipe_names

    rows = []
    for name in recipe_names():
        recipe, result = load_recipe(name), measured(name)
        rows.append(
            _row([f"[`{name}`]({name}.md)", recipe.model.arch, _cell(recipe.reference_score), result or _NOT_MEASURED])
        )
    return _table(["recipe", "network", "published", "measured here"], rows)


def ensembles() -> str:
    """Return the table of the ensembles of recipes."""
    from fatai.experiment.ensemble_recipe import ensemble_names, load_ensemble

    rows = []
    for name in ensemble_names():
        ensemble = load_ensemble(name)
        n = len(ensemble.members) + len(ensemble.stackers)
        rows.append(_row([f"`{name}`", str(n), ensemble.how, _cell(ensemble.source), _cell(ensemble.reference_score)]))
    return _table(["name", "models", "method", "source", "published"], rows)


def commands() -> str:
    """Return the table of the commands."""
    from typer.main import get_command

    from fatai.cli import app

    known = get_command(app).commands.items()
    return _table(
        ["command", "description"], [_row([f"`{name}`", _cell((c.help or "").split("\n\n")[0])]) for name, c in known]
    )


TABLES: dict[str, Callable[[], str]] = {
    "models": models,
    "front ends": front_ends,
    "recipes": recipes,
    "ensembles": ensembles,
    "commands": commands,
    **{
        title: (lambda name=name: registry_table(name))
        for title, name in {
            "losses": "LOSSES",
            "channels": "CHANNELS",
            "mixers": "MIXERS",
            "augmentations": "AUGMENTATIONS",
            "schedules": "SCHEDULES",
            "noisy": "NOISY",
            "views": "VIEWS",
            "blends": "ENSEMBLES",
        }.items()
    },
}


def measured(name: str) -> str:
    """Return a short summary of the measured scores of a recipe, or an empty string."""
    if name == "esc10":
        found = re.search(r"^(accuracy .*?); lwlrap", _result("esc10"), re.M)
        return f"ESC-10, five folds: {found[1]}" if found else ""
    for cells in _rows(_result("systems")):
        if cells[0] == name:
            return f"lwlrap {cells[3]} on test clips, {cells[1]} out of fold"
    return ""


def results_of(name: str) -> Iterator[str]:
    """Yield the rows of a recipe in the first table of benchmarks/results/systems.md, if there are any."""
    table = _rows(_result("systems"))
    rows = [cells for cells in table if cells[0].split(",")[0] == name and len(cells) == len(table[0])]
    if rows:
        yield _table(table[0], [_row(cells) for cells in rows])


def recipe_page(name: str) -> str:
    """Return the page of a recipe: description, published and measured scores, commands, the file."""
    from fatai.experiment.build import recipe_parameters
    from fatai.experiment.recipe import load_recipe, recipe_text

    recipe, text = load_recipe(name), recipe_text(name)
    views, front_end = recipe.tta.views, recipe.front_end.get("name", "ninth")
    head = " ".join(line.lstrip("# ") for line in text.split("\n\n")[0].splitlines() if line.startswith("#"))
    stages = [
        _row([s.name, str(s.epochs), str(s.bs), f"{s.lr:g}", s.schedule, s.optimizer, s.loss]) for s in recipe.stages
    ]
    inputs = f"front end `{front_end}`, crops of {recipe.clips.crop_s:g} s; `{views}` views at prediction"
    results = list(results_of(name))
    note = "At `--scale small`; the data and the method are described in the [results](../results.md)."
    measurements = [note, "", *results]
    return "\n".join(
        [
            f"# {name}",
            "",
            head,
            "",
            f"- **Source:** {recipe.source}",
            f"- **Published:** {recipe.reference_score}",
            f"- **Network:** `{recipe.model.arch}`, {recipe_parameters(recipe, 80):,} parameters for 80 tags",
            f"- **Input:** {inputs}",
            f"- **Folds:** {recipe.folds.n}, `{recipe.folds.splitter}`",
            "",
            _table(["stage", "epochs", "batch", "learning rate", "schedule", "optimizer", "loss"], stages),
            "",
            "## Measured here",
            "",
            *(measurements if results else [f"{measured(name) or _NOT_MEASURED.capitalize()}."]),
            "",
            "## Run it",
            "",
            "```sh",
            f"$ fatai-submit run DATA --recipe {name} --dry-run          # print stages, time and memory",
            f"$ fatai-submit run DATA --recipe {name} --out runs/{name}",
            f"$ fatai-submit run DATA --recipe {name} --scale small --out runs/{name}_small",
            "```",
            "",
            "## The file",
            "",
            "```toml",
            text.rstrip(),
            "```",
            "",
        ]
    )


def results_page() -> str:
    """Return the page of all results in benchmarks/results."""
    files = sorted(RESULTS.glob("*.md"))
    parts = [re.sub(r"^# ", "## ", f.read_text(encoding="utf-8"), flags=re.M) for f in files]
    head = [
        "# Measured results",
        "Each section names the script that measured its numbers. Ratios compare measurements of one run.",
    ]
    for name, title in _LONG.items():
        if not _result(name):
            head.append(f"{title} (`python -m benchmarks.{name}`): {_NOT_MEASURED}.")
    return "\n\n".join([*head, *parts])


def notebook_page(path: Path) -> str:
    """Return a notebook as a page, without outputs."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    text = "\n\n".join(source if kind == "markdown" else f"```python\n{source}\n```" for kind, source in sources)
    note = f"*From the notebook `nbs/{path.name}`. Run it for figures and audio players.*"
    return f"{text.replace('.ipynb)', '.md)')}\n\n{note}\n"


def reference_page(package: str) -> str:
    """Return the reference of a package's modules, from their docstrings."""
    files = sorted((ROOT / "fatai" / package).rglob("*.py"))
    names = [".".join(f.relative_to(ROOT).with_suffix("").parts) for f in files if not f.stem.startswith("_")]
    modules = sorted(names, key=lambda name: (name.count("."), name))
    return "\n\n".join([f"# {_PACKAGES[package]}", *(f"## {module}\n\n::: {module}" for module in modules)]) + "\n"


def readme_recipes() -> str:
    """Return the table of recipes in README.md, with links into the repository."""
    table = re.sub(r"\]\((\w+)\.md\)", r"](fatai/recipes/\1.toml)", recipes())
    return table.replace(f"{_NOT_MEASURED} |", "- |")


def pages() -> dict[str, str]:
    """Return every generated page by its path in the site."""
    from fatai.experiment.recipe import recipe_names

    return {
        **{f"recipes/{name}.md": recipe_page(name) for name in recipe_names()},
        **{f"notebooks/{path.stem}.md": notebook_page(path) for path in sorted((ROOT / "nbs").glob("*.ipynb"))},
        **{f"reference/{package}.md": reference_page(package) for package in _PACKAGES},
        "results.md": results_page(),
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").replace("](docs/", "]("),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
    }


def on_config(config: Any) -> Any:
    """Replace the folders in the navigation by the generated pages in them."""
    generated = list(pages())
    for section in (entry for entry in config.nav if isinstance(entry, dict)):
        for title, entries in section.items():
            if isinstance(entries, list):
                section[title] = [
                    page
                    for entry in entries
                    for page in (
                        [g for g in generated if g.startswith(entry)]
                        if isinstance(entry, str) and entry.endswith("/")
                        else [entry]
                    )
                ]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Insert the tables into a page."""
    return _MARK.sub(lambda found: TABLES[found[1]](), markdown)


def _result(name: str) -> str:
    path = RESULTS / f"{name}.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _rows(text: str) -> list[list[str]]:
    """Return the cells of each table row in `text`."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _table(head: list[str], rows: list[str]) -> str:
    return "\n".join([_row(head), "|" + "---|" * len(head), *rows])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    table, readme = readme_recipes(), ROOT / "README.md"
    text = README_TABLE.sub(lambda found: f"{found[1]}{table}\n{found[2]}", readme.read_text(encoding="utf-8"))
    readme.write_text(text, encoding="utf-8")
