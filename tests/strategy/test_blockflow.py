"""BlockFLow's rounds through Flower's messages, with the real contract."""

from contextlib import closing
from typing import Any

import numpy as np
import pytest
from eth_account import Account
from experiment import OWNER, Experiment
from flwr.app import ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedProx
from local_grid import Node, silent
from softmax import record

import flower_chain
from flower_chain import BlockFlow, BlockFlowSettings, audit_messages, messages
from flower_chain.errors import ConfigError, RunEnded, SealError
from flower_chain.keys import public_key
from flower_chain.ledger import EmbeddedLedger
from flower_chain.ledger.blockflow import Stage
from flower_chain.records import TOKEN_UNITS
from flower_chain.rules.blockflow import refunds, score, to_score
from flower_chain.run import BlockFlowRun
from flower_chain.store.cid import cid_from_bytes
from flower_chain.store.seal import unseal
from flower_chain.updates import unpack, weighted_mean


def context(values: dict[str, Any]) -> Context:
    """A ServerApp's."""
    return Context(7, 0, {}, RecordDict(), values)


def test_the_model_is_the_mean_that_the_scores_weigh(tmp_path):
    experiment = Experiment(tmp_path, 3)
    outcome = experiment.run(rounds=2)
    for number, found in enumerate(outcome.history.rounds):
        table = np.array([found.openings[agent].row for agent in range(3)])
        assert tuple(found.overall.values()) == score(table).overall
        trained = [device.trained[number][1] for device in experiment.devices]
        expected = weighted_mean(trained, score(table).overall)
        model = outcome.model(number + 1)
        assert all(np.array_equal(model[key], expected[key]) for key in expected)
    assert outcome.result is not None
    assert outcome.result.arrays["weight"].numpy().tobytes() == model["weight"].tobytes()


def test_a_score_is_what_evaluate_says_of_the_model_on_all_of_the_devices_data(tmp_path):
    experiment = Experiment(tmp_path, 3)
    found = experiment.run().round
    for auditor, device in enumerate(experiment.devices):
        for agent, other in enumerate(experiment.devices):
            asked = Message(
                RecordDict({"arrays": record(other.trained[0][1])}), 1, MessageType.EVALUATE
            )
            told = device.evaluate(asked, experiment.nodes[auditor].context)
            accuracy = told.content["metrics"]["accuracy"]
            assert found.openings[auditor].row[agent] == to_score(accuracy)


def test_drawn_auditors_score_only_the_models_that_they_were_drawn_for(tmp_path):
    experiment = Experiment(tmp_path, 6)
    outcome = experiment.run(rounds=2, auditors=2)
    for number, found in enumerate(outcome.history.rounds):
        assert found.left == tuple(range(6))
        assert all(len(opening.row) < 6 for opening in found.openings.values())
        trained = [device.trained[number][1] for device in experiment.devices]
        expected = weighted_mean(trained, list(found.overall.values()))
        assert np.array_equal(outcome.model(number + 1)["weight"], expected["weight"])


def test_each_round_shares_the_stakes_and_the_last_gives_back_the_rest(tmp_path):
    outcome = Experiment(tmp_path, 3).run(rounds=2, bond=5.0, stake=1.0)
    first, second = outcome.history.rounds
    pot = 3 * TOKEN_UNITS
    assert list(first.refunded.values()) == list(refunds(pot, list(first.overall.values())))
    shares = refunds(pot, list(second.overall.values()))
    assert list(second.refunded.values()) == [share + 3 * TOKEN_UNITS for share in shares]
    with closing(BlockFlowRun.open(outcome.path)) as run:
        accounts = run.experiment.agents
        credits_ = [run.contract.call("credits", account) for account in accounts]
    total = [first.refunded[agent] + second.refunded[agent] for agent in range(3)]
    assert credits_ == total
    assert sum(total) == 15 * TOKEN_UNITS


def test_the_server_can_open_no_model_and_every_agent_and_reader_can(tmp_path):
    experiment = Experiment(tmp_path, 3)
    reader = tmp_path / "readers"
    outsider = Account.from_key(b"\7" * 32)
    reader.write_text(public_key(outsider).hex())
    outcome = experiment.run(readers=str(reader))
    with closing(BlockFlowRun.open(outcome.path)) as run:
        for model in outcome.round.contributions.values():
            sealed = run.store.get(cid_from_bytes(model.cid))
            binding = run.peers.binding(model)
            for account in (*experiment.accounts, outsider):
                trained = experiment.devices[model.agent].trained[0][1]
                opened = unpack(unseal(sealed, bytes(account.key), binding))
                assert np.array_equal(opened["weight"], trained["weight"])
            with pytest.raises(SealError):
                unseal(sealed, bytes(OWNER.key), binding)


