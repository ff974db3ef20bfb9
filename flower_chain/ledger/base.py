"""What the package needs of a chain, whichever it is."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.resources import files
from typing import Any

from eth_abi.abi import decode
from eth_abi.exceptions import DecodingError
from eth_account.signers.local import LocalAccount
from eth_typing import ABI, ABIEvent, ABIFunction
from eth_utils.abi import (
    abi_to_signature,
    filter_abi_by_name,
    filter_abi_by_type,
    function_abi_to_4byte_selector,
    get_abi_input_types,
    get_abi_output_types,
    get_all_event_abis,
)
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak
from web3 import Web3
from web3.contract import Contract as Codec
from web3.types import LogReceipt

from flower_chain.errors import LedgerError, Reverted, WrongChain

CODEC = Web3().codec

GAS_LIMIT = 16_777_216
"""The most gas that one transaction may use on the main network (EIP-7825)."""


@dataclass(frozen=True)
class Artifact:
    """A compiled contract.

    Parameters
    ----------
    abi : ABI
    bytecode : str
        The code that creates it, in hex.
    runtime : bytes
        The code that it then has, with zeros where its immutables are.
    immutables : tuple of (int, int)
        Where these are, and how long.
    """

    abi: ABI
    bytecode: str
    runtime: bytes
    immutables: tuple[tuple[int, int], ...]

    def has(self, code: bytes) -> bool:
        """Whether `code` is that of this contract, whatever its immutables are."""
        masked = bytearray(code)
        for start, length in self.immutables:
            masked[start : start + length] = bytes(length)
        return masked == self.runtime


@cache
def artifact(name: str) -> Artifact:
    """The compiled contract `name` that comes with the package."""
    text = (files(__package__) / "contracts" / f"{name}.json").read_text()
    parsed = json.loads(text)
    runtime = bytes.fromhex(parsed["runtime"].removeprefix("0x"))
    places = [place.partition(":") for place in parsed["immutables"].split()]
    immutables = tuple((int(start), int(length)) for start, _, length in places)
    return Artifact(parsed["abi"], parsed["bytecode"], runtime, immutables)


@dataclass(frozen=True)
class Receipt:
    """What came of a transaction.

    Parameters
    ----------
    transaction : str
        Its hash, with 0x.
    sender : str
        Checksum address of the account that signed it.
    block : int
        Number of the block that holds it.
    gas_used : int
    created : str or None
        Checksum address of the contract that it created.
    logs : tuple of LogReceipt
        What contracts logged in it.
    """

    transaction: str
    sender: str
    block: int
    gas_used: int
    created: str | None
    logs: tuple[LogReceipt, ...] = field(compare=False, repr=False)


@dataclass(frozen=True)
class Event:
    """Something that a contract said.

    Parameters
    ----------
    name : str
        Its name in Solidity.
    args : dict
        Its arguments by their names in Solidity.
    receipt : Receipt
        Of the transaction in which it was said.
    time : int
        Time of its block, in seconds since 1970.
    """

    name: str
    args: dict[str, Any]
    receipt: Receipt
    time: int


class CallFailed(LedgerError):
    """A call reverted; holds what the contract returned. Never leaves this package."""

    def __init__(self, data: bytes) -> None:
        super().__init__(f"reverted with 0x{data.hex()}")
        self.data = data


class Ledger(ABC):
    """A chain that contracts live on.

    Attributes
    ----------
    chain_id : int
    """

    chain_id: int

    def deploy(self, account: LocalAccount, name: str, *args: Any) -> "Contract":
        """Create the contract `name` of this package, paid by `account`.

        Raises
        ------
        Reverted
            If its constructor refuses `args`.
        NodeError
            If the node can't be reached.
        """
        compiled = artifact(name)
        factory = Web3().eth.contract(abi=compiled.abi, bytecode=compiled.bytecode)
        data = bytes.fromhex(factory.constructor(*args).data_in_transaction[2:])
        try:
            receipt = self.send(account, None, data)
        except CallFailed as failed:
            raise Reverted(_explain(compiled.abi, failed.data)) from None
        assert receipt.created is not None
        return Contract(self, receipt.created, name, receipt.block)

    @abstractmethod
    def send(self, account: LocalAccount, to: str | None, data: bytes) -> Receipt:
        """Send a transaction of `account` and wait until it is in a block.

        Without `to` it creates a contract. Raises :class:`CallFailed` if the contract refuses it.
        """

    @abstractmethod
    def call(self, to: str, data: bytes) -> bytes:
        """What the contract at `to` answers now, or :class:`CallFailed`."""

    @abstractmethod
    def estimate(self, sender: str, to: str | None, data: bytes) -> int:
        """The gas that a transaction of `sender` would use now, or :class:`CallFailed`."""

    @abstractmethod
    def catch_up(self, sender: str) -> None:
        """Wait until all that `sender` ever sent is in a block, whoever sent it."""

    @abstractmethod
    def logs(self, address: str, since: int = 0) -> Sequence[LogReceipt]:
        """All that the contract at `address` has logged from the block `since` on, in order."""

    @abstractmethod
    def receipt(self, transaction: str) -> Receipt:
        """What came of the transaction with this hash."""

    @abstractmethod
    def data_of(self, transaction: str) -> bytes:
        """What was sent in the transaction with this hash."""

    @abstractmethod
    def time_of(self, block: int) -> int:
        """Time of the block with this number, in seconds since 1970."""

    @abstractmethod
    def code(self, address: str) -> bytes:
        """The code of the contract at `address`; empty if there is none."""

    def has_code(self, address: str) -> bool:
        """Whether a contract lives at `address`."""
        return bool(self.code(address))

    @abstractmethod
    def close(self) -> None:
        """Give back what the ledger holds."""

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Contract:
    """A contract of this package on a ledger.

    Parameters
    ----------
    ledger : Ledger
    address : str
        Checksum address.
    name : str
        Its name in Solidity.
    block : int
        The one that it was created in, or an earlier one.
    """

    ledger: Ledger
    address: str
    name: str
    block: int = 0

    @cached_property
    def _abi(self) -> ABI:
        return artifact(self.name).abi

    @cached_property
    def _codec(self) -> Codec:
        return Web3().eth.contract(Web3.to_checksum_address(self.address), abi=self._abi)

    def check_code(self) -> None:
        """Refuse another code than that of the contract with this name in this package.

        Its immutables, which are what it was created with, may be any; so may what its creator put
        into its storage: see :meth:`check_creation`.

        Raises
        ------
        WrongChain
        """
        if not artifact(self.name).has(self.ledger.code(self.address)):
            raise WrongChain(
                f"the contract at {self.address} is not this package's {self.name}: it may do "
                "anything, or be of another version"
            )

    def check_creation(self) -> None:
        """Refuse a contract that something else than this package's code created.

        Then all that is in its storage came there by its own rules. It must have said something
        when it was created.

        Raises
        ------
        WrongChain
        """
        receipts = [event.receipt for event in self.events(self.block)[:1]]
        created = [receipt for receipt in receipts if receipt.created == self.address]
        code = bytes.fromhex(artifact(self.name).bytecode.removeprefix("0x"))
        if not any(self.ledger.data_of(r.transaction).startswith(code) for r in created):
            raise WrongChain(
                f"the contract at {self.address} was not created by this package's {self.name}: "
                "anything may be in its storage"
            )

    def encode(self, function: str, *args: Any) -> bytes:
        """The data of a call of `function` with `args`."""
        found = self._function(function)
        types = get_abi_input_types(found)
        return function_abi_to_4byte_selector(found) + CODEC.encode(types, args)

    def decode(self, function: str, data: bytes) -> tuple[Any, ...] | None:
        """The arguments of a call, the inverse of :meth:`encode`; None if it is of another one."""
        found = self._function(function)
        if not data.startswith(function_abi_to_4byte_selector(found)):
            return None
        try:
            return decode(get_abi_input_types(found), data[4:])
        except DecodingError:
            return None

    def call(self, function: str, *args: Any) -> Any:
        """What `function` returns now; a tuple if there are several values.

        Raises
        ------
        Reverted
            If the contract refuses the call.
        """
        data = self.encode(function, *args)
        try:
            returned = self.ledger.call(self.address, data)
        except CallFailed as failed:
            raise Reverted(_explain(self._abi, failed.data)) from None
        try:
            values = decode(get_abi_output_types(self._function(function)), returned)
        except DecodingError as fault:
            raise LedgerError(f"no contract {self.name} is at {self.address}") from fault
        return values[0] if len(values) == 1 else values

    def transact(self, account: LocalAccount, function: str, *args: Any) -> Receipt:
        """Call `function` in a transaction of `account`.

        Raises
        ------
        Reverted
            If the contract refuses it; the message holds the custom error.
        NodeError
            If the node can't be reached.
        """
        data = self.encode(function, *args)
        try:
            return self.ledger.send(account, self.address, data)
        except CallFailed as failed:
            raise Reverted(_explain(self._abi, failed.data)) from None

    def estimate(self, sender: str, function: str, *args: Any) -> int:
        """The gas that `sender` would use to call `function` in a transaction now.

        Raises
        ------
        Reverted
            If the contract would refuse it.
        """
        try:
            return self.ledger.estimate(sender, self.address, self.encode(function, *args))
        except CallFailed as failed:
            raise Reverted(_explain(self._abi, failed.data)) from None

    def events(self, since: int = 0) -> list[Event]:
        """All that the contract has said from the block `since` on, in order."""
        logs = self.ledger.logs(self.address, since)
        receipts = [self.ledger.receipt(log["transactionHash"].to_0x_hex()) for log in logs]
        times = [self.ledger.time_of(receipt.block) for receipt in receipts]
        return [self._event(*each) for each in zip(logs, receipts, times, strict=True)]

    def events_in(self, receipt: Receipt) -> list[Event]:
        """What the contract said in one transaction, in order."""
        time = self.ledger.time_of(receipt.block)
        logs = [log for log in receipt.logs if log["address"] == self.address]
        return [self._event(log, receipt, time) for log in logs]

    def _event(self, log: LogReceipt, receipt: Receipt, time: int) -> Event:
        kind = self._kinds[bytes(log["topics"][0])]
        return Event(kind["name"], _arguments(kind, log), receipt, time)

    @cached_property
    def _kinds(self) -> dict[bytes, ABIEvent]:
        kinds = get_all_event_abis(self._abi)
        return {keccak(text=abi_to_signature(kind)): kind for kind in kinds}

    def _function(self, name: str) -> ABIFunction:
        (found,) = filter_abi_by_type("function", filter_abi_by_name(name, self._abi))
        return found


def _arguments(kind: ABIEvent, log: LogReceipt) -> dict[str, Any]:
    """What an event says, by name; Web3's own decoding takes five times as long."""
    indexed = [each for each in kind["inputs"] if each["indexed"]]
    others = [each for each in kind["inputs"] if not each["indexed"]]
    topics = zip(indexed, log["topics"][1:], strict=True)
    values = [decode([each["type"]], topic)[0] for each, topic in topics]
    values += decode([each["type"] for each in others], log["data"])
    return {
        each["name"]: to_checksum_address(value) if each["type"] == "address" else value
        for each, value in zip(indexed + others, values, strict=True)
    }


def _explain(abi: ABI, data: bytes) -> str:
    """What a contract's refusal says, as Solidity would write it."""
    for error in filter_abi_by_type("error", abi):
        if function_abi_to_4byte_selector(error) == data[:4]:
            try:
                values = decode(get_abi_input_types(error), data[4:])
            except DecodingError:
                break
            return f"{error['name']}({', '.join(map(str, values))})"
    return f"reverted with 0x{data.hex()}" if data else "reverted without a reason"
