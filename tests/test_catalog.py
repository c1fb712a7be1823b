"""Shipped data by name, the user's own by path."""

from pathlib import Path

import pytest

from simulator import catalog
from simulator.errors import InputError
from simulator.model.transformer import Transformer


@pytest.mark.parametrize(
    "kind", ["topologies", "topologies/devices", "workloads/models", "traces", "scenarios", "sweeps"]
)
def test_every_shipped_name_is_found(kind: str) -> None:
    names = catalog.names(kind)
    assert names
    assert list(names) == sorted(names)
    for name in names:
        assert catalog.locate(kind, name).is_file()
        assert not catalog.is_path(kind, name)


@pytest.mark.parametrize(
    ("kind", "name", "path"),
    [
        ("workloads/models", "llama-3.1-8b", False),
        ("workloads/models", "x.yaml", True),
        ("workloads/models", "./x", True),
        ("traces", "conversation-sample", False),
        ("traces", "x.parquet", True),
        ("traces", "x.csv.gz", True),
        ("topologies", "clos-h100", False),
        ("topologies", "a/b", True),
        ("topologies", "x.parquet", False),
    ],
)
def test_names_and_paths(kind: str, name: str, path: bool) -> None:
    assert catalog.is_path(kind, name) is path


def test_an_unknown_name_names_the_shipped_ones() -> None:
    with pytest.raises(InputError) as caught:
        catalog.locate("topologies", "clos-h10")
    [problem] = caught.value.problems
    assert problem.what == "unknown topology preset 'clos-h10'"
    assert problem.allowed == ", ".join(catalog.names("topologies"))
    assert problem.nearest == "clos-h100"


def test_paths_start_beside(tmp_path: Path) -> None:
    assert catalog.locate("topologies", "x.yaml", tmp_path) == tmp_path / "x.yaml"
    assert catalog.canonical("topologies", "../x.yaml", tmp_path) == str(tmp_path.parent / "x.yaml")
    assert catalog.canonical("topologies", "clos-h100", tmp_path) == "clos-h100"


def test_the_path_of_a_shipped_entry_is_its_name(tmp_path: Path) -> None:
    folder = catalog.folder("workloads/models")
    assert catalog.canonical("workloads/models", str(folder / "llama-3.1-8b.yaml")) == "llama-3.1-8b"
    assert catalog.canonical("workloads/models", "llama-3.1-8b.yaml", folder) == "llama-3.1-8b"
    assert catalog.canonical("workloads/models", "llama-3.1-8b.yaml", tmp_path) == str(tmp_path / "llama-3.1-8b.yaml")
    assert catalog.canonical("workloads/models", str(folder / "none.yaml")) == str(folder / "none.yaml")


def test_an_entry_is_read_as_its_model(tmp_path: Path) -> None:
    card = catalog.load("workloads/models", "llama-3-8b", Transformer)
    assert card.layers == 32
    (tmp_path / "mine.yaml").write_text("layers: 3\n")
    with pytest.raises(InputError) as caught:
        catalog.load("workloads/models", "mine.yaml", Transformer, tmp_path)
    assert {problem.file for problem in caught.value.problems} == {str(tmp_path / "mine.yaml")}
