"""Power of an instance in each of its windows: the time in each phase at the power of that phase.

Model: simulator.device.power; a phase draws what its kernels draw at the window's mean batch and context, at most the
TDP. Prefill is taken as one prompt that fills a step, so short prompts draw less than is said.
"""

from math import log2
from typing import Any

from simulator.device.cost import RooflineCost
from simulator.device.power import Activity, activity_of, drawn_w, waiting
from simulator.model.forward import Work
from simulator.serving.paging import Paging
from simulator.units import NS_PER_S

POINTS_PER_OCTAVE = 4
"""Batches and contexts at which the power of decode is evaluated, per factor of two: it changes slowly with both."""


class InstancePower:
    """What the devices of one instance draw, from the rows of its windows."""

    def __init__(self, cost: RooflineCost, paging: Paging, prompt_tokens: int) -> None:
        self._cost, self._device, self._paging = cost, cost.accelerator, paging
        layout = cost.layout
        self.devices = layout.devices
        self._idle_w = drawn_w(waiting(1.0), self._device)
        prompts = layout.data  # one for each data-parallel rank
        work = Work(prompts * prompt_tokens, prompts * prompt_tokens * (prompt_tokens + 1) / 2, prompts)
        # a stage works on a prompt while the others wait
        self._prefill_w = self._step_w(work, 1 / layout.pipeline)
        # ranks that have nothing to decode wait for the others; experts have tokens of all of theirs
        self._ranks = layout.pipeline * (layout.data if layout.expert == 1 else 1)
        self._decode_w: dict[tuple[int, int], float] = {}

    def row(self, window: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the row of the POWER table for a row of the INSTANCES table."""
        instance, role, start_ns, end_ns, _, prefill_ns, decode_ns, idle_ns, running, _, _, _, kv_blocks, *_ = window
        busy_ns = prefill_ns + decode_ns
        joules = self._prefill_w * prefill_ns + self._idle_w * idle_ns
        if decode_ns:
            part = (end_ns - start_ns) / busy_ns  # means of the window are those of its busy time once idle is left out
            batch = running * part
            joules += decode_ns * self.decode_w(batch, self._paging.tokens(kv_blocks * part, batch))
        joules *= self.devices / NS_PER_S
        return instance, role, start_ns, end_ns, self.devices, joules * NS_PER_S / (end_ns - start_ns), joules

    def decode_w(self, batch: float, context: float) -> float:
        """Return the power in W of one device while so many sequences, of so much context in all, decode."""
        octaves = [round(POINTS_PER_OCTAVE * log2(max(1.0, value))) for value in (batch, context)]
        key = octaves[0], octaves[1]
        known = self._decode_w.get(key)
        if known is None:
            count, tokens = (2 ** (octave / POINTS_PER_OCTAVE) for octave in octaves)
            sequences = max(1, round(count))
            work = Work(batch=sequences, context=max(float(sequences), tokens))
            known = self._decode_w[key] = self._step_w(work, min(1.0, sequences / self._ranks))
        return known

    def _step_w(self, work: Work, share: float) -> float:
        """Return the power of one device in a step, of whose kernels it runs a share."""
        busy = activity_of(self._cost.kernels(work), self._device)
        parts = (share * part for part in busy[1:])
        return drawn_w(Activity(self._cost.step_ns(work), *parts), self._device)
