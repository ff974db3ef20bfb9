"""Logistic regression, with noise on its weights if that is wanted."""

from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from census.data import Examples
from flower_chain.privacy import Mechanism, perturb, rows_of_norm_one

NDArray = np.ndarray[Any, np.dtype[Any]]
TOLERANCE = 1e-8  # of the gradient


def train(examples: Examples, alpha: float, epsilon: float, mechanism: Mechanism) -> NDArray:
    """Weights, shape (n_features,), as `mechanism` wants them trained, with its noise."""
    fit = _fit_as_published if mechanism is Mechanism.AS_PUBLISHED else _fit
    return perturb(fit(examples, alpha), len(examples), alpha, epsilon, mechanism)


def predict(arrays: dict[str, NDArray], x: NDArray) -> NDArray:
    """Class probabilities, shape (n, 2), of the model with these arrays."""
    positive = 1 / (1 + np.exp(-np.clip(x @ arrays["weights"], -500, 500)))
    return np.column_stack([1 - positive, positive])


def scores(arrays: dict[str, NDArray], examples: Examples) -> dict[str, float]:
    """How well the model with these arrays tells the classes apart."""
    found = predict(arrays, examples.x).argmax(1)
    accuracy = float((found == examples.y).mean())
    return {"accuracy": accuracy, "f1": float(f1_score(examples.y, found, zero_division=0))}


def _fit(examples: Examples, alpha: float) -> NDArray:
    """The minimum of the mean loss, over rows of norm at most 1, that of the intercept included."""
    c = 1 / (len(examples) * alpha)
    return _minimum(rows_of_norm_one(examples.x), examples.y, c, fit_intercept=False).coef_[0]


def _fit_as_published(examples: Examples, alpha: float) -> NDArray:
    """The minimum of the summed loss, over rows as they are; the intercept is not penalised."""
    found = _minimum(examples.x[:, :-1], examples.y, 1 / alpha, fit_intercept=True)
    return np.append(found.coef_[0], found.intercept_)


def _minimum(x: NDArray, y: NDArray, c: float, *, fit_intercept: bool) -> LogisticRegression:
    model = LogisticRegression(
        C=c, fit_intercept=fit_intercept, tol=TOLERANCE, solver="newton-cholesky"
    )
    return model.fit(x.astype(np.float64), y)
