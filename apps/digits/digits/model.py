"""The model, and how it is trained and used."""

from typing import Any

import numpy as np
import torch
from sklearn.metrics import precision_recall_fscore_support
from torch import nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from digits.data import Examples

NDArray = np.ndarray[Any, np.dtype[Any]]
CLASSES = 10
WIDTH = 128


class Net(nn.Module):
    """Two layers, for images of any size."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(pixels, WIDTH)
        self.output = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits, shape (n, 10)."""
        return self.output(functional.relu(self.hidden(images.flatten(1))))


def batches(examples: Examples, size: int) -> DataLoader[Any]:
    """The examples in batches, in another order each time."""
    data = TensorDataset(torch.from_numpy(examples.x), torch.from_numpy(examples.y))
    return DataLoader(data, batch_size=size, shuffle=True)


def train_one_epoch(net: nn.Module, optimizer: Optimizer, loader: DataLoader[Any]) -> float:
    """Returns the mean loss."""
    losses = []
    for x, y in loader:
        optimizer.zero_grad()
        loss = functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses))


def probabilities(net: Net, x: NDArray) -> NDArray:
    """Class probabilities, shape (n, 10)."""
    with torch.no_grad():
        return net(torch.from_numpy(x)).softmax(dim=1).numpy()


def scores(net: Net, examples: Examples) -> dict[str, float]:
    """Accuracy, and precision and recall, each the mean of all classes."""
    found = probabilities(net, examples.x).argmax(axis=1)
    precision, recall, *_ = precision_recall_fscore_support(
        examples.y, found, labels=range(CLASSES), average="macro", zero_division=0
    )
    accuracy = (found == examples.y).mean()
    return {"accuracy": float(accuracy), "precision": float(precision), "recall": float(recall)}


def predict(arrays: dict[str, NDArray], x: NDArray) -> NDArray:
    """Class probabilities of the model with these arrays."""
    net = Net(x[0].size)
    net.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in arrays.items()})
    return probabilities(net, x)
