"""The time of one kernel as a roofline, and kernels that only move bytes.

Source: Williams et al., "Roofline", CACM 2009: a fixed time, and the longest of arithmetic, memory and link traffic.
"""

from typing import NamedTuple

from simulator.device.accelerator import Accelerator
from simulator.units import NS_PER_S


class Kernel(NamedTuple):
    """One kernel's work and its time in ns: fixed, plus the longest of arithmetic, memory traffic and link traffic."""

    flops: float = 0.0
    size_bytes: float = 0.0
    compute_ns: float = 0.0
    memory_ns: float = 0.0
    link_ns: float = 0.0
    fixed_ns: float = 0.0
    sent_bytes: float = 0.0
    """What keeps a device's way to other nodes busy, as bytes at the rate of its links."""

    @property
    def busy_ns(self) -> float:
        """The longest of arithmetic, memory traffic and link traffic."""
        return max(self.compute_ns, self.memory_ns, self.link_ns)

    @property
    def ns(self) -> float:
        """Duration in ns."""
        return self.fixed_ns + self.busy_ns

    def on(self, share: float) -> float:
        """Return the duration in ns on a share of the processors: arithmetic slows down, memory and links do not."""
        return self.fixed_ns + max(self.compute_ns / share, self.memory_ns, self.link_ns)

    @property
    def bound(self) -> str:
        """What most of the time goes to: compute, memory, link or launch."""
        terms = {"compute": self.compute_ns, "memory": self.memory_ns, "link": self.link_ns, "launch": self.fixed_ns}
        return max(terms, key=terms.__getitem__)


def compute_floor_ns(flops: float, accelerator: Accelerator, compute: str = "bf16") -> float:
    """Return the time of `flops` at the dense peak of the data type `compute`."""
    return flops * NS_PER_S / accelerator.rate(compute)


def memory_floor_ns(size_bytes: float, accelerator: Accelerator) -> float:
    """Return the time of moving `size_bytes` at the peak memory bandwidth."""
    return size_bytes * NS_PER_S / accelerator.memory.bandwidth


def elementwise(size_bytes: float, accelerator: Accelerator) -> Kernel:
    """Return a kernel that only moves bytes: norm, rotary positions, activation, embedding, sampling."""
    fit = accelerator.fitted
    memory_ns = memory_floor_ns(size_bytes, accelerator) / fit.gemm["bf16"].memory
    return Kernel(size_bytes=size_bytes, memory_ns=memory_ns, fixed_ns=fit.kernel_launch)
