"""Encrypted updates: rounds, what each party sees, and what goes wrong."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation import OWNER, Federation, Outcome, everybody, give, signing
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg
from key_holder import HOLDER, RANGE, hold, key_of, write_key
from killing import Killed, killed_at
from local_grid import Node, delivered, on_the_wire, silent
from softmax import Device, examiner, fresh

import flower_chain
from flower_chain import cipher_files, messages, sum_messages
from flower_chain.envelope import fetch, open_sealed
from flower_chain.errors import ConfigError, RunEnded, SealError, Unverified
from flower_chain.keys import public_key
from flower_chain.ledger.federation import Federation as OnLedger
from flower_chain.messages import Request
from flower_chain.plan import RecordAndRewardPlan
from flower_chain.privacy import paillier
from flower_chain.privacy.ciphers import ENCRYPTED, TOTAL, Cipher
from flower_chain.privacy.paillier import Paillier
from flower_chain.records import Contribution, Refusal, Signed, Task, sign
from flower_chain.run import RecordAndRewardRun
from flower_chain.store.cid import cid_from_bytes
from flower_chain.store.seal import unseal
from flower_chain.sum_messages import DECRYPT
from flower_chain.updates import Arrays, apply, digest_of, mean, pack
from flower_chain.verify import verify

CIPHERS = ("paillier", "ckks")


@pytest.fixture(autouse=True)
def _short_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paillier, "LEAST_BITS", 512)


def settings(scheme: str = "paillier", **others: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "encryption": scheme,
        "key_holder": HOLDER.address,
        "encryption_range": RANGE,
        "encryption_most": 8,
    }
    return defaults | others


def close_to(model: Arrays, expected: Arrays) -> bool:
    return all(np.abs(model[key] - expected[key]).max() < 2e-4 for key in expected)


def same(model: Arrays, expected: Arrays) -> bool:
    return pack(model) == pack(expected)


def questions(federation: Federation) -> list[Message]:
    """All that the key holder was asked to decrypt."""
    asked = [question for question, _ in federation.grid.said]
    return [each for each in asked if each.metadata.message_type == DECRYPT]


def update_of(outcome: Outcome, account: str, version: int = 0) -> Arrays:
    """An update as the owner, who can open the seal, sees it."""
    run, plan = outcome.run, outcome.run.plan
    (signed,) = [
        v.signed for v in outcome.history.versions[version].verdicts if v.device == account
    ]
    sealed = fetch(run.store, signed.contribution, plan.update_format, plan.reader_keys)
    return open_sealed(
        sealed, signed.contribution, run.federation.domain, plan.update_format, OWNER
    )


# --- a happy run ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", CIPHERS)
def test_the_next_model_is_the_mean_of_the_updates_up_to_rounding(
    federation: Federation, scheme: str
) -> None:
    hold(federation, scheme)
    outcome = federation.run(rounds=2, **settings(scheme))

    for turn in range(2):
        updates = federation.updates(turn, federation.accounts)
        assert close_to(outcome.model(turn + 1), mean(outcome.model(turn), updates, 1.0))
    checked = outcome.verify()
    assert checked["encrypted sums"] == checked["aggregates"] == 2


def test_whoever_has_no_key_can_check_the_models_too(federation: Federation) -> None:
    hold(federation)
    outcome = federation.run(rounds=2, **settings())

    *_, report = verify(outcome.run)

    assert report.checked["aggregates"] == report.checked["signed sums"] == 2
    assert any("needs the owner's key" in word for word in report.unchecked)


def test_the_learning_rate_scales_the_mean(federation: Federation) -> None:
    hold(federation)
    outcome = federation.run(**settings(learning_rate=0.5))

    expected = mean(fresh(), federation.updates(0, federation.accounts), 0.5)
    assert close_to(outcome.model(1), expected)
    outcome.verify()


def test_scores_weigh_the_updates_if_the_plan_says_so(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3)
    federation.add(Device(3, epochs=8))
    hold(federation)
    outcome = federation.run(**settings(encryption_weights="score"))

    accepted = outcome.history.versions[0].accepted
    weighed = outcome.run.plan.weighed(v.signed.contribution for v in accepted)
    weights = [weight for _, weight in weighed]
    updates = federation.updates(0, federation.accounts)
    expected = {
        key: fresh()[key] + np.average([each[key] for each in updates], axis=0, weights=weights)
        for key in fresh()
    }
    assert len(set(weights)) > 1
    assert close_to(outcome.model(1), expected)
    assert outcome.verify()["encrypted sums"] == 1


def test_who_does_not_answer_is_not_in_the_sum(federation: Federation) -> None:
    federation.meddle(silent)
    hold(federation)
    outcome = federation.run(**settings())

    there = federation.accounts[:-1]
    assert close_to(outcome.model(1), mean(fresh(), federation.updates(0, there), 1.0))
    assert outcome.verify()["encrypted sums"] == 1


def test_the_node_with_the_key_is_asked_neither_to_train_nor_to_evaluate(
    federation: Federation,
) -> None:
    node = hold(federation)
    everyone = everybody(FedAvg, federation)
    everyone.fraction_evaluate, everyone.min_evaluate_nodes = 1.0, 2
    federation.run(everyone, **settings())

    asked = {
        question.metadata.message_type
        for question, _ in federation.grid.said
        if question.metadata.dst_node_id == node.context.node_id
    }
    assert asked == {sum_messages.KEY, DECRYPT}


def test_the_last_partition_of_a_simulation_holds_the_key(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3)
    federation.grid._run_config |= {
        "chain.encryption": "ckks",
        "chain.keys": str(tmp_path / "keys"),
    }
    federation.grid.add(flower_chain.ClientApp(), partition_id=3, num_partitions=4)

    outcome = federation.run(**settings("ckks", key_holder=""))

    assert outcome.verify()["encrypted sums"] == 1
    assert (tmp_path / "keys/ckks.key").stat().st_mode & 0o777 == 0o600


def test_values_outside_the_range_are_clipped_and_the_device_says_so(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    hold(federation)
    with caplog.at_level("WARNING", "flwr"):
        outcome = federation.run(**settings(encryption_range=0.01))

    assert max(float(np.abs(a).max()) for a in outcome.model(1).values()) <= 0.01
    assert "outside the plan's range of 0.01: clipped" in caplog.text


# --- what each party sees ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Federation, Outcome, Node]]:
    """A run of two rounds, all of whose messages and files are there to be looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paillier, "LEAST_BITS", 512)
        federation = Federation(tmp_path_factory.mktemp("seen"), 4)
        node = hold(federation)
        yield federation, federation.run(rounds=2, **settings()), node


