"""Says how far training steps are from measured ones: time per step and memory, by source; nothing is fitted.

Run `python benchmarks/accuracy_training.py`; it prints the tables of docs/training-cost.md and writes them as JSON.
Rows that are not predicted are counted with the reason.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from simulator.device.accelerator import Accelerator, load_accelerator
from simulator.device.memory import GIB
from simulator.device.timing import time_of
from simulator.device.training_memory import rank_ledger
from simulator.device.training_time import Network, step_time, sustained_speed
from simulator.errors import InputError
from simulator.model.layout import Layout
from simulator.model.precision import Precision
from simulator.model.training import MicroBatch, Recipe, TrainingPass
from simulator.model.transformer import Transformer, load_model

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data"
FORMATS = {"BF16": "bf16", "FP8": "fp8", "FP8-CS": "fp8", "MXFP8": "mxfp8", "FP8-MX": "mxfp8", "NVFP4": "nvfp4"}
PORTS = {"a100": Network(25e9, 10_000), "h100": Network(50e9, 10_000), "gb200": Network(50e9, 10_000)}
"""One 200 or 400 Gb/s port for each device, as the machines of the sources have; B200 as H100."""


class Point(NamedTuple):
    """One prediction beside its measurement, in one unit."""

    source: str
    what: str
    case: str
    model: float
    measured: float
    capped: float | None = None
    """The prediction at the clock that the power model says the device can keep, for times."""


class Missing(NamedTuple):
    """One row that is not predicted."""

    source: str
    reason: str


Found = Iterator[Point | Missing]


def card(name: str, **changes: object) -> Transformer:
    """Return a model card, some of its fields changed."""
    whole = load_model(name)
    return Transformer(**{key: getattr(whole, key) for key in type(whole).model_fields} | changes)


def seconds(
    training: TrainingPass,
    device: Accelerator,
    batch: MicroBatch,
    count: int,
    port: Network | None = None,
    cap_w: float | None = None,
) -> np.ndarray:
    """Return the time of a step at the full clock and at that which the TDP, or another cap, allows."""
    speeds = (1.0, sustained_speed(training, device, batch, cap_w))
    return np.array([step_time(training, device, batch, count, port, speed=s).ns / 1e9 for s in speeds])


def selene(data: Path) -> Found:
    """Yield GPT on DGX A100 with unfused attention and dropout (arXiv:2205.05198, tables 3 and 5)."""
    device = load_accelerator("a100-sxm-80gb")
    for row in pd.read_csv(data / "megatron-selene" / "steps.csv").itertuples():
        spread = "sequence" in row.recompute
        layout = Layout(tensor=row.tensor, pipeline=row.pipeline, sequence_parallel=spread)
        recipe = Recipe(
            zero=0,
            chunks=row.interleave,
            recompute="selective" if spread else "full",
            fused_attention=False,
            dropout=True,
        )
        model = card({"megatron-22B": "gpt-22b", "gpt3-175B": "gpt-175b"}[row.model])
        training = TrainingPass(model, layout, recipe)
        batch, count = MicroBatch(row.microbatch, row.seq), row.batch // row.microbatch // row.data
        case = f"{row.model} {row.recompute}"
        full, capped = seconds(training, device, batch, count, PORTS["a100"])
        yield Point("Megatron-LM on Selene", "step", case, full, row.step_s, capped)
        if spread:
            book = rank_ledger(training, 0, batch, count)
            states = (book.weights + book.gradients + book.optimizer) / GIB
            yield Point("Megatron-LM on Selene", "states", case, states, row.param_optimizer_gib)
            kept = book.activations / GIB
            yield Point("Megatron-LM on Selene", "activations", case, kept, row.activation_gib_selective_sp)


def simumax(data: Path) -> Found:
    """Yield 12 layers of Llama-3-70B on eight B200 (Megatron-LM, bf16)."""
    device, model = load_accelerator("b200-sxm"), card("llama-3-70b", layers=12)
    for row in pd.read_csv(data / "simumax-b200" / "steps.csv").itertuples():
        tensor, pipeline = int(row.parallel[2]), int(row.parallel[5])
        layout = Layout(tensor=tensor, pipeline=pipeline, sequence_parallel=tensor > 1)
        training = TrainingPass(model, layout, Recipe(replicas=8 // layout.devices))
        batch = MicroBatch(1, 4096)
        full, capped = 1e3 * seconds(training, device, batch, row.microbatches)
        yield Point("SimuMax, 8 x B200", "step", row.case, full, row.real_ms, capped)
        book = rank_ledger(training, 0, batch, row.microbatches)
        yield Point("SimuMax, 8 x B200", "allocated", row.case, book.allocated / GIB, row.real_alloc_gib)


def number(value: object, default: float = 1) -> float:
    """Return the first number of a cell such as `1 (2)`, or the default of an empty one."""
    found = re.match(r"\s*([\d.]+)", str(value))
    return float(found.group(1)) if found else default


BRIDGE = {
    "LLAMA3_8B": "llama-3-8b",
    "LLAMA3_70B": "llama-3-70b",
    "LLAMA3.1_405B": "llama-3.1-405b",
    "Qwen3_30B_a3B": "qwen3-30b-a3b",
    "Qwen3_235B_a22B": "qwen3-235b-a22b",
    "GPT OSS 120B": "gpt-oss-120b",
    "DeepSeekV3": "deepseek-v3",
}
SYSTEMS = {"DGX-H100": "h100-sxm-80gb", "DGX-B200": "b200-sxm", "DGX-GB200": "gb200"}


def bridge(data: Path) -> Found:
    """Yield Megatron-Bridge's pre-training table: tokens a second of one device."""
    frame = pd.read_csv(data / "megatron-bridge" / "training_performance.csv")
    for row in frame.to_dict("records"):
        source = f"Megatron-Bridge, {row['System']}"
        name = BRIDGE.get(re.sub(r" \(.*\)", "", str(row["Model"])))
        form = FORMATS.get(str(row["Precision"]).split(" ")[0])
        if row["kind"] != "Pre-Training Performance" or name is None or form is None:
            yield Missing(source, "fine-tuning, a model without card or no precision given")
            continue
        try:
            yield bridge_point(source, row, name, form)
        except InputError as error:
            yield Missing(source, str(error).splitlines()[0][:120])


