"""Quantities at the border: text with a unit in, integers of nanoseconds and bytes (or plain rates) out, and back.

SI prefixes are powers of 1000, IEC prefixes powers of 1024; `b` is a bit and `B` a byte, never one for the other.
"""

import math
import re
from collections.abc import Mapping
from fractions import Fraction

NS_PER_S = 1_000_000_000
TICK_BITS = 20  # an engine's clock counts in 2^-20 ns
TICKS_PER_NS = 1 << TICK_BITS

_NUMBER = re.compile(r"\s*([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(.*?)\s*", re.ASCII)
_LONGEST = 100  # characters; longer text is no quantity, and cheap to refuse

TIME_NS: Mapping[str, int | Fraction] = {
    "ps": Fraction(1, 1000),
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "min": 60 * 10**9,
    "h": 3600 * 10**9,
    "d": 86400 * 10**9,
}
_SI = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18}
_IEC = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50}
SIZE_BYTES: Mapping[str, int] = {f"{p}B": f for p, f in (_SI | _IEC).items()}
BANDWIDTH_BYTES_PER_S: Mapping[str, Fraction] = {
    **{f"{p}B/s": Fraction(f) for p, f in (_SI | _IEC).items()},
    **{f"{p}bps": Fraction(f, 8) for p, f in _SI.items()},
    **{f"{p}b/s": Fraction(f, 8) for p, f in _SI.items()},
}
RATE_PER_S: Mapping[str, Fraction] = {
    "/ s": Fraction(1),
    "/ min": Fraction(1, 60),
    "/ h": Fraction(1, 3600),
    "/ d": Fraction(1, 86400),
}
COMPUTE_PER_S: Mapping[str, int] = {
    **{f"{p}FLOPS": f for p, f in _SI.items()},
    **{f"{p}FLOP/s": f for p, f in _SI.items()},
    **{f"{p}OPS": f for p, f in _SI.items()},
}
POWER_W: Mapping[str, Fraction] = {
    "mW": Fraction(1, 1000),
    "W": Fraction(1),
    "kW": Fraction(1000),
    "MW": Fraction(10**6),
}
DOLLARS: Mapping[str, int] = {"$": 1, "k$": 1000, "M$": 10**6, "B$": 10**9}
DOLLARS_PER_H: Mapping[str, int] = {"$/h": 1, "$ / h": 1}
FREQUENCY_HZ: Mapping[str, int] = {"Hz": 1, "kHz": 10**3, "MHz": 10**6, "GHz": 10**9}


class UnitError(ValueError):
    """A quantity without a unit, with the wrong unit, or with a number that makes no sense."""


def parse(text: object, units: Mapping[str, int | Fraction], kind: str, example: str) -> Fraction:
    """Return `text` as an exact multiple of the unit that `units` counts in.

    Raises UnitError when the text has no number, no unit or a unit that is not in `units`.
    """
    hint = f"write a {kind} as a number and a unit, such as {example!r}"
    if isinstance(text, bool) or not isinstance(text, str):
        raise UnitError(f"{text!r} has no unit; {hint}")
    if len(text) > _LONGEST:
        raise UnitError(f"{text[:20]!r}... is too long for a {kind}; {hint}")
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise UnitError(f"{text!r} is not a {kind}; {hint}")
    number, unit = match.groups()
    if not unit:
        raise UnitError(f"{text!r} has no unit; {hint}")
    unit = re.sub(r"^/\s*", "/ ", unit) if unit.startswith("/") else unit
    if unit not in units:
        raise UnitError(f"{text!r} has unit {unit!r}, which is no unit of {kind}; {hint}")
    exponent = re.search(r"[eE](.*)", number)
    if len(number) > 60 or (exponent and abs(int(exponent[1])) > 60):
        raise UnitError(f"{text!r} is out of range")
    return Fraction(number.replace("_", "")) * units[unit]


def _integer(value: Fraction, text: object, kind: str, smallest: str) -> int:
    if value < 0:
        raise UnitError(f"{text!r} is negative; a {kind} is zero or more")
    whole = round(value)
    if whole >= 2**63:
        raise UnitError(f"{text!r} is out of range")
    if value and not whole:  # never a silent zero
        raise UnitError(f"{text!r} rounds to zero; the smallest {kind} is {smallest}")
    return whole


def parse_duration_ns(text: object) -> int:
    """Return a duration such as `250 ms` or `30 d` in whole nanoseconds."""
    return _integer(parse(text, TIME_NS, "duration", "250 ms"), text, "duration", "1 ns")


