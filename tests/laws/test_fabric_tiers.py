"""Laws of a cache tier on the fabric: closed forms of loads, bytes of links, nothing lost, the same in any process."""

import json
import os
import subprocess
import sys
from math import ceil, inf

import pytest
import test_random_scenarios as at_random
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_cache_tiers import LIMITS, Mixing, costs_of, least_blocks, limits_of, seen_by, tier, workloads
from test_cache_tiers import run as run_behind_links
from test_decode_jumps import TICK, Seen
from test_prefix_cache_twin import BLOCK, keys_of

from simulator.build.kv_memory import memories_of, reach_of
from simulator.clock import Clock
from simulator.errors import InputError, InvariantError
from simulator.model.layout import Layout
from simulator.model.transformer import load_model
from simulator.network.fabric import Fabric
from simulator.network.step_network import StepNetwork
from simulator.scenario.load import load
from simulator.serving.batching import BATCHERS
from simulator.serving.engine import Engine
from simulator.serving.fabric_tier import NEVER, FabricTier, Reach
from simulator.serving.jump import StepTicks
from simulator.serving.lone_rank import kind_of
from simulator.serving.lower_tiers import LowerTiers
from simulator.serving.prefix_cache import PrefixCache
from simulator.serving.request import Request
from simulator.serving.swap import Swap, spaces
from simulator.serving.tiers import Copy, OnFabric, TierSection
from simulator.topology.presets import build_topology

UNIT = 4  # tokens
CLOS = build_topology("clos-h100", {"nodes": 3})
PCIE = build_topology("fire-flyer-a100", {"nodes": 4})
ALONE = build_topology("clos-h100", {"nodes": 1})
reused = {"runs": 0, "loads": 0}
FIDELITIES = ["flow", "load", "alpha_beta"]


def network_of(env, topology, fidelity="flow"):
    return Fabric(env, topology, 0) if fidelity == "flow" else StepNetwork(env, topology, 0, fidelity)


def pool_of(topology, unit_bytes, units=100, launch=0, write="through"):
    section = TierSection.model_construct(
        capacity=units * unit_bytes, fabric=OnFabric(), launch=launch, write=write, bandwidth=None, write_bandwidth=None
    )
    return FabricTier(section, unit_bytes, memories_of(topology))


def serve(pool, topology, devices, requests, fidelity="flow", cancels=(), above=list, terms=None, **given):
    """Run (engine, at, prompt, output, keys) on engines of a device each; return them by number, and the network."""
    env, seen, done = Clock(), Seen(), {}
    network = network_of(env, topology, fidelity)
    pool.connect(env, network)
    batcher, limits = given.get("limits", ("continuous", LIMITS["continuous"]()))

    def lower(its):
        part = ((its[0], pool.unit_bytes),)
        return [LowerTiers([*above(), pool], reach=Reach(part, part))]

    engine = Engine(
        "colocated",
        given.get("costs", Mixing(0.0, 0.0, 0.0, 0.0, 100.0, 0.0)),
        StepTicks(given.get("costs", Mixing(0.0, 0.0, 0.0, 0.0, 100.0, 0.0))),
        BATCHERS[batcher].policy,
        limits,
        given.get("blocks", 100),
        BLOCK,
        0,
        prefixes=lambda: PrefixCache(UNIT, BLOCK),
        swap=(lambda: spaces(terms, pool.unit_bytes)) if terms else None,
        lower=lower,
    )
    engines = [
        kind_of(engine)(env, f"colocated-{at}", engine, (at,), seen, lambda r, _: done.update({r.request_id: r}))
        for at in devices
    ]

    def source():
        for index, (where, at, prompt, output, keys) in enumerate(requests):
            yield env.timeout(at - env.now)
            request = Request(index, env.now, prompt, output, keys=keys)
            engines[where].submit(request)
            if index < len(cancels) and cancels[index] is not None:
                env.process(cancel(request, engines[where], cancels[index]))

    def cancel(request, engine, after):
        yield env.timeout(after)
        here = request.request_id not in done
        assert engine.cancel(request) == here

    env.process(source())
    while env.peek() != inf:
        env.step()
        for each in engines:
            each.check()
    for each in engines:
        assert each.used_blocks() == each.running == each.queued == 0
    network.check()
    assert seen.tokens == sum(r.generated for r in done.values())
    return done, network


