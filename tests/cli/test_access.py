"""flower-chain grant and revoke, and what show and verify make of them."""

import json
import re
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from commands import assert_refused
from eth_account import Account
from experiment import Task
from federation import OWNER, Federation, give
from golden_seal import PEM, RSA_READER
from play import OWNER as RELAY
from play import Play
from typer.testing import Result

from flower_chain.keys import public_key
from flower_chain.run import open_run
from flower_chain.store.cid import cid_from_bytes

Call = Callable[..., Result]
ALICE, BOB = Account.from_key(b"\x0a" * 32), Account.from_key(b"\x0b" * 32)
ALICES, BOBS = public_key(ALICE).hex(), public_key(BOB).hex()
RSAS = RSA_READER.public_key.hex()


def key_files(folder: Path) -> None:
    """Of those who play a part."""
    texts = {"alice": bytes(ALICE.key).hex(), "bob": bytes(BOB.key).hex(), "rsa": PEM.decode()}
    for name, text in texts.items():
        (folder / name).touch(0o600)
        (folder / name).write_text(text)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds of three devices."""
    federation = Federation(tmp_path_factory.mktemp("access"), devices=3)
    federation.run(rounds=2)
    return federation.path


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy, with key files beside it."""
    copied = Path(shutil.copytree(finished, tmp_path / "copy"))
    key_files(copied)
    return copied


def grant(call: Call, folder: Path, reader: str = ALICES, *words: object) -> Result:
    """By the owner."""
    return call("grant", folder / "run", reader, "--key", folder / "owner.key", *words)


def revoke(call: Call, folder: Path, reader: str = ALICES, *words: object) -> Result:
    """By the owner."""
    return call("revoke", folder / "run", reader, "--key", folder / "owner.key", *words)


def verified(call: Call, folder: Path, name: str) -> dict:
    """What a reader is told."""
    return json.loads(call("verify", folder / "run", "--key", folder / name, "--json").output)


def grants(call: Call, folder: Path) -> list[dict]:
    """As `show --json` tells them."""
    return json.loads(call("show", folder / "run", "--json").output)["grants"]


# --- granting ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reader", "name"), [(ALICES, "alice"), (RSAS, "rsa")])
def test_a_reader_can_check_everything_that_was_granted(call, folder, reader, name):
    done = grant(call, folder, reader)
    assert done.exit_code == 0, done.output
    assert "access to 6 sealed files" in done.output
    assert re.search(r"Created the access list 0x\w{40}, [\d,]+ gas", done.output)
    assert re.search(r"Done: transaction 0x\w{64}, [\d,]+ gas", done.output)
    told = verified(call, folder, name)
    assert told["verified"], told
    assert (told["checked"]["grants"], told["checked"]["opened grants"]) == (6, 6)
    assert (told["checked"]["accepted updates"], told["checked"]["aggregates"]) == (6, 2)


def test_the_stored_files_stay_as_they_are(call, folder):
    def stored() -> dict[Path, bytes]:
        found = (folder / "run" / "store").rglob("*")
        return {path: path.read_bytes() for path in found if path.is_file()}

    before = stored()
    grant(call, folder)
    assert stored() == before


def test_an_outsider_can_check_nothing_that_is_sealed(call, folder):
    grant(call, folder)
    done = call("verify", folder / "run", "--key", folder / "bob")
    assert_refused(done, "ConfigError", BOB.address, "to whom no grant stands")


@pytest.mark.parametrize(("words", "files"), [(("--round", 1), 3), (("--of",), 2)])
def test_a_part_can_be_granted_and_the_reader_checks_that(call, folder, words, files):
    if words == ("--of",):
        with closing(open_run(folder / "run")) as run:
            words = ("--of", run.sealed_files()[0].device)
    assert f"access to {files} sealed files" in grant(call, folder, ALICES, *words).output
    told = verified(call, folder, "alice")
    assert told["checked"]["opened grants"] == told["checked"]["accepted updates"] == files
    assert told["checked"].get("aggregates", 0) == (1 if "--round" in words else 0)
    left_out = f"{6 - files} of 6 sealed files, and the aggregates with them"
    assert any(left_out in word for word in told["unchecked"])


