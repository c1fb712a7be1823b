"""The folder of one run, which looks complete only when it is: the manifest comes last, by rename, once all is on disk.

Model: write-ahead marker. The marker says that a run is writing here (and is locked while it does); `manifest.json`
appears after every other file is on the disk; a run cut short leaves `manifest.partial.json`, a killed one the marker.
"""

import errno
import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self, TextIO

from simulator.errors import InputError, InvariantError, OutputError, Problem
from simulator.results.output import sync, write_json, write_text, writing
from simulator.results.tables import TABLES, Table, TableWriter

KIND = "simulator run"
FORMAT = 1
MANIFEST, PARTIAL, MARKER = "manifest.json", "manifest.partial.json", ".run-in-progress"
SUMMARY, SCENARIO = "summary.json", "scenario.yaml"
TIMELINE = "timeline.pftrace"  # may be written later into the folder of a finished run
REPORT = "report.html"
"""A page made of the run afterwards: no part of it, and cleared with it, for it would speak of another run."""

_VERSIONS = ("numpy", "pyarrow", "simpy")


class RunFolder:
    """A folder that one run writes into: open tables with `writer`, add texts, then `finish` or `abandon`.

    As a context manager it gives up its lock at the end of the block, whatever happened inside.
    """

    def __init__(self, path: Path, marker: TextIO, lasting: bool = True) -> None:
        """Use `create`; `marker` is the open, locked marker file."""
        self.path = path
        self._lasting = lasting
        self._marker = marker
        self._writers: list[TableWriter] = []
        self._texts: list[str] = []

    @classmethod
    def create(cls, path: Path, lasting: bool = True) -> Self:
        """Make the folder, or clear an earlier run from it, and mark it as being written.

        What is soon thrown away, as the run of a sweep's point is, is not `lasting`: nothing waits for the disk. Raises
        InputError when `path` is a file, holds something else than a run, cannot be written or is in use.
        """
        try:
            _refuse_what_is_not_ours(path)
            path.mkdir(parents=True, exist_ok=True)
            marker = lock(path / MARKER)
            try:
                _clear(path)
            except BaseException:
                marker.close()
                raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):  # nothing is wrong with the folder
                raise OutputError(f"{path}: cannot write the results: {error.strerror}") from error
            raise _unusable(path, f"cannot be written: {error.strerror or error}") from error
        return cls(path, marker, lasting)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._marker.close()
        for writer in self._writers:
            if not writer.closed:
                writer.discard()

    def writer(self, table: Table) -> TableWriter:
        """Open a table; the manifest lists tables, and digests them, in the order in which they were opened."""
        writer = TableWriter(self.path, table)
        self._writers.append(writer)
        return writer

    def write_text(self, name: str, text: str) -> None:
        """Write a small file beside the tables, such as the resolved scenario; the manifest lists it."""
        write_text(self.path / name, text, self._lasting)
        self._texts.append(name)

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a small JSON file beside the tables, such as the summary; the manifest lists it."""
        write_json(self.path / name, value, self._lasting)
        self._texts.append(name)

    def finish(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Close the tables, force everything to the disk and write `manifest.json`; return it.

        `manifest` holds what the run knows of itself (scenario, its digest, seed, simulated_ns, wall_s, events);
        format, status, versions, the digest and the list of files are added. Raises OutputError; then the folder is
        not complete.
        """
        with writing(self.path):
            for writer in self._writers:
                writer.close()
            complete = self._describe(manifest, "complete")
            if self._lasting:
                for name in (*(w.path.name for w in self._writers), *self._texts):
                    sync(self.path / name)
                sync(self.path)
        write_json(self.path / MANIFEST, complete, self._lasting)
        self._unmark()
        return complete

    def abandon(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Keep what a run that was cut short has done and write `manifest.partial.json`; return it.

        A table that is not whole (the disk is full) is removed and not listed. Raises OutputError when not even the
        manifest can be written.
        """
        kept = []
        for writer in self._writers:
            try:
                writer.close()
                kept.append(writer)
            except (OutputError, InvariantError):
                writer.discard()
        self._writers = kept
        with writing(self.path):
            partial = self._describe(manifest, "partial")
        write_json(self.path / PARTIAL, partial)
        self._unmark()
        return partial

    def _describe(self, manifest: Mapping[str, Any], status: str) -> dict[str, Any]:
        tables = {w.table.name: {**_stamp(w.path), "rows": w.rows, "digest": w.digest()} for w in self._writers}
        digest = hashlib.blake2b(digest_size=32)
        for table in tables.values():
            digest.update(bytes.fromhex(table["digest"]))
        return {
            "kind": KIND,
            "format": FORMAT,
            "status": status,
            **{key: value for key, value in manifest.items() if key not in ("kind", "format", "status")},
            "digest": digest.hexdigest(),
            "versions": versions(),
            "tables": tables,
            "files": {name: _stamp(self.path / name) for name in dict.fromkeys(self._texts)},
        }

    def _unmark(self) -> None:
        with writing(self.path):
            (self.path / MARKER).unlink(missing_ok=True)
            self._marker.close()


def versions() -> dict[str, str]:
    """Return the versions that can change a run's figures or the bytes of its files."""
    from simulator import __version__

    return {
        "simulator": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in _VERSIONS},
    }


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Return the manifest in the file `path` if it is one of ours, else None."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("kind") == KIND else None


def _unusable(path: Path, what: str) -> InputError:
    return InputError(
        Problem(f"the output folder {what}", file=str(path), allowed="a new, empty or earlier run's folder")
    )


def _refuse_what_is_not_ours(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise _unusable(path, "is a link that leads nowhere")
    if not path.exists():
        return
    if not path.is_dir():
        raise _unusable(path, "is a file")
    ours = (path / MARKER).is_file() or any(read_manifest(path / name) for name in (MANIFEST, PARTIAL))
    if not ours and any(path.iterdir()):
        raise _unusable(path, "holds files that are not a run's")


def lock(path: Path, holder: str = "run") -> TextIO:
    """Open a marker file and lock it until it is closed; raises InputError when another `holder` has it."""
    marker = path.open("a", encoding="utf-8")
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(marker.fileno()), path.stat()):
                raise BlockingIOError("another run has just ended and begun")
        except BlockingIOError as error:
            marker.close()
            raise _unusable(path.parent, f"is being written by another {holder}") from error
        except OSError:  # a file system without locks, say
            marker.close()
            raise
    return marker


def _clear(path: Path) -> None:
    """Remove an earlier run's files and nothing else; its manifest first, so that it never claims missing files."""
    listed: list[str] = []
    for name in (MANIFEST, PARTIAL):
        manifest = read_manifest(path / name) or {}
        listed += [table["file"] for table in manifest.get("tables", {}).values()] + list(manifest.get("files", {}))
        (path / name).unlink(missing_ok=True)
    sync(path)
    names = (
        [table.file for table in TABLES]
        + [SUMMARY, SCENARIO, TIMELINE, REPORT]
        + [name for name in listed if Path(name).name == name]
    )
    for name in dict.fromkeys(names):
        (path / name).unlink(missing_ok=True)
    for name in (*names, MANIFEST, PARTIAL):
        (path / f".{name}.tmp").unlink(missing_ok=True)


def _stamp(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256}
