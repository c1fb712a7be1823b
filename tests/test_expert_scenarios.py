"""Pools with an `experts` section: even experts change nothing, hot ones and drift do, faults name their place."""

import pandas as pd
import pytest

from simulator.build.experts import plan_experts, shards
from simulator.build.run import simulate
from simulator.build.serving import plan
from simulator.errors import InputError
from simulator.model.expert_placement import Move
from simulator.model.forward import Work
from simulator.model.layout import Layout
from simulator.model.precision import Precision
from simulator.model.split import expert_bytes
from simulator.model.transformer import load_model
from simulator.scenario.experts import Experts
from simulator.scenario.load import load
from simulator.scenario.write import resolved

FILE = """
schema: 1
seed: 5
topology: {preset: clos-h100, nodes: 4, device: h200-sxm-141gb}
workload:
  requests: 300
  arrivals: {closed_loop: {clients: 128}}
  prompt_tokens: {lognormal: {median: 400, sigma: 0.7, max: 4000}}
  output_tokens: {lognormal: {median: 60, sigma: 0.6, max: 500}}
serving:
  model: MODEL
  colocated:
    instances: INSTANCES
    layout: LAYOUT
    EXPERTS
"""


def scenario(tmp_path, experts="", layout="{data: 32, expert: 32}", model="deepseek-v3", instances=1):
    path = tmp_path / "scenario.yaml"
    text = FILE.replace("MODEL", model).replace("LAYOUT", layout).replace("INSTANCES", str(instances))
    path.write_text(text.replace("EXPERTS", f"experts: {experts}" if experts else ""))
    return path


def tables(tmp_path, experts="", **kinds):
    folder = tmp_path / "run"
    run = simulate(load(scenario(tmp_path, experts, **kinds)), out=folder, check=True)
    return run, pd.read_parquet(folder / "requests.parquet"), pd.read_parquet(folder / "events.parquet")


def test_even_experts_change_nothing(tmp_path):
    plain = tables(tmp_path / "a")[1] if (tmp_path / "a").mkdir() is None else None
    (tmp_path / "b").mkdir()
    even = tables(tmp_path / "b", "{popularity: uniform}")[1]
    pd.testing.assert_frame_equal(plain, even)


