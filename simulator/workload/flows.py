"""Flows for a network alone: read from a CSV, or drawn as the patterns that fabrics are judged by.

Sources: Poisson arrivals of heavy-tailed flows, random permutations, incast and all-to-all are the field's standard
patterns (for example pFabric, SIGCOMM 2013). Load 1 offers each device's network link all that it can carry.
"""

import csv
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError, Problem, nearest
from simulator.units import NS_PER_S
from simulator.workload.fields import BadValueError, exact

FLOW_COLUMNS = ("flow_id", "src", "dst", "bytes", "start_s")
FLOW_OPTIONS = ("path", "plane", "lane", "weight", "cap_Bps")
CHANGE_COLUMNS = ("time_s", "src", "dst", "bandwidth_Bps")
MOST_LANES = 15
_FEW_DIGITS = 20  # in seconds below 2**62 nanoseconds, and within the digits of a Decimal
_DECIMAL = re.compile(r"\d{1,9}(?:\.\d*)?(?:e-\d\d?)?", re.ASCII)
_BLOCK = 4096


class Flow(NamedTuple):
    """Bytes from one end to another from `start_ns` on; ends are names, or indices of devices."""

    flow_id: int
    source: str | int
    target: str | int
    size_bytes: int
    start_ns: int
    path: str = ""
    """Names joined by `>`; empty where the topology routes."""
    line: int = 0
    plane: str = ""
    """Plane or lane of one that carries it; empty: the first that joins its ends."""
    lane: int | None = None
    """Priority lane; None: that of the run."""
    weight: float = 1.0
    """Multiple of its fair share."""
    cap_bytes_per_s: int | None = None
    """Rate at most."""


class Change(NamedTuple):
    """From `time_ns` on the links from `source` to `target` have another capacity; zero is dead."""

    time_ns: int
    source: str
    target: str
    capacity_bytes_per_s: int
    line: int = 0


def read_flows(path: Path) -> list[Flow]:
    """Return the flows of a CSV with the columns flow_id, src, dst, bytes and start_s, in order of start.

    Columns path, plane, lane, weight and cap_Bps may be there; an empty value is the default.
    Raises InputError with every bad row: a flow left out would change all the others.
    """
    parsers = (_count, _name, _name, _count, _time_ns, str.strip, str.strip, _lane, _weight, _cap)
    flows = [
        Flow(flow_id, source, target, size, start, way, line, plane, lane, weight, cap)
        for line, (flow_id, source, target, size, start, way, plane, lane, weight, cap) in _rows(
            path, FLOW_COLUMNS, parsers, FLOW_OPTIONS
        )
    ]
    numbers: dict[int, int] = {}
    for flow in flows:
        if flow.flow_id in numbers:
            first = numbers[flow.flow_id]
            raise InputError(Problem(f"flow_id {flow.flow_id} appears on line {first} too", str(path), flow.line))
        numbers[flow.flow_id] = flow.line
    if not flows:
        raise InputError(Problem("no flows", str(path)))
    return sorted(flows, key=lambda flow: flow.start_ns)


def read_changes(path: Path) -> list[Change]:
    """Return the changes of a CSV with the columns time_s, src, dst and bandwidth_Bps, in order of time."""
    rows = _rows(path, CHANGE_COLUMNS, (_time_ns, _name, _name, _count))
    changes = [Change(row[0], row[1], row[2], row[3], line) for line, row in rows]
    return sorted(changes, key=lambda change: change.time_ns)


