"""The timeline at speed: whole `simulate timeline` processes over made-up tables of a disaggregated run.

Run `python benchmarks/timeline.py` (`--quick` for a smoke test). Every size is timed against two floors of the same
machine and minute: reading the same columns and writing the same bytes, which no encoder can beat, and the messages of
the protobuf package, for a part of the slices. Memory is the largest resident set of the process.
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import record

from simulator.results.folder import RunFolder
from simulator.results.tables import INSTANCES, REQUESTS

PREFILLS, DECODES = 16, 48
RATE_PER_S = 120
SLICES = 5  # queue, prefill, KV transfer, decode wait, decode
PROTOBUF_SLICES = 50_000


def make(path: Path, requests: int) -> None:
    """Write the tables of a run in which every request takes every step between two engines."""
    rng = np.random.default_rng(7)
    step = rng.exponential([1 / RATE_PER_S, 0.02, 0.1, 0.005, 0.01, 5.0], (requests, 6)) * 1e9
    arrival = np.cumsum(step[:, 0].astype(np.int64))
    prefill, first, moved, decode, finish = (arrival + np.cumsum(step[:, 1:].astype(np.int64) + 1, axis=1).T).tolist()
    prompts, outputs = rng.integers(1, 4000, (2, requests)).tolist()
    begun = arrival.tolist()
    with RunFolder.create(path) as folder:
        table, windows = folder.writer(REQUESTS), folder.writer(INSTANCES)
        for i in np.argsort(finish).tolist():
            places = f"prefill-{i % PREFILLS}", f"decode-{i % DECODES}"
            at = begun[i], begun[i], prefill[i], first[i], decode[i], finish[i]
            tokens = prompts[i], outputs[i], outputs[i], 0
            kv = 0, moved[i] - first[i], 1000
            table.append((i, None, None, *at, *tokens, *places, *kv, 0, 0, "finished", None))
        end = max(finish)
        for role, count in (("prefill", PREFILLS), ("decode", DECODES)):
            for i in range(count):
                windows.append((f"{role}-{i}", role, 0, end, role, end, 0, 0, 1.0, 1, 1.0, 1, 1.0, 1, 10, 1))
        folder.finish({"simulated_ns": end})


def measure(path: Path) -> dict[str, float]:
    """Return seconds, peak memory (MiB) and size (MB) of a process that writes the timeline of a run."""
    command = [sys.executable, "-m", "simulator.cli", "timeline", str(path)]
    begun = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    assert status == 0
    size = (path / "timeline.pftrace").stat().st_size
    return {"s": time.perf_counter() - begun, "peak_mib": usage.ru_maxrss / 1024, "mb": size / 1e6}


def floor_s(path: Path) -> float:
    """Return the seconds that reading the same table, and writing and syncing the same bytes, take."""
    content = (path / "timeline.pftrace").read_bytes()
    begun = time.perf_counter()
    for batch in pq.ParquetFile(path / "requests.parquet").iter_batches():
        batch.to_pydict()
    with tempfile.TemporaryFile(dir=path) as file:
        for at in range(0, len(content), 1 << 20):
            file.write(content[at : at + (1 << 20)])
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - begun


def protobuf_per_s() -> float:
    """Return the slices a second that the protobuf package serialises, beginning, end and five notes of each."""
    from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as pb

    begun = time.perf_counter()
    for i in range(PROTOBUF_SLICES):
        packet = pb.TracePacket(timestamp=i * 10**6, trusted_packet_sequence_id=1, sequence_flags=2)
        event = packet.track_event
        event.type, event.track_uuid, event.name_iid = pb.TrackEvent.TYPE_SLICE_BEGIN, 77, 3
        event.category_iids.append(1)
        for iid in range(1, 6):
            event.debug_annotations.add(name_iid=iid, uint_value=i)
        end = pb.TracePacket(timestamp=i * 10**6 + 5, trusted_packet_sequence_id=1, sequence_flags=2)
        end.track_event.type, end.track_event.track_uuid = pb.TrackEvent.TYPE_SLICE_END, 77
        packet.SerializeToString()
        end.SerializeToString()
    return PROTOBUF_SLICES / (time.perf_counter() - begun)


def main() -> None:
    """Print a row for each size and write them to benchmarks/out/timeline.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    rows = []
    print(f"protobuf package: {protobuf_per_s():,.0f} slices/s")
    for slices in (10_000,) if options.quick else (10_000, 1_000_000, 4_000_000):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run"
            maker = multiprocessing.get_context("spawn").Process(target=make, args=(path, slices // SLICES))
            maker.start()  # on its own: a process begins with the largest memory of the one that started it
            maker.join()
            row = {"slices": slices, **measure(path), "floor_s": floor_s(path)}
        rows.append(row)
        print(
            f"{slices:>9,} slices: {row['s']:.2f} s, {slices / row['s']:,.0f} slices/s, {row['mb']:.1f} MB, "
            f"peak {row['peak_mib']:.0f} MiB; rows read and bytes written alone: {row['floor_s']:.2f} s"
        )
    record.write("timeline", rows)


if __name__ == "__main__":
    main()
