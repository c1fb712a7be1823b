"""Placements: every expert somewhere, slots full, loads even as greedy bounds say; moves carry exactly what is new."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.model.expert_group import Group
from simulator.model.expert_placement import balanced, contiguous, copies_of, moves, pack, replicate, settled
from simulator.model.expert_popularity import redrawn, uniform, zipf
from simulator.randomness import stream

SHAPES = [(8, 0, 0, 1), (8, 8, 0, 2), (32, 32, 0, 4), (144, 32, 0, 18), (320, 32, 32, 20)]


def _group(ranks: int, redundant: int, shared: int, nodes: int) -> Group:
    return Group(ranks, (256 + redundant + shared) // ranks, nodes)


def _rank_loads(load: np.ndarray, placement: np.ndarray) -> np.ndarray:
    copies = copies_of(placement, load.shape[1])
    return np.stack([(load[i] / copies[i])[placement[i]].sum(axis=1) for i in range(len(load))])


@pytest.mark.parametrize(("ranks", "redundant", "shared", "nodes"), SHAPES)
def test_every_expert_is_somewhere_and_all_slots_are_used(ranks, redundant, shared, nodes):
    group = _group(ranks, redundant, shared, nodes)
    load = zipf(3, 256, 8, 0.7, stream(1, "p"))
    for placement in (balanced(load, shared, group, 8), contiguous(3, 256, shared, group)):
        assert placement.shape == (3, ranks, group.slots)
        copies = copies_of(placement, 256 + bool(shared))
        assert (copies[:, :256] >= 1).all()
        assert (copies[:, :256].sum(axis=1) == 256 + redundant).all()
        assert not shared or (copies[:, 256] == shared).all()


def test_a_placement_in_order():
    assert contiguous(1, 4, 0, Group(2, 3))[0].tolist() == [[0, 1, 2], [3, 0, 1]]
    assert contiguous(1, 4, 2, Group(6, 1))[0].ravel().tolist() == [0, 1, 2, 3, 4, 4]


@given(load=st.lists(st.floats(0.01, 1), min_size=2, max_size=4), extra=st.integers(0, 4))
def test_copies_make_the_largest_load_of_a_copy_as_small_as_can_be(load, extra):
    count, total = len(load), len(load) + extra
    found = (np.array(load) / replicate(np.array([load]), total)[0]).max()
    ways = (way for way in product(range(1, extra + 2), repeat=count) if sum(way) == total)
    assert found == pytest.approx(min(max(x / n for x, n in zip(load, way, strict=True)) for way in ways))


@given(weights=st.lists(st.floats(0, 1), min_size=1, max_size=8), packs=st.integers(1, 8))
def test_packs_are_full_and_no_two_can_be_far_apart(weights, packs):
    room = -(-len(weights) // packs)
    weights = np.array(weights + [0.0] * (packs * room - len(weights)))
    where = pack(weights[None], packs, room)[0]
    assert (np.bincount(where, minlength=packs) == room).all()
    loads = np.bincount(where, weights, minlength=packs)
    # an item goes to the lightest pack with room, so loads differ by one item, or by what came after a pack was full
    assert loads.max() - loads.min() <= room * weights.max() + 1e-12


def test_weights_by_hand():
    assert pack(np.array([[5.0, 4.0, 3.0, 2.0]]), 2, 2)[0].tolist() == [0, 1, 1, 0]
    assert replicate(np.array([[6.0, 3.0, 1.0]]), 5)[0].tolist() == [3, 1, 1]


@pytest.mark.parametrize(("ranks", "redundant", "shared", "nodes"), SHAPES[:4])
@pytest.mark.parametrize("exponent", [0.2, 0.5, 0.8])
def test_balance_is_better_than_order_and_copies_help(ranks, redundant, shared, nodes, exponent):
    load = zipf(10, 256, 8, exponent, stream(2, "p"))
    group = _group(ranks, redundant, shared, nodes)
    order = _rank_loads(load, contiguous(10, 256, shared, group)).max(axis=1)
    even = _rank_loads(load, balanced(load, shared, group, 1)).max(axis=1)
    grouped = _rank_loads(load, balanced(load, shared, group, 8)).max(axis=1)
    assert (even <= order).all()
    assert even.mean() <= grouped.mean() * (1 + 1e-9)
    copies = replicate(load, ranks * group.slots)
    least = np.maximum(8 / ranks, (load / copies).max(axis=1))
    assert (even >= least - 1e-12).all()
    assert (even <= least + (load / copies).max(axis=1)).all()


def test_groups_stay_on_nodes():
    load = zipf(4, 256, 8, 0.6, stream(3, "p"))
    placement = balanced(load, 0, Group(32, 9, 4), expert_groups=8)
    node_of = {}
    for layer in range(4):
        for rank in range(32):
            for expert in placement[layer, rank].tolist():
                assert node_of.setdefault((layer, expert // 32), rank // 8) == rank // 8
    assert all(len({g for (at, g), n in node_of.items() if at == 0 and n == node}) == 2 for node in range(4))


@given(seed=st.integers(0, 500), share=st.floats(0, 1))
def test_moves_bring_what_a_rank_lacks_from_one_that_had_it(seed, share):
    random = stream(seed, "p")
    load = zipf(2, 32, 4, 0.7, random)
    group = Group(8, 5, 2)
    before = balanced(load, 0, group, 4)
    after = balanced(redrawn(load, share, random), 0, group, 4)
    wanted = moves(before, after, 4)
    lacking = sum(len(set(b) - set(a)) for x, y in zip(before, after, strict=True) for a, b in zip(x, y, strict=True))
    assert sum(move.experts for move in wanted) == lacking
    assert all(move.source != move.target for move in wanted)
    assert moves(after, after, 4) == []


@given(seed=st.integers(0, 500), share=st.floats(0, 1), nodes=st.sampled_from([1, 2]))
def test_ranks_renamed_hold_the_same_and_move_less(seed, share, nodes):
    random = stream(seed, "p")
    load = zipf(2, 32, 4, 0.7, random)
    group = Group(8, 5, nodes)
    before = balanced(load, 0, group, 4)
    after = balanced(redrawn(load, share, random), 0, group, 4)
    found = settled(before, after, group)
    for layer in range(2):
        rows = [sorted(row) for row in found[layer].tolist()]
        assert sorted(rows) == sorted(sorted(row) for row in after[layer].tolist())
        by_node = [sorted(e for row in rows[i : i + 8 // nodes] for e in row) for i in range(0, 8, 8 // nodes)]
        plain = [sorted(after[layer, i : i + 8 // nodes].ravel().tolist()) for i in range(0, 8, 8 // nodes)]
        assert sorted(by_node) == sorted(plain)  # who is on a node together stays together
    moved, plain = (sum(move.experts for move in moves(before, each, 4)) for each in (found, after))
    assert moved <= plain
    assert np.array_equal(settled(before, before, group), before)


def test_one_expert_per_rank_moves_only_what_changed():
    load = zipf(1, 256, 8, 0.5, stream(1, "p"))
    group = Group(288, 1)
    before = balanced(load, 0, group)
    after = settled(before, balanced(redrawn(load, 0.1, stream(1, "d")), 0, group), group)
    gained = np.maximum(copies_of(after, 256) - copies_of(before, 256), 0).sum()
    assert sum(move.experts for move in moves(before, after, 8)) == gained


def test_all_alike_are_placed_evenly():
    load = uniform(2, 256, 8)
    assert _rank_loads(load, balanced(load, 0, Group(32, 8, 4), 8)) == pytest.approx(np.full((2, 32), 0.25))
