"""What every store does."""

import gc
import io
import os
import secrets
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ipfshttpclient
import pytest
from js_ipfs import JsIpfs
from rich.console import Console
from rich.progress import Progress

from flower_chain import durable
from flower_chain.errors import Damaged, FormatError, NotStored, TooLarge
from flower_chain.store import DirectoryStore, IpfsStore, Store, cid_of
from flower_chain.store.ipfs_client import ClientRpc
from flower_chain.store.rpc import HttpRpc, Rpc

DATA = os.urandom(600_000)
CID = cid_of(DATA)


def by_http(node: JsIpfs, timeout: float) -> Rpc:
    return HttpRpc(node.url, timeout)


def by_client(node: JsIpfs, timeout: float) -> Rpc:
    port = node.url.rpartition(":")[2]
    return ClientRpc(ipfshttpclient.Client(f"/ip4/127.0.0.1/tcp/{port}"), timeout)


Open = Callable[[float], Store]


@pytest.fixture(
    params=[
        "directory",
        pytest.param(by_http, id="ipfs", marks=pytest.mark.slow),
        pytest.param(by_client, id="ipfshttpclient", marks=pytest.mark.slow),
    ]
)
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens each store of the package, the same one always."""
    if request.param == "directory":
        return lambda _: DirectoryStore(tmp_path / "store")
    rpc: Callable[[JsIpfs, float], Rpc] = request.param
    near, _ = request.getfixturevalue("ipfs_nodes")
    folder = f"/test/{secrets.token_hex(8)}"
    return lambda timeout: IpfsStore(rpc(near, timeout), folder)


@pytest.fixture
def store(open_store: Open) -> Iterator[Store]:
    """An empty store."""
    with open_store(60) as opened:
        yield opened


@pytest.fixture
def hasty(open_store: Open) -> Iterator[Store]:
    """The same store, for what it does not have: it soon stops looking for it."""
    with open_store(4) as opened:
        yield opened


def test_what_is_put_can_be_got_under_its_cid(store: Store) -> None:
    assert store.put(DATA) == CID
    assert store.get(CID) == DATA


def test_putting_again_changes_nothing(store: Store) -> None:
    assert store.put(DATA) == store.put(DATA) == CID
    assert store.get(CID) == DATA


def test_no_bytes_can_be_stored_too(store: Store) -> None:
    assert store.get(store.put(b"")) == b""


def test_bytes_of_another_cid_than_expected_are_not_stored(store: Store, hasty: Store) -> None:
    assert store.put(DATA, CID) == CID
    other = os.urandom(7)
    with pytest.raises(Damaged, match=f"the 7 bytes are not those of {CID}"):
        store.put(other, CID)
    assert cid_of(other) not in hasty


def test_what_is_not_stored_says_so(hasty: Store) -> None:
    cid = cid_of(os.urandom(8))
    assert cid not in hasty
    with pytest.raises(NotStored, match=cid):
        hasty.get(cid)


def test_contains_tells_what_is_stored(store: Store) -> None:
    assert store.put(DATA) in store


def test_what_was_put_is_listed_with_its_size_until_it_is_removed(store: Store) -> None:
    assert store.stored() == {}
    small = store.put(b"small")
    assert store.put(DATA) == CID
    assert store.stored() == {small: 5, CID: len(DATA)}
    store.remove(CID)
    store.remove(CID)
    assert store.stored() == {small: 5}


def test_rounds_that_are_old_are_removed(store: Store) -> None:
    rounds = [store.put(os.urandom(100)) for _ in range(5)]
    assert sorted(store.keep_only(rounds[-2:])) == sorted(rounds[:-2])
    assert set(store.stored()) == set(rounds[-2:])
    assert store.keep_only(rounds[-2:]) == []


def test_only_a_cid_is_removed(store: Store) -> None:
    with pytest.raises(FormatError, match="CID"):
        store.remove("../elsewhere")


def test_more_than_the_limit_is_refused(store: Store) -> None:
    store.put(DATA)
    assert store.get(CID, limit=len(DATA)) == DATA
    with pytest.raises(TooLarge, match=f"{CID} in .* has more than the 599999 bytes"):
        store.get(CID, limit=len(DATA) - 1)


@pytest.mark.parametrize(
    "cid", ["", "../secret", CID.upper(), "Qm" + CID[2:]], ids=["none", "path", "capitals", "old"]
)
def test_only_a_cid_is_asked_for(store: Store, cid: str) -> None:
    with pytest.raises(FormatError, match="CID"):
        store.get(cid)
    with pytest.raises(FormatError, match="CID"):
        cid in store  # noqa: B015


def test_files_go_up_and_down_with_progress(store: Store, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(DATA)
    with Progress(console=Console(file=io.StringIO())) as progress:
        with progress.open(source, "rb", description="up") as file:
            assert store.put_file(file) == CID
        with durable.replacing(target) as copy:
            for piece in progress.track(store.pieces(CID), description="down"):
                copy.write(piece)
        up, down = progress.tasks
    assert up.completed == up.total == len(DATA)
    assert down.completed > 1
    assert target.read_bytes() == DATA


def test_memory_does_not_grow_with_the_file(store: Store, tmp_path: Path) -> None:
    size = 20_000_000
    (tmp_path / "zeros").touch()
    os.truncate(tmp_path / "zeros", size)
    with (tmp_path / "zeros").open("rb") as file:
        cid = store.put_file(file)
        assert peak_memory(lambda: store.put_file(file)) < size / 4
    assert peak_memory(lambda: [len(piece) for piece in store.pieces(cid)]) < size / 4


def test_what_was_put_or_got_is_not_kept_in_memory(store: Store) -> None:
    size = 20_000_000
    gc.disable()  # cycles of references would be kept until it runs
    tracemalloc.start()
    store.get(store.put(bytes(size)))
    left = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    gc.enable()
    assert left < size / 4


def peak_memory(work: Callable[[], object]) -> int:
    """The most bytes that Python's objects take meanwhile."""
    tracemalloc.start()
    work()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def test_many_can_use_it_at_once(store: Store) -> None:
    updates = [os.urandom(300_000 + number) for number in range(12)]
    with ThreadPoolExecutor(6) as threads:
        cids = list(threads.map(store.put, updates))
        assert list(threads.map(store.get, cids)) == updates
