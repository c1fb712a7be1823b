"""The commands as a user types them: exit codes, streams, suggestions, plug-ins and time to start."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from simulator import __version__, cli
from simulator.documents import parse_document
from simulator.scenario.load import load

ROOT = Path(__file__).parent.parent


def process(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "simulator.cli", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, **options)


def test_version(simulate) -> None:
    assert simulate("version").out == simulate("--version").out == f"{__version__}\n"


def test_help_names_every_command(simulate) -> None:
    outcome = simulate("--help")
    assert outcome.code == 0
    for command in ("run", "validate", "schema", "trace", "topology", "timeline", "version"):
        assert f"\n  {command} " in outcome.out


@pytest.mark.parametrize("group", ["trace", "topology"])
def test_groups_are_found_and_described_as_they_describe_themselves(simulate, group: str) -> None:
    outcome = simulate(group, "--help")
    assert outcome.code == 0
    assert f"Usage: simulate {group} " in outcome.out
    assert "show" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("valdate", "x.yaml"), "Did you mean 'validate'?"),
        (("validate", "--ste", "a=b", "quickstart"), "Did you mean '--set'?"),
        (("quickstart", "--sede", "3"), "'--seed'"),
        (("quickstart", "--seed", "-3"), "-3 is not in the range x>=0"),
        (("quickstart", "--seed", "x"), "'x' is not a valid integer"),
        (("quickstart", "more"), "unexpected extra argument (more)"),
        (("validate",), "Missing argument 'FILE'"),
        (("trace", "shw"), "No such command 'shw'"),
        (("quickstrt",), "did you mean 'quickstart'?"),
        (("validate", "quickstart", "--plugin", "no_such_module"), "--plugin no_such_module: no such module"),
    ],
)
def test_usage_errors_exit_with_2_and_suggest(simulate, arguments: tuple[str, ...], complaint: str) -> None:
    outcome = simulate(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert complaint in outcome.err


def test_no_arguments_shows_the_help(simulate) -> None:
    outcome = simulate()
    assert outcome.code == 2
    assert "Usage: simulate" in outcome.out + outcome.err


def test_validate_and_its_resolved_text(simulate, tmp_path: Path) -> None:
    assert simulate("validate", "quickstart").out == "quickstart: valid\n"
    outcome = simulate("validate", "quickstart", "--resolved", "--set", "slo.ttft=3 s")
    assert outcome.code == 0
    (tmp_path / "again.yaml").write_text(outcome.out)
    assert load(tmp_path / "again.yaml") == load("quickstart", ["slo.ttft=3 s"])


def test_the_checked_in_schema_is_what_the_command_writes(simulate, tmp_path: Path) -> None:
    outcome = simulate("schema")
    assert outcome.out == (ROOT / "schema" / "scenario.v1.json").read_text(encoding="utf-8"), (
        "run: simulate schema --out schema/scenario.v1.json"
    )
    assert simulate("schema", "--out", "s.json").out == ""
    assert (tmp_path / "s.json").read_text(encoding="utf-8") == outcome.out
    refused = simulate("schema", "--out", "no/such/folder/s.json")
    assert (refused.code, "cannot write" in refused.err) == (2, True)


def test_the_checked_in_schema_of_sweeps_is_what_the_command_writes(simulate) -> None:
    written = (ROOT / "schema" / "sweep.v1.json").read_text(encoding="utf-8")
    assert simulate("schema", "--sweep").out == written, "run: simulate schema --sweep --out schema/sweep.v1.json"
    schema = json.loads(written)
    assert schema["required"] == ["schema", "base"]
    assert not schema["additionalProperties"]
    assert all("description" in part for part in schema["properties"].values())
    assert re.search(schema["properties"]["seeds"]["anyOf"][0]["pattern"], " 1 .. 20 ")
    assert "ttft.p99" in schema["$defs"]["Search"]["properties"]["subject_to"]["properties"]


def test_the_schema_describes_every_key(simulate) -> None:
    definitions = json.loads(simulate("schema").out)["$defs"]
    scenario = definitions["Scenario"]["properties"]
    assert {"schema", "base", "topology", "workload", "serving", "slo", "expect", "results", "seed", "until"} <= set(
        scenario
    )
    assert all("description" in part or "$ref" in part for part in scenario.values())
    assert "required" in definitions["Scenario"]
    assert definitions["ScenarioExtension"]["required"] == ["schema", "base"]
    assert "required" not in definitions["ServingExtension"]
    assert definitions["Topology"]["properties"]["nodes"]
    assert definitions["Topology"]["additionalProperties"] is False


def test_every_reference_of_the_schema_leads_somewhere(simulate) -> None:
    text = simulate("schema").out
    definitions = json.loads(text)["$defs"]
    references = {part.split('"')[0] for part in text.split('"#/$defs/')[1:]}
    assert references
    assert references <= set(definitions)


PLUGIN = """\
from simulator.serving.routing import ROUTERS, NoParameters, RouterKind