def test_nothing_in_a_message_to_the_server_holds_a_model_but_the_aggregate(tmp_path):
    experiment = Experiment(tmp_path, 3)
    experiment.run()
    trained = {d.trained[0][1]["weight"].tobytes() for d in experiment.devices}
    for question, reply in experiment.grid.said:
        assert reply is not None
        for arrays in reply.content.array_records.values():
            assert not any(model in array.data for array in arrays.values() for model in trained)
        if question.metadata.message_type == MessageType.TRAIN:
            assert list(reply.content.array_records) == [messages.SEALED]


# --- who takes part ------------------------------------------------------------------------------


def test_an_agent_that_does_not_join_is_not_in_the_run(tmp_path):
    experiment = Experiment(tmp_path, 4)
    experiment.nodes[2].context.node_config["max-bond"] = 9
    outcome = experiment.run(quorum=3, stage_seconds=5)
    assert outcome.round.left == (0, 1, 3)
    assert experiment.devices[2].trained == []


def test_a_device_with_a_key_file_posts_nothing_unless_its_operator_says_so(tmp_path, caplog):
    experiment = Experiment(tmp_path, 3)
    del experiment.nodes[0].context.node_config["max-bond"]
    with pytest.raises(RunEnded, match="2 agents posted their bonds: the quorum is 3"):
        experiment.run(stage_seconds=6)
    assert (
        "the bond is 10 tokens, but max-bond in the SuperNode's --node-config is 0" in caplog.text
    )


def test_a_device_whose_evaluate_gives_no_score_keeps_its_bond(tmp_path, caplog):
    experiment = Experiment(tmp_path, 3)
    with pytest.raises(RunEnded, match="0 agents posted"):
        experiment.run(metric="f1", stage_seconds=2)
    assert "evaluate() returned f1 = None: not a number" in caplog.text


def test_those_who_are_listed_are_waited_for_and_others_left_out(tmp_path):
    experiment = Experiment(tmp_path, 4)
    listed = tmp_path / "listed"
    listed.write_text("\n".join(account.address for account in experiment.accounts[:3]))
    asked: list[Node] = []

    def slow(node: Node, _question: Message, reply: Message) -> Message | None:
        asked.append(node)
        return reply if len(asked) > 1 else None

    experiment.meddle(0, slow, messages.HELLO)
    inner = FedAvg(fraction_evaluate=0.0, min_train_nodes=3, min_available_nodes=3)
    outcome = experiment.run(inner, enrol=str(listed))
    assert outcome.round.left == (0, 1, 2)


def test_too_few_agents_are_told_before_anything_is_recorded(tmp_path):
    experiment = Experiment(tmp_path, 3)
    experiment.meddle(0, silent, messages.HELLO)
    with pytest.raises(ConfigError, match="2 agents want to take part, but the strategy needs 3"):
        experiment.run()
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_token_that_is_there_is_posted_by_permit_or_after_an_approval(tmp_path):
    experiment = Experiment(tmp_path, 3)
    (tmp_path / "run").mkdir()
    with EmbeddedLedger(tmp_path / "run" / "ledger.journal", [OWNER.address]) as ledger:
        token = ledger.deploy(OWNER, "RewardToken", 10**24)
        for account in experiment.accounts:
            token.transact(OWNER, "transfer", account.address, 10 * TOKEN_UNITS)
    outcome = experiment.run(token=token.address)
    assert outcome.round.left == (0, 1, 2)
    with closing(BlockFlowRun.open(outcome.path)) as run:
        assert run.pointers.token == token.address
        assert run.token.call("balanceOf", run.contract.address) == 30 * TOKEN_UNITS


# --- who fails -----------------------------------------------------------------------------------


def test_agents_that_are_silent_in_a_stage_are_out_and_the_others_go_on(tmp_path):
    experiment = Experiment(tmp_path, 9)
    silent_in = {5: Stage.TRAIN, 6: Stage.RETRIEVE, 7: Stage.COMMIT, 8: Stage.REVEAL}

    def mute(node: Node, question: Message, reply: Message) -> Message | None:
        asked = audit_messages.read_stage(question.content)["stage"]
        return None if asked == str(silent_in[experiment.nodes.index(node)]) else reply

    for agent in silent_in:
        experiment.meddle(agent, mute, MessageType.TRAIN)
        experiment.meddle(agent, mute)
    outcome = experiment.run(rounds=2, stage_seconds=4, train_seconds=4)
    first, second = outcome.history.rounds
    assert first.eliminated == silent_in
    assert first.left == second.left == (0, 1, 2, 3, 4)
    assert sum(first.refunded.values()) == (5 * 1 + 4 * 10) * TOKEN_UNITS


