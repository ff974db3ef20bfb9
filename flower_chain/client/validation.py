"""The validation error of papers/1 section II.E, measured on the device while it trains."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from flwr.app import Message

from flower_chain.messages import Samples, read_samples

NDArray = np.ndarray[Any, np.dtype[Any]]
Predict = Callable[[NDArray], NDArray]


class Log:
    """What was measured during one call of the user's code."""

    def __init__(self) -> None:
        self.probabilities: list[NDArray] = []
        self.samples_read = False


_log: ContextVar[Log | None] = ContextVar("flower_chain_validation_log", default=None)


@contextmanager
def logging() -> Iterator[Log]:
    """Collect what is measured inside."""
    log = Log()
    token = _log.set(log)
    try:
        yield log
    finally:
        _log.reset(token)


def validation_samples(message: Message) -> Samples | None:
    """The owner's validation samples in `message`, or None if it has none.

    For an ``evaluate()`` that does without :class:`Validation`: evaluate on these when they are
    there, and on the device's own data otherwise.
    """
    samples = read_samples(message.content)
    if (log := _log.get()) is not None and samples is not None:
        log.samples_read = True
    return samples


class Validation:
    """Measures the model on the owner's validation samples; does nothing when there are none.

    Parameters
    ----------
    message : Message
        The message that ``train()`` was called with.
    predict : callable
        From samples, shape ``(n_samples, ...)``, to the present model's class probabilities,
        shape ``(n_samples, n_classes)``. Called once now, for the model before the training.

    Examples
    --------
    ::

        validation = flower_chain.Validation(message, lambda x: predict(model, x))
        for _ in range(epochs):
            train_one_epoch(model, data)
            validation.measure()
    """

    def __init__(self, message: Message, predict: Predict) -> None:
        self._samples = validation_samples(message)
        self._predict = predict
        self.measure()

    def measure(self) -> None:
        """Record the present model's validation error; to be called after every epoch."""
        log = _log.get()
        if self._samples is not None and log is not None:
            log.probabilities.append(np.asarray(self._predict(self._samples.x)))
