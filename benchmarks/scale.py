"""What a device costs when there are many: 10 to 1,000 in the embedded ledger, to 10,000 on Anvil.

Contributions are made by rule, not by training: random digests and errors, but real keys and real
signatures. In every version the contract refuses one in ten for its errors, the owner another one
in ten, and all others are paid; then somebody else opens the ledger and reads it all back. Each
number of devices has a process of its own, so that its peak memory is its own.
"""

import secrets
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from math import ceil, log2
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, TypeVar

import matplotlib as mpl
import numpy as np
import typer
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.crypto import keccak
from report import Claim, Table, claims_table, write_json
from rich.console import Console
from terms import Terms

from flower_chain.errors import NodeError
from flower_chain.ledger import Contract, EmbeddedLedger, JsonRpcLedger, Ledger, Receipt
from flower_chain.ledger.federation import Federation, Finding, History
from flower_chain.records import PPM, UNMEASURED, Contribution, Model, Refusal, Signed, sign
from flower_chain.report.record_and_reward import summarise
from flower_chain.rules.record_and_reward import Rule, judge

mpl.use("Agg")
from matplotlib import pyplot as plt

Answer = TypeVar("Answer")

SIZES = (10, 30, 100, 300, 1000, 3000, 10_000)
VERSIONS = 3
EPOCHS = 5
PATIENCE = 7 * 24 * 3600
POOL = 10**24
TERMS = Terms(Rule.GAIN)
RAW_CID = bytes.fromhex("01551220")
ANVIL = (
    Path(__file__).resolve().parents[1]
    / "contracts/node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil"
)
OWNER = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
"""The first account of Foundry's well-known test mnemonic: Anvil gives it ether."""

ROOT_GAS = 21_000 + 22_100 + 3_000
"""By a transaction's own rules: one that fills a storage slot and logs it."""

PROOF_GAS = 32 * 16 + 100
"""Of one step of a Merkle proof: 32 bytes of calldata, and the hash of two words."""

console = Console()


class Chain(StrEnum):
    """The ledgers."""

    EMBEDDED = "embedded"
    ANVIL = "anvil"


class Step(StrEnum):
    """What is measured, in order."""

    ENROL = "enrol"
    SIGN = "sign"
    COLLECT = "collect"
    SETTLE = "settle"
    READ = "read"
    CHECK = "check"
    SHOW = "show"


ROUND = (Step.COLLECT, Step.SETTLE)
AUDIT = (Step.READ, Step.CHECK, Step.SHOW)


@dataclass
class Spent:
    """What a step took.

    Parameters
    ----------
    seconds : float
        CPU time of this process, and of the node if there is one.
    sending : float
        That part of it that passes in the ledger's ``send``.
    wall : float
        Seconds on the wall.
    gas : int
    calldata : int
        Bytes.
    """

    seconds: float = 0.0
    sending: float = 0.0
    wall: float = 0.0
    gas: int = 0
    calldata: int = 0


@dataclass(frozen=True)
class Place:
    """Where a chain is: in the journal at a path, or on the node at a URL, a process with an id."""

    where: str
    node: int | None = None

    def cpu_seconds(self) -> float:
        """CPU time until now of this process, and of the node if there is one."""
        # the clock of another process: clock_getcpuclockid(3), which Python lacks
        of_node = 0.0 if self.node is None else time.clock_gettime(~self.node << 3 | 2)
        return time.process_time() + of_node


