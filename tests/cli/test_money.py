"""flower-chain enrol, fund, withdraw and finish, on both ledgers."""

import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from commands import assert_refused
from eth_account import Account
from federation import OWNER, TOKEN, Federation, give
from typer.testing import Result
from web3 import HTTPProvider, Web3

from flower_chain import keys
from flower_chain.cli.money import in_full
from flower_chain.run import RecordAndRewardRun
from flower_chain.strategy import RecordAndReward

Call = Callable[..., Result]
STRANGER = "0x1111111111111111111111111111111111111111"


@pytest.fixture(params=["embedded", "node"])
def federation(request: pytest.FixtureRequest, tmp_path: Path) -> Federation:
    """One round of three devices."""
    made = Federation(tmp_path, devices=3)
    where = "embedded"
    if request.param == "node":
        where = request.getfixturevalue("anvil")
        give(where, OWNER.address)
    made.run(rounds=1, ledger=where)
    return made


@pytest.fixture
def run(federation: Federation) -> Path:
    """Its folder."""
    return federation.path / "run"


@pytest.fixture
def owner_key(federation: Federation) -> Path:
    """The owner's key file."""
    return federation.path / "owner.key"


def asked(run: Path, question: Callable[[RecordAndRewardRun], Any]) -> Any:
    """What the ledger says."""
    with closing(RecordAndRewardRun.open(run)) as opened:
        return question(opened)


def pool(run: Path) -> int:
    """What is left in it."""
    return asked(run, lambda opened: opened.federation.pool)


def balance(run: Path, account: str) -> int:
    """Tokens that an account holds."""
    return asked(run, lambda opened: opened.token.call("balanceOf", account))


def credits(run: Path, account: str) -> int:
    """Tokens that the run owes it."""
    return asked(run, lambda opened: opened.federation.contract.call("credits", account))


def blocks(run: Path) -> int:
    """How long the chain is, or the journal."""
    journal = run / "ledger.journal"
    if journal.exists():
        return journal.stat().st_size
    return asked(run, lambda opened: Web3(HTTPProvider(opened.pointers.ledger)).eth.block_number)


