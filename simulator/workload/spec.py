"""One-line descriptions of arrival and length laws, such as `gamma:rate=10 / s,cv=2`, for the command line."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any

from simulator.errors import InputError, Problem, nearest, unknown
from simulator.units import UnitError, parse_duration_ns, parse_rate
from simulator.workload.arrivals import ARRIVALS, Arrivals
from simulator.workload.lengths import LENGTHS, Lengths


def parse_arrivals(text: str) -> Arrivals:
    """Return the arrival process of a text such as `poisson:rate=10 / s`; states of an mmpp are set apart by `;`.

    Raises InputError that names what is wrong with the text.
    """
    law: Arrivals = _parse("arrival process", text, ARRIVALS)
    return law


def parse_lengths(text: str) -> Lengths:
    """Return the length law of a text such as `lognormal:median=700,sigma=0.9,max=8000`; raises InputError."""
    law: Lengths = _parse("length law", text, LENGTHS)
    return law


def _parse(kind: str, text: str, registry: Mapping[str, Any]) -> Any:
    name, _, rest = text.partition(":")
    law = registry.get(name.strip())
    if law is None:
        raise InputError(unknown(kind, name.strip(), registry))
    wanted = {_option(field.name): field for field in fields(law)}
    values: dict[str, Any] = {}
    for part in filter(None, map(str.strip, rest.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or key not in wanted:
            what = f"{text!r}: {part!r} is not an option of {name}"
            raise InputError(
                Problem(what, allowed=", ".join(f"{key}=..." for key in wanted), nearest=nearest(key, wanted))
            )
        if wanted[key].name in values:
            raise InputError(f"{text!r}: {key} is given twice")
        try:
            values[wanted[key].name] = _reader(wanted[key].name, wanted[key].type)(value)
        except ValueError as error:
            raise InputError(f"{text!r}: {key}: {error}") from None
    missing = [key for key, field in wanted.items() if field.name not in values and field.default is MISSING]
    if missing:
        raise InputError(f"{text!r}: {name} also needs {', '.join(missing)}")
    try:
        return law(**values)
    except ValueError as error:
        raise InputError(f"{text!r}: {error}") from None


def _option(field: str) -> str:
    return field.removesuffix("_per_s").removesuffix("_ns")


def _reader(field: str, annotation: object) -> Callable[[str], Any]:
    """Return the parser of a field: by the unit that its name carries, else by its type."""
    one: Callable[[str], Any]
    if field.endswith("_per_s"):
        one = parse_rate
    elif field.endswith("_ns"):
        one = parse_duration_ns
    else:
        one = {int: _whole, float: _number}.get(annotation, str)  # type: ignore[call-overload]
    if annotation in (tuple[float, ...], tuple[int, ...]):
        return lambda text: tuple(one(piece) for piece in text.split(";"))
    return one


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UnitError(f"{text!r} is not a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UnitError(f"{text!r} is not a number") from None
