"""A wake-up that can be moved: what an actor waits on when an arrival may end its closed-form interval early.

Model: SimPy events. An alarm rings after every ordinary event of its nanosecond and the alarms of lower rank: what
the network delivers, then what hands requests over, then what takes them. So nothing hangs on when it was scheduled.
"""

from collections.abc import Callable
from heapq import heappop, heappush
from operator import attrgetter
from typing import TYPE_CHECKING, Any

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

    stopped = False
    """Whether `serve` is to come to an end after the event under way, which does not count."""

    def serve(self, count: int) -> int:
        """Let the next `count` events happen, as SimPy's `step` does one; fewer if none is left, or it is stopped.

        Returns how many did. What a callback raises, and the failure of an event that nobody waits for, goes through.
        """
        queue = self._queue
        for served in range(count):
            if not queue:
                return served
            self._now, _, _, event = heappop(queue)
            callbacks, event.callbacks = event.callbacks, None  # type: ignore[assignment]
            for callback in callbacks:
                callback(event)
            if not event._ok and not hasattr(event, "_defused"):
                raise event._value
            if self.stopped:
                return served
        return count


NETWORK, HANDING_OVER, SERVING, END = map(EventPriority, (2, 3, 4, 5))  # SimPy's own are 0 (urgent) and 1 (normal)


class _Timer:
    """What SimPy's queue needs of an event that rings an alarm; the same one goes through it again and again."""

    __slots__ = ("callbacks",)

    callbacks: Any
    _ok = True


class Alarm(Event):
    """An event that a process may yield again and again; it rings at the time last set, once per setting.

    With `call` it calls that, and no process has to be resumed.
    """

    env: Clock

    def __init__(self, env: Clock, rank: EventPriority = SERVING, call: Callable[[], None] | None = None) -> None:
        super().__init__(env)
        self._call = call or self._fire
        self._rank = rank
        self._ok = True
        self._value = None
        self._timer: _Timer | None = None  # the one that was set last, while it is to come
        self._spare: _Timer | None = None  # one that is in no queue
        self._rings: Any = (self._ring,)
        self.at_ns: int | None = None

    def set(self, at_ns: int) -> None:
        """Ring at `at_ns` (not before now); an earlier setting is forgotten."""
        self.at_ns = at_ns
        timer = self._spare
        if timer is None:
            timer = _Timer()
        else:
            self._spare = None
        self._timer = timer
        timer.callbacks = self._rings
        env = self.env
        queue: list[Any] = env._queue
        heappush(queue, (at_ns, self._rank, next(env._eid), timer))

    def _ring(self, timer: Any) -> None:
        self._spare = timer
        if timer is self._timer:  # a timer that was moved away passes in silence
            self._timer = None
            self.at_ns = None
            self._call()

    def _fire(self) -> None:
        callbacks, self.callbacks = self.callbacks, []
        for callback in callbacks:
            callback(self)
