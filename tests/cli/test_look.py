"""The command line."""

import json
from pathlib import Path

import pytest
from federation import TOKEN, Federation, signing
from typer.testing import CliRunner, Result

from flower_chain.cli import app


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One round of three devices, the last of which claims no data."""
    federation = Federation(tmp_path_factory.mktemp("cli"), devices=3)
    federation.meddle(signing(data_cost=0))
    federation.run(rounds=1)
    return federation.path / "run"


def call(*words: object) -> Result:
    """Call it."""
    return CliRunner().invoke(app, [str(word) for word in words])


def test_show_tells_versions_reasons_and_devices(run):
    shown = call("show", run)
    assert shown.exit_code == 0
    assert "1 bad data cost" in shown.output
    assert "Left in the pool" in shown.output


def test_show_json_holds_the_same_for_programs(run):
    shown = json.loads(call("show", run, "--json").output)
    first, last = shown["rounds"]
    assert (len(first["accepted"]), first["settled"], last["settled"]) == (2, True, False)
    assert [refused["reason"] for refused in first["refused"]] == ["bad data cost"]
    assert int(shown["pool"]) + int(first["paid"]) == 1000 * TOKEN
    assert sum(int(device["balance"]) for device in shown["devices"]) == int(first["paid"])


def test_verify_with_key_and_data_leaves_nothing_out(run):
    key = run.parent / "owner.key"
    done = call("verify", run, "--owner-key", key, "--examiner", "softmax:examiner")
    assert done.exit_code == 0, done.output
    assert "not checked" not in done.output


def test_verify_without_key_says_what_it_left_out(run):
    done = call("verify", run)
    assert done.exit_code == 0
    assert "not checked" in done.output


def test_verify_json_tells_what_was_checked_and_what_was_not(run):
    key = run.parent / "owner.key"
    done = call("verify", run, "--owner-key", key, "--json")
    told = json.loads(done.output)
    assert done.exit_code == 0
    assert told["verified"] is True
    assert told["checked"]["accepted updates"] == 2
    assert all("needs" in left_out for left_out in told["unchecked"])


def test_verify_json_names_the_first_record_that_does_not_fit(run, tmp_path):
    done = call("verify", tmp_path, "--json")
    told = json.loads(done.output)
    assert done.exit_code == 1
    assert (told["verified"], told["error"]) == (False, "ConfigError")


@pytest.mark.parametrize(
    "name", ["nosuchmodule:f", "softmax:nosuch", "softmax", "json:dumps", "softmax:fresh"]
)
def test_an_examiner_that_is_not_one_is_told(run, name):
    done = call("verify", run, "--examiner", name)
    assert done.exit_code == 1
    assert "--examiner" in done.output


def test_a_folder_without_a_run_is_told_in_one_line(tmp_path):
    done = call("show", tmp_path)
    assert done.exit_code == 1
    assert len(done.output.strip().splitlines()) == 1
    assert "holds no run" in done.output
