"""Fits the constants of collectives and of expert exchanges on measured tables and prints them as YAML.

Run `python benchmarks/calibrate_network.py`; `accuracy_network.py` has the errors. A coordinate search on the mean
absolute logarithm of predicted / measured, through the simulator's own closed forms.
"""

import argparse
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simulator.model.expert_load import places_hit
from simulator.network.collectives import ENGINE, LIBRARY, choices
from simulator.network.collectives_constants import CollectiveConstants, Kernel, Phase
from simulator.network.collectives_shape import GroupShape, group_shape
from simulator.network.dispatch import Copies, Traffic, expected_copies, high_throughput, low_latency, token_bytes
from simulator.network.expert_routing import ExpertRouting
from simulator.network.group_times import exchange
from simulator.topology import build_topology

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
LINK = {"a100-sxm": 300e9, "h100-sxm": 450e9, "b200-sxm": 900e9, "gb200": 900e9, "h800-sxm": 200e9}
"""Bytes/s of a device's NVLink one way, from the vendor's data sheets."""
TABLES = {
    "a100-sxm": ("a100_sxm", "nccl.2.27.3.nccl", "vllm.0.14.0.custom_allreduce"),
    "h100-sxm": ("h100_sxm", "nccl.2.29.2.nccl", "vllm.0.24.0.custom_allreduce"),
    "b200-sxm": ("b200_sxm", "nccl.2.29.2.nccl", "vllm.0.24.0.custom_allreduce"),
    "gb200": ("gb200", "nccl.2.29.2.nccl", "vllm.0.24.0.custom_allreduce"),
}
VALUE_BYTES = {"half": 2, "int8": 1, "bfloat16": 2}
OPERATIONS = {"alltoall": "all_to_all"}
ENGINE_LIMIT = 8 << 20
Theta = dict[str, float]


def one_node(device: str, ranks: int) -> GroupShape:
    """Return the shape of ranks of one node of a device."""
    return GroupShape(ranks, 1, ranks, LINK[device])


def nccl_table(data: Path, device: str) -> pd.DataFrame:
    """Return operation, ranks, bytes and ns of the device's NCCL table."""
    system, name, _ = TABLES[device]
    return _table(pd.read_parquet(data / "aiconfigurator" / system / f"comm.{name}_perf.parquet"), "nccl_dtype")


def engine_table(data: Path, device: str) -> pd.DataFrame:
    """Return operation, ranks, bytes and ns of an engine's own all-reduce inside CUDA graphs."""
    system, _, name = TABLES[device]
    frame = pd.read_parquet(data / "aiconfigurator" / system / f"comm.{name}_perf.parquet")
    return _table(frame[frame["backend"] == "vllm_graph"], "allreduce_dtype")


def send_table(data: Path, device: str) -> pd.DataFrame | None:
    """Return operation, ranks, bytes and ns of Vidur's sends within one node, or None where there is no table."""
    path = data / "vidur" / "network" / f"{device.removesuffix('-sxm')}_dgx.send_recv.parquet"
    if not path.is_file():
        return None
    frame = pd.read_parquet(path)
    frame = frame[frame["devices_per_node"] == 2]
    ns = frame["time_stats.send_recv.median"] * 1e6
    return pd.DataFrame({"operation": "send_receive", "ranks": 2, "bytes": frame["size"], "ns": ns})


def _table(frame: pd.DataFrame, dtype: str) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "operation": frame["op_name"].replace(OPERATIONS),
            "ranks": frame["num_gpus"],
            "bytes": frame["message_size"] * frame[dtype].map(VALUE_BYTES),
            "ns": frame["latency"] * 1e6,
        }
    ).reset_index(drop=True)


