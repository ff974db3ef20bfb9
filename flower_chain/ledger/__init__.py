"""Chain adapters: the same contracts on an embedded EVM or on any node."""

from flower_chain.ledger.base import Contract, Event, Ledger, Receipt
from flower_chain.ledger.embedded import EmbeddedLedger
from flower_chain.ledger.jsonrpc import JsonRpcLedger

__all__ = ["Contract", "EmbeddedLedger", "Event", "JsonRpcLedger", "Ledger", "Receipt"]
