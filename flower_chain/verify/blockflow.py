"""Recompute a BlockFLow experiment: its scores, and what they share."""

from collections.abc import Mapping, Sequence

from flower_chain.errors import FormatError, Unverified
from flower_chain.ledger.blockflow import Round
from flower_chain.rules.blockflow import score, table
from flower_chain.run import BlockFlowRun
from flower_chain.verify.peers import PeersVerifier


class BlockFlowVerifier(PeersVerifier):
    """Checks a BlockFLow experiment; as :class:`PeersVerifier`."""

    _run: BlockFlowRun

    def _agreed(self) -> dict[str, int]:
        return {"stake": self._run.plan.stake, "auditors": self._run.plan.auditors}

    def _rest_of_bond(self, record: Round) -> int:
        return self._run.plan.bond - self._run.plan.stake * record.number

    def _judge(self, record: Round, audits: Mapping[int, Sequence[int]], lost: int) -> None:
        plan = self._run.plan
        overall = self._check_scores(record, audits)
        pot = lost + plan.stake * len(self._live)
        is_last = record.number + 1 == plan.rounds
        rest = self._rest_of_bond(record) - plan.stake if is_last else 0
        weights = overall if record.overall else [0] * len(self._live)
        self._check_refunds(record, weights, pot, rest)

    def _check_scores(self, record: Round, audits: Mapping[int, Sequence[int]]) -> list[int]:
        """The overall scores by the rules; those of the contract too, if anybody asked it to."""
        rows = {agent: record.openings[agent].row for agent in self._live}
        try:
            overall = list(score(*table(rows, audits)).overall)
        except FormatError as fault:
            raise Unverified(f"round {record.number}, scores: {fault}") from fault
        if not record.overall:
            return overall
        expected, told = dict(zip(self._live, overall, strict=True)), record.overall
        for agent in sorted(expected.keys() | told.keys()):
            if expected.get(agent) != told.get(agent):
                raise Unverified(
                    f"round {record.number}, overall score of {self._name(agent)}: "
                    f"{told.get(agent)}, by the rules {expected.get(agent)}"
                )
        self._report.count("overall scores", len(overall))
        return overall
