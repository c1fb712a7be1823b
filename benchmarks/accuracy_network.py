"""Says how far collectives and expert exchanges are from measurements, on fitted tables, left-out sizes and others.

Run `python benchmarks/accuracy_network.py` (about a minute, most of it the fits without one group size); it prints the
tables of docs/collectives.md and writes them as JSON. Nothing here changes the shipped constants.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from calibrate_network import (
    BITS,
    DATA,
    ENGINE_LIMIT,
    EXCHANGES,
    FEW_EXPERTS,
    LINK,
    LOW_LATENCY_ONLY,
    RANKS,
    ROOT,
    SUPERNODE,
    TABLES,
    assemble,
    engine_table,
    exchange_table,
    exchange_traffic,
    fit_device,
    least_ns,
    nccl_table,
    send_table,
    supernode_model,
    supernode_ns,
)

from simulator.network.collectives import choices
from simulator.network.collectives_constants import CollectiveConstants, load_constants
from simulator.network.collectives_shape import GroupShape, group_shape
from simulator.network.dispatch import exchange_ns, token_bytes
from simulator.network.expert_routing import ExpertRouting
from simulator.network.group_times import exchange
from simulator.topology import build_topology

Row = dict[str, Any]
NIC = 50e9


def error(what: str, where: str, model: np.ndarray, measured: np.ndarray) -> Row:
    """Return one row of an error table; times in any one unit."""
    off = np.abs(model / measured - 1)
    return {
        "what": what,
        "where": where,
        "rows": len(off),
        "median": float(np.median(off)),
        "mean": float(np.mean(off)),
        "worst": float(np.max(off)),
        "ratio": float(np.median(model / measured)),
    }


def by(frame: pd.DataFrame, model: np.ndarray, device: str, *keys: str) -> Iterator[Row]:
    """Yield an error row for each combination of `keys`."""
    for values, rows in frame.groupby(list(keys)).indices.items():
        label = " ".join(str(value) for value in values)
        yield error(label, device, model[rows], frame["ns"].to_numpy()[rows])


def library(data: Path, constants: dict[str, CollectiveConstants]) -> dict[str, list[Row]]:
    """Return the errors on the fitted NCCL tables: over all, by operation, by ranks and by decade of bytes."""
    tables: dict[str, list[Row]] = {"all": [], "operation and ranks": [], "operation and decade of bytes": []}
    for device in TABLES:
        frame = nccl_table(data, device)
        frame["decade"] = ["1e" + str(int(np.log10(b))) for b in frame["bytes"]]
        model = least_ns(constants[device], device, frame)
        tables["all"].append(error("NCCL", device, model, frame["ns"].to_numpy()))
        tables["operation and ranks"] += by(frame, model, device, "operation", "ranks")
        tables["operation and decade of bytes"] += by(frame, model, device, "operation", "decade")
        engine = engine_table(data, device)
        engine = engine[engine["bytes"] < ENGINE_LIMIT].reset_index(drop=True)
        model = least_ns(constants[device], device, engine, engine=True)
        tables["all"].append(error("engine's all-reduce", device, model, engine["ns"].to_numpy()))
        sends = send_table(data, device)
        if sends is not None:
            model = least_ns(constants[device], device, sends)
            tables["all"].append(error("Vidur, send_receive", device, model, sends["ns"].to_numpy()))
    return tables


def left_out(data: Path) -> Iterator[Row]:
    """Yield the errors on one group size with constants fitted on the others."""
    for device in TABLES:
        for ranks in (4,) if device in RANKS else (4, 8):
            constants = assemble(*fit_device(data, device, left_out=ranks))
            frame = nccl_table(data, device)
            frame = frame[frame["ranks"] == ranks].reset_index(drop=True)
            model = least_ns(constants, device, frame)
            yield error(f"NCCL, {ranks} ranks left out", device, model, frame["ns"].to_numpy())
            engine = engine_table(data, device)
            engine = engine[(engine["bytes"] < ENGINE_LIMIT) & (engine["ranks"] == ranks)].reset_index(drop=True)
            model = least_ns(constants, device, engine, engine=True)
            yield error(f"engine's all-reduce, {ranks} ranks left out", device, model, engine["ns"].to_numpy())


def elsewhere(data: Path, constants: dict[str, CollectiveConstants]) -> Iterator[Row]:
    """Yield the errors on tables that no constant has seen, within one node."""
    for device in ("a100-sxm", "h100-sxm"):
        path = data / "vidur" / "network" / f"{device.removesuffix('-sxm')}_dgx.all_reduce.parquet"
        frame = pd.read_parquet(path)
        frame = frame[(frame["devices_per_node"] == frame["num_workers"]) & (frame["num_workers"] > 1)]
        ns = frame["time_stats.all_reduce.median"] * 1e6
        columns = {"operation": "all_reduce", "ranks": frame["num_workers"], "bytes": frame["size"], "ns": ns}
        frame = pd.DataFrame(columns).reset_index(drop=True)
        model, measured = least_ns(constants[device], device, frame), frame["ns"].to_numpy()
        yield error("Vidur, all_reduce", device, model, measured)
        large = frame["bytes"].to_numpy() >= 1 << 20
        yield error("Vidur, all_reduce, from 1 MiB", device, model[large], measured[large])
    frame = pd.read_csv(data / "apex-plus" / "comm.H100-SXM-80GB.csv")
    frame = frame[frame["size(kb)"] > 0]
    names = {"alltoall": "all_to_all", "sendrecv": "send_receive"}
    frame = pd.DataFrame(
        {
            "operation": frame["op"].replace(names),
            "ranks": frame["num_gpus_per_node"],
            "bytes": frame["size(kb)"] * 1024,
            "ns": frame["time(us)"] * 1e3,
        }
    ).reset_index(drop=True)
    model = least_ns(constants["h100-sxm"], "h100-sxm", frame)
    for operation, rows in frame.groupby("operation").indices.items():
        yield error(f"APEX+, {operation}", "h100-sxm", model[rows], frame["ns"].to_numpy()[rows])
    table = data / "aiconfigurator" / "h100_sxm" / "comm.trtllm.1.3.0rc20.custom_allreduce_perf.parquet"
    frame = pd.read_parquet(table)
    frame = frame.assign(operation="all_reduce", ranks=frame["num_gpus"], bytes=2 * frame["message_size"])
    frame = frame[frame["bytes"] < ENGINE_LIMIT].reset_index(drop=True)
    model = least_ns(constants["h100-sxm"], "h100-sxm", frame, engine=True)
    yield error(
        "TensorRT-LLM's own all-reduce by vLLM's constants", "h100-sxm", model, frame["latency"].to_numpy() * 1e6
    )


def pod(nodes: int) -> GroupShape:
    """Return the shape of whole nodes of 8 x H100 on non-blocking rails of 400 Gb/s."""
    return GroupShape(8 * nodes, nodes, 8, LINK["h100-sxm"], NIC, NIC, latency_ns=2800)


def between_nodes(data: Path, constants: dict[str, CollectiveConstants]) -> Iterator[Row]:
    """Yield the errors of all-reduces across nodes: two nodes of H100, and SimAI's ratios of the NIC's rate."""
    frame = pd.read_csv(data / "oci-hpc" / "nccl_tests_2node_h100.csv")
    lines = choices("all_reduce", pod(2), constants["h100-sxm"])
    model = np.array([min(line.time_ns(size) for line in lines) for size in frame["size_B"]])
    yield error("OCI, 2 nodes, from 1 GiB", "h100-sxm", model, frame["oop_time_us"].to_numpy() * 1e3)
    frame = pd.read_csv(data / "simai" / "nic_ratio.csv").set_index("Size")
    for column in frame.columns[1:8]:
        nodes = int(column.split("Node")[0])
        line = choices("all_reduce", pod(nodes), constants["h100-sxm"], ["ring"], "Simple")[0]
        peak_ns = np.array([2 * (8 * nodes - 1) / (8 * nodes) * size / (8 * NIC) * 1e9 for size in frame.index])
        model = np.array([line.time_ns(size) for size in frame.index])
        known = frame[column].notna().to_numpy()
        measured = peak_ns / frame[column].to_numpy()
        yield error(f"SimAI's NIC ratio, {nodes} nodes, ring Simple", "h100-sxm", model[known], measured[known])


def exchange_model(constants: CollectiveConstants, device: str, form: str, row: Any, ranks: int = 8) -> float:
    """Return the predicted time of one row of an exchange table, in ns."""
    exchange = getattr(constants, form)
    traffic = exchange_traffic(form, row.phase, row, ranks)
    return exchange_ns(traffic, getattr(exchange, row.phase), LINK[device], NIC, int(row.processors) or None)


def exchange_errors(
    what: str, constants: CollectiveConstants, device: str, form: str, frame: pd.DataFrame
) -> Iterator[Row]:
    """Yield an error row per phase of a table as `exchange_table` gives it."""
    ranks = RANKS.get(device, 8)
    model = np.array([exchange_model(constants, device, form, row, ranks) for row in frame.itertuples()])
    for phase, rows in frame.groupby("phase").indices.items():
        yield error(f"{what}, {form}, {phase}", device, model[rows], frame["ns"].to_numpy()[rows])


def exchanges(data: Path, constants: dict[str, CollectiveConstants]) -> Iterator[Row]:
    """Yield the errors of dispatch and combine within one node: fitted tables, few experts, another engine's tables."""
    for device in EXCHANGES:
        for form in ("low_latency", "high_throughput")[: 1 if device in LOW_LATENCY_ONLY else 2]:
            frame = exchange_table(data, device, form)
            many = frame["experts"] >= FEW_EXPERTS
            yield from exchange_errors("fitted", constants[device], device, form, frame[many].reset_index(drop=True))
            few = frame[~many].reset_index(drop=True)
            yield from exchange_errors("8 or 16 experts (not fitted)", constants[device], device, form, few)
    frame = pd.read_parquet(data / "aiconfigurator" / "h100_sxm" / "comm.vllm.0.24.0.moe_a2a_perf.parquet")
    frame = frame.rename(columns={"num_tokens": "tokens", "hidden_size": "hidden", "num_experts": "experts"})
    frame = frame.assign(ns=frame["latency"] * 1e3, processors=frame["sms"])
    for backend, form in (("deepep_ll", "low_latency"), ("deepep_ht", "high_throughput")):
        rows = frame[frame["comm_backend"] == backend].reset_index(drop=True)
        yield from exchange_errors("vLLM 0.24 (not fitted)", constants["h100-sxm"], "h100-sxm", form, rows)


