"""The data: rows of a table, in two classes, as papers/3 section 5 prepares them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer

NDArray = np.ndarray[Any, np.dtype[Any]]
SEED = 20261121


@dataclass(frozen=True)
class Examples:
    """Rows in [0, 1], shape (n, n_features), the last column 1; and classes 0 and 1, shape (n,)."""

    x: NDArray
    y: NDArray

    def __getitem__(self, chosen: NDArray) -> "Examples":
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
    """Shuffle a data set: two thirds for the devices, a sixth for the owner and for the test."""
    table, is_positive = read(name)
    examples = Examples(encode(table), is_positive.to_numpy(np.int64))
    order = np.random.default_rng(SEED).permutation(len(examples))
    parts = np.split(order, [len(order) * 4 // 6, len(order) * 5 // 6])
    return Split(*(examples[part] for part in parts))


def partition(name: str, n_devices: int, device: int) -> Examples:
    """One of so many equal shares."""
    examples = load(name).devices
    return examples[np.array_split(np.arange(len(examples)), n_devices)[device]]


def read(name: str, *, unique: bool = True) -> tuple[pd.DataFrame, pd.Series]:
    """The features as they are published, and whether a row is of class 1.

    Of KDD Cup 1999's rows most come many times over; of those one is kept if they are to be unique.
    """
    if name == "breast-cancer":
        found = load_breast_cancer(as_frame=True)
        return found.data, found.target
    folder = Path(name).expanduser()
    for file, read_folder in READERS.items():
        if (folder / file).is_file():
            return read_folder(folder, unique)
    known = ", ".join(READERS)
    raise ValueError(f"data = {name!r}: neither breast-cancer nor a folder with one of {known}")


def _adult(folder: Path, _unique: bool) -> tuple[pd.DataFrame, pd.Series]:
    """Who earns more than 50,000 dollars a year."""
    parts = [_csv(folder / "adult.data"), _csv(folder / "adult.test", skiprows=1)]
    table = pd.concat(parts, ignore_index=True)
    return table.iloc[:, :-1], table.iloc[:, -1].str.startswith(">50K")


def _kdd(folder: Path, unique: bool) -> tuple[pd.DataFrame, pd.Series]:
    """Which connections are attacks."""
    table = _csv(folder / "kddcup.data_10_percent.gz")
    if unique:
        table = table.drop_duplicates(ignore_index=True)
    return table.iloc[:, :-1], table.iloc[:, -1] != "normal."


def _csv(path: Path, skiprows: int = 0) -> pd.DataFrame:
    return pd.read_csv(path, header=None, skipinitialspace=True, skiprows=skiprows)


def encode(table: pd.DataFrame) -> NDArray:
    """What is discrete one-hot, what is continuous scaled to [0, 1]; and the constant 1."""
    table = pd.get_dummies(table, dtype=np.float32)
    low, high = table.min(), table.max()
    scaled = (table - low) / (high - low).where(high > low, 1)
    return np.column_stack([scaled.to_numpy(np.float32), np.ones(len(table), np.float32)])


READERS: dict[str, Callable[[Path, bool], tuple[pd.DataFrame, pd.Series]]] = {
    "adult.data": _adult,
    "kddcup.data_10_percent.gz": _kdd,
}
