from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tasks import DOMAIN

from flower_chain.envelope import RefusedError, close, fetch, keep, open_sealed
from flower_chain.keys import public_key
from flower_chain.records import Contribution, Domain, Refusal
from flower_chain.store import DirectoryStore
from flower_chain.store.cid import cid_from_bytes, cid_of, cid_to_bytes
from flower_chain.store.seal import seal
from flower_chain.updates import Arrays, Format, digest, pack

OWNER: LocalAccount = Account.from_key(b"\1" * 32)
STRANGER: LocalAccount = Account.from_key(b"\2" * 32)
DEVICE: str = Account.from_key(b"\3" * 32).address
UPDATE: Arrays = {"w": np.array([[0.5, -1.0]], np.float32), "n": np.array(3, np.int64)}
LAYOUT = Format.of({"w": np.zeros((1, 2), np.float32), "n": np.array(0, np.int32)}).of_update()


def contribution_of(name: bytes, sealed: bytes) -> Contribution:
    cid = cid_to_bytes(cid_of(sealed))
    return Contribution(DEVICE, 0, 1, name, cid, (), ())


def closed(update: Arrays = UPDATE, owner: LocalAccount = OWNER) -> tuple[bytes, Contribution]:
    name, sealed = close(update, [public_key(owner)], DOMAIN, DEVICE)
    return sealed, contribution_of(name, sealed)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path)


def reason_of(function: Any, *args: Any) -> Refusal:
    with pytest.raises(RefusedError) as refused:
        function(*args)
    return refused.value.reason


# --- open ----------------------------------------------------------------------------------------


@given(
    hnp.arrays(
        np.float32, (1, 2), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
    )
)
def test_an_update_comes_back(weight: Any) -> None:
    update = {**UPDATE, "w": weight}
    sealed, contribution = closed(update)

    assert pack(open_sealed(sealed, contribution, DOMAIN, LAYOUT, OWNER)) == pack(update)


def test_the_digest_is_that_of_the_packed_update() -> None:
    assert closed()[1].digest == digest(pack(UPDATE))


def test_an_update_for_somebody_else_stays_closed() -> None:
    sealed, contribution = closed(owner=STRANGER)
    assert reason_of(open_sealed, sealed, contribution, DOMAIN, LAYOUT, OWNER) is Refusal.UNSEALABLE


@pytest.mark.parametrize(
    "domain", [Domain(DOMAIN.chain_id + 1, DOMAIN.contract), Domain(DOMAIN.chain_id, DEVICE)]
)
def test_an_update_of_another_run_stays_closed(domain: Domain) -> None:
    sealed, contribution = closed()
    assert reason_of(open_sealed, sealed, contribution, domain, LAYOUT, OWNER) is Refusal.UNSEALABLE


def test_the_update_of_another_device_stays_closed() -> None:
    sealed, contribution = closed()
    copied = replace(contribution, device=STRANGER.address)
    assert reason_of(open_sealed, sealed, copied, DOMAIN, LAYOUT, OWNER) is Refusal.UNSEALABLE


@pytest.mark.parametrize("place", [0, 5, 40, 60, 130, -1])
def test_a_changed_byte_keeps_it_closed(place: int) -> None:
    sealed, contribution = closed()
    damaged = bytearray(sealed)
    damaged[place] ^= 1
    assert (
        reason_of(open_sealed, bytes(damaged), contribution, DOMAIN, LAYOUT, OWNER)
        is Refusal.UNSEALABLE
    )


@given(st.binary(max_size=400))
def test_any_bytes_are_opened_or_refused(sealed: bytes) -> None:
    contribution = contribution_of(b"\1" * 32, sealed)
    assert reason_of(open_sealed, sealed, contribution, DOMAIN, LAYOUT, OWNER) is Refusal.UNSEALABLE


def test_content_that_is_not_that_of_the_digest_is_refused() -> None:
    name = b"\5" * 32
    bound = f"flower-chain update {DOMAIN.chain_id} {DOMAIN.contract} {DEVICE} ".encode() + name
    sealed = seal(pack(UPDATE), [public_key(OWNER)], bound)
    contribution = contribution_of(name, sealed)
    assert (
        reason_of(open_sealed, sealed, contribution, DOMAIN, LAYOUT, OWNER) is Refusal.WRONG_DIGEST
    )


