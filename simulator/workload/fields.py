"""From the text of one field to an exact integer: token counts, decimal and calendar times; no float on the way."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from fractions import Fraction
from functools import lru_cache

from simulator.workload.schema import MAX_NS, MAX_TOKENS

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE]([+-]?\d{1,2}))?", re.ASCII)
_MINUTE = re.compile(r"(\d{4})-(\d\d)-(\d\d)[ T](\d\d):(\d\d):", re.ASCII)
_SECONDS = re.compile(r"([0-5]\d)(?:[.,](\d{1,30}))?\s*(Z|[+-]\d\d(?::?\d\d)?)?", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

UNITS_NS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}


class BadValueError(ValueError):
    """A field that cannot be read; the message is the reason without the value, so that reasons can be counted."""


def exact(text: str) -> Fraction:
    """Return a decimal number exactly; raises BadValueError for anything else, such as `nan`, `inf`, `0x1` or ``."""
    match = _NUMBER.fullmatch(text.strip())
    if match is None or len(text) > 64:
        raise BadValueError("not a number" if text.strip() else "empty")
    return Fraction(match.group())


def whole(text: str) -> int:
    """Return a whole number of zero or more; `374.0` is one, as programs with float columns write it."""
    if text.isdecimal() and len(text) < 16:
        return int(text)
    value = exact(text)
    if value.denominator != 1:
        raise BadValueError("not a whole number")
    if value < 0:
        raise BadValueError("negative")
    return value.numerator


def tokens(kind: str) -> Callable[[str], int]:
    """Return a parser of token counts of 1 or more; `kind` is the word in its reasons."""

    def parse(text: str) -> int:
        return check_tokens(whole(text), kind)

    return parse


def check_tokens(count: int, kind: str) -> int:
    """Return `count` when it is between 1 and MAX_TOKENS; raises BadValueError otherwise."""
    if 1 <= count <= MAX_TOKENS:
        return count
    raise BadValueError("negative" if count < 0 else f"no {kind} tokens" if count == 0 else "out of range")


def or_none(parse: Callable[[str], int]) -> Callable[[str], int | None]:
    """Return a parser of an optional field: None when it is empty."""
    return lambda text: parse(text) if text else None


def _number(text: str) -> int:
    number = whole(text)
    if number > MAX_TOKENS:
        raise BadValueError("out of range")
    return number


def _samples(text: str) -> int:
    number = _number(text)
    if not number:
        raise BadValueError("no sample")
    return number


def _priority(text: str) -> int:
    return -_number(text[1:]) if text.startswith("-") else _number(text)


turn = or_none(_number)
"""The number of a turn within its session."""
samples = or_none(_samples)
"""How many answers were asked for at once, 1 or more."""
priority = or_none(_priority)
"""A whole number, which may be negative: the higher, the sooner."""
predicted = or_none(tokens("predicted"))
"""Output tokens that were expected, 1 or more."""


def name(text: str) -> str | None:
    """Return the text, or None for an empty field."""
    return text or None


def decimal_ns(unit_ns: int) -> Callable[[str], int]:
    """Return a parser of decimal times in units of `unit_ns`: exact, with digits below 1 ns rounded half to even."""
    digits = len(str(unit_ns)) - 1

    def parse(text: str) -> int:
        before, _, after = text.partition(".")
        if before.isdecimal() and len(before) < 10 and len(after) <= digits and (after.isdecimal() or not after):
            return int(before) * unit_ns + int(after.ljust(digits, "0") or "0")
        return in_range(round(exact(text) * unit_ns))

    return parse


def in_range(value_ns: int) -> int:
    """Return a time that is not negative and fits 64 bits; raises BadValueError otherwise."""
    if value_ns < 0:
        raise BadValueError("negative")
    if value_ns > MAX_NS:
        raise BadValueError("out of range")
    return value_ns


def iso_ns(text: str) -> int:
    """Return an ISO 8601 date and time as nanoseconds since 1970; without an offset it is taken as UTC.

    Digits below 1 ns are rounded half to even. `2023-11-16 18:15:46.6805900` and `2024-05-10T00:00:00+00:00` are read.
    """
    minute_ns = _minute_ns(text[:17])
    digits = text[17:19] + text[20:].removesuffix("+00:00")
    if text[19:20] == "." and 2 < len(digits) <= 11 and digits < "60" and digits.isdecimal() and digits.isascii():
        return in_range(minute_ns + int(digits.ljust(11, "0")))  # the common form, three times as fast
    match = _SECONDS.fullmatch(text, 17)
    if match is None:
        raise BadValueError("not a date and time")
    seconds, fraction, offset = match.groups()
    value_ns = minute_ns + int(seconds) * 10**9
    if fraction:
        value_ns += int(fraction.ljust(9, "0")) if len(fraction) <= 9 else round(Fraction(f"0.{fraction}") * 10**9)
    if offset and offset not in ("Z", "+00:00"):
        minutes = int(offset[1:3]) * 60 + int(offset[3:].removeprefix(":") or "0")
        value_ns -= minutes * 60 * 10**9 * (-1 if offset[0] == "-" else 1)
    return in_range(value_ns)


@lru_cache(maxsize=1024)  # a trace in order asks for the same minute many times in a row
def _minute_ns(text: str) -> int:
    match = _MINUTE.fullmatch(text)
    if match is None:
        raise BadValueError("not a date and time" if text.strip() else "empty")
    year, month, day, hour, minute = map(int, match.groups())
    try:
        moment = datetime(year, month, day, hour, minute, tzinfo=UTC)
    except ValueError:
        raise BadValueError("not a date and time") from None
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * 10**9
