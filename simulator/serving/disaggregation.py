"""Prefill/decode disaggregation: the KV cache of a prefilled request moves over the fabric to a decode engine.

Model: the decode engine is chosen when prefill ends, blocks and a seat are reserved there, then the whole cache is
pushed, each target rank reading its heads from one source rank; the source keeps its blocks until the last byte is in.
Sources: Splitwise (ISCA 2024), DistServe (OSDI 2024). Nothing moves while decode is full: that is the back-pressure.
"""

from collections.abc import Generator, Sequence
from typing import Any, Protocol

from simpy import Event

from simulator.clock import Clock
from simulator.serving.instance import Instance
from simulator.serving.pool import Pool, kv_shards
from simulator.serving.request import Request


class Network(Protocol):
    """Moves bytes between devices (see simulator.network)."""

    def transfer(self, shards: Sequence[tuple[int, int, int]]) -> Event:
        """Return an event that fires when every (source, target, bytes) has arrived."""


class KVTransfer:
    """Hands requests from a prefill pool over to a decode pool."""

    def __init__(
        self, env: Clock, network: Network, prefill: Pool, decode: Pool, kv_heads: int, bytes_per_token: int
    ) -> None:
        self._env = env
        self._network = network
        self._prefill = prefill
        self._decode = decode
        self._kv_heads = kv_heads
        self._bytes_per_token = bytes_per_token
        self._shards: dict[tuple[str, str], tuple[tuple[int, int, int], ...]] = {}
        self._withdrawn: set[int] = set()
        self._on_the_way: dict[int, tuple[Request, int]] = {}  # each with the time since which it waits or moves

    def hand_over(self, request: Request, source: Instance) -> None:
        """Begin to move a request whose prefill has just ended at `source`."""
        self._on_the_way[request.request_id] = request, self._env.now
        self._env.process(self._move(request, source))

    def withdraw(self, request: Request) -> bool:
        """Cancel a request as soon as its keys and values have come, and return True, if they wait or move here."""
        if request.request_id not in self._on_the_way:
            return False
        self._withdrawn.add(request.request_id)
        return True

    def _move(self, request: Request, source: Instance) -> Generator[Event, Any, None]:
        env, tokens = self._env, request.prompt_tokens
        holding = source.detach(request)
        target = self._decode.choose(request)
        ready_ns = env.now
        self._on_the_way[request.request_id] = request, ready_ns
        yield target.reserve(request)
        start_ns = env.now
        request.kv_wait_ns = start_ns - ready_ns
        shards = [(a, b, size * tokens) for a, b, size in self._between(source, target)]
        request.kv_transfer_bytes = sum(size for _, _, size in shards)
        self._on_the_way[request.request_id] = request, start_ns
        yield self._network.transfer(shards)
        del self._on_the_way[request.request_id]
        request.kv_transfer_ns = env.now - start_ns
        source.release(holding)
        self._prefill.left(source, request)
        target.join(request)
        if request.request_id in self._withdrawn:
            self._withdrawn.remove(request.request_id)
            target.cancel(request)

    def settle(self) -> None:
        """Write down how long what is still here has waited or moved: the run is over."""
        for request, since_ns in self._on_the_way.values():
            if request.kv_transfer_bytes:
                request.kv_transfer_ns = self._env.now - since_ns
            else:
                request.kv_wait_ns = self._env.now - since_ns

    def _between(self, source: Instance, target: Instance) -> tuple[tuple[int, int, int], ...]:
        key = (source.name, target.name)
        if key not in self._shards:
            self._shards[key] = kv_shards(source.devices, target.devices, self._kv_heads, self._bytes_per_token)
        return self._shards[key]