def secrets_of(federation: Federation, outcome: Outcome) -> list[bytes]:
    """Pieces of every update as a device had it: floats, and as whole numbers."""
    cipher = outcome.run.plan.cipher
    assert isinstance(cipher, Paillier)
    found = []
    for turn in range(2):
        for update in federation.updates(turn, federation.accounts):
            found += [array.tobytes()[-16:] for array in update.values()]
            flat = np.concatenate([update["bias"], update["weight"].reshape(-1)])
            whole = np.rint(flat.astype(np.float64) / cipher.unit).astype(np.int64)
            found += [whole.tobytes()[:64], cipher.pack(whole)[0].to_bytes(64, "big")]
    return found


def to_the_server(federation: Federation, outcome: Outcome) -> list[bytes]:
    """All bytes that the server gets or has: messages, and every file in the run's folder."""
    replies = [on_the_wire(reply) for _, reply in federation.grid.said if reply is not None]
    files = [path.read_bytes() for path in outcome.path.rglob("*") if path.is_file()]
    opened = [
        pack(update_of(outcome, account, version))
        for version in range(2)
        for account in federation.accounts
    ]
    return replies + files + opened


def test_no_byte_that_the_server_has_is_of_an_update_or_of_the_private_key(
    seen: tuple[Federation, Outcome, Node],
) -> None:
    federation, outcome, _ = seen
    private = key_of("paillier").private_key
    hidden = [*secrets_of(federation, outcome), private, private.hex().encode()]

    for data in to_the_server(federation, outcome):
        assert not any(piece in data for piece in hidden)


def test_the_server_would_find_them_if_they_were_there(
    seen: tuple[Federation, Outcome, Node], tmp_path: Path
) -> None:
    plain = Federation(tmp_path, 4)
    outcome = plain.run(rounds=2)
    pieces = [a.tobytes()[-16:] for u in plain.updates(0, plain.accounts) for a in u.values()]
    opened = []
    for verdict in outcome.history.versions[0].verdicts:
        file = outcome.run._file(0, verdict.signed.contribution)
        opened.append(outcome.run.unseal(file, OWNER))

    assert all(any(piece in data for data in opened) for piece in pieces)
    assert not any(data in on_the_wire(r) for _, r in plain.grid.said if r for data in opened)


