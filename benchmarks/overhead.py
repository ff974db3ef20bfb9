"""What flower-chain costs: the same app with plain FedAvg and wrapped, timed stage by stage.

Devices, strategy, embedded ledger and store are the real ones, in one process: the devices one
after the other, each on one core, the server on all, the messages through Flower's serialisation.
Every moment of a round belongs to one stage, so that the stages add up to the round. What runs in
several threads at once is told in wall-clock time, shared out among its stages as the threads' time
was. At last the app runs under Flower's own simulation, to confirm.
"""

import hashlib
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import in_process
import matplotlib as mpl
import torch
import typer
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from mnist import DEFAULT_DATA, check_data
from overhead_app import app
from report import Claim, Table, claims_table, write_json
from rich.console import Console
from simulation import Config, simulate
from stopwatch import Lap, Place, Stages, Stopwatch, timed_places

import flower_chain
from flower_chain import envelope, updates
from flower_chain.client import app as client_app
from flower_chain.examiner import Examiner
from flower_chain.ledger.embedded import EmbeddedLedger
from flower_chain.ledger.federation import Federation
from flower_chain.records import Contribution
from flower_chain.run import RecordAndRewardRun
from flower_chain.strategy import RecordAndReward, admission

mpl.use("Agg")
from matplotlib import pyplot as plt

MODELS = ("mlp-50k", "mlp-1.13m")
EPOCH_MODELS = ("cnn-50k", "cnn-1.13m", "mlp-50k")
ONE_STEP = app.BATCH
ONE_EPOCH = 6000
WARM_UP = 2
SAMPLES = 100
SCHEMES = ("fedavg", "record-and-reward")
SIMULATED = (
    (10, "mlp-50k", ONE_STEP),
    (10, "mlp-1.13m", ONE_STEP),
    (50, "mlp-1.13m", ONE_STEP),
    (10, "cnn-1.13m", ONE_EPOCH),
)
SOURCE = "issue: overhead"

STAGES = {
    "train": "the user's train()",
    "measure": "the owner's samples through the model, before and after; the device's evidence",
    "pack": "the difference, its canonical bytes and digest",
    "seal": "encryption for the owner",
    "sign": "the contribution",
    "device": "is this the run, the owner and the model that were signed; the key; the rest",
    "transfer": "messages to bytes and back",
    "ask": "the owner's task, and samples for each device",
    "store": "CIDs on both sides; the sealed update in a file, flushed to the disk",
    "admit": "opened, digest, format, finite",
    "judge": "the evidence, measured again",
    "record": "what is submitted, and what the contract made of it",
    "aggregate": "the mean",
    "settle": "T_{k+1} measured, stored and published, the devices paid",
    "evm": "the transactions of both",
    "rest": "Flower's own, and what is not told apart",
}

EPOCH_NOTE = """What is added depends on the number of parameters, not on how long training takes:
mlp-50k sees its 6,000 images in the time of some signatures and transactions."""

FLOOR_NOTE = """Measured by themselves, on one core, on bytes that were just used. The hashes: is
this the model that was signed; the update's digest and the CID of what is sealed, each on the
device and again on the server. The passes: before and after the training, and after it again on the
server."""

NOTE = "\n".join(f"- {stage}: {text}" for stage, text in STAGES.items())

PLACES: Sequence[Place] = (
    (ClientApp, "__call__", "train"),
    (flower_chain.ClientApp, "__call__", "device"),
    (flower_chain.Validation, "measure", "measure"),
    (client_app, "evidence", "measure"),
    (updates, "difference", "pack"),
    (envelope, "close", "pack"),
    (envelope, "seal", "seal"),
    (client_app, "cid_of", "store"),
    (Contribution, "encode", "sign"),
    (client_app, "sign", "sign"),
    (in_process, "delivered", "transfer"),
    (RecordAndReward, "configure_train", "ask"),
    (RecordAndReward, "_admit", "admit"),
    (admission.Admitter, "admit", "admit"),
    (admission, "keep", "store"),
    (RecordAndReward, "_check_evidence", "judge"),
    (Federation, "collect", "record"),
    (EmbeddedLedger, "_execute", "evm"),
    (RecordAndReward, "_aggregate", "aggregate"),
    (RecordAndRewardRun, "model", "settle"),
    (Examiner, "error", "settle"),
    (Federation, "settle", "settle"),
)

console = Console()


