"""The benchmark runs from one command, on any data in MNIST's format."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def test_it_prints_tables_and_writes_rows_and_claims(idx, tmp_path):
    report = tmp_path / "data-trust.json"
    command = [sys.executable, ROOT / "benchmarks/data_trust.py", "--epochs", "18"]
    command += ["--data", idx, "--json", report, "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    assert "Wrong labels" in done.stdout
    written = json.loads(report.read_text())
    three, five, faulty, without, flower = written["rows"]
    assert [three["rounds"], five["rounds"]] == [2, 1]
    assert [len(task["points"]) for task in (three, five)] == [18, 15]
    assert {point["worker"] for point in five["points"]} == set(range(5))
    for task in (three, five):
        assert min(task["seconds"][stage] for stage in ("train", "seal", "ipfs", "ledger")) > 0
    assert faulty["lost"] == {"3": 3, "4": 3}
    assert without["lost"] == {}
    assert sum(faulty["tokens"]) == pytest.approx(sum(without["tokens"]) + 2 * 10)
    assert flower["rounds"] == 2
    claims = {claim["claim"]: claim for claim in written["claims"]}
    for claim in (
        "deposits lost, right labels",
        "accuracy with wrong labels less without",
        "scores and models that differ through Flower",
    ):
        assert claims[claim]["holds"], claims[claim]
    assert (tmp_path / "data-trust.md").is_file()
    assert (tmp_path / "data-trust.png").is_file()


def test_missing_data_are_told_in_one_line(tmp_path):
    command = [sys.executable, ROOT / "benchmarks/data_trust.py", "--data", tmp_path / "none"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "none") in done.stderr
