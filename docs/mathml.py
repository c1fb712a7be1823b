"""A hook of MkDocs: equations become MathML while the site is built, so that a page needs no script to show them."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

_BLOCK = re.compile(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', re.DOTALL)


def on_page_content(text: str, **_: Any) -> str:
    """Return a page's HTML with every block of LaTeX as MathML."""
    return _BLOCK.sub(lambda found: f'<div class="equation">{_mathml(found[1])}</div>', text)


def _mathml(latex: str) -> str:
    return convert(html.unescape(latex).strip(), display="block")
