"""Several lives of one run: what it must tell in the end, and how a device comes back."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from experiment import Experiment, Outcome
from flwr.app import Context, Message, RecordDict
from local_grid import Node

from flower_chain.audit_messages import read_said
from flower_chain.records import Commitment, Retrieval, Scores, TrainedModel


def told(outcome: Outcome) -> list[Any]:
    """What an experiment's ledger tells, but for salts, seals, times and transactions."""
    rounds = [
        (
            {agent: model.digest for agent, model in found.contributions.items()},
            found.retrievals,
            {agent: opening.row for agent, opening in found.openings.items()},
            found.overall,
            found.refunded,
            found.eliminated,
            found.rejections,
        )
        for found in outcome.history.rounds
    ]
    return [rounds, {n: list(named) for n, named in outcome.history.announced.items()}]


KINDS = (TrainedModel, Retrieval, Commitment, Scores)


def assert_faithful(experiment: Experiment, outcome: Outcome) -> None:
    """Whatever an agent said it said every time, and it is what the ledger holds."""
    said = all_that_was_said(reply for _, reply in experiment.grid.said if reply is not None)
    assert {len(things) for things in said.values()} == {1}
    for number, found in enumerate(outcome.history.rounds):
        recorded = (found.contributions, found.retrievals, found.commitments, found.openings)
        for kind, items in zip(KINDS, recorded, strict=True):
            assert {n: said[kind, n, number] for n in items} == {
                agent: {item} for agent, item in items.items()
            }


def all_that_was_said(replies: Iterable[Message]) -> dict[tuple[type, int, int], set[Any]]:
    """By kind, agent and round."""
    said: dict[tuple[type, int, int], set[Any]] = defaultdict(set)
    for reply in replies:
        for kind in KINDS if reply.has_content() else ():
            for item, _ in read_said(reply.content, kind):
                said[kind, item.agent, item.round].add(item)
    return said


def come_back(experiment: Experiment, agent: int) -> None:
    """Start an agent's SuperNode again: it knows what is on its disk, and has another id."""
    grid, node = experiment.grid, experiment.nodes[agent]
    (number,) = [number for number, found in grid.nodes.items() if found is node]
    del grid.nodes[number]
    context = Context(1, number + 1000, dict(node.context.node_config), RecordDict(), {})
    experiment.nodes[agent] = Node(experiment.devices[agent].app(), context, node.meddlers)
    grid.nodes[context.node_id] = experiment.nodes[agent]
