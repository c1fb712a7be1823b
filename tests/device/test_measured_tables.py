"""Measured tables: what a file may hold and what is refused, exact at its points, the roofline where it is silent."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from simulator.device.accelerator import Accelerator, load_accelerator
from simulator.device.cost import COSTS, RooflineCost, Subject
from simulator.device.measured.modules import PARTS
from simulator.device.measured.source import MeasuredParameters, same_device
from simulator.device.measured.times import MeasuredTimes
from simulator.device.provenance import provenance
from simulator.device.timing import time_of
from simulator.errors import InputError
from simulator.model.forward import Work
from simulator.model.layout import Layout
from simulator.model.operators import Collective, Elementwise, Experts, Gemm, Operator, PromptAttention, TokenAttention
from simulator.model.precision import Precision
from simulator.model.transformer import load_model

MODEL = load_model("llama-3.1-8b")
DEVICE = load_accelerator("h100-sxm-80gb")
Rows = list[dict[str, Any]]


def write(path: Path, rows: Rows) -> Path:
    table = pa.table({name: [row.get(name) for row in rows] for name in dict.fromkeys(n for r in rows for n in r)})
    if path.suffix == ".csv":
        pa.csv.write_csv(table, path)
    else:
        pa.parquet.write_table(table, path)
    return path


def cost_of(*tables: Any, layout: Layout | None = None, device: Accelerator = DEVICE) -> RooflineCost:
    sections = tuple(str(table) if isinstance(table, Path) else table for table in tables)
    parameters = MeasuredParameters(tables=sections)
    cost = COSTS["measured"][1](parameters, Subject(MODEL, layout or Layout(), device, Precision()))
    assert isinstance(cost, RooflineCost)
    return cost


def refusal(*tables: Any, **more: Any) -> str:
    with pytest.raises(InputError) as caught:
        cost_of(*tables, **more)
    return str(caught.value)


def times_of(cost: RooflineCost) -> MeasuredTimes:
    assert isinstance(cost.times, MeasuredTimes)
    return cost.times


GEMMS: Rows = [
    {"operator": "gemm", "rows": rows, "columns": 6144, "inner": 4096, "format": "bf16", "ns": ns}
    for rows, ns in ((1, 20_000), (64, 30_000), (1024, 150_000))
]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_point_is_exact_and_the_ratio_is_interpolated_between_and_held_outside(tmp_path: Path, suffix: str) -> None:
    times = times_of(cost_of(write(tmp_path / f"gemm{suffix}", GEMMS)))

    def ns(rows: int) -> float:
        return times.kernel(Operator("any", 1, Gemm(rows, 6144, 4096))).ns

    def ratio(rows: int) -> float:
        return ns(rows) / time_of(Gemm(rows, 6144, 4096), DEVICE).ns

    for row in GEMMS:
        assert ns(row["rows"]) == pytest.approx(row["ns"], rel=1e-12)
    assert ratio(256) == pytest.approx((ratio(64) * ratio(1024)) ** 0.5)
    assert ratio(8192) == pytest.approx(ratio(1024))


def test_what_no_table_covers_has_the_time_of_the_roofline(tmp_path: Path) -> None:
    cost = cost_of(write(tmp_path / "gemm.csv", GEMMS))
    plain = RooflineCost(MODEL, Layout(), DEVICE)
    work = Work(batch=64, context=64_000)
    measured = {row.name: row.ns for row in cost.operators(work)}
    assert measured.pop("QKV projection") == pytest.approx(MODEL.layers * 30_000)
    near = {"gate and up projection", "down projection", "output projection"}
    for row in plain.operators(work):
        if row.name not in {"QKV projection", *near}:
            assert measured[row.name] == row.ns, row.name
    # 6144 x 4096 is within a factor of two of 4096 x 4096, not of 28672 x 4096 and 4096 x 14336
    by_name = {row.name: row.ns for row in plain.operators(work)}
    assert measured["output projection"] != by_name["output projection"]
    assert measured["down projection"] == by_name["down projection"]
    assert measured["gate and up projection"] == by_name["gate and up projection"]


def test_steps_are_the_sums_of_their_operators(tmp_path: Path) -> None:
    cost = cost_of(write(tmp_path / "gemm.csv", GEMMS), write(tmp_path / "attention.csv", attention_rows()))
    for work in (Work(batch=7, context=9000), Work(300, 300 * 301 / 2, 2), Work(300, 300 * 301 / 2, 2, 7, 9000)):
        assert cost.step_ns(work) == pytest.approx(sum(row.ns for row in cost.operators(work)))
    line = cost.decode(7, 9000)
    first, last = 0.6 * line.until, line.until
    assert line.fixed_ns + line.per_context_token_ns * last == pytest.approx(cost.step_ns(Work(batch=7, context=last)))
    assert first > 0


def attention_rows() -> Rows:
    heads = {"heads": 32, "kv_heads": 8, "key_dim": 128, "value_dim": 128}
    return [
        {"operator": "token_attention", "batch": 1, "context": 1024, "ns": 11_000, **heads},
        {"operator": "token_attention", "batch": 16, "context": 1024, "ns": 40_000, **heads},
        {"operator": "token_attention", "batch": 16, "context": 8192, "ns": 260_000, **heads},
        {"operator": "prompt_attention", "sequences": 1, "tokens": 512, "cached": 0, "ns": 30_000, **heads},
        {"operator": "prompt_attention", "sequences": 1, "tokens": 512, "cached": 2048, "ns": 55_000, **heads},
        {
            "operator": "mixed_attention",
            "tokens": 512,
            "cached": 0,
            "batch": 16,
            "context": 1024,
            "ns": 90_000,
            **heads,
        },
    ]


def test_attention_of_prompts_tokens_and_both_in_one_call(tmp_path: Path) -> None:
    cost = cost_of(write(tmp_path / "attention.csv", attention_rows()))
    layers = MODEL.layers

    def attention_ns(work: Work) -> float:
        return sum(row.ns for row in cost.operators(work) if "attention" in row.name)

    assert attention_ns(Work(batch=16, context=16 * 8192)) == pytest.approx(layers * 260_000)
    assert attention_ns(Work(512, 512 * 2048 + 512 * 513 / 2, 1)) == pytest.approx(layers * 55_000)
    both = Work(512, 512 * 513 / 2, 1, 16, 16 * 1024)
    assert attention_ns(both) == pytest.approx(layers * 90_000)


def test_collectives_and_elementwise_kernels(tmp_path: Path) -> None:
    rows: Rows = [
        {"operator": "elementwise", "name": "sampling", "size_bytes": 1 << 20, "ns": 25_000},
        {"operator": "collective", "operation": "all_reduce", "ranks": 2, "size_bytes": 1 << 20, "ns": 14_000},
    ]
    times = times_of(cost_of(write(tmp_path / "more.parquet", rows)))
    assert times.kernel(Operator("sampling", 1, Elementwise(1 << 20))).ns == pytest.approx(25_000)
    norm = Elementwise(1 << 20)
    assert times.kernel(Operator("norm and residual", 1, norm)) == time_of(norm, DEVICE)
    assert times.kernel(Operator("", 1, Collective("all_reduce", 1 << 20, 2, "tensor"))).ns == pytest.approx(14_000)
    four = Collective("all_reduce", 1 << 20, 4, "tensor")
    assert times.kernel(Operator("", 1, four)) == time_of(four, DEVICE)


def test_repeats_count_by_their_median_and_it_is_said(tmp_path: Path) -> None:
    rows = [*GEMMS, {**GEMMS[1], "ns": 31_000}, {**GEMMS[1], "ns": 900_000}]
    cost = cost_of(write(tmp_path / "gemm.csv", rows))
    assert times_of(cost).kernel(Operator("", 1, Gemm(64, 6144, 4096))).ns == pytest.approx(31_000)
    assert any("2 repeated" in note for note in provenance(cost))


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ns", [-1.0, 0.0, float("nan"), None])
def test_a_time_that_makes_no_sense_is_refused_with_its_row(tmp_path: Path, ns: float | None) -> None:
    path = write(tmp_path / "gemm.parquet", [GEMMS[0], {**GEMMS[1], "ns": ns}])
    assert refusal(path) == f"{path}: row 2: ns is {ns!r}; allowed: a time of more than zero"


def test_missing_columns_and_unknown_operators_are_refused(tmp_path: Path) -> None:
    bare = write(tmp_path / "bare.csv", [{"operator": "gemm", "time": 3}])
    assert "is in no known format; of canonical it lacks ns" in refusal(bare)
    short = write(tmp_path / "short.csv", [{"operator": "gemm", "rows": 3, "inner": 2, "ns": 3}])
    assert f"{short}: row 1: gemm has no columns" in refusal(short)
    odd = write(tmp_path / "odd.csv", [{**GEMMS[0]}, {**GEMMS[0], "operator": "gem"}])
    assert "row 2: unknown operator 'gem'" in refusal(odd)
    assert "did you mean 'gemm'?" in refusal(odd)
    kind = write(tmp_path / "kind.csv", [{**GEMMS[0], "format": "fp17"}])
    assert f"{kind}: row 1: unknown format 'fp17'" in refusal(kind)
    text = write(tmp_path / "text.csv", [{**GEMMS[0], "rows": "many"}])
    assert f"{text}: row 1: rows is 'many'" in refusal(text)


def test_files_that_are_no_tables_are_refused_together(tmp_path: Path) -> None:
    broken = tmp_path / "broken.parquet"
    broken.write_text("PAR0")
    name = tmp_path / "table.txt"
    name.write_text("")
    problems = refusal(broken, name).splitlines()
    assert len(problems) == 2
    assert "cannot be read as a table" in problems[0]
    assert problems[1] == f"{name}: is no table; allowed: .csv, .csv.gz or .parquet"
    assert "cannot be read: No such file" in refusal(tmp_path / "absent.csv")


def test_a_table_is_read_again_only_when_it_changed(tmp_path: Path) -> None:
    path = write(tmp_path / "gemm.csv", GEMMS)
    first = cost_of(path).times
    assert cost_of(path).times is first
    assert cost_of(path, layout=Layout(tensor=2)).times is not first
    write(path, [{**row, "ns": 2 * row["ns"]} for row in GEMMS])
    os.utime(path, ns=(1, 1))
    assert kernel_ns(path, Gemm(64, 6144, 4096)) == pytest.approx(60_000)


# -- of what device, model and engine ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "sheet", "same"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100-sxm-80gb", True),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm-40gb", False),
        ("NVIDIA A100-SXM4-80GB", "a100-pcie-80gb", False),
        ("NVIDIA H100 80GB HBM3", "h100-sxm-80gb", True),
        ("NVIDIA H100 PCIe", "h100-sxm-80gb", False),
        ("NVIDIA GB200", "b200-sxm", False),
        ("NVIDIA B200", "b200-sxm", True),
        ("NVIDIA GB200", "gb200", True),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000", True),
        ("RTXPRO6000", "rtx-pro-6000", True),
        ("NVIDIA GeForce RTX 4090", "rtx-4090", True),
        ("NVIDIA L40S", "l40", False),
        ("NVIDIA H200", "h100-sxm-80gb", False),
    ],
)
def test_names_of_devices(said: str, sheet: str, same: bool) -> None:
    assert same_device(said, sheet) is same


def test_a_table_of_another_device_is_refused_unless_it_is_said_to_stand_for_this_one(tmp_path: Path) -> None:
    path = write(tmp_path / "gemm.csv", [{**row, "device": "NVIDIA A100-SXM4-80GB"} for row in GEMMS])
    problem = refusal(path)
    assert "was measured on NVIDIA A100-SXM4-80GB, the engines run on h100-sxm-80gb" in problem
    assert "a100-sxm-80gb, the engines run on h100-sxm-80gb" in refusal({"path": str(path), "device": "a100-sxm-80gb"})
    cost = cost_of({"path": str(path), "device": DEVICE.name})
    assert any("NVIDIA A100-SXM4-80GB" in note and "taken for h100-sxm-80gb" in note for note in provenance(cost))


def test_provenance_and_coverage_are_told(tmp_path: Path) -> None:
    who = {"engine": "vllm", "version": "0.19.0", "device": "NVIDIA H100 80GB HBM3", "date": "2026-04-01"}
    cost = cost_of(write(tmp_path / "gemm.csv", [{**row, **who} for row in GEMMS]))
    table, prefill, decode = provenance(cost)
    assert "gemm.csv (canonical, 3 rows): vllm 0.19.0 on NVIDIA H100 80GB HBM3, 2026-04-01" in table
    assert "QKV projection" in prefill.partition("roofline")[0]
    assert "attention" in decode.partition("roofline")[2]
    assert provenance(RooflineCost(MODEL, Layout(), DEVICE)) == []


def test_a_table_in_another_number_format_covers_nothing_and_that_is_told(tmp_path: Path) -> None:
    cost = cost_of(write(tmp_path / "gemm.csv", [{**row, "format": "fp8"} for row in GEMMS]))
    assert times_of(cost).estimate((Operator("", 1, Gemm(64, 6144, 4096)),)) is None
    assert any("no table has a matrix product in bf16, only in fp8" in note for note in provenance(cost))


# -- LLMServingSim ----------------------------------------------------------------------------------------------------


def layer_rows(tensor: int = 1) -> tuple[Rows, Rows]:
    dense = [
        {"tp": degree, "layer": layer, "tokens": tokens, "time_us": us * tokens / degree}
        for degree in (1, 2)
        for tokens in (1, 16)
        for layer, us in (("qkv_proj", 36.0), ("o_proj", 25.0), ("layernorm", 2.4), ("final_layernorm", 2.5))
    ]
    return dense, [{"tp": tensor, "layer": "lm_head", "sequences": 4, "time_us": 700.0}]


def test_layers_by_name_become_operators_of_the_model_and_degree(tmp_path: Path) -> None:
    dense, heads = layer_rows()
    files = write(tmp_path / "dense.parquet", dense), write(tmp_path / "per_sequence.csv", heads)
    for degree in (1, 2):
        cost = cost_of(*files, layout=Layout(tensor=degree))
        table = {row.name: row.ns / row.calls for row in cost.operators(Work(batch=16, context=1600))}
        assert table["QKV projection"] == pytest.approx(36_000 * 16 / degree)
        assert table["output projection"] == pytest.approx(25_000 * 16 / degree)
        assert table["norm and residual"] == pytest.approx(2_400 * 16 / degree)
    one = {row.name: row.ns for row in cost_of(*files).operators(Work(batch=4, context=400))}
    assert one["LM head"] == pytest.approx(700_000)
    notes = " ".join(provenance(cost_of(*files)))
    assert "times layers without saying of which model; taken as of llama-3.1-8b" in notes
    assert "final_layernorm" in notes


def test_layers_of_another_model_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "dense.parquet", layer_rows()[0])
    assert "is of qwen3-32b, the engines serve llama-3.1-8b" in refusal({"path": str(path), "model": "qwen3-32b"})
    cost_of({"path": str(path), "model": "llama-3.1-8b"})


def test_attention_rows_hold_what_is_in_the_cache_before_the_step(tmp_path: Path) -> None:
    row = {"tp": 1, "prefill_chunk": 0, "kv_prefill": 0, "n_decode": 8, "kv_decode": 1023, "time_us": 40.0}
    cost = cost_of(write(tmp_path / "attention.csv", [row, {**row, "prefill_chunk": 256, "time_us": 60.0}]))
    shape = TokenAttention(8, 8 * 1024, 32, 8, 128, 128)
    assert times_of(cost).kernel(Operator("attention", 1, shape)).ns == pytest.approx(40_000)
    prompt = PromptAttention(256, 256 * 257 / 2, 256, 1, 32, 8, 128, 128)
    pair = [Operator("prompt attention", 1, prompt), Operator("attention", 1, shape._replace(mixed=True))]
    assert sum(kernel.ns for kernel in times_of(cost).attention(pair)) == pytest.approx(60_000)


# -- aiconfigurator and Vidur -----------------------------------------------------------------------------------------

WHO = {"framework": "VLLM", "version": "0.24.0", "device": "NVIDIA H100 80GB HBM3"}
ATTENTION = {
    "num_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "attn_dtype": "bfloat16",
    "kv_cache_dtype": "bfloat16",
    "latency": 0.05,
    **WHO,
}


def kernel_ns(path: Path, shape: Any, name: str = "") -> float:
    return times_of(cost_of(path)).kernel(Operator(name, 1, shape)).ns


def test_aiconfigurator_products_and_unknown_formats(tmp_path: Path) -> None:
    row = {"gemm_dtype": "bfloat16", "m": 64, "n": 6144, "k": 4096, "latency": 0.03, **WHO}
    path = write(
        tmp_path / "gemm.parquet", [row, {**row, "gemm_dtype": "fp8", "latency": 0.02}, {**row, "gemm_dtype": "int3"}]
    )
    assert kernel_ns(path, Gemm(64, 6144, 4096)) == pytest.approx(30_000)
    assert kernel_ns(path, Gemm(64, 6144, 4096, "fp8", quantise=True)) == pytest.approx(20_000)
    alone = Gemm(64, 6144, 4096, "fp8")  # its activations come quantised: the ratio holds, the kernel for them is gone
    both = time_of(alone._replace(quantise=True), DEVICE).ns
    assert kernel_ns(path, alone) == pytest.approx(20_000 * time_of(alone, DEVICE).ns / both)
    told = provenance(cost_of(path))[0]
    assert "VLLM 0.24.0 on NVIDIA H100 80GB HBM3" in told
    assert "number formats not known here passed over: int3 (1 rows)" in told


def test_products_that_wait_for_the_host_are_passed_over(tmp_path: Path) -> None:
    row = {"gemm_dtype": "fp8_block", "k": 4096, **WHO}
    sizes = ((1, 1024, 0.18), (8, 1024, 0.20), (64, 1024, 0.18), (4096, 6144, 0.26), (32768, 6144, 0.9))
    path = write(tmp_path / "gemm.parquet", [{**row, "m": m, "n": n, "latency": ms} for m, n, ms in sizes])
    assert "products that wait for the host passed over: fp8_block (4 rows)" in provenance(cost_of(path))[0]
    assert kernel_ns(path, Gemm(32768, 6144, 4096, "fp8_block", quantise=True)) == pytest.approx(900_000)


def test_aiconfigurator_attention_is_told_apart_by_its_phase(tmp_path: Path) -> None:
    prompt = {"op_name": "context_attention", "batch_size": 2, "isl": 512, "step": 256, **ATTENTION}
    path = write(tmp_path / "context.parquet", [prompt])
    pairs = 2 * (512 * 256 + 512 * 513 / 2)
    assert kernel_ns(path, PromptAttention(1024, pairs, 2 * 768, 2, 32, 8, 128, 128)) == pytest.approx(50_000)
    token = {"op_name": "generation_attention", "batch_size": 16, "isl": 1, "step": 1023, "window_size": 0, **ATTENTION}
    path = write(tmp_path / "generation.parquet", [token, {**token, "window_size": 128, "latency": 0.01}])
    assert kernel_ns(path, TokenAttention(16, 16 * 1024, 32, 8, 128, 128)) == pytest.approx(50_000)
    assert kernel_ns(path, TokenAttention(16, 16 * 128, 32, 8, 128, 128, window=128)) == pytest.approx(10_000)


def test_aiconfigurator_experts(tmp_path: Path) -> None:
    sizes = {"num_tokens": 512, "hidden_size": 4096, "inter_size": 14336, "topk": 2, "num_experts": 8}
    row = {
        **sizes,
        "moe_dtype": "bfloat16",
        "moe_tp_size": 2,
        "moe_ep_size": 4,
        "distribution": "balanced",
        "latency": 1.0,
    }
    uneven = {**row, "distribution": "power_law_1.2", "latency": 1.5}
    balanced_by_copies = {**row, "distribution": "power_law_1.2_eplb"}
    path = write(tmp_path / "moe.parquet", [{**r, **WHO} for r in (row, uneven, balanced_by_copies)])
    even = Experts(512, 4096, 7168, 2, 8, 2)
    assert kernel_ns(path, even) == pytest.approx(1_000_000)
    assert kernel_ns(path, even._replace(skew=1.2)) == pytest.approx(1_500_000)
    assert "power_law_1.2_eplb (1 rows)" in provenance(cost_of(path))[0]


def test_aiconfigurator_collectives(tmp_path: Path) -> None:
    row = {"allreduce_dtype": "bfloat16", "num_gpus": 2, "message_size": 1 << 19, "latency": 0.014, **WHO}
    rows = [{**row, "backend": "vllm_graph"}, {**row, "backend": "vllm_eager", "latency": 0.06}]
    shape = Collective("all_reduce", 1 << 20, 2, "tensor")
    assert kernel_ns(write(tmp_path / "a.parquet", rows), shape) == pytest.approx(14_000)
    assert kernel_ns(write(tmp_path / "b.parquet", rows[1:]), shape) == pytest.approx(60_000)
    nccl = {"nccl_dtype": "half", "op_name": "all_gather", "num_gpus": 2, "message_size": 1 << 19, "latency": 0.02}
    path = write(tmp_path / "c.parquet", [{**nccl, **WHO}, {**nccl, **WHO, "nccl_dtype": "int8"}])
    assert kernel_ns(path, shape._replace(operation="all_gather")) == pytest.approx(20_000)


def test_vidur_layers_attention_and_collectives(tmp_path: Path) -> None:
    sizes = {"num_tensor_parallel_workers": 1, "n_head": 32, "n_kv_head": 8, "n_embd": 4096, "n_expanded_embd": 14336}
    layer = {f"time_stats.{name}.median": 0.03 for name in ("attn_pre_proj", "mlp_up_proj", "mlp_act")}
    empty = {"time_stats.mlp_down_proj.median": float("nan")}
    path = write(tmp_path / "mlp.parquet", [{"num_tokens": 64, "use_gated_mlp": True, **sizes, **layer, **empty}])
    for shape in (Gemm(64, 6144, 4096), Gemm(64, 28672, 4096)):
        assert kernel_ns(path, shape) == pytest.approx(30_000)
    assert kernel_ns(path, Elementwise(2 * 64 * 3 * 14336), "activation") == pytest.approx(30_000)
    down = Gemm(64, 4096, 14336)
    assert times_of(cost_of(path)).estimate((Operator("", 1, down),)) is None
    heads = {"n_embd": 4096, "n_q_head": 32, "n_kv_head": 8, "num_tensor_parallel_workers": 1, "batch_size": 1}
    rows = [
        {**heads, "prefill_chunk_size": 512, "kv_cache_size": 0, "is_prefill": True, "attn_prefill": 0.04},
        {**heads, "prefill_chunk_size": 0, "kv_cache_size": 1023, "is_prefill": False, "attn_decode": 0.02},
    ]
    for row in rows:
        for name in ("attn_prefill", "attn_decode"):
            row[f"time_stats.{name}.median"] = row.pop(name, None)
    path = write(tmp_path / "attention.parquet", rows)
    prompt = PromptAttention(512, 512 * 513 / 2, 512, 1, 32, 8, 128, 128)
    assert kernel_ns(path, prompt) == pytest.approx(40_000)
    assert kernel_ns(path, TokenAttention(1, 1024, 32, 8, 128, 128)) == pytest.approx(20_000)
    link = {"time_stats.all_reduce.median": 0.014, "num_workers": 2, "size": 1 << 20, "devices_per_node": 8}
    path = write(tmp_path / "all_reduce.csv", [link, {**link, "devices_per_node": 1}])
    assert kernel_ns(path, Collective("all_reduce", 1 << 20, 2, "tensor")) == pytest.approx(14_000)


def test_modules_of_latent_attention_are_timed_whole(tmp_path: Path) -> None:
    """attention = module - its projections, norms and copies, so that one layer's module comes out as measured."""
    model = load_model("deepseek-v3")
    what = {"model": "deepseek-ai/DeepSeek-V3", "mla_dtype": "bfloat16", "gemm_type": "bfloat16"}
    module = {**what, "kv_cache_dtype": "bfloat16", "num_heads": 128, **WHO}
    rows = [
        {**module, "op_name": "mla_generation_module", "batch_size": 32, "isl": 1, "step": 4095, "latency": 0.9},
        {**module, "op_name": "mla_context_module", "batch_size": 2, "isl": 1024, "step": 0, "latency": 4.0},
        {**module, "op_name": "mla_context_module", "batch_size": 2, "isl": 1024, "step": 0, "latency": 1.0},
    ]
    rows[-1]["mla_dtype"] = "fp8"
    path = write(tmp_path / "mla.parquet", rows)
    parameters = MeasuredParameters(tables=(str(path),))  # type: ignore[arg-type]
    cost = COSTS["measured"][1](parameters, Subject(model, Layout(), DEVICE, Precision()))
    assert isinstance(cost, RooflineCost)
    pairs = 2 * 1024 * 1025 // 2
    for work, ns in ((Work(batch=32, context=32 * 4096), 900_000), (Work(2048, pairs, 2), 4_000_000)):
        layer = [row.ns / row.calls for row in cost.operators(work) if row.name in PARTS]
        assert sum(layer) == pytest.approx(ns)
        assert cost.step_ns(work) == pytest.approx(sum(row.ns for row in cost.operators(work)))
    told = provenance(cost)
    assert "modules passed over: in fp8 (1 rows)" in told[0]
    assert "attention" in told[2].partition("from the roofline")[0]


