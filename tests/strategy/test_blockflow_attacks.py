"""What a minority of a BlockFLow experiment, or who relays, can do to the others (papers/3, 4).

For every M < N/2 at N = 3..11, through Flower's messages, on the real contract: nobody who follows
the protocol loses its bond or is moved out of the range of what the honest say of its model.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attacks import (
    KINDS,
    TRAIN,
    Attack,
    Relay,
    as_it_is,
    asked,
    collude,
    contribute,
    copy_a_commitment,
    edit_said,
    friends_perfect_others_zero,
    late_in,
    meddle,
    noise,
    peers_in,
    refusals,
    reveal_something_else,
    saying,
    sealed_for_some,
    sealing,
    skip_waiting,
    stage_of,
    with_said,
)
from eth_account import Account
from experiment import OWNER, Experiment, Outcome
from flwr.app import (
    Array,
    ArrayRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp.strategy import FedAvg
from local_grid import Node, delivered, silent
from softmax import Device, arrays_in, fresh, part_of, predict, record

from flower_chain import BlockFlow, audit_messages, messages
from flower_chain.audit_messages import AGGREGATE, COMMIT, JOIN, RETRIEVE, REVEAL
from flower_chain.client.account import device_account
from flower_chain.errors import RunEnded
from flower_chain.ledger import EmbeddedLedger
from flower_chain.ledger.blockflow import Fault, Rejection, Round, Stage
from flower_chain.messages import HELLO
from flower_chain.plan import BlockFlowPlan
from flower_chain.records import (
    TOKEN_UNITS,
    Aggregate,
    Commitment,
    Retrieval,
    Scores,
    TrainedModel,
    sign,
    to_bits,
)
from flower_chain.rules.blockflow import ONE, score, to_score, trust
from flower_chain.run import BlockFlowRun
from flower_chain.store.cid import cid_from_bytes, cid_of, cid_to_bytes
from flower_chain.store.seal import seal, unseal
from flower_chain.updates import Arrays, digest, pack, unpack, weighted_mean
from flower_chain.verify import verify

Judge = Callable[[Message, Context], Message]
Cheat = Callable[[Experiment, Message], Message | None]

EVERY_MINORITY = [(n, m) for n in range(3, 12) for m in range(1, (n + 1) // 2)]


def mark_of(agents: int, attackers: int) -> Sequence[pytest.MarkDecorator]:
    """What tells a few large minorities, the largest of each number of agents, and all others."""
    is_largest = attackers == (agents - 1) // 2
    if is_largest and agents in (3, 4, 7, 11):
        return []
    return [pytest.mark.matrix if is_largest or agents == 11 else pytest.mark.exhaustive]


MINORITIES = [pytest.param(n, m, marks=mark_of(n, m)) for n, m in EVERY_MINORITY]
BOND, STAKE = 10 * TOKEN_UNITS, TOKEN_UNITS


@pytest.fixture(autouse=True)
def _nobody_waits(monkeypatch):
    skip_waiting(monkeypatch)


def play(path, agents: int, attack: Attack, attackers: int, **settings):
    """One round in which the last agents attack."""
    experiment = Experiment(path, agents, Relay())
    attack(experiment, range(agents - attackers, agents))
    return experiment, experiment.run(train_seconds=60, **settings)


# --- what no minority changes --------------------------------------------------------------------


def assert_nobody_honest_is_harmed(
    experiment: Experiment, outcome: Outcome, honest: Sequence[int]
) -> None:
    """All honest agents are left, judged by each other, paid by the rule, and have the model."""
    found = outcome.round
    live, overall = list(found.overall), tuple(found.overall.values())
    assert set(honest) <= set(live)
    with closing(BlockFlowRun.open(outcome.path)) as run:
        models = [opened(experiment, run, agent) for agent in live]
        credits = [run.contract.call("credits", account) for account in run.experiment.agents]
        lost = [run.token.call("balanceOf", account) for account in run.experiment.agents]
    measured = np.array([[accuracy(experiment, a, model) for model in models] for a in honest])
    table = np.array([[found.openings[a].row[k] for k in live] for a in live])
    assert np.array_equal(table[: len(honest)], measured)

    judged = score(table)
    lowest, highest = measured.min(axis=0), measured.max(axis=0)
    assert (lowest <= judged.model).all()
    assert (judged.model <= highest).all()
    assert overall == judged.overall
    least = int(lowest[: len(honest)].min()) * ONE // int(highest.max())
    assert min(overall[: len(honest)]) >= min(least, trust(int((highest - lowest).max())))

    assert credits == [found.refunded.get(agent, 0) for agent in range(len(credits))]
    assert sum(credits) + sum(lost) == BOND * len(credits)
    expected = weighted_mean(models, overall)
    assert pack(outcome.model(1)) == pack(expected)


def opened(experiment: Experiment, run: BlockFlowRun, agent: int) -> Arrays:
    """The model that an agent signed, as the first agent opens it."""
    model = run.experiment.history().rounds[0].contributions[agent]
    sealed = run.store.get(cid_from_bytes(model.cid))
    return unpack(unseal(sealed, bytes(experiment.accounts[0].key), run.peers.binding(model)))


def accuracy(experiment: Experiment, agent: int, model: Arrays) -> int:
    """What an honest agent's ``evaluate()`` says of a model; nothing if it fails on it."""
    if huge(model):
        return 0
    x, y = part_of(experiment.devices[agent].number)
    return to_score(float((predict(model, x).argmax(axis=1) == y).mean()))


