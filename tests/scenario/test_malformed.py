"""Bad scenarios through the command line: each gives its problems with their places and exit code 2, and no folder."""

import os
import re
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from simulator import cli
from simulator.errors import InputError
from simulator.scenario.load import load

GOOD = """\
schema: 1
topology: {preset: clos-h100, nodes: 2}
workload:
  requests: 10
  arrivals: {poisson: {rate: 5 / s}}
  prompt_tokens: 100
  output_tokens: {lognormal: {median: 50, sigma: 0.5, max: 400}}
serving:
  model: llama-3-8b
  colocated:
    instances: 2
    layout: {tensor: 2}
    batcher: continuous
slo: {ttft: 1 s}
expect: {goodput: ">= 0.5"}
"""

# name: (what of GOOD is replaced, by what, what stands on stderr)
EDITS = {
    "bits for bytes": (
        "nodes: 2",
        "nodes: 2, nvlink: {bandwidth: 450 Gb}",
        r":2:\d+: topology.nvlink.bandwidth: .*'Gb'",
    ),
    "bytes for a duration": ("ttft: 1 s", "ttft: 1 GB", r":14:\d+: slo.ttft: .*unit 'GB'"),
    "no unit of time": ("ttft: 1 s", "ttft: 1", r":14:\d+: slo.ttft: 1 has no unit"),
    "no unit of rate": ("5 / s", "5", r":5:\d+: workload.arrivals.poisson.rate: 5 has no unit"),
    "negative duration": ("ttft: 1 s", "ttft: -1 s", r"slo.ttft: '-1 s' is negative"),
    "zero duration": ("ttft: 1 s", "ttft: 0 s", r"slo.ttft: must be more than zero"),
    "duration that rounds to zero": ("ttft: 1 s", "ttft: 3 ps", r"slo.ttft: '3 ps' rounds to zero"),
    "endless duration": ("ttft: 1 s", "ttft: 1e50 d", r"slo.ttft: .*out of range"),
    "NaN duration": ("ttft: 1 s", "ttft: .nan s", r"slo.ttft: '.nan s' is not a duration"),
    "zero rate": ("5 / s", "0 / s", r"poisson.rate: must be more than zero"),
    "unknown section": ("slo:", "autoscale: []\nslo:", r":14:1: autoscale: unknown key 'autoscale'; allowed: schema"),
    "section with a slip": ("slo:", "sloo:", r":14:1: sloo: unknown key 'sloo'; .*did you mean 'slo'"),
    "unknown key of serving": (
        "  colocated:",
        "  autoscale: {}\n  colocated:",
        r":10:3: serving.autoscale: unknown key",
    ),
    "unknown key of a pool": ("instances: 2", "instanses: 2", r":11:5: serving.colocated.instanses: .*'instances'"),
    "unknown key of a layout": ("tensor: 2", "tensors: 2", r":12:\d+: serving.colocated.layout.tensors: .*'tensor'"),
    "unknown key of a law": ("sigma: 0.5", "sigma: 0.5, mean: 3", r":7:\d+: .*lognormal.mean: unknown key 'mean'"),
    "unknown law": ("poisson:", "poison:", r":5:\d+: workload.arrivals.poison: .*did you mean 'poisson'"),
    "two laws": ("{poisson:", "{constant: {rate: 1 / s}, poisson:", r"workload.arrivals: exactly one of"),
    "law without parameters": ("{poisson: {rate: 5 / s}}", "poisson", r"workload.arrivals.poisson.rate: missing key"),
    "law of nothing": ("{poisson: {rate: 5 / s}}", "{poisson: null}", r"workload.arrivals: poisson needs"),
    "NaN parameter": ("sigma: 0.5", "sigma: .nan", r":7:\d+: .*sigma: expected a finite number"),
    "infinite parameter": ("sigma: 0.5", "sigma: .inf", r"sigma: expected"),
    "number as text": ("sigma: 0.5", 'sigma: "0.5"', r"sigma: expected a number, found '0.5'"),
    "too few states": ("{poisson: {rate: 5 / s}}", "{mmpp: {states: []}}", r"mmpp.states: expected at least 2 items"),
    "median above max": ("median: 50", "median: 500", r":7:\d+: .*lognormal.median: median \(500\) is above max"),
    "fraction of a token": ("prompt_tokens: 100", "prompt_tokens: 1.5", r":6:3: workload.prompt_tokens: expected"),
    "no tokens": ("prompt_tokens: 100", "prompt_tokens: 0", r":6:3: workload.prompt_tokens"),
    "truth as tokens": ("prompt_tokens: 100", "prompt_tokens: true", r":6:3: workload.prompt_tokens: expected"),
    "zero instances": ("instances: 2", "instances: 0", r":11:5: serving.colocated.instances: expected greater"),
    "negative instances": ("instances: 2", "instances: -2", r":11:5: serving.colocated.instances"),
    "truth as a count": ("instances: 2", "instances: true", r":11:5: .*expected a whole number, found True"),
    "fraction as a count": ("instances: 2", "instances: 2.5", r":11:5: .*instances: expected a whole number"),
    "octal or not": ("instances: 2", "instances: 02", r":11:16: .*instances: '02' can be read as octal or decimal"),
    "number with underscores": ("instances: 2", "instances: 1_0", r":11:5: .*found '1_0'"),
    "huge count": ("instances: 2", "instances: 9" + "9" * 90, r":11:5: .*instances: expected less than"),
    "longer than any integer": ("instances: 2", "instances: 9" + "9" * 5000, r":11:5: .*instances: expected"),
    "a date": ("instances: 2", "instances: 2024-01-01", r":11:5: .*found '2024-01-01'"),
    "sexagesimal": ("instances: 2", "instances: 1:30", r":11:5: .*found '1:30'"),
    "too many instances": ("instances: 2", "instances: 9", r":11:5: .*need 18 devices .*has 16"),
    "seed as text": ("schema: 1", 'schema: 1\nseed: "7"', r":2:1: seed: expected a whole number, found '7'"),
    "negative seed": ("schema: 1", "schema: 1\nseed: -1", r":2:1: seed: expected"),
    "huge seed": ("schema: 1", f"schema: 1\nseed: {2**63}", r":2:1: seed: expected"),
    "name that leaves the folder": ("schema: 1", "schema: 1\nname: ../up", r":2:1: name: '../up' is no name"),
    "later schema": ("schema: 1", "schema: 2", r":1:1: schema: unknown version 2; allowed: 1"),
    "schema as text": ("schema: 1", 'schema: "1"', r":1:1: schema: unknown version '1'"),
    "schema true": ("schema: 1", "schema: true", r":1:1: schema: unknown version True"),
    "schema of a half": ("schema: 1", "schema: 1.0", r":1:1: schema: unknown version 1.0"),
    "no schema": ("schema: 1\n", "", r":1:1: missing key 'schema'"),
    "no serving": (GOOD[GOOD.index("serving:") : GOOD.index("slo:")], "", r": serving: missing key 'serving'"),
    "empty section": ("slo: {ttft: 1 s}", "slo:", r":14:1: slo: expected a mapping of keys, found None"),
    "list for a mapping": ("slo: {ttft: 1 s}", "slo: [1]", r":14:1: slo: expected a mapping of keys"),
    "text for a mapping": ("slo: {ttft: 1 s}", "slo: fast", r":14:1: slo: expected a mapping of keys, found 'fast'"),
    "unknown preset": ("clos-h100", "clos-h1000", r":2:\d+: topology.preset: unknown topology preset .*'clos-h100'"),
    "unknown parameter": ("nodes: 2", "nods: 2", r":2:\d+: topology.nods: unknown key .*'nodes'"),
    "cluster beyond the radix": ("nodes: 2", "nodes: 100000", r":2:\d+: topology: "),
    "unknown device": ("nodes: 2", "nodes: 2, device: h100", r":2:\d+: topology.device: unknown device 'h100'"),
    "preset by a wrong path": ("clos-h100", "./clos-h100.yaml", r":2:\d+: topology.preset: cannot read .*No such file"),
    "preset as a number": ("preset: clos-h100", "preset: 3", r":2:\d+: topology.preset: expected text"),
    "unknown model": ("llama-3-8b", "llama-3-8", r":9:3: serving.model: unknown model .*did you mean 'llama-3-8b'"),
    "model by a wrong path": ("llama-3-8b", "cards/mine.yaml", r":9:3: serving.model: cannot read"),
    "model that is a folder": ("llama-3-8b", "./", r":9:3: serving.model: cannot read .*directory"),
    "unknown router": ("  colocated:", "  router: best\n  colocated:", r":10:3: serving.router.*unknown key 'best'"),
    "unknown batcher": ("batcher: continuous", "batcher: statik", r":13:5: .*batcher.*unknown key 'statik'"),
    "unknown cost": ("  colocated:", "  cost: magic\n  colocated:", r":10:3: serving.cost.*unknown key 'magic'"),
    "unknown format": ("  colocated:", "  precision: bf61\n  colocated:", r"unknown format 'bf61'; .*mean 'bf16'"),
    "tensor that splits no head": ("tensor: 2", "tensor: 3", r":12:\d+: serving.colocated.layout.tensor: .*32 heads"),
    "a model with an encoder": ("model: llama-3-8b", "model: t5-11b", r":\d+:\d+: serving.model: .*encoder"),
    "experts of a dense model": ("tensor: 2", "tensor: 2, expert: 2", r":12:\d+: .*layout.expert: .*no experts"),
    "a format without units": ("  colocated:", "  precision: nvfp4\n  colocated:", r"serving.precision: .*fp4"),
    "model too large for its memory": (
        "batcher: continuous",
        "kv: {memory_utilisation: 0.05}",
        r":12:\d+: serving.colocated.layout.tensor: .*not fit",
    ),
    "both arrangements": ("slo:", "  prefill: {instances: 1}\nslo:", r":10:3: serving.colocated: .*exclude each other"),
    "prefill alone": ("colocated:", "prefill:", r":10:3: serving.prefill: a prefill pool needs a decode pool"),
    "no engines": (GOOD[GOOD.index("  colocated") : GOOD.index("slo:")], "", r":8:1: serving: no engines"),
    "trace and arrivals": ("requests: 10", "trace: conversation-sample", r":5:3: workload.arrivals: unknown key"),
    "expect of nothing": ("goodput:", "godput:", r":15:\d+: expect.godput: unknown metric .*'goodput'"),
    "expect without operator": ('">= 0.5"', "0.5", r":15:\d+: expect.goodput: expected a comparison"),
    "expect with a wrong operator": ('">= 0.5"', '"=> 0.5"', r"expect.goodput: expected a comparison"),
    "expect with a unit too many": ('">= 0.5"', '">= 0.5 s"', r"expect.goodput: '0.5 s' is not a plain number"),
    "expect without its unit": ('goodput: ">= 0.5"', 'ttft.p95: "<= 2"', r'expect."ttft.p95": \'2\' has no unit'),
    "expect NaN": ('">= 0.5"', '">= nan"', r"expect.goodput: 'nan' is not a finite number"),
    "goodput without objectives": ("slo: {ttft: 1 s}\n", "", r":14:\d+: expect.goodput: goodput needs objectives"),
    "expect of an absent pool": ("goodput:", "utilisation.prefill.busy:", r"there is no prefill pool"),
    "duplicate key": ("slo:", "serving: {}\nslo:", r":14:1: serving: key 'serving' appears twice"),
    "tab": ("  requests: 10", "\trequests: 10", r":4:1: not valid YAML: .*\\t"),
    "open bracket": ("{ttft: 1 s}", "{ttft: 1 s", r":15:\d+: not valid YAML"),
    "tag": ("schema: 1", "schema: 1\nseed: !!python/name:os.system 1", r":2:7: seed: tag .* is not allowed"),
    "unknown anchor": ("llama-3-8b", "*model", r":9:10: serving.model: alias \*model"),
    "two documents": ("slo:", "---\nslo:", r":14:1: more than one document"),
    "another YAML": ("schema: 1", "%YAML 1.1\n---\nschema: 1", r"%YAML 1.2"),
    "control character": ("llama-3-8b", "llama\x07", r":9: not valid YAML: unacceptable character"),
    "list as key": ("slo:", "[1]: 2\nslo:", r":14:1: a key must be text"),
    "format without columns": ("schema: 1", "schema: 1\nworkload_: 1", r"unknown key 'workload_'.*'workload'"),
}
TRACE = GOOD[: GOOD.index("workload:")] + "workload: {trace: TRACE}\n" + GOOD[GOOD.index("serving:") :]
TRACES = {
    "missing trace": ("traces/none.parquet", r"workload.trace: cannot read .*none.parquet: No such file"),
    "unknown trace": ("conversation", r"workload.trace: unknown trace .*did you mean 'conversation-sample'"),
    "trace that is a folder": ("../", r"workload.trace: cannot read .*directory"),
    "trace of another format": ("scenario.yaml", r"workload.trace: .*no trace in the canonical Parquet schema"),
    "csv without columns": ("scenario.yaml, format: csv", r"workload.format: format csv needs `columns`"),
    "columns without csv": (
        "scenario.yaml, format: azure, columns: {arrival: {column: t, unit: s}, prompt_tokens: p, output_tokens: o}",
        r"workload.columns: format azure has its own columns",
    ),
    "zero speedup": ("conversation-sample, speedup: 0", r"workload.speedup: expected greater than 0"),
    "endless speedup": ("conversation-sample, speedup: .inf", r"workload.speedup: expected"),
    "unknown format": ("conversation-sample, format: azur", r"workload.format: unknown value 'azur'.*'azure'"),
    "null character": ('"a\\0.parquet"', r"workload.trace: cannot read"),
}


