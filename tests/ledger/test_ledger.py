import json
import multiprocessing
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from web3 import HTTPProvider

from flower_chain.errors import JournalError, LedgerError, NodeError, Reverted, WrongChain
from flower_chain.ledger import Contract, EmbeddedLedger, JsonRpcLedger, Ledger, Receipt
from flower_chain.ledger.journal import Genesis, Journal
from flower_chain.records import UNMEASURED, Contribution, Domain, pack_errors, sign
from flower_chain.rules.record_and_reward import Rule

SUPPLY = 10**24
ALICE = "0x" + 40 * "1"
BOB = "0x" + 40 * "2"
NOWHERE = "0x" + 40 * "9"
MODEL = (b"\1" * 32, b"\2" * 36, b"\3" * 32, UNMEASURED)


def terms(threshold_ppm: int = 0) -> tuple[Any, ...]:
    return b"\7" * 32, int(Rule.TREND), threshold_ppm, 0, 0, 0, 1, 10, 1000, 60, 0


@pytest.fixture
def token(ledger: Ledger, owner: LocalAccount) -> Contract:
    return ledger.deploy(owner, "RewardToken", SUPPLY)


class TestBothLedgers:
    def test_a_deployed_contract_is_there(self, ledger: Ledger, token: Contract) -> None:
        assert (token.ledger, token.name) == (ledger, "RewardToken")
        assert ledger.has_code(token.address)

    def test_its_code_is_compared(self, ledger: Ledger, token: Contract) -> None:
        token.check_code()
        with pytest.raises(WrongChain, match=f"{token.address} is not this package's BlockFlow"):
            Contract(ledger, token.address, "BlockFlow").check_code()

    def test_no_contract_is_where_none_was_deployed(
        self, ledger: Ledger, owner: LocalAccount
    ) -> None:
        assert not ledger.has_code(NOWHERE)
        assert not ledger.has_code(owner.address)

    def test_a_constructor_gets_its_arguments(
        self, ledger: Ledger, owner: LocalAccount, token: Contract
    ) -> None:
        contract = ledger.deploy(owner, "RecordAndReward", token.address, terms(), MODEL)
        assert contract.call("owner").lower() == owner.address.lower()
        assert contract.call("token").lower() == token.address.lower()
        assert contract.call("rate") == 10

    def test_a_call_gives_one_value_as_it_is(self, owner: LocalAccount, token: Contract) -> None:
        assert token.call("balanceOf", owner.address) == SUPPLY

    def test_a_call_gives_several_values_as_a_tuple(
        self, ledger: Ledger, owner: LocalAccount, token: Contract
    ) -> None:
        contract = ledger.deploy(owner, "RecordAndReward", token.address, terms(), MODEL)
        assert contract.call("models", 0) == MODEL

    def test_a_transaction_changes_the_state(self, owner: LocalAccount, token: Contract) -> None:
        token.transact(owner, "transfer", ALICE, 5)
        assert token.call("balanceOf", ALICE) == 5
        assert token.call("balanceOf", owner.address) == SUPPLY - 5

    def test_every_transaction_has_a_block_of_its_own(
        self, owner: LocalAccount, token: Contract
    ) -> None:
        receipts = [token.transact(owner, "transfer", ALICE, 1) for _ in range(3)]
        first = receipts[0].block
        assert [receipt.block for receipt in receipts] == [first, first + 1, first + 2]

    def test_a_receipt_is_found_by_its_transaction(
        self, ledger: Ledger, owner: LocalAccount, token: Contract
    ) -> None:
        receipt = token.transact(owner, "transfer", ALICE, 1)
        assert ledger.receipt(receipt.transaction) == receipt
        assert receipt.transaction.startswith("0x")
        assert receipt.gas_used > 21_000
        assert receipt.created is None

    def test_a_refused_transaction_names_the_error_with_its_arguments(
        self, owner: LocalAccount, token: Contract
    ) -> None:
        with pytest.raises(Reverted) as refused:
            token.transact(owner, "transfer", ALICE, SUPPLY + 1)
        sender = owner.address.lower()
        assert str(refused.value) == f"ERC20InsufficientBalance({sender}, {SUPPLY}, {SUPPLY + 1})"

    def test_a_refused_call_names_the_error_with_its_arguments(self, token: Contract) -> None:
        with pytest.raises(Reverted) as refused:
            token.call("transferFrom", ALICE, BOB, 3)
        assert str(refused.value) == f"ERC20InsufficientAllowance(0x{40 * '0'}, 0, 3)"

    def test_a_refused_deployment_names_the_error_with_its_arguments(
        self, ledger: Ledger, owner: LocalAccount, token: Contract
    ) -> None:
        with pytest.raises(Reverted) as refused:
            ledger.deploy(owner, "RecordAndReward", token.address, terms(1_000_001), MODEL)
        assert str(refused.value) == "NotAShare(1000001)"

    def test_a_refusal_without_data_says_so(self, ledger: Ledger, token: Contract) -> None:
        with pytest.raises(Reverted, match=r"^reverted without a reason$"):
            Contract(ledger, token.address, "RecordAndReward").call("finished")

    def test_an_error_that_the_interface_lacks_is_shown_as_bytes(
        self, ledger: Ledger, owner: LocalAccount, token: Contract
    ) -> None:
        contract = ledger.deploy(owner, "RecordAndReward", token.address, terms(), MODEL)
        disguised = Contract(ledger, token.address, "RecordAndReward")
        data = token.encode("transfer", ALICE, SUPPLY + 1)
        with pytest.raises(LedgerError, match=r"^reverted with 0xe450d38c[0-9a-f]{192}$"):
            ledger.send(owner, disguised.address, data)
        assert contract.call("version") == 0

    def test_a_refused_transaction_does_not_hold_up_the_next(
        self, owner: LocalAccount, token: Contract
    ) -> None:
        with pytest.raises(Reverted):
            token.transact(owner, "transfer", ALICE, SUPPLY + 1)
        token.transact(owner, "transfer", ALICE, 1)
        assert token.call("balanceOf", ALICE) == 1

    def test_events_are_decoded_in_order(
        self, ledger: Ledger, owner: LocalAccount, token: Contract
    ) -> None:
        receipts = [token.transact(owner, "transfer", to, n) for to, n in [(BOB, 2), (ALICE, 1)]]
        minted, *events = token.events()
        assert minted.args["value"] == SUPPLY
        assert [event.name for event in events] == ["Transfer", "Transfer"]
        assert [event.args for event in events] == [
            {"from": owner.address, "to": BOB, "value": 2},
            {"from": owner.address, "to": ALICE, "value": 1},
        ]
        assert [event.receipt for event in events] == receipts
        assert [event.time for event in events] == [ledger.time_of(r.block) for r in receipts]

    def test_events_of_one_transaction_are_those_of_its_receipt(
        self, owner: LocalAccount, token: Contract
    ) -> None:
        token.transact(owner, "transfer", BOB, 2)
        receipt = token.transact(owner, "transfer", ALICE, 1)
        token.transact(owner, "transfer", BOB, 3)
        (event,) = token.events_in(receipt)
        assert (event.args["value"], event.receipt) == (1, receipt)

    def test_events_since_a_block_leave_out_what_was_before(
        self, owner: LocalAccount, token: Contract
    ) -> None:
        first, second = (token.transact(owner, "transfer", ALICE, n) for n in (1, 2))
        assert [e.args["value"] for e in token.events(first.block)] == [1, 2]
        assert [e.args["value"] for e in token.events(second.block)] == [2]
        assert token.events(second.block + 1) == []

    def test_an_estimate_is_near_what_is_used(self, owner: LocalAccount, token: Contract) -> None:
        estimated = token.estimate(owner.address, "transfer", ALICE, 1)
        used = token.transact(owner, "transfer", ALICE, 1).gas_used
        assert used == pytest.approx(estimated, rel=0.02)
        assert token.call("balanceOf", ALICE) == 1

    def test_an_estimate_of_what_would_be_refused_says_why(self, token: Contract) -> None:
        with pytest.raises(Reverted, match=r"^ERC20InsufficientBalance\("):
            token.estimate(BOB, "transfer", ALICE, 1)

    def test_nothing_is_under_way_when_a_transaction_is_done(
        self, ledger: Ledger, owner: LocalAccount, token: Contract
    ) -> None:
        token.transact(owner, "transfer", ALICE, 1)
        ledger.catch_up(owner.address)
        assert token.call("balanceOf", ALICE) == 1

    def test_events_of_contracts_are_not_mixed(
        self, ledger: Ledger, owner: LocalAccount, token: Contract
    ) -> None:
        other = ledger.deploy(owner, "RewardToken", 7)
        token.transact(owner, "transfer", ALICE, 1)
        assert [event.args["value"] for event in other.events()] == [7]
        assert [event.args["value"] for event in token.events()] == [SUPPLY, 1]

    def test_events_of_contracts_are_not_mixed_within_a_transaction(
        self, ledger: Ledger, owner: LocalAccount, token: Contract
    ) -> None:
        contract = ledger.deploy(owner, "RecordAndReward", token.address, terms(), MODEL)
        token.transact(owner, "transfer", contract.address, 9)
        receipt = contract.transact(owner, "finish")
        assert [event.name for event in contract.events_in(receipt)] == ["Finished", "PoolEmptied"]
        (event,) = token.events_in(receipt)
        assert event.args == {"from": contract.address, "to": owner.address, "value": 9}

    def test_time_never_goes_backwards(
        self, ledger: Ledger, owner: LocalAccount, token: Contract
    ) -> None:
        blocks = [token.transact(owner, "transfer", ALICE, 1).block for _ in range(3)]
        times = [ledger.time_of(block) for block in blocks]
        assert times == sorted(times)
        assert abs(times[0] - time.time()) < 1000

    def test_an_account_that_can_not_pay_for_gas_is_a_ledger_error(self, token: Contract) -> None:
        with pytest.raises(LedgerError):
            token.transact(Account.create(), "approve", ALICE, 1)

    def test_a_call_where_no_contract_is_is_a_ledger_error(self, ledger: Ledger) -> None:
        with pytest.raises(LedgerError):
            Contract(ledger, NOWHERE, "RewardToken").call("totalSupply")


