"""What answers where an IPFS node should, without being one or while lying."""

import json
import logging
import os
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import ipfshttpclient
import pytest

from flower_chain.errors import ConfigError, Damaged, NotStored, StoreError, TooLarge
from flower_chain.store import IpfsStore, cid_of, rpc
from flower_chain.store.ipfs_client import ClientRpc
from flower_chain.store.rpc import HttpRpc

DATA = b"an update"
CID = cid_of(DATA)
TIMEOUT = 0.3

Answer = int | bytes | dict[str, Any] | Iterator[bytes]


class Liar:
    """Listens where a node would, and answers each command as a test says.

    Answers are the status of a response, its body, what that is as JSON, or pieces of it. `asked`
    holds the commands with their options, `headers` those of the last.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, list[str]]]] = []
        self.headers: dict[str, str] = {}
        self.path = "/api/v0/"
        self.says: dict[str, Answer] = {"version": {"Version": "0.1"}, "files/cp": b""}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.host}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        liar = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers.get("content-length", 0))
                while length:
                    length -= len(self.rfile.read(min(length, 65536)))
                path, query = urlsplit(self.path).path, urlsplit(self.path).query
                assert path.startswith(liar.path), path
                command = path.removeprefix(liar.path)
                liar.asked.append((command, parse_qs(query)))
                liar.headers = {key.lower(): value for key, value in self.headers.items()}
                self._answer(liar.says.get(command, 404))

            def _answer(self, answer: Answer) -> None:
                status, pieces = 200, answer
                if isinstance(answer, int):
                    status, pieces = answer, []
                elif isinstance(answer, bytes):
                    pieces = [answer]
                elif isinstance(answer, dict):
                    status = 500 if answer.get("Type") == "error" else 200
                    pieces = [json.dumps(answer).encode()]
                self.send_response(status)
                self.end_headers()
                with suppress(OSError):
                    for piece in pieces:
                        self.wfile.write(piece)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


@pytest.fixture
def liar() -> Iterator[Liar]:
    node = Liar()
    yield node
    node.stop()


@pytest.fixture
def store(liar: Liar) -> Iterator[IpfsStore]:
    with IpfsStore(HttpRpc(liar.url, TIMEOUT), patience=0.2) as opened:
        yield opened


def refusal(message: str) -> dict[str, Any]:
    """As nodes write it."""
    return {"Message": message, "Code": 0, "Type": "error"}


def slowly(piece: bytes, seconds: float) -> Iterator[bytes]:
    """A byte stream without an end."""
    while True:
        yield piece
        time.sleep(seconds)


# --- other bytes ---------------------------------------------------------------------------------


def test_other_bytes_than_were_asked_for_are_damaged(liar: Liar, store: IpfsStore) -> None:
    liar.says["cat"] = b"a falsehood"
    with pytest.raises(Damaged, match=f"the 11 bytes under {CID} in .* are those of"):
        store.get(CID)
    liar.says["cat"] = DATA
    assert store.get(CID) == DATA


def test_bytes_without_an_end_are_read_up_to_the_limit(liar: Liar, store: IpfsStore) -> None:
    liar.says["cat"] = slowly(bytes(100_000), 0)
    with pytest.raises(TooLarge, match="more than the 9 bytes"):
        store.get(CID, limit=9)


def test_nothing_is_unpacked(liar: Liar, store: IpfsStore) -> None:
    liar.says["cat"] = zlib.compress(DATA)
    with pytest.raises(Damaged):
        store.get(CID)
    assert liar.headers["accept-encoding"] == "identity"


def test_a_node_that_trickles_is_given_up(liar: Liar) -> None:
    liar.says["cat"] = slowly(b".", TIMEOUT / 3)
    store = IpfsStore(HttpRpc(liar.url, TIMEOUT))
    begun = time.monotonic()
    with pytest.raises(NotStored, match=r"only . bytes of .* at least 16384 a second"):
        store.get(CID)
    assert time.monotonic() - begun < 4 * TIMEOUT


def test_a_node_that_stops_halfway_is_given_up(liar: Liar, store: IpfsStore) -> None:
    liar.says["cat"] = slowly(b"an upd", 9)
    with pytest.raises(NotStored, match=f"6 bytes of {CID} came.* nothing for 0.3 s"):
        store.get(CID)


def test_a_silent_node_is_not_mistaken_for_one_that_lacks_something(
    liar: Liar, store: IpfsStore
) -> None:
    for ask in (lambda: store.get(CID), lambda: CID in store):
        for command in ("cat", "block/stat", "version"):
            liar.says[command] = slowly(b"", 9)
        with pytest.raises(StoreError, match=r"sent nothing for 0.3 s \(version\)"):
            ask()


def test_bytes_stored_under_another_cid_are_an_error_of_the_node(
    liar: Liar, store: IpfsStore
) -> None:
    for answer in ({"Hash": cid_of(b"other")}, {}):
        liar.says["add"] = answer
        with pytest.raises(StoreError, match=f"was given the 9 bytes of {CID}, and answered"):
            store.put(DATA)
    assert "files/cp" not in dict(liar.asked)


def test_a_full_node_is_no_fault_of_who_stored(liar: Liar, store: IpfsStore) -> None:
    liar.says["cat"] = liar.says["add"] = refusal("write /blocks/x: no space left on device")
    for ask in (lambda: store.get(CID), lambda: store.put(DATA)):
        with pytest.raises(StoreError, match=r"refused .*: write .* no space left") as caught:
            ask()
        assert not isinstance(caught.value, NotStored)


# --- other answers -------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 401, 403, 404, 405, 429, 500, 502])
def test_another_status_asks_if_it_is_the_rpc(liar: Liar, store: IpfsStore, status: int) -> None:
    liar.says = dict.fromkeys(["version", "cat", "add", "files/ls", "block/stat"], status)
    for ask in (
        lambda: IpfsStore(liar.url),
        lambda: store.get(CID),
        lambda: store.put(DATA),
        store.stored,
        lambda: CID in store,
    ):
        with pytest.raises(StoreError, match=rf"answers .* HTTP {status}: is it the RPC") as caught:
            ask()
        assert not isinstance(caught.value, NotStored)


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b"\xff", b'"' + bytes(100)])
def test_what_is_not_an_answer_is_shown(liar: Liar, answer: bytes) -> None:
    liar.says["version"] = answer
    with pytest.raises(StoreError, match=r"answers version with b.*is it the RPC"):
        IpfsStore(liar.url)


def test_an_answer_is_not_read_without_end(
    liar: Liar, store: IpfsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc, "MOST_ANSWERED", 1000)
    liar.says["files/ls"] = slowly(bytes(100), 0)
    with pytest.raises(StoreError, match="with more than 1000 bytes"):
        store.stored()


@pytest.mark.parametrize("entries", [{}, {"Entries": [{}]}, {"Entries": 1}, {"Entries": "x"}])
def test_a_strange_list_is_named(liar: Liar, store: IpfsStore, entries: dict[str, Any]) -> None:
    liar.says["files/ls"] = entries
    with pytest.raises(StoreError, match="lists its files in a way that is not IPFS's"):
        store.stored()


def test_a_list_may_have_sizes_as_text_or_be_null(liar: Liar, store: IpfsStore) -> None:
    liar.says["files/ls"] = {"Entries": [{"Name": CID, "Size": "9"}]}
    assert store.stored() == {CID: 9}
    liar.says["files/ls"] = {"Entries": None}
    assert store.stored() == {}
    liar.says["files/ls"] = refusal("file does not exist")
    assert store.stored() == {}
    liar.says["files/ls"] = refusal("something else")
    with pytest.raises(StoreError, match="refused files/ls: something else"):
        store.stored()


def test_how_a_file_is_cut_is_said(liar: Liar, store: IpfsStore) -> None:
    liar.says["add"] = {"Hash": CID}
    store.put(DATA)
    (options,) = [options for command, options in liar.asked if command == "add"]
    expected = {"cid-version": "1", "raw-leaves": "true", "chunker": "size-262144", "pin": "true"}
    assert {key: options[key] for key in expected} == {key: [expected[key]] for key in expected}


# --- nobody --------------------------------------------------------------------------------------


def test_no_node_says_what_to_start() -> None:
    begun = time.monotonic()
    with pytest.raises(StoreError, match=r"no IPFS node answers at http://127.0.0.1:9 .*`ipfs d"):
        IpfsStore("http://127.0.0.1:9")
    assert time.monotonic() - begun < 1


def test_only_a_broken_connection_is_tried_again(liar: Liar, store: IpfsStore) -> None:
    asked = lambda: sum(command == "block/stat" for command, _ in liar.asked)  # noqa: E731
    for answer in (refusal("not found"), slowly(b"", 9)):
        liar.says["block/stat"], before = answer, asked()
        assert CID not in store
        assert asked() == before + 1
    liar.says["block/stat"], before = 502, asked()
    with pytest.raises(StoreError):
        CID in store  # noqa: B015
    assert asked() == before + 1


def test_a_broken_connection_is_tried_again_until_the_patience_is_over() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port, calls = listening.getsockname()[1], 0

        def answer() -> None:
            nonlocal calls
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(2**16)
                    if not calls:
                        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                calls += 1

        threading.Thread(target=answer, daemon=True).start()
        store = IpfsStore(HttpRpc(f"http://127.0.0.1:{port}", TIMEOUT), patience=0.5)
        begun = time.monotonic()
        with pytest.raises(StoreError, match="no IPFS node answers"):
            store.stored()
        assert 0.5 < time.monotonic() - begun < 3
        assert calls > 5
        listening.shutdown(socket.SHUT_RDWR)


# --- somebody's client ---------------------------------------------------------------------------


@pytest.fixture
def by_client(liar: Liar) -> IpfsStore:
    port = liar.url.rpartition(":")[2]
    rpc = ClientRpc(ipfshttpclient.Client(f"/ip4/127.0.0.1/tcp/{port}"), TIMEOUT)
    return IpfsStore(rpc, patience=0.2)


def test_a_client_tells_the_same(liar: Liar, by_client: IpfsStore) -> None:
    liar.says["cat"] = b"a falsehood"
    with pytest.raises(Damaged, match="the 11 bytes under"):
        by_client.get(CID)
    liar.says["cat"] = refusal("this dag node is a directory")
    with pytest.raises(NotStored, match="refused cat: this dag node is a directory"):
        by_client.get(CID)
    for begins_with in (b"", b"an upd"):
        liar.says["cat"] = slowly(begins_with, 9)
        with pytest.raises(NotStored, match=r"ipfshttpclient sent nothing for 0.3 s"):
            by_client.get(CID)
    liar.says["cat"] = 404
    with pytest.raises(StoreError, match=r"answers cat with .*404.*: is it the RPC"):
        by_client.get(CID)
    liar.stop()
    with pytest.raises(StoreError, match="no IPFS node answers at ipfshttpclient"):
        by_client.get(CID)


# --- arguments and secrets -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folder": "flower-chain"}, "folder = 'flower-chain': it must be a path"),
        ({"folder": "/"}, "folder = '/'"),
        ({"folder": "/a/../b"}, r"folder = '/a/\.\./b'"),
        ({"quota": -1}, "quota = -1: it must not be negative"),
        ({"patience": float("nan")}, "patience = nan"),
        ({"least_speed": -0.5}, "least_speed = -0.5"),
    ],
)
def test_what_can_not_be_used_is_named(liar: Liar, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        IpfsStore(liar.url, **options)


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan")])
def test_a_timeout_is_positive(timeout: float) -> None:
    with pytest.raises(ConfigError, match=f"timeout = {timeout}: it must be a positive"):
        HttpRpc("http://127.0.0.1:5001", timeout)


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:5001", "/ip4/127.0.0.1/tcp/5001", "ftp://node", "http://", "http://n:x"]
)
def test_what_is_no_url_is_named(url: str) -> None:
    with pytest.raises(ConfigError, match=f"'{url}' is not the URL of an IPFS node"):
        HttpRpc(url)


def test_a_path_before_the_rpc_is_kept(liar: Liar) -> None:
    liar.path = "/ipfs/rpc/api/v0/"
    IpfsStore(f"{liar.url}/ipfs/rpc/")
    assert liar.asked == [("version", {})]


def test_secrets_are_sent_and_never_shown(
    liar: Liar, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("IPFS_PASSWORD", "s3cret-word")
    monkeypatch.setenv("IPFS_KEY", "k3y")
    liar.path = "/k3y/api/v0/"
    url = f"http://me:${{IPFS_PASSWORD}}@{liar.host}/${{IPFS_KEY}}"
    with IpfsStore(HttpRpc(url, TIMEOUT), patience=0.1) as store:
        assert liar.headers["authorization"] == "Basic bWU6czNjcmV0LXdvcmQ="
        liar.says["cat"] = liar.says["files/ls"] = refusal("no s3cret-word, no k3y")
        liar.says["add"] = b"k3y is not JSON"
        shown = [str(store)]
        asked: list[Callable[[], object]] = [
            lambda: store.get(CID),
            lambda: store.put(os.urandom(8)),
            store.stored,
        ]
        for ask in asked:
            with pytest.raises(StoreError) as caught:
                ask()
            shown.append(str(caught.value))
        liar.stop()
        with pytest.raises(StoreError) as caught:
            store.stored()
        shown.append(str(caught.value))
    text = "".join([*shown, caplog.text])
    assert "HTTP Request: POST" in caplog.text
    assert "s3cret" not in text
    assert "k3y" not in text


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IPFS_PASSWORD", raising=False)
    with pytest.raises(ConfigError, match="the environment variable IPFS_PASSWORD is not set"):
        HttpRpc("http://me:${IPFS_PASSWORD}@node.example")
