"""Electrical power and energy of one device from what its kernels do and from its clock.

Source: idle, clocked and dynamic parts as AccelWattch (MICRO 2021) divides them; dynamic power of logic as f V^2
(CMOS), that of memory and links on clocks of their own; shares fitted by benchmarks/accuracy_power.py.
"""

from collections.abc import Iterable
from typing import NamedTuple

from simulator.device.accelerator import Accelerator
from simulator.device.kernels import Kernel
from simulator.device.timing import time_of
from simulator.errors import InputError, Problem
from simulator.model.operators import Experts, Gemm, Operator, Shape
from simulator.model.precision import FORMATS
from simulator.units import NS_PER_S

SHARES = {"idle": 0.15, "active": 0.14, "compute": 1.16, "memory": 0.73, "link": 0.0}
"""Parts of `tdp` for what a sheet does not say: those of A100 80 GB, fitted but for idle on the measured average power
of Llama-2-70B inference (splitwise-sim). Arithmetic at the peak and at full clock would pass the TDP, so that long
products run at a lower clock. Links showed no power of their own."""

VOLTAGE_FLOOR = 0.6
"""Voltage at a clock of nothing over that at `boost`, on a straight line: about 0.65 of 1.05 V on recent processes."""

LOWEST_SPEED = 0.15
"""Lowest clock over `boost` of a sheet that does not say."""


class Watts(NamedTuple):
    """Parts of the power of one device; see `simulator.device.accelerator.Draw`."""

    idle: float
    active: float
    compute: float
    memory: float
    link: float


class Activity(NamedTuple):
    """A stretch of time on one device, and for how much of it each part would work if it worked at its peak, in ns."""

    ns: float
    compute: float = 0.0
    memory: float = 0.0
    link: float = 0.0


def watts(accelerator: Accelerator) -> Watts:
    """Return the parts of a device's power, those of its sheet or else shares of its TDP."""
    sheet = accelerator.power
    given = {name: getattr(sheet, name) for name in Watts._fields}
    return Watts(**{name: SHARES[name] * sheet.tdp if value is None else value for name, value in given.items()})


def speed_of(accelerator: Accelerator, frequency: float | None) -> float:
    """Return a clock in Hz over that at which the device's peaks hold; None is that clock.

    Raises InputError when the sheet has no clock or it lies outside its range.
    """
    if frequency is None:
        return 1.0
    if accelerator.clock is None:
        raise InputError(Problem(f"the sheet of {accelerator.name} has no clock", path="frequency"))
    lowest, highest = lowest_speed(accelerator) * accelerator.clock.boost, accelerator.clock.boost
    if not lowest <= frequency <= highest:
        what = f"{accelerator.name} does not run at {frequency / 1e6:.0f} MHz"
        raise InputError(Problem(what, path="frequency", allowed=f"{lowest / 1e6:.0f} to {highest / 1e6:.0f} MHz"))
    return frequency / highest


def lowest_speed(accelerator: Accelerator) -> float:
    """Return the device's lowest clock over that at which its peaks hold."""
    clock = accelerator.clock
    return LOWEST_SPEED if clock is None or clock.minimum is None else clock.minimum / clock.boost


def voltage(speed: float) -> float:
    """Return the voltage at a clock over that at `boost`."""
    return VOLTAGE_FLOOR + (1 - VOLTAGE_FLOOR) * speed


def slowdown(kernel: Kernel, speed: float) -> float:
    """Return how much longer a kernel lasts at a lower clock: arithmetic by the clock, the rest not at all."""
    return (kernel.fixed_ns + max(kernel.compute_ns / speed, kernel.memory_ns, kernel.link_ns)) / kernel.ns


def peak_of(shape: Shape, accelerator: Accelerator) -> float:
    """Return the dense peak of the multipliers that an operator uses, in operations per second."""
    form = shape.format if isinstance(shape, Gemm | Experts) else "bf16"
    return accelerator.rate(FORMATS[form].compute)


def activity(operators: Iterable[Operator], accelerator: Accelerator, speed: float = 1.0) -> Activity:
    """Return what the device does while it runs some operators one after the other at a clock."""
    return activity_of(((o, time_of(o.shape, accelerator)) for o in operators), accelerator, speed)


def activity_of(kernels: Iterable[tuple[Operator, Kernel]], accelerator: Accelerator, speed: float = 1.0) -> Activity:
    """Return what the device does while it runs kernels that a cost model timed, one call of each operator."""
    return together(
        Activity(
            o.calls * kernel.ns * slowdown(kernel, speed) if kernel.ns else 0.0,
            o.calls * kernel.flops / peak_of(o.shape, accelerator) * NS_PER_S,
            o.calls * kernel.size_bytes / accelerator.memory.bandwidth * NS_PER_S,
            o.calls * kernel.link_ns,
        )
        for o, kernel in kernels
    )


def together(parts: Iterable[Activity]) -> Activity:
    """Return one stretch after the other as one."""
    return Activity(*(sum(column) for column in zip(Activity(0.0), *parts, strict=True)))


def waiting(ns: float) -> Activity:
    """Return a stretch in which an engine holds the device and nothing runs."""
    return Activity(ns)


def power_w(what: Activity, accelerator: Accelerator, speed: float = 1.0) -> float:
    """Return the average power in W of a stretch that an engine runs at a clock."""
    return energy_j(what, accelerator, speed) * NS_PER_S / what.ns


def drawn_w(what: Activity, accelerator: Accelerator) -> float:
    """Return that power at full clock; a device that would draw more than its TDP lowers its clock."""
    return min(power_w(what, accelerator), accelerator.power.tdp)


def energy_j(what: Activity, accelerator: Accelerator, speed: float = 1.0) -> float:
    """Return the energy in J of a stretch at a clock, idle power included.

    Arithmetic costs the same energy however long it takes, less at a lower voltage; traffic is on another clock.
    """
    part, square = watts(accelerator), voltage(speed) ** 2
    core = square * (part.active * speed * what.ns + part.compute * what.compute)
    return (part.idle * what.ns + core + part.memory * what.memory + part.link * what.link) / NS_PER_S


def speed_under(operators: list[Operator], accelerator: Accelerator, cap_w: float | None = None) -> float:
    """Return the highest clock, over `boost`, at which operators draw at most `cap_w` (default: the TDP) on average.

    Raises InputError when even the lowest clock passes the cap.
    """
    cap = accelerator.power.tdp if cap_w is None else cap_w

    def drawn(speed: float) -> float:
        return power_w(activity(operators, accelerator, speed), accelerator, speed)

    low, high = lowest_speed(accelerator), 1.0
    if drawn(high) <= cap:
        return high
    if drawn(low) > cap:
        what = f"{accelerator.name} cannot run at {cap:.0f} W: at its lowest clock it draws {drawn(low):.0f} W"
        raise InputError(Problem(what, path="cap", allowed=f"at least {drawn(low):.0f} W"))
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if drawn(middle) <= cap else (low, middle)
    return low
