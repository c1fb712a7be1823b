"""A Perfetto trace file as it is written: tracks, interned names, slices, marks and counters of TrackEvent packets.

Source of messages and field numbers: https://github.com/google/perfetto, protos/perfetto/trace (trace_packet.proto,
track_event/*.proto, interned_data.proto). One packet sequence, whose interning state the first packet clears; times are
nanoseconds of the trace's own clock.
"""

from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from simulator.report.timeline.encode import (
    FIXED64,
    VARINT,
    Array,
    Cells,
    Mask,
    constant,
    embedded,
    fixed64,
    joined,
    number,
    tag,
    text,
    texts,
    varints,
)

PACKET = 1  # of Trace
TIMESTAMP, SEQUENCE, EVENT, INTERNED, FLAGS, DESCRIPTOR = 8, 10, 11, 12, 13, 60  # of TracePacket
CLEARED, NEEDS_STATE = 1, 2  # TracePacket.SequenceFlags
CATEGORY_IIDS, NOTES, TYPE, NAME_IID, TRACK, DOUBLE_VALUE, FLOWS, ENDING_FLOWS = 3, 4, 9, 10, 11, 44, 47, 48
BEGIN, END, INSTANT, COUNTER = 1, 2, 3, 4  # TrackEvent.Type
UUID, NAME, PROCESS, PARENT, COUNTS, ORDERING, RANK = 1, 2, 3, 5, 8, 11, 12  # of TrackDescriptor
PID, PROCESS_NAME = 1, 6  # of ProcessDescriptor
UNIT_NAME = 6  # of CounterDescriptor
EXPLICIT = 3  # TrackDescriptor.ChildTracksOrdering
NOTE_IID, NOTE_BOOL, NOTE_UINT, NOTE_TEXT, NOTE_TEXT_IID = 1, 2, 3, 6, 17  # of DebugAnnotation
CATEGORIES, EVENT_NAMES, NOTE_NAMES, NOTE_TEXTS = 1, 2, 3, 29  # of InternedData

_SEQUENCE = number(SEQUENCE, 1)
_PLAIN = _SEQUENCE + number(FLAGS, NEEDS_STATE)


