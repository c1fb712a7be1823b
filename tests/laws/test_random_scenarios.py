"""Whole scenarios at random: every invariant holds throughout, every request has one outcome, and a run is its seed.

Each section is drawn from what its registry or schema offers, so that a new policy is covered when it is registered.
Memory is tight on purpose: preemption, blocked queues and back-pressure are common.
"""

import json
from functools import partial
from itertools import pairwise
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator import execution
from simulator.build import run as running
from simulator.build import serving as building
from simulator.errors import InputError
from simulator.model.transformer import load_model
from simulator.results.run import load_run
from simulator.scenario.load import load
from simulator.serving.batching import BATCHERS
from simulator.serving.eviction import EVICTIONS
from simulator.serving.instance import Instance
from simulator.serving.lone_rank import LoneRank, kind_of
from simulator.serving.queueing import ORDERS
from simulator.serving.role_policies import SWITCHES
from simulator.serving.routing import ROUTERS

BLOCK = 16
TOKEN_BYTES = load_model("llama-3.1-8b").kv_bytes_per_token(2)


def duration(low_us, high_us):
    return st.integers(low_us, high_us).map(lambda us: f"{us} us")


linear = st.fixed_dictionaries(
    {
        "prefill": st.fixed_dictionaries({"fixed": duration(100, 5000), "per_token": duration(0, 20)}),
        "decode": st.fixed_dictionaries(
            {"fixed": duration(100, 5000), "per_sequence": duration(0, 50), "per_context_token": duration(0, 2)}
        ),
    }
)
lengths = st.one_of(
    st.fixed_dictionaries({"constant": st.fixed_dictionaries({"value": st.integers(1, 120)})}),
    st.fixed_dictionaries(
        {
            "lognormal": st.fixed_dictionaries(
                {"median": st.integers(2, 60), "sigma": st.sampled_from([0.3, 1.0]), "max": st.just(150)}
            )
        }
    ),
)
arrivals = st.one_of(
    st.integers(1, 400).map(lambda rate: {"poisson": {"rate": f"{rate} / s"}}),
    st.integers(1, 400).map(lambda rate: {"gamma": {"rate": f"{rate} / s", "cv": 3.0}}),
    st.integers(1, 12).map(lambda clients: {"closed_loop": {"clients": clients}}),
)
workloads = st.fixed_dictionaries(
    {
        "requests": st.integers(1, 60),
        "arrivals": arrivals,
        "prompt_tokens": lengths,
        "output_tokens": lengths,
        "prediction": st.sampled_from([{}, {"error": 0.5}]),
    },
    optional={
        "tenants": st.just({"a": 3, "b": 1}),
        "samples": st.one_of(st.just(1), st.just({"uniform": {"low": 1, "high": 4}})),
        "priorities": st.just({"0": 1, "1": 1, "-3": 0.5}),
        "prefixes": st.fixed_dictionaries({"count": st.integers(1, 4), "tokens": st.integers(1, 80)}),
        "sessions": st.fixed_dictionaries(
            {
                "turns": st.integers(1, 5),
                "think_time": duration(1, 300_000).map(lambda mean: {"exponential": {"mean": mean}}),
                "max_tokens": st.just(600),
            }
        ),
    },
).map(lambda drawn: drawn if "closed_loop" not in drawn["arrivals"] else drawn | {"sessions": None})


routers = st.sampled_from([*sorted(ROUTERS), *({name: {"tiers": True}} for name in ("prefix_aware", "slo_aware"))])
caches = st.fixed_dictionaries(
    {"eviction": st.sampled_from([*sorted(EVICTIONS), {"ttl": {"lifetime": "30 ms"}}])},
    optional={
        "unit_tokens": st.sampled_from([16, 32]),
        "pin": st.just({"units": 1, "share": 0.05}),
        "tiers": st.lists(
            st.fixed_dictionaries(
                {
                    "capacity": st.integers(1, 400).map(lambda tokens: f"{tokens * TOKEN_BYTES} B"),
                    "bandwidth": st.sampled_from(["1 GB/s", "25 GB/s"]),
                    "write": st.sampled_from(["back", "through"]),
                    "shared": st.booleans(),
                },
                optional={"write_bandwidth": st.sampled_from(["1 GB/s", "25 GB/s"])},
            ),
            min_size=1,
            max_size=2,
        ),
        "load": st.sampled_from(["always", "faster"]),
        "prefetch": st.booleans(),
    },
)


