"""The benchmark runs from one command, on any IDX files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


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
