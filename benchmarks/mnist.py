"""MNIST, the models that the benchmarks train on it, and how."""

import gzip
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from torch import nn
from torch.nn import functional

from flower_chain.updates import Arrays

NDArray = np.ndarray[Any, np.dtype[Any]]
Samples = tuple[NDArray, NDArray]

CLASSES = 10
BATCH = 32
DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared/data/mnist"


class Model(StrEnum):
    """The models."""

    MLP = "mlp"
    CNN = "cnn"


class Optimizer(StrEnum):
    """The optimizers, with the step sizes that their tutorials use."""

    ADAM = "adam"
    SGD = "sgd"


DEFAULT = (Model.MLP, Optimizer.ADAM)
STEPS = {Optimizer.ADAM: 1e-3, Optimizer.SGD: 0.1}


def check_data(folder: Path) -> None:
    """End with one line on what is missing."""
    if not (folder / "train-images-idx3-ubyte.gz").is_file():
        print(
            f"{folder} does not hold MNIST's four *-ubyte.gz files: name a folder that does with "
            "--data or MNIST_DIR",
            file=sys.stderr,
        )
        raise typer.Exit(1)


def read_mnist(folder: Path, part: str) -> Samples:
    """Images in [0, 1], shape (n, 784), and labels; `part` is ``train`` or ``t10k``."""
    images = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    x = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 784).astype(np.float32) / 255
    return x, np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)


class _Images(nn.Module):
    """Pixels in [-1, 1], as in Flower's own tutorials."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.view(-1, 1, 28, 28) - 0.5) / 0.5


def build(model: Model, seed: int, channels: int = 8) -> nn.Sequential:
    """A model with weights drawn from `seed`; a CNN's first layer has so many channels."""
    torch.manual_seed(seed)
    if model is Model.MLP:
        return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, CLASSES))
    return nn.Sequential(
        _Images(),
        nn.Conv2d(1, channels, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * channels, 64),
        nn.ReLU(),
        nn.Linear(64, CLASSES),
    )


def get_arrays(net: nn.Module) -> Arrays:
    """A copy of the model's weights."""
    return {key: value.numpy().copy() for key, value in net.state_dict().items()}


def set_arrays(net: nn.Module, arrays: Arrays) -> None:
    """The inverse of :func:`get_arrays`."""
    net.load_state_dict({key: torch.from_numpy(value) for key, value in arrays.items()})


@torch.no_grad()
def predict(net: nn.Module, x: NDArray) -> NDArray:
    """Class probabilities, shape (n, 10)."""
    table: NDArray = net(torch.from_numpy(x)).softmax(dim=1).numpy()
    return table


def train(
    net: nn.Module,
    samples: Samples,
    optimizer: Optimizer,
    rng: np.random.Generator,
    epochs: int,
    after_epoch: Callable[[], None] = lambda: None,
    rate: float | None = None,
) -> None:
    """So many epochs of minibatches, with the usual step size unless `rate` is given."""
    kind = torch.optim.Adam if optimizer is Optimizer.ADAM else torch.optim.SGD
    step = kind(net.parameters(), lr=rate or STEPS[optimizer], foreach=True)
    x, y = map(torch.from_numpy, samples)
    for _ in range(epochs):
        for batch in torch.split(torch.from_numpy(rng.permutation(len(y))), BATCH):
            step.zero_grad()
            loss: Any = functional.cross_entropy(net(x[batch]), y[batch])
            loss.backward()
            step.step()
        after_epoch()
