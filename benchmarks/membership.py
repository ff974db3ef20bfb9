"""Who was trained on? A likelihood ratio, as N. Carlini et al. ask for it.

Source: "Membership Inference Attacks From First Principles", IEEE S&P 2022 (LiRA), with few shadow
models. Many runs are simulated; in each, chance decides which records a device has. The attacker
attacks one of them, and knows of the others who had what: those are its shadows.
"""

from typing import Any

import numpy as np
from scipy.stats import multivariate_normal, rankdata

NDArray = np.ndarray[Any, np.dtype[Any]]


def log_ratios(statistics: NDArray, members: NDArray) -> NDArray:
    """How much likelier it is that a record was in than that it was out, for each run and record.

    Each run is attacked with all others as its shadows. From them come, for each record, the means
    of the statistics if it is in and if it is out, and, for all records together, both covariances:
    with few shadows, a record's own would be mostly chance (section VI.C there). For the same
    reason the gap between both means is drawn towards that of all records, as far as chance alone
    would make it differ (James and Stein): an attack that trusted each by itself would be weaker.

    Parameters
    ----------
    statistics : ndarray, shape (runs, records, k)
        What the attacker computes of each record from what it sees.
    members : ndarray of bool, shape (runs, records)

    Returns
    -------
    ndarray, shape (runs, records)
    """
    return np.stack(
        [
            _attack(run, statistics, members, np.arange(len(members)) != run)
            for run in range(len(members))
        ]
    )


def _attack(run: int, statistics: NDArray, members: NDArray, shadows: NDArray) -> NDArray:
    seen, inside = statistics[shadows], members[shadows][..., None]
    counts = [np.maximum(side.sum(axis=0), 1) for side in (inside, ~inside)]
    means = [
        (seen * side).sum(axis=0) / count
        for side, count in zip((inside, ~inside), counts, strict=True)
    ]
    apart = seen - np.where(inside, *means)
    covariances = [_covariance(apart[side[..., 0]]) for side in (inside, ~inside)]

    gap = means[0] - means[1]
    chance = sum(np.diag(c) * (1 / n).mean() for c, n in zip(covariances, counts, strict=True))
    real = np.clip(1 - chance / np.maximum(gap.var(axis=0), 1e-30), 0, 1)
    gap = gap.mean(axis=0) + real * (gap - gap.mean(axis=0))
    out = seen.mean(axis=0) - inside.mean(axis=0) * gap
    likelihoods = [
        multivariate_normal(cov=covariance, allow_singular=True).logpdf(statistics[run] - mean)
        for covariance, mean in zip(covariances, (out + gap, out), strict=True)
    ]
    return np.asarray(likelihoods[0] - likelihoods[1])


def _covariance(apart: NDArray) -> NDArray:
    """Of deviations, shape (n, k), from means that were taken of few of them each."""
    return np.atleast_2d(np.cov(apart, rowvar=False)) + 1e-12 * np.eye(apart.shape[1])


def true_positives(scores: NDArray, members: NDArray, false_positives: float = 0.01) -> float:
    """The share of members told from the rest, with so large a share of the rest taken for members.

    Parameters
    ----------
    scores, members : ndarray, the same shape
        The latter bool.
    false_positives : float
    """
    rest = np.sort(scores[~members])[::-1]
    bound = rest[int(false_positives * len(rest))]
    return float((scores[members] > bound).mean())


def area(scores: NDArray, members: NDArray) -> float:
    """The area under the ROC curve: how often a member scores above another record."""
    n_in, n_out = members.sum(), (~members).sum()
    ranks = rankdata(scores.ravel())[members.ravel()].sum()
    return float((ranks - n_in * (n_in + 1) / 2) / (n_in * n_out))


def deviation(scores: NDArray, members: NDArray, resamples: int = 50) -> float:
    """The standard deviation of :func:`true_positives` if other runs had been drawn.

    By the bootstrap over runs, as the records of one run share its noise.
    """
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(scores), (resamples, len(scores)))
    return float(np.std([true_positives(scores[runs], members[runs]) for runs in drawn]))
