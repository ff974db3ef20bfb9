"""The commands on a run of blockflow."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from commands import assert_refused
from play import OWNER, Play
from typer.testing import Result

from flower_chain.cli.money import in_full
from flower_chain.records import TOKEN_UNITS
from flower_chain.run import BlockFlowRun

Call = Callable[..., Result]
EVERYBODY, OTHERS = (0, 1, 2, 3), (0, 1, 2)


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """Two rounds of four agents, the last of which is late in the second."""
    play = Play(tmp_path, rounds=2)
    for name, account in (("owner", OWNER), ("agent", play.accounts[0])):
        key = tmp_path / f"{name}.key"
        key.touch(0o600)
        key.write_text(bytes(account.key).hex())
    play.join(EVERYBODY)
    play.play(EVERYBODY)
    play.train(OTHERS)
    play.wait()
    play.retrieve(OTHERS, OTHERS)
    play.commit(OTHERS)
    play.score(OTHERS)
    play.publish()
    play.run.close()
    return play


@pytest.fixture
def owner_key(play: Play) -> Path:
    """Who pays for gas."""
    return play.path.parent / "owner.key"


def owed(play: Play, agent: int) -> tuple[int, int]:
    """What an agent can claim, and what it has."""
    with closing(BlockFlowRun.open(play.path)) as run:
        account = play.accounts[agent].address
        _, refund = run.contract.call("agents", agent)
        return refund, run.token.call("balanceOf", account)


def test_show_tells_rounds_agents_and_scores(call, play):
    shown = call("show", play.path)
    assert shown.exit_code == 0, shown.output
    for words in ("settled", "3 in train", play.accounts[3].address, "Overall scores", "100"):
        assert words in shown.output


def test_show_json_holds_the_same_for_programs(call, play):
    shown = json.loads(call("show", play.path, "--json").output)
    first, last = shown["rounds"]
    assert (shown["stage"], first["agents"], last["agents"]) == ("finished", 4, 3)
    assert last["eliminated"] == [{"agent": 3, "stage": "train"}]
    assert int(first["refunded"]) == 4 * TOKEN_UNITS
    assert int(first["refunded"]) + int(last["refunded"]) == 20 * TOKEN_UNITS
    assert [agent["scores"][1] is None for agent in shown["agents"]] == [False] * 3 + [True]
    assert [int(agent["balance"]) for agent in shown["agents"]] == [
        owed(play, agent)[0] for agent in EVERYBODY
    ]


def test_show_tells_of_an_experiment_that_has_not_begun(call, tmp_path):
    play = Play(tmp_path)
    play.run.close()
    shown = call("show", play.path)
    assert "enrol" in shown.output
    assert "Overall scores" not in shown.output


@pytest.mark.parametrize("option", ["--key", "--owner-key"])
def test_verify_takes_the_key_of_an_agent(call, play, option):
    done = call("verify", play.path, option, play.path.parent / "agent.key")
    assert done.exit_code == 0, done.output
    assert "7 opened models" in done.output


def test_verify_without_a_key_says_what_it_left_out(call, play):
    told = json.loads(call("verify", play.path, "--json").output)
    assert told["verified"] is True
    assert any("the aggregates: needs the key of an agent" in word for word in told["unchecked"])


@pytest.mark.parametrize(
    "words",
    [("enrol", "0x" + 40 * "1", "--owner-key"), ("fund", "1", "--key"), ("finish", "--owner-key")],
)
def test_what_the_scheme_has_no_use_for_says_so_in_one_line(call, play, owner_key, words):
    command, *others = words
    done = call(command, play.path, *others, owner_key)
    assert_refused(done, "ConfigError", "is a run of blockflow", "it ends by itself")


def test_withdraw_claims_for_an_agent(call, play, owner_key):
    refund, had = owed(play, 0)
    asked = ("withdraw", play.path, play.accounts[0].address, "--key", owner_key)
    dry = call(*asked, "--dry-run")
    assert f"Send {in_full(refund)} tokens" in dry.output, dry.output
    assert owed(play, 0) == (refund, had)
    done = call(*asked)
    assert done.exit_code == 0, done.output
    assert owed(play, 0) == (0, had + refund)
    assert_refused(call(*asked), "Reverted", "NothingToWithdraw")
    assert call("verify", play.path).exit_code == 0


def test_withdraw_sends_what_somebody_else_has_claimed(call, play, owner_key):
    refund, had = owed(play, 1)
    with closing(BlockFlowRun.open(play.path, OWNER)) as run:
        run.experiment.claim(EVERYBODY)
    done = call("withdraw", play.path, play.accounts[1].address, "--key", owner_key)
    assert done.exit_code == 0, done.output
    assert owed(play, 1) == (0, had + refund)
