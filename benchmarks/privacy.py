"""Which attack does it stop? Membership inference and gradient inversion against each protection.

Ten devices with few records each train a small network for several epochs in every round, so that
it remembers them: a setting in which an attack works, if nothing is done. What the server sees is
what the package makes: updates as they are, with noise by `flower_chain.privacy.mechanisms` or
`flower_chain.privacy.dp_sgd`, or the sum of ten by `flower_chain.privacy.ciphers`. The attackers
know the protection, the first model and all records that a device may have, and have runs of the
same kind to learn from.
"""

import hashlib
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import numpy as np
import torch
import typer
from inversion import best_similarity
from membership import area, deviation, log_ratios, true_positives
from mnist import (
    CLASSES,
    DEFAULT_DATA,
    NDArray,
    Samples,
    check_data,
    get_arrays,
    read_mnist,
    set_arrays,
)
from report import Claim, Table, claims_table, write_json
from rich.console import Console
from rich.progress import track
from scipy.optimize import brentq
from threadpoolctl import threadpool_limits
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from flower_chain.privacy.accountant import Accountant
from flower_chain.privacy.ciphers import TOTAL, Cipher, Secret, cipher_of, new_secret
from flower_chain.privacy.ciphers import Terms as SumTerms
from flower_chain.privacy.dp_sgd import Terms, make_private
from flower_chain.privacy.mechanisms import Kind, protect
from flower_chain.privacy.source import Source
from flower_chain.updates import Arrays, Format, apply, difference

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import PercentFormatter

DEVICES = 10
RATE = 0.3
PRIVATE_RATE = 1.0
CLIPS = {Kind.GAUSSIAN: 2.5, Kind.LAPLACE: 180.0, Kind.DP_SGD: 1.0}
DELTA = 1e-5
EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0, math.inf)
PICTURES = (1, 8)
ALIKE = 0.9
KEY_BITS = 2048
SUM = SumTerms(value_range=1.0, value_bits=16, most_weight=DEVICES)
ENCRYPTED_RUNS = 1
FALSE_POSITIVES = 0.01

console = Console()


class Protection(StrEnum):
    """What is done to an update before the server sees it."""

    NONE = "none"
    GAUSSIAN = "Gaussian noise"
    LAPLACE = "Laplace noise"
    DP_SGD = "DP-SGD"
    PAILLIER = "packed Paillier"
    CKKS = "CKKS"


KINDS = {
    Protection.GAUSSIAN: Kind.GAUSSIAN,
    Protection.LAPLACE: Kind.LAPLACE,
    Protection.DP_SGD: Kind.DP_SGD,
}
CIPHERS = {Protection.PAILLIER: "paillier", Protection.CKKS: "ckks"}


@dataclass(frozen=True)
class Schedule:
    """How a device trains.

    Parameters
    ----------
    rounds : int
        Updates that it sends.
    epochs : int
        For each of them.
    sample_rate : float
        The share of its records in a batch.
    """

    rounds: int
    epochs: int
    sample_rate: float

    @property
    def steps(self) -> int:
        """In a round."""
        return self.epochs * round(1 / self.sample_rate)


ONE_STEP = Schedule(rounds=1, epochs=1, sample_rate=1.0)


@dataclass(frozen=True)
class Setup:
    """What every worker needs to know.

    Parameters
    ----------
    data : Path
    seed : int
    records : int
        In the pool of each device, of which it has about half in any run.
    schedule : Schedule
        Of a run.
    hidden : int
        Units of the network.
    """

    data: Path
    seed: int
    records: int = 100
    schedule: Schedule = Schedule(rounds=3, epochs=8, sample_rate=0.5)
    hidden: int = 32