@given(st.binary(max_size=200))
def test_content_that_is_no_update_is_refused(content: bytes) -> None:
    name = digest(content)
    bound = f"flower-chain update {DOMAIN.chain_id} {DOMAIN.contract} {DEVICE} ".encode() + name
    sealed = seal(content, [public_key(OWNER)], bound)
    contribution = contribution_of(name, sealed)
    assert (
        reason_of(open_sealed, sealed, contribution, DOMAIN, LAYOUT, OWNER) is Refusal.WRONG_FORMAT
    )


@pytest.mark.parametrize(
    "other",
    [
        {"w": UPDATE["w"]},
        {**UPDATE, "more": np.zeros(1, np.float32)},
        {**UPDATE, "w": np.zeros((2, 1), np.float32)},
        {**UPDATE, "w": np.zeros((1, 2), np.float64)},
        {**UPDATE, "n": np.array(3, np.int32)},
    ],
    ids=["missing", "more", "shape", "dtype", "the model's dtype, not the update's"],
)
def test_an_update_in_another_format_is_refused(other: Arrays) -> None:
    sealed, contribution = closed(other)
    assert (
        reason_of(open_sealed, sealed, contribution, DOMAIN, LAYOUT, OWNER) is Refusal.WRONG_FORMAT
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_is_refused(value: float) -> None:
    sealed, contribution = closed({**UPDATE, "w": np.array([[0, value]], np.float32)})
    assert reason_of(open_sealed, sealed, contribution, DOMAIN, LAYOUT, OWNER) is Refusal.NOT_FINITE


def test_a_refusal_tells_the_reason_and_the_detail() -> None:
    refused = RefusedError(Refusal.WRONG_CID, "the bytes have another")
    assert str(refused) == "wrong cid: the bytes have another"


# --- store ---------------------------------------------------------------------------------------


def test_bytes_that_are_kept_can_be_fetched(store: DirectoryStore) -> None:
    sealed, contribution = closed()
    keep(store, sealed, contribution, LAYOUT)
    assert fetch(store, contribution, LAYOUT) == sealed


def test_bytes_of_another_cid_are_not_taken(store: DirectoryStore) -> None:
    sealed, contribution = closed()
    other = replace(contribution, cid=cid_to_bytes(cid_of(b"other")))
    assert reason_of(keep, store, sealed, other, LAYOUT) is Refusal.WRONG_CID


def test_bytes_under_no_cid_at_all_are_not_taken(store: DirectoryStore) -> None:
    sealed, contribution = closed()
    assert reason_of(keep, store, sealed, replace(contribution, cid=bytes(36)), LAYOUT) is (
        Refusal.WRONG_CID
    )


def test_too_many_bytes_are_not_taken(store: DirectoryStore) -> None:
    sealed, contribution = closed()
    assert reason_of(keep, store, sealed + b"\0", contribution, LAYOUT) is Refusal.OVERSIZE


def test_too_many_bytes_are_not_stored(store: DirectoryStore) -> None:
    sealed, contribution = closed()
    reason_of(keep, store, sealed + b"\0", contribution, LAYOUT)
    assert cid_of(sealed + b"\0") not in store


def test_what_is_not_stored_cannot_be_fetched(store: DirectoryStore) -> None:
    assert reason_of(fetch, store, closed()[1], LAYOUT) is Refusal.NOT_STORED


def test_no_cid_cannot_be_fetched(store: DirectoryStore) -> None:
    contribution = replace(closed()[1], cid=bytes(36))
    assert reason_of(fetch, store, contribution, LAYOUT) is Refusal.WRONG_CID


def test_damaged_bytes_are_not_taken(store: DirectoryStore, tmp_path: Path) -> None:
    _, contribution = closed()
    (tmp_path / cid_from_bytes(contribution.cid)).write_bytes(b"damaged")
    assert reason_of(fetch, store, contribution, LAYOUT) is Refusal.WRONG_CID


def test_too_many_stored_bytes_are_not_read(store: DirectoryStore) -> None:
    contribution = replace(closed()[1], cid=cid_to_bytes(store.put(bytes(10_000))))
    assert reason_of(fetch, store, contribution, LAYOUT) is Refusal.OVERSIZE
