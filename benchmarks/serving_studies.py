"""Runs the scenarios of scenarios/serving with what each varies, and prints the tables of docs/serving-studies.md.

Run as `python benchmarks/serving_studies.py [STUDY]...`; rows are Markdown. Those on public traces are left out where
the data is not beside the project.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from simulator import load, simulate
from simulator.results.metrics import lookup
from simulator.results.run import Run
from simulator.units import format_duration

ROOT = Path(__file__).parent.parent
SCENARIOS = ROOT / "scenarios"


class Variant(NamedTuple):
    """One row of a table: its name, and what it sets."""

    name: str
    sets: tuple[str, ...] = ()


class Study(NamedTuple):
    """One question: the scenario, its variants, and the metrics that answer it."""

    scenario: str
    variants: tuple[Variant, ...]
    columns: tuple[str, ...] = ("ttft.p50", "ttft.p99", "tpot.p50", "tpot.p99", "goodput", "tokens/s/device")


def _ratio(prefill: int) -> Variant:
    decode = 12 - prefill
    sets = (f"serving.prefill.instances={prefill}", f"serving.decode.instances={decode}")
    return Variant(f"{prefill}:{decode}", sets)


def _on_h100(prefill: int) -> tuple[str, ...]:
    decode = f"{{device: h100-sxm-80gb, instances: {12 - prefill}, layout: {{tensor: 4}}}}"
    return f"serving.prefill.instances={prefill}", f"serving.decode={decode}"


def _ranks(ranks: int, topology: str, plane: str, experts: str, precision: str) -> tuple[str, ...]:
    return (
        f"topology={topology}",
        f"serving.prefill.instances={-(-ranks // 80)}",
        f"serving.decode.layout={{data: {ranks}, expert: {ranks}}}",
        f"workload.arrivals={{closed_loop: {{clients: {48 * ranks}}}}}",
        f"workload.requests={100 * ranks}",
        f"serving.precision={precision}",
        f"serving.decode.experts={experts}",
        f"serving.kv_transfer.plane={plane}",
    )


UB, PLANES = "{preset: cloudmatrix384}", "{preset: multi-plane-h800, nodes: 56, device: h200-sxm-141gb}"
RAILS = "{preset: rail-only-h100, nodes: 56, device: h200-sxm-141gb}"
INT8, FP8 = "{weights: int8, kv: bf16}", "{weights: fp8_block, kv: bf16}"
COPIES = {
    32: "{redundant: 0, shared_copies: 0}",
    144: "{redundant: 32, shared_copies: 0}",
    320: "{redundant: 32, shared_copies: 32}",
}

TIERS = "serving.colocated.kv.prefix_cache.tiers"
HOST = "{capacity: 256 GiB, bandwidth: 50 GB/s}"
POOL = "{capacity: 2 TiB, bandwidth: 100 GB/s, shared: true}"
ONE_LINK = "{capacity: 16 TiB, bandwidth: 100 GB/s, write: through, shared: true}"

SLOW_NIC = "{what: nic, name: NODE/nic0, at: 0 s, left: 0.25}"

FULL = "tokens/s per decoding device"
"""Of the window in which an only decode engine makes the most: its batch is full."""

STUDIES: dict[str, Study] = {
    "prefill-decode-ratio": Study("serving/prefill-decode-ratio", tuple(map(_ratio, (2, 3, 4, 5, 6, 8)))),
    "long-prompts": Study(
        "serving/long-prompts",
        (
            Variant("chunks of 2,048"),
            Variant("chunks of 512", ("serving.colocated.batcher={chunked_prefill: {max_batch_tokens: 512}}",)),
            Variant("prefill first", ("serving.colocated.batcher=continuous",)),
            Variant("20 decode steps first", ("serving.colocated.batcher={continuous: {decode_steps: 20}}",)),
        ),
        ("ttft.p50", "ttft.p99", "itl.p50", "itl.p99", "itl.max", "goodput"),
    ),
    "shared-prompts": Study(
        "serving/shared-prompts",
        tuple(
            Variant(router, (f"serving.router={router}",))
            for router in ("round_robin", "least_loaded", "session_affinity", "prefix_aware")
        ),
        ("cached", "ttft.p50", "ttft.p99", "tpot.p99", "goodput"),
    ),
    "cache-tiers": Study(
        "serving/cache-tiers",
        (
            Variant("none", (f"{TIERS}=[]",)),
            Variant("host", (f"{TIERS}=[{HOST}]",)),
            Variant("host, pool written back", (f"{TIERS}=[{HOST}, {POOL}]",)),
            Variant("host, pool written through"),
            Variant("without prefetch", ("serving.colocated.kv.prefix_cache.prefetch=false",)),
            Variant("none, prefix-aware", (f"{TIERS}=[]", "serving.router=prefix_aware")),
            Variant("host, prefix-aware", (f"{TIERS}=[{HOST}]", "serving.router={prefix_aware: {tiers: true}}")),
            Variant("host and pool, prefix-aware", ("serving.router=prefix_aware",)),
        ),
        ("cached", "of it in device memory", "ttft.p50", "ttft.p99", "tpot.p99", "goodput"),
    ),
    "cache-pool-on-fabric": Study(
        "serving/cache-pool-on-fabric",
        (
            Variant("none", (f"{TIERS}=[]",)),
            Variant("UB plane"),
            Variant("VPC plane", (f"{TIERS}[0].fabric.plane=vpc",)),
            Variant("UB plane, written back", (f"{TIERS}[0].write=back",)),
            Variant("one link of 100 GB/s", (f"{TIERS}=[{ONE_LINK}]",)),
        ),
        ("cached", "of it in device memory", "ttft.p50", "ttft.p99", "tpot.p99", "goodput"),
    ),
    "experts-on-a-supernode": Study(
        "serving/experts-on-a-supernode",
        tuple(
            Variant(f"EP{ranks}, {name}", _ranks(ranks, topology, plane, COPIES[ranks], precision))
            for name, topology, plane, precision in (
                ("unified bus, 910C", UB, "rdma", INT8),
                ("multi-plane, H200", PLANES, "null", FP8),
                ("rail-only, H200", RAILS, "null", FP8),
            )
            for ranks in (32, 144, 320)
        ),
        ("tpot.p50", "tpot.p99", FULL),
    ),
    "kv-over-planes": Study(
        "serving/kv-over-planes",
        tuple(
            Variant(f"{plane}, {mode}", (f"serving.kv_transfer.plane={plane}", f"serving.kv_transfer.mode={mode}"))
            for plane in ("ub", "rdma", "vpc")
            for mode in ("whole", "layerwise")
        ),
        ("kv_transfer.p50", "kv_transfer.p99", "tpot.p99", "e2e.p50"),
    ),
    "caches-beside-experts": Study(
        "serving/caches-beside-experts",
        (
            Variant("as built"),
            Variant("collectives and caches apart", ("network.fidelity=load", "network.routing=ecmp")),
            Variant("30 % of the NICs taken", ("network.background=[{tier: nic-leaf, share: 0.3}]",)),
            Variant("a decode NIC at a quarter", (f"faults=[{SLOW_NIC.replace('NODE', 'node4')}]",)),
            Variant("a prefill NIC at a quarter", (f"faults=[{SLOW_NIC.replace('NODE', 'node0')}]",)),
        ),
        ("ttft.p50", "kv_transfer.p50", "kv_transfer.p99", "tpot.p50", "tpot.p99", "NICs of prefill", "NICs of decode"),
    ),
    "quantised-kv": Study(
        "serving/quantised-kv",
        (Variant("16 bits"), Variant("8 bits", ("serving.precision.kv=fp8",))),
        ("ttft.p50", "ttft.p99", "tpot.p50", "tpot.p99", "preemptions", "KV max", "goodput"),
    ),
    "servegen": Study(
        "traces/servegen-m-large",
        tuple(Variant(f"{n} engines", (f"serving.colocated.instances={n}",)) for n in (20, 24, 28, 32)),
    ),
    "servegen-thinned": Study(
        "traces/servegen-m-large",
        tuple(
            Variant(f"{share} on {n}", (f"workload.fraction={fraction}", f"serving.colocated.instances={n}"))
            for share, fraction, n in (
                ("all", 1, 32),
                ("1/4", 0.25, 8),
                ("1/16", 0.0625, 2),
                ("1/32", 0.03125, 1),
                ("1/20", 0.05, 2),
            )
        ),
    ),
    "servegen-last-hours": Study(
        "traces/servegen-m-large-two-weeks",
        tuple(
            Variant(f"{n} engines", ("workload.start=328 h", "topology.nodes=3", f"serving.colocated.instances={n}"))
            for n in (2, 3, 4, 5, 6)
        ),
    ),
    "mixed-devices": Study(
        "serving/mixed-devices",
        tuple(
            Variant(f"{rate} a second: {name}", (f"workload.arrivals.poisson.rate={rate} / s", *sets))
            for rate in (10, 16, 24)
            for name, sets in (
                ("6 on H100, 13 on H20", ()),
                ("6:6 on H100", _on_h100(6)),
                ("4:8 on H100", _on_h100(4)),
            )
        ),
        ("ttft.p50", "ttft.p99", "tpot.p50", "tpot.p99", "goodput"),
    ),
    "mixed-fleet": Study(
        "serving/mixed-fleet",
        (
            *(
                Variant(router, (f"serving.router={router}",))
                for router in ("round_robin", "least_loaded", "slo_aware", "cost_aware")
            ),
            Variant("cost_aware, 30 ms"),
        ),
        ("ttft.p50", "ttft.p99", "tpot.p50", "tpot.p99", "goodput", "to H100", "H100 busy"),
    ),
    "mooncake": Study(
        "traces/mooncake-conversation",
        tuple(
            Variant(router, (f"serving.router={router}",)) for router in ("round_robin", "least_loaded", "prefix_aware")
        ),
        ("cached", "ttft.p50", "ttft.p99", "tpot.p99", "goodput"),
    ),
}
NAMES = {"tokens/s/device": "throughput.output_tokens_per_s_per_device", "KV max": "utilisation.colocated.kv_max"}


def cell(run: Run, column: str) -> str:
    """Return one figure as text."""
    if column == "cached":
        rows = run.requests
        return f"{rows.cached_tokens.sum() / rows.prompt_tokens.sum():.1%}"
    if column == "of it in device memory":
        tiers = run.summary.get("tiers", {"colocated": []})["colocated"]
        return f"{1 - sum(tier['found_tokens'] for tier in tiers) / run.requests.cached_tokens.sum():.1%}"
    if column == FULL:
        rows = run.instances[run.instances.role == "decode"]
        devices = load(run.path / "scenario.yaml").serving.decode.layout.devices
        return f"{(rows.output_tokens / (rows.end_ns - rows.start_ns)).max() * 1e9 / devices:,.0f}"
    if column.startswith("NICs of "):
        first = {"prefill": 0, "decode": 4}[column.removeprefix("NICs of ")]
        out = run.links[run.links.source.str.fullmatch(f"node[{first}-{first + 3}]/nic[0-7]")]
        could = out.capacity_bytes_per_s * (run.manifest["simulated_ns"] / 1e9)
        return f"{(out.engine_bytes / could).mean():.0%}"
    if column == "to H100":
        return f"{run.requests.prefill_instance.str.startswith('colocated-fast').mean():.1%}"
    if column == "H100 busy":
        return f"{run.summary['utilisation']['colocated']['groups']['fast']['busy']:.1%}"
    value = lookup(run.summary, NAMES.get(column, column))
    if value is None:
        return "-"
    if column in ("goodput", "KV max"):
        return f"{value:.1%}"
    return f"{value:,.0f}" if column in ("tokens/s/device", "preemptions") else format_duration(value * 1e9)


def table(study: Study) -> str:
    """Return the Markdown table of one study."""
    lines: list[Sequence[str]] = [("", *study.columns), ["---"] * (1 + len(study.columns))]
    for variant in study.variants:
        with tempfile.TemporaryDirectory() as folder:
            run = simulate(load(SCENARIOS / f"{study.scenario}.yaml", variant.sets), out=Path(folder) / "run")
            lines.append((variant.name, *(cell(run, column) for column in study.columns)))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Print the tables of the studies named, or of all."""
    for name in sys.argv[1:] or STUDIES:
        study = STUDIES[name]
        if study.scenario.startswith("traces/") and not (ROOT.parent / "shared" / "data").is_dir():
            print(f"{name}: left out, the public traces are not beside the project", file=sys.stderr)
            continue
        print(f"### {name}\n\n{table(study)}\n", flush=True)


if __name__ == "__main__":
    main()
