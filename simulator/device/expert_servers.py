"""Attention/expert disaggregation: an engine keeps attention and KV cache, servers that it shares hold the experts.

Model: a step is cut into micro-batches that alternate between the engine's devices and the servers
(simulator.device.ping_pong); servers keep no state of a request, and serve the micro-batches of all engines together.
Every engine is taken to be as loaded as the one that is timed. Sources: MegaScale-Infer (arXiv:2504.02263) and Step-3
(2507.19427) for the arrangement, EaaS (2509.17863) for servers that merge what is ready.
"""

from functools import partial
from math import ceil
from typing import Literal, NamedTuple

from simulator.device.accelerator import Accelerator
from simulator.device.cost import RooflineCost
from simulator.device.engine import RooflineParameters
from simulator.device.memory import CONTEXT_BYTES, GIB
from simulator.device.ping_pong import merged_when_ready, pipelined_ns
from simulator.device.timing import Times
from simulator.errors import InputError, Problem
from simulator.model.expert_load import places_hit
from simulator.model.forward import Pass, Work
from simulator.model.layout import Layout
from simulator.model.operators import Experts, Operator
from simulator.model.precision import FORMATS, Precision
from simulator.model.split import Weights, experts_per_rank, stages, weight_bytes, weights_of
from simulator.model.transformer import Transformer
from simulator.strict import Count, Strict

DENSE = ("gate and up projection", "up projection", "activation", "down projection")
"""Kernels of layers without experts."""
ROUTED = ("router", "expert choice")
"""Kernels, beside those of shared experts, of layers with experts."""


class ExpertServers(Strict):
    """Devices that hold the routed experts for all engines of a pool, and no KV cache."""

    devices: Count
    """Devices among which the experts are dealt out; each holds whole experts."""
    merge: Literal["ready", "all"] = "ready"
    """A server takes up what is there, or waits for a micro-batch of every engine."""
    batches: Count = 2
    """Micro-batches of one engine that are on their way at once."""


def check_servers(
    model: Transformer, servers: ExpertServers, accelerator: Accelerator, precision: Precision, utilisation: float
) -> None:
    """Raise InputError when the model has no experts, fewer than servers, or more than their memory holds."""
    if model.experts is None:
        raise InputError(Problem(f"{model.name} has no experts", path="expert_servers", allowed="no such key"))
    layout = Layout(data=servers.devices, expert=servers.devices)
    [stage] = stages(model, layout)
    held = Weights(0, 0, weights_of(model, layout, stage).experts, 0, 0, 0, 0, 0)
    size, usable = weight_bytes(held, precision), int(accelerator.memory.capacity * utilisation) - CONTEXT_BYTES
    if size > usable:
        what = (
            f"the experts of {model.name} take {size / GIB:.1f} GiB of each of {servers.devices} servers, "
            f"{max(usable, 0) / GIB:.1f} GiB of {accelerator.name} are usable"
        )
        raise InputError(Problem(what, path="expert_servers.devices", allowed="more devices"))


class Exchange(NamedTuple):
    """One way between engines and servers: a fixed time, and ns for each byte that a tensor rank of an engine moves,
    when it is the only engine and when all of them do so at once.
    """

    fixed_ns: float
    alone_ns: float
    together_ns: float


class _AttentionPass(Pass):
    """A forward pass without the routed experts; what comes back from them is summed already."""

    def layers(self, work: Work) -> list[Operator]:
        part = self.model.experts
        assert part is not None
        rows = []
        for row in super().layers(work):
            if row.name in ("all-reduce", "reduce-scatter", "all-gather"):
                row = row._replace(calls=row.calls - part.layers)
            if not isinstance(row.shape, Experts):
                rows.append(row)
        return rows


class _Parts(NamedTuple):
    """Times of one micro-batch in ns, and how many kernels its engine launches."""

    attention: float
    """Of a layer with experts, all that the engine computes."""
    rest: float
    """Of layers without experts, embedding and head."""
    calls: int


