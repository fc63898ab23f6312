"""Notebooks run from top to bottom, at tiny size."""

import builtins
import os
import pathlib
import subprocess
import sys
import types

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PICTURES = {"editing": 3, "flextok": 3, "own": 3, "plans": 12, "tokenizers": 3}
QUICK = ("plans",)  # the others train for longer than most tests may take
CASES = [
    pytest.param(p, id=p.stem, marks=() if p.stem in QUICK else pytest.mark.slow) for p in NOTEBOOKS
]
TINY = 'VARIANT = "tiny"\nNAMES = ("vqvae",)\nSIDE = 4\nGENERATOR = TOKENIZER = ""\n'


@pytest.mark.parametrize("path", CASES)
@pytest.mark.filterwarnings("ignore")  # of the Jupyter client, not of the library
def test_notebook_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    settings = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(settings) == 1
    settings[0].source = f"{TINY}WORKDIR = {str(tmp_path)!r}"
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    ).execute()
    shown = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(shown) == PICTURES[path.stem]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_on_colab_the_library_is_cloned_from_the_address_that_is_given(path, monkeypatch):
    cells = [
        c.source for c in nbformat.read(path, as_version=4).cells if "google.colab" in c.source
    ]
    calls = []
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(builtins, "input", lambda _: "https://example.org/nexttok")
    monkeypatch.setattr(subprocess, "run", lambda words, check: calls.append(words))
    monkeypatch.setattr(pathlib.Path, "exists", lambda self: False)
    monkeypatch.setattr(os, "chdir", calls.append)
    exec(cells[0], {})
    assert calls[0] == ["git", "clone", "https://example.org/nexttok", "nexttok"]
    assert calls[1] == "nexttok"
    assert calls[2][-2:] == ["-r", "requirements.txt"]
