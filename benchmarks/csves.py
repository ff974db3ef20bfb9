"""papers/1 tables II to V: how well validation errors tell valid updates from faulty ones.

An instance is a device with 1,000 MNIST training points of a random set of classes, each in it with
probability 1/2 (that is how the paper's tables come by their numbers of instances), and about 100
validation points of the same classes. It trains for 5 epochs. What its update is worth is decided
by the package: the published rules, trend and threshold (tau = 0.1), and ours, gain.

An update is measured from two models: T_0, drawn afresh for each instance, and a good T_k, which
federated averaging over such devices has brought to a given accuracy.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import numpy as np
import torch
import typer
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
from terms import Terms
from torch import nn

from flower_chain.examiner import Examiner
from flower_chain.records import PPM, Contribution, Refusal
from flower_chain.rules.record_and_reward import Rule, ends, error_rate, evidence, judge
from flower_chain.updates import Arrays

mpl.use("Agg")
from matplotlib import pyplot as plt

POINTS = 1000
VALIDATION_POINTS = 100
EPOCHS = 5
DEVICES = 10
MAX_ROUNDS = 60

console = Console()


class Start(StrEnum):
    """What a device begins from."""

    FIRST = "T_0"
    GOOD = "good T_k"


class Kind(StrEnum):
    """The kinds of update."""

    VALID = "valid"
    HALF_WRONG = "half-wrong labels"
    RANDOM_LABELS = "random labels"
    FLIPPED_LABELS = "flipped labels (9 - y)"
    NOISE_IMAGES = "noise images"
    ECHO = "echo of T_k"
    RANDOM_WEIGHTS = "random weights"
    OWN_LABELS = "random labels of its own classes"
    SHARPENED = "T_k, last layer x 1.5"
    LEANING = "T_k, own classes' biases + 3"


FAULTS = (
    Kind.RANDOM_LABELS,
    Kind.FLIPPED_LABELS,
    Kind.NOISE_IMAGES,
    Kind.ECHO,
    Kind.RANDOM_WEIGHTS,
)
TAILORED = (Kind.OWN_LABELS, Kind.SHARPENED, Kind.LEANING)
UNTRAINED = (Kind.ECHO, Kind.RANDOM_WEIGHTS, Kind.SHARPENED, Kind.LEANING)
RULES = (Rule.TREND, Rule.THRESHOLD, Rule.GAIN)
SWEPT = {
    Rule.TREND: "trend: slope",
    Rule.THRESHOLD: "threshold: last error",
    Rule.GAIN: "gain: fall of the open error",
}


@dataclass(frozen=True)
class Published:
    """A table of papers/1: for 1 to 9 classes, how many instances and how many accepted."""

    title: str
    rule: Rule
    kind: Kind
    instances: tuple[int, ...]
    accepted: tuple[int, ...]
    said: float
    note: str = ""


PUBLISHED = (
    Published(
        "Table II: valid, CSVES-Tr",
        Rule.TREND,
        Kind.VALID,
        (8, 49, 122, 196, 266, 188, 110, 50, 11),
        (0, 27, 81, 121, 108, 114, 64, 31, 7),
        0.60,
        "Shares follow from the paper's counts. It prints 59.4% and 69.2% for 5 and 7 classes.",
    ),
    Published(
        "Table III: valid, CSVES-Th",
        Rule.THRESHOLD,
        Kind.VALID,
        (9, 41, 112, 211, 240, 203, 119, 50, 13),
        (5, 41, 112, 211, 238, 203, 119, 50, 12),
        0.98,
    ),
    Published(
        "Table IV: faulty, CSVES-Tr",
        Rule.TREND,
        Kind.RANDOM_LABELS,
        (14, 44, 121, 194, 272, 191, 117, 35, 9),
        (3, 9, 36, 54, 98, 75, 41, 20, 3),
        0.33,
    ),
    Published(
        "Table V: faulty, CSVES-Th",
        Rule.THRESHOLD,
        Kind.RANDOM_LABELS,
        (11, 61, 122, 196, 240, 220, 111, 34, 5),
        (2, 28, 88, 166, 212, 185, 102, 32, 5),
        0.75,
        "The paper's 75% is the mean of the nine shares; of all instances it is 82%.",
    ),
)


@dataclass(frozen=True)
class Setup:
    """What every worker needs to know."""

    data: Path
    model: Model
    optimizer: Optimizer
    seed: int


@dataclass(frozen=True)
class Job:
    """One device: its number, and the model that it begins from; None draws a T_0."""

    number: int
    arrays: Arrays | None


@dataclass(frozen=True)
class Update:
    """What is measured of an update."""

    start: Start
    kind: Kind
    n_classes: int
    gain_errors: tuple[int, ...]
    error_rates: tuple[int, ...]

    def errors(self, rule: Rule) -> tuple[int, ...]:
        """What the device would report under `rule`."""
        return self.gain_errors if rule is Rule.GAIN else self.error_rates


# --- one instance --------------------------------------------------------------------------------


class Federation:
    """The data, cut into devices; each is drawn from its number alone."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._x, self._y = read_mnist(setup.data, "train")
        self._members = [np.flatnonzero(self._y == label) for label in range(CLASSES)]
        self.test = read_mnist(setup.data, "t10k")
        self._examiner = Examiner(*self.test, lambda arrays, x: x)

    def rng(self, number: int, use: str) -> np.random.Generator:
        """What chance decides for a device."""
        text = f"{self.setup.seed} {number} {use}".encode()
        return np.random.default_rng(list(hashlib.sha256(text).digest()))

    def classes(self, number: int) -> NDArray:
        """One to nine classes, each with probability 1/2."""
        rng = self.rng(number, "classes")
        while True:
            classes = np.flatnonzero(rng.random(CLASSES) < 0.5)
            if 0 < len(classes) < CLASSES:
                return classes

    def points(self, number: int) -> Samples:
        """The device's training points, of its classes."""
        members = np.concatenate([self._members[label] for label in self.classes(number)])
        chosen = self.rng(number, "points").choice(members, POINTS, replace=False)
        return self._x[chosen], self._y[chosen]

    def validation(self, number: int) -> Samples:
        """The owner's validation points for the device, as many of each of its classes."""
        classes = self.classes(number)
        seed = hashlib.sha256(f"{self.setup.seed}".encode()).digest()
        per_class = VALIDATION_POINTS // len(classes)
        return self._examiner.draw(seed, f"device {number}", classes.tolist(), per_class)

    def first_model(self, number: int) -> nn.Sequential:
        """A T_0."""
        return build(self.setup.model, int(self.rng(number, "weights").integers(2**31)))


