"""The benchmark runs from one command, on any IDX files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def test_it_prints_tables_and_writes_rows_and_claims(idx, tmp_path):
    report = tmp_path / "papers1.json"
    command = [sys.executable, ROOT / "benchmarks/papers1.py", "--quick", "--data", idx]
    command += ["--json", report, "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    written = json.loads(report.read_text())
    assert {"claim", "source", "target", "measured", "holds"} <= set(written["claims"][0])
    assert {row["figure"] for row in written["rows"]} == {4, 7}
    assert len(list(tmp_path.glob("*.png"))) == 2
    assert "## Claims" in (tmp_path / "papers1.md").read_text()


def test_missing_data_are_told_in_one_line(tmp_path):
    command = [sys.executable, ROOT / "benchmarks/papers1.py", "--data", tmp_path / "none"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert str(tmp_path / "none") in done.stderr
