"""A real EVM inside the process, with a journal that survives it."""

import secrets
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import rlp
from eth.abc import BlockAPI, ComputationAPI, LogAPI, SignedTransactionAPI
from eth.chains.base import MiningChain
from eth.exceptions import PyEVMError
from eth.vm.spoof import SpoofTransaction
from eth_account.signers.local import LocalAccount
from eth_keys.exceptions import BadSignature
from eth_tester.backends.pyevm.main import PyEVMBackend, get_default_genesis_params
from eth_typing import Address, BlockNumber
from eth_utils.address import to_canonical_address, to_checksum_address
from eth_utils.crypto import keccak
from eth_utils.exceptions import ValidationError as EthUtilsValidationError
from hexbytes import HexBytes
from rlp.exceptions import RLPException
from web3.types import LogReceipt

from flower_chain.errors import JournalError, LedgerError
from flower_chain.ledger.base import GAS_LIMIT, CallFailed, Ledger, Receipt
from flower_chain.ledger.journal import Entry, Genesis, Journal, read

ETHER = 10**18
REPLAY_FAULTS = (ValueError, EthUtilsValidationError, BadSignature, PyEVMError, RLPException)
"""What py-evm raises on a transaction that can't have been executed."""

BLOCK_GAS_LIMIT = 60_000_000
NO_HASH = b"\0" * 32
NO_ONE = Address(b"\0" * 20)