# --- agents --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("agents", "attackers"), MINORITIES)
def test_perfect_scores_for_friends_and_zero_for_others_cost_who_gives_them(
    tmp_path, agents, attackers
):
    attack = collude(friends_perfect_others_zero)
    experiment, outcome = play(tmp_path, agents, attack, attackers)
    honest = range(agents - attackers)
    assert_nobody_honest_is_harmed(experiment, outcome, honest)
    assert outcome.round.eliminated == {}
    assert list(outcome.round.overall.values())[len(honest) :] == [0] * attackers
    won = sum(outcome.round.refunded[agent] for agent in honest)
    assert won == len(honest) * (BOND - STAKE) + agents * STAKE


FAILS = {
    "a commitment copied, and the scores too": (copy_a_commitment, Stage.REVEAL),
    "commit without reveal": (late_in(REVEAL), Stage.REVEAL),
    "reveal of something else": (reveal_something_else, Stage.REVEAL),
    "late to train": (late_in(TRAIN), Stage.TRAIN),
    "late to retrieve": (late_in(RETRIEVE), Stage.RETRIEVE),
    "late to commit": (late_in(COMMIT), Stage.COMMIT),
    "a model that nobody can open": (contribute(noise), Stage.RETRIEVE),
    "a model with other keys": (
        sealing(lambda model: {"height": model["weight"], "bias": model["bias"]}),
        Stage.RETRIEVE,
    ),
    "a model with other values than numbers": (
        sealing(lambda model: {key: value * np.nan for key, value in model.items()}),
        Stage.RETRIEVE,
    ),
    "another model than was signed": (
        sealing(lambda model: model, digest=b"\1" * 32),
        Stage.RETRIEVE,
    ),
    "an oversized model": (
        sealing(lambda model: model | {"more": np.zeros(9, np.float32)}),
        Stage.TRAIN,
    ),
    "a model that only some can open": (contribute(sealed_for_some), Stage.RETRIEVE),
}
"""What costs the bond, and the stage in which it does."""


@pytest.mark.parametrize("attack", FAILS)
@pytest.mark.parametrize(("agents", "attackers"), MINORITIES)
def test_who_does_not_do_what_a_stage_asks_for_loses_its_bond(tmp_path, attack, agents, attackers):
    misdeed, stage = FAILS[attack]
    experiment, outcome = play(tmp_path, agents, misdeed, attackers)
    honest = range(agents - attackers)
    assert_nobody_honest_is_harmed(experiment, outcome, honest)
    assert outcome.round.eliminated == dict.fromkeys(range(agents - attackers, agents), stage)
    assert sum(outcome.round.refunded.values()) == agents * BOND


def huge(model: Arrays) -> bool:
    """Whether it is a model that ``evaluate()`` fails on."""
    return float(np.abs(model["weight"]).max()) > 1e6


def picky(fails: Callable[[Message], Message], device: Device) -> Judge:
    """A device whose ``evaluate()`` fails on some models."""

    def judge(message: Message, context: Context) -> Message:
        if huge(arrays_in(message.content["arrays"])):
            return fails(message)
        return device.evaluate(message, context)

    return judge


def raises(_: Message) -> Message:
    """An ``evaluate()`` that ends with an exception."""
    raise OverflowError("too large")


