"""Which rank of an engine holds which part of a request's KV cache, and who sends what when a cache changes engines.

Model: a rank holds some heads of some layers at some positions: tensor ranks split the heads (or copy them, when there
are more ranks than heads; MLA's latent is one head), pipeline stages the layers, context ranks the positions (rank i of
N has parts i and 2 N - 1 - i of 2 N), and a request lies on one data-parallel rank. Source: Megatron-LM for heads,
arXiv:2411.01783 for positions, CloudMatrix384 (2506.12708) for which of several copies is read.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from simulator.model.layout import Layout
from simulator.model.split import evenly_among, stages
from simulator.model.transformer import Transformer

Interval = tuple[int, int]
"""First and end of consecutive layers, or positions."""


class KVLayout(NamedTuple):
    """How the caches of one engine are spread; rank (stage, d, c, t) is device ((stage x data + d) x context + c) x
    tensor + t of it.
    """

    kv_heads: int
    stages: tuple[Interval, ...]
    """Layers of each pipeline stage."""
    tensor: int = 1
    data: int = 1
    context: int = 1

    @staticmethod
    def of(model: Transformer, layout: Layout) -> "KVLayout":
        """Return how a model's caches lie under a parallel layout."""
        decoders = tuple(stage.decoder for stage in stages(model, layout))
        return KVLayout(model.attention.kv_heads, decoders, layout.tensor, layout.data, layout.context)

    def rank(self, stage: int, data: int, context: int, tensor: int) -> int:
        """Return the number of a rank among the engine's devices."""
        return ((stage * self.data + data) * self.context + context) * self.tensor + tensor


class Kind(NamedTuple):
    """Layers that keep alike: `windowed` of `layers`, spread evenly as in a model, have a window."""

    layers: int
    windowed: int
    with_window: bool
    """Whether these are meant, or the others."""

    def among(self, first: int, end: int) -> int:
        """Return how many of some consecutive layers are of this kind."""
        windowed = evenly_among(first, end, self.windowed, self.layers)
        return windowed if self.with_window else end - first - windowed


class Piece(NamedTuple):
    """What one source rank sends to one target rank of each position that both hold; ranks number devices."""

    source: int
    target: int
    values: int
    """Layers times heads."""
    source_context: int
    target_context: int


def heads_of(rank: int, tensor: int, kv_heads: int) -> range:
    """Return the KV heads that `rank` of a tensor-parallel group holds.

    With more heads than ranks they are split as evenly as whole heads allow; with more ranks than heads ranks that
    follow each other have copies of one.
    """
    if tensor <= kv_heads:
        return range(rank * kv_heads // tensor, (rank + 1) * kv_heads // tensor)
    head = rank * kv_heads // tensor
    return range(head, head + 1)


def holders_of(head: int, tensor: int, kv_heads: int) -> list[int]:
    """Return the tensor ranks that hold a head."""
    return [rank for rank in range(tensor) if head in heads_of(rank, tensor, kv_heads)]


def copy_read(copies: int, readers: int, reader: int, data: int, data_rank: int) -> int:
    """Return which of `copies` in a source a reader takes: of a decode engine's `readers` on each of `data` ranks.

    Data-parallel ranks are put into as many groups as the readers of one rank go into the copies, so that all copies
    are read alike: group x readers + reader (CloudMatrix384: ratio, group size and source rank).
    """
    groups = max(1, copies // readers)
    return (data_rank * groups // data * readers + reader) % copies


@lru_cache(maxsize=1 << 14)
def pieces(
    source: KVLayout,
    target: KVLayout,
    source_data: int,
    target_data: int,
    layers: Interval,
    kind: Kind | None = None,
) -> tuple[Piece, ...]:
    """Return who sends what of some layers of a cache on data rank `source_data` of one engine to that of another.

    `kind`: of these layers alone.
    """
    found: dict[tuple[int, int, int, int], int] = {}
    for tensor in range(target.tensor):
        readings = list(_readings(source, target, tensor, target_data))
        for to, wanted in enumerate(target.stages):
            for at, held in enumerate(source.stages):
                first, end = max(wanted[0], held[0], layers[0]), min(wanted[1], held[1], layers[1])
                shared = end - first if kind is None else kind.among(first, end)
                if end <= first or not shared:
                    continue
                for there in range(target.context):
                    for here in range(source.context):
                        for rank in readings:
                            key = (
                                source.rank(at, source_data, here, rank),
                                target.rank(to, target_data, there, tensor),
                                here,
                                there,
                            )
                            found[key] = found.get(key, 0) + shared
    return tuple(Piece(a, b, values, here, there) for (a, b, here, there), values in found.items())


def _readings(source: KVLayout, target: KVLayout, tensor: int, data_rank: int) -> Iterator[int]:
    """Yield the source's tensor rank that each head of a target's tensor rank is read from."""
    for head in heads_of(tensor, target.tensor, target.kv_heads):
        copies = holders_of(head, source.tensor, source.kv_heads)
        readers = holders_of(head, target.tensor, target.kv_heads)
        yield copies[copy_read(len(copies), len(readers), readers.index(tensor), target.data, data_rank)]


def shards(
    found: Sequence[Piece],
    devices: tuple[Sequence[int], Sequence[int]],
    contexts: tuple[int, int],
    value_bytes: int,
    positions: Interval,
    length: int,
) -> list[tuple[int, int, int]]:
    """Return (source device, target device, bytes) of the pieces at positions that were computed at once.

    `devices` are those of source and target, `contexts` their degrees, `value_bytes` the bytes of one head of one layer
    at one position; the target splits `length` positions in all. What no position falls to is left out.
    """
    here, there = devices
    if contexts == (1, 1):
        count = positions[1] - positions[0]
        return [(here[p.source], there[p.target], p.values * value_bytes * count) for p in found if count]
    common = {
        (a, b): _common(held(positions, contexts[0], a), held((0, length), contexts[1], b))
        for a in range(contexts[0])
        for b in range(contexts[1])
    }
    return [
        (here[p.source], there[p.target], p.values * value_bytes * count)
        for p in found
        if (count := common[p.source_context, p.target_context])
    ]


def held(positions: Interval, degree: int, rank: int) -> tuple[Interval, ...]:
    """Return the positions of an interval that context rank `rank` of `degree` holds: two parts, balanced for causal
    attention.
    """
    if degree == 1:
        return (positions,)
    first, end = positions
    parts = 2 * degree
    cuts = [first + (end - first) * part // parts for part in (rank, rank + 1, parts - 1 - rank, parts - rank)]
    return (cuts[0], cuts[1]), (cuts[2], cuts[3])


def _common(these: Sequence[Interval], those: Sequence[Interval]) -> int:
    return sum(max(0, min(a[1], b[1]) - max(a[0], b[0])) for a in these for b in those)
