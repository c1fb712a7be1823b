"""Pools with a `preemption` section: swapping takes the place of prefills, its bytes are those of one device."""

from math import ceil

import pytest

from simulator.build.run import simulate
from simulator.build.serving import plan
from simulator.errors import InputError
from simulator.model.transformer import load_model
from simulator.scenario.load import load
from simulator.serving.batching import BATCHERS

FILE = """
schema: 1
seed: 3
topology: {preset: clos-h100, nodes: 1}
workload:
  requests: 80
  arrivals: {poisson: {rate: 20 / s}}
  prompt_tokens: {lognormal: {median: 500, sigma: 0.5, max: 1500}}
  output_tokens: {lognormal: {median: 300, sigma: 0.4, max: 900}}
serving:
  model: llama-3.1-8b
  colocated: {instances: 1, layout: LAYOUT, kv: {blocks: BLOCKS}, preemption: PREEMPTION, queue: QUEUE}
"""


def scenario(tmp_path, preemption, blocks=900, layout="{tensor: 1}", queue="fcfs"):
    path = tmp_path / "scenario.yaml"
    text = FILE.replace("PREEMPTION", preemption).replace("BLOCKS", str(blocks))
    path.write_text(text.replace("LAYOUT", layout).replace("QUEUE", queue))
    return load(path)


def requests_of(tmp_path, *args, **kwargs):
    folder = tmp_path / f"run-{len(list(tmp_path.glob('run-*')))}"
    return simulate(scenario(tmp_path, *args, **kwargs), out=folder, check=True).requests


@pytest.mark.parametrize("layout", ["{tensor: 1}", "{data: 2}", "{pipeline: 2}"])
def test_who_is_preempted_comes_back_and_ends(tmp_path, layout):
    swap = requests_of(tmp_path, "{swap: {group_blocks: 16}}", layout=layout)
    assert (swap["outcome"] == "finished").all()
    assert swap["preemptions"].sum() > 0
    waits = requests_of(tmp_path, "{swap: {bandwidth: 1 MB/s}}", layout=layout)
    assert (waits["outcome"] == "finished").all()
    assert waits["finish_ns"].max() > swap["finish_ns"].max()


def test_with_memory_for_all_nothing_changes(tmp_path):
    assert requests_of(tmp_path, "swap", 20_000).equals(requests_of(tmp_path, "recompute", 20_000))


@pytest.mark.parametrize(
    ("layout", "parts", "spaces"), [("{tensor: 1}", 1, 1), ("{tensor: 4}", 4, 1), ("{data: 2}", 1, 2)]
)
def test_a_device_copies_its_share_of_a_block(tmp_path, layout, parts, spaces):
    engine = plan(scenario(tmp_path, "{swap: {host: 1 GiB}}", layout=layout)).groups[0].engine
    found = engine.swap()
    assert len(found) == spaces
    block = ceil(16 * load_model("llama-3.1-8b").kv_bytes_per_token() / parts)
    assert [space.host.total for space in found] == [2**30 // block] * spaces


def test_micro_batches_share_the_memory_of_their_devices(tmp_path):
    first, second = plan(scenario(tmp_path, "swap", layout="{pipeline: 2}")).groups[0].engine.swap()
    assert first is not second
    assert first.host is second.host


def test_priorities_that_preempt_do_not_swap(tmp_path):
    with pytest.raises(InputError, match=r"serving\.colocated\.preemption.*priorities cannot preempt"):
        scenario(tmp_path, "swap", queue="priority")
    scenario(tmp_path, "swap", queue="{priority: {preempt: false}}")


@pytest.mark.parametrize("batcher", sorted(BATCHERS))
def test_every_batcher_goes_on_with_prompts_whose_beginnings_were_loaded(tmp_path, batcher):
    path = tmp_path / "scenario.yaml"
    path.write_text(f"""
schema: 1
topology: {{preset: clos-h100, nodes: 1}}
workload:
  requests: 60
  arrivals: {{poisson: {{rate: 3 / s}}}}
  prompt_tokens: 30
  output_tokens: 100
  sessions: {{turns: 3, think_time: {{exponential: {{mean: 3 s}}}}}}
serving:
  model: llama-3.1-8b
  colocated:
    instances: 1
    batcher: {{{batcher}: {{max_running: 2}}}}
    kv: {{blocks: 50, prefix_cache: {{tiers: [{{capacity: 1 GiB, bandwidth: 25 GB/s}}]}}}}
""")
    run = simulate(load(path), out=tmp_path / "run", check=True)
    assert run.summary["tiers"]["colocated"][0]["found_tokens"] > 0
    assert run.summary["requests"]["finished"] == 60


KEPT = """
schema: 1
seed: 12
topology: {preset: clos-h100, nodes: 4}
workload:
  requests: 36
  arrivals: {poisson: {rate: 141 / s}}
  prompt_tokens: {lognormal: {median: 13, sigma: 1.0, max: 150}}
  output_tokens: {constant: {value: 83}}
  prefixes: {count: 4, tokens: 1}
  priorities: {"0": 1, "1": 1, "-3": 0.5}
  sessions: {turns: 2, think_time: {exponential: {mean: 1735 us}}, max_tokens: 600}
serving:
  model: llama-3.1-8b
  cost:
    linear:
      prefill: {fixed: 3678 us, per_token: 11 us}
      decode: {fixed: 231 us, per_sequence: 12 us, per_context_token: 1 us}
  router: least_requests
  prefill:
    instances: 2
    router: least_tokens
    batcher: {continuous: {max_running: 1, max_batch_tokens: 126}}
    kv: {blocks: 481, block_tokens: 1, watermark: 0.01}
    preemption: {swap: {overlap: false, host: 4194304 B}}
  decode:
    instances: 1
    batcher: {continuous: {max_running: 1, max_batch_tokens: 22}}
    kv: {blocks: 333, watermark: 0.01, prefix_cache: {eviction: lfu}}
  kv_transfer: {layers_per_message: 40, mode: layerwise, direction: pull, fallback: {waiting: 4}}
"""


def test_who_was_swapped_out_comes_back_when_blocks_that_were_to_move_are_free(tmp_path):
    """A prefill engine decodes what has no place, and swaps it out for blocks that wait to be read."""
    path = tmp_path / "kept.yaml"
    path.write_text(KEPT)
    rows = simulate(load(path), out=tmp_path / "run", check=True).requests
    assert (rows["outcome"] == "finished").all()
    assert rows["preemptions"].sum() > 0