def tells_nan(message: Message) -> Message:
    """One that returns what is no score."""
    metrics = MetricRecord({"num-examples": 3, "accuracy": float("nan")})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


@pytest.mark.parametrize("fails", [raises, tells_nan])
@pytest.mark.parametrize(("agents", "attackers"), MINORITIES)
def test_a_model_that_evaluate_fails_on_gets_nothing_and_costs_nobody_else(
    tmp_path, fails, agents, attackers
):
    def attack(experiment: Experiment, some: Sequence[int]) -> None:
        sealing(lambda model: model | {"weight": model["weight"] + 1e9})(experiment, some)
        for device in experiment.devices:
            device.judges = picky(fails, device)

    experiment, outcome = play(tmp_path, agents, attack, attackers)
    assert_nobody_honest_is_harmed(experiment, outcome, range(agents - attackers))
    assert list(outcome.round.overall.values())[agents - attackers :] == [0] * attackers


@pytest.mark.parametrize(("agents", "attackers"), MINORITIES)
def test_a_minority_that_tells_another_aggregate_does_not_change_it(tmp_path, agents, attackers):
    def attack(experiment: Experiment, some: Sequence[int]) -> None:
        for agent in some:
            other = saying(AGGREGATE, lambda said, _: replace(said, digest=b"\1" * 32))
            meddle(experiment, agent, AGGREGATE, other)

    experiment, outcome = play(tmp_path, agents, attack, attackers)
    assert_nobody_honest_is_harmed(experiment, outcome, range(agents - attackers))


NO_MODELS = {
    "none": [],
    "two": [record(fresh()), record(fresh())],
    "another one": [record(fresh())],
    "no arrays": [ArrayRecord({"weight": Array("float32", (9,), "numpy.ndarray", b"\x93NUMPY")})],
    "bytes of another kind": [ArrayRecord({"weight": Array("float32", (1,), "torch", b"1234")})],
}


@pytest.mark.parametrize("what", [*NO_MODELS, "silence"])
def test_who_does_not_give_the_aggregate_that_it_told_is_passed_over(tmp_path, what):
    def meddler(_node: Node, question: Message, reply: Message) -> Message | None:
        if "arrays-key" not in audit_messages.read_stage(question.content):
            return reply
        for key in list(reply.content.array_records):
            del reply.content[key]
        for number, arrays in enumerate(NO_MODELS.get(what, [])):
            reply.content[f"model {number}"] = arrays
        return None if what == "silence" else reply

    experiment = Experiment(tmp_path, 3, Relay())
    meddle(experiment, 0, AGGREGATE, meddler)
    outcome = experiment.run(train_seconds=60)
    assert_nobody_honest_is_harmed(experiment, outcome, range(3))


def test_who_is_silent_wherever_that_costs_it_nothing_makes_nobody_late(tmp_path):
    """The next round's training has begun when this one's aggregate is asked for and evaluated."""
    experiment = Experiment(tmp_path, 5, Relay())
    for agent in (3, 4):
        meddle(experiment, agent, AGGREGATE, silent)
        experiment.meddle(agent, silent, MessageType.EVALUATE)
        once = iter([as_it_is])
        meddle(experiment, agent, TRAIN, lambda *told, once=once: next(once, silent)(*told))
    inner = FedAvg(min_train_nodes=5, min_available_nodes=5)
    outcome = experiment.run(inner, rounds=2, train_seconds=600, stage_seconds=1200)
    assert outcome.history.rounds[0].left == (0, 1, 2, 3, 4)
    assert outcome.history.rounds[1].left == (0, 1, 2)


# --- accounts and bonds --------------------------------------------------------------------------


def test_one_key_on_two_nodes_is_one_agent(tmp_path):
    experiment = Experiment(tmp_path, 3, Relay())
    experiment.devices[2].join(experiment.grid, tmp_path / "elsewhere", max_bond=100)
    outcome = experiment.run(three(), train_seconds=60)
    assert_nobody_honest_is_harmed(experiment, outcome, range(2))
    with closing(BlockFlowRun.open(outcome.path)) as run:
        assert len(run.experiment.agents) == 3


def test_nodes_that_replay_the_introductions_of_others_change_nothing(tmp_path):
    """What such a node says in the name of another is not signed by that one."""
    experiment = Experiment(tmp_path, 3, Relay())
    for agent, node in enumerate(experiment.nodes):
        experiment.grid.add(shadow_of(node, agent))
    outcome = experiment.run(three(), train_seconds=60)
    assert_nobody_honest_is_harmed(experiment, outcome, range(3))
    assert outcome.round.eliminated == {}
    assert outcome.round.rejections == []