class TestJsonRpcLedger:
    def test_an_unreachable_node_is_told_in_one_line(self) -> None:
        with pytest.raises(NodeError) as fault:
            JsonRpcLedger("http://127.0.0.1:1")
        assert "http://127.0.0.1:1" in str(fault.value)
        assert "\n" not in str(fault.value)

    @pytest.mark.parametrize("url", ["", "localhost:8545", "ws://127.0.0.1:1", "http://"])
    def test_an_url_that_is_none_is_told_in_one_line(self, url: str) -> None:
        with pytest.raises(NodeError) as fault:
            JsonRpcLedger(url)
        assert "\n" not in str(fault.value)

    @pytest.mark.parametrize(
        "answer",
        [
            "",
            "<html>",
            "[]",
            "null",
            "{}",
            '{"jsonrpc": "2.0", "id": ID, "result": "zz"}',
            '{"jsonrpc": "2.0", "id": ID, "result": null}',
            '{"jsonrpc": "2.0", "id": ID, "result": {}}',
            '{"jsonrpc": "2.0", "id": ID, "error": "no"}',
            '{"jsonrpc": "2.0", "id": ID, "error": {"code": -1, "message": "no"}}',
        ],
    )
    def test_what_no_node_would_answer_is_told_in_one_line(self, answer: str) -> None:
        with answering(answer) as url, pytest.raises(NodeError) as fault:
            JsonRpcLedger(url)
        assert url in str(fault.value)
        assert "\n" not in str(fault.value)

    def test_a_node_that_goes_away_is_told(self, owner: LocalAccount) -> None:
        with answering('{"jsonrpc": "2.0", "id": ID, "result": "0x7a69"}') as url:
            ledger = JsonRpcLedger(url, patience=0.1)
        with pytest.raises(NodeError, match=url):
            ledger.send(owner, ALICE, b"")

    def test_another_chain_is_refused(self, anvil: str) -> None:
        with pytest.raises(WrongChain, match="is on chain 31337, but the run is on 5"):
            JsonRpcLedger(anvil, 5)

    def test_takes_the_chain_of_the_run(self, anvil: str) -> None:
        assert JsonRpcLedger(anvil, 31337).chain_id == JsonRpcLedger(anvil).chain_id == 31337


