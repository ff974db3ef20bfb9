"""What a device may say that it has spent: the same in Python and in Solidity."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from eth_account import Account
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from flower_chain.ledger import EmbeddedLedger
from flower_chain.ledger.federation import Federation
from flower_chain.records import UNMEASURED, Contribution, Refusal, Signed, sign
from flower_chain.rules.budget import check
from flower_chain.rules.record_and_reward import Rule

OWNER, DEVICE = (Account.from_key(bytes([n]) * 32) for n in (1, 2))
MOST = 2**64 - 1


@pytest.mark.parametrize(
    ("budget", "before", "spent", "reason"),
    [
        (0, 0, 0, Refusal.NONE),
        (0, 0, 1, Refusal.OVER_BUDGET),
        (8, 0, 0, Refusal.BUDGET_DECREASED),
        (8, 0, 1, Refusal.NONE),
        (8, 3, 3, Refusal.BUDGET_DECREASED),
        (8, 3, 2, Refusal.BUDGET_DECREASED),
        (8, 3, 4, Refusal.NONE),
        (8, 7, 8, Refusal.NONE),
        (8, 3, 9, Refusal.OVER_BUDGET),
        (MOST, MOST - 1, MOST, Refusal.NONE),
    ],
)
def test_what_is_spent_grows_up_to_the_budget(
    budget: int, before: int, spent: int, reason: Refusal
) -> None:
    assert check(budget, before, spent) is reason


@contextmanager
def deployed(budget: int) -> Iterator[Federation]:
    """A contract with this budget, whose one device can contribute."""
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedLedger(Path(folder) / "journal", [OWNER.address]) as ledger,
    ):
        token = ledger.deploy(OWNER, "RewardToken", 10**18)
        terms = bytes(32), int(Rule.TREND), 0, 0, 0, 0, 1, 0, 1, 60, budget
        model = bytes(32), b"", bytes(32), UNMEASURED
        contract = ledger.deploy(OWNER, "RecordAndReward", token.address, terms, model)
        federation = Federation(contract, OWNER)
        federation.enrol([DEVICE.address])
        yield federation


amounts = st.integers(0, 5) | st.integers(MOST - 3, MOST) | st.integers(0, MOST)


@settings(
    max_examples=12,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(amounts, st.lists(amounts, min_size=1, max_size=12))
def test_the_contract_decides_as_python_does(budget: int, asked: list[int]) -> None:
    """All for one version: what was not paid for does not use up the device's contribution."""
    before, is_over = 0, False
    with deployed(budget) as federation:
        batch = []
        for spent in asked:
            made = Contribution(DEVICE.address, 0, 1, bytes(32), b"", (), (2, 1), spent=spent)
            batch.append(Signed(made, sign(made.encode(federation.domain), DEVICE)))
        for spent, verdict in zip(asked, federation.submit(batch), strict=True):
            expected = Refusal.SECOND_CONTRIBUTION if is_over else check(budget, before, spent)
            assert verdict.reason is expected
            assert verdict.signed.contribution.spent == spent
            if not expected:
                before, is_over = spent, True
        assert federation.spent(DEVICE.address) == before
