from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eth_account import Account
from federation import OWNER, TOKEN, TRAIN, Federation, everybody
from flwr.app import Context, RecordDict
from flwr.clientapp.mod import fixedclipping_mod
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    Strategy,
)
from golden_seal import RSA_READER
from softmax import Device, arrays_in, examiner, fresh, record

import flower_chain
from flower_chain import messages
from flower_chain.errors import ConfigError
from flower_chain.keys import Reader, public_key
from flower_chain.records import PPM, Refusal
from flower_chain.rules.record_and_reward import gain_quality
from flower_chain.run import RecordAndRewardRun
from flower_chain.updates import Arrays, apply, difference, digest, mean, pack
from flower_chain.verify import verify

RATE = 10**15


def same(left: Arrays, right: Arrays) -> bool:
    return pack(left) == pack(right)


# --- a happy run ---------------------------------------------------------------------------------


def test_each_round_publishes_a_version(federation: Federation) -> None:
    outcome = federation.run(rounds=3)

    assert [version.number for version in outcome.history.versions] == [0, 1, 2, 3]
    assert [version.settled for version in outcome.history.versions] == [True, True, True, False]


def test_every_device_is_accepted_in_every_round(federation: Federation) -> None:
    outcome = federation.run(rounds=3)

    everyone = sorted(federation.accounts, key=str.lower)
    assert [outcome.accepted(version) for version in range(3)] == [everyone] * 3
    assert [outcome.refused(version) for version in range(3)] == [[]] * 3


def test_the_model_becomes_better(federation: Federation) -> None:
    outcome = federation.run(rounds=3)

    assert outcome.summary.rounds[0].accuracy == pytest.approx(0.1, abs=0.1)
    assert outcome.summary.rounds[3].accuracy is not None
    assert outcome.summary.rounds[3].accuracy > 0.85


def test_an_auditor_finds_nothing_wrong(federation: Federation) -> None:
    checked = federation.run(rounds=2).verify()

    assert checked["aggregates"] == 2
    assert checked["accepted updates"] == 8


def test_whoever_opens_the_run_later_reads_the_same(federation: Federation) -> None:
    outcome = federation.run(rounds=2)

    opened = RecordAndRewardRun.open(federation.path / "run")

    assert opened.federation.history() == outcome.history
    *_, report = verify(opened, OWNER, examiner())
    assert report.checked == outcome.verify()


def test_the_next_model_is_the_mean_of_the_accepted_updates_bit_for_bit(
    federation: Federation,
) -> None:
    outcome = federation.run(rounds=2)

    for version in range(2):
        changes = federation.updates(version, federation.accounts)
        expected = mean(outcome.model(version), changes, 1.0)
        assert same(outcome.model(version + 1), expected)


def test_the_learning_rate_scales_the_mean(federation: Federation) -> None:
    outcome = federation.run(learning_rate=0.5)

    expected = mean(fresh(), federation.updates(0, federation.accounts), 0.5)
    assert same(outcome.model(1), expected)


def test_the_result_is_the_last_model_on_the_ledger(federation: Federation) -> None:
    outcome = federation.run(rounds=2)

    found = pack(arrays_in(outcome.result.arrays))
    assert digest(found) == outcome.history.versions[-1].model.digest


def test_the_first_model_on_the_ledger_is_the_initial_one(federation: Federation) -> None:
    assert same(federation.run().model(0), fresh())


def test_devices_train_on_the_models_of_the_ledger(federation: Federation) -> None:
    outcome = federation.run(rounds=2)

    for device in federation.devices:
        received = [received for received, _ in device.trained]
        assert same(received[0], outcome.model(0))
        assert same(received[1], outcome.model(1))


def test_the_order_of_the_nodes_changes_nothing(tmp_path: Path) -> None:
    there, back = Federation(tmp_path / "there", 0), Federation(tmp_path / "back", 0)
    for number in range(4):
        there.add(Device(number))
        back.add(Device(3 - number))

    assert same(there.run().model(1), back.run().model(1))


