"""papers/1: the class-sampled validation error scheme (CSVES), as published and improved.

The same rules in Solidity: ``contracts/src/RecordAndReward.sol``. Errors are integers in parts per
million; nothing is rounded but the last division, downwards.

The published rules look at the share of the validation samples that a model gets wrong. Samples
are only of classes that the device holds, and that is their weakness: a model that has merely
learned which classes the device names does well on them, and a good model that was not trained at
all does best. The rule ``gain`` looks instead at what the training changed:

- the *misdirection* of the update: whether it tells the device's classes apart the wrong way. It is
  a rank statistic of the change alone. Which classes there are does not help, nor how large the
  step is; random labels, noise images and random steps come out near one half from a fresh model
  and near one from a good one, and an update that changes nothing somewhat above one half;
- the *open error* of the model before and after. Training on data of these classes lowers it.

An update with little misdirection is accepted at once; one with more if it lowers the open error by
a share at least. What is left of the open error is taken off the price, down to a least share.
"""

from collections.abc import Sequence
from enum import IntEnum
from math import comb
from typing import Any, Protocol

import numpy as np

from flower_chain.errors import ConfigError, FormatError
from flower_chain.records import PPM, Contribution, Refusal, to_ppm

NDArray = np.ndarray[Any, np.dtype[Any]]

MAX_ERRORS = 64
LEAST_SHARE = 1e-6
LEAST_PROBABILITY = 1e-12
LUCK = 0.2
NO_CHANGE = 1e-6


class Rule(IntEnum):
    """How contributions are judged; the order of ``RecordAndReward.Rule``."""

    GAIN = 0
    TREND = 1
    THRESHOLD = 2
    BOTH = 3
    EITHER = 4

    def __str__(self) -> str:
        return self.name.lower()

    @classmethod
    def named(cls, name: str) -> "Rule":
        """The rule with this name, or ConfigError."""
        try:
            return cls[name.upper()]
        except KeyError:
            known = ", ".join(map(str, cls))
            raise ConfigError(f"rule = {name!r}: it must be one of {known}") from None


class Terms(Protocol):
    """What of a plan the rules need; see :class:`flower_chain.plan.Plan`."""

    @property
    def rule(self) -> Rule: ...
    @property
    def threshold_ppm(self) -> int: ...
    @property
    def gain_ppm(self) -> int: ...
    @property
    def clear_ppm(self) -> int: ...
    @property
    def harm_ppm(self) -> int: ...
    @property
    def least_ppm(self) -> int: ...
    @property
    def rate(self) -> int: ...
    @property
    def max_data_cost(self) -> int: ...


def judge(terms: Terms, contribution: Contribution) -> tuple[Refusal, int]:
    """What the contract makes of a contribution that is formally in order.

    Returns
    -------
    reason : Refusal
        ``NONE`` if it is accepted.
    due : int
        What is to be paid for it, in the token's smallest unit.
    """
    if not 0 < contribution.data_cost <= terms.max_data_cost:
        return Refusal.BAD_DATA_COST, 0
    if contribution.rest or not is_well_formed(terms.rule, contribution.errors):
        return Refusal.BAD_EVIDENCE, 0
    share = quality(terms, contribution.errors)
    if share == 0:
        return Refusal.WORTHLESS, 0
    return Refusal.NONE, contribution.data_cost * terms.rate * share // PPM


def is_well_formed(rule: Rule, errors: Sequence[int]) -> bool:
    """Errors before and after the training, under ``gain`` misdirection too; none above one."""
    least = 3 if rule is Rule.GAIN else 2
    return least <= len(errors) <= MAX_ERRORS and all(0 <= error <= PPM for error in errors)


def quality(terms: Terms, errors: Sequence[int]) -> int:
    """The share of its full price that a contribution is worth, in ppm; 0 if it is refused."""
    match terms.rule:
        case Rule.GAIN:
            return gain_quality(terms, errors)
        case Rule.TREND:
            accepted = falls(errors)
        case Rule.THRESHOLD:
            accepted = errors[-1] < terms.threshold_ppm
        case Rule.BOTH:
            accepted = errors[-1] < terms.threshold_ppm and falls(errors)
        case Rule.EITHER:
            accepted = errors[-1] < terms.threshold_ppm or falls(errors)
    return PPM if accepted else 0


