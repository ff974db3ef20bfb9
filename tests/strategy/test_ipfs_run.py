"""Whole runs over two real IPFS nodes: the server's, and the devices'."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import assert_refused
from experiment import Experiment, Task
from federation import OWNER, TRAIN, Federation, Outcome
from flwr.app import Message
from js_ipfs import JsIpfs
from local_grid import Node
from softmax import Device, examiner
from typer.testing import CliRunner, Result

import flower_chain.store
from flower_chain import audit_messages, messages
from flower_chain.cli import app
from flower_chain.client.account import device_account
from flower_chain.errors import ConfigError, StoreError
from flower_chain.ledger.blockflow import Stage
from flower_chain.messages import SEALED
from flower_chain.plan import Plan
from flower_chain.records import Refusal
from flower_chain.run import RecordAndRewardRun, open_run
from flower_chain.store import FOLDER, IpfsStore, cid_from_bytes, rpc
from flower_chain.verify import verify

pytestmark = pytest.mark.slow

Nodes = tuple[JsIpfs, JsIpfs]
Start = Callable[..., JsIpfs]


@pytest.fixture
def over_ipfs(tmp_path: Path, ipfs_nodes: Nodes) -> "OverIpfs":
    """Two devices with a node of their own, one without, and the server on another."""
    return OverIpfs(tmp_path, *ipfs_nodes)


class OverIpfs(Federation):
    """A federation whose server keeps what it stores on a node.

    Parameters
    ----------
    path : Path
    near, far : JsIpfs
        The server's node, and that of two devices.
    """

    def __init__(self, path: Path, near: JsIpfs, far: JsIpfs) -> None:
        super().__init__(path, devices=1)
        self.near, self.far = near, far
        for number in (1, 2):
            self.add(Device(number), store=far.url)

    def run(self, *args: Any, **settings: Any) -> Outcome:
        """From the first round to the last; what is left of it is opened anew."""
        outcome = super().run(*args, **({"store": self.near.url} | settings))
        return replace(outcome, run=RecordAndRewardRun.open(outcome.path))


def held_by(node: JsIpfs, outcome: Outcome, folder: str = "") -> dict[str, int]:
    """What a node holds of a run, in the server's folder or in that of a device."""
    with IpfsStore(node.url, f"{FOLDER}/{outcome.run.plan.run}{folder}") as store:
        return store.stored()


def call(*words: object) -> Result:
    """Call the command line."""
    return CliRunner().invoke(app, [str(word) for word in words])


# --- a run ---------------------------------------------------------------------------------------


def test_a_run_goes_over_ipfs_and_is_verified(over_ipfs: OverIpfs) -> None:
    outcome = over_ipfs.run(rounds=2)

    assert [len(outcome.accepted(version)) for version in range(2)] == [3, 3]
    assert outcome.verify()["accepted updates"] == 6
    assert not (over_ipfs.path / "run" / "store").exists()


def test_a_device_with_a_node_sends_only_the_cid(over_ipfs: OverIpfs) -> None:
    over_ipfs.run()

    replies = {
        reply.metadata.src_node_id: reply
        for question, reply in over_ipfs.grid.said
        if reply is not None and question.metadata.message_type == TRAIN
    }
    sent = [bool(replies[node.context.node_id].content.array_records) for node in over_ipfs.nodes]
    assert sent == [True, False, False]


def test_the_server_holds_all_that_the_ledger_names_in_the_runs_folder(over_ipfs: OverIpfs) -> None:
    outcome = over_ipfs.run(rounds=2)

    named = {content.cid for content in outcome.run.contents()}
    assert held_by(over_ipfs.near, outcome).keys() == named
    assert len(named) == 3 + 2 * 3


def test_a_device_keeps_on_its_node_what_it_sent_last(over_ipfs: OverIpfs) -> None:
    outcome = over_ipfs.run(rounds=2)

    account = over_ipfs.accounts[1]
    (last,) = [each for each in outcome.run.contents() if (each.round, each.device) == (1, account)]
    assert held_by(over_ipfs.far, outcome, f"/{account}").keys() == {last.cid}


def test_runs_share_a_node_and_not_what_they_hold(tmp_path: Path, ipfs_nodes: Nodes) -> None:
    one, other = (OverIpfs(tmp_path / name, *ipfs_nodes).run() for name in ("one", "other"))

    assert len(held_by(ipfs_nodes[0], one)) == len(held_by(ipfs_nodes[0], other)) == 5
    assert call("store", "gc", one.path, "--keep", "1").exit_code == 0
    other.verify()


def test_only_the_last_rounds_are_kept_on_the_node(over_ipfs: OverIpfs) -> None:
    outcome = over_ipfs.run(rounds=3, keep_rounds=1)

    assert held_by(over_ipfs.near, outcome).keys() == {each.cid for each in outcome.run.kept()}
    assert {each.round for each in outcome.run.kept()} == {2, 3}
    *_, report = verify(outcome.run, OWNER, examiner())
    assert report.unchecked == [
        "8 models and sealed files of rounds before 2: no longer there, by the plan's "
        "keep-rounds = 1"
    ]


