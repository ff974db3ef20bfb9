"""A real `flwr run` in processes of its own, for tests that kill it."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

ROOT = Path(__file__).parents[2]
LEAN = ROOT / "tests/apps/lean"
MARK = "FLOWER_CHAIN_TEST"
PATIENCE = 900


def processes(mark: str) -> list[int]:
    """All processes that a server started, whatever their session and parent."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:  # it has just ended
            continue
        if f"{MARK}={mark}\0".encode() in environment:
            found.append(int(entry.name))
    return found


def kill(mark: str) -> None:
    """SIGKILL to everything at once, until nothing is left."""
    while alive := processes(mark):
        for process in alive:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)


@contextmanager
def serving(
    folder: Path, devices: int, options: str
) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
    """A real `flwr run` of the lean app with its own SuperLink, and its log.

    Whatever is left of it in the end is killed.
    """
    mark, log = str(folder), folder / "log.txt"
    folder.mkdir(exist_ok=True)
    temporary = mkdtemp()  # a short name: Ray has sockets in it
    config = f'chain.run="{folder}/run" chain.keys="{folder}/keys" num-devices={devices} {options}'
    command = [str(ROOT / "apps/simulate"), str(LEAN), "--run-config", config]
    command += ["--federation-config", f"num-supernodes={devices} client-resources-num-cpus=1"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {MARK: mark, "TMPDIR": temporary},
        )
    try:
        yield process, log
    finally:
        kill(mark)
        process.wait()
        rmtree(temporary, ignore_errors=True)


def blocks(folder: Path) -> int:
    """How many the ledger of a run has."""
    journal = folder / "run" / "ledger.journal"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def wait_for_blocks(process: "subprocess.Popen[bytes]", folder: Path, more: int) -> None:
    """Until the ledger has `more` than now."""
    deadline, wanted = time.monotonic() + PATIENCE, blocks(folder) + more
    while blocks(folder) < wanted:
        log = (folder / "log.txt").read_text()[-3000:]
        assert process.poll() is None, f"it has ended:\n{log}"
        assert time.monotonic() < deadline, f"it does not get on:\n{log}"
        time.sleep(0.01)
