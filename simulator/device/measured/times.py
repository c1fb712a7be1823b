"""Times of operators from measured tables, the roofline where they have no point, and which was which.

A measured point is kept as its ratio to the roofline; between points the ratio is interpolated, outside it is held.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import exp, log
from typing import NamedTuple

from simulator.device.accelerator import Accelerator
from simulator.device.kernels import Kernel
from simulator.device.measured.interpolation import Coordinate, Estimate, Family, Point
from simulator.device.measured.modules import module_of, parts, place_module, work_of
from simulator.device.measured.points import place, refined
from simulator.device.measured.table import Measured
from simulator.device.timing import time_of
from simulator.model.architecture import LatentAttention
from simulator.model.forward import Pass
from simulator.model.operators import Operator, PromptAttention, TokenAttention

Exact = tuple[str | float, ...]


class Origin(NamedTuple):
    """Where measurements are from: a file in a format, who took them, and what was assumed of it."""

    file: str
    format: str
    provenance: dict[str, str]
    rows: int
    notes: tuple[str, ...] = ()


class MeasuredTimes:
    """A source of times (see `simulator.device.timing.Times`) from measured points on one device kind."""

    grows = False  # a table may say otherwise

    def __init__(
        self,
        accelerator: Accelerator,
        measured: Sequence[Measured],
        origins: Sequence[Origin] = (),
        forward: Pass | None = None,
    ) -> None:
        """`forward`: whose steps are timed, for tables of whole modules of its layers."""
        self.accelerator, self.origins = accelerator, tuple(origins)
        self._module: Pass | None = None
        if forward is not None and isinstance(forward.model.attention, LatentAttention):
            self._module = module_of(forward.model, forward.heads, forward.precision)
        self.families: dict[Exact, Family] = {}
        for operators, ns in measured:
            self._add(place(operators), operators, ns)
        self.repeats = sum(family.repeats for family in self.families.values())
        """Measurements of a point that was measured before."""
        for operators, ns in measured:
            if (fine := refined(operators)) is not None:
                self._add(fine, operators, ns)
        self._pack_single_prompts(measured)

    def _add(self, at: Coordinate, operators: tuple[Operator, ...], ns: float) -> None:
        self.families.setdefault(at.exact, Family()).add(at.shape, at.line, operators, ns)

    def _pack_single_prompts(self, measured: Sequence[Measured]) -> None:
        """Place prompts by all tokens of a step too, when they were measured one prompt at a time."""
        prompts = [(m, m.operators[0].shape) for m in measured if len(m.operators) == 1]
        if all(shape.sequences == 1 for _, shape in prompts if isinstance(shape, PromptAttention)):
            for (operators, ns), shape in prompts:
                if isinstance(shape, PromptAttention):
                    self._add(place(operators, packed=True), operators, ns)

    def estimate(self, operators: tuple[Operator, ...]) -> Estimate | None:
        """Return what the tables say of operators that run as one, or None when nothing like it was measured."""
        if len(operators) == 1 and (module := self._module_with(operators[0])) is not None:
            operators = module
        at, shape = place(operators), operators[0].shape
        if len(operators) == 1 and isinstance(shape, PromptAttention) and shape.sequences > 1:
            packed = place(operators, packed=True)
            if packed.exact in self.families:
                at = packed
        fine = refined(operators)
        if fine is not None and fine.exact in self.families:
            found = self.families[fine.exact].estimate(fine.shape, fine.line, self._log_ratio)
            if found is not None and not found.beyond:
                return found
        family = self.families.get(at.exact)
        return family.estimate(at.shape, at.line, self._log_ratio) if family else None

    def kernel(self, operator: Operator) -> Kernel:
        """Return one call of `operator`: the roofline's kernel, stretched to the measured time where there is one.

        Of a module that was timed whole, the kernel of attention takes what the other operators leave.
        """
        roofline = time_of(operator.shape, self.accelerator)
        found = self.estimate((operator,))
        if found is None:
            return roofline
        factor, module = exp(found.log_ratio), self._module_with(operator)
        if module is None:
            return stretched(roofline, factor)
        rest_ns = sum(self.kernel(other).ns for other in module[1:])
        return stretched(roofline, max(0.0, factor * self._roofline_ns(module) - rest_ns) / roofline.ns)

    def _module_with(self, operator: Operator) -> tuple[Operator, ...] | None:
        """Return the operators of the module that `operator` is the attention of, if such were measured whole."""
        shape = operator.shape
        if self._module is None or not isinstance(shape, PromptAttention | TokenAttention):
            return None
        module = parts(self._module, work_of(shape))
        return module if place_module(module).exact in self.families else None

    def attention(self, operators: Sequence[Operator]) -> list[Kernel]:
        """Return one call of each; prompts and decoding sequences that were measured in one call are timed so.

        The time of the two together then lies on both, in proportion to what each takes alone.
        """
        kernels = [self.kernel(operator) for operator in operators]
        for i, pair in enumerate(pairwise(operators)):
            shape = pair[1].shape
            if isinstance(pair[0].shape, PromptAttention) and isinstance(shape, TokenAttention):
                found = self.estimate(pair)
                if found is not None:
                    alone = kernels[i], self.kernel(pair[1]._replace(shape=shape._replace(mixed=False)))
                    factor = exp(found.log_ratio) * self._roofline_ns(pair) / sum(kernel.ns for kernel in alone)
                    kernels[i : i + 2] = (stretched(kernel, factor) for kernel in alone)
        return kernels

    def _roofline_ns(self, operators: tuple[Operator, ...]) -> float:
        return sum(time_of(operator.shape, self.accelerator).ns for operator in operators)

    def _log_ratio(self, point: Point) -> float:
        return log(point.ns / self._roofline_ns(point.operators))


def stretched(kernel: Kernel, factor: float) -> Kernel:
    """Return a kernel of the same work whose every time is `factor` times as long."""
    return kernel._replace(
        compute_ns=factor * kernel.compute_ns,
        memory_ns=factor * kernel.memory_ns,
        link_ns=factor * kernel.link_ns,
        fixed_ns=factor * kernel.fixed_ns,
    )
