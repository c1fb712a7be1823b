"""The results of a sweep: one row a point in a Parquet dataset partitioned by point, and who may write into its folder.

Model: a point is there when its row is, and its row is written last; the sweep is whole when its manifest is there.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from simulator.errors import InputError, Problem, unknown
from simulator.results.metrics import METRICS
from simulator.sweep.axes import Setting, value_text
from simulator.sweep.store import Store

if TYPE_CHECKING:
    import pandas as pd

KIND, FORMAT = "simulator sweep", 1
MANIFEST, BEGUN, SUMMARY = "manifest.json", "sweep.json", "summary.json"
MARKER, JOURNAL = ".sweep-in-progress", "journal.jsonl"
DONE, INVALID, FAILED = "done", "invalid", "failed"
"""What became of a point: run; no scenario, or one that does not fit; a defect, or its worker died."""

FIXED = ("status", "error", "expected", "digest", "simulated_ns", "events")


class Row(NamedTuple):
    """What became of one point."""

    point: str
    setting: Setting
    status: str
    error: str | None = None
    expected: bool | None = None
    digest: str | None = None
    simulated_ns: int | None = None
    events: int | None = None
    figures: Mapping[str, float | None] = {}
    """By metric of results.metrics."""
    summary: str | None = None
    """The whole summary as JSON."""


def points_schema(paths: Iterable[str]) -> Any:
    """Return the pyarrow.Schema of a sweep's rows; the point itself is the partition."""
    import pyarrow as pa

    text, whole = pa.string(), pa.int64()
    types = dict(zip(FIXED, (text, text, pa.bool_(), text, whole, whole), strict=True))
    types |= dict.fromkeys(paths, text) | {metric.name: pa.float64() for metric in METRICS} | {"summary": text}
    return pa.schema([pa.field(name, kind, name != "status") for name, kind in types.items()])


def row_file(point: str) -> str:
    """Return where the row of a point lies."""
    return f"points/point={point}/row.parquet"


