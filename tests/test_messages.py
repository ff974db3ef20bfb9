from contextlib import suppress
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from eth_account import Account
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from tasks import DOMAIN, a_plan

from flower_chain.errors import FormatError
from flower_chain.messages import (
    RECORD,
    SAMPLES,
    SEALED,
    Request,
    Samples,
    read_contribution,
    read_domain,
    read_hello,
    read_request,
    read_samples,
    views,
    write_contribution,
    write_domain,
    write_hello,
    write_request,
)
from flower_chain.plan import RecordAndRewardPlan
from flower_chain.records import Contribution, Hello, Signed, Task

DEVICE = Account.from_key(b"\3" * 32).address
PLAN = a_plan()
TASK = Task(3, b"\1" * 32, PLAN.digest)
REQUEST = Request(TASK, b"\2" * 64, DOMAIN, PLAN)
CONTRIBUTION = Contribution(DEVICE, 3, 100, b"\4" * 32, b"\5" * 36, (0, 7), (900_000, 5, 0))
SIGNED = Signed(CONTRIBUTION, b"\6" * 64)

classes = st.sets(st.integers(0, 255)).map(lambda found: tuple(sorted(found)))
uint32 = st.integers(0, 2**32 - 1)
contributions = st.builds(
    Contribution,
    st.just(DEVICE),
    uint32,
    uint32,
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=36, max_size=36),
    classes,
    st.lists(uint32, max_size=256).map(tuple),
)
signatures = st.binary(min_size=64, max_size=64)


def request_with(**values: Any) -> RecordDict:
    content = RecordDict()
    write_request(content, REQUEST, None)
    return with_values(content, values)


def contribution_with(**values: Any) -> RecordDict:
    content = RecordDict()
    write_contribution(content, SIGNED, None)
    return with_values(content, values)


def hello_with(**values: Any) -> RecordDict:
    return with_values(write_hello(Hello(DEVICE, (1, 2)), b"\6" * 64), values)


def with_values(content: RecordDict, values: dict[str, Any]) -> RecordDict:
    for name, value in values.items():
        content[RECORD][name.replace("_", "-")] = value
    return content


def read_task(content: RecordDict) -> Request[RecordAndRewardPlan]:
    """A request of the scheme that these tests are about."""
    return read_request(content, RecordAndRewardPlan)


# --- there and back ------------------------------------------------------------------------------


def test_a_domain_comes_back() -> None:
    assert read_domain(RecordDict({RECORD: write_domain(DOMAIN)})) == DOMAIN


@given(uint32, st.binary(min_size=32, max_size=32), signatures)
def test_a_request_comes_back(version: int, model: bytes, signature: bytes) -> None:
    request = Request(Task(version, model, PLAN.digest), signature, DOMAIN, PLAN)
    content = RecordDict()
    write_request(content, request, None)

    assert read_task(content) == request


@given(classes, signatures)
def test_an_introduction_comes_back(held: tuple[int, ...], signature: bytes) -> None:
    hello = Hello(DEVICE, held)

    assert read_hello(write_hello(hello, signature)) == (hello, signature)


@given(contributions, signatures, st.none() | st.binary())
def test_a_contribution_comes_back(
    contribution: Contribution, signature: bytes, sealed: bytes | None
) -> None:
    signed, content = Signed(contribution, signature), RecordDict()
    write_contribution(content, signed, sealed)

    assert read_contribution(content) == (signed, sealed)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_samples_come_back(dtype: type) -> None:
    samples = Samples(np.arange(12, dtype=dtype).reshape(3, 2, 2), np.array([0, 1, 1]))
    content = RecordDict()
    write_request(content, REQUEST, samples)

    found = read_samples(content)

    assert found is not None
    assert found.x.dtype == dtype
    np.testing.assert_array_equal(found.x, samples.x)
    np.testing.assert_array_equal(found.y, samples.y)