def keys_in(topology, *places):
    """Return keys of units that lie in these memories, in this order."""
    memories, keys = memories_of(topology), []
    for place in places:
        first = keys[-1] + 1 if keys else 0
        keys.append(next(key for key in range(first, first + 1000) if memories.place(key) == place))
    return tuple(keys)


# a path from memory in node 0 to the first device of node 1, by hand: nanoseconds, and bytes/s of its narrowest link
# (of pairs of devices the NIC; of PCIe nodes what the host passes between a GPU and the NIC)
BY_HAND = {
    "clos": (CLOS, 1150 + 450 + 50 + 1150, 50 * 10**9),
    "pcie": (PCIE, 100 + 290 + 290 + 450 + 50 + 290 + 280 + 290 + 290, 9 * 2**30),
}


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_a_lone_load_takes_launch_and_latency_and_its_bytes_over_the_narrowest_link(name, fidelity):
    topology, latency_ns, narrowest = BY_HAND[name]
    keys, unit_bytes, launch = keys_in(topology, 0, 0), 1_000_003, 7_000
    pool = pool_of(topology, unit_bytes, launch=launch)
    requests = [(0, 0, 10, 1, keys), (1, 10**9, 10, 1, keys)]  # by node 0, then by node 1: 8 of 10 tokens are there
    done, _ = serve(pool, topology, (0, 8), requests, fidelity)
    load_ns = launch + latency_ns + ceil(2 * unit_bytes * 10**9 / narrowest)
    assert done[1].cached_tokens == 8
    assert done[1].first_token_ns - done[1].prefill_start_ns == load_ns + (10 - 8) * 100
    assert (pool.loaded, pool.written, pool.found) == (2, 2, 2)


@pytest.mark.parametrize("nodes", [(1, 2), (1,)])
def test_loads_at_once_share_the_link_that_they_have_in_common(nodes):
    """Two engines that read out of one node have half of its NIC each; alone each has all of it."""
    _, latency_ns, narrowest = BY_HAND["clos"]
    keys, unit_bytes = keys_in(CLOS, 0, 0, 0), 5 * 10**6
    pool = pool_of(CLOS, unit_bytes, launch=1_000)
    requests = [(0, 0, 14, 1, keys), *((at, 10**9, 14, 1, keys) for at in range(1, len(nodes) + 1))]
    done, _ = serve(pool, CLOS, (0, *(8 * node for node in nodes)), requests)
    for index in range(1, len(nodes) + 1):
        load_ns = done[index].first_token_ns - done[index].prefill_start_ns - (14 - 12) * 100
        assert load_ns == 1_000 + latency_ns + len(nodes) * 3 * unit_bytes * 10**9 // narrowest


def test_a_unit_may_be_read_when_its_write_has_ended():
    """Written by node 1 to node 0: read a nanosecond too early it is computed, then it is loaded."""
    _, latency_ns, narrowest = BY_HAND["clos"]
    keys, unit_bytes = keys_in(CLOS, 0), 5 * 10**6
    written_ns = 5 * 100 + 1_000 + latency_ns + unit_bytes * 10**9 // narrowest
    for early in (0, 1):
        pool = pool_of(CLOS, unit_bytes, launch=1_000)
        done, _ = serve(pool, CLOS, (8, 16), [(0, 0, 5, 1, keys), (1, written_ns - early, 5, 1, keys)])
        assert done[1].cached_tokens == (0 if early else 4)


def test_who_gives_up_while_it_loads_is_gone_at_once_and_its_bytes_still_come():
    keys, unit_bytes = keys_in(CLOS, 0, 0), 5 * 10**6
    pool = pool_of(CLOS, unit_bytes)
    requests = [(0, 0, 10, 1, keys), (1, 10**9, 10, 1, keys), (1, 10**9 + 2, 10, 1, keys)]
    done, network = serve(pool, CLOS, (0, 8), requests, cancels=(None, 5_000, None))
    assert done[1].generated == 0
    assert done[2].generated == 1
    assert done[2].cached_tokens == 8
    assert pool.loaded == 4
    into_engine = sum(row[5] for row in network.link_rows(network.env.now) if row[2] == "node1/device0")
    assert into_engine == 4 * unit_bytes


