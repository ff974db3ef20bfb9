"""The same round on a real node: one line of configuration."""

import pytest
from federation import OWNER, Federation

from flower_chain.errors import ConfigError, NodeError, WrongChain
from flower_chain.ledger import JsonRpcLedger
from flower_chain.run import Run


def test_a_run_on_a_node_is_recorded_paid_and_verified(tmp_path, anvil):
    fund(anvil)
    federation = Federation(tmp_path, devices=3)
    outcome = federation.run(rounds=2, ledger=anvil)
    assert [len(version.accepted) for version in outcome.history.versions] == [3, 3, 0]
    assert outcome.verify()["aggregates"] == 2
    assert not (outcome.path / "ledger.journal").exists()


def test_a_node_on_another_chain_than_the_run_is_refused(tmp_path, anvil):
    fund(anvil)
    outcome = Federation(tmp_path, devices=2).run(ledger=anvil)
    pointers = outcome.path / "run.json"
    chain_id = outcome.run.pointers.chain_id
    pointers.write_text(pointers.read_text().replace(f'"chain_id": {chain_id}', '"chain_id": 7'))
    with pytest.raises(WrongChain, match=f"is on chain {chain_id}, but the run is on 7"):
        Run.open(outcome.path)


def test_a_journal_of_another_chain_than_the_run_is_refused(tmp_path):
    first = Federation(tmp_path / "a", devices=2).run()
    second = Federation(tmp_path / "b", devices=2).run()
    (first.path / "ledger.journal").write_bytes((second.path / "ledger.journal").read_bytes())
    with pytest.raises(WrongChain, match="the journal is of chain"):
        Run.open(first.path)


def test_an_unreachable_node_ends_the_run_before_training(tmp_path):
    federation = Federation(tmp_path, devices=2)
    with pytest.raises(NodeError, match=r"no node answers at http://127\.0\.0\.1:1"):
        federation.run(ledger="http://127.0.0.1:1")
    assert federation.grid.said == []


def test_a_folder_that_holds_a_run_is_not_used_again(tmp_path):
    Federation(tmp_path, devices=2).run()
    with pytest.raises(ConfigError, match="holds a run already"):
        Federation(tmp_path, devices=2).run()


def fund(url: str) -> None:
    """Give the owner what gas costs."""
    ledger = JsonRpcLedger(url)
    ledger._web3.provider.make_request("anvil_setBalance", [OWNER.address, hex(10**21)])
