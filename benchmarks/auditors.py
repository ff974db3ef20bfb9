"""How many drawn auditors a model needs: papers/3 section 6, the exact bound and a simulation.

Of N agents M collude, and every model is audited by Q of the others, any with the same probability.
A model is captured if at least half of its auditors collude: its median may then be whatever they
like. The number of its colluding auditors is hypergeometric, so that the probability is exact for
each model, and the sum over the models bounds that of any in a round. The simulation counts in what
the package's rule draws.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import comb, sqrt
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import numpy as np
import typer
from report import Claim, Table, claims_table, write_json
from rich.console import Console
from rich.progress import Progress
from scipy import stats

from flower_chain.rules.blockflow import draw

mpl.use("Agg")
from matplotlib import pyplot as plt

NDArray = np.ndarray[Any, np.dtype[Any]]

NUMBERS = (50, 100)
SHARES = (0.1, 0.2, 0.3, 0.4)
FAILURES = (1e-3, 1e-6)
SIMULATED = (5, 9, 15)
SOURCE = "papers/3"
OURS = "docs/blockflow.md"

console = Console()


# --- the bound -----------------------------------------------------------------------------------


def captured(others: int, colluders: int, auditors: int) -> float:
    """The probability that at least half of the auditors collude who are drawn of the others.

    Parameters
    ----------
    others : int
        N - 1.
    colluders : int
        Of the others.
    auditors : int
        Q.
    """
    ways = sum(
        comb(colluders, c) * comb(others - colluders, auditors - c)
        for c in range((auditors + 1) // 2, auditors + 1)
    )
    return ways / comb(others, auditors)


def captured_in_a_round(agents: int, colluders: int, auditors: int) -> float:
    """How many models of a round are captured in the mean; the probability of any is at most that.

    Both those of honest agents and those of colluders, of which there is one less to audit them.
    """
    honest = captured(agents - 1, colluders, auditors)
    own = captured(agents - 1, colluders - 1, auditors)
    return (agents - colluders) * honest + colluders * own


def needed(agents: int, colluders: int, failure: float) -> int:
    """The least Q with which a round fails with a probability of at most `failure`."""
    return next(q for q in range(1, agents) if captured_in_a_round(agents, colluders, q) <= failure)


# --- the simulation ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What was found in draws of one kind.

    Parameters
    ----------
    agents, colluders, auditors : int
        N, M and Q.
    draws : int
    captured : int
        Draws in which one certain honest model was.
    models : float
        How many models were captured in a draw, in the mean.
    rounds : int
        Draws in which any model was captured.
    """

    agents: int
    colluders: int
    auditors: int
    draws: int
    captured: int
    models: float
    rounds: int

    @property
    def exact(self) -> float:
        """The probability that an honest model is captured."""
        return captured(self.agents - 1, self.colluders, self.auditors)

    @property
    def bound(self) -> float:
        """That of any, at most."""
        return min(1.0, captured_in_a_round(self.agents, self.colluders, self.auditors))

    @property
    def p_value(self) -> float:
        """Of a share so far from the exact probability by chance; binomial test, two-sided."""
        return float(stats.binomtest(self.captured, self.draws, self.exact).pvalue)

    @property
    def excess(self) -> float:
        """How far the share of failed rounds is above the bound, in standard errors of that."""
        error = sqrt(self.bound * (1 - self.bound) / self.draws)
        return (self.rounds / self.draws - self.bound) / error if error else 0.0


def simulate(agents: int, auditors: int, draws: int, progress: Progress) -> list[Found]:
    """Draw auditors, and count with each number of colluders: the agents of the lowest numbers."""
    numbers = [round(share * agents) for share in SHARES]
    counts = np.zeros((len(numbers), draws, agents), bool)
    title = f"{agents} agents, {auditors} auditors"
    for number in progress.track(range(draws), description=title):
        audits = draw(number.to_bytes(32, "big"), range(agents), auditors)
        models = np.array([audits[agent] for agent in range(agents)])
        for place, colluders in enumerate(numbers):
            colluding = np.bincount(models[:colluders].ravel(), minlength=agents)
            counts[place, number] = 2 * colluding >= auditors
    return [
        Found(
            agents,
            colluders,
            auditors,
            draws,
            int(each[:, -1].sum()),
            float(each.sum(axis=1).mean()),
            int(each.any(axis=1).sum()),
        )
        for colluders, each in zip(numbers, counts, strict=True)
    ]


# --- tables and figures --------------------------------------------------------------------------


def needed_table() -> Table:
    """Q for each number of agents, share of colluders and probability of failure."""
    rows = []
    for agents in NUMBERS:
        for share in SHARES:
            found = [needed(agents, round(share * agents), failure) for failure in FAILURES]
            costs = [f"{q / agents:.0%}" for q in found]
            rows.append((f"{agents}, {share:.0%}", *map(str, found), *costs))
    names = [f"{failure:.0e}" for failure in FAILURES]
    columns = ("N, M / N", *(f"Q for {n}" for n in names), *(f"Q / N for {n}" for n in names))
    return Table("Auditors needed", columns, rows, NEEDED_NOTE)


