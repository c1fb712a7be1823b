"""The `simulate topology` commands: look at the fabric that a preset and its overrides give."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:  # pydantic is slow to import; --help must not wait for it
    from simulator.documents import Document
    from simulator.topology import BillOfMaterials


@click.group()
def topology() -> None:
    """Look at fabrics: what they consist of and what they promise."""


@topology.command()
@click.argument("preset")
@click.option("--set", "settings", multiple=True, metavar="PATH=VALUE", help="Override a parameter, such as nodes=64.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON to standard output.")
def show(preset: str, settings: tuple[str, ...], as_json: bool) -> None:
    """Show the parameters of PRESET, where each comes from, and its bill of materials."""
    from simulator.topology import bill_of_materials, build_topology, check, resolve_preset
    from simulator.topology.presets import load_preset

    overrides = _overrides(settings)
    parameters = _leaves(resolve_preset(preset, overrides, Path()).model_dump(mode="json"))
    described = load_preset(preset, Path())[0]
    changed = _leaves(overrides.value)
    sources = {path: "--set" if path in changed else _source(described.sources, path) for path in parameters}
    built = build_topology(preset, overrides, Path())
    check(built)
    bill = bill_of_materials(built)
    if as_json:
        facts = {"preset": preset, "description": described.description, "builder": described.builder}
        rows = {path: {"value": value, "source": sources[path]} for path, value in parameters.items()}
        click.echo(json.dumps(facts | {"parameters": rows, "bill_of_materials": asdict(bill)}, indent=2))
        return
    click.echo(f"{built.name}: {described.description}\n")
    for path, value in parameters.items():
        click.echo(f"  {path:<20}{value!s:<18}{sources[path] or ''}".rstrip())
    click.echo()
    for name, figure in _figures(bill):
        click.echo(f"  {name:<32}{figure}")


def _figures(bill: "BillOfMaterials") -> list[tuple[str, str]]:
    from simulator.units import format_bandwidth

    rows = [("nodes", f"{bill.nodes:,}"), ("devices", f"{bill.devices:,}"), ("NICs", f"{bill.nics:,}")]
    rows += [(f"{tier} switches", f"{count:,}") for tier, count in bill.switches.items() if tier != "nvlink"]
    rows += [("NVLink domains", f"{count:,}") for tier, count in bill.switches.items() if tier == "nvlink"]
    rows += [(f"{tier} connections", f"{count:,}") for tier, count in bill.cables.items()]
    rows.append(("transceivers", f"{bill.transceivers:,}"))
    rows.append(("oversubscription, down:up", f"{bill.oversubscription:.3g}:1"))
    rows.append(("bisection bandwidth, one way", format_bandwidth(bill.bisection_bytes_per_s)))
    rows.append(("diameter", f"{bill.diameter_hops} links"))
    return rows


def _source(sources: dict[str, str], path: str) -> str | None:
    while path and path not in sources:
        path = path.rpartition(".")[0]
    return sources.get(path)


def _leaves(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, inner in value.items():
        leaves |= _leaves(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {f"{prefix}{key}": inner}
    return leaves


def _overrides(settings: tuple[str, ...]) -> "Document":
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
