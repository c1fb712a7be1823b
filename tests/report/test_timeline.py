"""The trace file of a run: read back by Perfetto's own messages and compared with the rows, one by one and slowly."""

import shutil
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given
from hypothesis import strategies as st
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as pb

from simulator.build.run import run_scenario
from simulator.errors import InputError, OutputError
from simulator.report.timeline import columns, encode
from simulator.report.timeline.lanes import Spans, first_fit
from simulator.report.timeline.write import write_timeline
from simulator.results.folder import TIMELINE, RunFolder
from simulator.results.run import Run, load_run
from simulator.results.tables import EVENTS, FLOWS, INSTANCES, REQUESTS
from simulator.scenario.load import load

SERVED = """
schema: 1
seed: 7
topology: {preset: clos-h100, nodes: 2}
workload:
  requests: 150
  arrivals: {poisson: {rate: 30 / s}}
  prompt_tokens: {lognormal: {median: 700, sigma: 0.9, max: 8000}}
  output_tokens: {lognormal: {median: 30, sigma: 1.2, max: 300}}
serving:
  model: llama-3.1-70b
  request_overhead: 2 ms
  prefill: {instances: 2, layout: {tensor: 4}}
  decode: {instances: 2, layout: {tensor: 4}}
"""
MOVED = """
schema: 1
topology: {preset: clos-h100, nodes: 2}
traffic:
  on_dead_link: stall
  pattern: {permutation: {bytes: 100 MB}}
  collectives: [{run: {all_reduce: {bytes: 64 MB}}, repeat: 3}]
faults:
  - {what: nic, name: node0/nic0, at: 1 ms, repair: 2 ms}
  - {what: nic, name: node0/nic0, at: 2 ms, repair: 3 ms}
  - {what: nic, name: node1/nic2, at: 2 ms}
until: 20 ms
"""
PHASES = ("gateway", "queue", "prefill", "KV wait", "KV transfer", "decode wait", "decode")


class Slice(NamedTuple):
    track: tuple[str, ...]
    uuid: int
    name: str
    start: int
    end: int
    category: str
    notes: dict[str, Any]
    flows: tuple[int, ...]
    ending: tuple[int, ...]


class Trace:
    """A trace as trace_processor would read it: by time, ties in the order of the file, a stack for each track."""

    def __init__(self, path: Path) -> None:
        packets = pb.Trace.FromString(path.read_bytes()).packet
        self.words: dict[str, dict[int, str]] = defaultdict(dict)
        self.tracks: dict[int, pb.TrackDescriptor] = {}
        self.times: list[int] = []
        self.slices: list[Slice] = []
        self.instants: list[Slice] = []
        self.samples: dict[tuple[str, ...], list[tuple[int, float]]] = defaultdict(list)
        events = []
        for index, packet in enumerate(packets):
            assert packet.trusted_packet_sequence_id == 1
            cleared, needs = pb.TracePacket.SEQ_INCREMENTAL_STATE_CLEARED, pb.TracePacket.SEQ_NEEDS_INCREMENTAL_STATE
            assert packet.sequence_flags == (needs if index else cleared)
            assert_known(packet)
            if packet.HasField("interned_data"):
                self._learn(packet.interned_data)
            if packet.HasField("track_descriptor"):
                descriptor = packet.track_descriptor
                assert descriptor.uuid
                assert descriptor.uuid not in self.tracks
                assert descriptor.HasField("process") or descriptor.parent_uuid in self.tracks
                self.tracks[descriptor.uuid] = descriptor
            if packet.HasField("track_event"):
                assert packet.HasField("timestamp")
                self.times.append(packet.timestamp)
                events.append((packet.timestamp, self._resolved(packet.track_event), packet.track_event))
        self._replay(sorted(events, key=lambda event: event[0]))

    def path(self, uuid: int) -> tuple[str, ...]:
        descriptor = self.tracks[uuid]
        if descriptor.HasField("process"):
            return (descriptor.process.process_name,)
        return (*self.path(descriptor.parent_uuid), descriptor.name)

    def named(self, name: str) -> list[Slice]:
        return [piece for piece in self.slices if piece.name == name]

    def _learn(self, data: pb.InternedData) -> None:
        for kind in ("event_categories", "event_names", "debug_annotation_names"):
            for entry in getattr(data, kind):
                assert self.words[kind].setdefault(entry.iid, entry.name) == entry.name
        for entry in data.debug_annotation_string_values:
            assert self.words["texts"].setdefault(entry.iid, entry.str.decode()) == entry.str.decode()

    def _resolved(self, event: pb.TrackEvent) -> tuple[str, str, dict[str, Any]]:
        """Resolve numbers as they stand now: what is interned later does not count."""
        assert event.track_uuid in self.tracks
        notes = {}
        for note in event.debug_annotations:
            kind = note.WhichOneof("value")
            value = getattr(note, kind)
            name = self.words["debug_annotation_names"][note.name_iid]
            assert name not in notes
            notes[name] = self.words["texts"][value] if kind == "string_value_iid" else value
        name = self.words["event_names"][event.name_iid] if event.name_iid else ""
        category = self.words["event_categories"][event.category_iids[0]] if event.category_iids else ""
        assert bool(name) == (event.type in (pb.TrackEvent.TYPE_SLICE_BEGIN, pb.TrackEvent.TYPE_INSTANT))
        return name, category, notes

    def _replay(self, events: list[tuple[int, Any, pb.TrackEvent]]) -> None:
        open_slices: dict[int, Slice] = {}
        for time, (name, category, notes), event in events:
            uuid = event.track_uuid
            arrows = tuple(event.flow_ids), tuple(event.terminating_flow_ids)
            found = Slice(self.path(uuid), uuid, name, time, time, category, notes, *arrows)
            if event.type == pb.TrackEvent.TYPE_SLICE_BEGIN:
                assert uuid not in open_slices, "slices of one lane overlap"
                open_slices[uuid] = found
            elif event.type == pb.TrackEvent.TYPE_SLICE_END:
                begun = open_slices.pop(uuid)
                assert time > begun.start
                self.slices.append(begun._replace(end=time))
            elif event.type == pb.TrackEvent.TYPE_INSTANT:
                self.instants.append(found)
            else:
                assert event.type == pb.TrackEvent.TYPE_COUNTER
                assert self.tracks[uuid].HasField("counter")
                self.samples[self.path(uuid)].append((time, event.double_counter_value))
        assert not open_slices, "slices without an end"


