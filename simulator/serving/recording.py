"""Rows from what the actors report: one per request when it ends, one per window of an instance, one per event."""

from collections.abc import Callable
from typing import Any

from simulator.results.folder import RunFolder
from simulator.results.histogram import LogHistogram
from simulator.results.tables import CALLERS, EVENTS, INSTANCES, POWER, REQUESTS, TableWriter
from simulator.results.windows import Windows
from simulator.serving.engine import Observer
from simulator.serving.power import InstancePower
from simulator.serving.request import Request


class Recording:
    """Streams the tables of a serving run into its folder; `itl` counts the gaps between tokens."""

    def __init__(self, folder: RunFolder, interval_ns: int, callers: bool = False) -> None:
        """`callers` says whether tenants and priorities of requests are recorded."""
        self.itl = LogHistogram()
        self.preemptions = 0
        self._interval_ns = interval_ns
        self._windows: dict[str, Windows] = {}  # of engines that live, by name
        self._requests = folder.writer(REQUESTS)
        self._callers = folder.writer(CALLERS) if callers else None
        self._instances = folder.writer(INSTANCES)
        self._events = folder.writer(EVENTS)
        self._folder = folder
        self._power: TableWriter | None = None  # only of engines whose kernels are known

    def observer(
        self, instance: str, role: str, kv_blocks: int, power: InstancePower | None = None, start_ns: int = 0
    ) -> Observer:
        """Return what the engine `instance` reports to from `start_ns` on; `power` says what its windows drew."""
        emit = self._instances.append if power is None else self._metered(power)
        windows = Windows(instance, role, kv_blocks, self._interval_ns, emit, start_ns)
        self._windows[instance] = windows
        return Observer(windows.observe, self.itl.add, self.itl.add_line, self._preempted)

    def ended(self, r: Request) -> None:
        """Write the row of a request that will not change any more."""
        self._requests.append(
            (
                r.request_id,
                r.session,
                r.turn,
                r.arrival_ns,
                r.queued_ns,
                r.prefill_start_ns,
                r.prefill_end_ns,
                r.first_token_ns,
                r.decode_start_ns,
                r.finish_ns,
                r.prompt_tokens,
                r.output_tokens,
                r.made_tokens,
                r.cached_tokens,
                r.prefill_instance,
                r.decode_instance,
                r.kv_wait_ns,
                r.kv_transfer_ns,
                r.kv_transfer_bytes,
                r.preemptions,
                0,  # no faults yet: nothing is ever sent again
                r.outcome,
                r.reason,
            )
        )
        if self._callers is not None:
            self._callers.append((r.request_id, r.traits.tenant, str(r.traits.priority)))

    def event(self, now_ns: int, kind: str, subject: str, detail: str | None = None) -> None:
        """Write a row of what happened to the cluster or to an actor."""
        self._events.append((now_ns, kind, subject, detail))

    def retire(self, instance: str, now_ns: int) -> None:
        """Write the last window of an engine that has reported up to now and will not any more."""
        self._windows.pop(instance).close(now_ns)

    def close(self, now_ns: int) -> None:
        """Write the windows that are still open; the instances must have reported up to now."""
        for windows in self._windows.values():
            windows.close(now_ns)

    def finish(self) -> None:
        """Close the tables; no row may follow."""
        for writer in (self._requests, self._callers, self._instances, self._power, self._events):
            if writer is not None:
                writer.close()

    def _metered(self, power: InstancePower) -> Callable[[tuple[Any, ...]], None]:
        if self._power is None:
            self._power = self._folder.writer(POWER)
        windows, meter = self._instances, self._power

        def emit(window: tuple[Any, ...]) -> None:
            windows.append(window)
            if window[3] > window[2]:  # the last one may hold tokens and no time
                meter.append(power.row(window))

        return emit

    def _preempted(self, now_ns: int, instance: str, request: Request) -> None:
        self.preemptions += 1
        made = request.made_tokens
        self.event(now_ns, "preempted", instance, f"request {request.request_id}, {made} tokens generated")