@pytest.mark.parametrize("claims", [100.0, 0.1])
def test_the_data_that_a_device_claims_do_not_weigh(tmp_path: Path, claims: float) -> None:
    plain, boasting = Federation(tmp_path / "plain", 4), Federation(tmp_path / "boasting", 3)
    boasting.add(Device(3, claims=claims))

    assert same(plain.run().model(1), boasting.run().model(1))


def test_the_data_that_a_device_claims_do_not_weigh_in_an_inner_strategy(tmp_path: Path) -> None:
    plain, boasting = Federation(tmp_path / "plain", 4), Federation(tmp_path / "boasting", 3)
    boasting.add(Device(3, claims=100))

    one = plain.run(everybody(FedProx, plain, proximal_mu=0.1))
    other = boasting.run(everybody(FedProx, boasting, proximal_mu=0.1))

    for key, array in one.model(1).items():
        np.testing.assert_allclose(other.model(1)[key], array, atol=1e-6)


def test_the_devices_metrics_are_aggregated(federation: Federation) -> None:
    result = federation.run().result

    assert dict(result.train_metrics_clientapp[1]) == {"loss": pytest.approx(0.5)}


def test_a_device_is_asked_only_once_who_it_is(federation: Federation) -> None:
    federation.run(rounds=3)

    kinds = [question.metadata.message_type for question, _ in federation.grid.said]
    assert kinds.count(messages.HELLO) == 4
    assert kinds.count(TRAIN) == 12


def test_no_message_of_a_device_holds_arrays_in_the_clear(federation: Federation) -> None:
    federation.run()

    for _, reply in federation.grid.said:
        assert reply is not None
        assert set(reply.content.array_records) <= {messages.SEALED}


def test_evaluation_is_left_to_the_inner_strategy_and_the_devices(federation: Federation) -> None:
    inner = FedAvg(min_train_nodes=4, min_available_nodes=4, min_evaluate_nodes=4)

    result = federation.run(inner, rounds=2).result

    assert result.evaluate_metrics_clientapp[2]["accuracy"] > 0.8


# --- money ---------------------------------------------------------------------------------------


def test_payments_are_exact(federation: Federation) -> None:
    outcome = federation.run(rounds=2)

    plan = outcome.run.plan
    for version in outcome.history.versions[:2]:
        due = {
            c.device: c.data_cost * RATE * gain_quality(plan, c.errors) // PPM
            for c in (verdict.signed.contribution for verdict in version.accepted)
        }
        assert {payment.device: payment.amount for payment in version.payments} == due
        assert all(due.values())


def test_what_is_paid_leaves_the_pool(federation: Federation) -> None:
    outcome = federation.run(rounds=2, pool=10)

    earned = sum(device.earned for device in outcome.summary.devices)
    assert outcome.summary.pool == 10 * TOKEN - earned


def test_a_published_rule_pays_the_full_price(federation: Federation) -> None:
    outcome = federation.run(rule="trend")

    sizes = {device.account.address: device.size for device in federation.devices}
    paid = {payment.device: payment.amount for payment in outcome.history.versions[0].payments}
    assert paid == {account: size * RATE for account, size in sizes.items()}


def test_payments_are_settled_in_the_order_of_the_accounts(federation: Federation) -> None:
    outcome = federation.run()

    paid = [payment.device for payment in outcome.history.versions[0].payments]
    assert paid == sorted(federation.accounts, key=str.lower)


