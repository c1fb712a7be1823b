"""The tables that a run writes, and the writer that streams their rows to Parquet in flat memory.

Every time is an integer of nanoseconds since the run's start and every size an integer of bytes. The digest of a table
covers its logical values, column by column, so it is the same whichever pyarrow wrote the file and however rows were
batched.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from simulator.errors import InvariantError, OutputError
from simulator.results.output import writing

BATCH_ROWS = 4096  # small enough that the transposed tuples stay in the processor's cache
ROW_GROUP_ROWS = 16 * BATCH_ROWS

_NOTHING = -1  # what the engine holds for "has not come"; null in a nullable column


class Column(NamedTuple):
    """One column: `type` is int32, int64, double, bool or string; integers are >= 0; -1 or None is null if nullable."""

    name: str
    type: str
    unit: str
    doc: str
    nullable: bool = False


class Table(NamedTuple):
    """The shape of one table: a row is a tuple of its columns' values, in their order."""

    name: str
    doc: str
    columns: tuple[Column, ...]

    @property
    def file(self) -> str:
        """The table's file in a run folder."""
        return f"{self.name}.parquet"


def _text(name: str, doc: str, nullable: bool = False) -> Column:
    return Column(name, "string", "", doc, nullable)


def _time(name: str, doc: str, nullable: bool = False) -> Column:
    return Column(name, "int64", "ns", doc, nullable)


REQUESTS = Table(
    "requests",
    "One row per request that arrived, in the order in which they ended; those open at the end of the run come last.",
    (
        Column("request_id", "int64", "", "number of the request in order of arrival, from 0"),
        _text("session", "conversation or agent run that the request belongs to", nullable=True),
        Column("turn", "int32", "", "position of the request in its session, from 0", nullable=True),
        _time("arrival_ns", "the request reached the cluster's router"),
        _time("queued_ns", "it entered the queue of an instance; null when none took it", nullable=True),
        _time("prefill_start_ns", "the iteration that first worked on its prompt began", nullable=True),
        _time("prefill_end_ns", "its prompt was computed, and with it its first output token", nullable=True),
        _time("first_token_ns", "its first output token was sent, alone or with the next (`stream_interval`)", True),
        _time("decode_start_ns", "the first iteration that decoded it began", nullable=True),
        _time("finish_ns", "its last output token was ready", nullable=True),
        Column("prompt_tokens", "int64", "tokens", "length of the prompt"),
        Column("output_tokens", "int64", "tokens", "length of the answer, or of the longest of several, asked for"),
        Column(
            "generated_tokens",
            "int64",
            "tokens",
            "output tokens, of all its answers, that were ready when the request ended",
        ),
        Column("cached_tokens", "int64", "tokens", "prompt tokens found in a prefix cache, so not computed"),
        _text("prefill_instance", "instance that computed the prompt", nullable=True),
        _text("decode_instance", "instance that generated the answer", nullable=True),
        _time("kv_wait_ns", "time between prefill and transfer spent waiting for a place on the decode side"),
        _time(
            "kv_transfer_ns",
            "time from the end of prefill, or the place on the decode side if later, to the last byte of the KV cache",
        ),
        Column("kv_transfer_bytes", "int64", "bytes", "KV cache moved from the prefill to the decode instance"),
        Column("preemptions", "int32", "", "times the request lost its KV blocks and had to be prefilled again"),
        Column("retries", "int32", "", "times the request was sent to another instance"),
        _text("outcome", "finished, rejected, timed_out, cancelled or unfinished (open when the run ended)"),
        _text("reason", "why it did not finish", nullable=True),
    ),
)

CALLERS = Table(
    "callers",
    "One row per row of `requests`, in the same order, of a run whose `expect:` asks for tenants or priorities.",
    (
        Column("request_id", "int64", "", "number of the request in order of arrival, from 0"),
        _text("tenant", "whose request it is; null when nobody said", nullable=True),
        _text("priority", "the whole number that says how soon it is served: the higher, the sooner"),
    ),
)