_federation: Federation | None = None


def open_worker(setup: Setup) -> None:
    """Prepare this process for jobs."""
    global _federation  # noqa: PLW0603 - each process of the pool has its own
    torch.set_num_threads(1)
    _federation = Federation(setup)


def train_device(job: Job) -> Arrays:
    """The model of an honest device after its training."""
    assert _federation is not None
    net = _federation.first_model(job.number)
    if job.arrays is not None:
        set_arrays(net, job.arrays)
    rng = _federation.rng(job.number, "training")
    train(net, _federation.points(job.number), _federation.setup.optimizer, rng, EPOCHS)
    return get_arrays(net)


def measure_device(job: Job) -> list[Update]:
    """Every kind of update that the device might send."""
    assert _federation is not None
    start = Start.FIRST if job.arrays is None else Start.GOOD
    classes = _federation.classes(job.number)
    x, y = _federation.validation(job.number)
    updates = []
    for kind in Kind:
        net = _federation.first_model(job.number)
        if job.arrays is not None:
            set_arrays(net, job.arrays)
        tables = list(make_update(_federation, net, kind, job.number, x))
        errors = [evidence(rule, tables, y) for rule in (Rule.GAIN, Rule.TREND)]
        updates.append(Update(start, kind, len(classes), errors[0], errors[1]))
    return updates


