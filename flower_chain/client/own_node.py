"""A device with access to a node of its own: it checks what it is told, and submits itself."""

from collections.abc import Sequence
from logging import WARNING
from pathlib import Path
from typing import Any

from eth_account.signers.local import LocalAccount
from flwr.app import RecordDict
from flwr.common import log

from flower_chain.client.outbox import Outbox
from flower_chain.errors import LedgerError, TaskRefused, WrongChain
from flower_chain.keys import address_of
from flower_chain.ledger import Contract, JsonRpcLedger
from flower_chain.ledger.federation import Federation
from flower_chain.messages import Request
from flower_chain.records import Domain, Signed
from flower_chain.waiting import pauses

BEHIND = 60.0
"""Seconds that the device's node may be behind the owner's."""


class OwnNode:
    """What a device reads from the ledger and writes to it, without the owner in between.

    Parameters
    ----------
    url : str
        Of the node's JSON-RPC endpoint.
    domain : Domain
        Where the run is.
    account : LocalAccount
        The device's; pays for gas.
    outbox : Path
        Folder for the last contribution: whoever asks for it again gets the same.

    Raises
    ------
    LedgerError
        If the node can't be reached, or is on another chain.
    """

    def __init__(self, url: str, domain: Domain, account: LocalAccount, outbox: Path) -> None:
        self._ledger = JsonRpcLedger(url, domain.chain_id)
        self._contract = Contract(self._ledger, domain.contract, "RecordAndReward")
        self._federation = Federation(self._contract, account)
        self._account = account
        self._outbox = Outbox(outbox / f"{domain.chain_id}-{domain.contract}")

    def check(self, request: Request[Any], owner: bytes) -> None:
        """Refuse a task that is not the one on the ledger.

        Raises
        ------
        TaskRefused
        """
        try:
            self._contract.check_code()
        except WrongChain as fault:
            raise TaskRefused(str(fault)) from None
        version = self._version_from(request.task.version)
        task = request.task
        pairs = {
            "owner": (address_of(owner).lower(), self._contract.call("owner")),
            "plan": (task.plan_digest, self._contract.call("planDigest")),
            "version": (task.version, version),
            "model": (task.model_digest, self._contract.call("models", version)[0]),
        }
        for name, (told, recorded) in pairs.items():
            if told != recorded:
                raise TaskRefused(
                    f"the task's {name} is {_text(told)}, the ledger's {_text(recorded)}"
                )

    def check_recorded(self, number: int, parts: Sequence[Signed]) -> None:
        """Refuse contributions to the current version that the ledger does not hold as accepted.

        It takes those of enrolled devices only.

        Raises
        ------
        TaskRefused
        """
        recorded = {v.signed for v in self._federation.at(number).verdicts if not v.reason}
        for signed in parts:
            if signed not in recorded:
                device = signed.contribution.device
                raise TaskRefused(f"the ledger holds no accepted contribution of {device} like it")

    def sent_before(self, version: int) -> RecordDict | None:
        """What the device sent for a version, if the ledger holds its contribution already.

        Raises
        ------
        TaskRefused
            If the device does not know any more what that was.
        """
        self._ledger.catch_up(self._account.address)
        _, next_version, *_ = self._contract.call("devices", self._account.address)
        if next_version <= version:
            return None
        kept = self._outbox.read()
        if kept is None or kept.version != version:
            raise TaskRefused(f"version {version}: the device has contributed, or was refused")
        return kept.content

    def submit(self, signed: Signed, sealed: bytes, content: RecordDict) -> None:
        """Record a contribution on the ledger; `content` is what the owner is sent.

        If the node fails the owner may still relay it, unless that finds it on the ledger.
        """
        self._outbox.write(sealed, content)
        try:
            (verdict,) = self._federation.submit([signed])
        except LedgerError as fault:
            log(WARNING, "Not submitted from here, the owner may relay it: %s", fault)
            return
        if verdict.reason:
            log(WARNING, "The contract refused the contribution: %s", verdict.reason)

    def close(self) -> None:
        """Close the connections."""
        self._ledger.close()

    def _version_from(self, wanted: int) -> int:
        """The current version; waited for, if this node has not heard of the `wanted` one yet."""
        for _ in pauses(BEHIND):
            version = int(self._contract.call("version"))
            if version >= wanted:
                break
        return version


def _text(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
