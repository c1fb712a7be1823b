"""What fair queues hear of the tokens that requests get, in closed form over the steps of a jump.

Source: virtual token counters (VTC, OSDI 2024); see simulator.serving.queueing.Fair.
"""

from collections import Counter
from collections.abc import Iterable

from simulator.serving.queueing import Fair
from simulator.serving.rank import Rank
from simulator.serving.request import Request


def count_service(rank: Rank, requests: Iterable[Request], tokens: int) -> None:
    """Tell a fair queue that each sequence of these has generated so many tokens."""
    assert isinstance(rank.waiting, Fair)
    for tenant, count in _sequences(requests).items():
        rank.waiting.served(tenant, count * tokens)


def count_decoded(ranks: Iterable[Rank], counted: int, steps: int) -> None:
    """Tell fair queues what those who decode gain in the next `steps`, of which so many are counted already."""
    for rank in ranks:
        if not rank.decodes:
            continue
        assert isinstance(rank.waiting, Fair)
        batch, counts = rank.batch, Counter[str | None]()
        for request in batch.members.values():
            each = batch.generated(request, steps) - batch.generated(request, counted)
            counts[request.traits.tenant] += request.samples * each
        for tenant, count in counts.items():
            rank.waiting.served(tenant, count)


def steps_of_turn(rank: Rank) -> int | None:
    """Return after how many decode steps a fair queue has another tenant next; None: never."""
    assert isinstance(rank.waiting, Fair)
    if rank.batch.lookahead:  # steps do not generate the same: look after each
        return 1 if rank.waiting else None
    return rank.waiting.turn(_sequences(rank.batch.members.values()))


def _sequences(requests: Iterable[Request]) -> Counter[str | None]:
    """Return the sequences of these requests by tenant."""
    counts = Counter[str | None]()
    for request in requests:
        counts[request.traits.tenant] += request.samples
    return counts