def test_a_message_without_samples_has_none() -> None:
    assert read_samples(request_with()) is None


def test_what_the_user_put_into_a_message_stays() -> None:
    content = RecordDict({"metrics": MetricRecord({"loss": 1.0})})
    write_contribution(content, SIGNED, b"sealed")

    assert content["metrics"]["loss"] == 1.0


def test_a_list_of_classes_may_come_in_any_order() -> None:
    hello, _ = read_hello(hello_with(classes=[9, 1, 9]))

    assert hello.classes == (1, 9)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("read", [read_domain, read_task, read_hello, read_contribution])
def test_a_message_without_our_record_is_refused(read: Any) -> None:
    with pytest.raises(FormatError, match="no ConfigRecord 'flower-chain'"):
        read(RecordDict())


@pytest.mark.parametrize("read", [read_domain, read_task, read_hello, read_contribution])
def test_another_record_under_our_name_is_refused(read: Any) -> None:
    with pytest.raises(FormatError, match="no ConfigRecord 'flower-chain'"):
        read(RecordDict({RECORD: MetricRecord({"version": 1})}))


@pytest.mark.parametrize("read", [read_domain, read_task, read_hello, read_contribution])
def test_an_empty_record_is_refused(read: Any) -> None:
    with pytest.raises(FormatError, match="must be of type"):
        read(RecordDict({RECORD: ConfigRecord()}))


@pytest.mark.parametrize("contract", ["", "0x", DOMAIN.contract.lower(), DOMAIN.contract[:-1]])
def test_a_contract_that_is_no_checksum_address_is_refused(contract: str) -> None:
    with pytest.raises(FormatError, match="not a checksum address"):
        read_task(request_with(contract=contract))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("version", "3"),
        ("version", 3.0),
        ("version", True),
        ("chain_id", "1"),
        ("model_digest", "ab"),
        ("signature", [1]),
        ("plan", b"{}"),
    ],
)
def test_a_request_with_a_value_of_another_type_is_refused(name: str, value: Any) -> None:
    with pytest.raises(FormatError, match=name.replace("_", "-")):
        read_task(request_with(**{name: value}))


def test_a_request_without_a_plan_is_refused() -> None:
    with pytest.raises(FormatError, match="not a plan"):
        read_task(request_with(plan="[]"))


@pytest.mark.parametrize("device", ["", DEVICE.lower(), DEVICE[2:], DEVICE + "0", "0x" + "é" * 40])
def test_a_device_that_is_no_checksum_address_is_refused(device: str) -> None:
    with pytest.raises(FormatError, match="not a checksum address"):
        read_hello(hello_with(device=device))


@pytest.mark.parametrize("held", [[256], [-1], [0.5], [True], ["1"], 3, b"1"])
def test_classes_that_are_none_are_refused(held: Any) -> None:
    with pytest.raises(FormatError, match="class"):
        read_hello(hello_with(classes=held))


@pytest.mark.parametrize("name", ["version", "data_cost"])
@pytest.mark.parametrize("value", [-1, 2**32, 1.0, "1", False])
def test_a_number_that_is_no_uint32_is_refused(name: str, value: Any) -> None:
    with pytest.raises(FormatError, match=name.replace("_", "-")):
        read_contribution(contribution_with(**{name: value}))


@pytest.mark.parametrize(("name", "size"), [("digest", 32), ("cid", 36), ("signature", 64)])
def test_bytes_of_another_length_are_refused(name: str, size: int) -> None:
    for length in (0, size - 1, size + 1):
        with pytest.raises(FormatError, match=f"{name} has {length} bytes: it must have {size}"):
            read_contribution(contribution_with(**{name: bytes(length)}))


@pytest.mark.parametrize("errors", [[-1], [2**32], [0.5], [True], [0] * 257])
def test_errors_that_are_none_are_refused(errors: list[Any]) -> None:
    with pytest.raises(FormatError, match="errors"):
        read_contribution(contribution_with(errors=errors))


