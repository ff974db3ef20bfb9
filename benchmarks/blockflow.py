"""papers/3's four experiments: what BlockFLow's scores tell of models, data and attackers.

The agents of `census_agents.py` are scored by the package's rule, in the integers of the contract,
in this process. Then a federation of each experiment runs through Flower, with a ledger, and must
come to the same scores.
"""

import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import numpy as np
import through_flower
import typer
from census_agents import (
    AGENTS,
    ALPHA,
    EPSILON,
    FOLDERS,
    SIZES,
    Audit,
    Experiment,
    Kind,
    NDArray,
    minority,
    read,
)
from report import Claim, Table, claims_table, write_json
from rich.console import Console
from rich.progress import Progress
from scipy import stats

from flower_chain.privacy import Mechanism
from flower_chain.privacy.output_perturbation import published_epsilon

mpl.use("Agg")
from matplotlib import pyplot as plt

DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared/data"
MALICIOUS = minority(AGENTS)
EPSILONS = (0.01, 0.1, 1.0, 10.0)
NUMBERS = (1, 25, 50, 100)
FRONTIER = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
ALPHAS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
SOURCE = "papers/3"
LEAST_P = 1e-300
PICTURES = ("quality", "sizes", "attacks", "privacy")

console = Console()


# --- experiments ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quality:
    """Experiment 1: how the models of a federation do, by the medians and by the test."""

    data: str
    agents: int
    epsilon: float
    median: float
    test: float
    difference: float

    @classmethod
    def of(cls, data: str, epsilon: float, audit: Audit) -> "Quality":
        """The means over the agents."""
        medians = np.median(audit.scores, axis=0)
        means = medians.mean(), audit.test.mean(), np.abs(medians - audit.test).mean()
        return cls(data, len(medians), epsilon, *map(float, means))


@dataclass(frozen=True)
class Sizes:
    """Experiment 2: percentiles of the ten agents' three scores, by their size.

    Parameters
    ----------
    data : str
    percentiles : ndarray, shape (n_repetitions, 3, 10)
    """

    data: str
    percentiles: NDArray

    @property
    def means(self) -> NDArray:
        """Over the repetitions, shape (3, 10)."""
        return np.asarray(self.percentiles.mean(axis=0))

    @property
    def of_means(self) -> list[float]:
        """For each score, rho of the mean percentiles with the logarithm of the size (Pearson)."""
        return [_rho(row) for row in self.means]

    @property
    def of_one(self) -> list[float]:
        """For each score, the mean of the rho of each repetition."""
        return np.mean([[_rho(row) for row in one] for one in self.percentiles], axis=0).tolist()


def _rho(percentiles: NDArray) -> float:
    return float(np.corrcoef(np.log(SIZES), percentiles)[0, 1])


@dataclass(frozen=True)
class Attack:
    """Experiments 3 and 4: the three scores of all agents in all repetitions.

    Parameters
    ----------
    data : str
    kind : Kind
        What the malicious do.
    malicious, honest : ndarray, shape (3, n)
    """

    data: str
    kind: Kind
    malicious: NDArray
    honest: NDArray

    @property
    def p_value(self) -> float:
        """Of overall scores so much lower by chance; Welch's t-test, one-sided."""
        found = stats.ttest_ind(
            self.malicious[2], self.honest[2], equal_var=False, alternative="less"
        )
        return float(found.pvalue)


@dataclass(frozen=True)
class Frontier:
    """The mean F1 on the test of agents' models, by the loss of privacy that holds."""

    data: str
    mechanism: str
    epsilons: Sequence[float]
    f1: Sequence[float]


