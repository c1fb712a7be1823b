"""Attention of other engines and devices, of which nothing was fitted: how far kernels and borrowed constants carry.

H800 (InferSim: FlashAttention-3, FlashMLA), A800 as A100 (Frontier: FlashInfer, the cache written apart), H100 with
FlashAttention-2 and TPU v6e (LLMServingSim, first profile), RTX 4090 and RTX PRO 6000 (LLMServingSim: vLLM with
FlashAttention-2), where prompts and decodes also share steps. Decodes of the first profile on H100 are left out: whose
context it has is not said.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simulator.device.accelerator import Accelerator, load_accelerator
from simulator.device.attention import prompt_attention, token_attention
from simulator.model.operators import PromptAttention, TokenAttention

from .fitting import Row, error, errors_by_decade

EVERY = 5
"""Every fifth row of the large tables is enough."""


def transfer(data: Path) -> Iterator[Row]:
    """Yield the errors of each table and kind of step."""
    yield from _infersim(data / "infersim")
    yield from _frontier(data / "frontier" / "a800.meta-llama.Llama-2-7b-hf.attention.parquet")
    first = pd.read_parquet(data / "llmservingsim" / "profile-v0" / "H100" / "Llama-3.1-70B.attention.parquet")
    rows = first[first["is_prefill"]]
    yield _row(
        "prompts after prefixes, FlashAttention-2",
        "h100-sxm-80gb",
        rows,
        lambda r, device: _prompts(
            r.prefill_chunk_size, r.kv_cache_size, r.n_q_head // r.tp, r.n_kv_head // r.tp, device
        ),
        "time_stats.attn_prefill.median",
        1e6,
    )
    yield from _tpu(data / "llmservingsim" / "profile-v0" / "TPU-v6e-1" / "Llama-3.1-8B.attention.parquet")
    for name, folder, heads in (
        ("rtx-4090", "RTX4090/Llama-3.1-8B", 32),
        ("rtx-pro-6000", "RTXPRO6000/Llama-3.1-8B", 32),
        ("rtx-pro-6000", "RTXPRO6000/Qwen3-32B", 64),
    ):
        frame = pd.read_parquet(data / "llmservingsim" / "profile" / folder / "attention.parquet").iloc[::EVERY]
        prompts, decodes = frame["prefill_chunk"] > 0, frame["n_decode"] > 0
        for what, rows in (
            ("prompts", frame[prompts & ~decodes]),
            ("decodes", frame[decodes & ~prompts]),
            ("mixed steps", frame[prompts & decodes]),
        ):
            yield _row(
                f"{what}, {folder.split('/')[1]}", name, rows, lambda r, d, h=heads: _step(r, h, 8, d), "time_us", 1e3
            )


def _row(
    what: str,
    name: str,
    rows: pd.DataFrame,
    predict: Callable[[Any, Accelerator], float],
    column: str,
    unit_ns: float,
) -> Row:
    device = load_accelerator(name)
    predicted = np.array([predict(row, device) for row in rows.rename(columns={column: "time"}).itertuples()])
    return error(what, name, "bf16", predicted, rows[column].to_numpy() * unit_ns)


def _prompts(new: int, cached: int, heads: int, kv_heads: int, device: Accelerator, stored: bool = True) -> float:
    pairs = new * cached + new * (new + 1) / 2
    shape = PromptAttention(new, pairs, new + cached, 1, heads, kv_heads, 128, 128, stored=stored)
    return prompt_attention(shape, device).ns


def _decodes(batch: int, cached: int, heads: int, kv_heads: int, device: Accelerator, mixed: bool = False) -> float:
    shape = TokenAttention(batch, float(batch * (cached + 1)), heads, kv_heads, 128, 128, mixed=mixed)
    return token_attention(shape, device).ns


def _step(row: Any, heads: int, kv_heads: int, device: Accelerator) -> float:
    heads, kv_heads = heads // row.tp, max(1, kv_heads // row.tp)
    total_ns = 0.0
    if row.prefill_chunk:
        total_ns += _prompts(row.prefill_chunk, row.kv_prefill, heads, kv_heads, device)
    if row.n_decode:
        total_ns += _decodes(row.n_decode, row.kv_decode, heads, kv_heads, device, mixed=row.prefill_chunk > 0)
    return total_ns


def _infersim(folder: Path) -> Iterator[Row]:
    name = "h800-sxm-80gb"
    device, frame = load_accelerator(name), pd.read_csv(folder / "h800.mha.csv")
    found = []
    for row in frame.itertuples():
        heads, kv_heads, dim = map(int, row.file.split("-"))
        shape = TokenAttention(row.batch_size, float(row.batch_size * row.kv_len), heads, kv_heads, dim, dim)
        found.append(token_attention(shape, device).ns)
    yield from errors_by_decade("decodes", name, "bf16", np.array(found), frame["latency_us"].to_numpy() * 1e3)
    frame = pd.read_csv(folder / "h800.mla.csv")
    decodes, prompts = (frame[frame["phase"] == phase] for phase in ("decode", "prefill"))
    shapes = [
        TokenAttention(int(r.batch_size), r.batch_size * r.kv_len, 128, 1, 576, 512, latent=True)
        for r in decodes.itertuples()
    ]
    found = [token_attention(shape, device).ns for shape in shapes]
    yield error("decodes, MLA", name, "bf16", np.array(found), decodes["latency_us"].to_numpy() * 1e3)
    lengths = [int(n) for n in prompts["seq_len"]]
    found = [
        prompt_attention(PromptAttention(n, n * (n + 1) / 2, n, 1, 128, 128, 192, 128, stored=False), device).ns
        for n in lengths
    ]
    yield error("prompts, MLA", name, "bf16", np.array(found), prompts["latency_us"].to_numpy() * 1e3)


def _tpu(file: Path) -> Iterator[Row]:
    frame = pd.read_parquet(file)
    prompts, decodes = frame[frame["is_prefill"]], frame[~frame["is_prefill"]].iloc[::EVERY]
    yield _row(
        "prompts, an early kernel",
        "tpu-v6e",
        prompts,
        lambda r, device: _prompts(r.prefill_chunk_size, r.kv_cache_size, 32, 8, device),
        "p50_ns",
        1,
    )
    yield _row(
        "decodes, an early kernel",
        "tpu-v6e",
        decodes,
        lambda r, device: _decodes(r.batch_size, r.kv_cache_size, 32, 8, device),
        "p50_ns",
        1,
    )


def _frontier(file: Path) -> Iterator[Row]:
    frame, name = pd.read_parquet(file), "a100-sxm-80gb"
    prompts = frame[frame["is_prefill"]]
    yield _row(
        "prompts, FlashInfer",
        name,
        prompts[prompts["prefill_chunk_size"] > 0],
        lambda r, device: _prompts(r.prefill_chunk_size, r.kv_cache_size, 32, 32, device, stored=False),
        "time_stats.attn_prefill.median",
        1e6,
    )
    yield _row(
        "decodes, FlashInfer",
        name,
        frame[~frame["is_prefill"]].iloc[::EVERY],
        lambda r, device: _decodes(r.batch_size, r.kv_cache_size, 32, 32, device),
        "time_stats.attn_decode.median",
        1e6,
    )
