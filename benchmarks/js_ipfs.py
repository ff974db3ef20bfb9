"""A real IPFS node, js-ipfs, as npm installs it in tests/ipfs."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import httpx

FOLDER = Path(__file__).resolve().parents[1] / "tests/ipfs"
SECONDS_TO_START = 60.0


class NotInstalledError(Exception):
    """There is no js-ipfs."""


class JsIpfs:
    """A node that knows no other, until :meth:`connect`; started by ``with``.

    Parameters
    ----------
    repo : Path
        Its folder, not there yet.
    inside : sequence of str
        A command that its process is run by.

    Raises
    ------
    NotInstalledError
    """

    def __init__(self, repo: Path, inside: Sequence[str] = ()) -> None:
        if not (FOLDER / "node_modules/ipfs").exists():
            raise NotInstalledError(f"js-ipfs is not installed ({FOLDER}/node_modules lacks it)")
        self._repo = repo
        self._inside = inside
        self._port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self._run("init", "-e", "-p", "test").wait()
        config = json.loads((self._repo / "config").read_text())
        config["Addresses"] = {
            "Swarm": [f"/ip4/127.0.0.1/tcp/{_free_port()}"],
            "API": f"/ip4/127.0.0.1/tcp/{self._port}",
        }
        (self._repo / "config").write_text(json.dumps(config))
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """Of its process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, again if it was killed, and wait until it answers."""
        shutil.rmtree(self._repo / "repo.lock", ignore_errors=True)
        self._process = self._run("daemon", "--enable-preload=false", inside=self._inside)
        deadline = time.monotonic() + SECONDS_TO_START
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"js-ipfs does not start (status {self._process.poll()})")
            time.sleep(0.05)

    def kill(self) -> None:
        """End it as ``kill -9`` does, if it has not ended."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def ask(self, command: str, *args: str, file: bytes | None = None, **options: Any) -> Any:
        """What it answers to a command of its RPC; options are written with hyphens."""
        answer = httpx.post(
            f"{self.url}/api/v0/{command}",
            params={"arg": args, **{key.replace("_", "-"): each for key, each in options.items()}},
            files=None if file is None else {"file": file},
            timeout=60,
        )
        answer.raise_for_status()
        # Some commands answer with a line for each thing.
        lines = [json.loads(line) for line in answer.content.splitlines()]
        return lines[0] if len(lines) == 1 else lines

    def connect(self, other: "JsIpfs") -> None:
        """Let the two exchange blocks."""
        (address,) = other.ask("id")["Addresses"]
        self.ask("swarm/connect", address)

    def _run(self, *arguments: str, inside: Sequence[str] = ()) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [*inside, "node", str(FOLDER / "jsipfs.mjs"), *arguments],
            env=os.environ | {"IPFS_PATH": str(self._repo)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _answers(self) -> bool:
        try:
            self.ask("version")
        except httpx.TransportError:
            return False
        return True


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