def least_ns(constants: CollectiveConstants, device: str, frame: pd.DataFrame, engine: bool = False) -> np.ndarray:
    """Return the predicted time of each row, in ns."""
    out = np.full(len(frame), np.nan)
    for (operation, ranks), rows in frame.groupby(["operation", "ranks"]).indices.items():
        sizes = frame["bytes"].to_numpy()[rows]
        found = choices(operation, one_node(device, ranks), constants, ENGINE if engine else LIBRARY[operation])
        out[rows] = np.min([c.time_ns(sizes) for c in found], axis=0)
    return out


def search(loss: Callable[[Theta], float], start: Theta, upper: Theta) -> Theta:
    """Return the parameters of the least loss that a coordinate search with shrinking steps finds."""
    best, low, step = dict(start), loss(start), 0.5
    while step > 0.004:
        moved = False
        for name in best:
            for factor in (1 + step, 1 / (1 + step)):
                trial = best | {name: min(best[name] * factor, upper.get(name, np.inf))}
                value = loss(trial)
                if value < low - 1e-9:
                    best, low, moved = trial, value, True
        if not moved:
            step /= 2
    return best


def kernel(theta: Theta, name: str) -> Kernel:
    """Return the kernel of parameters `name.base` and so on; what is absent is zero or none."""
    share = theta[f"{name}.share"]
    own = theta.get(f"{name}.own")
    return Kernel.model_construct(
        base=theta[f"{name}.base"],
        local_hop=theta.get(f"{name}.hop", 0.0),
        network_hop=0,
        local_share=share,
        network_share=1.0,
        own_share=None if own is None else max(own, share),
    )


def assemble(theta: Theta, names: Sequence[str]) -> CollectiveConstants:
    """Return constants with the kernels named `family.protocol`."""
    kernels: dict[str, dict[str, Kernel]] = {}
    for name in names:
        family, protocol = name.split(".")
        kernels.setdefault(family, {})[protocol] = kernel(theta, name)
    return CollectiveConstants.model_construct(device="", kernels=kernels, sources={})


RING = ("ring.LL", "ring.LL128", "ring.Simple")
START: Theta = {
    "ring.LL.base": 6600, "ring.LL.hop": 1000, "ring.LL.share": 0.2,
    "ring.LL128.base": 9000, "ring.LL128.hop": 1900, "ring.LL128.share": 0.5,
    "ring.Simple.base": 12000, "ring.Simple.hop": 3400, "ring.Simple.share": 0.75, "ring.Simple.own": 1.5,
    "in_switch.Simple.base": 20000, "in_switch.Simple.share": 0.6,
    "direct.LL.base": 7000, "direct.LL.hop": 300, "direct.LL.share": 0.1,
    "direct.Simple.base": 13000, "direct.Simple.hop": 300, "direct.Simple.share": 0.75, "direct.Simple.own": 1.5,
    "send.LL.base": 6000, "send.LL.share": 0.2, "send.Simple.base": 13000, "send.Simple.share": 0.75,
    "one_shot.Simple.base": 4000, "one_shot.Simple.hop": 100, "one_shot.Simple.share": 0.6,
    "two_shot.Simple.base": 6000, "two_shot.Simple.hop": 100, "two_shot.Simple.share": 0.6,
}  # fmt: skip
UPPER = {name: 1.0 for name in START if name.endswith(".share")} | {
    name: 10.0 for name in START if name.endswith(".own")
}


def fit(device: str, frame: pd.DataFrame, names: Sequence[str], engine: bool = False) -> Theta:
    """Return the parameters of the kernels `names` fitted on the rows of `frame`."""
    start = {key: value for key, value in START.items() if key.rpartition(".")[0] in names}
    frame = frame.groupby(["operation", "ranks", "bytes"], as_index=False)["ns"].median()
    measured = frame["ns"].to_numpy()

    def loss(theta: Theta) -> float:
        model = least_ns(assemble(theta, names), device, frame, engine)
        return float(np.mean(np.abs(np.log(model / measured))))

    return search(loss, start, UPPER)


