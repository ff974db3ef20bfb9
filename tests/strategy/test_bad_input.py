"""What a device can get wrong, or do wrong: it costs that device, and nobody else."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from eth_account import Account
from federation import (
    OWNER,
    TRAIN,
    Federation,
    Outcome,
    changed,
    contribution_in,
    everybody,
    sending,
    signing,
)
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedMedian
from local_grid import Node, silent
from softmax import Device, digits, fresh, predict, record

from flower_chain import Examiner, messages
from flower_chain.client.account import device_account
from flower_chain.keys import public_key
from flower_chain.ledger.federation import Finding
from flower_chain.messages import HELLO, RECORD, SEALED
from flower_chain.records import NOBODY, Refusal
from flower_chain.rules.record_and_reward import Rule, evidence
from flower_chain.run import RecordAndRewardRun
from flower_chain.store.cid import cid_from_bytes, cid_of, cid_to_bytes
from flower_chain.store.seal import seal
from flower_chain.updates import Arrays, mean, pack

STRANGER = Account.from_key(b"\7" * 32)
LARGE = np.float32(3e38)


def assert_others_are_accepted(trio: Federation, outcome: Outcome) -> None:
    """The two other devices are, and paid; the next model is the mean of their updates."""
    others = sorted(trio.accounts[:2], key=str.lower)
    assert outcome.accepted(0) == others
    assert [payment.device for payment in outcome.history.versions[0].payments] == others
    expected = mean(fresh(), trio.updates(0, others), 1.0)
    assert pack(outcome.model(1)) == pack(expected)
    outcome.verify()


def assert_costs_only_itself(trio: Federation, account: str, reason: Refusal) -> None:
    """The last device is refused for `reason`, and the round goes on."""
    outcome = trio.run()
    assert outcome.refused(0) == [(account, reason)]
    assert outcome.summary.rounds[0].refused == [(account, str(reason))]
    (entry,) = (device for device in outcome.summary.devices if device.account == account)
    assert (entry.accepted, entry.refused) == (0, {str(reason): 1})
    assert_others_are_accepted(trio, outcome)


# --- signatures and roles ------------------------------------------------------------------------


def edited(**values: Any) -> Callable[[Node, Message, Message], Message]:
    """The record of a reply with other values, not signed again; None takes one away."""

    def meddle(_node: Node, _question: Message, reply: Message) -> Message:
        record = dict(reply.content[RECORD]) | {
            name.replace("_", "-"): value for name, value in values.items()
        }
        left = {name: value for name, value in record.items() if value is not None}
        reply.content[RECORD] = ConfigRecord(left)
        return reply

    return meddle


def test_a_forged_signature(trio: Federation) -> None:
    account = trio.meddle(edited(signature=b"\1" * 64))
    assert_costs_only_itself(trio, account, Refusal.BAD_SIGNATURE)


def test_a_signature_by_somebody_else(trio: Federation) -> None:
    def meddle(_node: Node, question: Message, reply: Message) -> Message:
        signed, sealed = contribution_in(reply)
        domain = messages.read_domain(question.content)
        return sending(reply, STRANGER, domain, signed.contribution, sealed)

    assert_costs_only_itself(trio, trio.meddle(meddle), Refusal.BAD_SIGNATURE)


def test_an_upper_signature_of_the_two_that_are_valid(trio: Federation) -> None:
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141

    def meddle(node: Node, question: Message, reply: Message) -> Message:
        signature = bytes(reply.content[RECORD]["signature"])
        vs = int.from_bytes(signature[32:], "big")
        s, parity = order - (vs & ~(1 << 255)), 1 - (vs >> 255)
        upper = signature[:32] + (s % (1 << 255) | parity << 255).to_bytes(32, "big")
        return edited(signature=upper)(node, question, reply)

    assert_costs_only_itself(trio, trio.meddle(meddle), Refusal.BAD_SIGNATURE)


def test_a_missing_signature(trio: Federation) -> None:
    account = trio.meddle(edited(signature=None))
    assert_costs_only_itself(trio, account, Refusal.UNREADABLE)


def test_a_data_cost_raised_after_signing(trio: Federation) -> None:
    account = trio.meddle(edited(data_cost=90_000))
    assert_costs_only_itself(trio, account, Refusal.BAD_SIGNATURE)


def test_a_contribution_in_the_name_of_another_device(trio: Federation) -> None:
    account = trio.meddle(edited(device=trio.accounts[0]))
    assert_costs_only_itself(trio, account, Refusal.BAD_SIGNATURE)


def test_a_contribution_of_an_account_that_never_introduced_itself(trio: Federation) -> None:
    def meddle(_node: Node, question: Message, reply: Message) -> Message:
        signed, sealed = contribution_in(reply)
        domain = messages.read_domain(question.content)
        changed_hands = replace(signed.contribution, device=STRANGER.address)
        return sending(reply, STRANGER, domain, changed_hands, sealed)

    assert_costs_only_itself(trio, trio.meddle(meddle), Refusal.BAD_SIGNATURE)


def test_a_contribution_signed_for_another_contract(trio: Federation) -> None:
    def meddle(node: Node, question: Message, reply: Message) -> Message:
        signed, sealed = contribution_in(reply)
        domain = messages.read_domain(question.content)
        elsewhere = type(domain)(domain.chain_id, NOBODY)
        account = device_account(node.context)
        return sending(reply, account, elsewhere, signed.contribution, sealed)

    assert_costs_only_itself(trio, trio.meddle(meddle), Refusal.BAD_SIGNATURE)


def test_a_device_that_is_not_enrolled(trio: Federation) -> None:
    listed = trio.path / "devices.txt"
    listed.write_text("\n".join(trio.accounts[:2]))

    outcome = trio.run(enrol=str(listed))

    assert outcome.refused(0) == [(trio.accounts[2], Refusal.NOT_ENROLLED)]
    assert outcome.summary.rounds[0].refused == [(trio.accounts[2], "not enrolled")]
    assert_others_are_accepted(trio, outcome)


# --- versions ------------------------------------------------------------------------------------


def test_a_future_version(trio: Federation) -> None:
    account = trio.meddle(signing(version=7))
    assert_costs_only_itself(trio, account, Refusal.FUTURE_VERSION)


def test_a_stale_version(trio: Federation) -> None:
    account = trio.meddle(signing(version=0))

    outcome = trio.run(rounds=2)

    assert outcome.refused(0) == []
    assert outcome.refused(1) == [(account, Refusal.STALE_VERSION)]
    assert outcome.summary.rounds[1].refused == [(account, "stale version")]
    outcome.verify()


def test_the_contribution_of_the_round_before(trio: Federation) -> None:
    replies: list[Message] = []

    def meddle(_node: Node, _question: Message, reply: Message) -> Message:
        replies.append(reply)
        reply.content = replies[0].content
        return reply

    account = trio.meddle(meddle)
    outcome = trio.run(rounds=2)

    assert outcome.refused(1) == [(account, Refusal.STALE_VERSION)]
    outcome.verify()


def test_a_second_contribution_for_a_version(trio: Federation) -> None:
    twin = Device(2)
    trio.add(twin)

    outcome = trio.run()

    (account,) = set(trio.accounts[2:])
    assert outcome.refused(0) == [(account, Refusal.SECOND_CONTRIBUTION)]
    assert (account, "second contribution") in outcome.summary.rounds[0].refused


def test_a_second_contribution_does_not_weigh_twice(trio: Federation) -> None:
    trio.add(Device(2))

    outcome = trio.run()

    outcome.verify()


def test_a_second_node_of_an_account_that_errs_does_not_spoil_the_first(trio: Federation) -> None:
    trio.add(Device(2)).meddlers[TRAIN] = fail

    outcome = trio.run()

    outcome.verify()


# --- bytes ---------------------------------------------------------------------------------------


def test_a_digest_that_is_not_that_of_the_bytes(trio: Federation) -> None:
    def meddle(node: Node, question: Message, reply: Message) -> Message:
        domain, device = messages.read_domain(question.content), device_account(node.context)
        name = b"\5" * 32
        bound = f"flower-chain update {domain.chain_id} {domain.contract} {device.address} "
        sealed = seal(pack(fresh()), [public_key(OWNER)], bound.encode() + name)
        cid = cid_to_bytes(cid_of(sealed))
        reply = signing(digest=name, cid=cid)(node, question, reply)
        return with_sealed(reply, sealed)

    assert_costs_only_itself(trio, trio.meddle(meddle), Refusal.WRONG_DIGEST)


def test_a_digest_that_the_sealed_bytes_are_not_bound_to(trio: Federation) -> None:
    account = trio.meddle(signing(digest=b"\5" * 32))
    assert_costs_only_itself(trio, account, Refusal.UNSEALABLE)


def test_a_cid_that_does_not_match(trio: Federation) -> None:
    account = trio.meddle(signing(cid=cid_to_bytes(cid_of(b"something else"))))
    assert_costs_only_itself(trio, account, Refusal.WRONG_CID)


def test_a_cid_that_is_none(trio: Federation) -> None:
    account = trio.meddle(signing(cid=bytes(36)))
    assert_costs_only_itself(trio, account, Refusal.WRONG_CID)


def test_a_cid_that_is_none_of_bytes_that_are_stored_elsewhere(trio: Federation) -> None:
    account = trio.meddle(signing(cid=bytes(36), attach=False))
    assert_costs_only_itself(trio, account, Refusal.WRONG_CID)


def test_a_cid_that_is_not_in_the_store(trio: Federation) -> None:
    account = trio.meddle(signing(attach=False))
    assert_costs_only_itself(trio, account, Refusal.NOT_STORED)


def test_the_cid_of_the_model(trio: Federation) -> None:
    account = trio.meddle(signing(attach=False, cid=cid_to_bytes(cid_of(pack(fresh())))))
    assert_costs_only_itself(trio, account, Refusal.UNSEALABLE)


def test_bytes_in_the_store_that_were_damaged(trio: Federation) -> None:
    store = trio.path / "run" / "store"
    trio.nodes[2].context.node_config["store"] = str(store)

    def meddle(_node: Node, _question: Message, reply: Message) -> Message:
        signed, _ = contribution_in(reply)
        file = store / cid_from_bytes(signed.contribution.cid)
        file.write_bytes(b"damaged")
        return reply

    account = trio.meddle(meddle)
    outcome = trio.run()

    assert outcome.refused(0) == [(account, Refusal.WRONG_CID)]
    assert len(outcome.accepted(0)) == 2


def test_sealed_for_somebody_else(trio: Federation) -> None:
    account = trio.meddle(signing(update=changed(), owner=STRANGER))
    assert_costs_only_itself(trio, account, Refusal.UNSEALABLE)


def test_random_bytes_instead_of_sealed_ones(trio: Federation) -> None:
    noise = np.random.default_rng(1).bytes(2900)

    def meddle(node: Node, question: Message, reply: Message) -> Message:
        reply = signing(cid=cid_to_bytes(cid_of(noise)))(node, question, reply)
        return with_sealed(reply, noise)

    assert_costs_only_itself(trio, trio.meddle(meddle), Refusal.UNSEALABLE)


def test_no_bytes_at_all(trio: Federation) -> None:
    def meddle(node: Node, question: Message, reply: Message) -> Message:
        reply = signing(cid=cid_to_bytes(cid_of(b"")))(node, question, reply)
        return with_sealed(reply, b"")

    assert_costs_only_itself(trio, trio.meddle(meddle), Refusal.UNSEALABLE)


def test_too_many_bytes(trio: Federation) -> None:
    account = trio.meddle(signing(update=changed(more=np.zeros(10_000, np.float32))))
    assert_costs_only_itself(trio, account, Refusal.OVERSIZE)


def test_too_many_bytes_in_the_store(trio: Federation) -> None:
    store = trio.path / "run" / "store"
    store.mkdir(parents=True)
    many = bytes(10_000)
    (store / cid_of(many)).write_bytes(many)
    account = trio.meddle(signing(attach=False, cid=cid_to_bytes(cid_of(many))))
    assert_costs_only_itself(trio, account, Refusal.OVERSIZE)


# --- arrays --------------------------------------------------------------------------------------


def test_a_key_that_is_missing(trio: Federation) -> None:
    account = trio.meddle(signing(update=changed(bias=None)))
    assert_costs_only_itself(trio, account, Refusal.WRONG_FORMAT)


def test_a_key_that_is_another(trio: Federation) -> None:
    account = trio.meddle(signing(update=changed(bias=None, bios=np.zeros(10, np.float32))))
    assert_costs_only_itself(trio, account, Refusal.WRONG_FORMAT)


def test_a_shape_that_is_another(trio: Federation) -> None:
    account = trio.meddle(signing(update=changed(weight=np.zeros((10, 64), np.float32))))
    assert_costs_only_itself(trio, account, Refusal.WRONG_FORMAT)


def test_a_shape_that_would_be_broadcast(trio: Federation) -> None:
    account = trio.meddle(signing(update=changed(bias=np.zeros(1, np.float32))))
    assert_costs_only_itself(trio, account, Refusal.WRONG_FORMAT)


@pytest.mark.parametrize("dtype", [np.float16, np.int32])
def test_a_dtype_that_is_another(trio: Federation, dtype: type) -> None:
    account = trio.meddle(signing(update=changed(bias=np.zeros(10, dtype))))
    assert_costs_only_itself(trio, account, Refusal.WRONG_FORMAT)


def test_a_dtype_that_is_wider(trio: Federation) -> None:
    account = trio.meddle(signing(update=changed(bias=np.zeros(10, np.float64))))
    assert_costs_only_itself(trio, account, Refusal.OVERSIZE)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite(trio: Federation, value: float) -> None:
    account = trio.meddle(signing(update=changed(bias=np.full(10, value, np.float32))))
    assert_costs_only_itself(trio, account, Refusal.NOT_FINITE)


def test_values_so_large_that_the_model_has_no_finite_answer(trio: Federation) -> None:
    weight = np.tile(np.array([LARGE, -LARGE], np.float32), (64, 5))
    account = trio.meddle(signing(update=changed(weight=weight)))

    outcome = trio.run()

    assert [device for device, _ in outcome.refused(0)] == [account]
    assert_others_are_accepted(trio, outcome)


def test_values_that_overflow_when_they_are_added_to_the_model(trio: Federation) -> None:
    large = np.zeros((64, 10), np.float32)
    large[0] = LARGE  # of a pixel that is dark in every digit: nothing else depends on it
    trio.initial = {**fresh(), "weight": large}
    account = trio.meddle(signing(update=changed(weight=large)))

    outcome = trio.run()

    assert [device for device, _ in outcome.refused(0)] == [account]
    assert all(np.isfinite(array).all() for array in outcome.model(1).values())
    assert outcome.verify()["findings"] == 1


# --- data cost and evidence ----------------------------------------------------------------------


def test_a_data_cost_of_nothing(trio: Federation) -> None:
    account = trio.meddle(signing(data_cost=0))
    assert_costs_only_itself(trio, account, Refusal.BAD_DATA_COST)


def test_a_data_cost_above_the_plans_most(trio: Federation) -> None:
    account = trio.meddle(signing(data_cost=100_001))
    assert_costs_only_itself(trio, account, Refusal.BAD_DATA_COST)


@pytest.mark.parametrize("cost", [-1, 2**32, 2**63])
def test_a_data_cost_that_is_none(trio: Federation, cost: int) -> None:
    account = trio.meddle(edited(data_cost=cost))
    assert_costs_only_itself(trio, account, Refusal.UNREADABLE)


def test_errors_that_are_missing(trio: Federation) -> None:
    account = trio.meddle(signing(errors=()))
    assert_costs_only_itself(trio, account, Refusal.BAD_EVIDENCE)


def test_errors_that_are_too_few(trio: Federation) -> None:
    account = trio.meddle(signing(errors=(900_000, 100_000)))
    assert_costs_only_itself(trio, account, Refusal.BAD_EVIDENCE)


def test_errors_out_of_range(trio: Federation) -> None:
    account = trio.meddle(signing(errors=(1_000_001, 100_000, 0)))
    assert_costs_only_itself(trio, account, Refusal.BAD_EVIDENCE)


def test_errors_that_are_too_many(trio: Federation) -> None:
    account = trio.meddle(edited(errors=[1] * 257))
    assert_costs_only_itself(trio, account, Refusal.UNREADABLE)


def test_errors_that_are_not_those_of_the_update(trio: Federation) -> None:
    account = trio.meddle(signing(errors=(1_000_000, 0, 0)))
    assert_costs_only_itself(trio, account, Refusal.FALSE_EVIDENCE)


def test_an_update_that_is_not_that_of_the_errors(trio: Federation) -> None:
    account = trio.meddle(signing(update=changed()))
    assert_costs_only_itself(trio, account, Refusal.FALSE_EVIDENCE)


def test_an_update_that_makes_the_model_worse(trio: Federation) -> None:
    trio.devices[2].step = -1

    assert_costs_only_itself(trio, trio.accounts[2], Refusal.WORTHLESS)


# --- devices that fail ---------------------------------------------------------------------------


def fail(*_: Any) -> None:
    raise RuntimeError("out of memory")


def test_a_device_that_raises_in_train(trio: Federation) -> None:
    trio.devices[2].before_training = fail
    assert_costs_only_itself(trio, trio.accounts[2], Refusal.DEVICE_ERROR)


def test_the_reason_of_a_device_that_raises_is_logged(
    trio: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    trio.devices[2].before_training = fail
    trio.run()
    assert "out of memory" in caplog.text


def test_a_device_that_raises_when_it_is_asked_who_it_is(trio: Federation) -> None:
    trio.meddle(fail, HELLO)
    assert_costs_only_itself(trio, NOBODY, Refusal.DEVICE_ERROR)


def test_a_device_that_never_says_who_it_is(trio: Federation) -> None:
    trio.meddle(silent, HELLO)
    assert_costs_only_itself(trio, NOBODY, Refusal.NO_ANSWER)


def test_a_device_that_never_answers_the_task(trio: Federation) -> None:
    account = trio.meddle(silent)
    assert_costs_only_itself(trio, account, Refusal.NO_ANSWER)


def test_a_device_that_says_who_it_is_only_in_the_second_round(trio: Federation) -> None:
    answers = iter([False, True])
    account = trio.meddle(lambda _n, _q, reply: reply if next(answers) else None, HELLO)

    outcome = trio.run(rounds=2)

    assert outcome.refused(0) == [(NOBODY, Refusal.NO_ANSWER)]
    assert account in outcome.accepted(1)


def test_a_device_that_comes_back(trio: Federation) -> None:
    answers = iter([False, True])
    account = trio.meddle(lambda _n, _q, reply: reply if next(answers) else None)

    outcome = trio.run(rounds=2)

    assert outcome.refused(0) == [(account, Refusal.NO_ANSWER)]
    assert account in outcome.accepted(1)


def test_two_devices_that_never_say_who_they_are(trio: Federation) -> None:
    trio.add(Device(3)).meddlers[HELLO] = silent
    trio.nodes[2].meddlers[HELLO] = silent

    outcome = trio.run()

    assert outcome.refused(0) == [(NOBODY, Refusal.NO_ANSWER)] * 2
    assert len(outcome.accepted(0)) == 2


# --- garbage -------------------------------------------------------------------------------------


def with_sealed(reply: Message, sealed: bytes) -> Message:
    """The reply with other sealed bytes."""
    array = Array("uint8", (len(sealed),), "bytes", sealed)
    reply.content[SEALED] = ArrayRecord({"bytes": array})
    return reply


def replaced(**records: Any) -> Callable[[Node, Message, Message], Message]:
    """The reply with other records: ``ours``, ``sealed``, ``metrics``, or a new name."""
    names = {"ours": RECORD, "sealed": SEALED}

    def meddle(_node: Node, _question: Message, reply: Message) -> Message:
        content = dict(reply.content)
        for name, found in records.items():
            content.pop(names.get(name, name), None)
            if found is not None:
                content[names.get(name, name)] = found
        reply.content = RecordDict(content)
        return reply

    return meddle


GARBAGE = {
    "nothing at all": lambda _n, _q, reply: Message(RecordDict(), reply_to=_q),
    "no record of ours": replaced(ours=None),
    "an empty record of ours": replaced(ours=ConfigRecord()),
    "metrics in place of our record": replaced(ours=MetricRecord({"version": 0})),
    "arrays in place of our record": replaced(ours=ArrayRecord({"x": Array(np.zeros(2))})),
    "text for a version": edited(version="0"),
    "a digest of 31 bytes": edited(digest=b"\1" * 31),
    "an address that is none": edited(device="0x00"),
    "an address in lower case": edited(device=STRANGER.address.lower()),
    "an address that is Unicode": edited(device="０x" + "é" * 40),
    "classes that are too large": edited(classes=[300]),
    "classes that are fractions": edited(classes=[0.5]),
    "errors that are negative": edited(errors=[-1, 2, 3]),
    "a signature that is too short": edited(signature=b"\1" * 63),
    "sealed bytes under another name": replaced(
        sealed=ArrayRecord({"byte": Array("uint8", (1,), "bytes", b"1")})
    ),
    "an empty record of sealed bytes": replaced(sealed=ArrayRecord()),
}


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_instead_of_our_records(trio: Federation, what: str) -> None:
    account = trio.meddle(GARBAGE[what])
    assert_costs_only_itself(trio, account, Refusal.UNREADABLE)


def test_settings_in_place_of_sealed_bytes(trio: Federation) -> None:
    account = trio.meddle(replaced(sealed=ConfigRecord({"bytes": b"1"})))
    assert_costs_only_itself(trio, account, Refusal.NOT_STORED)


@pytest.mark.parametrize(
    "record",
    [None, ConfigRecord(), ConfigRecord({"device": 5}), ConfigRecord({"device": NOBODY})],
    ids=["none", "empty", "a number", "nobody"],
)
def test_garbage_instead_of_an_introduction(trio: Federation, record: Any) -> None:
    trio.meddle(replaced(ours=record), HELLO)
    assert_costs_only_itself(trio, NOBODY, Refusal.UNREADABLE)


METRICS = {
    "no metrics": replaced(metrics=None),
    "empty metrics": replaced(metrics=MetricRecord()),
    "other metrics": replaced(metrics=MetricRecord({"num-examples": 3, "gain": 1.0})),
    "metrics that are lists": replaced(
        metrics=MetricRecord({"num-examples": [1, 2], "loss": [0.5, 0.5]})
    ),
    "metrics that are too many": replaced(more=MetricRecord({"num-examples": 3, "loss": 0.1})),
    "metrics of other names": replaced(
        metrics=None, others=MetricRecord({"num-examples": 3, "loss": 0.1})
    ),
    "arrays that nobody asked for": replaced(more=ArrayRecord({"x": Array(np.zeros(2))})),
}


@pytest.mark.parametrize("what", METRICS)
def test_metrics_that_are_not_those_of_the_others(trio: Federation, what: str) -> None:
    trio.meddle(METRICS[what])

    outcome = trio.run()

    assert set(trio.accounts[:2]) <= set(outcome.accepted(0))
    outcome.verify()


@pytest.mark.parametrize("what", METRICS)
def test_metrics_that_an_inner_strategy_does_not_expect(trio: Federation, what: str) -> None:
    trio.meddle(METRICS[what])

    outcome = trio.run(everybody(FedMedian, trio))

    assert set(trio.accounts[:2]) <= set(outcome.accepted(0))
    outcome.verify()


def test_an_introduction_with_a_forged_signature(trio: Federation) -> None:
    trio.meddle(edited(signature=b"\1" * 64), HELLO)
    assert_costs_only_itself(trio, NOBODY, Refusal.BAD_SIGNATURE)


def test_an_introduction_in_the_name_of_another_device_costs_that_one_nothing(
    trio: Federation,
) -> None:
    trio.meddle(edited(device=trio.accounts[0]), HELLO)

    outcome = trio.run()

    assert_others_are_accepted(trio, outcome)


def test_an_introduction_in_the_name_of_another_is_not_recorded_as_that_ones_fault(
    trio: Federation,
) -> None:
    trio.meddle(edited(device=trio.accounts[0]), HELLO)

    outcome = trio.run()

    assert trio.accounts[0] not in [account for account, _ in outcome.refused(0)]


def test_a_plain_flower_app_that_knows_nothing_of_us(trio: Federation) -> None:
    app = ClientApp()
    app.train()(trio.devices[2]._train)
    trio.nodes[2].app = app
    assert_costs_only_itself(trio, NOBODY, Refusal.DEVICE_ERROR)


def test_arrays_in_the_clear(trio: Federation) -> None:
    plain = replaced(ours=None, sealed=None, arrays=ArrayRecord({"x": Array(np.zeros(2))}))
    assert_costs_only_itself(trio, trio.meddle(plain), Refusal.UNREADABLE)


def test_classes_in_the_contribution_that_are_not_those_of_the_introduction(
    trio: Federation,
) -> None:
    chosen = (3, 4)

    def meddle(node: Node, question: Message, reply: Message) -> Message:
        samples = messages.read_samples(question.content)
        assert samples is not None
        some = np.isin(samples.y, chosen)
        tables = [predict(model, samples.x[some]) for model in trio.devices[2].trained[-1]]
        errors = evidence(Rule.GAIN, tables, samples.y[some])
        return signing(classes=chosen, errors=errors)(node, question, reply)

    account = trio.meddle(meddle)

    outcome = trio.run()

    assert [device for device, _ in outcome.refused(0)] == [account]


# --- rounds --------------------------------------------------------------------------------------


def test_a_round_in_which_nothing_is_accepted_keeps_the_model(
    trio: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    for node in trio.nodes:
        node.meddlers[TRAIN] = fail

    outcome = trio.run(rounds=2)

    assert [pack(outcome.model(version)) for version in (1, 2)] == [pack(fresh())] * 2
    assert outcome.history.versions[2].number == 2
    assert "No update was accepted" in caplog.text
    outcome.verify()


def test_after_a_round_in_which_nothing_is_accepted_the_next_one_is_as_usual(
    trio: Federation,
) -> None:
    for node in trio.nodes:
        answers = iter([False, True])
        node.meddlers[TRAIN] = lambda _n, _q, reply, answers=answers: (
            reply if next(answers) else None
        )

    outcome = trio.run(rounds=2)

    assert outcome.accepted(0) == []
    assert len(outcome.accepted(1)) == 3


def test_a_round_in_which_nobody_says_who_he_is(trio: Federation) -> None:
    for node in trio.nodes:
        node.meddlers[HELLO] = silent

    outcome = trio.run(rounds=2)

    assert outcome.refused(1) == [(NOBODY, Refusal.NO_ANSWER)] * 3
    assert pack(outcome.model(2)) == pack(fresh())
    outcome.verify()


def test_a_refused_device_is_asked_again(trio: Federation) -> None:
    trio.meddle(edited(signature=b"\1" * 64))

    trio.run(rounds=2)

    assert len(trio.devices[2].trained) == 2


def test_a_pool_that_runs_dry_in_the_middle(
    trio: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = [device.size for device in trio.devices]
    pool = sum(sizes) * 1.5 / 1000

    outcome = trio.run(rounds=3, rule="trend", pool=pool)

    paid = [entry.paid for entry in outcome.summary.rounds[:3]]
    assert paid[0] == sum(sizes) * 10**15
    assert paid[1] <= sum(sizes) * 10**15 / 2
    assert [entry.short for entry in outcome.summary.rounds[:3]] == [False, True, True]
    assert "shared pro rata" in caplog.text
    outcome.verify()


def test_a_record_of_settings_in_place_of_the_metrics(trio: Federation) -> None:
    trio.meddle(replaced(metrics=ConfigRecord({"x": 1}), others=MetricRecord({"num-examples": 3})))

    outcome = trio.run()

    assert set(trio.accounts[:2]) <= set(outcome.accepted(0))
    outcome.verify()


ODD_EVALUATIONS = {
    "none": replaced(metrics=None),
    "no weight": replaced(metrics=MetricRecord({"accuracy": 0.5})),
    "a weight of nothing": replaced(metrics=MetricRecord({"num-examples": 0, "accuracy": 0.5})),
    "other metrics": replaced(metrics=MetricRecord({"num-examples": 3, "loss": 0.5})),
    "lists": replaced(metrics=MetricRecord({"num-examples": [3], "accuracy": [0.5, 0.5]})),
}


@pytest.mark.parametrize("what", ODD_EVALUATIONS)
def test_an_odd_evaluation_does_not_end_the_run(trio: Federation, what: str) -> None:
    trio.meddle(ODD_EVALUATIONS[what], MessageType.EVALUATE)

    outcome = trio.run(FedAvg(min_train_nodes=3, min_evaluate_nodes=3, min_available_nodes=3))

    assert len(outcome.accepted(0)) == 3
    assert 1 in outcome.result.evaluate_metrics_clientapp


def test_an_update_that_came_too_late_does_not_make_the_refusal_wrong(trio: Federation) -> None:
    """A device can send the bytes of an old contribution with a new one."""
    kept: list[bytes] = []

    def late(node: Node, question: Message, reply: Message) -> Message:
        sealed = contribution_in(reply)[1]
        kept.append(sealed or b"")
        return signing(attach=False)(node, question, reply) if len(kept) == 1 else reply

    trio.meddle(late)
    outcome = trio.run(rounds=2)
    assert outcome.refused(0) == [(trio.accounts[-1], Refusal.NOT_STORED)]
    outcome.run.store.put(kept[0])

    outcome.verify()


def test_a_model_that_the_examiner_fails_on_costs_its_update(
    trio: Federation,
) -> None:
    def picky(arrays: Arrays, x: Any) -> Any:
        if np.abs(arrays["weight"]).max() > 1e6:
            raise ValueError("Input contains infinity")
        return predict(arrays, x)

    trio.meddle(signing(changed(weight=np.full((64, 10), 1e7, np.float32))))
    strategy = trio.strategy()
    strategy._examiner = Examiner(*(part[:300] for part in digits()), picky)
    result = strategy.start(trio.grid, record(trio.initial), num_rounds=1)

    with closing(RecordAndRewardRun.open(trio.path / "run")) as run:
        (finding,) = run.federation.history().versions[0].findings
    assert finding == Finding(trio.accounts[-1], Refusal.FALSE_EVIDENCE)
    assert len(result.arrays) == 2
