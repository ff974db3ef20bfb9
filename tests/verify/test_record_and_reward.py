"""A whole run recomputed, and every change to it found."""

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from eth_account import Account
from eth_utils.crypto import keccak
from federation import (
    OWNER,
    TOKEN,
    Federation,
    Outcome,
    change_code,
    changed,
    everybody,
    give,
    signing,
)
from flwr.serverapp.strategy import FedAdam
from local_grid import silent
from softmax import examiner
from tasks import a_plan
from web3 import HTTPProvider
from web3.types import RPCEndpoint

from flower_chain import Examiner
from flower_chain.errors import ConfigError, JournalError, Unverified, WrongChain
from flower_chain.ledger import Contract, JsonRpcLedger
from flower_chain.ledger.federation import Federation as Ledger
from flower_chain.ledger.federation import Finding, History
from flower_chain.records import Refusal, Signed, sign
from flower_chain.run import RecordAndRewardRun
from flower_chain.run import record_and_reward as run_module
from flower_chain.store.cid import cid_from_bytes
from flower_chain.strategy import RecordAndReward
from flower_chain.verify import Report, verify

Tamper = Callable[[Path], None]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds of four devices, the last of which claims too much data."""
    federation = Federation(tmp_path_factory.mktemp("verify"), devices=4)
    federation.meddle(signing(data_cost=2_000_000))
    federation.run(rounds=2, max_data_cost=1_000_000)
    return federation.path / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy to do harm to."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def check(path: Path, with_key: bool = True, with_data: bool = True) -> Report:
    """The last report."""
    owner, data = OWNER if with_key else None, examiner() if with_data else None
    *_, report = verify(RecordAndRewardRun.open(path), owner, data)
    return report


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def stored_update(path: Path) -> tuple[str, Path]:
    """The first accepted device, and the file with its update."""
    verdict = RecordAndRewardRun.open(path).federation.history().versions[0].accepted[0]
    contribution = verdict.signed.contribution
    (file,) = (path / "store").rglob(f"*{cid_from_bytes(contribution.cid)}*")
    return contribution.device, file


def test_the_owner_can_check_everything(run):
    report = check(run)
    assert report.unchecked == []
    assert report.checked["aggregates"] == 2
    assert report.checked["signatures"] == 8
    assert report.checked["accepted updates"] == 6
    assert report.checked["validation errors"] == 6


def test_an_outsider_is_told_what_was_not_checked(run):
    report = check(run, with_key=False, with_data=False)
    assert report.checked["verdicts"] == 8
    assert report.checked["payments"] == 6
    assert "aggregates" not in report.checked
    assert len(report.unchecked) == 4


def test_the_key_alone_is_enough_for_the_aggregates(run):
    report = check(run, with_data=False)
    assert report.checked["aggregates"] == 2
    assert any("--examiner" in left_out for left_out in report.unchecked)


def test_the_report_grows_with_each_version(run):
    reports = verify(RecordAndRewardRun.open(run), None, None)
    seen = [report.checked.get("models", 0) for report in reports]
    assert len(seen) == 4


@pytest.mark.parametrize("with_key", [True, False])
def test_a_changed_byte_in_a_stored_update_is_found(run, with_key):
    device, file = stored_update(run)
    flip(file)
    with pytest.raises(Unverified, match=f"version 0, contribution of {device}"):
        check(run, with_key)


def test_a_missing_update_is_found(run):
    device, file = stored_update(run)
    file.unlink()
    with pytest.raises(Unverified, match=f"version 0, contribution of {device}"):
        check(run, with_key=False)


def test_a_changed_byte_in_a_stored_model_is_found(run):
    cid = RecordAndRewardRun.open(run).federation.history().versions[1].model.cid
    (file,) = (run / "store").rglob(f"*{cid_from_bytes(cid)}*")
    flip(file)
    with pytest.raises(Unverified, match="version 1, model"):
        check(run, with_key=False)


def test_an_edited_journal_is_found(run):
    journal = run / "ledger.journal"
    lines = journal.read_text().splitlines(keepends=True)
    entry = json.loads(lines[-1])
    entry["time"] += 1
    journal.write_text("".join(lines[:-1]) + json.dumps(entry) + "\n")
    with pytest.raises(JournalError, match="was edited"):
        check(run)


def test_a_changed_plan_is_found(run):
    pointers = json.loads((run / "run.json").read_text())
    plan = json.loads(pointers["plan"])
    plan["rate"] *= 2
    pointers["plan"] = json.dumps(plan, sort_keys=True, separators=(",", ":"))
    (run / "run.json").write_text(json.dumps(pointers))
    with pytest.raises(Unverified, match="plan: its digest"):
        check(run)


def with_history(monkeypatch: pytest.MonkeyPatch, change: Callable[[History], None]) -> None:
    """A ledger that tells a changed history."""
    told = Ledger.history

    def tell(ledger: Ledger) -> History:
        history = told(ledger)
        change(history)
        return history

    monkeypatch.setattr(Ledger, "history", tell)


def test_a_changed_payout_is_found(run, monkeypatch):
    def change(history: History) -> None:
        payments = history.versions[1].payments
        payments[0] = replace(payments[0], amount=payments[0].amount + 1)

    with_history(monkeypatch, change)
    with pytest.raises(Unverified, match=r"version 1, device .*: paid \d+"):
        check(run)


def test_a_payment_to_a_refused_device_is_found(run, monkeypatch):
    def change(history: History) -> None:
        version = history.versions[0]
        (refused,) = [v for v in version.verdicts if v.reason]
        device = refused.signed.contribution.device
        version.payments.append(replace(version.payments[0], device=device))

    with_history(monkeypatch, change)
    with pytest.raises(Unverified, match="but None was due"):
        check(run)


def test_a_changed_verdict_is_found(run, monkeypatch):
    def change(history: History) -> None:
        verdicts = history.versions[0].verdicts
        (number,) = [n for n, verdict in enumerate(verdicts) if verdict.reason]
        verdicts[number] = replace(verdicts[number], reason=Refusal.NONE)

    with_history(monkeypatch, change)
    with pytest.raises(Unverified, match="the rules 'bad data cost'"):
        check(run)


def test_a_changed_due_is_found(run, monkeypatch):
    def change(history: History) -> None:
        verdicts = history.versions[0].verdicts
        verdicts[:] = [replace(v, due=v.due + 1) if v.due else v for v in verdicts]

    with_history(monkeypatch, change)
    with pytest.raises(Unverified, match=r"contribution of .*: due is \d+, by the rules \d+"):
        check(run)


def test_another_seed_than_was_committed_to_is_found(run, monkeypatch):
    def change(history: History) -> None:
        history.versions[0].seed = b"\1" * 32

    with_history(monkeypatch, change)
    with pytest.raises(Unverified, match="version 0: the seed is not the one committed to"):
        check(run, with_key=False, with_data=False)


def test_a_refusal_of_what_the_ledger_never_had_is_found(run, monkeypatch):
    def change(history: History) -> None:
        history.versions[1].findings.append(Finding(OWNER.address, Refusal.NOT_STORED))

    with_history(monkeypatch, change)
    with pytest.raises(Unverified, match="but the ledger accepted nothing of it"):
        check(run)


def test_an_update_that_nobody_can_read_but_that_was_accepted_is_found(tmp_path, monkeypatch):
    federation = Federation(tmp_path, devices=3)
    device = federation.meddle(signing(update=changed(), owner=Account.create()))
    run = federation.run().path

    with_history(monkeypatch, lambda history: history.versions[0].findings.clear())
    with pytest.raises(Unverified, match=f"contribution of {device}: accepted, but "):
        check(run)


def test_a_model_of_another_digest_is_found(run, monkeypatch):
    def change(history: History) -> None:
        version = history.versions[1]
        version.model = replace(version.model, digest=b"\1" * 32)

    with_history(monkeypatch, change)
    with pytest.raises(Unverified, match=f"version 1, model: .* the ledger's {'01' * 32}"):
        check(run, with_key=False)


def test_a_pool_that_was_not_short_is_found(run, monkeypatch):
    def change(history: History) -> None:
        history.versions[0].pool_when_short = 1000 * TOKEN

    with_history(monkeypatch, change)
    with pytest.raises(Unverified, match="version 0: the pool of 1000000000000000000000 was not"):
        check(run)


def test_a_changed_credit_is_found(run, monkeypatch):
    def change(history: History) -> None:
        device = next(iter(history.credited))
        history.credited[device] += 1

    with_history(monkeypatch, change)
    with pytest.raises(Unverified, match="credits of"):
        check(run)


def test_a_credit_that_was_withdrawn_but_never_paid_for_is_found(run, monkeypatch):
    def change(history: History) -> None:
        history.credited[OWNER.address] = history.withdrawn[OWNER.address] = TOKEN

    with_history(monkeypatch, change)
    with pytest.raises(Unverified, match=r"credits: \d+ in all, but \d+ was paid"):
        check(run)


def test_a_withdrawal_of_what_was_never_credited_is_found(run, monkeypatch):
    def change(history: History) -> None:
        history.withdrawn[OWNER.address] = TOKEN

    with_history(monkeypatch, change)
    with pytest.raises(Unverified, match=r"credits of 0x\w+: 0, but its payments leave -\d+"):
        check(run)


def test_another_token_in_the_pointers_is_found(run):
    pointers = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(pointers | {"token": pointers["contract"]}))
    with pytest.raises(Unverified, match=f"token: run.json says {pointers['contract']}"):
        check(run)


def test_a_contract_of_other_code_is_found(tmp_path, anvil):
    give(anvil, OWNER.address)
    run = Federation(tmp_path, devices=2).run(ledger=anvil).path
    contract = RecordAndRewardRun.open(run).pointers.contract
    change_code(anvil, contract)
    with pytest.raises(Unverified, match=f"code: the contract at {contract} is not this package's"):
        check(run)


def test_a_contract_that_other_code_created_is_found(tmp_path, anvil):
    """With credits in its storage, say, of somebody who never contributed."""
    give(anvil, OWNER.address)
    run = Federation(tmp_path, devices=2).run(ledger=anvil).path
    pointers = json.loads((run / "run.json").read_text())
    with JsonRpcLedger(anvil) as ledger:
        code = ledger.code(pointers["contract"])
        returned = b"\x61" + len(code).to_bytes(2, "big") + bytes.fromhex("80600a3d393df3") + code
        twin = ledger.send(OWNER, None, returned)
        assert ledger.code(twin.created) == code
        contract = Contract(ledger, twin.created, "RecordAndReward", twin.block)
        contract.check_code()
        with pytest.raises(WrongChain, match=f"{twin.created} was not created by this package's"):
            contract.check_creation()


def test_a_withdrawal_by_who_was_never_credited_is_found(tmp_path, anvil):
    give(anvil, OWNER.address)
    run = Federation(tmp_path, devices=2).run(ledger=anvil).path
    crony = "0x" + 40 * "1"
    with closing(RecordAndRewardRun.open(run, OWNER)) as opened:
        contract = opened.federation.contract
        slot = keccak(bytes.fromhex(crony[2:]).rjust(32, b"\0") + bytes(32))
        some = [contract.address, "0x" + slot.hex(), "0x" + (1000).to_bytes(32, "big").hex()]
        HTTPProvider(anvil).make_request(RPCEndpoint("anvil_setStorageAt"), some)
        assert contract.call("credits", crony) == 1000
        contract.transact(OWNER, "withdraw", crony)
    with pytest.raises(Unverified, match=f"credits of {crony}: 0, but its payments leave -1000"):
        check(run)


def test_a_token_of_other_code_is_told(tmp_path, anvil):
    give(anvil, OWNER.address)
    run = Federation(tmp_path, devices=2).run(ledger=anvil).path
    token = RecordAndRewardRun.open(run).pointers.token
    change_code(anvil, token)
    word = f"the token at {token}: not this package's, what it says is believed"
    assert word in check(run).unchecked


def test_tokens_that_are_not_there_any_more_are_found(tmp_path, anvil):
    """A token of somebody else's may do that; here the node does."""
    give(anvil, OWNER.address)
    run = Federation(tmp_path, devices=2).run(ledger=anvil).path
    pointers = RecordAndRewardRun.open(run).pointers
    slot = keccak(bytes.fromhex(pointers.contract[2:]).rjust(32, b"\0") + bytes(32))
    left = [pointers.token, "0x" + slot.hex(), "0x" + (TOKEN // 100).to_bytes(32, "big").hex()]
    HTTPProvider(anvil).make_request(RPCEndpoint("anvil_setStorageAt"), left)
    with pytest.raises(Unverified, match=r"tokens: 10000000000000000 held, but \d+ owed"):
        check(run)


def test_a_withdrawal_meanwhile_is_told(run):
    with closing(RecordAndRewardRun.open(run, OWNER)) as opened:
        device = next(iter(opened.federation.history().credited))
        steps = verify(opened, OWNER, examiner())
        next(steps)
        opened.federation.contract.transact(OWNER, "withdraw", device)
        *_, report = steps
    assert report.unchecked == ["balances: the run went on while it was checked"]
    after = check(run)
    assert after.unchecked == []
    assert after.checked["balances"] == 5


def dishonest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, method: object
) -> Outcome:
    """A run whose owner does one thing otherwise."""
    federation = Federation(tmp_path, devices=3)
    monkeypatch.setattr(RecordAndReward, name, method)
    return federation.run(rounds=1)


def test_a_model_that_is_not_the_aggregate_is_found(tmp_path, monkeypatch):
    honest = RecordAndReward._aggregate

    def shifted(self, server_round, accepted):
        arrays, metrics = honest(self, server_round, accepted)
        return {key: value + value.dtype.type(0.01) for key, value in arrays.items()}, metrics

    outcome = dishonest(tmp_path, monkeypatch, "_aggregate", shifted)
    with pytest.raises(Unverified, match="version 1, model: not the aggregate"):
        check(outcome.path)


def test_a_refusal_without_a_reason_is_found(tmp_path, monkeypatch):
    honest = RecordAndReward._admit

    def unjust(self, replies):
        first, *others = honest(self, replies)
        return [first.refused(Refusal.NOT_FINITE, "as it pleases the owner"), *others]

    outcome = dishonest(tmp_path, monkeypatch, "_admit", unjust)
    with pytest.raises(Unverified, match="refused for 'not finite', but found 'none'"):
        check(outcome.path)


def test_evidence_that_the_owner_let_pass_is_found(tmp_path, monkeypatch):
    federation = Federation(tmp_path, devices=3)
    federation.meddle(signing(errors=(900_000, 100_000, 50_000)))
    monkeypatch.setattr(RecordAndReward, "_check_evidence", lambda _, admission: admission)
    outcome = federation.run(rounds=1)
    assert federation.accounts[-1] in outcome.accepted()
    with pytest.raises(Unverified, match="its errors are not those of the update"):
        check(outcome.path)


def test_evidence_that_the_owner_refused_needs_the_data_to_be_checked(tmp_path):
    federation = Federation(tmp_path, devices=3)
    federation.meddle(signing(errors=(900_000, 100_000, 50_000)))
    outcome = federation.run(rounds=1)
    assert outcome.refused() == [(federation.accounts[-1], Refusal.FALSE_EVIDENCE)]
    assert check(outcome.path).checked["findings"] == 1
    for known in ({"with_data": False}, {"with_key": False}):
        assert "findings" not in check(outcome.path, **known).checked


def test_an_error_of_a_model_that_the_owner_made_up_is_found(tmp_path, monkeypatch):
    federation = Federation(tmp_path, devices=3)
    honest = RecordAndRewardRun.model
    monkeypatch.setattr(
        RecordAndRewardRun, "model", lambda run, arrays, k, error: honest(run, arrays, k, 7)
    )
    outcome = federation.run(rounds=1)
    with pytest.raises(Unverified, match=r"version 1, model: its error is \d+ ppm, the ledger's 7"):
        check(outcome.path)


def test_terms_that_the_contract_does_not_enforce_are_found(tmp_path, monkeypatch):
    """Its digest of the plan is right, but it pays another rate."""
    honest = run_module._terms
    at = 7
    assert honest(a_plan())[at] == a_plan().rate
    monkeypatch.setattr(
        run_module, "_terms", lambda plan: (*honest(plan)[:at], 5, *honest(plan)[at + 1 :])
    )
    outcome = Federation(tmp_path, devices=3).run(rounds=1)
    with pytest.raises(Unverified, match="plan: rate is 1000000000000000, but the contract enf"):
        check(outcome.path, with_key=False)


def test_what_another_strategy_made_is_told(tmp_path):
    federation = Federation(tmp_path, devices=3)
    outcome = federation.run(everybody(FedAdam, federation), rounds=1)
    report = check(outcome.path)
    assert report.unchecked == ["the aggregates: FedAdam made them, not a mean"]
    assert "aggregates" not in report.checked


def test_another_key_than_the_owners_is_told(run):
    with pytest.raises(ConfigError, match="the key is that of"):
        list(verify(RecordAndRewardRun.open(run), Account.create(), None))


def test_other_validation_data_are_told(run):
    other = Examiner(examiner()._x[:50], examiner()._y[:50], examiner()._predict)
    with pytest.raises(ConfigError, match="the validation data have digest"):
        list(verify(RecordAndRewardRun.open(run), OWNER, other))


@pytest.mark.parametrize("reason", [Refusal.NO_ANSWER, Refusal.DEVICE_ERROR, Refusal.UNREADABLE])
def test_a_finding_that_the_ledger_disproves_is_found(tmp_path, monkeypatch, reason):
    honest = RecordAndReward._admit

    def unjust(self, replies):
        first, *others = honest(self, replies)
        return [first.refused(reason, "it says"), *others]

    outcome = dishonest(tmp_path, monkeypatch, "_admit", unjust)
    with pytest.raises(Unverified, match="but the contribution is on the ledger"):
        check(outcome.path)


def test_a_contribution_of_a_device_that_is_not_enrolled_is_checked(tmp_path):
    federation = Federation(tmp_path, devices=2)
    run = federation.run().path
    with closing(RecordAndRewardRun.open(run, OWNER)) as opened:
        stranger, domain = Account.create(), opened.federation.domain
        known = opened.federation.history().versions[0].accepted[0].signed.contribution
        contribution = replace(known, device=stranger.address, version=1)
        signed = Signed(contribution, sign(contribution.encode(domain), stranger))
        (verdict,) = opened.federation.submit([signed])
        assert verdict.reason is Refusal.NOT_ENROLLED
    assert check(run).checked["verdicts"] == 3


def test_what_only_the_owner_saw_is_told(tmp_path):
    federation = Federation(tmp_path, devices=3)
    federation.meddle(silent)
    report = check(federation.run(rounds=1).path)
    assert report.unchecked == ["1 findings about what only the owner saw: no, late or bad answers"]
