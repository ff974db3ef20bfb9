"""A data trust's task on a ledger (papers/4): what its workers did and what its contract decided.

Workers do what BlockFLow's agents do, with the same records: see
:mod:`flower_chain.ledger.blockflow`, whose words for stages, faults and permits hold here too. Only
that each scores all others, and what follows from the scores, is another matter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eth_account.signers.local import LocalAccount

from flower_chain.ledger.base import Event, Ledger
from flower_chain.ledger.blockflow import Experiment, History, Rejection, in_order
from flower_chain.records import Leave, SignedBy, from_bits
from flower_chain.rules.blockflow import refunds
from flower_chain.rules.data_trust import Rule, audits

JUDGED = ("Leaves", "Left", "Penalised", "Refunded", "Rewarded", "Scored")
"""What only this contract says, or says otherwise."""


@dataclass(frozen=True)
class TaskTerms:
    """What is agreed before a task and enforced by its contract.

    Parameters
    ----------
    digest : bytes
        SHA-256 of the whole plan.
    model, cid : bytes
        The first model: SHA-256 of its canonical bytes, and where it is.
    rounds : int
        N.
    quorum : int
        How many workers must post their deposit, two at least; else the task ends before it began.
        M colluding workers can only do no harm if it is larger than 2 M + 1.
    deposit : int
        Of each worker, in the token's smallest unit.
    reward : int
        D: of all rounds together. Nobody can join before the contract holds it.
    rule : Rule
    seconds : tuple of int
        How long each stage lasts at most: enrol, train, retrieve, commit, reveal, score.
    """

    digest: bytes
    model: bytes
    cid: bytes
    rounds: int
    quorum: int
    deposit: int
    reward: int
    rule: Rule
    seconds: tuple[int, int, int, int, int, int]

    def as_tuple(self) -> tuple[Any, ...]:
        """Its fields as the contract's structure has them."""
        first = self.digest, self.model, self.cid, self.rounds, self.quorum
        rule = self.rule
        shares = rule.consistency, rule.tolerance, rule.floor, rule.patience
        return *first, self.deposit, self.reward, rule.places, *shares, self.seconds


@dataclass
class Verdict:
    """What the contract made of a round's scores, by worker.

    Parameters
    ----------
    medians, qualities : dict of int to int
    far, poor : tuple of int
        Who lost its deposit for a score too far from a median, or for being below the floor.
    earned : dict of int to int
        Of the round's reward, the first first.
    leaving, left : list of int
        Who said that it leaves when the round is over; who then left before the task was over.
    """

    medians: dict[int, int] = field(default_factory=dict)
    qualities: dict[int, int] = field(default_factory=dict)
    far: tuple[int, ...] = ()
    poor: tuple[int, ...] = ()
    earned: dict[int, int] = field(default_factory=dict)
    leaving: list[int] = field(default_factory=list)
    left: tuple[int, ...] = ()


@dataclass
class TaskHistory(History):
    """All that the ledger holds of a task.

    What a round's ``overall`` is in BlockFLow, are here the qualities.

    Parameters
    ----------
    verdicts : dict of int to Verdict
        By round.
    """

    verdicts: dict[int, Verdict] = field(default_factory=dict)


class Task(Experiment):
    """DataTrust's contract, in the package's own words; its agents are the workers."""

    @classmethod
    def create(
        cls,
        ledger: Ledger,
        account: LocalAccount,
        token: str,
        terms: TaskTerms,
        workers: Sequence[str],
    ) -> "Task":
        """A new task (initializeTask). The reward is to be sent to it before anybody joins.

        Raises
        ------
        FormatError
            If there are too many workers, none, or one of them twice.
        Reverted
            If the terms can't be kept.
        """
        args = token, terms.as_tuple(), in_order(workers)
        return cls(ledger.deploy(account, "DataTrust", *args), account)

    def audits(self) -> Mapping[int, Sequence[int]]:
        """Whose models each worker scores, in the order of its row."""
        return audits(len(self.agents))

    def depart(self, batch: Sequence[tuple[Leave, bytes]]) -> list[Rejection]:
        """Record that workers leave when the round is over, each with its signature."""
        return self._act("depart", [(leave.agent, s[:32], s[32:]) for leave, s in batch])

    def signed_in(self, transaction: str, number: int) -> list[SignedBy[Any]] | None:
        """What workers say in a transaction of a round; also that they leave."""
        arguments = self.contract.decode("depart", self.contract.ledger.data_of(transaction))
        if arguments is None:
            return super().signed_in(transaction, number)
        return [(Leave(agent, number), r + vs) for agent, r, vs in arguments[0]]

    def sweep(self) -> None:
        """Credit the requester with what is nobody else's: rewards that nobody earned."""
        self._transact("sweep")

    def history(self) -> TaskHistory:
        """All that the ledger holds of the task."""
        history = TaskHistory()
        for event in self.contract.events(self.contract.block):
            if event.name in JUDGED:
                self._judge(history, event)
            else:
                self._remember(history, event)
        return history

    def _drawn_auditors(self) -> int:
        return 0

    def _judge(self, history: TaskHistory, event: Event) -> None:
        args, current = event.args, history.rounds[-1]
        current.receipts[event.receipt.transaction] = event.receipt
        verdict = history.verdicts.setdefault(current.number, Verdict())
        match event.name:
            case "Leaves":
                leave = Leave(args["agent"], current.number)
                verdict.leaving.append(leave.agent)
                current.sent[leave] = event.receipt
            case "Left":
                verdict.left = from_bits(args["out"])
            case "Penalised":
                verdict.far, verdict.poor = from_bits(args["far"]), from_bits(args["poor"])
            case "Rewarded":
                verdict.earned = dict(zip(args["ranking"], args["amounts"], strict=True))
            case "Scored":
                live = from_bits(args["live"])
                verdict.medians = dict(zip(live, args["medians"], strict=True))
                verdict.qualities = dict(zip(live, args["qualities"], strict=True))
                current.overall = verdict.qualities
            case _:  # Refunded
                live = from_bits(args["live"])
                shares = refunds(args["pot"], [verdict.earned.get(k, 0) for k in live])
                for worker, share in zip(live, shares, strict=True):
                    got = current.refunded.get(worker, 0)
                    current.refunded[worker] = got + share + args["rest"]
