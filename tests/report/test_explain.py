"""`simulate explain`: the tables add up to the step, the memory to what is usable, and bad asks get one clear error."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from simulator import load
from simulator import simulate as run
from simulator.build.explanation import Ask, explain_model, explain_scenario, step_of
from simulator.device.accelerator import load_accelerator
from simulator.device.cost import RooflineCost
from simulator.errors import InputError
from simulator.model.layout import Layout
from simulator.model.precision import Precision
from simulator.model.transformer import load_model
from simulator.report.roofline import page, plotted, roofline_svg

ON_H100 = ("explain", "--model", "llama-3-8b", "--device", "h100-sxm-80gb")


def explained(simulate, *options: str) -> dict:
    outcome = simulate(*ON_H100, "--json", *options)
    assert outcome.code == 0, outcome.err
    (found,) = json.loads(outcome.out)
    return found


def test_operators_add_up_to_the_step_and_parts_to_the_memory(simulate) -> None:
    found = explained(simulate, "--layout", "tensor=2", "--batch", "16", "--phase", "prefill", "--phase", "mixed")
    assert [step["phase"] for step in found["steps"]] == ["prefill", "mixed"]
    for step in found["steps"]:
        assert sum(row["ns"] for row in step["operators"]) == pytest.approx(step["ns"])
        assert 0 < step["compute_utilisation"] < 1
        assert 0 < step["bandwidth_utilisation"] < 1
        assert 0 < step["power_w"] <= 700
        assert step["joules_per_token"] == pytest.approx(2 * step["power_w"] / step["tokens_per_s"])
    memory = found["memory"]
    assert sum(memory.values()) == 2 * memory["usable"]
    assert found["kv_bytes_per_token_per_device"] == 2 * 32 * 4 * 128 * 2


def test_ceilings_by_hand() -> None:
    # prefill: peak over two operations per weight of the layers; decode: bandwidth over the weights and one KV cache
    found = explain_model("llama-3-8b", "h100-sxm-80gb", Layout(), Precision(), Ask(context=1000))
    model, device = load_model("llama-3-8b"), load_accelerator("h100-sxm-80gb")
    layers = model.parameters - 2 * model.vocabulary * model.hidden
    assert found.ceilings.prefill_tokens_per_s == pytest.approx(989e12 / (2 * layers))
    floor = (2 * (model.parameters - model.vocabulary * model.hidden) + 1000 * 131072) / device.memory.bandwidth
    assert found.ceilings.decode_alone_per_s == pytest.approx(1 / floor, rel=0.01)
    assert found.ceilings.batch == found.book.kv_bytes // (16 * 131072) // 63  # blocks of 16 tokens
    step = found.steps[1]
    assert step.tokens_per_s < found.ceilings.decode_full_per_s
    assert found.steps[0].tokens_per_s < found.ceilings.prefill_tokens_per_s


def test_a_kv_format_alone_leaves_the_weights_as_they_are_published(simulate) -> None:
    def memory(*options: str) -> dict:
        outcome = simulate(
            "explain", "--model", "gpt-oss-20b", "--device", "h100-sxm-80gb", "--json", "--phase", "decode", *options
        )
        assert outcome.code == 0, outcome.err
        return json.loads(outcome.out)[0]

    published, narrow = memory(), memory("--precision", "kv=fp8")
    assert narrow["memory"] == published["memory"]
    assert narrow["kv_bytes_per_token_per_device"] == published["kv_bytes_per_token_per_device"] / 2


def test_a_scenario_is_explained_pool_by_pool(simulate) -> None:
    outcome = simulate("explain", "quickstart", "--json")
    prefill, decode = json.loads(outcome.out)
    assert [step["phase"] for step in prefill["steps"]] == ["prefill"]
    assert [step["phase"] for step in decode["steps"]] == ["decode"]
    assert prefill["model"] == decode["model"] == "llama-3.1-70b"
    shown = simulate("explain", "quickstart")
    assert "gate and up projection" in shown.out
    assert "KiB of KV cache per token and device" in shown.out
    assert max(map(len, shown.out.splitlines())) < 130


def test_every_data_parallel_rank_has_a_prompt_unless_told() -> None:
    h200, layout = load_accelerator("h200-sxm-141gb"), Layout(data=8, expert=8)
    cost = RooflineCost(load_model("deepseek-v3"), layout, h200, Precision(weights="fp8_block"))
    one, all_ranks = (step_of(cost, "prefill", Ask(prompts=prompts), 1) for prompts in (1, None))
    assert (one.work.prompts, all_ranks.work.prompts) == (1, 8)
    assert all_ranks.work.prompt_tokens == 8 * one.work.prompt_tokens
    assert all_ranks.work.pairs == 8 * one.work.pairs
    assert 3 * one.tokens_per_s < all_ranks.tokens_per_s < 8 * one.tokens_per_s
    assert step_of(RooflineCost(load_model("llama-3.1-8b"), Layout(), h200), "prefill", Ask(), 1).work.prompts == 1
    for layout, sequences in ((Layout(data=8, expert=8), 512), (Layout(tensor=8, expert=8), 64)):
        found = explain_model("deepseek-v3", "h200-sxm-141gb", layout, None, Ask(phases=("decode",)))
        assert found.steps[0].work.batch == sequences


def test_the_page_draws_every_operator_that_computes(tmp_path: Path, simulate) -> None:
    found = explain_model("llama-3-8b", "h100-sxm-80gb", Layout(), Precision(), Ask())
    for step in found.steps:
        picture = ElementTree.fromstring(roofline_svg(step))
        dots = [e for e in picture.iter("circle") if e.find("title") is not None]
        assert len(dots) == len(plotted(step)) > 5
        for dot in dots:  # under the roof, and so within the picture
            assert 20 <= float(dot.attrib["cy"]) <= 390
    text = page([found])
    assert "http" not in text.replace("http://www.w3.org", "")
    outcome = simulate(*ON_H100, "--html", str(tmp_path / "page.html"))
    assert outcome.code == 0
    assert (tmp_path / "page.html").read_text() == text


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("explain", "--model", "llama-3-8b", "--device", "h100-sxm-80bg"), "did you mean 'h100-sxm-80gb'"),
        ((*ON_H100, "--layout", "tensr=4"), "unknown key 'tensr'"),
        ((*ON_H100, "--layout", "tensor=5"), "does not split evenly over 5"),
        ((*ON_H100, "--layout", "expert=2"), "2 expert-parallel ranks do not divide"),
        ((*ON_H100, "--layout", "tensor=16"), "do not fit one scale-up domain"),
        ((*ON_H100, "--precision", "nvfp4"), "does not multiply in fp4"),
        ((*ON_H100, "--precision", "fp9"), "unknown format 'fp9'"),
        ((*ON_H100, "--phase", "decod"), "did you mean 'decode'"),
        ((*ON_H100, "--engine", "step_overhead=5"), "has no unit"),
        ((*ON_H100, "--html", "/nowhere/x.html"), "cannot write"),
        (("explain", "--model", "llama-3-70b", "--device", "h100-sxm-80gb"), "does not fit"),
        (("explain", "network/spray"), "no engines to explain"),
        (("explain",), "Give a SCENARIO"),
        (("explain", "quickstart", "--layout", "tensor=2"), "of a scenario use --set"),
    ],
)
def test_bad_asks(simulate, words: tuple[str, ...], complaint: str) -> None:
    outcome = simulate(*words)
    assert outcome.code == 2
    assert complaint.lower() in outcome.err.lower()
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(("context", "blocks"), [(128, 2 * 8), (144, 2 * 9), (2048, 128 + 9), (2049, 129 + 9)])
def test_layers_with_a_window_leave_room_for_more_sequences(context: int, blocks: int) -> None:
    """gpt-oss-20b: 12 of 24 layers keep 128 positions, which touch 9 blocks of 16 at most."""
    found = explain_model("gpt-oss-20b", "h100-sxm-80gb", Layout(tensor=1), None, Ask(context=context, batch=1))
    token = 2 * 8 * 64 * 2  # keys and values of 8 heads of 64 in 16 bits, of one layer
    assert (found.kv_bytes_per_token, found.kv_bytes_beyond) == (24 * token, 12 * token)
    assert found.ceilings.batch == found.book.kv_bytes // (16 * 12 * token) // blocks
    assert not [note for note in found.notes if "hybrid" in note]


@pytest.mark.parametrize(
    ("engine", "gives_back"),
    [
        ("{instances: 1}", True),
        ("{instances: 1, kv: {hybrid: true}}", True),
        ("{instances: 1, kv: {hybrid: false}}", False),
        ("{instances: 1, kv: {prefix_cache: {}}}", True),
        ("{instances: 1, kv: {prefix_cache: {tiers: [{capacity: 1 GiB, bandwidth: 9 GB/s}]}}}", False),
        ("{instances: 1, layout: {context: 2}}", False),
    ],
)
def test_layers_with_a_window_that_keep_everything_are_named(tmp_path: Path, engine: str, gives_back: bool) -> None:
    file = tmp_path / "scenario.yaml"
    file.write_text(WINDOWS % engine)
    [explained] = explain_scenario(load(file), Ask(context=5000, batch=1))
    assert any("12 of the 24 layers" in note for note in explained.notes) == (not gives_back)
    found = run(load(file))
    assert any("12 of the 24 layers" in note for note in found.summary["warnings"]) == (not gives_back)
    [blocks] = set(found.instances.kv_total_blocks)
    each = blocks // (313 + 9) if gives_back else blocks // 313
    assert explained.ceilings.batch == each


def test_windows_are_not_given_back_beside_what_is_not_modelled(tmp_path: Path) -> None:
    file = tmp_path / "scenario.yaml"
    for engine, what in (
        (
            "{instances: 1, kv: {hybrid: true, prefix_cache: {tiers: [{capacity: 1 GiB, bandwidth: 9 GB/s}]}}}",
            "not modelled beside tiers of a prefix cache",
        ),
        ("{instances: 1, layout: {context: 2}, kv: {hybrid: true}}", "not modelled beside context parallelism"),
    ):
        file.write_text(WINDOWS % engine)
        with pytest.raises(InputError, match=what) as caught:
            load(file)
        assert "serving.colocated.kv.hybrid" in str(caught.value)
    tiered = "{instances: 1, kv: {hybrid: true, prefix_cache: {tiers: [{capacity: 1 GiB, bandwidth: 9 GB/s}]}}}"
    file.write_text((WINDOWS % tiered).replace("gpt-oss-20b", "llama-3.1-8b"))
    warnings = run(load(file)).summary["warnings"]
    assert "serving.colocated.kv.hybrid has no effect: no layer of llama-3.1-8b has a window" in warnings


WINDOWS = """
schema: 1
topology: {preset: clos-h100, nodes: 1}
workload: {requests: 1, arrivals: {constant: {rate: 1 / s}}, prompt_tokens: 2048, output_tokens: 9}
serving:
  model: gpt-oss-20b
  colocated: %s
