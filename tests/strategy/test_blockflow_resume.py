"""An experiment whose server or devices are killed and come back: as if nothing had happened."""

import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from typing import Any

import numpy as np
import pytest
from experiment import OWNER, Experiment, Outcome
from federation import Federation, give
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.serverapp.strategy import FedAvg
from killing import Killed, killed_at
from lives import KINDS, all_that_was_said, assert_faithful, come_back, told
from local_grid import LocalGrid, Node, delivered, silent
from softmax import Device, arrays_in, fresh, record

from flower_chain import durable, keys
from flower_chain.audit_messages import AUDIT, STAGE, read_said, read_stage
from flower_chain.errors import ConfigError, RunEnded
from flower_chain.ledger import EmbeddedLedger, JsonRpcLedger, Ledger
from flower_chain.ledger.blockflow import Stage
from flower_chain.messages import HELLO, read_request
from flower_chain.plan import BlockFlowPlan
from flower_chain.records import TOKEN_UNITS, Scores
from flower_chain.run import BlockFlowRun, Pointers
from flower_chain.strategy import peers
from flower_chain.updates import digest_of
from flower_chain.verify import verify

ROUNDS = 2
AGENTS = 3
BOND = 10 * TOKEN_UNITS
BEGINNING = 6
"""Transactions before run.json: token, a bond for each agent, contract, first model."""
SENDS = BEGINNING + 12
"""Transactions in all: enrolment, five a round, and the claim."""
ASKS = 18
"""Questions in all: introduction, bond; eight a round, of which two are Flower's, to nobody."""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has not acted is asked again at once."""
    monkeypatch.setattr(peers, "PAUSE", 0.01)


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


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_server_that_dies_at_each_transaction_ends(
    tmp_path: Path, undisturbed: Outcome, after: bool
) -> None:
    experiment = Experiment(tmp_path, AGENTS)

    outcome = dying_at_each_transaction(experiment, EmbeddedLedger, after)

    assert_same(experiment, outcome, undisturbed)


def test_a_server_that_dies_after_each_transaction_on_a_node_ends(
    tmp_path: Path, undisturbed: Outcome, anvil: str
) -> None:
    """What was signed is read from the node's blocks then."""
    experiment = Experiment(tmp_path, AGENTS)
    give(anvil, OWNER.address)

    outcome = dying_at_each_transaction(experiment, JsonRpcLedger, after=True, ledger=anvil)

    assert_same(experiment, outcome, undisturbed)


def dying_at_each_transaction(
    experiment: Experiment, kind: type[Ledger], after: bool, **settings: Any
) -> Outcome:
    """What comes before run.json is done in one life, and every life sends something."""
    for deaths in range(2 * SENDS):
        number = 1 + (not after) + (BEGINNING if deaths == 0 else 0)
        with killed_at(number, kind, "send", after):
            try:
                outcome = experiment.run(rounds=ROUNDS, **settings)
                break
            except Killed:
                continue
    assert deaths == SENDS - BEGINNING - 1 + after
    with closing(BlockFlowRun.open(outcome.path)) as run:
        *_, report = verify(run, experiment.accounts[0])
    assert len(report.unchecked) == 1  # scores: each agent has its own data
    return outcome


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


@pytest.mark.parametrize("stage", ["retrieve", "commit", "reveal"])
def test_what_another_relayed_is_known_from_the_ledger(
    tmp_path: Path, undisturbed: Outcome, stage: str
) -> None:
    """Or this server did, in a transaction of which it did not hear that it was mined."""
    experiment, relayed = Experiment(tmp_path, AGENTS), list[Message]()
    strategy = experiment.strategy()

    def relay(_node: Node, question: Message, reply: Message) -> Message | None:
        if read_stage(question.content)["stage"] != stage:
            return reply
        ledger = strategy._run.experiment
        kind = dict(zip(("retrieve", "commit", "reveal"), KINDS[1:], strict=True))[stage]
        (said,) = read_said(reply.content, kind)
        getattr(ledger, stage)([said[0] if kind is Scores else said])
        relayed.append(reply)
        return None

    experiment.meddle(0, relay)
    result = strategy.start(experiment.grid, record(experiment.initial), num_rounds=ROUNDS)

    assert len(relayed) == ROUNDS
    experiment.grid.said += [(reply, reply) for reply in relayed]
    assert_same(experiment, Outcome(tmp_path / "run", result), undisturbed)


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


# --- devices that are killed, or not heard -------------------------------------------------------


