"""The analysts' notebook and page: every cell and every example runs."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.jobs import analyst_run

DOCS = Path(__file__).parent.parent.parent / "docs"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = analyst_run.make_run(tmp_path_factory.mktemp("notebook"))
    analyst_run.select(place)
    return place


def cells() -> list[str]:
    import nbformat

    notebook = nbformat.read(DOCS / "analyst.ipynb", as_version=4)
    return [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_every_cell_runs(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    monkeypatch.setenv("REELSET_RUN", str(run))
    matplotlib.use("agg")
    space: dict[str, Any] = {}
    for source in cells():
        exec(source, space)
        if source.startswith("ask("):
            frame = eval(source, space)
            assert len(frame), source
    space["plt"].close("all")


def test_the_notebook_was_executed() -> None:
    import nbformat

    notebook = nbformat.read(DOCS / "analyst.ipynb", as_version=4)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3


@pytest.mark.slow
def test_a_kernel_runs_the_notebook(run: Path) -> None:
    import nbclient
    import nbformat

    notebook = nbformat.read(DOCS / "analyst.ipynb", as_version=4)
    os.environ["REELSET_RUN"] = str(run)
    try:
        nbclient.NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(DOCS)}}).execute()
    finally:
        del os.environ["REELSET_RUN"]


def test_every_line_of_other_tools_runs(run: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "analyst.md").read_text(), re.DOTALL)
    space: dict[str, Any] = {"RUN": str(run)}
    lines = [line for line in block.splitlines() if line and "spark." not in line and "load_dataset" not in line]
    assert len(lines) == 4
    for line in lines:
        exec(line, space)