def test_rows_that_are_aligned_alike_are_looked_at_first(tmp_path: Path) -> None:
    """Tables of fp8 blocks take 30% more where rows are no multiple of four: 300 rows are then as 256 and 512."""
    rows = [
        {"operator": "gemm", "rows": rows, "columns": 6144, "inner": 4096, "format": "fp8", "ns": ns}
        for rows, ns in ((256, 40_000), (257, 80_000), (512, 40_000), (513, 80_000), (1024, 99_000))
    ]
    times = times_of(cost_of(write(tmp_path / "gemm.csv", rows)))

    def ratio(count: int) -> float:
        shape = Gemm(count, 6144, 4096, "fp8")
        return times.kernel(Operator("", 1, shape)).ns / time_of(shape, DEVICE).ns

    assert min(ratio(256), ratio(512)) <= ratio(300) <= max(ratio(256), ratio(512))
    assert min(ratio(257), ratio(513)) <= ratio(301) <= max(ratio(257), ratio(513))
    assert ratio(300) < ratio(301)
    assert ratio(1023) == pytest.approx(ratio(1024), rel=0.01)  # beyond the last unaligned row all count


def test_prompts_measured_one_at_a_time_are_placed_by_all_tokens_of_a_step(tmp_path: Path) -> None:
    heads = {"heads": 32, "kv_heads": 8, "key_dim": 128, "value_dim": 128}
    rows = [
        {"operator": "prompt_attention", "tokens": tokens, "cached": 0, "ns": 1000 * tokens, **heads}
        for tokens in (128, 512, 2048)
    ]
    times = times_of(cost_of(write(tmp_path / "attention.csv", rows)))

    def ratio(sequences: int, tokens: int) -> float:
        count, pairs = sequences * tokens, sequences * tokens * (tokens + 1) / 2
        shape = PromptAttention(count, pairs, count, sequences, 32, 8, 128, 128)
        return times.kernel(Operator("", 1, shape)).ns / time_of(shape, DEVICE).ns

    assert ratio(4, 512) == pytest.approx(ratio(1, 2048))
