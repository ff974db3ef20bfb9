"""A real run whose agents judge each other; all its processes are killed again and again."""

import random
import time
from contextlib import closing
from pathlib import Path

import pytest
from serving import PATIENCE, blocks, serving, wait_for_blocks

from flower_chain import keys
from flower_chain.ledger.blockflow import Stage
from flower_chain.records import TOKEN_UNITS
from flower_chain.run import PeersRun, open_run
from flower_chain.verify import verify

AGENTS, ROUNDS = 3, 3
KILLS = {"blockflow": 5, "data-trust": 5}
OPTIONS = {
    "blockflow": "chain.bond=10.0 chain.stake=1.0",
    "data-trust": "chain.bond=10.0 chain.reward=9.0 chain.places=2",
}
PAID = {"blockflow": 30 * TOKEN_UNITS, "data-trust": 39 * TOKEN_UNITS}
"""To all agents together."""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", KILLS)
def test_a_run_killed_at_random_moments_ends_as_one_that_was_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scheme: str
) -> None:
    moments, folder, kills = random.Random(5), tmp_path / "killed", KILLS[scheme]
    options = f'chain.scheme="{scheme}" num-server-rounds={ROUNDS} {OPTIONS[scheme]}'
    progress = [0]
    for number in range(kills):
        with serving(folder, AGENTS, options) as (process, _):
            if number % 4 == 3:  # while it starts, or asks again
                time.sleep(moments.uniform(4, 14))
            else:  # after a transaction, or before the next
                wait_for_blocks(process, folder, moments.randrange(1, 3))
                time.sleep(moments.uniform(0, 0.5))
        progress.append(blocks(folder))
    with serving(folder, AGENTS, options) as (process, log):
        assert process.wait(PATIENCE) == 0, log.read_text()[-3000:]

    assert progress[-1] < blocks(folder), "it had ended before it was left alone"
    assert len(set(progress)) > kills // 2, "most were killed before they did anything"
    assert_ended(folder / "run", PAID[scheme])
    with capsys.disabled():
        print(f"\n{kills} kills; blocks after each: {progress}, in the end {blocks(folder)}")


def assert_ended(path: Path, paid: int) -> None:
    """All agents took part in all rounds, and everything is paid."""
    everybody = set(range(AGENTS))
    with closing(open_run(path)) as run:
        assert isinstance(run, PeersRun)
        assert run.experiment.progress.stage is Stage.FINISHED
        history = run.experiment.history()
        for found in history.rounds:
            assert set(found.contributions) == set(found.retrievals) == everybody
            assert set(found.commitments) == set(found.openings) == set(found.overall) == everybody
            assert not found.eliminated
            for agent, opening in found.openings.items():
                said = found.commitments[agent].digest
                assert opening.commitment(run.experiment.domain) == said
        assert [run.model(number) is not None for number in range(ROUNDS + 1)] == [True] * 4
        assert {number: len(named) for number, named in history.announced.items()} == dict.fromkeys(
            range(ROUNDS + 1), 1
        )
        accounts, contract = run.experiment.agents, run.contract
        credited = [contract.call("credits", account) for account in accounts]
        refunded = [sum(found.refunded[n] for found in history.rounds) for n in range(AGENTS)]
        assert credited == refunded
        assert contract.call("held") == 0
        assert run.token.call("balanceOf", contract.address) == sum(credited) == paid
        *_, report = verify(run, keys.load(path.parent / "keys" / "device-0.key"))
        assert len(report.unchecked) == 1  # scores: each agent has its own data
