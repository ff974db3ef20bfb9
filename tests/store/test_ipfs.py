"""Against real nodes, which exchange blocks and die; what only lies is in test_rpc.py."""

import hashlib
import io
import os
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import pytest
from js_ipfs import JsIpfs

from flower_chain.errors import NotStored, StoreError
from flower_chain.store import DirectoryStore, IpfsStore, cid_from_bytes, cid_of
from flower_chain.store.rpc import HttpRpc, NoConnection

pytestmark = pytest.mark.slow

MINUTE = 60.0
HASTE = 4.0
"""Seconds, where nothing is to come."""

SMALL_DISK = """
cd "$IPFS_PATH" && cp -a blocks before && mount -t tmpfs -o size=8m tmpfs blocks &&
cp -a before/. blocks && exec "$@"
"""

Start = Callable[..., JsIpfs]


def store_on(
    node: JsIpfs, folder: str = "", timeout: float = MINUTE, **options: float
) -> IpfsStore:
    """A store with a folder of its own."""
    return IpfsStore(HttpRpc(node.url, timeout), folder or f"/{secrets.token_hex(8)}", **options)


@pytest.fixture
def near(ipfs_nodes: tuple[JsIpfs, JsIpfs]) -> Iterator[IpfsStore]:
    with store_on(ipfs_nodes[0]) as store:
        yield store


@pytest.fixture
def far(ipfs_nodes: tuple[JsIpfs, JsIpfs]) -> Iterator[IpfsStore]:
    with store_on(ipfs_nodes[1]) as store:
        yield store


# --- addresses and exchange ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [0, 1, 262_143, 262_144, 262_145, 1_048_577, 5_000_000, 45_613_056, 45_613_057]
)
def test_the_node_gives_the_address_that_the_directory_gives(near: IpfsStore, size: int) -> None:
    data = hashlib.shake_128(b"flower-chain").digest(size)
    assert near.put(data) == cid_of(data)  # or it had raised: it compares them
    assert near.get(cid_of(data)) == data


def test_a_run_can_move_from_a_directory_to_a_node_and_back(near: IpfsStore, tmp_path) -> None:
    before, after = DirectoryStore(tmp_path / "before"), DirectoryStore(tmp_path / "after")
    cids = [before.put(os.urandom(size)) for size in (10, 1_000_000)]
    for cid in cids:
        assert near.put(before.get(cid)) == cid
    for cid in cids:
        assert after.put(near.get(cid)) == cid


def test_what_one_node_has_another_gets(near: IpfsStore, far: IpfsStore) -> None:
    data = os.urandom(3_000_000)
    cid = near.put(data)
    assert cid in far
    assert far.get(cid) == data
    assert far.stored() == {}


def test_what_no_node_has_is_not_waited_for_longer_than_told(
    ipfs_nodes: tuple[JsIpfs, JsIpfs],
) -> None:
    far = store_on(ipfs_nodes[1], timeout=HASTE)
    for missing in (cid_of(os.urandom(9)), cid_of(os.urandom(300_000))):
        begun = time.monotonic()
        with pytest.raises(NotStored, match=f"0 bytes of {missing} came.* nothing for 4 s"):
            far.get(missing)
        assert missing not in far
        assert time.monotonic() - begun < 2 * HASTE + 3


@pytest.mark.parametrize(
    ("block", "why"),
    [(b"\x0a\x02\x08\x01", "is a directory"), (b"\x12\x05garbage", "protobuf")],
)
def test_what_is_no_file_is_not_stored(
    ipfs_nodes: tuple[JsIpfs, JsIpfs], near: IpfsStore, block: bytes, why: str
) -> None:
    cid = cid_from_bytes(b"\x01\x70\x12\x20" + hashlib.sha256(block).digest())
    ipfs_nodes[0].ask("block/put", file=block, cid_codec="dag-pb", version=1)
    with pytest.raises(NotStored, match=f"0 bytes of {cid} came, and then: .*{why}"):
        near.get(cid)


# --- pins, quota ---------------------------------------------------------------------------------


def test_what_is_put_is_pinned_and_listed_until_it_is_removed(
    ipfs_nodes: tuple[JsIpfs, JsIpfs], near: IpfsStore
) -> None:
    def pinned(cid: str) -> bool:
        try:
            return bool(ipfs_nodes[0].ask("pin/ls", cid, type="recursive")["Keys"])
        except httpx.HTTPStatusError:
            return False

    small, large = near.put(os.urandom(10)), near.put(os.urandom(700_000))
    assert near.stored() == {small: 10, large: 700_000}
    assert pinned(small)
    assert pinned(large)

    near.remove(large)
    near.remove(large)
    assert near.stored() == {small: 10}
    assert pinned(small)
    assert not pinned(large)


def test_garbage_is_what_no_store_on_the_node_holds(start_ipfs: Start) -> None:
    node = start_ipfs()
    one, other = store_on(node, "/run/one"), store_on(node, "/run/other")
    shared, only = os.urandom(500_000), os.urandom(500_000)
    cid = one.put(shared)
    other.put(shared)
    gone = one.put(only)
    one.keep_only([])
    node.ask("repo/gc")
    assert other.get(cid) == shared
    hasty = store_on(node, timeout=HASTE)
    assert gone not in hasty

    other.remove(cid)
    node.ask("repo/gc")
    assert cid not in hasty


def test_a_store_knows_its_own_after_a_restart(near: IpfsStore, ipfs_nodes) -> None:
    cid = near.put(b"an update")
    folder = str(near).removeprefix(ipfs_nodes[0].url)
    assert store_on(ipfs_nodes[0], folder).stored() == {cid: 9}