INSTANCES = Table(
    "instances",
    "One row per instance and window of the scenario's `results.interval`; windows without work that follow each other "
    "are one longer row. The rows of an instance tile its life without gap or overlap.",
    (
        _text("instance", "name of the instance"),
        _text("role", "pool that it belongs to: prefill, decode or colocated"),
        _time("start_ns", "the window began"),
        _time("end_ns", "the window ended"),
        _text("state", "where most of the window went: prefill, decode or idle"),
        _time("prefill_ns", "time in iterations that prefill"),
        _time("decode_ns", "time in iterations that only decode"),
        _time("idle_ns", "time without an iteration; with the two above it sums to the window's length"),
        Column("running", "double", "requests", "requests in the batch, mean over time"),
        Column("running_max", "int64", "requests", "most requests in the batch"),
        Column("waiting", "double", "requests", "requests in the queue, mean over time"),
        Column("waiting_max", "int64", "requests", "most requests in the queue"),
        Column("kv_blocks", "double", "blocks", "KV blocks in use, mean over time"),
        Column("kv_blocks_max", "int64", "blocks", "most KV blocks in use"),
        Column("kv_total_blocks", "int64", "blocks", "KV blocks that the instance has (kv-memory.md says of what)"),
        Column("output_tokens", "int64", "tokens", "output tokens made ready in the window"),
    ),
)

POWER = Table(
    "power",
    "One row per row of `instances` of an engine whose kernels are known: what its devices drew, idle power included.",
    (
        _text("instance", "name of the instance"),
        _text("role", "pool that it belongs to: prefill, decode or colocated"),
        _time("start_ns", "the window began"),
        _time("end_ns", "the window ended"),
        Column("devices", "int32", "", "devices that the instance holds"),
        Column("power_w", "double", "W", "power of all its devices, mean over time"),
        Column("energy_j", "double", "J", "their energy in the window"),
    ),
)

LINKS = Table(
    "links",
    "One row per directed link of the topology that carried traffic, in the order of the topology's links.",
    (
        Column("link", "int32", "", "index of the link in the topology"),
        _text("source", "node that the link leaves"),
        _text("target", "node that the link enters"),
        _text("tier", "layer of the fabric that the link belongs to"),
        Column("capacity_bytes_per_s", "int64", "bytes/s", "capacity of this direction"),
        Column("bytes", "int64", "bytes", "bytes carried"),
        Column("flows", "int64", "", "flows that crossed the link"),
        Column("engine_bytes", "int64", "bytes", "what collectives of engines between nodes kept it busy with"),
        _time("busy_ns", "time with at least one flow on the link"),
        Column("busy_fraction", "double", "", "busy_ns over the run's duration"),
        Column(
            "mean_utilisation",
            "double",
            "",
            "bytes and engine_bytes over what the link could have carried in the run's duration",
        ),
        Column("peak_bytes_per_s", "double", "bytes/s", "highest rate at which the link carried flows"),
    ),
)

EVENTS = Table(
    "events",
    "What happened to the cluster and to its actors, in order of time.",
    (
        _time("time_ns", "when it happened"),
        _text("kind", "what happened: lease, preempted, capacity (of a link), fault, repair, interrupted"),
        _text("subject", "request, instance, device or link that it happened to"),
        _text("detail", "the particulars, for people", nullable=True),
    ),
)

FLOWS = Table(
    "flows",
    "One row per flow of a network-only run, in the order in which they ended; those still under way come last.",
    (
        Column("flow_id", "int64", "", "number of the flow, as the file of flows has it or in order of start"),
        _text("src", "node that it comes from"),
        _text("dst", "node that it goes to"),
        Column("bytes", "int64", "bytes", "size"),
        _time("start_ns", "it started; its first byte leaves after the latency of its path"),
        _time("finish_ns", "its last byte arrived, or it failed; null when neither came", nullable=True),
        _time("ideal_ns", "time that it would take alone: latency, then bytes over its narrowest link", nullable=True),
        Column("completed", "bool", "", "whether all of it arrived"),
    ),
)

