"""Any Ethereum node that speaks JSON-RPC."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeVar, cast

from eth_account.signers.local import LocalAccount
from requests.exceptions import ConnectionError as RequestConnectionError
from requests.exceptions import RequestException
from web3 import HTTPProvider, Web3
from web3.exceptions import ContractLogicError, TimeExhausted, Web3Exception
from web3.types import LogReceipt, TxParams, TxReceipt

from flower_chain.errors import NodeError, WrongChain
from flower_chain.ledger.base import CallFailed, Ledger, Receipt

Answer = TypeVar("Answer")


class JsonRpcLedger(Ledger):
    """The chain of a node.

    Parameters
    ----------
    url : str
        Of the node's JSON-RPC endpoint, ``http`` or ``https``.
    chain_id : int or None
        The chain that it must be on; None takes any.
    timeout : float
        Seconds to wait for an answer, and for a transaction to be in a block.

    Raises
    ------
    NodeError
        If the node can't be reached.
    WrongChain
        If it is on another chain.
    """

    def __init__(self, url: str, chain_id: int | None = None, timeout: float = 60.0) -> None:
        self._url = url
        self._timeout = timeout
        options: Any = {
            "request_kwargs": {"timeout": timeout},
            "exception_retry_configuration": None,
        }
        self._web3 = Web3(HTTPProvider(url, **options))
        self.chain_id = self._ask(lambda: self._web3.eth.chain_id)
        if not isinstance(self.chain_id, int):
            raise NodeError(f"{url} did not answer as a node should: chain id {self.chain_id!r}")
        if chain_id not in (None, self.chain_id):
            raise WrongChain(f"{url} is on chain {self.chain_id}, but the run is on {chain_id}")
        self.time_of = lru_cache(maxsize=None)(self.time_of)  # type: ignore[method-assign]
        self.receipt = lru_cache(maxsize=None)(self.receipt)  # type: ignore[method-assign]

    def send(self, account: LocalAccount, to: str | None, data: bytes) -> Receipt:
        """Send a transaction of `account` and wait until it is in a block."""
        return self._ask(lambda: self._send(account, to, data))

    def call(self, to: str, data: bytes) -> bytes:
        """What the contract at `to` answers now."""
        call: TxParams = {"to": Web3.to_checksum_address(to), "data": data}
        return bytes(self._ask(lambda: self._web3.eth.call(call)))

    def logs(self, address: str) -> Sequence[LogReceipt]:
        """All that the contract at `address` has logged, in order."""
        wanted: Any = {"address": address, "fromBlock": 0, "toBlock": "latest"}
        return self._ask(lambda: self._web3.eth.get_logs(wanted))

    def receipt(self, transaction: str) -> Receipt:
        """What came of the transaction with this hash."""
        found = self._ask(lambda: self._web3.eth.get_transaction_receipt(transaction))  # type: ignore[arg-type]
        return _receipt(found)

    def time_of(self, block: int) -> int:
        """Time of the block with this number, in seconds since 1970."""
        return int(self._ask(lambda: self._web3.eth.get_block(block))["timestamp"])

    def has_code(self, address: str) -> bool:
        """Whether a contract lives at `address`."""
        checksummed = Web3.to_checksum_address(address)
        return bool(self._ask(lambda: self._web3.eth.get_code(checksummed)))

    def close(self) -> None:
        """Nothing is held: every request has its own connection from a pool."""

    def _send(self, account: LocalAccount, to: str | None, data: bytes) -> Receipt:
        eth = self._web3.eth
        transaction: TxParams = {
            "from": account.address,
            "data": data,
            "value": Web3.to_wei(0, "wei"),
        }
        if to is not None:
            transaction["to"] = Web3.to_checksum_address(to)
        fees = self._fees()
        estimated = eth.estimate_gas(transaction)
        transaction |= {
            "chainId": self.chain_id,
            "nonce": eth.get_transaction_count(account.address, "pending"),
            "gas": estimated + estimated // 5,
            **fees,
        }
        signed = account.sign_transaction(cast(dict[str, Any], transaction))
        sent = eth.send_raw_transaction(signed.raw_transaction)
        mined = eth.wait_for_transaction_receipt(sent, self._timeout, poll_latency=0.005)
        if mined["status"] != 1:
            raise CallFailed(b"")
        return _receipt(mined)

    def _fees(self) -> TxParams:
        """EIP-1559: enough for six full blocks in a row."""
        base = self._web3.eth.get_block("latest").get("baseFeePerGas", 0)
        tip = self._web3.eth.max_priority_fee
        return {"maxFeePerGas": Web3.to_wei(2 * base + tip, "wei"), "maxPriorityFeePerGas": tip}

    def _ask(self, question: Callable[[], Answer]) -> Answer:
        try:
            return question()
        except ContractLogicError as fault:
            raise CallFailed(_revert_data(fault)) from None
        except TimeExhausted as fault:
            raise NodeError(
                f"{self._url}: not in a block after {self._timeout:g} s: {fault}"
            ) from fault
        except RequestConnectionError as fault:
            raise NodeError(f"no node answers at {self._url}") from fault
        except (RequestException, Web3Exception, ValueError) as fault:
            raise NodeError(f"{self._url} did not answer as a node should: {fault}") from fault


def _revert_data(fault: ContractLogicError) -> bytes:
    data = fault.data
    return bytes.fromhex(data[2:]) if isinstance(data, str) and data.startswith("0x") else b""


def _receipt(mined: TxReceipt) -> Receipt:
    return Receipt(
        mined["transactionHash"].to_0x_hex(),
        mined["blockNumber"],
        mined["gasUsed"],
        mined["contractAddress"],
        tuple(mined["logs"]),
    )
