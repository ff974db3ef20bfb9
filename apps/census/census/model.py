"""Logistic regression, with noise on its weights if that is wanted."""

from random import Random
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import precision_recall_fscore_support

from census.data import Examples
from flower_chain.privacy import Mechanism, perturb, rows_of_norm_one

NDArray = np.ndarray[Any, np.dtype[Any]]
TOLERANCE = 1e-8  # of the gradient


def train(
    examples: Examples,
    alpha: float,
    epsilon: float,
    mechanism: Mechanism,
    source: Random | None = None,
) -> NDArray:
    """Weights, shape (n_features,), as `mechanism` wants them trained, with its noise."""
    n = len(examples)
    if mechanism is Mechanism.AS_PUBLISHED:  # the summed loss, over rows of any norm
        weights = _minimum(examples.x, examples.y, 1 / alpha)
    else:  # the mean loss, over rows of norm at most 1
        weights = _minimum(rows_of_norm_one(examples.x), examples.y, 1 / (n * alpha))
    return perturb(weights, n, alpha, epsilon, mechanism, source)


def predict(arrays: dict[str, NDArray], x: NDArray) -> NDArray:
    """Class probabilities, shape (n, 2), of the model with these arrays.

    The rows are taken as they are, whatever their norm: that changes how sure the model is, but not
    which class it names.
    """
    positive = 1 / (1 + np.exp(-np.clip(x @ arrays["weights"], -500, 500)))
    return np.column_stack([1 - positive, positive])


def scores(arrays: dict[str, NDArray], examples: Examples) -> dict[str, float]:
    """How well the model with these arrays tells the classes apart."""
    found = predict(arrays, examples.x).argmax(1)
    accuracy = (found == examples.y).mean()
    precision, recall, f1, _ = precision_recall_fscore_support(
        examples.y, found, average="binary", zero_division=0
    )
    told = {"accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1}
    return {name: float(value) for name, value in told.items()}


def _minimum(x: NDArray, y: NDArray, c: float) -> NDArray:
    """All weights are penalised, that of the intercept too: it is a column of `x`."""
    model = LogisticRegression(C=c, fit_intercept=False, tol=TOLERANCE, solver="newton-cholesky")
    return np.asarray(model.fit(x.astype(np.float64), y).coef_[0])
