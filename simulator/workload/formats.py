"""Readers of public trace formats; each turns one row of text into exact integers, or says why it cannot.

Sources: Azure LLM inference traces 2023 and 2024 (github.com/Azure/AzurePublicDataset), BurstGPT
(github.com/HPMLL/BurstGPT), Mooncake (github.com/kvcache-ai/Mooncake, FAST'25 traces).
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, NoReturn, Protocol

from simulator.errors import InputError, Problem, nearest
from simulator.workload import fields
from simulator.workload.fields import BadValueError
from simulator.workload.text import text_lines

MOONCAKE_BLOCK_TOKENS = 512

BadRow = Callable[[int, str, str, object], None]
"""Called with (line, column, reason, value) for each row that cannot be used."""


class RowReader(Protocol):
    """One text file in one format.

    `targets` are the canonical columns of a row after its line number, the three required ones first.
    """

    targets: tuple[str, ...]
    prefix_block_tokens: int | None

    def rows(self, bad: BadRow) -> Iterator[tuple[Any, ...]]:
        """Yield [line, value of each target] in the order of the file, and call `bad` for the rows left out."""


@dataclass(frozen=True)
class Field:
    """One column of a source: its canonical name, its name in the file and its parser."""

    target: str
    column: str
    parse: Callable[[str], Any]
    required: bool = True


class CsvReader:
    """A CSV file with a header; `ignored` columns may be there, any other column is refused unless `extra` is true."""

    prefix_block_tokens: int | None = None

    def __init__(self, path: Path, columns: Iterable[Field], ignored: Iterable[str] = (), extra: bool = False) -> None:
        self.path = path
        wanted = list(columns)
        header = self._header()
        problems = _header_problems(header, wanted, tuple(ignored), extra)
        if problems:
            raise InputError([Problem(what, str(path), 1, nearest=near) for what, near in problems])
        present = [field for field in wanted if field.column in header]
        self.width = len(header)
        self.targets = tuple(field.target for field in present)
        self._columns = tuple(field.column for field in present)
        self._parsers = [(header.index(field.column), field.parse) for field in present]

    def _header(self) -> list[str]:
        try:
            row = next(csv.reader(text_lines(self.path), strict=True), None)
        except csv.Error as error:
            self._broken(1, error)
        if row is None:
            raise InputError(Problem("the file is empty", str(self.path)))
        return [name.strip() for name in row]

    def rows(self, bad: BadRow) -> Iterator[tuple[Any, ...]]:
        """Yield [line, values]; the line is the physical one that the record begins on, the header being line 1."""
        reader = csv.reader(text_lines(self.path), strict=True)
        next(reader)
        width, parsers = self.width, self._parsers
        line = reader.line_num
        try:
            for row in reader:
                line, begins = reader.line_num, line + 1
                if len(row) != width:
                    if row:  # an empty line holds no row
                        bad(begins, "", f"{len(row)} columns in the place of {width}", None)
                    continue
                try:
                    values: list[Any] = [begins]
                    for index, parse in parsers:
                        values.append(parse(row[index]))
                except BadValueError as error:
                    failed = len(values) - 1
                    bad(begins, self._columns[failed], str(error), row[parsers[failed][0]])
                    continue
                yield tuple(values)
        except csv.Error as error:
            self._broken(line + 1, error)

    def _broken(self, line: int, error: csv.Error) -> NoReturn:
        # Not a bad row: after an unclosed quote nobody can say where the next row begins.
        raise InputError(Problem(f"broken CSV from here on: {error}", str(self.path), line)) from None


def _header_problems(
    header: list[str], wanted: list[Field], ignored: tuple[str, ...], extra: bool
) -> list[tuple[str, str | None]]:
    """Return (what, nearest) for each kind of fault of a header."""
    required = dict.fromkeys(field.column for field in wanted if field.required)
    known = [field.column for field in wanted] + list(ignored)
    found = shorten(", ".join(header), 200, placeholder=" ...")
    both = f"; found: {found}; expected: {', '.join(required)}"
    problems: list[tuple[str, str | None]] = []
    if missing := [name for name in required if name not in header]:
        problems.append((f"no column {_quoted(missing)}{both}", nearest(missing[0], header)))
    elif surplus := [name for name in dict.fromkeys(header) if name not in known and not extra]:
        problems.append((f"unexpected column {_quoted(surplus)}{both}", nearest(surplus[0], known)))
    if twice := [name for name in dict.fromkeys(header) if name in known and header.count(name) > 1]:
        problems.append((f"column {_quoted(twice)} is there more than once", None))
    return problems


def _quoted(names: list[str]) -> str:
    return shorten(", ".join(map(repr, names)), 200, placeholder=" ...")


class _Decimal(str):
    """A JSON number with a point or an exponent, kept as its text so that no digit is lost."""


def _no_constant(text: str) -> NoReturn:
    raise ValueError(text)


_JSON = json.JSONDecoder(parse_float=_Decimal, parse_constant=_no_constant)
_MILLISECONDS = fields.decimal_ns(fields.UNITS_NS["ms"])


class MooncakeReader:
    """A Mooncake JSONL file: timestamp in ms, input_length, output_length and one hash id per block of 512 tokens.

    In the published traces every request has exactly ceil(input_length / 512) hash ids (all 12,031 of the conversation
    trace do), so a row with another number of them is a bad row: its reuse could not be counted.
    """

    targets: tuple[str, ...] = ("arrival_ns", "prompt_tokens", "output_tokens", "prefix_hashes")
    prefix_block_tokens: int | None = MOONCAKE_BLOCK_TOKENS

    def __init__(self, path: Path) -> None:
        self.path = path
        if next(text_lines(path), None) is None:
            raise InputError(Problem("the file is empty", str(path)))

    def rows(self, bad: BadRow) -> Iterator[tuple[Any, ...]]:
        """Yield [line, arrival_ns, prompt_tokens, output_tokens, hashes]."""
        for line, text in enumerate(text_lines(self.path), 1):
            if not text.strip():
                continue
            try:
                row = _JSON.decode(text)
            except (ValueError, RecursionError):
                bad(line, "", "not JSON", None)
                continue
            if not isinstance(row, dict):
                bad(line, "", "not a JSON object", None)
                continue
            key = "timestamp"
            try:
                arrival_ns = _milliseconds(row[key])
                key = "input_length"
                prompt = fields.check_tokens(_integer(row[key]), "prompt")
                key = "output_length"
                output = fields.check_tokens(_integer(row[key]), "output")
                key = "hash_ids"
                hashes = _hashes(row[key], prompt)
            except KeyError:
                bad(line, key, "missing", None)
            except BadValueError as error:
                bad(line, key, str(error), row[key])
            else:
                yield line, arrival_ns, prompt, output, hashes


def _milliseconds(value: object) -> int:
    if type(value) is int:
        return fields.in_range(value * fields.UNITS_NS["ms"])
    if type(value) is _Decimal:
        return _MILLISECONDS(value)
    raise BadValueError("not a number")


def _integer(value: object) -> int:
    if type(value) is int:
        return value
    if type(value) is _Decimal:
        return fields.whole(value)
    raise BadValueError("not a whole number")


def _hashes(value: object, prompt_tokens: int) -> list[int]:
    if type(value) is not list or not all(type(item) is int for item in value):
        raise BadValueError("not a list of whole numbers")
    if len(value) != -(-prompt_tokens // MOONCAKE_BLOCK_TOKENS):
        raise BadValueError(f"not one hash per block of {MOONCAKE_BLOCK_TOKENS} tokens")
    if value and not -(2**63) <= min(value) <= max(value) < 2**63:
        raise BadValueError("out of range")
    return value


def _required(arrival: Field, prompt: str, output: str) -> list[Field]:
    return [
        arrival,
        Field("prompt_tokens", prompt, fields.tokens("prompt")),
        Field("output_tokens", output, fields.tokens("output")),
    ]


def read_azure(path: Path) -> CsvReader:
    """Return a reader of an Azure LLM inference trace of 2023 or 2024: TIMESTAMP, ContextTokens, GeneratedTokens."""
    return CsvReader(
        path, _required(Field("arrival_ns", "TIMESTAMP", fields.iso_ns), "ContextTokens", "GeneratedTokens")
    )


def read_burstgpt(path: Path) -> CsvReader:
    """Return a reader of a BurstGPT trace, with or without the Session ID and Elapsed time of its later releases.

    A request that failed has 0 response tokens: a bad row with the reason "no output tokens".
    """
    arrival = Field("arrival_ns", "Timestamp", fields.decimal_ns(fields.UNITS_NS["s"]))
    columns = [
        *_required(arrival, "Request tokens", "Response tokens"),
        Field("model", "Model", fields.name),
        Field("session", "Session ID", fields.name, required=False),
    ]
    return CsvReader(path, columns, ignored=("Elapsed time", "Total tokens", "Log Type"))


_OPTIONAL_PARSERS: dict[str, Callable[[str], Any]] = {
    "session": fields.name,
    "turn": fields.turn,
    "model": fields.name,
    "tenant": fields.name,
    "priority": fields.priority,
    "samples": fields.samples,
    "predicted_tokens": fields.predicted,
}
_MAPPED = ("arrival", "prompt_tokens", "output_tokens", *_OPTIONAL_PARSERS, "cancel")
ARRIVAL_UNITS = (*fields.UNITS_NS, "iso")


def read_csv(path: Path, mapping: Mapping[str, Any]) -> CsvReader:
    """Return a reader of any CSV whose columns `mapping` names; its other columns are left aside.

    `mapping` is {arrival: {column, unit}, prompt_tokens: column, output_tokens: column} and, if the file has them,
    session, turn, model, tenant, priority, samples, predicted_tokens and cancel: how long after its arrival the client
    gave up, in the unit of arrival (seconds when that is iso), empty if it did not. The unit of arrival is one of
    ARRIVAL_UNITS. A wrong mapping raises InputError.
    """
    problems = [
        Problem(f"unknown column role {role!r}", allowed=", ".join(_MAPPED), nearest=nearest(role, _MAPPED))
        for role in mapping
        if role not in _MAPPED
    ]
    problems += [Problem(f"no column is named for {role!r}") for role in _MAPPED[:3] if role not in mapping]
    if problems:
        raise InputError(problems)
    arrival = mapping["arrival"]
    unit = arrival.get("unit") if isinstance(arrival, Mapping) else None
    if not isinstance(arrival, Mapping) or "column" not in arrival or unit not in ARRIVAL_UNITS:
        raise InputError(
            Problem(f"arrival needs a column and a unit; unit {unit!r} is unknown", allowed=", ".join(ARRIVAL_UNITS))
        )
    parse = fields.iso_ns if unit == "iso" else fields.decimal_ns(fields.UNITS_NS[str(unit)])
    columns = _required(
        Field("arrival_ns", str(arrival["column"]), parse), str(mapping["prompt_tokens"]), str(mapping["output_tokens"])
    )
    columns += [Field(role, str(mapping[role]), p) for role, p in _OPTIONAL_PARSERS.items() if role in mapping]
    if "cancel" in mapping:
        elapsed = fields.or_none(fields.decimal_ns(fields.UNITS_NS["s" if unit == "iso" else str(unit)]))
        columns.append(Field("cancel_ns", str(mapping["cancel"]), elapsed))
    return CsvReader(path, columns, extra=True)