class ExpertServersCost(RooflineCost):
    """Steps of an engine whose experts are on servers that `clients` engines like it share.

    Raises InputError for a layout with more than tensor-parallel ranks; the model has experts (see `check_servers`).
    """

    experts_elsewhere = True

    def __init__(
        self,
        model: Transformer,
        layout: Layout,
        accelerator: Accelerator,
        precision: Precision,
        engine: RooflineParameters,
        servers: ExpertServers,
        clients: int,
        out: Exchange,
        back: Exchange,
        times: Times | None = None,
    ) -> None:
        if layout.devices > layout.tensor:
            what = f"an engine with expert servers has tensor-parallel ranks only, this one is {layout}"
            raise InputError(Problem(what, path="layout", allowed="tensor alone; more engines instead of data ranks"))
        super().__init__(model, layout, accelerator, precision, engine, None, times)
        self.servers, self.clients = servers, clients
        self._out, self._back = out, back
        self._pass = _AttentionPass(model, layout, self.precision)
        held = Layout(data=servers.devices, expert=servers.devices)
        self._local = experts_per_rank(model, held)
        self._served: dict[int, float] = {}

    def step_ns(self, work: Work) -> float:
        """Return the duration of any step."""
        model, engine, servers = self.model, self.engine, self.servers
        assert model.experts is not None
        batches = min(servers.batches, max(work.prompts, work.prompt_tokens and 1, work.batch, 1))
        part = _share(work, batches)
        parts = self._parts(part)
        out_ns, back_ns, together_ns = self._exchanges(part.tokens)
        if servers.merge == "all":
            stations = [parts.attention, out_ns, self.experts_ns(self.clients * part.tokens), back_ns]
            busy_ns = pipelined_ns(model.experts.layers, batches, stations)
        else:
            busy_ns = self._when_ready(part.tokens, batches, parts.attention, (out_ns, back_ns), together_ns)
        busy_ns += batches * parts.rest
        if engine.launch and not engine.is_captured(work.prompt_tokens > 0):
            busy_ns = max(busy_ns, batches * parts.calls * engine.launch)
        return engine.step_overhead + busy_ns

    def experts_ns(self, tokens: int) -> float:
        """Return the time of one layer's experts on the servers for so many tokens at once."""
        known = self._served.get(tokens)
        if known is None:
            part = self.model.experts
            assert part is not None
            form, gated = self.precision.of_experts, self.model.gated
            chosen = part.active, part.experts, self._local, form, gated
            shape = Experts(tokens, self.model.hidden, part.intermediate, *chosen, dispatched=True)
            known = self._served[tokens] = self.times.kernel(Operator("experts", 1, shape)).ns
        return known

    def _when_ready(
        self, tokens: int, batches: int, attention_ns: float, links_ns: tuple[float, float], together_ns: float
    ) -> float:
        """Return the time of all layers with experts when servers take up what is ready."""
        part = self.model.experts
        assert part is not None
        round_ns, slowest_ns = attention_ns + sum(links_ns), max(attention_ns, *links_ns)
        # the links carry the micro-batches of all engines in a round, however these come
        least_ns = batches * max(slowest_ns, together_ns)
        service_ns = partial(self._merged_ns, tokens)
        stay_ns = merged_when_ready(service_ns, self.clients * batches, round_ns, least_ns).ns
        whole = round_ns + stay_ns
        return whole + (batches - 1) * slowest_ns + (part.layers - 1) * max(whole, least_ns)

    def _merged_ns(self, tokens: int, merged: float) -> float:
        """Return the time of so many micro-batches at once, between whole numbers of tokens on a line."""
        exact = merged * tokens
        low = int(exact)
        below = self.experts_ns(max(1, low))
        return below + (exact - low) * (self.experts_ns(low + 1) - below) if exact > low else below

    def _parts(self, work: Work) -> _Parts:
        model = self.model
        assert model.experts is not None
        dense = routed = every = ends = 0.0
        calls = 0
        inside = {row.name for row in self._pass.layers(work)}
        for operator, kernel in self.kernels(work):
            ns = operator.calls * kernel.ns
            calls += operator.calls
            if operator.name not in inside:
                ends += ns
            elif operator.name in DENSE:
                dense += ns
            elif operator.name in ROUTED or operator.name.startswith("shared "):
                routed += ns
            else:
                every += ns
        each, layers = every / model.layers, model.experts.layers
        return _Parts(each + routed / layers, ends + dense + (model.layers - layers) * each, calls)

    def _exchanges(self, tokens: int) -> tuple[float, float, float]:
        """Return the times of a micro-batch out and back, and the longer of those of all engines' at once."""
        part, count = self.model.experts, self.servers.devices
        assert part is not None
        form = FORMATS[self.precision.of_experts]
        # a server gets one copy of a token however many of its experts are chosen
        copies = places_hit(count, part.active)
        sent = ceil(tokens / self.layout.tensor) * copies * self.model.hidden
        sizes = (
            sent * (form.activation_bits / 8 if form.scaled else self._pass.value_bytes),
            sent * self._pass.value_bytes,
        )
        ways = list(zip((self._out, self._back), sizes, strict=True))
        together_ns = max(size * way.together_ns for way, size in ways)
        if self.servers.merge == "all":  # they move in step
            out_ns, back_ns = (way.fixed_ns + size * way.together_ns for way, size in ways)
        else:
            out_ns, back_ns = (way.fixed_ns + size * way.alone_ns for way, size in ways)
        return out_ns, back_ns, together_ns


def _share(work: Work, batches: int) -> Work:
    """Return the largest of so many equal micro-batches."""
    return Work(
        ceil(work.prompt_tokens / batches),
        work.pairs / batches,
        ceil(work.prompts / batches),
        ceil(work.batch / batches),
        work.context / batches,
        work.queries,
    )