def assert_known(message: Any) -> None:
    """Every field is one that Perfetto's schema has, all the way down."""
    assert not len(UnknownFieldSet(message))
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if field.is_repeated else [value]:
                assert_known(inner)


def phases(row: Any, end_ns: int) -> list[tuple[str, str, int, int]]:
    """Return (instance, phase, start, end) of a finished or open request, by what the data dictionary says."""

    def known(value: Any) -> int | None:
        return None if pd.isna(value) else int(value)

    queued, prefill, first = known(row.queued_ns), known(row.prefill_start_ns), known(row.prefill_end_ns)
    decode, finish = known(row.decode_start_ns), known(row.finish_ns)
    end = end_ns if finish is None else finish
    spans = [("", "gateway", row.arrival_ns, end if queued is None else queued)]
    if queued is not None:
        spans.append((row.prefill_instance, "queue", queued, end if prefill is None else prefill))
    if prefill is not None:
        spans.append((row.prefill_instance, "prefill", prefill, end if first is None else first))
    if first is not None:
        placed = first + row.kv_wait_ns
        moved = placed + row.kv_transfer_ns
        spans.append((row.prefill_instance, "KV wait", first, placed))
        spans.append((row.prefill_instance, "KV transfer", placed, moved))
        there = known_text(row.decode_instance) or row.prefill_instance
        spans.append((there, "decode wait", moved, end if decode is None else decode))
        if decode is not None:
            spans.append((there, "decode", decode, end))
    return [span for span in spans if span[3] > span[2]]


def known_text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def drawn(trace: Trace) -> Counter[tuple[str, str, int, int, int]]:
    found: Counter[tuple[str, str, int, int, int]] = Counter()
    for piece in trace.slices:
        if piece.category == "request":
            process, *rest = piece.track
            place = "" if process == "cluster" else rest[0]
            lane = {"gateway": "gateway", "queue": "queue"}.get(piece.name, "requests")
            assert rest[-1] == lane
            found[place, piece.name, piece.start, piece.end, piece.notes["request"]] += 1
    return found


def expected(run: Run, start: int = 0, end: int | None = None) -> Counter[tuple[str, str, int, int, int]]:
    end_ns = run.manifest["simulated_ns"]
    end = end_ns if end is None else end
    found: Counter[tuple[str, str, int, int, int]] = Counter()
    for row in run.requests.itertuples():
        for place, phase, begin, finish in phases(row, end_ns):
            if max(begin, start) < min(finish, end):
                found[place, phase, max(begin, start), min(finish, end), row.request_id] += 1
    return found


