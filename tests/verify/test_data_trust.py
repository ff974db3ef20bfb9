"""A data trust's task recomputed, and every change to it found."""

import json
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from experiment import OWNER, Outcome
from experiment import Task as Flowers
from federation import everybody
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedMedian
from softmax import examiner

from flower_chain import DataTrust
from flower_chain.errors import ConfigError, RunEnded, Unverified
from flower_chain.ledger.blockflow import Stage
from flower_chain.ledger.data_trust import Task, TaskHistory
from flower_chain.records import TOKEN_UNITS
from flower_chain.run import DataTrustRun, open_run
from flower_chain.run import data_trust as run_module
from flower_chain.strategy.peers import Said
from flower_chain.verify import Report, verify

WORKERS = 6
LEAVES, BAD, LIAR = 1, 2, 4
Change = Callable[[TaskHistory], None]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Flowers:
    """One leaves after the first round, a bad one is out after the second, a liar after the third.

    Three are left, who go on to the end.
    """
    task = Flowers(tmp_path_factory.mktemp("finished"), WORKERS)
    task.nodes[LEAVES].context.node_config["leave-after"] = 1
    task.devices[BAD].step = -0.5
    liar = task.devices[LIAR]

    def lie(message: Message, context: Context) -> Message:
        if len(liar.trained) < 3:
            return liar.evaluate(message, context)
        metrics = {"num-examples": 1, "accuracy": 0.0, "precision": 0.0, "recall": 0.0}
        return Message(RecordDict({"m": MetricRecord(metrics)}), reply_to=message)

    liar.judges = lie
    task.run(rounds=4, floor_rounds=2, reward=12.0, places=2)
    with closing(DataTrustRun.open(task.path / "run", OWNER)) as opened:
        opened.contract.transact(OWNER, "withdraw", task.accounts[3].address)
    return task


@pytest.fixture
def path(finished: Flowers, tmp_path: Path) -> Path:
    """A copy to do harm to."""
    return Path(shutil.copytree(finished.path / "run", tmp_path / "run"))


def check(path: Path, reader: LocalAccount | None = None) -> Report:
    """The last report."""
    with closing(open_run(path)) as opened:
        *_, report = verify(opened, reader)
    return report


def found(path: Path, match: str, reader: LocalAccount | None = None) -> None:
    """Assert that this is found to be wrong."""
    with pytest.raises(Unverified, match=match):
        check(path, reader)


def test_workers_can_check_everything(finished):
    report = check(finished.path / "run", finished.accounts[0])
    scored = 6 + 5 + 4 + 3
    assert report.checked | {"signatures": 0} == {
        "contracts": 1,
        "terms": 11 + WORKERS,
        "models": 5,
        "signatures": 0,
        "openings": scored,
        "stages": 4 * 4,
        "qualities": scored,
        "rewards": 4 * 2,
        "refunds": 6 + 4 + 3 + 3,
        "stored models": scored,
        "opened models": scored,
        "aggregates": 4,
        "balances": 4 + 2,  # of those that got anything
    }
    assert report.checked["signatures"] == 3 * scored + 1  # and one leave
    assert report.unchecked == ["the agents' scores: each measured them on its own data"]


def test_without_a_key_what_needs_one_is_told(finished):
    report = check(finished.path / "run")
    assert report.checked["rewards"] == 4 * 2
    assert "opened models" not in report.checked
    assert any("what the sealed models hold" in word for word in report.unchecked)


def test_a_stranger_and_an_examiner_are_refused(finished):
    with pytest.raises(ConfigError, match="for whom nothing in this run is sealed"):
        check(finished.path / "run", Account.from_key(b"\7" * 32))
    with (
        closing(open_run(finished.path / "run")) as opened,
        pytest.raises(ConfigError, match="a run of data-trust has no Examiner"),
    ):
        verify(opened, None, examiner())


def another_median(history: TaskHistory) -> None:
    history.verdicts[0].medians[0] += 1


def another_quality(history: TaskHistory) -> None:
    history.verdicts[1].qualities[0] += 1


def spare_the_liar(history: TaskHistory) -> None:
    history.verdicts[2].far = ()


def spare_the_bad_one(history: TaskHistory) -> None:
    history.verdicts[1].poor = ()


def other_ranks(history: TaskHistory) -> None:
    earned = history.verdicts[0].earned
    history.verdicts[0].earned = dict(reversed(earned.items()))


def another_reward(history: TaskHistory) -> None:
    earned = history.verdicts[3].earned
    history.verdicts[3].earned = {worker: amount + 1 for worker, amount in earned.items()}


def another_payment(history: TaskHistory) -> None:
    history.rounds[3].refunded[0] += 1


def nobody_leaves(history: TaskHistory) -> None:
    history.verdicts[0].leaving.clear()


def another_leaves(history: TaskHistory) -> None:
    history.verdicts[0].left = (3,)


def a_leave_that_nobody_signed(history: TaskHistory) -> None:
    sent = history.rounds[0].sent
    (leave,) = [said for said in sent if type(said).__name__ == "Leave"]
    sent[replace(leave, agent=0)] = sent.pop(leave)


