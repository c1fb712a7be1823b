"""What one instance did in each window of time, from values that stand still, or grow evenly, between two observations.

Model: exact integrals of piecewise constant functions (KV blocks: piecewise linear); means are weighted by time.
"""

from collections.abc import Callable
from typing import Any

from simulator.errors import InvariantError

IDLE, PREFILL, DECODE = 0, 1, 2


class Windows:
    """Turns the observations of one instance into rows of the INSTANCES table, one per window of `interval_ns`.

    Windows end at multiples of the interval. Those without an iteration, a request or a change of the KV blocks in use
    are one row as long as they follow each other.
    """

    __slots__ = (
        "_decode_ns",
        "_emit",
        "_end_ns",
        "_idle_row",
        "_instance",
        "_interval_ns",
        "_kv_max",
        "_kv_total",
        "_kv_twice",
        "_last_ns",
        "_output_tokens",
        "_prefill_ns",
        "_role",
        "_running",
        "_running_max",
        "_start_ns",
        "_waiting",
        "_waiting_max",
    )

    _running: int
    _running_max: int
    _waiting: int
    _waiting_max: int
    _kv_max: int
    _kv_twice: float

    def __init__(
        self,
        instance: str,
        role: str,
        kv_total_blocks: int,
        interval_ns: int,
        emit: Callable[[tuple[Any, ...]], None],
        start_ns: int = 0,
    ) -> None:
        if interval_ns <= 0:
            raise ValueError("a window is longer than zero")
        self._instance = instance
        self._role = role
        self._kv_total = kv_total_blocks
        self._interval_ns = interval_ns
        self._emit = emit
        self._last_ns = start_ns
        self._idle_row: tuple[int, int, int] | None = None  # start, end, KV blocks of idle windows not yet emitted
        self._open(start_ns)

    def observe(
        self,
        now_ns: int,
        state: int,
        running: int,
        waiting: int,
        kv_blocks: int,
        output_tokens: int = 0,
        kv_end_blocks: int | None = None,
    ) -> None:
        """Say what held from the last observation until `now_ns`: IDLE, PREFILL or DECODE, requests, KV blocks in use.

        `output_tokens` became ready in that time; where it crosses the end of a window they are divided in proportion
        to time, in whole tokens. With `kv_end_blocks` the blocks in use go evenly from `kv_blocks` to it. A value that
        held for no time leaves no trace, but tokens always count. Times never go back (InvariantError).
        """
        spent_ns = now_ns - self._last_ns
        if now_ns > self._end_ns or spent_ns < 0:
            self._observe_across(now_ns, state, running, waiting, kv_blocks, output_tokens, kv_end_blocks)
            return
        self._output_tokens += output_tokens
        if not spent_ns:
            return
        self._last_ns = now_ns
        if state == 2:
            self._decode_ns += spent_ns
        elif state == 1:
            self._prefill_ns += spent_ns
        if running:
            self._running += running * spent_ns
            if running > self._running_max:
                self._running_max = running
        if waiting:
            self._waiting += waiting * spent_ns
            if waiting > self._waiting_max:
                self._waiting_max = waiting
        if kv_end_blocks is None:
            kv_end_blocks = kv_blocks
        self._kv_twice += (kv_blocks + kv_end_blocks) * spent_ns
        if kv_blocks > self._kv_max:
            self._kv_max = kv_blocks
        if kv_end_blocks > self._kv_max:
            self._kv_max = kv_end_blocks

    def close(self, now_ns: int) -> None:
        """Emit what is left; the observations must have reached `now_ns`, the end of the run or of the instance."""
        if now_ns != self._last_ns:
            raise InvariantError(f"{self._instance}: observed until {self._last_ns} ns but closed at {now_ns} ns")
        if self._start_ns < now_ns or self._output_tokens:
            self._close_window(now_ns)
        self._emit_idle()

    def _open(self, start_ns: int) -> None:
        self._start_ns = start_ns
        self._end_ns = (start_ns // self._interval_ns + 1) * self._interval_ns
        self._prefill_ns = self._decode_ns = self._output_tokens = self._kv_max = 0
        self._running = self._waiting = 0  # integrals over time
        self._running_max = self._waiting_max = 0
        self._kv_twice = 0  # twice the integral: an integer unless the end of a window cuts a slope

    def _observe_across(
        self, now_ns: int, state: int, running: int, waiting: int, kv: int, tokens: int, kv_end: int | None
    ) -> None:
        begin_ns = self._last_ns
        whole_ns = now_ns - begin_ns
        if whole_ns < 0:
            raise InvariantError(f"{self._instance}: observed at {now_ns} ns after {begin_ns} ns")
        growth = 0 if kv_end is None else kv_end - kv
        still = not (state or running or waiting or growth or tokens)
        given = 0
        while True:
            from_ns = self._last_ns
            until_ns = min(now_ns, self._end_ns)
            due = tokens * (until_ns - begin_ns) // whole_ns
            self.observe(until_ns, state, running, waiting, 0, due - given)
            given = due
            a, b = from_ns - begin_ns, until_ns - begin_ns
            if a < b:
                self._kv_twice += 2 * kv * (b - a) + (growth * (b * b - a * a) / whole_ns if growth else 0)
                self._kv_max = max(self._kv_max, kv + growth * a // whole_ns, kv + growth * b // whole_ns)
            if until_ns == now_ns:
                return
            self._close_window(until_ns)
            skipped_ns = (now_ns - until_ns) // self._interval_ns * self._interval_ns if still else 0
            if skipped_ns:
                self._add_idle(until_ns, until_ns + skipped_ns, kv)
                self._last_ns = until_ns + skipped_ns
            self._open(until_ns + skipped_ns)
            if self._last_ns == now_ns:
                return

    def _close_window(self, end_ns: int) -> None:
        start_ns, length_ns = self._start_ns, end_ns - self._start_ns
        prefill_ns, decode_ns, tokens = self._prefill_ns, self._decode_ns, self._output_tokens
        idle_ns = length_ns - prefill_ns - decode_ns
        at_work = prefill_ns or decode_ns or self._running or self._waiting or tokens
        if not at_work and self._kv_twice == 2 * self._kv_max * length_ns:
            self._add_idle(start_ns, end_ns, self._kv_max)
            return
        self._emit_idle()
        most = max(prefill_ns, decode_ns, idle_ns)
        state = "prefill" if prefill_ns == most else "decode" if decode_ns == most else "idle"
        over = length_ns or 1
        self._emit(
            (
                self._instance,
                self._role,
                start_ns,
                end_ns,
                state,
                prefill_ns,
                decode_ns,
                idle_ns,
                self._running / over,
                self._running_max,
                self._waiting / over,
                self._waiting_max,
                self._kv_twice / (2 * over),
                self._kv_max,
                self._kv_total,
                tokens,
            )
        )

    def _add_idle(self, start_ns: int, end_ns: int, kv_blocks: int) -> None:
        if self._idle_row is not None and self._idle_row[2] == kv_blocks:
            start_ns = self._idle_row[0]
        else:
            self._emit_idle()
        self._idle_row = (start_ns, end_ns, kv_blocks)

    def _emit_idle(self) -> None:
        if self._idle_row is None:
            return
        start_ns, end_ns, kv = self._idle_row
        self._idle_row = None
        idle = (start_ns, end_ns, "idle", 0, 0, end_ns - start_ns, 0.0, 0, 0.0, 0, float(kv), kv, self._kv_total, 0)
        self._emit((self._instance, self._role, *idle))
