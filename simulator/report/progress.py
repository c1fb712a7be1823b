"""The line on stderr that says how far a run has come; nothing at all when stderr is not a terminal."""

import shutil
import sys
import time
from collections.abc import Callable
from typing import Self, TextIO

from simulator.units import NS_PER_S, format_duration

_PERIOD_S = 0.2
_ERASE = "\r\x1b[2K"


class _Line:
    """Draws at most five times a second, and leaves no trace at the end of its block."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._shown = self._stream.isatty()
        self._begin_s = clock()
        self._next_s = self._begin_s + _PERIOD_S
        self._drawn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.erase()

    def erase(self) -> None:
        """Remove the line."""
        if self._drawn:
            self._drawn = False
            self._stream.write(_ERASE)
            self._stream.flush()

    def _draw(self, line: Callable[[float], str]) -> None:
        """Draw what `line` says after so many seconds, if anyone sees it and it is time again."""
        if not self._shown:
            return
        now_s = self._clock()
        if now_s < self._next_s:
            return
        self._next_s = now_s + _PERIOD_S
        self._drawn = True
        width = shutil.get_terminal_size().columns - 1
        self._stream.write(_ERASE + line(now_s - self._begin_s)[:width])
        self._stream.flush()


class Progress(_Line):
    """Call it as often as you like.

    `requests` and `until_ns` are what the run will reach, as far as they are known; the estimate of the time left
    follows from whichever is further.
    """

    def __init__(
        self,
        requests: int | None = None,
        until_ns: int | None = None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(stream, clock)
        self._requests = requests
        self._until_ns = until_ns

    def __call__(self, simulated_ns: int, requests_done: int, events: int) -> None:
        """Say where the run is: simulated time, requests that have ended, events processed so far."""
        self._draw(lambda wall_s: self.line(simulated_ns, requests_done, events, wall_s))

    def line(self, simulated_ns: int, requests_done: int, events: int, wall_s: float) -> str:
        """Return the text of the line after `wall_s` seconds (more than zero)."""
        share = self._share(simulated_ns, requests_done)
        parts = []
        if share:
            parts += [f"{share:.0%}", f"{format_duration(wall_s * (1 - share) / share * NS_PER_S)} left"]
        parts.append(f"{format_duration(simulated_ns)} simulated")
        parts.append(f"{simulated_ns / NS_PER_S / wall_s:,.0f}x")
        parts.append(f"{requests_done:,} requests")
        parts.append(f"{events / wall_s:,.0f} events/s")
        return ", ".join(parts)

    def _share(self, simulated_ns: int, requests_done: int) -> float | None:
        shares = []
        if self._requests:
            shares.append(requests_done / self._requests)
        if self._until_ns:
            shares.append(simulated_ns / self._until_ns)
        return min(1.0, max(shares)) if shares else None


class SweepProgress(_Line):
    """The points of a sweep that have ended; those that were there already count as done but not for the time left."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream, clock)
        self._found = 0

    def __call__(self, ended: int, total: int | None, not_done: int, simulated_s: float) -> None:
        """Say how far the sweep is: points that have ended, of how many, without figures, seconds spent in runs."""
        if not simulated_s:
            self._found = ended
        self._draw(lambda wall_s: self.line(ended, total, not_done, wall_s))

    def line(self, ended: int, total: int | None, not_done: int, wall_s: float) -> str:
        """Return the text of the line after `wall_s` seconds (more than zero)."""
        parts = [f"{ended:,} of {total:,} points" if total is not None else f"{ended:,} points"]
        run = ended - self._found
        if total is not None and run:
            parts.append(f"{format_duration((total - ended) / run * wall_s * NS_PER_S)} left")
        parts.append(f"{run / wall_s:,.2f} points/s")
        if not_done:
            parts.append(f"{not_done:,} without figures")
        return ", ".join(parts)
