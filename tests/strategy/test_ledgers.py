"""The same round on a real node: one line of configuration."""

from signal import SIGTERM
from threading import Timer

import pytest
from experiment import Experiment
from federation import OWNER, TOKEN, Federation, give
from flwr.app import RecordDict

from flower_chain.audit_messages import read_stage
from flower_chain.errors import LedgerError, NodeError, WrongChain
from flower_chain.ledger import JsonRpcLedger
from flower_chain.ledger.blockflow import Stage
from flower_chain.run import RecordAndRewardRun


def test_a_run_on_a_node_is_recorded_paid_and_verified(tmp_path, anvil):
    give(anvil, OWNER.address)
    federation = Federation(tmp_path, devices=3)
    outcome = federation.run(rounds=2, ledger=anvil)
    assert [len(version.accepted) for version in outcome.history.versions] == [3, 3, 0]
    assert outcome.verify()["aggregates"] == 2
    assert not (outcome.path / "ledger.journal").exists()


def test_a_node_on_another_chain_than_the_run_is_refused(tmp_path, anvil):
    give(anvil, OWNER.address)
    outcome = Federation(tmp_path, devices=2).run(ledger=anvil)
    pointers = outcome.path / "run.json"
    chain_id = outcome.run.pointers.chain_id
    pointers.write_text(pointers.read_text().replace(f'"chain_id": {chain_id}', '"chain_id": 7'))
    with pytest.raises(WrongChain, match=f"is on chain {chain_id}, but the run is on 7"):
        RecordAndRewardRun.open(outcome.path)


def test_a_journal_of_another_chain_than_the_run_is_refused(tmp_path):
    first = Federation(tmp_path / "a", devices=2).run()
    second = Federation(tmp_path / "b", devices=2).run()
    (first.path / "ledger.journal").write_bytes((second.path / "ledger.journal").read_bytes())
    with pytest.raises(WrongChain, match="the journal is of chain"):
        RecordAndRewardRun.open(first.path)


def test_an_unreachable_node_ends_the_run_before_training(tmp_path):
    federation = Federation(tmp_path, devices=2)
    with pytest.raises(NodeError, match=r"no node answers at http://127\.0\.0\.1:1"):
        federation.run(ledger="http://127.0.0.1:1")
    assert federation.grid.said == []


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--block-time", "1")], ids=["no idle blocks", "blocks"])
def test_an_agent_that_is_silent_is_out_on_a_node_too(tmp_path, start_anvil, options):
    """The time of a chain that makes no blocks stands still, and with it its stages."""
    url = start_anvil(*options).url
    give(url, OWNER.address)
    experiment = Experiment(tmp_path, 3)

    def mute(_node, question, reply):
        return None if read_stage(question.content)["stage"] == "commit" else reply

    experiment.meddle(1, mute)
    outcome = experiment.run(rounds=2, ledger=url, stage_seconds=10)
    assert [found.eliminated for found in outcome.history.rounds] == [{1: Stage.COMMIT}, {}]
    assert [set(found.openings) for found in outcome.history.rounds] == [{0, 2}, {0, 2}]
    refunded = [sum(found.refunded.values()) for found in outcome.history.rounds]
    assert sum(refunded) == 3 * 10 * TOKEN
    assert refunded[0] == (2 * 1 + 10) * TOKEN  # two stakes, and the bond that was lost


@pytest.fixture
def node(start_anvil, tmp_path):
    """A node that keeps its chain when it is stopped."""
    started = start_anvil("--state", str(tmp_path / "state.json"))
    give(started.url, OWNER.address)
    return started


def test_a_node_that_is_away_for_a_while_holds_the_run_up(tmp_path, node):
    federation = Federation(tmp_path, devices=2)
    back = []

    def go_away():
        node.stop(SIGTERM)
        back.append(Timer(1.5, node.start))
        back[-1].start()

    federation.devices[0].before_training = once(go_away)
    outcome = federation.run(rounds=2, ledger=node.url)
    assert len(back) == 1
    assert [len(version.accepted) for version in outcome.history.versions] == [2, 2, 0]
    outcome.verify()


def test_a_node_that_stays_away_ends_the_run_and_nothing_is_lost(tmp_path, node, monkeypatch):
    federation = Federation(tmp_path, devices=2)
    monkeypatch.setattr(JsonRpcLedger.__init__, "__defaults__", (None, 1, 60.0, 1.0))
    federation.devices[0].before_training = once(lambda: node.stop(SIGTERM))
    with pytest.raises(NodeError, match=f"no node answers at {node.url} .*, tried for 1 s"):
        federation.run(rounds=2, ledger=node.url)
    node.start()
    outcome = federation.run(rounds=2, ledger=node.url)
    assert [len(version.accepted) for version in outcome.history.versions] == [2, 2, 0]
    outcome.verify()


def test_a_reorganisation_deeper_than_was_waited_for_ends_the_run_which_goes_on_then(
    tmp_path, node
):
    federation = Federation(tmp_path, devices=2)
    depth = []

    def reorganise():
        if len(federation.devices[0].trained) == 1:
            depth.append(node.ask("anvil_reorg", 2, []))

    federation.devices[0].before_training = reorganise
    with pytest.raises(LedgerError, match="the ledger is at version 0, this run at 1"):
        federation.run(rounds=3, ledger=node.url)
    for device in federation.nodes:
        device.context.state = RecordDict()  # another run of Flower's
    outcome = federation.run(rounds=3, ledger=node.url)
    assert len(depth) == 1
    assert [len(version.accepted) for version in outcome.history.versions] == [2, 2, 2, 0]
    outcome.verify()


def once(action):
    """A function that does it the first time."""
    done = []

    def do():
        if not done:
            done.append(action())

    return do