def scenario(folder: Path, text: str) -> Run:
    (folder / "scenario.yaml").write_text(text)
    return run_scenario(load(folder / "scenario.yaml"), folder / "run")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return scenario(tmp_path_factory.mktemp("served"), SERVED)


@pytest.fixture(scope="module")
def whole(served: Run) -> Trace:
    return Trace(write_timeline(served).path)


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return scenario(tmp_path_factory.mktemp("moved"), MOVED)


# -- a served run -----------------------------------------------------------------------------------------------------


def test_every_phase_of_every_request_is_a_slice_and_nothing_else_is(served: Run, whole: Trace) -> None:
    slices = expected(served)
    assert {phase for _, phase, *_ in slices} >= {"gateway", "queue", "prefill", "KV transfer", "decode"}
    assert drawn(whole) == slices
    rows = served.requests.dropna(subset=["decode_start_ns", "finish_ns"])
    spent = sum(piece.end - piece.start for piece in whole.named("decode"))
    windows = [piece for piece in whole.slices if piece.category == "window"]
    assert (
        spent - sum(p.end - p.start for p in windows if p.name == "decode")
        == (rows.finish_ns - rows.decode_start_ns).sum()
    )


def test_a_request_says_what_it_was_on_its_main_slices(served: Run, whole: Trace) -> None:
    rows = served.requests.set_index("request_id")
    main = [p for p in whole.slices if p.category == "request" and p.name in ("prefill", "decode")]
    assert len(main) > len(rows)
    for piece in main:
        row = rows.loc[piece.notes["request"]]
        assert {name: value for name, value in piece.notes.items() if name != "request"} == {
            name: row[name] for name in ("prompt_tokens", "output_tokens", "cached_tokens", "preemptions", "outcome")
        }


def test_an_arrow_goes_from_each_prefill_to_the_decode_elsewhere(served: Run, whole: Trace) -> None:
    begun = {piece.flows: piece for piece in whole.slices if piece.flows}
    ended = {piece.ending: piece for piece in whole.slices if piece.ending}
    decoded = served.requests.dropna(subset=["decode_start_ns"])
    assert len(begun) == len(decoded) > 100
    assert begun.keys() == ended.keys()
    for arrow, piece in begun.items():
        target = ended[arrow]
        assert (piece.name, target.name) == ("prefill", "decode")
        assert piece.notes["request"] == target.notes["request"]
        assert piece.track[:2] != target.track[:2]
        assert piece.end <= target.start


