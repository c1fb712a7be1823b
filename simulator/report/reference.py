"""Pages of reference in Markdown: keys of scenario and sweep files, commands, policies.

`python -m simulator.report.reference docs/reference` writes them; a test keeps them equal to what is written here.
"""

import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import click

from simulator.report.policies import policies_page
from simulator.report.schema_tables import tables
from simulator.scenario.write import json_schema
from simulator.sweep.schema import json_schema as sweep_json_schema
from simulator.topology.presets import BUILDERS

_WRITTEN = "<!-- Written by `python -m simulator.report.reference docs/reference`; do not edit. -->"

_SCENARIO = f"""# Keys of a scenario

{_WRITTEN}

Every key of a scenario file, as the schema has it (`simulate schema`; editors complete from
`schema/scenario.v1.json`). How the parts work together is told in [the scenario file](../scenario-file.md). A key
without a default that is not *required* is off, or as its meaning says; parameters of a topology are those of its
preset. A choice is a name, or a name with parameters: `router: least_loaded`,
`router: {{power_of_two: {{choices: 3}}}}`.
"""

_SWEEP = f"""# Keys of a sweep

{_WRITTEN}

Every key of a sweep file (`simulate schema --sweep`; editors complete from `schema/sweep.v1.json`). What a sweep does
is told in [sweeps, searches and comparisons](../sweeps.md). A *path* is what `--set` takes, such as
`serving.decode.instances`.
"""

_COMMANDS = f"""# Commands

{_WRITTEN}

What `simulate COMMAND --help` says. Exit codes: 0 done; 1 a defect of the simulator, or results that the disk
refused; 2 usage or invalid input; 3 an `expect:` failed; 130 interrupted, with what was done kept and marked partial.
"""


def scenario_page() -> str:
    """Return the page of the keys of scenario files."""
    schema = json_schema()
    definitions = {name: part for name, part in schema["$defs"].items() if not name.endswith("Extension")}
    owners: dict[str, list[str]] = {}
    for builder, kind in BUILDERS.items():
        for key in kind.parameters.model_json_schema()["properties"]:
            owners.setdefault(key, []).append(f"`{builder}`")
    built = {key: "all" if len(names) == len(BUILDERS) else ", ".join(names) for key, names in owners.items()}
    return _SCENARIO + "".join(tables(definitions, "Scenario", {"Topology": ("of builder", built)}))


def sweep_page() -> str:
    """Return the page of the keys of sweep files."""
    schema = sweep_json_schema()
    return _SWEEP + "".join(tables(schema["$defs"] | {"Sweep": schema}, "Sweep", {}))


def commands_page() -> str:
    """Return the page of every command and option."""
    command: click.Command = pkgutil.resolve_name("simulator.cli:simulate")  # above this module, so by its name
    return _COMMANDS + "".join(_command(command, click.Context(command, info_name="simulate", terminal_width=100)))


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    yield f"\n## {context.command_path}\n\n```text\n{command.get_usage(context)}\n```\n"
    if command.help:
        yield f"\n{' '.join(command.help.split(chr(12))[0].split())}\n"
    records = [each.get_help_record(context) for each in command.params]
    rows = "".join(f"| {_code(record[0])} | {_cell(record[1])} |\n" for record in records if record and record[1])
    if rows:
        yield f"\n| option | meaning |\n|---|---|\n{rows}"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None and not inner.hidden:
                yield from _command(inner, click.Context(inner, info_name=name, parent=context))


def _code(text: str) -> str:
    """Return text as code that may hold a pipe inside a table."""
    return f"<code>{_cell(text)}</code>"


def _cell(text: str) -> str:
    for character, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;")):
        text = text.replace(character, name)
    return text


PAGES: Mapping[str, Callable[[], str]] = {
    "scenario.md": scenario_page,
    "sweep.md": sweep_page,
    "commands.md": commands_page,
    "policies.md": policies_page,
}
"""File name -> what makes the page."""


def write(folder: Path) -> None:
    """Write every page into `folder`."""
    for name, page in PAGES.items():
        (folder / name).write_text(page(), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
