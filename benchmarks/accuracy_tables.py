"""Puts the tables that benchmarks of accuracy print into the pages that show them, between marks; text stays as it is.

Run `python benchmarks/accuracy_tables.py [SCRIPT]...` (default: all); it needs the public tables in `../shared/data`.
"""

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"

PAGES = {
    "accuracy_network.py": "collectives.md",
    "accuracy_power.py": "power.md",
    "accuracy_training.py": "training-cost.md",
}
"""Script -> page that has its tables."""


def tables(printed: str) -> str:
    """Return what is printed from the first heading or table on."""
    lines = printed.splitlines()
    first = next(at for at, line in enumerate(lines) if line.startswith(("|", "#")))
    return "\n".join(lines[first:]).strip()


def placed(page: str, script: str, text: str) -> str:
    """Return a page with `text` between the marks of a script; raises ValueError when it has none."""
    begin, end = f"<!-- printed by `python benchmarks/{script}` -->", "<!-- until here -->"
    pattern = re.compile(f"({re.escape(begin)}\n).*?({re.escape(end)})", re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"no marks of {script}")
    return pattern.sub(lambda found: f"{found[1]}\n{text}\n\n{found[2]}", page)


def main(scripts: list[str]) -> None:
    """Run each script and write its tables into its page."""
    for script in scripts:
        command = [sys.executable, str(HERE / script)]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=HERE.parent).stdout
        page = DOCS / PAGES[script]
        page.write_text(placed(page.read_text(encoding="utf-8"), script, tables(printed)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:] or list(PAGES))
