"""The benchmark runs from one command, on any IDX files."""

import gzip
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def idx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scikit-learn's digits, enlarged and repeated, as files like MNIST's."""
    folder = tmp_path_factory.mktemp("idx")
    digits = load_digits()
    images = np.kron(digits.images * 15, np.ones((3, 3)))
    images = np.pad(images, ((0, 0), (2, 2), (2, 2))).astype(np.uint8)
    chosen = np.random.default_rng(0).integers(0, len(images), 14_000)
    for name, part in (("train", chosen[:12_000]), ("t10k", chosen[12_000:])):
        write(folder / f"{name}-images-idx3-ubyte.gz", images[part])
        write(folder / f"{name}-labels-idx1-ubyte.gz", digits.target[part].astype(np.uint8))
    return folder


def write(path: Path, array: np.ndarray) -> None:
    """Write an IDX file of bytes."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def test_it_prints_tables_and_writes_rows_and_claims(idx, tmp_path):
    report = tmp_path / "csves.json"
    command = [sys.executable, ROOT / "benchmarks/csves.py", "--instances", "4", "--workers", "1"]
    command += ["--accuracy", "0.5", "--data", idx, "--json", report, "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    written = json.loads(report.read_text())
    assert {"claim", "source", "target", "measured", "holds"} <= set(written["claims"][0])
    assert written["rows"]
    assert list(tmp_path.glob("*.png"))


def test_missing_data_are_told_in_one_line(tmp_path):
    command = [sys.executable, ROOT / "benchmarks/csves.py", "--data", tmp_path / "none"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "none") in done.stdout + done.stderr
