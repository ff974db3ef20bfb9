"""What happened in a BlockFLow experiment."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from flower_chain.ledger.blockflow import Experiment, History
from flower_chain.ledger.blockflow import Round as Recorded
from flower_chain.report import base
from flower_chain.report.base import in_tokens
from flower_chain.rules.blockflow import ONE

SHOWN = 18
"""Rounds whose scores fit beside each other; of more the last are shown."""

AMOUNTS = ("earned", "refunded", "balance")
"""What is told of an agent in tokens, as far as the scheme has it."""

COLOURS = ("red", "dark_orange", "yellow", "chartreuse3", "green")
"""Of scores, from zero to one."""


@dataclass(frozen=True)
class Round:
    """One round.

    Parameters
    ----------
    number : int
        r, from 0.
    stage : str
        Where it stands; ``settled`` if its refunds were made.
    agents : int
        How many are left.
    eliminated : list of tuple
        Agent and stage; ``left`` for one that kept its deposit.
    refunded : int
        To all agents together, in the token's smallest unit.
    gas_used : int
        Of all its transactions.
    """

    number: int
    stage: str
    agents: int
    eliminated: list[tuple[int, str]]
    refunded: int
    gas_used: int


@dataclass(frozen=True)
class Agent:
    """What became of one agent.

    Parameters
    ----------
    number : int
    account : str
    scores : list of (float or None)
        Its overall score in each round, in [0, 1]; None if it was not scored.
    refunded, balance : int
        All of its bond and of others' that it got, and what of it it can still claim or withdraw,
        in the token's smallest unit.
    """

    number: int
    account: str
    scores: list[float | None]
    refunded: int
    balance: int

    @property
    def scored(self) -> list[float]:
        """Its overall scores, of the rounds that it was scored in."""
        return [score for score in self.scores if score is not None]


@dataclass(frozen=True)
class Summary(base.Summary):
    """What happened in an experiment.

    Parameters
    ----------
    contract : str
        Its address.
    stage : str
        Where it stands.
    rounds : list of Round
    agents : list of Agent
    """

    who: ClassVar[str] = "agent"
    scores_title: ClassVar[str] = "Overall scores in each round, of 100"

    contract: str
    stage: str
    rounds: list[Round]
    agents: Sequence[Agent]

    def tables(self) -> Iterator[RenderableType]:
        """For people."""
        yield self._rounds_table()
        yield self._agents_table()
        if any(agent.scored for agent in self.agents):
            yield self.scores_title
            yield self._scores_table()

    def to_json(self) -> dict[str, Any]:
        """For programs; amounts are strings, since they exceed 2^53."""
        values = asdict(self)
        for entry in values["rounds"]:
            entry["eliminated"] = [{"agent": a, "stage": stage} for a, stage in entry["eliminated"]]
            entry["refunded"] = str(entry["refunded"])
        for entry in values["agents"]:
            entry |= {name: str(entry[name]) for name in AMOUNTS if name in entry}
        return values

    def _rounds_table(self) -> Table:
        table = Table(title="Rounds", title_justify="left")
        for name in ("round", "stage", f"{self.who}s left", "eliminated", "refunded", "gas"):
            table.add_column(name, justify="left" if name in ("stage", "eliminated") else "right")
        for entry in self.rounds:
            table.add_row(
                str(entry.number),
                entry.stage,
                str(entry.agents),
                ", ".join(_out(agent, stage) for agent, stage in entry.eliminated),
                in_tokens(entry.refunded),
                f"{entry.gas_used:,}",
            )
        return table

    def _agents_table(self) -> Table:
        table = Table(title=f"{self.who.title()}s", title_justify="left")
        table.add_column("", justify="right")
        table.add_column(self.who, no_wrap=True)
        amounts = [name for name in AMOUNTS if hasattr(self.agents[0], name)]
        for name in ("rounds", "mean score", *amounts):
            table.add_column(name, justify="right")
        for agent in self.agents:
            scored = agent.scored
            table.add_row(
                str(agent.number),
                agent.account,
                str(len(scored)),
                f"{sum(scored) / len(scored):.3f}" if scored else "-",
                *(in_tokens(getattr(agent, name)) for name in amounts),
            )
        return table

    def _scores_table(self) -> Table:
        table = Table(box=None)
        table.add_column("", justify="right")
        for entry in self.rounds[-SHOWN:]:
            table.add_column(str(entry.number), justify="right", min_width=3)
        for agent in self.agents:
            table.add_row(str(agent.number), *map(_coloured, agent.scores[-SHOWN:]))
        return table


def summarise(experiment: Experiment) -> Summary:
    """What the ledger holds of an experiment comes to."""
    history = experiment.history()
    rounds = list(rounds_of(history))
    agents = agents_of(history, experiment.agents)
    return Summary(experiment.contract.address, str(history.stage), rounds, agents)


def agents_of(history: History, accounts: Sequence[str]) -> list[Agent]:
    """What became of the agents."""
    refunded: Counter[int] = Counter()
    for record in history.rounds:
        refunded.update(record.refunded)
    return [
        Agent(
            number,
            account,
            [_score(record, number) for record in history.rounds],
            refunded[number],
            refunded[number] - history.withdrawn[account],
        )
        for number, account in enumerate(accounts)
    ]


def rounds_of(history: History, gone: Mapping[int, Sequence[int]] | None = None) -> Iterator[Round]:
    """The rounds; `gone` are those that left in each, beside the eliminated."""
    left = len(history.joined)
    for record in history.rounds:
        out = [(agent, str(stage)) for agent, stage in record.eliminated.items()]
        out += [(agent, "left") for agent in (gone or {}).get(record.number, ())]
        left -= len(out)
        yield Round(
            record.number,
            "settled" if record.refunded else str(history.stage),
            left,
            out,
            sum(record.refunded.values()),
            sum(receipt.gas_used for receipt in record.receipts.values()),
        )


def _out(agent: int, stage: str) -> str:
    return f"{agent} {stage}" if stage == "left" else f"{agent} in {stage}"


def _score(record: Recorded, agent: int) -> float | None:
    return record.overall[agent] / ONE if agent in record.overall else None


def _coloured(score: float | None) -> Text:
    if score is None:
        return Text("-", style="dim")
    return Text(f"{100 * score:.0f}", style=COLOURS[round(score * (len(COLOURS) - 1))])
