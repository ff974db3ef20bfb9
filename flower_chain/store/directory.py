"""A store in a directory: one file per CID."""

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO

from flower_chain.durable import replacing, sync_directory
from flower_chain.errors import FormatError, NotStored, StoreError
from flower_chain.store.base import Store, pieces_of
from flower_chain.store.cid import cid_to_bytes


class DirectoryStore(Store):
    """A store in a directory, which several processes may share.

    A file appears under its CID only when all of it is on the disk: a process killed at any moment
    leaves at most a hidden ``.partial`` file, which nobody reads and anyone may delete.

    Parameters
    ----------
    path : Path
        The directory; made if it is missing.

    Raises
    ------
    StoreError
        If it can't be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"can't make the store's directory {path}: {error}") from error

    def __str__(self) -> str:
        return str(self.path)

    def __contains__(self, cid: str) -> bool:
        """Whether there is a file under `cid`.

        Raises
        ------
        FormatError
            If `cid` is not a CID.
        """
        cid_to_bytes(cid)
        return (self.path / cid).is_file()

    def stored(self) -> dict[str, int]:
        """The files that are named by a CID, and their sizes.

        Raises
        ------
        StoreError
            If the directory can't be read.
        """
        try:
            files = {entry.name: entry.stat().st_size for entry in self.path.iterdir()}
        except OSError as error:
            raise StoreError(f"can't read {self.path}: {error}") from error
        return {name: size for name, size in files.items() if _is_cid(name)}

    def remove(self, cid: str) -> None:
        """Delete the file under `cid`, if there is one.

        Raises
        ------
        FormatError
            If `cid` is not a CID.
        StoreError
            If it can't be deleted.
        """
        cid_to_bytes(cid)
        try:
            (self.path / cid).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"can't delete {self.path / cid}: {error}") from error

    def _write(self, cid: str, file: BinaryIO, size: int) -> None:
        target = self.path / cid
        try:
            # A damaged file is not equal, and so is mended.
            if _holds(target, file):
                sync_directory(self.path)
            else:
                with replacing(target) as copy:
                    copy.writelines(pieces_of(file))
        except OSError as error:
            raise StoreError(f"can't store {size} bytes as {target}: {error}") from error

    def _read(self, cid: str) -> Iterator[bytes]:
        source = self.path / cid
        try:
            with source.open("rb") as file:
                yield from pieces_of(file)
        except FileNotFoundError as error:
            raise NotStored(f"nothing is stored under {cid} in {self.path}") from error
        except OSError as error:
            raise StoreError(f"can't read {source}: {error}") from error


def _is_cid(name: str) -> bool:
    try:
        cid_to_bytes(name)
    except FormatError:
        return False
    return True


def _holds(path: Path, file: BinaryIO) -> bool:
    try:
        with path.open("rb") as stored:
            return all(a == b for a, b in zip_longest(pieces_of(stored), pieces_of(file)))
    except FileNotFoundError:
        return False
