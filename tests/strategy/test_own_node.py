"""Devices that submit their own transactions, on a real node."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from federation import OWNER, TRAIN, Federation, Outcome, change_code, give
from flwr.app import Context, RecordDict
from local_grid import silent
from softmax import Device
from web3 import Web3

from flower_chain.client import own_node
from flower_chain.client.account import node_of
from flower_chain.client.own_node import OwnNode
from flower_chain.errors import ConfigError, Reverted, TaskRefused
from flower_chain.keys import public_key
from flower_chain.ledger import Contract, JsonRpcLedger
from flower_chain.ledger.federation import Federation as OnLedger
from flower_chain.messages import Request
from flower_chain.records import NOBODY, Contribution, Domain, Refusal, Signed, Task, sign
from flower_chain.run import RecordAndRewardRun
from flower_chain.store.cid import cid_from_bytes
from flower_chain.strategy import RecordAndReward
from flower_chain.updates import digest, pack


def mixed(path: Path, url: str, with_node: int = 2, **node_config: str) -> Federation:
    """Devices with a node of their own, and one without."""
    federation = Federation(path, devices=0)
    for number in range(with_node):
        federation.add(Device(number), ledger=url, **node_config)
    federation.add(Device(with_node))
    give(url, OWNER.address, *federation.accounts[:-1])
    return federation


def submitters(outcome: Outcome, url: str, version: int = 0) -> dict[str, str]:
    """Who sent the transaction that each accepted contribution came in."""
    web3 = Web3(Web3.HTTPProvider(url))
    return {
        verdict.device: web3.eth.get_transaction(verdict.event.receipt.transaction)["from"]
        for verdict in outcome.history.versions[version].accepted
    }


def test_devices_submit_and_the_owner_relays_for_the_others(tmp_path: Path, anvil: str) -> None:
    federation = mixed(tmp_path, anvil)
    outcome = federation.run(rounds=2, ledger=anvil)

    one, two, relayed = federation.accounts
    for version in range(2):
        found = submitters(outcome, anvil, version)
        assert found == {one: one, two: two, relayed: OWNER.address}
    assert outcome.refused(0) == outcome.refused(1) == []
    assert outcome.verify()["aggregates"] == 2


def test_a_device_may_share_a_store_with_the_owner(tmp_path: Path, anvil: str) -> None:
    federation = mixed(tmp_path, anvil, store=str(tmp_path / "run" / "store"))
    outcome = federation.run(ledger=anvil)

    assert sorted(outcome.accepted()) == sorted(federation.accounts)


class ServerDied(BaseException):
    """At any moment."""


@pytest.mark.parametrize("shared", [False, True], ids=["by message", "shared store"])
def test_what_devices_submitted_before_the_server_died_is_not_lost(
    tmp_path: Path, anvil: str, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    store = {"store": str(tmp_path / "run" / "store")} if shared else {}
    federation = mixed(tmp_path, anvil, **store)

    def die(*_: object) -> None:
        raise ServerDied

    with monkeypatch.context() as patch:
        patch.setattr(RecordAndReward, "_admit", die)
        with pytest.raises(ServerDied):
            federation.run(rounds=2, ledger=anvil)
    outcome = federation.run(rounds=2, ledger=anvil)

    assert [sorted(outcome.accepted(k)) for k in range(2)] == [sorted(federation.accounts)] * 2
    trained = [len(device.trained) for device in federation.devices]
    assert trained == [2, 2, 3]  # who was on the ledger already was not trained anew
    assert outcome.verify()["aggregates"] == 2


def test_what_a_shared_store_has_lost_comes_by_message(
    tmp_path: Path, anvil: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = mixed(tmp_path, anvil, store=str(tmp_path / "run" / "store"))

    def die(*_: object) -> None:
        raise ServerDied

    with monkeypatch.context() as patch:
        patch.setattr(RecordAndReward, "_admit", die)
        with pytest.raises(ServerDied):
            federation.run(ledger=anvil)
    with closing(RecordAndRewardRun.open(tmp_path / "run")) as run:
        for verdict in run.federation.current().verdicts:
            (tmp_path / "run" / "store" / cid_from_bytes(verdict.signed.contribution.cid)).unlink()
    outcome = federation.run(ledger=anvil)

    assert sorted(outcome.accepted()) == sorted(federation.accounts)
    assert [len(device.trained) for device in federation.devices] == [1, 1, 2]
    outcome.verify()


def test_a_contribution_whose_update_never_came_is_refused_and_holds_nothing_up(
    tmp_path: Path, anvil: str
) -> None:
    federation = mixed(tmp_path, anvil)
    federation.nodes[0].meddlers[TRAIN] = silent
    outcome = federation.run(rounds=2, ledger=anvil)

    lost = federation.accounts[0]
    for version in range(2):
        assert (lost, Refusal.NOT_STORED) in outcome.refused(version)
        assert sorted(outcome.accepted(version)) == sorted(federation.accounts[1:])
    assert outcome.verify()["aggregates"] == 2


def on_ledger(outcome: Outcome, url: str, device: Device) -> OnLedger:
    """The run as the device sees it."""
    ledger = JsonRpcLedger(url)
    contract = Contract(ledger, outcome.run.pointers.contract, "RecordAndReward")
    return OnLedger(contract, device.account)


def odd(device: Device, domain: Domain, version: int, **fields: bytes) -> Signed:
    """A contribution as other software might make it."""
    contribution = Contribution(
        device.account.address, version, 5, b"\1" * 32, b"no cid", (1,), (), **fields
    )
    return Signed(contribution, sign(contribution.encode(domain), device.account))


def test_bytes_that_are_no_errors_are_recorded_as_they_are(tmp_path: Path, anvil: str) -> None:
    federation = mixed(tmp_path, anvil)
    outcome = federation.run(ledger=anvil)
    device = federation.devices[0]
    found = on_ledger(outcome, anvil, device)
    signed = odd(device, outcome.run.federation.domain, 1, rest=b"odd")

    outcome.run.federation.reopen()
    (verdict,) = found.submit([signed])
    assert (verdict.reason, verdict.signed) == (Refusal.BAD_EVIDENCE, signed)
    del federation.nodes[0], federation.devices[0]
    outcome = federation.run(rounds=2, ledger=anvil)
    assert outcome.refused(1) == [(device.account.address, Refusal.BAD_EVIDENCE)]
    outcome.verify()


def test_who_comes_after_the_version_was_closed_is_too_late(
    tmp_path: Path, anvil: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = mixed(tmp_path, anvil)
    outcome = federation.run(ledger=anvil)
    late = federation.add(Device(5), ledger=anvil)
    device = federation.devices[-1]
    give(anvil, device.account.address)
    outcome.run.federation.enrol([device.account.address])
    collect, heard = OnLedger.collect, []

    def before_the_end(self: OnLedger, number: int, batch: list[Signed]) -> object:
        version = collect(self, number, batch)
        heard.append(self.version)
        signed = odd(device, self.domain, self.version)
        (verdict,) = on_ledger(outcome, anvil, device).submit([signed])
        assert verdict.reason is Refusal.VERSION_CLOSED
        return version

    late.meddlers[TRAIN] = lambda *_: 1 / 0
    late.app = federation.devices[0].app()  # it never gets to submit by itself
    monkeypatch.setattr(OnLedger, "collect", before_the_end)
    outcome = federation.run(rounds=2, ledger=anvil)

    assert heard == [1]
    assert (device.account.address, Refusal.VERSION_CLOSED) in outcome.refused(1)
    outcome.verify()


def test_a_stranger_can_not_submit(tmp_path: Path, anvil: str) -> None:
    federation = mixed(tmp_path, anvil)
    outcome = federation.run(ledger=anvil)
    stranger = Device(7)
    give(anvil, stranger.account.address)

    with pytest.raises(Reverted, match="NotAMember"):
        on_ledger(outcome, anvil, stranger).submit(
            [odd(stranger, outcome.run.federation.domain, 1)]
        )


def test_a_device_with_a_node_does_not_train_for_a_contract_of_other_code(
    tmp_path: Path, anvil: str
) -> None:
    outcome = mixed(tmp_path, anvil).run(ledger=anvil)
    domain = outcome.run.federation.domain
    task = Task(1, digest(pack(outcome.model(1))), outcome.run.plan.digest)
    request = Request(task, b"", domain, outcome.run.plan)
    change_code(anvil, domain.contract)

    node = OwnNode(anvil, domain, Device(0).account, tmp_path / "outbox")
    with closing(node), pytest.raises(TaskRefused, match="is not this package's RecordAndReward"):
        node.check(request, public_key(OWNER))


def test_a_device_with_a_node_refuses_what_the_ledger_does_not_hold(
    tmp_path: Path, anvil: str
) -> None:
    federation = mixed(tmp_path, anvil)
    federation.run(ledger=anvil)
    node = federation.nodes[0]
    ((question, _),) = [
        pair
        for pair in federation.grid.said
        if pair[0].metadata.message_type == TRAIN
        and pair[0].metadata.dst_node_id == node.context.node_id
    ]

    reply = node.answer(question)  # version 0 again, which is over
    assert reply is not None
    assert reply.has_error()
    assert "the task's version is 0, the ledger's 1" in str(reply.error.reason)


def publish(outcome: Outcome, version: int) -> None:
    """Settle the version before without any contribution; the model stays as it is."""
    run = outcome.run
    following = run.model(outcome.model(version - 1), version, 0)
    run.federation.settle(run.federation.current(), run.seed(version - 1), following)


def test_a_device_whose_node_is_behind_the_owners_waits_for_the_version(
    tmp_path: Path, anvil: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = mixed(tmp_path, anvil).run(ledger=anvil)
    run, owner = outcome.run, public_key(OWNER)
    task = Task(2, digest(pack(outcome.model(1))), run.plan.digest)
    request = Request(task, b"", run.federation.domain, run.plan)
    node = OwnNode(anvil, run.federation.domain, Device(0).account, tmp_path / "outbox")
    with closing(node), ThreadPoolExecutor(1) as pool:
        checked = pool.submit(node.check, request, owner)
        time.sleep(0.2)
        assert not checked.done()
        publish(outcome, 2)
        checked.result()

        monkeypatch.setattr(own_node, "BEHIND", 0.05)
        with pytest.raises(TaskRefused, match="the task's version is 3, the ledger's 2"):
            node.check(replace(request, task=replace(task, version=3)), owner)


def test_a_device_is_told_why_the_contract_refused_what_it_submitted(
    tmp_path: Path, anvil: str, caplog: pytest.LogCaptureFixture
) -> None:
    federation = mixed(tmp_path, anvil)
    account = federation.devices[0].account.address
    federation.devices[0].claims = 1000
    outcome = federation.run(ledger=anvil)

    assert outcome.refused() == [(account, Refusal.BAD_DATA_COST)]
    assert "The contract refused the contribution: bad data cost" in caplog.text
    outcome.verify()


def test_a_contribution_to_the_same_contract_on_another_chain_is_another(
    tmp_path: Path, start_anvil: Callable[..., Any]
) -> None:
    """A test chain that is made anew has its contracts where the old one had them."""
    first, second = (start_anvil("--chain-id", str(n)).url for n in (1111, 2222))
    before = mixed(tmp_path, first).run(ledger=first)
    (tmp_path / "run").rename(tmp_path / "before")
    federation = mixed(tmp_path, second)
    outcome = federation.run(ledger=second)

    assert outcome.run.pointers.contract == before.run.pointers.contract
    assert outcome.refused() == []
    kept = list((tmp_path / "keys").rglob("contribution.json"))
    assert len(kept) == 4  # two devices with a node, on two chains
    outcome.verify()


def test_what_a_device_can_not_submit_the_owner_relays(tmp_path: Path, anvil: str) -> None:
    federation = Federation(tmp_path, devices=1)
    federation.add(Device(77), ledger=anvil)  # an account that has no gas
    give(anvil, OWNER.address)
    outcome = federation.run(ledger=anvil)

    assert submitters(outcome, anvil)[federation.accounts[1]] == OWNER.address
    assert outcome.refused() == []


def test_a_node_without_a_key_file_is_refused(tmp_path: Path) -> None:
    context = Context(1, 1, {"ledger": "http://127.0.0.1:1"}, RecordDict(), {})
    with (
        pytest.raises(ConfigError, match="must name a key-file"),
        node_of(context, Domain(1, NOBODY), OWNER),
    ):
        pass


def test_a_contribution_that_the_device_has_lost_is_not_made_anew(
    tmp_path: Path, anvil: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = mixed(tmp_path, anvil)

    def die(*_: object) -> None:
        raise ServerDied

    with monkeypatch.context() as patch:
        patch.setattr(RecordAndReward, "_admit", die)
        with pytest.raises(ServerDied):
            federation.run(ledger=anvil)
    for kept in (tmp_path / "keys").rglob("contribution.json"):
        kept.unlink()
    outcome = federation.run(ledger=anvil)

    lost = sorted((account, Refusal.NOT_STORED) for account in federation.accounts[:2])
    assert sorted(r for r in outcome.refused(0) if r[0] != NOBODY) == lost
    assert outcome.accepted(0) == federation.accounts[2:]
    outcome.verify()
