"""A device's own store: what it seals is put there, and only the CID is sent."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from flwr.app import Context

from flower_chain.store import FOLDER, DirectoryStore, Store, open_store


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
