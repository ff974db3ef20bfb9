"""What the IPFS store costs: models up to a node and down again, beside plain curl.

The node is a real one, js-ipfs, on this machine, unless `--node` names another. Store and curl
take turns, each with new random bytes; both read a file that was just written, and write one. The
store computes the CID first, lists what it has put, and compares what comes with the CID; curl does
nothing of that, but has to start.
"""

import os
import re
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from js_ipfs import JsIpfs, NotInstalledError
from report import Claim, Table, claims_table, write_json
from rich.console import Console

from flower_chain.errors import StoreError
from flower_chain.store import IpfsStore, cid_of
from flower_chain.store.ipfs import ADD
from flower_chain.store.rpc import HttpRpc

MB = 1_000_000
FOLDER = "/flower-chain-benchmark"
SOURCE = "issue: data trust"
BLOCK = 256 * 1024

console = Console()


@dataclass(frozen=True)
class Timing:
    """One size in one direction, in seconds.

    Parameters
    ----------
    size : int
        Bytes.
    way : str
        up or down.
    store, curl : float
        Medians.
    cid : float
        What it takes to compute the CID alone.
    """

    size: int
    way: str
    store: float
    curl: float
    cid: float

    @property
    def ratio(self) -> float:
        """Of the medians."""
        return self.store / self.curl

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.size / MB:g} MB {self.way}"


@dataclass(frozen=True)
class Memory:
    """What a process that puts a model and gets it again has at most, in bytes.

    Parameters
    ----------
    size : int
        Of the model.
    before : int
        When it has done the same with one block.
    by_file : int
        With ``put_file`` and ``pieces``.
    by_bytes : int
        With ``put`` and ``get``.
    """

    size: int
    before: int
    by_file: int
    by_bytes: int


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


# --- throughput ----------------------------------------------------------------------------------


class Ours:
    """The store on the node at a URL."""

    def __init__(self, url: str) -> None:
        self.store = IpfsStore(HttpRpc(url), FOLDER)

    def up(self, source: Path) -> str:
        """Put a file."""
        with source.open("rb") as file:
            return self.store.put_file(file)

    def down(self, cid: str, target: Path) -> None:
        """Get a file."""
        with target.open("wb") as file:
            file.writelines(self.store.pieces(cid))