def another_score(history: TaskHistory) -> None:
    openings = history.rounds[0].openings
    openings[0] = replace(openings[0], row=(0, *openings[0].row[1:]))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (another_median, r"round 0, medians: \{.*\}, by the rules"),
        (another_quality, r"round 1, qualities: \{.*\}, by the rules"),
        (spare_the_liar, r"round 2, far: \(\), by the rules \(4,\)"),
        (spare_the_bad_one, r"round 1, poor: \(\), by the rules \(2,\)"),
        (other_ranks, r"round 0, rewards: \{.*\}, by the rules"),
        (another_reward, r"round 3, rewards: \{.*\}, by the rules"),
        (another_payment, r"round 3, refund of agent 0 \(0x\w+\): \d+, by the rules \d+"),
        (nobody_leaves, r"round 0: workers \(1,\) left, but \[\] wanted to"),
        (another_leaves, r"round 0: workers \(3,\) left, but \[1\] wanted to"),
        (a_leave_that_nobody_signed, r"round 0, Leave of agent 0 \(0x\w+\): not signed"),
        (another_score, r"round 0, scores of agent 0 \(0x\w+\): not what it committed to"),
    ],
)
def test_what_the_ledger_tells_wrongly_is_found(finished, monkeypatch, change, match):
    told = Task.history

    def tell(task: Task) -> TaskHistory:
        history = told(task)
        change(history)
        return history

    monkeypatch.setattr(Task, "history", tell)
    found(finished.path / "run", match)


def test_another_model_than_the_mean_is_found(path, finished):
    announced = Task.history

    def swapped(task: Task) -> TaskHistory:
        history = announced(task)
        history.announced[1] = history.announced[2]
        return history

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Task, "history", swapped)
        found(path, "round 1, model: not the mean of what was scored", finished.accounts[0])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"reward": 7 * TOKEN_UNITS}, "reward is 8000000000000000000, but the contract enforces"),
        ({"rounds": 2}, "rounds is 1, but the contract enforces 2"),
    ],
)
def test_terms_that_the_contract_does_not_enforce_are_found(tmp_path, monkeypatch, change, match):
    honest = run_module._terms
    monkeypatch.setattr(run_module, "_terms", lambda *a: replace(honest(*a), **change))
    task = Flowers(tmp_path, 3)
    try:
        task.run(reward=8.0)
    finally:
        found(tmp_path / "run", f"plan: {match}")


@pytest.mark.parametrize(("name", "value"), [("places", 3), ("floor", 1), ("patience", 9)])
def test_another_rule_is_found(tmp_path, monkeypatch, name, value):
    honest = run_module._terms

    def other(*args: object) -> object:
        terms = honest(*args)
        return replace(terms, rule=replace(terms.rule, **{name: value}))

    monkeypatch.setattr(run_module, "_terms", other)
    Flowers(tmp_path, 3).run(reward=8.0, places=2)
    found(tmp_path / "run", f"plan: {name} is .*, but the contract enforces {value}")


# --- tasks that end otherwise --------------------------------------------------------------------


def test_what_another_strategy_made_is_not_recomputed(tmp_path):
    task = Flowers(tmp_path, 3)
    outcome = task.run(everybody(FedMedian, task), aggregation="server")
    report = check(outcome.path, task.accounts[0])
    assert "aggregates" not in report.checked
    assert report.unchecked[-1] == "the aggregates: the server's FedMedian made them"


def test_a_task_that_never_began_is_checked(tmp_path):
    task = Flowers(tmp_path, 3)
    for node in task.nodes:
        node.context.node_config["max-bond"] = 1
    with pytest.raises(RunEnded, match="0 agents posted their bonds"):
        task.run(stage_seconds=3)
    assert check(tmp_path / "run").checked["terms"] == 11 + 3


def test_a_task_that_goes_on_is_checked_as_far_as_it_is(tmp_path, monkeypatch):
    def stop(_self: DataTrust, _said: Said) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(DataTrust, "_commit", stop)
    with pytest.raises(KeyboardInterrupt):
        Flowers(tmp_path, 3).run()
    assert "round 0: it is at the stage commit" in check(tmp_path / "run").unchecked


@pytest.mark.parametrize("left", [1, 2])
def test_a_task_that_most_leave_is_checked(tmp_path, left):
    task = Flowers(tmp_path, 3)
    for node in task.nodes[left:]:
        node.context.node_config["leave-after"] = 1
    rounds = 2
    if left == 1:
        with pytest.raises(RunEnded):
            task.run(rounds=rounds)
    else:
        task.run(rounds=rounds)
    report = check(tmp_path / "run", task.accounts[0])
    assert report.checked["aggregates"] == (1 if left == 1 else rounds)


def test_a_round_that_nobody_scored_is_checked(tmp_path, monkeypatch):
    """Its reward is nobody's, and the requester's again."""

    def wait(self: DataTrust, said: Said) -> None:
        task = self._run.experiment
        task.reveal(list(said.openings.values()))
        while task.progress.stage is Stage.SCORE:
            time.sleep(0.2)
            if time.time() > task.progress.deadline:
                self._advance(task.progress)

    monkeypatch.setattr(DataTrust, "_score", wait)
    task = Flowers(tmp_path, 3)
    outcome = task.run(rounds=1, stage_seconds=6, reward=8.0)
    report = check(outcome.path, task.accounts[0])
    assert "rewards" not in report.checked
    assert report.checked["aggregates"] == 1
    assert nobodys(outcome) == 8 * TOKEN_UNITS


def nobodys(outcome: Outcome) -> int:
    """What the contract holds for nobody."""
    with closing(DataTrustRun.open(outcome.path)) as run:
        return int(run.contract.call("pool")) - int(run.contract.call("held"))


def test_a_changed_plan_is_found(path):
    pointers = json.loads((path / "run.json").read_text())
    plan = json.loads(pointers["plan"]) | {"accuracy": 1}
    pointers["plan"] = json.dumps(plan, sort_keys=True, separators=(",", ":"))
    (path / "run.json").write_text(json.dumps(pointers))
    found(path, "plan: its digest")
