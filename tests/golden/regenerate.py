"""Golden digests: what each shipped scenario gives. `python tests/golden/regenerate.py` rewrites golden.json."""

import json
import sys
import tempfile
from pathlib import Path

from simulator import catalog, load, simulate

GOLDEN = Path(__file__).parent / "golden.json"
NAMES = [name for name in catalog.names("scenarios") if not name.startswith("traces/")]  # which need public data


def observe(name: str, folder: Path) -> dict[str, object]:
    """Run a shipped scenario; return its digest and a few figures that say what moved when the digest does."""
    run = simulate(load(name), out=folder / name, check=True)
    summary = run.summary
    if "flows" in summary:
        return {
            "digest": run.manifest["digest"],
            "events": run.manifest["events"],
            "flows": {name: summary["flows"][name] for name in ("total", "completed")},
            "collectives": {name: summary["collectives"][name] for name in ("total", "completed")},
            "fct_mean_s": summary["fct"]["mean"],
            "collective_mean_s": summary["collectives"]["time"]["mean"],
            "simulated_s": summary["simulated_s"],
        }
    return {
        "digest": run.manifest["digest"],
        "events": run.manifest["events"],
        "requests": {name: summary["requests"][name] for name in ("total", "finished", "rejected")},
        "ttft_p99_s": summary["ttft"]["p99"],
        "tpot_mean_s": summary["tpot"]["mean"],
        "simulated_s": summary["simulated_s"],
    }


def main() -> None:
    """Write the digests of all shipped scenarios."""
    with tempfile.TemporaryDirectory() as folder:
        golden = {name: observe(name, Path(folder)) for name in NAMES}
    GOLDEN.write_text(json.dumps(golden, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
