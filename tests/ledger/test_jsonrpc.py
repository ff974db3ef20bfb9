"""Against real nodes, and against a real node behind a proxy that does what networks do."""

import json
import logging
import random
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from eth_account import Account
from eth_account.signers.local import LocalAccount

from flower_chain.errors import ConfigError, LedgerError, NodeError, Reverted
from flower_chain.ledger import Contract, JsonRpcLedger, jsonrpc
from flower_chain.ledger.base import GAS_LIMIT, CallFailed

ALICE = "0x" + 40 * "1"
BOB = "0x" + 40 * "2"
SUPPLY = 10**24
GWEI = 10**9
CUT = 0
"""The connection ends, and no answer comes."""

Forward = Callable[[], Any]
Tamper = Callable[[str, list[Any], Forward], Any]


class Proxy:
    """In front of a node: hands on what is asked and answered, unless `tamper` does otherwise.

    `tamper` gets a method, its parameters and a function that asks the node. It gives the answer,
    the status of an HTTP answer that holds the path, or `CUT`.
    """

    def __init__(self, node: str) -> None:
        self.asked: list[str] = []
        self.tamper: Tamper = lambda method, params, forward: forward()
        self._node = node
        self._port = 0
        self.start()

    def start(self) -> None:
        self._server = _Server(("127.0.0.1", self._port), self._handler())
        self._port = self._server.server_port
        self.url = f"http://127.0.0.1:{self._port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.end()

    def _answer(self, asked: Any) -> Any:
        self.asked.append(asked["method"])
        forward = lambda: requests.post(self._node, json=asked, timeout=20).json()  # noqa: E731
        return self.tamper(asked["method"], asked["params"], forward)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 2**16

            def do_POST(self) -> None:
                answer = proxy._answer(
                    json.loads(self.rfile.read(int(self.headers["content-length"])))
                )
                if answer == CUT:
                    self.close_connection = True
                    return
                status, content = (
                    (answer, self.path.encode())
                    if isinstance(answer, int)
                    else (200, json.dumps(answer).encode())
                )
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


class _Server(ThreadingHTTPServer):
    """Ends its connections with itself, as a process that is killed does."""

    daemon_threads = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._open: set[socket.socket] = set()

    def get_request(self) -> Any:
        accepted = super().get_request()
        self._open.add(accepted[0])
        return accepted

    def end(self) -> None:
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def handle_error(self, *_: Any) -> None:
        pass


@pytest.fixture
def start_proxy() -> Iterator[Callable[[str], Proxy]]:
    started: list[Proxy] = []

    def start(node: str) -> Proxy:
        started.append(Proxy(node))
        return started[-1]

    yield start
    for proxy in started:
        proxy.stop()


@pytest.fixture
def node(start_anvil):
    """A node of its own."""
    return start_anvil()


@pytest.fixture
def proxy(node, start_proxy):
    """In front of `node`."""
    return start_proxy(node.url)


@pytest.fixture
def ledger(proxy):
    with JsonRpcLedger(proxy.url) as opened:
        yield opened


@pytest.fixture
def token(ledger, owner):
    return ledger.deploy(owner, "RewardToken", SUPPLY)


def refusal(message: str, code: int = -32000, **more: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 0, "error": {"code": code, "message": message, **more}}


def says(result: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 0, "result": result}


def instead(method: str, *answers: Any) -> Tamper:
    """Gives `answers` to the first questions for `method`; with none, what is always given."""
    left = list(answers)

    def tamper(asked: str, _: list[Any], forward: Forward) -> Any:
        return left.pop(0) if asked == method and left else forward()

    return tamper


def always(method: str, answer: Any) -> Tamper:
    return lambda asked, _, forward: answer if asked == method else forward()


def change(method: str, edit: Callable[[Any], None]) -> Tamper:
    """Edits the result of `method`."""

    def tamper(asked: str, _: list[Any], forward: Forward) -> Any:
        answer = forward()
        if asked == method and answer.get("result"):
            edit(answer["result"])
        return answer

    return tamper


def first_lost(method: str) -> Tamper:
    """The node gets the first question for `method`, but its answer is lost."""
    lost: list[str] = []

    def tamper(asked: str, _: list[Any], forward: Forward) -> Any:
        answer = forward()
        if asked != method or lost:
            return answer
        lost.append(asked)
        return CUT

    return tamper


