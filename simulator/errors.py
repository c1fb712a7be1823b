"""What goes wrong on the user's side, said once and in one form: where, what, what is allowed, the nearest match."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of an input; prints as `file:line:column: path: what; allowed: ...; did you mean ...?`."""

    what: str
    file: str | None = None
    line: int | None = None
    column: int | None = None
    path: str | None = None
    allowed: str | None = None
    nearest: str | None = None

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)
        text = ": ".join(part for part in (place, self.path, self.what) if part)
        if self.allowed:
            text += f"; allowed: {self.allowed}"
        if self.nearest:
            text += f"; did you mean {self.nearest!r}?"
        return text


class InputError(Exception):
    """Every problem found in an input, at once; the command line prints them and exits with 2."""

    def __init__(self, problems: Problem | str | Iterable[Problem]) -> None:
        if isinstance(problems, str):
            problems = Problem(problems)
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))

    def at(self, path: str) -> list[Problem]:
        """Return the problems as those of what stands at `path` of the scenario."""
        return [Problem(p.what, path=path, allowed=p.allowed, nearest=p.nearest) for p in self.problems]


class OutputError(Exception):
    """The results could not be written in the middle of a run (disk full, folder gone); exit code 1."""


class InvariantError(Exception):
    """A conserved quantity did not add up: a defect of the simulator, never of the input."""


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """Return the choice that looks most like `word`, or None when none is close."""
    matches = get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return matches[0] if matches else None


def unknown(kind: str, word: str, choices: Iterable[str]) -> Problem:
    """Return the problem of a name that is not among `choices`."""
    names = sorted(choices)
    return Problem(f"unknown {kind} {word!r}", allowed=", ".join(names), nearest=nearest(word, names))
