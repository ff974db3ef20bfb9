"""The agents of papers/3's experiments: what rows they have, and what they make of them.

Two thirds of the rows go to the agents, in equal shares unless told otherwise; an agent trains on
four fifths of its share and audits every model on all of it; the last third is the test. Models are
logistic regressions, scores are F1.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from flower_chain.privacy import Mechanism
from flower_chain.rules.blockflow import ONE, score

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "apps/census"))

from census import data as census  # noqa: E402 (an app is no package of ours)
from census.model import train  # noqa: E402

NDArray = np.ndarray[Any, np.dtype[Any]]

# The matrices are small: more threads take longer, and may round otherwise.
threadpool_limits(1)

FOLDERS = {"Adult": "adult", "KDD": "kddcup99-10pct", "KDD, duplicates kept": "kddcup99-10pct"}
AGENTS = 50
SEED = 0
ALPHA = 1.0
EPSILON = 0.01
SIZES = tuple(8.0 ** (n / 4.5 - 1) for n in range(10))


@dataclass(frozen=True)
class Rows:
    """A data set, whole.

    Parameters
    ----------
    x : ndarray of float32, shape (n_rows, n_features)
    y : ndarray of bool, shape (n_rows,)
    random_x : ndarray of float32, shape (n_rows, n_features)
        The same, each published feature drawn by itself.
    largest_norm : float
        That a row could have: each published feature adds at most 1 to its square.
    """

    x: NDArray
    y: NDArray
    random_x: NDArray
    largest_norm: float


@dataclass(frozen=True)
class Share:
    """Rows of one agent: all of them to audit with, the first four fifths to train on."""

    x: NDArray
    y: NDArray

    @property
    def trained_on(self) -> census.Examples:
        """What the agent's model is made of."""
        part = slice(math.ceil(0.8 * len(self.y)))
        return census.Examples(self.x[part], self.y[part])


@dataclass(frozen=True)
class Audit:
    """What agents say of each other's models, and what the test says.

    Parameters
    ----------
    scores : ndarray, shape (n_agents, n_agents)
        Row a: F1 of each model on the rows of agent a.
    test : ndarray, shape (n_agents,)
        F1 of each model on the test rows.
    """

    scores: NDArray
    test: NDArray

    @property
    def told(self) -> NDArray:
        """The scores in the integers of the contract."""
        return np.floor(self.scores * ONE + 0.5).astype(np.int64)

    def overall(self) -> NDArray:
        """m_k, d_k and p_k of each agent, shape (3, n_agents), in [0, 1]."""
        found = score(self.told)
        return np.array([found.model, found.evaluation, found.overall]) / ONE


Fault = Callable[[Rows, NDArray], Share]
"""From the data and the rows of an agent to what a malicious one pretends to have."""


def honest(rows: Rows, chosen: NDArray) -> Share:
    """The rows as they are."""
    return Share(rows.x[chosen], rows.y[chosen])


def inverted(rows: Rows, chosen: NDArray) -> Share:
    """The other class everywhere."""
    return Share(rows.x[chosen], ~rows.y[chosen])


def random(rows: Rows, chosen: NDArray) -> Share:
    """Features and class of different rows."""
    return Share(rows.random_x[chosen], rows.y[chosen])


class Kind(StrEnum):
    """What is special in a federation."""

    EQUAL = "equal"
    SIZES = "sizes"
    COLLUDING = "colluding"
    RANDOM = "random"
    INVERTED = "inverted"


FAULTS = {Kind.RANDOM: random, Kind.INVERTED: inverted}


@dataclass(frozen=True)
class Experiment:
    """A federation and its test rows.

    Parameters
    ----------
    kind : Kind
    shares : sequence of Share
    test : Share
    seed : int
        Of the noise.
    """

    kind: Kind
    shares: Sequence[Share]
    test: Share
    seed: int

    @classmethod
    def draw(cls, rows: Rows, kind: Kind, seed: int, n_agents: int = AGENTS) -> "Experiment":
        """Equal shares, but for :data:`SIZES`; of a faulty federation the first agents are."""
        sizes = [1.0] * n_agents
        if kind is Kind.SIZES:
            sizes = [*SIZES, *sizes][:n_agents]
        order = np.random.default_rng(seed).permutation(len(rows.y))
        of_agents, test = np.split(order, [len(order) * 2 // 3])
        ends = np.cumsum(sizes)[:-1] * len(of_agents) / sum(sizes)
        parts = np.split(of_agents, ends.astype(int))
        bad = minority(n_agents)
        faults = [FAULTS.get(kind, honest)] * bad + [honest] * (n_agents - bad)
        shares = [fault(rows, part) for fault, part in zip(faults, parts, strict=True)]
        return cls(kind, shares, honest(rows, test), seed)

    def colludes(self, agent: int) -> bool:
        """Whether an agent gives perfect scores to its friends, who are all that collude."""
        return self.kind is Kind.COLLUDING and agent < minority(len(self.shares))

    def train(self, agent: int, epsilon: float, alpha: float, mechanism: Mechanism) -> NDArray:
        """The weights of an agent, shape (n_features,), with noise of its own."""
        share, source = self.shares[agent], Random(f"{self.seed} {agent}")
        weights = train(share.trained_on, alpha, epsilon, mechanism, source)
        return weights.astype(np.float32)

    def train_all(self, epsilon: float, alpha: float, mechanism: Mechanism) -> list[NDArray]:
        """Everybody's weights."""
        agents = range(len(self.shares))
        return [self.train(agent, epsilon, alpha, mechanism) for agent in agents]

    def audit(self, models: Sequence[NDArray]) -> Audit:
        """Every model on everybody's rows, and what colluders say."""
        scores = np.array([[f1(share, model) for model in models] for share in self.shares])
        colluders = [agent for agent in range(len(models)) if self.colludes(agent)]
        scores[np.ix_(colluders, colluders)] = 1
        return Audit(scores, self.test_f1(models))

    def test_f1(self, models: Sequence[NDArray]) -> NDArray:
        """F1 of each model on the test rows."""
        return np.array([f1(self.test, model) for model in models])


def minority(n_agents: int) -> int:
    """How many agents can do harm, but must not win."""
    return (n_agents - 1) // 2


def f1(share: Share, weights: NDArray) -> float:
    """What a model is worth on these rows."""
    said = share.x @ weights > 0
    return float(2 * (said & share.y).sum() / max(said.sum() + share.y.sum(), 1))


@cache
def read(name: str, folder: Path) -> Rows:
    """A data set as the paper prepares it, from the folder of all."""
    path = str(folder / FOLDERS[name])
    table, labels = census.read(path, unique="duplicates" not in name)
    rng = np.random.default_rng(0)
    shuffled = pd.DataFrame({k: table[k].to_numpy()[rng.permutation(len(table))] for k in table})
    norm = math.sqrt(table.shape[1] + 1)
    return Rows(census.encode(table), labels.to_numpy(bool), census.encode(shuffled), norm)