def test_the_key_holder_gets_no_encrypted_update_and_can_decrypt_nothing_but_the_sum(
    seen: tuple[Federation, Outcome, Node],
) -> None:
    federation, outcome, node = seen
    key, cipher = key_of("paillier"), outcome.run.plan.cipher
    assert cipher is not None
    ciphertexts = [
        row.tobytes()
        for version in range(2)
        for account in federation.accounts
        for row in update_of(outcome, account, version)[ENCRYPTED]
    ]
    asked = [
        question
        for question, _ in federation.grid.said
        if question.metadata.dst_node_id == node.context.node_id
    ]

    for question in asked:
        assert not any(piece in on_the_wire(question) for piece in ciphertexts)
        assert messages.SEALED not in question.content.array_records
    for turn, question in enumerate(questions(federation)):
        (record,) = question.content.array_records.values()
        total = key.decrypt(cipher, messages.views(record), 4)[TOTAL] * cipher.unit
        flat = [
            np.concatenate([u["bias"], u["weight"].reshape(-1)])
            for u in federation.updates(turn, federation.accounts)
        ]
        assert np.abs(total - np.sum(flat, axis=0)).max() < 4 * cipher.unit
        assert all(np.abs(total - each).max() > 100 * cipher.unit for each in flat)


def test_the_key_holder_can_not_open_what_is_in_the_store(
    seen: tuple[Federation, Outcome, Node],
) -> None:
    _, outcome, _ = seen
    for file in outcome.run.sealed_files():
        with pytest.raises(SealError):
            unseal(outcome.run._sealed(file), HOLDER.key, file.binding)


def test_what_is_on_the_ledger_decrypts_to_the_sum_only(
    seen: tuple[Federation, Outcome, Node],
) -> None:
    _, outcome, _ = seen
    for version in outcome.history.versions[:2]:
        (found,) = version.sums
        assert len(version.accepted) == 4
        assert found.said.version == version.number


# --- what goes wrong -----------------------------------------------------------------------------


def test_a_sum_of_too_few_is_never_asked_for(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3)
    federation.meddle(silent)
    hold(federation)
    outcome = federation.run(**settings())

    assert len(outcome.accepted()) == 2
    assert not questions(federation)
    assert same(outcome.model(1), fresh())
    assert len(outcome.history.versions[0].payments) == 2
    assert outcome.verify()["aggregates"] == 1


def spoilt(where: slice, value: int) -> Any:
    """A device that sends an encrypted update with other bytes in it."""

    def meddle(node: Node, question: Message, reply: Message) -> Message:
        plan = messages.read_request(question.content, RecordAndRewardPlan).plan
        assert plan.cipher is not None
        rows = plan.cipher.encrypt(fresh())[ENCRYPTED].copy()
        rows[0, where] = value
        return signing({ENCRYPTED: rows})(node, question, reply)  # type: ignore[return-value]

    return meddle


@pytest.mark.parametrize(
    ("scheme", "where", "value"),
    [
        ("paillier", slice(None), 0),
        ("paillier", slice(None), 255),
        ("ckks", slice(0, 4), 255),
        ("ckks", slice(4, 60), 7),
    ],
)
def test_a_malformed_ciphertext_costs_that_update_only(
    federation: Federation, scheme: str, where: slice, value: int
) -> None:
    bad = federation.meddle(spoilt(where, value))
    hold(federation, scheme)
    outcome = federation.run(**settings(scheme))

    assert outcome.refused() == [(bad, Refusal.WRONG_FORMAT)]
    honest = federation.accounts[:-1]
    assert close_to(outcome.model(1), mean(fresh(), federation.updates(0, honest), 1.0))
    assert outcome.verify()["findings"] == 1


def test_an_update_that_is_not_encrypted_costs_that_update_only(federation: Federation) -> None:
    bad = federation.meddle(signing(fresh()))
    hold(federation)
    outcome = federation.run(**settings())

    assert outcome.refused()[0][0] == bad
    assert len(outcome.accepted()) == 3


