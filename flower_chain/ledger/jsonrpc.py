"""Any Ethereum node that speaks JSON-RPC."""

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from eth_account.signers.local import LocalAccount
from hexbytes import HexBytes
from web3 import Web3
from web3.exceptions import BlockNotFound, TransactionNotFound, Web3Exception
from web3.middleware import AttributeDictMiddleware, ExtraDataToPOAMiddleware
from web3.types import BlockData, LogReceipt, TxReceipt

from flower_chain.errors import NodeError, WrongChain
from flower_chain.ledger.base import Ledger, Receipt
from flower_chain.ledger.node import Node, Refused
from flower_chain.ledger.outbox import Outbox, transaction
from flower_chain.waiting import pauses

Answer = TypeVar("Answer")
Key = TypeVar("Key")

MIDDLEWARE = [(AttributeDictMiddleware, "names"), (ExtraDataToPOAMiddleware, "authority")]
"""Blocks of proof-of-authority chains are longer; web3's own checks would ask twice as much."""

BEHIND = 5.0
"""Seconds that one of several nodes behind a URL may be behind another."""

AT_ONCE = 8
"""Questions that a node is asked at a time."""


class JsonRpcLedger(Ledger):
    """The chain of a node.

    Parameters
    ----------
    url : str
        Of the node's JSON-RPC endpoint, ``http`` or ``https``. ``${NAME}`` in it stands for a
        variable of the environment, a key say: its value is never shown, nor is a password.
    chain_id : int or None
        The chain that it must be on; None takes any.
    confirmations : int
        Blocks that a transaction must be in or under before :meth:`send` returns; 1 is just in one.
    timeout : float
        Seconds to wait for an answer, and for a block while the node answers.
    patience : float
        Seconds to go on asking a node that gives no answer.

    Raises
    ------
    ConfigError
        If the environment lacks a variable that `url` names.
    NodeError
        If the node can't be reached.
    WrongChain
        If it is on another chain.
    """

    def __init__(
        self,
        url: str,
        chain_id: int | None = None,
        confirmations: int = 1,
        timeout: float = 60.0,
        patience: float = 300.0,
    ) -> None:
        self._node = Node(url, timeout, patience)
        self._web3 = Web3(self._node, MIDDLEWARE)
        self._eth = self._web3.eth
        try:
            self.chain_id = self._find_chain(chain_id)
        except BaseException:
            self.close()
            raise
        self._outbox = Outbox(self._web3, self.chain_id, confirmations, timeout)
        self._newest = 0
        self._receipts: dict[str, TxReceipt] = {}
        self._blocks: dict[int, BlockData] = {}

    def __str__(self) -> str:
        return str(self._node)

    def send(self, account: LocalAccount, to: str | None, data: bytes) -> Receipt:
        """Send a transaction of `account` and wait until it is confirmed."""
        mined = self._ask(lambda: self._outbox.send(account, to, data))
        receipt = _receipt(mined)
        self._newest = max(receipt.block, self._newest)
        self._receipts[receipt.transaction] = mined
        self._blocks.pop(receipt.block, None)
        return receipt

    def call(self, to: str, data: bytes) -> bytes:
        """What the contract at `to` answers now."""
        checksummed = Web3.to_checksum_address(to)
        return bytes(self._ask(lambda: self._eth.call({"to": checksummed, "data": data})))

    def estimate(self, sender: str, to: str | None, data: bytes) -> int:
        """The gas that a transaction of `sender` would use now."""
        return self._ask(lambda: self._eth.estimate_gas(transaction(sender, to, data)))

    def catch_up(self, sender: str) -> None:
        """Wait until all that `sender` ever sent is in a block, whoever sent it."""
        self._ask(lambda: self._outbox.catch_up(sender))

    def logs(self, address: str, since: int = 0) -> Sequence[LogReceipt]:
        """All that the contract at `address` has logged from the block `since` on, in order."""
        return self._ask(lambda: self._logs(address, since))

    def receipt(self, transaction: str) -> Receipt:
        """What came of the transaction with this hash.

        If it was just sent or in :meth:`logs`, the node is not asked again.
        """
        known = self._receipts.get(transaction)
        return _receipt(known or self._ask(lambda: self._find_receipt(transaction)))

    def data_of(self, transaction: str) -> bytes:
        """What was sent in the transaction with this hash."""
        name = HexBytes(transaction)
        return bytes(self._ask(lambda: self._eth.get_transaction(name))["input"])

    def time_of(self, block: int) -> int:
        """Time of the block with this number, in seconds since 1970."""
        known = self._blocks.get(block)
        return int((known or self._ask(lambda: self._look_at(block)))["timestamp"])

    def code(self, address: str) -> bytes:
        """The code of the contract at `address`; empty if there is none."""
        checksummed = Web3.to_checksum_address(address)
        return bytes(self._ask(lambda: self._eth.get_code(checksummed)))

    def close(self) -> None:
        """Close the connections."""
        self._node.close()

    def _find_chain(self, wanted: int | None) -> int:
        found = self._ask(lambda: self._eth.chain_id)
        if not isinstance(found, int):
            raise NodeError(f"{self} did not answer as a node should: chain id {found!r}")
        if wanted not in (None, found):
            raise WrongChain(f"{self} is on chain {found}, but the run is on {wanted}")
        return found

    def _logs(self, address: str, since: int) -> list[LogReceipt]:
        found = [log for log in self._find_logs(address, since) if not log.get("removed")]
        found.sort(key=lambda log: (log["blockNumber"], log["logIndex"]))
        self._look_up(found)
        return found

    def _find_logs(self, address: str, since: int) -> list[LogReceipt]:
        """In ranges as large as the node allows: half of one that it refuses, then more again."""
        head = self._head()
        found: list[LogReceipt] = []
        size = head - since + 1
        while since <= head:
            end = min(since + size - 1, head)
            wanted: Any = {"address": address, "fromBlock": since, "toBlock": end}
            try:
                found += self._eth.get_logs(wanted)
            except Refused:
                if since == end:
                    raise
                size = (end - since + 1) // 2
            else:
                since = end + 1
                size += size // 4 + 1
        return found

    def _head(self) -> int:
        """The newest block, as seen by a node that knows what was sent from here."""
        for _ in pauses(BEHIND):
            head = self._eth.block_number
            if head >= self._newest:
                return head
        self._newest = head
        return head

    def _look_up(self, logs: Sequence[LogReceipt]) -> None:
        """Ask once for each transaction and block of `logs`, unless they are where they were."""
        places = {log["transactionHash"].to_0x_hex(): log["blockHash"] for log in logs}
        hashes = {int(log["blockNumber"]): log["blockHash"] for log in logs}
        known, seen = self._receipts.copy(), self._blocks.copy()
        receipts = {n: r for n, r in known.items() if r["blockHash"] == places.get(n)}
        blocks = {n: b for n, b in seen.items() if b["hash"] == hashes.get(n)}
        with ThreadPoolExecutor(AT_ONCE) as pool:
            receipts |= _gather(pool, self._find_receipt, places.keys() - receipts)
            blocks |= _gather(pool, self._find_block, hashes.keys() - blocks)
        self._receipts, self._blocks = receipts, blocks

    def _look_at(self, number: int) -> BlockData:
        """The block; kept if it holds what was sent or logged, so that its move is noticed."""
        found = self._find_block(number)
        if found["hash"] in {mined["blockHash"] for mined in self._receipts.copy().values()}:
            self._blocks[number] = found
        return found

    def _find_receipt(self, name: str) -> TxReceipt:
        for _ in pauses(BEHIND):
            with suppress(TransactionNotFound):
                return self._eth.get_transaction_receipt(HexBytes(name))
        raise NodeError(f"{self} knows no transaction {name}")

    def _find_block(self, number: int) -> BlockData:
        for _ in pauses(BEHIND):
            with suppress(BlockNotFound):
                return self._eth.get_block(number)
        raise NodeError(f"{self} knows no block {number}")

    def _ask(self, question: Callable[[], Answer]) -> Answer:
        try:
            return question()
        except (Web3Exception, ValueError, TypeError, LookupError, AttributeError) as fault:
            what = self._node.hide(str(fault))
            raise NodeError(f"{self} did not answer as a node should: {what}") from None


def _gather(
    pool: ThreadPoolExecutor, question: Callable[[Key], Answer], keys: Collection[Key]
) -> dict[Key, Answer]:
    return dict(zip(keys, pool.map(question, keys), strict=True))


def _receipt(mined: TxReceipt) -> Receipt:
    return Receipt(
        mined["transactionHash"].to_0x_hex(),
        mined["from"],
        mined["blockNumber"],
        mined["gasUsed"],
        mined["contractAddress"],
        tuple(mined["logs"]),
    )
