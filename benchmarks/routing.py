"""Routers at speed: microseconds of one choice, live loads, against the floor of an empty call.

Run `python benchmarks/routing.py`. Loads move as in a run: each choice adds a request and an older one leaves. What
engines take to answer about KV use and prefixes is left out.
"""

import time
from collections import deque

from simulator.clock import Clock
from simulator.serving.pool import Pool
from simulator.serving.pool_view import EngineTraits
from simulator.serving.request import Request
from simulator.serving.routing import ROUTERS, Place

SIZES = (8, 64, 512)
CHOICES = 5000


class Still:
    """An engine that answers at once."""

    kv_total_blocks = 100
    prefix_caches = ()

    def __init__(self, name: str) -> None:
        self.name = name

    def used_blocks(self) -> int:
        """Return a use of KV."""
        return 40


def first(request: Request, pool: object) -> int:
    """Return the first engine: what the pool itself takes."""
    return 0


def microseconds(name: str, size: int) -> float:
    """Return the time of one choice and of the departure that goes with it."""
    kind = ROUTERS.get(name)
    router = first if kind is None else kind.make(kind.parameters(), Place(7, "bench", 10**9, 10**8))
    pool = Pool("colocated", router, Clock(), kind.reads if kind else ())
    for index in range(size):
        pool.add(Still(f"e{index}"), EngineTraits(f"e{index}", 1000.0, price_per_h=1.0))
    sent: deque[tuple[Still, Request]] = deque()
    requests = [Request(number, 0, 700, 150, f"s{number % 999}") for number in range(CHOICES + 4 * size)]
    for request in requests:
        request.keys = (1, 2)
    for request in requests[: 4 * size]:
        sent.append((pool.choose(request), request))
    begun = time.perf_counter()
    for request in requests[4 * size :]:
        sent.append((pool.choose(request), request))
        engine, old = sent.popleft()
        old.first_token_ns = 0
        pool.left(engine, old)
    return (time.perf_counter() - begun) / CHOICES * 1e6


def main() -> None:
    """Print a row per router."""
    print(f"{'us per request':20}" + "".join(f"{size:>10}" for size in SIZES))
    for name in ("(floor)", *ROUTERS):
        print(f"{name:20}" + "".join(f"{min(microseconds(name, size) for _ in range(3)):10.2f}" for size in SIZES))


if __name__ == "__main__":
    main()
