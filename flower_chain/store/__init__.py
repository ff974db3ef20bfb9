"""Content-addressed, sealed off-chain storage."""

from pathlib import Path

from flower_chain.store.base import Store
from flower_chain.store.cid import cid_from_bytes, cid_of, cid_to_bytes
from flower_chain.store.directory import DirectoryStore
from flower_chain.store.ipfs import IpfsStore

__all__ = [
    "DirectoryStore",
    "IpfsStore",
    "Store",
    "cid_from_bytes",
    "cid_of",
    "cid_to_bytes",
    "is_url",
    "open_store",
]

FOLDER = "/flower-chain"
"""Among the files of an IPFS node; each run has a folder in it."""

PATIENCE = 300.0
"""Seconds for which a node that went away is waited for, as for one of the ledger."""


def open_store(where: str, folder: str = FOLDER) -> Store:
    """The store at a place.

    Parameters
    ----------
    where : str
        The URL of an IPFS node's RPC, or else a directory.
    folder : str
        Among the node's files.

    Raises
    ------
    ConfigError
        If the URL can't be used.
    StoreError
        If no node answers there, or the directory can't be made.
    """
    if is_url(where):
        return IpfsStore(where, folder, patience=PATIENCE)
    return DirectoryStore(Path(where).expanduser())


def is_url(where: str) -> bool:
    """Whether that is the place of a node, rather than of a directory."""
    return "://" in where
