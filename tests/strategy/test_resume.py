"""A run whose server is killed and started again: as if nothing had happened."""

import os
import secrets
import time
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from errno import ENOSPC, EROFS
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from federation import OWNER, Federation, Outcome, give
from flwr.app import MetricRecord
from flwr.serverapp.strategy import FedAdam
from killing import Killed, killed_at
from softmax import Device, arrays_in, digits, examiner, fresh, predict, record

from flower_chain import Examiner, durable, keys
from flower_chain.errors import (
    ConfigError,
    Damaged,
    JournalError,
    LedgerError,
    NotStored,
    StoreError,
)
from flower_chain.ledger import EmbeddedLedger, embedded
from flower_chain.ledger import federation as federation_module
from flower_chain.ledger.federation import Federation as OnLedger
from flower_chain.ledger.federation import Version
from flower_chain.records import Refusal
from flower_chain.run import Pointers, RecordAndRewardRun
from flower_chain.store import directory
from flower_chain.store.cid import cid_from_bytes
from flower_chain.updates import digest, pack
from flower_chain.verify import verify

ROUNDS = 3
HARMFUL = 3


@pytest.fixture(autouse=True)
def _same_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run draws the same samples, so that all that is paid can be compared."""
    monkeypatch.setattr(secrets, "token_hex", lambda n: "ab" * n)


def four(path: Path) -> Federation:
    """Three devices that do as they should, and one that wants to do harm."""
    federation = Federation(path, devices=3)
    federation.add(Device(HARMFUL, step=-0.5))
    return federation


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What every other run here must come to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(secrets, "token_hex", lambda n: "ab" * n)
        return four(tmp_path_factory.mktemp("undisturbed")).run(rounds=ROUNDS)


def assert_same(outcome: Outcome, undisturbed: Outcome) -> None:
    """The same versions, models, contributions, refusals and payments; and all of it verified."""
    assert told(outcome) == told(undisturbed)
    assert outcome.verify() == undisturbed.verify()
    assert outcome.run.federation.pool == undisturbed.run.federation.pool


def told(outcome: Outcome) -> list[tuple[Any, ...]]:
    """What a run's ledger tells, but for times and transactions."""
    return [
        (
            version.number,
            version.model.digest,
            [(v.device, v.signed.contribution.digest, v.due) for v in version.accepted],
            sorted(outcome.refused(version.number)),
            sorted((payment.device, payment.amount) for payment in version.payments),
        )
        for version in outcome.history.versions
    ]


# --- killed at every boundary --------------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", range(1, 11))
def test_a_run_killed_at_a_transaction_goes_on(
    tmp_path: Path, undisturbed: Outcome, number: int, after: bool
) -> None:
    federation = four(tmp_path)
    with killed_at(number, EmbeddedLedger, "send", after) as calls, pytest.raises(Killed):
        federation.run(rounds=ROUNDS)
    assert len(calls) == number

    assert_same(federation.run(rounds=ROUNDS), undisturbed)


def test_a_run_has_as_many_transactions_as_are_tested(tmp_path: Path) -> None:
    with killed_at(10**6, EmbeddedLedger, "send", after=True) as calls:
        four(tmp_path).run(rounds=ROUNDS)

    assert len(calls) == 10  # token, contract, pool, enrolment; two a round


def test_a_run_that_dies_after_each_transaction_ends(tmp_path: Path, undisturbed: Outcome) -> None:
    federation, deaths = four(tmp_path), 0
    while deaths < 20:
        # Both contracts are deployed in one life: run.json tells where they are.
        number = 1 if (tmp_path / "run" / "run.json").exists() else 3
        with killed_at(number, EmbeddedLedger, "send", after=True):
            try:
                outcome = federation.run(rounds=ROUNDS)
                break
            except Killed:
                deaths += 1

    assert deaths == 8  # pool, enrolment, two a round
    assert_same(outcome, undisturbed)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_run_killed_at_its_pointers_goes_on(
    tmp_path: Path, undisturbed: Outcome, after: bool
) -> None:
    federation = four(tmp_path)
    with killed_at(1, Pointers, "write", after), pytest.raises(Killed):
        federation.run(rounds=ROUNDS)

    assert_same(federation.run(rounds=ROUNDS), undisturbed)


def test_a_torn_line_of_the_journal_is_as_if_it_was_not_begun(
    tmp_path: Path, undisturbed: Outcome
) -> None:
    federation = four(tmp_path)
    with killed_at(7, EmbeddedLedger, "send", after=True), pytest.raises(Killed):
        federation.run(rounds=ROUNDS)
    journal = tmp_path / "run" / "ledger.journal"
    journal.write_bytes(journal.read_bytes()[:-9])

    assert_same(federation.run(rounds=ROUNDS), undisturbed)


