"""The benchmark runs from one command, and its bound is right where it is plain."""

import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
from auditors import captured, captured_in_a_round, needed

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("auditors", range(1, 7))
def test_the_bound_is_that_of_counting_all_sets_of_auditors(auditors):
    for colluders in range(7):
        sets = [sum(a < colluders for a in chosen) for chosen in combinations(range(6), auditors)]
        share = sum(2 * number >= auditors for number in sets) / len(sets)
        assert captured(6, colluders, auditors) == pytest.approx(share)


def test_a_round_has_as_many_models_as_agents():
    assert captured_in_a_round(7, 2, 3) == pytest.approx(5 * 3 / 15 * 4 / 4 + 2 * 0)


@pytest.mark.parametrize("colluders", [1, 5, 10])
def test_the_number_that_is_needed_is_the_least_and_odd(colluders):
    least = needed(30, colluders, 1e-3)
    assert least % 2 == 1
    assert captured_in_a_round(30, colluders, least) <= 1e-3
    assert captured_in_a_round(30, colluders, least - 2) > 1e-3


@pytest.mark.slow
def test_it_prints_tables_and_writes_rows_and_claims(tmp_path):
    report = tmp_path / "auditors.json"
    command = [sys.executable, ROOT / "benchmarks/auditors.py", "--draws", "200"]
    command += ["--json", report, "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    written = json.loads(report.read_text())
    assert all(claim["holds"] for claim in written["claims"])
    assert len(written["rows"]) == 24
    assert (tmp_path / "auditors.png").stat().st_size
    assert "## Auditors needed" in (tmp_path / "auditors.md").read_text()
