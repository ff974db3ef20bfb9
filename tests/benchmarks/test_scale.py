"""The benchmark runs from one command, on either ledger."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("chain", ["embedded", "anvil"])
def test_it_prints_tables_and_writes_rows_and_claims(chain, tmp_path):
    report = tmp_path / "scale.json"
    command = [sys.executable, ROOT / "benchmarks/scale.py", "--embedded", "0", "--anvil", "0"]
    command += [f"--{chain}", "30", "--json", report, "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    written = json.loads(report.read_text())
    assert {"claim", "source", "target", "measured", "holds"} <= set(written["claims"][0])
    assert [(row["chain"], row["devices"]) for row in written["rows"]] == [(chain, 10), (chain, 30)]
    assert (tmp_path / "scale.png").stat().st_size
    assert "## Claims" in (tmp_path / "scale.md").read_text()