def shadow_of(node: Node, agent: int) -> Any:
    """An app that introduces itself as another agent, and signs what it says with its own key."""

    def app(message: Message, _context: Context) -> Message:
        if message.metadata.message_type == HELLO:
            return Message(node.app(message, node.context).content, reply_to=message)
        content, stage = RecordDict(), stage_of(message)
        domain = messages.read_domain(message.content)
        if stage == JOIN:
            permit = audit_messages.read_permit(audit_messages.read_stage(message.content))
            told = audit_messages.write_stage(JOIN, signature=sign(permit.encode(), STRANGER))
            content[audit_messages.STAGE] = told
        else:
            item = IN_THE_NAME_OF_ANOTHER[stage](agent)
            signature = b"" if stage == REVEAL else sign(item.encode(domain), STRANGER)
            content[audit_messages.SAID] = audit_messages.write_said([(item, signature)])
        return Message(content, reply_to=message)

    return app


STRANGER = Account.from_key(b"\7" * 32)
IN_THE_NAME_OF_ANOTHER: dict[Any, Callable[[int], Any]] = {
    TRAIN: lambda agent: TrainedModel(agent, 0, b"\1" * 32, b"\1" * 36),
    RETRIEVE: lambda agent: Retrieval(agent, 0, ()),
    COMMIT: lambda agent: Commitment(agent, 0, b"\1" * 32),
    REVEAL: lambda agent: Scores(agent, 0, (0, 0, 0), b"\1" * 32),
    AGGREGATE: lambda agent: Aggregate(agent, 0, b"\1" * 32),
}


def three() -> FedAvg:
    """Three agents are enough."""
    return FedAvg(fraction_evaluate=0.0, min_train_nodes=3, min_available_nodes=3)


@pytest.mark.parametrize("change", [{"value": 9 * TOKEN_UNITS}, {"nonce": 1}, {"deadline": 1}])
def test_a_permit_for_something_else_than_the_bond_is_not_relayed(tmp_path, change):
    def meddler(node: Node, question: Message, reply: Message) -> Message:
        permit = audit_messages.read_permit(audit_messages.read_stage(question.content))
        signature = sign(replace(permit, **change).encode(), device_account(node.context))
        reply.content[audit_messages.STAGE] = audit_messages.write_stage(JOIN, signature=signature)
        return reply

    experiment = Experiment(tmp_path, 4, Relay())
    meddle(experiment, 3, JOIN, meddler)
    outcome = experiment.run(quorum=3, train_seconds=60)
    assert outcome.round.left == (0, 1, 2)
    assert outcome.round.rejections == []


def test_who_has_not_the_bond_is_not_in_the_run_and_takes_no_time_from_others(tmp_path):
    """Each transaction that is rejected would take a second from those who are not ready yet."""
    experiment = Experiment(tmp_path, 4, Relay())
    begun: list[float] = []

    def busy(_node: Node, _question: Message, reply: Message) -> Message:
        begun.append(time.time())
        if time.time() < begun[0] + 20:
            raise TimeoutError("not ready")
        return reply

    meddle(experiment, 0, JOIN, busy)
    (tmp_path / "run").mkdir()
    with EmbeddedLedger(tmp_path / "run" / "ledger.journal", [OWNER.address]) as ledger:
        token = ledger.deploy(OWNER, "RewardToken", 10**24)
        for account in experiment.accounts[:3]:
            token.transact(OWNER, "transfer", account.address, BOND)
        token.transact(OWNER, "transfer", experiment.accounts[3].address, BOND - 1)
    outcome = experiment.run(token=token.address, quorum=3, train_seconds=60)
    assert outcome.round.left == (0, 1, 2)
    assert {(r.agent, r.fault) for r in outcome.round.rejections} == {(3, Fault.BOND_NOT_POSTED)}


