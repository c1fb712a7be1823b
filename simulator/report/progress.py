"""The line on stderr that says how far a run has come; nothing at all when stderr is not a terminal."""

import shutil
import sys
import time
from collections.abc import Callable
from typing import Self, TextIO

from simulator.units import NS_PER_S, format_duration

_PERIOD_S = 0.2
_ERASE = "\r\x1b[2K"


class Progress:
    """Call it as often as you like; it draws at most five times a second and leaves no trace at the end of its block.

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
        self._requests = requests
        self._until_ns = until_ns
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

    def __call__(self, simulated_ns: int, requests_done: int, events: int) -> None:
        """Say where the run is: simulated time, requests that have ended, events processed so far."""
        if not self._shown:
            return
        now_s = self._clock()
        if now_s < self._next_s:
            return
        self._next_s = now_s + _PERIOD_S
        self._drawn = True
        line = self.line(simulated_ns, requests_done, events, now_s - self._begin_s)
        width = shutil.get_terminal_size().columns - 1
        self._stream.write(_ERASE + line[:width])
        self._stream.flush()

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

    def erase(self) -> None:
        """Remove the line."""
        if self._drawn:
            self._drawn = False
            self._stream.write(_ERASE)
            self._stream.flush()

    def _share(self, simulated_ns: int, requests_done: int) -> float | None:
        shares = []
        if self._requests:
            shares.append(requests_done / self._requests)
        if self._until_ns:
            shares.append(simulated_ns / self._until_ns)
        return min(1.0, max(shares)) if shares else None
