"""The `simulate model` commands: the catalogue of models, and what a card or a `config.json` amounts to."""

import json
from typing import TYPE_CHECKING, Any

import click

from simulator.completion import shipped

if TYPE_CHECKING:  # pydantic is slow to import; --help must not wait for it
    from simulator.model.transformer import Transformer

_as_json = click.option("--json", "as_json", is_flag=True, help="Write JSON to standard output.")


@click.group()
def model() -> None:
    """Look at models: parameters, KV cache and where each number is from."""


@model.command("list")
@_as_json
def list_(as_json: bool) -> None:
    """List the models that ship, with what they hold."""
    from simulator import catalog
    from simulator.model.transformer import load_model
    from simulator.report.models import figures, list_lines

    cards = [load_model(name) for name in catalog.names("workloads/models")]
    if as_json:
        click.echo(json.dumps([{"name": card.name} | figures(card) for card in cards], indent=2))
    else:
        click.echo("\n".join(list_lines(cards)))


@model.command()
@click.argument("name", metavar="NAME|FILE", shell_complete=shipped("workloads/models"))
@_as_json
def show(name: str, as_json: bool) -> None:
    """Show a model: a shipped one by NAME, or a card (.yaml) or Hugging Face config.json by its path."""
    from pathlib import Path

    from simulator.model.transformer import load_model
    from simulator.report.models import card_lines

    card = load_model(name, Path())
    click.echo(json.dumps(_as_data(card), indent=2) if as_json else "\n".join(card_lines(card)))


def _as_data(card: "Transformer") -> dict[str, Any]:
    from simulator.report.models import figures

    described = card.model_dump(mode="json", exclude_none=True)
    return {"name": card.name} | figures(card) | {"card": described}