@dataclass(frozen=True)
class Cost:
    """What was spent with so many devices.

    Parameters
    ----------
    chain : Chain
    devices : int
    spent : dict of Step to list of Spent
        Enrolment once; signing, collecting and settling in each version; the rest once, for all
        versions together.
    journal : int
        Bytes on the embedded ledger's disk.
    memory : int
        Bytes by which the server's process grew at most.
    """

    chain: Chain
    devices: int
    spent: dict[Step, list[Spent]]
    journal: int
    memory: int

    def seconds(self, *steps: Step) -> float:
        """For a device and a version: the quicker one of those after the first."""
        return sum(self._seconds(step) for step in steps) / self.devices

    def _seconds(self, step: Step) -> float:
        if step in AUDIT:
            return self.spent[step][0].seconds / VERSIONS
        return min(spent.seconds for spent in self.spent[step][-2:])

    def gas(self, *steps: Step, version: int = -1) -> float:
        """For a device, in a version."""
        return sum(self.spent[step][version].gas for step in steps) / self.devices

    @property
    def wall(self) -> float:
        """Seconds on the wall that a round takes the server, for all devices."""
        return sum(min(spent.wall for spent in self.spent[step][-2:]) for step in ROUND)

    @property
    def calldata(self) -> float:
        """Bytes for a device and a version."""
        return sum(self.spent[step][-1].calldata for step in ROUND) / self.devices

    @property
    def in_ledger(self) -> float:
        """The share of a round's seconds that passes in the ledger's `send`."""
        last = [self.spent[step][-1] for step in ROUND]
        return sum(spent.sending for spent in last) / sum(spent.seconds for spent in last)


# --- the contributions ---------------------------------------------------------------------------


def sign_contribution(device: LocalAccount, version: int, good: bool, run: Federation) -> Signed:
    """Random, but such that the rule accepts it or not as is asked for."""
    rng = np.random.default_rng()
    falling = rng.uniform(0.5, 0.95) * np.cumprod([1, *rng.uniform(0.6, 0.8, EPOCHS)])
    misdirection = rng.uniform(0.02, 0.1) if good else rng.uniform(0.75, 0.95)
    contribution = Contribution(
        device.address,
        version,
        int(rng.integers(100, 6000)),
        rng.bytes(32),
        RAW_CID + rng.bytes(32),
        tuple(range(10)),
        tuple(int(error * PPM) for error in (*falling, misdirection)),
    )
    return Signed(contribution, sign(contribution.encode(run.domain), device))


def model_of(version: int) -> Model:
    """T_k, of which nothing but its name is needed here."""
    digest = keccak(text=f"model {version}")
    return Model(digest, RAW_CID + digest, keccak(seed_of(version)), UNMEASURED)


def seed_of(version: int) -> bytes:
    """The seed of a version's validation samples."""
    return keccak(text=f"seed {version}")


# --- one number of devices -----------------------------------------------------------------------