# --- what a resumed run looks like from Flower ---------------------------------------------------


def test_rounds_are_counted_from_the_beginning_of_the_run(tmp_path: Path) -> None:
    federation = Federation(tmp_path, devices=2)
    federation.run(rounds=2)
    asked: list[int] = []
    strategy = federation.strategy()

    result = strategy.start(
        federation.grid,
        record(federation.initial),
        num_rounds=4,
        evaluate_fn=lambda n, _: asked.append(n) or MetricRecord({"n": n}),
    )

    assert asked == [2, 3, 4]
    assert list(result.evaluate_metrics_serverapp) == [2, 3, 4]
    assert list(result.train_metrics_clientapp) == [3, 4]
    assert [config["server-round"] for config in federation.devices[0].configs] == [1, 2, 3, 4]


def test_a_run_that_is_done_returns_its_last_model(tmp_path: Path) -> None:
    federation = Federation(tmp_path, devices=2)
    outcome = federation.run(rounds=2)
    trained = len(federation.devices[0].trained)

    again = federation.run(rounds=2)

    assert digest(pack(arrays_in(again.result.arrays))) == again.history.versions[-1].model.digest
    assert again.history == outcome.history
    assert len(federation.devices[0].trained) == trained


def test_the_model_goes_on_from_the_ledger_not_from_the_app(tmp_path: Path) -> None:
    federation = Federation(tmp_path, devices=2)
    outcome = federation.run(rounds=1)
    federation.initial = {key: array + 1 for key, array in fresh().items()}

    federation.run(rounds=2)

    received, _ = federation.devices[0].trained[-1]
    assert pack(received) == pack(outcome.model(1))


def test_another_strategy_goes_on_too_and_says_what_it_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    federation = Federation(tmp_path, devices=2)
    adam = {"fraction_evaluate": 0.0, "min_train_nodes": 2, "min_available_nodes": 2}
    federation.run(FedAdam(**adam), rounds=1)

    outcome = federation.run(FedAdam(**adam), rounds=2)

    assert [len(version.accepted) for version in outcome.history.versions] == [2, 2, 0]
    assert "What FedAdam kept in memory of earlier rounds is lost" in caplog.text


def test_another_strategy_goes_on_between_submission_and_settlement(tmp_path: Path) -> None:
    federation = Federation(tmp_path, devices=2)
    adam = {"fraction_evaluate": 0.0, "min_train_nodes": 2, "min_available_nodes": 2}
    with killed_at(5, EmbeddedLedger, "send", after=True), pytest.raises(Killed):
        federation.run(FedAdam(**adam), rounds=1)

    outcome = federation.run(FedAdam(**adam), rounds=1)

    assert [len(version.accepted) for version in outcome.history.versions] == [2, 0]
    assert len(federation.devices[0].trained) == 1
    outcome.verify()


def test_devices_enrolled_later_are_enrolled_when_the_run_goes_on(tmp_path: Path) -> None:
    federation = Federation(tmp_path, devices=2)
    listed = tmp_path / "devices.txt"
    listed.write_text(federation.accounts[0])
    first = federation.run(enrol=str(listed))
    listed.write_text("\n".join(federation.accounts))

    outcome = federation.run(rounds=2, enrol=str(listed))

    assert first.accepted(0) == [federation.accounts[0]]
    assert sorted(outcome.accepted(1)) == sorted(federation.accounts)


# --- another run than the one in the folder ------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"rule": "trend"}, "rule is trend, but the run in this folder began with gain"),
        ({"rate": 0.5}, "rate is 500000000000000000, .* began with 1000000000000000"),
        ({"tolerance": 0.5}, "tolerance_ppm is 500000"),
        ({"pool": 1.0}, r"pool is 1, .* began with 1000 \(use `flower-chain fund`"),
        ({"token": "0x" + "11" * 20}, "token is 0x1111111111111111111111111111111111111111"),
        ({"ledger": "http://127.0.0.1:1"}, "ledger is http://127.0.0.1:1, .* began with embedded"),
        ({"learning_rate": 0.5}, r"learning_rate is 0.5, .* began with 1\.0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_run_with_other_terms_is_refused(
    tmp_path: Path, changed: dict[str, Any], difference: str
) -> None:
    federation = Federation(tmp_path, devices=2)
    before = federation.run().history

    with pytest.raises(ConfigError, match=difference):
        federation.run(rounds=2, **changed)

    assert RecordAndRewardRun.open(tmp_path / "run").federation.history() == before


