"""The scenarios on public traces run: a part of each here, by night all; the data must be beside the project."""

from pathlib import Path

import pytest

from simulator import catalog, load, simulate

DATA = Path(__file__).parents[2] / "shared/data"
NAMES = [name for name in catalog.names("scenarios") if name.startswith("traces/")]
PARTS = {"traces/servegen-m-large-two-weeks": ["workload.duration=12 h"]}
"""What would take most of a night is cut."""
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the public traces are not beside the project")


@needs_data
@pytest.mark.parametrize("name", NAMES)
def test_a_part(name: str, tmp_path: Path) -> None:
    run = simulate(load(name, ["workload.requests=400"]), out=tmp_path / "run", check=True)
    assert run.summary["requests"]["finished"] + run.summary["requests"]["rejected"] == 400


@needs_data
@pytest.mark.nightly
@pytest.mark.parametrize("name", NAMES)
def test_all(name: str, tmp_path: Path) -> None:
    run = simulate(load(name, PARTS.get(name, [])), out=tmp_path / "run", check=True)
    assert run.summary["requests"]["unfinished"] == 0
    assert run.summary["requests"]["total"] > 10_000
