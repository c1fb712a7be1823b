"""Real file systems of a few kilobytes, mounted for a test: what is full or read-only for root as well."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PAGE = 4096


class Disk:
    """A file system of `kib` KiB at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / ".filler"

    @property
    def free(self) -> int:
        """Bytes that are left."""
        state = os.statvfs(self.path)
        return state.f_bavail * state.f_frsize

    def leave(self, pages: int) -> None:
        """Fill the disk until no more than so many pages of 4 KiB are left."""
        self._filler.unlink(missing_ok=True)
        with self._filler.open("wb") as file:
            file.write(bytes(max(0, self.free - pages * PAGE)))

    def clear(self) -> None:
        """Make the room again that `leave` took."""
        self._filler.unlink(missing_ok=True)

    def read_only(self, yes: bool) -> None:
        """Let nothing be written any more, or again."""
        _call("mount", "-o", f"remount,{'ro' if yes else 'rw'}", str(self.path))


def _call(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")


@contextmanager
def small_disk(path: Path, kib: int = 1024) -> Iterator[Disk]:
    """Mount a disk of so many KiB; skips the test where that is not allowed (run it as root, or in `unshare -rm`)."""
    if not shutil.which("mount"):
        pytest.skip("there is no mount here")
    path.mkdir()
    try:
        _call("mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(path))
    except OSError as error:
        pytest.skip(f"no disk may be mounted, only by root or in `unshare -rm`: {error}")
    try:
        yield Disk(path)
    finally:
        _call("umount", "-l", str(path))
