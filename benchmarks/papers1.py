"""papers/1 figures 4 and 7: what training costs, and what recording it does to the model.

Figure 7: ten devices with uneven, overlapping shares of MNIST, 15 rounds, against centralised
training. The same devices learn three ways: centrally, all 60,000 points in one place; under plain
Flower; and under flower-chain, where every update is signed, sealed, recorded, judged and paid for,
once by each rule.

Figure 4: how long a device trains on how many points; that is why the paper pays by the point.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, cast

import matplotlib as mpl
import numpy as np
import torch
import typer
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, Strategy
from in_process import InProcessGrid
from mnist import (
    BATCH,
    CLASSES,
    DEFAULT,
    DEFAULT_DATA,
    Model,
    NDArray,
    Optimizer,
    Samples,
    build,
    check_data,
    get_arrays,
    predict,
    read_mnist,
    set_arrays,
    train,
)
from report import Claim, Table, claims_table, write_json
from rich.console import Console
from rich.progress import track

import flower_chain
from flower_chain.keys import load_or_create
from flower_chain.records import TOKEN_UNITS
from flower_chain.report.record_and_reward import Device as Earnings
from flower_chain.report.record_and_reward import summarise
from flower_chain.rules.record_and_reward import Rule, error_rate
from flower_chain.run import RecordAndRewardRun
from flower_chain.updates import Arrays

mpl.use("Agg")
from matplotlib import pyplot as plt

DEVICES = 10
SHARES = np.linspace(0.1, 0.5, DEVICES)
ROUNDS = 15
USERS = 50
LEAST_POINTS = 320
RATE = 0.001
POOL = 10_000.0
RULES = (Rule.GAIN, Rule.TREND, Rule.THRESHOLD)
CENTRAL = "centralised"
PLAIN = "plain Flower"
COLOURS = ("0.3", "#1f78b4", "#08715f", "#b45f06", "#6a51a3")

console = Console()


@dataclass(frozen=True)
class Setup:
    """What is trained, on what, and for how long."""

    data: Path
    model: Model
    optimizer: Optimizer
    rounds: int
    users: int
    seed: int


@dataclass(frozen=True)
class Curve:
    """How a model fared.

    Parameters
    ----------
    name : str
    accuracies : tuple of float
        Of each version on the test data, the untrained one first.
    seconds : float
        CPU time of all of it, on devices and server.
    earnings : tuple of Earnings
        What the ledger says of each device, by its number; nothing without a ledger.
    accepted : tuple of int
        Updates that were accepted in each round; nothing without a ledger.
    """

    name: str
    accuracies: tuple[float, ...]
    seconds: float
    earnings: tuple[Earnings, ...] = ()
    accepted: tuple[int, ...] = ()

    @property
    def paid(self) -> NDArray:
        """Tokens that each device earned."""
        return np.array([device.earned / TOKEN_UNITS for device in self.earnings])


class Shares:
    """MNIST, cut into what each device holds, the owner's validation data and test data."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.all = read_mnist(setup.data, "train")
        x, y = read_mnist(setup.data, "t10k")
        order = np.random.default_rng(setup.seed).permutation(len(y))
        half = len(order) // 2
        self.owner = x[order[:half]], y[order[:half]]
        self.test = x[order[half:]], y[order[half:]]

    def of(self, device: int) -> Samples:
        """A device's share of all points: drawn without regard to what the others hold."""
        x, y = self.all
        rng = np.random.default_rng([self.setup.seed, device])
        chosen = rng.choice(len(y), round(len(y) * SHARES[device]), replace=False)
        return x[chosen], y[chosen]

    @cached_property
    def sizes(self) -> NDArray:
        """Points that each device holds."""
        return np.array([len(self.of(device)[1]) for device in range(DEVICES)])

    def first_model(self) -> torch.nn.Sequential:
        """T_0."""
        return build(self.setup.model, self.setup.seed)

    def accuracy(self, net: torch.nn.Sequential) -> float:
        """On the test data, which nobody trains or is judged on."""
        x, y = self.test
        return 1 - error_rate(predict(net, x), y)


# --- figure 7 ------------------------------------------------------------------------------------


def learn_centrally(shares: Shares) -> Curve:
    """All data in one place; an epoch for each round."""
    net, setup = shares.first_model(), shares.setup
    accuracies = [shares.accuracy(net)]
    begin = time.process_time()
    train(
        net,
        shares.all,
        setup.optimizer,
        np.random.default_rng(setup.seed),
        setup.rounds,
        lambda: accuracies.append(shares.accuracy(net)),
    )
    return Curve(CENTRAL, tuple(accuracies), time.process_time() - begin)