@dataclass(frozen=True)
class Setting:
    """A row of the table.

    Parameters
    ----------
    protection : Protection
    epsilon : float
        What the attacked device spends in all: in the rounds of a run, or by the one update from
        which a picture is to be had. Infinity: shortened only, no noise.
    """

    protection: Protection
    epsilon: float = math.inf

    def __str__(self) -> str:
        if self.protection not in KINDS:
            return self.protection
        return f"{self.protection}, epsilon {self.epsilon:g}"


SETTINGS = [
    Setting(Protection.NONE),
    *(Setting(protection, epsilon) for protection in KINDS for epsilon in EPSILONS),
    *map(Setting, CIPHERS),
]


@dataclass(frozen=True)
class Job:
    """One run under one protection."""

    setting: Setting
    number: int


@dataclass(frozen=True)
class Run:
    """What a run gives: to the attackers, and to its users.

    Parameters
    ----------
    members : ndarray of bool, shape (records,)
        Which of the records of all devices were trained on.
    single, total : ndarray, shape (records, 2)
        What an attacker computes of each record, from its device's updates, and from the sums.
    alike : ndarray, shape (2, 3, devices)
        For devices that have trained on 1 picture and on 8: how like one of them the best is that
        was got from the device's update, from the sum, and from an update that is not about it.
    accuracy : float
        Of the last model.
    seconds, adding : float
        A device's training and protection in a round, and what makes a mean of what ten sent; NaN
        if it was not really encrypted.
    nbytes : int
        What a device sends in a round.
    """

    members: NDArray
    single: NDArray
    total: NDArray
    alike: NDArray
    accuracy: float
    seconds: float
    adding: float
    nbytes: int


@dataclass(frozen=True)
class Mean:
    """What the server gets of ten updates; the rest is as in :class:`Run`."""

    arrays: Arrays
    encrypting: float
    adding: float
    nbytes: int


# --- one run -------------------------------------------------------------------------------------


class Federation:
    """The data: a pool of records for each device, and others."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.x, self.y = read_mnist(setup.data, "train")
        self.test = read_mnist(setup.data, "t10k")
        chosen = np.random.default_rng(setup.seed).permutation(len(self.y))
        self.pools = chosen[: DEVICES * setup.records].reshape(DEVICES, setup.records)
        self.others = chosen[DEVICES * setup.records :]

    def rng(self, number: int, use: str) -> np.random.Generator:
        """What chance decides in a run."""
        text = f"{self.setup.seed} {number} {use}".encode()
        return np.random.default_rng(list(hashlib.sha256(text).digest()))

    def records(self, chosen: NDArray) -> Samples:
        """These records."""
        return self.x[chosen], self.y[chosen]


_federation: Federation | None = None


def open_worker(setup: Setup) -> None:
    """Prepare this process for jobs."""
    global _federation  # noqa: PLW0603 - each process of the pool has its own
    torch.set_num_threads(1)
    threadpool_limits(1)
    # of what is trained privately, the data need no gradient, and few steps are little to account
    warnings.filterwarnings("ignore", "Full backward hook|Optimal order", UserWarning)
    _federation = Federation(setup)


def simulate(job: Job) -> Run:
    """A run: its rounds, attacked in each, and then devices with few pictures."""
    assert _federation is not None
    schedule = _federation.setup.schedule
    rng = _federation.rng(job.number, "members")
    members = rng.random(_federation.pools.shape) < 0.5
    source = Source(int(rng.integers(2**62)))
    net = network(_federation.setup.hidden, _federation.setup.seed)
    noise_for(job.setting, schedule)  # takes a while, once: it is no part of a device's time
    single, total = np.zeros((2, *members.shape, 2))
    seconds = adding = 0.0
    for _ in range(schedule.rounds):
        received = get_arrays(net)
        began = time.perf_counter()
        updates = [
            make_update(
                net, received, _federation.records(pool[own]), job.setting, schedule, rng, source
            )
            for pool, own in zip(_federation.pools, members, strict=True)
        ]
        seconds += time.perf_counter() - began
        mean = mean_of(updates, job)
        seconds, adding = seconds + mean.encrypting, adding + mean.adding
        for device, update in enumerate(updates):
            records = _federation.records(_federation.pools[device])
            found = statistics(net, received, (update, mean.arrays), records)
            single[device] += found[0] / schedule.rounds
            total[device] += found[1] / schedule.rounds
        set_arrays(net, apply(received, mean.arrays))
    return Run(
        members.reshape(-1),
        single.reshape(-1, 2),
        total.reshape(-1, 2),
        np.stack([invert(job, number, rng, source) for number in PICTURES]),
        accuracy(net, _federation.test),
        seconds / DEVICES / schedule.rounds,
        adding / schedule.rounds,
        mean.nbytes,
    )


def network(hidden: int, seed: int) -> nn.Sequential:
    """With so many hidden units, and weights drawn from `seed`."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES))