def test_a_run_with_nobody_left_ends_with_one_line(tmp_path):
    experiment = Experiment(tmp_path, 3)
    for agent in range(3):
        experiment.meddle(agent, silent, MessageType.TRAIN)
    with pytest.raises(RunEnded, match="nobody is left after round 1"):
        experiment.run(rounds=2, train_seconds=2)
    with pytest.raises(RunEnded, match="the run ended in round 1 of 2"):
        experiment.run(rounds=2, train_seconds=2)


def test_an_agent_whose_evaluate_fails_on_a_model_gives_it_no_points(tmp_path, caplog):
    experiment = Experiment(tmp_path, 3)
    honest, bad = experiment.devices[0].evaluate, experiment.devices[2]

    def picky(message: Message, told: Context) -> Message:
        arrays = message.content["arrays"]["weight"].numpy()
        if bad.trained and np.array_equal(arrays, bad.trained[0][1]["weight"]):
            raise FloatingPointError("overflow")
        return honest(message, told)

    experiment.devices[0].judges = picky
    assert experiment.run().round.openings[0].row[2] == 0
    assert "evaluate() failed on it: overflow" in caplog.text


# --- what Flower sees ----------------------------------------------------------------------------


def test_metrics_are_weighted_by_the_scores(tmp_path):
    experiment = Experiment(tmp_path, 3)

    def told(_node: Node, _question: Message, reply: Message) -> Message:
        number = experiment.nodes.index(_node)
        reply.content["metrics"] = MetricRecord({"num-examples": 10**6, "loss": float(number)})
        return reply

    for agent in range(3):
        experiment.meddle(agent, told, MessageType.TRAIN)
    outcome = experiment.run()
    overall = outcome.round.overall
    assert outcome.result is not None
    loss = outcome.result.train_metrics_clientapp[1]["loss"]
    assert loss == pytest.approx((overall[1] + 2 * overall[2]) / sum(overall.values()))


def test_the_inner_strategy_configures_the_training(tmp_path):
    experiment = Experiment(tmp_path, 3)
    inner = FedProx(
        fraction_evaluate=0.0, min_train_nodes=3, min_available_nodes=3, proximal_mu=0.25
    )
    experiment.run(inner, rounds=2)
    configs = experiment.devices[0].configs
    assert [config["server-round"] for config in configs] == [1, 2]
    assert configs[0]["proximal-mu"] == 0.25


def test_evaluate_gets_what_evaluations_are_configured_with(tmp_path):
    experiment = Experiment(tmp_path, 3)
    seen: list[dict[str, Any]] = []
    honest = experiment.devices[0].evaluate

    def noting(message: Message, told: Context) -> Message:
        if "config" in message.content:
            seen.append(dict(message.content["config"]))
        return honest(message, told)

    experiment.devices[0].judges = noting
    strategy = experiment.strategy()
    config = ConfigRecord({"batch-size": 5})
    strategy.start(experiment.grid, record(experiment.initial), 1, evaluate_config=config)
    assert seen == [{"batch-size": 5, "server-round": 1}] * 3


def test_a_strategy_that_aggregates_in_its_own_way_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="FedAdam aggregates in its own way"):
        BlockFlow(FedAdam(), BlockFlowSettings(str(tmp_path)))


def test_a_strategy_that_leaves_agents_out_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"fraction_train = 0\.5"):
        BlockFlow(FedAvg(fraction_train=0.5), BlockFlowSettings(str(tmp_path)))


def test_wrap_makes_it_from_the_run_config_without_an_examiner(tmp_path):
    values = {"chain.run": str(tmp_path), "chain.scheme": "blockflow", "chain.bond": 3, "x": 1}
    wrapped = flower_chain.wrap(FedAvg(), context(values))
    assert isinstance(wrapped, BlockFlow)
    assert wrapped.settings == BlockFlowSettings(str(tmp_path), bond=3)


def test_wrap_wants_an_examiner_where_the_owner_judges(tmp_path):
    with pytest.raises(ConfigError, match=r"wrap\(\) needs an Examiner"):
        flower_chain.wrap(FedAvg(), context({"chain.run": str(tmp_path)}))