# --- relays --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("agents", "attackers"), MINORITIES)
def test_what_another_relay_has_sent_is_passed_on(tmp_path, agents, attackers):
    """Or the others would not believe that these agents are in the run, as the contract says."""
    experiment = Experiment(tmp_path, agents, Relay())
    strategy = experiment.strategy(train_seconds=60)
    acts = {RETRIEVE: "retrieve", COMMIT: "commit"}

    def elsewhere(_node: Node, question: Message, reply: Message) -> None:
        stage = str(stage_of(question))
        said = audit_messages.read_one(reply.content, KINDS[stage])
        getattr(strategy._run.experiment, acts[stage])([said])

    for agent in range(agents - attackers, agents):
        for stage in acts:
            meddle(experiment, agent, stage, elsewhere)
    result = strategy.start(experiment.grid, record(experiment.initial), num_rounds=1)
    outcome = Outcome(tmp_path / "run", result)
    assert_nobody_honest_is_harmed(experiment, outcome, range(agents))
    assert outcome.round.eliminated == {}


def test_a_model_that_another_relay_has_sent_and_nobody_has_costs_its_agent_the_bond(tmp_path):
    experiment = Experiment(tmp_path, 3, Relay())
    strategy = experiment.strategy(train_seconds=60)

    def elsewhere(_node: Node, _question: Message, reply: Message) -> None:
        strategy._run.experiment.submit([audit_messages.read_one(reply.content, TrainedModel)])

    meddle(experiment, 2, TRAIN, elsewhere)
    result = strategy.start(experiment.grid, record(experiment.initial), num_rounds=1)
    outcome = Outcome(tmp_path / "run", result)
    assert_nobody_honest_is_harmed(experiment, outcome, range(2))
    assert outcome.round.eliminated == {2: Stage.RETRIEVE}


def test_of_two_models_that_an_agent_signs_the_one_on_the_ledger_counts(tmp_path):
    experiment = Experiment(tmp_path, 3, Relay())
    strategy = experiment.strategy(train_seconds=60)

    def twice(node: Node, question: Message, reply: Message) -> Message:
        said, signature = audit_messages.read_one(reply.content, TrainedModel)
        strategy._run.experiment.submit([(said, signature)])
        strategy._run.store.put(messages.read_sealed(reply.content))
        packed, peers = pack(fresh()), peers_in(question)
        other = replace(said, digest=digest(packed))
        sealed = seal(packed, peers.recipients, peers.binding(other))
        reply.content[messages.SEALED] = messages.write_sealed(sealed)
        other = replace(other, cid=cid_to_bytes(cid_of(sealed)))
        return with_said(node, question, reply, other)

    for agent, answer in ((1, as_it_is), (2, twice)):
        turns = iter([silent, answer])  # so that both are relayed at once
        meddle(experiment, agent, TRAIN, lambda *told, turns=turns: next(turns)(*told))
    result = strategy.start(experiment.grid, record(experiment.initial), num_rounds=1)
    outcome = Outcome(tmp_path / "run", result)
    assert_nobody_honest_is_harmed(experiment, outcome, range(3))
    assert outcome.round.rejections == [Rejection(2, Fault.SECOND_TIME)]


def relayed(
    tmp_path: Path, cheat: Callable[[Experiment, Message], Message | None], **settings: Any
):
    """Three agents that follow the protocol, and a relay that does not."""
    relay = Relay()
    experiment = Experiment(tmp_path, 3, relay)
    relay.cheat = lambda question: cheat(experiment, question)
    return experiment, experiment.run(train_seconds=60, **settings)


def test_a_relay_that_reorders_and_repeats_changes_nothing(tmp_path):
    def cheat(experiment: Experiment, question: Message) -> Message:
        if audit_messages.SAID in question.content:
            for kind in (TrainedModel, Retrieval, Commitment, Scores):
                edit_said(question, kind, lambda said: [*said[::-1], *said])
        node = experiment.grid.nodes[question.metadata.dst_node_id]
        node.answer(delivered(question))
        return question

    experiment, outcome = relayed(tmp_path, cheat)
    assert_nobody_honest_is_harmed(experiment, outcome, range(3))
    assert outcome.round.eliminated == {}


@pytest.mark.parametrize("stage", [TRAIN, RETRIEVE, COMMIT, REVEAL])
def test_a_relay_that_drops_all_that_an_agent_without_a_node_says_eliminates_it(tmp_path, stage):
    def cheat(experiment: Experiment, question: Message) -> Message | None:
        return None if asked(question, stage, experiment.nodes[0]) else question

    _, outcome = relayed(tmp_path, cheat)
    assert outcome.round.eliminated == {0: Stage[stage.upper()]}
    assert outcome.round.left == (1, 2)
    assert sum(outcome.round.refunded.values()) == 3 * BOND


