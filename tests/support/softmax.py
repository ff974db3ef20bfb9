"""A federation as small as they come: softmax regression on scikit-learn's digits, in numpy."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from eth_account import Account
from eth_account.signers.local import LocalAccount
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp.typing import Mod
from lean.app import (  # noqa: F401 (tests find all of it here)
    CLASSES,
    arrays_in,
    fresh,
    predict,
    record,
    train_one_epoch,
)
from local_grid import LocalGrid, Node
from sklearn.datasets import load_digits
from sklearn.metrics import precision_recall_fscore_support

import flower_chain
from flower_chain.updates import Arrays

NDArray = np.ndarray[Any, np.dtype[Any]]
OWNER = 300
PARTS = 8


@cache
def digits() -> tuple[NDArray, NDArray]:
    """Shuffled; the first :data:`OWNER` are the owner's."""
    bunch = load_digits()
    order = np.random.default_rng(1).permutation(len(bunch.target))
    return (bunch.data[order] / 16).astype(np.float32), bunch.target[order].astype(np.int64)


def part_of(number: int) -> tuple[NDArray, NDArray]:
    """What one device holds."""
    x, y = digits()
    return x[OWNER:][number::PARTS], y[OWNER:][number::PARTS]


@cache
def examiner() -> flower_chain.Examiner:
    """The owner's."""
    x, y = digits()
    return flower_chain.Examiner(x[:OWNER], y[:OWNER], predict)


def all_classes(_: Context) -> Iterable[int]:
    """Every device here holds all."""
    return range(CLASSES)


@dataclass
class Device:
    """A user's ClientApp, with what it did.

    Parameters
    ----------
    number : int
        Which part of the data it holds.
    epochs : int
    step : float
        Of its gradient descent; negative for a device that wants to do harm.
    measures : bool
        Whether ``train()`` uses :class:`flower_chain.Validation`.
    claims : float
        The num-examples that it reports for each that it has.
    judges : callable, optional
        What it does instead of :meth:`evaluate`.
    """

    number: int
    epochs: int = 2
    step: float = 0.5
    measures: bool = True
    claims: float = 1
    mods: list[Mod] = field(default_factory=list)
    trained: list[tuple[Arrays, Arrays]] = field(default_factory=list)
    configs: list[dict[str, Any]] = field(default_factory=list)
    before_training: Callable[[], None] = lambda: None
    judges: Callable[[Message, Context], Message] | None = None

    @property
    def size(self) -> int:
        """Examples that it holds."""
        return len(part_of(self.number)[1])

    @property
    def account(self) -> LocalAccount:
        """The same in every test."""
        account: LocalAccount = Account.from_key(
            hashlib.sha256(f"device {self.number}".encode()).digest()
        )
        return account

    def app(self) -> flower_chain.ClientApp:
        """A new app."""
        judge = predict if self.mods else None
        app = flower_chain.ClientApp(mods=self.mods, classes=all_classes, predict=judge)
        app.train()(self._train)
        app.evaluate()(self._evaluate)
        return app

    def join(self, grid: LocalGrid, folder: Path, **node_config: str) -> Node:
        """Connect to a grid, the account's key in a file in `folder`."""
        key = folder / f"{self.number}.key"
        key.parent.mkdir(exist_ok=True, parents=True)
        key.touch(0o600)
        key.write_text(bytes(self.account.key).hex())
        return grid.add(self.app(), key_file=str(key), **node_config)

    def _train(self, message: Message, context: Context) -> Message:
        self.before_training()
        self.configs.append(dict(message.content["config"]))
        received, arrays = (arrays_in(message.content["arrays"]) for _ in range(2))
        x, y = part_of(self.number)
        validation = None
        if self.measures:
            validation = flower_chain.Validation(lambda some: predict(arrays, some))
        for _ in range(self.epochs):
            train_one_epoch(arrays, x, y, self.step)
            if validation is not None:
                validation.measure()
        if "steps" in arrays:
            arrays["steps"] += np.int64(self.epochs)
        self.trained.append((received, arrays))
        metrics = MetricRecord({"num-examples": int(self.size * self.claims), "loss": 0.5})
        content = RecordDict({"arrays": record(arrays), "metrics": metrics})
        return Message(content, reply_to=message)

    def _evaluate(self, message: Message, context: Context) -> Message:
        return (self.judges or self.evaluate)(message, context)

    def evaluate(self, message: Message, context: Context) -> Message:
        """Accuracy, precision and recall on the device's data, or on the owner's samples."""
        samples = flower_chain.validation_samples()
        x, y = part_of(self.number) if samples is None else (samples.x, samples.y)
        found = predict(arrays_in(message.content["arrays"]), x).argmax(axis=1)
        precision, recall, *_ = precision_recall_fscore_support(
            y, found, labels=range(CLASSES), average="macro", zero_division=0
        )
        told = {"accuracy": (found == y).mean(), "precision": precision, "recall": recall}
        metrics = MetricRecord({"num-examples": len(y), **{k: float(v) for k, v in told.items()}})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)
