"""Where a sweep's files lie: a folder, or an object store (`s3://bucket/path`), through pyarrow's filesystems.

Model: a file is there whole or not at all: written beside its place, forced to the disk and renamed, or
put at once into a store.
"""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from simulator.errors import InputError, OutputError, Problem
from simulator.results.output import replacing, writing

AT_ONCE, WINDOW = 16, 256
"""Files that are asked of a store elsewhere at once, and that are read ahead at most."""
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
        with self._reading(name):
            try:
                with self._files.open_input_stream(self.path(name)) as stream:
                    return bytes(stream.read())
            except (FileNotFoundError, NotADirectoryError):
                return None

    def read_all(self, names: Sequence[str]) -> Iterator[bytes | None]:
        """Yield the contents of files in their order; from a store elsewhere several are asked for at once."""
        if self.folder is not None:
            yield from map(self.read, names)
            return
        with ThreadPoolExecutor(AT_ONCE) as threads:
            for start in range(0, len(names), WINDOW):
                yield from threads.map(self.read, names[start : start + WINDOW])

    def has(self, name: str) -> bool:
        """Return whether a file is there."""
        from pyarrow import fs

        with self._reading(name):
            return bool(self._files.get_file_info(self.path(name)).type == fs.FileType.File)

    def write(self, name: str, content: bytes, writer: str = "0") -> None:
        """Write a file whole or not at all; `writer` tells apart those who may write the same one at once."""
        target = self.path(name)
        if self.folder is None:
            with self._writing(target), self._files.open_output_stream(target) as stream:
                stream.write(content)
            return
        with writing(Path(target)):
            Path(target).parent.mkdir(parents=True, exist_ok=True)
        with replacing(Path(target), writer=writer) as file:
            file.write(content)

    def names(self, folder: str) -> list[str]:
        """Return the relative paths of all files below a folder, sorted, without what a killed writer has left."""
        from pyarrow import fs

        with self._reading(folder):
            selector = fs.FileSelector(self.path(folder), allow_not_found=True, recursive=True)
            found = self._files.get_file_info(selector)
        start = len(self._root) + 1
        files = [info.path[start:] for info in found if info.type == fs.FileType.File]
        return sorted(name for name in files if not name.rpartition("/")[2].startswith("."))

    def remove(self, folder: str) -> None:
        """Remove a folder and all below it, if it is there."""
        with self._writing(self.path(folder)), suppress(FileNotFoundError):
            self._files.delete_dir(self.path(folder))

    def remove_file(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self._writing(self.path(name)), suppress(FileNotFoundError):
            self._files.delete_file(self.path(name))

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(Problem(f"cannot read: {_first_line(error)}", self.path(name))) from None

    @contextmanager
    def _writing(self, target: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"{target}: cannot write the results: {_first_line(error)}") from None

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