def parse_size_bytes(text: object) -> int:
    """Return a size such as `80 GiB` or `512 B` in whole bytes."""
    return _integer(parse(text, SIZE_BYTES, "size", "80 GiB"), text, "size", "1 B")


def parse_bandwidth(text: object) -> int:
    """Return a bandwidth such as `400 Gbps` or `50 GB/s` in whole bytes per second."""
    return _integer(parse(text, BANDWIDTH_BYTES_PER_S, "bandwidth", "400 Gbps"), text, "bandwidth", "1 B/s")


def _real(
    text: object, units: Mapping[str, int | Fraction], kind: str, example: str, may_be_zero: bool = True
) -> float:
    value = parse(text, units, kind, example)
    if value < 0:
        raise UnitError(f"{text!r} is negative; a {kind} is {'zero or more' if may_be_zero else 'more than zero'}")
    if not value and not may_be_zero:
        raise UnitError(f"{text!r} must be more than zero")
    return float(value)


def parse_rate(text: object) -> float:
    """Return a rate such as `120 / s` in events per second."""
    return _real(text, RATE_PER_S, "rate", "120 / s")


def parse_compute(text: object) -> float:
    """Return a compute rate such as `989 TFLOPS` in operations per second."""
    return _real(text, COMPUTE_PER_S, "compute rate", "989 TFLOPS", may_be_zero=False)


def parse_power(text: object) -> float:
    """Return a power such as `700 W` in watts."""
    return _real(text, POWER_W, "power", "700 W")


def parse_frequency(text: object) -> float:
    """Return a clock frequency such as `1980 MHz` in hertz."""
    return _real(text, FREQUENCY_HZ, "frequency", "1980 MHz", may_be_zero=False)


def parse_price(text: object) -> float:
    """Return a price such as `79.6 k$` in dollars."""
    return _real(text, DOLLARS, "price", "79.6 k$")


def parse_hourly_price(text: object) -> float:
    """Return a price per hour such as `2.5 $/h` in dollars per hour."""
    return _real(text, DOLLARS_PER_H, "price per hour", "2.5 $/h")


def format_duration(ns: float) -> str:
    """Return nanoseconds as a short text for people, such as `1.25 ms` or `2 h 05 min`."""
    if math.isnan(ns):
        return "-"
    if abs(ns) >= 3600 * NS_PER_S:
        minutes = round(ns / NS_PER_S / 60)
        return f"{minutes // 60} h {minutes % 60:02d} min"
    if abs(ns) >= 120 * NS_PER_S:
        return f"{ns / NS_PER_S / 60:.1f} min"
    for unit, scale in (("s", 10**9), ("ms", 10**6), ("us", 10**3)):
        if abs(ns) >= scale:
            return f"{ns / scale:.3g} {unit}" if abs(ns) < 1000 * scale else f"{ns / scale:.0f} {unit}"
    return f"{ns:.3g} ns"


def format_bytes(size: float) -> str:
    """Return bytes as a short text with an IEC prefix, such as `1.5 GiB`."""
    return _prefixed(size, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"))


def format_bandwidth(bytes_per_s: float) -> str:
    """Return bytes per second as a short text with an SI prefix, such as `50 GB/s`."""
    return _prefixed(bytes_per_s, 1000, ("B/s", "kB/s", "MB/s", "GB/s", "TB/s", "PB/s"))


def _prefixed(value: float, base: int, units: tuple[str, ...]) -> str:
    step = 0
    while abs(value) >= base and step < len(units) - 1:
        value /= base
        step += 1
    return f"{value:.0f} {units[step]}" if step == 0 or abs(value) >= 100 else f"{value:.3g} {units[step]}"


def exact_duration(ns: int) -> str:
    """Return a duration that parses back to the same nanoseconds, in the largest unit that divides them."""
    return _exact(ns, {unit: int(scale) for unit, scale in TIME_NS.items() if unit not in ("ps", "µs")}, "ns")


def exact_size(size_bytes: int) -> str:
    """Return a size that parses back to the same bytes, in the largest unit that divides them."""
    return _exact(size_bytes, SIZE_BYTES, "B")


def exact_bandwidth(bytes_per_s: int) -> str:
    """Return a bandwidth that parses back to the same bytes per second, in the largest byte unit that divides it."""
    units = {unit: int(scale) for unit, scale in BANDWIDTH_BYTES_PER_S.items() if unit.endswith("B/s")}
    return _exact(bytes_per_s, units, "B/s")


def _exact(value: int, units: Mapping[str, int], smallest: str) -> str:
    if value == 0:
        return f"0 {smallest}"
    unit = max((u for u, scale in units.items() if value % scale == 0), key=units.__getitem__)
    return f"{value // units[unit]} {unit}"
