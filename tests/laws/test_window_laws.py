"""Layers with a window: blocks against sets of them, capacities against their inverse, caches that move by hand.

A group of L layers that keeps everything holds ceil(n / b) blocks of n tokens; one with a window of w those in which
positions n - w to n may lie, wherever they begin: (w - 2) // b + 2 at most.
"""

from math import ceil

import pytest
import sample_groups
from hypothesis import given
from hypothesis import strategies as st
from test_batcher_twins import BLOCK

from simulator import catalog, load, simulate
from simulator.device.memory import Beside, kv_block_bytes
from simulator.errors import InputError
from simulator.model.layout import Layout
from simulator.model.split import check_layout, kv_groups, stages
from simulator.model.stages import has_window
from simulator.model.transformer import load_model
from simulator.serving.paging import Paging, WindowedPaging, Windows
from simulator.serving.request import Request, Traits

windows = st.builds(Windows, st.integers(0, 3), st.integers(1, 3), st.integers(1, 40), st.integers(1, 30))


def request(prompt, output, samples=1, generated=0):
    found = Request(0, 0, prompt, output, traits=Traits(samples=samples))
    found.generated = generated
    return found


def test_a_prompt_whose_window_has_moved_on_takes_no_block_back():
    # 45 tokens in blocks of 4, a window of 1: the last block alone is left, and each of two answers gets a copy of it
    paging = WindowedPaging(4, Windows(0, 1, 1, 1))
    assert [paging.prefilled(request(45, 2, 2, generated=1), tokens) for tokens in (44, 45, 46, 47)] == [1, 1, 1, 2]


@given(windows, st.integers(1, 60), st.integers(1, 30), st.integers(1, 4), st.data())
def test_blocks_are_those_of_the_sets(of, prompt, output, samples, data):
    paging = WindowedPaging(BLOCK, of)
    r = {"prompt": prompt, "made": data.draw(st.integers(0, output - 1)), "samples": samples}
    asked = request(prompt, output, samples, r["made"])
    held = prompt + r["made"]
    plain = sample_groups.blocks(r, held, BLOCK, decodes=True)
    kept = sample_groups.window_blocks(r, held, BLOCK, paging.kept, decodes=True)
    assert paging.held(asked, held) == of.full * plain + of.windowed * kept
    total = sample_groups.total(r)
    done, until = sorted(data.draw(st.tuples(*[st.integers(0, total)] * 2)))
    after = sample_groups.blocks(r, until, BLOCK)
    left = of.full * after + of.windowed * sample_groups.window_blocks(r, until, BLOCK, paging.kept)
    assert paging.prefilled(asked, until) == left <= paging.prefilling(asked, done, until)
    if until - done <= of.chunk:
        assert paging.prefilling(asked, done, until) <= paging.reserved(asked) <= paging.most(asked, 0)
    assert paging.held(asked, held) <= paging.most(asked, 0)
    assert paging.held(asked, held) <= paging.held(asked, held + 1)


