"""Says how far the cost model is from measurements: kernels on shapes left out of the fits, tables, whole engines.

Run `python benchmarks/accuracy.py`; it prints the tables of docs/cost-model.md and writes them as JSON under `--out`.
`--only kernels|transfer|engines|silicon` makes one part. Nothing is fitted here.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from engines import published, silicon
from engines.harness import DATA, OUT
from operators import attention, experts, gemm

Row = dict[str, Any]
COLUMNS = ("what", "where", "format", "decade", "rows", "median", "mean", "bias")
HEADS = {"median": "median error", "mean": "mean error", "bias": "predicted / measured"}


def kernels(data: Path) -> Iterator[Row]:
    """Yield the errors of operators on whole shapes left out of the fits."""
    for source in (gemm, attention, experts):
        yield from source.errors(data)


def transfer(data: Path) -> Iterator[Row]:
    """Yield the errors on tables of other engines and devices, of which nothing was fitted."""
    for source in (gemm, attention, experts):
        yield from source.transfer(data)


def engines(data: Path) -> Iterator[Row]:
    """Yield the errors on whole engines of public sources."""
    for source in (published.splitwise, published.argonne, published.argonne_layouts, published.apex, published.mlperf):
        yield from source(data)


def show(title: str, rows: Sequence[Row]) -> str:
    """Return one table as Markdown; columns that no row has are left out."""
    columns = [name for name in COLUMNS if any(name in row for row in rows)]
    lines = [f"\n### {title}\n", f"| {' | '.join(HEADS.get(name, name) for name in columns)} |"]
    lines.append("|" + "---|" * len(columns))
    for row in rows:
        cells = []
        for name in columns:
            value = row.get(name, "")
            if name in ("median", "mean"):
                value = f"{value:.1%}"
            elif name == "bias":
                value = f"{value:.2f}"
            cells.append(str(value))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


PARTS: dict[str, tuple[str, Callable[[Path], Iterable[Row]]]] = {
    "kernels": ("Operators: shapes left out of the fit", kernels),
    "transfer": ("Operators: other tables, nothing fitted", transfer),
    "engines": ("Engines of 2023 and 2024", engines),
}


def main() -> None:
    """Print every table and write them as JSON under `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of measured tables")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the JSON")
    parser.add_argument("--only", choices=[*PARTS, "silicon"], help="one part")
    parser.add_argument("--every", type=int, default=1, help="of the silicon table only each so-manieth row")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    result = {}
    for name, (title, make) in PARTS.items():
        if options.only in (None, name):
            result[name] = list(make(options.data))
            print(show(title, result[name]))
    (options.out / "accuracy.json").write_text(json.dumps(result, indent=1) + "\n")
    if options.only in (None, "silicon"):
        silicon.report(options.data, options.out, options.every)


if __name__ == "__main__":
    main()