@dataclass(frozen=True)
class Bench:
    """What all experiments share."""

    folder: Path
    repetitions: int
    progress: Progress

    def quality(self, name: str) -> list[Quality]:
        """Experiment 1."""
        pairs = [(n, EPSILON) for n in NUMBERS] + [(AGENTS, each) for each in EPSILONS[1:]]
        return [
            Quality.of(name, epsilon, self._audit(name, Kind.EQUAL, 0, n, epsilon))
            for n, epsilon in self.progress.track(pairs, description=f"{name}: quality")
        ]

    def sizes(self, name: str) -> Sizes:
        """Experiment 2."""
        ranks = [
            stats.rankdata(audit.overall(), axis=1)[:, : len(SIZES)]
            for audit in self._audits(name, Kind.SIZES)
        ]
        return Sizes(name, 100 * (np.array(ranks) - 0.5) / AGENTS)

    def attack(self, name: str, kind: Kind) -> Attack:
        """Experiments 3 and 4."""
        table = np.array([audit.overall() for audit in self._audits(name, kind)])
        malicious, others = (
            np.concatenate(list(part), axis=1)
            for part in (table[:, :, :MALICIOUS], table[:, :, MALICIOUS:])
        )
        return Attack(name, kind, malicious, others)

    def frontiers(self, name: str) -> list[Frontier]:
        """What privacy costs, as published and with the mechanism that holds what it says."""
        rows = read(name, self.folder)
        drawn = Experiment.draw(rows, Kind.EQUAL, 0)

        def mean_f1(epsilon: float, alpha: float, mechanism: Mechanism) -> float:
            return float(drawn.test_f1(drawn.train_all(epsilon, alpha, mechanism)).mean())

        n_rows = len(drawn.shares[0].trained_on)
        published = [mean_f1(epsilon, ALPHA, Mechanism.AS_PUBLISHED) for epsilon in FRONTIER]
        spent = [
            published_epsilon(epsilon, rows.x.shape[1], n_rows, ALPHA, rows.largest_norm)
            for epsilon in FRONTIER
        ]
        sound = [
            max(mean_f1(epsilon, alpha, Mechanism.CHAUDHURI_MONTELEONI) for alpha in ALPHAS)
            for epsilon in self.progress.track(FRONTIER, description=f"{name}: privacy")
        ]
        return [
            Frontier(name, "as published", spent, published),
            Frontier(name, "Chaudhuri and Monteleoni", FRONTIER, sound),
        ]

    def _audits(self, name: str, kind: Kind) -> Iterator[Audit]:
        """Federations as the paper has them, one for each repetition."""
        seeds = range(self.repetitions)
        for seed in self.progress.track(seeds, description=f"{name}: {kind}"):
            yield self._audit(name, kind, seed)

    def _audit(
        self, name: str, kind: Kind, seed: int, n_agents: int = AGENTS, epsilon: float = EPSILON
    ) -> Audit:
        drawn = Experiment.draw(read(name, self.folder), kind, seed, n_agents)
        return drawn.audit(drawn.train_all(epsilon, ALPHA, Mechanism.AS_PUBLISHED))


# --- tables and figures --------------------------------------------------------------------------


def quality_table(found: Sequence[Quality]) -> Table:
    """Experiment 1."""
    rows = [
        (
            q.data,
            str(q.agents),
            f"{q.epsilon:g}",
            f"{q.median:.3f}",
            f"{q.test:.3f}",
            f"{q.difference:.4f}",
        )
        for q in found
    ]
    columns = ("data", "agents", "epsilon", "median F1", "test F1", "mean difference")
    return Table("Experiment 1: medians measure quality", columns, rows)


def sizes_table(found: Sequence[Sizes]) -> Table:
    """Experiment 2."""
    rows = [
        (f"{s.data}, {what}", *(f"{rho:.3f}" for rho in rhos))
        for s in found
        for what, rhos in (("mean percentiles", s.of_means), ("one repetition", s.of_one))
    ]
    columns = ("data", "model score", "evaluation score", "overall score")
    return Table("Experiment 2: rho(log size, score percentile)", columns, rows, SIZES_NOTE)


def attacks_table(found: Sequence[Attack]) -> Table:
    """Experiments 3 and 4."""
    rows = [
        (
            f"{a.data}, {a.kind}",
            *(f"{a.malicious[i].mean():.3f} / {a.honest[i].mean():.3f}" for i in range(3)),
            f"{a.p_value:.1e}" if a.p_value > LEAST_P else f"< {LEAST_P:.0e}",
        )
        for a in found
    ]
    columns = ("data, malicious", "model score", "evaluation score", "overall score", "p")
    pooled = {f"{a.malicious.shape[1]} and {a.honest.shape[1]}" for a in found}
    note = (
        f"Means of {MALICIOUS} malicious / {AGENTS - MALICIOUS} honest agents. p by Welch's "
        f"t-test, one-sided, of {', '.join(sorted(pooled))} overall scores: those of all "
        "repetitions, which divide the same rows otherwise."
    )
    return Table("Experiments 3 and 4: attackers", columns, rows, note)


