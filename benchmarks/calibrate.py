"""Fits the constants of the device sheets on measured kernel tables and prints them as the sheets write them.

Run `python benchmarks/calibrate.py [--device NAME] [--part NAME]`; `accuracy.py` has the errors. Each kind of operator
has its tables and its fit in `benchmarks/operators`; whole shapes stay out of every fit, as `fitting.left_out` says.
"""

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

from operators.fitting import DATA, ROOT, SYSTEMS

PARTS = ("gemm", "attention", "experts", "dispatched_experts", "all_reduce")
HOST_LINKS = "host_links"
"""Modules of `benchmarks/operators` with a `fit(data, device)`."""


def fit(data: Path, device: str, parts: tuple[str, ...] = PARTS) -> dict[str, Any]:
    """Return every fitted constant of one device, nested as its sheet's `efficiency`; a name says its unit."""
    blocks: dict[str, Any] = {}
    for part in parts:
        module = importlib.import_module(f"operators.{part}")
        found = module.fit(data, device)
        blocks |= found if part == "attention" else {part: found}
        if part == "gemm":
            blocks["kernel_launch_ns"] = module.kernel_launch_ns(module.table(data, device))
    return blocks


def sheet(fits: dict[str, Any], indent: str = "  ") -> str:
    """Return the fitted constants as the `efficiency:` block of a device sheet."""
    lines = []
    for key, value in fits.items():
        if isinstance(value, dict):
            lines.append(f"{indent}{key}:\n{sheet(value, indent + '  ')}")
        elif key.endswith("_ns") or key == "launch":
            lines.append(f"{indent}{key.removesuffix('_ns')}: {value:.0f} ns\n")
        elif key.endswith("_bytes"):
            lines.append(f"{indent}{key.removesuffix('_bytes')}: {value >> 10} KiB\n")
        elif isinstance(value, bool | str):
            lines.append(f"{indent}{key}: {str(value).lower()}\n")
        elif key == "cache":
            lines.append(f"{indent}{key}: {value / (1 << 20):.4g} MiB\n")
        elif key == "bandwidth":
            lines.append(f"{indent}{key}: {value * 1e-9:.4g} GB/s\n")
        else:
            lines.append(f"{indent}{key}: {value:.4g}\n")
    return "".join(lines)


def main() -> None:
    """Fit each device, print the sheets' blocks, write JSON under `--out`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of measured tables")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out", help="folder of the JSON")
    parser.add_argument("--device", choices=SYSTEMS, action="append", help="only this device (may be repeated)")
    parts = (*PARTS, HOST_LINKS)
    parser.add_argument("--part", choices=parts, action="append", help="only this kind of operator (may be repeated)")
    options = parser.parse_args()
    fits = {}
    if HOST_LINKS in (options.part or (HOST_LINKS,)):
        found = importlib.import_module(f"operators.{HOST_LINKS}").fit(options.data)
        print(f"# topologies/devices/l40s.yaml\nscale_up:\n{sheet({'all_reduce': found})}", flush=True)
    for name in options.device or SYSTEMS:
        fits[name] = fit(options.data, name, tuple(part for part in options.part or PARTS if part != HOST_LINKS))
        if not fits[name]:
            continue
        print(f"# topologies/devices/{name}.yaml\nefficiency:\n{sheet(fits[name])}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "calibrate.json").write_text(json.dumps(fits, indent=1) + "\n")


if __name__ == "__main__":
    main()