def test_another_strategy_is_refused(tmp_path: Path) -> None:
    federation = Federation(tmp_path, devices=2)
    federation.run()

    with pytest.raises(ConfigError, match=r"inner is FedAdam, .* began with FedAvg"):
        federation.run(FedAdam(), rounds=2)


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        (
            {"bias": np.zeros(11, np.float32)},
            r"model: 'bias' is F32 \[11\], .* began with F32 \[10\]",
        ),
        ({"bias": None}, r"model: 'bias' is None, .* began with F32 \[10\]"),
        ({"more": np.zeros(2, np.float64)}, r"model: 'more' is F64 \[2\], .* began with None"),
        ({"bias": np.zeros(10, np.float16)}, r"model: 'bias' is F16 \[10\], .* F32 \[10\]"),
    ],
)
def test_a_model_of_another_shape_is_refused(
    tmp_path: Path, changed: dict[str, Any], difference: str
) -> None:
    federation = Federation(tmp_path, devices=2)
    federation.run()
    federation.initial = {k: a for k, a in (fresh() | changed).items() if a is not None}

    with pytest.raises(ConfigError, match=difference):
        federation.run(rounds=2)


def test_another_owner_is_refused(tmp_path: Path) -> None:
    federation = Federation(tmp_path, devices=2)
    federation.run()
    other = tmp_path / "other.key"

    with pytest.raises(ConfigError, match=f"owner-key is .* began with {OWNER.address}"):
        federation.run(rounds=2, owner_key=str(keys.load_or_create(other) and other))


def test_other_validation_data_are_refused(tmp_path: Path) -> None:
    federation = Federation(tmp_path, devices=2)
    federation.run()
    strategy = federation.strategy()
    x, y = digits()
    strategy._examiner = Examiner(x[:100], y[:100], predict)

    with pytest.raises(ConfigError, match="validation_digest is"):
        strategy.start(federation.grid, record(federation.initial), num_rounds=2)


def test_a_finished_run_is_not_continued(tmp_path: Path) -> None:
    federation = Federation(tmp_path, devices=2)
    federation.run()
    with closing(RecordAndRewardRun.open(tmp_path / "run", OWNER)) as run:
        run.federation.finish()

    with pytest.raises(ConfigError, match="is finished"):
        federation.run(rounds=2)


def test_two_servers_at_once_are_refused(tmp_path: Path) -> None:
    federation = Federation(tmp_path, devices=2)
    federation.run()
    with (
        closing(RecordAndRewardRun.open(tmp_path / "run", OWNER)),
        pytest.raises(JournalError, match="in use by another process"),
    ):
        federation.run(rounds=2)


def test_two_servers_at_once_are_refused_on_a_node_too(tmp_path: Path, anvil: str) -> None:
    give(anvil, OWNER.address)
    federation = Federation(tmp_path, devices=2)
    federation.run(ledger=anvil)
    refused: list[str] = []

    def another() -> None:
        with pytest.raises(ConfigError, match="is going on in another process") as fault:
            federation.run(rounds=2, ledger=anvil)
        refused.append(str(fault.value))

    federation.devices[0].before_training = another
    federation.run(rounds=2, ledger=anvil)

    assert len(refused) == 1


# --- damage --------------------------------------------------------------------------------------


def model_file(outcome: Outcome, version: int) -> Path:
    """Where T_k is."""
    return outcome.path / "store" / cid_from_bytes(outcome.history.versions[version].model.cid)


def test_a_run_without_its_model_is_not_continued(tmp_path: Path) -> None:
    federation = Federation(tmp_path, devices=2)
    path = model_file(federation.run(), 1)
    path.unlink()

    with pytest.raises(NotStored, match="nothing is stored under"):
        federation.run(rounds=2)


def test_a_run_with_a_damaged_model_is_not_continued(tmp_path: Path) -> None:
    federation = Federation(tmp_path, devices=2)
    path = model_file(federation.run(), 1)
    path.write_bytes(path.read_bytes()[:-1] + b"\0\1"[:1])

    with pytest.raises(Damaged):
        federation.run(rounds=2)


def test_a_ledger_that_is_not_where_this_process_left_it_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = Federation(tmp_path, devices=2)
    current = OnLedger.current
    calls: list[int] = []

    def rolled_back(self: OnLedger) -> Version:
        calls.append(1)
        version = current(self)
        return replace(version, number=version.number - 1) if version.number == 2 else version

    monkeypatch.setattr(OnLedger, "current", rolled_back)
    with pytest.raises(LedgerError, match="the ledger is at version 1, this run at 2"):
        federation.run(rounds=3)
    monkeypatch.undo()

    assert len(federation.run(rounds=3).history.versions) == 4


