"""Traces that stay in memory between the runs of one process, so that points of a sweep do not parse them again.

Model: a stream that is remembered as far as anyone has read it, within a bound of bytes over all traces; the least
recently opened goes first, and one that is larger than the bound is streamed anew by each run.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa

from simulator import catalog
from simulator.workload.schema import Report
from simulator.workload.trace import Source, Trace, open_trace

SWEEP_BYTES = 256 << 20
"""Bytes of batches that a worker of a sweep keeps."""


class KeptSource:
    """A source whose batches stay, as far as they have been read; `grown(self)` says whether it may hold them."""

    def __init__(self, source: Source, strict: bool, grown: Callable[["KeptSource"], bool]) -> None:
        self.metadata, self.columns_present = source.metadata, source.columns_present
        self.prefix_block_tokens, self.files, self.notes = source.prefix_block_tokens, source.files, source.notes
        self.bytes = 0
        self._source, self._grown = source, grown
        self._report = Report()
        self._rest = source.batches(self._report, strict)
        self._found: list[tuple[pa.RecordBatch | None, Report]] = []  # None: the end
        self._streams = False
        self._lock = Lock()  # a worker of a cluster may run points in several threads

    def batches(self, report: Report, strict: bool, start_ns: int = 0) -> Iterator[pa.RecordBatch]:
        """Yield the batches of the source and fill `report` as it would; `strict` is that of the first opening."""
        at = 0
        while (found := self._at(at, report)) is not None:
            batch, so_far = found
            report.take(so_far)
            if batch is None:
                return
            yield batch
            at += 1
        report.clear()
        yield from islice(self._source.batches(report, strict, start_ns), at, None)

    def skipped(self, start_ns: int) -> int:
        """Return zero: only sources that read every row are kept."""
        return 0

    def _at(self, at: int, told: Report) -> tuple[pa.RecordBatch | None, Report] | None:
        """Return a batch and the report after it; None when it is not kept. A fault leaves its report in `told`."""
        with self._lock:
            if at < len(self._found):
                return self._found[at]
            if self._streams:
                return None
            try:
                batch = next(self._rest, None)
            except BaseException:
                told.take(self._report)
                self._stream()  # whoever reads on meets the fault by himself
                raise
            report = Report()
            report.take(self._report)
            self._found.append((batch, report))
            self.bytes += batch.nbytes if batch is not None else 0
            found = self._found[at]
            if not self._grown(self):
                self._stream()
            return found

    def _stream(self) -> None:
        self._streams, self.bytes = True, 0
        self._found.clear()
        self._rest = iter(())


class KeptTraces:
    """Traces by path, state of the file and how they are read, of `most_bytes` together; none when that is zero."""

    def __init__(self, most_bytes: int = 0) -> None:
        self.most_bytes = most_bytes
        self._sources: OrderedDict[tuple[Any, ...], KeptSource] = OrderedDict()
        self._lock = Lock()

    def open(
        self,
        path: Path,
        format: str | None = None,  # noqa: A002 - as open_trace has it
        mapping: Mapping[str, Any] | None = None,
        strict: bool = False,
        seed: int = 0,
    ) -> Trace:
        """Open a trace as `open_trace` does; a file that has not changed since is not opened again."""
        state = catalog.state(path)
        if not self.most_bytes or state is None or format == "servegen":  # drawn anew for each seed and part
            return open_trace(path, format, mapping, strict, seed)
        key = state, format, repr(sorted((mapping or {}).items())), strict
        with self._lock:
            source = self._sources.get(key)
            if source is not None:
                self._sources.move_to_end(key)
                return Trace(path, format or "canonical", source, strict)
        trace = open_trace(path, format, mapping, strict, seed)
        trace.source = source = KeptSource(trace.source, strict, self._grown)
        with self._lock:
            self._sources[key] = source
        return trace

    def _grown(self, source: KeptSource) -> bool:
        """Make room for what a source has read by dropping others; return whether it may keep it."""
        with self._lock:
            for key, other in list(self._sources.items()):
                if sum(each.bytes for each in self._sources.values()) <= self.most_bytes:
                    break
                if other is not source and other.bytes:
                    del self._sources[key]
        return source.bytes <= self.most_bytes


KEPT = KeptTraces()
"""Those of this process: none, unless it is a worker of a sweep."""
