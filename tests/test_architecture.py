"""The house rules that a machine can hold: which package may import which, sizes, names, and a light command line."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "simulator"
TIERS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "units", "randomness", "clock", "deferred"}),
    frozenset({"documents", "execution", "plugins"}),
    frozenset({"strict"}),
    frozenset({"catalog"}),
    frozenset({"topology", "model", "results"}),
    frozenset({"network", "device"}),
    frozenset({"cluster", "workload"}),
    frozenset({"serving"}),
    frozenset({"scenario"}),
    frozenset({"build"}),
    frozenset({"sweep"}),
    frozenset({"report"}),
    frozenset({"completion"}),
    frozenset(
        {
            *("cli", "compare_cli", "device_cli", "explain_cli", "model_cli", "report_cli", "sweep_cli"),
            *("timeline_cli", "topology_cli", "trace_cli"),
        }
    ),
)
"""Packages and top-level modules from the ground up; each may import from the tiers below it and from itself."""

TIER_OF = {name: tier for tier, names in enumerate(TIERS) for name in names}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "data" not in path.relative_to(PACKAGE).parts)
FORBIDDEN_NAMES = re.compile(r"(^|_)(utils?|helpers?|base|managers?|handlers?|common|misc)(_|$)", re.IGNORECASE)
FORBIDDEN_CLASSES = re.compile(r"(Manager|Handler|Helper|Utils?|Base)$")
HEAVY = ("pandas", "pyarrow", "networkx", "numpy", "rich", "simpy", "ruamel", "pydantic")


def part_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the dotted name of everything imported, inside functions and TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def classes(path: Path) -> Iterator[tuple[str, set[str]]]:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ClassDef):
            yield node.name, {base.id for base in node.bases if isinstance(base, ast.Name)}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_part_has_its_tier() -> None:
    parts = {part_of(path) for path in FILES} - {"__init__"}
    assert parts <= set(TIER_OF), f"not in TIERS: {sorted(parts - set(TIER_OF))}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_point_down(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":  # imports the public calls on first use
        return
    wrong = []
    for line, name in imports(parse(path)):
        package, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if package == "simulator" and target in TIER_OF and target != part and TIER_OF[target] >= TIER_OF[part]:
            wrong.append(f"{relative(path)}:{line}: {part} (tier {TIER_OF[part]}) imports {target}")
    assert not wrong


def test_the_check_of_imports_sees_imports_in_functions() -> None:
    code = "import a.b\ndef f():\n    from c.d import e\nif TYPE_CHECKING:\n    from g import h\n"
    assert sorted(name for _, name in imports(ast.parse(code))) == ["a.b", "c.d.e", "g.h"]


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_sizes(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= 500, f"{relative(path)} has {lines} lines"
    long = [
        f"{relative(path)}:{node.lineno}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= 60
    ]
    assert not long


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_names(path: Path) -> None:
    for part in path.relative_to(PACKAGE).parts:
        assert not FORBIDDEN_NAMES.search(part.removesuffix(".py")), part
    classes = [node.name for node in ast.walk(parse(path)) if isinstance(node, ast.ClassDef)]
    assert not [name for name in classes if FORBIDDEN_CLASSES.search(name)]


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_only_the_command_line_prints(path: Path) -> None:
    if part_of(path) in TIERS[-1] | {"report"}:
        return
    calls = [node for node in ast.walk(parse(path)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert not [f"{relative(path)}:{call.lineno}" for call in calls if getattr(call.func, "id", "") == "print"]


def test_no_path_of_one_machine_is_written_down() -> None:
    private = re.compile(r"(?<![\w.])/(work|home|Users|root|mnt)/\w|(?<![\w.])[A-Z]:\\\\")
    kinds = ("simulator", "topologies", "workloads", "scenarios", "schema", "docs", "benchmarks", "tests")
    for kind in kinds:
        for path in sorted((ROOT / kind).rglob("*")):
            if path.suffix in (".py", ".yaml", ".json", ".md", ".toml") and "out" not in path.parts:
                found = private.search(path.read_text(encoding="utf-8"))
                assert found is None, f"{relative(path)}: {found[0]}"


def test_the_command_line_imports_nothing_heavy() -> None:
    code = "import sys, simulator.cli; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not set(HEAVY) & set(loaded.split())
    assert "click" in loaded.split()


@pytest.mark.parametrize(
    "arguments", [["--help"], ["trace", "--help"], ["run", "--help"], ["timeline", "--help"], ["version"]], ids=" ".join
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom simulator import cli\n"
        f"try:\n    cli.main({arguments!r})\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stderr
    assert not set(HEAVY) & set(loaded.split())


def test_a_scenario_is_read_without_what_only_runs_need() -> None:
    # numpy and the actors of a run take a quarter of a second, half of what `simulate validate` lasts
    code = "import sys, simulator.scenario.load; print(*(m for m in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "simulator.scenario.load" in loaded
    assert not {"numpy", "pyarrow", "pandas", "numba", "simulator.serving.instance"} & set(loaded)


def test_what_is_compiled_can_be() -> None:
    """No model of pydantic is compiled, and nothing interpreted inherits from what is compiled: neither would work."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    compiled = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["mypyc"]["include"]
    assert compiled == sorted(set(compiled))
    bases: set[str] = set()
    for name in compiled:
        for node, inherited in classes(ROOT / name):
            assert not inherited & {"Strict", "OneOf", "BaseModel"}, f"{name}: {node}"
            bases.add(node)
    for path in sorted(PACKAGE.rglob("*.py")):
        if relative(path) not in compiled:
            for node, inherited in classes(path):
                assert not inherited & bases, f"{relative(path)}: {node}"
