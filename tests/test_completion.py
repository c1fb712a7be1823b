"""What a shell completes, by click's protocol, in this process and another, and in shells as far as they are there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import BashComplete

from simulator import catalog
from simulator.cli import simulate as root

ROOT = Path(__file__).parent.parent
HEAVY = {"pydantic", "numpy", "pyarrow", "pandas", "rich", "simpy", "ruamel"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenarios, a hidden folder, and others that hold some or not."""
    where = tmp_path_factory.mktemp("complete")
    for name in ("mine.yaml", "more/deep.yml", "more/notes.txt", "other/x.txt", ".hidden/x.yaml"):
        (where / name).parent.mkdir(exist_ok=True)
        (where / name).touch()
    return where


def environment() -> dict[str, str]:
    """Return an environment in which `simulate` is this one's."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}


def completed(line: str, where: Path) -> list[tuple[str, str]]:
    """Return kind and value of what is offered at the end of a line, by what click's script for bash calls."""
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        for name, value in asked.items():
            patch.setenv(name, value)
        offered = BashComplete(root, {}, "simulate", "_SIMULATE_COMPLETE").complete()
    return [(kind, value) for kind, _, value in (row.partition(",") for row in offered.splitlines() if row)]


def words(line: str, where: Path) -> list[str]:
    found = completed(line, where)
    assert {kind for kind, _ in found} <= {"plain"}
    return [value for _, value in found]


def test_commands_names_and_files(folder: Path) -> None:
    first = words("simulate ", folder)
    assert set(root.commands) <= set(first)
    assert set(catalog.names("scenarios")) <= set(first)
    assert {"mine.yaml", "more/", "other/"} <= set(first)
    assert not [word for word in first if word.startswith((".", "-"))]
    assert words("simulate topo", folder) == ["topology"]
    assert words("simulate quick", folder) == ["quickstart"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("simulate mi", ["mine.yaml"]),
        ("simulate validate more/", ["more/deep.yml"]),
        ("simulate sweep m", ["mine.yaml", "more/"]),
        ("simulate topology show cloudm", ["cloudmatrix384"]),
        ("simulate topology compare clos-h100 cloudm", ["cloudmatrix384"]),
        ("simulate device show h100-s", ["h100-sxm-80gb"]),
        ("simulate explain --model gpt-oss-1", ["gpt-oss-120b"]),
        ("simulate completion z", ["zsh"]),
        ("simulate mine.yaml --se", ["--seed", "--set"]),
        ("simulate rin --se", ["--seed", "--set"]),
        ("simulate mine.yaml --set serving.mo", ["serving.model="]),
        ("simulate mine.yaml --set serving.decode.la", ["serving.decode.layout."]),
        ("simulate mine.yaml --set faults[0].re", ["faults[0].repair="]),
        ("simulate mine.yaml --set serving.nothing.", []),
        ("simulate mine.yaml --set serving.model=l", []),
        ("simulate gone/", []),
    ],
)
def test_words(line: str, expected: list[str], folder: Path) -> None:
    assert words(line, folder) == expected


@pytest.mark.parametrize("line", ["simulate oth", "simulate sweep oth", "simulate report m", "simulate compare a m"])
def test_folders_are_left_to_the_shell(line: str, folder: Path) -> None:
    assert completed(line, folder) == [("dir", line.split(" ")[-1])]


@pytest.mark.parametrize("line", ["simulate ", "simulate topology show "])
def test_completing_imports_nothing_heavy(line: str, folder: Path) -> None:
    code = (
        "import sys\nfrom simulator.cli import main\ntry:\n    main()\nexcept SystemExit:\n"
        "    print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    at = str(line.count(" "))
    asked = {"COMP_WORDS": line, "COMP_CWORD": at, "_SIMULATE_COMPLETE": "bash_complete"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env=environment() | asked, check=True
    )
    assert "plain," in done.stdout
    assert not HEAVY & set(done.stderr.split())


def test_the_paths_that_are_offered_are_keys_of_scenarios(folder: Path) -> None:
    assert {"topology.", "workload.", "seed="} <= set(words("simulate mine.yaml --set ", folder))
    assert {"instances", "layout"} <= {
        path[:-1].split(".")[-1] for path in words("simulate x --set serving.decode.", folder)
    }


BASH = r"""
source <(simulate completion bash)
compopt() { options="$options $2"; }
for line in "simulate topology show cloudm" "simulate mine.yaml --set serving.mo" "simulate oth"; do
  read -ra COMP_WORDS <<< "$line"
  COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 )); COMPREPLY=(); options=
  _simulate_completion simulate
  echo "${COMPREPLY[*]}|$options"
done
complete -p simulate
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_in_bash(folder: Path) -> None:
    done = subprocess.run(
        ["bash", "--norc", "-c", BASH], capture_output=True, text=True, cwd=folder, env=environment(), check=True
    )
    assert done.stdout.splitlines()[:3] == ["cloudmatrix384|", "serving.model=| nospace", "| dirnames"], done.stderr
    assert "_simulate_completion simulate" in done.stdout.splitlines()[3]


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish")
def test_in_fish(folder: Path) -> None:
    line = 'simulate completion fish | source; complete -C "simulate topology show cloudm"; complete -C "simulate mi"'
    done = subprocess.run(
        ["fish", "--no-config", "-c", line], capture_output=True, text=True, cwd=folder, env=environment(), check=True
    )
    assert done.stdout.splitlines() == ["cloudmatrix384", "mine.yaml"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_are_printed_for_each_shell(shell: str, simulate) -> None:
    outcome = simulate("completion", shell)
    assert outcome.code == 0
    assert "_SIMULATE_COMPLETE" in outcome.out
    assert ("nospace" in outcome.out) == (shell == "bash")
    assert ('-S ""' in outcome.out) == (shell == "zsh")
    assert simulate("completion", "tcsh").code == 2
