"""Published deployments of hundreds of expert-parallel ranks against a step of the engine, nothing fitted.

Sources, all below lmsys.org/blog: SGLang on 96 H100, and what it makes of DeepSeek's own profile of H800
(2025-05-05-large-scale-ep); SGLang on GB200 NVL72 (2025-09-25-gb200-part-2); Kimi K2 on 128 H200
(2025-07-17-k2-large-scale-ep). Throughput is that of ranks that are always full: tokens of a step over its time.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from simulator import load
from simulator.build.serving import plan
from simulator.device.cost import Cost
from simulator.model.forward import Work

PREFILL = 16_384
"""Prompt tokens of a rank and step, in all of them."""


class Deployment(NamedTuple):
    """One published figure."""

    what: str
    topology: str
    model: str
    ranks: int
    redundant: int
    precision: str
    overlap: str
    """Two micro-batches, and the share of the processors that the exchange takes from the other; empty: none."""
    batch: int
    """Sequences that decode on each rank; none: it prefills."""
    tokens: int
    """Of a prompt, or of a sequence that decodes, half of its answer included."""
    measured: float
    """Tokens/s of a rank."""
    balanced: bool
    """Whether experts were chosen at random in the measurement; else as by real texts, after a rebalancing."""


H100 = "{preset: clos-h100, nodes: 13}"
H200 = "{preset: clos-h100, nodes: 12, device: h200-sxm-141gb}"
H800 = "{preset: multi-rail-h800, nodes: 16}"
GB200 = "{preset: nvl72}"
DEVICES = {H100: "H100", H200: "H200", H800: "H800", GB200: "GB200"}
FP8, FP4 = "{kv: bf16}", "{weights: nvfp4, kv: fp8}"
MANY, FEW = "overlap: {processor_share: 0.15}", "overlap: {}"
"""DeepEP's kernels for many tokens hold 20 of 132 processors (arXiv:2412.19437), those for few none on the way."""
R1, K2 = "deepseek-r1", "kimi-k2"
FIGURES = (
    Deployment("SGLang, prefill of 1,024", H100, R1, 32, 32, FP8, MANY, 0, 1024, 57_674 / 8, False),
    Deployment("SGLang, prefill of 2,048", H100, R1, 32, 32, FP8, MANY, 0, 2048, 54_543 / 8, False),
    Deployment("SGLang, prefill of 4,096", H100, R1, 32, 32, FP8, MANY, 0, 4096, 50_302 / 8, False),
    Deployment("SGLang, prefill of 4,096", H100, R1, 32, 32, FP8, MANY, 0, 4096, 59_337 / 8, True),
    Deployment("DeepSeek's profile, prefill of 4,096", H800, R1, 32, 32, FP8, MANY, 0, 4096, 62_713 / 8, True),
    Deployment("SGLang, decode after 2,000", H100, R1, 72, 32, FP8, FEW, 256, 2050, 22_282 / 8, False),
    Deployment("DeepSeek's profile, decode after 4,096", H800, R1, 128, 0, FP8, FEW, 128, 4096, 18_598 / 8, True),
    Deployment("SGLang, Kimi K2, decode after 2,000", H200, K2, 96, 96, FP8, FEW, 480, 2050, 24_000 / 8, False),
    Deployment("SGLang, decode after 2,000", GB200, R1, 48, 32, FP4, "", 1408, 2050, 13_386, False),
)


def cost_of(figure: Deployment) -> Cost:
    """Return the cost of an engine as a scenario has it."""
    text = f"""
schema: 1
topology: {figure.topology}
workload: {{requests: 1, arrivals: {{poisson: {{rate: 1 / s}}}}, prompt_tokens: 8, output_tokens: 8}}
serving:
  model: {figure.model}
  precision: {figure.precision}
  cost: {{roofline: {{{figure.overlap}}}}}
  colocated:
    instances: 1
    layout: {{data: {figure.ranks}, expert: {figure.ranks}}}
    experts: {{redundant: {figure.redundant}}}
    kv: {{blocks: 100000}}
"""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "deployment.yaml"
        file.write_text(text, encoding="utf-8")
        [pool] = plan(load(file)).pools
    return pool.groups[0].engine.cost


def predicted(figure: Deployment) -> float:
    """Return the tokens/s of a rank."""
    size, batch = figure.tokens, figure.batch
    prompts = PREFILL // size
    if batch:
        work, tokens = Work(batch=batch, context=batch * size), batch
    else:
        work, tokens = Work(PREFILL, prompts * size * (size + 1) // 2, prompts), PREFILL
    return tokens / cost_of(figure).together_ns([work] * figure.ranks) * 1e9


def report(data: Path, out: Path, every: int = 1) -> Iterator[str]:
    """Yield one line for each figure; none of the arguments has a part in it."""
    columns = (
        "what",
        "on",
        "ranks",
        "sequences of a rank",
        "experts chosen",
        "tokens/s of a rank",
        "predicted",
        "ratio",
    )
    yield f"| {' | '.join(columns)} |"
    yield "|" + "---|" * len(columns)
    for figure in FIGURES:
        found, chosen = predicted(figure), "at random" if figure.balanced else "by texts"
        cells = (figure.what, DEVICES[figure.topology], figure.ranks, figure.batch or "", chosen)
        rates = (f"{figure.measured:,.0f}", f"{found:,.0f}", f"{found / figure.measured:.2f}")
        yield f"| {' | '.join(map(str, cells + rates))} |"
