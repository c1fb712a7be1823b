"""Writing that either lasts or says why not: temporary file, fsync, rename (POSIX: atomic within one folder)."""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from simulator.errors import InputError, OutputError


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
def replacing(path: Path, lasting: bool = True, writer: str = "") -> Iterator[BinaryIO]:
    """Give a file to write that takes the place of `path` at the end of the block, once it is on the disk.

    Until then, and if the block fails, `path` has its old content or none. What is not to last need not have reached
    the disk. `writer` tells apart those who may write it at once. Raises OutputError when the disk refuses.
    """
    if path.exists() and not path.is_file():  # a device or a pipe, which nothing may take the place of
        with writing(path), path.open("wb") as file:
            yield file
        return
    temporary = path.with_name(f".{path.name}.{writer}.tmp" if writer else f".{path.name}.tmp")
    with writing(path):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                if lasting:
                    os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):  # the first fault is the one to tell
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


def write_named(path: Path, text: str) -> None:
    """Write a file that the user named as `write_text` does, or what a link leads to.

    Raises InputError when it cannot be written.
    """
    try:
        write_text(path.resolve(), text)
    except OutputError as error:
        cause = error.__cause__
        raise InputError(f"cannot write {path}: {getattr(cause, 'strerror', None) or cause}") from None


def append_line(path: Path, text: str) -> None:
    """Add a line to a file, all of it or nothing. Raises OutputError when the disk refuses."""
    line = f"{text}\n".encode()
    with writing(path), path.open("ab", buffering=0) as file:
        whole = file.tell()
        try:
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(whole)
            raise


def write_json(path: Path, value: Mapping[str, Any], lasting: bool = True) -> None:
    """Write `value` as JSON, whole or not at all; a NaN or an infinity is a defect and raises ValueError."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n", lasting)