def test_all_experts_on_every_device_have_no_balance(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    layout = "{tensor: 8, expert: 1}"
    plain = tables(tmp_path / "a", layout=layout)[1]
    run, hot, _ = tables(tmp_path / "b", "{popularity: {zipf: {exponent: 1}}}", layout=layout)
    pd.testing.assert_frame_equal(plain, hot)
    notes = run.summary["warnings"]
    assert "serving.colocated.experts: no effect with `layout.expert: 1`" in " ".join(notes)


def test_rebalancing_without_drift_changes_nothing(tmp_path):
    # the mean over the time since the last placement differed from what is constant in its last digits, and so did ties
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    law = "popularity: {zipf: {exponent: 0.5}}, placement: eplb, redundant: 16"
    kinds = {"layout": "{tensor: 2, data: 16, expert: 16}", "model": "deepseek-v2-lite"}
    still = tables(tmp_path / "a", f"{{{law}}}", **kinds)[1]
    run, looked, events = tables(tmp_path / "b", f"{{{law}, rebalance: {{interval: 200 ms}}}}", **kinds)
    pd.testing.assert_frame_equal(still, looked)
    assert set(events[events.kind == "experts rebalanced"].detail.str.split(" ").str[0]) == {"0"}
    assert "experts.rebalance: no effect" in " ".join(run.summary["warnings"])


def _end_ns(requests):
    return requests["finish_ns"].max()


def test_hot_experts_cost_time_and_balancing_gives_some_back(tmp_path):
    ends = {}
    law = "popularity: {zipf: {exponent: 0.6}}"
    for name, section in (
        ("even", "{}"),
        ("hot", f"{{{law}}}"),
        ("balanced", f"{{{law}, placement: eplb, redundant: 32}}"),
    ):
        (tmp_path / name).mkdir()
        ends[name] = _end_ns(tables(tmp_path / name, section)[1])
    assert ends["even"] < ends["balanced"] < ends["hot"]


def test_drift_and_rebalancing_are_events_and_weights_cross_the_network(tmp_path):
    section = (
        "{popularity: {zipf: {exponent: 0.6}}, placement: eplb, redundant: 32, drift: {interval: 2 s, share: 0.2}, "
        "rebalance: {interval: 5 s}}"
    )
    found = {}
    for name, instances in (("a", 1), ("b", 1), ("free", 1)):
        (tmp_path / name).mkdir()
        text = section if name != "free" else section.replace("5 s", "5 s, moves: free")
        found[name] = tables(tmp_path / name, text, instances=instances)
    _, requests, events = found["a"]
    kinds = events["kind"].value_counts()
    assert kinds["experts drifted"] >= 2
    assert kinds["experts rebalanced"] >= 1
    first = events[events["kind"] == "experts rebalanced"].iloc[0]
    assert first["time_ns"] > 5_000_000_000  # weights took their time
    links = pd.read_parquet(tmp_path / "a" / "run" / "links.parquet")
    assert links["bytes"].sum() > 0
    pd.testing.assert_frame_equal(requests, found["b"][1])  # drawn alike
    free = found["free"][2]
    assert free[free["kind"] == "experts rebalanced"].iloc[0]["time_ns"] == 5_000_000_000


def test_measured_windows_drift_by_themselves(tmp_path):
    rows = ["window,layer,expert,tokens"]
    rows += [
        f"{w},{layer},{e},{100 if (e + 64 * w) % 256 < 64 else 10}"
        for w in (0, 1)
        for layer in (3, 4)
        for e in range(256)
    ]
    (tmp_path / "counts.csv").write_text("\n".join(rows) + "\n")
    run, _, events = tables(tmp_path, "{popularity: {measured: {file: counts.csv, interval: 3 s}}}")
    assert events[events["kind"] == "experts drifted"]["time_ns"].tolist() == [3_000_000_000]
    notes = " ".join(run.summary["warnings"])
    assert "counts.csv has 2 layers, they stand for all 58" in notes


@pytest.mark.parametrize(
    ("section", "layout", "note"),
    [
        ("{drift: {interval: 1 s, share: 0.5}}", 32, "experts.drift: no effect"),
        ("{popularity: {zipf: {exponent: 1}}, drift: {interval: 1 s, share: 0}}", 32, "experts.drift: no effect"),
        ("{nodes_per_token: 1, redundant: 8}", 12, "experts.nodes_per_token: no effect, the ranks of an engine do not"),
        ("{nodes_per_token: 3}", 32, None),
        ("{popularity: {zipf: {exponent: 1}}, drift: {interval: 1 s, share: 0.5}}", 32, None),
    ],
)
def test_what_has_no_effect_is_said(tmp_path, section, layout, note):
    notes = plan(load(scenario(tmp_path, section, f"{{data: {layout}, expert: {layout}}}", "deepseek-v2-lite"))).notes
    said = [line for line in notes if ".experts." in line]
    assert len(said) == (note is not None)
    assert all(line.startswith(f"serving.colocated.{note}") for line in said)


@pytest.mark.parametrize(
    ("section", "where", "what"),
    [
        ("{redundant: 3}", "experts.redundant", "allowed: 0, or that and a multiple of 32"),
        ("{shared_copies: 33}", "experts.shared_copies", "at most 32"),
        ("{rebalance: {interval: 1 s}}", "experts.rebalance", "goes with `placement: eplb`"),
        ("{nodes_per_token: 0}", "experts.nodes_per_token", "1"),
        ("{shared_copies: 16, nodes_per_token: 2}", "experts.shared_copies", "does not go with them"),
        ("{popularity: {measured: {file: no.csv}}}", "experts.popularity.measured.file", "cannot read"),
        ("{popularity: {zipf: {}}}", "experts.popularity.zipf", "exponent"),
    ],
)
def test_faults_have_their_place(tmp_path, section, where, what):
    with pytest.raises(InputError) as error:
        load(scenario(tmp_path, section))
    problem = error.value.problems[0]
    assert f"serving.colocated.{where}" in str(problem)
    assert what in str(problem)
    assert problem.line is not None


def test_a_model_without_experts_or_a_device_without_a_node(tmp_path):
    with pytest.raises(InputError, match="has no experts to balance"):
        simulate(load(scenario(tmp_path, "{}", "{tensor: 8}", "llama-3.1-8b")), out=tmp_path / "run")
    section, model, layout = (
        Experts(nodes_per_token=4, redundant=32),
        load_model("deepseek-r1"),
        Layout(data=144, expert=144),
    )
    with pytest.raises(InputError, match="8 groups of experts do not divide among 18 nodes"):
        plan_experts(section, model, layout, 8, 1, [])


def test_published_deployments_fit(tmp_path):
    model, notes = load_model("deepseek-r1"), []
    for ranks, redundant, shared, slots, limit in (
        (32, 32, 0, 9, 4),
        (144, 32, 0, 2, None),
        (320, 32, 32, 1, None),
    ):
        section = Experts(redundant=redundant, shared_copies=shared, placement="eplb", nodes_per_token=limit)
        plan = plan_experts(section, model, Layout(data=ranks, expert=ranks), 16 if ranks == 320 else 8, 1, notes)
        assert plan.balance.group.slots == slots
        assert plan.balance.mean_over_maximum(96 * ranks) > 0.8
    section = Experts(redundant=32, shared_copies=32, placement="eplb")
    plan = plan_experts(section, model, Layout(data=32, expert=32), 16, 1, notes)
    assert (plan.balance.group.slots, plan.balance.shared_copies) == (9, 0)  # and each rank its own shared expert
    assert notes == ["experts.shared_copies: one for every rank, as without copies"]


def test_moves_become_bytes_between_devices():
    model, precision = load_model("deepseek-r1"), Precision(weights="fp8_block")
    layout = Layout(tensor=2, data=4, expert=4, pipeline=2)
    each = expert_bytes(model, layout, precision)
    found = shards([Move(1, 3, 4)], range(100, 116), model, layout, precision)
    assert found == [(a, b, 2 * each) for a, b in ((102, 106), (103, 107), (110, 114), (111, 115))]


def test_the_section_is_written_as_it_was_read(tmp_path):
    (tmp_path / "counts.csv").write_text(
        "layer,expert,tokens\n" + "".join(f"0,{expert},{expert + 1}\n" for expert in range(256))
    )
    section = (
        "{popularity: {measured: {file: counts.csv}}, placement: eplb, redundant: 32, rebalance: {interval: 5 min}, "
        "drift: {interval: 30 s, share: 0.1}}"
    )
    first = load(scenario(tmp_path, section))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "again.yaml").write_text(resolved(first, tmp_path / "other"))
    assert load(tmp_path / "other" / "again.yaml").serving == first.serving
    changed = load(scenario(tmp_path, section), ["serving.colocated.experts.popularity=uniform"])
    assert changed.serving.colocated.experts.popularity.name == "uniform"