def make_update(
    net: nn.Sequential,
    received: Arrays,
    records: Samples,
    setting: Setting,
    schedule: Schedule,
    rng: np.random.Generator,
    source: Source,
) -> Arrays:
    """What a device sends."""
    set_arrays(net, received)
    noise = noise_for(setting, schedule)
    if setting.protection is Protection.DP_SGD:
        net = deepcopy(net)  # opacus leaves its hooks on what it trains
        train_privately(net, records, schedule, noise, source)
    else:
        train(net, records, schedule, rng)
    update = difference(get_arrays(net), received)
    if setting.protection in (Protection.GAUSSIAN, Protection.LAPLACE):
        kind = KINDS[setting.protection]
        return protect(update, kind, CLIPS[kind], noise, source)
    return update


@lru_cache
def noise_for(setting: Setting, schedule: Schedule) -> float:
    """The noise with which the schedule's rounds cost epsilon, as the package counts."""
    if math.isinf(setting.epsilon):
        return 0.0
    kind = KINDS[setting.protection]
    if kind is Kind.LAPLACE:
        return schedule.rounds / setting.epsilon
    sampled = (schedule.sample_rate, schedule.steps) if kind is Kind.DP_SGD else (1.0, 1)

    def too_much(logarithm: float) -> float:
        accountant = Accountant(kind, math.exp(logarithm), "rdp", DELTA, *sampled)
        return math.log(accountant.epsilon(schedule.rounds) / setting.epsilon)

    return math.exp(brentq(too_much, math.log(0.3), math.log(300), xtol=1e-3))


def train(
    net: nn.Sequential, records: Samples, schedule: Schedule, rng: np.random.Generator
) -> None:
    """SGD in minibatches."""
    step = torch.optim.SGD(net.parameters(), lr=RATE, foreach=True)
    x, y = map(torch.from_numpy, records)
    size = math.ceil(schedule.sample_rate * len(y))
    for _ in range(schedule.epochs):
        for batch in torch.split(torch.from_numpy(rng.permutation(len(y))), size):
            step.zero_grad()
            loss: Any = functional.cross_entropy(net(x[batch]), y[batch])
            loss.backward()
            step.step()


def train_privately(
    net: nn.Sequential, records: Samples, schedule: Schedule, noise: float, source: Source
) -> None:
    """DP-SGD as the package offers it, in as many steps."""
    sgd = torch.optim.SGD(net.parameters(), lr=PRIVATE_RATE)
    loader: Any = DataLoader(TensorDataset(*map(torch.from_numpy, records)))
    terms = Terms(CLIPS[Kind.DP_SGD], noise, schedule.sample_rate)
    private, step, batches = make_private(net, sgd, loader, terms, source, lambda: None)
    for _ in range(schedule.epochs):
        for x, y in batches:
            step.zero_grad()
            loss: Any = functional.cross_entropy(private(x), y)
            loss.backward()
            step.step()