def test_the_run_remembers_its_node_but_no_secret(
    over_ipfs: OverIpfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_PORT", over_ipfs.near.url.rpartition(":")[2])
    outcome = over_ipfs.run(store="http://127.0.0.1:${NODE_PORT}")

    assert outcome.run.pointers.store == "http://127.0.0.1:${NODE_PORT}"
    with closing(RecordAndRewardRun.open(over_ipfs.path / "run")) as opened:
        assert opened.current()[0].number == 1
    monkeypatch.delenv("NODE_PORT")
    with closing(RecordAndRewardRun.open(over_ipfs.path / "run")) as opened:
        assert opened.federation.version == 1, "what needs no store needs no node"
        with pytest.raises(ConfigError, match="NODE_PORT is not set"):
            opened.current()


# --- agents --------------------------------------------------------------------------------------


@pytest.fixture(params=[Experiment, Task])
def agents(request: pytest.FixtureRequest, tmp_path: Path, ipfs_nodes: Nodes) -> Experiment:
    """Three agents of each scheme; all but the last have a node of their own."""
    made: Experiment = request.param(tmp_path, 3)
    for node in made.nodes[:2]:
        node.context.node_config["store"] = ipfs_nodes[1].url
    return made


def test_agents_with_a_node_send_and_are_sent_no_models(
    agents: Experiment, ipfs_nodes: Nodes
) -> None:
    outcome = agents.run(rounds=2, store=ipfs_nodes[0].url)

    for question, reply in agents.grid.said:
        has_node = question.metadata.dst_node_id != agents.nodes[2].context.node_id
        if question.metadata.message_type == TRAIN:
            assert (SEALED in reply.content) is not has_node
        elif stage_of(question) == audit_messages.RETRIEVE:
            assert (audit_messages.MODELS in question.content) is not has_node
    history = outcome.history
    assert [list(record.retrievals[0].retrieved) for record in history.rounds] == [[0, 1, 2]] * 2
    done = call("verify", outcome.path, "--key", agents.path / "keys/0.key")
    assert done.exit_code == 0, done.output
    assert "6 opened models" in done.output


def test_agents_keep_the_last_rounds_on_the_servers_node_too(
    agents: Experiment, ipfs_nodes: Nodes
) -> None:
    outcome = agents.run(rounds=2, store=ipfs_nodes[0].url, keep_rounds=1)

    with closing(open_run(outcome.path)) as run:
        assert run.store.stored().keys() == {content.cid for content in run.kept()}
    assert "4 models and sealed files of rounds before 1" in call("verify", outcome.path).output


def test_an_agent_whose_model_no_node_has_is_out(
    agents: Experiment, ipfs_nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loses_it(node: Node, question: Message, reply: Message) -> Message:
        with IpfsStore(ipfs_nodes[1].url, folder_of(node, question)) as store:
            store.keep_only([])
        ipfs_nodes[1].ask("repo/gc")
        return reply

    make_hasty(monkeypatch)
    agents.meddle(1, loses_it, TRAIN)
    limits = {"train_seconds": 25, "quorum": 2}
    outcome = agents.run(store=ipfs_nodes[0].url, **limits)

    assert outcome.round.eliminated == {1: Stage.TRAIN}
    assert len(outcome.round.commitments) == 2


def stage_of(question: Message) -> object:
    """What an agent is asked for."""
    return question.content.config_records.get(audit_messages.STAGE, {}).get("stage")


# --- what is not there ---------------------------------------------------------------------------


def test_an_update_that_no_node_has_costs_that_update_only(
    over_ipfs: OverIpfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loses_it(node: Node, question: Message, reply: Message) -> Message:
        with IpfsStore(over_ipfs.far.url, folder_of(node, question)) as store:
            assert len(store.keep_only([])) == 1
        over_ipfs.far.ask("repo/gc")
        return reply

    make_hasty(monkeypatch)
    account = over_ipfs.meddle(loses_it)
    outcome = over_ipfs.run()

    assert outcome.refused() == [(account, Refusal.NOT_STORED)]
    assert len(outcome.accepted()) == 2
    outcome.verify()


def test_a_device_whose_node_is_away_costs_itself_only(over_ipfs: OverIpfs) -> None:
    over_ipfs.nodes[2].context.node_config["store"] = "http://127.0.0.1:9"
    outcome = over_ipfs.run()

    assert outcome.refused() == [(over_ipfs.accounts[2], Refusal.DEVICE_ERROR)]
    assert len(outcome.accepted()) == 2


def folder_of(node: Node, question: Message) -> str:
    """Where a device puts what it seals on its node."""
    plan = messages.read_request(question.content, Plan).plan  # type: ignore[type-abstract]
    return f"{FOLDER}/{plan.run}/{device_account(node.context).address}"


def make_hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nodes be given up soon."""
    monkeypatch.setattr(rpc.HttpRpc.__init__, "__defaults__", (5.0,))
    monkeypatch.setattr(flower_chain.store, "PATIENCE", 2.0)


def test_a_node_that_does_not_answer_ends_the_run_before_anything_is_deployed(
    tmp_path: Path,
) -> None:
    with pytest.raises(StoreError, match=r"no IPFS node answers at http://127.0.0.1:9 .*start one"):
        Federation(tmp_path, devices=2).run(store="http://127.0.0.1:9")
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_node_that_goes_away_ends_the_run_which_goes_on_when_it_is_back(
    tmp_path: Path, start_ipfs: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, federation = start_ipfs(), Federation(tmp_path, devices=2)
    times = iter(range(100))

    def kills_it_in_the_second_round(_node: Node, _question: Message, reply: Message) -> Message:
        if next(times) == 1:
            node.kill()
        return reply

    make_hasty(monkeypatch)
    federation.meddle(kills_it_in_the_second_round)
    with pytest.raises(StoreError, match=f"no IPFS node answers at {node.url}.*start one there"):
        federation.run(rounds=3, store=node.url)
    node.start()
    outcome = federation.run(rounds=3, store=node.url)

    assert [len(outcome.accepted(version)) for version in range(3)] == [2, 2, 2]
    assert call("verify", outcome.path).exit_code == 0


def test_a_node_that_is_soon_back_is_waited_for(tmp_path: Path, start_ipfs: Start) -> None:
    node, federation = start_ipfs(), Federation(tmp_path, devices=2)
    restarted = []

    def restarts_it(_node: Node, _question: Message, reply: Message) -> Message:
        if not restarted:
            node.kill()
            node.start()
            restarted.append(node.pid)
        return reply

    federation.meddle(restarts_it)
    outcome = federation.run(rounds=2, store=node.url)

    assert [len(outcome.accepted(version)) for version in range(2)] == [2, 2]


# --- moving --------------------------------------------------------------------------------------


def test_a_run_moves_from_its_directory_to_a_node_and_goes_on(over_ipfs: OverIpfs) -> None:
    for node in over_ipfs.nodes[1:]:
        del node.context.node_config["store"]
    path, url = over_ipfs.path / "run", over_ipfs.near.url
    over_ipfs.run(rounds=1, store="")
    with pytest.raises(ConfigError, match=f"flower-chain store move {path} {url}"):
        over_ipfs.run(rounds=2)

    done = call("store", "move", path, url)
    assert done.exit_code == 0, done.output
    assert f"goes on in {url}: 5 files" in done.output
    outcome = over_ipfs.run(rounds=2)
    assert outcome.verify()["models"] == 3
    assert len(held_by(over_ipfs.near, outcome)) == 9


def test_a_run_moves_from_a_node_to_its_directory_and_goes_on(over_ipfs: OverIpfs) -> None:
    path = over_ipfs.path / "run"
    over_ipfs.run(rounds=2, keep_rounds=1)
    with pytest.raises(ConfigError, match="has its records in http"):
        over_ipfs.run(rounds=3, store="", keep_rounds=1)

    assert call("store", "move", path).exit_code == 0
    for node in over_ipfs.nodes[1:]:
        del node.context.node_config["store"]
    outcome = over_ipfs.run(rounds=3, store="", keep_rounds=1)
    assert len(list((path / "store").iterdir())) == 5
    outcome.verify()


def test_a_run_does_not_move_if_something_needed_is_missing(over_ipfs: OverIpfs) -> None:
    outcome = over_ipfs.run(store="", rounds=0)
    model = cid_from_bytes(outcome.history.versions[0].model.cid)
    outcome.run.store.remove(model)

    done = call("store", "move", outcome.path, over_ipfs.near.url)
    assert_refused(done, "NotStored", model)
    with closing(RecordAndRewardRun.open(outcome.path)) as run:
        assert run.pointers.store == ""


# --- others --------------------------------------------------------------------------------------


def test_a_third_party_verifies_through_a_node_of_its_own(
    over_ipfs: OverIpfs, tmp_path: Path
) -> None:
    outcome = over_ipfs.run(rounds=2)
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("run.json", "ledger.journal"):
        (copy / name).write_bytes((outcome.path / name).read_bytes())

    done = call("verify", copy, "--store", over_ipfs.far.url)
    assert done.exit_code == 0, done.output
    assert "6 stored updates" in done.output


def test_a_third_party_is_told_what_its_node_does_not_find(
    over_ipfs: OverIpfs, start_ipfs: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome, alone = over_ipfs.run(), start_ipfs()
    make_hasty(monkeypatch)

    assert_refused(
        call("verify", outcome.path, "--store", alone.url), "Unverified", "version 0, model"
    )
