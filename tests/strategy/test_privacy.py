"""Runs with a privacy budget, and with Flower's own differential privacy inside."""

from contextlib import closing
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from federation import OWNER, Federation, everybody, give, signing
from flwr.app import Message
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedMedian,
    FedProx,
    Strategy,
)
from flwr.supercore.privacy_accounting import SamplingMethod
from killing import Killed
from local_grid import LocalGrid, Node, silent
from rich.console import Console
from softmax import Device, fresh, predict
from torch.utils.data import DataLoader, TensorDataset

import flower_chain
from flower_chain import DataTrust, DataTrustSettings
from flower_chain.client.own_node import OwnNode
from flower_chain.errors import ConfigError, RunEnded, Unverified
from flower_chain.ledger import federation as ledger_module
from flower_chain.ledger.federation import Federation as OnLedger
from flower_chain.privacy.accountant import UNITS
from flower_chain.privacy.mechanisms import Kind, norm
from flower_chain.records import Refusal
from flower_chain.run import RecordAndRewardRun
from flower_chain.strategy import RecordAndReward, wrap
from flower_chain.updates import difference
from flower_chain.verify import verify

LAPLACE: dict[str, Any] = {
    "dp": "laplace",
    "dp_noise": 1.0,
    "dp_epsilon": 3.0,
    "rule": "threshold",
    "threshold": 1.0,
}
"""Pays three rounds; whatever the noise left is accepted."""


@pytest.fixture
def hidden(trio: Federation) -> Federation:
    """Three devices whose models are measured after the noise was added."""
    for device, node in zip(trio.devices, trio.nodes, strict=True):
        node.app = private_app(device)
    return trio


def private_app(device: Device) -> flower_chain.ClientApp:
    app = flower_chain.ClientApp(predict=predict, classes=lambda _: range(10), mods=device.mods)
    app.train()(device._train)
    app.evaluate()(device._evaluate)
    return app


# --- a budget on the ledger ----------------------------------------------------------------------


def test_each_contribution_says_what_was_spent_and_the_contract_keeps_it(
    hidden: Federation,
) -> None:
    outcome = hidden.run(rounds=2, **LAPLACE)
    for version in (0, 1):
        spent = [v.signed.contribution.spent for v in outcome.history.versions[version].accepted]
        assert spent == [(version + 1) * UNITS] * 3
    federation = outcome.run.federation
    assert [federation.spent(account) for account in hidden.accounts] == [2 * UNITS] * 3
    assert federation.contract.call("budget") == 3 * UNITS
    assert outcome.verify()["privacy charges"] == 6


def test_the_run_ends_when_all_is_spent_with_everything_recorded(hidden: Federation) -> None:
    with pytest.raises(RunEnded, match="ended after round 3: the privacy budget of epsilon 3 pays"):
        hidden.run(rounds=10, **LAPLACE)
    with closing(RecordAndRewardRun.open(hidden.path / "run")) as run:
        versions = run.federation.history().versions
        assert [len(version.accepted) for version in versions] == [3, 3, 3, 0]
        assert versions[-1].closed
        *_, report = verify(run, None, None)
    assert report.checked["privacy charges"] == 9
    with pytest.raises(RunEnded, match="ended after round 3"):
        hidden.run(rounds=11, **LAPLACE)


def test_who_is_spent_is_not_invited_any_more_and_the_others_are(hidden: Federation) -> None:
    late = hidden.accounts[2]
    hidden.nodes[2].meddlers["query.flower_chain_hello"] = silent
    hidden.run(rounds=1, **LAPLACE)
    del hidden.nodes[2].meddlers["query.flower_chain_hello"]
    outcome = hidden.run(rounds=4, **LAPLACE)
    assert [len(outcome.accepted(version)) for version in range(4)] == [2, 3, 3, 1]
    assert outcome.accepted(3) == [late]
    assert [len(device.trained) for device in hidden.devices] == [3, 3, 3]
    outcome.verify()


def test_a_round_that_a_device_paid_for_and_the_server_never_recorded_is_not_paid_twice(
    hidden: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RecordAndReward, "_admit", die)
        with pytest.raises(KeyboardInterrupt):
            hidden.run(rounds=2, **LAPLACE)
    outcome = hidden.run(rounds=2, **LAPLACE)
    assert outcome.run.federation.spent(hidden.accounts[0]) == 2 * UNITS
    assert [len(device.trained) for device in hidden.devices] == [2, 2, 2]
    outcome.verify()


