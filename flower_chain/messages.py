"""What travels in Flower's messages beside what Flower puts there.

A ConfigRecord under :data:`RECORD` holds the signed parts, an ArrayRecord under :data:`SAMPLES` the
owner's validation samples, one under :data:`SEALED` the sealed update. The update itself never
leaves a device in the clear.
"""

import math
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Generic, TypeVar

import numpy as np
from eth_utils.address import is_checksum_address
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common.constant import SType

from flower_chain.errors import FormatError
from flower_chain.plan import Plan
from flower_chain.privacy.accountant import MAX_BUDGET
from flower_chain.records import Contribution, Domain, Hello, Signed, Task, from_bits, to_bits
from flower_chain.rules.record_and_reward import MAX_ERRORS
from flower_chain.updates import Arrays

RECORD = "flower-chain"
SAMPLES = "flower-chain.samples"
SEALED = "flower-chain.sealed"
HELLO = "query.flower_chain_hello"
"""Type of the message that asks a device for its account and classes."""

NDArray = np.ndarray[Any, np.dtype[Any]]
Value = TypeVar("Value", int, str, bytes, list[int])
Terms = TypeVar("Terms", bound=Plan)


@dataclass(frozen=True)
class Samples:
    """Validation samples from the owner (papers/1 algorithm 2).

    Parameters
    ----------
    x : ndarray, shape (n_samples, ...)
    y : ndarray of int64, shape (n_samples,)
        Their classes.
    """

    x: NDArray
    y: NDArray


@dataclass(frozen=True)
class Request(Generic[Terms]):
    """A task with what it needs to be checked and done.

    Parameters
    ----------
    task : Task
    signature : bytes
        The owner's, under `task`.
    domain : Domain
    plan : Plan
    """

    task: Task
    signature: bytes
    domain: Domain
    plan: Terms


def views(record: ArrayRecord) -> Arrays:
    """The arrays of a record: what ``numpy()`` gives for each, but not copied and read-only.

    Raises
    ------
    FormatError
        If there are bytes in it that are not an array.
    """
    try:
        return {key: _view(array) for key, array in record.items()}
    except (ValueError, TypeError) as fault:
        raise FormatError(f"not an array: {fault}") from fault


def record_of(arrays: Arrays) -> ArrayRecord:
    """The record that holds these arrays: the inverse of :func:`views`."""
    return ArrayRecord({key: Array(array) for key, array in arrays.items()})


def read_model(content: RecordDict) -> Arrays:
    """The model in a message, or FormatError if there is not one."""
    if len(content.array_records) != 1:
        raise FormatError(f"expected one ArrayRecord, found {len(content.array_records)}")
    return views(next(iter(content.array_records.values())))


def write_domain(domain: Domain) -> ConfigRecord:
    """What a device must know of the run to introduce itself."""
    return ConfigRecord({"chain-id": domain.chain_id, "contract": domain.contract})


def read_domain(content: RecordDict) -> Domain:
    """The inverse of :func:`write_domain`, or FormatError."""
    record = _record(content)
    contract = _get(record, "contract", str)
    if not is_checksum_address(contract):
        raise FormatError(f"contract = {contract!r} is not a checksum address")
    chain_id = _get(record, "chain-id", int)
    if chain_id < 0:
        raise FormatError(f"chain-id = {chain_id}: it must not be negative")
    return Domain(chain_id, contract)


def write_request(
    content: RecordDict, request: Request[Terms], samples: Samples | None = None
) -> None:
    """Add a task to the `content` of a training message."""
    content[RECORD] = ConfigRecord(
        {
            **write_domain(request.domain),
            "version": request.task.version,
            "model-digest": request.task.model_digest,
            "plan": request.plan.to_json(),
            "signature": request.signature,
        }
    )
    if samples is not None:
        content[SAMPLES] = ArrayRecord({"x": Array(samples.x), "y": Array(samples.y)})


def read_request(content: RecordDict, kind: type[Terms]) -> Request[Terms]:
    """The task in a message, under a plan of this kind, or FormatError."""
    record = _record(content)
    plan = kind.from_json(_get(record, "plan", str))
    task = Task(_uint32(record, "version"), _sized(record, "model-digest", 32), plan.digest)
    return Request(task, _get(record, "signature", bytes), read_domain(content), plan)


def read_samples(content: RecordDict) -> Samples | None:
    """The validation samples in a message, if there are any; FormatError if they are not that."""
    if SAMPLES not in content.array_records:
        return None
    arrays = content.array_records[SAMPLES]
    if set(arrays) != {"x", "y"}:
        raise FormatError(f"the ArrayRecord {SAMPLES!r} holds {list(arrays)}: not 'x' and 'y'")
    return Samples(arrays["x"].numpy(), arrays["y"].numpy())


