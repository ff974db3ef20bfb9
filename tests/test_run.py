"""A run on disk that can't be what it was, and money that was there before it."""

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from federation import OWNER, TOKEN, Federation, give

from flower_chain.errors import ConfigError, Damaged, WrongChain
from flower_chain.keys import public_key
from flower_chain.ledger import JsonRpcLedger
from flower_chain.run import RecordAndRewardRun

NOBODYS = bytes(32)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"ledger": "embedded", "more": 1}'])
def test_pointers_that_are_damaged_are_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)

    with pytest.raises(ConfigError, match=r"run\.json is damaged"):
        RecordAndRewardRun.open(tmp_path)


def test_a_plan_in_the_pointers_that_is_none_is_told(tmp_path: Path) -> None:
    pointers = Federation(tmp_path, devices=1).run().path / "run.json"
    pointers.write_text(json.dumps(json.loads(pointers.read_text()) | {"plan": "{}"}))

    with pytest.raises(ConfigError, match=r"run\.json is damaged: not a plan"):
        RecordAndRewardRun.open(tmp_path / "run")


def test_a_chain_that_was_made_anew_is_told(tmp_path: Path, start_anvil) -> None:
    """It has the same number, but not the contract."""
    first, second = start_anvil().url, start_anvil().url
    give(first, OWNER.address)
    contract = Federation(tmp_path, devices=1).run(ledger=first).run.pointers.contract

    with pytest.raises(WrongChain, match=f"{second} has no contract at {contract}"):
        RecordAndRewardRun.open(tmp_path / "run", None, second)


def test_a_run_on_an_embedded_ledger_is_not_looked_for_elsewhere(tmp_path: Path) -> None:
    Federation(tmp_path, devices=1).run()

    with pytest.raises(ConfigError, match=r"ledger is http://\*\*\*@node\.example, .* embedded"):
        RecordAndRewardRun.open(tmp_path / "run", None, "http://me:passw0rd@node.example")


def test_a_model_that_is_not_the_one_the_ledger_names_is_not_gone_on_from(tmp_path: Path) -> None:
    Federation(tmp_path, devices=1).run()
    with closing(RecordAndRewardRun.open(tmp_path / "run", OWNER)) as run:
        version, model = run.current()
        following = replace(run.model(model, version.number + 1, 0), digest=NOBODYS)
        run.federation.settle(version, run.seed(version.number), following)

        with pytest.raises(Damaged, match=f"has digest .*, the ledger's is {NOBODYS.hex()}"):
            run.current()


def test_the_owner_is_no_reader(tmp_path: Path) -> None:
    (tmp_path / "readers.txt").write_text(public_key(OWNER).hex())

    with pytest.raises(ConfigError, match="readers lists the owner's key"):
        Federation(tmp_path, devices=1).run(readers=str(tmp_path / "readers.txt"))


def test_a_run_pays_in_a_token_that_was_there_before(tmp_path: Path, anvil, owner) -> None:
    give(anvil, OWNER.address)
    with JsonRpcLedger(anvil) as ledger:
        token = ledger.deploy(owner, "RewardToken", 100 * TOKEN)
        token.transact(owner, "transfer", OWNER.address, 30 * TOKEN)
    outcome = Federation(tmp_path, devices=2).run(ledger=anvil, token=token.address, pool=20)

    assert outcome.run.token.address == token.address
    earned = sum(device.earned for device in outcome.summary.devices)
    assert outcome.summary.pool == 20 * TOKEN - earned < 20 * TOKEN
    assert outcome.run.token.call("balanceOf", OWNER.address) == 10 * TOKEN
    outcome.verify()


def test_a_token_that_is_not_there_is_told_before_the_run_begins(tmp_path: Path, anvil) -> None:
    nobody = "0x" + 40 * "1"
    give(anvil, OWNER.address)

    with pytest.raises(ConfigError, match=f"token = {nobody}: no contract is there"):
        Federation(tmp_path, devices=1).run(ledger=anvil, token=nobody)
    assert not (tmp_path / "run" / "run.json").exists()