def test_sealed_bytes_under_another_name_are_refused() -> None:
    content = contribution_with()
    content[SEALED] = ArrayRecord({"other": Array("uint8", (1,), "bytes", b"1")})

    with pytest.raises(FormatError):
        read_contribution(content)


@pytest.mark.parametrize("missing", ["x", "y"])
def test_samples_without_half_of_them_are_refused(missing: str) -> None:
    arrays = {"x": Array(np.zeros((2, 2))), "y": Array(np.zeros(2, np.int64))}
    del arrays[missing]

    with pytest.raises(FormatError):
        read_samples(RecordDict({SAMPLES: ArrayRecord(arrays)}))


# --- anything at all -----------------------------------------------------------------------------

scalars = st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text() | st.binary() | st.booleans()
values = (
    scalars
    | st.lists(st.integers(-(2**63), 2**63 - 1))
    | st.lists(st.floats())
    | st.lists(st.text())
    | st.lists(st.binary())
    | st.sampled_from([DEVICE, PLAN.to_json(), [1, 2], bytes(32), bytes(36), bytes(64), 1])
)
NAMES = sorted({*contribution_with()[RECORD], *request_with()[RECORD], *hello_with()[RECORD]})
anything = st.dictionaries(st.sampled_from(NAMES) | st.text(), values)
nearly = st.dictionaries(st.sampled_from(NAMES), values, max_size=2)
VALID = dict(request_with()[RECORD]) | dict(contribution_with()[RECORD])


@pytest.mark.parametrize("read", [read_domain, read_task, read_hello, read_contribution])
@given(found=anything)
def test_anything_is_read_or_refused(read: Any, found: dict[str, Any]) -> None:
    try:
        read(RecordDict({RECORD: ConfigRecord(found)}))
    except FormatError:
        return


@pytest.mark.parametrize("read", [read_domain, read_task, read_hello, read_contribution])
@given(found=nearly)
def test_anything_in_a_message_that_is_right_otherwise_is_read_or_refused(
    read: Any, found: dict[str, Any]
) -> None:
    try:
        read(RecordDict({RECORD: ConfigRecord(VALID | found)}))
    except FormatError:
        return


@pytest.mark.parametrize("dtype", ["f4", ">f8", "i8", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(), (0, 2), (3, 4)])
def test_views_are_the_arrays_of_a_record_but_not_copied(
    shape: tuple[int, ...], order: Any, dtype: str
) -> None:
    array = np.asarray(np.ones(shape).cumsum().reshape(shape), dtype, order=order)
    packed = Array(array)
    (view,) = views(ArrayRecord({"w": packed})).values()
    assert (view.dtype, view.shape) == (array.dtype, array.shape)
    assert np.array_equal(view, packed.numpy())
    assert not view.flags.writeable
    assert np.shares_memory(view, np.frombuffer(packed.data, np.uint8)) == (array.size > 0)


def test_arrays_that_flower_refuses_have_no_view() -> None:
    with pytest.raises(FormatError, match="Unsupported serialization type"):
        views(ArrayRecord({"w": Array("uint8", (1,), "bytes", b"a")}))
    pickled = BytesIO()
    np.save(pickled, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(FormatError, match="Object arrays cannot be loaded"):
        views(ArrayRecord({"w": Array("object", (1,), "numpy.ndarray", pickled.getvalue())}))


@given(st.binary(max_size=200), st.sampled_from(["numpy.ndarray", "bytes", ""]), st.booleans())
def test_bytes_that_are_no_array_are_told(data: bytes, kind: str, begins_well: bool) -> None:
    packed = Array(np.zeros((2, 3), np.float32)).data
    made_up = packed[:60] + data if begins_well else data
    with suppress(FormatError):
        views(ArrayRecord({"w": Array("float32", (1,), kind, made_up)}))
