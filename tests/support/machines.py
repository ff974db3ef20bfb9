"""The machines that README.md speaks of, as folders and processes of this one."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from web3 import HTTPProvider
from web3.types import RPCEndpoint

from flower_chain.keys import load

ROOT = Path(__file__).parents[2]
HOSPITALS = ("hospital-a", "hospital-b", "hospital-c")
OWNER = "superlink"


def blocks(heading: str) -> list[tuple[str, str]]:
    """The shell blocks of a section of README.md: whom each is for, and its lines."""
    text = (ROOT / "README.md").read_text()
    (section,) = re.findall(rf"^## {heading}$(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    return re.findall(r"^```sh (.*?)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return int(some.getsockname()[1])


def until(true: Callable[[], bool], what: str, seconds: float = 900) -> None:
    """Wait for something."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"after {seconds:g} s still no {what}"
        time.sleep(0.2)


@dataclass
class Machines:
    """Runs the lines of README.md, with what is another here put in for what it says.

    ============================= ===========================================
    ``/srv``                      a folder of this test
    ``scp FILE HOST:/srv``        ``cp FILE /srv``
    ``superlink.example:8000``    a free port of 127.0.0.1
    ``https://node.example``      Anvil
    ``hospital-a``, partition 0   each device, and its number
    ``flower-supernode``          with a port of its own: they share a machine
    ``~``                         a folder for each machine
    ============================= ===========================================
    """

    root: Path
    node: str
    port: int = field(default_factory=free_port)

    @property
    def srv(self) -> Path:
        """What is ``/srv`` in README.md."""
        return self.root / "srv"

    @property
    def run(self) -> Path:
        """The folder of the run."""
        return self.srv / "federation/run"

    def set_up(self) -> None:
        """The folders that README.md takes for granted, and in them the app."""
        for folder in ("federation", *HOSPITALS):
            (self.srv / folder).mkdir(parents=True)
        (self.srv / "federation/app").symlink_to(ROOT / "apps/digits")

    def follow(self, section: list[tuple[str, str]], own_nodes: bool = False) -> None:
        """Run the blocks of a section, each where it belongs; devices with or without own nodes."""
        for whom, lines in section:
            if "flower-supernode" in lines and own_nodes != ("node" in whom):
                continue
            if whom == "owner":
                self.as_owner(lines)
            else:
                for hospital in HOSPITALS:
                    self.as_device(hospital, lines)
            if "flower-superlink" in lines:
                until(self._superlink_answers, "SuperLink", 30)
            if "flower-chain keys new" in lines and (whom == "owner" or own_nodes):
                for key in self.srv.glob("*/*.key"):
                    if key.stem in ("owner", *HOSPITALS):
                        self.give_ether(load(key).address)

    def account(self, hospital: str) -> str:
        """That of a device, from its key file."""
        return load(self.srv / hospital / f"{hospital}.key").address

    def give_ether(self, account: str) -> None:
        """What README.md says an account needs for gas."""
        ask = HTTPProvider(self.node).make_request
        ask(RPCEndpoint("anvil_setBalance"), [account, hex(10**21)])

    def as_owner(self, lines: str, timeout: float = 1800) -> str:
        """Run lines on the owner's machine; returns what they print."""
        return self._bash(OWNER, self._here(lines), timeout)

    def as_device(self, name: str, lines: str, timeout: float = 300) -> str:
        """Run lines on the machine of a device."""
        number = HOSPITALS.index(name)
        lines = lines.replace("hospital-a", name).replace(
            "partition-id=0", f"partition-id={number}"
        )
        lines = lines.replace("flower-supernode ", f"flower-supernode --port {free_port()} ")
        return self._bash(name, self._here(lines), timeout)

    def kill(self, machine: str | None = None) -> None:
        """End all processes on a machine, or on all of them, at once."""
        home = str(self.root / "home" / (machine or ""))
        while pids := list(_processes(f"HOME={home}".encode())):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)

    def log(self, machine: str) -> str:
        """What the SuperNode or SuperLink there has logged."""
        file = "federation/superlink.log" if machine == OWNER else f"{machine}/supernode.log"
        return (self.srv / file).read_text()

    def _superlink_answers(self) -> bool:
        with socket.socket() as some:
            return some.connect_ex(("127.0.0.1", self.port)) == 0

    def _here(self, lines: str) -> str:
        lines = re.sub(r"^( *)scp (.*) \S+\.example:/srv", r"\1cp \2 /srv", lines, flags=re.M)
        lines = lines.replace("/srv", str(self.srv))
        lines = lines.replace("https://node.example", self.node)
        lines = lines.replace("superlink.example:8000", f"127.0.0.1:{self.port}")
        return lines.replace("--host 0.0.0.0 --port 8000", f"--host 127.0.0.1 --port {self.port}")

    def _bash(self, machine: str, lines: str, timeout: float) -> str:
        home = self.root / "home" / machine
        home.mkdir(parents=True, exist_ok=True)
        env = {
            "HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "PYTHONWARNINGS": "ignore",
            "COLUMNS": "200",
        }
        printed = self.root / f"{machine}.printed"
        with printed.open("a+") as out:
            start = out.tell()
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", lines],
                env=env,
                cwd=home,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                timeout=timeout,
                check=False,
            )
            out.seek(start)
            text = out.read()
        assert done.returncode == 0, f"on {machine}:\n{lines}\n{text}"
        return text


@contextmanager
def machines(root: Path, node: str) -> Iterator[Machines]:
    """The machines; none of their processes is left, whatever happens, and failures show logs."""
    made = Machines(root, node)
    made.set_up()
    try:
        yield made
    except BaseException:
        for log in sorted([*root.glob("*.printed"), *made.srv.glob("*/*.log")]):
            print(f"--- {log.name} of {log.parent.name}", log.read_text()[-6000:], sep="\n")
        raise
    finally:
        made.kill()


def _processes(setting: bytes) -> Iterator[int]:
    """Those whose environment has a setting that begins like this."""
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if any(found.startswith(setting) for found in environ.read_bytes().split(b"\0")):
                yield int(environ.parent.name)
