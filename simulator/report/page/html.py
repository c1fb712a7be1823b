"""The page itself: cards, sections, tables and charts put together with their style and script into one HTML file.

Everything that is text is escaped here; only `Html` passes as it is. Equal content gives equal bytes.
"""

import json
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Literal

from simulator.report.page.charts import Spec
from simulator.results.html import Table, grid

_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
"""What a browser lets the page do: nothing that leaves it."""


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


@dataclass(frozen=True)
class Choice:
    """One thing that a chart can show: which of its traces are then seen, and what the axis y says, if it says more."""

    label: str
    traces: tuple[int, ...]
    axis: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart with its title and a line on how to read it; `size` is its share of the width, `height` is in pixels."""

    title: str
    spec: Spec
    note: str = ""
    size: Literal["third", "half", "wide"] = "half"
    height: int = 320
    choices: tuple[Choice, ...] = ()
    """What the reader may choose; the traces of the first are seen first."""


@dataclass(frozen=True)
class Absent:
    """What stands in the place of a chart that has no data: its title and why."""

    title: str
    why: str


@dataclass(frozen=True)
class Card:
    """One headline figure: what, how much, a smaller line; `tone` is good, bad or nothing."""

    label: str
    value: str
    detail: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Details:
    """Something that opens at a click."""

    title: str
    content: "Table | Html"


Block = Chart | Absent | Table | Details | Html


@dataclass(frozen=True)
class Section:
    """A part of the page under one heading."""

    title: str
    blocks: tuple[Block, ...]
    note: str = ""


@dataclass(frozen=True)
class Page:
    """All of a page: title, a line below it, warnings and such above all else, cards, sections."""

    title: str
    subtitle: str
    lead: str
    notices: tuple[tuple[str, str], ...]
    """Tone (good, bad or warn) and text."""
    cards: tuple[Card, ...]
    sections: tuple[Section, ...]


def render(page: Page) -> str:
    """Return the page as HTML that needs nothing beside itself."""
    charts: list[Spec] = []
    body = "\n".join(_section(section, at, charts) for at, section in enumerate(page.sections))
    links = "".join(f'<a href="#s{at}">{escape(section.title)}</a>' for at, section in enumerate(page.sections))
    notices = "".join(f'<p class="notice {escape(tone)}">{escape(text)}</p>' for tone, text in page.notices)
    data = json.dumps(charts, separators=(",", ":"), allow_nan=False)
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(page.title)}</title>\n<style>\n{_own('page.css')}</style>\n"
    )
    library = f"<script>\n{_plotly()}\n</script>\n" if charts else ""
    return (
        f"{head}{library}</head>\n<body>\n<header><h1>{escape(page.title)}</h1>"
        f'<p class="lead">{escape(page.lead)}</p><p class="faint">{escape(page.subtitle)}</p></header>\n'
        f'{notices}\n<div class="cards">{"".join(map(_card, page.cards))}</div>\n<nav>{links}</nav>\n'
        f"<main>\n{body}\n</main>\n"
        f'<script type="application/json" id="charts">{_in_script(data)}</script>\n'
        f"<script>\n{_own('page.js')}</script>\n</body></html>\n"
    )


def _in_script(data: str) -> str:
    """Return JSON in which nothing can end the script element or the line."""
    for character in "<>&\u2028\u2029":
        data = data.replace(character, f"\\u{ord(character):04x}")
    return data


def _own(name: str) -> str:
    return files("simulator.report.page").joinpath(name).read_text(encoding="utf-8")


def _plotly() -> str:
    """Return plotly.js as the Python package ships it."""
    text = files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")
    return text.replace("</script", "<\\/script")


def _card(card: Card) -> str:
    tone = f" {escape(card.tone)}" if card.tone else ""
    detail = f'<div class="detail">{escape(card.detail)}</div>' if card.detail else ""
    return (
        f'<div class="card{tone}"><div class="label">{escape(card.label)}</div>'
        f'<div class="value">{escape(card.value)}</div>{detail}</div>'
    )


def _section(section: Section, at: int, charts: list[Spec]) -> str:
    note = f'<p class="faint">{escape(section.note)}</p>' if section.note else ""
    blocks = "\n".join(_block(block, charts) for block in section.blocks)
    return f'<section id="s{at}"><h2>{escape(section.title)}</h2>{note}\n<div class="grid">{blocks}</div></section>'


def _block(block: Block, charts: list[Spec]) -> str:
    if isinstance(block, Html):
        return f'<div class="wide whole">{block}</div>'
    if isinstance(block, Chart):
        return _chart(block, charts)
    if isinstance(block, Absent):
        return f'<p class="absent"><b>{escape(block.title)}</b>: {escape(block.why)}</p>'
    if isinstance(block, Table):
        return f'<div class="wide">{table(block)}</div>'
    inner = table(block.content) if isinstance(block.content, Table) else block.content
    return f'<details class="wide"><summary>{escape(block.title)}</summary>{inner}</details>'


def _chart(chart: Chart, charts: list[Spec]) -> str:
    at = len(charts)
    charts.append(chart.spec)
    note = f'<p class="faint">{escape(chart.note)}</p>' if chart.note else ""
    chosen = _selector(chart, at) if chart.choices else ""
    return (
        f'<figure class="figure {chart.size}"><figcaption>{escape(chart.title)}</figcaption>{note}{chosen}'
        f'<div class="chart" id="c{at}" role="img" aria-label="{escape(chart.title)}" style="height:{chart.height}px">'
        "</div></figure>"
    )


def _selector(chart: Chart, at: int) -> str:
    options = "".join(
        f'<option data-traces="{json.dumps(choice.traces)}" data-axis="{escape(choice.axis)}">'
        f"{escape(choice.label)}</option>"
        for choice in chart.choices
    )
    return (
        f'<select data-chart="{at}" autocomplete="off" aria-label="what {escape(chart.title)} shows">{options}</select>'
    )


def table(content: Table) -> str:
    """Return a table that scrolls sideways where it is wider than the screen."""
    title = f"<h3>{escape(content.title)}</h3>" if content.title else ""
    note = f'<p class="faint">{escape(content.note)}</p>' if content.note else ""
    return f'{title}{note}<div class="scroll">{grid(content)}</div>'


def preformatted(text: str) -> Html:
    """Return text as it is, in a fixed font."""
    return Html(f"<pre>{escape(text)}</pre>")
