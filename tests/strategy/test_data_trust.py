"""A data trust's rounds through Flower's messages, with the real contract."""

from contextlib import closing
from typing import Any

import numpy as np
import pytest
from experiment import OWNER, Outcome, Task
from federation import everybody
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, Strategy
from local_grid import Node, silent
from softmax import arrays_in, record

from flower_chain import DataTrust, DataTrustSettings, audit_messages
from flower_chain.audit_messages import AUDIT
from flower_chain.errors import ConfigError, RunEnded, SealError
from flower_chain.ledger.blockflow import Stage
from flower_chain.ledger.data_trust import TaskHistory
from flower_chain.records import TOKEN_UNITS
from flower_chain.run import DataTrustRun
from flower_chain.store.cid import cid_from_bytes
from flower_chain.updates import weighted_mean

DEPOSIT = 10 * TOKEN_UNITS


def history_of(outcome: Outcome) -> TaskHistory:
    """With what the contract judged."""
    history = outcome.history
    assert isinstance(history, TaskHistory)
    return history


def credits_of(outcome: Outcome) -> list[int]:
    """What each worker can withdraw."""
    with closing(DataTrustRun.open(outcome.path)) as run:
        return [run.contract.call("credits", account) for account in run.experiment.agents]


def outcome_of(task: Task, **settings: Any) -> Outcome:
    """Of a task that ends before its last round."""
    with pytest.raises(RunEnded):
        task.run(**settings)
    return Outcome(task.path / "run", None)


def test_the_best_are_paid_and_all_get_their_deposits(tmp_path):
    outcome = Task(tmp_path, 4).run(rounds=2, reward=8.0, places=2)
    history = history_of(outcome)
    assert history.stage is Stage.FINISHED
    for verdict in history.verdicts.values():
        assert list(verdict.earned.values()) == [2 * TOKEN_UNITS, 2 * TOKEN_UNITS]
        best = sorted(verdict.qualities.values(), reverse=True)[:2]
        assert [verdict.qualities[worker] for worker in verdict.earned] == best
    paid = credits_of(outcome)
    assert sum(paid) == 8 * TOKEN_UNITS + 4 * DEPOSIT
    assert min(paid) >= DEPOSIT


def test_the_model_is_the_mean_of_the_models(tmp_path):
    task = Task(tmp_path, 3)
    outcome = task.run(rounds=2)
    for number in range(2):
        trained = [device.trained[number][1] for device in task.devices]
        expected = weighted_mean(trained, [1, 1, 1])
        found = outcome.model(number + 1)
        assert all(np.array_equal(found[key], expected[key]) for key in expected)


def test_nobody_scores_itself_and_all_that_counts_is_in_a_score(tmp_path):
    task = Task(tmp_path, 3)
    asked: list[tuple[int, bytes]] = []

    def judged(place: int) -> Any:
        def judge(message: Message, context: Context) -> Message:
            asked.append((place, arrays_in(message.content["arrays"])["weight"].tobytes()))
            metrics = {"num-examples": 1, "accuracy": 0.9, "precision": 0.6, "recall": 0.3}
            return Message(RecordDict({"m": MetricRecord(metrics)}), reply_to=message)

        return judge

    for place, device in enumerate(task.devices):
        device.judges = judged(place)
    found = task.run(accuracy_weight=1, precision_weight=2, recall_weight=3).round
    own = [(k, d.trained[0][1]["weight"].tobytes()) for k, d in enumerate(task.devices)]
    assert not set(own) & set(asked)
    expected = round((0.9 + 2 * 0.6 + 3 * 0.3) / 6 * 65535)
    assert {s for opening in found.openings.values() for s in opening.row} <= {
        expected,
        expected - 1,
    }


def test_a_metric_that_weighs_nothing_need_not_be_there(tmp_path):
    task = Task(tmp_path, 3)

    def judge(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 1, "accuracy": 0.5})
        return Message(RecordDict({"m": metrics}), reply_to=message)

    for device in task.devices:
        device.judges = judge
    only = task.run(precision_weight=0, recall_weight=0)
    assert set(only.round.overall) == {0, 1, 2}


# --- penalties -----------------------------------------------------------------------------------