def test_no_more_lanes_than_requests_at_once(whole: Trace) -> None:
    by_track: dict[tuple[str, ...], dict[int, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    for piece in whole.slices:
        if piece.category == "request":
            spans = by_track[piece.track][piece.notes["request"]]
            spans.append((piece.start, piece.end))
    for track, spans_of in by_track.items():
        lanes = [uuid for uuid in whole.tracks if whole.path(uuid) == track]
        spans = [(min(a for a, _ in own), max(b for _, b in own)) for own in spans_of.values()]
        most = max(sum(a <= at <= b for a, b in spans) for at, _ in spans)
        assert len(lanes) == most


def test_windows_are_states_and_counters(served: Run, whole: Trace) -> None:
    rows = served.instances[served.instances.end_ns > served.instances.start_ns]
    windows = [piece for piece in whole.slices if piece.category == "window"]
    assert Counter(
        (p.track[1], p.name, p.start, p.end, *(p.notes[f"{name}_ns"] for name in ("prefill", "decode", "idle")))
        for p in windows
    ) == Counter(
        (r.instance, r.state, r.start_ns, r.end_ns, r.prefill_ns, r.decode_ns, r.idle_ns) for r in rows.itertuples()
    )
    assert {piece.track[0] for piece in windows} == {"prefill", "decode"}
    for name, column in (("running", "running"), ("waiting", "waiting"), ("KV blocks in use", "kv_blocks")):
        for instance, own in rows.groupby("instance"):
            samples = whole.samples[instance.rpartition("-")[0], instance, name]
            assert samples == [*zip(own.start_ns, own[column], strict=True), (own.end_ns.max(), 0.0)]
    tokens = 0.0
    for instance, own in rows.groupby("instance"):
        rates = dict(whole.samples[instance.rpartition("-")[0], instance, "output tokens/s"])
        tokens += sum(rates[r.start_ns] * (r.end_ns - r.start_ns) / 1e9 for r in own.itertuples())
    assert tokens == pytest.approx(rows.output_tokens.sum())
    power = served.table("power").to_pandas()
    for instance, own in power.groupby("instance"):
        samples = whole.samples[instance.rpartition("-")[0], instance, "power"]
        assert samples[:-1] == list(zip(own.start_ns, own.power_w, strict=True))


def test_events_are_marks_where_they_happened(served: Run, whole: Trace) -> None:
    found = Counter((p.track[1:], p.start, p.name, p.notes["detail"]) for p in whole.instants)
    rows = served.events
    assert len(rows) >= 4
    assert found == Counter(((r.subject, "events"), r.time_ns, r.kind, r.detail) for r in rows.itertuples())


@pytest.mark.parametrize("share", [(0.0, 0.3), (0.2, 0.25), (0.7, 1.0)])
def test_a_window_cuts_slices_and_drops_what_lies_outside(served: Run, tmp_path: Path, share: Any) -> None:
    start, end = (round(served.manifest["simulated_ns"] * part) for part in share)
    done = write_timeline(served, tmp_path / "part.pftrace", start, end)
    part = Trace(done.path)
    assert done.window == (start, end)
    assert part.times
    assert start <= min(part.times) <= max(part.times) <= end
    assert drawn(part) == expected(served, start, end)
    assert len(part.slices) == done.slices
    begun = Counter(arrow for piece in part.slices for arrow in piece.flows)
    assert begun == Counter(arrow for piece in part.slices for arrow in piece.ending)
    states = {p.track for p in part.slices if p.category == "window"}
    for track in states:
        own = sorted((p.start, p.end) for p in part.slices if p.track == track)
        assert (own[0][0], own[-1][1]) == (start, end)
        assert all(a[1] == b[0] for a, b in pairwise(own))
    for track, samples in part.samples.items():
        instance, name = track[1:]
        rows = served.table("power" if name == "power" else "instances").to_pandas()
        rows = rows[(rows.instance == instance) & (rows.end_ns > start) & (rows.start_ns < end)]
        column = {"KV blocks in use": "kv_blocks", "power": "power_w"}.get(name, name)
        values = rows[column] if column in rows else rows.output_tokens * 1e9 / (rows.end_ns - rows.start_ns)
        ended = [(end, 0.0)] if served.manifest["simulated_ns"] == end else []
        assert samples == [*zip(np.maximum(rows.start_ns, start), values, strict=True), *ended]


def test_it_does_not_matter_how_rows_are_batched(
    served: Run, whole: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "BATCH_ROWS", 7)
    again = Trace(write_timeline(served, tmp_path / "x.pftrace").path)
    assert drawn(again) == drawn(whole)
    assert again.samples == whole.samples
    assert again.instants == whole.instants


def test_equal_runs_give_the_same_bytes(served: Run, whole: Trace, tmp_path: Path) -> None:
    again = write_timeline(scenario(tmp_path, SERVED), tmp_path / "other.pftrace")
    assert again.path.read_bytes() == (served.path / TIMELINE).read_bytes()
    assert again.slices == len(whole.slices)
    assert again.instants == len(whole.instants)
    assert again.samples == sum(map(len, whole.samples.values()))
    assert again.tracks == len(whole.tracks)
    assert again.size_bytes == again.path.stat().st_size


# -- a run of the network only ----------------------------------------------------------------------------------------


def test_flows_and_collectives_are_slices_and_faults_last_until_their_repair(moved: Run) -> None:
    trace = Trace(write_timeline(moved).path)
    end = moved.manifest["simulated_ns"]
    rows = moved.table("flows").to_pandas()
    rows["end_ns"] = rows.finish_ns.fillna(end).astype(int)
    assert rows.finish_ns.isna().any()
    assert Counter(
        (p.track, p.name, p.start, p.end, p.notes["flow"], p.notes["bytes"], p.notes["completed"])
        for p in trace.slices
        if p.category == "flow"
    ) == Counter(
        (("network", r.src, "flows"), f"to {r.dst}", r.start_ns, r.end_ns, r.flow_id, r.bytes, r.completed)
        for r in rows.itertuples()
    )
    runs = moved.table("collectives").to_pandas()
    found = [p for p in trace.slices if p.track == ("network", "collectives")]
    assert len(found) == len(runs) > 0
    assert {(p.name, p.notes["algorithm"], p.notes["repeat"]) for p in found} == {
        (r.operation, r.algorithm, r.repeat) for r in runs.itertuples()
    }
    ms = 1_000_000
    faults = [(p.name, p.start, p.end, p.notes["repaired"]) for p in trace.slices if p.category == "fault"]
    first, second, never = ("node0/nic0", ms, 3 * ms, True), ("node0/nic0", 2 * ms, 5 * ms, True), ("node1/nic2",)
    assert sorted(faults) == [first, second, (*never, 2 * ms, end, False)]
    assert not [p for p in trace.instants if p.name in ("fault", "repair")]


# -- rows made by hand ------------------------------------------------------------------------------------------------

ASKED = (700, 50, 0, 0)
PLACES = ("p", "d")


def by_hand(
    path: Path, requests: list[tuple[Any, ...]], events: list[tuple[Any, ...]] = (), places: tuple[str, ...] = PLACES
) -> Run:
    with RunFolder.create(path) as folder:
        tables = folder.writer(REQUESTS), folder.writer(INSTANCES), folder.writer(EVENTS)
        for number, row in enumerate(requests):
            tables[0].append((number, None, None, *row))
        for name in places:
            tables[1].append((name, "decode", 0, 1000, "idle", 0, 0, 1000, 0.0, 0, 0.0, 0, 0.0, 0, 9, 0))
        for row in events:
            tables[2].append(row)
        folder.finish({"simulated_ns": 1000})
    return load_run(path)


def test_what_was_given_up_leaves_a_mark_and_what_is_open_lasts_to_the_end(tmp_path: Path) -> None:
    times = [
        ((5, -1, -1, -1, -1, -1), (None, None), (0, 0), "rejected"),
        ((10, 12, -1, -1, -1, -1), ("p", None), (0, 0), "timed_out"),
        ((20, 20, 30, 90, -1, -1), ("p", None), (7, 0), "cancelled"),
        ((25, 25, 40, 100, 150, -1), ("p", "d"), (5, 40), "cancelled"),
        ((50, 50, 60, -1, -1, -1), ("p", None), (0, 0), "unfinished"),
        ((60, 60, 70, 100, 110, 500), ("p", "p"), (0, 90), "finished"),  # it moved after it had been preempted
    ]
    rows = [
        (*t[:4], t[3], *t[4:], *ASKED, *where, *kv, 0, 0, 0, outcome, None)  # its first token is sent as it is made
        for t, where, kv, outcome in times
    ]
    trace = Trace(write_timeline(by_hand(tmp_path / "run", rows)).path)
    marks = {(p.name, p.start, p.track, p.notes["request"], p.notes["outcome"]) for p in trace.instants}
    assert marks == {
        ("rejected", 5, ("cluster", "given up"), 0, "rejected"),
        ("timed_out", 12, ("p (decode)", "p", "events"), 1, "timed_out"),
        ("cancelled", 97, ("p (decode)", "p", "events"), 2, "cancelled"),
        ("cancelled", 150, ("d (decode)", "d", "events"), 3, "cancelled"),
    }
    assert {(place, phase, start, end) for place, phase, start, end, _ in drawn(trace)} == {
        ("", "gateway", 10, 12),
        ("p", "queue", 20, 30),
        ("p", "prefill", 30, 90),
        ("p", "KV wait", 90, 97),
        ("p", "queue", 25, 40),
        ("p", "prefill", 40, 100),
        ("p", "KV wait", 100, 105),
        ("p", "KV transfer", 105, 145),
        ("d", "decode wait", 145, 150),
        ("p", "queue", 50, 60),
        ("p", "prefill", 60, 1000),
        ("p", "queue", 60, 70),
        ("p", "prefill", 70, 100),
        ("p", "KV transfer", 100, 110),
        ("p", "decode", 110, 500),
    }


def test_a_run_in_which_all_were_rejected_at_once_has_their_marks(tmp_path: Path) -> None:
    row = (5, *[-1] * 6, *ASKED, None, None, 0, 0, 0, 0, 0, "rejected", "prompt too large")
    trace = Trace(write_timeline(by_hand(tmp_path / "run", [row, row], places=())).path)
    assert [(mark.name, mark.start, mark.track) for mark in trace.instants] == [
        ("rejected", 5, ("cluster", "given up"))
    ] * 2


def test_an_empty_run_and_texts_of_any_length_are_traces(tmp_path: Path) -> None:
    assert not Trace(write_timeline(by_hand(tmp_path / "empty", [])).path).instants
    details = ["", None, "ü" * 300, "x"]
    events = [(at, "lease", "p" if at % 2 else "elsewhere", detail) for at, detail in enumerate(details)]
    run = by_hand(tmp_path / "run", [], events)
    trace = Trace(write_timeline(run).path)
    assert [piece.notes.get("detail") for piece in trace.instants] == details
    assert trace.instants[0].track == ("cluster", "events")
    assert trace.instants[1].track[1:] == ("p", "events")
    within = Trace(write_timeline(run, tmp_path / "part.pftrace", 1, 2).path)
    assert [piece.start for piece in within.instants] == [1, 2]


# -- what the file is made of -----------------------------------------------------------------------------------------

NUMBERS = st.integers(0, 2**64 - 1)


@given(st.lists(NUMBERS, min_size=1, max_size=20))
def test_varints_are_those_of_protobuf(values: list[int]) -> None:
    packets = [pb.TracePacket(timestamp=value).SerializeToString() for value in values]
    assert [encode.number(8, value) for value in values] == packets
    found = encode.joined(encode.constant(encode.tag(8, 0), len(values)), encode.varints(np.array(values, np.uint64)))
    assert found.tobytes() == b"".join(packets)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30), st.integers(0, 8)), max_size=40))