class answering:  # noqa: N801
    """A server that gives one answer to everything."""

    def __init__(self, answer: str) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
                content = answer.replace("ID", str(asked["id"])).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class TestSameAsANode:
    def test_addresses_receipts_and_logs_are_those_of_anvil(
        self, anvil: str, tmp_path: Path, devices: list[LocalAccount]
    ) -> None:
        """Same chain id, same account, same transactions."""
        account = Account.create()
        HTTPProvider(anvil).make_request("anvil_setBalance", [account.address, hex(10**20)])
        path = tmp_path / "ledger.journal"
        Journal(path, Genesis(31337, int(time.time()), (account.address,))).close()
        with EmbeddedLedger(path) as embedded, JsonRpcLedger(anvil) as node:
            here, there = (live(ledger, account, devices) for ledger in (embedded, node))
        assert [r.created for r in here] == [r.created for r in there]
        assert [r.gas_used for r in here] == [r.gas_used for r in there]
        assert [[said(log) for log in r.logs] for r in here] == [
            [said(log) for log in r.logs] for r in there
        ]


def live(ledger: Ledger, account: LocalAccount, devices: list[LocalAccount]) -> list[Receipt]:
    """Deploy, fund, enrol, submit, pay, advance."""
    token = ledger.deploy(account, "RewardToken", SUPPLY)
    contract = ledger.deploy(account, "RecordAndReward", token.address, terms(), MODEL)
    domain = Domain(ledger.chain_id, contract.address)
    batch = []
    for device in devices[1:]:
        errors = (900_000, 400_000)
        contribution = Contribution(device.address, 0, 9, b"\1" * 32, b"\2" * 36, (1, 2), errors)
        signature = sign(contribution.encode(domain), device)
        batch.append((contribution.as_tuple(), signature[:32], signature[32:]))
    addresses = [device.address for device in devices]
    receipts = [
        ledger.receipt(token.events()[0].receipt.transaction),
        ledger.receipt(contract.events()[0].receipt.transaction),
        token.transact(account, "transfer", contract.address, 10**6),
        contract.transact(account, "enrol", addresses[:4]),
        contract.transact(account, "submit", batch),
        contract.transact(account, "refuse", addresses[1], 14),
        contract.transact(account, "pay", addresses),
        contract.transact(account, "withdraw", addresses[2]),
    ]
    assert len(contract.events_in(receipts[4])) == len(batch)
    assert pack_errors((900_000,)) in bytes(receipts[4].logs[0]["data"])
    return receipts


