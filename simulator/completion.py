"""What a shell offers where a word is half written: names of shipped data, files, and paths of a scenario for --set.

The protocol and the scripts are click's. Nothing that is slow to import is, but for the paths, which the schema has.
"""

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from click import Command, Context, Parameter
from click.shell_completion import CompletionItem, get_completion_class

if TYPE_CHECKING:
    from pydantic import BaseModel

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_SIMULATE_COMPLETE"
YAML = (".yaml", ".yml")

Completer = Callable[[Context, Parameter, str], list[CompletionItem]]

_NO_SPACE = {
    "bash": ("    return 0\n", "    [[ ${COMPREPLY[0]} == *[=.] ]] && compopt -o nospace\n\n    return 0\n"),
    "zsh": (
        "compadd -U -V unsorted -a completions",
        'if [[ ${completions[1]} == *[=.] ]]; then compadd -U -S "" -V unsorted -a completions; '
        "else compadd -U -V unsorted -a completions; fi",
    ),
}
"""By shell: what of click's script is replaced so that no space follows a path that goes on; fish needs nothing."""


def script(shell: str, command: Command, program: str) -> str:
    """Return the script that makes a shell complete the words of `program`."""
    found = get_completion_class(shell)
    assert found is not None
    text = found(command, {}, program, VARIABLE).source()
    return text.replace(*_NO_SPACE[shell], 1) if shell in _NO_SPACE else text


def plain(words: list[str]) -> list[CompletionItem]:
    """Return words as a shell is given them."""
    return [CompletionItem(word) for word in words]


def shipped(kind: str) -> Completer:
    """Return what completes the names of shipped data of one kind, such as `topologies`."""

    def complete(_: Context, __: Parameter, start: str) -> list[CompletionItem]:
        return _shipped(kind, start)

    return complete


def _shipped(kind: str, start: str) -> list[CompletionItem]:
    from simulator import catalog

    return plain([name for name in catalog.names(kind) if name.startswith(start)])


def folders(_: Context, __: Parameter, start: str) -> list[CompletionItem]:
    """Leave it to the shell to complete a folder."""
    return [CompletionItem(start, type="dir")]


def shipped_or_files(kind: str) -> Completer:
    """Return what completes names of shipped data of one kind, YAML files, and folders that may hold some."""

    def complete(_: Context, __: Parameter, start: str) -> list[CompletionItem]:
        return _files(start, _shipped(kind, start))

    return complete


scenarios = shipped_or_files("scenarios")


def scenario_words(start: str, others: list[CompletionItem]) -> list[CompletionItem]:
    """Return what `scenarios` does, after other words that may stand there."""
    return _files(start, [*others, *_shipped("scenarios", start)])


def _files(start: str, others: list[CompletionItem]) -> list[CompletionItem]:
    """Return files and folders after other words; folders alone are the shell's affair: it puts no space after one."""
    folder, slash, name = start.rpartition("/")
    try:
        with os.scandir(os.path.expanduser(folder + slash) or ".") as entries:
            there = {entry.name: entry.is_dir() for entry in entries if entry.name.startswith(name)}
    except OSError:
        there = {}
    seen = {path: is_folder for path, is_folder in sorted(there.items()) if name or not path.startswith(".")}
    found = [*others, *plain([folder + slash + path for path in seen if path.endswith(YAML) and not seen[path]])]
    inner = [f"{folder}{slash}{path}/" for path, is_folder in seen.items() if is_folder]
    if inner and not found:
        return [CompletionItem(start, type="dir")]
    return [*found, *plain(inner)]


def paths(_: Context, __: Parameter, start: str) -> list[CompletionItem]:
    """Return paths of a scenario that go on from a half-written one: `.` follows a mapping, `=` a value."""
    if "=" in start:
        return []
    from simulator.scenario.schema import Scenario
    from simulator.strict import keys_below

    above, dot, name = start.rpartition(".")
    keys: Mapping[str, list[type[BaseModel]]] = keys_below(Scenario, above.split(".") if above else [])
    return plain([_path(above + dot + key, models) for key, models in keys.items() if key.startswith(name)])


def _path(path: str, models: "list[type[BaseModel]]") -> str:
    from simulator.strict import OneOf

    return f"{path}{'.' if any(not issubclass(model, OneOf) for model in models) else '='}"
