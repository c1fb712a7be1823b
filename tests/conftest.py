"""One gate, one verdict: in CI the property tests draw the same examples each time; elsewhere they go on exploring."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from simulator import cli

settings.register_profile("gate", derandomize=True, print_blob=True)
if os.environ.get("CI"):
    settings.load_profile("gate")


class Outcome:
    """What a command left behind."""

    def __init__(self, code: object, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def simulate(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Outcome:
        with pytest.raises(SystemExit) as stop:
            cli.main(list(arguments))
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return Outcome(stop.value.code, out, err)

    return call