@given(st.integers(1, 300), st.integers(1, 4), st.integers(1, 64))
def test_a_window_and_what_is_fed_fit_what_is_kept_wherever_they_begin(window, fed, size):
    kept = WindowedPaging(size, Windows(1, 1, window, 1), fed).kept
    touched = [len({p // size for p in range(at, at + window + fed - 1)}) for at in range(size)]
    assert kept == max(touched)


@given(windows, st.integers(1, 400))
def test_the_longest_context_is_the_longest_that_fits(of, blocks):
    paging = WindowedPaging(BLOCK, of)
    longest = paging.longest(blocks)
    if longest < 2**40:
        fits = [paging.most(request(tokens, 1)) <= blocks for tokens in (longest, longest + 1)]
        assert fits == [True, False]
        assert longest == 0 or paging.sequences(blocks, longest) >= 1
    else:
        assert not of.full
        assert paging.most(request(10**6, 1)) <= blocks


@given(windows.filter(lambda of: of.full), st.integers(1, 300), st.integers(1, 9))
def test_tokens_of_blocks_are_those_of_sequences_of_one_length(of, tokens, sequences):
    paging = WindowedPaging(BLOCK, of)
    held = sequences * paging.held(request(tokens, 1), tokens)
    assert 0 <= paging.tokens(held, sequences) - sequences * tokens < sequences * BLOCK
    assert Paging(BLOCK).tokens(sequences * ceil(tokens / BLOCK), sequences) >= sequences * tokens


@pytest.mark.parametrize(
    ("name", "layout", "groups"),
    [
        ("gpt-oss-20b", Layout(), (12, 1, 1)),
        ("gpt-oss-120b", Layout(tensor=8), (18, 1, 1)),
        ("gpt-oss-120b", Layout(pipeline=4), (5, 1, 1)),  # 9 layers a stage, 4 or 5 of them with a window
        ("mistral-7b", Layout(), (32, 0, 1)),
        ("llama-3.1-8b", Layout(), (32, 1, 0)),
    ],
)
def test_groups_by_hand(name, layout, groups):
    assert kv_groups(load_model(name), layout) == groups


@given(st.sampled_from(catalog.names("workloads/models")), st.sampled_from([1, 2, 4, 8]))
def test_groups_hold_the_layers_of_every_stage(name, pipeline):
    model, layout = load_model(name), Layout(pipeline=pipeline)
    try:
        check_layout(model, layout)
    except InputError:
        return
    groups = kv_groups(model, layout)
    with_window = [sum(has_window(model, i) for i in range(*stage.decoder)) for stage in stages(model, layout)]
    whole = [stage.decoder[1] - stage.decoder[0] for stage in stages(model, layout)]
    assert groups.layers * groups.windowed == max(with_window)
    assert groups.layers * groups.full == max(n - own for n, own in zip(whole, with_window, strict=True))
    if max(with_window) == 0:
        assert groups == (max(whole), 1, 0)


def test_bytes_of_a_block_by_hand():
    model, token = load_model("gpt-oss-120b"), 2 * 8 * 64 * 2  # of one layer, in 16 bits
    assert kv_block_bytes(model, Layout(), 16) == 16 * 36 * token
    assert kv_block_bytes(model, Layout(), 16, windows=True) == 16 * 18 * token
    assert kv_block_bytes(model, Layout(tensor=2), 16, windows=True) == 16 * 18 * token / 2
    assert kv_block_bytes(model, Layout(), 16, None, Beside(0, 100.0), True) == 16 * (18 * token + 100)


POOLS = """
schema: 1
topology: {preset: clos-h100, nodes: 2}
workload:
  requests: 1
  arrivals: {constant: {rate: 1 / s}}
  prompt_tokens: {constant: {value: %s}}
  output_tokens: {constant: {value: 4}}
serving:
  model: gpt-oss-20b
  kv_transfer: {mode: %s}
  prefill: {instances: 1, layout: {tensor: 8}, batcher: {chunked_prefill: {max_batch_tokens: 300}}}
  decode: {instances: 1, layout: {tensor: %s}, kv: {hybrid: %s}}
"""


@pytest.mark.parametrize("mode", ["whole", "layerwise"])
@pytest.mark.parametrize("prompt", [100, 127, 128, 2000])
@pytest.mark.parametrize("tensor", [4, 8])
@pytest.mark.parametrize("hybrid", ["true", "false"])
def test_layers_with_a_window_move_what_the_next_token_sees(tmp_path, mode, prompt, tensor, hybrid):
    """12 layers move every position, 12 the last 127: the next token sees 128, itself among them."""
    file = tmp_path / "run.yaml"
    file.write_text(POOLS % (prompt, mode, tensor, hybrid))
    [row] = simulate(load(file), out=tmp_path / "out", check=True).requests.itertuples()
    assert row.kv_transfer_bytes == 12 * (prompt + min(prompt, 127)) * 2 * 8 * 64 * 2


CHUNKS = """
schema: 1
topology: {preset: clos-h100, nodes: 1}
workload:
  requests: 40
  arrivals: {poisson: {rate: 400 / s}}
  prompt_tokens: {uniform: {low: 1, high: 900}}
  output_tokens: {uniform: {low: 1, high: 200}}
serving:
  model: gpt-oss-20b
  colocated: {instances: 1, batcher: %s, kv: {blocks: %s, hybrid: %s, block_tokens: 16}, preemption: %s}
"""


@pytest.mark.parametrize("batcher", ["continuous", "{chunked_prefill: {max_batch_tokens: 500}}"])
@pytest.mark.parametrize("preemption", ["recompute", "{swap: {host: 1 GiB}}"])
def test_the_same_memory_takes_more_at_once(tmp_path, batcher, preemption):
    """160 blocks of all 24 layers are 320 of 12: requests wait less and fewer are preempted."""
    found = []
    for hybrid, blocks in (("true", 320), ("false", 160)):
        file = tmp_path / "run.yaml"
        file.write_text(CHUNKS % (batcher, blocks, hybrid, preemption))
        run = simulate(load(file), out=tmp_path / hybrid, check=True)
        assert set(run.requests.outcome) == {"finished"}
        found.append((run.requests.finish_ns.max(), run.requests.preemptions.sum()))
    assert found[0] < found[1]
    assert found[0][1] < found[1][1]
