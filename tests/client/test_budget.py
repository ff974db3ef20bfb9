"""What a device pays from its privacy budget, and that it never shows two noises for one charge."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, MetricRecord
from killing import Killed
from local_grid import LocalGrid, Node, delivered, on_the_wire
from softmax import Device, fresh, predict
from tasks import DOMAIN, OWNER, a_plan, a_private_plan, samples, task_for

import flower_chain
from flower_chain import durable, messages
from flower_chain.envelope import open_sealed
from flower_chain.errors import ConfigError, FormatError, TaskRefused
from flower_chain.plan import RecordAndRewardPlan
from flower_chain.privacy.mechanisms import Kind, norm
from flower_chain.records import Contribution
from flower_chain.rules.record_and_reward import Rule, ends, evidence
from flower_chain.store import DirectoryStore, directory
from flower_chain.updates import Arrays, apply, difference, pack

PLAN = a_private_plan("laplace", noise=1.0, budget=3_000_000)
"""Pays three rounds, each an epsilon of one."""


@pytest.fixture
def node(tmp_path: Path) -> Node:
    device = Device(0)
    joined = device.join(LocalGrid(), tmp_path / "keys")
    app = flower_chain.ClientApp(predict=predict)
    app.train()(device._train)
    joined.app = app
    return joined


def ask(node: Node, version: int = 0, plan: RecordAndRewardPlan = PLAN, **task: Any) -> Message:
    """The reply of a device whose process has just begun."""
    node.context.state.clear()
    task = {"tested": samples()} | task
    return node.app(task_for(node, version=version, plan=plan, **task), node.context)


def sent(reply: Message, plan: RecordAndRewardPlan = PLAN) -> tuple[Contribution, Arrays]:
    signed, sealed = messages.read_contribution(delivered(reply).content)
    assert sealed is not None
    assert signed.is_valid(DOMAIN)
    return signed.contribution, open_sealed(sealed, signed.contribution, DOMAIN, plan.model, OWNER)


def state(tmp_path: Path, plan: RecordAndRewardPlan = PLAN) -> Path:
    return tmp_path / "keys" / "0.key.budget" / plan.digest.hex() / "contribution.json"


# --- noise ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("privacy", ["gaussian", "laplace"])
def test_the_update_is_clipped_and_has_noise_of_the_plans_size(node: Node, privacy: str) -> None:
    plan = a_private_plan(privacy, clip=0.5, noise=2.0)
    _, update = sent(ask(node, plan=plan), plan)
    numbers = np.concatenate([array.reshape(-1) for array in update.values()])
    expected = 2.0 * 2 * 0.5 * (np.sqrt(2) if privacy == "laplace" else 1)
    assert np.std(numbers) == pytest.approx(expected, rel=0.25)


def test_what_leaves_without_noise_is_the_clipped_update(node: Node) -> None:
    plan = a_private_plan(clip=0.5, noise=1e-6, budget=2**62)
    _, update = sent(ask(node, plan=plan), plan)
    assert norm(update, Kind.GAUSSIAN) == pytest.approx(0.5, rel=1e-3)


def test_the_errors_are_those_of_the_update_with_its_noise(node: Node) -> None:
    contribution, update = sent(ask(node))
    tables = [predict(model, samples().x) for model in (fresh(), apply(fresh(), update))]
    assert contribution.errors == evidence(Rule.GAIN, tables, samples().y)
    assert contribution.errors == ends(Rule.GAIN, contribution.errors)  # of no epoch in between


def test_of_the_metrics_only_the_number_of_data_points_leaves_the_device(node: Node) -> None:
    reply = ask(node)
    (metrics,) = reply.content.metric_records.values()
    assert dict(metrics) == {"num-examples": Device(0).size}
    assert b"loss" not in on_the_wire(reply)


def test_the_devices_own_store_gets_the_update_once_it_is_paid(node: Node, tmp_path: Path) -> None:
    node.context.node_config["store"] = str(tmp_path / "store")
    assert not ask(node).content.array_records
    assert len(list((tmp_path / "store").iterdir())) == 1


def test_a_seed_gives_each_device_and_version_its_own_noise_and_says_so(
    node: Node, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = a_private_plan("laplace", noise=1.0, budget=9_000_000, noise_seed=7, clip=1e-9)
    other = Device(1).join(LocalGrid(), tmp_path / "others")
    other.app = node.app
    first = sent(ask(node, plan=plan), plan)[1]
    assert "NOT PRIVATE" in caplog.text
    state(tmp_path, plan).unlink()
    again = sent(ask(node, plan=plan), plan)[1]
    following = sent(ask(node, version=1, plan=plan), plan)[1]
    another = sent(ask(other, plan=plan), plan)[1]
    assert pack(first) == pack(again)
    assert len({pack(update) for update in (first, following, another)}) == 3


# --- the account ---------------------------------------------------------------------------------


def test_each_round_costs_what_the_plan_says_until_the_budget_is_spent(node: Node) -> None:
    assert [sent(ask(node, version))[0].spent for version in range(3)] == [
        10**6,
        2 * 10**6,
        3 * 10**6,
    ]
    with pytest.raises(TaskRefused, match="the plan's budget of epsilon 3 does not pay another r"):
        ask(node, 3)


def test_nothing_is_trained_that_the_budget_does_not_pay(node: Node) -> None:
    trained: list[int] = []
    app = flower_chain.ClientApp()
    app.train()(lambda message, context: trained.append(1))
    node.app = app
    with pytest.raises(TaskRefused, match="does not pay another round"):
        ask(node, plan=a_private_plan("laplace", noise=1.0, budget=999_999))
    assert trained == []


def test_a_round_that_is_asked_for_again_is_the_same_bytes_and_costs_nothing(node: Node) -> None:
    first, again = ask(node), ask(node)
    assert on_the_wire_content(first) == on_the_wire_content(again)
    assert sent(ask(node, 1))[0].spent == 2 * 10**6


def on_the_wire_content(reply: Message) -> tuple[Any, ...]:
    content = delivered(reply).content
    record = dict(content.config_records[messages.RECORD])
    metrics = {name: dict(m) for name, m in content.metric_records.items()}
    return record, metrics, messages.read_sealed(content)


def test_a_round_before_the_last_one_that_was_paid_is_refused(node: Node) -> None:
    ask(node, 4)
    with pytest.raises(TaskRefused, match="version 3: 4 was paid for already"):
        ask(node, 3)


def test_a_training_that_fails_costs_nothing(node: Node) -> None:
    def fail(message: Message, context: Any) -> Message:
        raise ZeroDivisionError

    working, broken = node.app, flower_chain.ClientApp()
    broken.train()(fail)
    node.app = broken
    with pytest.raises(ZeroDivisionError):
        ask(node)
    node.app = working
    assert sent(ask(node))[0].spent == 10**6


def test_another_run_has_a_budget_of_its_own(node: Node) -> None:
    ask(node)
    other = a_private_plan("laplace", noise=1.0, budget=3_000_000, run="another")
    assert sent(ask(node, plan=other), other)[0].spent == 10**6


def test_a_device_has_a_limit_for_all_its_runs_together(node: Node) -> None:
    node.context.node_config["max-epsilon"] = 2.5
    other = a_private_plan("laplace", noise=1.0, budget=3_000_000, run="another")
    ask(node)
    ask(node, plan=other)
    with pytest.raises(TaskRefused, match=r"max-epsilon of epsilon 2\.5 does not pay"):
        ask(node, 1)
    node.context.node_config["max-epsilon"] = "much"
    with pytest.raises(ConfigError, match="max-epsilon = 'much'"):
        ask(node, 1)


def test_a_plan_without_privacy_leaves_no_account(node: Node, tmp_path: Path) -> None:
    contribution, update = sent(ask(node, plan=a_plan()), a_plan())
    assert contribution.spent == 0
    assert norm(update, Kind.GAUSSIAN) > 0
    assert not (tmp_path / "keys" / "0.key.budget").exists()


# --- killed at every write -----------------------------------------------------------------------


@contextmanager
def killed_at_write(number: int, after: bool) -> Iterator[list[Path]]:
    """The `number`-th file that is put in place ends the process, before or after it is."""
    original, written = durable.replacing, []

    @contextmanager
    def dying(target: Path) -> Iterator[Any]:
        written.append(target)
        if len(written) == number and not after:
            raise Killed
        with original(target) as file:
            yield file
        if len(written) == number:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "replacing", dying)
        patch.setattr(directory, "replacing", dying)
        yield written


def test_a_round_has_as_many_writes_as_are_tested(node: Node, tmp_path: Path) -> None:
    node.context.node_config["store"] = str(tmp_path / "store")
    with killed_at_write(10**6, after=True) as written:
        ask(node)
    folders = [path.parent for path in written]
    budget = state(tmp_path).parent
    assert folders == [budget, budget, tmp_path / "store"]  # what was paid, the charge, the release
    assert written[1] == state(tmp_path)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_device_killed_at_a_write_shows_one_noise_for_one_charge(
    node: Node, tmp_path: Path, number: int, after: bool
) -> None:
    store = tmp_path / "store"
    node.context.node_config["store"] = str(store)
    with killed_at_write(number, after), pytest.raises(Killed):
        ask(node)
    released = {path.name for path in store.iterdir()} if store.exists() else set()
    if released:  # only with its cost on the disk
        assert json.loads(state(tmp_path).read_text())["rounds"] == 1

    signed, sealed = messages.read_contribution(delivered(ask(node)).content)
    if sealed is not None:
        DirectoryStore(store).put(sealed)
    assert {path.name for path in store.iterdir()} >= released
    assert len(list(store.iterdir())) == 1, "two noises for one charge"
    assert signed.contribution.spent == 10**6
    assert sent_after(node) == 2 * 10**6


def sent_after(node: Node) -> int:
    signed, _ = messages.read_contribution(delivered(ask(node, 1)).content)
    return signed.contribution.spent


def test_metrics_that_train_returns_twice_are_refused(node: Node) -> None:
    def train(message: Message, context: Any) -> Message:
        reply = Device(0)._train(message, context)
        reply.content["more"] = MetricRecord({"a": 1})
        return reply

    app = flower_chain.ClientApp(predict=predict)
    app.train()(train)
    node.app = app
    with pytest.raises(FormatError, match="one record of each kind"):
        ask(node)


def test_the_noised_model_is_what_the_owner_gets(node: Node) -> None:
    _, update = sent(ask(node))
    noised = apply(fresh(), update)
    assert pack(difference(noised, fresh())) == pack(update)
