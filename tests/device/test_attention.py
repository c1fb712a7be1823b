"""Fused attention: bounds and identities of both kernels, MLA's two forms by hand, and the measured tables."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import catalog
from simulator.device.accelerator import Accelerator, load_accelerator
from simulator.device.attention import BLOCK, prompt_attention, token_attention
from simulator.device.kernels import Kernel
from simulator.model.forward import Pass, Work
from simulator.model.layout import Layout
from simulator.model.operators import Elementwise, Gemm, Operator, PromptAttention, TokenAttention
from simulator.model.precision import Precision
from simulator.model.transformer import Transformer

DEVICES = [load_accelerator(name) for name in catalog.names("topologies/devices")]
H100 = load_accelerator("h100-sxm-80gb")
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
NS = 1e9
ALMOST = 1 - 1e-12

device_of = st.sampled_from(DEVICES)
heads_of = st.sampled_from([(1, 1), (8, 1), (32, 8), (64, 8), (96, 1), (32, 32)])
dim_of = st.sampled_from([64, 128, 192, 256, 512])
cache_of = st.sampled_from(["bf16", "fp8"])


def prompts(
    tokens: int, cached: int, count: int, heads: tuple[int, int], dim: int, kv: str = "bf16", window: int = 0
) -> PromptAttention:
    """Return `count` prompts of `tokens` new positions each after `cached` ones."""
    pairs = tokens * cached + tokens * (tokens + 1) / 2
    kv_tokens = tokens + cached
    return PromptAttention(tokens * count, pairs * count, kv_tokens * count, count, *heads, dim, dim, kv, window)


def floor_ns(flops: float, size_bytes: float, device: Accelerator) -> float:
    return NS * max(flops / device.rate("bf16"), size_bytes / device.memory.bandwidth)


@given(device_of, st.integers(1, 20_000), st.integers(0, 100_000), st.integers(1, 64), heads_of, dim_of, cache_of)
def test_prompts_never_beat_the_roofline(
    device: Accelerator, tokens: int, cached: int, count: int, heads: tuple[int, int], dim: int, kv: str
) -> None:
    shape = prompts(tokens, cached, count, heads, dim, kv)
    kernel = prompt_attention(shape, device)
    assert kernel.flops == 4 * heads[0] * dim * shape.pairs
    assert kernel.size_bytes == shape.size_bytes
    assert kernel.ns >= floor_ns(kernel.flops, kernel.size_bytes, device) * ALMOST


@given(device_of, st.integers(1, 2048), st.floats(1, 1e5), heads_of, dim_of, cache_of, st.integers(1, 4))
def test_decode_never_beats_the_roofline(
    device: Accelerator, batch: int, each: float, heads: tuple[int, int], dim: int, kv: str, queries: int
) -> None:
    shape = TokenAttention(batch, batch * each, *heads, dim, dim, kv, queries)
    kernel = token_attention(shape, device)
    assert kernel.flops == pytest.approx(4 * queries * heads[0] * dim * shape.context, rel=1e-12)
    assert kernel.ns >= floor_ns(kernel.flops, kernel.size_bytes, device) * ALMOST


@given(
    device_of,
    st.integers(2, 5000),
    st.integers(0, 300),
    st.integers(0, 50_000),
    st.integers(0, 5000),
    st.integers(1, 64),
    heads_of,
    st.sampled_from([0, 128, 4096]),
)
def test_more_positions_or_a_longer_prefix_are_never_faster(
    device: Accelerator,
    tokens: int,
    more: int,
    cached: int,
    longer: int,
    count: int,
    heads: tuple[int, int],
    window: int,
) -> None:
    def ns(tokens: int, cached: int) -> float:
        work = Work(tokens * count, count * (tokens * cached + tokens * (tokens + 1) / 2), count)
        return prompt_attention(grouped(*heads, 128).prompt_attention(work, window), device).ns

    low = ns(tokens, cached) * ALMOST
    assert ns(tokens + more, cached) >= low
    assert ns(tokens, cached + longer) >= low


@given(device_of, st.integers(1, 2048), st.floats(1, 1e5), st.floats(0, 1e5), heads_of, st.sampled_from([0, 128]))
def test_a_longer_context_is_never_faster(
    device: Accelerator, batch: int, each: float, more: float, heads: tuple[int, int], window: int
) -> None:
    def ns(each: float) -> float:
        return token_attention(grouped(*heads, 128).token_attention(batch, batch * each, 1, window), device).ns

    assert ns(each + more) >= ns(each) * ALMOST


@given(device_of, st.integers(1, 1024), st.floats(4 * BLOCK, 1e5), st.floats(0, 1), heads_of)
def test_decode_is_nearly_straight_between_contexts_half_an_octave_apart(
    device: Accelerator, batch: int, each: float, part: float, heads: tuple[int, int]
) -> None:
    def ns(each: float) -> float:
        return token_attention(TokenAttention(batch, batch * each, *heads, 128, 128), device).ns

    end = each * 2**0.5
    line = ns(each) + part * (ns(end) - ns(each))
    assert ns(each + part * (end - each)) == pytest.approx(line, rel=0.05)


@given(device_of, st.integers(1, 512), st.integers(1, 5000), st.integers(0, 5000), st.integers(0, 5000))
def test_a_window_as_wide_as_the_context_is_none(
    device: Accelerator, batch: int, tokens: int, cached: int, wider: int
) -> None:
    part, window = grouped(32, 8, 128), tokens + cached + wider
    work = Work(tokens * batch, batch * (tokens * cached + tokens * (tokens + 1) / 2), batch)
    assert prompt_attention(part.prompt_attention(work, window), device) == prompt_attention(
        part.prompt_attention(work), device
    )
    context = float(batch * (tokens + cached))
    windowed = token_attention(part.token_attention(batch, context, 1, window), device)
    assert windowed == token_attention(part.token_attention(batch, context), device)


@given(device_of, st.integers(1, 64), st.integers(1000, 50_000))
def test_a_window_bounds_what_a_context_costs(device: Accelerator, batch: int, each: int) -> None:
    part = grouped(32, 8, 128)
    at, far = (part.token_attention(batch, batch * c, 1, 512) for c in (each, 10 * each))
    assert at == far
    full = token_attention(part.token_attention(batch, 16.0 * batch * each), device).ns
    assert token_attention(at, device).ns < full


@given(device_of, st.integers(2, 5000), st.integers(0, 9000), st.integers(1, 64), st.sampled_from([1, 8, 32]))
def test_heads_that_share_nothing_are_not_packed(
    device: Accelerator, tokens: int, cached: int, count: int, heads: int
) -> None:
    """Packing gathers the queries of a KV head: with as many KV heads as heads (MHA) there is nothing to gather."""
    shape = prompts(tokens, cached, count, (heads, heads), 128)
    one, other = (prompt_attention(shape, with_prompt_constants(device, packed=packed)) for packed in (True, False))
    assert one == other


def with_prompt_constants(device: Accelerator, **values: object) -> Accelerator:
    fits = {kv: fit.model_copy(update=values) for kv, fit in device.fitted.prompt_attention.items()}
    return device.model_copy(update={"efficiency": device.fitted.model_copy(update={"prompt_attention": fits})})


def test_decode_runs_in_waves_of_one_tile_per_processor() -> None:
    """Tiles: one per sequence and KV head, P processors: P + 1 tiles take the time of 2 P, twice that of P."""
    fit, rate = H100.fitted.token_attention_in("bf16"), H100.rate("bf16")
    # a tile of 64 rows takes 2 * 64 * 256 operations a key, and no fewer than 128 keys
    tile_ns = fit.tile + 128 * (2 * 64 * 256 / (rate / H100.processors) * NS + 256 * fit.feed / 1000)

    def compute_ns(tiles: int) -> float:
        return token_attention(TokenAttention(tiles, tiles, 4, 1, 128, 128), H100).compute_ns

    assert compute_ns(H100.processors) == pytest.approx(tile_ns, rel=1e-12)
    assert compute_ns(H100.processors + 1) == compute_ns(2 * H100.processors) == pytest.approx(2 * tile_ns, rel=1e-12)


def test_keys_of_few_sequences_are_split_over_the_processors() -> None:
    """T tiles of N keys on P processors: split, each processor walks over T N / P; not where that gains too little."""
    fit = H100.fitted.token_attention_in("bf16")
    alone = token_attention(TokenAttention(4, 4 * 65536, 32, 8, 128, 128), H100)
    key_ns = 2 * 64 * 256 / (H100.rate("bf16") / H100.processors) * NS + 256 * fit.feed / 1000
    assert alone.compute_ns == pytest.approx(fit.tile + 65536 * 32 / H100.processors * key_ns, rel=1e-12)
    assert alone.fixed_ns == fit.launch + fit.combine
    assert token_attention(TokenAttention(4, 4 * BLOCK, 32, 8, 128, 128), H100).fixed_ns == fit.launch


def test_queries_that_share_a_kv_head_cost_no_more_tiles_than_one() -> None:
    def compute_ns(heads: int, queries: int) -> float:
        return token_attention(TokenAttention(2048, 2048 * 100, heads, 1, 128, 128, queries=queries), H100).compute_ns

    assert compute_ns(1, 1) == compute_ns(64, 1) == compute_ns(16, 4)
    assert compute_ns(128, 1) > 1.9 * compute_ns(64, 1)


def test_a_chunk_after_a_prefix_costs_what_its_pairs_do() -> None:
    """n new of N in chunks: the pairs add up to N (N + 1) / 2, so chunks cost what the whole does and overheads."""
    whole = prompt_attention(prompts(32768, 0, 1, (32, 8), 128), H100).ns
    chunks = sum(prompt_attention(prompts(2048, start, 1, (32, 8), 128), H100).ns for start in range(0, 32768, 2048))
    assert whole < chunks < 1.2 * whole


def grouped(heads: int, kv_heads: int, dim: int) -> Pass:
    return passing({"kind": "grouped", "heads": heads, "kv_heads": kv_heads, "head_dim": dim})


def passing(attention: dict[str, object]) -> Pass:
    card = {
        "name": "one-layer",
        "hidden": 256,
        "intermediate": 512,
        "layers": 1,
        "vocabulary": 1000,
        "attention": attention,
        "max_context": 1 << 20,
        "sources": {},
    }
    return Pass(Transformer.model_validate(card), Layout(), Precision())


def multiplied(rows: list[Operator]) -> dict[str, float]:
    return {row.name: row.shape.flops for row in rows if isinstance(row.shape, Gemm | PromptAttention | TokenAttention)}


def test_both_forms_of_mla_multiply_what_their_formulas_say() -> None:
    """H heads of no-position, rotary and value widths d, e and v over latents of width r; n queries, N keys, p pairs.

    Explicit: keys and values of all N positions are made from latents, 2 N r H (d + v), and attended at width
    d + e and v: 2 p H (d + e + v). Absorbed: queries and results pass through the latent space, 2 n H d r and
    2 n H r v, and attend at width r + e and r: 2 p H (2 r + e). The same product either way: where each
    position is queried once, n = N, explicit making costs what absorbing does.
    """
    heads, d, e, v, r = 16, 128, 64, 96, 512
    part = passing(
        {
            "kind": "latent",
            "heads": heads,
            "kv_rank": r,
            "nope_dim": d,
            "rope_dim": e,
            "value_dim": v,
            "query_rank": 384,
        }
    )
    n = 1000
    pairs = n * (n + 1) / 2
    explicit = multiplied(part.operators(Work(n, pairs, 1)))
    absorbed = multiplied(part.operators(Work(batch=n, context=pairs)))
    assert explicit["key and value projection"] == 2 * n * r * heads * (d + v)
    assert explicit["prompt attention"] == 2 * pairs * heads * (d + e + v)
    assert absorbed["absorbed key projection"] == 2 * n * heads * d * r
    assert absorbed["absorbed value projection"] == 2 * n * heads * r * v
    assert absorbed["attention"] == 2 * pairs * heads * (2 * r + e)
    made = absorbed["absorbed key projection"] + absorbed["absorbed value projection"]
    assert explicit["key and value projection"] == made
    shared = ("query and latent projection", "query projection", "output projection")
    assert [explicit[name] for name in shared] == [absorbed[name] for name in shared]


@pytest.fixture(scope="module")
def measured(pytestconfig: pytest.Config) -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(pytestconfig.rootpath / "benchmarks"))
        if not (DATA / "aiconfigurator").is_dir():
            pytest.skip("the measured tables (../shared/data) are not here")
        yield importlib.import_module("operators.attention")


@pytest.mark.parametrize("device", ["a100-sxm-80gb", "h100-sxm-80gb", "b200-sxm", "gb200"])
def test_left_out_shapes_are_predicted(measured: ModuleType, device: str) -> None:
    sheet = load_accelerator(device)
    for (kind, kv), (frame, mask) in measured.tables(DATA, device).items():
        rows = frame[mask].iloc[::5]
        off = abs(measured.predicted(kind, rows, sheet) / rows["ns"].to_numpy() - 1)
        assert len(off) > 200, (kind, kv)
        assert sorted(off)[len(off) // 2] < 0.12, (kind, kv)
        assert off.mean() < 0.20, (kind, kv)


A100 = load_accelerator("a100-sxm-80gb")


def test_decodes_beside_prompts_are_tiles_of_their_call_where_heads_are_not_packed() -> None:
    """B sequences of H heads on P processors: ceil(B H / P) waves of tiles with one query each, no key split."""
    fit = A100.fitted.prompt_attention_in("bf16")
    shape = TokenAttention(40, 40 * 2000, 32, 8, 128, 128, mixed=True)
    key_ns = 2 * fit.rows * 256 / (A100.rate("bf16") / A100.processors) * NS / fit.compute
    key_ns += fit.rows * fit.softmax / 1000
    kernel = token_attention(shape, A100)
    assert kernel.compute_ns == pytest.approx(12 * (fit.tile + 2000 * key_ns), rel=1e-12)  # ceil(1280 / 108) = 12
    assert kernel.fixed_ns == 0
    assert kernel.ns > 1.9 * token_attention(shape._replace(mixed=False), A100).ns


def test_decodes_beside_prompts_share_their_launch_where_heads_are_packed() -> None:
    shape = TokenAttention(40, 40 * 2000, 32, 8, 128, 128)
    apart, along = token_attention(shape, H100), token_attention(shape._replace(mixed=True), H100)
    assert apart.ns - along.ns == H100.fitted.token_attention_in("bf16").launch


LATENT = {"kind": "latent", "heads": 128, "kv_rank": 512, "nope_dim": 128, "rope_dim": 64, "value_dim": 128}


@given(device_of, st.integers(1, 1024), st.floats(1, 1e5), st.floats(0, 1e5), st.sampled_from([1, 16, 128]), cache_of)
def test_decode_over_latents_never_beats_the_roofline_and_grows_with_the_context(
    device: Accelerator, batch: int, each: float, more: float, heads: int, kv: str
) -> None:
    def kernel(each: float) -> Kernel:
        return token_attention(TokenAttention(batch, batch * each, heads, 1, 576, 512, kv, latent=True), device)

    near = kernel(each)
    assert near.ns >= floor_ns(near.flops, near.size_bytes, device) * ALMOST
    assert kernel(each + more).ns >= near.ns * ALMOST


def test_prompts_of_a_latent_cache_have_constants_and_copies_of_their_own() -> None:
    part = passing(LATENT)
    rows = {row.name: row for row in part.operators(Work(1000, 500500, 1))}
    assert not rows["prompt attention"].shape.stored
    # 576 values are read in 16 bits and kept in 16; 128 heads join 128 values with 64 shared ones
    assert rows["latent cache write"].shape == Elementwise(1000 * 576 * 4)
    assert rows["key assembly"].shape == Elementwise(1000 * 128 * (128 + 192) * 2)
    own = H100.fitted.prompt_attention_in("bf16", latent=True)
    assert own != H100.fitted.prompt_attention_in("bf16")
    assert A100.fitted.prompt_attention_in("bf16", latent=True) == A100.fitted.prompt_attention_in("bf16")


def test_left_out_mla_modules_are_predicted(measured: ModuleType) -> None:
    """B200's modules from their operators alone; H100's and GB200's with the host's time, fitted on the others."""
    modules = importlib.import_module("operators.latent_attention")
    for name in modules.DEVICES:
        sheet = load_accelerator(name)
        for (kind, kv), (frame, mask) in modules.tables(DATA, name).items():
            module = modules.modules(frame[mask].iloc[::3], sheet)
            predicted = module.rest_ns + modules.attention_ns(module, sheet)
            if name != "b200-sxm":
                fitted = modules.fit_beside(kind, frame[~mask].iloc[::5], sheet)
                predicted = predicted + modules.beside_ns(module, fitted)
            off = abs(predicted / module.rows["ns"].to_numpy() - 1)
            assert sorted(off)[len(off) // 2] < 0.13, (name, kind, kv)
            assert off.mean() < 0.20, (name, kind, kv)
