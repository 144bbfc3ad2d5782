"""Names are words of fastai, torch and scikit-learn: those in which fatai once spoke of itself are gone."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Parts of identifiers that no name may have, split at underscores and capitals. The other half of docs/glossary.md.
REFUSED = frozenset({
    "told", "say", "said", "heard", "hearing", "listen", "listens", "judged", "judging", "doubting", "company", "leads",
    "stranger", "gathered", "anew", "looked",
})
# fastaudio's and fastxtend's name of the method that plays a sound.
PLAYER = "hear"


def parts(name: str) -> list[str]:
    """Words of an identifier: `told_plainly`, `toldPlainly` and `ToldPlainly` all give told, plainly."""
    return [part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]


def identifiers(tree: ast.AST):
    """(line, name, whether it is a method) of everything that a module names or uses."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield line, node.name, True
        elif isinstance(node, ast.Attribute):
            yield line, node.attr, True
        elif isinstance(node, ast.Name):
            yield line, node.id, False
        elif isinstance(node, ast.arg):
            yield line, node.arg, False
        elif isinstance(node, ast.keyword) and node.arg:
            yield line, node.arg, False
        elif isinstance(node, ast.alias):
            for name in (node.name, node.asname or ""):
                yield line, name, False


def refused(source: str) -> list[tuple[int, str]]:
    """Line and name of every identifier with a refused part."""
    found = set()
    for line, name, is_method in identifiers(ast.parse(source)):
        words = parts(name)
        if REFUSED.intersection(words) or PLAYER in words and not (is_method and name == PLAYER):
            found.add((line, name))
    return sorted(found)


@pytest.mark.parametrize("folder", ["fatai", "examples", "benchmarks"])
def test_no_identifier_has_a_refused_word(folder):
    found = []
    for file in sorted((ROOT / folder).rglob("*.py")):
        assert not REFUSED.intersection(parts(file.stem)), file
        found += [f"{file.relative_to(ROOT)}:{line} {name}" for line, name in refused(file.read_text(encoding="utf-8"))]
    assert found == []


@pytest.mark.parametrize("source", [
    "told = 1", "def f(told_by): ...", "x.heard()", "class JudgedClip: ...", "f(say=print)", "import a.listen",
    "hear = 1", "from a import b as company",
])
def test_a_refused_word_is_found(source):
    assert refused(source)


@pytest.mark.parametrize("source", [
    "essay = hearty = 1", "spec.hear()", "class A:\n    def hear(self): ...", "threshold = folders = 1",
])
def test_other_words_pass(source):
    assert refused(source) == []
