"""The pages of notebooks on the site: outputs are shown, links lead somewhere, and what did not change is kept."""

import base64
import importlib.util
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbconvert")

ROOT = Path(__file__).parents[1]
PNG = base64.b64encode(b"\x89PNG a picture").decode()


@pytest.fixture
def hook(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("notebooks", ROOT / "docs" / "notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "EXECUTED", tmp_path / "kept")
    return module


def notebook(*outputs):
    v4 = nbformat.v4
    code = v4.new_code_cell("show()", outputs=list(outputs))
    return v4.new_notebook(cells=[v4.new_markdown_cell("# A title\n\nNext: [more](20_augment.ipynb)."), code])


def test_a_page_shows_what_cells_printed_drew_and_returned(hook):
    v4 = nbformat.v4
    text, pictures = hook.page(Path("nbs/10_more.ipynb"), notebook(
        v4.new_output("stream", text=f"\x1b[1m{ROOT}/fatai: 3 clips\x1b[0m\n"),
        v4.new_output("stream", name="stderr", text="a warning of this machine"),
        v4.new_output("display_data", {"text/html": "<table>\n\n<tr><td>a cell</td></tr></table>"}),
        v4.new_output("display_data", {"image/png": PNG, "text/plain": "<Figure>"}),
        v4.new_output("execute_result", {"text/plain": "0.5"}, execution_count=1),
    ))
    assert "```output\nfatai: 3 clips\n```" in text and "```output\n0.5\n```" in text
    assert "warning" not in text
    (html,) = re.findall(r'<div class="output" markdown="0" tabindex="0">(.*?)</div>', text, re.S)
    assert "a cell" in html and "\n\n" not in html, "a blank line would end the block of HTML"
    ((name, content),) = pictures.items()
    assert content == base64.b64decode(PNG)
    assert f"![Figure drawn by the code above]({name})" in text and "<Figure>" not in text
    assert text.startswith("# A title\n\n[") and "[more](20_augment.md)" in text


def test_links_of_a_page_lead_to_files_of_the_repository(hook):
    for path in hook.notebook_paths():
        line = hook.links(path, "https://github.com/some-one/fatai.git")
        (target,) = re.findall(r"https://colab\.research\.google\.com/github/some-one/fatai/blob/main/([^)]+)\)", line)
        assert (ROOT / target).is_file()
        assert f"]({path.name})" in line


def test_without_a_repository_on_github_there_is_no_link_to_colab(hook):
    for url in ("", "https://example.org/fatai"):
        assert "colab" not in hook.links(Path("nbs/00_start.ipynb"), url)
    assert hook.repository_url() == "" or hook.repository_url().startswith("https://")


def test_a_notebook_is_executed_again_only_when_it_changes(hook, tmp_path, monkeypatch):
    runs = []

    class Client:
        def __init__(self, notebook, **kwargs):
            self.notebook = notebook

        def execute(self, env):
            runs.append(env["PYTHONPATH"])
            self.notebook.cells[1].outputs = [nbformat.v4.new_output("stream", text=f"run {len(runs)}")]

    monkeypatch.setattr("nbclient.NotebookClient", Client)
    path = tmp_path / "10_more.ipynb"
    nbformat.write(notebook(), path)
    printed = [hook.executed(path).cells[1].outputs[0].text for _ in range(2)]
    assert printed == ["run 1", "run 1"] and runs == [str(ROOT)]
    changed = notebook()
    changed.cells[1].source = "show(2)"
    nbformat.write(changed, path)
    assert hook.executed(path).cells[1].outputs[0].text == "run 2"
    assert len(list((tmp_path / "kept").iterdir())) == 1, "the copy of the older text is removed"