COLLECTIVES = Table(
    "collectives",
    "One row per collective or expert exchange of a network-only run, in the order in which they ended; those still "
    "under way come last.",
    (
        Column("run", "int32", "", "its place in `traffic.collectives`, from 0"),
        Column("repeat", "int32", "", "which time it ran, from 0"),
        _text(
            "operation",
            "all_reduce, reduce_scatter, all_gather, broadcast, all_to_all, send_receive, dispatch, combine",
        ),
        _text("algorithm", "ring, tree, direct ...; of an expert exchange its form"),
        _text("protocol", "LL, LL128 or Simple; null for an expert exchange", nullable=True),
        Column("ranks", "int64", "", "ranks of one group"),
        Column("groups", "int64", "", "groups that ran it at once"),
        Column(
            "bytes",
            "int64",
            "bytes",
            "buffer of one rank, as nccl-tests counts it; of an exchange the bytes that the busiest rank sends",
        ),
        _time("start_ns", "it started"),
        _time("finish_ns", "the last rank had it; null when it failed or was open when the run ended", nullable=True),
        _time("ideal_ns", "the closed form of the same operation on the healthy network, by itself"),
        Column("completed", "bool", "", "whether every rank got everything"),
    ),
)

TABLES = (REQUESTS, CALLERS, INSTANCES, POWER, LINKS, EVENTS, FLOWS, COLLECTIVES)


def arrow_schema(table: Table) -> Any:
    """Return the table's pyarrow.Schema; units and meanings are the metadata of its fields."""
    import pyarrow as pa

    types = {
        "int32": pa.int32(),
        "int64": pa.int64(),
        "double": pa.float64(),
        "bool": pa.bool_(),
        "string": pa.string(),
    }
    fields = [
        pa.field(c.name, types[c.type], c.nullable, {"doc": c.doc, **({"unit": c.unit} if c.unit else {})})
        for c in table.columns
    ]
    return pa.schema(fields, {"table": table.name, "doc": table.doc})