def test_a_worker_below_the_floor_is_not_in_the_mean_and_loses_its_deposit_in_the_end(tmp_path):
    task = Task(tmp_path, 4)
    task.devices[2].step = -0.5
    outcome = task.run(rounds=3, floor_rounds=2, reward=9.0, places=2)
    verdicts = history_of(outcome).verdicts
    assert [verdicts[number].poor for number in range(3)] == [(), (2,), ()]
    assert set(verdicts[2].qualities) == {0, 1, 3}
    honest = [device.trained[0][1] for k, device in enumerate(task.devices) if k != 2]
    expected = weighted_mean(honest, [1, 1, 1])
    assert np.array_equal(outcome.model(1)["weight"], expected["weight"])
    paid = credits_of(outcome)
    assert paid[2] == 0
    assert sum(paid) == 9 * TOKEN_UNITS + 4 * DEPOSIT


def test_a_worker_whose_scores_are_off_loses_its_deposit_to_the_others(tmp_path):
    task = Task(tmp_path, 4)

    def nothing(message: Message, context: Context) -> Message:
        metrics = {"num-examples": 1, "accuracy": 0.0, "precision": 0.0, "recall": 0.0}
        return Message(RecordDict({"m": MetricRecord(metrics)}), reply_to=message)

    task.devices[1].judges = nothing
    outcome = task.run(rounds=2, reward=8.0, places=2)
    assert history_of(outcome).verdicts[0].far == (1,)
    paid = credits_of(outcome)
    assert paid[1] == 0
    assert sum(paid) == 8 * TOKEN_UNITS + 4 * DEPOSIT


def test_a_worker_that_is_silent_loses_its_deposit(tmp_path):
    task = Task(tmp_path, 4)

    def mute(_node: Node, question: Message, reply: Message) -> Message | None:
        return None if audit_messages.read_stage(question.content)["stage"] == "commit" else reply

    task.meddle(3, mute)
    outcome = task.run(stage_seconds=20)
    assert outcome.round.eliminated == {3: Stage.COMMIT}
    assert credits_of(outcome)[3] == 0


# --- leaving -------------------------------------------------------------------------------------


def test_a_worker_leaves_between_rounds_with_its_deposit(tmp_path):
    task = Task(tmp_path, 4)
    task.nodes[1].context.node_config["leave-after"] = 1
    outcome = task.run(rounds=2, reward=8.0, places=2)
    history = history_of(outcome)
    assert history.verdicts[0].left == (1,)
    assert set(history.rounds[1].overall) == {0, 2, 3}
    assert credits_of(outcome)[1] == DEPOSIT + history.verdicts[0].earned.get(1, 0)


def test_a_leave_that_the_worker_did_not_sign_is_not_recorded(tmp_path, caplog):
    task = Task(tmp_path, 3)
    task.nodes[1].context.node_config["leave-after"] = 1

    def forged(_node: Node, question: Message, reply: Message) -> Message:
        said = reply.content.config_records.get(audit_messages.SAID, {})
        if "Leave" in said and not caplog.text.count("did not sign"):
            leave = said["Leave"][0]
            said["Leave"] = [leave[:-6] + "0000" + leave[-2:]]
        return reply

    task.meddle(1, forged)
    assert history_of(task.run(rounds=2)).verdicts[0].left == (1,)
    assert "Agent 1: a leave that it did not sign" in caplog.text


def test_leave_after_must_be_a_number(tmp_path, caplog):
    task = Task(tmp_path, 3)
    task.nodes[1].context.node_config["leave-after"] = "soon"
    task.run(stage_seconds=8)
    assert "leave-after = 'soon'" in caplog.text


def test_a_task_that_all_but_one_leave_ends_with_one_line_and_its_last_model(tmp_path):
    task = Task(tmp_path, 3)
    for node in task.nodes[:2]:
        node.context.node_config["leave-after"] = 1
    with pytest.raises(RunEnded, match="ended after round 1: not enough agents are left"):
        task.run(rounds=3, reward=9.0)
    outcome = Outcome(task.path / "run", None)
    trained = [device.trained[0][1] for device in task.devices]
    assert np.array_equal(outcome.model(1)["weight"], weighted_mean(trained, [1, 1, 1])["weight"])
    assert sum(credits_of(outcome)) == 3 * TOKEN_UNITS + 3 * DEPOSIT