def on_one_core(message: Message, context: Context) -> Message:
    """What a device answers; the server has all cores."""
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return app.client(message, context)
    finally:
        torch.set_num_threads(cores)


# --- measurements --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Round:
    """A round, in milliseconds for each device, by stage."""

    elapsed: Stages
    cpu: Stages

    @classmethod
    def median(cls, laps: Sequence[Lap], devices: int) -> "Round":
        """The median of some laps, as they were by the wall clock and by that of the CPU."""
        middle = len(laps) // 2
        elapsed = sorted((lap.elapsed for lap in laps), key=_without_training)[middle]
        cpu = sorted((lap.cpu for lap in laps), key=_without_training)[middle]
        return cls(
            {stage: 1000 * elapsed[stage] / devices for stage in STAGES},
            {stage: 1000 * cpu[stage] / devices for stage in STAGES},
        )


@dataclass(frozen=True)
class Timing:
    """The same federation, plain and wrapped.

    Parameters
    ----------
    model : str
    devices : int
    points : int
        Training points of each device.
    plain, wrapped : Round
    """

    model: str
    devices: int
    points: int
    plain: Round
    wrapped: Round

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.devices} x {self.model}"

    @property
    def added(self) -> float:
        """Milliseconds for each device that plain FedAvg does not take."""
        return _without_training(self.wrapped.elapsed) - _without_training(self.plain.elapsed)

    @property
    def added_cpu(self) -> float:
        """The same in CPU time."""
        return _without_training(self.wrapped.cpu) - _without_training(self.plain.cpu)

    @property
    def plain_round(self) -> float:
        """Milliseconds of a plain round for each device, if it trains as long as the wrapped."""
        return self.wrapped.elapsed["train"] + _without_training(self.plain.elapsed)

    @property
    def share(self) -> float:
        """How much longer a wrapped round is than a plain one."""
        return self.added / self.plain_round

    @property
    def passes(self) -> float:
        """Milliseconds in which both sides measure the model."""
        return self.wrapped.elapsed["measure"] + self.wrapped.elapsed["judge"]


def _without_training(stages: Stages) -> float:
    return sum(stages.values()) - stages["train"]


@dataclass(frozen=True)
class Bench:
    """Where the data are, and how many rounds each measurement has."""

    data: Path
    rounds: int

    def config(self, folder: Path, **changes: str | int | float) -> Config:
        """A run-config of the app: two rounds to warm up, and those that are counted."""
        return {
            "rounds": WARM_UP + self.rounds,
            "data": str(self.data),
            "times": str(folder / "times"),
            "chain.scheme": "record-and-reward",
            "chain.clear": 1.0,
            "chain.harm": 1.0,
            "chain.samples-per-class": SAMPLES // 10,
            "chain.run": str(folder / "run"),
            "chain.keys": str(folder / "keys"),
            **changes,
        }

    def time(self, model: str, devices: int, points: int) -> Timing:
        """A timing by stage."""
        with console.status(f"{model}, {devices} devices with {points:,} points"):
            plain, wrapped = (self._stages(model, devices, points, scheme) for scheme in SCHEMES)
        return Timing(model, devices, points, plain, wrapped)

    def _stages(self, model: str, devices: int, points: int, scheme: str) -> Round:
        watch = Stopwatch()
        with tempfile.TemporaryDirectory() as folder, timed_places(watch, PLACES):
            config = self.config(Path(folder), model=model, devices=devices, points=points)
            config["chain.scheme"] = scheme
            context = Context(1, 1, {}, RecordDict(), config)
            grid = in_process.InProcessGrid([on_one_core] * devices, config)
            app.start(grid, context, lambda *_: watch.lap())
        # The first lap is before the rounds, the last one after them.
        return Round.median(watch.laps[1 + WARM_UP : -1], devices)

    def simulate(self, devices: int, model: str, scheme: str, points: int) -> float:
        """Seconds of a round in Flower's simulation."""
        with tempfile.TemporaryDirectory() as folder:
            config = self.config(Path(folder), model=model, devices=devices, points=points)
            config["chain.scheme"] = scheme
            with console.status(f"simulation: {devices} x {model}, {scheme}, {points:,} points"):
                simulate(Path(app.__file__).parent, devices, config)
            times = [float(line) for line in Path(str(config["times"])).read_text().split()]
        return statistics.median(after - before for before, after in pairwise(times[WARM_UP:]))


