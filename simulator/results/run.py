"""A run read back from its folder: manifest, summary and tables, each loaded when it is first asked for."""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.errors import InputError, Problem, unknown
from simulator.results.folder import FORMAT, MANIFEST, MARKER, PARTIAL, SUMMARY, read_manifest

if TYPE_CHECKING:
    import pandas as pd


class Run:
    """One executed scenario: `manifest`, `summary`, and its tables as Arrow or as DataFrames.

    A run has the tables that its manifest lists; asking for another one raises InputError, which names those there are.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest

    @property
    def complete(self) -> bool:
        """Whether the run reached its end; a partial run was cut short and holds what was done until then."""
        return bool(self.manifest["status"] == "complete")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The figures of summary.json; raises InputError when the run left none."""
        try:
            summary = json.loads((self.path / SUMMARY).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(Problem(f"no readable summary: {error}", file=str(self.path / SUMMARY))) from error
        return dict(summary)

    def table(self, name: str) -> Any:
        """Return one table as a pyarrow.Table; raises InputError when the run has no such table."""
        import pyarrow.parquet as pq

        if name not in self.manifest["tables"]:
            raise InputError(unknown("table", name, self.manifest["tables"]))
        return pq.read_table(self.path / self.manifest["tables"][name]["file"])

    @cached_property
    def requests(self) -> "pd.DataFrame":
        """One row per request."""
        return self._frame("requests")

    @cached_property
    def instances(self) -> "pd.DataFrame":
        """One row per instance and window."""
        return self._frame("instances")

    @cached_property
    def links(self) -> "pd.DataFrame":
        """One row per link that carried traffic."""
        return self._frame("links")

    @cached_property
    def events(self) -> "pd.DataFrame":
        """What happened, in order of time."""
        return self._frame("events")

    @cached_property
    def power(self) -> "pd.DataFrame":
        """What the devices of an instance drew, one row per instance and window."""
        return self._frame("power")

    @cached_property
    def flows(self) -> "pd.DataFrame":
        """One row per flow of a run of the network alone."""
        return self._frame("flows")

    @cached_property
    def collectives(self) -> "pd.DataFrame":
        """One row per collective of a run of the network alone."""
        return self._frame("collectives")

    @property
    def location(self) -> str:
        """Where it lies."""
        return str(self.path)

    def __repr__(self) -> str:
        return f"<Run {self.manifest['scenario']} in {self.path}>"

    def _repr_html_(self) -> str:
        from simulator.results.view import run_html

        return run_html(self)

    def _frame(self, name: str) -> "pd.DataFrame":
        import pandas as pd
        import pyarrow as pa

        # nullable integers stay integers: a nanosecond count does not fit a float
        kinds = {pa.int32(): pd.Int32Dtype(), pa.int64(): pd.Int64Dtype()}
        table = self.table(name)
        frame: pd.DataFrame = table.to_pandas(types_mapper=kinds.get)
        return frame

    def verify(self) -> None:
        """Compare every file with the manifest's SHA-256; raises InputError that lists those that differ."""
        problems = []
        for stamp in _stamps(self.manifest):
            with (self.path / stamp["file"]).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != stamp["sha256"]:
                    problems.append(Problem("does not match the manifest", file=str(self.path / stamp["file"])))
        if problems:
            raise InputError(problems)


def load_run(path: Path | str) -> Run:
    """Open the run in a folder; a run cut short is opened as well (`complete` is False).

    Raises InputError when there is no run, when it was killed before it could say how far it came, when another format
    wrote it, or when a file is missing or has another size than the manifest says.
    """
    path = Path(path)
    manifest = read_manifest(path / MANIFEST) or read_manifest(path / PARTIAL)
    if manifest is None:
        killed = (path / MARKER).is_file()
        what = "a run that is still going, or was killed before its end" if killed else "no run here (no manifest.json)"
        raise InputError(Problem(what, file=str(path)))
    if manifest.get("format") != FORMAT:
        raise InputError(
            Problem(f"run of format {manifest.get('format')!r}", file=str(path), allowed=f"format {FORMAT}")
        )
    problems = []
    for stamp in _stamps(manifest):
        file = path / stamp["file"]
        if not file.is_file():
            problems.append(Problem("the manifest lists this file but it is missing", file=str(file)))
        elif file.stat().st_size != stamp["bytes"]:
            found = file.stat().st_size
            problems.append(Problem(f"has {found} bytes where the manifest says {stamp['bytes']}", file=str(file)))
    if problems:
        raise InputError(problems)
    return Run(path, manifest)


def _stamps(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    return [*manifest["tables"].values(), *manifest["files"].values()]
