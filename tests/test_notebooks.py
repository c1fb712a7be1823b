"""The notebooks run from top to bottom, and are kept without outputs, which would be out of date unseen."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "docs" / "notebooks"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore")  # those of Jupyter are not ours
def test_a_notebook_runs_and_shows_its_results(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "IPYTHONDIR",
        "JUPYTER_RUNTIME_DIR",
        "JUPYTER_CONFIG_DIR",
    ):  # not the user's
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells), "clear the outputs before committing"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output.data for cell in cells for output in cell.outputs if "data" in output]
    tables = [data["text/html"] for data in shown if "text/html" in data]
    assert sum("simulator-figures" in table for table in tables) == 3  # a run, a comparison, a sweep
    assert sum("application/vnd.plotly.v1+json" in data for data in shown) == 2
    assert not any(output.output_type in ("error", "stream") for cell in cells for output in cell.outputs)
