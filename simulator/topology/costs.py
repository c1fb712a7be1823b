"""What a fabric costs and draws: counts of its bill of materials times unit prices and unit powers.

Source: the unit figures are data, in a preset (`prices:`, `power:`, `sources:`) or in a price list of the same form.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from simulator import catalog
from simulator.documents import Document, read_document
from simulator.errors import InputError, nearest, unknown
from simulator.strict import Power, Price, Strict, validate
from simulator.topology.bill import BillOfMaterials
from simulator.units import DOLLARS

FOLDER = "topologies/prices"
SECTIONS = ("prices", "power", "sources", "valid_for")


def format_price(dollars: float) -> str:
    """Return dollars as a short text, such as `8.92 M$`."""
    unit = max((unit for unit in DOLLARS if abs(dollars) >= DOLLARS[unit]), key=DOLLARS.__getitem__, default="$")
    return f"{dollars / DOLLARS[unit]:,.3g} {unit}" if abs(dollars) < 1000 * DOLLARS[unit] else f"{dollars:,.0f} $"


def format_power(watts: float) -> str:
    """Return watts as a short text, such as `1.25 MW`."""
    scale, unit = next(((s, u) for s, u in ((1e6, "MW"), (1e3, "kW")) if abs(watts) >= s), (1.0, "W"))
    return f"{watts / scale:.3g} {unit}"


class UnitCosts(Strict):
    """Prices and powers of one piece each, by item (see `quantities`), and where each comes from, by dotted path.

    `valid_for` holds the parameters, by dotted path, without which the figures would be those of other hardware.
    """

    prices: dict[str, Price] = Field(default_factory=dict)
    power: dict[str, Power] = Field(default_factory=dict)
    sources: dict[str, str] = Field(default_factory=dict)
    valid_for: dict[str, str | int] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CostLine:
    """One item of a total: `count` pieces of `unit` each (dollars or watts)."""

    item: str
    count: int
    unit: float
    source: str | None

    @property
    def total(self) -> float:
        """Count times unit."""
        return self.count * self.unit


@dataclass(frozen=True, slots=True)
class Costs:
    """The lines of a fabric's price (dollars) and power (watts); `unpriced` and `unpowered` items have no figure."""

    prices: tuple[CostLine, ...]
    power: tuple[CostLine, ...]
    unpriced: tuple[str, ...]
    unpowered: tuple[str, ...]

    @property
    def dollars(self) -> float:
        """The sum of what has a price."""
        return sum(line.total for line in self.prices)

    @property
    def watts(self) -> float:
        """The sum of what has a power."""
        return sum(line.total for line in self.power)


def read_price_list(name: str, beside: Path | None = None) -> Document:
    """Read a price list: a shipped one by name, or a file."""
    if "/" in name or name.endswith((".yaml", ".yml")):
        return read_document((beside or Path()) / name)
    shipped = catalog.names(FOLDER)
    if name not in shipped:
        raise InputError(unknown("price list", name, shipped))
    return read_document(catalog.folder(FOLDER) / f"{name}.yaml", f"{FOLDER}/{name}.yaml")


def unit_costs(document: Document) -> UnitCosts:
    """Return the unit figures in a document that may say other things too; raises InputError for a fault in them."""
    value = document.value if isinstance(document.value, Mapping) else {}
    return validate(
        UnitCosts, Document(document.file, {k: value[k] for k in SECTIONS if k in value}, document.positions)
    )


def require_valid(unit: UnitCosts, parameters: Mapping[str, Any], document: Document) -> None:
    """Raise InputError when the figures are for other hardware than `parameters`, values by dotted path, describe."""
    problems = [
        document.problem(("valid_for", path), f"the prices are for {path} {wanted}, not {parameters.get(path, 'none')}")
        for path, wanted in unit.valid_for.items()
        if str(parameters.get(path)) != str(wanted)
    ]
    if problems:
        raise InputError(problems)


def quantities(bill: BillOfMaterials) -> dict[str, int]:
    """Return how many pieces of each item a fabric has, items in the order in which they are shown."""
    return {
        "device": bill.devices,
        "nic": bill.nics,
        **bill.scale_up,
        "switch": sum(bill.switches.values()) - sum(bill.scale_up.values()),
        "nic_link": bill.nic_links,
        "inter_switch_link": bill.inter_switch_links,
        "transceiver": bill.transceivers,
    }


def costs_of(bill: BillOfMaterials, unit: UnitCosts, document: Document | None = None) -> Costs:
    """Multiply: a switch tier's own figure (`leaf`) comes before that of every `switch`, a kind's before `device`.

    Raises InputError, placed in `document`, for a figure of an item that no fabric has.
    """
    items = quantities(bill)
    tiers = {tier: ("switch", count) for tier, count in bill.switches.items() if tier not in items}
    parts = tiers | {kind: ("device", count) for kind, count in bill.accelerators.items()}
    known = [*items, *parts]
    where = document or Document("prices", {})
    problems = [
        where.problem((section, item), f"unknown item {item!r}", ", ".join(known), nearest(item, known))
        for section, figures in (("prices", unit.prices), ("power", unit.power))
        for item in figures
        if item not in known
    ]
    if problems:
        raise InputError(problems)
    prices, unpriced = _lines("prices", unit.prices, items, parts, unit.sources)
    power, unpowered = _lines("power", unit.power, items, parts, unit.sources)
    return Costs(prices, power, unpriced, unpowered)


def _lines(
    section: str,
    figures: Mapping[str, float],
    items: Mapping[str, int],
    parts: Mapping[str, tuple[str, int]],
    sources: Mapping[str, str],
) -> tuple[tuple[CostLine, ...], tuple[str, ...]]:
    """Return the lines of what has a figure, and what has none; `parts` are (item, count) of items told apart."""
    own = {part: of for part, of in parts.items() if part in figures}
    counts = dict(items)
    for part, (item, count) in own.items():
        counts[item] -= count
        counts[part] = count
    lines = tuple(
        CostLine(item, count, figures[item], sources.get(f"{section}.{item}", sources.get(section)))
        for item, count in counts.items()
        if count and item in figures
    )
    return lines, tuple(item for item, count in counts.items() if count and item not in figures)
