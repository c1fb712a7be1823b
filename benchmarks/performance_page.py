"""Writes docs/performance.md from what the benchmarks have left in benchmarks/out; no figure is written by hand.

Run `python benchmarks/performance_page.py` after the benchmarks (`make tables` does both). A benchmark whose file is
not there is named at the end of the page. The page keeps what is in the files, so run all of them on one quiet machine.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

OUT = Path(__file__).parent / "out"
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"

Row = Mapping[str, Any]

OPENING = """# Performance

<!-- Written by `python benchmarks/performance_page.py`; do not edit. -->

How fast the simulator is, as its benchmarks found it. Above each table stand the command that printed its figures, the
day and the machine. Whole processes are timed with start-up and the writing of Parquet. *Floor* rows are what no
simulator in this language can beat, measured in the same run; other work on the machine shows in both. `make tables`
runs the benchmarks and writes this page.
"""


class Column(NamedTuple):
    """A column: its head, the key of the row, how a value is written."""

    head: str
    key: str
    form: str = ",.0f"


class Section(NamedTuple):
    """A table of the page: the file that it is from, and its columns."""

    name: str
    title: str
    about: str
    columns: Sequence[Column]
    rows: Callable[[Any], Iterator[Row]] = iter
    keep: Callable[[Row], bool] = lambda row: True
    usual: str = ""
    """How the benchmark is run, for the list of those that have not been."""


def named(rows: Mapping[str, Any]) -> Iterator[Row]:
    """Yield the rows of a mapping of names to rows, or to single values."""
    for name, row in rows.items():
        yield {"name": name, **(row if isinstance(row, Mapping) else {"value": row})}


SECTIONS = (
    Section(
        "serving",
        "Serving",
        "Requests from arrival to the last token, through router, queues, batches, KV memory and fabric.",
        (
            Column("case", "name", ""),
            Column("requests", "requests"),
            Column("wall, s", "wall_s", ",.2f"),
            Column("CPU, s", "cpu_s", ",.2f"),
            Column("requests/s", "requests_per_s"),
            Column("tokens/s", "output_tokens_per_s"),
            Column("events/s in the loop", "loop_events_per_s"),
            Column("bare SimPy events/s", "simpy_events_per_s"),
            Column("peak, MiB", "rss_mib"),
        ),
        named,
        usual="python benchmarks/serving.py --full",
    ),
    Section(
        "network",
        "Sharing of bandwidth",
        "The network alone on a 1,024-host fat-tree; CPU time, a process a case.",
        (
            Column("case", "name", ""),
            Column("a second", "per_s"),
            Column("of", "unit", ""),
            Column("CPU, s", "cpu_s", ",.2f"),
            Column("peak, MiB", "peak_mib"),
        ),
        usual="python benchmarks/network.py",
    ),
    Section(
        "topology",
        "Building fabrics",
        "To the first route between the first and the last device, and what `simulate topology show` does beyond.",
        (
            Column("fabric", "name", ""),
            Column("devices", "devices"),
            Column("links", "links"),
            Column("build, CPU s", "build_cpu_s", ",.2f"),
            Column("its peak, MiB", "build_peak_mib"),
            Column("show, CPU s", "show_cpu_s", ",.2f"),
            Column("peak, MiB", "peak_mib"),
        ),
        keep=lambda row: "build_cpu_s" in row,
        usual="python benchmarks/topology.py",
    ),
    Section(
        "topology",
        "Loads of an exchange",
        "The load of every link when each of 4,096 devices sends to each other one.",
        (
            Column("fabric", "name", ""),
            Column("devices", "devices"),
            Column("links", "links"),
            Column("first time, CPU s", "first_cpu_s", ",.2f"),
            Column("again, CPU s", "least_cpu_s", ",.2f"),
            Column("peak, MiB", "peak_mib"),
        ),
        keep=lambda row: "least_cpu_s" in row,
    ),
    Section(
        "sweep",
        "Sweeps",
        "Two workers against one, what a point costs beside its simulation, the client's memory.",
        (Column("what", "name", ""), Column("value", "value", ",.2f")),
        named,
        usual="python benchmarks/sweep.py",
    ),
    Section(
        "timeline",
        "Timelines",
        "`simulate timeline` of a run, beside reading the same rows and writing the same bytes.",
        (
            Column("slices", "slices"),
            Column("seconds", "s", ",.2f"),
            Column("floor, s", "floor_s", ",.2f"),
            Column("MB", "mb", ",.1f"),
            Column("peak, MiB", "peak_mib"),
        ),
        usual="python benchmarks/timeline.py",
    ),
    Section(
        "report",
        "Pages of runs",
        "`simulate report` of a run; the peak is that of the simulation or the report, whichever is larger.",
        (
            Column("requests", "requests"),
            Column("seconds", "seconds", ",.2f"),
            Column("MB", "megabytes", ",.2f"),
            Column("peak, MiB", "peak_mib"),
        ),
        usual="python benchmarks/report.py",
    ),
    Section(
        "cost",
        "Times of steps",
        "How many step times a second the roofline gives, cold and from its memory.",
        (Column("case", "name", ""), Column("a second", "value")),
        named,
        usual="python benchmarks/cost.py",
    ),
)


def page(folder: Path) -> str:
    """Return the page of the files in a folder."""
    parts, missing = [OPENING], []
    for section in SECTIONS:
        file = folder / f"{section.name}.json"
        if file.is_file():
            parts.append(table(section, json.loads(file.read_text(encoding="utf-8"))))
        elif section.usual:
            missing.append(f"- {section.title}: `{section.usual}`\n")
    if missing:
        parts += ["\n## Not measured for this page\n\n", *missing]
    return "".join(parts)


def table(section: Section, record: Mapping[str, Any]) -> str:
    """Return one table with the command, day, machine and versions that its figures are from."""
    rows = [row for row in section.rows(record["rows"]) if section.keep(row)]
    columns = [column for column in section.columns if any(column.key in row for row in rows)]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines = [
        f"\n## {section.title}\n\n{section.about}\n",
        f"`{record['command']}`, {record['date']}, {record['machine']}, Python {record['python']} ({versions}):\n",
        f"| {' | '.join(column.head for column in columns)} |",
        "|" + "".join("---|" if column.form == "" else "---:|" for column in columns),
    ]
    lines += [f"| {' | '.join(cell(row, column) for column in columns)} |" for row in rows]
    return "\n".join(lines) + "\n"


def cell(row: Row, column: Column) -> str:
    """Return a value as it stands in the page; what a row does not have is left empty."""
    value = row.get(column.key)
    return "" if value is None else f"{value:{column.form}}"


if __name__ == "__main__":
    PAGE.write_text(page(OUT), encoding="utf-8", newline="\n")