def simulated_table(found: Sequence[Found]) -> Table:
    """The simulation beside the bound."""
    rows = [
        (
            f"{f.agents}, {f.colluders}, {f.auditors}",
            f"{f.exact:.3g}",
            f"{f.captured / f.draws:.3g}",
            f"{f.p_value:.2f}",
            f"{f.bound:.3g}",
            f"{f.rounds / f.draws:.3g}",
        )
        for f in found
    ]
    columns = ("N, M, Q", "one model, exact", "simulated", "p", "any in a round, at most")
    return Table("Simulation", (*columns, "simulated"), rows, SIMULATED_NOTE)


def make_claims(found: Sequence[Found]) -> list[Claim]:
    """What is said of the draw, and what follows for the paper's Q << N."""
    level = round(0.05 / len(found), 4)
    largest = max(needed(n, round(0.1 * n), FAILURES[0]) / n for n in NUMBERS)
    return [
        Claim.at_least(
            "captured models: least p of a difference from the hypergeometric probability",
            OURS,
            level,
            min(f.p_value for f in found),
        ),
        Claim.at_most(
            "failed rounds: most above the bound, in standard errors",
            OURS,
            3,
            max(f.excess for f in found),
        ),
        Claim.at_most("M = N / 10, failure 1e-3: Q / N", SOURCE, 0.25, largest),
    ]


def make_rows(found: Sequence[Found]) -> list[dict[str, Any]]:
    """For programs."""
    return [asdict(f) | {"exact": f.exact, "bound": f.bound, "p": f.p_value} for f in found]


def draw_bounds(found: Sequence[Found], path: Path) -> None:
    """The mean number of captured models by the number of auditors; simulated ones as points."""
    figure, every = plt.subplots(
        1, len(NUMBERS), figsize=(9, 3.4), layout="constrained", sharey=True
    )
    for axes, agents in zip(every, NUMBERS, strict=True):
        for number, share in enumerate(SHARES):
            colluders, odd = round(share * agents), range(1, agents, 2)
            bounds = [captured_in_a_round(agents, colluders, q) for q in odd]
            axes.plot(odd, bounds, color=f"C{number}", label=f"M = {share:.0%}")
            own = [f for f in found if (f.agents, f.colluders) == (agents, colluders) and f.models]
            axes.plot([f.auditors for f in own], [f.models for f in own], "o", color=f"C{number}")
        for failure in FAILURES:
            axes.axhline(failure, color="grey", linewidth=0.7, linestyle=":")
        axes.set(xlabel="auditors of a model", yscale="log", title=f"{agents} agents")
        axes.set_ylim(1e-8, 1e2)
    every[0].set_ylabel("captured models in a round")
    every[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


NEEDED_NOTE = """The least Q with which a round in which any model is captured is no more probable
than that, by the bound. It is always odd: one auditor more only makes half of them more probable.
With Q = 2 M + 1 none can be captured. Q / N is what is left of the evaluations of a round."""

SIMULATED_NOTE = """p: of a share of captured models so far from the exact probability by chance.
The agents of the lowest numbers collude; the one model is that of the last agent."""

HEADING = """# BlockFLow: how many auditors

Made by `python benchmarks/auditors.py`: the bound of
[docs/blockflow.md](../../docs/blockflow.md#drawn-auditors), and {draws:,} draws of each kind by
`flower_chain.rules.blockflow.draw`, with the seeds 0, 1, 2, ...

![bounds](auditors.png)

Lines: the bound, for an odd number of auditors. Points: the simulation.
"""


def main(
    draws: Annotated[int, typer.Option(min=1, help="Of each kind.")] = 10_000,
    json: Annotated[Path | None, typer.Option(help="Write rows and claims here.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the page and the figure.")] = (
        Path(__file__).parent / "results"
    ),
) -> None:
    """Tell how many drawn auditors a model needs, and compare the bound with a simulation."""
    with Progress(console=console) as progress:
        found = [
            each
            for agents in NUMBERS
            for auditors in SIMULATED
            for each in simulate(agents, auditors, draws, progress)
        ]
    claims = make_claims(found)
    tables = [needed_table(), simulated_table(found), claims_table(claims)]
    for table in tables:
        console.print(table.rich())
    out.mkdir(parents=True, exist_ok=True)
    draw_bounds(found, out / "auditors.png")
    parts = [HEADING.format(draws=draws), *(table.markdown() for table in tables)]
    (out / "auditors.md").write_text("\n".join(parts))
    if json is not None:
        write_json(json, make_rows(found), claims)


if __name__ == "__main__":
    typer.run(main)