def learn_together(
    shares: Shares, strategy: Strategy, keys: Path
) -> tuple[tuple[float, ...], float]:
    """The devices, under a Flower strategy: the accuracies, and the CPU seconds."""
    apps = [client_app(shares, device) for device in range(DEVICES)]
    grid = InProcessGrid(apps, {"chain.keys": str(keys)})
    net = shares.first_model()
    initial = _record(get_arrays(net))

    def evaluate(_: int, arrays: ArrayRecord) -> MetricRecord:
        set_arrays(net, _arrays(arrays))
        return MetricRecord({"accuracy": shares.accuracy(net)})

    begin = time.process_time()
    result = strategy.start(grid, initial, shares.setup.rounds, evaluate_fn=evaluate)
    seconds = time.process_time() - begin
    measured = result.evaluate_metrics_serverapp
    return tuple(cast(float, measured[number]["accuracy"]) for number in sorted(measured)), seconds


def client_app(shares: Shares, device: int) -> flower_chain.ClientApp:
    """A device that trains for one epoch on its share."""
    app = flower_chain.ClientApp(classes=lambda _: range(CLASSES))
    samples, setup = shares.of(device), shares.setup

    @app.train()
    def fit(message: Message, context: Context) -> Message:
        net = shares.first_model()
        set_arrays(net, _arrays(message.content.array_records["arrays"]))
        validation = flower_chain.Validation(lambda x: predict(net, x))
        turn = cast(int, message.content.config_records["config"]["server-round"])
        rng = np.random.default_rng([setup.seed, device, turn])
        train(net, samples, setup.optimizer, rng, 1, validation.measure)
        metrics = MetricRecord({"num-examples": len(samples[1])})
        content = RecordDict({"arrays": _record(get_arrays(net)), "metrics": metrics})
        return Message(content, reply_to=message)

    return app


def learn_under(rule: Rule, shares: Shares) -> Curve:
    """The devices, under flower-chain with a rule."""
    with TemporaryDirectory() as folder:
        path, keys = Path(folder) / "run", Path(folder) / "keys"
        settings = flower_chain.RecordAndRewardSettings(
            str(path), rule=str(rule), pool=POOL, rate=RATE
        )
        examiner = flower_chain.Examiner(*shares.owner, _predictor(shares))
        strategy = flower_chain.RecordAndReward(_fedavg(), examiner, settings)
        accuracies, seconds = learn_together(shares, strategy, keys)
        return Curve(f"flower-chain, {rule}", accuracies, seconds, *_read_ledger(path, keys))


def learn_plainly(shares: Shares) -> Curve:
    """The devices, under Flower's own strategy."""
    accuracies, seconds = learn_together(shares, _fedavg(), Path())
    return Curve(PLAIN, accuracies, seconds)


def _fedavg() -> FedAvg:
    return FedAvg(fraction_evaluate=0.0, min_train_nodes=DEVICES, min_available_nodes=DEVICES)


def _predictor(shares: Shares) -> Callable[[Arrays, NDArray], NDArray]:
    net = shares.first_model()

    def predict_with(arrays: Arrays, x: NDArray) -> NDArray:
        set_arrays(net, {key: value.copy() for key, value in arrays.items()})
        return predict(net, x)

    return predict_with


def _read_ledger(path: Path, keys: Path) -> tuple[tuple[Earnings, ...], tuple[int, ...]]:
    """What the ledger says of each device, by its number, and of each round."""
    run = RecordAndRewardRun.open(path)
    federation = run.federation
    summary = summarise(federation.history(), federation.contract.address, federation.pool)
    run.close()
    by_account = {device.account: device for device in summary.devices}
    paths = [keys / f"device-{number}.key" for number in range(DEVICES)]
    earnings = tuple(by_account[load_or_create(path).address] for path in paths)
    return earnings, tuple(len(entry.accepted) for entry in summary.rounds if entry.settled)


def _arrays(record: ArrayRecord) -> Arrays:
    return {key: array.numpy().copy() for key, array in record.items()}


def _record(arrays: Arrays) -> ArrayRecord:
    return ArrayRecord({key: Array(value) for key, value in arrays.items()})


