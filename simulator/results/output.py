"""Writing that either lasts or says why not: temporary file, fsync, rename (POSIX: atomic within one folder)."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from simulator.errors import OutputError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an operating system's error inside the block into an OutputError that names `path`."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: cannot write the results: {error.strerror or error}") from error


def sync(path: Path) -> None:
    """Force a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path, lasting: bool = True) -> Iterator[BinaryIO]:
    """Give a file to write that takes the place of `path` at the end of the block, once it is on the disk.

    Until then, and if the block fails, `path` has its old content or none. What is not to last need not have reached
    the disk. Raises OutputError when the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                if lasting:
                    os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if lasting:
            sync(path.parent)


def write_text(path: Path, text: str, lasting: bool = True) -> None:
    """Write `path` whole or not at all: it has its old content, or none, until the new one is on the disk.

    Raises OutputError when the disk refuses.
    """
    with replacing(path, lasting) as file:
        file.write(text.encode())


def write_json(path: Path, value: Mapping[str, Any], lasting: bool = True) -> None:
    """Write `value` as JSON, whole or not at all; a NaN or an infinity is a defect and raises ValueError."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n", lasting)
