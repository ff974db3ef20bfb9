"""Noise on a logistic regression: how much, of which shape, and whether it is enough.

A test of a distribution fails for a right one with a probability of 1e-6; the seeds are fixed.
"""

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import LogisticRegression

from flower_chain.errors import ConfigError
from flower_chain.privacy import Mechanism, perturb, rows_of_norm_one
from flower_chain.privacy.output_perturbation import published_epsilon, sensitivity

ERROR = 1e-6
SIZE, ROWS, ALPHA, EPSILON = 7, 50, 0.1, 2.0
SCALE = 2 / (ROWS * ALPHA * EPSILON)


def drawn(mechanism: Mechanism, n: int = 4000) -> np.ndarray:
    """So many draws of noise, shape (n, SIZE)."""
    source = Random(20261121)
    zero = np.zeros(SIZE)
    return np.array([perturb(zero, ROWS, ALPHA, EPSILON, mechanism, source) for _ in range(n)])


def fit(x: np.ndarray, y: np.ndarray, alpha: float) -> np.ndarray:
    """The minimum of the mean loss."""
    c = 1 / (len(y) * alpha)
    model = LogisticRegression(C=c, fit_intercept=False, tol=1e-10, max_iter=10_000)
    return model.fit(x, y).coef_[0]


def test_the_norm_of_the_noise_is_gamma_distributed():
    norms = np.linalg.norm(drawn(Mechanism.CHAUDHURI_MONTELEONI), axis=1)
    assert stats.kstest(norms, stats.gamma(SIZE, scale=SCALE).cdf).pvalue > ERROR


def test_its_direction_is_uniform():
    noise = drawn(Mechanism.CHAUDHURI_MONTELEONI)
    direction = noise / np.linalg.norm(noise, axis=1, keepdims=True)
    for column in direction.T:
        assert stats.kstest(column**2, stats.beta(0.5, (SIZE - 1) / 2).cdf).pvalue > ERROR
        assert stats.binomtest(int((column > 0).sum()), len(column)).pvalue > ERROR


def test_the_published_noise_is_laplace_of_each_weight():
    noise = drawn(Mechanism.AS_PUBLISHED)
    assert stats.kstest(noise.ravel(), stats.laplace(scale=SCALE).cdf).pvalue > ERROR


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.sampled_from([0.01, 0.1, 1.0]))
def test_no_row_moves_the_minimum_by_more_than_the_sensitivity(seed, alpha):
    rng = np.random.default_rng(seed)
    x, y = rows_of_norm_one(rng.normal(size=(20, 3))), rng.integers(0, 2, 20)
    y[:2] = 0, 1
    other_x, other_y = x.copy(), y.copy()
    other_x[-1], other_y[-1] = -x[-1], 1 - y[-1]
    moved = np.linalg.norm(fit(x, y, alpha) - fit(other_x, other_y, alpha))
    assert moved <= sensitivity(20, alpha) + 1e-6


def test_a_row_moves_the_published_minimum_by_more_than_was_allowed_for():
    rng = np.random.default_rng(0)
    x, y = rng.random((50, 20)), rng.integers(0, 2, 50)
    x[-1], y[-1] = 1, 1
    other = y.copy()
    other[-1] = 0
    alpha, of_mean = 1.0, 1.0 / 50  # summed loss: scikit-learn's C = 1 / alpha
    moved = np.abs(fit(x, y, of_mean) - fit(x, other, of_mean)).sum()
    assert moved > 5 * sensitivity(50, alpha)
    spent = moved / (sensitivity(50, alpha) / EPSILON)
    assert EPSILON < spent <= published_epsilon(EPSILON, 20, 50, alpha, math.sqrt(20))


def test_rows_are_shortened_but_never_lengthened():
    x = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    assert np.allclose(rows_of_norm_one(x), [[0.6, 0.8], [0.3, 0.4], [0, 0]])


def test_the_shape_is_kept_and_an_infinite_epsilon_adds_nothing():
    weights = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.array_equal(perturb(weights, 10, 1.0, math.inf), weights)
    assert perturb(weights, 10, 1.0, 1.0).shape == (2, 3)


def test_without_a_source_no_two_releases_have_the_same_noise():
    assert not np.array_equal(perturb(np.zeros(3), 10, 1, 1), perturb(np.zeros(3), 10, 1, 1))


@pytest.mark.parametrize("wrong", [{"n_rows": 0}, {"alpha": -1.0}, {"epsilon": math.nan}])
def test_what_is_not_positive_is_refused(wrong):
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"{name} = .*: it must be positive"):
        perturb(np.zeros(2), **{"n_rows": 10, "alpha": 1.0, "epsilon": 1.0, **wrong})