# --- disk, clock, absence ------------------------------------------------------------------------


@pytest.mark.parametrize("errno", [ENOSPC, EROFS], ids=["full", "read-only"])
def test_a_store_that_can_not_be_written_ends_the_run_and_nothing_is_lost(
    tmp_path: Path, undisturbed: Outcome, monkeypatch: pytest.MonkeyPatch, errno: int
) -> None:
    federation = four(tmp_path)
    replacing, written = durable.replacing, []

    def failing(target: Path) -> AbstractContextManager[BinaryIO]:
        written.append(target)
        if len(written) == 9:
            raise OSError(errno, os.strerror(errno), str(target))
        return replacing(target)

    with monkeypatch.context() as patch:
        patch.setattr(directory, "replacing", failing)
        with pytest.raises(StoreError, match=f"can't store .*{os.strerror(errno)}"):
            federation.run(rounds=ROUNDS)

    assert_same(federation.run(rounds=ROUNDS), undisturbed)


def test_a_clock_that_goes_backwards_changes_nothing(
    tmp_path: Path, undisturbed: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = four(tmp_path)
    clock = iter(range(2_000_000_000, 0, -3600))
    monkeypatch.setattr(embedded.time, "time", lambda: float(next(clock)))

    federation.run(rounds=1)
    outcome = federation.run(rounds=ROUNDS)

    assert_same(outcome, undisturbed)
    times = [version.time for version in outcome.history.versions]
    assert times == sorted(set(times))


def test_payments_that_anybody_made_while_the_owner_was_away_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner finds a bad update only after it was paid: it is left out all the same."""
    federation = Federation(tmp_path, devices=3)
    with killed_at(5, EmbeddedLedger, "send", after=True), pytest.raises(Killed):
        federation.run()
    bad, patience = federation.accounts[0], 8 * 24 * 3600
    now = time.time()
    monkeypatch.setattr(embedded.time, "time", lambda: now + patience)
    with closing(RecordAndRewardRun.open(tmp_path / "run", OWNER)) as run:
        (version,) = run.federation.history().versions
        (cid,) = [v.signed.contribution.cid for v in version.verdicts if v.device == bad]
        # Whoever sends it, once patience is over: on this ledger only the owner has gas.
        run.federation.contract.transact(OWNER, "pay", federation.accounts)
    (tmp_path / "run" / "store" / cid_from_bytes(cid)).unlink()

    outcome = federation.run()

    assert outcome.refused(0) == [(bad, Refusal.NOT_STORED)]
    assert sorted(outcome.accepted(0)) == sorted(federation.accounts[1:])
    assert outcome.summary.devices[0].earned > 0
    assert {payment.device for payment in outcome.history.versions[0].payments} == set(
        federation.accounts
    )
    assert outcome.verify()["payments"] == 3


# --- what an auditor sees of a run that is not over -----------------------------------------------


def test_a_version_that_is_not_settled_is_checked_as_far_as_it_can_be(tmp_path: Path) -> None:
    federation = Federation(tmp_path, devices=3)
    with killed_at(5, EmbeddedLedger, "send", after=True), pytest.raises(Killed):
        federation.run()
    with closing(RecordAndRewardRun.open(tmp_path / "run")) as run:
        (version,) = run.federation.history().versions
        (run.store.path / cid_from_bytes(version.verdicts[0].signed.contribution.cid)).unlink()
        *_, report = verify(run, OWNER, examiner())

    assert "3 updates of version 0: it is not settled" in report.unchecked


def test_payments_that_were_cut_short_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(federation_module, "BATCH", 1)
    federation = Federation(tmp_path, devices=3)
    with killed_at(10, EmbeddedLedger, "send", after=True), pytest.raises(Killed):
        federation.run()  # three enrolments, three submissions, one payment
    with closing(RecordAndRewardRun.open(tmp_path / "run")) as run:
        (version,) = run.federation.history().versions
        assert len(version.payments) == 1
        *_, report = verify(run, OWNER, examiner())
    assert report.checked["payments"] == 1

    outcome = federation.run()
    assert len(outcome.history.versions[0].payments) == 3
    outcome.verify()


def test_no_version_is_left_open_when_the_server_ends(tmp_path: Path) -> None:
    federation = Federation(tmp_path, devices=2)
    outcome = federation.run(rounds=2)
    assert [version.closed for version in outcome.history.versions] == [True, True, True]

    outcome = federation.run(rounds=3)
    assert [len(version.accepted) for version in outcome.history.versions] == [2, 2, 2, 0]
    outcome.verify()
