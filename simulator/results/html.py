"""Tables as HTML, for pages and for what a notebook shows of a run, a sweep or a comparison.

All text is escaped here. A fragment has no script, takes its colours from where it is shown, so it is read on a light
and on a dark ground, and can do without its style, which a notebook that is not trusted loses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

STYLE = (
    ".simulator-figures{overflow-x:auto}"
    ".simulator-figures p{margin:0 0 .4em}"
    ".simulator-figures table{border-collapse:collapse;margin:0 0 .9em;"
    "color:inherit;font-size:inherit;font-variant-numeric:tabular-nums}"
    ".simulator-figures caption{text-align:left;font-weight:600;padding:.2em 0}"
    ".simulator-figures th,.simulator-figures td{padding:.2em 1.1em .2em 0;text-align:right;white-space:nowrap;"
    "background:none;color:inherit;border:0;border-bottom:1px solid rgba(127,127,127,.4)}"
    ".simulator-figures th{font-weight:600}"
    ".simulator-figures .text{text-align:left}"
)
"""Of a fragment: everything inherits the colour of the text around it."""


@dataclass(frozen=True)
class Table:
    """Rows under a head; the columns of `text` are text, the others numbers; `sortable` by a click on a head."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    note: str = ""
    text: tuple[int, ...] = (0,)
    sortable: bool = False


def rows_of(rows: Sequence[Sequence[Any]]) -> tuple[tuple[str, ...], ...]:
    """Return rows of cells as text."""
    return tuple(tuple(str(cell) for cell in row) for row in rows)


def grid(content: Table, caption: str = "", first: str = "td") -> str:
    """Return the table element alone; `first` is the element of each row's first cell, `th` where that names it."""
    kinds = ["text" if at in content.text else "" for at in range(len(content.head))]
    head = "".join(_cell("th", name, kind, "col") for name, kind in zip(content.head, kinds, strict=True))
    rows = "".join(f"<tr>{_row(row, kinds, first)}</tr>" for row in content.rows)
    sort = ' class="sortable"' if content.sortable else ""
    named = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table{sort}>{named}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def fragment(title: str, blocks: Sequence[Table | str]) -> str:
    """Return what a notebook shows: a title, then tables and lines of text; tables without rows are left out."""
    parts = [f"<p><strong>{escape(title)}</strong></p>"]
    for block in blocks:
        if isinstance(block, str):
            parts.append(f"<p>{escape(block)}</p>")
        elif block.rows:
            parts.append(grid(block, block.title, "th"))
            parts += [f"<p>{escape(block.note)}</p>"] if block.note else []
    return f'<div class="simulator-figures"><style>{STYLE}</style>{"".join(parts)}</div>'


def _row(row: Sequence[str], kinds: Sequence[str], first: str) -> str:
    named = _cell(first, row[0], kinds[0], "row") if row else ""
    return named + "".join(_cell("td", cell, kind) for cell, kind in zip(row[1:], kinds[1:], strict=True))


def _cell(tag: str, text: str, kind: str, scope: str = "") -> str:
    of = f' class="{kind}"' if kind else ""
    heads = f' scope="{scope}"' if tag == "th" and scope else ""
    return f"<{tag}{of}{heads}>{escape(text)}</{tag}>"
