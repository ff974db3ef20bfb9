"""What is checked of every run, whatever its scheme."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from eth_account.signers.local import LocalAccount

from flower_chain.errors import ConfigError, FormatError, StoreError, Unverified, WrongChain
from flower_chain.run import Run
from flower_chain.store.cid import cid_from_bytes, cid_to_bytes
from flower_chain.updates import Arrays, check_finite, digest, unpack


@dataclass
class Report:
    """What was checked, and what could not be.

    Parameters
    ----------
    checked : dict of str to int
        Kind of record, and how many of them fit.
    unchecked : list of str
        What was not checked, and why.
    """

    checked: dict[str, int] = field(default_factory=dict)
    unchecked: list[str] = field(default_factory=list)

    def count(self, kind: str, number: int = 1) -> None:
        """Note that `number` more records of a kind fit."""
        self.checked[kind] = self.checked.get(kind, 0) + number


class Verifier(ABC):
    """Checks one run.

    Parameters
    ----------
    run : Run
    reader : LocalAccount or None
        The account that opens what is sealed.
    """

    def __init__(self, run: Run, reader: LocalAccount | None) -> None:
        self._run, self._reader, self._report = run, reader, Report()
        self._kept_from = run.kept_from()
        self._gone = 0

    @abstractmethod
    def check(self) -> Iterator[Report]:
        """Check the run piece by piece; the report grows with each."""

    # -- what was agreed --------------------------------------------------------------------

    def _check_reader(self, readers: Collection[str]) -> None:
        if self._reader is not None and self._reader.address not in readers:
            raise ConfigError(
                f"the key is that of {self._reader.address}, for whom nothing in this run is sealed"
            )

    def _check_code(self) -> None:
        try:
            self._run.contract.check_code()
            self._run.contract.check_creation()
        except WrongChain as fault:
            raise Unverified(f"code: {fault}") from None
        self._report.count("contracts")
        try:
            self._run.token.check_code()
        except WrongChain:
            token = self._run.token.address
            word = f"the token at {token}: not this package's, what it says is believed"
            self._report.unchecked.append(word)

    def _check_terms(self, agreed: Mapping[str, int]) -> None:
        """The digest of the plan, and the terms that the contract enforces, by its names."""
        plan, named = self._run.plan, self._run.contract.call("planDigest")
        if named != plan.digest:
            raise Unverified(
                f"plan: its digest is {plan.digest.hex()}, the contract's {named.hex()}"
            )
        for name, value in agreed.items():
            enforced = self._run.contract.call(name)
            if enforced != value:
                raise Unverified(f"plan: {name} is {value}, but the contract enforces {enforced}")
        self._report.count("terms", len(agreed) + 1)

    # -- models -----------------------------------------------------------------------------

    def _load(self, where: str, cid: bytes, recorded: bytes) -> Arrays:
        """A model from the store, whose bytes and format must be those on the ledger."""
        try:
            packed = self._run.store.get(cid_from_bytes(cid))
            if (found := digest(packed)) != recorded:
                raise Unverified(
                    f"{where}: its digest is {found.hex()}, the ledger's {recorded.hex()}"
                )
            arrays = unpack(packed)
            self._run.plan.model.check(arrays)
            check_finite(arrays)
        except (StoreError, FormatError) as fault:
            raise Unverified(f"{where}: {fault}") from fault
        self._report.count("models")
        return arrays

    def _is_gone(self, number: int, cid: bytes) -> bool:
        """Whether something is of a round that the plan does not keep, and was removed."""
        if number >= self._kept_from or cid in self._held:
            return False
        self._gone += 1
        return True

    @cached_property
    def _held(self) -> set[bytes]:
        return set(map(cid_to_bytes, self._run.store.stored()))

    def _say_what_is_gone(self) -> None:
        if self._gone:
            kept = self._run.plan.keep_rounds
            self._report.unchecked.append(
                f"{self._gone} models and sealed files of rounds before {self._kept_from}: no "
                f"longer there, by the plan's keep-rounds = {kept}"
            )

    # -- money ------------------------------------------------------------------------------

    def _check_credits(self, credited: Mapping[str, int], withdrawn: Mapping[str, int]) -> int:
        """What the contract says that it owes, to each account and in all."""
        for account in credited.keys() | withdrawn.keys():
            left = credited.get(account, 0) - withdrawn.get(account, 0)
            if (held := self._run.contract.call("credits", account)) != left:
                raise Unverified(f"credits of {account}: {held}, but its payments leave {left}")
        owed = sum(credited.values()) - sum(withdrawn.values())
        if (total := self._run.contract.call("totalCredits")) != owed:
            raise Unverified(f"credits: the contract says {total} in all, its events {owed}")
        self._report.count("balances", len(credited) + 2)
        return owed

    def _check_funds(self, owed: int) -> None:
        """Whether the contract has the tokens that it owes, of the token that it pays in."""
        if (named := self._run.contract.call("token")) != self._run.token.address.lower():
            raise Unverified(
                f"token: run.json says {self._run.token.address}, the contract {named}"
            )
        balance = self._run.token.call("balanceOf", self._run.contract.address)
        if balance < owed:
            raise Unverified(f"tokens: {balance} held, but {owed} owed")
