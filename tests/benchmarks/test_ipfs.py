"""The benchmark runs from one command, on the node that it starts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_it_prints_tables_and_writes_rows_and_claims(tmp_path):
    report = tmp_path / "ipfs.json"
    command = [sys.executable, ROOT / "benchmarks/ipfs.py", "--sizes", "0.3 2", "--rounds", "1"]
    command += ["--json", report, "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    written = json.loads(report.read_text())
    assert {"claim", "source", "target", "measured", "holds"} <= set(written["claims"][0])
    timings, memories = written["rows"][:4], written["rows"][4:]
    assert all(row["store"] > row["cid"] > 0 for row in timings)
    assert [row["size"] for row in memories] == [300_000, 2_000_000]
    assert "## Throughput" in (tmp_path / "ipfs.md").read_text()


def test_a_node_that_is_not_there_is_told_in_one_line(tmp_path):
    command = [sys.executable, ROOT / "benchmarks/ipfs.py", "--node", "http://127.0.0.1:9"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "no IPFS node answers at http://127.0.0.1:9" in done.stdout
    assert "Traceback" not in done.stderr