class Curl:
    """curl, asking the node at a URL for the same."""

    def __init__(self, url: str) -> None:
        self._add = str(httpx.URL(f"{url}/api/v0/add", params=ADD))
        self._cat = f"{url}/api/v0/cat?arg="

    def up(self, source: Path) -> None:
        """Put a file."""
        # It would wait for the node's consent to large bodies.
        self._run("--header", "Expect:", "--form", f"file=@{source}", self._add)

    def down(self, cid: str, target: Path) -> None:
        """Get a file."""
        self._run("--output", str(target), self._cat + cid)

    def _run(self, *arguments: str) -> None:
        command = ["curl", "--silent", "--fail", "--show-error", "--request", "POST", *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def measure(url: str, size: int, rounds: int, folder: Path) -> list[Timing]:
    """Both directions; the first round is to warm up."""
    source, target = folder / "source", folder / "target"
    ours, curl = Ours(url), Curl(url)
    spent: dict[tuple[str, object], list[float]] = defaultdict(list)
    for number in range(rounds + 1):
        # Whoever comes second finds the node busy with what the first left.
        for tool in (ours, curl) if number % 2 else (curl, ours):
            with console.status(f"{size / MB:g} MB, {number} of {rounds}"):
                data = os.urandom(size)
                source.write_bytes(data)
                cid = cid_of(data)
                spent["cid", tool].append(seconds(partial(cid_of, data)))
                spent["up", tool].append(seconds(partial(tool.up, source)))
                spent["down", tool].append(seconds(partial(tool.down, cid, target)))
                assert target.read_bytes() == data
    ours.store.keep_only([])
    ours.store.close()
    medians = {key: statistics.median(each[1:]) for key, each in spent.items()}
    return [
        Timing(size, way, medians[way, ours], medians[way, curl], medians["cid", ours])
        for way in ("up", "down")
    ]


# --- memory --------------------------------------------------------------------------------------


def peak() -> int:
    """The most bytes that this process has had in memory."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0])


def peaks(url: str, source: Path, by_file: bool) -> tuple[int, int]:
    """Peak memory of this process with a block, and with `source`."""
    ours = Ours(url)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "target"

        def there_and_back(path: Path) -> None:
            if by_file:
                ours.down(ours.up(path), target)
            else:
                target.write_bytes(ours.store.get(ours.store.put(path.read_bytes())))

        target.write_bytes(os.urandom(BLOCK))
        there_and_back(target)
        before = peak()
        there_and_back(source)
        return before, peak()


def measure_memory(url: str, size: int, folder: Path) -> Memory:
    """In a process for each."""
    source = folder / "source"
    source.write_bytes(os.urandom(size))
    found = []
    for by_file in (True, False):
        with ProcessPoolExecutor(1, get_context("spawn")) as alone:
            found.append(alone.submit(peaks, url, source, by_file).result())
    (before, by_file_), (_, by_bytes) = found
    return Memory(size, before, by_file_, by_bytes)


# --- tables --------------------------------------------------------------------------------------


def timing_table(timings: list[Timing]) -> Table:
    """A row for each size and direction."""
    columns = ("", "store, s", "curl, s", "store, MB/s", "curl, MB/s", "ratio", "CID, s")
    rows = [
        (
            t.name,
            f"{t.store:.3f}",
            f"{t.curl:.3f}",
            f"{t.size / MB / t.store:.0f}",
            f"{t.size / MB / t.curl:.0f}",
            f"{t.ratio:.2f}",
            f"{t.cid:.3f}",
        )
        for t in timings
    ]
    note = (
        "Ratio: the store's time to curl's. CID: what computing it takes of the store's time, up "
        "and down."
    )
    return Table("Throughput", columns, rows, note)


def memory_table(memories: list[Memory]) -> Table:
    """A row for each size."""
    columns = ("", "one block, MB", "by file, MB", "by bytes, MB")
    rows = [
        (f"{m.size / MB:g} MB", *(f"{x / MB:.1f}" for x in (m.before, m.by_file, m.by_bytes)))
        for m in memories
    ]
    note = (
        "The most memory (VmHWM) of a process that has put one block of 256 KiB and got it, and "
        "then a model: by `put_file` and `pieces`, or by `put` and `get`, which hold all of it."
    )
    return Table("Memory", columns, rows, note)


def make_claims(timings: list[Timing], memories: list[Memory]) -> list[Claim]:
    """What is to be at most."""
    claims = [Claim.at_most(f"time to curl's, {t.name}", SOURCE, 1.5, t.ratio) for t in timings]
    growth = (memories[-1].by_file - memories[-1].before) / MB
    name = f"MB of memory more for {memories[-1].size / MB:g} MB than for a block, by file"
    return [*claims, Claim.at_most(name, SOURCE, 5, growth)]


HEADING = """# What the IPFS store costs

Made by `python benchmarks/ipfs.py` on {cores} cores, with a node ({node}) on the same machine;
every time is the median of {rounds}. Store and curl take turns, each with new bytes, from a file
and to a file. The store computes the CID first, lists what it has put, and compares what comes with
the CID; curl does nothing of that, but has to start. The machine's load (1 for each busy core) was
{load:.1f} in the end.
"""


def main(
    node: Annotated[
        str, typer.Option(help="URL of a node's RPC; without it a node is started.")
    ] = "",
    sizes: Annotated[str, typer.Option(help="Megabytes of the models.")] = "5 100",
    rounds: Annotated[int, typer.Option(min=1, help="Of each measurement.")] = 5,
    json: Annotated[Path | None, typer.Option(help="Write rows and claims here.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the page.")] = (
        Path(__file__).parent / "results"
    ),
) -> None:
    """Time an IPFS store beside curl, and look at its memory."""
    models = [int(float(size) * MB) for size in sizes.split()]
    with tempfile.TemporaryDirectory() as name, ExitStack() as nodes:
        folder = Path(name)
        try:
            url = node or nodes.enter_context(JsIpfs(folder / "node")).url
            version = HttpRpc(url).ask("version")["Version"]
        except (NotInstalledError, StoreError) as fault:
            console.print(f"Error: {fault}")
            raise typer.Exit(1) from None
        timings = [each for size in models for each in measure(url, size, rounds, folder)]
        memories = [measure_memory(url, size, folder) for size in models]
    claims = make_claims(timings, memories)
    tables = [timing_table(timings), memory_table(memories), claims_table(claims)]
    for table in tables:
        console.print(table.rich())
    out.mkdir(parents=True, exist_ok=True)
    heading = HEADING.format(
        cores=os.cpu_count(),
        rounds=rounds,
        node=version if node else f"js-ipfs, core {version}",
        load=os.getloadavg()[0],
    )
    (out / "ipfs.md").write_text("\n".join([heading, *(table.markdown() for table in tables)]))
    if json is not None:
        rows: list[dict[str, Any]] = [asdict(t) | {"ratio": t.ratio} for t in timings]
        write_json(json, [*rows, *(asdict(m) for m in memories)], claims)


if __name__ == "__main__":
    typer.run(main)
