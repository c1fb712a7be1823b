"""The time of one training step on a simple pipeline schedule, in closed form.

Source: bubble (p - 1) / v of a micro-batch as arXiv:2104.04473 derives it for GPipe, 1F1B and interleaved 1F1B; ring
collectives (Thakur et al., 2005) over the scale-up domain or the network ports of the devices in a node.
"""

from typing import NamedTuple

from simulator.device.accelerator import Accelerator
from simulator.device.kernels import Kernel
from simulator.device.links import PARTS
from simulator.device.power import slowdown, speed_under
from simulator.device.timing import time_of
from simulator.errors import InputError, Problem
from simulator.model.operators import Collective, Operator
from simulator.model.training import MicroBatch, TrainingPass
from simulator.units import NS_PER_S


class StepTime(NamedTuple):
    """Where one step of the slowest pipeline rank goes, in ns; the parts sum to `ns`."""

    compute: float
    """Kernels of all micro-batches."""
    links: float
    """Collectives of all micro-batches, which nothing hides here."""
    bubble: float
    """Waiting for the other stages."""
    exchange: float
    """What the backward pass does not hide of the exchange among data-parallel ranks."""
    optimizer: float

    @property
    def ns(self) -> float:
        """Duration in ns."""
        return sum(self)


class Network(NamedTuple):
    """What leaves the scale-up domain: bytes per second of one device, one way, and the latency of one message."""

    bandwidth: float
    latency_ns: float = 0.0


def spacing(training: TrainingPass, group: str) -> int:
    """Return how many devices apart the neighbours of a group are: tensor innermost, then context, data, pipeline."""
    layout = training.layout
    stage = layout.stage_devices * training.recipe.replicas
    apart = {"tensor": 1, "context": layout.tensor, "expert": 1, "pipeline": stage}
    return apart.get(group, layout.stage_devices if group == "expert data" else layout.tensor)


def collective_kernel(
    training: TrainingPass, shape: Collective, accelerator: Accelerator, network: Network | None
) -> Kernel:
    """Return the time of a collective: within the scale-up domain, or by a ring through all ports of each node.

    Raises InputError when the group leaves the domain and no network is given.
    """
    apart, domain = spacing(training, shape.group), accelerator.domain
    if apart * shape.ranks <= domain:
        return time_of(shape, accelerator)
    if network is None:
        what = f"the {shape.group} group of {shape.ranks} ranks leaves the {domain} devices of a scale-up domain"
        raise InputError(Problem(what, path="network", allowed="the bandwidth of a device's network port"))
    local = max(1, min(shape.ranks, domain // apart))
    nodes = -(-shape.ranks // local)
    if shape.operation == "all_to_all":  # what stays in the node goes over faster links
        out = (shape.ranks - local) / shape.ranks * shape.size_bytes / network.bandwidth
    elif shape.operation in PARTS:
        out = PARTS[shape.operation] * (shape.ranks - 1) / shape.ranks * shape.size_bytes / (local * network.bandwidth)
    else:
        out = shape.size_bytes / network.bandwidth
    return Kernel(link_ns=out * NS_PER_S, fixed_ns=network.latency_ns * max(1, nodes - 1).bit_length())


class _Place(NamedTuple):
    """Where kernels run: the device, its clock over that at which its peaks hold, and what joins its nodes."""

    accelerator: Accelerator
    network: Network | None
    speed: float


def _sums(training: TrainingPass, rows: list[Operator], place: _Place) -> tuple[float, float]:
    """Return (kernels, collectives) of some operators in ns."""
    accelerator, network, speed = place
    compute = links = 0.0
    for o in rows:
        if isinstance(o.shape, Collective):
            links += o.calls * collective_kernel(training, o.shape, accelerator, network).ns
        else:
            kernel = time_of(o.shape, accelerator)
            compute += o.calls * kernel.ns * slowdown(kernel, speed)
    return compute, links


def step_time(
    training: TrainingPass,
    accelerator: Accelerator,
    batch: MicroBatch,
    micro_batches: int,
    network: Network | None = None,
    overlap: bool = True,
    speed: float = 1.0,
) -> StepTime:
    """Return where a step of `micro_batches` goes: the slowest rank never idles but for the bubble.

    `overlap` hides the exchange of gradients and weights behind the passes that it runs beside: of ZeRO-2 and 3 behind
    every micro-batch, else behind the last one's backward pass. Collectives within a micro-batch are not hidden.
    `speed` is the clock over that at which the device's peaks hold, see `sustained_speed`.
    """
    ranks = range(training.layout.pipeline)
    costs = [_rank(training, rank, batch, _Place(accelerator, network, speed)) for rank in ranks]
    slowest = max(ranks, key=lambda r: costs[r].compute + costs[r].links)
    cost, n = costs[slowest], micro_batches
    passes = cost.compute + cost.links
    bubble = (training.layout.pipeline - 1) / training.recipe.chunks * passes
    hidden_each = passes if overlap else 0.0
    hidden_last = cost.backward if overlap else 0.0
    exchange = n * max(0.0, cost.each - hidden_each) + max(0.0, cost.once - hidden_last)
    return StepTime(n * cost.compute, n * cost.links, bubble, exchange, cost.optimizer)


class _Rank(NamedTuple):
    """Times of one pipeline rank in ns: a micro-batch's kernels, collectives, backward part, exchange; a step's."""

    compute: float
    links: float
    backward: float
    each: float
    once: float
    optimizer: float


def sustained_speed(
    training: TrainingPass, accelerator: Accelerator, batch: MicroBatch, cap_w: float | None = None
) -> float:
    """Return the clock at which every stage's passes draw at most `cap_w` (default: the TDP) on average.

    Over that at which the device's peaks hold. Kernels within the scale-up domain alone are counted.
    """
    speeds = []
    for part in training.slices:
        rows = [o for passes in training.stage(part, batch) for o in passes]
        rows = [o for o in rows if not isinstance(o.shape, Collective) or o.shape.ranks <= accelerator.domain]
        speeds.append(speed_under(rows, accelerator, cap_w))
    return min(speeds)


def _rank(training: TrainingPass, rank: int, batch: MicroBatch, place: _Place) -> _Rank:
    compute = links = backward = each = once = 0.0
    for part in training.slices:
        if part.rank != rank:
            continue
        stage, exchange = training.stage(part, batch), training.exchange(part)
        forward = _sums(training, stage.forward, place)
        behind = _sums(training, stage.backward + stage.weight + stage.recompute, place)
        compute, links = compute + forward[0] + behind[0], links + forward[1] + behind[1]
        backward += sum(behind)
        each += _sums(training, exchange.forward + exchange.backward, place)[1]
        once += _sums(training, exchange.step, place)[1]
    optimizer = _sums(training, training.optimizer(rank), place)[0]
    return _Rank(compute, links, backward, each, once, optimizer)
