"""What travels in Flower's messages in the stages of a round in which agents audit each other.

Beside the task, which :mod:`flower_chain.messages` writes, a ConfigRecord under :data:`STAGE` says
what is asked, one under :data:`SAID` holds what agents said, each item as JSON with its signature,
and an ArrayRecord under :data:`MODELS` the sealed models.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from typing import Any, TypeVar

from eth_utils.address import is_checksum_address
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from flower_chain.errors import FormatError
from flower_chain.records import (
    Aggregate,
    BondPermit,
    Commitment,
    Leave,
    Retrieval,
    Scores,
    TrainedModel,
)
from flower_chain.rules.blockflow import MAX_AGENTS, ONE

AUDIT = "query.flower_chain_audit"
"""Type of the messages of all stages but training."""

STAGE = "flower-chain.stage"
SAID = "flower-chain.said"
MODELS = "flower-chain.models"
RECORDS = (STAGE, SAID, MODELS)

JOIN, TRAIN, RETRIEVE, COMMIT, REVEAL, AGGREGATE = (
    "join",
    "train",
    "retrieve",
    "commit",
    "reveal",
    "aggregate",
)
"""What an agent can be asked."""

NUMBER = re.compile("[0-9]{1,78}")
"""As many digits as 256 bits have."""

SIZES = {"cid": (36,), "signature": (0, 64)}
"""Bytes of what is not a word of 32."""

Item = TypeVar("Item", TrainedModel, Retrieval, Commitment, Scores, Aggregate, Leave)


def write_stage(stage: str, **told: str | int | bytes) -> ConfigRecord:
    """What is asked, and what is told with it."""
    return ConfigRecord({"stage": stage, **told})


def read_stage(content: RecordDict) -> ConfigRecord:
    """What is asked, or FormatError."""
    record = content.config_records.get(STAGE)
    if record is None or not isinstance(record.get("stage"), str):
        raise FormatError(f"the message has no ConfigRecord {STAGE!r} with a stage")
    return record


def write_permit(permit: BondPermit) -> dict[str, str | int]:
    """What an agent is asked to sign, for :func:`write_stage`."""
    return {name: str(value) for name, value in asdict(permit).items()}


def read_permit(record: ConfigRecord) -> BondPermit:
    """The inverse of :func:`write_permit`, or FormatError; numbers may need more than 64 bits."""
    texts = {field.name: record.get(field.name) for field in fields(BondPermit)}
    numbers = [field.name for field in fields(BondPermit) if field.type is int]
    if not all(isinstance(text, str) for text in texts.values()):
        raise FormatError(f"not a permit: {texts}")
    if not all(NUMBER.fullmatch(str(texts[name])) for name in numbers):
        raise FormatError(f"not a permit: one of {numbers} is no number")
    values: dict[str, Any] = texts | {name: int(str(texts[name])) for name in numbers}
    if any(values[name] >= 2**256 for name in numbers):
        raise FormatError(f"not a permit: one of {numbers} is too large")
    if not all(is_checksum_address(texts[name]) for name in ("token", "owner", "spender")):
        raise FormatError("not a permit: token, owner and spender must be checksum addresses")
    return BondPermit(**values)


def write_said(said: Iterable[tuple[Any, bytes]]) -> ConfigRecord:
    """What agents said, each with its signature, which scores need none of."""
    lists: dict[str, list[str]] = {}
    for item, signature in said:
        values = asdict(item) | {"signature": signature}
        text = json.dumps(values, sort_keys=True, separators=(",", ":"), default=bytes.hex)
        lists.setdefault(type(item).__name__, []).append(text)
    return ConfigRecord(dict(lists))


def read_said(content: RecordDict, kind: type[Item]) -> list[tuple[Item, bytes]]:
    """What agents said of one kind, each with its signature, or FormatError."""
    texts = content.config_records.get(SAID, ConfigRecord()).get(kind.__name__, [])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise FormatError(f"{kind.__name__}: not a list of texts")
    return [_read(kind, str(text)) for text in texts]


def read_one(content: RecordDict, kind: type[Item]) -> tuple[Item, bytes]:
    """What one agent said, with its signature, or FormatError."""
    found = read_said(content, kind)
    if len(found) != 1:
        raise FormatError(f"{len(found)} of {kind.__name__}: there must be one")
    return found[0]


def write_models(sealed: Sequence[tuple[int, bytes]]) -> ArrayRecord:
    """Sealed models, each under the number of its agent."""
    return ArrayRecord({str(n): Array("uint8", (len(b),), "bytes", b) for n, b in sealed})


def read_models(content: RecordDict) -> dict[int, bytes]:
    """The sealed models in a message, by agent."""
    found = content.array_records.get(MODELS, ArrayRecord())
    names = {str(agent): agent for agent in range(MAX_AGENTS)}
    return {names[name]: array.data for name, array in found.items() if name in names}


def _read(kind: type[Item], text: str) -> tuple[Item, bytes]:
    if text.count("{") > 1 or text.count("[") > 1:
        raise FormatError("not what an agent says: too deep")  # json.loads overflows on deep ones
    try:
        values = json.loads(text)
        signature = _value("signature", bytes, values.pop("signature"))
        if set(values) != {field.name for field in fields(kind)}:
            raise FormatError(f"fields {sorted(values)}")
        read = {
            field.name: _value(field.name, field.type, values[field.name]) for field in fields(kind)
        }
    except (ValueError, TypeError, KeyError, AttributeError) as fault:
        raise FormatError(f"not what an agent says of {kind.__name__}: {fault}") from fault
    return kind(**read), signature


def _value(name: str, kind: object, value: Any) -> Any:
    """A field as it is in a record, or FormatError."""
    if kind is bytes:
        read = bytes.fromhex(value)
        if len(read) not in SIZES.get(name, (32,)):
            raise FormatError(f"{name} has {len(read)} bytes")
        return read
    limit = MAX_AGENTS if name in ("agent", "retrieved") else ONE + 1 if name == "row" else 2**32
    numbers = [value] if kind is int else value
    if not isinstance(numbers, list) or len(numbers) > MAX_AGENTS:
        raise FormatError(f"{name}: not a list of at most {MAX_AGENTS}")
    if any(type(number) is not int or not 0 <= number < limit for number in numbers):
        raise FormatError(f"{name}: numbers must be whole, from 0, and below {limit}")
    return value if kind is int else tuple(numbers)