class Trace:
    """Writes one trace into an open file; `slices`, `instants`, `samples` and `tracks` count what it holds."""

    def __init__(self, file: BinaryIO) -> None:
        self.slices = self.instants = self.samples = self.tracks = 0
        self._file = file
        self._iids: dict[int, dict[str, int]] = {kind: {} for kind in (CATEGORIES, EVENT_NAMES, NOTE_NAMES, NOTE_TEXTS)}
        self._new = b""  # interned since the last packet of them
        self._packet(_SEQUENCE + number(FLAGS, CLEARED))

    # -- tracks ---------------------------------------------------------------------------------------------------

    def process(self, name: str) -> int:
        """Add a process, which groups tracks; return its number."""
        uuid = self.tracks + 1
        process = text(PROCESS, number(PID, uuid) + text(PROCESS_NAME, name))
        return self._describe(number(UUID, uuid) + process + number(ORDERING, EXPLICIT))

    def track(self, parent: int, name: str, rank: int = 0) -> int:
        """Add a track of slices, or of tracks, below another in order of rank; those of one name are shown as one."""
        return self._child(parent, rank, text(NAME, name) + number(ORDERING, EXPLICIT))

    def counter(self, parent: int, name: str, unit: str, rank: int = 0) -> int:
        """Add a track of samples of one quantity."""
        return self._child(parent, rank, text(NAME, name) + text(COUNTS, text(UNIT_NAME, unit)))

    def _child(self, parent: int, rank: int, what: bytes) -> int:
        uuid = number(UUID, self.tracks + 1) + number(PARENT, parent)
        return self._describe(uuid + what + number(RANK, rank))

    def _describe(self, descriptor: bytes) -> int:
        self._packet(_PLAIN + text(DESCRIPTOR, descriptor))
        self.tracks += 1
        return self.tracks

    # -- what slices and marks carry ------------------------------------------------------------------------------

    def name(self, name: str) -> int:
        """Return the number of an event's name."""
        return self._interned(EVENT_NAMES, name)

    def numbers(self, name: str, values: Array, where: Mask | None = None) -> Cells:
        """Return a note of whole numbers >= 0, or of bools, on each event, or on some."""
        field = NOTE_BOOL if values.dtype.kind == "b" else NOTE_UINT
        return self._note(name, tag(field, VARINT), varints(values), where)

    def words(self, name: str, words: Sequence[str], codes: Array, where: Mask | None = None) -> Cells:
        """Return a note of a few different words, `words[codes[i]]` on event i."""
        iids = np.array([self._interned(NOTE_TEXTS, word) for word in words] or [0])
        return self._note(name, tag(NOTE_TEXT_IID, VARINT), varints(iids[codes]), where)

    def texts(self, name: str, values: Sequence[str | None]) -> Cells:
        """Return a note of texts that do not repeat, for those events that have one."""
        there = np.array([value is not None for value in values], np.bool_)
        return self._note(name, tag(NOTE_TEXT, 2), texts(values), there)

    def _note(self, name: str, kind: bytes, values: Cells, where: Mask | None) -> Cells:
        rows = len(values.octets)
        fixed = number(NOTE_IID, self._interned(NOTE_NAMES, name)) + kind
        note = embedded(NOTES, constant(fixed, rows), values)
        return note if where is None else note.where(where)

    def _interned(self, kind: int, word: str) -> int:
        iids = self._iids[kind]
        iid = iids.get(word)
        if iid is None:
            iid = iids[word] = len(iids) + 1
            self._new += text(kind, number(1, iid) + text(2, word))  # iid and name, or str, alike in all of them
        return iid

    # -- events ---------------------------------------------------------------------------------------------------

    def add_slices(
        self,
        category: str,
        tracks: Array,
        starts_ns: Array,
        ends_ns: Array,
        names: Array,
        notes: Sequence[Cells] = (),
        flow: Cells | None = None,
    ) -> None:
        """Write slices; those of one track come in order of time and do not overlap, but for what is inside another."""
        begin = self._event(BEGIN, tracks, category, names, (*notes, *((flow,) if flow is not None else ())))
        end = self._event(END, tracks)
        self._write(joined(_packets(starts_ns, begin), _packets(ends_ns, end)))
        self.slices += len(tracks)

    def add_instants(
        self, category: str, tracks: Array, times_ns: Array, names: Array, notes: Sequence[Cells] = ()
    ) -> None:
        """Write marks."""
        self._write(_packets(times_ns, self._event(INSTANT, tracks, category, names, notes)))
        self.instants += len(tracks)

    def add_samples(self, tracks: Array, times_ns: Array, values: Array) -> None:
        """Write what counters stand at from a time on."""
        value = joined(constant(tag(DOUBLE_VALUE, FIXED64), len(tracks)), fixed64(values.astype(np.float64)))
        self._write(_packets(times_ns, self._event(COUNTER, tracks, notes=(value,))))
        self.samples += len(tracks)

    def _event(
        self,
        kind: int,
        tracks: Array,
        category: str | None = None,
        names: Array | None = None,
        notes: Sequence[Cells] = (),
    ) -> Cells:
        rows = len(tracks)
        fixed = number(TYPE, kind)
        if category is not None:
            fixed += number(CATEGORY_IIDS, self._interned(CATEGORIES, category))
        parts = [constant(fixed + tag(TRACK, VARINT), rows), varints(tracks)]
        if names is not None:
            parts += [constant(tag(NAME_IID, VARINT), rows), varints(names)]
        return embedded(EVENT, *parts, *notes)

    def _packet(self, content: bytes) -> None:
        self._file.write(text(PACKET, content))

    def _write(self, packets: Cells) -> None:
        if self._new:
            self._packet(_PLAIN + text(INTERNED, self._new))
            self._new = b""
        self._file.write(packets.tobytes())


def flows(ids: Array, where: Mask, end: bool) -> Cells:
    """Return what lets an arrow begin, or end, at some of the slices that carry it."""
    return joined(constant(tag(ENDING_FLOWS if end else FLOWS, FIXED64), len(ids)), fixed64(ids)).where(where)


def _packets(times_ns: Array, event: Cells) -> Cells:
    rows = len(times_ns)
    return embedded(PACKET, constant(_PLAIN + tag(TIMESTAMP, VARINT), rows), varints(times_ns), event)
