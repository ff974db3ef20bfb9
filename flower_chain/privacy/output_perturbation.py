"""Output perturbation: the weights of a logistic regression, with noise that hides each row.

Let a device minimise, over d rows x with labels y of -1 or 1, the mean loss with an L2 penalty::

    J(w) = sum(log(1 + exp(-y <w, x>))) / d + alpha / 2 |w|_2^2

If every row has an L2 norm of at most 1, exchanging one of them moves the minimum by at most
2 / (d alpha) in the L2 norm (K. Chaudhuri, C. Monteleoni: "Privacy-preserving logistic regression",
NIPS 2008, lemma 1 and corollary 2). Noise whose density is proportional to
exp(-epsilon |b|_2 / sensitivity) then makes the weights epsilon-differentially private (algorithm
1 there). That is :attr:`Mechanism.CHAUDHURI_MONTELEONI`.

papers/3 (BlockFLow, sections 2.1 and 5) says that it does this, but it is weaker in three ways,
which :attr:`Mechanism.AS_PUBLISHED` reproduces: the loss that its results need is the sum, not the
mean, so that the minimum moves by up to 2 / alpha; the rows are scaled by column, so that their
norms are larger than 1; and the noise is drawn for each weight by itself, for a sensitivity that
bounds all of them together. :func:`published_epsilon` tells what holds all the same.

What no mechanism here gives: every release of weights trained on the same rows costs epsilon again,
so that n rounds cost n epsilon; the bound is that of the exact minimum, so train until the gradient
vanishes beside it; the weights of an intercept that is not penalised are not covered, so make it a
column; and the noise is made of floating-point numbers, whose lowest bits can tell more than the
real numbers of the proof do.
"""

import math
from enum import StrEnum
from random import Random, SystemRandom
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flower_chain.errors import ConfigError


class Mechanism(StrEnum):
    """Which noise is drawn."""

    CHAUDHURI_MONTELEONI = "chaudhuri-monteleoni"
    AS_PUBLISHED = "as-published"


def sensitivity(n_rows: int, alpha: float) -> float:
    """How far, in the L2 norm, one row of norm at most 1 can move the minimum of the mean loss.

    Source: Chaudhuri and Monteleoni, corollary 2; papers/3 section 2.1.

    Parameters
    ----------
    n_rows : int
        d, the rows that were trained on.
    alpha : float
        The coefficient of the L2 penalty.

    Raises
    ------
    ConfigError
        If one of them is not positive.
    """
    _require_positive("n_rows", n_rows)
    _require_positive("alpha", alpha)
    return 2 / (n_rows * alpha)


def rows_of_norm_one(x: NDArray[Any]) -> NDArray[Any]:
    """The rows, those with an L2 norm above 1 divided by it.

    Parameters
    ----------
    x : ndarray, shape (n_rows, n_features)
        With the constant column of an intercept, if there is one.
    """
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.maximum(norms, 1))


def perturb(
    weights: NDArray[Any],
    n_rows: int,
    alpha: float,
    epsilon: float,
    mechanism: Mechanism = Mechanism.CHAUDHURI_MONTELEONI,
    source: Random | None = None,
) -> NDArray[np.float64]:
    """The weights with noise.

    Parameters
    ----------
    weights : ndarray, any shape
        Those that minimise J, all of them penalised.
    n_rows, alpha
        As in :func:`sensitivity`.
    epsilon : float
        The loss of privacy of this release; infinity for no noise.
    mechanism : Mechanism
    source : random.Random, optional
        Of the noise. Without it, that of the operating system, which nobody can predict; what a
        seeded one draws is not private.

    Returns
    -------
    ndarray of float64, of the same shape

    Raises
    ------
    ConfigError
        If `n_rows`, `alpha` or `epsilon` is not positive.
    """
    _require_positive("epsilon", epsilon)
    scale = sensitivity(n_rows, alpha) / epsilon
    source = source or SystemRandom()
    if scale == 0:
        return np.array(weights, np.float64)
    drawn = _laplace if mechanism is Mechanism.AS_PUBLISHED else _gamma_norm
    noise = drawn(np.size(weights), scale, source)
    return np.asarray(weights + noise.reshape(np.shape(weights)), np.float64)


def published_epsilon(
    epsilon: float, n_weights: int, n_rows: int, alpha: float, largest_norm: float
) -> float:
    """The loss of privacy that holds where :attr:`Mechanism.AS_PUBLISHED` was given `epsilon`.

    The summed loss is d times the mean loss with the penalty alpha / d, so that a row of norm at
    most R moves its minimum, if all weights are penalised, by at most 2 R / alpha in the L2 norm,
    and by sqrt(n_weights) times as much in the L1 norm, which is what Laplace noise hides. It was
    drawn for 2 / (d alpha).

    Parameters
    ----------
    epsilon : float
        What was asked for.
    n_weights : int
    n_rows : int
        d.
    alpha : float
        The coefficient of the penalty, beside the summed loss.
    largest_norm : float
        R, the largest L2 norm that a row can have.
    """
    moved = math.sqrt(n_weights) * 2 * largest_norm / alpha
    return moved * epsilon / sensitivity(n_rows, alpha)


def _gamma_norm(size: int, scale: float, source: Random) -> NDArray[np.float64]:
    """Density proportional to exp(-|b|_2 / scale): a Gamma-distributed norm, any direction."""
    direction = np.array([source.gauss() for _ in range(size)])
    return source.gammavariate(size, scale) * direction / np.linalg.norm(direction)


def _laplace(size: int, scale: float, source: Random) -> NDArray[np.float64]:
    """Each by itself: the difference of two exponentials."""
    return scale * np.array([source.expovariate(1) - source.expovariate(1) for _ in range(size)])


def _require_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ConfigError(f"{name} = {value}: it must be positive")