@pytest.mark.parametrize("privacy", ["gaussian", "dp-sgd"])
def test_gaussian_noise_is_counted_by_its_accountant(hidden: Federation, privacy: str) -> None:
    terms = {"dp": privacy, "dp_noise": 2.0, "dp_epsilon": 8.0}
    if privacy == "dp-sgd":
        for device, node in zip(hidden.devices, hidden.nodes, strict=True):
            node.app = idle_sgd(device)
    outcome = hidden.run(rounds=2, **(LAPLACE | terms))
    charges = outcome.run.plan.charges
    assert charges is not None
    assert [len(outcome.accepted(version)) for version in range(2)] == [3, 3]
    assert outcome.run.federation.spent(hidden.accounts[0]) == charges.spent(2)
    assert outcome.verify()["privacy charges"] == 6


def idle_sgd(device: Device) -> flower_chain.ClientApp:
    """Asks for DP-SGD and takes no step: here only the account counts."""

    def train(message: Message, context: Any) -> Message:
        net, data = torch.nn.Linear(1, 1), TensorDataset(torch.ones(10, 1))
        flower_chain.private(net, torch.optim.SGD(net.parameters(), lr=0.1), DataLoader(data))
        return device._train(message, context)

    app = flower_chain.ClientApp(predict=predict, classes=lambda _: range(10))
    app.train()(train)
    return app


# --- what devices do wrong -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spent", "reason"),
    [
        (3 * UNITS + 1, Refusal.OVER_BUDGET),
        (0, Refusal.BUDGET_DECREASED),
        (UNITS + 1, Refusal.FALSE_EVIDENCE),  # no number of rounds costs that
        (2 * UNITS, Refusal.FALSE_EVIDENCE),  # two rounds, and there was one
    ],
)
def test_another_epsilon_than_the_accountants_costs_that_update_only(
    hidden: Federation, spent: int, reason: Refusal
) -> None:
    account = hidden.meddle(signing(spent=spent))
    outcome = hidden.run(**LAPLACE)
    assert outcome.refused() == [(account, reason)]
    assert len(outcome.accepted()) == 2
    outcome.verify()


def test_an_old_charge_told_again_is_refused(hidden: Federation) -> None:
    account = hidden.meddle(signing(spent=UNITS))
    outcome = hidden.run(rounds=2, **LAPLACE)
    assert outcome.refused(1) == [(account, Refusal.BUDGET_DECREASED)]
    outcome.verify()


def test_an_epsilon_that_is_no_number_is_unreadable(hidden: Federation) -> None:
    def meddle(_node: Node, _question: Message, reply: Message) -> Message:
        reply.content["flower-chain"]["spent"] = -1
        return reply

    account = hidden.meddle(meddle)
    assert hidden.run(**LAPLACE).refused() == [(account, Refusal.UNREADABLE)]


def test_without_a_budget_nothing_may_be_spent(trio: Federation) -> None:
    account = trio.meddle(signing(spent=1))
    outcome = trio.run()
    assert outcome.refused() == [(account, Refusal.OVER_BUDGET)]
    outcome.verify()


# --- verify and show -----------------------------------------------------------------------------


