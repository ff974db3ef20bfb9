"""papers/3: BlockFLow's retrieval rule and contribution scoring procedure (algorithm 1).

The same rules in Solidity: ``BlockFlow.sol``, ``Scoring.sol`` and ``Circle.sol`` in
``contracts/src``. Scores are integers in units of 1/65535 (:data:`ONE`), so that every uint16 is a
score; every division rounds down, and nothing else is rounded. A row of the matrix is what one
auditor says of all models, a column what all auditors say of one model.

Two slips of the paper are not copied. Its m'_k divides by the largest m'_k, which is not defined
yet: here by the largest m_k. Its aggregate (algorithm 2) divides by n and by the sum of the p_k:
here by that sum only, so that the weights sum to one.

The diagonal counts: algorithm 1 takes the median and the least accurate evaluation over all pairs
of agents, an agent's own model included, and the threat analysis (section 4.4) needs it. Without
its own score the model of an honest agent among three would be judged by one honest and one
colluding agent, and the mean of the two is what the colluder likes.

Auditors may be drawn instead, Q for each model (section 6): :func:`draw`. Then nobody audits its
own model, and algorithm 1 goes over what was audited: a model that nobody audited has the median 0,
an agent that audited nothing made no mistake.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from eth_utils.crypto import keccak

from flower_chain.errors import FormatError

NDArray = np.ndarray[Any, np.dtype[Any]]

ONE = 2**16 - 1
"""The score of a perfect model; `BlockFlow.ONE`."""

MAX_AGENTS = 104
"""As many agents can an experiment have; `BlockFlow.MAX_AGENTS`."""


@dataclass(frozen=True)
class Overall:
    """What algorithm 1 makes of a matrix of scores. All are integers in units of 1/65535.

    Parameters
    ----------
    model : tuple of int, length n_agents
        m_k: the median score of each agent's model, not scaled.
    evaluation : tuple of int, length n_agents
        d_k: the quality of each agent's least accurate evaluation, not scaled.
    overall : tuple of int, length n_agents
        p_k: the agent's share of the pot and the weight of its model, up to a common factor.
    """

    model: tuple[int, ...]
    evaluation: tuple[int, ...]
    overall: tuple[int, ...]


def to_score(value: float) -> int:
    """Round a score in [0, 1] to units of 1/65535, half up.

    Raises
    ------
    FormatError
        If `value` is not in [0, 1].
    """
    if not 0 <= value <= 1:
        raise FormatError(f"{value!r} is not a score: it must be in [0, 1]")
    return int(value * ONE + 0.5)


def score(scores: NDArray, audited: NDArray | None = None) -> Overall:
    """Algorithm 1, in the integers of the contract.

    Parameters
    ----------
    scores : ndarray of int, shape (n_agents, n_agents)
        s_{a,k} in [0, 65535]: row a is what agent a says of each model, its own included. Only of
        agents that were not eliminated, in the order of their accounts.
    audited : ndarray of bool, shape (n_agents, n_agents)
        Which of these scores there are; all by default.

    Returns
    -------
    Overall
        All overall scores are zero if all medians are, or if every agent was half a point away from
        some median. No agents, no scores. A single agent scores one, unless it gave itself zero, or
        nothing.

    Raises
    ------
    FormatError
        If `scores` are not that.
    """
    _check(scores)
    model = [(low + high) // 2 for low, high in zip(*middles(scores, audited), strict=True)]
    distances = np.abs(scores.astype(np.int64) - np.array(model, np.int64))
    furthest = distances.max(axis=1, initial=0, where=True if audited is None else audited)
    evaluation = [trust(int(distance)) for distance in furthest]
    scaled = zip(_scaled(model), _scaled(evaluation), strict=True)
    return Overall(tuple(model), tuple(evaluation), tuple(min(pair) for pair in scaled))


def middles(scores: NDArray, audited: NDArray | None = None) -> tuple[list[int], list[int]]:
    """The lower and the upper middle of each column, which the contract only verifies.

    Parameters
    ----------
    scores : ndarray of int, shape (n_auditors, n_agents)
    audited : ndarray of bool, shape (n_auditors, n_agents)
        Which of these scores there are; all by default.

    Returns
    -------
    lower, upper : list of int, length n_agents
        The same where the number of auditors is odd, zero where there is none; the median is their
        mean, rounded down.
    """
    there = np.ones(scores.shape, bool) if audited is None else audited
    ranked = [sorted(column[said].tolist()) for column, said in zip(scores.T, there.T, strict=True)]
    lower = [column[(len(column) - 1) // 2] if column else 0 for column in ranked]
    upper = [column[len(column) // 2] if column else 0 for column in ranked]
    return lower, upper


def seed_of(secrets: Iterable[bytes]) -> bytes:
    """What auditors are drawn by: the secrets of all agents that told theirs, by exclusive or.

    Each of them changes all of it, and their order does not matter.
    """
    whole = reduce(int.__xor__, (int.from_bytes(secret, "big") for secret in secrets), 0)
    return whole.to_bytes(32, "big")


def draw(seed: bytes, agents: Iterable[int], auditors: int) -> dict[int, list[int]]:
    """Draw who audits whose model.

    The agents stand in a circle in an order that is drawn, as likely as any other to one part in
    2^242, and each audits those that follow it: the auditors of a model are any set of the others
    with the same probability, and everybody has as many to audit.

    Parameters
    ----------
    seed : bytes
        :func:`seed_of`, 32 bytes.
    agents : iterable of int
        Those that passed the retrieval rule, ascending.
    auditors : int
        Q: of each model. All others audit it if there are fewer.

    Returns
    -------
    dict of int to list of int
        Whose models each agent audits, in the order of its row.
    """
    circle: list[int] = []
    for place, agent in enumerate(agents):
        circle.append(agent)
        other = int.from_bytes(keccak(seed + place.to_bytes(32, "big")), "big") % (place + 1)
        circle[place], circle[other] = circle[other], circle[place]
    reach = min(auditors, len(circle) - 1)
    twice = 2 * circle
    return {agent: twice[place + 1 :][:reach] for place, agent in enumerate(circle)}


def table(
    rows: Mapping[int, Sequence[int]], audits: Mapping[int, Sequence[int]]
) -> tuple[NDArray, NDArray]:
    """What agents say of each other's models, as :func:`score` and :func:`middles` take it.

    Parameters
    ----------
    rows : mapping of int to sequence of int
        The scores that each agent gave that is left.
    audits : mapping of int to sequence of int
        Whose models these are scores of; also of agents that are not left.

    Returns
    -------
    scores : ndarray of int, shape (n_agents, n_agents)
        Of the agents that are left, ascending.
    audited : ndarray of bool, shape (n_agents, n_agents)
        Which of these scores there are.

    Raises
    ------
    FormatError
        If an agent did not give as many scores as it should.
    """
    places = {agent: place for place, agent in enumerate(sorted(rows))}
    scores = np.zeros((len(rows), len(rows)), np.int64)
    audited = np.zeros(scores.shape, bool)
    for agent, row in rows.items():
        if len(row) != len(audits.get(agent, ())):
            raise FormatError(f"agent {agent} gives {len(row)} scores, which it should not")
        for model, value in zip(audits[agent], row, strict=True):
            if model in places:
                scores[places[agent], places[model]] = value
                audited[places[agent], places[model]] = True
    return scores, audited


def trust(distance: int) -> int:
    """t'_{a,k}: the quality of an evaluation that is `distance` away from the median.

    max(0, (1/2 - t) / (1/2 + t)) with t in units of 1/65535. It falls with t, so that the least of
    an agent's is that of its largest distance: one division for each auditor.
    """
    return max(0, ONE - 2 * distance) * ONE // (ONE + 2 * distance)


def refunds(pot: int, overall: Sequence[int]) -> list[int]:
    """Share a round's pot in proportion to the overall scores; equally if all are zero.

    Agent k gets the difference of the sums up to k and before k, each rounded down: the refunds sum
    to the pot exactly, and each is less than one unit away from its exact share.

    Parameters
    ----------
    pot : int
        In the token's smallest unit.
    overall : sequence of int
        p_k of the agents that are left.

    Returns
    -------
    list of int
        In the token's smallest unit; empty if no agent is left.
    """
    weights = list(overall) if any(overall) else [1] * len(overall)
    whole = sum(weights)
    parts, before, passed = [], 0, 0
    for weight in weights:
        passed += weight
        upto = pot * passed // whole
        parts.append(upto - before)
        before = upto
    return parts


def retrieval_survivors(retrieved: Sequence[Iterable[int] | None]) -> list[int]:
    """Who could retrieve most models and had its own retrieved by most (sections 3.2 and 4.3).

    An agent always has its own model, whether it says so or not: n - m honest agents would not be
    enough for each other otherwise (two of three).

    Parameters
    ----------
    retrieved : sequence of (iterable of int, or None)
        For each of the agents that submitted a model, whose models it reports as valid; None if it
        reported nothing.

    Returns
    -------
    list of int
        Agents k with v_k > n/2 and z_k > n/2, ascending; n counts all that submitted a model.
    """
    n_agents = len(retrieved)
    table = np.zeros((n_agents, n_agents), bool)
    for agent, models in enumerate(retrieved):
        if models is not None:
            table[agent, [k for k in models if 0 <= k < n_agents]] = True
            table[agent, agent] = True
    enough = (2 * table.sum(axis=1) > n_agents) & (2 * table.sum(axis=0) > n_agents)
    return [int(agent) for agent in np.flatnonzero(enough)]


def exact_scores(scores: NDArray) -> NDArray:
    """Algorithm 1 in floating point, to be read beside the paper; nothing on the chain uses it.

    Parameters
    ----------
    scores : ndarray of float, shape (n_agents, n_agents)
        s_{a,k} in [0, 1].

    Returns
    -------
    ndarray of float, shape (n_agents,)
        p_k in [0, 1].
    """
    m = np.median(scores, axis=0)
    t = np.abs(scores - m)
    d = np.maximum(0, (0.5 - t) / (0.5 + t)).min(axis=1)
    if m.max() == 0 or d.max() == 0:
        return np.zeros(len(scores))
    p: NDArray = np.minimum(m / m.max(), d / d.max())
    return p


def _scaled(values: Sequence[int]) -> list[int]:
    """Values over the largest of them, in units of 1/65535; all zero if that is."""
    largest = max(values, default=0)
    return [value * ONE // largest if largest else 0 for value in values]


def _check(scores: NDArray) -> None:
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1]:
        raise FormatError(f"scores of shape {scores.shape}: every agent audits every model")
    if scores.size and not np.issubdtype(scores.dtype, np.integer):
        raise FormatError(f"scores of type {scores.dtype}: they must be integers up to {ONE}")
    if scores.size and not 0 <= int(scores.min()) <= int(scores.max()) <= ONE:
        raise FormatError(
            f"scores from {scores.min()} to {scores.max()}: they must be from 0 to {ONE}"
        )
