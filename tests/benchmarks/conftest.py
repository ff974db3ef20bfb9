"""Small data for the benchmarks."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits


@pytest.fixture(scope="session")
def idx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scikit-learn's digits, enlarged and repeated, as files like MNIST's."""
    folder = tmp_path_factory.mktemp("idx")
    digits = load_digits()
    images = np.kron(digits.images * 15, np.ones((3, 3)))
    images = np.pad(images, ((0, 0), (2, 2), (2, 2))).astype(np.uint8)
    chosen = np.random.default_rng(0).integers(0, len(images), 7_000)
    for name, part in (("train", chosen[:6_000]), ("t10k", chosen[6_000:])):
        write(folder / f"{name}-images-idx3-ubyte.gz", images[part])
        write(folder / f"{name}-labels-idx1-ubyte.gz", digits.target[part].astype(np.uint8))
    return folder


def write(path: Path, array: np.ndarray) -> None:
    """Write an IDX file of bytes."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))
