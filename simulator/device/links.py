"""Time of a collective among the devices of one scale-up domain: a latency and the message over a bus bandwidth.

Source: 2 (n - 1) / n of the message over the bus bandwidth for an all-reduce, half of it for a gather or a scatter
(Thakur et al., 2005); constants fitted per device and number of ranks on an engine's own kernels.
"""

from simulator.device.accelerator import Accelerator
from simulator.device.kernels import Kernel
from simulator.model.operators import Collective
from simulator.units import NS_PER_S

PARTS = {
    "all_reduce": 2.0,
    "all_gather": 1.0,
    "reduce_scatter": 1.0,
    "all_to_all": 1.0,
    "dispatch": 1.0,
    "combine": 1.0,
}
"""How often (n - 1) / n of the message passes a rank's link."""


def collective(shape: Collective, accelerator: Accelerator) -> Kernel:
    """Return a collective of `shape.size_bytes` on each of two ranks or more of one scale-up domain."""
    ranks = shape.ranks
    fit = accelerator.all_reduce(ranks).protocol(shape.size_bytes)
    moved = PARTS[shape.operation] * (ranks - 1) / ranks if shape.operation in PARTS else 1.0
    return Kernel(link_ns=moved * shape.size_bytes * NS_PER_S / fit.bandwidth, fixed_ns=fit.latency)
