"""Access to sealed files on a ledger: who granted it to whom, and who took it back.

A grant counts as long as its granter may open the file: because it was sealed for it, or by a grant
that counts. So whoever takes back a grant takes back what its reader has passed on.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address

from flower_chain.errors import WrongChain
from flower_chain.ledger.base import Contract, Ledger
from flower_chain.ledger.federation import batches
from flower_chain.records import Domain, Grant, Revocation, sign

NAME = "AccessList"

BATCH = 50
"""Grants in one transaction: far below the gas limit of one, and the 128 KiB that nodes take."""

Call = tuple[str, list[tuple[Any, ...]]]


@dataclass(frozen=True)
class Granted:
    """A grant that the ledger holds.

    Parameters
    ----------
    granter, reader : str
        Checksum addresses; that of a reader with an RSA key is what it is known by.
    cid : bytes
        Binary CIDv1 of the sealed file.
    wrap : bytes
        The file's key, wrapped for the reader.
    revoked : bool
        Whether the granter has taken it back.
    """

    granter: str
    reader: str
    cid: bytes
    wrap: bytes
    revoked: bool = False


@dataclass(frozen=True)
class Access:
    """Who may open what in a run.

    Parameters
    ----------
    grants : tuple of Granted
        In the order of the ledger.
    sealed_for : frozenset of str
        Addresses of those for whom every file was sealed.
    """

    grants: tuple[Granted, ...]
    sealed_for: frozenset[str]

    @cached_property
    def standing(self) -> list[Granted]:
        """The grants that were not revoked, and whose granter may open the file."""
        found: list[Granted] = []
        holders: set[tuple[str, bytes]] = set()
        left = [grant for grant in self.grants if not grant.revoked]
        while True:
            able = [g.granter in self.sealed_for or (g.granter, g.cid) in holders for g in left]
            new = [grant for grant, is_able in zip(left, able, strict=True) if is_able]
            if not new:
                return found
            found += new
            holders |= {(grant.reader, grant.cid) for grant in new}
            left = [grant for grant, is_able in zip(left, able, strict=True) if not is_able]

    @cached_property
    def _wraps(self) -> dict[tuple[str, bytes], bytes]:
        """By reader and file; of several the first."""
        return {(grant.reader, grant.cid): grant.wrap for grant in reversed(self.standing)}

    def has(self, reader: str, cid: bytes) -> bool:
        """Whether a reader may open a file."""
        return reader in self.sealed_for or (reader, cid) in self._wraps

    def wrap(self, reader: str, cid: bytes) -> bytes | None:
        """What opens a file for a reader; None if the file itself holds it, or it may not."""
        return None if reader in self.sealed_for else self._wraps.get((reader, cid))


class AccessList:
    """The contract of a run's grants, in the package's own words.

    Parameters
    ----------
    contract : Contract
    """

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.domain = Domain(contract.ledger.chain_id, contract.address)

    @classmethod
    def at(cls, ledger: Ledger, address: str, since: int) -> Self:
        """The one at an address, created in the block `since` or later."""
        return cls(Contract(ledger, address, NAME, since))

    @classmethod
    def deploy(cls, ledger: Ledger, account: LocalAccount, run: str) -> Self:
        """A new one, of the run with this contract, paid by `account`."""
        return cls(ledger.deploy(account, NAME, run))

    def check(self, run: str) -> None:
        """Refuse a contract that is not this package's, or that is of another run.

        Raises
        ------
        WrongChain
        """
        self.contract.check_code()
        self.contract.check_creation()
        if (named := to_checksum_address(self.contract.call("run"))) != run:
            raise WrongChain(
                f"the access list at {self.contract.address} is that of {named}, not of {run}"
            )

    def grants(self) -> list[Granted]:
        """All that were ever made, in order; one that was made again is there again."""
        found: list[Granted] = []
        for event in self.contract.events(self.contract.block):
            args = event.args
            match event.name:
                case "Granted":
                    cid, wrap = bytes(args["cid"]), bytes(args["wrap"])
                    found.append(Granted(args["granter"], args["reader"], cid, wrap))
                case "Revoked":
                    _revoke(found, args["granter"], args["reader"], bytes(args["cid"]))
        return found

    def stands(self, granter: str, reader: str, cid: bytes) -> bool:
        """Whether a granter has granted a file to a reader and not taken it back."""
        return bool(self.contract.call("stands", granter, reader, cid))

    def grant(self, granter: LocalAccount, reader: str, wraps: Mapping[bytes, bytes]) -> list[Call]:
        """The calls that grant files to a reader, signed: anyone may send and pay for them.

        Parameters
        ----------
        granter : LocalAccount
        reader : str
            Its address.
        wraps : mapping of bytes to bytes
            By CID, the key of the file, wrapped for the reader.
        """
        items = []
        for cid, wrap in wraps.items():
            turn = self._turn(granter.address, reader, cid)
            record = Grant(granter.address, reader, turn, cid, wrap)
            items.append(_signed(record, self.domain, granter))
        return [("grant", some) for some in batches(items, BATCH)]

    def revoke(self, granter: LocalAccount, reader: str, cids: Iterable[bytes]) -> list[Call]:
        """The calls that take back the grants of files to a reader, signed likewise."""
        items = []
        for cid in cids:
            turn = self._turn(granter.address, reader, cid)
            record = Revocation(granter.address, reader, turn, cid)
            items.append(_signed(record, self.domain, granter))
        return [("revoke", some) for some in batches(items, BATCH)]

    def _turn(self, granter: str, reader: str, cid: bytes) -> int:
        return int(self.contract.call("turn", granter, reader, cid))


def _revoke(grants: list[Granted], granter: str, reader: str, cid: bytes) -> None:
    """Note that the last such grant was taken back."""
    for place, grant in reversed(list(enumerate(grants))):
        if (grant.granter, grant.reader, grant.cid) == (granter, reader, cid):
            grants[place] = replace(grant, revoked=True)
            return


def _signed(record: Grant | Revocation, domain: Domain, granter: LocalAccount) -> tuple[Any, ...]:
    """An item of a batch, as the contract's structure has it."""
    signature = sign(record.encode(domain), granter)
    return *record.as_tuple(), signature[:32], signature[32:]
