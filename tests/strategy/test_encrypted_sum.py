"""Encrypted updates: rounds, what each party sees, and what goes wrong."""

from pathlib import Path

import numpy as np
import pytest
from federation import OWNER, Federation
from key_holder import HOLDER, RANGE, hold, key_of
from softmax import examiner, fresh

from flower_chain.privacy import paillier
from flower_chain.updates import mean
from flower_chain.verify import verify

CIPHERS = ("paillier", "ckks")


@pytest.fixture(autouse=True)
def _short_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paillier, "LEAST_BITS", 512)


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path, 4)


def settings(scheme: str = "paillier", **others: object) -> dict[str, object]:
    return {
        "encryption": scheme,
        "key_holder": HOLDER.address,
        "encryption_range": RANGE,
        "encryption_most": 8,
    } | others


@pytest.mark.parametrize("scheme", CIPHERS)
def test_the_next_model_is_the_mean_of_the_updates_up_to_rounding(
    federation: Federation, scheme: str
) -> None:
    hold(federation, scheme)
    outcome = federation.run(rounds=2, **settings(scheme))

    expected = mean(fresh(), federation.updates(0, federation.accounts), 1.0)
    for key, array in outcome.model(1).items():
        assert np.abs(array - expected[key]).max() < 1e-4
    assert outcome.summary.rounds[2].accuracy > 0.8
    checked = outcome.verify()
    print(checked)
    assert checked["encrypted sums"] == checked["aggregates"] == 2
