"""The census app: its data, its model, and a real run of it."""

import gzip
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flower_chain.privacy import Mechanism, rows_of_norm_one

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "apps/census"))

from census import data, model  # noqa: E402 (an app is no package of ours)

SOUND, PUBLISHED = Mechanism.CHAUDHURI_MONTELEONI, Mechanism.AS_PUBLISHED
ADULT = ["30, Private, 10, <=50K", "50, ?, 20, >50K", "40, Private, 30, <=50K"]
CONNECTIONS = ["0,tcp,5,normal.", "1,udp,7,smurf.", "0,tcp,5,normal.", "0,udp,9,normal."]


@pytest.fixture
def adult(tmp_path: Path) -> Path:
    """A folder as UCI's."""
    (tmp_path / "adult.data").write_text("\n".join(ADULT))
    (tmp_path / "adult.test").write_text("|1x3 Cross validator\n60, Private, 40, >50K.\n")
    return tmp_path


def everything(split: data.Split) -> data.Examples:
    """All rows of a data set."""
    parts = [split.devices, split.owner, split.test]
    return data.Examples(np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts]))


def test_the_devices_have_equal_shares_without_overlap():
    shares = [data.partition("breast-cancer", 10, device) for device in range(10)]
    rows = np.concatenate([share.x for share in shares])
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert np.array_equal(rows, data.load("breast-cancer").devices.x)


def test_two_thirds_are_the_devices_and_all_is_used():
    split = data.load("breast-cancer")
    assert len(everything(split)) == 569
    assert len(split.devices) == 569 * 4 // 6
    assert abs(len(split.owner) - len(split.test)) <= 1


def test_all_is_between_0_and_1_and_the_last_column_is_that_of_the_intercept():
    x = everything(data.load("breast-cancer")).x
    assert (x.min(axis=0)[:-1] == 0).all()
    assert (x.max(axis=0) == 1).all()
    assert (x[:, -1] == 1).all()


def test_adult_has_what_is_discrete_one_hot_and_both_files(adult):
    examples = everything(data.load(str(adult)))
    assert examples.x.shape == (4, 2 + 2 + 1)  # two numbers, Private or ?, the intercept
    assert examples.y.sum() == 2
    assert sorted(examples.x[:, 0]) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert (examples.x[:, 2:4].sum(axis=1) == 1).all()


def test_kdd_has_each_row_once_and_tells_attacks(tmp_path):
    lines = "\n".join(CONNECTIONS).encode()
    (tmp_path / "kddcup.data_10_percent.gz").write_bytes(gzip.compress(lines))
    examples = everything(data.load(str(tmp_path)))
    assert len(examples) == 3
    assert examples.y.sum() == 1


def test_an_unknown_data_set_is_told():
    with pytest.raises(ValueError, match="data = 'iris': neither breast-cancer nor"):
        data.load("iris")


@pytest.mark.parametrize("mechanism", Mechanism)
def test_without_noise_one_device_learns_what_there_is_to_learn(mechanism):
    share = data.partition("breast-cancer", 10, 0)
    weights = model.train(share, 1e-3 if mechanism is SOUND else 1.0, math.inf, mechanism)
    assert model.scores({"weights": weights}, data.load("breast-cancer").test)["f1"] > 0.93


def test_the_sound_model_is_the_minimum_over_rows_of_norm_one():
    share, alpha = data.partition("breast-cancer", 10, 0), 0.01
    weights = model.train(share, alpha, math.inf, SOUND)
    x, signs = rows_of_norm_one(share.x), 2 * share.y - 1
    slopes = -signs / (1 + np.exp(signs * (x @ weights)))
    assert np.abs((slopes[:, None] * x).mean(axis=0) + alpha * weights).max() < 1e-6


def test_less_epsilon_is_more_noise():
    share = data.partition("breast-cancer", 1, 0)
    exact = model.train(share, 0.1, math.inf, SOUND)
    far, near = (model.train(share, 0.1, epsilon, SOUND) - exact for epsilon in (0.01, 100.0))
    assert np.linalg.norm(far) > 100 * np.linalg.norm(near)


@pytest.mark.slow
def test_ten_devices_learn_under_the_default_scheme(tmp_path):
    command = [ROOT / "apps/simulate", ROOT / "apps/census", "--run-config"]
    command += [f'chain.run="{tmp_path}/run" chain.keys="{tmp_path}/keys"']
    env = {"HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    done = subprocess.run(
        command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert "10 updates accepted of 10" in done.stdout, done.stdout + done.stderr
    (accuracy,) = re.findall(r"  1: {[^}]*'accuracy': '([^']+)'", done.stdout)
    assert float(accuracy) > 0.93