class Meter:
    """Notes what each step takes.

    Attributes
    ----------
    spent : dict of Step to list of Spent
        One for each time that the step was done.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.spent: dict[Step, list[Spent]] = defaultdict(list)
        self._current = Spent()

    def measure(self, step: Step, action: Callable[[], Answer]) -> Answer:
        """Do the step."""
        self._current = Spent()
        wall, began = time.perf_counter(), self._clock()
        answer = action()
        self._current.seconds = self._clock() - began
        self._current.wall = time.perf_counter() - wall
        self.spent[step].append(self._current)
        return answer

    def watch(self, ledger: Ledger) -> None:
        """Note what is sent to a ledger."""
        send = ledger.send

        def watched(account: LocalAccount, to: str | None, data: bytes) -> Receipt:
            began = self._clock()
            receipt = send(account, to, data)
            self._current.sending += self._clock() - began
            self._current.gas += receipt.gas_used
            self._current.calldata += len(data)
            return receipt

        ledger.send = watched  # type: ignore[method-assign]


def measure(chain: Chain, devices: int, place: Place) -> Cost:
    """Some versions with so many devices."""
    owner: LocalAccount = Account.from_key(OWNER)
    accounts = [Account.from_key(secrets.token_bytes(32)) for _ in range(devices)]
    meter = Meter(place.cpu_seconds)
    before = reset_peak_memory()
    with _open(chain, place, owner) as ledger:
        federation = deploy(ledger, owner)
        meter.watch(ledger)
        meter.measure(Step.ENROL, lambda: federation.enrol([a.address for a in accounts]))
        for version in range(VERSIONS):
            run_version(federation, accounts, version, meter)
    memory = peak_memory() - before
    journal = Path(place.where).stat().st_size if chain is Chain.EMBEDDED else 0
    audit(chain, place, federation.contract, meter)
    return Cost(chain, devices, dict(meter.spent), journal, memory)


def deploy(ledger: Ledger, owner: LocalAccount) -> Federation:
    """A run with a full pool."""
    token = ledger.deploy(owner, "RewardToken", POOL)
    terms = (
        keccak(text="plan"),
        int(TERMS.rule),
        TERMS.threshold_ppm,
        TERMS.gain_ppm,
        TERMS.clear_ppm,
        TERMS.harm_ppm,
        TERMS.least_ppm,
        TERMS.rate,
        TERMS.max_data_cost,
        PATIENCE,
        0,
    )
    first = model_of(0).as_tuple()
    contract = ledger.deploy(owner, "RecordAndReward", token.address, terms, first)
    token.transact(owner, "transfer", contract.address, POOL)
    return Federation(contract, owner)


def run_version(
    federation: Federation, accounts: Sequence[LocalAccount], version: int, meter: Meter
) -> None:
    """What devices and owner do: of ten devices the contract refuses the first, the owner the next.

    Raises
    ------
    AssertionError
        If not all others were paid.
    """
    signed = meter.measure(
        Step.SIGN,
        lambda: [
            sign_contribution(account, version, number % 10 != 0, federation)
            for number, account in enumerate(accounts)
        ],
    )
    collected = meter.measure(Step.COLLECT, lambda: federation.collect(version, signed))
    false = [Finding(account.address, Refusal.FALSE_EVIDENCE) for account in accounts[1::10]]
    settlement = meter.measure(
        Step.SETTLE,
        lambda: federation.settle(collected, seed_of(version), model_of(version + 1), false),
    )
    bad = len(accounts[::10]) + len(accounts[1::10])
    assert len(settlement.payments) == len(accounts) - bad, "not all that are due were paid"


def audit(chain: Chain, place: Place, contract: Contract, meter: Meter) -> None:
    """Read everything back, check it as ``verify`` does, and sum it up as ``show`` does."""

    def read() -> tuple[Federation, History]:
        ledger = _open(chain, place, None)
        there = Contract(ledger, contract.address, contract.name, contract.block)
        reader = Federation(there)
        return reader, reader.history()

    reader, history = meter.measure(Step.READ, read)
    meter.measure(Step.CHECK, lambda: check(history, reader))
    meter.measure(Step.SHOW, lambda: summarise(history, contract.address, reader.pool))


def check(history: History, reader: Federation) -> None:
    """All signatures and verdicts.

    Raises
    ------
    AssertionError
        If one is not what the rules say.
    """
    for version in history.versions:
        for verdict in version.verdicts:
            assert verdict.signed.is_valid(reader.domain), "a signature is not valid"
            expected = judge(TERMS, verdict.signed.contribution)
            assert expected == (verdict.reason, verdict.due), "the contract and the rules differ"


def _open(chain: Chain, place: Place, owner: LocalAccount | None) -> Ledger:
    """For reading, if there is no owner."""
    if chain is Chain.ANVIL:
        return JsonRpcLedger(place.where)
    if owner is None:
        return EmbeddedLedger(place.where, read_only=True)
    return EmbeddedLedger(place.where, [owner.address])


def reset_peak_memory() -> int:
    """Forget what this process needed earlier; returns what it needs now, in bytes.

    Not `getrusage`: a child process begins with its parent's peak there.
    """
    Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def peak_memory() -> int:
    """The most that this process had in memory, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = [line for line in lines if line.startswith("VmHWM:")]
    return int(peak.split()[1]) * 1024


# --- all numbers of devices ----------------------------------------------------------------------


def measure_all(most: dict[Chain, int]) -> list[Cost]:
    """Every size up to the most, each in a process of its own."""
    costs = []
    for chain, limit in most.items():
        for devices in [size for size in SIZES if size <= limit]:
            with console.status(f"{chain}: {devices:,} devices"), begin(chain) as place:
                costs.append(_in_own_process(chain, devices, place))
            last = costs[-1]
            rate = 1000 * last.seconds(*ROUND)
            console.print(f"{chain}: {devices:,} devices, {rate:.1f} ms each on the server")
    return costs


