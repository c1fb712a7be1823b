"""A wake-up that can be moved: what an actor waits on when an arrival may end its closed-form interval early.

Model: SimPy events. An alarm rings after every ordinary event of its nanosecond and the alarms of lower rank: what
the network delivers, then what hands requests over, then what takes them. So nothing hangs on when it was scheduled.
"""

from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING

from simpy import Environment, Event
from simpy.events import EventPriority


class Clock(Environment):
    """A SimPy environment whose time is whole nanoseconds from zero."""

    if TYPE_CHECKING:

        @property
        def now(self) -> int:
            """The simulated time in nanoseconds."""

    else:
        now = property(attrgetter("_now"))  # actors ask for it a dozen times per event; this costs half of a method


NETWORK, HANDING_OVER, SERVING, END = map(EventPriority, (2, 3, 4, 5))  # SimPy's own are 0 (urgent) and 1 (normal)


class _Timer(Event):
    _ok = True
    _value = None

    def __init__(self, callback: Callable[[Event], None]) -> None:
        self.callbacks = [callback]


class Alarm(Event):
    """An event that a process may yield again and again; it rings at the time last set, once per setting."""

    env: Clock

    def __init__(self, env: Clock, rank: EventPriority = SERVING) -> None:
        super().__init__(env)
        self._rank = rank
        self._ok = True
        self._value = None
        self._timer: _Timer | None = None
        self._callback = self._ring
        self.at_ns: int | None = None

    def set(self, at_ns: int) -> None:
        """Ring at `at_ns` (not before now); an earlier setting is forgotten."""
        self.at_ns = at_ns
        self._timer = timer = _Timer(self._callback)
        env = self.env
        env.schedule(timer, self._rank, at_ns - env.now)

    def _ring(self, timer: Event) -> None:
        if timer is self._timer:  # a timer that was moved away passes in silence
            self._timer = None
            self.at_ns = None
            callbacks, self.callbacks = self.callbacks, []
            for callback in callbacks:
                callback(self)
