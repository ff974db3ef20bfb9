"""What happened in a data trust's task."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import ClassVar

from flower_chain.ledger.data_trust import Task
from flower_chain.report import blockflow
from flower_chain.report.blockflow import agents_of, rounds_of


@dataclass(frozen=True)
class Worker(blockflow.Agent):
    """What became of one worker; its scores are its qualities.

    Parameters
    ----------
    earned : int
        Of the requester's reward, in the token's smallest unit; the rest of what was refunded to it
        are deposits.
    """

    earned: int


@dataclass(frozen=True)
class Summary(blockflow.Summary):
    """What happened in a task."""

    who: ClassVar[str] = "worker"
    scores_title: ClassVar[str] = "Qualities in each round, of 100"


def summarise(task: Task) -> Summary:
    """What the ledger holds of a task comes to."""
    history = task.history()
    earned: Counter[int] = Counter()
    for verdict in history.verdicts.values():
        earned.update(verdict.earned)
    workers = [
        Worker(**asdict(agent), earned=earned[agent.number])
        for agent in agents_of(history, task.agents)
    ]
    gone = {number: verdict.left for number, verdict in history.verdicts.items()}
    rounds = list(rounds_of(history, gone))
    return Summary(task.contract.address, str(history.stage), rounds, workers)