def mean_of(updates: Sequence[Arrays], job: Job) -> Mean:
    """The mean, by the ciphers if that is the protection.

    Packed Paillier takes its time, but its sums are exact: all but some runs add the same whole
    numbers in the clear.
    """
    began = time.perf_counter()
    if job.setting.protection not in CIPHERS:
        sums = {key: np.sum([u[key] for u in updates], axis=0) for key in updates[0]}
        arrays = {key: (array / DEVICES).astype(np.float32) for key, array in sums.items()}
        return Mean(arrays, 0.0, time.perf_counter() - began, Format.of(arrays).nbytes)
    scheme = CIPHERS[job.setting.protection]
    secret = key_of(scheme)
    cipher = cipher_of(scheme, secret.public_key, Format.of(updates[0]), SUM)
    is_exact = job.setting.protection is Protection.PAILLIER
    if is_exact and job.number >= ENCRYPTED_RUNS:
        arrays = cipher.mean({TOTAL: whole_sum(updates, cipher)}, DEVICES)
        return Mean(arrays, math.nan, math.nan, cipher.format.nbytes)
    began = time.perf_counter()
    encrypted = [cipher.encrypt(update) for update in updates]
    sent = time.perf_counter()
    total = secret.decrypt(cipher, cipher.add(encrypted, [1] * DEVICES), DEVICES)
    adding = time.perf_counter() - sent
    assert not is_exact or (total[TOTAL] == whole_sum(updates, cipher)).all()
    return Mean(cipher.mean(total, DEVICES), sent - began, adding, cipher.format.nbytes)


@lru_cache
def key_of(scheme: str) -> Secret:
    """That of the holder of the key."""
    return new_secret(scheme, KEY_BITS)


def whole_sum(updates: Sequence[Arrays], cipher: Cipher) -> NDArray:
    """The sum of the whole numbers that packed Paillier encrypts."""
    total = np.zeros(cipher.size, np.int64)
    for update in updates:
        flat = np.concatenate([update[s.key].reshape(-1) for s in Format.of(update).specs])
        values = np.clip(flat.astype(np.float64), -SUM.value_range, SUM.value_range)
        total += np.rint(values / cipher.unit).astype(np.int64)
    return total


@torch.no_grad()
def accuracy(net: nn.Sequential, test: Samples) -> float:
    """The share of the test data that it is right about."""
    x, y = map(torch.from_numpy, test)
    return float((net(x).argmax(dim=1) == y).double().mean())


# --- what an attacker computes -------------------------------------------------------------------


def statistics(
    net: nn.Sequential, received: Arrays, updates: Sequence[Arrays], records: Samples
) -> NDArray:
    """Two numbers of each record for each update, larger for members; (updates, records, 2).

    How confident the updated model is of the record's label, log(p / (1 - p)) (Carlini et al.,
    section V.A), and how far the update goes down the slope of the record's own loss, which tells
    more where noise has made the model useless.
    """
    confident = [confidence(net, apply(received, update), records) for update in updates]
    descended = -slopes(net, received, records) @ torch.stack(
        [
            torch.cat([torch.from_numpy(update[key]).flatten() for key in received])
            for update in updates
        ],
        dim=1,
    )
    return np.stack([np.stack(confident), descended.T.numpy()], axis=2)


@torch.no_grad()
def confidence(net: nn.Sequential, model: Arrays, records: Samples) -> NDArray:
    """Of each record's label; shape (records,)."""
    set_arrays(net, model)
    x, y = map(torch.from_numpy, records)
    outputs = net(x).double()
    own = outputs.gather(1, y[:, None])[:, 0]
    rest = outputs.scatter(1, y[:, None], -math.inf).logsumexp(dim=1)
    found: NDArray = (own - rest).numpy()
    return found


