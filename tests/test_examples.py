"""Every example and every notebook runs as a user would run it."""

import ast
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from fatai.data.spectrograms import ClipSpectrograms
from fatai.experiment.recipe import recipe_names

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(
    p.name for p in (ROOT / "examples").glob("*.py") if p.name != "make_sample.py"
)  # make_sample.py needs the source recordings
# One script for each kind of user, and what it prints at its end.
USERS = {
    "bird_calls.py": "selections.txt: ",
    "competition.py": "submission.csv: 60 clips, checked",
    "machine_noise.py": "false alarms per hour",
}
NOTEBOOKS = sorted(p.name for p in (ROOT / "nbs").glob("*.ipynb"))


def test_there_are_examples_and_notebooks():
    assert USERS.keys() <= set(EXAMPLES) and NOTEBOOKS


def test_each_published_system_has_an_example_of_15_lines_at_most():
    systems = {name.removesuffix(".py").removeprefix("system_") for name in EXAMPLES if name.startswith("system_")}
    assert systems == {
        name for name in recipe_names()
        if name not in ("default", "finetune", "probe", "quick", "esc10", "ninth_full", "first_place_skip")
    }
    for system in systems:
        tree = ast.parse((ROOT / "examples" / f"system_{system}.py").read_text(encoding="utf-8"))
        main = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
        assert ast.get_docstring(main)
        assert main.end_lineno - main.body[1].lineno + 1 <= 15, system  # body[0] is the docstring


def test_the_example_of_a_small_device_imports_onnxruntime_alone():
    tree = ast.parse((ROOT / "examples" / "edge_device.py").read_text(encoding="utf-8"))
    imported = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert imported - set(sys.stdlib_module_names) == {"numpy", "onnxruntime", "soundfile"}


@pytest.mark.slow
def test_the_example_of_a_small_device_gives_the_tags_of_the_run(tiny_run, sample, tmp_path, capsys):
    pytest.importorskip("onnxscript", reason="onnxscript is of the optional extra: pip install 'fatai[onnx]'")
    from fatai.audio.io import load_audio
    from fatai.experiment.run_folder import trained_model
    from fatai.export.onnx import export_onnx

    export_onnx(trained_model(tiny_run.out, 0), tmp_path / "model.onnx")
    main = runpy.run_path(str(ROOT / "examples" / "edge_device.py"))["main"]
    clip = sorted((sample / "test").iterdir())[0]
    probs = main(str(tmp_path / "model.onnx"), str(clip), top=2)
    model = trained_model(tiny_run.out, 0)
    settings, wave = model.settings, load_audio(clip, model.settings.sr)
    half = settings.crop_samples // 2
    n = -(-(len(wave) - half) // half)
    windows = torch.nn.functional.pad(wave, (0, settings.crop_samples)).unfold(0, settings.crop_samples, half)[:n]
    with torch.inference_mode():
        expected = model.model.cpu().float()(ClipSpectrograms(settings).spec(windows)).sigmoid().mean(0)
    assert probs == pytest.approx(dict(zip(model.tags, expected.tolist(), strict=True)), abs=1e-3)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(f"{n} windows of 0.5 s") and lines[1].split() == [
        f"{max(probs.values()):.2f}", max(probs, key=probs.get)
    ]
    assert len(lines) == 3
    sf.write(tmp_path / "a.wav", np.zeros(800), 8000)
    with pytest.raises(SystemExit, match="has 8000 Hz; resample it to 44100 Hz"):
        main(str(tmp_path / "model.onnx"), str(tmp_path / "a.wav"))


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs_without_arguments(name, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name)], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() and USERS.get(name, "") in ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs_from_top_to_bottom(name, tmp_path, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # a kernel draws figures into its cells
    nbformat = pytest.importorskip("nbformat")
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "nbs" / name, as_version=4)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [o for o in outputs if o.output_type == "error"] == []
    shown = [o.get("data", {}) for o in outputs]
    assert any("image/png" in data or "<audio" in data.get("text/html", "") for data in shown), (
        "the outputs hold a figure or an audio player"
    )


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_is_stored_without_outputs_in_normal_form(name):
    nbformat = pytest.importorskip("nbformat")
    text = (ROOT / "nbs" / name).read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert text.rstrip("\n") == nbformat.writes(notebook).rstrip("\n")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_imports_fatai_all_first_and_other_names_from_their_modules(name):
    nbformat = pytest.importorskip("nbformat")
    cells = nbformat.read(ROOT / "nbs" / name, as_version=4).cells
    trees = [ast.parse(cell.source) for cell in cells if cell.cell_type == "code"]
    imports = [node for tree in trees for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert ast.unparse(imports[0]) == "from fatai.all import *"
    public_names = set((ROOT / "tests" / "public_names.txt").read_text(encoding="utf-8").split())
    for node in imports[1:]:
        assert isinstance(node, ast.ImportFrom) and node.module.startswith("fatai."), ast.unparse(node)
        assert public_names.isdisjoint(alias.name for alias in node.names), ast.unparse(node)