"""


COPIES = """
schema: 1
topology: {preset: clos-h100, nodes: 9}
workload: {requests: 1, arrivals: {constant: {rate: 1 / s}}, prompt_tokens: 2048, output_tokens: 9}
serving:
  model: deepseek-r1
  %s
  prefill: {instances: 1, layout: {data: 32, expert: 32}}
  decode: {instances: 1, %s}
"""
SERVERS = "layout: {tensor: 8}, expert_servers: {devices: 32, merge: all}"
RANKS = "layout: {data: 32, expert: 32}"


@pytest.mark.parametrize(
    ("cost", "decode"),
    [
        ("", RANKS),
        ("", f"{RANKS}, experts: {{redundant: 64, placement: eplb}}"),
        ("", f"{RANKS}, experts: {{redundant: 16, shared_copies: 16}}"),
        ("", f"{RANKS}, kv: {{blocks: 32000}}"),
        ("cost: {roofline: {overlap: {processor_share: 0.15}}}", RANKS),
        ("cost: {roofline: {overlap: {attention_share: 0.6}, step_overhead: 1 ms}}", RANKS),
        ("", SERVERS),
        ("", SERVERS.replace("all", "ready")),
    ],
)
def test_what_is_explained_is_what_is_run(tmp_path: Path, cost: str, decode: str) -> None:
    file = tmp_path / "scenario.yaml"
    file.write_text(COPIES % (cost, decode))
    found = run(load(file))
    [row] = found.requests.itertuples()
    explained = explain_scenario(load(file), Ask(prompt=2048, prompts=1, batch=1, context=2049))
    [prefill], [step] = (one.steps for one in explained)
    assert prefill.ns == pytest.approx(row.prefill_end_ns - row.prefill_start_ns, rel=1e-6)
    assert step.ns == pytest.approx((row.finish_ns - row.decode_start_ns) / 8, rel=1e-4)
    assert sum(line.ns for line in step.rows) == pytest.approx(step.ns)
    for role, one in zip(("prefill", "decode"), explained, strict=True):
        [blocks] = set(found.instances[found.instances.role == role].kv_total_blocks)
        ranks = 32 if "expert_servers" not in decode or role == "prefill" else 1
        assert one.ceilings.batch == ranks * (blocks // ranks // 129)
        assert sum(one.memory.values()) == one.book.usable_bytes
        assert (one.memory.get("expert weights", 0) == 0) == ("expert_servers" in decode and role == "decode")


@pytest.mark.parametrize(
    "named", [{"weights": "bf16", "experts": "nvfp4"}, {"weights": "nvfp4", "attention_weights": "bf16"}]
)
def test_a_ceiling_is_that_of_each_parts_format(named: dict[str, str]) -> None:
    # one model in one set of formats, for Mixtral has no dense MLP: attention in 16 bits, experts in 4
    layout, device, model = Layout(tensor=8), load_accelerator("b200-sxm"), load_model("mixtral-8x22b")
    found = explain_model("mixtral-8x22b", "b200-sxm", layout, Precision.model_validate(named), Ask(prompt=32768))
    experts = 2 * 56 * 3 * 6144 * 16384
    others = model.active_parameters - model.vocabulary * model.hidden - experts
    seconds = 2 * (experts / device.rate("fp4") + others / device.rate("bf16"))
    assert found.ceilings.prefill_tokens_per_s == pytest.approx(8 / seconds)
    assert found.steps[0].peak_per_s == device.rate("fp4")  # of most arithmetic