def test_a_device_that_dies_at_everything_it_writes_says_the_same(
    tmp_path: Path, undisturbed: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is on the disk, and after; then nobody has heard of it yet."""
    experiment, write, written = Experiment(tmp_path, AGENTS), durable.replace, Counter[Path]()

    def dying(target: Path, data: bytes) -> None:
        if "0.key.audits" not in str(target) or (times := next_time(written, target)) > 2:
            write(target, data)
            return
        if times == 2:
            write(target, data)
        come_back(experiment, agent)
        raise ConnectionError("killed")

    agent = [device.number for device in experiment.devices].index(0)
    monkeypatch.setattr(durable, "replace", dying)
    outcome = experiment.run(rounds=ROUNDS)

    assert len(written) == 10 * ROUNDS  # three of them the lots that it heard of
    assert told(outcome) == told(undisturbed)
    assert_faithful(experiment, outcome)
    assert_paid(outcome)


def next_time(counts: Counter[Path], path: Path) -> int:
    """How often this has been asked for a path."""
    counts[path] += 1
    return counts[path]


@pytest.mark.parametrize("dies", [False, True], ids=["lost", "died"])
def test_a_device_whose_answers_do_not_arrive_is_asked_again(
    tmp_path: Path, undisturbed: Outcome, dies: bool
) -> None:
    """Lost by the grid; or it died before they left, and comes back as another node."""
    experiment, lost = Experiment(tmp_path, AGENTS), list[Message]()
    questions = Counter[tuple[Any, int]]()

    def lose(_node: Node, question: Message, reply: Message) -> Message | None:
        stage = read_stage(question.content)["stage"]
        number = read_request(question.content, BlockFlowPlan).task.version
        questions[stage, number] += 1
        if questions[stage, number] > 1:
            return reply
        lost.append(reply)
        if dies:
            come_back(experiment, 0)
        return None

    for kind in (MessageType.TRAIN, AUDIT):
        experiment.meddle(0, lose, kind)
    outcome = experiment.run(rounds=ROUNDS)

    assert len(lost) == 1 + 5 * ROUNDS  # the bond; in each round all but the score
    experiment.grid.said += [(reply, reply) for reply in lost]
    assert_same(experiment, outcome, undisturbed)


@pytest.mark.parametrize("shared", [True, False], ids=["on one disk", "on two"])
def test_two_nodes_with_the_key_of_one_agent_are_one_agent(
    tmp_path: Path, undisturbed: Outcome, shared: bool
) -> None:
    """Even if they say two things."""
    experiment = Experiment(tmp_path, AGENTS)
    folder = tmp_path / ("keys" if shared else "other-keys")
    device = experiment.devices[0] if shared else Device(experiment.devices[0].number, epochs=3)
    device.join(experiment.grid, folder, max_bond=100)

    outcome = experiment.run(everyone(), rounds=ROUNDS)

    if shared:
        assert_same(experiment, outcome, undisturbed)
    else:
        assert not any(found.eliminated for found in outcome.history.rounds)
        assert_paid(outcome)


class PatientGrid(LocalGrid):
    """Waits for who does not answer as long as it may, by a clock that tests can wait by."""

    clock = 0.0

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """As if all that answer answered at once."""
        asked = list(messages)
        replies = list(super().send_and_receive(asked, timeout=timeout))
        if len(replies) < len(asked):
            self.clock += timeout
        return replies


@pytest.fixture
def patient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """An experiment on such a grid."""
    experiment, now = Experiment(tmp_path, AGENTS), time.time
    experiment.grid.__class__ = PatientGrid
    monkeypatch.setattr(time, "time", lambda: now() + experiment.grid.clock)
    return experiment


def everyone() -> FedAvg:
    """As a user has it: what a round ended with is evaluated too."""
    return FedAvg(min_train_nodes=AGENTS, min_available_nodes=AGENTS)


def test_a_device_that_hangs_when_the_server_is_back_costs_only_its_own_bond(
    patient: Experiment,
) -> None:
    """It does not even say who it is, which all are asked first."""
    submitted = killed_at(BEGINNING + 2, EmbeddedLedger, "send", after=True)
    with submitted, pytest.raises(Killed):
        patient.run(everyone(), rounds=ROUNDS)
    for kind in (HELLO, AUDIT):
        patient.meddle(1, silent, kind)

    outcome = patient.run(everyone(), rounds=ROUNDS)

    assert [found.eliminated for found in outcome.history.rounds] == [{1: Stage.RETRIEVE}, {}]
    assert outcome.result.arrays is not None


def test_a_device_that_hangs_while_the_next_round_has_begun_costs_only_its_own_bond(
    patient: Experiment,
) -> None:
    """Training may take until its deadline, which the model and its evaluation must leave time."""

    def hang(node: Node, question: Message, reply: Message) -> Message | None:
        asked = question.content.config_records.get(STAGE, {}).get("stage", "evaluate")
        trains_first = asked == "train" and len(patient.devices[1].trained) == 1
        return reply if trains_first or asked not in ("aggregate", "evaluate", "train") else None

    for kind in (MessageType.TRAIN, MessageType.EVALUATE, AUDIT):
        patient.meddle(1, hang, kind)

    outcome = patient.run(everyone(), rounds=ROUNDS, train_seconds=60)

    assert [found.eliminated for found in outcome.history.rounds] == [{}, {1: Stage.TRAIN}]
    assert outcome.result.arrays is not None


# --- a server that is away for too long ----------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "stage", "told"),
    [
        (0, "enrol", "0 agents posted their bonds: the quorum is 3"),
        (1, "train", "nobody is left after round 1"),
        (2, "retrieve", "nobody is left after round 1"),
        (4, "reveal", "nobody is left after round 1"),
        (8, "commit", "nobody is left after round 2"),
    ],
)
def test_a_server_that_is_away_for_too_long_ends_the_experiment_and_costs_nothing(
    patient: Experiment,
    caplog: pytest.LogCaptureFixture,
    sent: int,
    stage: str,
    told: str,
) -> None:
    """By the contract's rule: there are no others who could get the bonds."""
    with (
        killed_at(BEGINNING + sent + 1, EmbeddedLedger, "send", after=False),
        pytest.raises(Killed),
    ):
        patient.run(rounds=ROUNDS)
    patient.grid.clock = 10_000.0

    with pytest.raises(RunEnded, match=told):
        patient.run(rounds=ROUNDS)

    assert f"The time for the stage {stage} is over; not heard: 0, 1, 2" in caplog.text
    with pytest.raises(RunEnded, match="the run ended in round"):
        patient.run(rounds=ROUNDS)
    if sent:
        assert_paid(Outcome(patient.path / "run", None))


def test_who_was_not_heard_before_the_server_was_away_for_too_long_is_out(
    patient: Experiment, caplog: pytest.LogCaptureFixture
) -> None:
    def hang(_node: Node, question: Message, reply: Message) -> Message | None:
        retrieves = read_stage(question.content)["stage"] == "retrieve"
        if retrieves and patient.grid.clock > 0:
            raise Killed
        return None if retrieves else reply

    patient.meddle(1, hang)
    with pytest.raises(Killed):
        patient.run(rounds=ROUNDS)
    patient.grid.clock = 10_000.0

    outcome = patient.run(rounds=ROUNDS)

    assert [found.eliminated for found in outcome.history.rounds] == [{1: Stage.RETRIEVE}, {}]
    assert "The time for the stage retrieve is over; not heard: 1" in caplog.text
    assert "Agent 1 is out: it failed in the stage retrieve" in caplog.text


# --- two processes for one device ----------------------------------------------------------------


class Meeting(Device):
    """A device at work only when another process is at the same work, or does not come."""

    def __init__(self, number: int, epochs: int, table: Barrier) -> None:
        super().__init__(number, epochs, measures=False)
        self._table = table
        self.before_training = self._wait

    def _wait(self) -> None:
        with suppress(BrokenBarrierError):
            self._table.wait(0.2)

    def _evaluate(self, message: Message, context: Context) -> Message:
        self._wait()
        return super()._evaluate(message, context)


def test_a_device_that_is_still_busy_for_a_server_that_was_killed_says_nothing_else(
    tmp_path: Path,
) -> None:
    """Where the server that goes on asks it for the same, in another process."""
    experiment, table = Experiment(tmp_path, AGENTS), Barrier(2)
    number, config = experiment.devices[0].number, experiment.nodes[0].context.node_config
    twins = [
        Node(Meeting(number, epochs, table).app(), Context(1, 1, config, RecordDict(), {}))
        for epochs in (1, 2)
    ]

    def at_once(_node: Node, question: Message, _reply: Message) -> Message:
        with ThreadPoolExecutor() as processes:
            replies = list(processes.map(lambda twin: twin.answer(delivered(question)), twins))
        said.extend(replies)
        return replies[0]

    said: list[Message] = []
    experiment.nodes[0].app = lambda question, _: question
    for kind in (HELLO, MessageType.TRAIN, AUDIT):
        experiment.meddle(0, at_once, kind)
    outcome = experiment.run()

    assert outcome.round.eliminated == {}
    found = all_that_was_said(said)
    assert [len(found[kind, 0, 0]) for kind in KINDS] == [1] * len(KINDS)
