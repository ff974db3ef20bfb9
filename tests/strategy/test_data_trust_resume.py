"""A task whose server or devices are killed and come back: as if nothing had happened.

What is the same code as BlockFLow's is tried there at every single place; here in one life after
another.
"""

import random
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from experiment import OWNER, Experiment, Outcome, Task
from federation import everybody, give
from flwr.serverapp.strategy import FedMedian
from killing import Killed, killed_at
from lives import assert_faithful, come_back, told
from local_grid import Node

from flower_chain import durable
from flower_chain.errors import ConfigError
from flower_chain.ledger import EmbeddedLedger, JsonRpcLedger, Ledger
from flower_chain.records import TOKEN_UNITS
from flower_chain.run import DataTrustRun
from flower_chain.strategy import peers
from flower_chain.verify import verify

ROUNDS = 2
WORKERS = 3
SETTINGS: dict[str, Any] = {"rounds": ROUNDS, "reward": 8.0, "places": 2}
BEGINNING = 5
"""Transactions before run.json: token, a deposit for each worker, contract."""
SENDS = BEGINNING + 13
"""Transactions in all: reward, enrolment, five a round, and the claim."""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has not acted is asked again at once."""
    monkeypatch.setattr(peers, "PAUSE", 0.01)


@pytest.fixture(scope="module", params=["workers", "server"])
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: Any) -> tuple[str, Outcome]:
    """Who aggregates, and what every other task here must come to."""
    task = Task(tmp_path_factory.mktemp("undisturbed"), WORKERS)
    return request.param, run(task, request.param)


def run(task: Experiment, aggregation: str, **settings: Any) -> Outcome:
    """From wherever it is; the server aggregates in its own way."""
    inner = everybody(FedMedian, task) if aggregation == "server" else None
    return task.run(inner, aggregation=aggregation, **(SETTINGS | settings))


def assert_same(task: Experiment, outcome: Outcome, undisturbed: Outcome) -> None:
    """The same rounds, models, qualities and payments; and the contract holds no more."""
    assert told(outcome) == told(undisturbed)
    assert [len(device.trained) for device in task.devices] == [ROUNDS] * WORKERS
    assert_faithful(task, outcome)
    with closing(DataTrustRun.open(outcome.path)) as opened:
        contract, accounts = opened.contract, opened.experiment.agents
        credited = [contract.call("credits", account) for account in accounts]
        *_, report = verify(opened, task.accounts[0])
    assert sum(credited) == (8 + 10 * WORKERS) * TOKEN_UNITS
    assert report.checked["qualities"] == ROUNDS * WORKERS


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_server_that_dies_at_each_transaction_ends(
    tmp_path: Path, undisturbed: tuple[str, Outcome], after: bool
) -> None:
    aggregation, expected = undisturbed
    task = Task(tmp_path, WORKERS)
    assert_same(task, dying(task, aggregation, EmbeddedLedger, after), expected)


def test_a_server_that_dies_after_each_transaction_on_a_node_ends(
    tmp_path: Path, undisturbed: tuple[str, Outcome], anvil: str
) -> None:
    aggregation, expected = undisturbed
    task = Task(tmp_path, WORKERS)
    give(anvil, OWNER.address)
    assert_same(task, dying(task, aggregation, JsonRpcLedger, True, ledger=anvil), expected)


def dying(
    task: Experiment, aggregation: str, kind: type[Ledger], after: bool, **settings: Any
) -> Outcome:
    """What comes before run.json is done in one life, and every life sends something."""
    for deaths in range(2 * SENDS):
        number = 1 + (not after) + (BEGINNING if deaths == 0 else 0)
        with killed_at(number, kind, "send", after):
            try:
                outcome = run(task, aggregation, **settings)
                break
            except Killed:
                continue
    assert deaths == SENDS - BEGINNING - 1 + after
    return outcome


def test_a_server_that_dies_while_devices_answer_ends(
    tmp_path: Path, undisturbed: tuple[str, Outcome]
) -> None:
    aggregation, expected = undisturbed
    task, deaths, moments = Task(tmp_path, WORKERS), 0, random.Random(4)
    while deaths < 50:
        with killed_at(moments.randrange(1, 20), Node, "answer", after=bool(deaths % 2)):
            try:
                outcome = run(task, aggregation)
                break
            except Killed:
                deaths += 1
    assert 3 < deaths < 50
    assert_same(task, outcome, expected)


def test_a_device_that_dies_at_everything_it_writes_says_the_same(
    tmp_path: Path, undisturbed: tuple[str, Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    aggregation, expected = undisturbed
    task, write, written = Task(tmp_path, WORKERS), durable.replace, Counter[Path]()
    worker = [device.number for device in task.devices].index(0)

    def dying_write(target: Path, data: bytes) -> None:
        if "0.key.audits" in str(target):
            written[target] += 1
            if written[target] <= 2:
                if written[target] == 2:
                    write(target, data)
                come_back(task, worker)
                raise ConnectionError("killed")
        write(target, data)

    monkeypatch.setattr(durable, "replace", dying_write)
    outcome = run(task, aggregation)
    assert len(written) == 10 * ROUNDS  # three of them the lots that it heard of
    assert told(outcome) == told(expected)
    assert_faithful(task, outcome)


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"reward": 9.0}, "reward is 9000000000000000000, .* began with 8000000000000000000"),
        ({"places": 3}, "places is 3, .* began with 2"),
        ({"recall_weight": 0}, "recall is 0, .* began with 3"),
        ({"quality_floor": 0.1}, "floor is 6554, .* began with 19661"),
    ],
)
def test_a_task_with_other_terms_is_refused(
    tmp_path: Path, changed: dict[str, Any], difference: str
) -> None:
    task = Task(tmp_path, WORKERS)
    with killed_at(BEGINNING + 3, EmbeddedLedger, "send", after=True), pytest.raises(Killed):
        run(task, "workers")
    with pytest.raises(ConfigError, match=difference):
        run(task, "workers", **changed)


def test_a_task_does_not_go_on_with_somebody_else_aggregating(tmp_path: Path) -> None:
    task = Task(tmp_path, WORKERS)
    with killed_at(BEGINNING + 3, EmbeddedLedger, "send", after=True), pytest.raises(Killed):
        run(task, "workers")
    with pytest.raises(ConfigError, match=r"inner is FedMedian, .* began with FedAvg"):
        run(task, "server")
