"""MkDocs hook: generates tables of the registries and the pages of recipes, results and reference.

A line `<!-- table: models -->` of a page becomes that table when the site is built.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
_MARK = re.compile(r"<!-- table: ([\w ]+) -->")
# The pages of the reference: title, contents and modules. A package stands for its modules that no other page names.
_TASKS = {
    "sounds": ("Read sounds", "files, streams, channels, silence, segments; needs no fastai", (
        "audio", "data.annotations")),
    "spectrograms": ("Make spectrograms", "front ends, mel bands, PCEN, input channels, mean and deviation", (
        "audio.front_ends", "audio.spectrogram", "audio.channels", "audio.stft", "audio.mel", "audio.pcen",
        "audio.stats", "data.spectrograms", "data.stats")),
    "data": ("Load data sets and make batches", "tables, labels, data blocks and loaders, caches, samplers", ("data",)),
    "checks": ("Check and split data", "checks of files and labels, copies, folds", (
        "data.audit", "data.copies", "data.folds", "data.background", "experiment.background")),
    "augment": ("Augment", "augmentations of waves and spectrograms, mixup", ("augment",)),
    "networks": ("Build networks", "networks, published weights, timm, checkpoints", ("models", "experiment.build")),
    "training": ("Train a learner", "`fat_learner`, losses, callbacks, schedules, precision, data parallelism", (
        "inference.learner", "training", "callbacks", "losses")),
    "noisy_labels": ("Train on noisy labels", "selection, relabeling, pseudo-labels, label issues, distillation", (
        "noisy_labels", "experiment.noisy_decision", "experiment.self_training", "experiment.distill")),
    "recipes": ("Run recipes", "recipes and their keys, runs, budgets, search of settings", ("experiment",)),
    "predict": ("Predict clips", "views, test-time augmentation, tables of predictions, embeddings, linear probes", (
        "inference",)),
    "events": ("Tag long recordings", "sliding windows, events, their files, false alarms in background", (
        "inference.events", "experiment.false_alarms", "experiment.run_folder")),
    "labels": ("Find and label sounds", "index of windows, search, the label loop, reviews", (
        "inference.search", "experiment.encoder", "report.decisions", "report.label_review", "report.window_page",
        "report.window_review")),
    "scores": ("Score, calibrate and compare", "metrics, intervals, thresholds, calibration, comparison of runs", (
        "metrics", "inference.ground_truth", "inference.sanity_checks", "experiment.calibrate", "experiment.compare")),
    "ensembles": ("Combine models and submit", "averages, stacking, ensembles of recipes, checked submissions", (
        "ensemble", "experiment.ensemble_folder", "experiment.ensemble_recipe", "experiment.ensemble_run",
        "inference.submission")),
    "scale": ("Predict very many sounds", "shards, parts, Ray, Dask and Spark, several processes", (
        "experiment.bulk_predict", "experiment.parts", "experiment.engines", "experiment.tag_batch",
        "experiment.launch", "inference.prediction_files")),
    "export": ("Export and share", "model folders, ONNX, the Hugging Face Hub", ("export", "experiment.held_out")),
    "report": ("Explain and report", "the report of a run, plots of a learner, Grad-CAM, learning curves", (
        "report", "inference.plots", "inference.grad_cam", "inference.learning_curve", "experiment.frozen_baseline")),
}
_REFERENCE = ("audio", "metrics", "losses", "models", "data", "augment", "noisy_labels", "callbacks", "training",
              "inference", "export", "ensemble", "experiment", "report")
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


def tasks() -> str:
    """Return the table of the pages of the reference."""
    return _table(["to", "contents"], [
        _row([f"[{title.lower()}]({name}.md)", contents]) for name, (title, contents, _) in _TASKS.items()
    ])


TABLES: dict[str, Callable[[], str]] = {
    "models": models,
    "front ends": front_ends,
    "recipes": recipes,
    "ensembles": ensembles,
    "commands": commands,
    "tasks": tasks,
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


def reference_modules() -> dict[str, list[str]]:
    """Return the modules of each page of the reference; a module is on the page that names most of its path."""
    found: dict[str, list[str]] = {name: [] for name in _TASKS}
    owners = {prefix: name for name, (_, _, prefixes) in _TASKS.items() for prefix in prefixes}
    for file in sorted(f for package in _REFERENCE for f in (ROOT / "fatai" / package).rglob("*.py")):
        parts = file.relative_to(ROOT / "fatai").with_suffix("").parts
        if not file.stem.startswith("_"):
            longest = next(k for k in range(len(parts), 0, -1) if ".".join(parts[:k]) in owners)
            found[owners[".".join(parts[:longest])]].append(".".join(parts))
    for name, (_, _, prefixes) in _TASKS.items():
        found[name].sort(key=lambda module: next(k for k, p in enumerate(prefixes) if f"{module}.".startswith(f"{p}.")))
    return found


def reference_page(name: str) -> str:
    """Return the reference of a task, from the docstrings of its modules; headings are their first sentences."""
    parts = [f"# {_TASKS[name][0]}"]
    for module in reference_modules()[name]:
        parts += [f"## {_summary(module)}", f"`fatai.{module}`", f"::: fatai.{module}"]
    return "\n\n".join(parts) + "\n"


def pages() -> dict[str, str]:
    """Return every generated page by its path in the site."""
    from fatai.experiment.recipe import recipe_names

    return {
        **{f"recipes/{name}.md": recipe_page(name) for name in recipe_names()},
        **{f"reference/{name}.md": reference_page(name) for name in _TASKS},
        "results.md": results_page(),
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").replace("](docs/", "]("),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
    }


def on_config(config: Any) -> Any:
    """Replace the folders in the navigation by the generated pages in them."""
    notebooks = [f"notebooks/{path.stem}.md" for path in sorted((ROOT / "nbs").glob("*.ipynb"))]
    generated = [*pages(), *notebooks]
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


def on_post_page(output: str, **kwargs: Any) -> str:
    """Name the dialog of the search, to which the theme gives no name."""
    dialog = 'data-md-component="search" role="dialog"'
    return output.replace(dialog, f'{dialog} aria-label="Search"')


def _summary(module: str) -> str:
    """Return what a module is for: its docstring to the first colon, semicolon or full stop."""
    file = ROOT / "fatai" / Path(*module.split(".")).with_suffix(".py")
    text = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or module).split("\n\n")[0]
    return re.split(r"[:;.](?:\s|$)", " ".join(text.split()))[0]


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