def fit_device(data: Path, device: str, left_out: int | None = None) -> tuple[Theta, list[str]]:
    """Return all fitted kernels of one device, without the rows of `left_out` ranks."""
    nccl, engine = nccl_table(data, device), engine_table(data, device)
    engine = engine[engine["bytes"] < ENGINE_LIMIT]
    nccl, engine = nccl[nccl["ranks"] != left_out], engine[engine["ranks"] != left_out]
    ring = [*RING, *(["in_switch.Simple"] if device != "a100-sxm" else [])]
    direct, shots = ["direct.LL", "direct.Simple"], ["one_shot.Simple", "two_shot.Simple"]
    theta = fit(device, nccl[nccl["operation"] != "all_to_all"], ring)
    theta |= fit(device, nccl[nccl["operation"] == "all_to_all"], direct)
    theta |= fit(device, engine, shots, engine=True)
    names, sends = [*ring, *direct, *shots], send_table(data, device)
    if sends is not None:
        send = ["send.LL", "send.Simple"]
        theta |= fit(device, sends[sends["ranks"] != left_out], send)
        names += send
    return theta, names


EXCHANGES = {
    "h100-sxm": ("h100_sxm", "0.5.12"),
    "b200-sxm": ("b200_sxm", "0.5.12"),
    "gb200": ("gb200", "0.5.12"),
}
RANKS = {"gb200": 4}
"""Ranks of one node in the tables of exchanges, where they are not 8."""
LOW_LATENCY_ONLY = ("gb200",)
"""Devices without a table of the high-throughput form."""
FEW_EXPERTS = 128
"""Tables of fewer experts (some per rank) are measured far slower per copy, and are left out of the fit."""
BITS = {"dispatch": (8, 128), "combine": (16, 0)}
"""Bits of a value and the block of a scale: FP8 with a 4-byte scale per 128 values out, BF16 back."""


def exchange_table(data: Path, device: str, form: str) -> pd.DataFrame:
    """Return the device's DeepEP table, a row per phase: tokens, hidden, topk, experts, processors, ns."""
    system, version = EXCHANGES[device]
    short = "ll" if form == "low_latency" else "normal"
    frame = pd.read_parquet(
        data / "aiconfigurator" / system / f"comm.sglang.{version}.wideep_deepep_{short}_perf.parquet"
    )
    rows = []
    for phase in BITS:
        us = (
            frame[f"{phase}_avg_t_us"] if short == "ll" else frame[f"{phase}_transmit_us"] + frame[f"{phase}_notify_us"]
        )
        part = frame.rename(columns={"num_token": "tokens", "hidden_size": "hidden", "num_topk": "topk"})
        part = part.rename(columns={"num_experts": "experts"}).assign(phase=phase, ns=us * 1e3)
        part["processors"] = 0 if short == "ll" else frame[f"{phase}_sms"]
        rows.append(part[["phase", "tokens", "hidden", "topk", "experts", "processors", "ns"]])
    return pd.concat(rows, ignore_index=True)