# --- figure 4 ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Effort:
    """How long users trained for one epoch, and the line through it.

    Parameters
    ----------
    points : ndarray of int, shape (n_users,)
    seconds : ndarray, shape (n_users,)
        CPU time of one thread, the shorter of two trainings.
    """

    points: NDArray
    seconds: NDArray

    @cached_property
    def line(self) -> tuple[float, float]:
        """Slope and intercept by least squares."""
        slope, intercept = np.polyfit(self.points, self.seconds, 1)
        return float(slope), float(intercept)

    @property
    def r_squared(self) -> float:
        """Of the line."""
        return float(np.corrcoef(self.points, self.seconds)[0, 1] ** 2)

    @property
    def fixed_share(self) -> float:
        """The part of the longest training that does not depend on the points, by the line."""
        slope, intercept = self.line
        return abs(intercept) / (slope * float(self.points.max()) + intercept)


def measure_effort(shares: Shares) -> Effort:
    """Users with evenly spaced numbers of points, in random order, each from a fresh model."""
    setup, (x, y) = shares.setup, shares.all
    rng = np.random.default_rng(setup.seed)
    points = rng.permutation(np.linspace(LEAST_POINTS, len(y), setup.users).astype(int))
    _seconds_for(setup, (x[:LEAST_POINTS], y[:LEAST_POINTS]), rng)  # the first is always slow
    seconds = [
        min(_seconds_for(setup, (x[:some], y[:some]), rng) for _ in range(2))
        for some in track(points, "Figure 4", console=console)
    ]
    return Effort(points, np.array(seconds))


def _seconds_for(setup: Setup, samples: Samples, rng: np.random.Generator) -> float:
    net = build(setup.model, setup.seed)
    begin = time.process_time()
    train(net, samples, setup.optimizer, rng, 1)
    return time.process_time() - begin


# --- tables, claims, rows ------------------------------------------------------------------------


def curves_table(curves: Sequence[Curve]) -> Table:
    """Figure 7 in numbers."""
    plain = _named(curves, PLAIN)
    last = len(plain.accuracies) - 1
    shown = sorted({1, min(5, last), last})
    rows = [
        (
            curve.name,
            *(f"{curve.accuracies[version]:.2%}" for version in shown),
            f"{max(curve.accuracies):.2%}",
            f"{sum(curve.accepted)} of {last * DEVICES}" if curve.earnings else "-",
            f"{curve.paid.sum():,.1f}" if curve.earnings else "-",
            f"{curve.seconds:.1f}",
            f"{curve.seconds / plain.seconds:.2f}",
        )
        for curve in curves
    ]
    columns = ("", *(f"version {version}" for version in shown), "best", "accepted", "tokens paid")
    note = (
        "Accuracy on test data. CPU seconds of all devices and the server together; the last "
        f"column is relative to {PLAIN}. All devices are honest: what is refused did not, by "
        "itself, improve a model that is good already."
    )
    return Table("Figure 7: accuracy", (*columns, "seconds", "ratio"), rows, note)


def devices_table(curves: Sequence[Curve], sizes: NDArray) -> Table:
    """What each device was paid for its data."""
    recorded = [curve for curve in curves if curve.earnings]
    rows = [
        (
            str(number),
            f"{share:.1%}",
            f"{size:,}",
            *(f"{curve.earnings[number].accepted}: {curve.paid[number]:.1f}" for curve in recorded),
            f"{_price(recorded[0], number):.1%}",
        )
        for number, (share, size) in enumerate(zip(SHARES, sizes, strict=True))
    ]
    columns = ("device", "share", "points", *(curve.name for curve in recorded))
    note = (
        "Updates accepted and tokens paid. A device is paid for the points of each accepted "
        "update; the rule gain takes off the error that is left. The last column is what was paid "
        "for an accepted point under gain, relative to the full rate."
    )
    return Table("What each device was paid", (*columns, "gain: of the rate"), rows, note)


def _price(curve: Curve, number: int) -> float:
    """What was paid for an accepted point, relative to the rate."""
    points = curve.earnings[number].data_points
    return float(curve.paid[number]) / (points * RATE) if points else float("nan")


