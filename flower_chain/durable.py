"""Files that are there whole or not at all, whenever the process or the machine dies."""

import fcntl
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO


def replace(target: Path, data: bytes) -> None:
    """Write `target` aside, flush it to the disk, and put it in place.

    Raises
    ------
    OSError
        If it can't be written; what was there before stays.
    """
    with replacing(target) as file:
        file.write(data)


@contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """The same for a file that is written piece by piece: in place once the block has ended.

    If that raises, what was there before stays.

    Raises
    ------
    OSError
        If it can't be written.
    """
    aside = target.with_name(f".{target.name}.{secrets.token_hex(8)}.partial")
    try:
        with aside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if sys.platform == "linux":
                # Not kept in memory too: to find room for it takes longer than to write it.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        aside.replace(target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_directory(target.parent)


def open_locked(path: Path) -> IO[bytes]:
    """Open a file that only one process may have open like this, made if it is not there.

    It has no buffer: what could not be written once is not written when the file is closed.

    Raises
    ------
    BlockingIOError
        If another process has.
    """
    file = path.open("a+b", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a file that only one process or thread holds like this, once the others are done."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sync_directory(directory: Path) -> None:
    """Flush a directory: the name of a new file is on the disk only once its directory is."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
