"""A store in a directory: one file per CID."""

import os
from pathlib import Path

from flower_chain.durable import replace, sync_directory
from flower_chain.errors import NotStored, StoreError, TooLarge
from flower_chain.store.base import Store
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

    def _write(self, cid: str, data: bytes) -> None:
        target = self.path / cid
        try:
            # A damaged file is not equal, and so is mended.
            if _holds(target, data):
                sync_directory(self.path)
            else:
                replace(target, data)
        except OSError as error:
            raise StoreError(f"can't store {len(data)} bytes as {target}: {error}") from error

    def _read(self, cid: str, limit: int | None) -> bytes:
        source = self.path / cid
        try:
            with source.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if limit is not None and size > limit:
                    raise TooLarge(f"{source} has {size} bytes; at most {limit} are wanted")
                return file.read(size)
        except FileNotFoundError as error:
            raise NotStored(f"nothing is stored under {cid} in {self.path}") from error
        except OSError as error:
            raise StoreError(f"can't read {source}: {error}") from error


def _holds(path: Path, data: bytes) -> bool:
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except FileNotFoundError:
        return False