def write_hello(hello: Hello, signature: bytes) -> RecordDict:
    """A device's introduction."""
    record = ConfigRecord(
        {"device": hello.device, "classes": list(hello.classes), "signature": signature}
    )
    return RecordDict({RECORD: record})


def read_hello(content: RecordDict) -> tuple[Hello, bytes]:
    """An introduction and its signature, or FormatError."""
    record = _record(content)
    return Hello(_address(record), _classes(record)), _get(record, "signature", bytes)


def write_contribution(content: RecordDict, signed: Signed, sealed: bytes | None) -> None:
    """Add a contribution to the `content` of a reply, and the update unless it is stored."""
    contribution = signed.contribution
    content[RECORD] = ConfigRecord(
        {
            "device": contribution.device,
            "version": contribution.version,
            "data-cost": contribution.data_cost,
            "digest": contribution.digest,
            "cid": contribution.cid,
            "classes": list(contribution.classes),
            "errors": list(contribution.errors),
            "spent": contribution.spent,
            "signature": signed.signature,
        }
    )
    if sealed is not None:
        content[SEALED] = write_sealed(sealed)


def read_contribution(content: RecordDict) -> tuple[Signed, bytes | None]:
    """A contribution and, if it came along, the sealed update; FormatError if there is none."""
    record = _record(content)
    contribution = Contribution(
        _address(record),
        _uint32(record, "version"),
        _uint32(record, "data-cost"),
        _sized(record, "digest", 32),
        _sized(record, "cid", 36),
        _classes(record),
        _errors(record),
        spent=_spent(record),
    )
    signed = Signed(contribution, _sized(record, "signature", 64))
    return signed, read_sealed(content)


def write_sealed(sealed: bytes) -> ArrayRecord:
    """What is sealed, to be put under :data:`SEALED`."""
    return ArrayRecord({"bytes": Array("uint8", (len(sealed),), "bytes", sealed)})


def read_sealed(content: RecordDict) -> bytes | None:
    """What is sealed in a message, if something is; FormatError if there is something else."""
    if SEALED not in content.array_records:
        return None
    arrays = content.array_records[SEALED]
    if list(arrays) != ["bytes"]:
        raise FormatError(f"the ArrayRecord {SEALED!r} holds {list(arrays)}: it must hold 'bytes'")
    return arrays["bytes"].data


def _view(array: Array) -> NDArray:
    file = BytesIO(array.data)
    if array.stype != SType.NUMPY or np.lib.format.read_magic(file) != (1, 0):
        return array.numpy()
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject:
        return array.numpy()
    flat = np.frombuffer(array.data, dtype, math.prod(shape), file.tell())
    return flat.reshape(shape, order="F" if is_fortran else "C")


def _record(content: RecordDict) -> ConfigRecord:
    if RECORD not in content.config_records:
        raise FormatError(f"the message has no ConfigRecord {RECORD!r}")
    return content.config_records[RECORD]


def _get(record: ConfigRecord, name: str, kind: type[Value]) -> Value:
    value = record.get(name)
    if type(value) is not kind:
        raise FormatError(f"{name} = {value!r}: it must be of type {kind.__name__}")
    return value


def _address(record: ConfigRecord) -> str:
    device = _get(record, "device", str)
    if not is_checksum_address(device):
        raise FormatError(f"device = {device!r} is not a checksum address")
    return device


def _uint32(record: ConfigRecord, name: str) -> int:
    value = _get(record, name, int)
    if not 0 <= value < 2**32:
        raise FormatError(f"{name} = {value}: it must be from 0 to 2^32 - 1")
    return value


def _spent(record: ConfigRecord) -> int:
    value = _get(record, "spent", int)
    if not 0 <= value <= MAX_BUDGET:
        raise FormatError(f"spent = {value}: it must be from 0 to {MAX_BUDGET}")
    return value


def _sized(record: ConfigRecord, name: str, size: int) -> bytes:
    value = _get(record, name, bytes)
    if len(value) != size:
        raise FormatError(f"{name} has {len(value)} bytes: it must have {size}")
    return value


def _classes(record: ConfigRecord) -> tuple[int, ...]:
    classes = _get(record, "classes", list)
    if any(type(label) is not int for label in classes):
        raise FormatError(f"classes = {classes!r}: they must be whole numbers")
    return from_bits(to_bits(classes))


def _errors(record: ConfigRecord) -> tuple[int, ...]:
    errors = _get(record, "errors", list)
    if len(errors) > MAX_ERRORS or any(type(e) is not int or not 0 <= e < 2**32 for e in errors):
        raise FormatError(f"errors: at most {MAX_ERRORS} numbers from 0 to 2^32 - 1")
    return tuple(errors)
