"""The benchmark runs from one command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_it_prints_tables_and_writes_rows_and_claims(tmp_path):
    report = tmp_path / "sum.json"
    command = [sys.executable, ROOT / "benchmarks/encrypted_sum.py", "--sizes", "1000 50000"]
    command += ["--bits", "2048", "--sample", "4", "--json", report, "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    written = json.loads(report.read_text())
    by_cipher = {row["cipher"]: row for row in written["rows"] if row["size"] == 50_000}
    assert by_cipher["phe, one by one, 2048 bit"]["extrapolated"]
    packed = by_cipher["packed Paillier, 2048 bit"]
    assert packed["ratio"] <= 1.3
    assert packed["error"] <= 2e-5
    assert by_cipher["CKKS"]["error"] <= 1e-6
    (times,) = [c["measured"] for c in written["claims"] if "times as fast" in c["claim"]]
    assert times > 100
    assert "## Cost" in (tmp_path / "encrypted-sum.md").read_text()
    assert (tmp_path / "encrypted-sum.png").stat().st_size > 10_000
