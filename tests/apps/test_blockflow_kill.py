"""A real experiment whose server and devices are killed at random moments, again and again."""

import random
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest
from serving import PATIENCE, serving

from flower_chain import keys
from flower_chain.ledger.blockflow import Stage
from flower_chain.records import TOKEN_UNITS
from flower_chain.run import BlockFlowRun
from flower_chain.verify import verify

KILLS = 12
AGENTS, ROUNDS = 3, 3
BOND = 10 * TOKEN_UNITS
OPTIONS = f'chain.scheme="blockflow" num-server-rounds={ROUNDS} chain.bond=10.0 chain.stake=1.0'


def blocks(folder: Path) -> int:
    """How many the ledger has."""
    journal = folder / "run" / "ledger.journal"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def wait_for_blocks(process: "subprocess.Popen[bytes]", folder: Path, more: int) -> None:
    """Until the ledger has `more` than now."""
    deadline, wanted = time.monotonic() + PATIENCE, blocks(folder) + more
    while blocks(folder) < wanted:
        log = (folder / "log.txt").read_text()[-3000:]
        assert process.poll() is None, f"it has ended:\n{log}"
        assert time.monotonic() < deadline, f"it does not get on:\n{log}"
        time.sleep(0.01)


@pytest.mark.slow
def test_an_experiment_killed_at_random_moments_ends_as_one_that_was_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moments, folder = random.Random(5), tmp_path / "killed"
    progress = [0]
    for number in range(KILLS):
        with serving(folder, AGENTS, OPTIONS) as (process, _):
            if number % 4 == 3:  # while it starts, or asks again
                time.sleep(moments.uniform(4, 14))
            else:  # after a transaction, or before the next
                wait_for_blocks(process, folder, moments.randrange(1, 3))
                time.sleep(moments.uniform(0, 0.5))
        progress.append(blocks(folder))
    with serving(folder, AGENTS, OPTIONS) as (process, log):
        assert process.wait(PATIENCE) == 0, log.read_text()[-3000:]

    assert progress[-1] < blocks(folder), "it had ended before it was left alone"
    assert len(set(progress)) > KILLS // 2, "most were killed before they did anything"
    assert_ended(folder / "run")
    with capsys.disabled():
        print(f"\n{KILLS} kills; blocks after each: {progress}, in the end {blocks(folder)}")


def assert_ended(path: Path) -> None:
    """All agents took part in all rounds, and all bonds are paid back."""
    everybody = set(range(AGENTS))
    with closing(BlockFlowRun.open(path)) as run:
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
        assert run.token.call("balanceOf", contract.address) == sum(credited) == AGENTS * BOND
        *_, report = verify(run, keys.load(path.parent / "keys" / "device-0.key"))
        assert len(report.unchecked) == 1  # scores: each agent has its own data
