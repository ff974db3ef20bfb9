"""flower-chain store, on the directory of a run; over nodes in tests/strategy/test_ipfs_run.py."""

from contextlib import closing
from pathlib import Path

import pytest
from commands import assert_refused
from federation import Federation, signing
from softmax import fresh

from flower_chain.run import Content, RecordAndRewardRun
from flower_chain.store import DirectoryStore, cid_of
from flower_chain.updates import pack


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three rounds of two devices, the last of which claims no data and so is refused."""
    federation = Federation(tmp_path, devices=2)
    federation.meddle(signing(data_cost=0))
    federation.run(rounds=3)
    return federation.path / "run"


def contents(run: Path) -> list[Content]:
    with closing(RecordAndRewardRun.open(run)) as opened:
        return opened.contents()


# --- get and put ---------------------------------------------------------------------------------


def test_get_writes_what_the_ledger_names(call, run, tmp_path):
    done = call("store", "get", contents(run)[0].cid, run, "--to", tmp_path / "model")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "model").read_bytes() == pack(fresh())


def test_without_a_name_the_file_is_named_by_the_cid(call, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cid = contents(run)[-1].cid
    assert call("store", "get", cid, "--store", run / "store").exit_code == 0
    assert cid_of((tmp_path / cid).read_bytes()) == cid


def test_put_prints_the_cid_and_nothing_else(call, tmp_path):
    (tmp_path / "file").write_bytes(b"a model")
    done = call("store", "put", tmp_path / "file", "--store", tmp_path / "elsewhere")
    assert done.stdout == f"{cid_of(b'a model')}\n"
    assert DirectoryStore(tmp_path / "elsewhere").get(cid_of(b"a model")) == b"a model"


def test_put_brings_back_what_a_run_has_lost(call, run, tmp_path):
    (tmp_path / "model").write_bytes(pack(fresh()))
    (run / "store" / contents(run)[0].cid).unlink()
    assert_refused(call("verify", run), "Unverified", "version 0, model")
    assert call("store", "put", tmp_path / "model", run).exit_code == 0
    assert call("verify", run).exit_code == 0


def test_what_is_damaged_is_not_written(call, run, tmp_path):
    cid = contents(run)[0].cid
    (run / "store" / cid).write_bytes(b"other bytes")
    assert_refused(call("store", "get", cid, run, "--to", tmp_path / "model"), "Damaged", cid)
    assert not (tmp_path / "model").exists()


def test_what_can_not_be_done_is_told_in_one_line(call, run, tmp_path):
    cid = contents(run)[0].cid
    assert_refused(call("store", "get", "bogus", run), "FormatError", "is not a CID")
    assert_refused(call("store", "get", cid_of(b"nothing"), run), "NotStored")
    assert_refused(call("store", "get", cid, run, "--to", tmp_path / "no/such"), "can't be written")
    assert_refused(call("store", "get", cid), "name the folder of a run, or a --store")
    assert_refused(call("store", "put", tmp_path / "none", run), "can't be read")
    assert_refused(call("store", "get", cid, tmp_path), "holds no run")
    assert_refused(
        call("store", "get", cid, "--store", "http://127.0.0.1:9"), "no IPFS node answers", "start"
    )


# --- ls ------------------------------------------------------------------------------------------


def test_ls_tells_what_each_cid_is_and_whether_it_is_there(call, run):
    found = contents(run)
    (run / "store" / found[1].cid).unlink()
    DirectoryStore(run / "store").put(b"of nobody")

    done = call("store", "ls", run)
    assert done.exit_code == 0, done.output
    lines = {
        each.cid: line for line in done.output.splitlines() for each in found if each.cid in line
    }
    assert len(lines) == len(found) == 4 + 3 * 2
    assert all(w in lines[found[0].cid] for w in ("0", "model", "here", f"{len(pack(fresh())):,}"))
    assert all(w in lines[found[1].cid] for w in ("sealed update", found[1].device, "missing"))
    assert "10 files" in done.output
    assert "1 of which the ledger does not name" in done.output


def test_ls_tells_what_the_plan_did_not_keep(call, tmp_path):
    federation = Federation(tmp_path, devices=1)
    federation.run(rounds=3, keep_rounds=1)
    done = call("store", "ls", tmp_path / "run")
    assert done.output.count(" removed ") == 4
    assert done.output.count(" here ") == 3


# --- gc ------------------------------------------------------------------------------------------


def test_gc_removes_what_the_ledger_does_not_name(call, run):
    stray = DirectoryStore(run / "store").put(b"of nobody")
    done = call("store", "gc", run)
    assert "1 that the ledger does not name" in done.output
    assert "1 files of 9 bytes removed, 10 are left" in done.output
    assert stray not in DirectoryStore(run / "store").stored()
    assert call("verify", run).exit_code == 0


def test_gc_removes_old_rounds_and_says_what_that_means(call, run):
    done = call("store", "gc", run, "--keep", 1)
    assert "round 0: 1 x model, 2 x sealed update" in done.output
    assert "The plan keeps all rounds: `verify` will fail." in done.output
    assert len(DirectoryStore(run / "store").stored()) == 4
    assert_refused(call("verify", run), "Unverified")


def test_gc_keeps_more_rounds_than_the_plan_if_told_to(call, tmp_path):
    Federation(tmp_path, devices=1).run(rounds=2, keep_rounds=1)
    done = call("store", "gc", tmp_path / "run", "--keep", 0)
    assert "0 files of 0 bytes removed, 3 are left" in done.output
    assert "verify" not in done.output


def test_a_dry_run_removes_nothing(call, run):
    done = call("store", "gc", run, "--keep", 1, "--dry-run")
    assert "Dry run: 6 files" in done.output
    assert len(DirectoryStore(run / "store").stored()) == 10


def test_gc_waits_for_no_server_but_refuses_beside_one(call, run):
    with closing(RecordAndRewardRun.open(run)) as opened, opened.alone():
        assert_refused(call("store", "gc", run), "is going on in another process")
        assert call("store", "gc", run, "--dry-run").exit_code == 0