def make_update(
    federation: Federation, net: nn.Sequential, kind: Kind, number: int, x: NDArray
) -> Iterable[NDArray]:
    """Change `net` as `kind` says; class probabilities for `x` before and after each epoch."""
    tables = [predict(net, x)]
    rng = federation.rng(number, kind)
    if kind in UNTRAINED:
        tamper(net, kind, federation, number)
        return [*tables, *[predict(net, x)] * EPOCHS]
    samples = spoil(kind, federation.points(number), federation.classes(number), rng)
    optimizer = federation.setup.optimizer
    train(net, samples, optimizer, rng, EPOCHS, lambda: tables.append(predict(net, x)))
    return tables


def spoil(kind: Kind, samples: Samples, classes: NDArray, rng: np.random.Generator) -> Samples:
    """What a device that is faulty in this way trains on."""
    x, y = samples
    match kind:
        case Kind.HALF_WRONG:
            y = y.copy()
            wrong = rng.permutation(len(y))[: len(y) // 2]
            y[wrong] = (y[wrong] + rng.integers(1, CLASSES, len(wrong))) % CLASSES
        case Kind.RANDOM_LABELS:
            y = rng.integers(0, CLASSES, len(y))
        case Kind.FLIPPED_LABELS:
            y = 9 - y
        case Kind.NOISE_IMAGES:
            x = rng.random((len(x), 784)).astype(np.float32)
        case Kind.OWN_LABELS:
            y = rng.choice(classes, len(y))
    return x, y


@torch.no_grad()
def tamper(net: nn.Sequential, kind: Kind, federation: Federation, number: int) -> None:
    """What a device without data makes of the model."""
    last = net[-1]
    assert isinstance(last, nn.Linear)
    match kind:
        case Kind.RANDOM_WEIGHTS:
            set_arrays(net, get_arrays(federation.first_model(-1 - number)))
        case Kind.SHARPENED:
            last.weight.mul_(1.5)
            last.bias.mul_(1.5)
        case Kind.LEANING:
            last.bias[federation.classes(number)] += 3


# --- all instances -------------------------------------------------------------------------------

Mapper = Callable[[Callable[[Job], Any], Sequence[Job]], Iterator[Any]]


@contextmanager
def open_workers(setup: Setup, workers: int) -> Iterator[Mapper]:
    """A function like map, its calls done by `workers` processes; results in order."""
    if workers == 1:
        threads = torch.get_num_threads()
        open_worker(setup)
        yield map
        torch.set_num_threads(threads)
        return
    with get_context("spawn").Pool(workers, open_worker, (setup,)) as pool:
        yield pool.imap


def reach(accuracy: float, setup: Setup, mapper: Mapper) -> tuple[Arrays, float, int]:
    """A model of at least this accuracy by federated averaging, its accuracy, and the rounds.

    Ten devices a round, drawn as the instances are, none of which is one of them.
    """
    net = build(setup.model, setup.seed)
    x, y = read_mnist(setup.data, "t10k")
    reached = 0.0
    with console.status("") as status:
        for number in range(MAX_ROUNDS + 1):
            reached = 1 - error_rate(predict(net, x), y)
            status.update(f"Federated averaging: round {number}, accuracy {reached:.1%}")
            if reached >= accuracy or number == MAX_ROUNDS:
                break
            begin = 10**6 + number * DEVICES
            jobs = [Job(i, get_arrays(net)) for i in range(begin, begin + DEVICES)]
            models = list(mapper(train_device, jobs))
            set_arrays(net, {key: np.mean([m[key] for m in models], axis=0) for key in models[0]})
    return get_arrays(net), reached, number


def measure(instances: int, good: Arrays, mapper: Mapper) -> list[Update]:
    """All updates of all instances, from T_0 and from the good T_k."""
    jobs = [Job(number, arrays) for arrays in (None, good) for number in range(instances)]
    done = mapper(measure_device, jobs)
    watched = track(done, "Devices", total=len(jobs), console=console)
    return [update for updates in watched for update in updates]


# --- what the rules make of them -----------------------------------------------------------------


@dataclass(frozen=True)
class Decision:
    """What a rule made of an update: the share of its full price, or 0 if it was refused."""

    update: Update
    rule: Rule
    accepted: bool
    price_share: float


def decide(update: Update, rule: Rule) -> Decision:
    """As the contract would."""
    contribution = Contribution("", 0, POINTS, b"", b"", (), update.errors(rule))
    reason, due = judge(Terms(rule), contribution)
    return Decision(update, rule, reason is Refusal.NONE, due / (POINTS * PPM))


class Decisions(list[Decision]):
    """Many of them."""

    def of(self, start: Start, kind: Kind, rule: Rule, n_classes: int | None = None) -> "Decisions":
        """Those of one cell of a table."""
        return Decisions(
            decision
            for decision in self
            if decision.update.start is start
            and decision.update.kind is kind
            and decision.rule is rule
            and n_classes in (None, decision.update.n_classes)
        )

    @property
    def acceptance(self) -> float:
        """The share of them that were accepted."""
        return _mean([decision.accepted for decision in self])

    @property
    def price_share(self) -> float:
        """What is paid on average, as a share of the full price; nothing for those refused."""
        return _mean([decision.price_share for decision in self])

    @property
    def quality(self) -> float:
        """The mean quality of those accepted."""
        return _mean([decision.price_share for decision in self if decision.accepted])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


# --- tables, claims, rows ------------------------------------------------------------------------


def percent(share: float) -> str:
    """For a table."""
    return "-" if np.isnan(share) else f"{share:.1%}"


def published_table(published: Published, decisions: Decisions) -> Table:
    """A table of papers/1 beside ours."""
    rows = []
    pairs = list(zip(published.instances, published.accepted, strict=True))
    totals = (sum(published.instances), sum(published.accepted))
    for n_classes, (instances, accepted) in enumerate([*pairs, totals], 1):
        some = None if n_classes == CLASSES else n_classes
        ours = [decisions.of(start, published.kind, published.rule, some) for start in Start]
        rows.append(
            (
                str(some or "all"),
                str(instances),
                percent(accepted / instances),
                str(len(ours[0])),
                *(percent(cell.acceptance) for cell in ours),
            )
        )
    columns = ("classes", "paper: instances", "paper: accepted", "ours: instances")
    return Table(
        published.title, (*columns, *(f"ours, {start}" for start in Start)), rows, published.note
    )


def acceptance_table(decisions: Decisions) -> Table:
    """Acceptance for each kind of update, rule and start."""
    cells = [(start, rule) for start in Start for rule in RULES]
    rows = [
        (kind, *(percent(decisions.of(start, kind, rule).acceptance) for start, rule in cells))
        for kind in Kind
    ]
    columns = ("update", *(f"{start}: {rule}" for start, rule in cells))
    one = sum(d.update.n_classes == 1 for d in decisions.of(Start.FIRST, Kind.VALID, Rule.GAIN))
    note = (
        f"The last three are made to please the rule gain. It refuses all devices with one class: "
        f"{one} of the instances."
    )
    return Table("Accepted", columns, rows, note)


def quality_table(decisions: Decisions) -> Table:
    """What the rule gain pays for each kind of update."""
    rows = []
    for kind in Kind:
        cells = [decisions.of(start, kind, Rule.GAIN) for start in Start]
        paid = [percent(cell.price_share) for cell in cells]
        rows.append((kind, *paid, *(percent(cell.quality) for cell in cells)))
    columns = (
        "update",
        *(f"{start}: paid" for start in Start),
        *(f"{start}: quality if accepted" for start in Start),
    )
    note = "Paid: mean share of the full price, nothing for a refused update."
    return Table("What the rule gain pays", columns, rows, note)


def make_claims(decisions: Decisions) -> list[Claim]:
    """What is said of the rules, and whether it is so."""
    claims = [claim for start in Start for claim in _gain_claims(start, decisions)]
    for published in PUBLISHED:
        for start in Start:
            measured = decisions.of(start, published.kind, published.rule).acceptance
            what = f"{published.rule} accepts {published.said:.0%} of {published.kind}, {start}"
            source = f"papers/1 {published.title.split(':')[0].lower()}"
            claims.append(Claim.about(what, source, published.said, 0.1, measured))
    return claims


def _gain_claims(start: Start, decisions: Decisions) -> Iterator[Claim]:
    valid = decisions.of(start, Kind.VALID, Rule.GAIN)
    half = decisions.of(start, Kind.HALF_WRONG, Rule.GAIN)
    us = "flower-chain"
    yield Claim.at_least(f"gain accepts valid updates, {start}", us, 0.97, valid.acceptance)
    for kind in FAULTS:
        measured = decisions.of(start, kind, Rule.GAIN).acceptance
        yield Claim.at_most(f"gain accepts {kind}, {start}", us, 0.02, measured)
    relative = float(np.divide(half.price_share, valid.price_share or np.nan))
    what = f"gain pays for {Kind.HALF_WRONG}, relative to valid, {start}"
    yield Claim.at_most(what, us, 0.6, relative)


def make_rows(decisions: Decisions) -> list[dict[str, Any]]:
    """The tables' cells, for programs; a cell without instances is left out."""
    counted = Counter(
        (d.update.start, d.update.kind, d.rule, d.update.n_classes) for d in decisions
    )
    rows = []
    for start, kind, rule, n_classes in sorted(counted):
        cell = decisions.of(start, kind, rule, n_classes)
        rows.append(
            {
                "start": start,
                "update": kind,
                "rule": str(rule),
                "classes": n_classes,
                "instances": len(cell),
                "accepted": sum(decision.accepted for decision in cell),
                "price_share": cell.price_share,
            }
        )
    return rows


# --- the curve -----------------------------------------------------------------------------------


def score(update: Update, rule: Rule) -> float:
    """What the rule looks at, larger for better; infinite where gain asks for nothing more."""
    errors = update.errors(rule)
    if rule is Rule.TREND:
        return -sum((2 * i - EPOCHS) * error for i, error in enumerate(errors))
    if rule is Rule.THRESHOLD:
        return -errors[-1]
    before, after, wrong_way = ends(rule, errors)
    if wrong_way > Terms(rule).harm_ppm:
        return -np.inf
    return np.inf if wrong_way <= Terms(rule).clear_ppm else 1 - after / max(before, 1)


def roc(valid: NDArray, faulty: NDArray) -> tuple[NDArray, NDArray]:
    """Shares of faulty and of valid updates accepted, as the least score accepted falls."""
    bounds = np.unique(np.concatenate([valid, faulty]))[::-1]
    shares = [[(scores >= bound).mean() for bound in bounds] for scores in (faulty, valid)]
    return np.array([0, *shares[0]]), np.array([0, *shares[1]])


def draw_curves(updates: Sequence[Update], decisions: Decisions, path: Path) -> None:
    """One panel for each start, one line for each rule, a dot where its terms put it."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.8), sharey=True, layout="constrained")
    for start, axes in zip(Start, panels, strict=True):
        for rule, colour in zip(RULES, ("#b45f06", "#6a51a3", "#08715f"), strict=True):
            faulty, valid = _curve(updates, start, rule)
            area = np.trapezoid(valid, faulty)
            axes.plot(faulty, valid, color=colour, lw=2, label=f"{SWEPT[rule]} (area {area:.3f})")
            at = [_pooled(decisions, start, rule, kinds) for kinds in (FAULTS, (Kind.VALID,))]
            axes.plot(*at, "o", color=colour, ms=8, mec="white", clip_on=False, zorder=3)
        axes.plot([0, 1], [0, 1], color="0.8", lw=1, zorder=0)
        axes.set(title=f"from {start}", xlabel="faulty updates accepted", aspect="equal")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="lower right", frameon=False)
    panels[0].set_ylabel("valid updates accepted")
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


def _curve(updates: Sequence[Update], start: Start, rule: Rule) -> tuple[NDArray, NDArray]:
    some = [update for update in updates if update.start is start]
    scores = [
        np.array([score(update, rule) for update in some if update.kind in kinds])
        for kinds in ((Kind.VALID,), FAULTS)
    ]
    return roc(scores[0], scores[1])


def _pooled(decisions: Decisions, start: Start, rule: Rule, kinds: Sequence[Kind]) -> float:
    return _mean([decisions.of(start, kind, rule).acceptance for kind in kinds])


# --- the command ---------------------------------------------------------------------------------


def _page(heading: str, tables: Sequence[Table], picture: str) -> str:
    figure = (
        f"## Other settings of the rules\n\n![ROC curves]({picture})\n\n"
        "Swept: the slope, the last error and, for gain, the fall of the open error, with clear "
        "and harm as above. All faults pooled, without half-wrong labels and the updates made to "
        "please; the dots are the rules with the terms above."
    )
    return "\n".join([heading, *(table.markdown() for table in tables), figure, ""])


def _heading(setup: Setup, instances: int, rounds: int, accuracy: float) -> str:
    suffix = (
        "" if (setup.model, setup.optimizer) == DEFAULT else f" ({setup.model}, {setup.optimizer})"
    )
    terms = Terms(Rule.GAIN)
    return f"""# Class-sampled validation errors: papers/1 tables II to V{suffix}

Made by `python benchmarks/csves.py --instances {instances} --model {setup.model} \
--optimizer {setup.optimizer} --seed {setup.seed}`.

{instances} instances of each kind of update and start: {POINTS:,} MNIST training points of 1 to 9
random classes, {EPOCHS} epochs in minibatches of {BATCH}, up to {VALIDATION_POINTS} validation
points of these classes, as many of each. Model {setup.model}, optimizer {setup.optimizer}
(step {"0.001" if setup.optimizer is Optimizer.ADAM else "0.1"}).
T_0 is drawn afresh for each instance; the good T_k has an accuracy of {accuracy:.1%} after
{rounds} rounds of federated averaging over {DEVICES} such devices a round.
Trend and threshold are the paper's rules, tau = {terms.threshold_ppm / PPM:g}; gain is ours, with
gain {terms.gain_ppm / PPM:g}, clear {terms.clear_ppm / PPM:g}, harm {terms.harm_ppm / PPM:g}, \
least {terms.least_ppm / PPM:g}.
The paper does not say what its faulty data were, nor from which model it began: random labels
stand for them here, and both models are shown.
"""


def main(
    instances: Annotated[int, typer.Option(min=1, help="Of each kind of update and start.")] = 200,
    model: Annotated[Model, typer.Option(help="What the devices train.")] = Model.MLP,
    optimizer: Annotated[Optimizer, typer.Option(help="And how.")] = Optimizer.ADAM,
    data: Annotated[
        Path, typer.Option(envvar="MNIST_DIR", help="Folder of MNIST's *-ubyte.gz files.")
    ] = DEFAULT_DATA,
    accuracy: Annotated[float, typer.Option(help="That the good T_k must have.")] = 0.95,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = min(2, os.cpu_count() or 1),
    seed: Annotated[int, typer.Option(min=0)] = 0,
    json: Annotated[Path | None, typer.Option(help="Write rows and claims here.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the page and the figure.")] = (
        Path(__file__).parent / "results"
    ),
) -> None:
    """Reproduce papers/1 tables II to V, and compare its rules with ours."""
    check_data(data)
    setup = Setup(data, model, optimizer, seed)
    with open_workers(setup, workers) as mapper:
        good, reached, rounds = reach(accuracy, setup, mapper)
        console.print(f"The good T_k: {reached:.1%} after {rounds} rounds of federated averaging.")
        updates = measure(instances, good, mapper)
    decisions = Decisions(decide(update, rule) for update in updates for rule in RULES)
    claims = make_claims(decisions)
    tables = [published_table(published, decisions) for published in PUBLISHED]
    tables += [acceptance_table(decisions), quality_table(decisions), claims_table(claims)]
    for table in tables:
        console.print(table.rich())
    name = "csves" if (model, optimizer) == DEFAULT else f"csves-{model}-{optimizer}"
    out.mkdir(parents=True, exist_ok=True)
    draw_curves(updates, decisions, out / f"{name}.png")
    heading = _heading(setup, instances, rounds, reached)
    (out / f"{name}.md").write_text(_page(heading, tables, f"{name}.png"))
    if json is not None:
        write_json(json, make_rows(decisions), claims)


if __name__ == "__main__":
    typer.run(main)