def test_engines_that_change_roles_keep_their_experts(tmp_path):
    path = scenario(tmp_path)
    head = path.read_text().split("  colocated:")[0]
    pool = "{instances: 2, layout: {data: 8, expert: 8}, experts: {popularity: {zipf: {exponent: 0.5}}}}"
    switch = "{policy: {thresholds: {queued: 4, kv_share: 0.8}}, interval: 10 s, delay: 5 s, cooldown: 30 s}"
    both = f"  prefill: {pool}\n  decode: {pool}\n  role_switch: {switch}\n"
    path.write_text(head + both)
    assert load(path).serving.role_switch is not None
    path.write_text(head + both.replace("0.5", "0.6", 1))
    with pytest.raises(InputError, match="changes roles only between pools of the same layout and experts"):
        load(path)


def test_an_engine_that_leaves_its_pool_goes_by_the_popularity_of_the_day(tmp_path):
    path = scenario(tmp_path, model="deepseek-v2-lite")
    head = path.read_text().split("  colocated:")[0].replace("median: 60", "median: 400")
    head = head.replace("median: 400, sigma: 0.7", "median: 3000, sigma: 0.1").replace("requests: 300", "requests: 128")
    experts = "{popularity: {zipf: {exponent: 0.5}}, placement: eplb, drift: {interval: 100 ms, share: 0.5}, %s}"
    pool = f"{{instances: 2, layout: {{data: 8, expert: 8}}, experts: {experts % 'rebalance: {interval: 50 ms}'}}}"
    switch = "{policy: {balance: {prefill_requests: 1, decode_requests: 32}}, interval: 330 ms, delay: 0 s}"
    path.write_text(f"{head}  prefill: {pool}\n  decode: {pool}\n  role_switch: {switch}\n")
    simulate(load(path), out=tmp_path / "run", check=True)
    events = pd.read_parquet(tmp_path / "run" / "events.parquet")
    lasts = []
    for left in events[events.kind == "leaves pool"].itertuples():
        back = events[(events.kind == "joins pool") & (events.detail == f"was {left.subject}")].time_ns
        if len(back) and back.iloc[0] - left.time_ns > 200_000_000:
            mine = events[(events.kind == "experts rebalanced") & (events.subject == left.subject)].time_ns
            lasts.append(((mine > left.time_ns) & (mine < back.iloc[0])).any())
    assert lasts
    assert all(lasts)