def effort_table(effort: Effort) -> Table:
    """Figure 4 in numbers: users by the number of their points."""
    order = np.argsort(effort.points)
    rows = []
    for some in np.array_split(order, min(5, len(order))):
        points, seconds = effort.points[some], effort.seconds[some]
        rows.append(
            (
                f"{points.min():,} to {points.max():,}",
                str(len(some)),
                f"{seconds.mean():.3f}",
                f"{1e6 * seconds.sum() / points.sum():.1f}",
            )
        )
    slope, intercept = effort.line
    note = (
        f"The line: {1e6 * slope:.2f} us a point and {1e3 * intercept:.1f} ms, "
        f"R^2 = {effort.r_squared:.5f}. CPU time of one thread, the shorter of two."
    )
    columns = ("points", "users", "seconds for an epoch", "us a point")
    return Table("Figure 4: training time", columns, rows, note)


def make_claims(curves: Sequence[Curve], sizes: NDArray, effort: Effort) -> list[Claim]:
    """What is said of the figures, and whether it is so."""
    gain = _named(curves, f"flower-chain, {Rule.GAIN}")
    central, plain = (_named(curves, name).accuracies[-1] for name in (CENTRAL, PLAIN))
    middle = gain.accuracies[len(gain.accuracies) // 2]
    updates = (len(gain.accuracies) - 1) * DEVICES
    us, figure_4, figure_7 = "flower-chain", "papers/1 figure 4", "papers/1 figure 7"
    return [
        Claim.about(
            "last accuracy less the centralised", figure_7, 0, 0.01, gain.accuracies[-1] - central
        ),
        Claim.about(
            "accuracy gained in the second half", figure_7, 0, 0.01, gain.accuracies[-1] - middle
        ),
        Claim.about("last accuracy less plain Flower's", us, 0, 0.005, gain.accuracies[-1] - plain),
        Claim.at_least(
            "updates accepted by gain; all are honest", us, 0.97, sum(gain.accepted) / updates
        ),
        Claim.at_least(
            "R^2 of tokens paid by gain against points", us, 0.95, _r_squared(sizes, gain.paid)
        ),
        Claim.at_most(
            "CPU time, relative to plain Flower",
            us,
            1.25,
            gain.seconds / _named(curves, PLAIN).seconds,
        ),
        Claim.at_least("R^2 of training time against points", figure_4, 0.99, effort.r_squared),
        Claim.at_most(
            "share of the training time that is fixed", figure_4, 0.02, effort.fixed_share
        ),
    ]


def _r_squared(x: NDArray, y: NDArray) -> float:
    return float(np.corrcoef(x, y)[0, 1] ** 2) if np.ptp(y) else 0.0


def _named(curves: Sequence[Curve], name: str) -> Curve:
    return next(curve for curve in curves if curve.name == name)


def make_rows(curves: Sequence[Curve], sizes: NDArray, effort: Effort) -> list[dict[str, Any]]:
    """The figures' points, for programs."""
    rows: list[dict[str, Any]] = []
    for curve in curves:
        rows.append(
            {
                "figure": 7,
                "training": curve.name,
                "accuracies": list(curve.accuracies),
                "seconds": curve.seconds,
                "accepted": list(curve.accepted),
            }
        )
        rows += [
            {
                "figure": 7,
                "training": curve.name,
                "device": number,
                "points": int(sizes[number]),
                "accepted": device.accepted,
                "tokens": device.earned / TOKEN_UNITS,
            }
            for number, device in enumerate(curve.earnings)
        ]
    pairs = zip(effort.points.tolist(), effort.seconds.tolist(), strict=True)
    return rows + [{"figure": 4, "points": points, "seconds": seconds} for points, seconds in pairs]


# --- the figures ---------------------------------------------------------------------------------


def draw_figure_7(curves: Sequence[Curve], sizes: NDArray, path: Path) -> None:
    """Accuracy, what was accepted over the rounds, and what was paid for how much data."""
    figure, panels = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    left, middle, right = panels
    rounds = range(1, len(curves[0].accuracies))
    for curve, colour in zip(curves, COLOURS, strict=True):
        errors = 100 * (1 - np.array(curve.accuracies[1:]))
        left.plot(rounds, errors, color=colour, lw=2, label=curve.name)
        if curve.earnings:
            middle.plot(rounds, curve.accepted, color=colour, lw=2)
            right.plot(sizes, curve.paid, "o", color=colour)
    ends = np.array([0, sizes.max()])
    right.plot(ends, RATE * len(rounds) * ends, color="0.8", lw=1, zorder=0)
    left.set(title="figure 7", xlabel="round", ylabel="test error in %", yscale="log")
    middle.set(title=f"accepted of {DEVICES}", xlabel="round", ylim=(0, DEVICES + 0.5))
    right.set(title="tokens earned (line: full rate)", xlabel="data points of the device")
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter("{x:g}")
    left.legend(frameon=False)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def draw_figure_4(effort: Effort, path: Path) -> None:
    """Training time against data points, and the line."""
    figure, axes = plt.subplots(figsize=(5, 3.8), layout="constrained")
    slope, intercept = effort.line
    ends = np.array([0, effort.points.max()])
    axes.plot(ends, slope * ends + intercept, color="0.6", lw=1.5)
    axes.plot(effort.points, effort.seconds, "o", color="#08715f", ms=4)
    axes.set(
        title=f"figure 4: R² = {effort.r_squared:.4f}",
        xlabel="data points",
        ylabel="CPU seconds for an epoch",
    )
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


# --- the command ---------------------------------------------------------------------------------


def _heading(setup: Setup) -> str:
    quick = " --quick" if setup.rounds != ROUNDS else ""
    overlap = 1 - np.prod(1 - SHARES[1:])
    return f"""# Training time, and training with a ledger: papers/1 figures 4 and 7

Made by `python benchmarks/papers1.py --model {setup.model} --optimizer {setup.optimizer} \
--seed {setup.seed}{quick}`.

{DEVICES} devices with {SHARES.min():.0%} to {SHARES.max():.0%} of MNIST's 60,000 points, each drawn
without regard to the others: of the smallest device's points {overlap:.0%} are held by another too.
{setup.rounds} rounds, one local epoch a round in minibatches of {BATCH}; the centralised model
trains for as many epochs on all points. Model {setup.model}, optimizer {setup.optimizer}, all from
the same T_0. Half of the test set is the owner's, to judge with; accuracies are on the other half.
Under flower-chain the aggregate is the uniform mean, as in the paper; plain Flower's FedAvg weighs
by the number of points. The paper gives neither model, optimizer nor local epochs.
"""


def _page(setup: Setup, tables: Sequence[Table]) -> str:
    figure_7, figure_4 = (f"![{name}](papers1-{name}.png)\n" for name in ("figure-7", "figure-4"))
    written = [table.markdown() for table in tables]
    return "\n".join([_heading(setup), figure_7, *written[:2], figure_4, *written[2:]])


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def learn_every_way(shares: Shares) -> list[Curve]:
    """One curve after the other."""
    ways: list[tuple[str, Callable[[], Curve]]] = [
        (CENTRAL, lambda: learn_centrally(shares)),
        (PLAIN, lambda: learn_plainly(shares)),
        *((str(rule), lambda rule=rule: learn_under(rule, shares)) for rule in RULES),
    ]
    curves = []
    for name, learn in ways:
        with console.status(f"Figure 7: {name}"):
            curves.append(learn())
        console.print(f"Figure 7: {name}, {curves[-1].accuracies[-1]:.2%}")
    return curves


def main(
    model: Annotated[Model, typer.Option(help="What the devices train.")] = DEFAULT[0],
    optimizer: Annotated[Optimizer, typer.Option(help="And how.")] = DEFAULT[1],
    data: Annotated[
        Path, typer.Option(envvar="MNIST_DIR", help="Folder of MNIST's *-ubyte.gz files.")
    ] = DEFAULT_DATA,
    quick: Annotated[bool, typer.Option("--quick", help="Two rounds, ten users.")] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    json: Annotated[Path | None, typer.Option(help="Write rows and claims here.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the page and the figures.")] = (
        Path(__file__).parent / "results"
    ),
) -> None:
    """Reproduce papers/1 figures 4 and 7."""
    check_data(data)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    rounds, users = (2, 10) if quick else (ROUNDS, USERS)
    setup = Setup(data, model, optimizer, rounds, users, seed)
    shares = Shares(setup)
    with _one_thread():
        effort = measure_effort(shares)
        curves = learn_every_way(shares)
    claims = make_claims(curves, shares.sizes, effort)
    tables = [curves_table(curves), devices_table(curves, shares.sizes)]
    tables += [effort_table(effort), claims_table(claims)]
    for table in tables:
        console.print(table.rich())
    out.mkdir(parents=True, exist_ok=True)
    draw_figure_7(curves, shares.sizes, out / "papers1-figure-7.png")
    draw_figure_4(effort, out / "papers1-figure-4.png")
    (out / "papers1.md").write_text(_page(setup, tables))
    if json is not None:
        write_json(json, make_rows(curves, shares.sizes, effort), claims)


if __name__ == "__main__":
    typer.run(main)