def test_a_folder_in_a_stores_folder_is_another_stores(ipfs_nodes: tuple[JsIpfs, JsIpfs]) -> None:
    outer = store_on(ipfs_nodes[0])
    inner = store_on(ipfs_nodes[0], str(outer).removeprefix(ipfs_nodes[0].url) + "/device")
    cid = inner.put(b"an update of a device")
    assert outer.stored() == {}
    assert outer.keep_only([]) == []
    assert inner.stored() == {cid: 21}


def test_the_quota_is_kept(ipfs_nodes: tuple[JsIpfs, JsIpfs]) -> None:
    store = store_on(ipfs_nodes[0], quota=1000)
    data = os.urandom(600)
    first = store.put(data)
    assert store.put(data) == first  # takes no room
    with pytest.raises(StoreError, match=r"holds 600 bytes; 401 more would exceed .* of 1000"):
        store.put(os.urandom(401))
    store.put(os.urandom(400))
    store.remove(first)
    store.put(os.urandom(600))


def test_a_full_disk_is_named(start_ipfs: Start) -> None:
    if subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("this user may not mount a small disk")
    node = start_ipfs("unshare", "-rm", "sh", "-c", SMALL_DISK, "sh")
    store = store_on(node)
    with pytest.raises(StoreError, match=r"refused add: .*(ENOSPC|no space left)"):
        store.put(os.urandom(20_000_000))
    assert store.stored() == {}
    node.ask("repo/gc")
    store.put(os.urandom(1_000_000))


# --- nodes that die ------------------------------------------------------------------------------


def test_a_node_that_stays_away_is_an_error_after_the_patience(start_ipfs: Start) -> None:
    node = start_ipfs()
    store = store_on(node, patience=1.0)
    cid = store.put(os.urandom(20_000_000))
    pieces = store.pieces(cid)
    next(pieces)
    node.kill()
    for work in (
        lambda: list(pieces),
        lambda: store.get(cid),
        lambda: store.put(b"an update"),
        lambda: cid in store,
        store.stored,
        lambda: store.remove(cid),
    ):
        begun = time.monotonic()
        with pytest.raises(NoConnection, match="no IPFS node answers"):
            work()
        assert time.monotonic() - begun < 10


def test_a_node_killed_while_it_sends_goes_on_where_it_was(start_ipfs: Start) -> None:
    node = start_ipfs()
    store = store_on(node, patience=MINUTE)
    data = os.urandom(30_000_000)
    pieces = store.pieces(store.put(data))
    got = [next(pieces)]
    node.kill()
    with ThreadPoolExecutor() as threads:
        threads.submit(node.start)
        got.extend(pieces)
    assert b"".join(got) == data


def test_a_node_killed_while_it_receives_gets_all_again(start_ipfs: Start) -> None:
    node = start_ipfs()
    store = store_on(node, patience=MINUTE)
    data = os.urandom(30_000_000)
    with ThreadPoolExecutor() as threads:

        def restart() -> None:
            node.kill()
            threads.submit(node.start)

        cid = store.put_file(Upload(data, restart))
    assert store.stored() == {cid: len(data)}
    assert store.get(cid) == data


class Upload(io.BytesIO):
    """Calls `halfway` when it is half read for the second time: first its CID is computed."""

    def __init__(self, data: bytes, halfway: Callable[[], None]) -> None:
        super().__init__(data)
        self._half = len(data) // 2
        self._halves = 0
        self._halfway = halfway

    def read(self, size: int | None = -1, /) -> bytes:
        before = self.tell()
        data = super().read(size)
        if before < self._half <= self.tell():
            self._halves += 1
            if self._halves == 2:
                self._halfway()
        return data


def test_a_peer_killed_while_blocks_come_from_it(start_ipfs: Start) -> None:
    node, peer = start_ipfs(), start_ipfs()
    data = os.urandom(20_000_000)
    cid = store_on(peer).put(data)
    connected = threading.Event()
    wire = threading.Thread(target=carry, args=(node, peer, connected, len(data) // 2))
    wire.start()
    assert connected.wait(MINUTE)
    with pytest.raises(NotStored, match=f"of {cid} came, and then: .* sent nothing for 10 s"):
        store_on(node, timeout=10).get(cid)
    wire.join()

    peer.start()
    node.connect(peer)
    assert store_on(node).get(cid) == data


def carry(node: JsIpfs, peer: JsIpfs, connected: threading.Event, limit: int) -> None:
    """Connect two nodes and kill the peer when it has sent `limit` bytes."""

    def connect(address: str) -> None:
        node.ask("swarm/connect", address)
        connected.set()

    (address,) = peer.ask("id")["Addresses"]
    real_port = address.split("/")[4]
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor() as threads:
        port = listening.getsockname()[1]
        threads.submit(connect, address.replace(real_port, str(port)))
        from_node, _ = listening.accept()
        from_peer = socket.create_connection(("127.0.0.1", int(real_port)), timeout=MINUTE)
        with from_node, from_peer:
            threads.submit(pump, from_node, from_peer)
            while limit > 0 and (sent := from_peer.recv(2**16)):
                from_node.sendall(sent)
                limit -= len(sent)
            peer.kill()
            with suppress(OSError):  # it may know already
                from_peer.shutdown(socket.SHUT_RDWR)


def pump(source: socket.socket, target: socket.socket) -> None:
    """Hand on all that comes."""
    with suppress(OSError):
        while sent := source.recv(2**16):
            target.sendall(sent)