def test_a_decode_layer_over_320_dies_is_near_the_published_one():
    # CloudMatrix384, 48 requests a die at 4,096 tokens, no drafts: 874 us (arXiv:2506.12708v2); nothing is fitted on it
    cost = plan(load("serving/experts-on-a-supernode")).pools[-1].groups[0].engine.cost
    layer_ns = cost.step_ns(Work(batch=48 * 320, context=48 * 320 * 4096)) / 61
    assert 874_000 / 1.4 < layer_ns < 874_000 * 1.4


@pytest.mark.parametrize(
    ("model", "layout", "said"),
    [
        ("deepseek-v2-lite", "{data: 8, expert: 8}", False),
        ("deepseek-v2-lite", "{tensor: 8}", True),
        ("llama-3.1-8b", "{data: 8}", True),
    ],
)
def test_overlap_without_an_exchange_is_said(tmp_path, model, layout, said):
    notes = plan(load(scenario(tmp_path, "", layout, model), ["serving.cost={roofline: {overlap: {}}}"])).notes
    assert any(note.startswith("serving.cost.roofline.overlap: no effect") for note in notes) == said


def test_an_engine_that_spans_two_zones_is_timed_on_the_cables_between_them(tmp_path):
    # Three engines of two nodes each in two zones of three nodes: the second has a node in either zone.
    topology = "topology: {preset: two-zone-a100, nodes: 6, zone_links: 1, switch: {radix: 16, latency: 400 ns}}"
    text = FILE.replace(FILE.splitlines()[3], topology).replace("MODEL", "qwen3-30b-a3b").replace("INSTANCES", "3")
    (tmp_path / "s.yaml").write_text(text.replace("LAYOUT", "{data: 16, expert: 16}").replace("EXPERTS", ""))
    [group] = plan(load(tmp_path / "s.yaml")).groups
    first, across, last = (each.engine for each in group.members)
    assert first is last  # they lie alike, and share what is known of their steps
    links = [each.engine.cost._links.collectives.shape(each.lease.devices) for each in group.members]
    # three nodes of a zone have 8 x 25 GB/s each into spines, of which every one has one cable across
    assert [shape.cross_bytes_per_s for shape in links] == [25e9, 9.375e9, 25e9]
    prompts = [Work(1024, 1024 * 1025 // 2, 1)] * 16
    assert across.cost.together_ns(prompts) > 1.5 * first.cost.together_ns(prompts)
    found = simulate(load(tmp_path / "s.yaml"), out=tmp_path / "run", check=True).requests
    by_engine = ((found.finish_ns - found.first_token_ns) / (found.output_tokens - 1)).groupby(found.decode_instance)
    assert by_engine.mean()["colocated-1"] > max(by_engine.mean()["colocated-0"], by_engine.mean()["colocated-2"])
