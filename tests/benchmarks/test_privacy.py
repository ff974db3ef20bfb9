"""The attacks find what is there and nothing else, and the benchmark runs from one command."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from inversion import best_similarity, candidates, similarity
from membership import area, deviation, log_ratios, true_positives

ROOT = Path(__file__).parents[2]
RUNS, RECORDS = 16, 400


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_members_that_do_not_show_are_told_by_chance_only(rng):
    members = rng.random((RUNS, RECORDS)) < 0.5
    hard = rng.normal(size=(RECORDS, 2)) * 3
    scores = log_ratios(hard + rng.normal(size=(RUNS, RECORDS, 2)), members)
    assert area(scores, members) == pytest.approx(0.5, abs=0.02)
    assert true_positives(scores, members) == pytest.approx(0.01, abs=0.01)


def test_members_that_show_are_told_though_some_records_are_harder(rng):
    members = rng.random((RUNS, RECORDS)) < 0.5
    hard = rng.normal(size=(RECORDS, 1)) * 30
    statistics = hard + rng.normal(size=(RUNS, RECORDS, 1)) + 4 * members[..., None]
    scores = log_ratios(statistics, members)
    assert true_positives(scores, members) > 0.8
    assert area(statistics[..., 0], members) < 0.6


def test_the_record_of_a_run_is_judged_by_the_other_runs_alone(rng):
    members = rng.random((RUNS, RECORDS)) < 0.5
    statistics = rng.normal(size=(RUNS, RECORDS, 1)) + members[..., None]
    turned = members.copy()
    turned[3] = ~turned[3]
    assert (log_ratios(statistics, members)[3] == log_ratios(statistics, turned)[3]).all()


def test_a_share_of_the_rest_is_taken_for_members():
    scores = np.arange(200.0).reshape(1, 200)
    members = np.zeros((1, 200), bool)
    members[0, 100:] = True
    assert true_positives(scores, members) == 1
    assert true_positives(-scores, members) == 0
    assert true_positives(np.zeros((1, 200)), members) == 0
    assert deviation(scores, members) == 0


def test_the_area_is_how_often_a_member_scores_above_another(rng):
    scores = rng.integers(0, 5, (2, 15)).astype(float)
    members = rng.random((2, 15)) < 0.5
    pairs = [
        (inside > outside) + (inside == outside) / 2
        for inside in scores[members]
        for outside in scores[~members]
    ]
    assert area(scores, members) == pytest.approx(np.mean(pairs))


def test_a_picture_is_like_itself_and_unlike_noise(rng):
    picture = np.clip(rng.normal(size=(28, 28)).cumsum(axis=0) / 5, 0, 1).reshape(-1)
    noise = rng.random(784)
    found = similarity(np.stack([picture, noise]), picture)
    assert found[0] == pytest.approx(1)
    assert found[1] < 0.5


def test_one_picture_stands_in_the_update_of_a_dense_layer(rng):
    picture = rng.random(784)
    slopes = np.array([0.0, -0.3, 0.2])
    found = candidates(np.outer(slopes, picture), slopes)
    assert len(found) == 3  # of two rows, and of both together
    assert np.allclose(found, picture)
    assert best_similarity(np.outer(slopes, picture), slopes, picture) == pytest.approx(1)


def test_a_layer_that_does_not_change_tells_nothing():
    assert best_similarity(np.zeros((3, 784)), np.zeros(3), np.ones(784)) == 0


@pytest.mark.slow
def test_it_prints_tables_and_writes_rows_and_claims(idx, tmp_path):
    report = tmp_path / "privacy.json"
    command = [sys.executable, ROOT / "benchmarks/privacy.py", "--fast", "--runs", "4"]
    command += ["--workers", "1", "--data", idx, "--json", report, "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    written = json.loads(report.read_text())
    assert {"claim", "source", "target", "measured", "holds"} <= set(written["claims"][0])
    claims = {claim["claim"]: claim["measured"] for claim in written["claims"]}
    assert claims["without protection, pictures of 1 recovered"] == 1
    assert claims["pictures recovered at any epsilon of the table"] == 0
    assert [row["protection"] for row in written["rows"]][:2] == ["none", "Gaussian noise"]
    assert (tmp_path / "privacy.png").stat().st_size
    assert "## Claims" in (tmp_path / "privacy.md").read_text()
