"""Engines in groups on devices of several kinds: what is refused and where, what is written and what a run tells."""

from pathlib import Path

import pytest

from simulator import load, simulate
from simulator.build.explanation import Ask, explain_scenario
from simulator.build.serving import plan
from simulator.device.accelerator import load_accelerator
from simulator.errors import InputError
from simulator.scenario.load import resolved

MIXED = """
schema: 1
topology:
  preset: clos-h100
  nodes: 4
  devices: [{device: l40s, nodes: 2, nvlink: {bandwidth: 31.5 GB/s, latency: 2 us}}]
workload:
  requests: 40
  arrivals: {poisson: {rate: 20 / s}}
  prompt_tokens: {exponential: {mean: 500}}
  output_tokens: {exponential: {mean: 50}}
serving:
  model: llama-3.1-8b
  colocated:
    - {name: big, device: h100-sxm-80gb, instances: 2, layout: {tensor: 2}}
    - {name: small, device: l40s, instances: 4}
slo: {ttft: 1 s, tpot: 60 ms}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mixed.yaml"
    path.write_text(MIXED)
    return path


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (
            "serving.colocated[1].device=null",
            r"colocated\[1\].device: the cluster has devices of 2 kinds.*h100-sxm-80gb, l40s",
        ),
        ("serving.colocated[1].device=a10", r"colocated\[1\].device: the cluster has no a10"),
        ("serving.colocated[1].device=l40", r"colocated\[1\].device: .*did you mean 'l40s'"),
        ("serving.colocated[1].instances=17", r"17 devices of l40s \(colocated-small 17 x 1\), the topology has 16"),
        ("serving.colocated[0].layout.tensor=3", r"serving.colocated\[0\].layout.tensor"),
        ("serving.colocated[1].name=big", r"colocated\[1\].name: another group of colocated is called so"),
        (
            "serving.colocated=[{instances: 1}, {instances: 1, name: colocated}]",
            r"colocated\[1\].name: another group of colocated is called so",
        ),
        ("serving.colocated[1].name=Big", r"colocated\[1\].name: 'Big' is no name"),
        ("serving.colocated.instances=3", r"colocated is a list of 2: say which item, such as serving.colocated\[0\]"),
        ("serving.colocated=[]", r"serving.colocated: expected at least 1 items"),
        (
            "topology.devices[0].nvlink=null",
            r"devices\[0\].device: l40s has 31.5 GB/s each .* the other nodes 450 GB/s",
        ),
        ("topology.devices[0].nodes=5", r"topology.devices: 5 nodes are named, the cluster has 4"),
        ("topology={preset: cloudmatrix384, devices: []}", r"unknown key 'devices'"),
    ],
)
def test_what_does_not_fit_is_said_where_it_stands(file: Path, sets: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load(file, [sets])


def test_one_router_chooses_among_all_engines_of_a_role(file: Path) -> None:
    one = load(file, ["serving.colocated[1].router=round_robin"])
    assert one.serving is not None
    router, at = one.serving.router_of("colocated")
    assert (router.name, at) == ("round_robin", "serving.colocated[1].router")
    load(file, ["serving.colocated[0].router=round_robin", "serving.colocated[1].router=round_robin"])
    with pytest.raises(InputError, match=r"colocated\[1\].router: one router chooses among all engines"):
        load(file, ["serving.colocated[0].router=random", "serving.colocated[1].router=round_robin"])


def test_engines_of_several_groups_keep_their_role(file: Path) -> None:
    groups = "[{device: l40s, instances: 1}, {device: h100-sxm-80gb, instances: 1}]"
    sets = [f"serving.prefill={groups}", "serving.decode={device: l40s, instances: 2}"]
    load(file, sets)
    with pytest.raises(InputError, match="role_switch: engines change roles between pools of one group each"):
        load(file, [*sets, "serving.role_switch={policy: balance, interval: 1 s}"])


def test_a_resolved_file_says_the_same(file: Path, tmp_path: Path) -> None:
    scenario = load(file)
    again = tmp_path / "again.yaml"
    again.write_text(resolved(scenario))
    assert load(again) == scenario
    assert load(file, ["serving.colocated[0].instances=3"]).serving.groups[0].pool.instances == 3  # type: ignore[union-attr]


def test_every_group_has_its_own_devices_memory_and_price(file: Path) -> None:
    blueprint = plan(load(file))
    big, small = blueprint.groups
    sites = blueprint.topology.sites
    for group in (big, small):
        assert {sites[at].device for lease in group.leases for at in lease.devices} == {group.device}
        assert group.members[0].traits.price_per_h == group.layout.devices * load_accelerator(group.device).price.hourly
    assert big.engine.kv_blocks > 3 * small.engine.kv_blocks
    assert blueprint.hourly == pytest.approx(4 * 2.99 + 4 * 0.79)
    # a request must fit the smallest engine that may get it
    assert blueprint.admission.decode_tokens == small.engine.kv_blocks * small.engine.block_tokens
    titles = [found.title for found in explain_scenario(load(file), Ask())]
    assert titles == ["mixed: colocated-big, 2 instances", "mixed: colocated-small, 4 instances"]


def test_prices_are_compared_only_where_all_are_known(file: Path) -> None:
    other = "topology.devices=[{device: h20-sxm-96gb, nodes: 2}]"
    sets = [other, "serving.colocated[1].device=h20-sxm-96gb", "serving.router=cost_aware"]
    with pytest.raises(InputError, match=r"colocated\[1\].*compares prices, and h20-sxm-96gb has none per hour"):
        plan(load(file, sets))
    assert plan(load(file, [*sets, "serving.colocated[1].price=1.2 $/h"])).hourly == pytest.approx(4 * 2.99 + 4 * 1.2)
    assert plan(load(file, sets[:2])).hourly is None


def test_a_run_tells_its_groups_apart(file: Path, tmp_path: Path) -> None:
    run = simulate(load(file), out=tmp_path / "run", check=True)
    pool = run.summary["utilisation"]["colocated"]
    assert {name: group["instances"] for name, group in pool["groups"].items()} == {"big": 2, "small": 4}
    assert pool["instances"] == 6
    for figure in ("busy", "kv_mean"):
        low, high = sorted(group[figure] for group in pool["groups"].values())
        assert low <= pool[figure] <= high
    assert pool["kv_max"] == max(group["kv_max"] for group in pool["groups"].values())
    price = run.summary["price"]
    assert price["dollars"] == pytest.approx(price["dollars_per_h"] * run.summary["simulated_s"] / 3600)
    assert price["dollars_per_request"] == pytest.approx(price["dollars"] / 40)
    assert run.manifest["device"] == "h100-sxm-80gb, l40s"


def test_only_engines_with_a_prefix_cache_find_anything_in_it(file: Path, tmp_path: Path) -> None:
    sets = ["serving.colocated[1].kv.prefix_cache={}", "workload.prefixes={count: 3, tokens: 256}"]
    for router in ("round_robin", "prefix_aware", "slo_aware"):
        run = simulate(load(file, [*sets, f"serving.router={router}"]), out=tmp_path / router, check=True)
        big = run.requests.prefill_instance.str.startswith("colocated-big")
        assert run.requests.cached_tokens[big].fillna(0).sum() == 0
        assert run.requests.cached_tokens[~big].sum() > 0 or big.all()


TIER = "{capacity: 1 GB, bandwidth: 10 GB/s, write: through}"


def test_groups_without_names_are_told_apart(tmp_path: Path) -> None:
    """Their caches have different tiers, and each has its rent; engines are numbered through."""
    text = MIXED.replace("{name: big, ", "{").replace("{name: small, ", "{")
    text = text.replace("layout: {tensor: 2}}", f"layout: {{tensor: 2}}, kv: {{prefix_cache: {{tiers: [{TIER}]}}}}}}")
    text = text.replace("instances: 4}", f"instances: 4, kv: {{prefix_cache: {{tiers: [{TIER}, {TIER}]}}}}}}")
    file = tmp_path / "unnamed.yaml"
    file.write_text(
        text.replace(
            "  output_tokens",
            "  sessions: {turns: {constant: {value: 4}}, think_time: {constant: {value: 1 ms}}}\n  output_tokens",
        )
    )
    run = simulate(load(file, ["workload.requests=80"]), out=tmp_path / "run", check=True)
    assert sorted(set(run.instances["instance"])) == [f"colocated-{at}" for at in range(6)]
    tiers = run.summary["tiers"]
    assert {name: len(rows) for name, rows in tiers.items()} == {"colocated.0": 1, "colocated.1": 2}
    assert sum(rows[0]["written_bytes"] for rows in tiers.values()) > 0
    pools = run.summary["price"]["pools"]
    assert set(pools) == {"colocated.0", "colocated.1"}
    assert sum(pools.values()) == pytest.approx(run.summary["price"]["dollars_per_h"])