@settings(max_examples=60, deadline=None)
@given(
    workloads(st.just(10**9)),
    costs_of,
    limits_of,
    st.integers(0, 8),
    st.sampled_from(FIDELITIES),
    st.sampled_from(["through", "back"]),
)
def test_over_no_link_and_without_end_it_is_device_memory_without_end(workload, costs, limits, spare, fidelity, write):
    """A device alone finds all in the memory of its own slot: no byte crosses a link, nothing takes time."""
    requests, at = [], 0
    for index, (gap, prompt, output, family, common) in enumerate(workload):
        at += gap
        requests.append((0, at, prompt, output, keys_of(index, family, common, prompt, UNIT)))
    blocks, given = least_blocks(workload), {"costs": costs, "limits": limits}
    pool = pool_of(ALONE, 30_000, 10**6, write=write)
    pooled, network = serve(pool, ALONE, (0,), requests, fidelity, blocks=blocks + spare, **given)
    large = run_behind_links(workload, costs, *limits, blocks * (len(workload) + 1), UNIT, None)
    private = run_behind_links(workload, costs, *limits, blocks + spare, UNIT, [tier(10**6, write=write)])
    assert seen_by(pooled) == seen_by(large) == seen_by(private)
    assert sum(row[5] for row in network.link_rows(network.env.now)) == 0
    reused["runs"] += 1
    reused["loads"] += pool.loaded


def test_device_memory_was_too_small_for_some():
    """The law above would hold of nothing if device memory had room for all of it."""
    if reused["runs"] < 50:
        pytest.skip("runs after the law, in the same process")
    assert reused["loads"] > 0


families = st.lists(  # of prompts that begin alike: (gap, prompt, output, family, common units)
    st.tuples(st.integers(0, 2_000_000), st.integers(9, 60), st.integers(1, 20), st.integers(0, 1), st.integers(2, 15)),
    min_size=4,
    max_size=25,
)
lost = {"runs": 0, "with loads": 0}


@settings(max_examples=120, deadline=None)
@given(
    families,
    costs_of,
    limits_of,
    st.integers(0, 8),
    st.tuples(st.sampled_from([60, 12, 5, 0]), st.integers(0, 20_000), st.sampled_from(["through", "back"])),
    st.one_of(st.none(), st.integers(0, 10)),
    st.lists(st.one_of(st.none(), st.integers(1, 3_000_000)), max_size=25),
    st.booleans(),
    st.sampled_from([3, 2, 1]),
    st.sampled_from(FIDELITIES),
)
def test_nothing_is_lost(workload, costs, limits, spare, terms, host, cancels, swaps, count, fidelity):
    """All end once and with all tokens, and memories send what was loaded and take what was written, byte by byte."""
    units, launch, write = terms
    pool = pool_of(PCIE, 30_000, units, launch, write)
    requests, at = [], 0
    for index, (gap, prompt, output, family, common) in enumerate(workload):
        at += gap
        requests.append((index % count, at, prompt, output, keys_of(index, family, common, prompt, UNIT)))
    swap = Swap.model_construct(bandwidth=10**9, launch=100, group_blocks=2, host=2_000_000, overlap=True)
    done, network = serve(
        pool,
        PCIE,
        (3, 8, 9)[:count],
        requests,
        fidelity,
        cancels,
        (lambda: [tier(host, 10**9)]) if host is not None else list,
        swap if swaps else None,
        costs=costs,
        limits=limits,
        blocks=least_blocks(workload) + spare,
    )
    assert sorted(done) == list(range(len(workload)))
    for index, (_, prompt, output, _, _) in enumerate(workload):
        assert 0 <= done[index].cached_tokens < prompt
        if index >= len(cancels) or cancels[index] is None:
            assert done[index].generated == output
    lost["runs"] += 1
    lost["with loads"] += pool.loaded > 0
    rows = list(network.link_rows(network.env.now))
    assert sum(row[5] for row in rows if row[1].endswith("/memory")) == pool.loaded * pool.unit_bytes
    assert sum(row[5] for row in rows if row[2].endswith("/memory")) == pool.written * pool.unit_bytes


def test_many_of_them_load():
    """The law above would hold of nothing if no request found anything."""
    if lost["runs"] < 50:
        pytest.skip("runs after the law, in the same process")
    assert lost["with loads"] > 0.1 * lost["runs"]


