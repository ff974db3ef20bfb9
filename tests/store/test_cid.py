import hashlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flower_chain.errors import FormatError
from flower_chain.store import cid_from_bytes, cid_of, cid_to_bytes
from flower_chain.store.cid import Hasher

HELLO = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"

# Made by npm's ipfs-unixfs-importer 17.1.1, of shake_128(b"flower-chain").digest(size), with
# cidVersion 1, rawLeaves, fixedSize chunks of 262144 bytes and 174 children per node.
GOLDEN = {
    0: "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku",
    1: "bafkreibs5oy2xta4maooxhcohrh2xigkuw4fxommj4pgmeweb6vffcurze",
    262_144: "bafkreigud7vr42o4jcbnvb5zwneyrhma2dbjuxfcsfoiponx2e57cojpui",
    262_145: "bafybeibgnkrato6yw24pxu7dd63j4rikymbrxffgpwsvexou2z533mm3lu",
    5_000_000: "bafybeiflrok4yxdo4emqjxx2x7sooc5fsvzlpxaxfmojkfcvtnfbvbuhga",
    174 * 262_144: "bafybeihdoqzz7jczt7gn2osntnazuav4izfpufp3p7bjxv42mha5qikbvi",
    174 * 262_144 + 1: "bafybeidg3spy45sexnfi4jolk2ei4hkhm3cjtes74e6s7xppn2yns2iafy",
    100_000_000: "bafybeigpzyvlyqs3csdwx3rtjxl2fls4icp56giftmgyhlwc7l53cxhujy",
}


@pytest.fixture(scope="module")
def stream() -> bytes:
    return hashlib.shake_128(b"flower-chain").digest(max(GOLDEN))


def test_the_cid_of_hello_world_is_the_one_all_of_ipfs_knows() -> None:
    assert cid_of(b"hello world") == HELLO


@pytest.mark.parametrize("size", GOLDEN)
def test_the_cid_is_the_one_that_ipfs_gives(size: int, stream: bytes) -> None:
    assert cid_of(stream[:size]) == GOLDEN[size]


@given(
    st.integers(-1, 1).map(lambda more: 262_144 * 3 + more),
    st.lists(st.integers(0, 262_144 * 3 + 1), max_size=8),
)
def test_it_does_not_matter_how_the_bytes_are_cut(
    stream: bytes, size: int, cuts: list[int]
) -> None:
    hasher = Hasher()
    for begin, end in pairwise(sorted({0, size, *(cut for cut in cuts if cut < size)})):
        hasher.update(stream[begin:end])
    assert hasher.size == size
    assert hasher.cid() == cid_of(stream[:size])


@given(st.binary(max_size=100))
def test_bytes_and_text_of_a_cid_are_one_to_one(data: bytes) -> None:
    cid = cid_of(data)
    assert len(cid) == 59
    assert len(cid_to_bytes(cid)) == 36
    assert cid_from_bytes(cid_to_bytes(cid)) == cid


@pytest.mark.parametrize(
    "text",
    [
        "",
        "b",
        "../etc/passwd",
        HELLO[:-1],
        HELLO + "a",
        HELLO.upper(),
        "B" + HELLO[1:],
        "z" + HELLO[1:],
        HELLO[:-1] + "f",  # the same bytes: base32 has a spare bit here
        HELLO + "=",
        "b" + "ı" * 58,
        "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG",
    ],
)
def test_text_that_is_not_our_cid_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="CID"):
        cid_to_bytes(text)


@pytest.mark.parametrize(
    "binary",
    [
        b"",
        cid_to_bytes(HELLO)[:-1],
        cid_to_bytes(HELLO) + b"\0",
        b"\0" + cid_to_bytes(HELLO)[1:],
        b"\1\x71" + cid_to_bytes(HELLO)[2:],
        b"\1\x55\x13\x40" + bytes(32),
    ],
)
def test_bytes_that_are_not_our_cid_are_refused(binary: bytes) -> None:
    with pytest.raises(FormatError, match="is not a CID"):
        cid_from_bytes(binary)