# --- the least that it could cost ----------------------------------------------------------------


def floor(timing: Timing) -> dict[str, float]:
    """Milliseconds a device of what libraries do for the checks, were there nothing else."""
    net, x = app.build(timing.model), torch.zeros(SAMPLES, 1, 28, 28).numpy()
    packed = updates.pack({key: value.numpy() for key, value in net.state_dict().items()})
    cipher, nonce = AESGCM(bytes(32)), bytes(12)
    sealed = cipher.encrypt(nonce, packed, None)
    size = f"{len(packed) / 1e6:.1f} MB"
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    times = {
        f"SHA-256 of {size}, 5 times": 5 * _time(lambda: hashlib.sha256(packed).digest()),
        f"AES-256-GCM of {size}, there and back": _time(lambda: cipher.encrypt(nonce, packed, None))
        + _time(lambda: cipher.decrypt(nonce, sealed, None)),
        f"the model on {SAMPLES} samples, 3 times": 3 * _time(lambda: app.probabilities(net, x)),
        "the EVM": timing.wrapped.elapsed["evm"],
    }
    torch.set_num_threads(cores)
    return times


def _time(function: Callable[[], Any]) -> float:
    """Milliseconds of a call, the median of 21."""
    times = []
    for _ in range(21):
        begin = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - begin))
    return statistics.median(times)


def floor_table(timing: Timing) -> Table:
    """What is left if all of our own code took no time."""
    times = floor(timing)
    rows = [(what, f"{each:.1f}") for what, each in (times | {"sum": sum(times.values())}).items()]
    rows.append(("added", f"{timing.added:.1f}"))
    return Table(f"What libraries take of it, {timing.name}", ("", "ms a device"), rows, FLOOR_NOTE)


# --- tables --------------------------------------------------------------------------------------


def stage_table(timings: Sequence[Timing]) -> Table:
    """Milliseconds by stage, a column for each federation."""
    columns = ("stage", *(t.name for t in timings))
    rows = [(stage, *(f"{t.wrapped.elapsed[stage]:.2f}" for t in timings)) for stage in STAGES]
    sums: dict[str, list[float]] = {
        "wrapped, without train": [_without_training(t.wrapped.elapsed) for t in timings],
        "plain, without train": [_without_training(t.plain.elapsed) for t in timings],
        "added": [t.added for t in timings],
        "added, CPU time": [t.added_cpu for t in timings],
    }
    rows += [(name, *(f"{value:.2f}" for value in values)) for name, values in sums.items()]
    return Table("Milliseconds a device and round, one training step", columns, rows, NOTE)


def epoch_table(timings: Sequence[Timing]) -> Table:
    """Added time as a share of a round that trains."""
    rows = [
        (
            t.name,
            f"{t.wrapped.elapsed['train']:.0f}",
            f"{t.plain_round:.0f}",
            f"{t.added:.1f}",
            f"{t.passes:.1f}",
            f"{t.share:.1%}",
        )
        for t in timings
    ]
    columns = ("federation", "train", "plain round", "added", "of it, measure and judge", "share")
    return Table("Milliseconds a device and round, one local epoch", columns, rows, EPOCH_NOTE)


@dataclass(frozen=True)
class Simulation:
    """Seconds of a round in Flower's simulation."""

    devices: int
    model: str
    points: int
    plain: float
    wrapped: float

    @property
    def share(self) -> float:
        """How much longer the wrapped round is."""
        return self.wrapped / self.plain - 1

    @property
    def added(self) -> float:
        """Milliseconds a device by which it is."""
        return 1000 * (self.wrapped - self.plain) / self.devices


def simulation_table(simulations: Sequence[Simulation]) -> Table:
    """Seconds of a round, plain and wrapped."""
    rows = [
        (
            f"{s.devices} x {s.model}, {s.points:,} images",
            f"{s.plain:.2f}",
            f"{s.wrapped:.2f}",
            f"{s.share:+.1%}",
            f"{s.added:.1f}",
        )
        for s in simulations
    ]
    note = "Two Ray workers on two cores; median round. With training the noise is some percent."
    columns = ("federation", "plain", "wrapped", "longer", "ms a device")
    return Table("Seconds a round in Flower's simulation", columns, rows, note)


