"""A cache that moves between two layouts arrives whole: each head, layer and position of a rank once, from a holder."""

from itertools import pairwise, product

from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.model.layout import Layout
from simulator.model.transformer import load_model
from simulator.serving.kv_layout import KVLayout, copy_read, heads_of, held, holders_of, pieces, shards


@st.composite
def layouts(draw, kv_heads, layers):
    stages = draw(st.integers(1, min(3, layers)))
    cuts = [0, *sorted(draw(st.permutations(range(1, layers)))[: stages - 1]), layers]
    tensor = draw(st.sampled_from([1, 2, 3, 4, 8, 16]))
    places = tuple(pairwise(cuts))
    return KVLayout(kv_heads, places, tensor, draw(st.integers(1, 5)), draw(st.integers(1, 3)))


@st.composite
def moves(draw):
    kv_heads, layers = draw(st.sampled_from([1, 2, 4, 8])), draw(st.integers(1, 7))
    source, target = draw(layouts(kv_heads, layers)), draw(layouts(kv_heads, layers))
    ranks = draw(st.integers(0, source.data - 1)), draw(st.integers(0, target.data - 1))
    return source, target, ranks, layers, draw(st.integers(0, 40))


def positions_of(intervals):
    return [position for first, end in intervals for position in range(first, end)]


def atoms(layout, data, layers, length):
    """Every (rank, head, layer, position) of a cache on one data rank, written out."""
    for (stage, (first, end)), context, tensor in product(
        enumerate(layout.stages), range(layout.context), range(layout.tensor)
    ):
        rank = layout.rank(stage, data, context, tensor)
        for head in heads_of(tensor, layout.tensor, layout.kv_heads):
            for layer in range(max(first, layers[0]), min(end, layers[1])):
                for position in positions_of(held((0, length), layout.context, context)):
                    yield rank, head, layer, position


@settings(max_examples=200, deadline=None)
@given(moves(), st.data())
def test_what_arrives_is_what_the_target_needs_and_comes_from_ranks_that_hold_it(move, data):
    source, target, (source_data, target_data), layers, length = move
    first = data.draw(st.integers(0, layers - 1))
    some = first, data.draw(st.integers(first + 1, layers))
    has, needs = {}, {}
    for rank, *atom in atoms(source, source_data, some, length):
        has.setdefault(rank, set()).add(tuple(atom))
    for rank, *atom in atoms(target, target_data, some, length):
        needs.setdefault(rank, []).append(tuple(atom))
    found = pieces(source, target, source_data, target_data, some)
    assert len({(piece.source, piece.target) for piece in found}) == len(found)
    devices = range(10**6), range(10**6)
    sent = shards(found, devices, (source.context, target.context), 1, (0, length), length)
    arrived = {}
    for _, to, size in sent:
        arrived[to] = arrived.get(to, 0) + size
    assert arrived == {rank: len(wanted) for rank, wanted in needs.items()}
    for a, b, size in sent:  # a source never sends more than what both hold
        assert size <= len(has[a] & set(needs[b]))
    if max(source.tensor, target.tensor) <= source.kv_heads:
        for a, b, size in sent:  # without copies each is sent by the one that holds it, all of it
            assert size == len(has[a] & set(needs[b]))


@given(st.integers(0, 200), st.integers(0, 100), st.integers(1, 9))
def test_context_ranks_split_the_positions(first, count, degree):
    parts = [positions_of(held((first, first + count), degree, rank)) for rank in range(degree)]
    assert sorted(position for part in parts for position in part) == list(range(first, first + count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 2


@given(st.sampled_from([1, 2, 3, 4, 8]), st.sampled_from([1, 2, 3, 4, 8, 16]))
def test_every_head_is_on_some_rank(kv_heads, tensor):
    ranks = [rank for head in range(kv_heads) for rank in holders_of(head, tensor, kv_heads)]
    assert set(ranks) == set(range(tensor))
    if tensor <= kv_heads:
        assert len(ranks) == kv_heads  # no copies


@given(st.sampled_from([1, 2, 4, 8, 16, 32]), st.sampled_from([1, 2, 4, 8]), st.integers(0, 5))
def test_copies_are_read_as_on_cloudmatrix384(prefill_tp, decode_tp, power):
    if decode_tp > prefill_tp:
        return
    ratio = prefill_tp // decode_tp
    decode_dp = ratio * 2**power
    group_size = decode_dp // ratio
    readings = {}
    for rank, tensor in product(range(decode_dp), range(decode_tp)):
        source = rank // group_size * decode_tp + tensor
        assert copy_read(prefill_tp, decode_tp, tensor, decode_dp, rank) == source
        readings[source] = readings.get(source, 0) + 1
    assert set(readings.values()) == {2**power}
    assert len(readings) == prefill_tp


def test_deepseek_from_a_prefill_unit_to_a_decode_unit():
    """MLA on TP4 x DP8 moves to TP1 x DP320: one rank sends the whole latent of 576 values over 61 layers."""
    model = load_model("deepseek-r1")
    source = KVLayout.of(model, Layout(tensor=4, data=8, expert=32))
    target = KVLayout.of(model, Layout(data=320, expert=320))
    senders = []
    for rank in range(320):
        [piece] = pieces(source, target, 5, rank, (0, 61))
        assert piece.target == rank
        assert piece.values == 61
        senders.append(piece.source)
    assert [senders.count(4 * 5 + tensor) for tensor in range(4)] == [80] * 4
