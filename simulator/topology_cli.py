"""The `simulate topology` commands: look at, compare and draw the fabrics that presets and their overrides give."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from simulator.completion import shipped

if TYPE_CHECKING:  # pydantic is slow to import; --help must not wait for it
    from simulator.documents import Document
    from simulator.topology import BillOfMaterials, Topology
    from simulator.topology.costs import Costs

Call = TypeVar("Call", bound=Callable[..., Any])

SUFFIXES = (".svg", ".graphml", ".dot")


@dataclass(frozen=True, slots=True)
class _Fabric:
    """A preset with its overrides, built, checked and counted."""

    label: str
    facts: dict[str, str]
    parameters: dict[str, Any]
    sources: dict[str, str | None]
    topology: "Topology"
    bill: "BillOfMaterials"
    costs: "Costs"


def _setting(example: str) -> Callable[[Call], Call]:
    return click.option(
        "--set", "settings", multiple=True, metavar="PATH=VALUE", help=f"Override a parameter, such as {example}."
    )


_prices = click.option(
    "--prices", metavar="LIST", help="Unit prices and powers: a shipped list, such as deepseek-v3, or a file."
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Write JSON to standard output.")


@click.group()
def topology() -> None:
    """Look at fabrics: what they consist of and what they promise; compare them and draw them."""


@topology.command()
@click.argument("preset", shell_complete=shipped("topologies"))
@_setting("nodes=64")
@_prices
@_as_json
def show(preset: str, settings: tuple[str, ...], prices: str | None, as_json: bool) -> None:
    """Show the parameters of PRESET, where each comes from, and its bill of materials."""
    fabric = _fabric(preset, preset, settings, prices)
    if as_json:
        click.echo(json.dumps(_as_data(fabric), indent=2))
        return
    import textwrap

    from simulator.report import topology as report

    lines = textwrap.wrap(f"{fabric.topology.name}: {fabric.facts['description']}", report.WIDTH)
    lines += ["", *report.parameter_lines(fabric.parameters, fabric.sources), ""]
    lines += [f"  {name:<32}{figure}" for name, figure in report.figure_rows(fabric.bill)]
    lines += report.route_lines(fabric.bill) + report.failure_lines(fabric.bill)
    lines += report.cost_lines(fabric.costs, fabric.bill.devices)
    click.echo("\n".join(lines))


@topology.command()
@click.argument("presets", nargs=-1, required=True, metavar="A B [C]...", shell_complete=shipped("topologies"))
@_setting("nodes=64 (for all), B.nodes=64 or 2.nodes=64 (for one)")
@_prices
@_as_json
def compare(presets: tuple[str, ...], settings: tuple[str, ...], prices: str | None, as_json: bool) -> None:
    """Set two or more fabrics side by side, in all and per device.

    A --set whose path begins with the name of a preset, or with its place (1, 2 ...), is for that one alone.
    """
    from simulator.errors import InputError

    if len(presets) < 2:
        raise InputError(f"a comparison needs two presets or more, found {', '.join(presets)}")
    labels = _labels(presets)
    fabrics = [
        _fabric(preset, labels[at], _settings_of(at, presets, settings), prices) for at, preset in enumerate(presets)
    ]
    if as_json:
        click.echo(json.dumps([_as_data(fabric) for fabric in fabrics], indent=2))
        return
    from simulator.report.topology import compared_rows, missing_lines, side_by_side

    lines = side_by_side(labels, [compared_rows(fabric.bill, fabric.costs) for fabric in fabrics])
    click.echo("\n".join(lines + missing_lines([fabric.costs for fabric in fabrics])))


@topology.command()
@click.argument("preset", shell_complete=shipped("topologies"))
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="FILE", help=f"{', '.join(SUFFIXES)}")
@_setting("nodes=64")
def draw(preset: str, out: Path, settings: tuple[str, ...]) -> None:
    """Draw PRESET as a layered SVG, or write all of it as GraphML or DOT, by the suffix of the file."""
    from simulator.errors import InputError, nearest

    if out.suffix not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        close = nearest(out.suffix, SUFFIXES)
        also = f"; did you mean {close!r}?" if close else ""
        raise InputError(f"--out {out}: no drawing ends in {out.suffix!r}; allowed: {known}{also}")
    from simulator.results.output import write_named
    from simulator.topology import build_topology

    built = build_topology(preset, _overrides(settings), Path())
    write_named(out, _drawn(built, out.suffix))


def _drawn(built: "Topology", suffix: str) -> str:
    from simulator.topology.draw import layout
    from simulator.topology.draw_graph import dot, graphml
    from simulator.topology.draw_svg import svg

    if suffix == ".svg":
        return svg(layout(built))
    return graphml(built) if suffix == ".graphml" else dot(built)


def _fabric(preset: str, label: str, settings: Sequence[str], prices: str | None) -> _Fabric:
    from simulator.topology import bill_of_materials, build_topology, check, resolve_preset
    from simulator.topology.costs import costs_of, read_price_list, require_valid, unit_costs
    from simulator.topology.presets import load_preset

    overrides = _overrides(settings)
    parameters = _leaves(resolve_preset(preset, overrides, Path()).model_dump(mode="json"))
    described, document = load_preset(preset, Path())
    changed = _leaves(overrides.value)
    sources = {path: "--set" if path in changed else _source(described.sources, path) for path in parameters}
    if prices is not None:
        document = read_price_list(prices, Path())
    unit = unit_costs(document)
    require_valid(unit, parameters, document)
    built = build_topology(preset, overrides, Path())
    check(built)
    bill = bill_of_materials(built)
    facts = {"preset": preset, "description": described.description, "builder": described.builder}
    return _Fabric(label, facts, parameters, sources, built, bill, costs_of(bill, unit, document))


def _as_data(fabric: _Fabric) -> dict[str, Any]:
    rows = {path: {"value": value, "source": fabric.sources[path]} for path, value in fabric.parameters.items()}
    costs = asdict(fabric.costs) | {"dollars": fabric.costs.dollars, "watts": fabric.costs.watts}
    bill = asdict(fabric.bill)
    devices = fabric.bill.devices
    per_device = {
        "inter_switch_links": bill["inter_switch_links"] / devices,
        "transceivers": bill["transceivers"] / devices,
        "bisection_bytes_per_s": bill["bisection_bytes_per_s"] / devices,
        "dollars": costs["dollars"] / devices,
        "watts": costs["watts"] / devices,
    }
    named = {"name": fabric.label} | fabric.facts
    return named | {"parameters": rows, "bill_of_materials": bill, "costs": costs, "per_device": per_device}


def _labels(presets: Sequence[str]) -> list[str]:
    """Return a short name per preset, with its place where names repeat."""
    names = [Path(preset).stem if "/" in preset or preset.endswith((".yaml", ".yml")) else preset for preset in presets]
    return [f"{at}.{name}" if names.count(name) > 1 else name for at, name in enumerate(names, start=1)]


def _settings_of(at: int, presets: Sequence[str], settings: Sequence[str]) -> list[str]:
    """Return the settings for the preset in place `at`, without what says that they are for it."""
    owners = [(str(place), name, label) for place, (name, label) in enumerate(_named(presets), start=1)]
    chosen = []
    for word in settings:
        for place, names in enumerate(owners):
            mark = next((name for name in names if word.startswith(f"{name}.")), None)
            if mark is not None and place == at:
                chosen.append(word.removeprefix(f"{mark}."))
        if not any(word.startswith(f"{name}.") for names in owners for name in names):
            chosen.append(word)
    return chosen


def _named(presets: Sequence[str]) -> list[tuple[str, str]]:
    return list(
        zip((Path(preset).stem if "/" in preset else preset for preset in presets), _labels(presets), strict=True)
    )


def _source(sources: dict[str, str], path: str) -> str | None:
    while path and path not in sources:
        path = path.rpartition(".")[0]
    return sources.get(path)


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Return what is no mapping nor a list of mappings, by its path."""
    inner: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        inner = [(f"{path}.{key}" if path else key, part) for key, part in value.items()]
    elif isinstance(value, list | tuple) and any(isinstance(item, dict) for item in value):
        inner = [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    else:
        return {path: value}
    return {at: leaf for place, part in inner for at, leaf in _leaves(part, place).items()}


def _overrides(settings: Sequence[str]) -> "Document":
    """Return the document of `PATH=VALUE` words; a value is read as YAML."""
    from simulator.documents import Document, parse_document
    from simulator.errors import InputError

    overrides: dict[str, Any] = {}
    for word in settings:
        path, equals, text = word.partition("=")
        *outer, last = path.split(".")
        if not equals or not last or not all(outer):
            raise InputError(f"--set {word!r} is not of the form path=value, such as nodes=64")
        place = overrides
        for part in outer:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise InputError(f"--set {word!r}: {part} has been set to {place!r}")
        place[last] = parse_document(text, f"--set {word}").value
    return Document("--set", overrides)
