"""The command line: `simulate FILE` runs a scenario; validate, schema, trace, topology and version stand beside it.

Nothing heavy is imported until a command needs it, so that help and completion stay quick.
"""

import errno
import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from simulator import __version__
from simulator.completion import SHELLS, paths, scenario_words, scenarios, script
from simulator.errors import InputError, OutputError, nearest
from simulator.plugins import import_plugins

if TYPE_CHECKING:
    from simulator.results.run import Run
    from simulator.scenario.schema import Scenario

DONE, INTERNAL, INVALID, UNMET, INTERRUPTED = 0, 1, 2, 3, 130
MAX_PROBLEMS = 50
_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
"""What a disk says that takes no more; no defect of ours."""

_GROUPS = {
    "trace": ("simulator.trace_cli", "Convert, look at, cut and make request traces."),
    "topology": ("simulator.topology_cli", "Look at cluster topologies."),
    "device": ("simulator.device_cli", "Look at accelerators and processors."),
    "model": ("simulator.model_cli", "Look at models, shipped or of a config.json."),
    "sweep": ("simulator.sweep_cli", "Run many points of a scenario, on this machine or a cluster."),
    "compare": ("simulator.compare_cli", "Compare two runs, or the settings of a sweep."),
    "timeline": ("simulator.timeline_cli", "Write a run as a trace that Perfetto opens."),
    "explain": ("simulator.explain_cli", "Say where the time of a step and the memory of a device go."),
    "report": ("simulator.report_cli", "Write one HTML page of a run or a sweep."),
}

Call = TypeVar("Call", bound=Callable[..., Any])


class _Later(click.Group):
    """Stands for a command, or a group of them, until it is asked for: then its module is imported."""

    def __init__(self, name: str, module: str, short_help: str) -> None:
        super().__init__(name, short_help=short_help)
        self.module = module

    def load(self) -> click.Command:
        """Return the command itself."""
        group: click.Command = getattr(importlib.import_module(self.module), str(self.name))
        return group


class _Simulate(click.Group):
    """A group whose default command is `run`: a first argument that names no command is a scenario file."""

    def parse_args(self, context: click.Context, words: list[str]) -> list[str]:
        own = {option for parameter in self.params for option in parameter.opts} | set(context.help_option_names)
        first = next((word for word in words if word not in own), None)
        if first is not None and first not in self.commands:
            close = nearest(first, self.commands)
            known = context.resilient_parsing or "." in first or Path(first).exists()  # while a shell completes, all is
            if close and not known:
                raise click.UsageError(f"No such command or scenario file {first!r}. Did you mean {close!r}?", context)
            words.insert(words.index(first), "run")
        try:
            return super().parse_args(context, words)
        except BrokenPipeError:  # while the help was printed
            raise click.exceptions.Exit(_output_is_closed()) from None

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        command = super().get_command(context, name)
        return command.load() if isinstance(command, _Later) else command

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except BrokenPipeError:  # before click sees it, which would call it an error
            return _output_is_closed()

    def shell_complete(self, context: click.Context, incomplete: str) -> list[click.shell_completion.CompletionItem]:
        """Return commands, by their own short help so that none is imported, then what may stand in place of one."""
        found = [
            click.shell_completion.CompletionItem(name, help=command.get_short_help_str(70))
            for name, command in self.commands.items()
            if name.startswith(incomplete)
        ]
        if incomplete.startswith("-"):
            return click.Command.shell_complete(self, context, incomplete)
        return scenario_words(incomplete, found)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, command.get_short_help_str(70)) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=_Simulate, invoke_without_command=True, no_args_is_help=True, subcommand_metavar="FILE | COMMAND ...")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of a defect of the simulator.")
@click.version_option(__version__, message="%(version)s")
def simulate() -> None:
    """Simulate an AI cluster.

    FILE is a scenario, or the name of a shipped one such as quickstart; `simulate FILE` is short for
    `simulate run FILE`.
    """


def overriding(command: Call) -> Call:
    """Give a command the options that change a scenario: --set and --plugin."""
    changes = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="PATH=VALUE",
        help="Override a value, as in slo.ttft='1 s'.",
        shell_complete=paths,
    )
    plugins = click.option(
        "--plugin", "plugins", multiple=True, metavar="MODULE", help="Import a module that registers policies."
    )
    return changes(plugins(command))