def bridge_point(source: str, row: dict[str, Any], name: str, form: str) -> Point:
    """Return one row's tokens a second."""
    device = load_accelerator(SYSTEMS[row["System"]])
    tensor, pipeline, context, chunks, expert = (int(number(row[key])) for key in ("TP", "PP", "CP", "VP", "EP"))
    model = load_model(name)
    if model.experts is None:
        expert = 1
    shared = max(1, expert // (tensor * context))
    layout = Layout(
        tensor=tensor,
        pipeline=pipeline,
        context=context,
        expert=expert,
        data=shared,
        sequence_parallel=tensor > 1,
    )
    devices = int(row["#-GPUs"])
    recipe = Recipe(
        replicas=max(1, devices // layout.devices),
        chunks=chunks if pipeline > 1 else 1,
        zero=3 if number(row["FSDP"], 0) > 1 else 1,
        loss="fused",
    )
    training = TrainingPass(model, layout, recipe, Precision(weights=form))
    batch = MicroBatch(int(number(row["MBS"])), int(row["Sequence Length"]))
    count = max(1, round(number(row["GBS"]) / batch.sequences / (shared * recipe.replicas)))
    tokens = count * batch.tokens * shared * recipe.replicas / devices
    full, capped = tokens / seconds(training, device, batch, count, PORTS["h100"])
    case = f"{name} {form} {layout} {row['container']}"
    kind = "dense" if model.experts is None else "with experts"
    return Point(source, f"tokens/s, {kind}", case, full, number(row["Tokens / sec / GPU"]), capped)


def titan(data: Path) -> Found:
    """Yield torchtitan on H100 with 96 GB of HBM2e at 500 W: FSDP, two, three and four dimensions.

    `selective` there computes half of what `full` does again, so both its time and memory lie in the middle.
    """
    sheet = load_accelerator("h100-sxm-80gb")
    memory = sheet.memory.model_copy(update={"bandwidth": 2.4e12})
    device = sheet.model_copy(update={"memory": memory})
    source = "torchtitan, H100"
    for row in pd.read_csv(data / "torchtitan" / "llama3_h100_202412.csv").to_dict("records"):
        text = f"{row['config']} {row['parallelism']} {row['extras']}"
        degrees = {kind: int(n) for kind, n in re.findall(r"(FSDP|TP|PP|CP)\s*(\d+)", text)}
        tensor, pipeline, context = degrees.get("TP", 1), degrees.get("PP", 1), degrees.get("CP", 1)
        devices = int(row["gpus"])
        layout = Layout(tensor=tensor, pipeline=pipeline, context=context, sequence_parallel=tensor > 1)
        form = "fp8" if "Float8" in text else "bf16"
        name = "llama-3.1-" + str(row["model"]).split()[-1].lower()
        length = int(number(row["Sequence Length"], 8192))
        local = int(row["local_batch_size"])
        chunks = 2 if "Interleaved" in text else 1
        modes = {"full": ("full",), "selective": ("none", "full")}[row["activation_checkpointing"]]
        times, sizes = [], []
        try:
            for mode in modes:
                recipe = Recipe(
                    replicas=devices // layout.devices,
                    zero=2 if pipeline > 1 else 3,  # weights stay whole between the micro-batches of a pipeline
                    recompute=mode,
                    chunks=chunks,
                    loss="plain",
                )
                training = TrainingPass(load_model(name), layout, recipe, Precision(weights=form))
                each = MicroBatch(local // pipeline, length)
                count = local // each.sequences
                times.append(seconds(training, device, each, count, PORTS["h100"], 500.0))
                books = [rank_ledger(training, rank, each, count) for rank in range(pipeline)]
                sizes.append(max(book.allocated for book in books) / GIB)
        except InputError as error:
            yield Missing(source, str(error).splitlines()[0][:120])
            continue
        full, capped = local * length / (tensor * pipeline * context) / np.mean(times, axis=0)
        case = f"{name} {form} {layout} x{devices} {length}"
        yield Point(source, f"tokens/s, {form}", case, full, float(row["TPS/GPU"]), capped)
        yield Point(source, "memory", case, float(np.mean(sizes)), float(row["Memory(GiB)"]))


def foundry(data: Path) -> Found:
    """Yield llm-foundry's MPT models under fully sharded data parallelism: tokens a second of one device."""
    sheets = {"a100_40gb": "a100-sxm-40gb", "a100_80gb": "a100-sxm-80gb", "h100_80gb": "h100-sxm-80gb"}
    formats = {"amp_bf16": "bf16", "bf16": "bf16", "amp_fp8": "fp8"}
    for row in pd.read_csv(data / "llm-foundry" / "mpt_training_benchmarks.csv").to_dict("records"):
        source = f"llm-foundry, {row['GPU']}"
        form = formats.get(str(row["Precision"]))
        sharding = {"FULL_SHARD": 3, "SHARD_GRAD_OP": 2}.get(str(row["Sharding Strategy"]))
        offload = str(row["Activation CPUOffload"]) == "True"
        if form is None or sharding is None or offload or row["GPU"] not in sheets:
            yield Missing(source, "offload, no sharding or an unknown precision")
            continue
        recompute = "full" if str(row["Activation Checkpointing"]) == "True" else "none"
        try:
            model = load_model(f"mpt-{row['Model']}")
        except InputError:
            yield Missing(source, f"no card of MPT {row['Model']}")
            continue
        devices = int(row["# GPUs"])
        recipe = Recipe(replicas=devices, zero=sharding, recompute=recompute, loss="fused", gradients="bf16")
        training = TrainingPass(model, Layout(), recipe, Precision(weights=form))
        batch, count = MicroBatch(int(row["MicroBatchSize"]), int(row["SeqLen (T)"])), int(row["GradAccum"])
        port = PORTS[str(row["GPU"]).split("_")[0]]
        device = load_accelerator(sheets[row["GPU"]])
        full, capped = count * batch.tokens / seconds(training, device, batch, count, port)
        case = f"{model.name} {batch.sequences} x {batch.length}, {recompute}"
        yield Point(source, f"tokens/s, {form}", case, full, float(row["Throughput (T/s/GPU)"]), capped)


LAYERS = {"L7B": "llama-7b", "L65B": "llama-65b", "G13B": "gpt-13b", "G175B": "gpt-175b"}


def aicb(data: Path) -> Found:
    """Yield compute times of one layer of Megatron-LM on A100: forward and backward, attention and MLP together.

    A layer below its arithmetic at the peak of the device is no measurement of it and is left out.
    """
    device, source = load_accelerator("a100-sxm-80gb"), "aicb, A100"
    for path in sorted((data / "aicb" / "simai_workloads").glob("*megatron*")):
        tensor = int(path.name.split("_tp")[1].split("_")[0])
        fields = [line.split() for line in path.read_text().splitlines()]
        kinds: dict[str, list[float]] = {}
        for line in fields:
            if line and re.match(r"(attention|mlp)", line[0]):
                kinds.setdefault(line[0], [float(line[i]) for i in (2, 5, 8)])
        forward = sum(times[0] for times in kinds.values())
        backward = sum(times[1] + times[2] for times in kinds.values())
        try:
            model = card(LAYERS[path.name.split("-")[0].split("_")[0]], layers=1)
        except InputError as error:
            yield Missing(source, str(error).splitlines()[0][:120])
            continue
        layout = Layout(tensor=tensor, sequence_parallel="_sp_" in path.name)
        training = TrainingPass(model, layout, Recipe(fused_attention=False))
        stage = training.stage(training.slices[0], MicroBatch(1, 2048))

        def layer(*parts: list[Any]) -> tuple[float, float]:
            rows = [o for part in parts for o in part if not re.match("embedding|LM head|cross|loss", o.name)]
            kernels = [(o.calls, time_of(o.shape, device)) for o in rows if "all-" not in o.name]
            kernels = [(calls, k) for calls, k in kernels if not k.link_ns]
            return sum(c * k.ns for c, k in kernels), sum(c * k.flops for c, k in kernels) / device.rate("bf16") * 1e9

        for what, parts, measured in (
            ("forward", (stage.forward,), forward),
            ("backward", (stage.backward, stage.weight), backward),
        ):
            model_ns, floor_ns = layer(*parts)
            if measured < floor_ns:
                yield Missing(source, "faster than the device's peak")
            else:
                yield Point(source, f"{what} of a layer", path.stem, model_ns / 1e3, measured / 1e3)


SOURCES: tuple[Callable[[Path], Found], ...] = (selene, simumax, bridge, titan, foundry, aicb)


def table(points: list[Point]) -> list[dict[str, Any]]:
    """Return the error rows of points by source and quantity."""
    groups: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        groups.setdefault((point.source, point.what), []).append(point)
    rows = []
    for (source, what), members in groups.items():
        ratio = np.array([p.model / p.measured for p in members])
        off = np.abs(ratio - 1)
        capped = [p.capped / p.measured for p in members if p.capped is not None]
        figures = {"median": np.median(off), "mean": off.mean(), "ratio": np.median(ratio)}
        row: dict[str, Any] = {"source": source, "what": what, "rows": len(members)}
        row |= {key: float(value) for key, value in figures.items()}
        if capped:
            row |= {
                "capped_ratio": float(np.median(capped)),
                "capped_mean": float(np.abs(np.array(capped) - 1).mean()),
            }
        rows.append(row)
    return rows


def main() -> None:
    """Print the table and what is missing, and write them as JSON under `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of measured tables")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out", help="folder of the JSON")
    parser.add_argument("--points", action="store_true", help="print every prediction too")
    options = parser.parse_args()
    found = [each for source in SOURCES for each in source(options.data)]
    points = [each for each in found if isinstance(each, Point)]
    missing = Counter(each for each in found if isinstance(each, Missing))
    rows = table(points)
    print("| source | what | rows | median error | mean error | predicted / measured | mean error, capped | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for r in rows:
        capped = f"{r['capped_mean']:.0%} | {r['capped_ratio']:.2f}" if "capped_mean" in r else " | "
        figures = f"{r['median']:.0%} | {r['mean']:.0%} | {r['ratio']:.2f} | {capped}"
        print(f"| {r['source']} | {r['what']} | {r['rows']} | {figures} |")
    print("\n| source | rows not predicted | because |\n|---|---|---|")
    for each, count in missing.items():
        print(f"| {each.source} | {count} | {each.reason} |")
    if options.points:
        for p in points:
            print(f"{p.source}; {p.what}; {p.case}; {p.model:.4g}; {p.measured:.4g}; {p.model / p.measured:.3f}")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "accuracy_training.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
