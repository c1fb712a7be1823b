"""The `simulate device` commands: what is known of each accelerator and processor, and from where."""

import json
from pathlib import Path
from typing import Any

import click

from simulator.completion import shipped

_as_json = click.option("--json", "as_json", is_flag=True, help="Write JSON to standard output.")


@click.group()
def device() -> None:
    """Look at devices: peaks, memories, links, power and price, each with its source."""


@device.command(name="list")
@_as_json
def list_devices(as_json: bool) -> None:
    """List the shipped data sheets."""
    from simulator import catalog
    from simulator.device.accelerator import KIND, load_accelerator

    sheets = [load_accelerator(name) for name in catalog.names(KIND)]
    if as_json:
        fields = ("name", "title", "processors", "peak", "memory", "scale_up", "power", "price", "like")
        data = [{field: _plain(sheet)[field] for field in fields} for sheet in sheets]
        click.echo(json.dumps(data, indent=2))
        return
    from simulator.report.devices import list_lines

    click.echo("\n".join(list_lines(sheets)))


@device.command()
@click.argument("name", shell_complete=shipped("topologies/devices"))
@_as_json
def show(name: str, as_json: bool) -> None:
    """Show the data sheet NAME, shipped or a path: every number, where it is from, and what follows."""
    from simulator import catalog
    from simulator.device.accelerator import KIND, load_accelerator
    from simulator.documents import read_document

    sheet = load_accelerator(name, Path())
    if as_json:
        click.echo(json.dumps(_plain(sheet), indent=2))
        return
    from simulator.report.devices import show_lines

    click.echo("\n".join(show_lines(sheet, read_document(catalog.locate(KIND, name, Path())).value)))


def _plain(sheet: Any) -> dict[str, Any]:
    """Return a sheet with its fitted or borrowed constants as plain data: plain numbers in bytes, ns, W, Hz and $."""
    return {name: _numbers(getattr(sheet, name)) for name in type(sheet).model_fields}


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(inner) for key, inner in value.items()}
    return _plain(value) if hasattr(type(value), "model_fields") else value
