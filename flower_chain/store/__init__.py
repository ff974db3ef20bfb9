"""Content-addressed, sealed off-chain storage."""

from flower_chain.store.base import Store
from flower_chain.store.cid import cid_from_bytes, cid_of, cid_to_bytes
from flower_chain.store.directory import DirectoryStore
from flower_chain.store.ipfs import IpfsStore

__all__ = ["DirectoryStore", "IpfsStore", "Store", "cid_from_bytes", "cid_of", "cid_to_bytes"]
