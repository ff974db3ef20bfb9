"""The node that holds the key: what it decrypts, and what not."""

import base64
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eth_account import Account
from flwr.app import Message, MessageType, RecordDict
from key_holder import HOLDER, key_of, write_key
from killing import Killed
from local_grid import LocalGrid, Node, delivered
from softmax import fresh
from tasks import DOMAIN, OWNER, a_plan

import flower_chain
from flower_chain import cipher_files, keys, messages, sum_messages
from flower_chain.client import key_holder
from flower_chain.errors import KeyFileError, TaskRefused
from flower_chain.messages import Request
from flower_chain.plan import RecordAndRewardPlan
from flower_chain.privacy import paillier
from flower_chain.privacy.ciphers import TOTAL
from flower_chain.records import (
    Contribution,
    DecryptedSum,
    Signed,
    Task,
    parts_of,
    recover,
    sign,
)
from flower_chain.sum_messages import DECRYPT, KEY
from flower_chain.updates import Arrays, digest_of

DEVICES = [Account.from_key(bytes([n]) * 32) for n in range(1, 6)]


@pytest.fixture(autouse=True)
def _short_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paillier, "LEAST_BITS", 512)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """One that holds a key."""
    cipher_files.save(tmp_path / "paillier.key", key_of("paillier"))
    return connect(tmp_path)


def connect(folder: Path) -> Node:
    """The node, started (again)."""
    return LocalGrid().add(
        flower_chain.ClientApp(),
        key_holder=str(folder / "paillier.key"),
        key_file=write_key(folder / "holder.key", HOLDER),
    )


def plan(**terms: Any) -> RecordAndRewardPlan:
    defaults = {
        "encryption": "paillier",
        "cipher_key": base64.b64encode(key_of("paillier").public_key).decode(),
        "key_holder": HOLDER.address,
        "least_summed": 3,
        "most_summed": 4,
        "weight_steps": 1,
        "value_range": 1.0,
        "value_bits": 16,
    }
    return a_plan(**(defaults | terms))


PLAN = plan()


def signed_by(number: int, version: int = 0, name: bytes = b"update", **changes: Any) -> Signed:
    """A contribution of a device."""
    device = DEVICES[number]
    digest = bytes([number, version]) + name.ljust(30, b"\0")
    contribution = Contribution(
        device.address, version, 9, digest, bytes(36), (), (900_000, 100_000, 50_000)
    )
    contribution = replace(contribution, **changes)
    return Signed(contribution, sign(contribution.encode(DOMAIN), device))


def encrypted_sum(parts: int, terms: RecordAndRewardPlan = PLAN, value: float = 0.25) -> Arrays:
    """Of so many updates that are all alike."""
    cipher = terms.cipher
    assert cipher is not None
    update = {key: np.full_like(array, value) for key, array in fresh().items()}
    return cipher.add([cipher.encrypt(update)] * parts, [1] * parts)


def question(
    node: Node,
    parts: Sequence[Signed],
    terms: RecordAndRewardPlan = PLAN,
    encrypted: Arrays | None = None,
    version: int = 0,
    owner: Any = OWNER,
) -> Message:
    """What the server asks."""
    task = Task(version, digest_of(fresh()), terms.digest)
    request = Request(task, sign(task.encode(DOMAIN), owner), DOMAIN, terms)
    found = encrypted_sum(len(parts)) if encrypted is None else encrypted
    return message(node, DECRYPT, sum_messages.write_question(request, found, parts))


def message(node: Node, kind: str, content: RecordDict) -> Message:
    made = Message(content, dst_node_id=node.context.node_id, message_type=kind)
    return delivered(made)


def answer(node: Node, asked: Message) -> Any:
    return sum_messages.read_answer(delivered(node.app(asked, node.context)).content)


THREE = [signed_by(number) for number in range(3)]


# --- what it decrypts ----------------------------------------------------------------------------


def test_a_sum_is_decrypted_and_signed(node: Node) -> None:
    encrypted = encrypted_sum(3)
    total, signature = answer(node, question(node, THREE, encrypted=encrypted))

    cipher = PLAN.cipher
    assert cipher is not None
    assert np.allclose(total[TOTAL] * cipher.unit, 0.75, atol=1e-3)
    said = DecryptedSum(
        0, parts_of([(s.contribution, 1) for s in THREE]), digest_of(encrypted), digest_of(total)
    )
    assert recover(said.encode(DOMAIN), signature) == HOLDER.address


def test_the_same_question_gets_the_same_answer_also_after_a_restart(
    node: Node, tmp_path: Path
) -> None:
    asked = question(node, THREE)
    total, signature = answer(node, asked)
    node = connect(tmp_path)
    again, same = answer(node, asked)

    assert (again[TOTAL] == total[TOTAL]).all()
    assert same == signature


def test_the_next_version_is_decrypted_too(node: Node) -> None:
    answer(node, question(node, THREE))
    parts = [signed_by(number, 1) for number in range(3)]
    total, _ = answer(node, question(node, parts, version=1))
    assert total[TOTAL].size == 650


def test_it_tells_its_key_signed(node: Node) -> None:
    reply = node.app(message(node, KEY, RecordDict()), node.context)
    offer = sum_messages.read_offer(reply.content)
    assert offer is not None
    assert (offer.account, offer.scheme) == (HOLDER.address, "paillier")
    assert offer.key == key_of("paillier").public_key


