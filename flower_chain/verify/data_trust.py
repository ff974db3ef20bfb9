"""Recompute a data trust's task: qualities, ranks, rewards, penalties and deposits."""

from collections.abc import Mapping, Sequence

from flower_chain.errors import FormatError, Unverified
from flower_chain.keys import Reader
from flower_chain.ledger.blockflow import Round, Stage
from flower_chain.ledger.data_trust import TaskHistory, Verdict
from flower_chain.rules.data_trust import Judgement, Record, judge, lot_of, pay, rank, shares
from flower_chain.run import DataTrustRun
from flower_chain.verify.peers import PeersVerifier


class DataTrustVerifier(PeersVerifier):
    """Checks a data trust's task; as :class:`PeersVerifier`."""

    _run: DataTrustRun
    _history: TaskHistory

    def __init__(self, run: DataTrustRun, reader: Reader | None) -> None:
        super().__init__(run, reader)
        self._records: Mapping[int, Record] = {}
        self._unearned = run.plan.reward
        self._nobodys = 0

    def _agreed(self) -> dict[str, int]:
        names = ("reward", "places", "consistency", "tolerance", "floor", "patience")
        return {name: getattr(self._run.plan, name) for name in names}

    def _rest_of_bond(self, _record: Round) -> int:
        return self._run.plan.bond

    def _is_over(self, _record: Round, survivors: Sequence[int]) -> bool:
        """Nobody could score one that is left alone."""
        return len(survivors) == 1

    def _weights(self, record: Round, audits: Mapping[int, Sequence[int]]) -> dict[int, int]:
        """Of all that revealed if the server aggregates: it has read the ledger, not signatures."""
        if self._run.plan.server_aggregates:
            self._unsigned = set()
        return super()._weights(record, audits)

    @property
    def _aggregates_itself(self) -> str | None:
        plan = self._run.plan
        by_itself = plan.server_aggregates and plan.inner != "FedAvg"
        return plan.inner if by_itself else None

    # -- rounds -----------------------------------------------------------------------------

    def _judge(self, record: Round, _audits: Mapping[int, Sequence[int]], lost: int) -> None:
        verdict = self._history.verdicts.get(record.number, Verdict())
        due = self._unearned // (self._run.plan.rounds - record.number)
        judgement = self._check_qualities(record, verdict) if verdict.medians else None
        if judgement is not None and not judgement.good:
            self._check_refunds(record, [0] * len(self._live), lost, self._run.plan.bond)
            return
        ranking: list[int] = []
        if judgement is not None:
            lost += self._run.plan.bond * (len(self._live) - len(judgement.good))
            self._live = list(judgement.good)
            ranking = self._check_rewards(record, judgement, due, verdict)
        self._unearned -= due
        self._nobodys += due - sum(verdict.earned.values())
        self._check_payments(record, pay(ranking, due, self._live, lost), verdict)

    def _check_qualities(self, record: Round, verdict: Verdict) -> Judgement:
        """What the contract made of the scores, against the rules."""
        plan = self._run.plan
        rows = {worker: record.openings[worker].row for worker in self._live}
        try:
            judgement = judge(rows, len(plan.accounts), self._records, plan.rule)
        except FormatError as fault:
            raise Unverified(f"round {record.number}, scores: {fault}") from fault
        self._records = judgement.records
        for name in ("medians", "qualities", "far", "poor"):
            told, found = getattr(verdict, name), getattr(judgement, name)
            if told != found:
                raise Unverified(f"round {record.number}, {name}: {told}, by the rules {found}")
        self._report.count("qualities", len(judgement.qualities))
        return judgement

    def _check_rewards(
        self, record: Round, judgement: Judgement, due: int, verdict: Verdict
    ) -> list[int]:
        """Who is paid for its rank, the first first."""
        lot = lot_of(opening.salt for _, opening in sorted(record.openings.items()))
        good = {worker: judgement.qualities[worker] for worker in judgement.good}
        ranking = rank(good, lot, self._run.plan.places)
        expected = dict(zip(ranking, shares(due, len(ranking)), strict=True))
        if list(verdict.earned.items()) != list(expected.items()):
            raise Unverified(
                f"round {record.number}, rewards: {verdict.earned}, by the rules {expected}"
            )
        self._report.count("rewards", len(expected))
        return ranking

    def _check_payments(self, record: Round, paid: Mapping[int, int], verdict: Verdict) -> None:
        """What each got, with the deposits of those that the task is over for."""
        plan = self._run.plan
        is_last = record.number + 1 == plan.rounds
        leaving = [] if is_last else [w for w in self._live if w in verdict.leaving]
        if verdict.left != tuple(leaving):
            raise Unverified(
                f"round {record.number}: workers {verdict.left} left, but {leaving} wanted to"
            )
        staying = [worker for worker in self._live if worker not in leaving]
        over = self._live if is_last or len(staying) < 2 else leaving
        self._check_paid(
            record, {w: amount + plan.bond * (w in over) for w, amount in paid.items()}
        )
        self._live = staying

    # -- money ------------------------------------------------------------------------------

    def _besides(self) -> int:
        """The reward, but for what nobody earned."""
        over = self._history.stage is Stage.FINISHED
        return self._run.plan.reward - self._nobodys - (self._unearned if over else 0)

    def _check_funds(self, owed: int) -> None:
        """Without the reward as long as nobody could join."""
        super()._check_funds(owed if self._history.joined else owed - self._besides())