@simulate.command()
@click.argument("file", metavar="FILE", shell_complete=scenarios)
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder of the run [results/NAME/RUN].")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of every random stream, in the place of the file's.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.option("--check", is_flag=True, help="Check every conserved quantity during the run.")
@overriding
def run(
    file: str,
    out: Path | None,
    seed: int | None,
    as_json: bool,
    check: bool,
    overrides: tuple[str, ...],
    plugins: tuple[str, ...],
) -> int:
    """Run a scenario and write its results."""
    import_plugins(plugins)
    from simulator.scenario.load import load

    if seed is not None:
        overrides = (*overrides, f"seed={seed}")
    scenario = load(file, overrides)

    from simulator.build.run import System, run_scenario
    from simulator.report.progress import Progress
    from simulator.results.metrics import lookup

    with Progress(getattr(scenario.workload, "requests", None), scenario.until) as line:

        def progress(system: System, events: int) -> None:
            line(system.env.now, system.ended, events)

        outcome = run_scenario(scenario, out, check, progress)
    try:
        _print_run(outcome, scenario, as_json)
    except (BrokenPipeError, SystemExit):  # rich exits when its reader has left; the run counts all the same
        _output_is_closed()
    if not outcome.complete:
        return INTERRUPTED
    held = all(expectation.holds(lookup(outcome.summary, expectation.metric)) for expectation in scenario.expect)
    return DONE if held else UNMET


def _print_run(outcome: "Run", scenario: "Scenario", as_json: bool) -> None:
    summary = outcome.summary
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    from rich.console import Console

    from simulator.report.terminal import print_summary

    print_summary(summary, outcome.manifest, summary["warnings"], Console(), scenario.expect, outcome.path)


@simulate.command()
@click.argument("file", metavar="FILE", shell_complete=scenarios)
@click.option("--resolved", "show", is_flag=True, help="Print the scenario with every default spelled out.")
@overriding
def validate(file: str, show: bool, overrides: tuple[str, ...], plugins: tuple[str, ...]) -> int:
    """Check a scenario without running it."""
    import_plugins(plugins)
    from simulator.scenario.load import load

    scenario = load(file, overrides)
    if scenario.traffic is not None or scenario.faults:  # names in the network, which only the built one knows
        from simulator.build.run import plan

        plan(scenario)
    told: list[str] = []
    if scenario.serving is not None and scenario.serving.cost.name == "measured":
        from simulator.build.serving import plan as plan_serving

        told = plan_serving(scenario).cost_lines
    if show:
        from simulator.scenario.write import resolved

        click.echo(resolved(scenario, Path.cwd()), nl=False)
    else:
        click.echo("\n".join([f"{file}: valid", *told]))
    return DONE


@simulate.command()
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write it here [standard output].")
@click.option("--sweep", "of_sweeps", is_flag=True, help="The schema of sweep files.")
@click.option("--plugin", "plugins", multiple=True, metavar="MODULE", help="Import a module that registers policies.")
def schema(out: Path | None, of_sweeps: bool, plugins: tuple[str, ...]) -> int:
    """Write the JSON schema of scenario files, or of sweep files, for editors to check and complete from."""
    import_plugins(plugins)
    if of_sweeps:
        from simulator.sweep.schema import json_schema
    else:
        from simulator.scenario.write import json_schema

    text = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    if out is None:
        click.echo(text, nl=False)
        return DONE
    from simulator.results.output import write_named

    write_named(out, text)
    return DONE


for _name, (_module, _help) in _GROUPS.items():
    simulate.add_command(_Later(_name, _module, _help))


@simulate.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> int:
    """Print the script that lets a shell complete commands, names, files and paths.

    For bash: eval "$(simulate completion bash)" in ~/.bashrc; for zsh the same in ~/.zshrc; for fish: simulate
    completion fish > ~/.config/fish/completions/simulate.fish
    """
    click.echo(script(shell, simulate, "simulate"), nl=False)
    return DONE


@simulate.command()
def version() -> int:
    """Print the version."""
    click.echo(__version__)
    return DONE


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 a defect, 2 usage or input, 3 an expectation failed, 130 interrupted."""
    words = sys.argv[1:] if arguments is None else arguments
    sys.exit(_run(list(words)))


def _run(words: list[str]) -> int:
    debug = "--debug" in words
    try:
        status = simulate.main(
            [word for word in words if word != "--debug"], prog_name="simulate", standalone_mode=False
        )
        sys.stdout.flush()
        return status if isinstance(status, int) else DONE
    except InputError as error:
        _print_problems(error)
        return INVALID
    except click.ClickException as error:
        error.show()
        return INVALID
    except OutputError as error:
        click.echo(f"simulate: {error}", err=True)
        return INTERNAL
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        return _output_is_closed()
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _REFUSED:
            _output_is_closed()
            click.echo(f"simulate: cannot write the output: {error.strerror}", err=True)
            return INTERNAL
        if debug:
            raise
        what = " ".join(f"{type(error).__name__}: {error}".split())
        click.echo(f"simulate: a defect of the simulator, please report it: {what} (--debug shows where)", err=True)
        return INTERNAL


def _output_is_closed() -> int:
    """Let Python's own last flush go nowhere: whoever read our output has seen enough."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return DONE


def _print_problems(error: InputError) -> None:
    for problem in error.problems[:MAX_PROBLEMS]:
        click.echo(" ".join(str(problem).split()), err=True)
    if (more := len(error.problems) - MAX_PROBLEMS) > 0:
        click.echo(f"... and {more} more", err=True)


if __name__ == "__main__":
    main()