# --- what it does not ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        (THREE[:1], "a sum of 1 contributions"),
        (THREE[:2], "a sum of 2 contributions"),
        ([signed_by(n) for n in range(5)], "a sum of 5 contributions"),
        ([THREE[0], THREE[1], THREE[1]], "a device is in the sum twice"),
        (
            [THREE[0], THREE[1], signed_by(2, digest=THREE[0].contribution.digest)],
            "an update is in the sum twice",
        ),
        ([*THREE[:2], signed_by(2, 1)], "is not to version 0"),
        ([*THREE[:2], replace(THREE[2], signature=THREE[0].signature)], "is not signed by it"),
    ],
    ids=[
        "one",
        "two",
        "too many",
        "a device twice",
        "an update twice",
        "another version",
        "forged",
    ],
)
def test_what_is_no_sum_of_enough_is_refused(node: Node, parts: list[Signed], why: str) -> None:
    assert why in answer(node, question(node, parts, encrypted=encrypted_sum(3)))


def test_another_sum_of_the_version_is_refused(node: Node) -> None:
    answer(node, question(node, THREE))
    others = [signed_by(number, name=b"other") for number in range(3)]
    assert "another sum of version 0" in answer(node, question(node, others))
    assert "another sum of version 0" in answer(node, question(node, THREE))


def test_a_contribution_in_two_sums_is_refused(node: Node) -> None:
    answer(node, question(node, THREE))
    parts = [signed_by(number, 1) for number in (0, 1)]
    parts.append(signed_by(2, 1, digest=THREE[2].contribution.digest))
    refused = answer(node, question(node, parts, version=1))
    assert "in a sum before" in refused
    fresh_ones = [signed_by(number, 1) for number in (0, 1, 3)]
    assert not isinstance(answer(node, question(node, fresh_ones, version=1)), str)


@pytest.mark.parametrize(
    ("terms", "why"),
    [
        ({"cipher_key": base64.b64encode(b"\xff" * 64).decode()}, "another key"),
        ({"key_holder": OWNER.address}, "names 0x"),
    ],
)
def test_a_plan_with_another_key_or_holder_is_refused(
    node: Node, terms: dict[str, Any], why: str
) -> None:
    asked = question(node, THREE, plan(**terms), encrypted_sum(3))
    assert why in answer(node, asked)


def test_a_plan_without_encryption_is_refused(node: Node) -> None:
    assert "no encryption" in answer(node, question(node, THREE, a_plan(), encrypted_sum(3)))


def test_another_owner_than_the_first_is_refused(node: Node) -> None:
    answer(node, question(node, THREE))
    parts = [signed_by(number, 1) for number in range(3)]
    other = question(node, parts, version=1, owner=DEVICES[4])
    assert "the run's owner is" in answer(node, other)


def test_what_is_encrypted_under_another_key_is_refused(node: Node) -> None:
    other = plan(cipher_key=base64.b64encode(key_of("paillier", 1).public_key).decode())
    refused = answer(node, question(node, THREE, encrypted=encrypted_sum(3, other)))
    assert "another key" in refused or "is not from 1" in refused


@pytest.mark.parametrize("kind", [MessageType.TRAIN, MessageType.EVALUATE, messages.HELLO])
def test_it_does_nothing_else(node: Node, kind: str) -> None:
    with pytest.raises(TaskRefused, match="holds a key, and does nothing else"):
        node.app(message(node, kind, RecordDict()), node.context)


def test_a_device_has_no_key_to_offer(tmp_path: Path) -> None:
    device = LocalGrid().add(
        flower_chain.ClientApp(), key_file=write_key(tmp_path / "k", DEVICES[0])
    )
    reply = device.app(message(device, KEY, RecordDict()), device.context)
    assert not reply.content


def test_a_key_file_that_is_open_to_others_is_refused(node: Node, tmp_path: Path) -> None:
    (tmp_path / "paillier.key").chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        node.app(message(node, KEY, RecordDict()), node.context)


def test_a_sealed_key_is_opened_with_the_password_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cipher_files.save(tmp_path / "paillier.key", key_of("paillier"), "secret")
    monkeypatch.setenv(keys.PASSWORD_VARIABLE, "secret")
    node = connect(tmp_path)
    assert not isinstance(answer(node, question(node, THREE)), str)


# --- killed --------------------------------------------------------------------------------------


def test_a_sum_is_noted_before_it_is_decrypted(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(*_: Any) -> None:
        raise Killed

    asked = question(node, THREE)
    with monkeypatch.context() as killed:
        killed.setattr(paillier.PaillierSecret, "_decrypted", dying)
        with pytest.raises(Killed):
            node.app(asked, node.context)

    node = connect(tmp_path)
    others = [signed_by(number, name=b"other") for number in range(3)]
    assert "another sum" in answer(node, question(node, others))
    assert not isinstance(answer(node, asked), str)


def test_what_is_not_noted_whole_is_not_noted(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dying(key_holder.sqlite3.Connection):
        def execute(self, statement: str, *args: Any) -> Any:
            if statement == "COMMIT":
                raise Killed
            return super().execute(statement, *args)

    connected = key_holder.sqlite3.connect
    with monkeypatch.context() as killed:
        killed.setattr(
            key_holder.sqlite3, "connect", lambda *a, **o: connected(*a, **o, factory=Dying)
        )
        with pytest.raises(Killed):
            node.app(question(node, THREE), node.context)

    node = connect(tmp_path)
    others = [signed_by(number, name=b"other") for number in range(3)]
    assert not isinstance(answer(node, question(node, others)), str)
