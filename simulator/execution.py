"""Runs an environment to its end, to a time, or until someone interrupts; between events, so that actors stay whole."""

import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from simpy import Event

from simulator.clock import END, Clock

BEAT_EVENTS = 2048
"""Events between two looks at the wall clock."""

Progress = Callable[[int, int], None]
"""Called with (simulated ns, events so far) every few milliseconds of wall time."""


@dataclass
class Execution:
    """How a run went: events served, wall seconds, and whether it was cut short."""

    events: int = 0
    wall_s: float = 0.0
    interrupted: bool = False

    def run(
        self,
        env: Clock,
        until_ns: int | None,
        progress: Progress | None = None,
        check: Callable[[], None] | None = None,
        pending: Sequence[int] = (),
        finished: Event | None = None,
    ) -> None:
        """Serve events until none is left, `until_ns` has passed, or a signal is `pending` (see `held_signals`).

        Also, where it is given, until all else of the nanosecond in which `finished` happens has happened.
        `check` runs every 2,048 events.
        """
        if until_ns is not None:
            _stop_at(env, until_ns)
        if finished is not None:
            finished.callbacks.append(lambda event: _stop_at(env, env.now))
        env.stopped = False
        begun = time.perf_counter()
        try:
            with _quiet_collector():
                while not pending:
                    served = env.serve(BEAT_EVENTS)
                    self.events += served
                    if served < BEAT_EVENTS:
                        return
                    if check is not None:
                        check()
                    if progress is not None:
                        progress(env.now, self.events)
                self.interrupted = True
        finally:
            self.wall_s += time.perf_counter() - begun


def _stop_at(env: Clock, until_ns: int) -> None:
    """Stop after everything that happens at `until_ns`, alarms included."""

    def stop(event: Event) -> None:
        env.stopped = True

    end = Event(env)
    end.callbacks.append(stop)
    end._ok, end._value = True, None
    env.schedule(end, END, until_ns - env.now)


@contextmanager
def held_signals() -> Iterator[list[int]]:
    """Yield a list that the first SIGINT or SIGTERM of the block is put on; the next one acts as it did before."""
    pending: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield pending
        return
    before: dict[signal.Signals, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        pending.append(number)
        for caught, action in before.items():
            signal.signal(caught, action)

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, note)
    try:
        yield pending
    finally:
        for caught, action in before.items():
            signal.signal(caught, action)


@contextmanager
def _quiet_collector() -> Iterator[None]:
    """Collect cycles rarely: a run makes many objects and hardly a cycle.

    Nothing is collected first: over all that is imported that takes longer than a short run.
    """
    thresholds = gc.get_threshold()
    gc.set_threshold(100_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