def some_on_the_fabric(drawn):
    """Let the last tier of some caches be memory of all nodes; when its loads end cannot be foretold."""
    caching, moves = drawn
    if not moves or "tiers" not in caching:
        return caching
    *above, last = caching["tiers"]
    last = {"capacity": last["capacity"], "write": last["write"], "fabric": {}}
    rest = {key: value for key, value in caching.items() if key not in ("load", "prefetch")}
    return rest | {"tiers": [*above, last]}


caches = st.tuples(caches, st.booleans()).map(some_on_the_fabric)
preemptions = st.one_of(
    st.just("recompute"),
    st.fixed_dictionaries(
        {
            "bandwidth": st.sampled_from(["1 GB/s", "25 GB/s"]),
            "host": st.integers(1, 400).map(lambda tokens: f"{tokens * TOKEN_BYTES} B"),
            "overlap": st.booleans(),
        },
        optional={"group_blocks": st.integers(1, 8)},
    ).map(lambda terms: {"swap": terms}),
)


ANY = tuple(sorted(BATCHERS))
JOINED = tuple(name for name in ANY if not BATCHERS[name].to_completion)  # by one request after the other


def pool(layouts, batchers=ANY):
    return st.fixed_dictionaries(
        {
            "instances": st.integers(1, 3),
            "layout": st.sampled_from(layouts),
            "batcher": st.sampled_from(batchers).flatmap(limited),
            "kv": st.fixed_dictionaries(
                {
                    "block_tokens": st.sampled_from([1, BLOCK]),
                    "blocks": st.integers(300, 700),
                    "watermark": st.sampled_from([0.0, 0.01]),
                },
                optional={"prefix_cache": caches},
            ),
        },
        optional={
            "router": routers,
            "queue": st.sampled_from(sorted(ORDERS)),
            "preemption": preemptions,
        },
    )


def limited(name):
    """A batcher by name, with limits of its own so small that they matter."""
    seats = st.integers(1, 12)
    tokens = st.integers(12, 200)
    return st.tuples(seats, tokens).map(lambda found: {name: {"max_running": found[0], "max_batch_tokens": found[1]}})


one_rank = [{}, {"tensor": 2}]
some_ranks = [*one_rank, {"tensor": 2, "context": 2}, {"data": 2}, {"pipeline": 2}]
transfers = st.one_of(
    st.fixed_dictionaries(
        {"mode": st.just("layerwise"), "layers_per_message": st.sampled_from([1, 7, 40])},
        optional={"reserve": st.sampled_from(["before_prefill", "on_arrival", "on_prefill_start"])},
    ),
    st.fixed_dictionaries(
        {},
        optional={"reserve": st.sampled_from(["before_prefill", "on_arrival", "on_prefill_start", "on_prefill_end"])},
    ),
).flatmap(
    lambda rules: st.fixed_dictionaries(
        {},
        optional={
            "direction": st.just("pull"),
            "lane": st.just(1),
            "plane": st.just("fabric"),
            "fallback": st.one_of(
                duration(0, 50_000).map(lambda after: {"after": after}),
                st.integers(1, 4).map(lambda waiting: {"waiting": waiting}),
            ),
        },
    ).map(lambda more: rules | more)
)
switches = st.fixed_dictionaries(
    {"policy": st.sampled_from(sorted(SWITCHES)), "interval": duration(5000, 100_000), "delay": duration(0, 50_000)}
)
KINDS = ("h100-sxm-80gb", "l40s")
SMALL = {"device": "l40s", "nodes": 2, "nvlink": {"bandwidth": "31.5 GB/s", "latency": "2 us"}}