def frontier_table(found: Sequence[Frontier]) -> Table:
    """What privacy costs."""
    rows = [
        (f"{f.data}, {f.mechanism}", f"{epsilon:.3g}", f"{f1:.3f}")
        for f in found
        for epsilon, f1 in zip(f.epsilons, f.f1, strict=True)
    ]
    columns = ("data, mechanism", "epsilon that holds", "mean test F1")
    return Table("Privacy", columns, rows, PRIVACY_NOTE)


def make_claims(
    quality: Sequence[Quality], sizes: Sequence[Sizes], attacks: Sequence[Attack]
) -> list[Claim]:
    """What the paper says, for each data set."""
    claims = []
    for name in FOLDERS:
        difference = float(np.mean([q.difference for q in quality if q.data == name]))
        claims.append(
            Claim.at_most(f"{name}: median F1 off test F1 by", SOURCE, 0.0067, difference)
        )
    for each in sizes:
        for what, rhos in (("mean percentiles", each.of_means), ("one repetition", each.of_one)):
            for kind, rho in zip(("model", "evaluation", "overall"), rhos, strict=True):
                claim = f"{each.data}: rho of the {kind} score, {what}"
                claims.append(Claim.at_least(claim, SOURCE, 0.9, rho))
    for attack in attacks:
        bound = -31 if attack.kind is Kind.COLLUDING else -22
        exponent = math.log10(max(attack.p_value, LEAST_P))
        claims.append(
            Claim.at_most(f"{attack.data}: log10 p, {attack.kind}", SOURCE, bound, exponent)
        )
    return claims


def make_rows(
    quality: Sequence[Quality],
    sizes: Sequence[Sizes],
    attacks: Sequence[Attack],
    frontiers: Sequence[Frontier],
) -> list[dict[str, Any]]:
    """For programs."""
    rows = [asdict(each) for each in (*quality, *sizes, *attacks, *frontiers)]
    return [{k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in r.items()} for r in rows]


def draw_quality(found: Sequence[Quality], path: Path) -> None:
    """Figure 1 of the paper."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharey=True)
    for colour, name in enumerate(FOLDERS):
        own = [q for q in found if q.data == name]
        by_number = [q for q in own if q.epsilon == EPSILON]
        by_epsilon = [q for q in own if q.agents == AGENTS]
        for axes, chosen, x in (
            (left, by_number, [q.agents for q in by_number]),
            (right, by_epsilon, [q.epsilon for q in by_epsilon]),
        ):
            axes.plot(x, [q.median for q in chosen], "o-", color=f"C{colour}", label=name)
            axes.plot(x, [q.test for q in chosen], "x--", color=f"C{colour}")
    left.set(xlabel="agents", ylabel="F1: median (o), test (x)", title=f"epsilon = {EPSILON}")
    right.set(xlabel="epsilon", xscale="log", title=f"{AGENTS} agents")
    left.legend(fontsize=7)
    _save(figure, path)


def draw_sizes(found: Sequence[Sizes], path: Path) -> None:
    """Figure 2 of the paper."""
    figure, every = plt.subplots(
        1, len(found), figsize=(10, 3.2), layout="constrained", sharey=True
    )
    for axes, each in zip(every, found, strict=True):
        for row, label in zip(each.means, ("model", "evaluation", "overall"), strict=True):
            axes.plot(SIZES, row, "o-", label=label)
        axes.set(xlabel="relative size", xscale="log", title=each.data)
        axes.set_xticks([SIZES[0], 1, SIZES[-1]], ["1/8", "1", "8"])
        axes.minorticks_off()
    every[0].set_ylabel("percentile of the score")
    every[0].legend(fontsize=7)
    _save(figure, path)


def draw_attacks(found: Sequence[Attack], path: Path) -> None:
    """Figures 3 and 4 of the paper."""
    figure, axes = plt.subplots(figsize=(9, 3.2), layout="constrained")
    places = np.arange(len(found))
    for shift, who in ((-0.2, "malicious"), (0.2, "honest")):
        heights = [getattr(a, who)[2].mean() for a in found]
        spread = [getattr(a, who)[2].std() for a in found]
        axes.bar(places + shift, heights, 0.4, yerr=spread, label=who)
    labels = [f"{a.data}, {a.kind}".replace(", ", "\n") for a in found]
    axes.set_xticks(places, labels, fontsize=7)
    axes.set_ylabel("overall score")
    axes.legend(fontsize=7)
    _save(figure, path)


def draw_frontiers(found: Sequence[Frontier], path: Path) -> None:
    """F1 against the loss of privacy that holds."""
    figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
    for number, each in enumerate(found):
        style = "o-" if each.mechanism != "as published" else "x--"
        label = f"{each.data}, {each.mechanism}"
        axes.plot(each.epsilons, each.f1, style, color=f"C{number // 2}", label=label)
    axes.set(xlabel="epsilon that holds", xscale="log", ylabel="mean test F1")
    axes.legend(fontsize=7)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110)
    plt.close(figure)


SIZES_NOTE = """The paper does not say whether its rho is that of one federation or of the mean of
several: the mean has less noise, and so the larger rho."""

PRIVACY_NOTE = f"""{AGENTS} agents. As published: the epsilon that was asked for is {FRONTIER[0]:g}
to {FRONTIER[-1]:g}; what holds at least follows from the largest norm that a row can have, if the
intercept is penalised like all weights, as here. Chaudhuri and Monteleoni: the best of alpha =
{", ".join(map(str, ALPHAS))}, chosen by the test, which a real run could not do for nothing."""

HEADING = """# BlockFLow: papers/3's experiments

