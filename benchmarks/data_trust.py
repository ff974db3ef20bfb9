"""papers/4 section 4: workers that train in turn, what the ledger adds, and who labels wrongly.

MNIST in equal parts, rounds of three epochs, everything sealed and stored on a real IPFS node, all
scores and rewards by the contract on the embedded ledger. An epoch of one worker is a worker-epoch:
they are counted and drawn one after another, as in the paper's figures 3 and 4. Each task runs in
one process; the first rounds also through Flower, which must come to the same scores and models.
"""

import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, fields, replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import matplotlib as mpl
import numpy as np
import typer
import workers
from flwr.app import ArrayRecord, Context, RecordDict
from in_process import InProcessGrid
from js_ipfs import JsIpfs, NotInstalledError
from mnist import BATCH, DEFAULT_DATA, NDArray, check_data
from report import Claim, Table, claims_table, write_json
from rich.console import Console
from simulation import Config, simulate
from stopwatch import Place, Stages, Stopwatch, timed_places
from workers import EPOCHS, RATE, Exam, Figures, Labels, exam

from flower_chain import keys
from flower_chain.client import agent, auditor, own_store
from flower_chain.client.auditor import Auditor
from flower_chain.client.own_store import OwnStore
from flower_chain.ledger.base import Contract, Ledger
from flower_chain.ledger.blockflow import Experiment
from flower_chain.ledger.data_trust import Task, TaskHistory
from flower_chain.ledger.embedded import EmbeddedLedger
from flower_chain.peers import Peers
from flower_chain.records import TOKEN_UNITS
from flower_chain.rules.blockflow import ONE
from flower_chain.run import DataTrustRun, base
from flower_chain.store import IpfsStore
from flower_chain.strategy import peers
from flower_chain.updates import Arrays

mpl.use("Agg")
from matplotlib import pyplot as plt

APP = Path(__file__).parent / "data_trust_app"
PAPER = "papers/4"
OURS = "issue: data trust"
ACCURATE = 0.95
FLOOR = 0.8
FAULTY = (Labels.RANDOM, Labels.FLIPPED)
FAULTY_ROUNDS = 4
FLOWER_ROUNDS = 2
PATIENCE = 600
"""Seconds for Flower's workers to start."""

STAGES = {
    "train": "the epochs, on one core",
    "seal": "a model to canonical bytes, digest, encryption for all workers, CID; the others' "
    "models opened and checked; with the files that a worker keeps",
    "ipfs": "models to the node and from it, with opening and closing connections",
    "ledger": "contracts deployed, transactions, what is read of them; the journal on the disk",
    "sign": "signatures of what is recorded, and their checks",
    "measure": "accuracy, precision and recall: for the drawing, and for the scores",
    "rest": "messages to bytes and back, plans, the mean, Flower's own",
}
ADDED = ("seal", "ipfs", "ledger", "sign")

PLACES: Sequence[Place] = (
    (workers, "fit", "train"),
    (Exam, "measure", "measure"),
    (Auditor, "contribute", "seal"),
    (Auditor, "retrieve", "seal"),
    (own_store, "open_store", "ipfs"),
    (base, "open_store", "ipfs"),
    (OwnStore, "put", "ipfs"),
    (OwnStore, "find", "ipfs"),
    (IpfsStore, "put", "ipfs"),
    (IpfsStore, "get", "ipfs"),
    (IpfsStore, "close", "ipfs"),
    (EmbeddedLedger, "__init__", "ledger"),
    (EmbeddedLedger, "send", "ledger"),
    (EmbeddedLedger, "call", "ledger"),
    (Ledger, "deploy", "ledger"),
    (Contract, "transact", "ledger"),
    (Contract, "call", "ledger"),
    (Contract, "events", "ledger"),
    (Experiment, "_act", "ledger"),
    (Experiment, "signed", "ledger"),
    (Task, "history", "ledger"),
    (agent, "sign", "sign"),
    (auditor, "sign", "sign"),
    (peers, "sign", "sign"),
    (peers, "recover", "sign"),
    (Peers, "is_signed", "sign"),
)

