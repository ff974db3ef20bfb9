"""What every off-chain store does."""

from abc import ABC, abstractmethod

from flower_chain.errors import Damaged
from flower_chain.store.cid import cid_of, cid_to_bytes


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
        found = cid_of(data)
        if cid not in (None, found):
            raise Damaged(f"the {len(data)} bytes are not those of {cid}, but of {found}")
        self._write(found, data)
        return found

    def get(self, cid: str, limit: int | None = None) -> bytes:
        """The bytes under `cid`, checked against it.

        Parameters
        ----------
        cid : str
            What :meth:`put` returned, here or elsewhere.
        limit : int, optional
            The most bytes that are wanted; more are refused without being read.

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
        cid_to_bytes(cid)
        data = self._read(cid, limit)
        if (found := cid_of(data)) != cid:
            raise Damaged(f"the {len(data)} bytes under {cid} in {self} are those of {found}")
        return data

    @abstractmethod
    def __contains__(self, cid: str) -> bool:
        """Whether something is stored under `cid`; :meth:`get` tells if it is undamaged."""

    @abstractmethod
    def _write(self, cid: str, data: bytes) -> None:
        """Store `data`, of which `cid` is the CID: wholly or not at all, and durably."""

    @abstractmethod
    def _read(self, cid: str, limit: int | None) -> bytes:
        """What is stored under `cid`, a valid CID; never more than `limit` bytes."""
