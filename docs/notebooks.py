"""MkDocs hook: executes the notebooks and adds a page for each, with the pictures, players and tables of its cells.

An executed notebook is kept in build/notebooks, under a name that follows from its text and from the sources of
fatai, and is executed again when these change. NOTEBOOKS, a pattern of names, limits what is executed:
`NOTEBOOKS=00_* make docs`.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "nbs"
EXECUTED = ROOT / "build" / "notebooks"
TIMEOUT_S = 900
# The template of nbconvert, with printed text in blocks of the language "output", which site.css marks.
TEMPLATE = """{% extends "markdown/index.md.j2" %}
{% block stream %}
```output
{{ output.text.rstrip() | strip_ansi }}
```
{% endblock stream %}
{% block data_text %}
```output
{{ output.data["text/plain"].rstrip() | strip_ansi }}
```
{% endblock data_text %}
{% block data_html %}
<div class="output" markdown="0" tabindex="0">
{{ output.data["text/html"] | one_block }}
</div>
{% endblock data_html %}
"""


def notebook_paths() -> list[Path]:
    """Return the notebooks in their order."""
    return sorted(NOTEBOOKS.glob("*.ipynb"))


def executed(path: Path) -> Any:
    """Return a notebook with the outputs of its cells, executed now or read from build/notebooks."""
    import nbformat
    from nbclient import NotebookClient

    kept = EXECUTED / f"{path.stem}-{_digest(path)}.ipynb"
    if kept.is_file():
        return nbformat.read(kept, as_version=4)
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=TIMEOUT_S, resources={"metadata": {"path": folder}}).execute(
            env={**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
        )
    EXECUTED.mkdir(parents=True, exist_ok=True)
    for older in EXECUTED.glob(f"{path.stem}-*.ipynb"):
        older.unlink()
    nbformat.write(notebook, kept)
    return notebook


def page(path: Path, notebook: Any, repository: str = "") -> tuple[str, dict[str, bytes]]:
    """Return the page of a notebook in Markdown, and its pictures by their names."""
    from jinja2 import DictLoader
    from nbconvert import MarkdownExporter

    exporter = MarkdownExporter(
        extra_loaders=[DictLoader({"page.md.j2": TEMPLATE})], template_file="page.md.j2",
        filters={"one_block": lambda html: re.sub(r"\n\s*\n", "\n", html)},
    )
    for cell in notebook.cells:
        if cell.cell_type == "code":  # warnings of the libraries of this machine are left out
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    text, resources = exporter.from_notebook_node(notebook, {"unique_key": path.stem, "output_files_dir": path.stem})
    title, _, rest = text.strip().partition("\n")
    rest = re.sub(r"\]\((\d\d_\w+)\.ipynb\)", r"](\1.md)", rest).replace(f"{ROOT}{os.sep}", "")
    # On a phone the paragraph of a figure scrolls, also by key.
    rest = re.sub(r"!\[png\](\([^)]*\))", r"![Figure drawn by the code above]\1\n{: tabindex=0 }", rest)
    return f"{title}\n\n{links(path, repository)}\n{rest}\n", resources["outputs"]


def links(path: Path, repository: str) -> str:
    """Return the line below the title of a notebook: where to get it, and Colab if the repository is on GitHub."""
    line = f"[:material-download: {path.name}]({path.name}){{ .md-button download={path.name} }}"
    if found := re.match(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?$", repository):
        address = f"https://colab.research.google.com/github/{found[1]}/blob/main/nbs/{path.name}"
        line += f" [:material-play-circle: Open in Colab]({address}){{ .md-button }}"
    return line


def repository_url() -> str:
    """Return the address of the repository in setup.cfg, or an empty string."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config.get("metadata", "url", fallback="")


def on_files(files: Any, config: Any) -> Any:
    """Add a page for each notebook, its pictures, and the notebook itself."""
    import nbformat
    from mkdocs.structure.files import File

    pattern, paths = os.environ.get("NOTEBOOKS", "*"), notebook_paths()
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        notebooks = pool.map(
            lambda path: executed(path) if fnmatch(path.name, pattern) else nbformat.read(path, as_version=4), paths
        )
        for path, notebook in zip(paths, notebooks, strict=True):
            text, pictures = page(path, notebook, repository_url())
            files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
            files.append(File.generated(config, f"notebooks/{path.name}", content=path.read_bytes()))
            for name, content in pictures.items():
                files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def _digest(path: Path) -> str:
    """Return a digest of a notebook, the sources of fatai and its requirements."""
    sources = sorted(p for p in (ROOT / "fatai").rglob("*") if p.suffix in (".py", ".toml"))
    digest = hashlib.sha256()
    for source in [path, ROOT / "setup.cfg", *sources]:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]