@contextmanager
def at_once(work: Callable[[], Any]) -> Iterator[Any]:
    """Does `work` in another thread meanwhile; gives what its result will be in."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(work)


def wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def count(node: Any, account: LocalAccount, block: str = "latest") -> int:
    return int(node.ask("eth_getTransactionCount", account.address, block), 16)


def pending(node: Any) -> list[Any]:
    """The transactions that wait for a block."""
    return list(node.ask("eth_getBlockByNumber", "pending", True)["transactions"])


def hold(node: Any) -> None:
    node.ask("evm_setAutomine", False)


def mine(node: Any) -> None:
    node.ask("evm_mine")


def raw(account: LocalAccount, nonce: int, to: str, data: bytes = b"", gwei: int = 10) -> str:
    """A transaction that somebody else made with this account."""
    unsigned = {
        "chainId": 31337,
        "nonce": nonce,
        "gas": 200_000,
        "to": to,
        "value": 0,
        "data": data,
        "maxFeePerGas": gwei * GWEI,
        "maxPriorityFeePerGas": gwei * GWEI // 2,
    }
    return "0x" + account.sign_transaction(unsigned).raw_transaction.hex()


def transfers(token: Contract, to: str) -> list[int]:
    return [event.args["value"] for event in token.events() if event.args["to"] == to]


class TestUrl:
    def test_a_variable_of_the_environment_is_filled_in(self, proxy, monkeypatch):
        monkeypatch.setenv("NODE_PORT", proxy.url.rpartition(":")[2])
        with JsonRpcLedger("http://127.0.0.1:${NODE_PORT}/v3") as ledger:
            assert ledger.chain_id == 31337
            assert str(ledger) == "http://127.0.0.1:${NODE_PORT}/v3"

    @pytest.mark.parametrize("value", [None, ""])
    def test_a_variable_that_is_not_set_is_named(self, monkeypatch, value):
        monkeypatch.delenv("NODE_KEY", raising=False)
        if value is not None:
            monkeypatch.setenv("NODE_KEY", value)
        with pytest.raises(ConfigError, match="variable NODE_KEY is not set"):
            JsonRpcLedger("https://node.example/${NODE_KEY}")

    @pytest.mark.parametrize(
        "answer",
        [CUT, 401, 500, 503, refusal("no project k3y-secret"), says("k3y-secret"), {"a": 1}],
    )
    def test_secrets_are_in_no_error_and_in_no_log(self, proxy, monkeypatch, caplog, answer):
        monkeypatch.setenv("NODE_KEY", "k3y-secret")
        url = proxy.url.replace("//", "//me:passw0rd@") + "/v3/${NODE_KEY}"
        with caplog.at_level(logging.DEBUG), JsonRpcLedger(url, patience=0.3) as ledger:
            assert ledger.has_code(ALICE) is False
            proxy.tamper = lambda *_: answer
            with pytest.raises(NodeError) as fault:
                ledger.has_code(ALICE)
            with pytest.raises(NodeError) as first:
                JsonRpcLedger(url)
        told = "".join(traceback.format_exception(fault.value))
        told += "".join(traceback.format_exception(first.value))
        told += caplog.text + repr(ledger) + str(ledger) + repr(vars(ledger))
        assert "k3y-secret" not in told
        assert "passw0rd" not in told
        assert "http://***@127.0.0.1" in str(fault.value)
        assert "/v3/${NODE_KEY}" in str(first.value)


class TestFees:
    def test_leave_room_for_a_doubled_base_fee(self, node, ledger, token, owner):
        receipt = token.transact(owner, "transfer", ALICE, 1)
        sent = node.ask("eth_getTransactionByHash", receipt.transaction)
        before = node.ask("eth_getBlockByNumber", hex(receipt.block - 1), False)
        tip = int(sent["maxPriorityFeePerGas"], 16)
        assert tip == int(node.ask("eth_maxPriorityFeePerGas"), 16)
        assert int(sent["maxFeePerGas"], 16) == 2 * int(before["baseFeePerGas"], 16) + tip

    def test_a_node_that_suggests_no_tip_is_asked_for_its_price(self, node, proxy, token, owner):
        proxy.tamper = always("eth_maxPriorityFeePerGas", refusal("Method not found", -32601))
        receipt = token.transact(owner, "transfer", ALICE, 1)
        sent = node.ask("eth_getTransactionByHash", receipt.transaction)
        assert int(sent["maxPriorityFeePerGas"], 16) >= GWEI

    def test_a_chain_without_base_fee_is_paid_a_gas_price(self, start_anvil, owner):
        node = start_anvil("--hardfork", "berlin")
        with JsonRpcLedger(node.url) as ledger:
            receipt = ledger.send(owner, ALICE, b"")
        sent = node.ask("eth_getTransactionByHash", receipt.transaction)
        assert int(sent["type"], 16) == 0
        assert "maxFeePerGas" not in sent

    def test_where_gas_is_free_accounts_need_no_ether(self, start_anvil):
        node = start_anvil("--gas-price", "0", "--base-fee", "0")
        poor = Account.create()
        with JsonRpcLedger(node.url) as ledger:
            token = ledger.deploy(poor, "RewardToken", SUPPLY)
            token.transact(poor, "transfer", ALICE, 3)
            assert token.call("balanceOf", ALICE) == 3
        assert int(node.ask("eth_getBalance", poor.address, "latest"), 16) == 0

    def test_where_a_gas_price_is_zero_accounts_need_no_ether(self, start_anvil, start_proxy):
        node = start_anvil("--hardfork", "berlin", "--gas-price", "0")
        proxy = start_proxy(node.url)
        proxy.tamper = always("eth_gasPrice", says("0x0"))
        with JsonRpcLedger(proxy.url) as ledger:
            assert ledger.send(Account.create(), ALICE, b"").gas_used == 21_000

    def test_a_base_fee_that_rises_meanwhile_is_followed(self, node, ledger, token, owner):
        hold(node)
        with at_once(lambda: token.transact(owner, "transfer", ALICE, 1)) as sent:
            wait_until(lambda: count(node, owner, "pending") == 2)
            node.ask("anvil_setNextBlockBaseFeePerGas", hex(50 * GWEI))
            mine(node)
            assert count(node, owner) == 1
            wait_until(lambda: fee_of(pending(node)) >= 100 * GWEI)
            mine(node)
            receipt = sent.result()
        assert (count(node, owner), token.call("balanceOf", ALICE)) == (2, 1)
        assert receipt == token.ledger.receipt(receipt.transaction)

    def test_a_gas_price_that_rises_meanwhile_is_followed(self, start_anvil, start_proxy, owner):
        node = start_anvil("--hardfork", "berlin", "--gas-price", str(GWEI))
        proxy = start_proxy(node.url)
        hold(node)
        with (
            JsonRpcLedger(proxy.url) as ledger,
            at_once(lambda: ledger.send(owner, ALICE, b"")) as sent,
        ):
            wait_until(lambda: pending(node))
            proxy.tamper = always("eth_gasPrice", says(hex(7 * GWEI)))
            (first,) = pending(node)
            node.ask("anvil_dropTransaction", first["hash"])
            mine(node)
            wait_until(lambda: pending(node))
            mine(node)
            receipt = sent.result()
        last = node.ask("eth_getTransactionByHash", receipt.transaction)
        assert int(last["gasPrice"], 16) == 7 * GWEI

    def test_who_can_not_pay_is_told_what_it_has_and_what_it_needs(self, node, token):
        poor = Account.create()
        node.ask("anvil_setBalance", poor.address, hex(10**12))
        with pytest.raises(LedgerError) as fault:
            token.transact(poor, "approve", ALICE, 1)
        assert str(fault.value).startswith(f"{poor.address} has 0.000001 ether, but needs 0.000")
        assert not isinstance(fault.value, NodeError)

    def test_who_can_pay_is_told_what_the_node_says(self, proxy, token, owner):
        proxy.tamper = always("eth_sendRawTransaction", refusal("txpool is full"))
        with pytest.raises(LedgerError, match=r"refused eth_sendRawTransaction: txpool is full$"):
            token.transact(owner, "transfer", ALICE, 1)

    def test_the_gas_of_a_block_is_not_exceeded(self, node, proxy, ledger, owner):
        proxy.tamper = change(
            "eth_getBlockByNumber", lambda block: block.update(gasLimit=hex(22_000))
        )
        receipt = ledger.send(owner, ALICE, b"")
        sent = node.ask("eth_getTransactionByHash", receipt.transaction)
        assert int(sent["gas"], 16) == 22_000

    def test_the_gas_of_a_transaction_is_not_exceeded(self, proxy, ledger, owner):
        proxy.tamper = always("eth_estimateGas", says(hex(GAS_LIMIT + 1)))
        with pytest.raises(
            LedgerError, match=f"needs {GAS_LIMIT + 1} gas, but may use {GAS_LIMIT}"
        ):
            ledger.send(owner, ALICE, b"")


class TestNonces:
    def test_a_lost_answer_does_not_send_twice(self, proxy, node, token, owner):
        proxy.tamper = first_lost("eth_sendRawTransaction")
        token.transact(owner, "transfer", ALICE, 1)
        token.transact(owner, "transfer", BOB, 1)
        assert (transfers(token, ALICE), transfers(token, BOB)) == ([1], [1])
        assert count(node, owner) == 3

    def test_a_lost_answer_to_a_transaction_that_waits_does_not_send_twice(
        self, proxy, node, token, owner
    ):
        hold(node)
        proxy.tamper = first_lost("eth_sendRawTransaction")
        with at_once(lambda: token.transact(owner, "transfer", ALICE, 1)) as sent:
            wait_until(lambda: proxy.asked.count("eth_sendRawTransaction") == 3)
            assert len(pending(node)) == 1
            mine(node)
            sent.result()
        assert transfers(token, ALICE) == [1]

    def test_what_a_node_has_is_not_given_up_whatever_it_says(self, proxy, token, owner):
        """It takes the transaction, the answer is lost, and then it complains."""

        def tamper(method: str, _: list[Any], forward: Forward) -> Any:
            if method != "eth_sendRawTransaction":
                return forward()
            taken = "result" in forward()
            return CUT if taken else refusal("insufficient funds")

        proxy.tamper = tamper
        token.transact(owner, "transfer", ALICE, 1)
        assert transfers(token, ALICE) == [1]

    def test_a_request_that_never_arrived_is_sent_again(self, proxy, token, owner):
        proxy.tamper = instead("eth_sendRawTransaction", CUT, 503)
        token.transact(owner, "transfer", ALICE, 1)
        assert transfers(token, ALICE) == [1]

    def test_a_nonce_that_is_too_low_is_read_again(self, proxy, node, token, owner):
        proxy.tamper = instead("eth_getTransactionCount", says("0x0"))
        begun = time.monotonic()
        token.transact(owner, "transfer", ALICE, 1)
        assert time.monotonic() - begun < 5  # a chain without other senders has no next block
        assert (transfers(token, ALICE), count(node, owner)) == ([1], 2)

    def test_a_nonce_that_another_process_holds_is_waited_for(self, proxy, node, token, owner):
        """The node does not count what waits, and does not let it be replaced either."""
        hold(node)
        node.ask("eth_sendRawTransaction", raw(owner, 1, BOB))
        proxy.tamper = instead("eth_getTransactionCount", says("0x1"))
        with at_once(lambda: token.transact(owner, "transfer", ALICE, 1)) as sent:
            wait_until(lambda: "eth_sendRawTransaction" in proxy.asked[-5:])
            assert [waiting["to"] for waiting in pending(node)] == [BOB]
            mine(node)
            wait_until(lambda: pending(node))
            mine(node)
            sent.result()
        assert (transfers(token, ALICE), count(node, owner)) == ([1], 3)

    def test_who_is_replaced_takes_the_next_nonce(self, node, token, owner):
        hold(node)
        with at_once(lambda: token.transact(owner, "transfer", ALICE, 1)) as sent:
            wait_until(lambda: count(node, owner, "pending") == 2)
            node.ask("eth_sendRawTransaction", raw(owner, 1, BOB, gwei=90))
            mine(node)
            wait_until(lambda: count(node, owner, "pending") == 3)
            mine(node)
            sent.result()
        assert (transfers(token, ALICE), count(node, owner)) == ([1], 3)

    def test_a_nonce_is_only_given_up_when_its_loss_is_confirmed(self, node, proxy, token, owner):
        """The block that took it is reorganised away, and the first bytes count after all."""
        hold(node)
        with (
            JsonRpcLedger(proxy.url, confirmations=2) as careful,
            at_once(lambda: careful.send(owner, ALICE, b"\1")) as sent,
        ):
            wait_until(lambda: count(node, owner, "pending") == 2)
            (first,) = pending(node)
            node.ask("eth_sendRawTransaction", raw(owner, 1, BOB, gwei=90))
            mine(node)
            asked = len(proxy.asked)
            wait_until(lambda: "eth_sendRawTransaction" in proxy.asked[asked:])
            node.ask("anvil_reorg", 1, [])
            wait_until(lambda: pending(node))
            for _ in range(2):
                mine(node)
            assert sent.result().transaction == first["hash"]
        assert count(node, owner) == 2

    @pytest.mark.parametrize("options", [(), ("--block-time", "1")])
    def test_two_threads_with_one_account(self, start_anvil, owner, options):
        node = start_anvil(*options)
        with JsonRpcLedger(node.url) as one, JsonRpcLedger(node.url) as other:
            token = one.deploy(owner, "RewardToken", SUPPLY)
            each = 10 if not options else 1
            ledgers = [one, other, other] * each
            with ThreadPoolExecutor(3) as pool:
                work = [
                    pool.submit(
                        Contract(used, token.address, "RewardToken").transact,
                        owner,
                        "transfer",
                        ALICE,
                        1,
                    )
                    for used in ledgers
                ]
            receipts = [done.result() for done in work]
            assert len({receipt.transaction for receipt in receipts}) == len(ledgers)
            assert token.call("balanceOf", ALICE) == len(ledgers)
        assert count(node, owner) == 1 + len(ledgers)

    @pytest.mark.slow
    def test_nothing_is_lost_or_sent_twice_whatever_happens(self, start_anvil, start_proxy, owner):
        """Requests and answers are lost, blocks reorganised, while three threads send."""
        node, chance = start_anvil("--block-time", "1"), random.Random(1)
        with JsonRpcLedger(node.url) as calm:
            token = calm.deploy(owner, "RewardToken", SUPPLY)
        node.ask("anvil_mine", "0x3")
        proxy = start_proxy(node.url)

        def tamper(method: str, params: list[Any], forward: Forward) -> Any:
            fault = chance.random()
            if fault < 0.1:
                return chance.choice([CUT, 429, 503])
            answer = forward()
            return CUT if fault < 0.3 else answer

        def send(amount: int) -> None:
            with JsonRpcLedger(proxy.url, confirmations=3) as ledger:
                Contract(ledger, token.address, token.name).transact(
                    owner, "transfer", ALICE, amount
                )

        ledger = JsonRpcLedger(node.url)
        with ThreadPoolExecutor(3) as pool:
            proxy.tamper = lambda method, params, forward: (
                forward() if method == "eth_chainId" else tamper(method, params, forward)
            )
            work = [pool.submit(send, amount) for amount in range(1, 7)]
            while not all(done.done() for done in work):
                time.sleep(2)
                with suppress(AssertionError):
                    node.ask("anvil_reorg", 1, [])
            for done in work:
                done.result()
        sent = transfers(Contract(ledger, token.address, token.name), ALICE)
        assert sorted(sent) == list(range(1, 7))

    def test_what_was_sent_by_a_process_that_died_is_waited_for(self, node, ledger, owner):
        hold(node)
        node.ask("eth_sendRawTransaction", raw(owner, 0, BOB))
        with at_once(lambda: ledger.catch_up(owner.address)) as caught_up:
            time.sleep(0.2)
            assert not caught_up.done()
            mine(node)
            caught_up.result()
        assert count(node, owner) == 1

    def test_what_is_never_in_a_block_is_not_waited_for_without_end(self, node, owner):
        hold(node)
        node.ask("eth_sendRawTransaction", raw(owner, 0, BOB))
        with (
            JsonRpcLedger(node.url, timeout=0.2) as ledger,
            pytest.raises(NodeError, match=f"what {owner.address} sent is not in a block"),
        ):
            ledger.catch_up(owner.address)


class TestWaiting:
    def test_for_a_block_asks_ever_less_often(self, start_anvil, start_proxy, owner):
        proxy = start_proxy(start_anvil("--block-time", "2").url)
        with JsonRpcLedger(proxy.url) as ledger:
            assert ledger.send(owner, ALICE, b"").gas_used == 21_000
        assert proxy.asked.count("eth_getTransactionReceipt") < 20

    def test_for_confirmations(self, node, owner):
        hold(node)
        with (
            JsonRpcLedger(node.url, confirmations=3) as ledger,
            at_once(lambda: ledger.send(owner, ALICE, b"")) as sent,
        ):
            wait_until(lambda: pending(node))
            for _ in range(2):
                mine(node)
            time.sleep(0.3)
            assert not sent.done()
            mine(node)
            assert sent.result().block == 1

    def test_a_reorganisation_is_followed(self, node, owner):
        hold(node)
        with (
            JsonRpcLedger(node.url, confirmations=3) as ledger,
            at_once(lambda: ledger.send(owner, ALICE, b"")) as sent,
        ):
            wait_until(lambda: pending(node))
            (first,) = pending(node)
            for _ in range(2):
                mine(node)
            time.sleep(0.3)
            node.ask("anvil_reorg", 2, [])
            wait_until(lambda: pending(node))
            for _ in range(3):
                mine(node)
            receipt = sent.result()
            assert receipt.transaction == first["hash"]
            assert receipt.block == 3
            assert ledger.receipt(receipt.transaction) == receipt
        assert count(node, owner) == 1

    def test_the_receipt_is_that_of_the_last_block(self, node, owner):
        """The other branch holds the transaction too, in a later block."""
        hold(node)
        with (
            JsonRpcLedger(node.url, confirmations=3) as ledger,
            at_once(lambda: ledger.send(owner, ALICE, b"")) as sent,
        ):
            wait_until(lambda: pending(node))
            again = node.ask("eth_getRawTransactionByHash", pending(node)[0]["hash"])
            for _ in range(2):
                mine(node)
            time.sleep(0.3)
            node.ask("anvil_reorg", 2, [[again, 1]])
            for _ in range(2):
                mine(node)
            assert sent.result().block == 2

    def test_a_block_that_no_others_follow_ends_it_with_the_hash(self, node, owner):
        with (
            JsonRpcLedger(node.url, confirmations=3, timeout=0.1) as ledger,
            pytest.raises(NodeError, match="block 1 never had 3 confirmations") as fault,
        ):
            ledger.send(owner, ALICE, b"")
        (sent,) = node.ask("eth_getBlockByNumber", "0x1", False)["transactions"]
        assert f"transaction {sent} may still be mined" in str(fault.value)

    def test_what_a_node_has_dropped_is_sent_again(self, node, ledger, owner):
        hold(node)
        with at_once(lambda: ledger.send(owner, ALICE, b"")) as sent:
            wait_until(lambda: pending(node))
            (first,) = pending(node)
            node.ask("anvil_dropTransaction", first["hash"])
            mine(node)
            wait_until(lambda: pending(node))
            mine(node)
            assert sent.result().transaction == first["hash"]

    def test_ends_with_the_hash(self, node, owner):
        hold(node)
        with (
            JsonRpcLedger(node.url, timeout=0.2) as ledger,
            pytest.raises(NodeError, match=r"not in a block after 0\.2 s") as fault,
        ):
            ledger.send(owner, ALICE, b"")
        (waiting,) = pending(node)
        assert f"transaction {waiting['hash']} may still be mined" in str(fault.value)

    def test_a_node_that_never_comes_back_ends_it_with_the_hash(self, proxy, node, owner):
        hold(node)
        with JsonRpcLedger(proxy.url, patience=0.3) as ledger:
            proxy.tamper = always("eth_getTransactionReceipt", 503)
            with pytest.raises(NodeError, match="no node answers at http") as fault:
                ledger.send(owner, ALICE, b"")
        (waiting,) = pending(node)
        assert f"transaction {waiting['hash']} may still be mined" in str(fault.value)


class TestPatience:
    @pytest.mark.parametrize(
        "fault",
        [
            CUT,
            429,
            502,
            503,
            504,
            {},
            refusal("your app exceeded its compute units per second", 429),
            refusal("header not found"),
        ],
    )
    def test_a_fault_that_passes_is_outlasted(self, proxy, ledger, fault):
        proxy.tamper = instead("eth_getCode", fault, fault)
        assert not ledger.has_code(ALICE)
        assert proxy.asked.count("eth_getCode") == 3

    def test_is_logged_once_when_it_begins_and_once_when_it_ends(self, proxy, ledger, caplog):
        caplog.set_level(logging.INFO, "flower_chain")
        proxy.tamper = instead("eth_getCode", 503, 429, CUT)
        ledger.has_code(ALICE)
        lost, found = caplog.records
        assert lost.levelname == "WARNING"
        assert (
            lost.getMessage()
            == f"no node answers at {proxy.url} (HTTP 503): trying again for 300 s"
        )
        assert found.levelname == "INFO"
        assert f"{proxy.url} answers again, after" in found.getMessage()

    def test_ends(self, proxy):
        with JsonRpcLedger(proxy.url, patience=0.5) as ledger:
            proxy.tamper = lambda *_: 503
            begun = time.monotonic()
            with pytest.raises(NodeError, match=r"\(HTTP 503\), tried for 0\.5 s"):
                ledger.has_code(ALICE)
        assert 0.5 <= time.monotonic() - begun < 1.5

    def test_the_first_question_has_none(self, proxy):
        proxy.tamper = lambda *_: 503
        with pytest.raises(NodeError, match=f"^no node answers at {proxy.url} \\(HTTP 503\\)$"):
            JsonRpcLedger(proxy.url)
        assert proxy.asked == ["eth_chainId"]

    @pytest.mark.parametrize("answer", [401, 404, refusal("Method not found", -32601)])
    def test_a_refusal_is_not_asked_again(self, proxy, ledger, answer):
        proxy.tamper = always("eth_getCode", answer)
        with pytest.raises(NodeError, match=proxy.url):
            ledger.has_code(ALICE)
        assert proxy.asked.count("eth_getCode") == 1

    def test_a_proxy_that_goes_and_comes_is_outlasted(self, proxy, token, owner):
        proxy.stop()
        with at_once(lambda: token.transact(owner, "transfer", ALICE, 1)) as sent:
            time.sleep(0.5)
            proxy.start()
            sent.result()
        assert transfers(token, ALICE) == [1]

    def test_a_node_that_is_killed_and_started_again_is_outlasted(
        self, start_anvil, tmp_path: Path, owner
    ):
        node = start_anvil("--state", str(tmp_path / "state.json"))
        with JsonRpcLedger(node.url) as ledger:
            token = ledger.deploy(owner, "RewardToken", SUPPLY)
            node.stop(signal.SIGTERM)
            with at_once(lambda: token.transact(owner, "transfer", ALICE, 1)) as sent:
                time.sleep(0.3)
                node.start()
                sent.result()
            assert transfers(token, ALICE) == [1]

    def test_a_node_that_hangs_is_asked_again(self, node, owner):
        with JsonRpcLedger(node.url, timeout=0.3) as ledger:
            node.send_signal(signal.SIGSTOP)
            with at_once(lambda: ledger.send(owner, ALICE, b"")) as sent:
                time.sleep(0.8)
                node.send_signal(signal.SIGCONT)
                sent.result()
        assert count(node, owner) == 1

    def test_a_node_that_hangs_is_given_up_when_patience_ends(self, node):
        with JsonRpcLedger(node.url, patience=0.5) as ledger:
            node.send_signal(signal.SIGSTOP)
            begun = time.monotonic()
            with pytest.raises(NodeError, match=r"\(ReadTimeout\), tried for 0\.5 s"):
                ledger.has_code(ALICE)
        assert time.monotonic() - begun < 3


class TestAuthority:
    def test_a_header_with_the_signatures_of_validators_is_read(self, proxy, ledger, token, owner):
        proxy.tamper = change(
            "eth_getBlockByNumber", lambda block: block.update(extraData="0x" + 97 * "ab")
        )
        receipt = token.transact(owner, "transfer", ALICE, 1)
        assert ledger.time_of(receipt.block) > 0
        assert transfers(token, ALICE) == [1]


class TestLogs:
    @pytest.fixture
    def filled(self, node, token, owner):
        """Ten transfers, with empty blocks between them."""
        for amount in range(1, 11):
            token.transact(owner, "transfer", ALICE, amount)
            node.ask("anvil_mine", hex(20))
        return token

    def test_come_in_ranges_that_the_node_allows(self, proxy, filled):
        ranges: list[int] = []

        def limit(method: str, params: list[Any], forward: Forward) -> Any:
            if method == "eth_getLogs":
                ranges.append(int(params[0]["toBlock"], 16) - int(params[0]["fromBlock"], 16) + 1)
                if ranges[-1] > 25:
                    return refusal("exceed maximum block range: 25", -32005)
            return forward()

        proxy.tamper = limit
        assert transfers(filled, ALICE) == list(range(1, 11))
        granted = [size for size in ranges if size <= 25]
        assert sum(granted) == 212  # every block once
        assert len(ranges) < 30
        assert granted[0] < max(granted)

    def test_come_where_a_node_counts_what_it_finds(self, proxy, filled):
        def limit(method: str, _: list[Any], forward: Forward) -> Any:
            answer = forward()
            many = method == "eth_getLogs" and len(answer["result"]) > 3
            return refusal("query returned more than 3 results", -32005) if many else answer

        proxy.tamper = limit
        assert transfers(filled, ALICE) == list(range(1, 11))

    def test_a_node_that_gives_none_is_told(self, proxy, token):
        proxy.tamper = always("eth_getLogs", refusal("not here"))
        with pytest.raises(NodeError, match="refused eth_getLogs: not here"):
            token.events()

    def test_begin_where_they_are_asked_for(self, filled):
        fifth = filled.events()[5].receipt.block
        assert [event.args["value"] for event in filled.events(fifth)] == [5, 6, 7, 8, 9, 10]
        assert filled.events(10**6) == []

    def test_are_in_order_without_what_was_removed(self, proxy, filled):
        def shuffle(found: list[Any]) -> None:
            found.reverse()
            found.append({**found[0], "removed": True})

        proxy.tamper = change("eth_getLogs", shuffle)
        assert transfers(filled, ALICE) == list(range(1, 11))

    def test_need_one_question_for_a_transaction_and_one_for_its_block(self, proxy, filled):
        proxy.asked.clear()
        with JsonRpcLedger(proxy.url) as reader:
            everything = Contract(reader, filled.address, "RewardToken")
            assert len(everything.events()) == 11
            assert proxy.asked.count("eth_getTransactionReceipt") == 11
            assert proxy.asked.count("eth_getBlockByNumber") == 11
            assert len(everything.events()) == 11
            assert proxy.asked.count("eth_getTransactionReceipt") == 11

    def test_of_what_was_just_sent_need_one_question_for_the_block(self, proxy, token, owner):
        receipt = token.transact(owner, "transfer", ALICE, 1)
        proxy.asked.clear()
        for _ in range(3):
            assert [event.receipt for event in token.events_in(receipt)] == [receipt]
        assert proxy.asked == ["eth_getBlockByNumber"]

    def test_receipts_and_times_are_those_of_the_chain_after_a_reorganisation(
        self, node, ledger, token, owner, monkeypatch
    ):
        monkeypatch.setattr(jsonrpc, "BEHIND", 0.1)
        token.transact(owner, "transfer", ALICE, 1)
        before = token.events()
        sent = node.ask("eth_getRawTransactionByHash", before[1].receipt.transaction)
        node.ask("anvil_mine", "0x1")
        node.ask("anvil_reorg", 2, [[sent, 1]])
        after = token.events()
        assert after[1].receipt.block == before[1].receipt.block + 1
        assert after[1].time == ledger.time_of(after[1].receipt.block)
        assert after[1].receipt == ledger.receipt(after[1].receipt.transaction)
        number = after[1].receipt.block
        node.ask("anvil_rollback", 1)
        node.ask("evm_setNextBlockTimestamp", after[1].time + 1000)
        node.ask("eth_sendRawTransaction", sent)
        last = token.events()
        assert last[1].receipt.block == number
        assert last[1].time == after[1].time + 1000
        node.ask("anvil_reorg", 1, [])
        assert len(token.events()) == 1
        with pytest.raises(NodeError, match="knows no transaction"):
            ledger.receipt(after[1].receipt.transaction)

    def test_whose_block_the_node_does_not_know_are_told(self, proxy, filled, monkeypatch):
        monkeypatch.setattr(jsonrpc, "BEHIND", 0.1)
        third = filled.events()[3]
        with JsonRpcLedger(proxy.url) as reader:
            assert reader.time_of(third.receipt.block) == third.time
            proxy.tamper = always("eth_getBlockByNumber", says(None))
            with pytest.raises(NodeError, match=f"knows no block {third.receipt.block}"):
                reader.time_of(third.receipt.block)

    def test_of_a_node_that_is_behind_are_waited_for(self, proxy, token, owner):
        """One URL, several nodes."""
        token.transact(owner, "transfer", ALICE, 1)
        proxy.tamper = instead("eth_blockNumber", says("0x0"), says("0x1"))
        assert transfers(token, ALICE) == [1]

    def test_of_a_chain_that_has_become_shorter_are_waited_for_once(
        self, node, proxy, token, owner, monkeypatch
    ):
        monkeypatch.setattr(jsonrpc, "BEHIND", 0.1)
        token.transact(owner, "transfer", ALICE, 1)
        node.ask("anvil_rollback", 1)
        proxy.asked.clear()
        assert transfers(token, ALICE) == []
        assert proxy.asked.count("eth_blockNumber") > 1
        proxy.asked.clear()
        assert transfers(token, ALICE) == []
        assert proxy.asked.count("eth_blockNumber") == 1


class TestRefusals:
    def test_of_calls_have_their_data(self, ledger, token):
        with pytest.raises(CallFailed) as failed:
            ledger.call(token.address, token.encode("transferFrom", ALICE, BOB, 3))
        assert failed.value.data[:4].hex() == "fb8f41b2"

    def test_of_estimates_have_their_data(self, token, owner):
        with pytest.raises(Reverted, match="ERC20InsufficientBalance"):
            token.estimate(owner.address, "transfer", ALICE, SUPPLY + 1)

    def test_an_estimate_is_what_is_used(self, token, owner):
        estimated = token.estimate(owner.address, "transfer", ALICE, 1)
        assert token.transact(owner, "transfer", ALICE, 1).gas_used <= estimated < 60_000

    @pytest.mark.parametrize(
        "error",
        [
            refusal("Execution reverted", data="0xfb8f41b2"),
            refusal("VM execution error.", -32015, data="Reverted 0xfb8f41b2"),
            refusal("execution reverted: custom", 3, data="0xfb8f41b2"),
        ],
    )
    def test_are_read_as_every_node_writes_them(self, proxy, ledger, error):
        proxy.tamper = always("eth_call", error)
        with pytest.raises(CallFailed) as failed:
            ledger.call(ALICE, b"")
        assert failed.value.data.hex() == "fb8f41b2"

    def test_are_seen_before_anything_is_sent(self, proxy, token, owner):
        proxy.asked.clear()
        with pytest.raises(Reverted, match="ERC20InsufficientBalance"):
            token.transact(owner, "transfer", ALICE, SUPPLY + 1)
        assert proxy.asked == ["eth_estimateGas"]

    @pytest.mark.parametrize("explained", [True, False])
    def test_in_a_block_are_explained_if_the_node_can(
        self, proxy, node, token, owner, devices, explained
    ):
        """Another transaction took the tokens first, in the same block."""
        rival = devices[0]
        node.ask("anvil_setBalance", rival.address, hex(10**18))
        token.transact(owner, "approve", rival.address, SUPPLY)
        hold(node)
        with at_once(lambda: token.transact(owner, "transfer", ALICE, 1)) as sent:
            wait_until(lambda: count(node, owner, "pending") == 3)
            take = token.encode("transferFrom", owner.address, BOB, SUPPLY)
            node.ask("eth_sendRawTransaction", raw(rival, 0, token.address, take, gwei=90))
            if not explained:
                proxy.tamper = always("eth_call", refusal("missing trie node"))
            mine(node)
            with pytest.raises(Reverted) as refused:
                sent.result()
        name = "ERC20InsufficientBalance" if explained else "reverted without a reason"
        assert str(refused.value).startswith(name)


def fee_of(waiting: list[Any]) -> int:
    return max((int(sent["maxFeePerGas"], 16) for sent in waiting), default=0)