def said(log: Any) -> tuple[str, bytes, list[bytes]]:
    return log["address"], bytes(log["data"]), [bytes(topic) for topic in log["topics"]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.journal"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set."""
    now = [1_800_000_000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


class TestEmbeddedLedger:
    def test_new_ledgers_are_different_chains(self, tmp_path: Path, owner: LocalAccount) -> None:
        with (
            EmbeddedLedger(tmp_path / "a", [owner.address]) as a,
            EmbeddedLedger(tmp_path / "b", [owner.address]) as b,
        ):
            assert a.chain_id != b.chain_id
            a.deploy(owner, "RewardToken", 1)
            b.deploy(owner, "RewardToken", 1)
        with EmbeddedLedger(tmp_path / "a") as again:
            assert again.chain_id == a.chain_id

    def test_block_times_follow_the_clock(
        self, path: Path, owner: LocalAccount, clock: list[float]
    ) -> None:
        with EmbeddedLedger(path, [owner.address]) as ledger:
            for now in (1_800_000_010.9, 1_800_000_500.0):
                clock[0] = now
                assert ledger.time_of(ledger.send(owner, ALICE, b"").block) == int(now)

    def test_block_times_increase_when_the_clock_goes_backwards(
        self, path: Path, owner: LocalAccount, clock: list[float]
    ) -> None:
        times = []
        for now in (1_800_000_010, 1_800_000_010, 5, 1_700_000_000):
            clock[0] = now
            with EmbeddedLedger(path, [owner.address]) as ledger:
                times += [ledger.time_of(ledger.send(owner, ALICE, b"").block) for _ in range(2)]
        assert times == list(range(1_800_000_011, 1_800_000_019))

    def test_a_replay_gives_the_same_again(self, path: Path, owner: LocalAccount) -> None:
        with EmbeddedLedger(path, [owner.address]) as ledger:
            token = ledger.deploy(owner, "RewardToken", SUPPLY)
            token.transact(owner, "transfer", ALICE, 5)
            with pytest.raises(Reverted):
                token.transact(owner, "transfer", ALICE, SUPPLY)
            token.transact(owner, "transfer", BOB, 6)
            before = picture(ledger, token.address)
        with EmbeddedLedger(path) as again:
            assert picture(again, token.address) == before
        with EmbeddedLedger(path, read_only=True) as reader:
            assert picture(reader, token.address) == before

    def test_goes_on_after_a_replay(self, path: Path, owner: LocalAccount) -> None:
        with EmbeddedLedger(path, [owner.address]) as ledger:
            address = ledger.deploy(owner, "RewardToken", SUPPLY).address
        for total in (1, 2, 3):
            with EmbeddedLedger(path) as ledger:
                token = Contract(ledger, address, "RewardToken")
                token.transact(owner, "transfer", ALICE, 1)
                assert token.call("balanceOf", ALICE) == total

    def test_is_read_while_it_is_written(self, path: Path, owner: LocalAccount) -> None:
        with EmbeddedLedger(path, [owner.address]) as ledger:
            token = ledger.deploy(owner, "RewardToken", SUPPLY)
            with EmbeddedLedger(path, read_only=True) as reader:
                token.transact(owner, "transfer", ALICE, 1)
                assert Contract(reader, token.address, "RewardToken").call("balanceOf", ALICE) == 0
            with EmbeddedLedger(path, read_only=True) as reader:
                assert Contract(reader, token.address, "RewardToken").call("balanceOf", ALICE) == 1

    def test_is_written_by_one_at_a_time(self, path: Path, owner: LocalAccount) -> None:
        with EmbeddedLedger(path, [owner.address]), pytest.raises(JournalError, match="in use"):
            EmbeddedLedger(path)

    def test_a_reader_sends_nothing(self, path: Path, owner: LocalAccount) -> None:
        EmbeddedLedger(path, [owner.address]).close()
        reader = EmbeddedLedger(path, read_only=True)
        with pytest.raises(LedgerError, match="is not open for writing"):
            reader.send(owner, ALICE, b"")

    def test_what_is_too_large_for_a_transaction_is_not_sent(
        self, path: Path, owner: LocalAccount
    ) -> None:
        with EmbeddedLedger(path, [owner.address]) as ledger:
            with pytest.raises(LedgerError, match=f"{owner.address} can't send this transaction"):
                ledger.send(owner, ALICE, b"\1" * 2_000_000)
            assert ledger.send(owner, ALICE, b"\1").block == 1

    def test_a_reader_makes_no_journal(self, path: Path) -> None:
        with pytest.raises(JournalError, match="No such file"):
            EmbeddedLedger(path, read_only=True)
        assert not path.exists()

    def test_a_transaction_that_was_not_journalled_does_not_count(
        self, path: Path, owner: LocalAccount, clock: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is acknowledged after a failed write must be there when the journal is replayed."""
        sent = []
        with EmbeddedLedger(path, [owner.address]) as ledger:
            with monkeypatch.context() as full:
                full.setattr(Journal, "append", fail)
                with pytest.raises((OSError, LedgerError)):
                    ledger.send(owner, ALICE, b"")
            clock[0] += 60
            with suppress(LedgerError):  # refusing to go on is as good
                sent.append(ledger.send(owner, ALICE, b""))
        with EmbeddedLedger(path) as again:
            assert [again.receipt(receipt.transaction) for receipt in sent] == sent


def fail(*_: object) -> None:
    raise OSError(28, "No space left on device")


def picture(ledger: EmbeddedLedger, address: str) -> list[Any]:
    """All that can be asked of a ledger with a token."""
    token = Contract(ledger, address, "RewardToken")
    receipts = list(ledger._receipts.values())
    return [
        ledger.chain_id,
        receipts,
        [ledger.time_of(receipt.block) for receipt in receipts],
        ledger.logs(address),
        token.events(),
        [token.call("balanceOf", account) for account in (ALICE, BOB)],
        ledger.has_code(address),
    ]


@pytest.fixture(scope="module")
def journal(owner: LocalAccount, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The lines of a journal: a genesis, then four plain transactions."""
    path = tmp_path_factory.mktemp("edits") / "ledger.journal"
    with EmbeddedLedger(path, [owner.address]) as ledger:
        for to in (ALICE, BOB, ALICE, BOB):
            ledger.send(owner, to, b"")
    return path.read_bytes().splitlines(keepends=True)


def edit(lines: list[bytes], number: int, **changes: Any) -> list[bytes]:
    """`lines` with some values on the line of block `number` changed; block 0 is the genesis."""
    changed = json.dumps(json.loads(lines[number]) | changes).encode() + b"\n"
    return [*lines[:number], changed, *lines[number + 1 :]]


def refuse(path: Path, lines: list[bytes]) -> str:
    """What is said of a journal with these `lines`."""
    path.write_bytes(b"".join(lines))
    with pytest.raises(JournalError) as refused:
        EmbeddedLedger(path, read_only=True)
    with pytest.raises(JournalError) as again:
        EmbeddedLedger(path)
    assert str(again.value) == str(refused.value)
    return str(refused.value)


OTHER_KINDS: dict[tuple[int, str], tuple[Any, ...]] = {
    (0, "chain_id"): ("x", 1.5, -1, None),
    (0, "time"): ("x", 1.5, -1),
    (0, "funded"): (None, 1.5, -1, "x"),
    (2, "transaction"): ("x", None, 1.5, -1),
    (2, "time"): (None, "x", 1.5, -1),
    (2, "block"): (None, "x", 1.5, -1),
}
"""Values of another kind, by line and field."""

KINDS = [(*place, value) for place, values in OTHER_KINDS.items() for value in values]


class TestEdits:
    def test_the_journal_is_good_before(self, path: Path, journal: list[bytes]) -> None:
        path.write_bytes(b"".join(journal))
        with EmbeddedLedger(path, read_only=True) as ledger:
            assert len(ledger._receipts) == 4

    @pytest.mark.parametrize("number", [1, 2, 4])
    @pytest.mark.parametrize("seconds", [-1000, -1, 1, 1000])
    def test_an_edited_time_is_found(
        self, path: Path, journal: list[bytes], number: int, seconds: int
    ) -> None:
        then = json.loads(journal[number])["time"] + seconds
        said = refuse(path, edit(journal, number, time=then))
        assert f"block {number} " in said

    @pytest.mark.parametrize("number", [1, 2, 4])
    def test_an_edited_block_hash_is_found(
        self, path: Path, journal: list[bytes], number: int
    ) -> None:
        said = refuse(path, edit(journal, number, block="0x" + 64 * "0"))
        assert f"block {number} was edited: the journal says that its hash is 0x0000" in said

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("chain_id", 1),
            ("time", 1),
            ("funded", []),
            ("funded", [ALICE]),
            ("funded", [ALICE, BOB]),
        ],
    )
    def test_an_edited_genesis_is_found(
        self, path: Path, journal: list[bytes], field: str, value: Any
    ) -> None:
        assert "block 1 " in refuse(path, edit(journal, 0, **{field: value}))

    def test_an_edited_chain_id_is_found_where_a_contract_is_deployed(
        self, path: Path, owner: LocalAccount
    ) -> None:
        with EmbeddedLedger(path, [owner.address]) as ledger:
            ledger.deploy(owner, "RewardToken", SUPPLY)
        lines = path.read_bytes().splitlines(keepends=True)
        assert "block 1 " in refuse(path, edit(lines, 0, chain_id=1))

    @pytest.mark.parametrize(("number", "field", "value"), KINDS)
    def test_a_value_of_another_kind_is_found(
        self, path: Path, journal: list[bytes], number: int, field: str, value: Any
    ) -> None:
        refuse(path, edit(journal, number, **{field: value}))

    @pytest.mark.parametrize("account", ["x", 5, "0x12", None])
    def test_a_funded_account_that_is_none_is_found(
        self, path: Path, journal: list[bytes], account: Any
    ) -> None:
        refuse(path, edit(journal, 0, funded=[account]))

    def test_a_changed_byte_of_a_transaction_is_found(
        self, path: Path, journal: list[bytes]
    ) -> None:
        lines = [journal[0], journal[1]]
        raw = bytes.fromhex(json.loads(journal[1])["transaction"][2:])
        said = {}
        for i in range(len(raw)):
            changed = raw[:i] + bytes([raw[i] ^ 1]) + raw[i + 1 :]
            path.write_bytes(b"".join(edit(lines, 1, transaction="0x" + changed.hex())))
            try:
                EmbeddedLedger(path, read_only=True)
            except Exception as fault:
                said[i] = fault
        assert set(said) == set(range(len(raw)))
        assert {i: f for i, f in said.items() if not isinstance(f, JournalError)} == {}
        assert all("block 1 " in str(fault) for fault in said.values())

    @pytest.mark.parametrize(
        ("cut", "where"),
        [
            ("", "line 3 is damaged"),
            ("0x", "block 2 "),
            ("0x02", "block 2 "),
            ("0xzz", "line 3 is"),
        ],
    )
    def test_half_a_transaction_is_found(
        self, path: Path, journal: list[bytes], cut: str, where: str
    ) -> None:
        assert where in refuse(path, edit(journal, 2, transaction=cut))

    def test_another_transaction_that_the_owner_signed_is_found(
        self, path: Path, journal: list[bytes], owner: LocalAccount
    ) -> None:
        path.write_bytes(b"".join(journal[:2]))
        with EmbeddedLedger(path, read_only=True) as before:
            other = "0x" + before._sign(owner, ALICE, b"other").hex()
        said = refuse(path, edit(journal, 2, transaction=other))
        assert "block 2 was edited" in said

    def test_swapped_lines_are_found(self, path: Path, journal: list[bytes]) -> None:
        genesis, one, two, three, four = journal
        assert "block 2 " in refuse(path, [genesis, one, three, two, four])

    def test_a_deleted_line_is_found(self, path: Path, journal: list[bytes]) -> None:
        assert "block 2 " in refuse(path, journal[:2] + journal[3:])

    def test_a_line_inserted_twice_is_found(self, path: Path, journal: list[bytes]) -> None:
        assert "block 3 " in refuse(path, journal[:3] + journal[2:])

    def test_a_deleted_genesis_is_found(self, path: Path, journal: list[bytes]) -> None:
        assert "line 1 is damaged" in refuse(path, journal[1:])

    def test_a_refused_journal_is_neither_changed_nor_locked(
        self, path: Path, journal: list[bytes]
    ) -> None:
        edited = edit(journal, 2, block="0x")
        refuse(path, edited)
        assert path.read_bytes() == b"".join(edited)
        path.write_bytes(b"".join(journal))
        EmbeddedLedger(path).close()


class TestKill:
    def test_every_acknowledged_transaction_survives_kill_9(
        self, path: Path, owner: LocalAccount
    ) -> None:
        with EmbeddedLedger(path, [owner.address]) as ledger:
            address = ledger.deploy(owner, "RewardToken", SUPPLY).address
        kills, acknowledged = 8, list[Receipt]()
        for kill in range(kills):
            # The first while it opens the journal, the others at any moment after that.
            acknowledged += run_and_kill(path, owner, address, kill > 0)
        with EmbeddedLedger(path) as ledger:
            token = Contract(ledger, address, "RewardToken")
            assert [ledger.receipt(r.transaction) for r in acknowledged] == acknowledged
            moved = token.call("balanceOf", ALICE)
            assert moved == len(token.events()) - 1
            assert len(acknowledged) <= moved <= len(acknowledged) + kills
            assert len(acknowledged) >= kills - 1
            token.transact(owner, "transfer", ALICE, 1)

    def test_a_ledger_killed_while_it_is_made_can_be_made_again(
        self, path: Path, owner: LocalAccount
    ) -> None:
        for _ in range(4):
            run_and_kill(path, owner, NOWHERE, False)
            with EmbeddedLedger(path, [owner.address]) as ledger:
                ledger.send(owner, ALICE, b"")
            path.unlink()


FORK = multiprocessing.get_context("fork")


def run_and_kill(path: Path, owner: LocalAccount, token: str, sending: bool) -> list[Receipt]:
    """What a process that sends until it is killed was told that it had sent."""
    reader, writer = FORK.Pipe(duplex=False)
    process = FORK.Process(target=send_forever, args=(path, owner, token, writer), daemon=True)
    process.start()
    writer.close()
    told: list[Receipt] = []
    if sending:
        told.append(reader.recv())
    time.sleep(random.uniform(0, 0.12 if sending else 0.03))
    process.kill()
    told += rest(reader)
    process.join()
    assert process.exitcode == -9
    return told


def send_forever(path: Path, owner: LocalAccount, token: str, told: Connection) -> None:
    with EmbeddedLedger(path, [owner.address]) as ledger:
        contract = Contract(ledger, token, "RewardToken")
        while True:
            told.send(contract.transact(owner, "transfer", ALICE, 1))


def rest(reader: Connection) -> Iterator[Receipt]:
    while True:
        try:
            yield reader.recv()
        except EOFError:
            return
