"""An experiment whose server or devices are killed and come back: as if nothing had happened."""

import random
from collections import defaultdict
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from experiment import Experiment, Outcome
from flwr.app import Message
from killing import Killed, killed_at
from local_grid import LocalGrid, Node
from softmax import arrays_in

from flower_chain.audit_messages import read_said
from flower_chain.ledger import EmbeddedLedger
from flower_chain.records import TOKEN_UNITS, Commitment, Retrieval, Scores, TrainedModel
from flower_chain.run import BlockFlowRun, Pointers
from flower_chain.strategy import blockflow
from flower_chain.updates import digest_of

ROUNDS = 2
AGENTS = 3
BOND = 10 * TOKEN_UNITS
SENDS = 18
"""Token, contract, first model; a bond for each; enrolment; five a round; and the claim."""
ASKS = 16
"""Introduction, bond; seven a round: the last model twice, and Flower's, about nothing."""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has not acted is asked again at once."""
    monkeypatch.setattr(blockflow, "PAUSE", 0.01)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What every other experiment here must come to."""
    return Experiment(tmp_path_factory.mktemp("undisturbed"), AGENTS).run(rounds=ROUNDS)


def assert_same(experiment: Experiment, outcome: Outcome, undisturbed: Outcome) -> None:
    """The same rounds, models, scores and refunds; nobody out; each said one thing only."""
    assert told(outcome) == told(undisturbed)
    assert digest_of(arrays_in(outcome.result.arrays)) in outcome.history.announced[ROUNDS]
    assert [len(device.trained) for device in experiment.devices] == [ROUNDS] * AGENTS
    assert_faithful(experiment, outcome)
    assert_paid(outcome)


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


def assert_faithful(experiment: Experiment, outcome: Outcome) -> None:
    """Whatever an agent said it said every time, and it is what the ledger holds."""
    said = all_that_was_said(reply for _, reply in experiment.grid.said if reply is not None)
    assert {len(things) for things in said.values()} == {1}
    for number, found in enumerate(outcome.history.rounds):
        recorded = (found.contributions, found.retrievals, found.commitments, found.openings)
        for kind, items in zip(KINDS, recorded, strict=True):
            assert {n: said[kind, n, number] for n in range(AGENTS)} == {
                agent: {item} for agent, item in items.items()
            }


KINDS = (TrainedModel, Retrieval, Commitment, Scores)


def all_that_was_said(replies: Iterable[Message]) -> dict[tuple[type, int, int], set[Any]]:
    """By kind, agent and round."""
    said: dict[tuple[type, int, int], set[Any]] = defaultdict(set)
    for reply in replies:
        for kind in KINDS if reply.has_content() else ():
            for item, _ in read_said(reply.content, kind):
                said[kind, item.agent, item.round].add(item)
    return said


def assert_paid(outcome: Outcome) -> None:
    """All bonds are credited to the agents, as the rounds tell, and the contract holds no more."""
    with closing(BlockFlowRun.open(outcome.path)) as run:
        contract, accounts = run.contract, run.experiment.agents
        credited = [contract.call("credits", account) for account in accounts]
        rounds = outcome.history.rounds
        assert credited == [sum(r.refunded[agent] for r in rounds) for agent in range(AGENTS)]
        assert contract.call("held") == 0
        balance = run.token.call("balanceOf", contract.address)
        assert balance == contract.call("totalCredits") == sum(credited) == AGENTS * BOND


def test_two_experiments_on_the_same_devices_tell_the_same(
    tmp_path: Path, undisturbed: Outcome
) -> None:
    experiment = Experiment(tmp_path, AGENTS)
    with (
        killed_at(0, EmbeddedLedger, "send", after=True) as sends,
        killed_at(0, LocalGrid, "send_and_receive", after=True) as asks,
    ):
        outcome = experiment.run(rounds=ROUNDS)

    assert (len(sends), len(asks)) == (SENDS, ASKS)
    assert_same(experiment, outcome, undisturbed)


# --- the server is killed ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, SENDS + 1))
def test_a_server_killed_after_a_transaction_goes_on(
    tmp_path: Path, undisturbed: Outcome, number: int
) -> None:
    experiment = Experiment(tmp_path, AGENTS)
    with killed_at(number, EmbeddedLedger, "send", after=True), pytest.raises(Killed):
        experiment.run(rounds=ROUNDS)

    assert_same(experiment, experiment.run(rounds=ROUNDS), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, ASKS + 1))
def test_a_server_killed_before_it_records_an_answer_goes_on(
    tmp_path: Path, undisturbed: Outcome, number: int
) -> None:
    experiment = Experiment(tmp_path, AGENTS)
    with killed_at(number, LocalGrid, "send_and_receive", after=True), pytest.raises(Killed):
        experiment.run(rounds=ROUNDS)

    assert_same(experiment, experiment.run(rounds=ROUNDS), undisturbed)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_server_killed_at_its_pointers_goes_on(
    tmp_path: Path, undisturbed: Outcome, after: bool
) -> None:
    experiment = Experiment(tmp_path, AGENTS)
    with killed_at(1, Pointers, "write", after), pytest.raises(Killed):
        experiment.run(rounds=ROUNDS)

    assert_same(experiment, experiment.run(rounds=ROUNDS), undisturbed)


@pytest.mark.parametrize(("first", "after"), [(5, False), (4, True)], ids=["before", "after"])
def test_a_server_that_dies_at_each_transaction_ends(
    tmp_path: Path, undisturbed: Outcome, first: int, after: bool
) -> None:
    experiment, deaths = Experiment(tmp_path, AGENTS), 0
    while deaths < 2 * SENDS:
        # What comes before run.json is done in one life, and every life sends something.
        number = first if deaths == 0 else first - 3
        with killed_at(number, EmbeddedLedger, "send", after):
            try:
                outcome = experiment.run(rounds=ROUNDS)
                break
            except Killed:
                deaths += 1

    assert deaths == SENDS - 4 + after
    assert_same(experiment, outcome, undisturbed)


def test_a_server_that_dies_while_devices_answer_ends(tmp_path: Path, undisturbed: Outcome) -> None:
    experiment, deaths, moments = Experiment(tmp_path, AGENTS), 0, random.Random(4)
    while deaths < 50:
        with killed_at(moments.randrange(1, 20), Node, "answer", after=bool(deaths % 2)):
            try:
                outcome = experiment.run(rounds=ROUNDS)
                break
            except Killed:
                deaths += 1

    assert 5 < deaths < 50
    assert_same(experiment, outcome, undisturbed)
