"""The notebook of examples/: it compiles, calls what there is, and runs from models to picture."""

from __future__ import annotations

import ast
import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import opd

NOTEBOOK = Path(__file__).parents[1] / "examples" / "notebook" / "first_run.ipynb"
CELLS = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def test_it_is_kept_without_outputs():
    assert [c for c in CELLS if c.get("outputs") or c.get("execution_count")] == []


def test_its_cells_call_what_there_is():
    for cell in CODE:
        tree = ast.parse(cell)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "opd":
                assert hasattr(opd, node.attr)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "run":
                assert hasattr(opd.Run, node.attr)
    metrics = (NOTEBOOK.parents[2] / "docs" / "metrics.md").read_text("utf-8")
    for name in re.findall(r'points\("([^"]+)"\)', "".join(CODE)):
        assert f"`{name.replace('/sum/', '/<set>/')}`" in metrics


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("nbclient") is None or find_spec("ipykernel") is None,
    reason="nbclient or ipykernel is not installed",
)
def test_it_runs_from_models_to_picture(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [out.get("data", {}) for cell in notebook.cells for out in cell.get("outputs", [])]
    assert any("image/png" in data for data in shown)
    assert "srcdoc=" in shown[-1]["text/html"]
    assert (tmp_path / "runs/notebook/report.html").is_file()
