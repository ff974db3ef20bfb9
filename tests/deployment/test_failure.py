"""Devices with nodes of their own; one is killed in the middle of a round, then the server."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from machines import HOSPITALS, OWNER, Machines, blocks, machines, until
from web3 import HTTPProvider, Web3

from flower_chain.ledger.federation import History
from flower_chain.records import Refusal
from flower_chain.run import RecordAndRewardRun

pytestmark = pytest.mark.slow


def history(run: Path) -> History:
    """What the ledger holds."""
    with closing(RecordAndRewardRun.open(run)) as opened:
        return opened.federation.history()


def n_tasks(made: Machines) -> int:
    """How often the last device was asked to train, since it was started."""
    return made.log("hospital-c").count("Receiving: train")


def test_who_is_killed_misses_a_round_at_most(tmp_path, anvil):
    section = [
        (who, text.replace("rounds = 2", "rounds = 3")) for who, text in blocks("Deployment")
    ]
    (go,) = [number for number, (_, lines) in enumerate(section) if "flwr run" in lines]
    (superlink,) = [block for block in section if "flower-superlink" in block[1]]
    (_, supernode) = next(block for block in section if block[0] == "device with a node")
    with ThreadPoolExecutor(1) as pool, machines(tmp_path, anvil) as made:
        made.follow(section[:go], own_nodes=True)
        made.follow(section[go + 1 :], own_nodes=True)

        going = pool.submit(made.follow, section[go : go + 1])
        until(lambda: going.done() or n_tasks(made) == 2, "second task")
        made.kill("hospital-c")
        until(lambda: going.done() or len(history(made.run).versions) == 3, "third version")
        made.as_device("hospital-c", supernode)
        until(lambda: going.done() or n_tasks(made) == 1, "third task")
        made.kill(OWNER)
        with pytest.raises(AssertionError, match="flwr run"):
            going.result()
        made.follow([superlink, section[go]])

        versions = history(made.run).versions
        a, b, c = map(made.account, HOSPITALS)
        accepted = [{verdict.device for verdict in version.accepted} for version in versions]
        assert accepted == [{a, b, c}, {a, b}, {a, b, c}, set()]
        assert [(f.device, f.reason) for f in versions[1].findings] == [(c, Refusal.NO_ANSWER)]
        assert "Everything that was checked fits." in (made.root / "superlink.printed").read_text()

        web3 = Web3(HTTPProvider(anvil))
        for version in versions:
            for verdict in version.accepted:
                sent = web3.eth.get_transaction(verdict.event.receipt.transaction)
                assert sent["from"] == verdict.device
