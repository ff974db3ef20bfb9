"""The commands on a run of data-trust."""

import json
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from commands import assert_refused
from experiment import OWNER, Task
from typer.testing import Result

from flower_chain import DataTrust
from flower_chain.ledger.blockflow import Stage
from flower_chain.records import TOKEN_UNITS
from flower_chain.run import DataTrustRun
from flower_chain.strategy.peers import Said

Call = Callable[..., Result]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """Two rounds of three workers; nobody asks to have the last one scored, and one leaves."""
    task = Task(tmp_path_factory.mktemp("task"), 4)
    task.nodes[0].context.node_config["leave-after"] = 1
    score = DataTrust._score

    def wait(self: DataTrust, said: Said) -> None:
        if self._number == 0:
            score(self, said)
            return
        found = self._run.experiment
        found.reveal(list(said.openings.values()))
        while found.progress.stage is Stage.SCORE:
            time.sleep(0.1)
            if time.time() > found.progress.deadline:
                self._advance(found.progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DataTrust, "_score", wait)
        task.run(rounds=2, reward=8.0, places=2, stage_seconds=8)
    return task


@pytest.fixture
def path(task: Task) -> Path:
    """The run's folder."""
    return task.path / "run"


def test_show_tells_workers_and_what_they_earned(call, path, task):
    shown = call("show", path)
    assert shown.exit_code == 0, shown.output
    for words in ("workers left", "0 left", "earned", "Qualities in each round", "Workers"):
        assert words in shown.output
    assert task.accounts[3].address in shown.output


def test_show_json_holds_the_same_for_programs(call, path):
    shown = json.loads(call("show", path, "--json").output)
    assert shown["stage"] == "finished"
    assert shown["rounds"][0]["eliminated"] == [{"agent": 0, "stage": "left"}]
    assert sum(int(worker["earned"]) for worker in shown["agents"]) == 4 * TOKEN_UNITS
    assert sum(int(worker["refunded"]) for worker in shown["agents"]) == 44 * TOKEN_UNITS


def test_verify_recomputes_it_with_the_key_of_a_worker(call, path, task):
    verified = call("verify", path, "--key", task.path / "keys" / f"{task.devices[1].number}.key")
    assert verified.exit_code == 0, verified.output
    assert "qualities" in verified.output


def test_withdraw_sends_a_worker_what_it_got(call, path, task):
    whose = task.accounts[0].address
    done = call("withdraw", path, whose, "--key", task.path / "owner.key")
    assert done.exit_code == 0, done.output
    with closing(DataTrustRun.open(path)) as run:
        assert run.token.call("balanceOf", whose) >= 10 * TOKEN_UNITS
        assert run.contract.call("credits", whose) == 0


def test_finish_sends_the_requester_what_nobody_earned(call, path, task):
    with closing(DataTrustRun.open(path)) as run:
        before = run.token.call("balanceOf", OWNER.address)
    owner_key = ("--owner-key", task.path / "owner.key")
    dry = call("finish", path, *owner_key, "--dry-run")
    assert "Send the 4 tokens that nobody earned to the requester" in dry.output
    assert "Dry run: nothing was sent." in dry.output
    assert call("finish", path, *owner_key).exit_code == 0
    with closing(DataTrustRun.open(path)) as run:
        assert run.token.call("balanceOf", OWNER.address) == before + 4 * TOKEN_UNITS
        assert run.contract.call("pool") == run.contract.call("held")


def test_finish_waits_for_the_end_of_a_task(call, tmp_path, monkeypatch):
    def stop(_self: DataTrust, _said: Said) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(DataTrust, "_train", stop)
    task = Task(tmp_path, 2)
    with pytest.raises(KeyboardInterrupt):
        task.run()
    done = call("finish", tmp_path / "run", "--owner-key", tmp_path / "owner.key")
    assert_refused(done, "the task is at the stage train: it ends by itself")


@pytest.mark.parametrize("command", [("enrol", "0x" + 40 * "1"), ("fund", "5")])
def test_what_is_agreed_before_can_not_be_changed(call, path, task, command):
    name, word = command
    option = "--key" if name == "fund" else "--owner-key"
    done = call(name, path, word, option, task.path / "owner.key")
    assert_refused(done, "is a run of data-trust: who takes part in it")