def test_lanes_are_the_lowest_that_are_free(spans: list[tuple[int, int, int]]) -> None:
    owners, starts, lengths = (
        (np.array(column, np.int64) for column in zip(*spans, strict=True)) if spans else [np.zeros(0, np.int64)] * 3
    )
    slow: dict[int, int] = {}
    ends: dict[tuple[int, int], int] = {}  # of the last span on each lane
    for index in sorted(range(len(spans)), key=lambda i: (spans[i][1], i)):
        owner, start, length = spans[index]
        if length:
            lane = next(lane for lane in range(len(spans)) if ends.get((owner, lane), -1) < start)
            ends[owner, lane] = start + length
            slow[index] = lane
    at = np.flatnonzero(lengths)
    if len(at):
        assert first_fit(owners[at], starts[at], (starts + lengths)[at]).tolist() == [slow[i] for i in at.tolist()]
    made: list[int] = []
    gathered = Spans()
    cut = len(spans) // 2
    for part in (slice(0, cut), slice(cut, None)):
        gathered.add(owners[part], starts[part], (starts + lengths)[part])
    tracks = gathered.tracks(lambda owner: made.append(owner) or len(made))
    assert [bool(track) for track in tracks] == [bool(length) for _, _, length in spans]
    for index, lane in slow.items():
        track = int(tracks[index])
        assert made[track - 1] == spans[index][0]
        assert track - 1 - made.index(spans[index][0]) == lane


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_into_the_runs_folder_which_can_be_used_again(simulate, served: Run, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(served.path, run, ignore=shutil.ignore_patterns(TIMELINE))
    outcome = simulate("timeline", str(run), "--from", "1 s", "--to", "2 s")
    assert outcome.code == 0
    assert "1 s to 2 s" in outcome.out
    trace = Trace(run / TIMELINE)
    assert f"{len(trace.slices):,} slices" in outcome.out
    assert 10**9 <= min(trace.times) <= max(trace.times) <= 2 * 10**9
    load_run(run).verify()
    with RunFolder.create(run) as folder:
        folder.writer(FLOWS)
        folder.finish({"simulated_ns": 0})
    assert not (run / TIMELINE).exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--from", "5"), "has no unit"),
        (("--from", "2 s", "--to", "1 s"), "nothing lies from 2 s to 1 s"),
        (("--from", "9 h"), "the run lasted"),
        (("--out", "."), "is a folder"),
        (("--out", "nowhere/x.pftrace"), "there is no such folder"),
        (("--out", "RUN/requests.parquet"), "is a file of the run itself"),
        (("--out", "RUN/../run/manifest.json"), "is a file of the run itself"),
    ],
)
def test_bad_requests_are_refused(simulate, served: Run, arguments: tuple[str, ...], complaint: str) -> None:
    words = [word.replace("RUN", str(served.path)) for word in arguments]
    outcome = simulate("timeline", str(served.path), *words)
    assert outcome.code == 2
    assert complaint in outcome.err
    served.verify()


def test_no_run_is_refused(simulate) -> None:
    outcome = simulate("timeline", "nothing")
    assert outcome.code == 2
    assert "no run here" in outcome.err


def test_a_write_that_fails_leaves_the_old_file(served: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "x.pftrace"
    out.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        write_timeline(served, out)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pftrace"]
    assert out.read_bytes() == b"old"
    with pytest.raises(InputError):
        write_timeline(served, out, from_ns=5, to_ns=5)