# --- who aggregates ------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [FedAdam, FedMedian])
def test_a_strategy_that_aggregates_in_its_own_way_needs_the_server(tmp_path, inner):
    task = Task(tmp_path, 3)
    with pytest.raises(ConfigError, match=f"{inner.__name__} aggregates in its own way"):
        task.strategy(everybody(inner, task))
    outcome = task.run(everybody(inner, task), rounds=2, aggregation="server")
    assert not np.array_equal(outcome.model(2)["weight"], outcome.model(1)["weight"])


def test_what_a_median_makes_of_the_models_is_the_next_one(tmp_path):
    task = Task(tmp_path, 3)
    outcome = task.run(everybody(FedMedian, task), aggregation="server")
    trained = [device.trained[0][1]["weight"] for device in task.devices]
    assert np.allclose(outcome.model(1)["weight"], np.median(trained, axis=0))


def test_the_server_can_open_models_only_if_it_aggregates(tmp_path):
    for aggregation in ("workers", "server"):
        task = Task(tmp_path / aggregation, 3)
        outcome = task.run(aggregation=aggregation)
        with closing(DataTrustRun.open(outcome.path)) as run:
            for model in outcome.round.contributions.values():
                sealed = run.store.get(cid_from_bytes(model.cid))
                if aggregation == "server":
                    assert run.peers.open(model, sealed, OWNER)
                else:
                    with pytest.raises(SealError, match="not sealed for"):
                        run.peers.open(model, sealed, OWNER)


def test_a_server_that_aggregates_leaves_a_bad_worker_out(tmp_path):
    task = Task(tmp_path, 4)
    task.devices[2].step = -0.5
    outcome = task.run(aggregation="server", reward=8.0)
    honest = [device.trained[0][1] for k, device in enumerate(task.devices) if k != 2]
    expected = weighted_mean(honest, [1, 1, 1])
    assert np.array_equal(outcome.model(1)["weight"], expected["weight"])


class Broken(FedAvg):
    """Makes a model that is none."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        broken = arrays_in(arrays)
        broken["bias"][0] = np.nan
        return record(broken), metrics


def test_an_aggregate_that_is_no_model_is_not_published(tmp_path, caplog):
    task = Task(tmp_path, 3)
    outcome = task.run(everybody(Broken, task), aggregation="server")
    assert np.array_equal(outcome.model(1)["weight"], outcome.model(0)["weight"])
    assert "The aggregate is no model" in caplog.text


def test_workers_train_on_no_other_model_than_theirs(tmp_path, monkeypatch, caplog):
    task = Task(tmp_path, 3)
    conclude = DataTrust._conclude

    def falsified(self: DataTrust, number: int) -> Any:
        arrays = dict(conclude(self, number))
        return arrays | {"bias": arrays["bias"] + 1}

    monkeypatch.setattr(DataTrust, "_conclude", falsified)
    with pytest.raises(RunEnded, match="nobody is left after round 2"):
        task.run(rounds=2, train_seconds=4)
    assert "the aggregate of what was revealed" in caplog.text


# --- the requester -------------------------------------------------------------------------------


def test_a_quorum_that_is_not_reached_gives_all_back(tmp_path):
    task = Task(tmp_path, 3)
    task.meddle(0, silent, AUDIT)
    outcome = outcome_of(task, stage_seconds=5)
    assert credits_of(outcome) == [0, DEPOSIT, DEPOSIT]
    with closing(DataTrustRun.open(outcome.path)) as run:
        assert run.contract.call("held") == 0
        assert run.contract.call("pool") == 100 * TOKEN_UNITS


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"aggregation": "both"}, "aggregation = 'both': it must be one of workers, server"),
        ({"places": 1}, "places = 1: it must be from 2 to 255"),
        ({"bond": 0.0}, "bond = 0: it must be from 1"),
        ({"quorum": 1}, "quorum = 1: it must be from 2 to 3"),
    ],
)
def test_terms_that_can_not_be_kept_are_refused(tmp_path, settings, match):
    with pytest.raises(ConfigError, match=match):
        Task(tmp_path, 3).run(**settings)


def test_an_inner_strategy_that_leaves_workers_out_is_refused(tmp_path):
    settings = DataTrustSettings(run=str(tmp_path / "run"), aggregation="server")
    inner: Strategy = FedAvg(fraction_train=0.5)
    with pytest.raises(ConfigError, match=r"fraction_train = 0\.5"):
        DataTrust(inner, settings)
