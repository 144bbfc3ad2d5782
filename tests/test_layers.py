"""An import points to the same row of the table of rooms or to a row above it, never below."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fatai"

# Rank of every room, the ground floor first; the longest prefix of a module's name decides.
ROOMS = {
    "errors": 0,
    "registry": 1, "atomic": 1, "progress": 1, "retries": 1, "small_files": 1,
    "sound": 2, "score": 2,
    "data": 3,
    "models": 4,
    "augment": 5,
    "train": 6,
    "infer": 7,
    "recipes": 8, "report": 8, "doctor": 8, "timing": 8,
    "cli": 9, "all": 9, "commands": 9, "web": 9,
}
# The top of the package only tells where names live; it imports them when they are asked for.
TOP = ""


def module_name(file: Path, package: Path) -> str:
    """Name below the package: "sound.files", "sound" for sound/__init__.py, "" for the package's own."""
    parts = file.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def rank(module: str) -> int | None:
    """Rank of a module below the package; None if the table doesn't know its room."""
    if module == TOP:
        return 0
    return ROOMS.get(module.split(".")[0])


def imported(tree: ast.AST, module: str, is_package: bool, package_name: str = "fatai"):
    """(line, module below the package) of every import in a module, also of those inside functions and conditions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = [package_name, *(module.split(".") if module else [])]
                folder = here[:len(here) - node.level + is_package]
                base = ".".join([*folder, *([base] if base else [])])
            # In "from fatai import train" and "from . import cli" the names are the modules.
            names = [f"{base}.{alias.name}" for alias in node.names] if base == package_name else [base]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            names = [a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        else:
            continue
        for name in names:
            if name == package_name or name.startswith(package_name + "."):
                yield node.lineno, name[len(package_name) + 1:]


def violations(package: Path) -> list[str]:
    """A sentence for each import that points down, and for each module without a room."""
    found = []
    for file in sorted(package.rglob("*.py")):
        module = module_name(file, package)
        own = rank(module)
        if own is None:
            found.append(f"{file.relative_to(package)} has no room in the table")
            continue
        if module == TOP:
            continue
        for line, target in imported(ast.parse(file.read_text(encoding="utf-8")), module, file.name == "__init__.py"):
            other = rank(target)
            if other is None:
                if (package / Path(*target.split("."))).with_suffix(".py").exists():
                    found.append(f"{file.relative_to(package)}:{line} imports {target}, which has no room in the table")
            elif other > own:
                found.append(
                    f"{file.relative_to(package)}:{line} (rank {own}) imports {target} (rank {other}), which is below it"
                )
    return found


def test_no_import_points_down_the_table_of_rooms():
    assert violations(PACKAGE) == []


def test_data_and_models_do_not_know_each_other():
    for room, other in (("data", "models"), ("models", "data")):
        for file in sorted((PACKAGE / room).rglob("*.py")):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            targets = imported(tree, module_name(file, PACKAGE), file.name == "__init__.py")
            assert other not in {target.split(".")[0] for _, target in targets}, file


@pytest.mark.parametrize("room", ["sound", "score"])
def test_sound_and_score_work_without_fastai(room):
    for file in sorted((PACKAGE / room).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "") or ""]
            )
            assert not [n for n in names if n.split(".")[0] in ("fastai", "fastcore")], file


@pytest.fixture
def planted(tmp_path):
    """A package with a module at every place that `write` names."""
    package = tmp_path / "fatai"

    def write(name, text):
        file = package / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return violations(package)

    return write


@pytest.mark.parametrize(("name", "text"), [
    ("sound/files.py", "from fatai.data.labels import parse_labels\n"),
    ("sound/files.py", "import fatai.training\n"),
    ("sound/files.py", "from ..data import labels\n"),
    ("sound/files.py", "from .. import cli\n"),
    ("sound/files.py", "from fatai import infer\n"),
    ("sound/__init__.py", "from ..models import parts\n"),
    ("data/labels.py", "def f():\n    from fatai.training.learner import fat_learner\n    return fat_learner\n"),
    ("data/labels.py", "try:\n    from ..infer.tta import tta\nexcept ImportError:\n    pass\n"),
    ("train/losses.py", "import importlib\nhome = importlib.import_module('fatai.experiment.run')\n"),
    ("errors.py", "from .registry import Registry\n"),
    ("recipes/run.py", "from fatai import cli\n"),
])
def test_planted_violations_are_found(planted, name, text):
    found = planted(name, text)
    assert len(found) == 1 and found[0].startswith(name) and "is below it" in found[0]


@pytest.mark.parametrize(("name", "text"), [
    ("data/labels.py", "from fatai.errors import DataError\nfrom ..sound.files import load_audio\n"),
    ("data/labels.py", "from . import folds\nfrom .folds import make_folds\n"),
    ("train/losses.py", "from fatai import __version__\nimport torch\nfrom fastai.data.all import DataBlock\n"),
    ("data/__init__.py", "from . import labels\nfrom .labels import parse_labels\n"),
    ("cli.py", "from .recipes import run\nfrom .report import page\n"),
    ("__init__.py", "def __getattr__(name):\n    from .train.learner import fat_learner\n    return fat_learner\n"),
])
def test_imports_of_the_same_row_or_above_pass(planted, name, text):
    assert planted(name, text) == []


def test_a_module_without_a_room_is_found(planted):
    assert planted("helpers.py", "") == ["helpers.py has no room in the table"]