def test_an_epsilon_that_the_owner_let_pass_is_found(
    hidden: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden.meddle(signing(spent=2 * UNITS))
    monkeypatch.setattr(RecordAndReward, "_spent_fits", lambda *_: True)
    outcome = hidden.run(**LAPLACE)
    with pytest.raises(
        Unverified, match="an epsilon of 2 is that of no number of rounds from 1 to 1"
    ):
        outcome.verify()


def test_a_contract_that_lets_the_spent_contribute_is_found(
    hidden: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = hidden.run(rounds=2, **LAPLACE)
    verdict = ledger_module._verdict

    def smaller(event: Any, current: int) -> Any:
        found = verdict(event, current)
        if current:
            object.__setattr__(found.signed.contribution, "spent", UNITS)
            monkeypatch.setattr(type(found.signed), "is_valid", lambda *_: True)
        return found

    monkeypatch.setattr(ledger_module, "_verdict", smaller)
    with pytest.raises(Unverified, match="says 'none', the rules 'budget decreased'"):
        outcome.verify()


def test_show_draws_what_each_device_has_spent(hidden: Federation) -> None:
    hidden.meddle(silent)
    summary = hidden.run(rounds=2, **LAPLACE).summary
    console = Console(width=120, record=True, file=StringIO())
    for table in summary.tables():
        console.print(table)
    text = console.export_text()
    assert "Privacy: epsilon spent of 3" in text
    assert text.count("2.000 │ ━━━━━━━━━━━━━") == 2
    told = summary.to_json()
    assert told["budget"] == 3 * UNITS
    spent = {entry["account"]: entry["spent"] for entry in told["devices"]}
    assert spent == dict(zip(hidden.accounts, (2 * UNITS, 2 * UNITS, 0), strict=True))


def test_without_a_budget_show_tells_nothing_of_privacy(trio: Federation) -> None:
    assert not any("Privacy" in str(getattr(t, "title", "")) for t in trio.run().summary.tables())


# --- refused at the start ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"dp": "secret"}, "dp = 'secret': it must be one of gaussian, laplace, dp-sgd, or empty"),
        ({"dp_epsilon": 0.0}, "dp-epsilon = 0.0: it must be a positive number"),
        ({"dp_epsilon": 0.5}, "dp-epsilon = 0.5: one round costs 1; add noise or spend more"),
        ({"dp_clip": -1.0}, "clip = -1.0: it must be positive"),
        ({"dp": "gaussian", "dp_accountant": "gdp"}, "accountant = 'gdp': it must be rdp or prv"),
        ({"dp": "dp-sgd", "dp_sample_rate": 0.0}, "sample-rate = 0.0"),
    ],
)
def test_a_privacy_that_makes_no_sense_is_refused_before_anything_is_deployed(
    hidden: Federation, settings: dict[str, Any], why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        hidden.run(**(LAPLACE | settings))
    assert not (hidden.path / "run" / "run.json").exists()


def test_a_seed_is_in_the_plan_and_in_the_log(
    hidden: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    outcome = hidden.run(**LAPLACE, dp_seed=5)
    assert outcome.run.plan.noise_seed == 5
    assert "NOT PRIVATE: noise is drawn from the seed 5" in caplog.text


def test_whole_numbers_in_the_model_are_refused_at_the_start(hidden: Federation) -> None:
    hidden.initial = {**fresh(), "steps": np.array(7, np.int64)}
    with pytest.raises(ConfigError, match="which noise can't hide: steps"):
        hidden.run(**LAPLACE)


@pytest.mark.parametrize("scheme", ["blockflow", "data-trust"])
def test_where_devices_judge_each_other_it_is_refused(tmp_path: Path, scheme: str) -> None:
    config = {"chain.scheme": scheme, "chain.run": str(tmp_path), "chain.dp": "gaussian"}
    grid = LocalGrid(config)
    node = grid.add(flower_chain.ClientApp())
    with pytest.raises(ConfigError, match="dp = 'gaussian': no budget is kept under this scheme"):
        wrap(FedAvg(), node.context)


# --- Flower's central differential privacy -------------------------------------------------------


def around(kind: Any, federation: Federation, **options: Any) -> Strategy:
    return kind(everybody(FedAvg, federation), num_sampled_clients=4, **options)


WRAPPERS: dict[str, tuple[Any, dict[str, Any], list[Any]]] = {
    "server fixed": (
        DifferentialPrivacyServerSideFixedClipping,
        {"noise_multiplier": 0.01, "clipping_norm": 2.0},
        [],
    ),
    "server adaptive": (
        DifferentialPrivacyServerSideAdaptiveClipping,
        {"noise_multiplier": 0.01, "initial_clipping_norm": 2.0, "clipped_count_stddev": 0.1},
        [],
    ),
    "client fixed": (
        DifferentialPrivacyClientSideFixedClipping,
        {"noise_multiplier": 0.01, "clipping_norm": 2.0},
        [fixedclipping_mod],
    ),
    "client adaptive": (
        DifferentialPrivacyClientSideAdaptiveClipping,
        {"noise_multiplier": 0.01, "initial_clipping_norm": 2.0, "clipped_count_stddev": 0.1},
        [adaptiveclipping_mod],
    ),
}


def with_wrapper(federation: Federation, name: str) -> Any:
    kind, options, mods = WRAPPERS[name]
    for device, node in zip(federation.devices, federation.nodes, strict=True):
        device.mods = mods
        node.app = device.app()
    return around(kind, federation, **options)


@pytest.mark.parametrize("name", WRAPPERS)
def test_flowers_wrapper_works_inside(federation: Federation, name: str) -> None:
    inner = with_wrapper(federation, name)
    outcome = federation.run(inner, rounds=3)
    assert [len(outcome.accepted(version)) for version in range(3)] == [4, 4, 4]
    accuracy = outcome.summary.rounds[3].accuracy
    assert accuracy is not None
    assert accuracy > 0.6
    step = norm(difference(outcome.model(1), outcome.model(0)), Kind.GAUSSIAN)
    assert 0 < step < 2.2
    outcome.verify()


@pytest.mark.parametrize("name", ["server fixed", "client adaptive"])
def test_its_noise_is_for_as_many_updates_as_were_accepted(
    federation: Federation, name: str
) -> None:
    inner = with_wrapper(federation, name)
    federation.meddle(silent)
    outcome = federation.run(inner)
    assert len(outcome.accepted()) == 3
    assert inner.num_sampled_clients == 3


@pytest.mark.parametrize("lost", ["left out", "made up"])
def test_whether_an_update_was_clipped_is_seen_from_itself(
    federation: Federation, lost: str
) -> None:
    """A device's own word would end the run where it is missing, and steer the norm elsewhere."""
    honest = with_wrapper(federation, "client adaptive")
    other = Federation(federation.path / "other", devices=4)
    lying = with_wrapper(other, "client adaptive")
    honest.clipped_count_stddev = lying.clipped_count_stddev = 0.0

    def meddle(_node: Node, _question: Message, reply: Message) -> Message:
        if lost == "left out":
            del reply.content["metrics"]["norm_bit"]
        else:
            reply.content["metrics"]["norm_bit"] = 10**6
        return reply

    federation.run(honest)
    other.meddle(meddle)
    assert len(other.run(lying).accepted()) == 4
    assert lying.clipping_norm == pytest.approx(honest.clipping_norm)
    assert lying.clipping_norm != 2.0


@pytest.mark.parametrize("inner", [FedMedian, FedAdam])
def test_a_wrapper_around_what_is_no_mean_is_refused(federation: Federation, inner: Any) -> None:
    strategy = DifferentialPrivacyServerSideFixedClipping(everybody(inner, federation), 1.0, 1.0, 4)
    with pytest.raises(ConfigError, match=f"around {inner.__name__}: its noise is made for the me"):
        federation.strategy(strategy)


def test_a_wrapper_around_what_averages_as_fedavg_does_is_not(federation: Federation) -> None:
    inner = everybody(FedProx, federation, proximal_mu=0.1)
    federation.strategy(DifferentialPrivacyServerSideFixedClipping(inner, 1.0, 1.0, 4))


def test_a_wrapper_with_an_accountant_is_refused(federation: Federation) -> None:
    config = SimpleNamespace(sampling_method=SamplingMethod.NO_AMPLIFICATION)
    strategy = around(
        DifferentialPrivacyServerSideFixedClipping,
        federation,
        noise_multiplier=1.0,
        clipping_norm=1.0,
        accountant=SimpleNamespace(config=config),
    )
    with pytest.raises(ConfigError, match="leave the accountant out"):
        federation.strategy(strategy)


def test_a_wrapper_and_whole_numbers_in_the_model_are_refused(federation: Federation) -> None:
    federation.initial = {**fresh(), "steps": np.array(7, np.int64)}
    with pytest.raises(ConfigError, match="the model holds whole numbers, which it can't clip: st"):
        federation.run(with_wrapper(federation, "server fixed"))


def test_a_data_trust_takes_no_wrapper_whose_devices_must_tell_more(tmp_path: Path) -> None:
    settings = DataTrustSettings(str(tmp_path / "run"), aggregation="server")
    strategy = DifferentialPrivacyClientSideAdaptiveClipping(FedAvg(), 0.1, 4)
    with pytest.raises(ConfigError, match="workers don't tell whether a model was clipped"):
        DataTrust(strategy, settings)


def test_a_server_that_relays_nothing_lets_nobody_be_asked_twice(
    hidden: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is spent by the ledger's word costs one question to it, and no training."""
    asked: list[str] = []
    spent = OnLedger.spent
    monkeypatch.setattr(
        OnLedger, "spent", lambda self, device: asked.append(device) or spent(self, device)
    )
    hidden.run(rounds=1, **LAPLACE)
    assert sorted(asked) == sorted(hidden.accounts)


def test_a_device_with_a_node_of_its_own_pays_once_too(
    tmp_path: Path, anvil: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the charge and before its transaction, it sends what it paid for."""
    federation = Federation(tmp_path, devices=0)
    for number in range(2):
        node = federation.add(Device(number), ledger=anvil)
        node.app = private_app(federation.devices[-1])
    give(anvil, OWNER.address, *federation.accounts)

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(OwnNode, "submit", die)
        with pytest.raises(Killed):
            federation.run(ledger=anvil, **LAPLACE)
    outcome = federation.run(ledger=anvil, rounds=2, **LAPLACE)
    assert [len(outcome.accepted(version)) for version in range(2)] == [2, 2]
    assert [outcome.run.federation.spent(a) for a in federation.accounts] == [2 * UNITS] * 2
    assert [len(device.trained) for device in federation.devices] == [2, 2]
    outcome.verify()
