"""A real run whose server is killed at random moments, again and again."""

import random
import time
from contextlib import closing
from pathlib import Path

import pytest
from lean.app import examiner
from serving import PATIENCE, serving, wait_for_blocks

from flower_chain import keys
from flower_chain.ledger.federation import History
from flower_chain.run import RecordAndRewardRun
from flower_chain.verify import verify

KILLS = 25
DEVICES = 4


def history(folder: Path) -> History:
    """What the ledger holds, if there is a run yet."""
    if not (folder / "run" / "run.json").exists():
        return History()
    with closing(RecordAndRewardRun.open(folder / "run")) as run:
        return run.federation.history()


def finish(folder: Path, rounds: int) -> RecordAndRewardRun:
    """Let a run come to its end."""
    with serving(folder, DEVICES, f"num-server-rounds={rounds}") as (process, log):
        assert process.wait(PATIENCE) == 0, log.read_text()[-3000:]
    return RecordAndRewardRun.open(folder / "run")


def account_of(run: RecordAndRewardRun) -> list[object]:
    """What must be the same in every run of as many rounds on the same devices."""
    found = run.federation.history()
    held = run.token.call("balanceOf", run.federation.contract.address)
    assert held == run.federation.pool + sum(found.credited.values())
    assert sum(found.credited.values()) == sum(v.due for k in found.versions for v in k.accepted)
    return [
        (k.number, k.settled, len(k.verdicts), len(k.accepted), len(k.payments), len(k.findings))
        for k in found.versions
    ]


def checked(run: RecordAndRewardRun) -> dict[str, int]:
    """What an auditor with everything finds."""
    owner = keys.load(run.store.path.parent / "owner.key")  # type: ignore[attr-defined]
    *_, report = verify(run, owner, examiner())
    return report.checked


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_as_one_that_was_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moments, killed = random.Random(3), tmp_path / "killed"
    known: list[bytes] = []
    progress = []
    for number in range(KILLS):
        with serving(killed, DEVICES, "num-server-rounds=10000") as (process, _):
            if number % 5:  # while it trains, records or settles
                wait_for_blocks(process, killed, moments.randrange(1, 8))
                time.sleep(moments.uniform(0, 0.5))
            else:  # while it starts, or goes on with the round that was cut short
                time.sleep(moments.uniform(5, 20))
        found = [version.model.digest for version in history(killed).versions]
        assert found[: len(known)] == known, "a version was lost or changed"
        progress.append(len(found) - len(known))
        known = found

    assert sum(map(bool, progress)) >= KILLS // 2, "most were killed before they did anything"
    rounds = len(known) + 1
    resumed = finish(killed, rounds)
    left_alone = finish(tmp_path / "left-alone", rounds)

    assert account_of(resumed) == account_of(left_alone)
    assert account_of(resumed)[:-1] == [(k, True, *[DEVICES] * 3, 0) for k in range(rounds)]
    assert checked(resumed) == checked(left_alone)
    with capsys.disabled():
        print(f"\n{KILLS} kills, {rounds} rounds; versions published in each life: {progress}")
