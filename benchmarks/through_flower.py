"""A federation of each of papers/3's experiments through Flower, beside what is computed of it."""

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from census_agents import (
    ALPHA,
    EPSILON,
    SEED,
    SIZES,
    Experiment,
    Kind,
    NDArray,
    minority,
    read,
)
from report import Claim, Table
from scipy import stats
from simulation import simulate

from flower_chain import keys
from flower_chain.ledger.blockflow import Experiment as OnLedger
from flower_chain.ledger.blockflow import Round
from flower_chain.privacy import Mechanism
from flower_chain.rules.blockflow import ONE, score
from flower_chain.run import BlockFlowRun

APP = Path(__file__).parent / "blockflow_app"
POINTS = (
    ("1", "Adult", Kind.EQUAL),
    ("2", "Adult", Kind.SIZES),
    ("3", "Adult", Kind.COLLUDING),
    ("4", "Adult", Kind.RANDOM),
    ("4", "KDD", Kind.INVERTED),
)
STAGES = {
    "enrol": "join",
    "train": "submit",
    "retrieve": "retrieve",
    "commit": "commit",
    "reveal": "reveal",
    "score": "score",
}
"""The stages that are timed, each with the contract's function that ends it."""


@dataclass(frozen=True)
class Outcome:
    """What agents said of each other's models and what came of it, in units of 1/65535.

    Parameters
    ----------
    scores : ndarray of int, shape (n_agents, n_agents)
        Row a: what agent a said of each model.
    overall : ndarray of int, shape (n_agents,)
    """

    scores: NDArray
    overall: NDArray

    def figure(self, kind: Kind) -> str:
        """What the experiment is about."""
        match kind:
            case Kind.EQUAL:
                return f"median F1 {np.median(self.scores, axis=0).mean() / ONE:.6f}"
            case Kind.SIZES:
                sizes = np.log(SIZES[: len(self.overall)])
                ranks = stats.rankdata(self.overall)[: len(sizes)]
                return f"rho {np.corrcoef(sizes, ranks)[0, 1]:.6f}"
            case _:
                bad, good = np.split(self.overall / ONE, [minority(len(self.overall))])
                return f"{bad.mean():.6f} / {good.mean():.6f}"


@dataclass(frozen=True)
class Point:
    """A federation, by the ledger and by the computation.

    Parameters
    ----------
    experiment, data : str
    kind : Kind
    ledger, computed : Outcome
        Agents in the order of their shares.
    seconds : dict of str to float
        By stage; "run" is the whole, with Flower's own beginning and end.
    gas : dict of str to float
        By stage, for each agent.
    """

    experiment: str
    data: str
    kind: Kind
    ledger: Outcome
    computed: Outcome
    seconds: Mapping[str, float]
    gas: Mapping[str, float]

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.experiment}: {self.data}, {self.kind}"

    @property
    def differing(self) -> int:
        """How many scores and overall scores are not the same in both."""
        scores = self.ledger.scores != self.computed.scores
        return int(scores.sum() + (self.ledger.overall != self.computed.overall).sum())


def run(data: Path, experiment: str, name: str, kind: Kind, n_agents: int) -> Point:
    """One round of a federation, through Flower and computed."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "friends").mkdir()
        begin = time.monotonic()
        simulate(
            APP,
            n_agents,
            {
                "folder": str(data.resolve()),
                "data": name,
                "kind": str(kind),
                "agents": n_agents,
                "home": folder,
                "chain.run": f"{folder}/run",
                "chain.keys": f"{folder}/keys",
            },
        )
        whole = time.monotonic() - begin
        with closing(BlockFlowRun.open(home / "run")) as opened:
            on_ledger = opened.experiment
            done = on_ledger.history().rounds[0]
            gas = {stage: gas / n_agents for stage, gas in _gas(on_ledger, done).items()}
        accounts = [keys.load(home / f"keys/device-{n}.key").address for n in range(n_agents)]
        times = json.loads((home / "times.json").read_text())
    numbers = [on_ledger.number_of(account) for account in accounts]
    scores = np.array([done.openings[number].row for number in numbers])[:, numbers]
    ledger = Outcome(scores, np.array([done.overall[number] for number in numbers]))
    seconds = {end[0]: end[1] - start[1] for start, end in pairwise(times.items())}
    computed = _computed(Experiment.draw(read(name, data), kind, SEED, n_agents))
    return Point(experiment, name, kind, ledger, computed, seconds | {"run": whole}, gas)


def _computed(drawn: Experiment) -> Outcome:
    """What comes of a federation without Flower and ledger."""
    audit = drawn.audit(drawn.train_all(EPSILON, ALPHA, Mechanism.AS_PUBLISHED))
    return Outcome(audit.told, np.array(score(audit.told).overall))


def _gas(on_ledger: OnLedger, done: Round) -> dict[str, int]:
    """What the transactions of each stage used."""
    contract, used = on_ledger.contract, dict.fromkeys(STAGES, 0)
    for receipt in done.receipts.values():
        data = contract.ledger.data_of(receipt.transaction)
        for stage, function in STAGES.items():
            if contract.decode(function, data) is not None:
                used[stage] += receipt.gas_used
    return used


def make_claims(points: Sequence[Point]) -> list[Claim]:
    """The ledger says what is computed."""
    return [
        Claim.at_most(
            f"{p.name}: scores that differ through Flower", "issue: blockflow", 0, p.differing
        )
        for p in points
    ]


def make_rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    """For programs."""
    return [
        {
            "experiment": p.name,
            "ledger": p.ledger.figure(p.kind),
            "computed": p.computed.figure(p.kind),
            "differing": p.differing,
            "seconds": p.seconds,
            "gas": p.gas,
        }
        for p in points
    ]


def tables(points: Sequence[Point]) -> list[Table]:
    """What came of the federations, and what it cost."""
    n_agents = len(points[0].ledger.overall)
    rows = [
        (p.name, p.ledger.figure(p.kind), p.computed.figure(p.kind), str(p.differing))
        for p in points
    ]
    columns = ("experiment", "on the ledger", "computed", "scores that differ")
    note = NOTE.format(agents=n_agents, scores=n_agents * (n_agents + 1))
    found = Table("Through Flower", columns, rows, note)
    seconds = [(p.name, *(f"{p.seconds[stage]:.1f}" for stage in (*STAGES, "run"))) for p in points]
    gas = [
        (p.name, *(f"{p.gas[stage]:,.0f}" for stage in STAGES), f"{sum(p.gas.values()):,.0f}")
        for p in points
    ]
    return [
        found,
        Table("Seconds of a stage", ("experiment", *STAGES, "whole run"), seconds, SECONDS_NOTE),
        Table("Gas of a stage, for each agent", ("experiment", *STAGES, "sum"), gas, GAS_NOTE),
    ]


NOTE = """One round of {agents} agents through `flwr run`, each a SuperNode of Flower's simulation,
with the embedded ledger. On the ledger: the scores that the agents revealed, and the contract's
overall scores. Computed: the same federation in one process. All {scores} numbers of each are
compared bit for bit. Experiment 1: the mean median F1. 2: rho of the overall scores of this one
federation. 3 and 4: mean overall scores of malicious / honest agents."""

SECONDS_NOTE = """Two agents at a time. The first stage begins with the server, and waits for
Flower's workers and for the data; the last one includes the aggregate. What the stages leave of the
whole run is Flower's beginning and end."""

GAS_NOTE = """Relayed, by the receipts on the ledger. All agents reveal in the transaction that
scores."""