def test_who_encrypts_what_is_no_update_stops_the_sum_not_the_run(federation: Federation) -> None:
    def meddle(node: Node, question: Message, reply: Message) -> Message:
        plan = messages.read_request(question.content, RecordAndRewardPlan).plan
        key = key_of("paillier").key.public_key
        rows = plan.cipher.encrypt(fresh())[ENCRYPTED].copy()
        rows[0] = np.frombuffer(key.raw_encrypt(key.n // 2).to_bytes(128, "big"), np.uint8)
        return signing({ENCRYPTED: rows})(node, question, reply)  # type: ignore[return-value]

    federation.meddle(meddle)
    hold(federation)
    outcome = federation.run(**settings())

    assert len(outcome.accepted()) == 4
    assert same(outcome.model(1), fresh())
    assert outcome.verify()["aggregates"] == 1


@pytest.mark.parametrize(
    ("scheme", "after"), [("paillier", False), ("paillier", True), ("ckks", False)]
)
def test_a_server_that_is_killed_after_the_sum_was_decrypted_goes_on(
    federation: Federation, scheme: str, after: bool
) -> None:
    hold(federation, scheme)
    with pytest.raises(Killed), killed_at(1, OnLedger, "settle", after):
        federation.run(rounds=2, **settings(scheme))
    outcome = federation.run(rounds=2, **settings(scheme))

    assert [len(version.sums) for version in outcome.history.versions] == [1, 1, 0]
    assert outcome.verify()["encrypted sums"] == 2
    asked = questions(federation)
    assert len(asked) == (2 if after else 3)
    if not after and scheme == "paillier":
        first, again = (each.content[sum_messages.SUM][ENCRYPTED].data for each in asked[:2])
        assert first == again


def test_if_the_key_holder_does_not_answer_the_run_ends_and_can_go_on(
    federation: Federation,
) -> None:
    node = hold(federation)
    node.meddlers[DECRYPT] = silent
    with pytest.raises(RunEnded, match="did not answer; all is recorded"):
        federation.run(rounds=2, **settings())
    del node.meddlers[DECRYPT]
    outcome = federation.run(rounds=2, **settings())

    assert outcome.verify()["encrypted sums"] == 2


def test_a_key_holder_that_fails_ends_the_run_until_it_works_again(federation: Federation) -> None:
    def failing(_node: Node, _question: Message, _reply: Message) -> Message:
        raise OSError("no space left")

    hold(federation).meddlers[DECRYPT] = failing
    with pytest.raises(RunEnded, match="no space left"):
        federation.run(**settings())


@pytest.mark.parametrize("change", ["sum", "signature"])
def test_an_answer_that_is_not_signed_by_the_key_holder_ends_the_run(
    federation: Federation, change: str
) -> None:
    def lying(_node: Node, _question: Message, reply: Message) -> Message:
        total, signature = sum_messages.read_answer(reply.content)  # type: ignore[misc]
        if change == "sum":
            total = {TOTAL: total[TOTAL] + 1}
        else:
            signature = bytes(64)
        reply.content = sum_messages.write_answer(total, signature)
        return reply

    hold(federation).meddlers[DECRYPT] = lying
    with pytest.raises(RunEnded, match="did not sign"):
        federation.run(**settings())


def test_a_key_holder_that_refuses_leaves_the_model_as_it_is(federation: Federation) -> None:
    def refusing(_node: Node, _question: Message, reply: Message) -> Message:
        reply.content = sum_messages.write_refusal("not today")
        return reply

    hold(federation).meddlers[DECRYPT] = refusing
    outcome = federation.run(**settings())

    assert same(outcome.model(1), fresh())
    assert len(outcome.history.versions[0].payments) == 4
    assert outcome.verify()["aggregates"] == 1


def test_a_server_that_lies_about_what_the_sum_is_of_is_found_with_the_owners_key(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(federation)
    add = Cipher.add

    def only_one(self: Cipher, encrypted: Sequence[Arrays], weights: Sequence[int]) -> Any:
        return add(self, [encrypted[0]] * len(encrypted), weights)

    with monkeypatch.context() as lying:
        lying.setattr(Cipher, "add", only_one)
        outcome = federation.run(**settings())

    with pytest.raises(Unverified, match="decrypted something else"):
        outcome.verify()


def test_a_model_that_is_not_of_the_sum_is_found_without_any_key(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(federation)
    right = Cipher.mean
    with monkeypatch.context() as lying:
        lying.setattr(Cipher, "mean", lambda s, t, w: right(s, t, 2 * w))
        outcome = federation.run(**settings())

    with pytest.raises(Unverified, match="not the aggregate"):
        list(verify(outcome.run))


def test_a_sum_of_others_than_were_accepted_is_found_without_any_key(
    federation: Federation,
) -> None:
    hold(federation)
    outcome = federation.run(**settings())
    version = outcome.history.versions[0]
    (found,) = version.sums
    run = RecordAndRewardRun.open(outcome.path)
    history = run.federation.history()
    other = replace(found, said=replace(found.said, parts=bytes(32)))
    history.versions[0].sums[:] = [other]
    run.federation.history = lambda: history  # type: ignore[method-assign]

    with pytest.raises(Unverified, match="not signed by the key holder"):
        list(verify(run))


def test_open_enrolment_takes_no_more_devices_than_a_sum_may_have(federation: Federation) -> None:
    hold(federation)
    outcome = federation.run(**settings(encryption_most=3))

    assert len(outcome.history.enrolled) == 3
    assert len(outcome.history.versions[0].sums) == 1
    outcome.verify()


# --- refused at start ----------------------------------------------------------------------------


def test_a_strategy_that_must_see_updates_is_refused(federation: Federation) -> None:
    with pytest.raises(ConfigError, match="FedAdam must see each update"):
        federation.strategy(everybody(FedAdam, federation), **settings())


@pytest.mark.parametrize("scheme", ["blockflow", "data-trust", "fedavg"])
def test_a_scheme_that_must_see_updates_is_refused(tmp_path: Path, scheme: str) -> None:
    config = {"chain.scheme": scheme, "chain.encryption": "paillier", "chain.run": str(tmp_path)}
    context = Context(1, 0, {}, RecordDict(), config)
    with pytest.raises(ConfigError, match=f"not with scheme = '{scheme}'"):
        flower_chain.wrap(FedAvg(), context, examiner())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"encryption": "rot13"}, "encryption = 'rot13'"),
        ({"key_holder": "nobody"}, "key-holder = 'nobody'"),
        ({"encryption_weights": "random"}, "encryption-weights = 'random'"),
        ({"encryption_least": 1}, "encryption-least = 1"),
        ({"encryption_least": 9}, "encryption-least = 9"),
        ({"encryption_range": 0.0}, "range = 0.0"),
        ({"encryption_bits": 40}, "bits = 40"),
    ],
)
def test_a_setting_that_can_not_be_used_is_named(
    federation: Federation, changes: dict[str, Any], named: str
) -> None:
    hold(federation)
    with pytest.raises(ConfigError, match=named):
        federation.run(**settings(**changes))