class TestFund:
    def test_a_dry_run_tells_all_and_sends_nothing(self, call, run, owner_key):
        before, length = pool(run), blocks(run)
        done = call("fund", run, "2.5", "--key", owner_key, "--dry-run")
        assert done.exit_code == 0, done.output
        assert "Dry run: nothing was sent." in done.output
        assert (pool(run), blocks(run)) == (before, length)
        assert in_full(before) in done.output
        assert in_full(before + 5 * TOKEN // 2) in done.output
        chain_id = asked(run, lambda opened: opened.pointers.chain_id)
        assert re.search(
            rf"On chain {chain_id}, contract 0x\w{{40}}; about [\d,]+ gas", done.output
        )
        assert OWNER.address in done.output

    def test_puts_tokens_into_the_pool(self, call, run, owner_key):
        before, held = pool(run), balance(run, OWNER.address)
        done = call("fund", run, "2.5", "--key", owner_key)
        assert re.search(r"Done: transaction 0x\w{64}, [\d,]+ gas\.", done.output), done.output
        assert pool(run) == before + 5 * TOKEN // 2
        assert balance(run, OWNER.address) == held - 5 * TOKEN // 2

    @pytest.mark.parametrize(
        "tokens", ["0", "x", "nan", "1e400", "0.0000000000000000001", "Infinity"]
    )
    def test_takes_only_amounts(self, call, run, owner_key, tokens):
        done = call("fund", run, tokens, "--key", owner_key)
        assert_refused(done, "ConfigError", tokens)

    def test_of_more_than_there_is_is_refused_in_one_line(self, call, run, owner_key):
        done = call("fund", run, "2000000000", "--key", owner_key)
        assert_refused(done, "Reverted", "ERC20InsufficientBalance")


class TestWithdraw:
    def test_sends_a_device_what_it_is_owed(self, call, run, owner_key, federation):
        device = federation.accounts[0]
        owed = credits(run, device)
        assert owed > 0
        done = call("withdraw", run, device, "--key", owner_key)
        assert f"Send {in_full(owed)} tokens to {device}" in done.output, done.output
        assert (credits(run, device), balance(run, device)) == (0, owed)

    def test_a_dry_run_sends_nothing(self, call, run, owner_key, federation):
        device = federation.accounts[0]
        owed, length = credits(run, device), blocks(run)
        done = call("withdraw", run, device, "--key", owner_key, "--dry-run")
        assert "Dry run" in done.output
        assert (credits(run, device), blocks(run)) == (owed, length)

    def test_of_nothing_is_refused_in_one_line(self, call, run, owner_key):
        done = call("withdraw", run, STRANGER, "--key", owner_key)
        assert_refused(done, "Reverted", f"NothingToWithdraw({STRANGER})")

    def test_without_an_account_is_for_the_one_that_pays(self, call, run, owner_key):
        done = call("withdraw", run, "--key", owner_key)
        assert_refused(done, "Reverted", "NothingToWithdraw", OWNER.address)

    def test_who_has_no_gas_is_told_in_one_line(self, call, run, federation, tmp_path):
        key = tmp_path / "poor.key"
        poor = keys.load_or_create(key).address
        done = call("withdraw", run, federation.accounts[0], "--key", key)
        assert_refused(done, "LedgerError", poor)
        assert credits(run, federation.accounts[0]) > 0

    def test_an_account_that_is_none_is_told(self, call, run, owner_key):
        assert_refused(call("withdraw", run, "me", "--key", owner_key), "ConfigError", "'me'")


class TestEnrol:
    def test_enrols_accounts_and_files_and_passes_over_those_that_are(
        self, call, run, owner_key, federation, tmp_path
    ):
        listed, named = (Account.create().address for _ in range(2))
        (tmp_path / "more.txt").write_text(f"{listed}  # hospital d\n{federation.accounts[0]}\n")
        done = call("enrol", run, tmp_path / "more.txt", named, "--owner-key", owner_key)
        assert done.exit_code == 0, done.output
        assert "Enrol 2 of 3 devices" in done.output
        assert f"{federation.accounts[0]} is enrolled already" in done.output
        assert asked(run, lambda opened: opened.federation.is_enrolled(listed))
        assert asked(run, lambda opened: opened.federation.is_enrolled(named))

    def test_a_dry_run_enrols_nobody(self, call, run, owner_key):
        done = call("enrol", run, STRANGER, "--owner-key", owner_key, "--dry-run")
        assert "Dry run" in done.output
        assert not asked(run, lambda opened: opened.federation.is_enrolled(STRANGER))

    def test_only_the_owner_can(self, call, run, federation):
        done = call("enrol", run, STRANGER, "--owner-key", federation.path / "keys/0.key")
        assert_refused(done, "Reverted", "NotOwner")

    def test_the_owner_is_no_device(self, call, run, owner_key):
        done = call("enrol", run, OWNER.address, "--owner-key", owner_key)
        assert_refused(done, "Reverted", "NotADevice")

    def test_a_file_that_is_not_there_is_told(self, call, run, owner_key):
        done = call("enrol", run, "nobody.txt", "--owner-key", owner_key)
        assert_refused(done, "ConfigError", "nobody.txt")


class TestFinish:
    def test_gives_the_owner_the_rest_and_ends_the_run(self, call, run, owner_key):
        rest, held = pool(run), balance(run, OWNER.address)
        dry = call("finish", run, "--owner-key", owner_key, "--dry-run")
        assert in_full(held + rest) in dry.output
        assert pool(run) == rest
        done = call("finish", run, "--owner-key", owner_key)
        assert done.exit_code == 0, done.output
        assert (pool(run), balance(run, OWNER.address)) == (0, held + rest)
        again = call("fund", run, "1", "--key", owner_key)
        assert_refused(again, "ConfigError", "is finished")


def test_a_run_is_not_ended_while_contributions_wait_for_their_payment(call, tmp_path, monkeypatch):
    federation = Federation(tmp_path, devices=2)
    with monkeypatch.context() as patch:
        patch.setattr(RecordAndReward, "_settle", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            federation.run(rounds=1)
    finish = ("finish", tmp_path / "run", "--owner-key", tmp_path / "owner.key")
    assert_refused(call(*finish), "ConfigError", "start the server for one round more")
    federation.run(rounds=1)
    assert call(*finish).exit_code == 0


def test_nothing_is_sent_while_the_server_holds_the_embedded_ledger(call, tmp_path):
    federation = Federation(tmp_path, devices=2)
    federation.run(rounds=1)
    run, key = tmp_path / "run", tmp_path / "owner.key"
    with closing(RecordAndRewardRun.open(run, OWNER)):
        assert_refused(call("fund", run, "1", "--key", key), "JournalError", "in use")
        assert call("fund", run, "1", "--key", key, "--dry-run").exit_code == 0


def test_a_keystore_pays_with_the_password_from_the_environment(call, tmp_path, monkeypatch):
    Federation(tmp_path, devices=2).run(rounds=1)
    monkeypatch.setenv(keys.PASSWORD_VARIABLE, "open sesame")
    key = tmp_path / "encrypted.key"
    payer = keys.create(key, "open sesame")
    done = call("fund", tmp_path / "run", "1", "--key", key)
    assert_refused(done, "Reverted", payer.address)


def test_whoever_has_a_copy_of_the_run_can_use_a_node_of_their_own(call, tmp_path, anvil):
    give(anvil, OWNER.address)
    Federation(tmp_path, devices=2).run(rounds=1, ledger=anvil)
    run, key = tmp_path / "run", tmp_path / "owner.key"
    pointers = run / "run.json"
    pointers.write_text(pointers.read_text().replace(anvil, "http://127.0.0.1:1"))
    assert_refused(call("show", run), "NodeError")
    for command in (("show", run), ("verify", run), ("fund", run, 1, "--key", key)):
        done = call(*command, "--ledger", anvil)
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("units", "told"),
    [
        (0, "0"),
        (1, "0.000000000000000001"),
        (-5 * TOKEN // 2, "-2.5"),
        (10**27 + 10**17, "1,000,000,000.1"),
    ],
)
def test_amounts_are_told_with_all_their_digits(units, told):
    assert in_full(units) == told
