"""The section on speculative decoding: whole runs, what they show, and one clear error for what does not go."""

import pytest

from simulator import load, simulate
from simulator.errors import InputError

SCENARIO = """
schema: 1
seed: 3
topology: {preset: clos-h100, nodes: 1}
workload:
  requests: 60
  arrivals: {poisson: {rate: 8 / s}}
  prompt_tokens: {constant: {value: 200}}
  output_tokens: {constant: {value: 100}}
serving:
  model: llama-3.1-70b
  colocated: {instances: 1, layout: {tensor: 4}}
"""
DRAFT = "{tokens: 3, acceptance: 0.7, draft: {model: {name: llama-3.2-1b}}}"
SPECULATION = "serving.colocated.speculation="


def scenario(tmp_path, *overrides):
    file = tmp_path / "scenario.yaml"
    file.write_text(SCENARIO)
    return load(file, overrides)


def run(tmp_path, *overrides, name="run"):
    return simulate(scenario(tmp_path, *overrides), out=tmp_path / name)


def test_accepted_drafts_shorten_answers_and_rejected_ones_lengthen_them(tmp_path):
    plain = run(tmp_path, name="plain").requests
    times = {}
    for acceptance in (0.0, 0.5, 1.0):
        what = f"{SPECULATION}{{tokens: 3, acceptance: {acceptance}, draft: {{model: {{name: llama-3.2-1b}}}}}}"
        found = run(tmp_path, what, name=str(acceptance)).requests
        assert (found.outcome == "finished").all()
        assert (found.generated_tokens == 100).all()
        times[acceptance] = (found.finish_ns - found.first_token_ns).mean()
    assert times[1.0] < times[0.5] < (plain.finish_ns - plain.first_token_ns).mean() < times[0.0]


@pytest.mark.parametrize("layout", ["{tensor: 2, data: 2}", "{tensor: 4}"])
@pytest.mark.parametrize("batcher", ["continuous", "chunked_prefill: {max_running: 64}"])
def test_every_layout_and_batcher_gives_every_token(tmp_path, layout, batcher):
    batcher = f"{{{batcher}}}" if ":" in batcher else batcher
    found = run(
        tmp_path,
        "serving.model=llama-3.1-8b",
        f"serving.colocated={{instances: 1, layout: {layout}, batcher: {batcher}, speculation: {DRAFT}}}",
    )
    assert (found.requests.generated_tokens == 100).all()
    assert found.instances.output_tokens.sum() == 100 * 60
    assert any("power is not reckoned" in note for note in found.summary["warnings"])


@pytest.mark.parametrize("experts", ["{}", "{popularity: {zipf: {exponent: 0.8}}, placement: eplb}"])
def test_a_prediction_module_drafts_for_its_model(tmp_path, experts):
    found = run(
        tmp_path,
        "topology.nodes=4",
        "serving.model=deepseek-v3",
        "serving.colocated.layout={tensor: 1, data: 32, expert: 32}",
        f"serving.colocated.experts={experts}",
        SPECULATION + "{tokens: 1, acceptance: 0.7, draft: mtp}",
    )
    assert (found.requests.generated_tokens == 100).all()


@pytest.mark.parametrize(
    ("section", "what"),
    [
        ("{acceptance: 0.7, draft: mtp}", "has no layers for multi-token prediction"),
        ("{acceptance: 1.7, draft: ngram}", "less than or equal to 1"),
        ("{tokens: 2, acceptance: [0.7, 0.6, 0.5], draft: ngram}", "3 probabilities for 2 drafted tokens"),
        ("{acceptance: 0.7, draft: {model: {name: llama-9}}}", "unknown model 'llama-9'"),
    ],
)
def test_what_does_not_go_is_said_once(tmp_path, section, what):
    with pytest.raises(InputError, match=what) as caught:
        scenario(tmp_path, SPECULATION + section)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("serving.colocated.batcher=static", "go on in step until the last"),
        ("serving.colocated.batcher={chunked_prefill: {max_running: 256, max_batch_tokens: 512}}", "1024 at least"),
        ("serving.cost={linear: {}}", "say nothing of a draft model's"),
    ],
)
def test_what_it_does_not_go_with(tmp_path, override, what):
    with pytest.raises(InputError, match=what):
        scenario(tmp_path, SPECULATION + DRAFT, override)


def test_the_draft_model_takes_memory(tmp_path):
    from simulator.device.accelerator import load_accelerator
    from simulator.model.transformer import load_model
    from simulator.scenario.reference import kv_blocks_of

    model, device = load_model("llama-3.1-70b"), load_accelerator("h100-sxm-80gb")
    plain, drafted = (scenario(tmp_path, *more).serving for more in ((), (SPECULATION + DRAFT,)))
    blocks = [kv_blocks_of(s.colocated, model, device, s.precision) for s in (plain, drafted)]
    # 2.5 GB of weights over four devices, and 16 of 96 layers of a quarter the KV width
    assert 0.85 * blocks[0] < blocks[1] < blocks[0]