def slopes(net: nn.Sequential, received: Arrays, records: Samples) -> torch.Tensor:
    """The gradient of each record's loss, of length 1; shape (records, weights)."""

    def loss(weights: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(functional_call(net, dict(weights), (x[None],)), y[None])

    weights = {key: torch.from_numpy(array) for key, array in received.items()}
    found = vmap(grad(loss), (None, 0, 0))(weights, *map(torch.from_numpy, records))
    return functional.normalize(torch.cat([found[key].flatten(1) for key in received], dim=1))


def invert(job: Job, number: int, rng: np.random.Generator, source: Source) -> NDArray:
    """How like a device's picture is what comes out of updates; shape (3, devices).

    Its update is one step of SGD with so many pictures, from a model drawn afresh.
    """
    assert _federation is not None
    chosen = rng.choice(_federation.others, (DEVICES, number), replace=False)
    net = network(_federation.setup.hidden, int(rng.integers(2**31)))
    received = get_arrays(net)
    updates = [
        make_update(net, received, _federation.records(some), job.setting, ONE_STEP, rng, source)
        for some in chosen
    ]
    pictures = _federation.x[chosen[:, 0]]
    views = (updates, [mean_of(updates, job).arrays] * DEVICES, updates[1:] + updates[:1])
    return np.array(
        [
            [
                best_similarity(update["0.weight"], update["0.bias"], picture)
                for update, picture in zip(view, pictures, strict=True)
            ]
            for view in views
        ]
    )


# --- all runs ------------------------------------------------------------------------------------


@contextmanager
def open_workers(setup: Setup, workers: int) -> Iterator[Callable[[Sequence[Job]], Iterator[Run]]]:
    """A function that does jobs in `workers` processes; results in order."""
    if workers == 1:
        threads = torch.get_num_threads()
        open_worker(setup)
        yield lambda jobs: map(simulate, jobs)
        torch.set_num_threads(threads)
        return
    with get_context("spawn").Pool(workers, open_worker, (setup,)) as pool:
        yield lambda jobs: pool.imap(simulate, jobs)


@dataclass(frozen=True)
class Result:
    """A row of the table: what the attacks find, and what the protection costs.

    Parameters
    ----------
    setting : Setting
    found_single, found_total : float
        Share of members told from one device's updates, and from the sums, at 1% false positives.
    deviation_single, deviation_total : float
        Their standard deviations.
    area_single, area_total : float
        Areas under the ROC curves.
    pictures : ndarray, shape (2, 3)
        Shares of pictures recovered; see :class:`Run`.
    accuracy, milliseconds, adding, kib : float
        Of the last model; for a device and round; for all devices in a round; sent by a device in a
        round.
    """

    setting: Setting
    found_single: float
    deviation_single: float
    area_single: float
    found_total: float
    deviation_total: float
    area_total: float
    pictures: NDArray
    accuracy: float
    milliseconds: float
    adding: float
    kib: float


def attack(setting: Setting, runs: Sequence[Run]) -> Result:
    """Attack each run, with the others as shadows.

    Of an update that is encrypted the server has a ciphertext: there is nothing to attack, and the
    numbers are NaN.
    """
    members = np.stack([run.members for run in runs])
    single, total = (
        _found(np.stack(view), members)
        for view in ([run.single for run in runs], [run.total for run in runs])
    )
    pictures = (np.stack([run.alike for run in runs]) >= ALIKE).mean(axis=(0, 3))
    if setting.protection in CIPHERS:
        single, pictures[:, [0, 2]] = (math.nan,) * 3, math.nan
    return Result(
        setting,
        *single,
        *total,
        pictures,
        float(np.mean([run.accuracy for run in runs])),
        1000 * float(np.nanmean([run.seconds for run in runs])),
        1000 * float(np.nanmean([run.adding for run in runs])),
        runs[0].nbytes / 1024,
    )


def _found(statistics: NDArray, members: NDArray) -> tuple[float, float, float]:
    scores = log_ratios(statistics, members)
    found = true_positives(scores, members, FALSE_POSITIVES)
    return found, deviation(scores, members), area(scores, members)


# --- tables, claims, rows ------------------------------------------------------------------------


def results_table(results: Sequence[Result]) -> Table:
    """All of it."""
    rows = [
        (
            str(r.setting),
            _shown(r.found_single, f"{r.found_single:.1%} ± {r.deviation_single:.1%}"),
            _shown(r.area_single, f"{r.area_single:.2f}"),
            f"{r.found_total:.1%} ± {r.deviation_total:.1%}",
            f"{r.area_total:.2f}",
            *(_shown(share, f"{share:.0%}") for share in r.pictures[:, :2].reshape(-1)),
            f"{r.accuracy:.1%}",
            f"{r.milliseconds:,.0f}",
            f"{r.adding:,.1f}",
            f"{r.kib:,.0f}",
        )
        for r in results
    ]
    columns = (
        "protection",
        "members found, one device",
        "area",
        "members found, sum",
        "area",
        *(f"picture of {n}, {view}" for n in PICTURES for view in ("one device", "sum")),
        "accuracy",
        "device, ms",
        "sum, ms",
        "KiB",
    )
    note = (
        "Members found: at 1% false positives, so that 1% is chance, as is an area of 0.5. "
        "± is one standard deviation, by the bootstrap over runs. Picture of n: the share of "
        f"pictures recovered (SSIM of at least {ALIKE:g}) if every device makes one step with n. "
        "Device: training and protection; sum: what makes a mean of what ten sent, with the "
        "decryption; KiB: what a device sends; all for a round. A single encrypted update is a "
        "ciphertext to the server, with nothing in it to attack (-). Packed Paillier has a key of "
        f"{KEY_BITS} bits; {ENCRYPTED_RUNS} of the runs is really encrypted, the others add "
        "the same whole numbers. Times are means on the wall, beside whatever else ran: rows "
        "without noise or cipher, which do the same work, show how far to trust them."
    )
    return Table("What the attacks find, and what it costs", columns, rows, note)


def _shown(value: float, text: str) -> str:
    return "-" if math.isnan(value) else text


def make_claims(results: Sequence[Result]) -> list[Claim]:
    """What is said of the protections, and whether it is so."""
    us = "flower-chain"
    none = next(r for r in results if r.setting.protection is Protection.NONE)
    noised = [r for r in results if r.setting.epsilon < math.inf]
    strict = [r for r in noised if r.setting.epsilon <= 1]
    claims = [
        Claim.at_least(
            "without protection, members found from one device", us, 0.2, none.found_single
        ),
        Claim.at_least(
            "without protection, pictures of 1 recovered", us, 0.95, float(none.pictures[0, 0])
        ),
        Claim.at_most(
            "pictures taken for recovered from an update not about them",
            us,
            0.02,
            float(none.pictures[:, 2].max()),
        ),
    ]
    for sealed in (r for r in results if r.setting.protection in CIPHERS):
        of = f"the sum of ten, {sealed.setting}"
        relative = sealed.found_total / max(none.found_single, FALSE_POSITIVES)
        claims.append(
            Claim.at_most(f"members found from {of}, relative to one device", us, 0.5, relative)
        )
        claims += [
            Claim.at_most(f"pictures of {n} recovered from {of}", us, 0.05, float(share))
            for n, share in zip(PICTURES, sealed.pictures[:, 1], strict=True)
        ]
        change = abs(sealed.accuracy - none.accuracy)
        claims.append(Claim.at_most(f"change of the accuracy, {sealed.setting}", us, 0.01, change))
    claims += [
        Claim.at_most(
            f"members found at epsilon <= 1, {protection}",
            us,
            0.02,
            max(r.found_single for r in strict if r.setting.protection is protection),
        )
        for protection in KINDS
    ]
    claims.append(
        Claim.at_most(
            "pictures recovered at any epsilon of the table",
            us,
            0.02,
            float(max(r.pictures[:, :2].max() for r in noised)),
        )
    )
    bound = "members found less 3 deviations, relative to e^epsilon 1% + delta, the most"
    claims.append(Claim.at_most(bound, "differential privacy", 1, max(map(_of_bound, noised))))
    claims += [
        Claim.at_least(
            f"accuracy at epsilon 8 relative to no protection, {r.setting.protection}",
            us,
            0.5,
            r.accuracy / none.accuracy,
        )
        for r in noised
        if r.setting.epsilon == 8
    ]
    return claims


def _of_bound(result: Result) -> float:
    """P. Kairouz, S. Oh, P. Viswanath, ICML 2015: no test finds more of what is hidden."""
    bound = math.exp(result.setting.epsilon) * FALSE_POSITIVES + DELTA
    return (result.found_single - 3 * result.deviation_single) / min(bound, 1)


def make_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The table, for programs; what is infinite or not there is null."""
    rows = []
    for result in results:
        row = {**asdict(result.setting), **asdict(result)}
        del row["setting"], row["pictures"]
        for n, shares in zip(PICTURES, result.pictures.tolist(), strict=True):
            views = ("single", "total", "other")
            row |= {
                f"pictures_{n}_{view}": share for view, share in zip(views, shares, strict=True)
            }
        numbers = {k: v for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)}
        rows.append({**row, **dict.fromkeys(numbers)})
    return rows


# --- the figure ----------------------------------------------------------------------------------


def draw(results: Sequence[Result], path: Path) -> None:
    """Members found over accuracy: from one device's updates, and from the sums."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.4), sharey=True, layout="constrained")
    styles = {
        # those that lie upon each other become smaller
        Protection.NONE: ("#333333", "*", 19),
        Protection.PAILLIER: ("#c2185b", "P", 13),
        Protection.CKKS: ("#1565c0", "X", 9),
        Protection.GAUSSIAN: ("#b45f06", "o", 6),
        Protection.LAPLACE: ("#6a51a3", "s", 4),
        Protection.DP_SGD: ("#08715f", "D", 5),
    }
    for axes, view in zip(panels, ("single", "total"), strict=True):
        for protection, (colour, marker, size) in styles.items():
            some = [r for r in results if r.setting.protection is protection]
            found = [getattr(r, f"found_{view}") for r in some]
            accuracies = [r.accuracy for r in some]
            axes.plot(
                accuracies, found, "-" + marker, color=colour, lw=1, ms=size, label=str(protection)
            )
            for r, share in zip(some, found, strict=True):
                if protection is Protection.DP_SGD and r.setting.epsilon > 1:
                    text = f"{r.setting.epsilon:g}".replace("inf", "∞")
                    place = {"xytext": (0, 7), "textcoords": "offset points"}
                    axes.annotate(text, (r.accuracy, share), **place, fontsize=8, color=colour)
        axes.axhline(FALSE_POSITIVES, color="0.7", lw=1, zorder=0)
        axes.set(yscale="log", xlim=(0, 1), ylim=(0.004, 1), xlabel="accuracy of the last model")
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set(title="the server sees every update")
    panels[0].set(ylabel="members found at 1% false positives")
    panels[1].set(title="the server sees the sum of ten")
    panels[0].legend(frameon=False, loc="upper left")
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


# --- the command ---------------------------------------------------------------------------------


def _page(setup: Setup, runs: int, minutes: float, cpu: float, tables: Sequence[Table]) -> str:
    schedule = setup.schedule
    heading = f"""# Which attack does it stop?

Made by `python benchmarks/privacy.py --runs {runs} --seed {setup.seed}` on {setup.data.name},
in {minutes:.1f} minutes, with {cpu:.1f} minutes of CPU time.

**The setting favours the attacker.** {DEVICES} devices with about {setup.records // 2} records
each (each of a pool of {setup.records} with probability 1/2) train a network of {setup.hidden}
hidden units for {schedule.epochs} epochs in each of {schedule.rounds} rounds, in batches of
{schedule.sample_rate:.0%} of their records, with steps of {RATE:g} ({PRIVATE_RATE:g} with DP-SGD).
So few records, seen so often, are remembered; with thousands of records there is far less to find.
The attacker is the server. It knows the protection, the first model and every pool, and has
{runs - 1} other runs in which it knows who had what.

**Members.** The likelihood-ratio attack of Carlini et al. (S&P 2022) on two numbers for each
record, each the mean over the rounds: the updated model's confidence in its label, and how far the
update goes down the slope of its loss. From one device's updates, or from the sums of ten, which
are also what the global models tell anyone.

**Pictures.** What a first dense layer tells of its input: the quotient of the gradients of weights
and bias (Geiping et al., NeurIPS 2020, proposition 3.1), for each hidden unit. Every device makes
one step; counted is the best of all candidates, more than an attacker has who must choose. A sum of
ten is no protection by itself: a unit that only one of few pictures activates tells that picture
to whoever has the sum. It takes more records in a step, or noise.

**Epsilon** is what the attacked device spends, with a delta of {DELTA:g}: for members in all
rounds, for pictures in the one step, as `flower_chain.privacy.accountant` counts. On the update,
noise hides all that a device has; DP-SGD hides a record. Norms are at most
{CLIPS[Kind.GAUSSIAN]:g} (Gaussian, L2) and {CLIPS[Kind.LAPLACE]:g} (Laplace, L1), about those of
an ordinary update, and {CLIPS[Kind.DP_SGD]:g} (DP-SGD, of a record's gradient). Infinity stands
for shortened, without noise.

**What was chosen after a look.** This setting is the one of six tried in which the attack found
most without protection. DP-SGD's step size comes from ten trainings in similar settings, compared
by accuracy; the norms for noise on the update were set once. A picture counts from an SSIM of
{ALIKE:g}, since at 0.5 four of ten were "recovered" from a sum that had nothing to do with them.
That a sum of ten hides pictures was expected of one picture each. It did not, so four were tried
(4% recovered from the sum, of 180), and eight, which is in the table.

![members found over accuracy](privacy.png)
"""
    return "\n".join([heading, *(table.markdown() for table in tables)])


def main(
    runs: Annotated[int, typer.Option(min=4, help="Of each kind, attacked by the others.")] = 12,
    data: Annotated[
        Path, typer.Option(envvar="MNIST_DIR", help="Folder of MNIST's *-ubyte.gz files.")
    ] = DEFAULT_DATA,
    fast: Annotated[
        bool, typer.Option(help="To see that it works: little training, epsilon 1 only.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = min(2, os.cpu_count() or 1),
    seed: Annotated[int, typer.Option(min=0)] = 0,
    json: Annotated[Path | None, typer.Option(help="Write rows and claims here.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the page and the figure.")] = (
        Path(__file__).parent / "results"
    ),
) -> None:
    """Attack what the server sees, with and without protection."""
    check_data(data)
    began = time.perf_counter()
    setup, settings = Setup(data, seed), SETTINGS
    if fast:
        setup = Setup(data, seed, records=20, schedule=Schedule(1, 2, 1.0), hidden=8)
        settings = [s for s in settings if s.protection not in KINDS or s.epsilon == 1]
    jobs = [Job(setting, number) for setting in settings for number in range(runs)]
    with open_workers(setup, workers) as do:
        done = list(track(do(jobs), "Runs", total=len(jobs), console=console))
    results = [
        attack(setting, done[i * runs : (i + 1) * runs]) for i, setting in enumerate(settings)
    ]
    claims = make_claims(results)
    tables = [results_table(results), claims_table(claims)]
    for table in tables:
        console.print(table.rich())
    out.mkdir(parents=True, exist_ok=True)
    draw(results, out / "privacy.png")
    minutes, cpu = (time.perf_counter() - began) / 60, sum(os.times()[:4]) / 60
    (out / "privacy.md").write_text(_page(setup, runs, minutes, cpu, tables))
    if json is not None:
        write_json(json, make_rows(results), claims)


if __name__ == "__main__":
    typer.run(main)