def write_row(store: Store, row: Row, writer: str) -> None:
    """Write the row of a point; raises OutputError.

    One value a column: what Parquet says of columns to find and to pack many would be most of the file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = points_schema(row.setting)
    values = {name: getattr(row, name) for name in FIXED}
    values |= {path: value_text(value) for path, value in row.setting.items()}
    values |= {metric.name: row.figures.get(metric.name) for metric in METRICS} | {"summary": row.summary}
    sink = pa.BufferOutputStream()
    packed = {name: "zstd" if name == "summary" else "none" for name in schema.names}
    plain = {"use_dictionary": False, "write_statistics": False, "store_schema": False}
    pq.write_table(pa.Table.from_pylist([values], schema=schema), sink, compression=packed, **plain)
    store.write(row_file(row.point), sink.getvalue().to_pybytes(), writer)


def read_rows(store: Store, columns: Sequence[str]) -> Any:
    """Return columns of all rows of a sweep as a pyarrow.Table with `point` as text; None without rows."""
    import pyarrow as pa

    tables: list[Any] = []
    points = points_there(store)
    for point, content in zip(points, store.read_all([row_file(point) for point in points]), strict=True):
        table = _table(store, row_file(point), content, columns)
        tables.append(table.add_column(0, "point", pa.array([point] * len(table), pa.string())))
        if len(tables) == TOGETHER:
            tables = [_joined(tables)]
    return _joined(tables) if tables else None


TOGETHER = 20
"""Tables of one row that are joined at once: each alone takes a hundred times the memory of its values."""


def points_there(store: Store) -> list[str]:
    """Return the names of the points that have a row, sorted."""
    rows = [name for name in store.names("points") if name.endswith("/row.parquet")]
    return [name.split("/")[1].removeprefix("point=") for name in rows]


def _joined(tables: Sequence[Any]) -> Any:
    import pyarrow as pa

    return pa.concat_tables(tables, promote_options="default").combine_chunks()


def _table(store: Store, name: str, content: bytes | None, columns: Sequence[str] | None = None) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if content is None:
        raise InputError(Problem("was there and is gone", store.path(name)))
    try:
        wanted = None if columns is None else list(columns)  # those that a row does not have are passed over
        return pq.ParquetFile(pa.BufferReader(content)).read(wanted, use_threads=False)  # one row: threads cost more
    except (ValueError, OSError) as error:
        raise InputError(Problem(f"not a row of a sweep: {error}", store.path(name))) from None


def statuses(store: Store) -> dict[str, str]:
    """Return what became of the points that are there, by name."""
    table = read_rows(store, ("status",))
    return {} if table is None else dict(zip(*(table[name].to_pylist() for name in ("point", "status")), strict=True))


class SweepResult:
    """A sweep read back: `manifest`, `summary`, and its rows as a DataFrame, `points`."""

    def __init__(self, store: Store, manifest: dict[str, Any]) -> None:
        self.store = store
        self.manifest = manifest
        self.axes: dict[str, list[Any]] = manifest["axes"]
        """By path that varies: its values, in order."""

    @property
    def complete(self) -> bool:
        """Whether every point has its row."""
        return bool(self.manifest["status"] == "complete")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Counts, frontiers and the answers of a search; empty as long as the sweep is not complete."""
        text = self.store.read(SUMMARY) if self.complete else None  # an earlier one, of other points, may lie there
        return {} if text is None else dict(json.loads(text))

    @property
    def answers(self) -> list[dict[str, Any]]:
        """What each search found, as summary.json has it: setting, figures, binding, evaluations, notes."""
        return list(self.summary.get("answers", ()))

    @property
    def best(self) -> "pd.DataFrame":
        """One row for each search that found something: its setting and figures; without a search there is none."""
        import pandas as pd

        return pd.DataFrame([a["setting"] | a["figures"] for a in self.answers if a["setting"] is not None])

    @cached_property
    def means(self) -> "pd.DataFrame":
        """One row a setting, in order of first appearance: its axes but the seed, and means of metrics over seeds."""
        import pandas as pd

        paths = [path for path in self.axes if path != "seed"]
        frame = pd.DataFrame([row["setting"] | row["figures"] for row in self._mean_rows])
        return frame.reindex(columns=list(dict.fromkeys([*paths, *frame.columns])))

    @property
    def frontiers(self) -> "list[pd.DataFrame]":
        """The rows of `means` that lie on each frontier of the sweep; none as long as it is not complete."""
        keys = {tuple(map(str, row["setting"].values())): at for at, row in enumerate(self._mean_rows)}
        sections = self.summary.get("frontiers", ())
        return [self.means.iloc[[keys[tuple(map(str, s.values()))] for s in each["settings"]]] for each in sections]

    @property
    def errors(self) -> "pd.DataFrame":
        """The points without figures: `point`, the axes, `status` (invalid or failed) and `error`."""
        wrong = self.points["status"] != DONE
        return self.points.loc[wrong, ["point", *self.axes, "status", "error"]]

    @property
    def location(self) -> str:
        """Where it lies: a folder or a URI."""
        return self.store.location

    def __repr__(self) -> str:
        return f"<SweepResult {self.manifest['name']} in {self.store.location}>"

    def _repr_html_(self) -> str:
        from simulator.sweep.view import sweep_html

        return sweep_html(self)

    @cached_property
    def _mean_rows(self) -> list[dict[str, Any]]:
        return mean_rows(self.points, [path for path in self.axes if path != "seed"])

    @cached_property
    def points(self) -> "pd.DataFrame":
        """One row a point, in the order of the sweep: `point`, the axes (numbers where all are), status, metrics."""
        return self.columns([*FIXED, *(metric.name for metric in METRICS)])

    def columns(self, names: Iterable[str]) -> "pd.DataFrame":
        """Return `points` with the point, the axes and these columns alone; nothing else is read.

        Raises InputError for a name that is neither a metric nor a fixed column.
        """
        import pandas as pd

        known = [*FIXED, *(metric.name for metric in METRICS)]
        names = list(names)
        if wrong := [name for name in names if name not in known]:
            raise InputError([unknown("column", name, known) for name in wrong])
        wanted = list(dict.fromkeys([*self.axes, *names]))
        table = read_rows(self.store, wanted)
        if table is None:
            return pd.DataFrame(columns=["point", *wanted])
        frame: pd.DataFrame = table.to_pandas()
        order = {name: at for at, name in enumerate(self.manifest["points"])}
        place = frame["point"].map(lambda name: order.get(name, len(order)))
        frame = (
            frame.assign(_place=place).sort_values(["_place", "point"]).drop(columns="_place").reset_index(drop=True)
        )
        for path, values in self.axes.items():
            if values and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
                frame[path] = pd.to_numeric(frame[path])
        return frame.reindex(columns=["point", *wanted])

    def run_summary(self, point: str) -> dict[str, Any] | None:
        """Return the whole summary of one point's run, as its summary.json would have it; None if it was not done."""
        text = read_row(self.store, point)["summary"]
        return None if text is None else dict(json.loads(text))

    def table(self, name: str) -> Any:
        """Return a kept table of all runs as a pyarrow dataset with the column `point`; InputError if not kept."""
        if name not in self.manifest["keep"]:
            kept = ", ".join(self.manifest["keep"]) or "nothing: name tables under `keep` of the sweep"
            raise InputError(Problem(f"the sweep kept no table {name!r}", self.store.location, allowed=kept))
        return self.store.dataset(f"tables/{name}")


