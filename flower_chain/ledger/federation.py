"""A run on a ledger: what its contract was told and what it decided."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from eth_account.signers.local import LocalAccount

from flower_chain.errors import LedgerError
from flower_chain.ledger.base import Contract, Event, Receipt
from flower_chain.records import (
    Contribution,
    DecryptedSum,
    Domain,
    Model,
    Refusal,
    Signed,
    SignedSum,
    from_bits,
    unpack_errors,
)

Item = TypeVar("Item")
Call = tuple[str, tuple[Any, ...]]

JUDGED = (Refusal.BAD_DATA_COST, Refusal.BAD_EVIDENCE, Refusal.WORTHLESS)
"""What the scheme's rule says of a contribution that is formally in order."""

BATCH = 200
"""Contributions or payments in one transaction: far below the gas limit of one."""

BATCH_BYTES = 110_000
"""Contributions in one transaction: nodes take none of more than 128 KiB."""

ENTRY_BYTES = 544
"""A contribution without its errors, encoded."""


@dataclass(frozen=True)
class Verdict:
    """What the contract made of a submitted contribution.

    Parameters
    ----------
    signed : Signed
        What was submitted.
    reason : Refusal
        Why it was refused; ``NONE`` if it was accepted.
    due : int
        What is to be paid for it, in the token's smallest unit.
    event : Event
        Where the contract says so.
    """

    signed: Signed
    reason: Refusal
    due: int
    event: Event

    @property
    def device(self) -> str:
        """Account of the device; a mere claim if the signature is bad."""
        return self.signed.contribution.device

    @property
    def is_final(self) -> bool:
        """Whether the device can contribute nothing more to the version."""
        return not self.reason or self.reason in JUDGED


@dataclass(frozen=True)
class Finding:
    """A refusal that the owner answers for.

    Parameters
    ----------
    device : str
        Its account; the zero address if it never told.
    reason : Refusal
    """

    device: str
    reason: Refusal


@dataclass(frozen=True)
class Payment:
    """A credit for an accepted contribution, in the token's smallest unit."""

    device: str
    amount: int


@dataclass(frozen=True)
class Settlement:
    """What was paid for a version, and whether the pool was too small for what was due."""

    payments: tuple[Payment, ...]
    short: bool


@dataclass
class Version:
    """All that the ledger holds of one version of the model, in order.

    Parameters
    ----------
    number : int
        k.
    model : Model
        T_k.
    time : int
        When it was published, in seconds since 1970.
    """

    number: int
    model: Model
    time: int
    verdicts: list[Verdict] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    payments: list[Payment] = field(default_factory=list)
    closed: bool = False
    was_closed: bool = False
    seed: bytes | None = None
    pool_when_short: int | None = None
    left_out: list[Finding] = field(default_factory=list)
    receipts: dict[str, Receipt] = field(default_factory=dict)
    sums: list[SignedSum] = field(default_factory=list)

    @property
    def accepted(self) -> list[Verdict]:
        """What is to be paid for and to be in the next model, by account."""
        left_out = {finding.device for finding in self.left_out}
        return [verdict for verdict in self.payable if verdict.device not in left_out]

    @property
    def payable(self) -> list[Verdict]:
        """What the contract accepted and the owner did not refuse, by account."""
        refused = {finding.device for finding in self.findings}
        kept = [v for v in self.verdicts if not v.reason and v.device not in refused]
        return sorted(kept, key=lambda v: v.device.lower())

    @property
    def settled(self) -> bool:
        """Whether the next version was published."""
        return self.seed is not None

    @property
    def gas_used(self) -> int:
        """Gas of all transactions of this version."""
        return sum(receipt.gas_used for receipt in self.receipts.values())


@dataclass
class History:
    """All that the ledger holds of a run.

    Parameters
    ----------
    versions : list of Version
    enrolled : dict of str to int
        The devices, and the version that was current when each was enrolled.
    credited, withdrawn : dict of str to int
        By account, in the token's smallest unit.
    returned : int
        What went back to the owner.
    finished : bool
    """

    versions: list[Version] = field(default_factory=list)
    enrolled: dict[str, int] = field(default_factory=dict)
    credited: dict[str, int] = field(default_factory=dict)
    withdrawn: dict[str, int] = field(default_factory=dict)
    returned: int = 0
    finished: bool = False

    @property
    def spent(self) -> dict[str, int]:
        """What each device has spent of its privacy, in millionths of epsilon, by account.

        Also on what the scheme refused: the update has left the device.
        """
        verdicts = [verdict for version in self.versions for verdict in version.verdicts]
        return {v.device: v.signed.contribution.spent for v in verdicts if v.is_final}