KEPT_BACK = {
    "a model": ("the models of agents [1] are missing", Stage.COMMIT),
    "all models": ("agent 0 did not pass", Stage.RETRIEVE),
    "models under each other's numbers": ("", Stage.RETRIEVE),
    "all reports but its own": ("agent 0 did not pass", Stage.COMMIT),
    "reports of the round before": ("agent 0 did not pass", Stage.COMMIT),
}


@pytest.mark.parametrize("what", KEPT_BACK)
def test_a_relay_that_keeps_back_what_an_agent_needs_eliminates_it_and_nobody_else(tmp_path, what):
    def cheat(experiment: Experiment, question: Message) -> Message:
        models = question.content.array_records.get(audit_messages.MODELS)
        if asked(question, RETRIEVE, experiment.nodes[0]) and models is not None:
            if what == "a model":
                del models["1"]
            elif what == "all models":
                models.clear()
            elif what.startswith("models under"):
                models["1"], models["2"] = models["2"], models["1"]
        if asked(question, COMMIT, experiment.nodes[0]):
            if what.startswith("all reports"):
                edit_said(question, Retrieval, lambda said: [x for x in said if x[0].agent == 0])
            elif what.startswith("reports of"):
                old = lambda said: [(replace(item, round=7), by) for item, by in said]  # noqa: E731
                edit_said(question, Retrieval, old)
        return question

    experiment, outcome = relayed(tmp_path, cheat)
    word, stage = KEPT_BACK[what]
    assert outcome.round.eliminated == {0: stage}
    assert any(word in reason for reason in refusals(experiment, 0)) or stage is Stage.RETRIEVE
    assert outcome.round.left == (1, 2)


EDITS = {
    "other scores": lambda said: [(replace(said[1][0], row=(7, 7, 7)), b""), said[0], said[2]],
    "another's scores": lambda said: [(replace(said[1][0], agent=2), b""), *said[:2]],
    "not its own": lambda said: said[1:],
}


@pytest.mark.parametrize("what", EDITS)
def test_a_relay_that_edits_the_verdict_for_one_agent_is_refused_by_it(tmp_path, what):
    def cheat(experiment: Experiment, question: Message) -> Message:
        if asked(question, AGGREGATE, experiment.nodes[0]):
            edit_said(question, Scores, EDITS[what])
        return question

    experiment, outcome = relayed(tmp_path, cheat, rounds=2)
    assert outcome.history.rounds[1].left == (0, 1, 2)
    words = "are missing" if what == "not its own" else "did not commit to that"
    assert any(words in reason for reason in refusals(experiment, 0))


def test_a_relay_that_leaves_an_agents_scores_out_has_the_others_compute_without_it(tmp_path):
    """Who has no node can't know better; whose scores were left out does, and can't be deceived."""

    def cheat(_experiment: Experiment, question: Message) -> Message:
        if asked(question, AGGREGATE) or asked(question, TRAIN):
            edit_said(question, Scores, lambda said: [x for x in said if x[0].agent != 2])
        return question

    experiment, outcome = relayed(tmp_path, cheat, rounds=2)
    first, second = outcome.history.rounds
    rows = np.array([first.openings[agent].row[:2] for agent in range(2)])
    trained = [device.trained[0][1] for device in experiment.devices[:2]]
    assert pack(outcome.model(1)) == pack(weighted_mean(trained, score(rows).overall))
    assert second.eliminated == {2: Stage.TRAIN}
    assert any("the scores of agent 2 are missing" in reason for reason in refusals(experiment, 2))


def test_a_question_of_a_round_that_is_over_is_not_answered(tmp_path):
    kept: list[Message] = []

    def cheat(experiment: Experiment, question: Message) -> Message:
        if asked(question, COMMIT, experiment.nodes[0]):
            kept.append(delivered(question))
        if asked(question, REVEAL, experiment.nodes[0]) and len(kept) == 2:
            return kept[0]
        return question

    experiment, outcome = relayed(tmp_path, cheat, rounds=2)
    assert outcome.history.rounds[1].eliminated == {0: Stage.REVEAL}
    assert any("version 0, but 1 was seen" in reason for reason in refusals(experiment, 0))


# --- a server that falsifies the model -----------------------------------------------------------


def falsified(arrays: Arrays) -> Arrays:
    """A little better for somebody."""
    return arrays | {"bias": arrays["bias"] + np.float32(1e-6)}


