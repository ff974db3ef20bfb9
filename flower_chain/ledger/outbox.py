"""What accounts send through a node: every payload comes to be in one block, once."""

import re
import secrets
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any

from eth_account.datastructures import SignedTransaction
from eth_account.signers.local import LocalAccount
from eth_typing import ChecksumAddress
from hexbytes import HexBytes
from web3 import Web3
from web3.exceptions import TransactionNotFound
from web3.types import BlockData, TxParams, TxReceipt, Wei

from flower_chain.errors import LedgerError, NodeError
from flower_chain.ledger.base import GAS_LIMIT, CallFailed
from flower_chain.ledger.node import Refused
from flower_chain.waiting import pauses

FEES = ("gasPrice", "maxFeePerGas", "maxPriorityFeePerGas")
GWEI = 10**9

REBROADCAST = 10.0
"""Seconds after which a transaction is sent again although there was no new block."""

NONCE_IN_USE = re.compile("nonce.*(too low|below)|oldnonce|same nonce|replace", re.IGNORECASE)
"""What nodes write when the nonce is another transaction's."""


@dataclass
class Outgoing:
    """A payload under one nonce.

    Parameters
    ----------
    account : LocalAccount
    unsigned : dict
        The transaction with its present fees.
    latest : BlockData
        The newest block before it was signed.
    signed : list of SignedTransaction
        One, and one more for every time that the fees were raised.
    accepted : bool
        Whether a node has ever taken it.
    """

    account: LocalAccount
    unsigned: dict[str, Any]
    latest: BlockData
    signed: list[SignedTransaction] = field(default_factory=list)
    accepted: bool = False

    def __post_init__(self) -> None:
        self._sign()

    @property
    def nonce(self) -> int:
        """Its place among the account's transactions."""
        return int(self.unsigned["nonce"])

    @property
    def price(self) -> int:
        """The most that it pays for one gas, in wei."""
        return max(int(self.unsigned.get(name, 0)) for name in FEES)

    @property
    def hashes(self) -> list[HexBytes]:
        """Under which it may come to be in a block."""
        return [HexBytes(signed.hash) for signed in self.signed]

    def raise_fees(self, wanted: dict[str, int]) -> None:
        """Sign it again with the fees `wanted`, or what nodes ask of a replacement if more."""
        for name, fee in wanted.items():
            self.unsigned[name] = max(fee, self.unsigned[name] * 9 // 8 + 1)
        self._sign()

    def _sign(self) -> None:
        self.signed.append(self.account.sign_transaction(self.unsigned))


class Outbox:
    """Sends transactions and waits for them.

    The same signed bytes are sent as often as it takes, which can't do harm. Another nonce is only
    taken when a block shows that the first went to another transaction.

    Parameters
    ----------
    web3 : Web3
    chain_id : int
    confirmations : int
        Blocks that a transaction must be in or under.
    timeout : float
        Seconds to wait for a block, while the node answers.
    """

    def __init__(self, web3: Web3, chain_id: int, confirmations: int, timeout: float) -> None:
        self._eth = web3.eth
        self._node = web3.provider
        self._chain_id = chain_id
        self._confirmations = confirmations
        self._timeout = timeout

    def send(self, account: LocalAccount, to: str | None, data: bytes) -> TxReceipt:
        """Send a transaction of `account` and wait until it is confirmed.

        Raises
        ------
        CallFailed
            If the contract refuses it.
        LedgerError
            If `account` can't pay for it, it needs too much gas, or the node refuses it.
        NodeError
            If it is not known what became of it: there is no answer, or no block.
        """
        call = transaction(account.address, to, data)
        mined = None
        while mined is None:
            outgoing = self._prepare(account, call)
            try:
                mined = self._settle(outgoing)
            except NodeError as fault:
                names = " or ".join(name.to_0x_hex() for name in outgoing.hashes)
                raise NodeError(f"{fault}; transaction {names} may still be mined") from None
        if mined["status"] != 1:
            raise CallFailed(self._reason(call, mined))
        return mined

    def catch_up(self, sender: str) -> None:
        """Wait until all that `sender` ever sent is in a block."""
        account = Web3.to_checksum_address(sender)
        for _ in pauses(self._timeout):
            pending = self._eth.get_transaction_count(account, "pending")
            if self._eth.get_transaction_count(account, "latest") >= pending:
                return
        raise NodeError(
            f"{self._node}: what {sender} sent is not in a block after {self._timeout:g} s"
        )

    def _prepare(self, account: LocalAccount, call: TxParams) -> Outgoing:
        estimated = self._eth.estimate_gas(call)
        latest = self._eth.get_block("latest")
        limit = min(GAS_LIMIT, latest["gasLimit"])
        if estimated > limit:
            raise LedgerError(f"the transaction needs {estimated} gas, but may use {limit}")
        # Odd gas tells apart what two processes send at once: equal bytes were one transaction.
        gas = min(estimated + estimated // 5 + secrets.randbelow(1000), limit)
        unsigned = {
            **call,
            **self._fees(account.address, gas, latest),
            "chainId": self._chain_id,
            "gas": gas,
            "nonce": self._eth.get_transaction_count(account.address, "pending"),
            "value": 0,
        }
        return Outgoing(account, unsigned, latest)

    def _fees(self, sender: ChecksumAddress, gas: int, latest: BlockData) -> dict[str, int]:
        """EIP-1559, enough for six full blocks in a row; a gas price where there is no base fee."""
        base = latest.get("baseFeePerGas")
        if base is None:
            return {"gasPrice": self._eth.gas_price}
        tip = self._tip(base)
        # Where gas is free, nodes may still suggest a tip.
        if base == 0 and self._eth.get_balance(sender) < gas * tip:
            tip = 0
        return {"maxFeePerGas": 2 * base + tip, "maxPriorityFeePerGas": tip}

    def _tip(self, base: int) -> int:
        try:
            return self._eth.max_priority_fee
        except Refused:
            return max(self._eth.gas_price - base, GWEI)

    def _settle(self, outgoing: Outgoing) -> TxReceipt | None:
        """Its receipt once it is confirmed; None if its nonce went to another transaction."""
        while (mined := self._wait_for_block(outgoing)) is not None:
            if self._stays(mined):
                return mined
        return None

    def _wait_for_block(self, outgoing: Outgoing) -> TxReceipt | None:
        seen = outgoing.latest["hash"] if self._broadcast(outgoing) else None
        due = REBROADCAST
        for waited in pauses(self._timeout):
            mined = self._mined(outgoing)
            if mined is not None:
                return mined
            latest = self._eth.get_block("latest")
            if latest["hash"] != seen or waited > due:
                seen, due = latest["hash"], waited + REBROADCAST
                if self._has_lost_nonce(outgoing, latest["number"]):
                    return None
                self._push(outgoing, latest)
        raise NodeError(f"{self._node}: not in a block after {self._timeout:g} s")

    def _stays(self, mined: TxReceipt) -> bool:
        """Whether its block is still there when it has all confirmations."""
        if self._confirmations == 1:
            return True
        for _ in pauses(self._timeout * self._confirmations):
            latest = self._eth.block_number
            now = self._find(mined["transactionHash"])
            if now is None or now["blockHash"] != mined["blockHash"]:
                return False
            if latest - mined["blockNumber"] + 1 >= self._confirmations:
                return True
        block = mined["blockNumber"]
        raise NodeError(
            f"{self._node}: block {block} never had {self._confirmations} confirmations"
        )

    def _broadcast(self, outgoing: Outgoing) -> bool:
        """Whether the node has it now, in any of its versions."""
        return any(self._offer(outgoing, signed) for signed in reversed(outgoing.signed))

    def _offer(self, outgoing: Outgoing, signed: SignedTransaction) -> bool:
        try:
            self._eth.send_raw_transaction(signed.raw_transaction)
        except Refused as refused:
            if not self._knows(signed):
                if outgoing.accepted or NONCE_IN_USE.search(refused.said):
                    return False
                raise self._rejection(outgoing, refused) from None
        outgoing.accepted = True
        return True

    def _knows(self, signed: SignedTransaction) -> bool:
        """Whether the node has these very bytes, waiting or in a block."""
        try:
            self._eth.get_transaction(signed.hash)
        except TransactionNotFound:
            return False
        return True

    def _push(self, outgoing: Outgoing, latest: BlockData) -> None:
        """Send it again, in case it was dropped; with higher fees if they are too low by now."""
        base = latest.get("baseFeePerGas")
        if (self._eth.gas_price if base is None else base) > outgoing.price:
            gas = outgoing.unsigned["gas"]
            outgoing.raise_fees(self._fees(outgoing.account.address, gas, latest))
        self._broadcast(outgoing)

    def _has_lost_nonce(self, outgoing: Outgoing, head: int) -> bool:
        """Whether a confirmed block shows that its nonce went to another transaction."""
        blocks = range(outgoing.latest["number"], head - self._confirmations + 2)

        def count(block: int) -> int:
            return self._eth.get_transaction_count(outgoing.account.address, block)

        if not blocks or count(blocks[-1]) <= outgoing.nonce:
            return False
        taking = blocks[bisect_right(blocks, outgoing.nonce, key=count)]
        return not set(outgoing.hashes) & set(self._eth.get_block(taking)["transactions"])

    def _mined(self, outgoing: Outgoing) -> TxReceipt | None:
        found = map(self._find, reversed(outgoing.hashes))
        return next((receipt for receipt in found if receipt is not None), None)

    def _find(self, name: HexBytes) -> TxReceipt | None:
        try:
            return self._eth.get_transaction_receipt(name)
        except TransactionNotFound:
            return None

    def _rejection(self, outgoing: Outgoing, refused: Refused) -> LedgerError:
        sender, cost = outgoing.account.address, outgoing.price * outgoing.unsigned["gas"]
        balance = self._eth.get_balance(sender)
        if balance >= cost:
            return LedgerError(str(refused))
        has, needs = (Web3.from_wei(Wei(amount), "ether") for amount in (balance, cost))
        return LedgerError(f"{sender} has {has:f} ether, but needs {needs:f} for gas")

    def _reason(self, call: TxParams, mined: TxReceipt) -> bytes:
        """What the contract says now to the call that it refused."""
        try:
            self._eth.call(call, mined["blockNumber"])
        except CallFailed as failed:
            return failed.data
        except Refused:
            pass
        return b""


def transaction(sender: str, to: str | None, data: bytes) -> TxParams:
    """What is called, without fees and nonce."""
    call: TxParams = {"from": Web3.to_checksum_address(sender), "data": data}
    return call if to is None else {**call, "to": Web3.to_checksum_address(to)}