def refuse(capfd: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> str:
    """Run the command line, insist on how it must refuse, and return stderr."""
    before = sorted(folder.rglob("*"))
    began = time.process_time()  # of this process: other work on the machine counts not
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    out, err = capfd.readouterr()
    assert stop.value.code == 2, err
    assert out == ""
    assert err.strip()
    assert "Traceback" not in err
    assert time.process_time() - began < 5
    assert sorted(folder.rglob("*")) == before
    return err


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_unedited_scenario_is_good(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "scenario.yaml").write_text(GOOD)
    with pytest.raises(SystemExit) as stop:
        cli.main(["validate", "scenario.yaml"])
    assert stop.value.code == 0
    assert capfd.readouterr().out == "scenario.yaml: valid\n"


@pytest.mark.parametrize(("old", "new", "complaint"), EDITS.values(), ids=EDITS)
def test_bad_scenario(folder: Path, capfd: pytest.CaptureFixture[str], old: str, new: str, complaint: str) -> None:
    assert GOOD.count(old) >= 1
    (folder / "scenario.yaml").write_text(GOOD.replace(old, new, 1))
    err = refuse(capfd, folder, "scenario.yaml")
    assert re.search(complaint, err), err
    assert all(line.startswith("scenario.yaml") for line in err.splitlines()), err


@pytest.mark.parametrize(("trace", "complaint"), TRACES.values(), ids=TRACES)
def test_bad_trace(folder: Path, capfd: pytest.CaptureFixture[str], trace: str, complaint: str) -> None:
    (folder / "scenario.yaml").write_text(TRACE.replace("TRACE", trace))
    assert re.search(r"^scenario.yaml:3:\d+: " + complaint, refuse(capfd, folder, "scenario.yaml"))


BYTES = {
    "empty": (b"", "expected a mapping of keys, found an empty file"),
    "only a comment": (b"# nothing\n", "expected a mapping of keys, found an empty file"),
    "a list": (b"- 1\n- 2\n", "expected a mapping of keys"),
    "a text": (b"hello", "expected a mapping of keys, found 'hello'"),
    "binary": (bytes(range(256)), "not UTF-8"),
    "other encoding": ("schema: 1\nname: café".encode("latin-1"), "scenario.yaml:2: the file is not UTF-8"),
    "10 MB of brackets": (b"[" * 10_000_000, "larger than 1 MiB"),
    "1 MB of brackets": (b"[" * 1_000_000, "nested too deeply; allowed: at most 40 levels"),
    "1 MB of braces": (b"{a: " * 250_000, "nested too deeply"),
    "indented steps": ("".join(" " * i + "a:\n" for i in range(300)).encode(), "nested too deeply"),
    "1 MB of values": (b"a: [" + b"1," * 500_000 + b"]", "more than 50,000 values"),
    "10 MB of keys": (b"".join(b"key%d: 1\n" % i for i in range(900_000)), "larger than 1 MiB"),
    "bomb of aliases": (
        b"a0: &a0 [1,1,1,1,1,1,1,1,1]\n"
        + b"".join(b"a%d: &a%d [%s]\n" % (i, i, b",".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 20)),
        "more than 50,000 values",
    ),
    "alias of itself": (b"a: &a [*a]", "alias *a stands for nothing"),
    "long key": (b"schema: 1\n? " + b"k" * 500_000 + b"\n: 1", "unknown key"),
    "long number": (b"schema: 1\nseed: " + b"1" * 500_000, "seed: expected"),
    "long quantity": (b"schema: 1\nuntil: " + b" 1" * 300_000, "until: "),
}


@pytest.mark.parametrize(("content", "complaint"), BYTES.values(), ids=BYTES)
def test_bad_file(folder: Path, capfd: pytest.CaptureFixture[str], content: bytes, complaint: str) -> None:
    (folder / "scenario.yaml").write_bytes(content)
    assert complaint in refuse(capfd, folder, "scenario.yaml")


def test_no_file(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    err = refuse(capfd, folder, "quikstart.yaml")
    assert err.startswith("quikstart.yaml: no such scenario file")
    assert "did you mean 'quickstart'?" in err


def test_folder_in_the_place_of_a_file(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "directory" in refuse(capfd, folder, str(folder))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "scenario.yaml").write_text(GOOD)
    (folder / "scenario.yaml").chmod(0)
    assert "Permission denied" in refuse(capfd, folder, "scenario.yaml")


BASES = {
    "missing base": ({"scenario": "base: gone.yaml"}, r"scenario.yaml:2:1: base: no such file: gone.yaml"),
    "base in a missing folder": ({"scenario": "base: gone/x.yaml"}, r"scenario.yaml:2:1: base: no such file"),
    "unknown shipped base": ({"scenario": "base: quickstrt"}, r"base: unknown scenario .*'quickstart'"),
    "base with a slip": (
        {"scenario": "base: ./on.yaml", "one": ""},
        r"base: no such file: on.yaml; did you mean 'one.yaml'",
    ),
    "base to itself": ({"scenario": "base: scenario.yaml"}, r"extend each other: scenario.yaml -> scenario.yaml"),
    "base as a list": ({"scenario": "base: [one.yaml]"}, r"base: expected the path of a scenario"),
    "a cycle": (
        {"scenario": "base: one.yaml", "one": "base: two.yaml", "two": "base: ./one.yaml"},
        r"two.yaml:2:1: base: files extend each other: one.yaml -> two.yaml -> one.yaml",
    ),
    "endless": (
        {"scenario": "base: b0.yaml", **{f"b{i}": f"base: b{i + 1}.yaml" for i in range(30)}},
        r"b19.yaml:2:1: base: more than 20 files extend each other",
    ),
    "bad base": ({"scenario": "base: one.yaml", "one": "topology: 3"}, r"one.yaml:2:1: topology: expected a mapping"),
    "base of another version": ({"scenario": "base: one.yaml", "one": "schema: 2"}, r"one.yaml:2:1: schema: key"),
}


@pytest.mark.parametrize(("files", "complaint"), BASES.values(), ids=BASES)
def test_bad_base(folder: Path, capfd: pytest.CaptureFixture[str], files: dict[str, str], complaint: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(f"schema: 1\n{text}\n")
    assert re.search(complaint, refuse(capfd, folder, "scenario.yaml"))


OVERRIDES = {
    "unknown path": ("servng.model=x", r"^--set servng.model=x: servng: unknown key .*did you mean 'serving'"),
    "unknown inner path": ("serving.colocated.kv.block=3", r"^--set .*: serving.colocated.kv.block: unknown key"),
    "path through a scalar": ("serving.model.name=3", r"^--set .*: serving.model: expected text"),
    "no value": ("slo.ttft=", r"^--set slo.ttft=: slo.ttft: no value after '='"),
    "no equals sign": ("slo.ttft", r"^--set slo.ttft: not an override; allowed: PATH=VALUE"),
    "no path": ("=3", r"^--set =3: not an override"),
    "double dot": ("slo..ttft=1 s", r"not an override"),
    "open index": ("workload[0=1", r"not an override"),
    "index into a mapping": ("workload[0]=1", r"workload is no list"),
    "index beyond": ("serving.colocated.layout[7]=1", r"no list"),
    "bad YAML": ("slo={ttft: 1 s", r"^--set slo=\{ttft: 1 s: slo: not valid YAML"),
    "no unit": ("slo.ttft=3", r"^--set slo.ttft=3: slo.ttft: 3 has no unit"),
    "bad quotes": ('a."\\q"=1', r"is no quoted key"),
    "base": ("base=quickstart", r"base cannot be set here"),
    "schema": ("schema=1", r"schema cannot be set here"),
    "away with what is needed": ("serving.model=null", r"serving.model: missing key 'model'"),
    "long": ("description=[" + "1, " * 100 + "1]", r"^--set description=\[1, .*\.\.\.: description: expected text"),
}


@pytest.mark.parametrize(("override", "complaint"), OVERRIDES.values(), ids=OVERRIDES)
def test_bad_override(folder: Path, capfd: pytest.CaptureFixture[str], override: str, complaint: str) -> None:
    (folder / "scenario.yaml").write_text(GOOD)
    assert re.search(complaint, refuse(capfd, folder, "scenario.yaml", "--set", override))


def test_problems_of_all_sections_come_at_once(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = GOOD
    for old, new in (
        ("schema: 1", "schema: 3"),
        ("clos-h100", "clos"),
        ("5 / s", "5"),
        ("llama-3-8b", "gpt"),
        ("1 s", "1"),
    ):
        text = text.replace(old, new, 1)
    (folder / "scenario.yaml").write_text(text)
    err = refuse(capfd, folder, "scenario.yaml", "--set", "serving.colocated.instances=0")
    wanted = ["instances", "schema", "topology.preset", "workload.arrivals", "serving.model", "slo.ttft"]
    lines = err.splitlines()
    assert len(lines) == len(wanted), err
    assert all(part in line for part, line in zip(wanted, lines, strict=True)), err


def test_many_problems_are_cut_short(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "scenario.yaml").write_text("schema: 1\n" + "".join(f"key{i}: 1\n" for i in range(1000)))
    lines = refuse(capfd, folder, "scenario.yaml").splitlines()
    assert len(lines) == cli.MAX_PROBLEMS + 1
    assert lines[-1] == "... and 953 more"


WORDS = [
    "null",
    "-1",
    "0",
    "1e999",
    ".nan",
    "{}",
    "[]",
    "[[1]]",
    "5 s",
    "x",
    "'",
    "{",
    "&a",
    "*a",
    "!t",
    "\x00",
    "1" * 50,
]
LINES = GOOD.splitlines()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.integers(0, len(LINES) - 1), st.sampled_from(["value", "drop", "twice", "indent", "text"]),
                  st.sampled_from(WORDS) | st.text(max_size=20)),
        min_size=1, max_size=4,
    )
)  # fmt: skip
@example([(3, "value", "1" * 400)])
def test_any_mutation_is_valid_or_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], edits: list[tuple[int, str, str]]
) -> None:
    lines = list(LINES)
    for index, how, word in edits:
        line = lines[index]
        key, _, _ = line.partition(": ")
        lines[index] = {
            "value": f"{key}: {word}",
            "drop": "",
            "twice": f"{line}\n{line}",
            "indent": f" {line}",
            "text": line[: len(line) // 2] + word + line[len(line) // 2 :],
        }[how]
    path = tmp_path / "scenario.yaml"
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    with pytest.raises(SystemExit) as stop:
        cli.main(["validate", str(path)])
    out, err = capfd.readouterr()
    assert stop.value.code in (0, 2), err
    assert (stop.value.code == 0) == bool(out)
    assert (stop.value.code == 2) == bool(err)
    assert "Traceback" not in err


OVERRIDE = st.builds(
    "{}={}".format,
    st.sampled_from(["slo.ttft", "serving", "workload.arrivals", 'expect."goodput"', "topology", "x[0]", "", "seed[1]"])
    | st.text(alphabet='serving.slo[]"=\\0', max_size=12),
    st.sampled_from(["{}", "[]", "null", "1", "1 s", "{poisson: 3}", ">= 1", "&a [*a]", "!x y", "%", "\x00"])
    | st.text(max_size=10),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(OVERRIDE, min_size=1, max_size=3))
def test_any_override_is_valid_or_refused(overrides: list[str]) -> None:
    with suppress(InputError):
        assert load("synthetic-colocated", overrides).topology.preset