def test_an_aggregate_that_the_server_falsifies_is_trained_by_nobody_and_costs_nobody(
    tmp_path, monkeypatch
):
    honest = BlockFlow._conclude

    def conclude(strategy: BlockFlow, number: int) -> Arrays:
        arrays = falsified(honest(strategy, number))
        strategy._run.publish(number + 1, arrays)
        return arrays

    monkeypatch.setattr(BlockFlow, "_conclude", conclude)
    experiment = Experiment(tmp_path, 3, Relay())
    with pytest.raises(RunEnded, match="nobody is left after round 2"):
        experiment.run(rounds=2, train_seconds=60)
    outcome = Outcome(tmp_path / "run", None)
    trained = [device.trained[0][1] for device in experiment.devices]
    right = weighted_mean(trained, list(outcome.round.overall.values()))
    names = digest(pack(falsified(right))).hex(), digest(pack(right)).hex()
    for agent, device in enumerate(experiment.devices):
        assert len(device.trained) == 1
        told = "the model received has digest {}, the aggregate of what was revealed {}"
        assert any(told.format(*names) in reason for reason in refusals(experiment, agent))
    refunded = [found.refunded for found in outcome.history.rounds]
    assert list(refunded[1].values()) == [BOND - STAKE] * 3
    assert sum(refunded[0].values()) == 3 * STAKE


def sent_instead(question: Message, model: Arrays, signed: bool) -> Message:
    """The question with another model, which the owner signs as the one to train, or does not."""
    question.content["arrays"] = record(model)
    if signed:
        request = messages.read_request(question.content, BlockFlowPlan)
        task = replace(request.task, model_digest=digest(pack(model)))
        signature = sign(task.encode(request.domain), OWNER)
        messages.write_request(question.content, replace(request, task=task, signature=signature))
    return question


@pytest.mark.parametrize(
    ("turn", "signed", "words"),
    [
        (0, False, "but version 0 is signed as"),
        (0, True, "the first model has digest"),
        (1, False, "but version 1 is signed as"),
        (1, True, "the aggregate of what was revealed"),
    ],
)
def test_a_model_that_is_falsified_for_one_agent_is_not_trained_by_it(
    tmp_path, turn, signed, words
):
    def cheat(experiment: Experiment, question: Message) -> Message:
        version = question.content.config_records.get(messages.RECORD, {}).get("version")
        if asked(question, TRAIN, experiment.nodes[0]) and version == turn:
            model = falsified(arrays_in(question.content["arrays"]))
            return sent_instead(question, model, signed)
        return question

    experiment, outcome = relayed(tmp_path, cheat, rounds=2)
    assert outcome.history.rounds[turn].eliminated == {0: Stage.TRAIN}
    assert len(experiment.devices[0].trained) == turn
    assert any(words in reason for reason in refusals(experiment, 0))
    assert outcome.history.rounds[1].left == (1, 2)


# --- who acts by a transaction, and signs nothing ------------------------------------------------


def with_a_loner(path: Path) -> tuple[Experiment, Any]:
    """Five agents, and the account of the last, which has what gas costs."""
    experiment = Experiment(path, 5, Relay())
    (path / "run").mkdir()
    loner = experiment.accounts[4]
    with EmbeddedLedger(path / "run" / "ledger.journal", [OWNER.address, loner.address]):
        return experiment, loner


@pytest.mark.parametrize("stage", [RETRIEVE, COMMIT])
def test_who_acts_without_a_signature_counts_for_nothing_and_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    skip_waiting(monkeypatch)
    experiment, loner = with_a_loner(tmp_path)
    strategy = experiment.strategy(train_seconds=600, stage_seconds=60, stake=1.0)

    def alone(_node: Node, _question: Message, reply: Message) -> None:
        said, _ = audit_messages.read_one(reply.content, KINDS[stage])
        unsigned = b"\0" * 32, b"\0" * 32
        if stage == RETRIEVE:
            item = (4, to_bits(said.retrieved), said.secret, *unsigned)
        else:
            item = (4, said.digest, *unsigned)
        strategy._run.contract.transact(loner, stage, [item])

    meddle(experiment, 4, stage, alone)
    result = strategy.start(experiment.grid, record(experiment.initial), num_rounds=2)
    outcome = Outcome(tmp_path / "run", result)
    for number, found in enumerate(outcome.history.rounds):
        assert set(range(4)) <= set(found.left)
        rows = np.array([found.openings[agent].row for agent in range(4)])[:, :4]
        trained = [experiment.devices[agent].trained[number][1] for agent in range(4)]
        expected = weighted_mean(trained, score(rows).overall)
        assert np.array_equal(outcome.model(number + 1)["weight"], expected["weight"])
    with closing(BlockFlowRun.open(tmp_path / "run")) as run:
        *_, report = verify(run, experiment.accounts[0], None)
    assert report.checked["aggregates"] == 2
    assert report.checked["own transactions"] > 0


