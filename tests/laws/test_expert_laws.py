"""Drifting experts at random: invariants hold, requests end, a run is its seed; weights cross as counted."""

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.build.run import simulate
from simulator.model.split import expert_bytes
from simulator.model.transformer import load_model
from simulator.scenario.load import load

FILE = """
schema: 1
seed: {seed}
topology: {{preset: clos-h100, nodes: 2}}
workload:
  requests: 40
  arrivals: {{closed_loop: {{clients: 16}}}}
  prompt_tokens: {{lognormal: {{median: 300, sigma: 0.7, max: 2000}}}}
  output_tokens: {{lognormal: {{median: 60, sigma: 0.6, max: 300}}}}
network: {{fidelity: {fidelity}}}
serving:
  model: qwen3-30b-a3b
  colocated:
    instances: {instances}
    layout: {{{layout}}}
    batcher: {{chunked_prefill: {{max_running: 16, max_batch_tokens: 512}}}}
    experts:
      popularity: {popularity}
      placement: {placement}
      redundant: {redundant}
      {rest}
"""
drawn = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 99),
        "fidelity": st.sampled_from(["load", "flow"]),
        "instances": st.integers(1, 2),
        "layout": st.sampled_from(
            ["data: 8, expert: 8", "tensor: 4, data: 2, expert: 4", "data: 4, expert: 4, pipeline: 2"]
        ),
        "popularity": st.sampled_from(
            ["uniform", "{zipf: {exponent: 0.7}}", "{power_law: {alpha: 1.2}}", "{zipf: {exponent: 1.5}}"]
        ),
        "redundant": st.sampled_from([0, 8, 32]),
        "drift_ms": st.one_of(st.none(), st.integers(20, 800)),
        "share": st.floats(0, 1).map(lambda share: round(share, 3)),
        "rebalance_ms": st.one_of(st.none(), st.integers(30, 900)),
        "moves": st.sampled_from(["fabric", "free"]),
    }
)


def text(found):
    rest = []
    if found["drift_ms"]:
        rest.append(f"drift: {{interval: {found['drift_ms']} ms, share: {found['share']}}}")
    if found["rebalance_ms"]:
        rest.append(f"rebalance: {{interval: {found['rebalance_ms']} ms, moves: {found['moves']}}}")
    placement = "eplb" if found["rebalance_ms"] else "contiguous"
    return FILE.format(**found, rest="\n      ".join(rest), placement=placement)


def run(folder, found, name):
    path = folder / "scenario.yaml"
    path.write_text(text(found))
    simulate(load(path), out=folder / name, check=True)
    return pd.read_parquet(folder / name / "requests.parquet"), pd.read_parquet(folder / name / "events.parquet")


def holds(found, folder):
    requests, events = run(folder, found, "a")
    assert (requests["outcome"] == "finished").all()
    again, _ = run(folder, found, "b")
    pd.testing.assert_frame_equal(requests, again)
    rebalanced = events[events["kind"] == "experts rebalanced"]
    moved = rebalanced["detail"].str.extract(r"^(\d+) experts moved")[0].astype(int).sum()
    links = folder / "a" / "links.parquet"
    if found["moves"] == "free" or not moved:
        assert not links.exists() or found["moves"] == "fabric" or pd.read_parquet(links)["bytes"].sum() == 0
        return
    model, layout = load_model("qwen3-30b-a3b"), load(folder / "scenario.yaml").serving.colocated.layout
    # each expert crosses two links or more, once for each device that holds a part of it
    least = moved * expert_bytes(model, layout) * layout.expert_tensor
    assert pd.read_parquet(links)["bytes"].sum() >= 2 * least * (1 - 1e-6)


@settings(max_examples=15, deadline=None)
@given(found=drawn)
def test_engines_with_drifting_experts(found, tmp_path_factory):
    holds(found, tmp_path_factory.mktemp("run"))


@pytest.mark.nightly
@settings(max_examples=1000, deadline=None)
@given(found=drawn)
def test_engines_with_drifting_experts_at_length(found, tmp_path_factory):
    holds(found, tmp_path_factory.mktemp("run"))