def test_what_is_granted_already_is_not_granted_again(call, folder):
    grant(call, folder, ALICES, "--round", 0)
    assert "access to 3 sealed files" in grant(call, folder).output
    assert_refused(grant(call, folder), "ConfigError", "nothing to grant")
    assert len(grants(call, folder)) == 6


@pytest.mark.parametrize("before", [False, True])
def test_a_dry_run_tells_the_gas_and_sends_nothing(call, folder, before):
    if before:
        grant(call, folder, BOBS)
    journal = folder / "run" / "ledger.journal"
    length, pointers = journal.stat().st_size, (folder / "run" / "run.json").read_text()
    dry = grant(call, folder, ALICES, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert "Dry run: nothing was sent." in dry.output
    assert (journal.stat().st_size, (folder / "run" / "run.json").read_text()) == (length, pointers)
    told = gas(re.findall(r"about ([\d,]+) gas", dry.output))
    used = gas(re.findall(r", ([\d,]+) gas\.", grant(call, folder).output))
    assert abs(told - used) < 0.02 * used


def gas(numbers: list[str]) -> int:
    """Their sum."""
    return sum(int(number.replace(",", "")) for number in numbers)


@pytest.mark.parametrize(
    "key", ["", "xyz", "abcd", OWNER.address, "00" * 64, RSAS[:-2], "ab" * 422]
)
def test_what_is_no_public_key_is_told(call, folder, key):
    assert_refused(grant(call, folder, key), "ConfigError", "is not a public key")


def test_who_can_open_all_anyway_is_told(call, folder):
    done = grant(call, folder, public_key(OWNER).hex())
    assert_refused(done, "ConfigError", f"{OWNER.address} needs no grant")


def test_who_can_open_nothing_grants_nothing(call, folder):
    done = call(
        *("grant", folder / "run", BOBS, "--key", folder / "alice"),
        *("--payer", folder / "owner.key"),
    )
    assert_refused(done, "ConfigError", "nothing to grant", ALICE.address)


def test_an_rsa_key_signs_no_grant(call, folder):
    done = call("grant", folder / "run", BOBS, "--key", folder / "rsa")
    assert_refused(done, "KeyFileError", "can't sign")


def test_an_account_without_gas_grants_through_one_that_pays(call, folder):
    grant(call, folder)
    passed = call(
        *("grant", folder / "run", BOBS, "--key", folder / "alice"),
        *("--payer", folder / "owner.key", "--round", 1),
    )
    assert "access to 3 sealed files" in passed.output, passed.output
    assert verified(call, folder, "bob")["checked"]["opened grants"] == 3


def test_a_file_that_is_not_stored_is_passed_over(call, folder):
    with closing(open_run(folder / "run")) as run:
        file = run.sealed_files()[0]
    (stored,) = (folder / "run" / "store").rglob(f"*{cid_from_bytes(file.cid)}*")
    stored.unlink()
    done = grant(call, folder)
    assert f"Passed over what {file.device} sealed in round 0" in done.output
    assert "access to 5 sealed files" in done.output


def test_files_that_the_plan_lets_go_are_passed_over_in_one_line(call, tmp_path):
    Federation(tmp_path, devices=2).run(rounds=3, keep_rounds=1)
    key_files(tmp_path)
    done = grant(call, tmp_path)
    assert "access to 2 sealed files" in done.output, done.output
    word = "Passed over 4 files of rounds before 2, which the plan does not keep."
    assert done.output.count("Passed over") == done.output.count(word) == 1
    assert verified(call, tmp_path, "alice")["checked"]["opened grants"] == 2
    assert_refused(grant(call, tmp_path, BOBS, "--round", 0), "ConfigError", "nothing to grant")


def test_a_device_that_is_no_address_is_told(call, folder):
    assert_refused(grant(call, folder, ALICES, "--of", "me"), "ConfigError", "'me'")


# --- taking back ---------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", [ALICES, ALICE.address, ALICE.address.lower()])
def test_a_revoked_reader_is_refused(call, folder, reader):
    grant(call, folder)
    dry = revoke(call, folder, reader, "--dry-run")
    assert "Dry run" in dry.output
    assert verified(call, folder, "alice")["verified"]
    done = revoke(call, folder, reader)
    assert f"Revoke the access of {ALICE.address} to 6 sealed files" in done.output, done.output
    told = verified(call, folder, "alice")
    assert (told["verified"], told["error"]) == (False, "ConfigError")
    assert [each["state"] for each in grants(call, folder)] == ["revoked"] * 6
    assert call("verify", folder / "run").exit_code == 0


def test_a_part_can_be_taken_back_and_granted_again(call, folder):
    grant(call, folder)
    revoke(call, folder, ALICES, "--round", 0)
    assert verified(call, folder, "alice")["checked"]["opened grants"] == 3
    assert "access to 3 sealed files" in grant(call, folder).output
    assert verified(call, folder, "alice")["checked"]["opened grants"] == 6
    assert [each["state"] for each in grants(call, folder)] == 3 * ["revoked"] + 6 * ["stands"]


def test_what_a_reader_passed_on_goes_with_its_own_access(call, folder):
    grant(call, folder)
    passed = ("grant", folder / "run", RSAS, "--key", folder / "alice")
    call(*passed, "--payer", folder / "owner.key")
    assert verified(call, folder, "rsa")["verified"]
    revoke(call, folder)
    assert verified(call, folder, "rsa")["error"] == "ConfigError"
    assert [each["state"] for each in grants(call, folder)] == 6 * ["revoked"] + 6 * ["void"]
    told = json.loads(call("verify", folder / "run", "--json").output)
    assert (
        "6 grants of who may not open what it grants: they count for nothing" in (told["unchecked"])
    )


def test_what_was_never_granted_can_not_be_taken_back(call, folder):
    assert_refused(revoke(call, folder), "ConfigError", "nothing to revoke", ALICE.address)
    grant(call, folder, BOBS)
    assert_refused(revoke(call, folder), "ConfigError", "nothing to revoke", ALICE.address)


# --- looking -------------------------------------------------------------------------------------


def test_show_lists_who_granted_what_to_whom(call, folder):
    assert grants(call, folder) == []
    assert "Access granted" not in call("show", folder / "run").output
    grant(call, folder, RSAS, "--round", 1)
    with closing(open_run(folder / "run")) as run:
        devices = [file.device for file in run.sealed_files() if file.round == 1]
    assert [
        (each["granter"], each["reader"], each["round"], each["device"], each["state"])
        for each in grants(call, folder)
    ] == [(OWNER.address, RSA_READER.address, 1, device, "stands") for device in devices]
    shown = call("show", folder / "run").output
    assert "Access granted" in shown
    assert RSA_READER.address in shown


def test_show_lists_also_what_counts_for_nothing(call, folder):
    with closing(open_run(folder / "run", OWNER)) as run:
        access = run.open_access_list(OWNER)
        for function, batch in access.grant(ALICE, BOB.address, {b"no CID": b""}):
            access.contract.transact(OWNER, function, batch)
    (told,) = grants(call, folder)
    assert (told["cid"], told["round"], told["device"]) == (f"0x{b'no CID'.hex()}", None, "")
    assert told["state"] == "void"
    assert "void" in call("show", folder / "run").output


# --- beside what else changes --------------------------------------------------------------------


def test_a_run_that_is_being_moved_keeps_its_first_grant(call, folder, tmp_path):
    with closing(open_run(folder / "run")) as run:
        moving = run.move(str(tmp_path / "elsewhere"))
        next(moving)
        assert grant(call, folder).exit_code == 0
        list(moving)
    assert verified(call, folder, "alice")["checked"]["opened grants"] == 6
    shutil.rmtree(folder / "run" / "store")
    assert call("verify", folder / "run").exit_code == 0


# --- on a node, and under the other schemes -------------------------------------------------------


def test_on_a_node_each_pays_for_itself(call, tmp_path, anvil):
    give(anvil, OWNER.address, ALICE.address)
    Federation(tmp_path, devices=2).run(ledger=anvil)
    key_files(tmp_path)
    assert "access to 2 sealed files" in grant(call, tmp_path).output
    passed = call("grant", tmp_path / "run", BOBS, "--key", tmp_path / "alice")
    assert passed.exit_code == 0, passed.output
    assert verified(call, tmp_path, "bob")["checked"]["opened grants"] == 2
    revoke(call, tmp_path)
    assert verified(call, tmp_path, "bob")["error"] == "ConfigError"


@pytest.mark.parametrize(("reader", "name"), [(ALICES, "alice"), (RSAS, "rsa")])
def test_an_agent_of_blockflow_grants_what_the_owner_can_not_open(call, tmp_path, reader, name):
    agents = range(4)
    play = Play(tmp_path, readers=())
    play.join(agents)
    play.play(agents)
    play.run.close()
    key_files(tmp_path)
    for file, account in (("owner.key", RELAY), ("agent", play.accounts[2])):
        (tmp_path / file).touch(0o600)
        (tmp_path / file).write_text(bytes(account.key).hex())
    assert_refused(grant(call, tmp_path, reader), "ConfigError", "nothing to grant")
    done = call(
        *("grant", tmp_path / "run", reader, "--key", tmp_path / "agent"),
        *("--payer", tmp_path / "owner.key"),
    )
    assert "access to 4 sealed files" in done.output, done.output
    told = verified(call, tmp_path, name)
    assert (told["checked"]["opened models"], told["checked"]["aggregates"]) == (4, 1)
    assert {each["granter"] for each in grants(call, tmp_path)} == {play.accounts[2].address}


def task(folder: Path, **settings: object) -> Task:
    """Two rounds of a data trust with three workers."""
    task = Task(folder, 3)
    task.run(rounds=2, reward=8.0, places=2, **settings)
    key_files(folder)
    return task


def test_a_worker_of_a_data_trust_grants_what_the_requester_can_not_open(call, tmp_path):
    worker = task(tmp_path).devices[1]
    by_worker = "--key", tmp_path / "keys" / f"{worker.number}.key"
    paid_by_requester = "--payer", tmp_path / "owner.key"
    assert_refused(grant(call, tmp_path), "ConfigError", "nothing to grant", RELAY.address)
    done = call("grant", tmp_path / "run", ALICES, *by_worker, *paid_by_requester)
    assert "access to 6 sealed files" in done.output, done.output
    assert {each["granter"] for each in grants(call, tmp_path)} == {worker.account.address}
    told = verified(call, tmp_path, "alice")
    assert told["verified"], told
    assert (told["checked"]["opened models"], told["checked"]["aggregates"]) == (6, 2)
    done = call("revoke", tmp_path / "run", ALICES, *by_worker, *paid_by_requester)
    assert "to 6 sealed files" in done.output, done.output
    assert verified(call, tmp_path, "alice")["error"] == "ConfigError"
    assert [each["state"] for each in grants(call, tmp_path)] == ["revoked"] * 6


def test_a_requester_that_aggregates_grants_what_the_workers_sealed_for_it(call, tmp_path):
    task(tmp_path, aggregation="server")
    by_itself = verified(call, tmp_path, "owner.key")
    assert (by_itself["checked"]["opened models"], by_itself["checked"]["aggregates"]) == (6, 2)
    needless = grant(call, tmp_path, public_key(RELAY).hex())
    assert_refused(needless, "ConfigError", f"{RELAY.address} needs no grant")
    done = grant(call, tmp_path, RSAS, "--round", 1)
    assert "access to 3 sealed files" in done.output, done.output
    assert {each["granter"] for each in grants(call, tmp_path)} == {RELAY.address}
    told = verified(call, tmp_path, "rsa")
    assert told["verified"], told
    assert (told["checked"]["opened models"], told["checked"]["aggregates"]) == (3, 1)
    assert "access" in revoke(call, tmp_path, RSAS).output
    assert verified(call, tmp_path, "rsa")["error"] == "ConfigError"