class Federation:
    """A scheme's contract, in the package's own words.

    Parameters
    ----------
    contract : Contract
    account : LocalAccount or None
        Signs the transactions: the owner's, or a device's to submit its own; None for reading.
    """

    def __init__(self, contract: Contract, account: LocalAccount | None = None) -> None:
        self.contract = contract
        self.domain = Domain(contract.ledger.chain_id, contract.address)
        self._account = account
        self._published = contract.block

    @property
    def version(self) -> int:
        """The current version k."""
        return int(self.contract.call("version"))

    @property
    def pool(self) -> int:
        """What is left to pay from, in the token's smallest unit."""
        return int(self.contract.call("pool"))

    def is_enrolled(self, device: str) -> bool:
        """Whether `device` may contribute."""
        return bool(self.contract.call("devices", device)[0])

    def spent(self, device: str) -> int:
        """What `device` has spent of its privacy, in millionths of epsilon."""
        return int(self.contract.call("devices", device)[3])

    def enrol(self, devices: Sequence[str]) -> None:
        """Put `devices` on the allowlist."""
        for some in batches(devices, BATCH):
            self._transact("enrol", some)

    def submit(self, batch: Sequence[Signed]) -> list[Verdict]:
        """Record contributions, and tell what the contract made of each, in their order."""
        verdicts: list[Verdict] = []
        version = self.version
        for some in _submissions(batch):
            receipt = self._transact("submit", _entries(some))
            verdicts += [
                _verdict(event, version)
                for event in self.contract.events_in(receipt)
                if event.name in ("Accepted", "Rejected")
            ]
        return verdicts

    def current(self) -> Version:
        """All that the ledger holds of the current version."""
        events = self.contract.events(self._published)
        if not any(event.name == "ModelPublished" for event in events):  # it was in another block
            events = self.contract.events(self.contract.block)
        published = [i for i, event in enumerate(events) if event.name == "ModelPublished"]
        if not published:
            raise LedgerError(f"no model was published by {self.contract.address}")
        begin = published[-1]
        self._published = events[begin].receipt.block
        history = History()
        for event in events[begin:]:
            _remember(history, event)
        return history.versions[0]

    def at(self, number: int) -> Version:
        """All that the ledger holds of the current version, which must be this one.

        Raises
        ------
        LedgerError
            If it is another.
        """
        version = self.current()
        if version.number != number:
            raise LedgerError(
                f"the ledger is at version {version.number}, this run at {number}: either the "
                "chain was reorganised or somebody else uses the owner's key; start again to go on "
                "from what the ledger holds"
            )
        return version

    def collect(self, number: int, batch: Sequence[Signed]) -> Version:
        """Record what of `batch` is not recorded yet, and let nothing more into the version.

        Parameters
        ----------
        number : int
            The current version.
        batch : sequence of Signed

        Returns
        -------
        Version
            All that was submitted to it, by whomsoever.

        Raises
        ------
        LedgerError
            If another version is current.
        """
        version = self.at(number)
        if version.closed:
            return version
        known = {verdict.signed.contribution for verdict in version.verdicts}
        new = [signed for signed in batch if signed.contribution not in known]
        batches = list(_submissions(new))
        for some in batches[:-1]:
            self._transact("submit", _entries(some))
        last: list[Call] = [("submit", (_entries(some),)) for some in batches[-1:]]
        self._multicall([*last, ("close", ())])
        version = self.at(number)
        if not version.closed:
            raise LedgerError(f"the node does not know yet that version {number} was closed")
        return version

    def reopen(self) -> None:
        """Let contributions to the current version in again; nothing may be due for it."""
        self._transact("reopen")

    def settle(
        self,
        version: Version,
        seed: bytes,
        following: Model,
        findings: Sequence[Finding] = (),
        *,
        last: bool = False,
        decrypted: SignedSum | None = None,
    ) -> Settlement:
        """Refuse what was found wrong off chain, pay for the rest, and publish the next model.

        In one transaction if all fits into one. If it is cut short, doing it again ends it. Once
        payments have begun nothing can be refused: what is found wrong then is paid and left out.

        Parameters
        ----------
        version : Version
            As :meth:`collect` gave it; its accepted contributions are paid for.
        seed : bytes
            That of the version, revealed here.
        following : Model
            Of the version that begins.
        findings : sequence of Finding
        last : bool
            Let no contributions into the version that begins.
        decrypted : SignedSum, optional
            What the next model was made of, if updates are encrypted.

        Raises
        ------
        Reverted
            Among other reasons if something else is due than `version` says.
        """
        begun = self.contract.call("round")[3] > 0
        dues = {verdict.device: verdict.due for verdict in version.payable}
        refuse: list[list[Call]] = [
            [("leaveOut" if begun and f.device in dues else "refuse", _finding(f)) for f in some]
            for some in batches(findings, BATCH)
        ]
        pay: list[list[Call]] = [[("pay", (some,))] for some in batches(list(dues), BATCH)]
        refused = set() if begun else {finding.device for finding in findings}
        judged = sum(due for device, due in dues.items() if device not in refused)
        end: list[Call] = [("recordSum", decrypted.as_tuple())] if decrypted else []
        end += [("advance", (seed, following.as_tuple(), judged))]
        end += [("close", ())] * last
        steps = pay + refuse if begun else refuse + pay
        if len(findings) + len(dues) <= BATCH:
            steps = [[call for step in steps for call in step]]
        receipts = [self._multicall(step) for step in steps[:-1]]
        receipts.append(self._multicall([*steps[-1], *end]))
        events = [event for receipt in receipts for event in self.contract.events_in(receipt)]
        payments = tuple(_payment(event) for event in events if event.name == "Paid")
        return Settlement(payments, any(event.name == "PoolShort" for event in events))

    def finish(self) -> None:
        """End the run; the rest of the pool goes back to the owner."""
        self._transact("finish")

    def history(self) -> History:
        """All that the ledger holds of the run."""
        history = History()
        for event in self.contract.events(self.contract.block):
            _remember(history, event)
        return history

    def _transact(self, function: str, *args: Any) -> Receipt:
        assert self._account is not None
        return self.contract.transact(self._account, function, *args)

    def _multicall(self, calls: Sequence[Call]) -> Receipt:
        encoded = [self.contract.encode(function, *args) for function, args in calls]
        return self._transact("multicall", encoded)


