"""MNIST on any number of devices: what overhead.py times, plain and wrapped."""

import gzip
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Strategy
from torch import nn
from torch.nn import functional

import flower_chain

NDArray = np.ndarray[Any, np.dtype[Any]]
BATCH = 32
VALIDATION_POINTS = 1000

client = flower_chain.ClientApp(classes=lambda context: range(10))
server = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """One epoch over the device's data."""
    x, y = _points(context)
    state = message.content["arrays"].to_torch_state_dict()
    net = load(str(context.run_config["model"]), state)
    validation = flower_chain.Validation(lambda samples: probabilities(net, samples))
    train_one_epoch(net, x, y)
    validation.measure()
    metrics = MetricRecord({"num-examples": len(y)})
    content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation, and note when each round ended."""
    times: list[float] = []

    def note(_round: int, _arrays: ArrayRecord) -> None:
        times.append(time.perf_counter())

    start(grid, context, note)
    Path(str(context.run_config["times"])).write_text("\n".join(map(str, times)))


def start(grid: Grid, context: Context, after_round: Any) -> Strategy:
    """Train for all rounds; returns the strategy that did."""
    config = context.run_config
    devices = int(config["devices"])
    fedavg = FedAvg(min_train_nodes=devices, min_available_nodes=devices, fraction_evaluate=0.0)
    x, y = read_mnist(str(config["data"]), "t10k")
    examiner = flower_chain.Examiner(x[:VALIDATION_POINTS], y[:VALIDATION_POINTS], predict)
    strategy = flower_chain.wrap(fedavg, context, examiner)
    torch.manual_seed(0)
    initial = ArrayRecord(build(str(config["model"])).state_dict())
    strategy.start(grid, initial, num_rounds=int(config["rounds"]), evaluate_fn=after_round)
    return strategy


def build(model: str) -> nn.Sequential:
    """One of the models by its name."""
    match model:
        case "mlp-50k":
            return _mlp(63)
        case "mlp-1.13m":
            return _mlp(1420)
        case "cnn-50k":
            return _cnn(16, 70)
        case "cnn-1.13m":
            return _cnn(32, 1040)
        case other:
            raise ValueError(
                f"model = {other!r}: it must be mlp-50k, mlp-1.13m, cnn-50k, cnn-1.13m"
            )


def load(model: str, state: dict[str, torch.Tensor]) -> nn.Sequential:
    """A model with these weights; none are drawn first."""
    with torch.device("meta"):
        net = build(model)
    net.load_state_dict(state, assign=True)
    return net


def predict(arrays: dict[str, NDArray], x: NDArray) -> NDArray:
    """Class probabilities, shape (n, 10), of the model with these arrays."""
    writable = {key: np.require(value, requirements="W") for key, value in arrays.items()}
    state = {key: torch.from_numpy(value) for key, value in writable.items()}
    return probabilities(load(_name_of(arrays), state), x)


def probabilities(net: nn.Module, x: NDArray) -> NDArray:
    """Class probabilities, shape (n, 10)."""
    with torch.no_grad():
        return net(torch.from_numpy(x)).softmax(dim=1).numpy()


def train_one_epoch(net: nn.Module, x: NDArray, y: NDArray) -> None:
    """Plain SGD in minibatches."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    for batch in torch.randperm(len(y)).split(BATCH):
        optimizer.zero_grad()
        functional.cross_entropy(net(inputs[batch]), labels[batch]).backward()
        optimizer.step()


@cache
def read_mnist(folder: str, part: str) -> tuple[NDArray, NDArray]:
    """Images in [0, 1], shape (n, 1, 28, 28), and labels; `part` is ``train`` or ``t10k``."""
    images = gzip.decompress((Path(folder) / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((Path(folder) / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    x = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 1, 28, 28)
    return x.astype(np.float32) / 255, np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)


def _points(context: Context) -> tuple[NDArray, NDArray]:
    """The device's own part of the training data."""
    x, y = read_mnist(str(context.run_config["data"]), "train")
    number, size = int(context.node_config["partition-id"]), int(context.run_config["points"])
    return x[number * size :][:size], y[number * size :][:size]


def _mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))


def _cnn(channels: int, width: int) -> nn.Sequential:
    """Two convolutions and two layers, as in McMahan et al. 2017."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * channels, width),
        nn.ReLU(),
        nn.Linear(width, 10),
    )


def _name_of(arrays: dict[str, NDArray]) -> str:
    kind, widest = ("cnn", "7.bias") if "7.bias" in arrays else ("mlp", "1.bias")
    return f"{kind}-50k" if len(arrays[widest]) < 100 else f"{kind}-1.13m"