def test_a_pool_that_is_too_small_is_shared_pro_rata(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    outcome = federation.run(rule="trend", pool=0.1)

    pool, total = TOKEN // 10, sum(device.size for device in federation.devices)
    sizes = {device.account.address: device.size for device in federation.devices}
    paid = {payment.device: payment.amount for payment in outcome.history.versions[0].payments}
    assert paid == {account: size * pool // total for account, size in sizes.items()}
    assert outcome.summary.rounds[0].short
    assert "shared pro rata" in caplog.text
    outcome.verify()


def test_a_run_goes_on_with_an_empty_pool(federation: Federation) -> None:
    outcome = federation.run(rounds=2, pool=0)

    assert len(outcome.accepted(1)) == 4
    assert outcome.summary.rounds[1].paid == 0
    outcome.verify()


# --- any Flower strategy -------------------------------------------------------------------------


INNER = {
    "FedAdam": lambda f: everybody(FedAdam, f, eta=0.05),
    "FedYogi": lambda f: everybody(FedYogi, f, eta=0.05),
    "FedAvgM": lambda f: everybody(FedAvgM, f, server_momentum=0.5),
    "FedMedian": lambda f: everybody(FedMedian, f),
    "FedTrimmedAvg": lambda f: everybody(FedTrimmedAvg, f),
    "FedProx": lambda f: everybody(FedProx, f, proximal_mu=0.1),
    "Krum": lambda f: everybody(Krum, f, num_malicious_nodes=1),
    "DP": lambda f: DifferentialPrivacyServerSideFixedClipping(
        everybody(FedAvg, f), noise_multiplier=0.01, clipping_norm=5.0, num_sampled_clients=4
    ),
}


@pytest.mark.parametrize("name", INNER)
def test_an_inner_strategy_of_flower_works(federation: Federation, name: str) -> None:
    outcome = federation.run(INNER[name](federation), rounds=2)

    assert [len(outcome.accepted(version)) for version in range(2)] == [4, 4]
    accuracy = outcome.summary.rounds[2].accuracy
    assert accuracy is not None
    assert accuracy > 0.5
    outcome.verify()


@pytest.mark.parametrize("name", INNER)
def test_an_inner_strategy_keeps_the_models_format(federation: Federation, name: str) -> None:
    outcome = federation.run(INNER[name](federation))

    outcome.run.plan.model.check(outcome.model(1))


@pytest.mark.parametrize("name", ["FedAvgM", "FedMedian", "FedProx"])
def test_an_inner_strategy_may_have_whole_numbers_in_the_model(
    federation: Federation, name: str
) -> None:
    federation.initial = {**fresh(), "steps": np.array(7, np.int64)}

    outcome = federation.run(INNER[name](federation), rounds=2)

    assert [len(outcome.accepted(version)) for version in range(2)] == [4, 4]
    steps = outcome.model(2)["steps"]
    assert steps.dtype == np.int64
    assert 11 <= steps <= 13, "FedAvgM's momentum goes beyond the mean"


def test_whole_numbers_in_the_model_are_averaged_too(federation: Federation) -> None:
    federation.initial = {**fresh(), "steps": np.array(7, np.int64)}

    outcome = federation.run(rounds=2)

    assert outcome.model(2)["steps"] == 11


def test_the_median_is_that_of_the_trained_models(federation: Federation) -> None:
    outcome = federation.run(everybody(FedMedian, federation))

    changes = federation.updates(0, federation.accounts)
    trained = [apply(fresh(), change)["weight"] for change in changes]
    np.testing.assert_array_equal(outcome.model(1)["weight"], np.median(trained, axis=0))


def test_krum_chooses_one_of_the_trained_models(federation: Federation) -> None:
    outcome = federation.run(everybody(Krum, federation, num_malicious_nodes=1))

    changes = federation.updates(0, federation.accounts)
    distances = [np.abs(difference(outcome.model(1), apply(fresh(), c))["weight"]) for c in changes]
    assert min(float(distance.max()) for distance in distances) < 1e-6


def test_fedprox_tells_the_devices_its_mu(federation: Federation) -> None:
    federation.run(everybody(FedProx, federation, proximal_mu=0.25))

    assert {device.configs[0]["proximal-mu"] for device in federation.devices} == {0.25}


def test_the_inner_strategys_clipping_bounds_the_step(federation: Federation) -> None:
    inner = DifferentialPrivacyServerSideFixedClipping(
        everybody(FedAvg, federation), 0.0, clipping_norm=0.1, num_sampled_clients=4
    )

    outcome = federation.run(inner)

    step = difference(outcome.model(1), fresh())
    assert 0 < np.sqrt(sum(float((array**2).sum()) for array in step.values())) <= 0.1001


def test_an_inner_strategy_that_aggregates_nothing_keeps_the_model(federation: Federation) -> None:
    class Idle(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> tuple[None, None]:
            return None, None

    outcome = federation.run(everybody(Idle, federation), rounds=2)

    assert same(outcome.model(2), fresh())


def test_the_inner_strategys_names_for_records_are_used(federation: Federation) -> None:
    inner = everybody(FedAvg, federation, arrayrecord_key="model")

    strategy = federation.strategy(inner)

    assert strategy._arrays_key == "model"


@pytest.mark.parametrize("kind", [FedMedian, FedAdam, FedProx])
def test_a_learning_rate_is_refused_where_the_inner_strategy_has_its_own_step(
    federation: Federation, kind: type[FedAvg]
) -> None:
    with pytest.raises(ConfigError, match="learning-rate"):
        federation.strategy(everybody(kind, federation), learning_rate=0.5)


def test_a_learning_rate_is_refused_around_a_wrapper(federation: Federation) -> None:
    with pytest.raises(ConfigError, match="learning-rate"):
        federation.strategy(INNER["DP"](federation), learning_rate=0.5)


def test_a_device_whose_mod_clips_the_update_is_accepted(federation: Federation) -> None:
    inner = everybody(Clipping, federation)
    for device, node in zip(federation.devices, federation.nodes, strict=True):
        device.mods = [fixedclipping_mod]
        node.app = device.app()

    outcome = federation.run(inner)

    assert outcome.refused() == []


class Clipping(FedAvg):
    """Tells Flower's clipping mod its norm."""

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        config["clipping_norm"] = 0.5
        return super().configure_train(server_round, arrays, config, grid)


# --- enrolment -----------------------------------------------------------------------------------


def listing(path: Path, accounts: list[str]) -> str:
    path.write_text("# the hospitals\n\n" + "\n".join(accounts) + "\n")
    return str(path)


def test_an_allowlist_enrolls_those_listed(federation: Federation, tmp_path: Path) -> None:
    listed = federation.accounts[:3]

    outcome = federation.run(enrol=listing(tmp_path / "devices.txt", listed))

    assert sorted(outcome.history.enrolled) == sorted(listed)
    assert sorted(outcome.accepted()) == sorted(listed)


def test_a_device_that_is_not_listed_is_not_enrolled(
    federation: Federation, tmp_path: Path
) -> None:
    listed = federation.accounts[:3]

    outcome = federation.run(enrol=listing(tmp_path / "devices.txt", listed))

    assert outcome.refused() == [(federation.accounts[3], Refusal.NOT_ENROLLED)]
    assert (federation.accounts[3], "not enrolled") in outcome.summary.rounds[0].refused


def test_a_device_that_is_not_listed_gets_no_task(federation: Federation, tmp_path: Path) -> None:
    federation.run(enrol=listing(tmp_path / "devices.txt", federation.accounts[:3]))

    assert federation.devices[3].trained == []


def test_lower_case_accounts_can_be_listed(federation: Federation, tmp_path: Path) -> None:
    listed = [account.lower() for account in federation.accounts]

    outcome = federation.run(enrol=listing(tmp_path / "devices.txt", listed))

    assert len(outcome.accepted()) == 4


def test_an_account_that_is_listed_twice_ends_the_run_before_it_begins(
    federation: Federation, tmp_path: Path
) -> None:
    listed = [*federation.accounts, federation.accounts[0]]

    with pytest.raises(ConfigError, match=f"lists {federation.accounts[0]} twice"):
        federation.strategy(enrol=listing(tmp_path / "devices.txt", listed))


def test_the_owner_can_not_be_listed(federation: Federation, tmp_path: Path) -> None:
    listed = [*federation.accounts, OWNER.address]

    with pytest.raises(ConfigError, match="the owner can't be a device"):
        federation.strategy(enrol=listing(tmp_path / "devices.txt", listed))


def test_open_enrolment_is_warned_of(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    federation.run()

    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert any("Enrolment is open" in warning for warning in warnings)


def test_an_allowlist_is_not_warned_of(
    federation: Federation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    federation.run(enrol=listing(tmp_path / "devices.txt", federation.accounts))

    assert "Enrolment is open" not in caplog.text


def test_the_owner_cannot_be_a_device(trio: Federation) -> None:
    trio.nodes[2].context.node_config["key-file"] = str(trio.path / "owner.key")

    outcome = trio.run()

    assert outcome.refused() == [(OWNER.address, Refusal.NOT_ENROLLED)]
    assert len(outcome.accepted()) == 2


# --- the store of a device -----------------------------------------------------------------------


def test_an_update_that_a_device_stores_itself_is_fetched(trio: Federation) -> None:
    trio.nodes[2].context.node_config["store"] = str(trio.path / "run" / "store")

    outcome = trio.run()

    assert trio.accounts[2] in outcome.accepted()
    outcome.verify()


# --- wrap ----------------------------------------------------------------------------------------


def context(values: dict[str, Any]) -> Context:
    return Context(7, 0, {}, RecordDict(), values)


def test_wrap_returns_the_inner_strategy_for_fedavg() -> None:
    inner = FedAvg()

    assert flower_chain.wrap(inner, context({"chain.scheme": "fedavg"}), examiner()) is inner


def test_wrap_takes_its_settings_from_the_run_config(tmp_path: Path) -> None:
    inner = FedAvg()
    values = {"chain.run": str(tmp_path / "run"), "chain.rate": 0.5, "num-server-rounds": 3}

    wrapped = flower_chain.wrap(inner, context(values), examiner())

    assert isinstance(wrapped, flower_chain.RecordAndReward)
    assert wrapped.strategy is inner
    assert wrapped.settings.rate == 0.5


def test_wrap_refuses_an_unknown_scheme(tmp_path: Path) -> None:
    values = {"chain.run": str(tmp_path / "run"), "chain.scheme": "ponzi"}

    with pytest.raises(ConfigError, match="scheme = 'ponzi'"):
        flower_chain.wrap(FedAvg(), context(values), examiner())


def test_plain_fedavg_runs_on_the_same_devices(federation: Federation) -> None:
    inner: Strategy = everybody(FedAvg, federation)

    result = inner.start(federation.grid, record(fresh()), num_rounds=2)

    assert len(result.train_metrics_clientapp) == 2
    assert not any("flower" in q.metadata.message_type for q, _ in federation.grid.said)


@pytest.mark.parametrize("auditor", [Account.create(), RSA_READER], ids=["account", "rsa"])
def test_a_reader_of_the_plan_can_check_everything_too(
    federation: Federation, tmp_path: Path, auditor: Reader
) -> None:
    (tmp_path / "readers.txt").write_text(f"{public_key(auditor).hex()}  # the auditor\n")

    outcome = federation.run(readers=str(tmp_path / "readers.txt"))

    *_, report = verify(outcome.run, auditor, examiner())
    assert report.checked["aggregates"] == 1
    assert report.unchecked == []


def test_a_reader_without_a_public_key_is_told(federation: Federation, tmp_path: Path) -> None:
    (tmp_path / "readers.txt").write_text(OWNER.address)

    with pytest.raises(ConfigError, match="is not a public key"):
        federation.run(readers=str(tmp_path / "readers.txt"))


def test_a_run_without_payments_is_recorded_and_verified(federation: Federation) -> None:
    outcome = federation.run(rate=0.0)

    assert len(outcome.accepted()) == 4
    assert outcome.history.versions[0].payments == []
    assert outcome.verify()["aggregates"] == 1
