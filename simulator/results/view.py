"""What a notebook shows of a run: its distributions and its other main figures, from summary.json."""

from typing import TYPE_CHECKING

from simulator.results.html import Table, fragment
from simulator.results.metrics import METRICS, lookup
from simulator.results.text import NOTHING, SHORT, figure_text

if TYPE_CHECKING:
    from simulator.results.run import Run

COLUMNS = ("mean", "p50", "p99", "max")
FIGURES = (
    "goodput",
    "total",
    "finished",
    "rejected",
    "unfinished",
    "throughput.requests_per_s",
    "throughput.output_tokens_per_s",
    "throughput.output_tokens_per_s_per_device",
    "price.dollars_per_million_output_tokens",
    "energy.joules_per_output_token",
    "flows.total",
    "flows.completed",
    "flows.failed",
    "link_utilisation_max",
    "simulated_s",
)
"""Figures without a distribution, as far as the run has them."""


def run_html(run: "Run") -> str:
    """Return what a notebook shows of a run, one that was cut short as well."""
    manifest = run.manifest
    title = f"{manifest['scenario']} · seed {manifest['seed']}{'' if run.complete else ' · cut short'}"
    tables = ", ".join(f"{name} ({table['rows']:,} rows)" for name, table in manifest["tables"].items())
    lines = [f"Tables: {tables}", str(run.path)]
    warnings = [f"warning: {text}" for text in run.summary.get("warnings", ())]
    return fragment(title, [*warnings, _distributions(run), _figures(run), *lines])


def _distributions(run: "Run") -> Table:
    families = dict.fromkeys(m.name.removesuffix(".max") for m in METRICS if m.name.endswith(".max"))
    rows = []
    for family in families:
        values = {how: lookup(run.summary, f"{family}.{how}") for how in COLUMNS}
        if any(value is not None for value in values.values()):
            rows.append((family, *(_text(f"{family}.{how}", value) for how, value in values.items())))
    return Table(("", *COLUMNS), tuple(rows), "Distributions")


def _figures(run: "Run") -> Table:
    found = {name: lookup(run.summary, name) for name in FIGURES}
    there = {name: value for name, value in found.items() if value is not None}
    return Table(("", "value"), tuple((SHORT.get(n, n), _text(n, value)) for n, value in there.items()), "Figures")


def _text(name: str, value: float | None) -> str:
    return NOTHING if value is None else figure_text(name, value)
