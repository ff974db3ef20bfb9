"""Recompute a run of record-and-reward: verdicts, payments, models."""

from collections.abc import Iterator, Sequence

from eth_utils.crypto import keccak

from flower_chain.envelope import RefusedError, fetch, open_sealed
from flower_chain.errors import ConfigError, FormatError, Unverified
from flower_chain.examiner import Examiner
from flower_chain.keys import Reader
from flower_chain.ledger.federation import History, Verdict, Version
from flower_chain.privacy.accountant import UNITS
from flower_chain.records import UNMEASURED, Refusal
from flower_chain.rules import budget
from flower_chain.rules.record_and_reward import judge
from flower_chain.run import RecordAndRewardRun
from flower_chain.updates import Arrays, apply, check_finite, digest, mean, pack
from flower_chain.verify.base import Report, Verifier
from flower_chain.verify.encrypted_sum import SumVerifier

OWNERS_WORD = (Refusal.UNREADABLE, Refusal.DEVICE_ERROR, Refusal.NO_ANSWER)
"""Findings about what is neither on the ledger nor in the store: only the owner saw it."""

UNRECORDED = (*OWNERS_WORD, Refusal.BAD_SIGNATURE, Refusal.NOT_ENROLLED)
"""Findings about nodes of which the ledger holds no contribution."""

UNKEPT = (Refusal.NOT_STORED, Refusal.WRONG_CID, Refusal.OVERSIZE)
"""Findings about bytes that were not there then; whoever sends them later disproves nothing."""


