"""Recompute a whole run from its ledger and its store.

Nothing of the strategy is used: signatures, verdicts and payments are recomputed from the rules and
from what the contract said. Whoever lacks the owner's key or validation data gets everything
checked that needs neither, and is told what was not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from flower_chain.envelope import RefusedError, fetch, open_sealed
from flower_chain.errors import ConfigError, FormatError, StoreError, Unverified, WrongChain
from flower_chain.examiner import Examiner
from flower_chain.keys import address_of
from flower_chain.ledger import Contract
from flower_chain.ledger.federation import History, Verdict, Version
from flower_chain.records import UNMEASURED, Refusal
from flower_chain.rules.record_and_reward import judge
from flower_chain.run import RecordAndRewardRun
from flower_chain.store.cid import cid_from_bytes
from flower_chain.updates import Arrays, apply, check_finite, digest, mean, pack, unpack

OWNERS_WORD = (Refusal.UNREADABLE, Refusal.DEVICE_ERROR, Refusal.NO_ANSWER)
"""Findings about what is neither on the ledger nor in the store: only the owner saw it."""

UNRECORDED = (*OWNERS_WORD, Refusal.BAD_SIGNATURE, Refusal.NOT_ENROLLED)
"""Findings about nodes of which the ledger holds no contribution."""

UNKEPT = (Refusal.NOT_STORED, Refusal.WRONG_CID, Refusal.OVERSIZE)
"""Findings about bytes that were not there then; whoever sends them later disproves nothing."""


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


def verify(
    run: RecordAndRewardRun, owner: LocalAccount | None, examiner: Examiner | None
) -> Iterator[Report]:
    """Check a run version by version; the report grows with each.

    Parameters
    ----------
    run : RecordAndRewardRun
    owner : LocalAccount or None
        The owner's account, or that of a reader that the plan names: it opens the updates.
    examiner : Examiner or None
        The owner's validation data.

    Yields
    ------
    Report
        The same one, after each version and at the end.

    Raises
    ------
    Unverified
        Naming the first record that does not fit.
    ConfigError
        If `owner` may not read the updates, or `examiner` has other data.
    """
    return _Verifier(run, owner, examiner).check()


class _Verifier:
    def __init__(
        self, run: RecordAndRewardRun, owner: LocalAccount | None, examiner: Examiner | None
    ) -> None:
        self._run = run
        self._plan = run.plan
        self._owner = owner
        self._examiner = examiner
        self._contract = run.federation.contract
        self._history: History = run.federation.history()
        self._report = Report()
        self._contributed: set[tuple[str, int]] = set()
        self._paid = 0
        self._on_word = 0

    def check(self) -> Iterator[Report]:
        self._check_keys()
        self._check_code()
        self._check_plan()
        self._say_what_is_left_out()
        model = self._check_model(self._history.versions[0])
        for version in self._history.versions:
            updates = self._check_contributions(version, model)
            self._check_payments(version)
            following = self._history.versions[version.number + 1 : version.number + 2]
            for successor in following:
                self._check_seed(version)
                model = self._check_successor(model, updates, version, successor)
            yield self._report
        self._check_balances()
        if self._on_word:
            word = (
                f"{self._on_word} findings about what only the owner saw: no, late or bad answers"
            )
            self._report.unchecked.append(word)
        yield self._report

    # -- what was agreed --------------------------------------------------------------------

    def _check_keys(self) -> None:
        owner = to_checksum_address(self._contract.call("owner"))
        readers = {owner, *(address_of(key) for key in self._plan.reader_keys)}
        if self._owner is not None and self._owner.address not in readers:
            raise ConfigError(
                f"the key is that of {self._owner.address}: the updates are sealed for {readers}"
            )
        if self._examiner is not None and self._examiner.digest != self._plan.validation_digest:
            raise ConfigError(
                f"the validation data have digest {self._examiner.digest}, "
                f"the plan names {self._plan.validation_digest}"
            )

    def _check_code(self) -> None:
        try:
            self._contract.check_code()
            self._contract.check_creation()
        except WrongChain as fault:
            raise Unverified(f"code: {fault}") from None
        self._report.count("contracts")
        try:
            self._run.token.check_code()
        except WrongChain:
            token = self._run.token.address
            word = f"the token at {token}: not this package's, what it says is believed"
            self._report.unchecked.append(word)

    def _check_plan(self) -> None:
        named = self._contract.call("planDigest")
        if named != self._plan.digest:
            raise Unverified(
                f"plan: its digest is {self._plan.digest.hex()}, the contract's {named.hex()}"
            )
        agreed = {
            "rule": int(self._plan.rule),
            "thresholdPpm": self._plan.threshold_ppm,
            "gainPpm": self._plan.gain_ppm,
            "clearPpm": self._plan.clear_ppm,
            "harmPpm": self._plan.harm_ppm,
            "leastPpm": self._plan.least_ppm,
            "rate": self._plan.rate,
            "maxDataCost": self._plan.max_data_cost,
            "patience": self._plan.patience_s,
        }
        for name, value in agreed.items():
            enforced = self._contract.call(name)
            if enforced != value:
                raise Unverified(f"plan: {name} is {value}, but the contract enforces {enforced}")
        self._report.count("terms", len(agreed) + 1)

    def _say_what_is_left_out(self) -> None:
        left_out = self._report.unchecked
        if self._owner is None:
            left_out.append("what the sealed updates hold: needs the owner's key (--owner-key)")
        if self._examiner is None:
            left_out.append("accuracies: needs the owner's data (--examiner)")
        if self._owner is None or self._examiner is None:
            left_out.append("validation errors: needs the owner's key and data (--examiner)")
        if self._plan.aggregation != "mean":
            left_out.append(f"the aggregates: {self._plan.inner} made them, not a mean")
        elif self._owner is None:
            left_out.append("the aggregates: needs the owner's key")

    # -- models -----------------------------------------------------------------------------

    def _check_model(self, version: Version) -> Arrays:
        """T_k from the store, whose bytes and format must be those on the ledger."""
        where = f"version {version.number}, model"
        try:
            packed = self._run.store.get(cid_from_bytes(version.model.cid))
            if (found := digest(packed)) != version.model.digest:
                recorded = version.model.digest.hex()
                raise Unverified(f"{where}: its digest is {found.hex()}, the ledger's {recorded}")
            arrays = unpack(packed)
            self._plan.model.check(arrays)
            check_finite(arrays)
        except (StoreError, FormatError) as fault:
            raise Unverified(f"{where}: {fault}") from fault
        self._check_accuracy(version, arrays)
        self._report.count("models")
        return arrays

    def _check_accuracy(self, version: Version, arrays: Arrays) -> None:
        recorded = version.model.error_ppm
        if self._examiner is None or recorded == UNMEASURED:
            return
        measured = self._examiner.error(arrays)
        if abs(measured - recorded) > self._plan.tolerance_ppm:
            raise Unverified(
                f"version {version.number}, model: its error is {measured} ppm, "
                f"the ledger's {recorded}"
            )
        self._report.count("accuracies")

    def _check_seed(self, version: Version) -> None:
        if version.seed is None or keccak(version.seed) != version.model.seed_commitment:
            raise Unverified(f"version {version.number}: the seed is not the one committed to")
        self._report.count("seeds")

    def _check_successor(
        self, model: Arrays, updates: Sequence[Arrays] | None, version: Version, following: Version
    ) -> Arrays:
        """T_{k+1}, which must be the mean of the accepted updates where that can be known."""
        successor = self._check_model(following)
        expected = self._aggregate(model, updates, version)
        if expected is not None:
            if digest(pack(expected)) != following.model.digest:
                raise Unverified(
                    f"version {following.number}, model: not the aggregate of what was accepted"
                )
            self._report.count("aggregates")
        return successor

    def _aggregate(
        self, model: Arrays, updates: Sequence[Arrays] | None, version: Version
    ) -> Arrays | None:
        if not version.accepted:
            return model
        if updates is None or self._plan.aggregation != "mean":
            return None
        found = mean(model, updates, self._plan.learning_rate)
        return found if _is_finite(found) else model

    # -- contributions ----------------------------------------------------------------------

    def _check_contributions(self, version: Version, model: Arrays) -> list[Arrays] | None:
        """The updates accepted for a version, by account; None if they can't be opened."""
        for verdict in version.verdicts:
            self._check_verdict(version, verdict)
        if not version.settled:
            self._leave_open(version)
            return None
        for verdict in version.accepted:
            self._check_stored(version, verdict)
        self._check_findings(version, model)
        if self._owner is None:
            return None
        return [self._check_update(version, verdict, model) for verdict in version.accepted]

    def _leave_open(self, version: Version) -> None:
        """What the owner has not judged yet can't be checked."""
        if version.accepted:
            self._report.unchecked.append(
                f"{len(version.accepted)} updates of version {version.number}: it is not settled"
            )

    def _check_verdict(self, version: Version, verdict: Verdict) -> None:
        reason, due = self._judge(version, verdict)
        where = _where(version, verdict)
        if reason != verdict.reason:
            raise Unverified(
                f"{where}: the contract says {str(verdict.reason)!r}, the rules {str(reason)!r}"
            )
        if due != verdict.due:
            raise Unverified(f"{where}: due is {verdict.due}, by the rules {due}")
        self._report.count("signatures")
        self._report.count("verdicts")

    def _judge(  # noqa: PLR0911 (one for each rule, in the contract's order)
        self, version: Version, verdict: Verdict
    ) -> tuple[Refusal, int]:
        """What the contract should have said: Federation._check, then the scheme's rule."""
        contribution = verdict.signed.contribution
        if not verdict.signed.is_valid(self._run.federation.domain):
            return Refusal.BAD_SIGNATURE, 0
        if not self._was_enrolled(version, verdict):
            return Refusal.NOT_ENROLLED, 0
        if contribution.version < version.number:
            return Refusal.STALE_VERSION, 0
        if contribution.version > version.number:
            return Refusal.FUTURE_VERSION, 0
        if verdict.reason is Refusal.VERSION_CLOSED and version.was_closed:
            return Refusal.VERSION_CLOSED, 0
        if self._had_contributed(version, verdict):
            return Refusal.SECOND_CONTRIBUTION, 0
        self._contributed.add((verdict.device, version.number))
        return judge(self._plan, contribution)

    def _was_enrolled(self, version: Version, verdict: Verdict) -> bool:
        """Whether the device was; if that happened in this version, the contract knows when."""
        since = self._history.enrolled.get(verdict.device)
        if since == version.number:
            return verdict.reason is not Refusal.NOT_ENROLLED
        return since is not None and since < version.number

    def _had_contributed(self, version: Version, verdict: Verdict) -> bool:
        """Whether the device had; an honest owner refuses nobody before the version is closed."""
        return (verdict.device, version.number) in self._contributed

    def _check_stored(self, version: Version, verdict: Verdict) -> None:
        try:
            self._fetch(verdict)
        except RefusedError as refused:
            raise Unverified(f"{_where(version, verdict)}: {refused}") from refused
        self._report.count("stored updates")

    def _check_update(self, version: Version, verdict: Verdict, model: Arrays) -> Arrays:
        """An accepted update, which must be in order and have the errors that were signed."""
        try:
            update = self._open(verdict)
        except RefusedError as refused:
            raise Unverified(f"{_where(version, verdict)}: accepted, but {refused}") from refused
        if self._evidence_fits(version, verdict, model, update) is False:
            raise Unverified(f"{_where(version, verdict)}: its errors are not those of the update")
        self._report.count("accepted updates")
        return update

    def _check_findings(self, version: Version, model: Arrays) -> None:
        """What the owner refused, which must have been wrong as far as that can be known."""
        by_device = {v.device: v for v in version.verdicts if not v.reason}
        for finding in version.findings + version.left_out:
            verdict = by_device.get(finding.device)
            if verdict is None and finding.reason not in UNRECORDED:
                raise Unverified(
                    f"version {version.number}, {finding.device}: refused for "
                    f"{str(finding.reason)!r}, but the ledger accepted nothing of it"
                )
            if verdict is None:
                self._on_word += 1
            elif finding.reason in OWNERS_WORD:
                raise Unverified(
                    f"{_where(version, verdict)}: refused for {str(finding.reason)!r}, "
                    "but the contribution is on the ledger"
                )
            elif self._owner is not None:
                self._check_finding(version, verdict, finding.reason, model)

    def _check_finding(
        self, version: Version, verdict: Verdict, reason: Refusal, model: Arrays
    ) -> None:
        where = _where(version, verdict)
        try:
            update = self._open(verdict)
        except RefusedError as refused:
            found = refused.reason
        else:
            fits = self._evidence_fits(version, verdict, model, update)
            if fits is None and reason is Refusal.FALSE_EVIDENCE:
                return
            found = Refusal.FALSE_EVIDENCE if fits is False else Refusal.NONE
            if not _is_finite(apply(model, update)):
                found = Refusal.NOT_FINITE
        if reason in UNKEPT and found != reason:
            self._on_word += 1
            return
        if found != reason:
            raise Unverified(f"{where}: refused for {str(reason)!r}, but found {str(found)!r}")
        self._report.count("findings")

    def _open(self, verdict: Verdict) -> Arrays:
        assert self._owner is not None
        return open_sealed(
            self._fetch(verdict),
            verdict.signed.contribution,
            self._run.federation.domain,
            self._plan.model,
            self._owner,
        )

    def _fetch(self, verdict: Verdict) -> bytes:
        plan = self._plan
        return fetch(self._run.store, verdict.signed.contribution, plan.model, plan.n_readers)

    def _evidence_fits(
        self, version: Version, verdict: Verdict, model: Arrays, update: Arrays
    ) -> bool | None:
        """Whether the signed errors are those of the update; None if that can't be known."""
        if self._examiner is None or version.seed is None:
            return None
        contribution = verdict.signed.contribution
        chosen = self._examiner.choose(
            version.seed,
            verdict.device,
            contribution.classes,
            self._plan.samples_per_class,
        )
        trained = apply(model, update)
        tolerance = self._plan.tolerance_ppm
        self._report.count("validation errors")
        return self._examiner.confirms(
            self._plan.rule, contribution.errors, (model, trained), chosen, tolerance
        )

    # -- money ------------------------------------------------------------------------------

    def _check_payments(self, version: Version) -> None:
        """What was paid for a version: all that was due, or the pool pro rata."""
        due = {verdict.device: verdict.due for verdict in version.payable if verdict.due}
        if not version.payments and not version.settled:
            return
        total, pool = sum(due.values()), version.pool_when_short
        if pool is not None and pool >= total:
            raise Unverified(f"version {version.number}: the pool of {pool} was not short")
        expected = due if pool is None else {d: s * pool // total for d, s in due.items()}
        paid = {payment.device: payment.amount for payment in version.payments}
        for device in expected.keys() | paid.keys() if version.settled else paid.keys():
            if expected.get(device) != paid.get(device):
                raise Unverified(
                    f"version {version.number}, device {device}: paid {paid.get(device)}, "
                    f"but {expected.get(device)} was due"
                )
        self._report.count("payments", len(paid))
        self._paid += sum(paid.values())

    def _check_balances(self) -> None:
        """The contract's own books against its events and its tokens."""
        history, contract = self._history, self._contract
        if self._run.federation.history() != history:
            self._report.unchecked.append("balances: the run went on while it was checked")
            return
        for account in history.credited.keys() | history.withdrawn.keys():
            left = history.credited.get(account, 0) - history.withdrawn.get(account, 0)
            if (held := contract.call("credits", account)) != left:
                raise Unverified(f"credits of {account}: {held}, but its payments leave {left}")
        if (credited := sum(history.credited.values())) != self._paid:
            raise Unverified(f"credits: {credited} in all, but {self._paid} was paid")
        owed = credited - sum(history.withdrawn.values())
        if (total := contract.call("totalCredits")) != owed:
            raise Unverified(f"credits: the contract says {total} in all, its events {owed}")
        self._check_funds(owed)
        self._report.count("balances", len(history.credited) + 2)

    def _check_funds(self, owed: int) -> None:
        token = Contract(self._contract.ledger, self._run.pointers.token, "RewardToken")
        if (named := self._contract.call("token")) != token.address.lower():
            raise Unverified(f"token: run.json says {token.address}, the contract {named}")
        balance = token.call("balanceOf", self._contract.address)
        if balance < owed:
            raise Unverified(f"tokens: {balance} held, but {owed} owed")


def _is_finite(arrays: Arrays) -> bool:
    try:
        check_finite(arrays)
    except FormatError:
        return False
    return True


def _where(version: Version, verdict: Verdict) -> str:
    return f"version {version.number}, contribution of {verdict.device}"