def published(data: Path, constants: CollectiveConstants) -> Iterator[Row]:
    """Yield, for each number of ranks of DeepEP's published low-latency table on H800, model and measurement."""
    frame = pd.read_csv(data / "deepep" / "published_performance.csv")
    frame = frame[frame["mode"] == "low-latency"]
    for ep, rows in frame.groupby("ep"):
        fitted = ep in (8, 16, 32, 128)
        for r in rows.itertuples():
            row = pd.Series(
                {"phase": r.phase, "tokens": 128, "hidden": 7168, "topk": 8, "experts": 256, "processors": 0}
            )
            model = exchange_model(constants, "h800-sxm", "low_latency", row, int(ep))
            what = f"{r.phase}, {ep} ranks, {'fitted' if fitted else 'left out'}"
            yield error(what, "h800-sxm", np.array([model]), np.array([r.latency_us * 1e3]))


def published_normal(data: Path) -> Iterator[Row]:
    """Yield model and measurement of DeepEP's published table of normal kernels on H800, none of which was fitted.

    Constants are those of the tables of one node of H100 and, for the NIC, of the low-latency form. A token's eight
    experts lie on four nodes at most. The table's bandwidth counts a copy for each rank of one node, and for each node,
    its own too, of several.
    """
    frame = pd.read_csv(data / "deepep" / "published_performance.csv")
    topology = build_topology("multi-rail-h800", {"nodes": 8})
    exchanges = load_constants("h800-sxm").high_throughput
    assert exchanges is not None
    for row in frame[frame["mode"] == "normal"].itertuples():
        ep, nodes = int(row.ep), max(1, int(row.ep) // 8)
        rank_of = [expert * ep // 256 for expert in range(256)]
        routing = ExpertRouting(tuple(rank // 8 for rank in rank_of), 8, None, min(nodes, 4))
        groups = [[expert for expert, rank in enumerate(rank_of) if rank == place] for place in range(ep)]
        on_ranks, on_nodes = float(routing.hit_probability(groups).sum()), float(routing.node_probability().sum())
        size = 4096 * token_bytes(7168, *BITS[row.phase])
        counted = size * (on_ranks if nodes == 1 else on_nodes)
        relayed = on_nodes / on_ranks if nodes > 1 else 1.0
        shape = group_shape(topology, range(ep))
        found = exchange(getattr(exchanges, row.phase), size * on_ranks, shape, relayed)
        model, measured = found.latency_ns + found.link_ns, counted / row.bandwidth_GBps
        yield error(f"{row.phase}, {ep} ranks (not fitted)", "h800-sxm", np.array([model]), np.array([measured]))


def supernode() -> Iterator[Row]:
    """Yield model and measurement of the published exchange of Ascend 910C dies, by form, phase and ranks."""
    exchanges = load_constants("ascend-910c")
    for (form, phase), rows in SUPERNODE.items():
        constants = getattr(getattr(exchanges, form), phase)
        for ranks in rows:
            model, measured = supernode_model(form, phase, ranks, constants), supernode_ns(form, phase, ranks)
            yield error(
                f"{phase}, {form}, {ranks} ranks, fitted", "ascend-910c", np.array([model]), np.array([measured])
            )


def show(title: str, rows: list[Row]) -> None:
    """Print one error table as Markdown."""
    print(f"\n### {title}\n\n| what | where | rows | median error | mean error | worst | predicted / measured |")
    print("|---|---|---|---|---|---|---|")
    for r in rows:
        shares = " | ".join(f"{r[key]:.1%}" for key in ("median", "mean", "worst"))
        print(f"| {r['what']} | {r['where']} | {r['rows']} | {shares} | {r['ratio']:.2f} |")


def show_grid(title: str, rows: list[Row]) -> None:
    """Print the mean errors of rows named `operation column` as a grid of devices and operations by columns."""
    cells = {(r["where"], *r["what"].split()): r["mean"] for r in rows}
    columns = sorted({column for _, _, column in cells})
    print(f"\n### {title}: mean error\n\n| where | operation | {' | '.join(columns)} |")
    print("|---|---|" + "---|" * len(columns))
    for device, operation in dict.fromkeys(key[:2] for key in cells):
        found = [cells.get((device, operation, column)) for column in columns]  # not every device has every size
        texts = ["" if share is None else f"{share:.1%}" for share in found]
        print(f"| {device} | {operation} | {' | '.join(texts)} |")


def main() -> None:
    """Print every table and write them as JSON under `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of measured tables")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out", help="folder of the JSON")
    options = parser.parse_args()
    data = options.data
    constants = {name: load_constants(name) for name in (*TABLES, "h800-sxm")}
    result = {f"Fitted tables, by {key}": rows for key, rows in library(data, constants).items()}
    result["A group size left out of the fit"] = list(left_out(data))
    result["Tables never fitted, one node"] = list(elsewhere(data, constants))
    result["Across nodes, never fitted"] = list(between_nodes(data, constants))
    result["Expert exchange, one node of 8"] = list(exchanges(data, constants))
    result["Expert exchange across nodes, DeepEP's published table"] = list(published(data, constants["h800-sxm"]))
    result["Expert exchange of the high-throughput form, DeepEP's published table"] = list(published_normal(data))
    result["Expert exchange between dies of a supernode, a published table"] = list(supernode())
    for title, rows in result.items():
        (show_grid if "by operation" in title else show)(title, rows)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "accuracy_network.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
