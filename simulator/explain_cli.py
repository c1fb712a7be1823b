"""The `simulate explain` command: where each microsecond of a step and each byte of a device go."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from simulator.completion import paths, scenarios, shipped

if TYPE_CHECKING:  # pydantic and rich are slow to import; --help must not wait for them
    from simulator.build.explanation import Ask
    from simulator.device.breakdown import Explanation


PLAIN_WIDTH = 110
"""Columns where the output is no terminal: enough for every column of a table."""


@click.command()
@click.argument("scenario", required=False, metavar="[SCENARIO]", shell_complete=scenarios)
@click.option(
    "--model",
    metavar="NAME",
    help="Model card, or a config.json, in the place of a scenario.",
    shell_complete=shipped("workloads/models"),
)
@click.option(
    "--device", metavar="NAME", help="Device sheet; goes with --model.", shell_complete=shipped("topologies/devices")
)
@click.option("--layout", default="", metavar="DEGREES", help="Such as tensor=4,expert=8; a bare number is tensor.")
@click.option(
    "--precision", default="", metavar="FORMAT", help="Such as fp8, kv=fp8 or weights=fp8,kv=fp8 [the checkpoint's]."
)
@click.option(
    "--engine", default="", metavar="SETTINGS", help="Such as step_overhead=1 ms, or launch=5 us,graphs=none."
)
@click.option("--phase", "phases", multiple=True, metavar="PHASE", help="prefill, decode or mixed; may be repeated.")
@click.option("--prompt", type=click.IntRange(1), default=2048, show_default=True, help="Tokens of a prompt.")
@click.option("--prompts", type=click.IntRange(1), help="Prompts of a step [one for each data-parallel rank].")
@click.option("--cached", type=click.IntRange(0), default=0, help="Tokens of each that are cached already.")
@click.option(
    "--batch", type=click.IntRange(1), help="Sequences that decode [64 on each such rank, or those that fit]."
)
@click.option("--context", type=click.IntRange(1), default=2048, show_default=True, help="Tokens of each of them.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="PATH=VALUE",
    help="Override a value of the scenario.",
    shell_complete=paths,
)
@click.option("--plugin", "plugins", multiple=True, metavar="MODULE", help="Import a module that registers policies.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write a page with the roofline plot.")
@click.option("--json", "as_json", is_flag=True, help="Print plain data as JSON.")
def explain(
    scenario: str | None,
    model: str | None,
    device: str | None,
    layout: str,
    precision: str,
    engine: str,
    phases: tuple[str, ...],
    prompt: int,
    prompts: int | None,
    cached: int,
    batch: int | None,
    context: int,
    overrides: tuple[str, ...],
    plugins: tuple[str, ...],
    html: Path | None,
    as_json: bool,
) -> None:
    """Explain a step: its operators, their bounds and times, the memory of a device, and the ceilings.

    Either of each pool of SCENARIO, or of one instance of --model on --device.
    """
    from simulator.build.explanation import Ask

    _check(scenario, model, device, layout, precision)
    ask = Ask(prompt, prompts, cached, batch, context, phases or Ask.phases)
    if scenario is not None:
        found = _of_scenario(scenario, overrides, plugins, ask)
    else:
        found = [_of_model(str(model), str(device), layout, precision, engine, ask)]
    if html is not None:
        from simulator.report.roofline import page
        from simulator.results.output import write_named

        write_named(html, page(found))
    if as_json:
        click.echo(json.dumps([one.as_data() for one in found], indent=2))
        return
    from rich.console import Console

    from simulator.report.explain import print_explanation

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_WIDTH)
    for number, one in enumerate(found):
        if number:
            console.print()
        print_explanation(one, console)


def _check(scenario: str | None, model: str | None, device: str | None, layout: str, precision: str) -> None:
    if (scenario is None) == (model is None):
        raise click.UsageError("Give a SCENARIO, or --model and --device.")
    if model is not None and device is None:
        raise click.UsageError("--model needs --device.")
    if scenario is not None and (device or layout or precision):
        raise click.UsageError("--device, --layout and --precision go with --model; of a scenario use --set.")


def _of_scenario(
    scenario: str, overrides: tuple[str, ...], plugins: tuple[str, ...], ask: "Ask"
) -> "list[Explanation]":
    from simulator.build.explanation import explain_scenario
    from simulator.plugins import import_plugins
    from simulator.scenario.load import load

    import_plugins(plugins)
    return explain_scenario(load(scenario, overrides), ask)


def _of_model(model: str, device: str, layout: str, precision: str, engine: str, ask: "Ask") -> "Explanation":
    from simulator.build.explanation import explain_model, parsed
    from simulator.device.engine import RooflineParameters
    from simulator.model.layout import Layout
    from simulator.model.precision import Precision

    split = parsed("--layout", layout, Layout, "tensor")
    form = parsed("--precision", precision, Precision, "weights") if precision else None
    return explain_model(
        model, device, split, form, ask, parsed("--engine", engine, RooflineParameters, "step_overhead")
    )