def _rows(
    path: Path, columns: tuple[str, ...], parsers: tuple[Callable[[str], Any], ...], options: tuple[str, ...] = ()
) -> Iterator[tuple[int, list[Any]]]:
    """Yield line number and the values of columns and `options`, which may be absent. All bad rows are one error."""
    problems: list[Problem] = []
    good: list[tuple[int, list[Any]]] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = [name.strip() for name in next(reader, [])]
            order = _order(path, header, columns, options)
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    problems.append(Problem(f"{len(row)} values for {len(header)} columns", str(path), reader.line_num))
                    continue
                values: list[Any] = ["" if index is None else row[index] for index in order]
                for at, parse in enumerate(parsers):
                    try:
                        values[at] = parse(values[at])
                    except BadValueError as error:
                        name, found = (*columns, *options)[at], values[at]
                        problems.append(Problem(f"{error}, found {found!r}", str(path), reader.line_num, path=name))
                good.append((reader.line_num, values))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(Problem(f"cannot read: {getattr(error, 'strerror', None) or error}", str(path))) from None
    if problems:
        raise InputError(problems)
    yield from good


def _order(path: Path, header: list[str], columns: tuple[str, ...], options: tuple[str, ...]) -> list[int | None]:
    known, missing = (*columns, *options), [name for name in columns if name not in header]
    if missing:
        what = f"no column {', '.join(missing)}; found {', '.join(header) or 'nothing'}"
        raise InputError(Problem(what, str(path), 1, allowed=", ".join(known), nearest=nearest(missing[0], header)))
    for name in header:
        if header.count(name) > 1:
            raise InputError(Problem(f"column {name!r} stands there twice", str(path), 1))
        near = nearest(name, [option for option in options if option not in header])
        if name not in known and near is not None:  # a misspelt option would have no effect; other columns are notes
            raise InputError(Problem(f"unknown column {name!r}", str(path), 1, allowed=", ".join(known), nearest=near))
    return [header.index(name) if name in header else None for name in known]


def _name(text: str) -> str:
    if not text.strip():
        raise BadValueError("a name is needed")
    return text.strip()


def _count(text: str) -> int:
    if text.isdecimal() and len(text) < 16:
        return int(text)
    value = exact(text)
    if value < 0 or value.denominator != 1 or value >= 2**63:
        raise BadValueError("a whole number of zero or more is needed")
    return int(value)


def _time_ns(text: str) -> int:
    if len(text) <= _FEW_DIGITS and _DECIMAL.fullmatch(text):  # as exact, and five times as fast
        return int(Decimal(text).scaleb(9).to_integral_value(ROUND_HALF_EVEN))
    value = exact(text)
    if value < 0 or value * NS_PER_S >= 2**62:
        raise BadValueError("a time of zero or more is needed")
    return round(value * NS_PER_S)


def _lane(text: str) -> int | None:
    if not text.strip():
        return None
    lane = _count(text)
    if lane > MOST_LANES:
        raise BadValueError(f"a lane from 0 to {MOST_LANES} is needed")
    return lane


def _weight(text: str) -> float:
    weight = float(exact(text)) if text.strip() else 1.0
    if not weight > 0:
        raise BadValueError("a weight of more than zero is needed")
    return weight


def _cap(text: str) -> int | None:
    cap = _count(text) if text.strip() else None
    if cap == 0:
        raise BadValueError("a cap of more than zero is needed")
    return cap


class Sizes(Protocol):
    """A law of flow sizes."""

    @property
    def mean(self) -> float:
        """The mean size in bytes."""

    def draw(self, rng: np.random.Generator, n: int) -> NDArray[np.int64]:
        """Return `n` sizes in bytes, each one or more."""


@dataclass(frozen=True)
class Constant:
    """Every flow of the same size."""

    size_bytes: int

    @property
    def mean(self) -> float:
        """The mean size in bytes."""
        return float(self.size_bytes)

    def draw(self, rng: np.random.Generator, n: int) -> NDArray[np.int64]:
        """Return `n` sizes."""
        return np.full(n, self.size_bytes, dtype=np.int64)


