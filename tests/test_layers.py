"""Imports follow the table of layers of the design: to the same rank or below, and never in a circle."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fatai"

# Rank of every package and top-level module, from the ground up.
RANKS = {
    "errors": 0, "registry": 0, "io": 0, "distributed": 0, "threads": 0, "device": 0,
    "audio": 1, "metrics": 1, "losses": 1, "models": 1,
    "data": 2,
    "augment": 3, "noisy_labels": 3,
    "callbacks": 4,
    "training": 5,
    "inference": 6, "export": 6,
    "ensemble": 7,
    "experiment": 8,
    "report": 9, "diagnostics": 9,
    "web": 10,
    "cli": 11, "all": 11,
}
# The only module whose imports are not counted: its table of names is loaded on first use (PEP 562).
LAZY_TOP = ""


def module_name(file: Path, package: Path) -> str:
    """Name below the package: "audio.io", "audio" for audio/__init__.py, "" for the package itself."""
    parts = file.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def all_modules(package: Path) -> dict[str, Path]:
    """Module names below the package and their files."""
    return {module_name(file, package): file for file in sorted(package.rglob("*.py"))}


def imported_names(tree: ast.AST, module: str, is_package: bool, package_name: str = "fatai"):
    """(line, dotted name) of every import of the package, also of those inside functions and conditions."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = [package_name, *(module.split(".") if module else [])]
                folder = here[:len(here) - node.level + is_package]
                base = ".".join([*folder, *([base] if base else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            names = [a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        for name in names:
            if name == package_name or name.startswith(package_name + "."):
                yield node.lineno, name[len(package_name) + 1:]


def import_graph(package: Path) -> dict[str, set[tuple[int, str]]]:
    """For every module (line, module) of what it imports from the package; names inside modules are cut off."""
    modules = all_modules(package)
    graph = {}
    for module, file in modules.items():
        graph[module] = set()
        if module == LAZY_TOP:
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for line, name in imported_names(tree, module, file.name == "__init__.py"):
            while name and name not in modules:
                name = name.rpartition(".")[0]
            if name and name != module:
                graph[module].add((line, name))
    return graph


def upward_imports(package: Path) -> list[str]:
    """A sentence for each import of a higher rank, and for each module without a rank."""
    found = []
    for module, targets in import_graph(package).items():
        layer = module.split(".")[0]
        if module != LAZY_TOP and layer not in RANKS:
            found.append(f"{module} has no rank")
            continue
        for line, target in sorted(targets):
            other = RANKS.get(target.split(".")[0])
            if other is not None and other > RANKS[layer]:
                found.append(f"{module}:{line} (rank {RANKS[layer]}) imports {target} (rank {other})")
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that import each other, directly or not (strongly connected components, by Tarjan)."""
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            group = stack[stack.index(node):]
            del stack[stack.index(node):]
            if len(group) > 1:
                found.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def file_graph(package: Path) -> dict[str, set[str]]:
    """Modules and the modules that they import."""
    return {module: {target for _, target in targets} for module, targets in import_graph(package).items()}


def package_graph(package: Path) -> dict[str, set[str]]:
    """Top-level packages and the packages that their modules import."""
    graph = {}
    for module, targets in file_graph(package).items():
        layer = module.split(".")[0]
        graph.setdefault(layer, set()).update(t.split(".")[0] for t in targets if t.split(".")[0] != layer)
    return graph


def test_no_import_goes_to_a_higher_rank():
    assert upward_imports(PACKAGE) == []


def test_no_files_import_each_other_in_a_circle():
    assert circles(file_graph(PACKAGE)) == []


def test_no_packages_import_each_other_in_a_circle():
    assert circles(package_graph(PACKAGE)) == []


def test_data_and_models_do_not_import_each_other():
    graph = package_graph(PACKAGE)
    assert "models" not in graph["data"] and "data" not in graph["models"]


def test_recipes_are_data_alone():
    assert {f.suffix for f in (PACKAGE / "recipes").rglob("*") if f.is_file()} == {".toml"}


@pytest.mark.parametrize("layer", ["audio", "metrics", "losses"])
def test_audio_metrics_and_losses_work_without_fastai(layer):
    for file in sorted((PACKAGE / layer).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            is_import = isinstance(node, ast.Import)
            names = [a.name for a in node.names] if is_import else [getattr(node, "module", "") or ""]
            assert not [n for n in names if n.split(".")[0] in ("fastai", "fastcore")], file


def test_the_design_has_the_same_ranks():
    rows = [line.split("|") for line in (ROOT / "docs/design.md").read_text().splitlines() if line.startswith("| ")]
    ranks = {}
    for _, rank, names, *_ in rows:
        if rank.strip().isdigit():
            ranks |= dict.fromkeys(names.replace("`", " ").replace(",", " ").split(), int(rank))
    # Recipes are data: they stand beside the package that reads them.
    assert ranks.pop("recipes") == RANKS["experiment"]
    assert ranks == RANKS


@pytest.fixture
def planted(tmp_path):
    """A function that writes modules of a small package and returns the package."""
    package = tmp_path / "fatai"

    def write(files):
        for name, text in {"__init__": "", **files}.items():
            file = (package / name).with_suffix(".py")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            (file.parent / "__init__.py").touch()
        return package

    return write


@pytest.mark.parametrize("text", [
    "from fatai.data.labels import parse_labels\n",
    "import fatai.data.labels\n",
    "from ..data import labels\n",
    "from .. import data\n",
    "from fatai import data\n",
    "def f():\n    from fatai.data.labels import parse_labels\n    return parse_labels\n",
    "try:\n    from ..data.labels import x\nexcept ImportError:\n    pass\n",
    "import importlib\nlabels = importlib.import_module('fatai.data.labels')\n",
])
def test_a_planted_upward_import_is_found(planted, text):
    package = planted({"audio/io": text, "data/labels": ""})
    found = upward_imports(package)
    assert len(found) == 1 and found[0].startswith("audio.io:")


def test_imports_of_the_same_rank_or_below_pass(planted):
    package = planted({
        "errors": "", "audio/io": "from fatai.errors import AudioError\nfrom fatai import __version__\n",
        "data/labels": "from ..audio.io import load_audio\nfrom . import folds\n", "data/folds": "",
    })
    assert upward_imports(package) == [] and circles(file_graph(package)) == []


def test_planted_circles_of_files_and_of_packages_are_found(planted):
    package = planted({
        "metrics/a": "def f():\n    from fatai.metrics import b\n", "metrics/b": "from .a import f\n",
        "audio/x": "from fatai.losses import y\n", "losses/y": "", "losses/z": "import fatai.audio.x\n",
    })
    assert circles(file_graph(package)) == [["metrics.a", "metrics.b"]]
    assert circles(package_graph(package)) == [["audio", "losses"]]


def test_a_module_without_a_rank_is_found(planted):
    assert upward_imports(planted({"helpers": ""})) == ["helpers has no rank"]
