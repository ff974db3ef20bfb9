"""What travels in the stages of an audit: what comes back is what was sent, or FormatError."""

import json
from contextlib import suppress
from dataclasses import asdict, fields
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from flower_chain import audit_messages
from flower_chain.audit_messages import MODELS, SAID, STAGE
from flower_chain.errors import FormatError
from flower_chain.records import (
    Aggregate,
    BondPermit,
    Commitment,
    Domain,
    Retrieval,
    Scores,
    TrainedModel,
)
from flower_chain.rules.blockflow import MAX_AGENTS, ONE

words, agents = st.binary(min_size=32, max_size=32), st.integers(0, MAX_AGENTS - 1)
rounds, signatures = st.integers(0, 2**32 - 1), st.binary(min_size=64, max_size=64)
cids = st.binary(min_size=36, max_size=36)
sets = st.lists(agents, max_size=MAX_AGENTS, unique=True).map(tuple)
rows = st.lists(st.integers(0, ONE), max_size=MAX_AGENTS).map(tuple)
ITEMS: dict[type[Any], st.SearchStrategy[Any]] = {
    TrainedModel: st.builds(TrainedModel, agents, rounds, words, cids, words),
    Retrieval: st.builds(Retrieval, agents, rounds, sets, words),
    Commitment: st.builds(Commitment, agents, rounds, words),
    Scores: st.builds(Scores, agents, rounds, rows, words),
    Aggregate: st.builds(Aggregate, agents, rounds, words),
}
PERMIT = BondPermit(1, "0x" + 40 * "1", "Token", "1", "0x" + 40 * "2", "0x" + 40 * "3", 5, 6, 7)
DOMAIN = Domain(7, "0x" + 40 * "1")

# Whatever JSON can hold, and what only Python's reader takes.
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**32, 10**400, -1, ONE + 1])
    | st.floats()
    | st.text(max_size=70)
    | st.binary(max_size=40).map(bytes.hex),
    lambda some: st.lists(some, max_size=5) | st.dictionaries(st.text(max_size=9), some),
    max_leaves=8,
)
# Whatever a ConfigRecord can hold.
single = [st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(), st.binary(), st.booleans()]
settings_ = st.one_of(*single, *(st.lists(each, max_size=3) for each in single))


def holding(*texts: Any, kind: type[Any] = Commitment) -> RecordDict:
    """A message that says this of one kind."""
    return RecordDict({SAID: ConfigRecord({kind.__name__: list(texts)})})


@given(
    st.sampled_from(list(ITEMS)).flatmap(lambda kind: st.lists(ITEMS[kind], max_size=4)), signatures
)
def test_what_was_said_arrives(items: list[Any], signature: bytes) -> None:
    said = [(item, signature) for item in items]
    content = RecordDict({SAID: audit_messages.write_said(said)})
    for kind in ITEMS:
        expected = [pair for pair in said if type(pair[0]) is kind]
        assert audit_messages.read_said(content, kind) == expected


@given(st.sampled_from(list(ITEMS)).flatmap(lambda kind: ITEMS[kind]), st.data())
def test_a_field_that_anybody_made_up_is_told_or_can_be_checked(item: Any, data: Any) -> None:
    """An item that can be read can be encoded: whoever checks its signature does not stumble."""
    found = json.loads(json.dumps(asdict(item) | {"signature": bytes(64)}, default=bytes.hex))
    name = data.draw(st.sampled_from([*found, "more"]))
    found[name] = data.draw(values)
    if data.draw(st.booleans()):
        del found[name]
    with suppress(FormatError):
        read, _ = audit_messages.read_one(holding(json.dumps(found), kind=type(item)), type(item))
        assert read.commitment(DOMAIN) if isinstance(read, Scores) else read.encode(DOMAIN)


@given(st.lists(values.map(json.dumps) | st.text(), min_size=1, max_size=3))
def test_texts_that_say_nothing_are_told(texts: list[str]) -> None:
    for kind in ITEMS:
        with pytest.raises(FormatError):
            audit_messages.read_said(holding(*texts, kind=kind), kind)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"agent":' * 100_000, "1" * 10_000, "\ud800"])
def test_texts_that_overwhelm_a_reader_are_told(text: str) -> None:
    with pytest.raises(FormatError):
        audit_messages.read_said(holding(text), Commitment)


@given(settings_)
def test_what_is_no_list_of_texts_is_told(value: Any) -> None:
    content = RecordDict({SAID: ConfigRecord({"Commitment": value}), STAGE: ConfigRecord()})
    with suppress(FormatError):
        assert audit_messages.read_said(content, Commitment) == []


@pytest.mark.parametrize("count", [0, 2])
def test_one_agent_says_one_thing(count: int) -> None:
    said = audit_messages.write_said([(Commitment(1, 2, bytes(32)), bytes(64))] * count)
    with pytest.raises(FormatError, match=f"{count} of Commitment: there must be one"):
        audit_messages.read_one(RecordDict({SAID: said}), Commitment)


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({STAGE: ConfigRecord()}),
        RecordDict({STAGE: ConfigRecord({"stage": 7})}),
        RecordDict({STAGE: ArrayRecord()}),
    ],
)
def test_a_message_without_a_stage_is_told(content: RecordDict) -> None:
    with pytest.raises(FormatError, match="no ConfigRecord"):
        audit_messages.read_stage(content)


def test_a_permit_arrives() -> None:
    record = audit_messages.write_stage("join", **audit_messages.write_permit(PERMIT))
    assert audit_messages.read_permit(record) == PERMIT


@given(st.sampled_from(fields(BondPermit)), settings_)
def test_a_permit_that_anybody_made_up_is_told_or_can_be_signed(field: Any, value: Any) -> None:
    record = ConfigRecord(audit_messages.write_permit(PERMIT) | {field.name: value})
    with suppress(FormatError):
        assert audit_messages.read_permit(record).encode()


@pytest.mark.parametrize(
    ("name", "value"),
    [("nonce", "9" * 10_000), ("nonce", str(2**256)), ("deadline", "-1"), ("token", "0x12")],
)
def test_a_permit_that_can_not_be_signed_is_told(name: str, value: str) -> None:
    record = ConfigRecord(audit_messages.write_permit(PERMIT) | {name: value})
    with pytest.raises(FormatError, match="not a permit"):
        audit_messages.read_permit(record)


def test_sealed_models_arrive_under_the_numbers_of_their_agents() -> None:
    sealed = {0: b"a", 103: b"b"}
    content = RecordDict({MODELS: audit_messages.write_models(list(sealed.items()))})
    assert audit_messages.read_models(content) == sealed


@given(st.text() | st.sampled_from(["9" * 5000, "٣", "²", "-1", "104"]))
def test_a_model_under_another_name_is_nobodys(name: str) -> None:
    array = Array("uint8", (1,), "bytes", b"1")
    content = RecordDict({MODELS: ArrayRecord({name: array})})
    assert set(audit_messages.read_models(content)) <= set(range(MAX_AGENTS))