def by_setting(frame: "pd.DataFrame", paths: Sequence[str]) -> "list[tuple[dict[str, Any], pd.DataFrame]]":
    """Return the rows of each combination of values of `paths` that occurs, in order of appearance."""
    if frame.empty:
        return []
    if not paths:
        return [({}, frame)]
    groups = frame.groupby(list(paths), sort=False, dropna=False)
    return [(dict(zip(paths, key if isinstance(key, tuple) else (key,), strict=True)), rows) for key, rows in groups]


def mean_rows(frame: Any, paths: Sequence[str]) -> list[dict[str, Any]]:
    """Return for each combination of `paths`, in order: its setting, its points, and means of metrics over seeds."""
    import pandas as pd

    found = []
    metrics = [metric.name for metric in METRICS if metric.name in frame]
    for values, rows in by_setting(frame[frame["status"] == DONE], paths):
        means = rows[metrics].to_numpy(float).mean(axis=0).tolist()  # nan where one seed has none
        figures = {name: mean for name, mean in zip(metrics, means, strict=True) if mean == mean}
        plain = {path: value.item() if hasattr(value, "item") else value for path, value in values.items()}
        setting = {path: None if pd.isna(value) else value for path, value in plain.items()}
        found.append({"setting": setting, "points": list(rows["point"]), "figures": figures})
    return found


def read_row(store: Store, point: str) -> dict[str, Any]:
    """Return the row of a point that is there, by column."""
    name = row_file(point)
    [values] = _table(store, name, store.read(name)).to_pylist()
    return dict(values)


def load_sweep(location: Any) -> SweepResult:
    """Open a sweep's folder or URI, one that has not ended as well; raises InputError when there is none."""
    store = Store(location)
    manifest = read_manifest(store, MANIFEST) or read_manifest(store, BEGUN)
    if manifest is None:
        raise InputError(Problem("no sweep here (no sweep.json)", store.location))
    if manifest["format"] != FORMAT:
        raise InputError(Problem(f"sweep of format {manifest['format']!r}", store.location, allowed=f"format {FORMAT}"))
    return SweepResult(store, manifest)


def read_manifest(store: Store, name: str) -> dict[str, Any] | None:
    """Return a manifest of ours, None when the file is absent or something else."""
    content = store.read(name)
    try:
        value = None if content is None else json.loads(content)
    except ValueError:
        return None
    return value if isinstance(value, dict) and value.get("kind") == KIND else None


def write_json(store: Store, name: str, value: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False, default=str)
    store.write(name, f"{text}\n".encode())