class RecordAndRewardVerifier(Verifier):
    """Checks a run of record-and-reward.

    Parameters
    ----------
    run : RecordAndRewardRun
    reader : Reader or None
        The owner, or a reader that the plan names.
    examiner : Examiner or None
        The owner's validation data.
    """

    _run: RecordAndRewardRun

    def __init__(
        self, run: RecordAndRewardRun, reader: Reader | None, examiner: Examiner | None
    ) -> None:
        super().__init__(run, reader)
        self._plan = run.plan
        self._examiner = examiner
        self._history: History = run.federation.history()
        self._contributed: set[tuple[str, int]] = set()
        self._spent: dict[str, int] = {}
        self._paid = 0
        self._on_word = 0
        cipher = run.plan.cipher
        self._sums = None if cipher is None else SumVerifier(run, cipher)

    def check(self) -> Iterator[Report]:
        """Check the run version by version; the report grows with each."""
        self._check_keys()
        self._check_code()
        self._check_plan()
        if self._sums is not None:
            self._sums.check_holder(self._history)
        self._say_what_is_left_out()
        self._check_grants()
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
        self._say_what_is_gone()
        if self._on_word:
            word = (
                f"{self._on_word} findings about what only the owner saw: no, late or bad answers"
            )
            self._report.unchecked.append(word)
        yield self._report

    # -- what was agreed --------------------------------------------------------------------

    def _check_keys(self) -> None:
        self._check_reader()
        if self._examiner is not None and self._examiner.digest != self._plan.validation_digest:
            raise ConfigError(
                f"the validation data have digest {self._examiner.digest}, "
                f"the plan names {self._plan.validation_digest}"
            )

    def _check_plan(self) -> None:
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
            "budget": self._plan.budget,
        }
        self._check_terms(agreed)

    def _say_what_is_left_out(self) -> None:
        left_out = self._report.unchecked
        if self._reader is None:
            left_out.append("what the sealed updates hold: needs the owner's key (--owner-key)")
        if self._examiner is None:
            left_out.append("accuracies: needs the owner's data (--examiner)")
        if self._sums is not None:
            left_out.append("validation errors: nobody can look into an encrypted update")
            if self._reader is None:
                left_out.append("that the sums are of what was accepted: needs the owner's key")
        elif self._reader is None or self._examiner is None:
            left_out.append("validation errors: needs the owner's key and data (--examiner)")
        if self._plan.aggregation != "mean":
            left_out.append(f"the aggregates: {self._plan.inner} made them, not a mean")
        elif self._reader is None and self._sums is None:
            left_out.append("the aggregates: needs the owner's key")

    # -- models -----------------------------------------------------------------------------

    def _check_model(self, version: Version) -> Arrays | None:
        """T_k from the store, whose bytes and format must be those on the ledger; None if gone."""
        if self._is_gone(version.number, version.model.cid):
            return None
        where = f"version {version.number}, model"
        arrays = self._load(where, version.model.cid, version.model.digest)
        self._check_accuracy(version, arrays)
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
        self,
        model: Arrays | None,
        updates: Sequence[Arrays] | None,
        version: Version,
        following: Version,
    ) -> Arrays | None:
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
        self, model: Arrays | None, updates: Sequence[Arrays] | None, version: Version
    ) -> Arrays | None:
        if self._sums is not None:
            return self._aggregate_of_sum(self._sums, model, updates, version)
        if not version.accepted:
            return model
        if model is None or updates is None or self._plan.aggregation != "mean":
            return None
        found = mean(model, updates, self._plan.learning_rate)
        return found if _is_finite(found) else model

    def _aggregate_of_sum(
        self,
        sums: SumVerifier,
        model: Arrays | None,
        updates: Sequence[Arrays] | None,
        version: Version,
    ) -> Arrays | None:
        """The same where updates are encrypted: by the decrypted sum, which is public."""
        found = sums.recorded(version)
        if found is None:
            return model
        self._report.count("signed sums")
        if updates is not None:
            sums.check_encrypted(version, found, updates)
            self._report.count("encrypted sums")
        if model is None or self._is_gone(version.number, found.cid):
            return None
        following = sums.apply(version, found, model)
        return following if _is_finite(following) else model

    # -- contributions ----------------------------------------------------------------------

    def _check_contributions(self, version: Version, model: Arrays | None) -> list[Arrays] | None:
        """The updates accepted for a version, by account; None if they can't all be opened."""
        for verdict in version.verdicts:
            self._check_verdict(version, verdict)
        if not version.settled:
            self._leave_open(version)
            return None
        for verdict in version.accepted:
            self._check_spent(version, verdict)
        there = [verdict for verdict in version.accepted if not self._is_lost(version, verdict)]
        for verdict in there:
            self._check_stored(version, verdict)
        self._check_findings(version, model)
        opened = [verdict for verdict in there if self._can_open(verdict)]
        updates = [self._check_update(version, verdict, model) for verdict in opened]
        return updates if len(updates) == len(version.accepted) else None

    def _is_lost(self, version: Version, verdict: Verdict) -> bool:
        return self._is_gone(version.number, verdict.signed.contribution.cid)

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
        before = self._spent.get(verdict.device, 0)
        if reason := budget.check(self._plan.budget, before, contribution.spent):
            return reason, 0
        self._contributed.add((verdict.device, version.number))
        self._spent[verdict.device] = contribution.spent
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

    def _check_spent(self, version: Version, verdict: Verdict) -> None:
        """The epsilon of an accepted contribution, which is what some number of rounds costs."""
        if not self._spent_fits(verdict):
            spent = verdict.signed.contribution.spent / UNITS
            raise Unverified(
                f"{_where(version, verdict)}: an epsilon of {spent:g} is that of no number of "
                f"rounds from 1 to {version.number + 1}"
            )
        if self._plan.charges is not None:
            self._report.count("privacy charges")

    def _spent_fits(self, verdict: Verdict) -> bool:
        contribution, charges = verdict.signed.contribution, self._plan.charges
        return charges is None or charges.fits(contribution.spent, contribution.version + 1)

    def _check_update(self, version: Version, verdict: Verdict, model: Arrays | None) -> Arrays:
        """An accepted update, which must be in order and have the errors that were signed."""
        try:
            update = self._open(verdict)
        except RefusedError as refused:
            raise Unverified(f"{_where(version, verdict)}: accepted, but {refused}") from refused
        if self._evidence_fits(version, verdict, model, update) is False:
            raise Unverified(f"{_where(version, verdict)}: its errors are not those of the update")
        self._report.count("accepted updates")
        return update

    def _check_findings(self, version: Version, model: Arrays | None) -> None:
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
            elif self._can_open(verdict) and not self._is_lost(version, verdict):
                self._check_finding(version, verdict, finding.reason, model)

    def _check_finding(
        self, version: Version, verdict: Verdict, reason: Refusal, model: Arrays | None
    ) -> None:
        where = _where(version, verdict)
        try:
            update = self._open(verdict)
        except RefusedError as refused:
            found = refused.reason
        else:
            fits = self._spent_fits(verdict) and self._evidence_fits(
                version, verdict, model, update
            )
            if fits is None and reason is Refusal.FALSE_EVIDENCE:
                return
            found = Refusal.FALSE_EVIDENCE if fits is False else Refusal.NONE
            if model is None and reason is Refusal.NOT_FINITE:
                return
            if self._sums is None and model is not None and not _is_finite(apply(model, update)):
                found = Refusal.NOT_FINITE
        if reason in UNKEPT and found != reason:
            self._on_word += 1
            return
        if found != reason:
            raise Unverified(f"{where}: refused for {str(reason)!r}, but found {str(found)!r}")
        self._report.count("findings")

    def _can_open(self, verdict: Verdict) -> bool:
        return self._opens(verdict.signed.contribution.cid)

    def _open(self, verdict: Verdict) -> Arrays:
        assert self._reader is not None
        return open_sealed(
            self._fetch(verdict),
            verdict.signed.contribution,
            self._run.federation.domain,
            self._plan.update_format,
            self._reader,
            self._wrap(verdict.signed.contribution.cid),
        )

    def _fetch(self, verdict: Verdict) -> bytes:
        plan = self._plan
        layout = plan.update_format
        return fetch(self._run.store, verdict.signed.contribution, layout, plan.reader_keys)

    def _evidence_fits(
        self, version: Version, verdict: Verdict, model: Arrays | None, update: Arrays
    ) -> bool | None:
        """Whether the signed errors are those of the update; None if that can't be known."""
        if self._examiner is None or version.seed is None or model is None or self._sums:
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
        history = self._history
        if self._run.federation.history() != history:
            self._report.unchecked.append("balances: the run went on while it was checked")
            return
        owed = self._check_credits(history.credited, history.withdrawn)
        if (credited := sum(history.credited.values())) != self._paid:
            raise Unverified(f"credits: {credited} in all, but {self._paid} was paid")
        self._check_funds(owed)


def _is_finite(arrays: Arrays) -> bool:
    try:
        check_finite(arrays)
    except FormatError:
        return False
    return True


def _where(version: Version, verdict: Verdict) -> str:
    return f"version {version.number}, contribution of {verdict.device}"