def test_more_devices_than_a_sum_may_have_are_refused(
    federation: Federation, tmp_path: Path
) -> None:
    (tmp_path / "devices").write_text("\n".join(federation.accounts))
    with pytest.raises(ConfigError, match="encryption-most = 3: enrol lists 4 devices"):
        federation.strategy(**settings(encryption_most=3, enrol=str(tmp_path / "devices")))


def test_without_a_key_holder_the_run_does_not_begin(federation: Federation) -> None:
    with pytest.raises(ConfigError, match="no node holds a key of paillier"):
        federation.run(**settings(timeout=1))


def test_another_account_than_the_one_that_is_named_holds_no_key(federation: Federation) -> None:
    hold(federation)
    with pytest.raises(ConfigError, match="no node holds a key of paillier for"):
        federation.run(**settings(timeout=1, key_holder=OWNER.address))


def test_a_device_can_not_hold_the_key(federation: Federation, tmp_path: Path) -> None:
    node = hold(federation)
    node.context.node_config["key-file"] = write_key(tmp_path / "k", federation.devices[0].account)
    (tmp_path / "devices").write_text("\n".join(federation.accounts))
    with pytest.raises(ConfigError, match="neither the owner nor a device"):
        federation.run(**settings(key_holder="", enrol=str(tmp_path / "devices")))


def test_a_reader_can_not_hold_the_key(federation: Federation, tmp_path: Path) -> None:
    hold(federation)
    (tmp_path / "readers").write_text(public_key(HOLDER).hex())
    with pytest.raises(ConfigError, match="readers lists the key holder"):
        federation.run(**settings(readers=str(tmp_path / "readers")))


