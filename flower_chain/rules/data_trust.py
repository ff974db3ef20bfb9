"""papers/4: how workers' scores of each other become qualities, ranks, rewards and penalties.

The same rules in Solidity: ``DataTrust.sol``, ``Ranking.sol`` and ``Circle.sol`` in
``contracts/src``. Scores, qualities and the weight of consistency are integers in units of 1/65535
(:data:`flower_chain.rules.blockflow.ONE`); every division rounds down.

The paper names what counts (accuracy, precision, recall, consistency) and that the first gets half
of the reward, the others smaller shares. The formulas are ours; docs/data-trust.md tells why.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from eth_utils.crypto import keccak

from flower_chain.errors import FormatError
from flower_chain.rules.blockflow import ONE, middles, refunds, table, to_score


@dataclass(frozen=True)
class Weights:
    """What counts how much in a score; only their ratio matters.

    Parameters
    ----------
    accuracy, precision, recall : int
        None of them negative, one of them positive.
    """

    accuracy: int = 1
    precision: int = 1
    recall: int = 1

    def __post_init__(self) -> None:
        weights = (self.accuracy, self.precision, self.recall)
        if min(weights) < 0 or not any(weights):
            raise FormatError(f"weights {weights}: none may be negative, one must be positive")

    def score(self, accuracy: float, precision: float, recall: float) -> int:
        """What a worker says of a model, from what it measured on unseen data.

        Raises
        ------
        FormatError
            If one of them is not in [0, 1].
        """
        weights = (self.accuracy, self.precision, self.recall)
        measured = (to_score(accuracy), to_score(precision), to_score(recall))
        return sum(w * m for w, m in zip(weights, measured, strict=True)) // sum(weights)


@dataclass(frozen=True)
class Rule:
    """What a task's contract judges and pays by; see ``DataTrust.Terms``.

    Parameters
    ----------
    places : int
        k: how many workers are paid in a round.
    consistency : int
        Its weight in a worker's quality; the median has the rest of 65535.
    tolerance : int
        How far from the median of the others' a score may be.
    floor : int
        The quality that a worker must have.
    patience : int
        After how many rounds below that, one after another, it is out.
    """

    places: int
    consistency: int
    tolerance: int
    floor: int
    patience: int


@dataclass(frozen=True)
class Record:
    """What is remembered of a worker from round to round.

    Parameters
    ----------
    trail : int
        The mean of its last trail and median; 0 if there is none.
    below : int
        For how many rounds it has been below the floor.
    """

    trail: int = 0
    below: int = 0


@dataclass(frozen=True)
class Judgement:
    """What a round's scores come to, by worker.

    Parameters
    ----------
    medians, qualities : dict of int to int
    far : tuple of int
        Who gave a score too far from a median.
    poor : tuple of int
        Who was below the floor for too long.
    records : dict of int to Record
        What is remembered of them.
    """

    medians: dict[int, int]
    qualities: dict[int, int]
    far: tuple[int, ...]
    poor: tuple[int, ...]
    records: dict[int, Record]

    @property
    def good(self) -> tuple[int, ...]:
        """The workers in good standing, ascending."""
        return tuple(k for k in self.medians if k not in self.far and k not in self.poor)


def audits(workers: int) -> dict[int, list[int]]:
    """Whose models each worker scores, in the order of its row: all others, from the next one on.

    Parameters
    ----------
    workers : int
        Of the task, out or not.
    """
    return {a: [(a + 1 + j) % workers for j in range(workers - 1)] for a in range(workers)}


def medians_of(rows: Mapping[int, Sequence[int]], workers: int) -> dict[int, int]:
    """The median of what the others that are left said of each worker's model; as :func:`judge`."""
    lower, upper = middles(*table(rows, audits(workers)))
    middle = ((low + high) // 2 for low, high in zip(lower, upper, strict=True))
    return dict(zip(sorted(rows), middle, strict=True))


def weights_of(rows: Mapping[int, Sequence[int]], workers: int, floor: int) -> dict[int, int]:
    """What each worker's model weighs in the mean that the next round begins with.

    One if its median is at least the floor, else nothing: papers/4 section 3.5 averages all, and a
    model of random labels with them. If none is as good as that, as when training has just begun,
    all weigh one.
    """
    medians = medians_of(rows, workers)
    least = floor if max(medians.values(), default=0) >= floor else 0
    return {worker: int(median >= least) for worker, median in medians.items()}


def quality(median: int, trail: int, weight: int) -> int:
    """A worker's quality in a round, from the median of its scores and its consistency.

    Consistency is perfect but for what the median fell below the trail: it is not a reason to hold
    back what one could do better.
    """
    consistency = ONE - max(0, trail - median)
    return (median * (ONE - weight) + consistency * weight) // ONE


def judge(
    rows: Mapping[int, Sequence[int]],
    workers: int,
    records: Mapping[int, Record],
    rule: Rule,
) -> Judgement:
    """Find how good each worker was in a round, and who loses its deposit.

    Parameters
    ----------
    rows : mapping of int to sequence of int
        What each worker said that is left, in the order of :func:`audits`. Two at least.
    workers : int
        Of the task, out or not.
    records : mapping of int to Record
        Of the round before; of nobody in the first.
    rule : Rule

    Raises
    ------
    FormatError
        If a worker did not give as many scores as it should.
    """
    scores, audited = table(rows, audits(workers))
    medians, found, after = medians_of(rows, workers), {}, {}
    left, middle = list(medians), np.array(list(medians.values()), np.int64)
    distances = np.abs(scores - middle).max(axis=1, initial=0, where=audited)
    for worker, median in medians.items():
        before = records.get(worker, Record())
        found[worker] = quality(median, before.trail, rule.consistency)
        below = before.below + 1 if found[worker] < rule.floor else 0
        trail = (before.trail + median) // 2 if before.trail else median
        after[worker] = Record(trail, below)
    far = tuple(k for k, d in zip(left, distances.tolist(), strict=True) if d > rule.tolerance)
    poor = tuple(k for k in left if after[k].below == rule.patience)
    return Judgement(medians, found, far, poor, after)


def lot_of(salts: Iterable[bytes]) -> bytes:
    """What decides between equal qualities: the hash of all salts, in the order of the workers."""
    return keccak(b"".join(salts))


def rank(qualities: Mapping[int, int], lot: bytes, places: int) -> list[int]:
    """The best workers, the first first.

    Parameters
    ----------
    qualities : mapping of int to int
        Of those in good standing.
    lot : bytes
        :func:`lot_of`. The hash of it and a worker's number, as an integer without its last three
        bytes, is its rank among equals.
    places : int
        How many at most.
    """

    def key(worker: int) -> tuple[int, int, int]:
        drawn = int.from_bytes(keccak(lot + worker.to_bytes(32, "big")), "big")
        return qualities[worker], drawn >> 24, worker

    return sorted(qualities, key=key, reverse=True)[:places]


def smallest(places: int) -> int:
    """The smallest reward of a round of which so many places can get shares that fall."""
    return places * (places - 1)


def shares(reward: int, places: int) -> list[int]:
    """What each place is worth.

    The first gets half, rounded up. The others share the rest in the ratio of 1 for the last, 2 for
    the last but one, and so on; what the divisions leave is the second's. Together that is the
    reward. If there is one place only, the other half is nobody's.

    Parameters
    ----------
    reward : int
        Of one round. From :func:`smallest` on each from the second gets more than the next.
    places : int
        One at least.
    """
    half = reward // 2
    whole = smallest(places) // 2
    others = [half * (places - i) // whole for i in range(1, places)]
    if others:
        others[0] += half - sum(others)
    return [reward - half, *others]


def rewards(reward: int, rounds: int) -> list[int]:
    """What is paid in each round: an equal part of what is left for it and those after it."""
    parts = []
    for left in range(rounds, 0, -1):
        parts.append(reward // left)
        reward -= parts[-1]
    return parts


def pay(ranking: Sequence[int], reward: int, good: Sequence[int], lost: int) -> dict[int, int]:
    """What each worker gets for a round.

    Parameters
    ----------
    ranking : sequence of int
        The best, the first first; nobody if the round was not scored.
    reward : int
        Of the round.
    good : sequence of int
        All in good standing, ascending.
    lost : int
        The deposits lost in the round: shared in proportion to what is earned in it; equally if
        that is nothing.
    """
    earned = dict(zip(ranking, shares(reward, len(ranking)) if ranking else (), strict=True))
    amounts = [earned.get(worker, 0) for worker in good]
    return dict(zip(good, refunds(sum(amounts) + lost, amounts), strict=True))
