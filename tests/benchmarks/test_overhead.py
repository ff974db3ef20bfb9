"""The benchmark runs from one command, on any IDX files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def test_it_prints_tables_and_writes_rows_and_claims(idx, tmp_path):
    report = tmp_path / "overhead.json"
    command = [sys.executable, ROOT / "benchmarks/overhead.py", "--devices", "2", "--rounds", "1"]
    command += ["--points", "64", "--no-simulate"]
    command += ["--data", idx, "--json", report, "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "added" in done.stdout
    written = json.loads(report.read_text())
    assert {"claim", "source", "target", "measured", "holds"} <= set(written["claims"][0])
    for row in written["rows"]:
        assert min(row["wrapped"]["elapsed"].values()) > 0
        assert row["plain"]["elapsed"]["seal"] == 0
    assert (tmp_path / "overhead.md").is_file()
    assert list(tmp_path.glob("*.png"))


def test_missing_data_are_told_in_one_line(tmp_path):
    command = [sys.executable, ROOT / "benchmarks/overhead.py", "--data", tmp_path / "none"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "none") in done.stdout + done.stderr