def sum_weight(terms: Terms, errors: Sequence[int], steps: int) -> int:
    """What an accepted contribution weighs in an encrypted sum.

    Its quality in so many steps, rounded down, and at least 1; so with one step all weigh the same.
    """
    return max(1, quality(terms, errors) * steps // PPM)


def falls(errors: Sequence[int]) -> bool:
    """Whether the slope of the least-squares line through the errors is negative.

    Its sign is that of the sum of (2 i - (n - 1)) e_i. Source: papers/1 algorithm 3.
    """
    middle = len(errors) - 1
    return sum((2 * i - middle) * error for i, error in enumerate(errors)) < 0


def gain_quality(terms: Terms, errors: Sequence[int]) -> int:
    """The rule ``gain``: open errors o_0 ... o_E, then the misdirection m; see the module.

    Accepted if m <= clear, or if m <= harm and o_E <= (1 - gain) o_0; worth 1 - o_E, at least
    `least`.
    """
    before, after, wrong_way = errors[0], errors[-2], errors[-1]
    gained = after * PPM <= before * (PPM - terms.gain_ppm)
    if wrong_way <= terms.clear_ppm or (wrong_way <= terms.harm_ppm and gained):
        return max(PPM - after, terms.least_ppm)
    return 0


def evidence(rule: Rule, probabilities: Sequence[NDArray], labels: NDArray) -> tuple[int, ...]:
    """The errors that a contribution holds, in parts per million.

    Parameters
    ----------
    rule : Rule
    probabilities : sequence of ndarray, each of shape (n_samples, n_classes)
        Of the model before the training, and after each epoch.
    labels : ndarray of int, shape (n_samples,)
        Of the device's classes, all of which are there.

    Returns
    -------
    tuple of int
        As many as a contribution may hold; of more tables than that some are passed over.

    Raises
    ------
    FormatError
        If `probabilities` are not that, or fewer than two.
    """
    if len(probabilities) < 2:
        raise FormatError(f"{len(probabilities)} measurements: there must be two at least")
    probabilities = _thinned(probabilities, MAX_ERRORS - 1)
    for table in probabilities:
        _check_probabilities(table, labels)
    if rule is not Rule.GAIN:
        return tuple(to_ppm(error_rate(table, labels)) for table in probabilities)
    open_errors = [to_ppm(open_error(table, labels)) for table in probabilities]
    return (*open_errors, to_ppm(misdirection(probabilities[0], probabilities[-1], labels)))


def ends(rule: Rule, errors: Sequence[int]) -> tuple[int, ...]:
    """Of the errors in a contribution those that anyone who has both models can measure."""
    if rule is Rule.GAIN:
        return errors[0], errors[-2], errors[-1]
    return errors[0], errors[-1]


def error_rate(probabilities: NDArray, labels: NDArray) -> float:
    """The share of samples whose most probable class is wrong."""
    return float((probabilities.argmax(axis=1) != labels).mean())


def open_error(probabilities: NDArray, labels: NDArray) -> float:
    """How wrong a model is, in [0, 1]: the square root of the larger of two errors.

    With q the share of a sample's probability that lies on wrong classes: the geometric mean of q,
    which still falls when the model is right already but becomes surer; and how close the mean of q
    is to that of the best constant answer, 1 where it is as bad, 0 from about half of it down, with
    an allowance for luck that shrinks with the number of classes. One class can't be judged, since
    every constant answer is right: 1.
    """
    n_classes = len(np.unique(labels))
    if n_classes < 2:
        return 1.0
    table, rows = np.array(probabilities, np.float64), np.arange(len(labels))
    right = table[rows, labels]
    table[rows, labels] = 0
    wrong = table.sum(axis=1)
    q = np.divide(wrong, wrong + right, out=np.ones_like(wrong), where=wrong + right > 0)
    typical = float(np.exp(np.log(np.maximum(q, LEAST_SHARE)).mean()))
    to_chance = 2 * min(1.0, float(q.mean()) * n_classes / (n_classes - 1) + 0.3 / n_classes) - 1
    return float(np.sqrt(max(typical, to_chance)))


def misdirection(before: NDArray, after: NDArray, labels: NDArray) -> float:
    """Whether an update tells classes apart the wrong way, in [0, 1]; 0 is best.

    For classes a and b, a sample of each: the log-odds of a against b must change more in favour of
    a on the sample of a than on that of b. The share of pairs where it is the other way (half of
    those where there is no difference), averaged over all pairs of classes: one minus the
    Mann-Whitney statistic of the change. To it an allowance for luck is added that shrinks with the
    number of classes. One class can't be judged: 1.

    Parameters
    ----------
    before, after : ndarray, shape (n_samples, n_classes)
        Class probabilities of the model before and after the training.
    labels : ndarray of int, shape (n_samples,)
    """
    classes = np.unique(labels)
    if len(classes) < 2:
        return 1.0
    change = _log(after) - _log(before)
    right = change[np.arange(len(labels)), labels]
    sizes = np.bincount(labels)[labels]
    total = 0.0
    for label in classes[:-1]:  # against all classes above it at once
        own, others = labels == label, labels > label
        for_own = right[own, np.newaxis] - change[own][:, labels[others]]
        lead = for_own - (change[others, label] - right[others])
        wrong = (lead < -NO_CHANGE).mean(axis=0) + (np.abs(lead) <= NO_CHANGE).mean(axis=0) / 2
        total += float((wrong / sizes[others]).sum())
    return min(1.0, total / comb(len(classes), 2) + LUCK / len(classes))


def _log(probabilities: NDArray) -> NDArray:
    table: NDArray = np.log(np.maximum(np.asarray(probabilities, np.float64), LEAST_PROBABILITY))
    return table


def _thinned(tables: Sequence[NDArray], most: int) -> Sequence[NDArray]:
    """At most so many of them, evenly spaced, with the first and the last."""
    if len(tables) <= most:
        return tables
    return [tables[round(index)] for index in np.linspace(0, len(tables) - 1, most)]


def _check_probabilities(table: NDArray, labels: NDArray) -> None:
    if table.ndim != 2 or len(table) != len(labels) or table.shape[1] <= labels.max():
        raise FormatError(
            f"class probabilities of shape {table.shape} for {len(labels)} samples of classes up "
            f"to {labels.max()}"
        )
    if not np.isfinite(table).all() or table.min() < 0:
        raise FormatError("class probabilities must be finite and not negative")
