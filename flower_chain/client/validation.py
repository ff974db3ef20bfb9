"""The validation error of papers/1 section II.E, measured on the device while it trains."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from flower_chain.messages import Samples

NDArray = np.ndarray[Any, np.dtype[Any]]
Predict = Callable[[NDArray], NDArray]


class Log:
    """What was measured during one call of the user's code.

    Attributes
    ----------
    samples : Samples or None
        The owner's validation samples, if the task has any.
    probabilities : list of ndarray
        What :class:`Validation` measured.
    samples_read : bool
        Whether :func:`validation_samples` was asked for them.
    returned : list of dict of str to bytes
        The arrays that the user's function returned, before any mod saw them.
    """

    def __init__(self, samples: Samples | None) -> None:
        self.samples = samples
        self.probabilities: list[NDArray] = []
        self.samples_read = False
        self.returned: list[dict[str, bytes]] = []


_log: ContextVar[Log | None] = ContextVar("flower_chain_validation_log", default=None)


@contextmanager
def logging(samples: Samples | None) -> Iterator[Log]:
    """Offer `samples`, and collect what is measured on them inside."""
    log = Log(samples)
    token = _log.set(log)
    try:
        yield log
    finally:
        _log.reset(token)


def current() -> Log | None:
    """What is being collected now, if anything is."""
    return _log.get()


def validation_samples() -> Samples | None:
    """The owner's validation samples for the present task, or None if it has none.

    For an ``evaluate()`` that does without :class:`Validation`: evaluate on these when they are
    there, and on the device's own data otherwise.
    """
    log = _log.get()
    if log is None or log.samples is None:
        return None
    log.samples_read = True
    return log.samples


class Validation:
    """Measures the model on the owner's validation samples; does nothing when there are none.

    Parameters
    ----------
    predict : callable
        From samples, shape ``(n_samples, ...)``, to the present model's class probabilities,
        shape ``(n_samples, n_classes)``. Called once now, for the model before the training.

    Examples
    --------
    In ``train()``::

        validation = flower_chain.Validation(lambda x: predict(model, x))
        for _ in range(epochs):
            train_one_epoch(model, data)
            validation.measure()
    """

    def __init__(self, predict: Predict) -> None:
        self._predict = predict
        self.measure()

    def measure(self) -> None:
        """Record the present model's validation error; to be called after every epoch."""
        samples, log = validation_samples(), _log.get()
        if samples is not None and log is not None:
            log.probabilities.append(np.asarray(self._predict(samples.x)))
