import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eth_account import Account
from flwr.app import (
    ArrayRecord,
    Context,
    Error,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp.mod import fixedclipping_mod
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.constant import ErrorCode
from flwr.server.strategy.dp_fixed_clipping import KEY_CLIPPING_NORM
from flwr.supercore.task_identity import TaskIdentity
from local_grid import LocalGrid, Node, delivered, on_the_wire
from softmax import Device, arrays_in, fresh, predict, record
from tasks import DOMAIN, OWNER, a_plan, samples, task_for

import flower_chain
from flower_chain import messages, updates
from flower_chain.envelope import RefusedError, open_sealed
from flower_chain.errors import ConfigError, FormatError, KeyFileError, TaskRefused
from flower_chain.messages import HELLO, RECORD, SEALED
from flower_chain.records import Contribution, Domain, Hello, Refusal, Signed, recover
from flower_chain.rules.record_and_reward import Rule, evidence
from flower_chain.store import DirectoryStore
from flower_chain.store.cid import cid_from_bytes, cid_of, cid_to_bytes
from flower_chain.updates import Arrays, apply, difference, digest, pack

STRANGER = Account.from_key(b"\7" * 32)
SAMPLES = samples()


@dataclass
class Bench:
    """One device and its node."""

    device: Device
    node: Node

    def ask(self, **task: Any) -> Message:
        """Its reply to a task; what it raises is raised."""
        return self.node.app(task_for(self.node, **task), self.node.context)

    def contribute(self, **task: Any) -> tuple[Contribution, bytes]:
        """What it signed, and the sealed update."""
        signed, sealed = messages.read_contribution(delivered(self.ask(**task)).content)
        assert sealed is not None
        return signed.contribution, sealed

    @property
    def update(self) -> Arrays:
        """What it computed last."""
        received, trained = self.device.trained[-1]
        return difference(trained, received)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    device = Device(0)
    return Bench(device, device.join(LocalGrid(), tmp_path / "keys"))


@pytest.fixture
def unmeasured(tmp_path: Path) -> Bench:
    """A device whose train() measures nothing."""
    device = Device(0, measures=False)
    return Bench(device, device.join(LocalGrid(), tmp_path / "keys"))


def training(bench: Bench, function: ClientAppCallable, **options: Any) -> None:
    """Let the device train with another function."""
    app = flower_chain.ClientApp(**options)
    app.train()(function)
    bench.node.app = app


def returning(metrics: dict[str, Any], *more: tuple[str, Any]) -> ClientAppCallable:
    def train(message: Message, context: Context) -> Message:
        arrays = {"arrays": message.content["arrays"], "metrics": MetricRecord(metrics)}
        return Message(RecordDict(arrays | dict(more)), reply_to=message)

    return train


# --- what is signed ------------------------------------------------------------------------------


def test_a_device_signs_for_its_account(bench: Bench) -> None:
    signed, _ = messages.read_contribution(bench.ask(tested=SAMPLES).content)

    assert signed.contribution.device == bench.device.account.address
    assert signed.is_valid(DOMAIN)


def test_a_signature_holds_for_its_contract_only(bench: Bench) -> None:
    signed, _ = messages.read_contribution(bench.ask(tested=SAMPLES).content)

    assert not signed.is_valid(Domain(DOMAIN.chain_id, STRANGER.address))
    assert not signed.is_valid(Domain(DOMAIN.chain_id + 1, DOMAIN.contract))


def test_the_contribution_says_what_was_done(bench: Bench) -> None:
    contribution, _ = bench.contribute(version=3, tested=SAMPLES)

    assert contribution.version == 3
    assert contribution.data_cost == bench.device.size
    assert contribution.classes == tuple(range(10))


def test_the_digest_is_that_of_the_update(bench: Bench) -> None:
    contribution, _ = bench.contribute()

    assert contribution.digest == digest(pack(bench.update))


def test_the_cid_is_that_of_the_sealed_bytes(bench: Bench) -> None:
    contribution, sealed = bench.contribute()

    assert contribution.cid == cid_to_bytes(cid_of(sealed))


def test_the_errors_are_those_before_and_after_each_epoch(bench: Bench) -> None:
    bench.device.epochs = 3

    contribution, _ = bench.contribute(tested=SAMPLES, plan=a_plan(rule=Rule.TREND))

    received, trained = bench.device.trained[0]
    ends = [predict(arrays, SAMPLES.x) for arrays in (received, trained)]
    expected = evidence(Rule.TREND, ends, SAMPLES.y)
    assert len(contribution.errors) == 4
    assert (contribution.errors[0], contribution.errors[-1]) == expected


def test_the_rule_gain_gets_open_errors_and_misdirection(bench: Bench) -> None:
    contribution, _ = bench.contribute(tested=SAMPLES)

    received, trained = bench.device.trained[0]
    expected = evidence(
        Rule.GAIN, [predict(arrays, SAMPLES.x) for arrays in (received, trained)], SAMPLES.y
    )
    assert len(contribution.errors) == 4
    assert (contribution.errors[0], *contribution.errors[-2:]) == expected


def test_without_samples_there_are_no_errors(bench: Bench) -> None:
    contribution, _ = bench.contribute()

    assert contribution.errors == ()


# --- the seal ------------------------------------------------------------------------------------


def test_the_owner_can_open_the_update(bench: Bench) -> None:
    contribution, sealed = bench.contribute()

    update = open_sealed(sealed, contribution, DOMAIN, a_plan().update_format, OWNER)

    assert pack(update) == pack(bench.update)


def test_nobody_else_can_open_the_update(bench: Bench) -> None:
    contribution, sealed = bench.contribute()

    with pytest.raises(RefusedError) as refused:
        open_sealed(sealed, contribution, DOMAIN, a_plan().update_format, STRANGER)
    assert refused.value.reason is Refusal.UNSEALABLE


def test_the_reply_holds_no_arrays_but_the_sealed_ones(bench: Bench) -> None:
    reply = bench.ask(tested=SAMPLES)

    assert set(reply.content.array_records) == {SEALED}


def test_no_bytes_of_the_arrays_are_in_the_reply(bench: Bench) -> None:
    sent = on_the_wire(bench.ask(tested=SAMPLES))

    _, trained = bench.device.trained[0]
    for arrays in (trained, bench.update):
        for array in arrays.values():
            assert array.tobytes()[:16] not in sent
            assert array.tobytes()[-16:] not in sent


def test_no_samples_of_the_owner_are_in_the_reply(bench: Bench) -> None:
    assert SAMPLES.x.tobytes()[:64] not in on_the_wire(bench.ask(tested=SAMPLES))


def test_the_users_metrics_stay_in_the_reply(bench: Bench) -> None:
    assert bench.ask(tested=SAMPLES).content["metrics"]["loss"] == 0.5


def test_sealing_the_same_update_again_gives_other_bytes(bench: Bench) -> None:
    first, second = bench.contribute(), bench.contribute()

    assert first[0].digest == second[0].digest
    assert first[1] != second[1]


# --- what is refused -----------------------------------------------------------------------------


def test_a_model_that_is_not_the_signed_one_is_refused(bench: Bench) -> None:
    with pytest.raises(TaskRefused, match="the model received has digest"):
        bench.ask(model_digest=b"\1" * 32)


def test_nothing_is_trained_on_a_model_that_is_refused(bench: Bench) -> None:
    with pytest.raises(TaskRefused):
        bench.ask(model_digest=b"\1" * 32)

    assert bench.device.trained == []


def test_a_task_without_a_signature_is_refused(bench: Bench) -> None:
    with pytest.raises(TaskRefused, match="not signed"):
        bench.ask(signature=b"")


def test_a_task_with_an_impossible_signature_is_refused(bench: Bench) -> None:
    with pytest.raises(TaskRefused, match="not signed"):
        bench.ask(signature=b"\xff" * 64)


@pytest.mark.parametrize(
    ("what", "other"),
    [
        ("owner", {"owner": STRANGER}),
        ("plan", {"plan": a_plan(run="another")}),
        ("contract", {"domain": Domain(DOMAIN.chain_id, STRANGER.address)}),
        ("chain-id", {"domain": Domain(7, DOMAIN.contract)}),
    ],
)
def test_a_device_stays_with_the_first_run_that_it_sees(
    bench: Bench, what: str, other: dict[str, Any]
) -> None:
    bench.ask()

    with pytest.raises(TaskRefused, match=f"the run's {what} is"):
        bench.ask(**other)


def test_an_older_version_is_refused(bench: Bench) -> None:
    bench.ask(version=5)

    with pytest.raises(TaskRefused, match="version 4, but 5 was seen"):
        bench.ask(version=4)


def test_the_same_version_may_come_again(bench: Bench) -> None:
    bench.ask(version=5)

    assert bench.contribute(version=5)[0].version == 5


def test_a_refused_task_leaves_no_trace(bench: Bench) -> None:
    bench.ask(version=1)
    with pytest.raises(TaskRefused):
        bench.ask(version=9, owner=STRANGER)

    assert bench.contribute(version=2)[0].version == 2


def test_a_task_that_cannot_be_read_is_refused(bench: Bench) -> None:
    message = task_for(bench.node)
    message.content[RECORD]["plan"] = "{}"

    with pytest.raises(FormatError, match="not a plan"):
        bench.node.app(message, bench.node.context)


@pytest.mark.parametrize("cost", [0.5, [1], float("nan"), float("inf")])
def test_a_data_cost_that_is_not_whole_is_an_error(bench: Bench, cost: Any) -> None:
    training(bench, returning({"num-examples": cost}))

    with pytest.raises(FormatError, match="num-examples"):
        bench.ask()


@pytest.mark.parametrize("cost", [-1, 2**32])
def test_a_data_cost_out_of_range_is_an_error(bench: Bench, cost: int) -> None:
    training(bench, returning({"num-examples": cost}))

    with pytest.raises(FormatError, match="num-examples"):
        bench.ask()


def test_a_data_cost_that_is_missing_is_an_error(bench: Bench) -> None:
    training(bench, returning({"loss": 1.0}))

    with pytest.raises(FormatError, match="num-examples = None"):
        bench.ask()


def test_a_whole_float_is_a_data_cost(bench: Bench) -> None:
    training(bench, returning({"num-examples": 12.0}))

    assert bench.contribute()[0].data_cost == 12


def test_the_data_cost_may_have_another_name(bench: Bench) -> None:
    training(bench, returning({"points": 12}), weighted_by_key="points")

    assert bench.contribute()[0].data_cost == 12


def test_two_records_of_arrays_in_a_reply_are_an_error(bench: Bench) -> None:
    training(bench, returning({"num-examples": 1}, ("more", record(fresh()))))

    with pytest.raises(FormatError, match="one record of each kind"):
        bench.ask()


def test_a_trained_model_of_another_format_is_an_error(bench: Bench) -> None:
    wider = record({key: array.astype(np.float64) for key, array in fresh().items()})
    training(bench, returning({"num-examples": 1}, ("arrays", wider)))

    with pytest.raises(FormatError, match="F64"):
        bench.ask()


# --- keys ----------------------------------------------------------------------------------------


def introduced(node: Node) -> Hello:
    content = RecordDict({RECORD: messages.write_domain(DOMAIN)})
    question = Message(content, dst_node_id=1, message_type=HELLO)
    hello, signature = messages.read_hello(node.app(question, node.context).content)
    assert recover(hello.encode(DOMAIN), signature) == hello.device
    return hello


def test_a_device_introduces_itself(bench: Bench) -> None:
    assert introduced(bench.node) == Hello(bench.device.account.address, tuple(range(10)))


def test_a_device_that_tells_no_classes_has_none(bench: Bench) -> None:
    bench.node.app = flower_chain.ClientApp()

    assert introduced(bench.node).classes == ()


def test_classes_are_told_once_and_in_order(bench: Bench) -> None:
    bench.node.app = flower_chain.ClientApp(classes=lambda _: np.array([3, 1, 3]))

    assert introduced(bench.node).classes == (1, 3)


def test_a_key_file_is_made_on_first_use_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "device.key"
    node = LocalGrid().add(flower_chain.ClientApp(), key_file=str(path))

    introduced(node)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_file_is_used_again(tmp_path: Path) -> None:
    grid, path = LocalGrid(), str(tmp_path / "device.key")
    nodes = [grid.add(flower_chain.ClientApp(), key_file=path) for _ in range(2)]

    assert introduced(nodes[0]) == introduced(nodes[1])


def test_a_key_file_that_is_open_to_others_is_refused(bench: Bench) -> None:
    Path(str(bench.node.context.node_config["key-file"])).chmod(0o644)

    with pytest.raises(KeyFileError, match="open to others"):
        introduced(bench.node)


def test_in_a_simulation_each_partition_has_a_key(tmp_path: Path) -> None:
    grid = LocalGrid({"chain.keys": str(tmp_path / "keys")})
    nodes = [grid.add(flower_chain.ClientApp(), partition_id=number) for number in range(2)]

    assert introduced(nodes[0]).device != introduced(nodes[1]).device
    assert sorted(path.name for path in (tmp_path / "keys").iterdir()) == [
        "device-0.key",
        "device-1.key",
    ]


def test_a_device_without_a_key_says_what_to_do() -> None:
    node = LocalGrid().add(flower_chain.ClientApp())

    with pytest.raises(ConfigError, match="set key-file"):
        introduced(node)


# --- the user's mods -----------------------------------------------------------------------------


def clipping(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    reply = call_next(message, context)
    arrays = arrays_in(reply.content["arrays"])
    reply.content["arrays"] = record({k: np.clip(a, -0.01, 0.01) for k, a in arrays.items()})
    return reply


def test_a_mod_of_the_user_runs_before_the_update_is_signed(tmp_path: Path) -> None:
    device = Device(0, mods=[clipping])
    bench = Bench(device, device.join(LocalGrid(), tmp_path / "keys"))

    contribution, sealed = bench.contribute()

    clipped = {key: np.clip(array, -0.01, 0.01) for key, array in bench.update.items()}
    assert contribution.digest == digest(pack(clipped)) != digest(pack(bench.update))
    update = open_sealed(sealed, contribution, DOMAIN, a_plan().update_format, OWNER)
    assert max(float(np.abs(array).max()) for array in update.values()) <= 0.01


def test_flowers_own_clipping_mod_works(tmp_path: Path) -> None:
    device = Device(0, mods=[fixedclipping_mod])
    bench = Bench(device, device.join(LocalGrid(), tmp_path / "keys"))
    message = task_for(bench.node, tested=SAMPLES)
    message.content["config"][KEY_CLIPPING_NORM] = 0.5

    reply = bench.node.app(message, bench.node.context)

    signed, sealed = messages.read_contribution(reply.content)
    assert sealed is not None
    update = open_sealed(sealed, signed.contribution, DOMAIN, a_plan().update_format, OWNER)
    assert np.sqrt(sum(float((array**2).sum()) for array in update.values())) <= 0.5001


def test_a_mod_may_set_the_data_cost(tmp_path: Path) -> None:
    def count(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(message, context)
        reply.content["metrics"]["num-examples"] = 5
        return reply

    device = Device(0, mods=[count])
    bench = Bench(device, device.join(LocalGrid(), tmp_path / "keys"))

    assert bench.contribute()[0].data_cost == 5


def test_errors_are_measured_on_what_the_mods_let_through(tmp_path: Path) -> None:
    device = Device(0, mods=[clipping])
    bench = Bench(device, device.join(LocalGrid(), tmp_path / "keys"))

    contribution, sealed = bench.contribute(tested=SAMPLES)

    update = open_sealed(sealed, contribution, DOMAIN, a_plan().update_format, OWNER)
    models = [fresh(), apply(fresh(), update)]
    expected = evidence(Rule.GAIN, [predict(model, SAMPLES.x) for model in models], SAMPLES.y)
    assert contribution.errors[-2:] == pytest.approx(expected[-2:], abs=10_000)


# --- the store -----------------------------------------------------------------------------------


def test_a_store_of_the_device_gets_the_bytes_and_the_reply_none(
    bench: Bench, tmp_path: Path
) -> None:
    bench.node.context.node_config["store"] = str(tmp_path / "store")

    signed, sealed = messages.read_contribution(bench.ask(tested=SAMPLES).content)

    assert sealed is None
    stored = DirectoryStore(tmp_path / "store").get(cid_from_bytes(signed.contribution.cid))
    update = open_sealed(stored, signed.contribution, DOMAIN, a_plan().update_format, OWNER)
    assert pack(update) == pack(bench.update)


def test_with_a_store_the_reply_holds_no_arrays_at_all(bench: Bench, tmp_path: Path) -> None:
    bench.node.context.node_config["store"] = str(tmp_path / "store")

    assert not bench.ask().content.array_records


# --- plain Flower --------------------------------------------------------------------------------


def plain(kind: str) -> Message:
    content = task_for(Node(flower_chain.ClientApp(), Context(1, 1, {}, RecordDict(), {}))).content
    del content[RECORD]
    return Message(content, dst_node_id=1, message_type=kind)


def test_a_plain_training_message_passes_through_untouched(bench: Bench) -> None:
    reply = bench.node.app(plain(MessageType.TRAIN), bench.node.context)

    assert set(reply.content) == {"arrays", "metrics"}
    _, trained = bench.device.trained[0]
    assert pack(arrays_in(reply.content["arrays"])) == pack(trained)


def test_a_plain_training_message_needs_no_key(bench: Bench) -> None:
    bench.node.context.node_config.clear()

    assert bench.node.app(plain(MessageType.TRAIN), bench.node.context).has_content()


def test_a_plain_evaluation_passes_through_untouched(bench: Bench) -> None:
    reply = bench.node.app(plain(MessageType.EVALUATE), bench.node.context)

    assert reply.content["metrics"]["num-examples"] == bench.device.size


def test_an_error_of_train_is_not_hidden(bench: Bench) -> None:
    def fail() -> None:
        raise ZeroDivisionError("in train")

    bench.device.before_training = fail

    with pytest.raises(ZeroDivisionError, match="in train"):
        bench.ask()


def test_an_error_that_train_returns_is_handed_on_unsigned(bench: Bench) -> None:
    def train(message: Message, context: Context) -> Message:
        return Message(Error(ErrorCode.UNKNOWN, "no data today"), reply_to=message)

    training(bench, train)
    reply = bench.ask()

    assert reply.error.reason == "no data today"
    assert not reply.has_content()


# --- Validation ----------------------------------------------------------------------------------


def never(_: Any) -> Any:
    raise AssertionError("there is nothing to predict")


def test_validation_does_nothing_outside_a_task() -> None:
    flower_chain.Validation(never).measure()


def test_validation_does_nothing_under_a_plain_strategy(bench: Bench) -> None:
    def train(message: Message, context: Context) -> Message:
        flower_chain.Validation(never).measure()
        return Message(RecordDict(), reply_to=message)

    app = flower_chain.ClientApp()
    app.train()(train)

    assert not app(plain(MessageType.TRAIN), bench.node.context).content


def test_validation_of_one_task_is_not_taken_for_another(bench: Bench) -> None:
    first, _ = bench.contribute(tested=SAMPLES)
    second, _ = bench.contribute(tested=SAMPLES)

    assert first.errors == second.errors


def test_there_are_no_samples_outside_a_task() -> None:
    assert flower_chain.validation_samples() is None


# --- without Validation --------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [Rule.TREND, Rule.THRESHOLD, Rule.BOTH, Rule.EITHER])
def test_evaluate_is_asked_before_and_after_if_train_measures_nothing(
    unmeasured: Bench, rule: Rule
) -> None:
    contribution, _ = unmeasured.contribute(tested=SAMPLES, plan=a_plan(rule=rule))

    models = unmeasured.device.trained[0]
    expected = evidence(rule, [predict(model, SAMPLES.x) for model in models], SAMPLES.y)
    assert contribution.errors == expected


def test_evaluate_is_asked_in_a_simulation_too(
    unmeasured: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There Flower tells the process of a ClientApp no identity."""
    message = task_for(unmeasured.node, tested=SAMPLES, plan=a_plan(rule=Rule.TREND))
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, None)

    reply = unmeasured.node.app(message, unmeasured.node.context)

    assert len(messages.read_contribution(reply.content)[0].contribution.errors) == 2


def test_the_accuracy_may_have_another_name(unmeasured: Bench) -> None:
    app = flower_chain.ClientApp(metric="top-1")
    app.train()(unmeasured.device._train)
    app.evaluate()(evaluating({"top-1": 0.25}))
    unmeasured.node.app = app

    contribution, _ = unmeasured.contribute(tested=SAMPLES, plan=a_plan(rule=Rule.TREND))

    assert contribution.errors == (750_000, 750_000)


def evaluating(metrics: dict[str, Any], reads: bool = True) -> ClientAppCallable:
    def evaluate(message: Message, context: Context) -> Message:
        if reads:
            flower_chain.validation_samples()
        return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)

    return evaluate


def refusing(bench: Bench, evaluate: ClientAppCallable | None, rule: Rule) -> Callable[[], Message]:
    app = flower_chain.ClientApp()
    app.train()(bench.device._train)
    if evaluate is not None:
        app.evaluate()(evaluate)
    bench.node.app = app
    return lambda: bench.ask(tested=SAMPLES, plan=a_plan(rule=rule))


def test_the_rule_gain_needs_probabilities(unmeasured: Bench) -> None:
    ask = refusing(unmeasured, evaluating({"accuracy": 0.5}), Rule.GAIN)

    with pytest.raises(ConfigError, match=r"use flower_chain\.Validation"):
        ask()


def test_an_evaluate_that_does_not_look_at_the_samples_is_no_measure(unmeasured: Bench) -> None:
    ask = refusing(unmeasured, evaluating({"accuracy": 0.5}, reads=False), Rule.TREND)

    with pytest.raises(ConfigError, match="nothing measured the owner's samples"):
        ask()


def test_an_evaluate_without_the_accuracy_is_an_error(unmeasured: Bench) -> None:
    ask = refusing(unmeasured, evaluating({"loss": 0.5}), Rule.TREND)

    with pytest.raises(ConfigError, match="accuracy = None"):
        ask()


@pytest.mark.parametrize("accuracy", [1.5, -0.5, float("nan")])
def test_an_accuracy_that_is_no_share_is_an_error(unmeasured: Bench, accuracy: float) -> None:
    ask = refusing(unmeasured, evaluating({"accuracy": accuracy}), Rule.TREND)

    with pytest.raises(FormatError, match="is not a share"):
        ask()


def test_an_evaluate_that_returns_an_error_is_told(unmeasured: Bench) -> None:
    def evaluate(message: Message, context: Context) -> Message:
        return Message(Error(ErrorCode.UNKNOWN, "out of memory"), reply_to=message)

    ask = refusing(unmeasured, evaluate, Rule.TREND)

    with pytest.raises(TaskRefused, match=r"evaluate\(\) failed: out of memory"):
        ask()


def test_an_evaluate_for_another_action_is_no_measure(unmeasured: Bench) -> None:
    ask = refusing(unmeasured, None, Rule.TREND)
    unmeasured.node.app.evaluate("audit")(evaluating({"accuracy": 0.5}))

    with pytest.raises(ConfigError, match="nothing measured the owner's samples"):
        ask()


def test_no_evaluate_at_all_is_an_error_that_says_what_to_do(unmeasured: Bench) -> None:
    ask = refusing(unmeasured, None, Rule.TREND)

    with pytest.raises(ConfigError, match=r"flower_chain\.Validation"):
        ask()


def test_validation_in_evaluate_serves_the_rule_gain(unmeasured: Bench) -> None:
    def evaluate(message: Message, context: Context) -> Message:
        arrays = arrays_in(message.content["arrays"])
        flower_chain.Validation(lambda x: predict(arrays, x))
        content = RecordDict({"metrics": MetricRecord({"num-examples": 1, "accuracy": 0.5})})
        return Message(content, reply_to=message)

    refusing(unmeasured, evaluate, Rule.GAIN)
    contribution, _ = unmeasured.contribute(tested=SAMPLES)

    models = unmeasured.device.trained[0]
    expected = evidence(Rule.GAIN, [predict(model, SAMPLES.x) for model in models], SAMPLES.y)
    assert contribution.errors == expected


def test_evaluate_gets_what_train_got_but_for_the_model(unmeasured: Bench) -> None:
    seen: list[RecordDict] = []

    def evaluate(message: Message, context: Context) -> Message:
        seen.append(message.content)
        return evaluating({"accuracy": 0.5})(message, context)

    refusing(unmeasured, evaluate, Rule.TREND)()

    models = [updates.pack(arrays_in(content["arrays"])) for content in seen]
    assert models == [pack(model) for model in unmeasured.device.trained[0]]
    assert seen[0]["config"]["server-round"] == 1


def test_the_model_received_may_have_any_name(bench: Bench) -> None:
    def train(message: Message, context: Context) -> Message:
        assert isinstance(message.content["model"], ArrayRecord)
        content = {"model": message.content["model"], "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)

    training(bench, train)
    message = task_for(bench.node)
    message.content["model"] = message.content.pop("arrays")

    signed, _ = messages.read_contribution(bench.node.app(message, bench.node.context).content)

    assert isinstance(signed, Signed)
