"""Prints how many step costs per second the roofline gives, warm and cold, against a bare dictionary lookup.

Run `python benchmarks/cost.py`; rows go to standard output and to benchmarks/out/cost.json. CPU time, the best of
three runs.
"""

import argparse
import itertools
import time
from collections.abc import Callable

import record

from simulator.device.accelerator import load_accelerator
from simulator.device.cost import RooflineCost
from simulator.model.forward import Work
from simulator.model.layout import Layout
from simulator.model.precision import Precision
from simulator.model.transformer import load_model
from simulator.serving.jump import StepTicks

CASES = (
    ("llama-3-70b", "h100-sxm-80gb", Layout(tensor=4), "bf16"),
    ("deepseek-v3", "b200-sxm", Layout(data=8, expert=8), "fp8_block"),
    ("gpt-oss-120b", "b200-sxm", Layout(tensor=2), "bf16"),
)


def rate(call: Callable[[], int], runs: int = 3) -> float:
    """Return evaluations per CPU second of `call`, which returns how many it made; the best of `runs`."""
    best = 0.0
    for _ in range(runs):
        began = time.process_time()
        made = call()
        best = max(best, made / (time.process_time() - began))
    return best


def floor(count: int = 300_000) -> int:
    """Look up as many keys in a dictionary."""
    known = {(n, n * n, 1): float(n) for n in range(1000)}
    for n in range(count):
        known[n % 1000, (n % 1000) ** 2, 1]
    return count


def cases(model: str, device: str, layout: Layout, form: str) -> dict[str, Callable[[], int]]:
    """Return what is measured of one instance, by name."""

    def make() -> RooflineCost:
        return RooflineCost(load_model(model), layout, load_accelerator(device), Precision.model_validate(form))

    warm = make()
    ticks = StepTicks(warm)

    def decode(count: int = 200_000) -> int:
        for n in range(count):
            ticks(1 + n % 64, (1 + n % 64) * (500 + n % 50))
        return count

    def again(count: int = 200_000) -> int:
        for n in range(count):
            warm.prefill_ns(1 + n % 97, 5000 + n % 97, 1)
        return count

    never_before = itertools.count()

    def new_contexts(count: int = 10_000) -> int:
        for n in itertools.islice(never_before, count):
            warm.mixed_ns(512, 512 * 1000 + n, 1, 32, 32_000 + n)
        return count

    def cold(count: int = 1_000) -> int:
        cost = make()
        for n in range(count):
            cost.step_ns(Work(1 + n, (1 + n) * 10, 1, 1 + n % 64, 2000))
        return count

    return {"decode, warm": decode, "prefill, warm": again, "mixed, new contexts": new_contexts, "cold": cold}


def main() -> None:
    """Print every row and write them as JSON."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    rows = {"floor: dictionary lookups": rate(floor)}
    for model, device, layout, form in CASES:
        for what, call in cases(model, device, layout, form).items():
            rows[f"{model} on {device}, {layout}, {form}: {what}"] = rate(call)
    for name, value in rows.items():
        print(f"{name:<75} {value:>12,.0f} / s")
    record.write("cost", rows)


if __name__ == "__main__":
    main()
