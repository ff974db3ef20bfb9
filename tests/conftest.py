"""What tests of several parts of the package need."""

import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from hypothesis import HealthCheck, settings
from js_ipfs import JsIpfs, NotInstalledError
from web3 import HTTPProvider, Web3
from web3.types import RPCEndpoint

from flower_chain.ledger import EmbeddedLedger, JsonRpcLedger, Ledger

# How long an example takes says what else the machine has to do.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

ROOT = Path(__file__).parent.parent
MODULES = ROOT / "contracts" / "node_modules"
ANVIL = (MODULES / "@foundry-rs/anvil-linux-amd64/bin/anvil", MODULES / ".bin/anvil")
# The first account of Hardhat's and Foundry's well-known test mnemonic: Anvil gives it ether.
OWNER_KEY = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"


@pytest.fixture(scope="session")
def owner() -> LocalAccount:
    """An account that can pay for gas on every ledger of these fixtures."""
    return Account.from_key(OWNER_KEY)


@pytest.fixture(scope="session")
def devices() -> list[LocalAccount]:
    """Six accounts without ether."""
    return [Account.from_key(number.to_bytes(32, "big")) for number in range(1, 7)]


class Anvil:
    """A real node.

    Parameters
    ----------
    options : str
        As on its command line.
    """

    def __init__(self, *options: str) -> None:
        self._options = options
        self._port = _free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        """Start it, again if it was killed, and wait until it answers."""
        binary = next((path for path in ANVIL if path.exists()), None)
        if binary is None:
            pytest.fail(f"Anvil is not installed ({ANVIL[0]} is missing): run `make test`", False)
        command = [str(binary), "--port", str(self._port), "--enable-tx-gas-limit", "--silent"]
        self._process = subprocess.Popen(
            [*command, *self._options], stdout=subprocess.DEVNULL, start_new_session=True
        )
        _wait_for(self._process, self.url)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal; .bin/anvil is a script that starts another process."""
        os.killpg(self._process.pid, number)

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it, if it has not ended."""
        if self._process.poll() is None:
            self.send_signal(number)
            self._process.wait()

    def ask(self, method: str, *params: object) -> Any:
        """What it answers."""
        answer = HTTPProvider(self.url).make_request(RPCEndpoint(method), params)
        assert "error" not in answer, answer
        return answer["result"]


@pytest.fixture(scope="session")
def anvil() -> Iterator[str]:
    """URL of a real node that lives as long as the tests."""
    node = Anvil()
    yield node.url
    node.stop()


@pytest.fixture
def start_anvil() -> Iterator[Callable[..., Anvil]]:
    """Starts nodes with options, which live as long as one test."""
    started: list[Anvil] = []

    def start(*options: str) -> Anvil:
        started.append(Anvil(*options))
        return started[-1]

    yield start
    for node in started:
        node.stop()


@pytest.fixture(scope="session")
def ipfs_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[JsIpfs, JsIpfs]]:
    """Two real IPFS nodes that exchange blocks and live as long as the tests."""
    folder = tmp_path_factory.mktemp("ipfs")
    try:
        near, far = JsIpfs(folder / "near"), JsIpfs(folder / "far")
    except NotInstalledError as fault:
        pytest.fail(f"{fault}: run `make test`", False)
    with near, far:
        near.connect(far)
        yield near, far


@pytest.fixture
def start_ipfs(tmp_path: Path) -> Iterator[Callable[..., JsIpfs]]:
    """Starts IPFS nodes that live as long as one test."""
    with ExitStack() as nodes:
        yield lambda *inside: nodes.enter_context(
            JsIpfs(tmp_path / f"ipfs-{secrets.token_hex(4)}", inside)
        )


@pytest.fixture(params=["embedded", "jsonrpc"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path, owner: LocalAccount) -> Iterator[Ledger]:
    """Each ledger of the package; `owner` can pay for gas on it."""
    if request.param == "embedded":
        opened: Ledger = EmbeddedLedger(tmp_path / "ledger.journal", [owner.address])
    else:
        opened = JsonRpcLedger(request.getfixturevalue("anvil"))
    with opened:
        yield opened


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_for(process: "subprocess.Popen[bytes]", url: str) -> None:
    web3 = Web3(HTTPProvider(url, exception_retry_configuration=None))
    deadline = time.monotonic() + 20
    while not web3.is_connected():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"Anvil does not answer at {url} (exit status {process.poll()})", False)
        time.sleep(0.02)
