"""Lines of a text file, gzipped or not, decoded strictly; a fault of the file itself is one InputError."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from simulator.errors import InputError, Problem

_BLOCK_BYTES = 1 << 20
_LINE_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
_GZIP_MAGIC = b"\x1f\x8b"


def text_lines(path: Path) -> Iterator[str]:
    """Yield the lines of `path` without their line feeds; memory is a few MiB whatever the file.

    Raises InputError when the file cannot be read, is damaged gzip, is not UTF-8, or has a line of more than 1 MiB.
    """
    try:
        with _open(path) as stream:
            yield from _split(stream, path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(Problem(f"damaged gzip data: {error}", str(path))) from None
    except OSError as error:
        raise InputError(Problem(f"cannot read: {error.strerror or error}", str(path))) from None


def _open(path: Path) -> BinaryIO:
    with path.open("rb") as stream:
        zipped = stream.read(2) == _GZIP_MAGIC
    if path.suffix == ".gz" and not zipped:
        raise InputError(Problem("not gzip data, though its name ends in .gz", str(path)))
    return cast(BinaryIO, gzip.open(path, "rb")) if zipped else path.open("rb")


def _split(stream: BinaryIO, path: Path) -> Iterator[str]:
    done = 0
    held = b""
    first = True
    while block := stream.read(_BLOCK_BYTES):
        if first:
            block, first = block.removeprefix(_BOM), False
        cut = block.rfind(b"\n")
        if cut >= 0:
            lines = _decode(held + block[:cut], done, path).split("\n")
            yield from lines
            done += len(lines)
            held = block[cut + 1 :]
        else:
            held += block
        if len(held) > _LINE_BYTES:
            raise InputError(Problem("a line of more than 1 MiB; this is not a trace", str(path), done + 1))
    if held:
        yield _decode(held, done, path)


def _decode(data: bytes, lines_before: int, path: Path) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = lines_before + data.count(b"\n", 0, error.start) + 1
        raise InputError(Problem("not UTF-8 text", str(path), line)) from None