def _in_own_process(chain: Chain, devices: int, place: Place) -> Cost:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(measure, chain, devices, place).result()


@contextmanager
def begin(chain: Chain) -> Iterator[Place]:
    """A place for a new chain."""
    if chain is Chain.ANVIL:
        with running_anvil() as place:
            yield place
    else:
        with TemporaryDirectory() as folder:
            yield Place(str(Path(folder) / "journal"))


@contextmanager
def running_anvil() -> Iterator[Place]:
    """A real node, on a port that was free, until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(ANVIL), "--port", str(port), "--enable-tx-gas-limit", "--silent"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_for(url)
            yield Place(url, process.pid)
        finally:
            process.kill()


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            JsonRpcLedger(url).close()
        except NodeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


# --- tables, claims, rows ------------------------------------------------------------------------


def seconds_table(costs: Sequence[Cost]) -> Table:
    """Milliseconds for a device."""
    rows = [
        (
            f"{cost.chain}, {cost.devices:,}",
            *(f"{1000 * cost.seconds(step):.2f}" for step in Step),
            f"{cost.wall:.2f}",
            f"{cost.in_ledger:.0%}",
        )
        for cost in costs
    ]
    columns = ("devices", *(f"{step}, ms" for step in Step), "round, s", "EVM")
    note = (
        "Milliseconds of CPU time, of our process and the node together, for a device and a "
        "version; enrolment once. Sign: on the device. Collect: "
        "contributions submitted and judged, the version closed, the verdicts read. Settle: the "
        "owner's refusals, the payments, the next model. Read: somebody else opens the ledger (the "
        "embedded one executes everything again) and reads all versions. Check: signatures and "
        "verdicts, as `flower-chain verify`. Show: as `flower-chain show`. Round: seconds on the "
        "wall that collect and settle take for all devices together. EVM: the share of collect "
        "and settle that is spent in sending transactions and executing them."
    )
    return Table("Seconds", columns, rows, note)


def costs_table(costs: Sequence[Cost]) -> Table:
    """Gas, bytes and memory for a device."""
    rows = [
        (
            f"{cost.chain}, {cost.devices:,}",
            f"{cost.gas(Step.ENROL):,.0f}",
            f"{cost.gas(*ROUND, version=0):,.0f}",
            *(f"{cost.gas(step):,.0f}" for step in ROUND),
            f"{cost.calldata:,.0f}",
            f"{cost.journal / VERSIONS / cost.devices:,.0f}" if cost.journal else "-",
            f"{cost.memory / VERSIONS / cost.devices / 1024:,.1f}",
        )
        for cost in costs
    ]
    columns = (
        "devices",
        "enrol, gas",
        "first version, gas",
        *(f"{step}, gas" for step in ROUND),
        "calldata, bytes",
        "journal, bytes",
        "memory, KiB",
    )
    note = (
        "For a device; all but the enrolment for a device and a version. In its first version a "
        "device fills a storage slot with its credit. The journal holds transactions in hex, and "
        "here also the deployment. Memory: how much the server's process grew at most (VmHWM, in a "
        f"process of its own) over {VERSIONS} versions."
    )
    return Table("Gas, bytes, memory", columns, rows, note)


def ratios_table(costs: Sequence[Cost]) -> Table:
    """Whether it is flat."""
    rows = [
        (
            f"{measure.name}, {chain}",
            f"{smallest.devices:,}: {measure.show(smallest)}",
            f"{largest.devices:,}: {measure.show(largest)}",
            f"{measure.of(largest) / measure.of(smallest):.2f}",
            f"{growth(measure, some):.2f}",
        )
        for chain, some in by_chain(costs).items()
        for smallest, largest in [(some[0], some[-1])]
        for measure in MEASURES
    ]
    columns = ("for a device", "fewest", "most", "ratio", "to the best of the fewer")
    return Table("Flat or falling", columns, rows)


def root_table(costs: Sequence[Cost]) -> Table:
    """What a Merkle root for each version would save."""
    rows = []
    for some in by_chain(costs).values():
        cost = some[-1]
        steps = ceil(log2(cost.devices))
        root, proof = ROOT_GAS / cost.devices, 21_000 + steps * PROOF_GAS
        now = cost.gas(*ROUND)
        checking = cost.seconds(Step.CHECK)
        settling, collecting = cost.seconds(Step.SETTLE), cost.seconds(Step.COLLECT)
        where = f"{cost.chain}, {cost.devices:,}"
        rows += [
            (f"{where}: as it is", f"{now:,.0f}", f"{1000 * (collecting + settling):.2f}", "-"),
            (
                f"{where}: root of contributions, payments as they are",
                f"{root + cost.gas(Step.SETTLE):,.0f}",
                f"{1000 * (checking + settling):.2f}",
                f"{proof:,.0f}",
            ),
            (
                f"{where}: roots of contributions and of payments",
                f"{2 * root:,.0f}",
                f"{1000 * checking:.2f}",
                f"{proof + cost.gas(Step.SETTLE):,.0f}",
            ),
        ]
    columns = ("", "gas", "server, ms", "gas of a proof")
    note = (
        "For a device and a version; the first row is measured, the others are made up of what "
        f"was measured and of {ROOT_GAS:,} gas for a root and {PROOF_GAS} for a step of a proof. "
        "With a root the owner has to check every signature itself. A proof is one transaction: "
        "of a contribution, if somebody disputes it, or with the second root of each payment, by "
        "or for each device that wants its money. What would be lost: the contract no longer sees "
        "signatures, evidence and what is due, so it can't refuse, can't pay by rule, and can't "
        "let anyone pay in the owner's place; judgement becomes the owner's word until disputed."
    )
    return Table("A Merkle root for each version instead", columns, rows, note)


@dataclass(frozen=True)
class Measure:
    """Something that a device costs, and how much it may grow."""

    name: str
    unit: str
    of: Callable[[Cost], float]
    bound: float

    def show(self, cost: Cost) -> str:
        """For a table."""
        return f"{self.of(cost):,.1f} {self.unit}".strip()


MEASURES = (
    Measure("signing", "ms", lambda cost: 1000 * cost.seconds(Step.SIGN), 1.25),
    Measure("the server", "ms", lambda cost: 1000 * cost.seconds(*ROUND), 1.25),
    Measure("reading back", "ms", lambda cost: 1000 * cost.seconds(*AUDIT), 1.25),
    Measure("gas", "", lambda cost: cost.gas(*ROUND), 1.02),
    Measure("calldata", "bytes", lambda cost: cost.calldata, 1.02),
    Measure("memory", "KiB", lambda cost: cost.memory / cost.devices / VERSIONS / 1024, 1.25),
)


def by_chain(costs: Sequence[Cost]) -> dict[Chain, list[Cost]]:
    """The costs of each chain, by number of devices."""
    grouped: dict[Chain, list[Cost]] = defaultdict(list)
    for cost in costs:
        grouped[cost.chain].append(cost)
    return grouped


def growth(measure: Measure, costs: Sequence[Cost]) -> float:
    """What a device costs with the most devices, relative to the cheapest other number."""
    *fewer, most = map(measure.of, costs)
    return most / min(fewer) if fewer else float("nan")


def make_claims(costs: Sequence[Cost]) -> list[Claim]:
    """What is said of the package, and whether it is so."""
    us = "flower-chain"
    claims = []
    for chain, some in by_chain(costs).items():
        most = some[-1]
        for measure in MEASURES:
            what = f"{measure.name} a device, {chain}, {most.devices:,} relative to the best"
            claims.append(Claim.at_most(what, us, measure.bound, growth(measure, some)))
        what = f"seconds on the wall of a round, for 1,000 of {most.devices:,}, {chain}"
        claims.append(Claim.at_most(what, us, 60, 1000 * most.wall / most.devices))
        what = f"gas a device with {most.devices:,}, {chain}"
        claims.append(Claim.at_most(what, us, 42_000, most.gas(*ROUND)))
    return claims


def make_rows(costs: Sequence[Cost]) -> list[dict[str, Any]]:
    """What was measured, for programs."""
    return [
        {
            "chain": cost.chain,
            "devices": cost.devices,
            "seconds": {step: cost.seconds(step) for step in Step},
            "wall": cost.wall,
            "gas": {step: cost.gas(step) for step in (Step.ENROL, *ROUND)},
            "first_gas": cost.gas(*ROUND, version=0),
            "calldata": cost.calldata,
            "journal": cost.journal,
            "memory": cost.memory,
        }
        for cost in costs
    ]


# --- the figure ----------------------------------------------------------------------------------


def draw(costs: Sequence[Cost], path: Path) -> None:
    """Seconds, gas and memory for a device, each over the number of devices."""
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    styles = {Chain.EMBEDDED: "-o", Chain.ANVIL: "--s"}
    for chain, some in by_chain(costs).items():
        devices = [cost.devices for cost in some]
        for measure, colour, axes in (
            (MEASURES[0], "#6a51a3", panels[0]),
            (MEASURES[1], "#08715f", panels[0]),
            (MEASURES[2], "#b45f06", panels[0]),
            (MEASURES[3], "#08715f", panels[1]),
            (MEASURES[5], "#08715f", panels[2]),
        ):
            values = [measure.of(cost) for cost in some]
            label = f"{measure.name}, {chain}"
            axes.plot(devices, values, styles[chain], color=colour, ms=4, lw=1.5, label=label)
    for axes, unit in zip(panels, ("ms", "gas", "KiB"), strict=True):
        axes.set(xscale="log", xlabel="devices", ylabel=f"{unit} for a device and a version")
        axes.set_ylim(0, 1.5 * axes.get_ylim()[1])
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="upper right")
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


# --- the command ---------------------------------------------------------------------------------


def _page(most: dict[Chain, int], tables: Sequence[Table]) -> str:
    heading = f"""# What a device costs when there are many

