"""Where a sweep's files lie: a folder, or an object store (`s3://bucket/path`), through pyarrow's filesystems.

Model: a file is there whole or not at all: written beside its place and renamed on a disk, put at once in a store.
"""

import re
from pathlib import Path
from typing import Any

from simulator.errors import InputError, OutputError, Problem

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class Store:
    """Files below one root, by relative path; made from a folder or a URI, and again from `location` elsewhere."""

    def __init__(self, location: str | Path) -> None:
        from pyarrow import fs

        text = str(location)
        try:
            if _URI.match(text):
                self.location = text
                self._files, self._root = fs.FileSystem.from_uri(text)
            else:
                self.location = str(Path(text).absolute())
                self._files, self._root = fs.LocalFileSystem(), self.location
        except (ValueError, OSError) as error:  # pyarrow's ArrowInvalid is a ValueError
            what = f"no place for results: {_first_line(error)}"
            raise InputError(Problem(what, text, allowed="a folder, or a URI such as s3://bucket/path")) from None

    @property
    def folder(self) -> Path | None:
        """The folder on this machine, None for a store elsewhere."""
        return Path(self._root) if self._files.type_name == "local" else None

    def path(self, name: str) -> str:
        """Return the full path of a file, as its filesystem knows it."""
        return f"{self._root}/{name}"

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, None when there is none."""
        try:
            with self._files.open_input_stream(self.path(name)) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(Problem(f"cannot read: {_first_line(error)}", self.path(name))) from None

    def write(self, name: str, content: bytes, writer: str = "0") -> None:
        """Write a file whole or not at all; `writer` tells apart those who may write the same one at once."""
        target = self.path(name)
        try:
            parent = target.rpartition("/")[0]
            self._files.create_dir(parent, recursive=True)
            if self.folder is None:
                with self._files.open_output_stream(target) as stream:
                    stream.write(content)
                return
            beside = f"{parent}/.{target.rpartition('/')[2]}.{writer}.tmp"
            try:
                with self._files.open_output_stream(beside) as stream:
                    stream.write(content)
                self._files.move(beside, target)
            except OSError:
                Path(beside).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise OutputError(f"{target}: cannot write the results: {_first_line(error)}") from None

    def names(self, folder: str) -> list[str]:
        """Return the relative paths of all files below a folder, sorted, without what a killed writer has left."""
        from pyarrow import fs

        selector = fs.FileSelector(self.path(folder), allow_not_found=True, recursive=True)
        found = self._files.get_file_info(selector)
        start = len(self._root) + 1
        files = [info.path[start:] for info in found if info.type == fs.FileType.File]
        return sorted(name for name in files if not name.rpartition("/")[2].startswith("."))

    def remove(self, folder: str) -> None:
        """Remove a folder and all below it, if it is there."""
        try:
            self._files.delete_dir(self.path(folder))
        except FileNotFoundError:
            return
        except OSError as error:
            raise OutputError(f"{self.path(folder)}: cannot remove: {_first_line(error)}") from None

    def dataset(self, folder: str) -> Any:
        """Return the Parquet files below a folder as one pyarrow dataset, partitioned as in Hive."""
        import pyarrow as pa
        import pyarrow.dataset as ds

        point = ds.partitioning(pa.schema([("point", pa.string())]), flavor="hive")  # a name of digits stays a name
        return ds.dataset(self.path(folder), filesystem=self._files, format="parquet", partitioning=point)


def _first_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return str(error.strerror)
    return (str(error).splitlines() or [type(error).__name__])[0]
