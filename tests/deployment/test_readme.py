"""What README.md says of deployment, line by line, on this machine."""

import json
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from machines import HOSPITALS, Machines, blocks, machines

from flower_chain.keys import load
from flower_chain.run import RecordAndRewardRun

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, anvil: str) -> Iterator[Machines]:
    """All lines of the section were run, one after the other."""
    with machines(tmp_path_factory.mktemp("deployment"), anvil) as made:
        made.follow(blocks("Deployment"))
        yield made


@pytest.fixture(scope="module")
def shown(finished: Machines) -> dict[str, Any]:
    """What `flower-chain show` says afterwards."""
    return json.loads(finished.as_owner("flower-chain show /srv/federation/run --json"))


def test_every_device_is_accepted_in_every_round_and_paid(finished, shown):
    accepted = {device["account"]: device["accepted"] for device in shown["devices"]}
    assert accepted == {finished.account(hospital): 2 for hospital in HOSPITALS}


def test_the_money_left_the_contract(finished, shown):
    assert shown["pool"] == "0"
    assert all(device["balance"] == "0" < device["earned"] for device in shown["devices"])
    with closing(RecordAndRewardRun.open(finished.run)) as run:
        assert run.token.call("balanceOf", run.pointers.contract) == 0
        for device in shown["devices"]:
            assert run.token.call("balanceOf", device["account"]) == int(device["earned"])


def test_everything_could_be_verified(finished):
    printed = (finished.root / "superlink.printed").read_text()
    assert "Everything that was checked fits." in printed
    assert "not checked" not in printed


def test_updates_came_by_message(finished):
    for hospital in HOSPITALS:
        held = {path.suffix for path in (finished.srv / hospital).rglob("*") if path.is_file()}
        assert held <= {".account", ".crt", ".key", ".log", ".node", ".pub", ".json", ".trust"}
    assert len(list((finished.run / "store").rglob("*"))) >= 9


def test_keys_are_for_their_owners_only(finished):
    keys = [*finished.srv.rglob("*.key"), *finished.srv.glob("*/*.node")]
    assert len(keys) == 9
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}


def test_no_secret_is_in_a_record_or_log(finished):
    names = ["federation/owner.key", *(f"{name}/{name}.key" for name in HOSPITALS)]
    secrets = [bytes(load(finished.srv / name).key) for name in names]
    files = [path for path in finished.root.rglob("*") if path.is_file()]
    for path in files:
        if path.suffix != ".key":
            content = path.read_bytes()
            assert not any(key in content or key.hex().encode() in content for key in secrets), path
    assert Path(finished.run / "run.json") in files


def test_a_node_that_is_not_registered_is_not_let_in(finished):
    (finished.srv / "hospital-a/other").mkdir()
    finished.as_device(
        "hospital-a",
        'cd /srv/hospital-a; ssh-keygen -q -t ecdsa -b 384 -N "" -f other/node\n'
        "! flower-supernode --superlink superlink.example:8000 --root-certificates ca.crt"
        " --auth-supernode-private-key other/node > other/log 2>&1",
    )