Made by `python benchmarks/scale.py --embedded {most[Chain.EMBEDDED]} --anvil {most[Chain.ANVIL]}`.

Contributions are made by rule, with real keys and signatures, {EPOCHS + 2} errors each under the
rule gain. Of ten devices the contract refuses one, the owner another, and eight are paid.
{VERSIONS} versions; where nothing else is said, a later one than the first.

![for a device](scale.png)
"""
    return "\n".join([heading, *(table.markdown() for table in tables)])


def main(
    embedded: Annotated[
        int, typer.Option(min=0, help="The most devices on the embedded ledger; 0 for none.")
    ] = 1000,
    anvil: Annotated[int, typer.Option(min=0, help="The most on Anvil; 0 for none.")] = 10_000,
    json: Annotated[Path | None, typer.Option(help="Write rows and claims here.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the page and the figure.")] = (
        Path(__file__).parent / "results"
    ),
) -> None:
    """Measure what a device costs as they become more."""
    most = {Chain.EMBEDDED: embedded, Chain.ANVIL: anvil}
    if anvil and not ANVIL.is_file():
        print(f"{ANVIL} is missing: run `make contracts`, or set --anvil 0", file=sys.stderr)
        raise typer.Exit(1)
    costs = measure_all(most)
    claims = make_claims(costs)
    tables = [ratios_table(costs), seconds_table(costs), costs_table(costs), root_table(costs)]
    tables.append(claims_table(claims))
    for table in tables:
        console.print(table.rich())
    out.mkdir(parents=True, exist_ok=True)
    draw(costs, out / "scale.png")
    (out / "scale.md").write_text(_page(most, tables))
    if json is not None:
        write_json(json, make_rows(costs), claims)


if __name__ == "__main__":
    typer.run(main)