Made by `python benchmarks/blockflow.py`: logistic regression with the published noise at epsilon =
{epsilon} and alpha = {alpha:g}, {agents} agents, {repetitions} repetitions of experiments 2 to 4
and one of each federation of experiment 1. All scores are F1, judged by
`flower_chain.rules.blockflow` in the integers of the contract.
"""


def main(
    data: Annotated[
        Path, typer.Option(help="Folder with the folders of Adult and KDD.")
    ] = DEFAULT_DATA,
    repetitions: Annotated[int, typer.Option(min=1, help="Of experiments 2 to 4.")] = 10,
    agents: Annotated[int, typer.Option(min=3, help="Of each run through Flower.")] = AGENTS,
    json: Annotated[Path | None, typer.Option(help="Write rows and claims here.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the page and the figures.")] = (
        Path(__file__).parent / "results"
    ),
) -> None:
    """Repeat the four experiments of papers/3, and draw what privacy costs."""
    for name in FOLDERS.values():
        if not (data / name).is_dir():
            print(f"{data} has no folder {name}: name one that does with --data", file=sys.stderr)
            raise typer.Exit(1)
    begin = time.monotonic()
    with Progress(console=console) as progress:
        bench = Bench(data, repetitions, progress)
        quality = [each for name in FOLDERS for each in bench.quality(name)]
        sizes = [bench.sizes(name) for name in FOLDERS]
        attacks = [bench.attack(name, Kind.COLLUDING) for name in FOLDERS]
        attacks += [bench.attack(name, k) for name in FOLDERS for k in (Kind.RANDOM, Kind.INVERTED)]
        frontiers = [each for name in list(FOLDERS)[:2] for each in bench.frontiers(name)]
        points = [
            through_flower.run(data, *each, agents)
            for each in progress.track(through_flower.POINTS, description="through Flower")
        ]
    claims = make_claims(quality, sizes, attacks) + through_flower.make_claims(points)
    minutes = (time.monotonic() - begin) / 60
    claims.append(Claim.at_most("minutes in all", "issue: blockflow", 20, minutes))
    tables = [quality_table(quality), sizes_table(sizes), attacks_table(attacks)]
    tables += [frontier_table(frontiers), *through_flower.tables(points), claims_table(claims)]
    for table in tables:
        console.print(table.rich())
    out.mkdir(parents=True, exist_ok=True)
    draw_quality(quality, out / "blockflow-quality.png")
    draw_sizes(sizes, out / "blockflow-sizes.png")
    draw_attacks(attacks, out / "blockflow-attacks.png")
    draw_frontiers(frontiers, out / "blockflow-privacy.png")
    pictures = [f"![{name}](blockflow-{name}.png)\n" for name in PICTURES]
    heading = HEADING.format(epsilon=EPSILON, alpha=ALPHA, agents=AGENTS, repetitions=repetitions)
    (out / "blockflow.md").write_text(
        "\n".join([heading, *pictures, *(table.markdown() for table in tables)])
    )
    if json is not None:
        rows = make_rows(quality, sizes, attacks, frontiers) + through_flower.make_rows(points)
        write_json(json, rows, claims)


if __name__ == "__main__":
    typer.run(main)
