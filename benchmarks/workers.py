"""The workers of papers/4's experiments: equal parts of MNIST, one test set for all."""

from collections.abc import Callable
from dataclasses import astuple, dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from mnist import (
    CLASSES,
    Model,
    NDArray,
    Optimizer,
    Samples,
    build,
    get_arrays,
    predict,
    read_mnist,
    set_arrays,
    train,
)

import flower_chain
from flower_chain.updates import Arrays, digest_of

EPOCHS = 3
"""Of each worker in a round, as in papers/4 section 4.1."""

RATE = 2e-3
SEED = 0
CHANNELS = 16
CHUNKS = 20

Draw = Callable[[int, Arrays], None]
"""Told a worker's number and its model after each epoch."""


class Labels(StrEnum):
    """What a worker trains its images with."""

    TRUE = "true"
    RANDOM = "random"
    FLIPPED = "flipped"


@dataclass(frozen=True)
class Figures:
    """Of a model on the test data; precision and recall are means over the classes."""

    accuracy: float
    precision: float
    recall: float

    @classmethod
    def of(cls, found: NDArray, labels: NDArray) -> "Figures":
        """From the classes that a model found, and the right ones, shape (n,) each."""
        table = np.zeros((CLASSES, CLASSES))
        np.add.at(table, (labels, found), 1)
        right = table.diagonal()
        precision, recall = (right / np.maximum(table.sum(axis=axis), 1) for axis in (0, 1))
        return cls(float(right.sum() / table.sum()), float(precision.mean()), float(recall.mean()))


class Exam:
    """The test data, on which all workers score; a process measures each model once.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self._x, self._y = read_mnist(folder, "t10k")
        self._net = fresh()
        self._found: dict[bytes, Figures] = {}

    def measure(self, arrays: Arrays) -> Figures:
        """Of the model with these arrays."""
        name = digest_of(arrays)
        if name not in self._found:
            set_arrays(self._net, {key: value.copy() for key, value in arrays.items()})
            parts = [predict(self._net, some) for some in np.array_split(self._x, CHUNKS)]
            self._found[name] = Figures.of(np.concatenate(parts).argmax(axis=1), self._y)
        return self._found[name]


def fresh() -> torch.nn.Sequential:
    """The first model."""
    return build(Model.CNN, SEED, CHANNELS)


@cache
def exam(folder: str) -> Exam:
    """The one in a folder."""
    return Exam(Path(folder))


def part_of(context: Context) -> Samples:
    """What a worker trains on."""
    config, number = context.run_config, _number(context)
    labels = Labels(str(config["labels"]).split()[number])
    return _part(str(config["data"]), number, int(config["parts"]), labels)


@cache
def _part(folder: str, number: int, parts: int, labels: Labels) -> Samples:
    x, y = read_mnist(Path(folder), "train")
    order = np.random.default_rng(SEED).permutation(len(y))
    own = np.array_split(order, parts)[number]
    match labels:
        case Labels.TRUE:
            return x[own], y[own]
        case Labels.FLIPPED:
            return x[own], CLASSES - 1 - y[own]
        case Labels.RANDOM:
            drawn = np.random.default_rng([SEED, number]).integers(0, CLASSES, len(own))
            return x[own], drawn


def fit(net: torch.nn.Sequential, samples: Samples, seed: list[int], draw: Draw) -> None:
    """The epochs of a round, on one core; `seed` ends with the worker's number."""
    torch.set_num_threads(1)
    number, rng = seed[-1], np.random.default_rng(seed)
    train(net, samples, Optimizer.ADAM, rng, EPOCHS, lambda: draw(number, get_arrays(net)), RATE)


def client_app(draw: Draw = lambda _number, _arrays: None) -> flower_chain.ClientApp:
    """All workers: which one, and what it does, is in its context."""
    app = flower_chain.ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        net, samples = fresh(), part_of(context)
        set_arrays(net, _arrays(message))
        turn = cast(int, message.content.config_records["config"]["server-round"])
        fit(net, samples, [SEED, turn, _number(context)], draw)
        metrics = MetricRecord({"num-examples": len(samples[1])})
        content = RecordDict({"arrays": record_of(get_arrays(net)), "metrics": metrics})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        found = exam(str(context.run_config["data"])).measure(_arrays(message))
        metrics = MetricRecord(dict(zip(Figures.__match_args__, astuple(found), strict=True)))
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def start(
    grid: Grid, context: Context, after_round: Callable[[int, ArrayRecord], None] | None = None
) -> None:
    """All rounds, by the scheme that the run-config names."""
    config = context.run_config
    workers = len(str(config["labels"]).split())
    fedavg = FedAvg(min_train_nodes=workers, min_available_nodes=workers, fraction_evaluate=0.0)
    initial = record_of(get_arrays(fresh()))
    strategy = flower_chain.wrap(fedavg, context)
    strategy.start(grid, initial, int(config["rounds"]), evaluate_fn=after_round)


def record_of(arrays: Arrays) -> ArrayRecord:
    """As Flower has them."""
    return ArrayRecord({key: Array(value) for key, value in arrays.items()})


def _arrays(message: Message) -> Arrays:
    record = message.content.array_records["arrays"]
    return {key: array.numpy().copy() for key, array in record.items()}


def _number(context: Context) -> int:
    return int(context.node_config["partition-id"])
