"""The benchmark runs from one command, on any folders like UCI's."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables whose first column tells the class in nine rows of ten."""
    home = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(0)
    for name, file, labels in (
        ("adult", "adult.data", ("<=50K", ">50K")),
        ("kddcup99-10pct", "kddcup.data_10_percent.gz", ("normal.", "smurf.")),
    ):
        (home / name).mkdir()
        signal, noise = rng.random(12_000), rng.random(12_000)
        right = (signal > 0.5) ^ (rng.random(12_000) < 0.1)
        rows = [
            f"{a}, tcp, {b}, {labels[c]}" for a, b, c in zip(signal, noise, 1 * right, strict=True)
        ]
        write = gzip.compress if file.endswith(".gz") else bytes
        (home / name / file).write_bytes(write("\n".join(rows).encode()))
    (home / "adult" / "adult.test").write_text("|1x3 Cross validator\n0.7, tcp, 0.1, >50K.\n")
    return home


def test_it_prints_tables_and_writes_rows_and_claims(folder, tmp_path):
    report = tmp_path / "blockflow.json"
    command = [sys.executable, ROOT / "benchmarks/blockflow.py", "--repetitions", "1"]
    command += ["--agents", "3", "--data", folder, "--json", report, "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    assert "attackers" in done.stdout
    written = json.loads(report.read_text())
    claims = {claim["claim"]: claim for claim in written["claims"]}
    assert claims["Adult: log10 p, inverted"]["measured"] < -3
    points = [row for row in written["rows"] if "differing" in row]
    assert {row["experiment"][0] for row in points} == set("1234")
    assert all(row["differing"] == 0 and row["ledger"] == row["computed"] for row in points)
    assert all(min(row["seconds"].values()) > 0 for row in points)
    assert (tmp_path / "blockflow.md").is_file()
    assert len(list(tmp_path.glob("*.png"))) == 4


def test_missing_data_are_told_in_one_line(tmp_path):
    command = [sys.executable, ROOT / "benchmarks/blockflow.py", "--data", tmp_path / "none"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "none") in done.stdout + done.stderr
