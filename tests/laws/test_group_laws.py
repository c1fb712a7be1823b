"""Groups of engines: what is split into groups, named, ordered or placed on devices otherwise stays what it was."""

import json

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_random_scenarios import linear, one_rank, pool, run, some_ranks, transfers, workloads

from simulator.serving.routing import ROUTERS

SMALL = {"device": "l40s", "nodes": 2, "nvlink": {"bandwidth": "31.5 GB/s", "latency": "2 us"}}
"""Nodes of eight L40S, which reach each other through their host."""
MIXED = {"preset": "clos-h100", "nodes": 4, "devices": [SMALL]}
quick = settings(
    max_examples=20,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def groups(draw, section, name):
    """Return a section split into groups at random places, named or not, its router in one of them at most."""
    counts, left = [], section["instances"]
    while left:
        counts.append(draw(st.integers(1, left)))
        left -= counts[-1]
    router = section.pop("router", None)
    parts = [section | {"instances": count} for count in counts]
    if name:
        parts = [part | {"name": f"g{index}"} for index, part in enumerate(parts)]
    if router is not None:
        parts[draw(st.integers(0, len(parts) - 1))]["router"] = router
    return parts


def without_shared_tiers(section):
    """Engines of one group share tiers, those of another have their own: here all have their own."""
    caching = section["kv"].get("prefix_cache", {})
    if "tiers" in caching:
        own = [tier | {"shared": False} for tier in caching["tiers"] if "fabric" not in tier]
        caching["tiers"] = own  # on the fabric all of a group share
        if not own:
            del caching["tiers"]
    return section


def whole(draw):
    if draw(st.booleans()):
        pools = {"colocated": draw(pool(some_ranks))}
    else:
        pools = {role: draw(pool(one_rank)) for role in ("prefill", "decode")}
        pools["kv_transfer"] = draw(transfers)
    serving = {
        "model": "llama-3.1-8b",
        "cost": {"linear": draw(linear)},
        "router": draw(st.sampled_from(sorted(ROUTERS))),
    }
    for role in pools.keys() & {"colocated", "prefill", "decode"}:
        without_shared_tiers(pools[role])
    return {
        "schema": 1,
        "seed": draw(st.integers(0, 100)),
        "topology": {"preset": "clos-h100", "nodes": 4},
        "workload": draw(workloads),
        "serving": serving | pools,
        "slo": {"ttft": "100 ms", "tpot": "20 ms"},
    }


def plain(found, table, names):
    """Return a table's rows, instances by the names that `names` gives them."""
    rows = found.table(table).to_pylist()
    return [{key: names.get(value, value) for key, value in row.items()} for row in rows]


@quick
@given(data=st.data())
def test_groups_that_are_alike_are_one_group(tmp_path_factory, data):
    value = whole(data.draw)
    folder = tmp_path_factory.mktemp("groups")
    one = run(folder, value, "one")
    by_name = "session_affinity" in json.dumps(value)  # a session hashes to a name
    for name in (False,) if by_name else (False, True):
        split = json.loads(json.dumps(value))
        names = {}
        for role in [role for role in ("colocated", "prefill", "decode") if role in split["serving"]]:
            parts = split["serving"][role] = groups(data.draw, split["serving"][role], name)
            counts = [part["instances"] for part in parts]
            each = [f"{role}-g{group}-{index}" for group, count in enumerate(counts) for index in range(count)]
            names |= {own: f"{role}-{index}" for index, own in enumerate(each)}
        found = run(folder, split, f"split-{name}")
        assert (found is None) == (one is None)
        if one is None or found is None:
            continue
        for table in ("requests", "instances"):
            assert plain(found, table, names) == plain(one, table, {})
        if not name:  # the very same rows
            assert found.manifest["digest"] == one.manifest["digest"]


@quick
@given(data=st.data())
def test_the_only_kind_of_devices_need_not_be_named(tmp_path_factory, data):
    value = whole(data.draw)
    folder = tmp_path_factory.mktemp("device")
    named = json.loads(json.dumps(value))
    named["topology"]["devices"] = [{"device": "h100-sxm-80gb", "nodes": 3}]
    for role in [role for role in ("colocated", "prefill", "decode") if role in named["serving"]]:
        named["serving"][role]["device"] = "h100-sxm-80gb"
    found = [run(folder, each, name) for name, each in (("plain", value), ("named", named))]
    assert (found[0] is None) == (found[1] is None)
    if found[0] is not None:
        assert found[0].manifest["digest"] == found[1].manifest["digest"]


def mixed(router, **slo):
    """A fleet of two fast and four cheap engines that are busy, timed by their own devices' sheets."""
    return {
        "schema": 1,
        "seed": 3,
        "topology": MIXED,
        "workload": {
            "requests": 300,
            "arrivals": {"poisson": {"rate": "30 / s"}},
            "prompt_tokens": {"exponential": {"mean": 700}},
            "output_tokens": {"exponential": {"mean": 60}},
        },
        "serving": {
            "model": "llama-3.1-8b",
            "router": router,
            "colocated": [
                {"name": "fast", "device": "h100-sxm-80gb", "instances": 2},
                {"name": "cheap", "device": "l40s", "instances": 4},
            ],
        },
        "slo": slo,
    }


def alone(value, group):
    [section] = [each for each in value["serving"]["colocated"] if each["name"] == group]
    return value | {"serving": value["serving"] | {"colocated": section}}


def test_what_the_cheap_engines_can_do_costs_nothing_more(tmp_path):
    # With objectives that they always meet, the rows are those of the cheap engines alone, and so is the bill of who
    # served anything; the dear ones alone would have cost more for the same requests within the same objectives.
    value = mixed("cost_aware", ttft="1 h", tpot="1 h")
    both = run(tmp_path, value, "both")
    cheap, dear = (run(tmp_path, alone(value, group), group) for group in ("cheap", "fast"))
    assert both.requests.equals(cheap.requests)
    assert both.summary["utilisation"]["colocated"]["groups"]["fast"]["busy"] == 0
    bill = cheap.summary["price"]["dollars_per_h"]
    assert bill == 4 * 0.79
    assert bill < dear.summary["price"]["dollars_per_h"] == 2 * 2.99
    assert both.summary["price"]["dollars_per_h"] == bill + 2 * 2.99
    for found in (both, dear):
        assert found.summary["goodput"]["fraction"] == 1


def test_objectives_that_nobody_meets_leave_the_fastest(tmp_path):
    rows = [run(tmp_path, mixed(router, ttft="1 ns"), router).requests for router in ("cost_aware", "slo_aware")]
    assert rows[0].equals(rows[1])


def test_a_tighter_objective_sends_more_to_the_dear_engines(tmp_path):
    dear = []
    for index, ttft in enumerate(("10 s", "300 ms", "150 ms", "80 ms", "1 ns")):
        rows = run(tmp_path, mixed("cost_aware", ttft=ttft), f"run{index}").requests
        dear.append(int(rows.prefill_instance.str.startswith("colocated-fast").sum()))
    assert dear == sorted(dear)
    assert dear[0] == 0 < dear[2] < dear[4]


def test_the_order_of_groups_decides_ties_alone(tmp_path):
    # One engine of each kind, each with a time of its own: no ties under slo_aware.
    value = mixed("slo_aware", ttft="200 ms")
    value["workload"]["arrivals"] = {"poisson": {"rate": "8 / s"}}
    for section in value["serving"]["colocated"]:
        section["instances"] = 1
    other = json.loads(json.dumps(value))
    other["serving"]["colocated"].reverse()
    found = [run(tmp_path, each, name) for name, each in (("one", value), ("other", other))]
    assert found[0].requests.equals(found[1].requests)
    assert set(found[0].requests.prefill_instance) == {"colocated-fast-0", "colocated-cheap-0"}


def test_a_group_is_timed_as_if_its_devices_were_all(tmp_path):
    # A pool on one kind of a mixed cluster gives the rows that it gives on a cluster of that kind alone.
    for group, device in (("fast", "h100-sxm-80gb"), ("cheap", "l40s")):
        value = alone(mixed("least_loaded"), group)
        pure = value | {"topology": {"preset": "clos-h100", "nodes": 2, "device": device}}
        found = [run(tmp_path / group, each, name) for name, each in (("mixed", value), ("pure", pure))]
        assert found[0].requests.equals(found[1].requests)
        assert found[0].table("power").equals(found[1].table("power"))
