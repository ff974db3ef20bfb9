"""An experiment whose server or devices are killed and come back: as if nothing had happened."""

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiment import OWNER, Experiment, Outcome
from federation import Federation
from flwr.app import Message
from killing import Killed, killed_at
from local_grid import LocalGrid, Node
from softmax import arrays_in, fresh

from flower_chain import keys
from flower_chain.audit_messages import read_said
from flower_chain.errors import ConfigError
from flower_chain.ledger import EmbeddedLedger
from flower_chain.records import TOKEN_UNITS, Commitment, Retrieval, Scores, TrainedModel
from flower_chain.run import BlockFlowRun, Pointers
from flower_chain.strategy import blockflow
from flower_chain.updates import digest_of

ROUNDS = 2
AGENTS = 3
BOND = 10 * TOKEN_UNITS
BEGINNING = 6
"""Transactions before run.json: token, a bond for each agent, contract, first model."""
SENDS = BEGINNING + 12
"""Transactions in all: enrolment, five a round, and the claim."""
ASKS = 16
"""Questions in all: introduction, bond; seven a round, of which one is Flower's."""


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


@pytest.mark.parametrize(
    ("first", "after"), [(BEGINNING + 2, False), (BEGINNING + 1, True)], ids=["before", "after"]
)
def test_a_server_that_dies_at_each_transaction_ends(
    tmp_path: Path, undisturbed: Outcome, first: int, after: bool
) -> None:
    experiment, deaths = Experiment(tmp_path, AGENTS), 0
    while deaths < 2 * SENDS:
        # What comes before run.json is done in one life, and every life sends something.
        number = first if deaths == 0 else first - BEGINNING
        with killed_at(number, EmbeddedLedger, "send", after):
            try:
                outcome = experiment.run(rounds=ROUNDS)
                break
            except Killed:
                deaths += 1

    assert deaths == SENDS - BEGINNING - 1 + after
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


# --- what goes on is the same experiment ---------------------------------------------------------


def test_another_first_model_is_no_other_experiment(tmp_path: Path, undisturbed: Outcome) -> None:
    """An app may draw it at random, and draws another when it is started again."""
    experiment = Experiment(tmp_path, AGENTS)
    with killed_at(10, EmbeddedLedger, "send", after=True), pytest.raises(Killed):
        experiment.run(rounds=ROUNDS)
    experiment.initial = {key: array + 1 for key, array in fresh().items()}

    assert_same(experiment, experiment.run(rounds=ROUNDS), undisturbed)


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"rounds": 3}, "rounds is 3, but the run in this folder began with 2"),
        ({"bond": 9.0}, "bond is 9000000000000000000, .* began with 10000000000000000000"),
        ({"stake": 0.5}, "stake is 500000000000000000"),
        ({"quorum": 2}, "quorum is 2, .* began with 3"),
        ({"metric": "f1"}, "metric is f1, .* began with accuracy"),
        ({"stage_seconds": 30}, "stage_s is 30, .* began with 60"),
        ({"token": "0x" + "11" * 20}, "token is 0x1111111111111111111111111111111111111111"),
        ({"ledger": "http://127.0.0.1:1"}, "ledger is http://127.0.0.1:1, .* began with embedded"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_experiment_with_other_terms_is_refused(
    begun: Experiment, changed: dict[str, Any], difference: str
) -> None:
    with pytest.raises(ConfigError, match=difference):
        begun.run(**({"rounds": ROUNDS} | changed))


def test_a_model_of_another_shape_is_refused(begun: Experiment) -> None:
    begun.initial = fresh() | {"bias": np.zeros(11, np.float32)}

    with pytest.raises(ConfigError, match=r"model: 'bias' is F32 \[11\], .* began with F32 \[10\]"):
        begun.run(rounds=ROUNDS)


def test_another_owner_is_refused(tmp_path: Path, begun: Experiment) -> None:
    other = tmp_path / "other.key"

    with pytest.raises(ConfigError, match=f"owner-key is .* began with {OWNER.address}"):
        begun.run(rounds=ROUNDS, owner_key=str(keys.load_or_create(other) and other))


@pytest.mark.usefixtures("begun")
def test_another_scheme_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"scheme is record-and-reward, but .* began with blockflow"
    ):
        Federation(tmp_path, devices=AGENTS).run()


def test_an_experiment_does_not_go_on_as_another_scheme(tmp_path: Path) -> None:
    Federation(tmp_path, devices=AGENTS).run()

    with pytest.raises(ConfigError, match=r"scheme is blockflow, .* began with record-and-reward"):
        Experiment(tmp_path, AGENTS).run()


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[Experiment]:
    """An experiment that was cut short; whoever is refused changes nothing in it."""
    experiment = Experiment(tmp_path, AGENTS)
    with killed_at(10, EmbeddedLedger, "send", after=True), pytest.raises(Killed):
        experiment.run(rounds=ROUNDS)
    journal, asked = tmp_path / "run" / "ledger.journal", len(experiment.grid.said)
    before = journal.read_bytes()
    yield experiment
    assert (journal.read_bytes(), len(experiment.grid.said)) == (before, asked)