class TableWriter:
    """Streams rows into `folder/<table>.parquet`; memory holds one row group, whatever the number of rows.

    Raises OutputError when the disk refuses and InvariantError for a value that its column cannot hold.
    """

    def __init__(self, folder: Path, table: Table) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.table = table
        self.path = folder / table.file
        self.closed = False
        self._pa = pa
        self._schema = arrow_schema(table)
        self._pending: list[tuple[Any, ...]] = []
        self._batches: list[Any] = []
        self._written = 0
        self._failure: Exception | None = None  # rows are lost, so the table must never be taken for whole
        self._hashes = [_ColumnHash() for _ in table.columns]
        with writing(self.path), _gone_if_it_fails(self.path):
            self._parquet = pq.ParquetWriter(
                str(self.path),
                self._schema,
                compression="zstd",
                compression_level=1,
                use_dictionary=[c.name for c in table.columns if c.type == "string"],
                # increasing times and small counts: half the size and a sixth of the time of plain or dictionary pages
                column_encoding={c.name: "DELTA_BINARY_PACKED" for c in table.columns if c.type.startswith("int")},
            )

    @property
    def rows(self) -> int:
        """Rows appended so far."""
        return self._written + len(self._pending)

    def append(self, row: tuple[Any, ...]) -> None:
        """Add one row: the values of the table's columns in their order."""
        pending = self._pending
        pending.append(row)
        if len(pending) >= BATCH_ROWS:
            self._take_batch()

    def digest(self) -> str:
        """Return the hexadecimal digest of all values so far and of the table's shape."""
        self._take_batch()
        total = blake2b(repr((self.table.name, self._written)).encode(), digest_size=32)
        for column, values in zip(self.table.columns, self._hashes, strict=True):
            total.update(repr((column.name, column.type, column.nullable)).encode())
            total.update(values.digest())
        return total.hexdigest()

    def close(self) -> None:
        """Write what is buffered and the file's footer; twice is once, and after a failure it fails again."""
        if self.closed:
            return
        if self._failure is not None:
            raise self._failure
        self._take_batch()
        self._write_row_group()
        try:
            self._parquet.close()
        except OSError as error:
            raise self._refused(error) from error
        self.closed = True

    def discard(self) -> None:
        """Give the file up after a failed write: close what can be closed and remove it."""
        self.closed = True
        self._pending.clear()
        self._batches.clear()
        try:
            self._parquet.close()
        except OSError:
            pass  # the disk that refused the rows refuses the footer as well
        finally:
            self.path.unlink(missing_ok=True)

    def _take_batch(self) -> None:
        if not self._pending:
            return
        rows, self._pending = self._pending, []
        self._written += len(rows)
        try:
            values = list(zip(*rows, strict=True))
            arrays = [
                self._array(column, field.type, column_values, hashed)
                for column, field, column_values, hashed in zip(
                    self.table.columns, self._schema, values, self._hashes, strict=True
                )
            ]
        except (ValueError, TypeError, OverflowError) as error:
            self._failure = InvariantError(f"rows of table {self.table.name} do not fit their columns: {error}")
            raise self._failure from error
        self._batches.append(self._pa.record_batch(arrays, schema=self._schema))
        if len(self._batches) * BATCH_ROWS >= ROW_GROUP_ROWS:
            self._write_row_group()

    def _array(self, column: Column, kind: Any, values: tuple[Any, ...], hashed: "_ColumnHash") -> Any:
        if column.type == "string":
            array = self._pa.array(values, kind)
            hashed.add_text(array)
            if array.null_count and not column.nullable:
                raise ValueError(f"{column.name} has a null")
            return array
        if column.type == "bool":
            array = self._pa.array(values, kind)
            if array.null_count:
                raise ValueError(f"{column.name} has a null")
            hashed.values.update(bytes(values))
            return array
        if column.type == "double":
            array = self._pa.array(values, kind)
            numbers = array.to_numpy()  # raises ValueError on a null
            if not (abs(numbers) < float("inf")).all():
                raise ValueError(f"{column.name} has a value that is not finite")
            hashed.values.update(numbers.astype("<f8").tobytes())
            return array
        array = self._pa.array(values)  # given the type, pyarrow would cut a float down to an integer without a word
        if array.null_count == len(array):
            array = array.cast(self._pa.int64())
        if array.type != self._pa.int64():
            raise TypeError(f"{column.name} has a value that is not an integer of 64 bits")
        if array.null_count:
            array = array.fill_null(_NOTHING)
        numbers = array.to_numpy()
        if numbers.min() < (_NOTHING if column.nullable else 0):
            raise ValueError(f"{column.name} has {numbers.min()}")
        hashed.values.update(numbers.astype("<i8", copy=False).tobytes())
        if column.nullable:
            array = self._pa.array(numbers, mask=numbers < 0)
        return array if column.type == "int64" else array.cast(kind)

    def _write_row_group(self) -> None:
        if not self._batches:
            return
        group = self._pa.Table.from_batches(self._batches, self._schema)
        self._batches = []
        try:
            self._parquet.write_table(group, row_group_size=ROW_GROUP_ROWS)
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> OutputError:
        failure = OutputError(f"{self.path}: cannot write the results: {error.strerror or error}")
        self._failure = failure
        return failure


@contextmanager
def _gone_if_it_fails(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError:
        with suppress(OSError):
            path.unlink()
        raise


class _ColumnHash:
    """A running digest of one column; texts as lengths and characters apart, so that no two columns look alike."""

    def __init__(self) -> None:
        self.values = blake2b(digest_size=32)
        self._lengths = blake2b(digest_size=32)

    def add_text(self, array: Any) -> None:
        import numpy as np

        _, offsets, characters = array.buffers()
        ends = np.frombuffer(offsets, "<i4", len(array) + 1)
        lengths = np.where(array.is_valid().to_numpy(zero_copy_only=False), np.diff(ends), -1)
        self._lengths.update(lengths.astype("<i4").tobytes())
        if characters is not None:
            self.values.update(memoryview(characters)[: ends[-1]])

    def digest(self) -> bytes:
        return self.values.digest() + self._lengths.digest()
