"""Loads of an exchange around dead links against the twin that looks at every pair."""

from contextlib import suppress
from functools import cache
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.network import patterns
from simulator.network.detour import Alive
from simulator.network.patterns import Exchange
from simulator.topology import build_topology
from simulator.topology.spreading import shard_loads

FABRICS = {
    "clos-h100": {"nodes": 4, "devices_per_node": 2, "switch": {"radix": 4}, "taper": 2},
    "rail-only-h100": {"nodes": 5, "devices_per_node": 4},
    "multi-plane-h800": {"nodes": 3},
    "cloudmatrix384": {"nodes_per_supernode": 3},
    "torus-8x8x8": {"dimensions": [3, 3, 3]},
}


@cache
def built(fabric):
    return build_topology(fabric, FABRICS[fabric])


def pair_by_pair(topology, exchange, dead):
    """Return the loads of every pair of an exchange over what is left, one after the other."""
    blocks = exchange.blocks or exchange.devices
    ends = zip(exchange.devices, blocks, strict=True)
    shards = [(a, b, exchange.size_bytes) for (a, here), (b, there) in permutations(ends, 2) if here != there]
    return shard_loads(Alive(topology, dead), shards, exchange.plane)


@pytest.mark.parametrize("fabric", FABRICS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_around_dead_links_an_exchange_loads_what_its_pairs_do(fabric, data):
    topology = built(fabric)
    everyone = range(len(topology.sites))
    devices = sorted(data.draw(st.sets(st.sampled_from(everyone), min_size=2, max_size=12)))
    nodes = [topology.sites[device].node for device in devices]
    exchange = Exchange(devices, 1000.0, None, data.draw(st.sampled_from([None, nodes])))
    links = np.flatnonzero(exchange.built(topology)).tolist() or [0]
    dead = data.draw(st.sets(st.sampled_from(links), min_size=1, max_size=3))
    try:
        expected = pair_by_pair(topology, exchange, dead)
    except InputError:
        with pytest.raises(InputError):
            exchange.around(topology, dead)
        return
    assert exchange.around(topology, dead) == pytest.approx(expected, rel=1e-12, abs=1e-9)


@pytest.mark.parametrize("fabric", ["cloudmatrix384", "torus-8x8x8"])
def test_only_pairs_of_a_device_that_lost_a_link_are_looked_at(fabric, monkeypatch):
    topology = built(fabric)
    devices = list(range(len(topology.sites)))
    exchange = Exchange(devices, 1000.0)
    way = topology.paths(3, devices[-1])[0]
    looked_at = []

    def shards(topology, given, plane):
        looked_at.extend(given)
        return shard_loads(topology, looked_at, plane)

    monkeypatch.setattr(patterns, "shard_loads", shards)
    with suppress(InputError):  # on the torus it was the only one
        exchange.around(topology, {way[0]})
    assert {(a, b) for a, b, _ in looked_at} == {(a, b) for a, b in permutations(devices, 2) if 3 in (a, b)}