class First:
    def __call__(self, request, pool):
        return 0


ROUTERS["always_first"] = RouterKind(NoParameters, lambda parameters, place: First())
"""


def test_a_plug_in_makes_its_names_known_and_a_file_alone_does_not(tmp_path: Path) -> None:
    (tmp_path / "my_routers.py").write_text(PLUGIN)
    arguments = ("validate", "quickstart", "--set", "serving.router=always_first")
    assert process(*arguments, cwd=tmp_path).returncode == 2
    outcome = process(*arguments, "--plugin", "my_routers", cwd=tmp_path)
    assert (outcome.returncode, outcome.stdout) == (0, "quickstart: valid\n"), outcome.stderr


def test_a_defect_is_one_line_and_exit_1(simulate, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr("simulator.scenario.load.load", broken)
    outcome = simulate("validate", "quickstart")
    assert (outcome.code, outcome.out) == (1, "")
    what = "ZeroDivisionError: division by zero"
    assert outcome.err == f"simulate: a defect of the simulator, please report it: {what} (--debug shows where)\n"
    with pytest.raises(ZeroDivisionError):
        cli.main(["validate", "quickstart", "--debug"])


def test_an_interrupt_exits_with_130(simulate, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("simulator.scenario.load.load", interrupted)
    assert simulate("validate", "quickstart").code == 130


@pytest.mark.parametrize("arguments", ["schema", "--help", "validate --help", "validate quickstart --resolved"])
def test_a_reader_that_leaves_causes_no_complaint(arguments: str) -> None:
    command = f"{sys.executable} -m simulator.cli {arguments} | true; echo ${{PIPESTATUS[0]}}"
    outcome = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (outcome.stdout, outcome.stderr) == ("0\n", "")


def test_a_problem_is_one_line_even_with_line_breaks_in_it(simulate, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text('schema: 1\n"a\\nb": 1\n')
    assert all(line.startswith("x.yaml") for line in simulate("validate", "x.yaml").err.splitlines())


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (["--help"], {"pydantic", "ruamel", "numpy", "pandas", "pyarrow", "simpy", "networkx", "dask", "plotly"}),
        (["validate", "quickstart"], {"pandas", "scipy", "numba", "dask", "distributed", "plotly"}),
    ],
)
def test_start_up_imports_only_what_it_needs(arguments: list[str], heavy: set[str]) -> None:
    code = f"import atexit, sys; atexit.register(lambda: print(*sys.modules)); sys.argv[1:] = {arguments}"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; from simulator.cli import main; main()"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not heavy & set(done.stdout.splitlines()[-1].split())


def test_resolved_text_is_yaml_of_this_schema(simulate) -> None:
    document = parse_document(simulate("validate", "synthetic-colocated", "--resolved").out, "resolved")
    assert document.value["schema"] == 1
    assert document.value["topology"]["preset"] == "clos-h100"
