"""Grants recomputed, and every one that is wrong found."""

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from federation import OWNER, Federation, change_code, give
from golden_seal import RSA_READER

from flower_chain.errors import ConfigError, Unverified
from flower_chain.keys import Reader, public_key
from flower_chain.ledger.access import AccessList
from flower_chain.run import AnyRun, open_run
from flower_chain.store.cid import cid_from_bytes
from flower_chain.verify import Report, verify

ALICE: LocalAccount = Account.from_key(b"\x0a" * 32)
BOB: LocalAccount = Account.from_key(b"\x0b" * 32)
Wraps = Callable[[AnyRun], dict[bytes, bytes]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One round of three devices."""
    federation = Federation(tmp_path_factory.mktemp("access"), devices=3)
    federation.run(rounds=1)
    return federation.path / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy to do harm to."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def honest(run: AnyRun, reader: Reader = ALICE) -> dict[bytes, bytes]:
    """The keys of all files, wrapped for a reader."""
    key = public_key(reader)
    return {file.cid: run.rewrap(file, OWNER, key, None) for file in run.sealed_files()}


def grant(
    path: Path, wraps: Wraps = honest, reader: Reader = ALICE, granter: LocalAccount = OWNER
) -> None:
    """Record grants, whatever they are; the owner sends them."""
    with closing(open_run(path, OWNER)) as run:
        access = run.access_list or run.open_access_list(OWNER)
        for function, batch in access.grant(granter, reader.address, wraps(run)):
            access.contract.transact(OWNER, function, batch)


def check(path: Path, reader: Reader | None = None) -> Report:
    """The last report."""
    with closing(open_run(path)) as run:
        *_, report = verify(run, reader)
    return report


def moved_to_another_file(run: AnyRun) -> dict[bytes, bytes]:
    """Each file with the wrap of the next."""
    cids, wraps = zip(*honest(run).items(), strict=True)
    return dict(zip(cids, wraps[1:] + wraps[:1], strict=True))


def of_another_reader(run: AnyRun) -> dict[bytes, bytes]:
    """The wraps of another."""
    return honest(run, BOB)


def of_a_file_of_no_run(_run: AnyRun) -> dict[bytes, bytes]:
    """Sealed by nobody."""
    return {bytes.fromhex("01551220") + bytes(32): bytes(48)}


def of_a_model(run: AnyRun) -> dict[bytes, bytes]:
    """Which is not sealed."""
    return {run.federation.history().versions[0].model.cid: bytes(48)}


def malformed(run: AnyRun) -> dict[bytes, bytes]:
    """A byte is missing."""
    return {cid: wrap[:-1] for cid, wrap in honest(run).items()}


@pytest.mark.parametrize("reader", [ALICE, RSA_READER], ids=["account", "rsa"])
def test_grants_that_are_right_fit_for_everybody(run, reader):
    grant(run, lambda opened: honest(opened, reader), reader)
    for other in (None, OWNER):
        report = check(run, other)
        assert report.checked["grants"] == 3
        assert "opened grants" not in report.checked
    assert check(run, reader).checked["opened grants"] == 3


@pytest.mark.parametrize(
    ("wraps", "match"),
    [
        (of_a_file_of_no_run, f"grant of {OWNER.address} to {ALICE.address}: the run has no file"),
        (of_a_model, "the run has no file 0x"),
        (malformed, "of what 0x.* sealed in round 0: 47 bytes are no wrap of its key"),
    ],
)
def test_a_wrong_grant_is_found_by_everybody(run, wraps, match):
    grant(run, wraps)
    for reader in (None, OWNER, ALICE):
        with pytest.raises(Unverified, match=match):
            check(run, reader)


@pytest.mark.parametrize("wraps", [moved_to_another_file, of_another_reader])
def test_a_wrap_that_was_moved_is_found_by_its_reader(run, wraps):
    grant(run, wraps)
    assert check(run).checked["grants"] == 3
    with pytest.raises(Unverified, match="is for another file or reader"):
        check(run, ALICE)


def test_a_granted_file_that_was_changed_is_found_by_its_reader(run):
    grant(run)
    with closing(open_run(run)) as opened:
        cid = cid_from_bytes(opened.sealed_files()[0].cid)
    (stored,) = (run / "store").rglob(f"*{cid}*")
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(content)
    with pytest.raises(Unverified, match=f"grant of .*{cid}"):
        check(run, ALICE)


def test_the_grants_of_a_stranger_count_for_nothing_and_spoil_nothing(run):
    grant(run, of_a_file_of_no_run, ALICE, BOB)
    grant(run, malformed, ALICE, BOB)
    report = check(run)
    assert "grants" not in report.checked
    word = "4 grants of who may not open what it grants: they count for nothing"
    assert word in report.unchecked
    with pytest.raises(ConfigError, match="to whom no grant stands"):
        check(run, ALICE)


def test_a_reader_that_grants_what_it_was_not_granted_counts_for_nothing(run):
    def first(opened: AnyRun) -> dict[bytes, bytes]:
        cid, wrap = next(iter(honest(opened).items()))
        return {cid: wrap}

    grant(run, first)
    grant(run, lambda opened: honest(opened, BOB), BOB, ALICE)
    report = check(run, BOB)
    assert (report.checked["grants"], report.checked["opened grants"]) == (2, 1)
    assert any(word.startswith("2 grants of who may not") for word in report.unchecked)


def test_the_list_of_another_run_is_found(run):
    with closing(open_run(run, OWNER)) as opened:
        foreign = AccessList.deploy(opened.contract.ledger, OWNER, ALICE.address)
    point_to(run, foreign.contract.address)
    with pytest.raises(Unverified, match=f"access: the access list at .* that of {ALICE.address}"):
        check(run)


def test_another_contract_in_place_of_the_list_is_found(run):
    with closing(open_run(run)) as opened:
        token = opened.pointers.token
    point_to(run, token)
    with pytest.raises(Unverified, match=r"access: .* is not this package's AccessList"):
        check(run)


def test_another_code_of_the_list_is_found(tmp_path, anvil):
    give(anvil, OWNER.address)
    Federation(tmp_path, devices=1).run(ledger=anvil)
    grant(tmp_path / "run")
    assert check(tmp_path / "run").checked["grants"] == 1
    change_code(anvil, json.loads((tmp_path / "run" / "run.json").read_text())["access"])
    with pytest.raises(Unverified, match=r"access: .* is not this package's AccessList"):
        check(tmp_path / "run")


def test_a_granted_file_that_the_plan_lets_go_spoils_nothing(tmp_path):
    federation = Federation(tmp_path, devices=2)
    federation.run(rounds=1, keep_rounds=1)
    grant(tmp_path / "run")
    federation.run(rounds=3, keep_rounds=1)
    report = check(tmp_path / "run", ALICE)
    assert report.checked["grants"] == 2
    assert "opened grants" not in report.checked
    gone = "6 models and sealed files of rounds before 2: no longer there"
    assert any(word.startswith(gone) for word in report.unchecked)


def test_a_granted_file_that_the_plan_keeps_must_be_there(run):
    grant(run)
    with closing(open_run(run)) as opened:
        opened.store.remove(cid_from_bytes(opened.sealed_files()[0].cid))
    with pytest.raises(Unverified, match=r"grant of .* nothing is stored"):
        check(run, ALICE)


def test_a_run_that_knows_of_no_list_is_checked_without(run):
    pointers = json.loads((run / "run.json").read_text())
    del pointers["access"]
    (run / "run.json").write_text(json.dumps(pointers))
    assert "grants" not in check(run).checked


def point_to(run: Path, address: str) -> None:
    """Another access list in run.json."""
    pointers = json.loads((run / "run.json").read_text()) | {"access": address}
    (run / "run.json").write_text(json.dumps(pointers))