def make_claims(
    steps: Sequence[Timing], epochs: Sequence[Timing], simulations: Sequence[Simulation]
) -> list[Claim]:
    """What is to be at most."""
    claims = [
        Claim.at_most(
            f"share of a round with one local epoch, {t.model}, {t.devices} devices",
            SOURCE,
            0.05,
            t.share,
        )
        for t in epochs
    ]
    claims += [
        Claim.at_most(f"ms a device, {t.model}, {t.devices} devices", SOURCE, 30, t.added)
        for t in steps
        if t.model == "mlp-1.13m"
    ]
    claims += [
        Claim.at_most(f"the same, {s.devices} devices, in the simulation", SOURCE, 30, s.added)
        for s in simulations
        if s.model == "mlp-1.13m"
    ]
    return claims


def draw_stages(timings: Sequence[Timing], path: Path) -> None:
    """A bar for each federation, its stages beside each other."""
    figure, axes = plt.subplots(figsize=(9, 3.2), layout="constrained")
    names = [t.name for t in timings]
    colours = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    left = [0.0] * len(timings)
    for stage, colour in zip(STAGES, colours, strict=False):
        widths = [t.wrapped.elapsed[stage] for t in timings]
        axes.barh(names, widths, left=left, label=stage, color=colour)
        left = [begin + width for begin, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("ms a device and round")
    axes.legend(ncols=1, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def make_rows(timings: Sequence[Timing], simulations: Sequence[Simulation]) -> list[dict[str, Any]]:
    """For programs."""
    rows: list[dict[str, Any]] = [asdict(t) | {"added": t.added, "share": t.share} for t in timings]
    return rows + [asdict(s) | {"share": s.share} for s in simulations]


HEADING = f"""# What flower-chain costs

Made by `python benchmarks/overhead.py` on {{cores}} cores; every number is the median of {{rounds}}
rounds.

The same MNIST app with plain FedAvg and wrapped. The rule is `gain`, with terms under which every
update is accepted; the owner has {app.VALIDATION_POINTS:,} validation points, and each device gets
{SAMPLES // 10} of each of 10 classes, as in papers/1. mlp-50k has 50,095 parameters, mlp-1.13m
1,128,910, cnn-50k 49,868 and cnn-1.13m 1,128,506. "Added" is what a wrapped round takes longer than
a plain one, the training apart; device and server are counted together. Devices run one after the
other here, so a round is as long as its devices are many.
"""


def main(
    data: Annotated[
        Path, typer.Option(envvar="MNIST_DIR", help="Folder of MNIST's *-ubyte.gz files.")
    ] = DEFAULT_DATA,
    devices: Annotated[str, typer.Option(help="Sizes of the federations.")] = "10 50 100",
    rounds: Annotated[int, typer.Option(min=1, help="Of each measurement.")] = 5,
    points: Annotated[int, typer.Option(min=1, help="Images of a device's epoch.")] = ONE_EPOCH,
    simulate: Annotated[bool, typer.Option(help="Run Flower's simulation too.")] = True,
    json: Annotated[Path | None, typer.Option(help="Write rows and claims here.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the page and the figure.")] = (
        Path(__file__).parent / "results"
    ),
) -> None:
    """Time the same app with plain FedAvg and wrapped."""
    check_data(data)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    bench = Bench(data.resolve(), rounds)
    sizes = [int(size) for size in devices.split()]
    steps = [bench.time(model, size, ONE_STEP) for model in MODELS for size in sizes]
    epochs = [bench.time(model, min(sizes), points) for model in EPOCH_MODELS]
    simulations = [
        Simulation(*each, *(bench.simulate(*each[:2], scheme, each[2]) for scheme in SCHEMES))
        for each in SIMULATED
        if simulate
    ]
    claims = make_claims(steps, epochs, simulations)
    tables = [stage_table(steps), floor_table(steps[-1]), epoch_table(epochs)]
    if simulations:
        tables.append(simulation_table(simulations))
    tables.append(claims_table(claims))
    for table in tables:
        console.print(table.rich())
    out.mkdir(parents=True, exist_ok=True)
    draw_stages(steps, out / "overhead.png")
    heading = HEADING.format(cores=os.cpu_count(), rounds=rounds)
    pages = [heading, "![stages](overhead.png)\n", *(table.markdown() for table in tables)]
    (out / "overhead.md").write_text("\n".join(pages))
    if json is not None:
        write_json(json, make_rows([*steps, *epochs], simulations), claims)


if __name__ == "__main__":
    typer.run(main)
