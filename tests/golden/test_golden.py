"""Every shipped scenario still gives what it gave; the laws say whether that is right, this says whether it moved."""

import json
from pathlib import Path

import pytest
from regenerate import GOLDEN, NAMES, observe


@pytest.mark.parametrize("name", NAMES)
def test_shipped_scenario(name: str, tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    found = observe(name, tmp_path)
    assert {key: found[key] for key in found if key != "digest"} == {
        key: golden[name][key] for key in found if key != "digest"
    }
    assert found["digest"] == golden[name]["digest"]


def test_every_digest_has_its_scenario() -> None:
    assert sorted(json.loads(GOLDEN.read_text(encoding="utf-8"))) == NAMES
