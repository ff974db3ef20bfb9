"""The data: who holds what, and what is wrong with it on a faulty device."""

import gzip
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from flwr_datasets.partitioner import (
    DirichletPartitioner,
    IidPartitioner,
    Partitioner,
    PathologicalPartitioner,
)
from sklearn.datasets import load_digits

NDArray = np.ndarray[Any, np.dtype[Any]]
SEED = 20261120


@dataclass(frozen=True)
class Examples:
    """Images, shape (n, height, width), float32 in [0, 1], and their classes, shape (n,)."""

    x: NDArray
    y: NDArray

    def __getitem__(self, chosen: NDArray | slice) -> "Examples":
        return Examples(self.x[chosen], self.y[chosen])

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Split:
    """What the devices share, what the owner judges them with, and what nobody trains on."""

    devices: Examples
    owner: Examples
    test: Examples


@cache
def load(name: str) -> Split:
    """Shuffle a data set and split it 4 : 1 : 1."""
    examples = _read(name)
    order = np.random.default_rng(SEED).permutation(len(examples))
    sixth = len(order) // 6
    parts = order[: 4 * sixth], order[4 * sixth : 5 * sixth], order[5 * sixth :]
    return Split(*(examples[part] for part in parts))


def partition(config: Mapping[str, Any], device: int) -> Examples:
    """The share of one device, with its fault if it has one."""
    examples = load(str(config["data"])).devices
    partitioner = _partitioner(config)
    partitioner.dataset = Dataset.from_dict(
        {"label": examples.y.tolist(), "index": list(range(len(examples)))}
    )
    chosen = np.array(partitioner.load_partition(device)["index"])
    return _faults(str(config["faults"])).get(device, _no_fault)(examples[chosen])


def _partitioner(config: Mapping[str, Any]) -> Partitioner:
    devices = int(config["num-devices"])
    match config["partition"]:
        case "iid":
            return IidPartitioner(devices)
        case "dirichlet":
            alpha = float(config["dirichlet-alpha"])
            return DirichletPartitioner(devices, "label", alpha, min_partition_size=10, seed=SEED)
        case "classes":
            number = int(config["classes-per-device"])
            return PathologicalPartitioner(devices, "label", number, "deterministic", seed=SEED)
        case other:
            raise ValueError(f"partition = {other!r}: it must be iid, dirichlet or classes")


def _read(name: str) -> Examples:
    if name == "digits":
        digits = load_digits()
        return Examples((digits.images / 16).astype(np.float32), digits.target)
    if name.startswith("torchvision:"):
        return _torchvision(name.removeprefix("torchvision:"))
    folder = Path(name).expanduser()
    parts = [("train-images-idx3-ubyte", "train-labels-idx1-ubyte")]
    parts += [("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")]
    x = np.concatenate([_idx(folder / f"{images}.gz", 16) for images, _ in parts])
    y = np.concatenate([_idx(folder / f"{labels}.gz", 8) for _, labels in parts])
    side = int((len(x) / len(y)) ** 0.5)
    return Examples((x.reshape(-1, side, side) / 255).astype(np.float32), y.astype(np.int64))


def _idx(path: Path, header: int) -> NDArray:
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8, offset=header)


def _torchvision(name: str) -> Examples:
    from torchvision import datasets  # noqa: PLC0415 (an optional extra)

    data = getattr(datasets, name)(Path("~/.cache/torchvision").expanduser(), download=True)
    x, y = np.asarray(data.data, np.float32) / 255, np.asarray(data.targets, np.int64)
    return Examples(x.mean(axis=3) if x.ndim == 4 else x, y)


def _faults(text: str) -> dict[int, Callable[[Examples], Examples]]:
    pairs = [item.split(":") for item in text.split()]
    return {int(device): FAULTS[fault] for device, fault in pairs}


def _no_fault(examples: Examples) -> Examples:
    return examples


def _random_labels(examples: Examples) -> Examples:
    labels = np.random.default_rng(SEED).integers(0, 10, len(examples))
    return Examples(examples.x, labels)


def _flipped_labels(examples: Examples) -> Examples:
    return Examples(examples.x, 9 - examples.y)


def _noise_images(examples: Examples) -> Examples:
    noise = np.random.default_rng(SEED).random(examples.x.shape, np.float32)
    return Examples(noise, examples.y)


FAULTS = {
    "random-labels": _random_labels,
    "flipped-labels": _flipped_labels,
    "noise-images": _noise_images,
}
