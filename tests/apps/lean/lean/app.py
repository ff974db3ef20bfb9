"""Softmax regression on scikit-learn's digits: imports little, for tests that start it often."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

import flower_chain
from flower_chain.updates import Arrays

NDArray = np.ndarray[Any, np.dtype[Any]]
CLASSES = 10
OWNER = 300
RATE = 0.5

server = ServerApp()


@cache
def digits() -> tuple[NDArray, NDArray]:
    """Shuffled; the first :data:`OWNER` are the owner's."""
    spec = find_spec("sklearn")  # to import it takes seconds
    assert spec is not None
    assert spec.submodule_search_locations
    file = Path(spec.submodule_search_locations[0]) / "datasets/data/digits.csv.gz"
    rows = np.random.default_rng(1).permutation(np.loadtxt(file, np.float32, delimiter=","))
    return rows[:, :-1] / 16, rows[:, -1].astype(np.int64)


def part_of(context: Context) -> tuple[NDArray, NDArray]:
    """What one device holds."""
    number, devices = (int(context.node_config[k]) for k in ("partition-id", "num-partitions"))
    x, y = digits()
    return x[OWNER:][number::devices], y[OWNER:][number::devices]


def examiner() -> flower_chain.Examiner:
    """The owner's."""
    x, y = digits()
    return flower_chain.Examiner(x[:OWNER], y[:OWNER], predict)


def predict(arrays: Arrays, x: NDArray) -> NDArray:
    """Class probabilities."""
    with np.errstate(over="ignore", invalid="ignore"):
        logits = x @ arrays["weight"] + arrays["bias"]
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)


def train_one_epoch(arrays: dict[str, NDArray], x: NDArray, y: NDArray, rate: float) -> None:
    """Gradient descent in batches of 20, in place."""
    for start in range(0, len(y), 20):
        batch, labels = x[start : start + 20], y[start : start + 20]
        error = (predict(arrays, batch) - np.eye(CLASSES, dtype=np.float32)[labels]) / len(labels)
        arrays["weight"] -= np.float32(rate) * (batch.T @ error)
        arrays["bias"] -= np.float32(rate) * error.sum(axis=0)


def record(arrays: Arrays) -> ArrayRecord:
    """Arrays as Flower has them."""
    return ArrayRecord({key: Array(value) for key, value in arrays.items()})


def arrays_in(found: ArrayRecord) -> dict[str, NDArray]:
    """The inverse of :func:`record`."""
    return {key: array.numpy().copy() for key, array in found.items()}


def fresh() -> dict[str, NDArray]:
    """T_0."""
    return {"weight": np.zeros((64, CLASSES), np.float32), "bias": np.zeros(CLASSES, np.float32)}


client = flower_chain.ClientApp(classes=lambda _: range(CLASSES), predict=predict)


@client.train()
def train(message: Message, context: Context) -> Message:
    """One epoch."""
    arrays, (x, y) = arrays_in(message.content["arrays"]), part_of(context)
    validation = flower_chain.Validation(lambda some: predict(arrays, some))
    train_one_epoch(arrays, x, y, RATE)
    validation.measure()
    metrics = MetricRecord({"num-examples": len(y)})
    return Message(RecordDict({"arrays": record(arrays), "metrics": metrics}), reply_to=message)


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Accuracy, precision and recall on the device's data, or on the owner's samples."""
    samples = flower_chain.validation_samples()
    x, y = part_of(context) if samples is None else (samples.x, samples.y)
    found = predict(arrays_in(message.content["arrays"]), x).argmax(axis=1)
    right = [((found == k) & (y == k)).sum() for k in range(CLASSES)]
    said, are = (np.bincount(each, minlength=CLASSES).clip(1) for each in (found, y))
    metrics = MetricRecord(
        {
            "num-examples": len(y),
            "accuracy": float((found == y).mean()),
            "precision": float((right / said).mean()),
            "recall": float((right / are).mean()),
        }
    )
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation."""
    config = context.run_config
    devices = int(config["num-devices"])
    fedavg = FedAvg(min_train_nodes=devices, min_available_nodes=devices, fraction_evaluate=0.0)
    strategy = flower_chain.wrap(fedavg, context, examiner())
    strategy.start(grid, record(fresh()), num_rounds=int(config["num-server-rounds"]))