class EmbeddedLedger(Ledger):
    """py-evm, one transaction a block, every transaction journalled.

    It has no other witness than its file: whoever holds the owner's key can write another history.
    Use a node where somebody else keeps the chain when that matters.

    Parameters
    ----------
    path : Path
        The journal; replayed if it is there, created if not.
    funded : sequence of str
        Accounts that can pay for gas on a new chain.
    read_only : bool
        Read the journal as it is now, also while another process writes it.

    Raises
    ------
    JournalError
        If the journal is damaged, edited or in use.
    """

    def __init__(
        self, path: str | Path, funded: Sequence[str] = (), read_only: bool = False
    ) -> None:
        self._path = Path(path)
        self._journal: Journal | None = None
        if read_only:
            genesis, entries = read(self._path)
        else:
            new = Genesis(secrets.randbelow(2**48) + 1, int(time.time()), tuple(funded))
            self._journal = Journal(self._path, new)
            genesis, entries = self._journal.genesis, self._journal.entries
        self.chain_id = genesis.chain_id
        self._funded = genesis.funded
        self._chain = _chain(genesis)
        self._times = [genesis.time]
        self._receipts: dict[str, Receipt] = {}
        try:
            self._replay(entries)
        except BaseException:
            self.close()
            raise

    def __str__(self) -> str:
        return str(self._path)

    def send(self, account: LocalAccount, to: str | None, data: bytes) -> Receipt:
        """Execute a transaction of `account` in a block of its own, and journal it."""
        if self._journal is None:
            raise LedgerError(f"{self._path} is not open for writing")
        raw = self._sign(account, to, data)
        now = max(int(time.time()), self._times[-1] + 1)
        try:
            block, computation = self._execute(raw, now)
        except EthUtilsValidationError as fault:
            if account.address not in self._funded:
                raise LedgerError(
                    f"{account.address} can't pay for gas: "
                    f"on this ledger only {', '.join(self._funded)} can"
                ) from None
            raise LedgerError(f"{account.address} can't send this transaction: {fault}") from fault
        self._remember(Entry("0x" + raw.hex(), now, "0x" + block.hash.hex()))
        receipt = self._keep(block)
        if computation.is_error:
            raise CallFailed(bytes(computation.output))
        return receipt

    def call(self, to: str, data: bytes) -> bytes:
        """What the contract at `to` answers now."""
        vm = self._chain.get_vm()
        contract = to_canonical_address(to)
        computation = vm.execute_bytecode(
            origin=NO_ONE,
            gas_price=0,
            gas=GAS_LIMIT,
            to=contract,
            sender=NO_ONE,
            value=0,
            data=data,
            code=vm.state.get_code(contract),
        )
        if computation.is_error:
            raise CallFailed(bytes(computation.output))
        return bytes(computation.output)

    def estimate(self, sender: str, to: str | None, data: bytes) -> int:
        """The gas that a transaction of `sender` would use now."""
        builder = self._chain.get_vm().get_transaction_builder()
        unsigned = builder.create_unsigned_transaction(
            nonce=self._nonce(sender),
            gas_price=self._chain.header.base_fee_per_gas or 0,
            gas=GAS_LIMIT,
            to=Address(b"") if to is None else to_canonical_address(to),
            value=0,
            data=data,
        )
        transaction: Any = SpoofTransaction(unsigned, from_=to_canonical_address(sender))
        with self._chain.get_vm(self._chain.header).in_costless_state() as state:
            computation = state.costless_execute_transaction(transaction)
        if computation.is_error:
            raise CallFailed(bytes(computation.output))
        return GAS_LIMIT - int(computation.get_gas_remaining())

    def catch_up(self, sender: str) -> None:
        """Nothing is ever under way: a transaction is in a block when :meth:`send` returns."""

    def logs(self, address: str, since: int = 0) -> Sequence[LogReceipt]:
        """All that the contract at `address` has logged from the block `since` on, in order."""
        receipts = list(self._receipts.values())[max(since - 1, 0) :]  # one a block, from block 1
        logs = chain.from_iterable(receipt.logs for receipt in receipts)
        return [log for log in logs if log["address"] == address]

    def receipt(self, transaction: str) -> Receipt:
        """What came of the transaction with this hash."""
        return self._receipts[transaction]

    def data_of(self, transaction: str) -> bytes:
        """What was sent in the transaction with this hash."""
        number = BlockNumber(self._receipts[transaction].block)
        (sent,) = self._chain.get_canonical_block_by_number(number).transactions
        return bytes(sent.data)

    def time_of(self, block: int) -> int:
        """Time of the block with this number, in seconds since 1970."""
        return self._times[block]

    def code(self, address: str) -> bytes:
        """The code of the contract at `address`; empty if there is none."""
        return bytes(self._chain.get_vm().state.get_code(to_canonical_address(address)))

    def close(self) -> None:
        """Close the journal."""
        if self._journal is not None:
            self._journal.close()

    def _sign(self, account: LocalAccount, to: str | None, data: bytes) -> bytes:
        transaction: dict[str, Any] = {
            "chainId": self.chain_id,
            "nonce": self._nonce(account.address),
            "gas": GAS_LIMIT,
            "maxFeePerGas": 2 * (self._chain.header.base_fee_per_gas or 0),
            "maxPriorityFeePerGas": 0,
            "value": 0,
            "data": data,
        }
        if to is not None:
            transaction["to"] = to
        return bytes(account.sign_transaction(transaction).raw_transaction)

    def _nonce(self, sender: str) -> int:
        return int(self._chain.get_vm().state.get_nonce(to_canonical_address(sender)))

    def _remember(self, entry: Entry) -> None:
        """Journal a block, or end here: the chain must not get ahead of its journal."""
        assert self._journal is not None
        try:
            self._journal.append(entry)
        except OSError as fault:
            self.close()
            self._journal = None
            raise JournalError(
                f"{self._path} can't be written: {fault.strerror}; all that it holds is safe"
            ) from fault

    def _replay(self, entries: Sequence[Entry]) -> None:
        for number, entry in enumerate(entries, 1):
            try:
                block, _ = self._execute(bytes.fromhex(entry.transaction[2:]), entry.time)
            except REPLAY_FAULTS as fault:
                raise JournalError(f"{self._path}: block {number} is not valid: {fault}") from fault
            found = "0x" + block.hash.hex()
            if found != entry.block:
                raise JournalError(
                    f"{self._path}: block {number} was edited: the journal says that its hash is "
                    f"{entry.block}, but it is {found}"
                )
            self._keep(block)

    def _execute(self, raw: bytes, now: int) -> tuple[BlockAPI, ComputationAPI]:
        self._chain.header = self._chain.header.copy(timestamp=now)
        transaction = self._chain.get_vm().get_transaction_builder().decode(raw)
        if getattr(transaction, "chain_id", None) != self.chain_id:
            raise EthUtilsValidationError("the transaction is for another chain")
        _, _, computation = self._chain.apply_transaction(transaction)
        return self._chain.mine_block(mix_hash=NO_HASH), computation

    def _keep(self, block: BlockAPI) -> Receipt:
        (transaction,) = block.transactions
        (mined,) = block.get_receipts(self._chain.chaindb)
        created = None if transaction.to else to_checksum_address(_address_created(transaction))
        name, sender = "0x" + transaction.hash.hex(), to_checksum_address(transaction.sender)
        logs = tuple(_log(entry, name, block.number, i) for i, entry in enumerate(mined.logs))
        receipt = Receipt(name, sender, block.number, mined.gas_used, created, logs)
        self._receipts[name] = receipt
        self._times.append(block.header.timestamp)
        return receipt


def _chain(genesis: Genesis) -> MiningChain:
    parameters = get_default_genesis_params(
        {"timestamp": genesis.time, "gas_limit": BLOCK_GAS_LIMIT}
    )
    rich = {"balance": 10**9 * ETHER, "nonce": 0, "code": b"", "storage": {}}
    state: dict[Address, object] = {
        Address(to_canonical_address(account)): rich for account in genesis.funded
    }
    chain: MiningChain = PyEVMBackend(parameters, state or {NO_ONE: rich}).chain
    type(chain).chain_id = genesis.chain_id
    return chain


def _address_created(transaction: SignedTransactionAPI) -> bytes:
    return keccak(rlp.encode([transaction.sender, transaction.nonce]))[12:]


def _log(entry: LogAPI, transaction: str, block: int, index: int) -> LogReceipt:
    return {
        "address": to_checksum_address(entry.address),
        "blockHash": HexBytes(NO_HASH),
        "blockNumber": BlockNumber(block),
        "data": HexBytes(entry.data),
        "logIndex": index,
        "removed": False,
        "topics": [HexBytes(topic.to_bytes(32, "big")) for topic in entry.topics],
        "transactionHash": HexBytes(transaction),
        "transactionIndex": 0,
    }