@functools.cache
def token_copies(topk: int, experts: int, ranks: int, per_node: int) -> Copies:
    """Return the expected copies of one token on each rank, experts spread evenly, no node limit."""
    rank_of = [e * ranks // experts for e in range(experts)]
    return expected_copies([1.0] * ranks, ExpertRouting(tuple(r // per_node for r in rank_of), topk), rank_of)


def exchange_traffic(form: str, phase: str, row: Any, ranks: int = 8) -> Traffic:
    """Return the expected traffic of one row of a table."""
    one = token_copies(int(row.topk), int(row.experts), ranks, min(ranks, 8))
    many = replace(one, experts=one.experts * row.tokens, ranks=one.ranks * row.tokens, nodes=one.nodes * row.tokens)
    make = low_latency if form == "low_latency" else high_throughput
    sizes = {name: token_bytes(int(row.hidden), *BITS[name]) for name in BITS}
    traffic = make(many, sizes["dispatch"])
    return traffic if phase == "dispatch" else traffic.reversed(sizes["combine"])


def fit_exchange(device: str, form: str, frame: pd.DataFrame) -> Theta:
    """Return base, share and, for the high-throughput form, the processor constants of one phase's rows."""
    traffics = [exchange_traffic(form, row.phase, row, RANKS.get(device, 8)) for row in frame.itertuples()]
    wire = np.array([t.ports()["local_out"].max() for t in traffics])
    copies = np.array([t.copies.max() for t in traffics])
    each, measured = np.array([t.copy_bytes for t in traffics]), frame["ns"].to_numpy()
    processors, link = frame["processors"].to_numpy(), LINK[device] / 1e9

    def loss(theta: Theta) -> float:
        busy = wire / (theta["share"] * link)
        if "copy" in theta:
            busy = np.maximum(busy, copies * (theta["copy"] + each / (theta["processor"] * link)) / processors)
        return float(np.mean(np.abs(np.log((theta["base"] + busy) / measured))))

    start = {"base": 15e3, "share": 0.6}
    return search(loss, start | ({"copy": 50.0, "processor": 0.03} if processors.all() else {}), {"share": 1.0})


FITTED_RANKS = (16, 32, 128)
"""Numbers of ranks of DeepEP's published table in the fit of the network constants; 64 and 256 stay out."""


def fit_published(data: Path, phase: str, base_ns: float) -> Theta:
    """Return the H800's local share (from 8 ranks), and its base and share across nodes, for one phase."""
    frame = pd.read_csv(data / "deepep" / "published_performance.csv")
    frame = frame[(frame["mode"] == "low-latency") & (frame["phase"] == phase)]
    ns = frame.set_index("ep")["latency_us"] * 1e3
    row = pd.Series({"topk": 8, "experts": 256, "hidden": 7168, "tokens": 128})
    ports = {n: exchange_traffic("low_latency", phase, row, n).ports() for n in (8, *FITTED_RANKS)}
    local = ports[8]["local_out"].max() / (ns[8] - base_ns) / (LINK["h800-sxm"] / 1e9)
    wire = np.array([ports[n]["network_out"].max() for n in FITTED_RANKS])
    measured = ns[list(FITTED_RANKS)].to_numpy()

    def loss(theta: Theta) -> float:
        model = base_ns + theta["network_base"] + wire / (theta["network_share"] * 50)
        return float(np.mean(np.abs(np.log(model / measured))))

    return search(loss, {"network_base": 30e3, "network_share": 0.8}, {"network_share": 1.0}) | {"local_share": local}


SUPERNODE: dict[tuple[str, str], dict[int, float]] = {
    ("high_throughput", "dispatch"): {8: 146, 16: 107, 32: 102, 64: 81, 128: 57},
    ("high_throughput", "combine"): {8: 125, 16: 103, 32: 95, 64: 91, 128: 81},
    ("low_latency", "dispatch"): {8: 132, 16: 139, 32: 153},
    ("low_latency", "combine"): {8: 126, 16: 135, 32: 151},
}
"""Expert exchange between dies of Ascend 910C on a supernode of 384, by form, phase and ranks: GB/s of what a rank gets
(4,096 tokens a rank) and us (128 tokens a rank), hidden 7168, top 8, INT8 out and BF16 back. Source: README of
sgl-project/sgl-kernel-npu (MIT), DeepEP-Ascend Performance, A3 384 SuperPOD."""
COPY_BYTES = {"dispatch": 7168, "combine": 14336}


def supernode_ns(form: str, phase: str, ranks: int) -> float:
    """Return the measured time of a row of `SUPERNODE`, in ns; a rank gets one copy of each token that it is sent."""
    figure = SUPERNODE[form, phase][ranks]
    if form == "low_latency":
        return figure * 1e3
    return 4096 * places_hit(ranks, 8) * COPY_BYTES[phase] / figure


def supernode_model(form: str, phase: str, ranks: int, constants: Phase) -> float:
    """Return the predicted time of such a row, in ns; the low-latency form sends a copy to each expert."""
    shape = supernode_shape(ranks)
    copies = 128 * 8 if form == "low_latency" else 4096 * places_hit(ranks, 8)
    found = exchange(constants, copies * COPY_BYTES[phase], shape)
    return found.latency_ns + found.link_ns


@functools.cache
def supernode_shape(ranks: int) -> GroupShape:
    """Return the shape of the first ranks of a CloudMatrix384."""
    return group_shape(build_topology("cloudmatrix384", {}), range(ranks))


def supernode_phase(theta: Theta, measured_ranks: int) -> Phase:
    """Return the constants of one phase; the ways within and between nodes are alike."""
    return Phase.model_construct(
        base=theta["base"],
        network_base=0,
        rank_time=theta["rank"],
        measured_ranks=measured_ranks,
        local_share=theta["share"],
        network_share=theta["share"],
    )


LEAST_BASE_NS = 11_647
"""The table has no small messages; an exchange of next to nothing takes no less than on H100."""


def fit_supernode(phase: str) -> dict[str, Theta]:
    """Return the constants of one phase by form: a base and a share for both, a time per rank for each."""

    def of(theta: Theta, form: str) -> Theta:
        return {"base": max(theta["base"], LEAST_BASE_NS), "rank": theta[form], "share": theta["share"]}

    def loss(theta: Theta) -> float:
        total = 0.0
        for form in ("low_latency", "high_throughput"):
            rows = list(SUPERNODE[form, phase])
            constants = supernode_phase(of(theta, form), max(rows))
            model = np.array([supernode_model(form, phase, n, constants) for n in rows])
            measured = np.array([supernode_ns(form, phase, n) for n in rows])
            total += float(np.mean(np.abs(np.log(model / measured))))
        return total

    starts = [
        {"base": base, "share": share, "low_latency": 600.0, "high_throughput": 15e3}
        for base in (30e3, 60e3, 90e3)
        for share in (0.45, 0.6, 0.8)
    ]
    best = min((search(loss, start, {"share": 1.0}) for start in starts), key=loss)
    return {form: of(best, form) for form in ("low_latency", "high_throughput")}


def as_yaml(theta: Theta, names: Sequence[str]) -> dict[str, Any]:
    """Return the `kernels` section of a constants file."""
    out: dict[str, Any] = {}
    for name in names:
        family, protocol = name.split(".")
        k = kernel(theta, name)
        row: dict[str, Any] = {"base": f"{round(k.base)} ns", "local_hop": f"{round(k.local_hop)} ns"}
        row["local_share"] = round(k.local_share, 4)
        if k.own_share is not None:
            row["own_share"] = round(k.own_share, 3)
        out.setdefault(family, {})[protocol] = row
    return out


def main() -> None:
    """Print the fitted constants of every device."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    arguments = parser.parse_args()
    for device in TABLES:
        theta, names = fit_device(arguments.data, device)
        print(device)
        for family, protocols in as_yaml(theta, names).items():
            for protocol, row in protocols.items():
                print(f"  {family} {protocol}: {row}".replace("'", ""))
    for device in EXCHANGES:
        for form in ("low_latency", "high_throughput")[: 1 if device in LOW_LATENCY_ONLY else 2]:
            frame = exchange_table(arguments.data, device, form)
            for phase, rows in frame[frame["experts"] >= FEW_EXPERTS].groupby("phase"):
                found = fit_exchange(device, form, rows)
                print(device, form, phase, {key: round(value, 4) for key, value in found.items()})
                if device == "h100-sxm" and form == "low_latency":
                    found = fit_published(arguments.data, str(phase), found["base"])
                    print("h800-sxm", form, phase, {key: round(value, 4) for key, value in found.items()})
    for phase in BITS:
        for form, found in fit_supernode(phase).items():
            print("ascend-910c", form, phase, {key: round(value, 4) for key, value in found.items()})


if __name__ == "__main__":
    main()
