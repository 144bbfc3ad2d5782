"""Figures of the code's own quality: `python tests/helpers/code_figures.py [--list] [PATH...]`.

Counts the public functions, methods and classes of the package, those that have a docstring, and, of those that take or
return tensors or arrays, those whose docstring names a shape; also lines per function, without docstrings.
`--list` prints what is missing. Paths restrict the count to some files or folders.
"""

import ast
import re
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "fatai"
# Annotations of tensors and arrays.
ARRAYS = re.compile(r"\b(Tensor|TensorWave|TensorSpec|TensorFrames|TensorBase|ndarray|ArrayLike|NDArray)\b")
SHAPE_WORD = re.compile(r"\bshapes?\b|\bscalars?\b")
BRACKETS = re.compile(r"\(([^()]{1,60})\)")
# Methods that fastai or torch call; their arrays are those of the class, which may name the shapes for them.
HOOKS = frozenset({"forward", "encodes", "decodes", "setups", "show", "__call__"})


@dataclass
class Figures:
    """What was counted."""

    public: int = 0
    undocumented: list[str] = field(default_factory=list)
    with_arrays: int = 0
    shapeless: list[str] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)


def function_lines(function: ast.FunctionDef) -> int:
    """Lines of a function, decorators and docstring left out."""
    own = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function, clean=False) is not None:
        own -= function.body[0].end_lineno - function.body[0].lineno + 1
    return own


def names_shape(doc: str) -> bool:
    """Whether a docstring says "shape", "scalar", or has something like (batch, tags) or (samples,)."""
    if SHAPE_WORD.search(doc):
        return True
    for inside in BRACKETS.findall(doc):
        sizes = inside.split(",")
        if len(sizes) > 1 and all(len(size.split()) <= (1 if i == 0 else 3) for i, size in enumerate(sizes)):
            return True
    return False


def uses_arrays(function: ast.FunctionDef) -> bool:
    """Whether the signature has a tensor or an array."""
    arguments = function.args
    annotations = [a.annotation for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return any(a is not None and ARRAYS.search(ast.unparse(a)) for a in (*annotations, function.returns))


def count(node: ast.AST, where: str, figures: Figures, outer_doc: str = "") -> None:
    """Add the public definitions directly below `node`, and those of public classes among them."""
    for child in node.body:
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or child.name.startswith("_"):
            continue
        name, doc = f"{where}:{child.lineno} {child.name}", ast.get_docstring(child) or ""
        figures.public += 1
        if not doc and not any(ast.unparse(d).endswith((".setter", "overload")) for d in child.decorator_list):
            figures.undocumented.append(name)
        if isinstance(child, ast.ClassDef):
            count(child, where, figures, doc)
        elif uses_arrays(child):
            figures.with_arrays += 1
            if not names_shape(doc) and not (child.name in HOOKS and names_shape(outer_doc)):
                figures.shapeless.append(name)


def measure(paths: list[Path]) -> Figures:
    """Count over all Python files below `paths`."""
    figures = Figures()
    for path in paths:
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            tree = ast.parse(file.read_text(encoding="utf-8"))
            count(tree, str(file.relative_to(PACKAGE.parent) if file.is_absolute() else file), figures)
            functions = (n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)))
            figures.lines += map(function_lines, functions)
    return figures


def main(arguments: list[str]) -> None:
    """Print the figures, and with `--list` what is missing."""
    paths = [Path(a) for a in arguments if a != "--list"] or [PACKAGE]
    figures = measure(paths)
    documented = figures.public - len(figures.undocumented)
    shaped = figures.with_arrays - len(figures.shapeless)
    lines = sorted(figures.lines)
    print(f"public functions, methods and classes with a docstring: {documented} of {figures.public}")
    share = 100 * shaped / max(1, figures.with_arrays)
    print(f"of those with tensors or arrays, a shape is named: {shaped} of {figures.with_arrays} ({share:.1f} %)")
    most = lines[int(0.9 * len(lines))]
    print(f"lines per function: median {statistics.median(lines):g}, 90 % <= {most}, longest {lines[-1]}")
    if "--list" in arguments:
        for title, names in (("without a docstring", figures.undocumented), ("without a shape", figures.shapeless)):
            print(f"\n{title}:", *names, sep="\n  ")


if __name__ == "__main__":
    main(sys.argv[1:])
