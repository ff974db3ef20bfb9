from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eth_account.signers.local import LocalAccount
from eth_utils.crypto import keccak

from flower_chain.errors import LedgerError, Reverted
from flower_chain.ledger import Contract, EmbeddedLedger, JsonRpcLedger, Ledger, Receipt
from flower_chain.ledger import federation as module
from flower_chain.ledger.base import GAS_LIMIT
from flower_chain.ledger.federation import (
    Federation,
    Finding,
    History,
    Payment,
    Settlement,
    Verdict,
)
from flower_chain.records import (
    NOBODY,
    UNMEASURED,
    Contribution,
    DecryptedSum,
    Model,
    Refusal,
    Signed,
    SignedSum,
    sign,
)
from flower_chain.rules.record_and_reward import MAX_ERRORS, Rule

RATE = 7
MOST = 1000
POOL = 10**6
CID = bytes.fromhex("01551220") + b"\xcd" * 32
# Rule `gain`: open error before, after, misdirection.
GOOD = (900_000, 333_333, 50_000)


def model_of(version: int, error_ppm: int = UNMEASURED) -> Model:
    return Model(bytes([version]) * 32, CID, keccak(seed_of(version)), error_ppm)


def seed_of(version: int) -> bytes:
    return bytes([100 + version]) * 32


@pytest.fixture
def start(
    ledger: Ledger, owner: LocalAccount, devices: list[LocalAccount]
) -> Callable[..., Federation]:
    """Deploys a federation with a pool; all devices but the last are enrolled."""

    def start(rule: Rule = Rule.GAIN, pool: int = POOL, budget: int = 0) -> Federation:
        token = ledger.deploy(owner, "RewardToken", 10**24)
        shares = 500_000, 300_000, 100_000, 400_000, 50_000
        terms = b"\7" * 32, int(rule), *shares, RATE, MOST, 60, budget
        contract = ledger.deploy(
            owner, "RecordAndReward", token.address, terms, model_of(0, 900_000).as_tuple()
        )
        token.transact(owner, "transfer", contract.address, pool)
        federation = Federation(contract, owner)
        federation.enrol([device.address for device in devices[:-1]])
        return federation

    return start


@pytest.fixture
def federation(start: Callable[..., Federation]) -> Federation:
    return start()