@pytest.mark.parametrize("name", ["llama-3.1-8b", "deepseek-r1"])
@pytest.mark.parametrize(
    "layout", [{"tensor": 2}, {"tensor": 16}, {"pipeline": 3}, {"tensor": 2, "context": 2}, {"data": 4, "tensor": 4}]
)
def test_devices_write_every_byte_once_and_read_what_they_hold(name, layout):
    model, layout, unit_bytes = load_model(name), Layout(**layout), 10**6 + 7
    devices = range(100, 100 + layout.devices)
    copies = max(1, layout.tensor // model.attention.kv_heads)
    for rank in range(layout.data * layout.pipeline):
        reach = reach_of(model, layout, unit_bytes, devices, rank)
        assert sum(size for _, size in reach.writes) == unit_bytes
        assert sum(size for _, size in reach.reads) == copies * unit_bytes
        own = {
            at for at in devices if (at - 100) // (layout.tensor * layout.context) % layout.data == rank % layout.data
        }
        assert {device for device, _ in reach.reads} == own
        assert {device for device, _ in reach.writes} <= own


def test_units_lie_evenly_and_stay_where_they_are_when_there_is_one_memory_more():
    few, more = memories_of(PCIE), memories_of(build_topology("fire-flyer-a100", {"nodes": 6}))
    before, after = ([memories.place(key) for key in range(-3000, 3000)] for memories in (few, more))
    assert all(abs(before.count(place) - 1500) < 200 for place in range(4))
    assert all(new in (old, 4, 5) for old, new in zip(before, after, strict=True))


def test_a_unit_that_was_given_up_and_comes_again_is_there_when_the_later_write_ends():
    """A pool of one unit, 20 us each over the NIC of node 1: unit 0 comes twice, and its first write ends first."""
    env, pool, (first, other) = Clock(), pool_of(CLOS, 10**6, units=1), keys_in(CLOS, 0, 0)
    pool.connect(env, network_of(env, CLOS))
    out = Reach((), ((8, 10**6),))
    pool.put([Copy(first, 0)], out)
    env.run(until=10_000)
    assert pool.put([Copy(other, 0)], out) == [Copy(first, NEVER)]
    assert pool.put([Copy(first, 0)], out) == [Copy(other, NEVER)]
    ends = []
    while env.peek() != inf:
        env.step()
        pool.check()
        if not ends and pool.offers(first, env.now * TICK):
            ends.append(env.now)
    # alone for 10 us, 10 us of it left: three share until that has ended at 40 us, two until all has, 60 us of bytes
    assert ends == [60_000 + BY_HAND["clos"][1]]


def test_check_sees_bytes_that_no_flow_carries_and_units_that_never_come():
    env, pool = Clock(), pool_of(CLOS, 1000)
    pool.connect(env, network_of(env, CLOS))
    pool.put([Copy(1, 0)], Reach((), ((0, 1000),)))
    pool.check()
    pool.moved_bytes -= 1
    with pytest.raises(InvariantError, match="999 bytes of flows, 1000 of units"):
        pool.check()
    pool.moved_bytes += 1
    pool._writing.clear()
    with pytest.raises(InvariantError, match="1 units to come, 0 written"):
        pool.check()


# -- whole scenarios --------------------------------------------------------------------------------------------------

tiers_on_fabric = st.fixed_dictionaries(
    {
        "capacity": st.integers(1, 4000).map(lambda tokens: f"{tokens * at_random.TOKEN_BYTES} B"),
        "fabric": st.sampled_from([{}, {"plane": "fabric"}, {"plane": "fabric", "lane": 1}]),
        "write": st.sampled_from(["back", "through"]),
        "launch": st.sampled_from(["0 ns", "10 us"]),
    }
)
HOST = {"capacity": f"{100 * at_random.TOKEN_BYTES} B", "bandwidth": "25 GB/s"}


def on_fabric(drawn):
    """Put a tier on the fabric below every prefix cache, and below host memory as well where that is drawn.

    Prompts begin alike, so that what one engine has written another loads.
    """
    value, tier, host, fidelity = drawn
    serving = {key: part for key, part in value["serving"].items() if key != "role_switch"}
    for role in ("colocated", "prefill", "decode"):
        if role in serving:
            groups = serving[role] if isinstance(serving[role], tuple) else (serving[role],)
            caching = {"unit_tokens": 16, "tiers": ([HOST] if host else []) + [tier]}
            groups = tuple(group | {"kv": group["kv"] | {"prefix_cache": caching}} for group in groups)
            serving[role] = groups if isinstance(serving[role], tuple) else groups[0]
    workload = value["workload"] | {"prefixes": {"count": 3, "tokens": 64}}
    return value | {"workload": workload, "serving": serving, "network": {"fidelity": fidelity}}


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(value=st.tuples(at_random.scenarios, tiers_on_fabric, st.booleans(), st.sampled_from(FIDELITIES)).map(on_fabric))
def test_invariants_of_scenarios_at_random(tmp_path_factory, value):
    found = at_random.run(tmp_path_factory.mktemp("fabric"), value, "once")
    if found is not None:
        at_random.hold(value, found)


SCENARIO = {
    "schema": 1,
    "seed": 3,
    "topology": {"preset": "clos-h100", "nodes": 2},
    "workload": {
        "requests": 40,
        "arrivals": {"poisson": {"rate": "20 / s"}},
        "prompt_tokens": 900,
        "output_tokens": 20,
        "sessions": {"turns": 4, "think_time": {"exponential": {"mean": "200 ms"}}, "max_tokens": 20000},
    },
    "serving": {
        "model": "llama-3.1-8b",
        "router": "round_robin",
        "colocated": {
            "instances": 4,
            "layout": {"tensor": 4},
            "kv": {"prefix_cache": {"tiers": [{"capacity": "1 TiB", "fabric": {}, "write": "through"}]}},
        },
    },
}
RUN = "import sys; from simulator import load, simulate; simulate(load(sys.argv[1]), out=sys.argv[2])"


def test_a_run_is_the_same_in_any_process(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text(json.dumps(SCENARIO))
    runs = []
    for seed in ("1", "2"):
        command = [sys.executable, "-c", RUN, str(file), str(tmp_path / seed)]
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        runs.append(subprocess.Popen(command, env=environment))
    assert [run.wait() for run in runs] == [0, 0]
    for table in ("requests", "links"):
        first, second = ((tmp_path / seed / f"{table}.parquet").read_bytes() for seed in ("1", "2"))
        assert first == second
    said = [json.loads((tmp_path / seed / "summary.json").read_text()) for seed in ("1", "2")]
    assert said[0] == said[1]
    [tier] = said[0]["tiers"]["colocated"]
    assert tier["loaded_bytes"] == tier["found_tokens"] * at_random.TOKEN_BYTES > 0


def changed(**more):
    value = json.loads(json.dumps(SCENARIO))
    caching = value["serving"]["colocated"]["kv"]["prefix_cache"]
    caching["tiers"][0] |= more.pop("tier", {})
    caching["tiers"] += more.pop("below", [])
    caching |= more.pop("caching", {})
    return value | more


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (changed(caching={"load": "faster"}), r"prefix_cache\.load: when a load ends cannot be foretold"),
        (changed(caching={"prefetch": True}), r"prefix_cache\.prefetch: when a load ends cannot be foretold"),
        (changed(tier={"bandwidth": "1 GB/s"}), r"tiers\[0\]\.bandwidth: does not go with `fabric`"),
        (changed(tier={"fabric": None}), r"tiers\[0\]: `bandwidth` is needed, or `fabric`"),
        (changed(below=[HOST]), r"tiers\[0\]\.fabric: memory of all nodes is the last tier"),
        (changed(tier={"fabric": {"plane": "fabrik"}}), r"tiers\[0\]\.fabric\.plane: unknown plane"),
        (
            changed(network={"fidelity": "load"}, faults=[{"what": "nic", "name": "node0/nic0", "at": "1 s"}]),
            r"faults\[0\]: with a cache tier on the fabric dead links go with `network.fidelity: flow`",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, value, what):
    from simulator.build.run import plan

    (tmp_path / "s.yaml").write_text(json.dumps(value))
    with pytest.raises(InputError, match=what):
        plan(load(tmp_path / "s.yaml"))


def test_what_has_no_effect_is_said(tmp_path):
    from simulator import simulate

    (tmp_path / "s.yaml").write_text(json.dumps(changed(tier={"shared": True, "fabric": {"lane": 1}})))
    notes = simulate(load(tmp_path / "s.yaml"), out=tmp_path / "out").summary["warnings"]
    assert any("tiers.0.shared has no effect: all engines share" in note for note in notes)
    assert any("tiers.0.fabric.lane has no effect" in note for note in notes)
