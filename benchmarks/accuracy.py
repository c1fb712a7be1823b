"""Says how far the cost model is from measurements: kernels on shapes left out of the fits, tables, whole engines.

Run `python benchmarks/accuracy.py`; it prints the tables of docs/cost-model.md and writes them as JSON under `--out`.
`--only kernels|transfer|engines|silicon|disaggregated|deployments` makes one part. Nothing is fitted here.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from engines import deployments, disaggregated, published, silicon
from engines.harness import DATA, OUT, ROOT
from operators import all_reduce, attention, borrowed, dispatched_experts, experts, gemm, host_links, index_scores

Row = dict[str, Any]
COLUMNS = ("what", "where", "device", "format", "decade", "rows", "median", "mean", "bias")
HEADS = {"median": "median error", "mean": "mean error", "bias": "predicted / measured"}


def kernels(data: Path) -> Iterator[Row]:
    """Yield the errors of operators on whole shapes left out of the fits."""
    for source in (gemm, attention, experts, dispatched_experts, all_reduce, host_links):
        yield from source.errors(data)


def transfer(data: Path) -> Iterator[Row]:
    """Yield the errors on tables of other engines and devices, of which nothing was fitted."""
    for source in (gemm, attention, index_scores, experts, borrowed):
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

LOOPS: dict[str, tuple[str, Callable[[Path, Path, int], Iterable[str]]]] = {
    "silicon": ("Engines of 2025 and 2026: closed loops of the silicon table", silicon.report),
    "disaggregated": ("Prefill and decode pools: closed loops of the silicon table", disaggregated.report),
    "deployments": ("Published deployments of wide expert parallelism, nothing fitted", deployments.report),
}

PAGE = Path(__file__).parent / "accuracy_page.md"
"""The page's text, with a place for the tables."""


def main() -> None:
    """Print every table, write them as JSON under `--out` and, if asked, as the page docs/accuracy.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of measured tables")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the JSON")
    parser.add_argument("--only", choices=[*PARTS, *LOOPS], help="one part")
    parser.add_argument("--every", type=int, default=1, help="of the silicon table only each so-manieth row")
    parser.add_argument("--docs", action="store_true", help="write docs/accuracy.md")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    result, texts = {}, []
    for name, (title, make) in PARTS.items():
        if options.only in (None, name):
            result[name] = list(make(options.data))
            texts.append(show(title, result[name]))
            print(texts[-1], flush=True)
    (options.out / "accuracy.json").write_text(json.dumps(result, indent=1) + "\n")
    for name, (title, report) in LOOPS.items():
        if options.only in (None, name):
            lines = report(options.data, options.out, options.every)
            texts.append("\n".join([f"\n### {title}\n", *lines]))
            print(texts[-1], flush=True)
    if options.docs:
        page = PAGE.read_text(encoding="utf-8").replace("{tables}", "\n".join(texts))
        (ROOT / "docs" / "accuracy.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