def sections(layouts, batchers=ANY):
    """The engines of a role: a section, or two groups on devices of any kind, one router at most among them."""

    def together(drawn):
        pools, kinds, names = drawn
        found = []
        for index, (section, kind) in enumerate(zip(pools, kinds, strict=True)):
            named = {"name": f"g{index}"} if names else {}
            routers = {"router": section.get("router", "random")} if index and "router" in section else {}
            rest = {key: value for key, value in section.items() if key != "router"}
            found.append(rest | named | routers | {"device": kind, "instances": min(2, section["instances"])})
        return tuple(found)

    pair = st.tuples(pool(layouts, batchers), pool(layouts, batchers))
    groups = st.tuples(pair, st.tuples(*[st.sampled_from(KINDS)] * 2), st.booleans()).map(together)
    return st.one_of(pool(layouts, batchers), groups)


def sent(section):
    """Leave out of who sends the first tokens, and how many together, what a section of one pool or two may not say."""
    if "colocated" in section:
        section.pop("first_token", None)
    elif section.get("first_token") != "decode":
        section.pop("stream_interval", None)
    return section


serving = st.one_of(
    st.fixed_dictionaries({"colocated": sections(some_ranks)}),
    st.fixed_dictionaries(
        {
            "prefill": sections(some_ranks),
            "decode": sections(some_ranks, JOINED),
        },
        optional={"kv_transfer": transfers, "role_switch": switches},
    ),
).flatmap(
    lambda pools: st.fixed_dictionaries(
        {
            "model": st.sampled_from(["llama-3.1-8b", "gpt-oss-20b"]),
            "cost": linear.map(lambda constants: {"linear": constants}),
        },
        optional={
            "router": routers,
            "stream_interval": st.sampled_from([1, 3, 20]),
            "first_token": st.sampled_from(["prefill", "decode", "decode"]),
            "request_overhead": duration(0, 3000),
            "router_view": st.just({"report_interval": "7 ms", "counts_sent": True}),
            "gateway": st.just({"service": "300 us", "workers": 2}),
            "timeout": st.fixed_dictionaries(
                {}, optional={"queue": duration(5000, 90_000), "total": duration(9000, 300_000)}
            ),
            "cancel": st.just({"fraction": 0.3, "after_tokens": 5}),
        },
    ).map(lambda rest: sent(rest | pools))
)


def placed(value):
    """Give a scenario with groups a cluster of two kinds, and every section one of them; groups keep their roles."""
    roles = [role for role in ("colocated", "prefill", "decode") if role in value["serving"]]
    if not any(isinstance(value["serving"][role], tuple) for role in roles):
        return value
    serving = {key: part for key, part in value["serving"].items() if key != "role_switch"}
    for index, role in enumerate(roles):
        if isinstance(serving[role], dict):
            serving[role] = serving[role] | {"device": KINDS[index % 2]}
    return value | {"serving": serving, "topology": {"preset": "clos-h100", "nodes": 4, "devices": [SMALL]}}


scenarios = st.fixed_dictionaries(
    {
        "schema": st.just(1),
        "seed": st.integers(0, 1000),
        "topology": st.just({"preset": "clos-h100", "nodes": 2}),
        "workload": workloads,
        "serving": serving,
        "slo": st.just({"ttft": "100 ms", "tpot": "20 ms"}),
    },
    optional={"until": duration(1000, 400_000)},
).map(placed)