@pytest.fixture
def sent(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> list[Receipt]:
    """Receipts of all that is sent from now on."""
    receipts: list[Receipt] = []
    send = ledger.send

    def spy(*args: Any) -> Receipt:
        receipts.append(send(*args))
        return receipts[-1]

    monkeypatch.setattr(ledger, "send", spy)
    return receipts


def contribute(federation: Federation, device: LocalAccount, **changes: Any) -> Signed:
    """A good contribution of `device` for the first version, but for `changes`."""
    contribution = replace(
        Contribution(device.address, 0, 300, b"\xab" * 32, CID, (0, 7, 255), GOOD), **changes
    )
    return Signed(contribution, sign(contribution.encode(federation.domain), device))


def reasons(verdicts: Sequence[Verdict]) -> list[Refusal]:
    return [verdict.reason for verdict in verdicts]


def addresses(devices: Sequence[LocalAccount]) -> list[str]:
    return [device.address for device in devices]


def read_again(federation: Federation, tmp_path: Path, anvil: Callable[[], str]) -> History:
    """What somebody else reads."""
    contract = federation.contract
    if isinstance(contract.ledger, EmbeddedLedger):
        other: Ledger = EmbeddedLedger(tmp_path / "ledger.journal", read_only=True)
    else:
        other = JsonRpcLedger(anvil(), contract.ledger.chain_id)
    with other:
        return Federation(Contract(other, contract.address, contract.name)).history()


def settle(
    federation: Federation,
    accounts: Sequence[str],
    seed: bytes,
    following: Model,
    findings: Sequence[Finding] = (),
) -> Settlement:
    """Pay some of those who were accepted."""
    version = federation.current()
    version.verdicts = [verdict for verdict in version.verdicts if verdict.device in accounts]
    return federation.settle(version, seed, following, findings)


class TestEnrol:
    def test_only_the_enrolled_are(
        self, federation: Federation, devices: list[LocalAccount]
    ) -> None:
        enrolled = [federation.is_enrolled(device.address) for device in devices]
        assert enrolled == [True] * 5 + [False]

    def test_history_names_them_in_order(
        self, federation: Federation, devices: list[LocalAccount]
    ) -> None:
        federation.enrol([devices[5].address])
        assert list(federation.history().enrolled) == addresses(devices)

    def test_nobody_is_enrolled_twice(
        self, federation: Federation, devices: list[LocalAccount]
    ) -> None:
        with pytest.raises(Reverted, match=f"AlreadyEnrolled.{devices[0].address.lower()}"):
            federation.enrol([devices[0].address])

    def test_the_owner_is_not_a_device(self, federation: Federation, owner: LocalAccount) -> None:
        with pytest.raises(Reverted, match="NotADevice"):
            federation.enrol([owner.address])


class TestSubmit:
    def test_tells_each_refusal_that_the_contract_decides_in_order(
        self, federation: Federation, devices: list[LocalAccount]
    ) -> None:
        settle(federation, [], seed_of(0), model_of(1))
        one, two, three, four, five, stranger = devices
        forged = contribute(federation, two, version=1)
        batch = [
            replace(forged, signature=contribute(federation, one, version=1).signature),
            contribute(federation, stranger, version=1),
            contribute(federation, one, version=0),
            contribute(federation, one, version=2),
            contribute(federation, one, version=1),
            contribute(federation, one, version=1, data_cost=1),
            contribute(federation, two, version=1, data_cost=MOST + 1),
            contribute(federation, three, version=1, errors=(900_000, 100_000)),
            contribute(federation, four, version=1, errors=(900_000, 899_999, 400_000)),
            contribute(federation, five, version=1, data_cost=0),
            contribute(federation, five, version=1),
        ]
        verdicts = federation.submit(batch)
        assert reasons(verdicts) == [
            Refusal.BAD_SIGNATURE,
            Refusal.NOT_ENROLLED,
            Refusal.STALE_VERSION,
            Refusal.FUTURE_VERSION,
            Refusal.NONE,
            Refusal.SECOND_CONTRIBUTION,
            Refusal.BAD_DATA_COST,
            Refusal.BAD_EVIDENCE,
            Refusal.WORTHLESS,
            Refusal.BAD_DATA_COST,
            Refusal.SECOND_CONTRIBUTION,
        ]
        assert [verdict.signed for verdict in verdicts] == batch
        assert [verdict.due for verdict in verdicts if verdict.reason] == [0] * 10

    def test_a_version_is_closed_once_its_payments_have_begun(
        self, federation: Federation, owner: LocalAccount, devices: list[LocalAccount]
    ) -> None:
        federation.contract.transact(owner, "pay", [])
        verdicts = federation.submit([contribute(federation, devices[0])])
        assert reasons(verdicts) == [Refusal.VERSION_CLOSED]

    @pytest.mark.parametrize(
        ("cost", "errors", "due"),
        [
            (1000, (900_000, 333_333, 50_000), 4666),  # 7000 * 0.666667
            (1, (900_000, 333_333, 50_000), 4),  # 7 * 0.666667
            (1000, (900_000, 990_000, 100_000), 350),  # 7000 * the least share
            (1000, (900_000, 0, 400_000), 7000),
            (1, (900_000, 900_000, 0), 0),  # 7 * 0.1
        ],
    )
    def test_what_is_due_is_rounded_down(
        self,
        federation: Federation,
        devices: list[LocalAccount],
        cost: int,
        errors: tuple[int, ...],
        due: int,
    ) -> None:
        signed = contribute(federation, devices[0], data_cost=cost, errors=errors)
        (verdict,) = federation.submit([signed])
        assert (verdict.reason, verdict.due) == (Refusal.NONE, due)

    def test_nothing_submitted_is_nothing_sent(
        self, federation: Federation, sent: list[Receipt]
    ) -> None:
        assert federation.submit([]) == []
        assert sent == []

    def test_all_fields_at_their_limits_come_back(
        self, federation: Federation, devices: list[LocalAccount]
    ) -> None:
        signed = contribute(
            federation,
            devices[0],
            version=2**32 - 1,
            data_cost=2**32 - 1,
            digest=b"\xff" * 32,
            cid=b"",
            classes=tuple(range(256)),
            errors=(2**32 - 1,) * 256,
            spent=2**64 - 1,
        )
        (verdict,) = federation.submit([signed])
        assert verdict.signed == signed


class TestCollect:
    def test_records_what_is_not_recorded_yet_and_tells_all(
        self, federation: Federation, devices: list[LocalAccount], sent: list[Receipt]
    ) -> None:
        early, late = (contribute(federation, device) for device in devices[:2])
        (verdict,) = federation.submit([early])
        version = federation.collect(0, [early, late])
        assert [v.signed for v in version.verdicts] == [early, late]
        assert version.verdicts[0] == verdict
        assert version.closed
        assert len(sent) == 2

    def test_nothing_comes_in_afterwards(
        self, federation: Federation, devices: list[LocalAccount]
    ) -> None:
        federation.collect(0, [])
        assert reasons(federation.submit([contribute(federation, devices[0])])) == [
            Refusal.VERSION_CLOSED
        ]

    def test_of_a_closed_version_tells_what_there_is(
        self, federation: Federation, devices: list[LocalAccount], sent: list[Receipt]
    ) -> None:
        first = federation.collect(0, [contribute(federation, devices[0])])
        assert federation.collect(0, [contribute(federation, devices[1])]) == first
        assert len(sent) == 1

    def test_on_a_node_that_does_not_know_its_newest_block_ends(
        self, federation: Federation, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        known = ledger.logs(federation.contract.address)
        monkeypatch.setattr(ledger, "logs", lambda address, since=0: known)
        with pytest.raises(LedgerError, match="does not know yet that version 0 was closed"):
            federation.collect(0, [])
        monkeypatch.undo()
        assert federation.collect(0, []).closed

    def test_on_a_node_that_keeps_no_events_ends(
        self, federation: Federation, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ledger, "logs", lambda address, since=0: [])
        with pytest.raises(LedgerError, match="no model was published by 0x"):
            federation.collect(0, [])

    def test_of_another_version_is_refused(self, federation: Federation) -> None:
        with pytest.raises(LedgerError, match="the ledger is at version 0, this run at 1"):
            federation.collect(1, [])
        assert not federation.current().closed

    def test_tells_the_current_version_alone(
        self, federation: Federation, devices: list[LocalAccount]
    ) -> None:
        federation.collect(0, [contribute(federation, devices[0])])
        settle(federation, [devices[0].address], seed_of(0), model_of(1))
        late = contribute(federation, devices[1], version=1)
        version = federation.collect(1, [late])
        assert [v.signed for v in version.verdicts] == [late]
        assert (version.number, version.model) == (1, model_of(1))
        assert version == federation.history().versions[1]


def refuse(federation: Federation, findings: list[Finding]) -> None:
    """Each in a transaction of its own."""
    assert federation._account is not None
    for finding in findings:
        federation.contract.transact(
            federation._account, "refuse", finding.device, int(finding.reason)
        )


class TestSettleAgain:
    def test_what_is_found_after_payments_began_is_paid_and_left_out(
        self, federation: Federation, devices: list[LocalAccount]
    ) -> None:
        one, two = devices[:2]
        federation.collect(0, [contribute(federation, device) for device in (one, two)])
        federation.contract.transact(federation._account, "pay", [one.address])
        finding = Finding(one.address, Refusal.NOT_STORED)
        settle(federation, addresses([one, two]), seed_of(0), model_of(1), [finding])
        version = federation.history().versions[0]
        assert [v.device for v in version.accepted] == [two.address]
        assert {v.device for v in version.payable} == {one.address, two.address}
        assert {p.device for p in version.payments} == {one.address, two.address}


class TestRefuse:
    def test_what_was_accepted_is_no_longer(
        self, federation: Federation, devices: list[LocalAccount]
    ) -> None:
        federation.submit([contribute(federation, device) for device in devices[:3]])
        findings = [
            Finding(devices[1].address, Refusal.WRONG_DIGEST),
            Finding(NOBODY, Refusal.NO_ANSWER),
            Finding(devices[4].address, Refusal.DEVICE_ERROR),
        ]
        refuse(federation, findings)
        (version,) = federation.history().versions
        assert version.findings == findings
        kept = [verdict.signed.contribution.device for verdict in version.accepted]
        assert sorted(kept) == sorted([devices[0].address, devices[2].address])

    def test_who_was_refused_can_not_contribute_to_the_version(
        self, federation: Federation, devices: list[LocalAccount]
    ) -> None:
        refuse(federation, [Finding(devices[0].address, Refusal.DEVICE_ERROR)])
        verdicts = federation.submit([contribute(federation, devices[0])])
        assert reasons(verdicts) == [Refusal.SECOND_CONTRIBUTION]

    def test_what_was_refused_is_not_paid(
        self, federation: Federation, devices: list[LocalAccount]
    ) -> None:
        federation.submit([contribute(federation, device) for device in devices[:2]])
        refuse(federation, [Finding(devices[0].address, Refusal.NOT_STORED)])
        settlement = settle(federation, addresses(devices[:2]), seed_of(0), model_of(1))
        assert [payment.device for payment in settlement.payments] == [devices[1].address]

    def test_what_the_contract_decides_is_not_a_finding(
        self, federation: Federation, devices: list[LocalAccount]
    ) -> None:
        with pytest.raises(Reverted, match=r"^NotAFinding\(7\)$"):
            refuse(federation, [Finding(devices[0].address, Refusal.WORTHLESS)])


class TestSettle:
    def test_pays_exactly_what_is_due_by_account(
        self, federation: Federation, devices: list[LocalAccount]
    ) -> None:
        costs = dict(zip(devices[:3], (1000, 10, 1), strict=True))
        federation.submit([contribute(federation, d, data_cost=n) for d, n in costs.items()])
        settlement = settle(federation, addresses(devices[:3]), seed_of(0), model_of(1))
        due = dict(zip(addresses(devices[:3]), (4666, 46, 4), strict=True))
        payments = [Payment(device, due[device]) for device in sorted(due, key=str.lower)]
        assert settlement == Settlement(tuple(payments), short=False)
        assert federation.pool == POOL - 4 - 4666 - 46
        assert {device: federation.contract.call("credits", device) for device in due} == due

    def test_shares_a_pool_that_is_too_small_pro_rata(
        self, start: Callable[..., Federation], devices: list[LocalAccount]
    ) -> None:
        federation = start(Rule.THRESHOLD, pool=1000)
        costs = dict(zip(devices[:3], (400, 200, 100), strict=True))
        errors = (900_000, 100_000)
        federation.submit(
            [contribute(federation, d, data_cost=n, errors=errors) for d, n in costs.items()]
        )
        settlement = settle(federation, addresses(devices[:3]), seed_of(0), model_of(1))
        paid = {payment.device: payment.amount for payment in settlement.payments}
        assert [paid[device] for device in addresses(devices[:3])] == [571, 285, 142]
        assert settlement.short
        assert federation.pool == 2
        assert federation.history().versions[0].pool_when_short == 1000

    def test_shares_a_short_pool_pro_rata_over_batches(
        self,
        start: Callable[..., Federation],
        devices: list[LocalAccount],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(module, "BATCH", 1)
        federation = start(Rule.THRESHOLD, pool=1000)
        errors = (900_000, 100_000)
        federation.submit([contribute(federation, d, errors=errors) for d in devices[:3]])
        settlement = settle(federation, addresses(devices[:3]), seed_of(0), model_of(1))
        assert [payment.amount for payment in settlement.payments] == [333, 333, 333]
        assert settlement.short

    def test_an_empty_pool_pays_nothing_and_goes_on(
        self, start: Callable[..., Federation], devices: list[LocalAccount]
    ) -> None:
        federation = start(pool=0)
        federation.submit([contribute(federation, devices[0])])
        settlement = settle(federation, [devices[0].address], seed_of(0), model_of(1))
        assert settlement == Settlement((Payment(devices[0].address, 0),), short=True)
        assert federation.version == 1

    def test_publishes_the_next_model_when_nothing_was_accepted(
        self, federation: Federation, sent: list[Receipt]
    ) -> None:
        assert settle(federation, [], seed_of(0), model_of(1)) == Settlement((), short=False)
        assert len(sent) == 1
        first, second = federation.history().versions
        assert (first.seed, first.payments, first.settled) == (seed_of(0), [], True)
        assert (second.number, second.model, second.settled) == (1, model_of(1), False)
        assert federation.version == 1

    def test_pays_and_publishes_in_one_transaction(
        self, federation: Federation, devices: list[LocalAccount], sent: list[Receipt]
    ) -> None:
        federation.submit([contribute(federation, device) for device in devices[:4]])
        settle(federation, addresses(devices[:4]), seed_of(0), model_of(1))
        assert len(sent) == 2

    def test_nobody_accepted_is_left_out(
        self, federation: Federation, devices: list[LocalAccount]
    ) -> None:
        federation.submit([contribute(federation, device) for device in devices[:2]])
        with pytest.raises(Reverted, match=r"^Unpaid\(0, 2800, 1400\)$"):
            settle(federation, [devices[0].address], seed_of(0), model_of(1))
        assert federation.version == 0
        assert federation.pool == POOL

    def test_another_seed_than_was_committed_to_is_refused(self, federation: Federation) -> None:
        with pytest.raises(Reverted, match=r"^WrongSeed\(0\)$"):
            settle(federation, [], seed_of(1), model_of(1))


class TestFinish:
    def test_gives_the_rest_of_the_pool_back(
        self, federation: Federation, owner: LocalAccount, devices: list[LocalAccount]
    ) -> None:
        federation.submit([contribute(federation, devices[0])])
        settle(federation, [devices[0].address], seed_of(0), model_of(1))
        federation.finish()
        history = federation.history()
        assert (history.finished, history.returned) == (True, POOL - 1400)
        assert federation.pool == 0
        federation.contract.transact(owner, "withdraw", devices[0].address)
        assert federation.history().withdrawn == {devices[0].address: 1400}

    def test_not_with_contributions_unpaid(
        self, federation: Federation, devices: list[LocalAccount]
    ) -> None:
        federation.submit([contribute(federation, devices[0])])
        with pytest.raises(Reverted, match=r"^VersionOpen\(0\)$"):
            federation.finish()

    def test_nothing_is_accepted_afterwards(
        self, federation: Federation, devices: list[LocalAccount]
    ) -> None:
        federation.finish()
        with pytest.raises(Reverted, match="AlreadyFinished"):
            federation.submit([contribute(federation, devices[0])])


class TestBatches:
    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "BATCH", 2)

    def test_many_are_enrolled_in_several_transactions(
        self, federation: Federation, devices: list[LocalAccount]
    ) -> None:
        assert list(federation.history().enrolled) == addresses(devices[:5])

    def test_verdicts_of_several_transactions_are_in_order(
        self, federation: Federation, devices: list[LocalAccount], sent: list[Receipt]
    ) -> None:
        batch = [contribute(federation, device) for device in devices[:5]]
        batch.insert(1, contribute(federation, devices[5]))
        batch.append(batch[0])
        verdicts = federation.submit(batch)
        assert [verdict.signed for verdict in verdicts] == batch
        assert reasons(verdicts) == [
            Refusal.NONE,
            Refusal.NOT_ENROLLED,
            *[Refusal.NONE] * 4,
            Refusal.SECOND_CONTRIBUTION,
        ]
        assert len(sent) == 4

    def test_many_findings_take_several_transactions(
        self, federation: Federation, devices: list[LocalAccount], sent: list[Receipt]
    ) -> None:
        findings = [Finding(device.address, Refusal.OVERSIZE) for device in devices[:5]]
        settle(federation, [], seed_of(0), model_of(1), findings)
        assert federation.history().versions[0].findings == findings
        assert len(sent) == 3

    @pytest.mark.parametrize(("accepted", "transactions"), [(5, 3), (4, 2), (2, 1), (1, 1)])
    def test_many_payments_take_several_transactions(
        self,
        federation: Federation,
        devices: list[LocalAccount],
        sent: list[Receipt],
        accepted: int,
        transactions: int,
    ) -> None:
        some = devices[:accepted]
        federation.submit([contribute(federation, device) for device in some])
        sent.clear()
        settlement = settle(federation, addresses(some), seed_of(0), model_of(1))
        assert {payment.device for payment in settlement.payments} == set(addresses(some))
        assert len(sent) == transactions
        assert federation.history().versions[0].payments == list(settlement.payments)


class TestGas:
    @pytest.mark.parametrize(
        ("rule", "length"),
        [
            (Rule.GAIN, 12),
            (Rule.TREND, 12),
            (Rule.GAIN, MAX_ERRORS),
            (Rule.TREND, MAX_ERRORS),
        ],
    )
    def test_a_full_batch_of_contributions_fits_into_a_transaction(
        self,
        start: Callable[..., Federation],
        devices: list[LocalAccount],
        sent: list[Receipt],
        rule: Rule,
        length: int,
    ) -> None:
        """With the fifth on top that JsonRpcLedger allows for."""
        federation = start(rule)
        errors = (*range(999_999, 999_999 - length + 1, -1), 100_000)
        gas = []
        for some in (devices[:1], devices[1:5]):
            federation.submit([contribute(federation, d, errors=errors) for d in some])
            gas.append(sent[-1].gas_used)
        each = (gas[1] - gas[0]) / 3
        assert each * module.BATCH * 1.2 < GAS_LIMIT


class TestHistory:
    def test_a_new_federation_has_its_first_model_alone(self, federation: Federation) -> None:
        history = federation.history()
        (first,) = history.versions
        assert (first.number, first.model, first.settled) == (0, model_of(0, 900_000), False)
        assert (first.verdicts, first.findings, first.payments) == ([], [], [])
        assert (first.gas_used, first.receipts, first.pool_when_short) == (0, {}, None)
        assert (history.credited, history.withdrawn, history.returned) == ({}, {}, 0)
        assert not history.finished

    def test_tells_all_that_happened(
        self, federation: Federation, devices: list[LocalAccount], sent: list[Receipt]
    ) -> None:
        one, two, three, four, *_ = devices
        first = federation.submit(
            [contribute(federation, d) for d in (four, three, two, one)]
            + [contribute(federation, one)]
        )
        finding = Finding(two.address, Refusal.FALSE_EVIDENCE)
        refuse(federation, [finding])
        paid = settle(federation, addresses([one, three, four]), seed_of(0), model_of(1, 5))
        first_sent = sent.copy()
        sent.clear()
        second = federation.submit([contribute(federation, two, version=1, data_cost=10)])
        paid_again = settle(federation, [two.address], seed_of(1), model_of(2))
        history = federation.history()
        assert [version.number for version in history.versions] == [0, 1, 2]
        assert [version.model for version in history.versions] == [
            model_of(0, 900_000),
            model_of(1, 5),
            model_of(2),
        ]
        assert [version.verdicts for version in history.versions] == [first, second, []]
        assert [version.findings for version in history.versions] == [[finding], [], []]
        assert [version.payments for version in history.versions] == [
            list(paid.payments),
            list(paid_again.payments),
            [],
        ]
        assert [version.seed for version in history.versions] == [seed_of(0), seed_of(1), None]
        assert list(history.versions[0].receipts.values()) == first_sent
        assert [version.gas_used for version in history.versions] == [
            sum(receipt.gas_used for receipt in first_sent),
            sum(receipt.gas_used for receipt in sent),
            0,
        ]
        assert history.credited == {
            one.address: 1400,
            three.address: 1400,
            four.address: 1400,
            two.address: 46,
        }

    def test_the_accepted_are_sorted_by_account(
        self, federation: Federation, devices: list[LocalAccount]
    ) -> None:
        federation.submit([contribute(federation, device) for device in devices[:5]])
        (version,) = federation.history().versions
        accepted = [verdict.signed.contribution.device for verdict in version.accepted]
        assert accepted == sorted(addresses(devices[:5]), key=lambda a: int(a, 16))
        assert accepted != addresses(devices[:5])

    def test_who_contributed_badly_and_well_is_accepted_once(
        self, federation: Federation, devices: list[LocalAccount]
    ) -> None:
        federation.submit(
            [
                contribute(federation, devices[0], version=1),
                contribute(federation, devices[0]),
                contribute(federation, devices[0]),
            ]
        )
        (version,) = federation.history().versions
        assert [verdict.reason for verdict in version.accepted] == [Refusal.NONE]

    def test_somebody_else_reads_the_same(
        self,
        federation: Federation,
        devices: list[LocalAccount],
        tmp_path: Path,
        request: pytest.FixtureRequest,
    ) -> None:
        federation.submit([contribute(federation, device) for device in devices])
        refuse(federation, [Finding(devices[1].address, Refusal.NOT_FINITE)])
        settle(federation, addresses(devices), seed_of(0), model_of(1))
        federation.finish()
        there = read_again(federation, tmp_path, lambda: request.getfixturevalue("anvil"))
        assert there == federation.history()

    def test_times_are_those_of_the_blocks(
        self, federation: Federation, ledger: Ledger, sent: list[Receipt]
    ) -> None:
        settle(federation, [], seed_of(0), model_of(1))
        first, second = federation.history().versions
        assert second.time == ledger.time_of(sent[-1].block) >= first.time


def test_what_is_too_large_for_a_transaction_goes_in_several() -> None:
    """Nodes take none of more than 128 KiB, whatever the gas."""
    contribution = Contribution("0x" + "11" * 20, 0, 1, b"\0" * 32, CID, (), (1,) * MAX_ERRORS)
    batch = [Signed(contribution, b"\0" * 64)] * module.BATCH
    batches = list(module._submissions(batch))
    codec = Contract.__new__(Contract)
    object.__setattr__(codec, "name", "RecordAndReward")
    sizes = [len(codec.encode("submit", module._entries(some))) for some in batches]
    assert sum(map(len, batches)) == module.BATCH
    assert max(sizes) < 112_000
    assert len(batches) == 2


# --- encrypted sums ------------------------------------------------------------------------------


def test_a_decrypted_sum_is_recorded_with_the_model_that_is_made_of_it(
    federation: Federation, devices: list[LocalAccount]
) -> None:
    said = DecryptedSum(0, b"\1" * 32, b"\2" * 32, b"\3" * 32)
    decrypted = SignedSum(said, CID, sign(said.encode(federation.domain), devices[5]))
    version = federation.collect(0, [])

    federation.settle(version, seed_of(0), model_of(1), decrypted=decrypted)

    versions = federation.history().versions
    assert [version.sums for version in versions] == [[decrypted], []]