def test_a_run_can_not_go_on_under_another_key(federation: Federation) -> None:
    node = hold(federation)
    federation.run(rounds=1, **settings("paillier"))
    other = federation.path / "other.key"
    cipher_files.save(other, key_of("paillier", 1))
    node.context.node_config["key-holder"] = str(other)
    with pytest.raises(ConfigError, match="cipher_key is"):
        federation.run(rounds=2, **settings())


def test_a_model_with_integers_is_refused(federation: Federation) -> None:
    hold(federation)
    federation.initial = {**fresh(), "steps": np.array(0, np.int64)}
    with pytest.raises(ConfigError, match="'steps' is I64"):
        federation.run(**settings())


def test_of_rounds_that_are_not_kept_the_sums_go_too(federation: Federation) -> None:
    hold(federation)
    outcome = federation.run(rounds=3, **settings(keep_rounds=1))

    sums = [version.sums[0].cid for version in outcome.history.versions[:3]]
    there = [cid_from_bytes(cid) in outcome.run.store for cid in sums]
    assert there == [False, False, True]
    checked = outcome.verify()
    assert (checked["signed sums"], checked["aggregates"]) == (3, 1)


@pytest.mark.parametrize("encryption", ["paillier", ""])
def test_a_device_encrypts_under_no_other_key_than_its_operator_says(
    tmp_path: Path, encryption: str
) -> None:
    federation = Federation(tmp_path, 3)
    federation.add(Device(3), cipher_key="ab" * 32)
    if encryption:
        hold(federation)
    outcome = federation.run(**(settings() if encryption else {}))

    assert outcome.refused() == [(federation.accounts[-1], Refusal.DEVICE_ERROR)]


def test_an_offer_that_another_account_signed_is_not_taken(federation: Federation) -> None:
    def lying(_node: Node, _question: Message, reply: Message) -> Message:
        record: ConfigRecord = reply.content.config_records[messages.RECORD]
        record["account"] = OWNER.address
        return reply

    hold(federation).meddlers[sum_messages.KEY] = lying
    with pytest.raises(ConfigError, match="no node holds a key"):
        federation.run(**settings(timeout=1, key_holder=""))


def test_what_is_applied_is_what_was_signed(federation: Federation) -> None:
    hold(federation)
    outcome = federation.run(**settings())
    cipher = outcome.run.plan.cipher
    assert cipher is not None
    ((_, reply),) = [
        pair for pair in federation.grid.said if pair[0].metadata.message_type == DECRYPT
    ]
    assert reply is not None
    total, _ = sum_messages.read_answer(reply.content)  # type: ignore[misc]
    assert same(outcome.model(1), apply(fresh(), cipher.mean(total, 4)))


# --- a key holder with a node of its own ---------------------------------------------------------


def test_a_key_holder_with_a_node_decrypts_what_the_ledger_accepted_and_nothing_else(
    federation: Federation, anvil: str
) -> None:
    node = hold(federation, ledger=anvil)
    give(anvil, OWNER.address)
    outcome = federation.run(rounds=2, **settings(ledger=anvil))
    assert len(questions(federation)) == 2
    assert outcome.verify()["encrypted sums"] == 2

    last = outcome.model(2)
    task = Task(2, digest_of(last), outcome.run.plan.digest)
    domain, plan = outcome.run.federation.domain, outcome.run.plan
    assert plan.cipher is not None
    made_up = []
    for number, device in enumerate(federation.devices):
        said = Contribution(
            device=device.account.address,
            version=2,
            data_cost=1,
            digest=bytes([number]) * 32,
            cid=bytes(36),
            classes=(),
            errors=(900_000, 1, 1),
        )
        made_up.append(Signed(said, sign(said.encode(domain), device.account)))
    request = Request(task, sign(task.encode(domain), OWNER), domain, plan)
    encrypted = plan.cipher.encrypt(fresh())
    asked = Message(
        sum_messages.write_question(request, encrypted, made_up),
        dst_node_id=node.context.node_id,
        message_type=DECRYPT,
    )
    reply = node.answer(delivered(asked))

    assert reply is not None
    assert "holds no accepted contribution" in str(sum_messages.read_answer(reply.content))