def batches(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    """So many at a time, the last ones fewer."""
    for begin in range(0, len(items), size):
        yield list(items[begin : begin + size])


def _submissions(batch: Sequence[Signed]) -> Iterator[list[Signed]]:
    """As many as fit into a transaction, by number and by size."""
    some: list[Signed] = []
    size = 0
    for signed in batch:
        size += ENTRY_BYTES + 4 * len(signed.contribution.errors)
        if some and (len(some) == BATCH or size > BATCH_BYTES):
            yield some
            some, size = [], ENTRY_BYTES + 4 * len(signed.contribution.errors)
        some.append(signed)
    if some:
        yield some


def _entries(batch: Sequence[Signed]) -> list[tuple[Any, bytes, bytes]]:
    return [(s.contribution.as_tuple(), s.signature[:32], s.signature[32:]) for s in batch]


def _verdict(event: Event, current: int) -> Verdict:
    """The verdict that an event tells; what is accepted is for the `current` version."""
    args = event.args
    contribution = Contribution(
        args["device"],
        args.get("version", current),
        args["dataCost"],
        bytes(args["digest"]),
        bytes(args["cid"]),
        from_bits(args["classes"]),
        *unpack_errors(bytes(args["errors"])),
        spent=args["spent"],
    )
    signed = Signed(contribution, bytes(args["r"]) + bytes(args["vs"]))
    return Verdict(signed, Refusal(args.get("reason", 0)), args.get("due", 0), event)


def _sum(event: Event, number: int) -> SignedSum:
    args = event.args
    parts, encrypted, decrypted = (bytes(args[n]) for n in ("parts", "encrypted", "decrypted"))
    signature = bytes(args["r"]) + bytes(args["vs"])
    return SignedSum(
        DecryptedSum(number, parts, encrypted, decrypted), bytes(args["cid"]), signature
    )


def _finding(finding: Finding) -> tuple[str, int]:
    return finding.device, int(finding.reason)


def _payment(event: Event) -> Payment:
    return Payment(event.args["device"], event.args["amount"])


def _remember(history: History, event: Event) -> None:
    args = event.args
    current = history.versions[-1] if history.versions else None
    match event.name:
        case "ModelPublished":
            model = Model(
                bytes(args["digest"]),
                bytes(args["cid"]),
                bytes(args["seedCommitment"]),
                args["errorPpm"],
            )
            history.versions.append(Version(args["version"], model, event.time))
        case "Enrolled":
            history.enrolled[args["device"]] = len(history.versions) - 1
        case "Credited":
            _add(history.credited, args["account"], args["amount"])
        case "PoolEmptied":
            history.returned += args["amount"]
        case "Withdrawn":
            _add(history.withdrawn, args["account"], args["amount"])
        case "Finished":
            history.finished = True
        case _:
            assert current is not None
            current.receipts[event.receipt.transaction] = event.receipt
            _remember_version(current, event)


def _remember_version(version: Version, event: Event) -> None:
    match event.name:
        case "Accepted" | "Rejected":
            version.verdicts.append(_verdict(event, version.number))
        case "Refused":
            finding = Finding(event.args["device"], Refusal(event.args["reason"]))
            version.findings.append(finding)
        case "LeftOut":
            finding = Finding(event.args["device"], Refusal(event.args["reason"]))
            version.left_out.append(finding)
        case "Closed":
            version.closed = version.was_closed = True
        case "Reopened":
            version.closed = False
        case "Paid":
            version.payments.append(_payment(event))
        case "PoolShort":
            version.pool_when_short = event.args["pool"]
        case "SeedRevealed":
            version.seed = bytes(event.args["seed"])
        case "SumRecorded":
            version.sums.append(_sum(event, version.number))


def _add(sums: dict[str, int], account: str, amount: int) -> None:
    sums[account] = sums.get(account, 0) + amount
