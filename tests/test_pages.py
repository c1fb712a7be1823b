"""The pages of docs: they quote what commands print, generated ones are as generated, and the site stands alone."""

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import click
import pytest

from simulator import catalog, cli
from simulator.report.policies import REGISTRIES, description
from simulator.report.reference import PAGES, commands_page
from simulator.sweep.plan import load_plan

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
FENCE = re.compile(
    r'^(?P<fence>```+)(?P<kind>\w*)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^(?P=fence)$', re.M | re.S
)
RUN = ("tutorial.md", "guides/own-trace.md", "guides/policy-plugin.md")
"""Pages whose commands are run, each in a folder of its own."""


class Block(NamedTuple):
    kind: str
    title: str | None
    text: str


def blocks(page: Path) -> Iterator[Block]:
    for found in FENCE.finditer(page.read_text(encoding="utf-8")):
        yield Block(found["kind"], found["title"], found["text"])


def commands(text: str) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the words of each command of a console block, and the lines that are shown below it."""
    for part in re.split(r"^\$ ", text, flags=re.M)[1:]:
        command, *shown = part.splitlines()
        yield shlex.split(command, comments=True), [line for line in shown if line.strip()]


def squeezed(line: str) -> str:
    return " ".join(line.split())


def missing(shown: list[str], printed: str) -> list[str]:
    """Return the lines that are shown and were not printed in this order; `...` stands for any."""
    lines = iter([squeezed(line) for line in printed.splitlines()])
    wanted = [squeezed(line) for line in shown if line.strip() != "..."]
    return [
        line for line in wanted if not any(each.endswith(line.removeprefix("... ")) for each in lines if line and each)
    ]


def apart(words: list[str]) -> SimpleNamespace:
    """Run a command in a process of its own: what a plug-in registers stays in it."""
    done = subprocess.run([sys.executable, "-m", "simulator.cli", *words], capture_output=True, text=True)
    return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr)


@pytest.mark.parametrize("name", RUN)
def test_what_a_page_shows_is_what_its_commands_print(simulate, tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ran = 0
    for block in blocks(DOCS / name):
        if block.title:
            (tmp_path / block.title).write_text(block.text, encoding="utf-8")
        if block.kind != "console":
            continue
        for (program, *words), shown in commands(block.text):
            assert program == "simulate"
            outcome = apart(words) if "--plugin" in words else simulate(*words)
            assert outcome.code in (cli.DONE, cli.UNMET, cli.INVALID), outcome.err
            assert not missing(shown, outcome.out + outcome.err), f"{' '.join(words)}\n{outcome.out}{outcome.err}"
            ran += 1
    assert ran >= 2


def test_a_line_that_is_not_printed_is_missed() -> None:
    assert not missing(["...", " a  b", "... d"], "x\na b\nc d\n")
    assert missing(["a", "b"], "b\na\n") == ["b"]
    assert missing(["... unknown"], "known\n")


def parsed(words: list[str]) -> None:
    """Raise click.UsageError when the command line would refuse these words, before anything runs."""
    command: click.Command = cli.simulate
    context = command.make_context("simulate", list(words))
    while isinstance(command, click.Group):
        _, inner, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert inner is not None
        command, context = inner, inner.make_context(inner.name, rest, parent=context)


@pytest.mark.parametrize("page", sorted([*DOCS.rglob("*.md"), ROOT / "README.md"]), ids=lambda page: page.name)
def test_every_command_of_the_pages_exists(page: Path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    for block in blocks(page):
        if block.kind == "console":
            for (program, *words), _ in commands(block.text):
                if program == "simulate":
                    parsed(words)


def test_a_command_that_does_not_exist_is_refused() -> None:
    with pytest.raises(click.UsageError):
        parsed(["run", "quickstart", "--no-such-option"])


@pytest.mark.parametrize("name", PAGES)
def test_pages_of_reference_are_the_generated_ones(name: str) -> None:
    written = (DOCS / "reference" / name).read_text(encoding="utf-8")
    assert written == PAGES[name](), "run: python -m simulator.report.reference docs/reference"


def test_every_command_and_option_is_in_the_reference() -> None:
    page = commands_page()
    for command in ("simulate run", "simulate sweep", "simulate trace convert", "simulate topology draw"):
        assert f"## {command}\n" in page
    assert "<code>--scheduler ADDRESS</code>" in page


def test_every_policy_says_what_it_does() -> None:
    silent = [
        f"{each.place}: {name}"
        for each in REGISTRIES
        for name in each.entries
        if not description(name, each.entries[name])
    ]
    assert not silent


@pytest.mark.parametrize("name", catalog.names("sweeps"))
def test_shipped_sweeps_are_valid_and_name_their_schema(name: str) -> None:
    plan = load_plan(name)
    assert plan.sweep.description
    text = catalog.locate("sweeps", name).read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=../schema/sweep.v1.json\n")


class Links(HTMLParser):
    """What a page loads by itself, and whither it links."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.linked: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "a":
            self.linked.append(given.get("href") or "")
        elif tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(given.get("href") or "")
        elif tag != "link":
            self.loaded.append(given.get("src") or "")


def test_the_site_builds_without_a_warning_and_needs_no_network(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    pages = sorted(tmp_path.rglob("*.html"))
    assert {"index.html", "tutorial.html", "equations.html"} <= {page.name for page in pages}
    for page in pages:
        links = Links()
        links.feed(page.read_text(encoding="utf-8"))
        assert not [each for each in links.loaded if re.match(r"(https?:)?//", each)], page.name
        for each in filter(None, [*links.loaded, *links.linked]):
            if not re.match(r"(https?:|mailto:|data:|javascript:|#)", each) and page.name != "404.html":
                assert (page.parent / each.partition("#")[0].partition("?")[0]).exists(), f"{page.name}: {each}"
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style.name
    assert "<math" in (tmp_path / "equations.html").read_text(encoding="utf-8")
    assert not [page.name for page in pages if 'class="arithmatex"' in page.read_text(encoding="utf-8")]


def benchmark(name: str) -> ModuleType:
    """Import a module of the benchmarks, which are scripts and no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_performance_has_each_figure_with_its_command(tmp_path: Path) -> None:
    record = """{"command": "python benchmarks/timeline.py --quick", "date": "2026-11-27",
        "machine": "2 x P, 8 GiB, Linux", "python": "3.11.2", "versions": {"numpy": "2.0"},
        "rows": [{"slices": 10000, "s": 1.234, "peak_mib": 99.6}]}"""
    (tmp_path / "timeline.json").write_text(record)
    page = benchmark("performance_page").page(tmp_path)
    where = "`python benchmarks/timeline.py --quick`, 2026-11-27, 2 x P, 8 GiB, Linux, Python 3.11.2 (numpy 2.0):"
    assert f"{where}\n\n| slices | seconds | peak, MiB |\n|---:|---:|---:|\n| 10,000 | 1.23 | 100 |\n" in page
    assert "- Serving: `python benchmarks/serving.py --full`" in page


def test_tables_of_accuracy_go_between_their_marks() -> None:
    module = benchmark("accuracy_tables")
    for script, name in module.PAGES.items():
        page = (DOCS / name).read_text(encoding="utf-8")
        changed = module.placed(page, script, "| new |")
        assert "\n\n| new |\n\n<!-- until here -->" in changed
        assert changed.partition("<!-- printed by")[0] == page.partition("<!-- printed by")[0]
    assert module.tables("shares: 1\n| a |\n|---|\n") == "| a |\n|---|"
