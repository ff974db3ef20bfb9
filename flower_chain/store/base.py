"""What every off-chain store does."""

import io
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from functools import partial
from typing import BinaryIO, Self

from flower_chain.errors import Damaged, TooLarge
from flower_chain.store.cid import Hasher, cid_to_bytes

PIECE_BYTES = 256 * 1024


class Store(ABC):
    """Bytes under their content identifier (CID): whoever has the CID can check the bytes."""

    def put(self, data: bytes, cid: str | None = None) -> str:
        """Store `data` for good and return their CID; storing them again changes nothing.

        Parameters
        ----------
        data : bytes
        cid : str, optional
            What their CID must be.

        Raises
        ------
        Damaged
            If it is another one; nothing is stored then.
        StoreError
            If they can't be stored.
        """
        # Closed, it lets go of the data, whoever may still hold it.
        with io.BytesIO(data) as file:
            return self.put_file(file, cid)

    def put_file(self, file: BinaryIO, cid: str | None = None) -> str:
        """:meth:`put` all that is in a file, of which only a piece is in memory at any time.

        Parameters
        ----------
        file : BinaryIO
            Opened for reading; it is read more than once. One of ``rich.progress.open`` shows how
            far that is.
        cid : str, optional
            As for :meth:`put`, and with the same errors.
        """
        hasher = Hasher()
        for piece in pieces_of(file):
            hasher.update(piece)
        found = hasher.cid()
        if cid not in (None, found):
            raise Damaged(f"the {hasher.size} bytes are not those of {cid}, but of {found}")
        self._write(found, file, hasher.size)
        return found

    def get(self, cid: str, limit: int | None = None) -> bytes:
        """The bytes under `cid`, checked against it.

        Parameters
        ----------
        cid : str
            What :meth:`put` returned, here or elsewhere.
        limit : int, optional
            The most bytes that are wanted; when more come, the rest is not read.

        Raises
        ------
        FormatError
            If `cid` is not a CID.
        NotStored
            If nothing is stored under it.
        Damaged
            If the bytes are not those that it names.
        TooLarge
            If they are more than `limit`.
        StoreError
            If they can't be read.
        """
        data = io.BytesIO()
        data.writelines(self.pieces(cid, limit))
        return data.getvalue()

    def pieces(self, cid: str, limit: int | None = None) -> Iterator[bytes]:
        """What :meth:`get` gives, as it comes; only one piece is in memory at any time.

        Whether the bytes are those that `cid` names is known, and told by the same errors, when the
        last piece was taken: write them to a file that can be thrown away, as with
        :func:`flower_chain.durable.replacing`.
        """
        cid_to_bytes(cid)
        hasher = Hasher()
        for piece in self._read(cid):
            hasher.update(piece)
            if limit is not None and hasher.size > limit:
                raise TooLarge(f"{cid} in {self} has more than the {limit} bytes that are wanted")
            yield piece
        if (found := hasher.cid()) != cid:
            raise Damaged(f"the {hasher.size} bytes under {cid} in {self} are those of {found}")

    def keep_only(self, cids: Collection[str]) -> list[str]:
        """Remove all but `cids`, those of the last rounds, say; returns what was removed.

        Raises
        ------
        StoreError
            If that can't be done.
        """
        old = [cid for cid in self.stored() if cid not in cids]
        for cid in old:
            self.remove(cid)
        return old

    def close(self) -> None:  # noqa: B027 - not every store keeps something open
        """Close what the store keeps open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def __contains__(self, cid: str) -> bool:
        """Whether something is stored under `cid`; :meth:`get` tells if it is undamaged."""

    @abstractmethod
    def stored(self) -> dict[str, int]:
        """The CIDs of what was put here and not removed, and how many bytes each names.

        Raises
        ------
        StoreError
            If that can't be read.
        """

    @abstractmethod
    def remove(self, cid: str) -> None:
        """Let go of what is stored under `cid`; nothing happens if nothing is.

        Raises
        ------
        FormatError
            If `cid` is not a CID.
        StoreError
            If it can't be removed.
        """

    @abstractmethod
    def _write(self, cid: str, file: BinaryIO, size: int) -> None:
        """Store all `size` bytes of `file`, whose CID is `cid`: wholly or not at all, durably."""

    @abstractmethod
    def _read(self, cid: str) -> Iterator[bytes]:
        """What is stored under `cid`, a valid CID, in pieces that are not large."""


def pieces_of(file: BinaryIO) -> Iterator[bytes]:
    """All that is in a file, from its beginning."""
    file.seek(0)
    return iter(partial(file.read, PIECE_BYTES), b"")
