"""A device's own store: what it seals is put there, and only the CID is sent."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from logging import WARNING
from typing import Self

from flwr.app import Context
from flwr.common import log

from flower_chain.errors import FormatError, StoreError
from flower_chain.store import FOLDER, DirectoryStore, Store, cid_from_bytes, open_store


class OwnStore:
    """Where a device puts what it seals, for others to fetch by its CID.

    Parameters
    ----------
    store : Store
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    @classmethod
    @contextmanager
    def of(cls, context: Context, run: str, account: str) -> Iterator[Self | None]:
        """The store that the SuperNode's ``--node-config`` names under ``store``, if it does.

        A directory is one that the owner reads too. On an IPFS node the device has a folder of its
        own for the run.
        """
        where = context.node_config.get("store")
        if where is None:
            yield None
            return
        with open_store(str(where), f"{FOLDER}/{run}/{account}") as store:
            yield cls(store)

    def put(self, sealed: bytes) -> None:
        """Store what was sealed last; what was before it may go from a node of the device's own.

        Who needed that has fetched it, or is sent it again. Of a directory the owner takes care.
        """
        cid = self._store.put(sealed)
        if not isinstance(self._store, DirectoryStore):
            self._store.keep_only([cid])

    def find(self, cids: Sequence[bytes], limit: int) -> list[bytes]:
        """What is under each of these addresses, at most `limit` bytes; empty what can't be had.

        All at once: what is nowhere takes as long as a node looks for it.
        """
        with ThreadPoolExecutor() as threads:
            return list(threads.map(lambda cid: self._get(cid, limit), cids))

    def _get(self, cid: bytes, limit: int) -> bytes:
        try:
            return self._store.get(cid_from_bytes(cid), limit)
        except (StoreError, FormatError) as fault:
            log(WARNING, "A sealed model can't be fetched: %s", fault)
            return b""