def run(folder, value, name):
    """Run a scenario with its invariants checked every sixteen events; None when it is refused."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(value))
    try:
        scenario = load(file)
        with mock.patch.object(execution, "BEAT_EVENTS", 16):
            running.run_scenario(scenario, folder / name, check=True)
    except InputError:
        return None
    found = load_run(folder / name)
    found.verify()
    return found


def hold(value, found):
    """What is true of every run, whatever the policies."""
    rows = found.requests
    summary = found.summary["requests"]
    assert sorted(rows.request_id) == list(range(len(rows)))
    if "until" not in value:
        assert len(rows) == value["workload"]["requests"]
        assert summary["unfinished"] == 0
    assert sum(rows.outcome.value_counts()) == len(rows) == summary["total"]
    done = rows[rows.outcome == "finished"]
    assert len(done) == summary["finished"]
    most = 4 if value["workload"].get("samples", 1) != 1 else 1
    assert most > 1 or (done.generated_tokens == done.output_tokens).all()
    assert (done.generated_tokens <= most * done.output_tokens).all()
    assert (done.generated_tokens >= done.output_tokens).all()
    times = ["arrival_ns", "queued_ns", "prefill_start_ns", "prefill_end_ns", "first_token_ns", "finish_ns"]
    for earlier, later in pairwise(times):
        assert (done[earlier] <= done[later]).all()
    assert (rows.generated_tokens <= most * rows.output_tokens).all()
    if "decode" in value["serving"]:  # each position of a prompt moves once, whatever was preempted meanwhile
        moved = done[done.decode_instance.fillna("").str.startswith("decode")]
        assert (moved.kv_transfer_bytes == moved.prompt_tokens.map(partial(cache_bytes, value["serving"]))).all()
    instances = found.instances
    assert int(instances.output_tokens.sum()) == int(rows.generated_tokens.sum())
    for _, windows in instances.groupby("instance"):
        assert (windows.start_ns.iloc[1:].to_numpy() == windows.end_ns.iloc[:-1].to_numpy()).all()
        assert (windows.prefill_ns + windows.decode_ns + windows.idle_ns == windows.end_ns - windows.start_ns).all()
        assert (windows.kv_blocks_max <= windows.kv_total_blocks).all()


def cache_bytes(serving, prompt):
    """Bytes of a prompt's keys and values that move: of layers with a window, those that the next token sees.

    Every position of every layer moves when no engine gives back what has left a window.
    """
    model = load_model(serving["model"])
    window = model.attention.window
    pools = [pool for role in ("prefill", "decode") for pool in groups_of(serving[role])]
    sheds = any("tiers" not in pool["kv"].get("prefix_cache", {}) and "context" not in pool["layout"] for pool in pools)
    if window is None or not sheds:
        return prompt * model.kv_bytes_per_token(2)
    positions = (model.layers - window.layers) * prompt + window.layers * min(prompt, window.tokens - 1)
    return positions * model.kv_bytes_per_token(2) // model.layers


def groups_of(section):
    return section if isinstance(section, tuple) else (section,)


counted = {"run": 0, "refused": 0}


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(value=scenarios)
def test_invariants(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("random")
    found = run(folder, value, "once")
    counted["run" if found else "refused"] += 1
    if found is None:
        return
    hold(value, found)
    if value["seed"] % 5 == 0:  # a run is its seed
        assert run(folder, value, "twice").manifest["digest"] == found.manifest["digest"]
    if value["seed"] % 5 == 1:  # an engine of one rank does as one of any number does
        kinds = []

        def of_any(engine):
            kinds.append(kind_of(engine))
            return Instance

        with mock.patch.object(building, "kind_of", side_effect=of_any):
            general = run(folder, value, "general")
        processes = kinds.count(LoneRank)  # a process begins with an event
        assert general.manifest["digest"] == found.manifest["digest"]
        assert general.manifest["events"] == found.manifest["events"] + processes
        assert general.summary["itl"] == found.summary["itl"]


def test_most_scenarios_are_run():
    """The law above would hold of nothing if all were refused."""
    if counted["run"] + counted["refused"] < 50:
        pytest.skip("runs after the scenarios at random, in the same process")
    assert counted["run"] > 0.7 * (counted["run"] + counted["refused"])


@pytest.mark.nightly
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(value=scenarios)
def test_invariants_at_length(tmp_path_factory, value):
    test_invariants.hypothesis.inner_test(tmp_path_factory, value)