@pytest.mark.parametrize(
    ("stage", "signs", "fails"),
    [
        (TRAIN, False, Stage.TRAIN),
        (RETRIEVE, False, Stage.RETRIEVE),
        (COMMIT, False, Stage.COMMIT),
        (TRAIN, True, Stage.RETRIEVE),  # nobody was sent its model
        (RETRIEVE, True, Stage.RETRIEVE),  # it reports nothing
        (COMMIT, True, None),
    ],
)
def test_who_acts_by_a_transaction_has_all_draw_by_the_seed_of_the_contract(
    tmp_path: Path, stage: str, signs: bool, fails: Stage | None
) -> None:
    """Packed into a call of several, so that its data don't tell what it is."""
    experiment, loner = with_a_loner(tmp_path)
    strategy = experiment.strategy(train_seconds=60, stage_seconds=30, auditors=2)

    def alone(node: Node, question: Message, reply: Message) -> None:
        said, _ = audit_messages.read_one(reply.content, KINDS[stage])
        if stage == RETRIEVE:
            said = replace(said, retrieved=())
        with_said(node, question, reply, said)
        said, signature = audit_messages.read_one(reply.content, KINDS[stage])
        contract = strategy._run.contract
        call = contract.encode(CALLS[stage], [item_of(said, signature if signs else bytes(64))])
        contract.transact(loner, "multicall", [call])

    meddle(experiment, 4, stage, alone)
    result = strategy.start(experiment.grid, record(experiment.initial), num_rounds=2)
    first, second = Outcome(tmp_path / "run", result).history.rounds
    assert first.eliminated == ({} if fails is None else {4: fails})
    assert second.eliminated == {}
    assert_all_scored_what_they_were_drawn_for(experiment, first)
    assert_all_scored_what_they_were_drawn_for(experiment, second)
    with closing(BlockFlowRun.open(tmp_path / "run")) as run:
        *_, report = verify(run, experiment.accounts[0], None)
    assert (report.checked["draws"], report.checked["aggregates"]) == (2, 2)
    assert "own transactions" not in report.checked


CALLS = {TRAIN: "submit", RETRIEVE: "retrieve", COMMIT: "commit"}


def item_of(said: Any, signature: bytes) -> tuple[Any, ...]:
    """What the contract is sent for what an agent says."""
    halves = signature[:32], signature[32:]
    match said:
        case TrainedModel():
            return said.agent, said.digest, said.cid, said.lot, *halves
        case Retrieval():
            return said.agent, to_bits(said.retrieved), said.secret, *halves
        case _:
            return said.agent, said.digest, *halves


def assert_all_scored_what_they_were_drawn_for(experiment: Experiment, found: Round) -> None:
    """Nobody is worth less for scores that the contract takes for those of other models."""
    for agent in found.left:
        audited = [experiment.devices[k].trained[found.number][1] for k in found.audits[agent]]
        measured = tuple(accuracy(experiment, agent, model) for model in audited)
        assert found.openings[agent].row == measured
        assert found.overall[agent] > 0


@pytest.mark.parametrize("auditors", [0, 2])
def test_a_model_that_nobody_can_use_counts_among_those_that_were_submitted(tmp_path, auditors):
    """Also if its agent says nothing more: a friend may retrieve just enough with it."""
    experiment = Experiment(tmp_path, 5, Relay())
    contribute(noise)(experiment, [3])
    meddle(experiment, 3, RETRIEVE, silent)
    just = saying(RETRIEVE, lambda said, _: replace(said, retrieved=(0, 3, 4)))
    meddle(experiment, 4, RETRIEVE, just)
    outcome = experiment.run(train_seconds=60, auditors=auditors)
    assert outcome.round.eliminated == {3: Stage.RETRIEVE}
    assert outcome.round.left == (0, 1, 2, 4)
    if auditors:
        assert_all_scored_what_they_were_drawn_for(experiment, outcome.round)
