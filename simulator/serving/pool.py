"""A pool: replicas of one engine with one role, and the router that spreads requests over them."""

from collections.abc import Sequence

from simulator.serving.instance import Instance
from simulator.serving.request import Request
from simulator.serving.routing import Router


class Pool:
    """Instances in order; `outstanding` counts what each has been sent and has not finished or handed on."""

    def __init__(self, role: str, router: Router) -> None:
        self.role = role
        self.instances: list[Instance] = []
        self.outstanding: list[int] = []
        self._router = router
        self._index: dict[str, int] = {}

    def add(self, instance: Instance) -> None:
        """Take in an instance, at the end of the order."""
        self._index[instance.name] = len(self.instances)
        self.instances.append(instance)
        self.outstanding.append(0)

    def choose(self, request: Request) -> Instance:
        """Return the instance that takes `request`, and count the request as outstanding there."""
        index = self._router(request, self)
        self.outstanding[index] += 1
        return self.instances[index]

    def left(self, instance: Instance) -> None:
        """Count one request less as outstanding at `instance`."""
        self.outstanding[self._index[instance.name]] -= 1


def kv_shards(
    source: Sequence[int], target: Sequence[int], kv_heads: int, bytes_per_token: int
) -> tuple[tuple[int, int, int], ...]:
    """Return (source device, target device, bytes per token) for the KV cache of one token under two tensor layouts.

    Each rank of a tensor-parallel group of t holds kv_heads / t heads, or one head in t / kv_heads copies; a target
    rank reads each head that it holds from one source rank, copies taken in turn. Replicated heads move once per copy.
    """
    per_head = bytes_per_token // kv_heads
    shards: dict[tuple[int, int], int] = {}
    for rank, device in enumerate(target):
        for head in heads_of(rank, len(target), kv_heads):
            holders = [r for r in range(len(source)) if head in heads_of(r, len(source), kv_heads)]
            key = (source[holders[rank % len(holders)]], device)
            shards[key] = shards.get(key, 0) + per_head
    return tuple((a, b, size) for (a, b), size in shards.items())


def heads_of(rank: int, tensor: int, kv_heads: int) -> range:
    """Return the KV heads that `rank` of a tensor-parallel group holds; one of the two counts divides the other."""
    if tensor <= kv_heads:
        width = kv_heads // tensor
        return range(rank * width, (rank + 1) * width)
    head = rank // (tensor // kv_heads)
    return range(head, head + 1)