@dataclass(frozen=True)
class Lognormal:
    """A lognormal of the given median, clipped to 1 and `max_bytes`; the mean is that of the clipped law."""

    median_bytes: int
    sigma: float
    max_bytes: int

    @property
    def mean(self) -> float:
        """E[min(X, max)] = median exp(s^2 / 2) P(z - s) + max (1 - P(z)), z = ln(max / median) / s."""
        if not self.sigma:
            return float(min(self.median_bytes, self.max_bytes))
        normal, z = NormalDist(), math.log(self.max_bytes / self.median_bytes) / self.sigma
        below = self.median_bytes * math.exp(self.sigma**2 / 2) * normal.cdf(z - self.sigma)
        return below + self.max_bytes * (1 - normal.cdf(z))

    def draw(self, rng: np.random.Generator, n: int) -> NDArray[np.int64]:
        """Return `n` sizes."""
        sizes = rng.lognormal(math.log(self.median_bytes), self.sigma, n)
        return np.rint(np.clip(sizes, 1, self.max_bytes)).astype(np.int64)


@dataclass(frozen=True)
class Pareto:
    """A Pareto law cut at both ends: P(X > x) falls as x^-shape between `min_bytes` and `max_bytes`."""

    shape: float
    min_bytes: int
    max_bytes: int

    @property
    def mean(self) -> float:
        """The mean of the bounded Pareto law."""
        a, low, high = self.shape, float(self.min_bytes), float(self.max_bytes)
        mass: float = 1 - (low / high) ** a
        if a == 1:
            return float(low * math.log(high / low) / mass)
        return float(a * low**a * (low ** (1 - a) - high ** (1 - a)) / ((a - 1) * mass))

    def draw(self, rng: np.random.Generator, n: int) -> NDArray[np.int64]:
        """Return `n` sizes by inverting the distribution."""
        mass = 1 - (self.min_bytes / self.max_bytes) ** self.shape
        sizes = self.min_bytes * (1 - rng.random(n) * mass) ** (-1 / self.shape)
        drawn: NDArray[np.int64] = np.rint(np.clip(sizes, 1, self.max_bytes)).astype(np.int64)
        return drawn


def poisson(
    rng: np.random.Generator, devices: int, flows: int, load: float, link_bytes_per_s: int, sizes: Sizes
) -> Iterator[Flow]:
    """Yield flows between random different devices; their arrivals are a Poisson process that offers `load`."""
    mean_gap_ns = sizes.mean * NS_PER_S / (load * devices * link_bytes_per_s)
    now_ns, number = 0.0, 0
    while number < flows:
        times = now_ns + np.cumsum(rng.exponential(mean_gap_ns, _BLOCK))
        now_ns = float(times[-1])
        sources = rng.integers(0, devices, _BLOCK)
        targets = (sources + rng.integers(1, devices, _BLOCK)) % devices
        drawn = sizes.draw(rng, _BLOCK)
        columns = (sources.tolist(), targets.tolist(), drawn.tolist(), np.rint(times).astype(np.int64).tolist())
        for source, target, size, start in zip(*columns, strict=True):
            if number == flows:
                return
            yield Flow(number, source, target, size, start)
            number += 1


def permutation(rng: np.random.Generator, devices: int, size_bytes: int) -> Iterator[Flow]:
    """Yield one flow from each device, all at once, to the next one of a random cycle through all devices."""
    order = rng.permutation(devices).tolist()
    after = dict(zip(order, [*order[1:], order[0]], strict=True))
    for source in range(devices):
        yield Flow(source, source, after[source], size_bytes, 0)


def incast(devices: int, target: int, sources: int, size_bytes: int) -> Iterator[Flow]:
    """Yield one flow from each of `sources` devices, all at once, to `target`; they are those after it, in order."""
    for number in range(sources):
        yield Flow(number, (target + 1 + number) % devices, target, size_bytes, 0)


def all_to_all(devices: int, size_bytes: int) -> Iterator[Flow]:
    """Yield a flow between every ordered pair of devices, all at once."""
    number = 0
    for step in range(1, devices):
        for source in range(devices):
            yield Flow(number, source, (source + step) % devices, size_bytes, 0)
            number += 1