console = Console()


# --- runs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setup:
    """A task.

    Parameters
    ----------
    name : str
    labels : tuple of Labels
        Of each worker.
    parts : int
        Into how many equal ones the training data are cut; each worker has one.
    rounds : int
    is_drawn : bool
        Whether models are measured after each epoch; else only as workers score them.
    """

    name: str
    labels: tuple[Labels, ...]
    parts: int
    rounds: int
    is_drawn: bool = True

    @classmethod
    def honest(cls, n_workers: int, epochs: int) -> "Setup":
        """All labels are right; so many worker-epochs, or one round if that has more."""
        rounds = max(1, epochs // (EPOCHS * n_workers))
        return cls(f"{n_workers} workers", (Labels.TRUE,) * n_workers, n_workers, rounds)


@dataclass(frozen=True)
class OnLedger:
    """What the ledger holds of a task.

    Parameters
    ----------
    history : TaskHistory
    accounts : list of str
        Of each worker.
    numbers : list of int
        On the ledger, of each worker.
    """

    history: TaskHistory
    accounts: list[str]
    numbers: list[int]

    @classmethod
    def read(cls, path: Path, accounts: list[str]) -> "OnLedger":
        """From the folder of a run."""
        with closing(DataTrustRun.open(path)) as run:
            numbers = [run.experiment.number_of(account) for account in accounts]
            return cls(run.experiment.history(), accounts, numbers)

    @property
    def lost(self) -> dict[int, int]:
        """The round after which a worker lost its deposit for bad models, from 1."""
        poor = {number: r + 1 for r, v in self.history.verdicts.items() for number in v.poor}
        return {w: poor[number] for w, number in enumerate(self.numbers) if number in poor}

    def quality(self, worker: int, turn: int) -> float | None:
        """By the contract, after a round from 0; None for who is out."""
        found = self.history.verdicts[turn].qualities.get(self.numbers[worker])
        return None if found is None else found / ONE

    def credited(self, worker: int) -> float:
        """Tokens: the deposit, what was earned, and of what others lost."""
        return self.history.credited[self.accounts[worker]] / TOKEN_UNITS

    def said(self, turn: int) -> tuple[dict[int, tuple[int, ...]], set[bytes]]:
        """All scores of a round, from 0, and the digest of the model that it ended with."""
        openings = self.history.rounds[turn].openings
        rows = {number: opening.row for number, opening in openings.items()}
        return rows, set(self.history.announced[turn + 1])


@dataclass(frozen=True)
class Point:
    """What a worker's model is worth after an epoch."""

    worker: int
    figures: Figures


@dataclass(frozen=True)
class Trained:
    """What came of a task.

    Parameters
    ----------
    setup : Setup
    points : list of Point
        After each worker-epoch, in the order of training.
    models : list of Figures
        Of the model that each round ended with.
    seconds : mapping of str to float
        Of the wall clock, by stage.
    ledger : OnLedger
    """

    setup: Setup
    points: list[Point]
    models: list[Figures]
    seconds: Stages
    ledger: OnLedger

    @property
    def accuracies(self) -> NDArray:
        """After each worker-epoch."""
        return np.array([point.figures.accuracy for point in self.points])

    @property
    def first(self) -> int:
        """The first worker-epoch after which a model is accurate; one more than all for none."""
        good = np.flatnonzero(self.accuracies >= ACCURATE)
        return int(good[0] if len(good) else len(self.points)) + 1

    @property
    def lasting(self) -> int:
        """The first worker-epoch from which on all models are."""
        bad = np.flatnonzero(self.accuracies < ACCURATE)
        return int(bad[-1] + 1 if len(bad) else 0) + 1

    @property
    def parallel(self) -> int:
        """The first epoch of all workers after which their models are, on average."""
        by_round = self.accuracies.reshape(self.setup.rounds, -1, EPOCHS)
        good = np.flatnonzero(by_round.mean(axis=1).ravel() >= ACCURATE)
        return int(good[0] if len(good) else EPOCHS * self.setup.rounds) + 1

    @property
    def share(self) -> float:
        """What sealing, IPFS, ledger and signatures take, relative to the training."""
        return sum(self.seconds[stage] for stage in ADDED) / self.seconds["train"]


@dataclass(frozen=True)
class Bench:
    """What all tasks share.

    Parameters
    ----------
    data, folder : Path
        MNIST's, and one for what tasks leave.
    store : str
        URL of an IPFS node.
    """

    data: Path
    folder: Path
    store: str

    def train_all(self, setups: Sequence[Setup]) -> list[Trained]:
        """Tasks, two at a time, each in a process of its own."""
        with console.status("training"), ProcessPoolExecutor(2, get_context("spawn")) as pool:
            return list(pool.map(self.train, setups))

    def train(self, setup: Setup) -> Trained:
        """A task in this process."""
        logging.getLogger("flwr").setLevel(logging.ERROR)
        measure, watch = exam(str(self.data)).measure, Stopwatch()
        points: list[Point] = []
        models: list[Figures] = []

        def after_epoch(worker: int, arrays: Arrays) -> None:
            if setup.is_drawn:
                points.append(Point(worker, measure(arrays)))

        def after_round(number: int, record: ArrayRecord) -> None:
            if number > 0:
                models.append(measure({key: array.numpy() for key, array in record.items()}))

        config = self._config(setup, setup.name)
        apps = [workers.client_app(after_epoch)] * len(setup.labels)
        with timed_places(watch, PLACES):
            grid = InProcessGrid(apps, config, {"store": self.store})
            workers.start(grid, Context(1, 1, {}, RecordDict(), dict(config)), after_round)
            watch.lap()
        ledger = self._read(setup, setup.name)
        return Trained(setup, points, models, watch.laps[0].elapsed, ledger)

    def simulate(self, setup: Setup) -> tuple[OnLedger, float]:
        """A task through Flower, each worker a SuperNode; and how many seconds it took."""
        name = f"{setup.name}, through Flower"
        begin = time.monotonic()
        with console.status(name):
            simulate(APP, len(setup.labels), self._config(setup, name))
        return self._read(setup, name), time.monotonic() - begin

    def _config(self, setup: Setup, name: str) -> Config:
        """The run-config of the app; all tasks have the same keys, and so order of workers."""
        return {
            "data": str(self.data),
            "labels": " ".join(setup.labels),
            "parts": setup.parts,
            "rounds": setup.rounds,
            "chain.scheme": "data-trust",
            "chain.quality-floor": FLOOR,
            "chain.run": str(self.folder / name),
            "chain.keys": str(self.folder / "keys"),
            "chain.store": self.store,
            "chain.timeout": PATIENCE,
        }

    def _read(self, setup: Setup, name: str) -> OnLedger:
        paths = [self.folder / f"keys/device-{n}.key" for n in range(len(setup.labels))]
        return OnLedger.read(self.folder / name, [keys.load(path).address for path in paths])


@dataclass(frozen=True)
class Flower:
    """A task through Flower, beside the same in one process.

    Parameters
    ----------
    setup : Setup
    seconds : float
        Of the whole run, with Flower's own beginning and end.
    here, there : OnLedger
    """

    setup: Setup
    seconds: float
    here: OnLedger
    there: OnLedger

    @property
    def scores(self) -> int:
        """How many scores there are."""
        return sum(len(row) for turn in self._turns for row in self.there.said(turn)[0].values())

    @property
    def differing(self) -> int:
        """How many scores and models are not the same."""
        found = 0
        for turn in self._turns:
            (here, model), (there, other) = (led.said(turn) for led in (self.here, self.there))
            found += sum(a != b for n in here for a, b in zip(here[n], there[n], strict=True))
            found += model != other
        return found

    @property
    def _turns(self) -> range:
        return range(self.setup.rounds)


# --- tables, claims, rows ------------------------------------------------------------------------


def quality_table(found: Sequence[Trained]) -> Table:
    """What the models are worth, of the federation and of its workers."""
    rows = [
        (
            t.setup.name,
            f"1/{t.setup.parts}",
            str(t.setup.rounds),
            str(len(t.points)),
            *(f"{getattr(t.models[-1], name):.4f}" for name in METRICS),
            f"{t.models[0].accuracy:.4f}",
        )
        for t in found
    ]
    columns = ("", "data each", "rounds", "worker-epochs", *METRICS, "accuracy after one round")
    return Table("Accuracy, precision, recall", columns, rows, QUALITY_NOTE)


def epochs_table(found: Sequence[Trained]) -> Table:
    """When models are accurate, counted in three ways."""
    rows = [(t.setup.name, str(t.first), str(t.lasting), str(t.parallel)) for t in found]
    columns = ("", "worker-epochs, the first time", "worker-epochs, for good", "epochs in parallel")
    return Table(f"Epochs to {ACCURATE:.0%}", columns, rows, EPOCHS_NOTE)


def seconds_table(found: Sequence[Trained]) -> Table:
    """Where the time went."""
    rows = [
        (stage, *(f"{t.seconds[stage]:.2f}" for t in found), *(_relative(t, stage) for t in found))
        for stage in STAGES
    ]
    rows.append(
        (" + ".join(ADDED), *(_added(t) for t in found), *(f"{t.share:.2%}" for t in found))
    )
    names = [t.setup.name for t in found]
    columns = ("stage", *(f"{n}: s" for n in names), *(f"{n}: of train" for n in names))
    note = "\n".join(f"- {stage}: {text}" for stage, text in STAGES.items())
    return Table("Seconds of a whole task", columns, rows, f"{SECONDS_NOTE}\n\n{note}")


def _relative(trained: Trained, stage: str) -> str:
    return f"{trained.seconds[stage] / trained.seconds['train']:.2%}"


def _added(trained: Trained) -> str:
    return f"{sum(trained.seconds[stage] for stage in ADDED):.2f}"


def faults_table(faulty: Trained, without: Trained) -> Table:
    """What the contract made of each worker."""
    turns = range(faulty.setup.rounds)
    rows = [
        (
            f"{worker}: {labels} labels",
            *(_cell(faulty.ledger.quality(worker, turn)) for turn in turns),
            f"round {lost}" if (lost := faulty.ledger.lost.get(worker)) else "-",
            f"{faulty.ledger.credited(worker):.2f}",
        )
        for worker, labels in enumerate(faulty.setup.labels)
    ]
    for name, trained in (("accuracy with all", faulty), ("accuracy without", without)):
        rows.append((name, *(f"{m.accuracy:.4f}" for m in trained.models), "", ""))
    columns = ("worker", *(f"round {turn + 1}" for turn in turns), "deposit lost", "tokens")
    return Table("Wrong labels", columns, rows, FAULTS_NOTE)


def _cell(quality: float | None) -> str:
    return "out" if quality is None else f"{quality:.3f}"


def flower_table(flower: Flower) -> Table:
    """The same through Flower."""
    setup, seconds = flower.setup, f"{flower.seconds:.0f}"
    row = (setup.name, str(setup.rounds), str(flower.scores), str(flower.differing), seconds)
    columns = ("", "rounds", "scores", "scores and models that differ", "seconds")
    return Table("Through Flower", columns, [row], FLOWER_NOTE)


def make_claims(
    found: Sequence[Trained], faulty: Trained, without: Trained, flower: Flower
) -> list[Claim]:
    """What the paper says, and what was asked for."""
    three, five = found
    last = three.models[-1]
    lost = faulty.ledger.lost
    bad = [w for w, labels in enumerate(faulty.setup.labels) if labels is not Labels.TRUE]
    paper = {"accuracy": ACCURATE, "precision": 0.973, "recall": 0.97}
    return [
        *(
            Claim.at_least(f"{name}, {three.setup.name}", PAPER, least, getattr(last, name))
            for name, least in paper.items()
        ),
        *(
            Claim.at_least(f"accuracy, {t.setup.name}", OURS, 0.985, t.models[-1].accuracy)
            for t in found
        ),
        *(
            Claim.at_most(f"worker-epochs, {t.setup.name}", PAPER, LIMIT, len(t.points))
            for t in found
        ),
        Claim.at_most(
            f"worker-epochs to {ACCURATE:.0%}, {five.setup.name}", PAPER, three.first, five.first
        ),
        *(
            Claim.at_most(f"{', '.join(ADDED)} / train, {t.setup.name}", OURS, 0.01, t.share)
            for t in found
        ),
        Claim.at_least(
            "deposits lost, wrong labels", OURS, len(FAULTY), sum(worker in lost for worker in bad)
        ),
        Claim.at_most("deposits lost, right labels", OURS, 0, len(lost.keys() - set(bad))),
        Claim.about(
            "accuracy with wrong labels less without",
            OURS,
            0,
            0.005,
            faulty.models[-1].accuracy - without.models[-1].accuracy,
        ),
        Claim.at_most("scores and models that differ through Flower", OURS, 0, flower.differing),
    ]


def make_rows(trained: Sequence[Trained], flower: Flower) -> list[dict[str, Any]]:
    """For programs."""
    rows: list[dict[str, Any]] = [
        {
            "task": t.setup.name,
            "labels": list(t.setup.labels),
            "rounds": t.setup.rounds,
            "points": [asdict(point) for point in t.points],
            "models": [asdict(model) for model in t.models],
            "seconds": dict(t.seconds),
            "lost": t.ledger.lost,
            "tokens": [t.ledger.credited(worker) for worker in range(len(t.setup.labels))],
        }
        for t in trained
    ]
    task, found = f"{flower.setup.name}, through Flower", flower.differing
    rounds, seconds = flower.setup.rounds, flower.seconds
    return [*rows, {"task": task, "rounds": rounds, "differing": found, "seconds": seconds}]


def draw(found: Sequence[Trained], path: Path) -> None:
    """Figure 4 of the paper, with precision and recall."""
    figure, panels = plt.subplots(
        len(METRICS), len(found), figsize=(11, 7.5), layout="constrained", sharey=True
    )
    for column, trained in zip(panels.T, found, strict=True):
        for axes, name in zip(column, METRICS, strict=True):
            _draw(axes, trained, name)
        column[0].set_title(trained.setup.name)
        column[-1].set_xlabel("worker-epoch")
    for axes, name in zip(panels[:, 0], METRICS, strict=True):
        axes.set_ylabel(f"{name} in %")
    panels[-1, -1].legend(fontsize=7, ncols=3)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _draw(axes: Any, trained: Trained, name: str) -> None:
    """A line for each turn of a worker, and the model that each round ended with."""
    axes.axhline(100 * ACCURATE, color="0.8", lw=1)
    for start in range(0, len(trained.points), EPOCHS):
        turn = trained.points[start : start + EPOCHS]
        worker, x = turn[0].worker, range(start + 1, start + EPOCHS + 1)
        label = f"worker {worker}" if start < EPOCHS * len(trained.setup.labels) else None
        y = [100 * getattr(point.figures, name) for point in turn]
        axes.plot(x, y, "o-", ms=2.5, lw=1, color=f"C{worker}", label=label)
    ends = EPOCHS * len(trained.setup.labels) * np.arange(1, len(trained.models) + 1)
    y = [100 * getattr(model, name) for model in trained.models]
    axes.plot(ends, y, "k_", ms=14, label="mean of the models")
    axes.spines[["top", "right"]].set_visible(False)


METRICS = tuple(field.name for field in fields(Figures))

QUALITY_NOTE = """Of the model that the last round ended with, the mean of the workers' models; on
the 10,000 test images. Precision and recall are means over the classes."""

EPOCHS_NOTE = """A worker-epoch is an epoch of one worker on its part; drawn and counted one after
another, as the paper's section 4.1 tells of its figures. In the first round all workers begin with
the same untrained model. "The first time" is after which worker-epoch some worker's model had that
accuracy; "for good", from which on all had. "In parallel" counts the epochs of each worker, all
training at once: when their models have it on average. An epoch of one of five workers has 375
steps, of one of three 625."""

SECONDS_NOTE = """The wall clock of one process: workers train in turn on one core, as in the paper,
while another task trains on the other. The IPFS node is a process of its own, which all share, and
is waited for. The training is the epochs alone, without what is measured for the figure."""

FAULTS_NOTE = f"""Five workers with a fifth of the data each; "without" are the three with right
labels alone. All score honestly. Quality below {FLOOR} in three rounds, one after another, costs
the deposit, 10 tokens: it goes to the others in proportion to what they earned in that round. From
the first round on, models whose median score is below the floor are no part of the mean. What is
guaranteed against workers that *score* dishonestly is for one of five: n >= 2 M + 2."""

FLOWER_NOTE = """The first rounds of the task through `flwr run`, each worker a SuperNode of
Flower's simulation, with the same keys, ledger and IPFS node. All scores on the ledger, and the
digests of the models, are compared bit for bit."""

LIMIT = 90
"""Worker-epochs, by the paper."""

HEADING = """# Data trust: papers/4's experiments

Made by `python benchmarks/data_trust.py` on {cores} cores, which had a load of {load:.1f} when it
began. MNIST in equal parts, a CNN with 46,730 parameters, Adam with step {rate:g}, batches of
{batch}, {epochs} epochs a round. Models are sealed for all workers and
stored on a real IPFS node (js-ipfs), by which workers fetch them; the contract is on the embedded
ledger. As in the paper each worker scores on the whole test set. All have the same one, so a model
is measured once in this process.
"""


def main(
    data: Annotated[
        Path, typer.Option(envvar="MNIST_DIR", help="Folder of MNIST's *-ubyte.gz files.")
    ] = DEFAULT_DATA,
    epochs: Annotated[int, typer.Option(min=1, help="Worker-epochs of a task.")] = LIMIT,
    json: Annotated[Path | None, typer.Option(help="Write rows and claims here.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the page and the figure.")] = (
        Path(__file__).parent / "results"
    ),
) -> None:
    """Repeat the experiments of papers/4."""
    check_data(data)
    begin, load = time.monotonic(), os.getloadavg()[0]
    honest = [Setup.honest(n_workers, epochs) for n_workers in (3, 5)]
    right = (Labels.TRUE,) * 3
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        try:
            node = stack.enter_context(JsIpfs(folder / "ipfs"))
        except NotInstalledError as fault:
            console.print(str(fault))
            raise typer.Exit(1) from None
        bench = Bench(data.resolve(), folder, node.url)
        first = replace(honest[0], rounds=min(FLOWER_ROUNDS, honest[0].rounds))
        there, seconds = bench.simulate(first)
        *found, faulty, without = bench.train_all(
            [
                *honest,
                Setup("wrong labels", right + FAULTY, 5, FAULTY_ROUNDS, is_drawn=False),
                Setup("without them", right, 5, FAULTY_ROUNDS, is_drawn=False),
            ]
        )
    flower = Flower(first, seconds, found[0].ledger, there)
    claims = make_claims(found, faulty, without, flower)
    minutes = (time.monotonic() - begin) / 60
    claims.append(Claim.at_most("minutes in all", OURS, 20, minutes))
    tables = [quality_table(found), epochs_table(found), seconds_table(found)]
    tables += [faults_table(faulty, without), flower_table(flower), claims_table(claims)]
    for table in tables:
        console.print(table.rich())
    out.mkdir(parents=True, exist_ok=True)
    draw(found, out / "data-trust.png")
    heading = HEADING.format(cores=os.cpu_count(), load=load, rate=RATE, batch=BATCH, epochs=EPOCHS)
    pages = [heading, "![accuracy, precision, recall](data-trust.png)\n"]
    (out / "data-trust.md").write_text("\n".join(pages + [table.markdown() for table in tables]))
    if json is not None:
        write_json(json, make_rows([*found, faulty, without], flower), claims)


if __name__ == "__main__":
    typer.run(main)
