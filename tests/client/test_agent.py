"""A device as an agent of BlockFLow: what it answers to whom, and what it refuses to answer."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eth_account import Account
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from local_grid import LocalGrid, delivered
from softmax import Device, fresh, record

from flower_chain import audit_messages, messages
from flower_chain.audit_messages import AGGREGATE, AUDIT, COMMIT, JOIN, RETRIEVE, REVEAL
from flower_chain.keys import public_key
from flower_chain.messages import Request
from flower_chain.peers import Peers
from flower_chain.plan import BlockFlowPlan
from flower_chain.records import (
    Aggregate,
    BondPermit,
    Commitment,
    Domain,
    Retrieval,
    Scores,
    Task,
    TrainedModel,
    recover,
    sign,
)
from flower_chain.updates import Arrays, Format, digest, pack

OWNER = Account.from_key(hashlib.sha256(b"owner").digest())
TOKEN = "0x46D022Ff70B037eC89455189a6751F4c8597Aa8d"
DOMAIN = Domain(7, TOKEN)
DEVICES = sorted((Device(n, measures=False) for n in range(3)), key=lambda d: d.account.address)
ARRAYS = fresh()


def a_plan(**terms: Any) -> BlockFlowPlan:
    """One round of three agents, but for some terms."""
    agents = sorted(DEVICES, key=lambda device: device.account.address.lower())
    default: dict[str, Any] = {
        "run": "0123456789abcdef",
        "model": Format.of(ARRAYS),
        "inner": "FedAvg",
        "readers": "",
        "keep_rounds": 0,
        "first": digest(pack(ARRAYS)).hex(),
        "agents": " ".join(public_key(device.account).hex() for device in agents),
        "rounds": 3,
        "quorum": 3,
        "bond": 10**19,
        "stake": 10**18,
        "train_s": 60,
        "stage_s": 60,
        "auditors": 0,
        "metric": "accuracy",
    }
    return BlockFlowPlan(**(default | terms))


class Server:
    """Asks one device, as the strategy does.

    Parameters
    ----------
    folder : Path
        Where the device's key is.
    device : Device
    node_config : dict
        Of its SuperNode.
    """

    def __init__(self, folder: Path, device: Device = DEVICES[0], **node_config: Any) -> None:
        settings = {"max_bond": 10} | node_config
        self.device = device
        self.node = device.join(LocalGrid(), folder, **settings)
        self.peers = Peers.of(a_plan(), DOMAIN)
        self.number = self.peers.accounts.index(device.account.address)

    def ask(
        self,
        stage: str,
        version: int = 0,
        model: Arrays = ARRAYS,
        plan: BlockFlowPlan | None = None,
        domain: Domain = DOMAIN,
        by: Any = OWNER,
        said: Any = (),
        kind: str = AUDIT,
        edit: Any = None,
        **told: Any,
    ) -> Message:
        """What the device replies."""
        plan = plan or a_plan()
        task = Task(version, digest(pack(model)), plan.digest)
        content = RecordDict()
        messages.write_request(content, Request(task, sign(task.encode(domain), by), domain, plan))
        content[audit_messages.STAGE] = audit_messages.write_stage(stage, **told)
        content[audit_messages.SAID] = audit_messages.write_said(said)
        if kind == MessageType.TRAIN or stage == JOIN:
            content["arrays"] = record(model)
            content["config"] = ConfigRecord({"server-round": version + 1})
        if edit is not None:
            edit(content)
        message = Message(content, dst_node_id=self.node.context.node_id, message_type=kind)
        reply = self.node.answer(delivered(message))
        assert reply is not None
        return reply

    def permit(self, **changes: Any) -> BondPermit:
        """What an agent is asked to sign."""
        account = self.device.account.address
        default = BondPermit(7, TOKEN, "Token", "1", account, DOMAIN.contract, 10**19, 0, 99)
        return replace(default, **changes)

    def join(self, changes: Any = None, **asked: Any) -> Message:
        """Ask for the bond."""
        told = audit_messages.write_permit(self.permit(**(changes or {})))
        return self.ask(JOIN, **(told | asked))

    def train(self, **asked: Any) -> Message:
        """Ask for a model."""
        return self.ask("train", kind=MessageType.TRAIN, **asked)


def assert_refused(reply: Message, words: str, error: str = "TaskRefused") -> None:
    """The device does not do it, and tells why."""
    assert reply.has_error()
    assert error in reply.error.reason
    assert words in reply.error.reason


@pytest.fixture
def server(tmp_path: Path) -> Server:
    """One that has asked nothing yet."""
    return Server(tmp_path)


# --- join ----------------------------------------------------------------------------------------


def test_a_device_signs_for_its_bond(server: Server) -> None:
    record = audit_messages.read_stage(server.join().content)
    signer = recover(server.permit().encode(), bytes(record["signature"]))
    assert signer == server.device.account.address


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chain_id": 8}, "the permit's chain-id is 8"),
        ({"spender": OWNER.address}, "the permit's spender"),
        ({"owner": OWNER.address}, "the permit's owner"),
        ({"value": 10**19 + 1}, "the permit's value"),
        ({"value": 10**19 - 1}, "the permit's value"),
    ],
)
def test_a_permit_for_something_else_than_the_bond_is_not_signed(
    server: Server, changes: dict[str, Any], words: str
) -> None:
    assert_refused(server.join(changes), words)


@pytest.mark.parametrize("most", [0, 9.99, "10", None])
def test_a_bond_above_what_the_operator_allows_is_not_posted(tmp_path: Path, most: Any) -> None:
    server = Server(tmp_path)
    del server.node.context.node_config["max-bond"]
    if most is not None:
        server.node.context.node_config["max-bond"] = most
    assert_refused(server.join(), "the bond is 10 tokens, but max-bond")


def test_nothing_is_posted_for_another_first_model(server: Server) -> None:
    assert_refused(server.join(model=ARRAYS | {"bias": np.ones(10, np.float32)}), "the first model")


def test_nothing_is_posted_if_evaluate_gives_no_score(server: Server) -> None:
    plan = a_plan(metric="num-examples")
    assert_refused(server.join(plan=plan), "a score must be in [0, 1]", "ConfigError")


def test_a_device_that_is_none_of_the_agents_says_so(tmp_path: Path) -> None:
    others = [device for device in DEVICES if device.account != DEVICES[0].account]
    keys = sorted((d.account for d in others), key=lambda account: account.address.lower())
    plan = a_plan(agents=" ".join(public_key(key).hex() for key in keys), quorum=2)
    assert_refused(Server(tmp_path).join(plan=plan), "is none of the agents")


# --- whose questions -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"by": Account.from_key(b"\7" * 32)}, "the run's owner"),
        ({"plan": a_plan(bond=10**18 * 9)}, "the run's plan"),
        ({"domain": Domain(8, TOKEN)}, "the run's chain-id"),
        ({"domain": Domain(7, OWNER.address)}, "the run's contract"),
    ],
)
def test_a_device_stays_with_the_experiment_that_it_joined(
    server: Server, other: dict[str, Any], words: str
) -> None:
    server.join()
    assert_refused(server.train(**other), words)
    assert server.device.trained == []


def test_a_question_of_a_round_that_is_over_is_not_answered(server: Server) -> None:
    server.ask(REVEAL, version=1)
    assert_refused(server.ask(REVEAL), "version 0, but 1 was seen")


def setting(name: str, value: Any) -> Any:
    """A question whose signed part holds something else."""

    def edit(content: RecordDict) -> None:
        changed = dict(content[messages.RECORD]) | {name: value}
        content[messages.RECORD] = ConfigRecord(changed)

    return edit


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("version", -1),
        ("version", 2**32),
        ("chain-id", -1),
        ("model-digest", bytes(31)),
        ("model-digest", bytes(33)),
        ("contract", "0x12"),
        ("plan", "{}"),
        ("plan", "[" * 10**5),
        ("plan", a_plan().to_json().replace("blockflow", "no-such-scheme")),
        ("signature", 7),
    ],
)
@pytest.mark.parametrize("stage", ["train", JOIN, RETRIEVE, COMMIT, REVEAL, AGGREGATE])
def test_a_task_that_nobody_could_have_signed_is_told(
    server: Server, stage: str, name: str, value: Any
) -> None:
    kind = MessageType.TRAIN if stage == "train" else AUDIT
    assert_refused(server.ask(stage, kind=kind, edit=setting(name, value)), "", "FormatError")


@pytest.mark.parametrize("signature", [b"", bytes(64), b"\xff" * 64, bytes(65)])
def test_a_task_that_nobody_signed_is_refused(server: Server, signature: bytes) -> None:
    assert_refused(server.train(edit=setting("signature", signature)), "the task is not signed")


@pytest.mark.parametrize("stage", ["", "train", "score", "join "])
def test_a_stage_that_there_is_not_is_told(server: Server, stage: str) -> None:
    assert_refused(server.ask(stage), "there is none", "FormatError")


# --- train ---------------------------------------------------------------------------------------

NO_MODELS: dict[str, Any] = {
    "no arrays": ArrayRecord({"weight": Array("float32", (9,), "numpy.ndarray", b"\x93NUMPY")}),
    "objects": ArrayRecord({"weight": Array("object", (1,), "numpy.ndarray", b"\x80\x04N.")}),
    "bytes of another kind": ArrayRecord({"weight": Array("float32", (1,), "torch", b"1234")}),
}


@pytest.mark.parametrize("what", NO_MODELS)
@pytest.mark.parametrize("stage", ["train", JOIN])
def test_what_is_no_model_is_told(server: Server, stage: str, what: str) -> None:
    def edit(content: RecordDict) -> None:
        content["arrays"] = NO_MODELS[what]

    told = audit_messages.write_permit(server.permit()) if stage == JOIN else {}
    kind = AUDIT if stage == JOIN else MessageType.TRAIN
    assert_refused(server.ask(stage, kind=kind, edit=edit, **told), "not an array", "FormatError")


@pytest.mark.parametrize("stage", ["train", JOIN])
def test_one_model_is_trained(server: Server, stage: str) -> None:
    def edit(content: RecordDict) -> None:
        content["more"] = record(ARRAYS)

    told = audit_messages.write_permit(server.permit()) if stage == JOIN else {}
    kind = AUDIT if stage == JOIN else MessageType.TRAIN
    assert_refused(server.ask(stage, kind=kind, edit=edit, **told), "expected one", "FormatError")


def test_a_device_that_is_asked_again_sends_the_same_and_does_not_train_again(
    tmp_path: Path,
) -> None:
    server = Server(tmp_path, Device(DEVICES[0].number, measures=False))
    first, again = server.train(), server.train()
    assert dict(first.content[messages.SEALED]) == dict(again.content[messages.SEALED])
    assert dict(first.content[audit_messages.SAID]) == dict(again.content[audit_messages.SAID])
    assert len(server.device.trained) == 1


def test_a_round_that_a_device_knows_nothing_of_is_not_gone_on_from(server: Server) -> None:
    assert_refused(server.train(version=1), "was not asked to train in round 0")


# --- the other stages ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (COMMIT, "did not pass"),
        (REVEAL, "has not committed"),
        (AGGREGATE, "was not asked to train"),
    ],
)
def test_nothing_is_said_before_its_time(server: Server, stage: str, words: str) -> None:
    assert_refused(server.ask(stage), words)


def test_what_strangers_said_does_not_count(server: Server) -> None:
    """Nor does it keep the agent from hearing the others."""
    said = server.train().content
    own, by = audit_messages.read_one(said, TrainedModel)
    stranger = Account.from_key(b"\7" * 32)
    forged = replace(own, agent=(server.number + 1) % 3)
    nobodys = replace(own, agent=100)
    items = [(x, sign(x.encode(DOMAIN), stranger)) for x in (forged, nobodys)]
    reply = server.ask(RETRIEVE, said=[*items, (own, by)])
    report, signature = audit_messages.read_one(reply.content, Retrieval)
    assert report.retrieved == (server.number,)
    assert server.peers.is_signed(report, signature)


@pytest.mark.parametrize("kind", [TrainedModel, Retrieval, Commitment, Scores])
@pytest.mark.parametrize("stage", [RETRIEVE, COMMIT, REVEAL, AGGREGATE])
def test_what_can_not_be_read_is_told_where_it_is_asked_for(
    server: Server, stage: str, kind: type[Any]
) -> None:
    heard = {
        RETRIEVE: (TrainedModel,),
        COMMIT: (Retrieval,),
        REVEAL: (Commitment,),
        AGGREGATE: (Commitment, Scores),
    }

    def edit(content: RecordDict) -> None:
        content[audit_messages.SAID] = ConfigRecord({kind.__name__: ["{}"]})

    server.train()
    reply = server.ask(stage, edit=edit)
    if kind in heard[stage]:
        assert_refused(reply, "not what an agent says", "FormatError")
    else:
        assert not reply.has_error() or "TaskRefused" in reply.error.reason


def test_one_agent_alone_goes_through_all_stages(tmp_path: Path) -> None:
    """And tells the model that it computed with its signature, the arrays only if asked for."""
    server = Server(tmp_path)
    plan = a_plan(agents=public_key(server.device.account).hex(), quorum=1)
    trained = server.train(plan=plan).content
    sealed = messages.read_sealed(trained)
    assert sealed is not None

    def give(content: RecordDict) -> None:
        content[audit_messages.MODELS] = audit_messages.write_models([(0, sealed)])

    model = audit_messages.read_one(trained, TrainedModel)
    reply = server.ask(RETRIEVE, plan=plan, said=[model], edit=give)
    report = audit_messages.read_one(reply.content, Retrieval)
    reply = server.ask(COMMIT, plan=plan, said=[report], **{"arrays-key": "arrays"})
    commitment = audit_messages.read_one(reply.content, Commitment)
    reply = server.ask(REVEAL, plan=plan, said=[commitment])
    opening = audit_messages.read_one(reply.content, Scores)
    assert opening[0].commitment(DOMAIN) == commitment[0].digest
    reply = server.ask(AGGREGATE, plan=plan, said=[commitment, opening])
    told, signature = audit_messages.read_one(reply.content, Aggregate)
    assert Peers.of(plan, DOMAIN).is_signed(told, signature)
    assert told.digest == model[0].digest
    assert len(reply.content.array_records) == 0
    reply = server.ask(AGGREGATE, plan=plan, said=[commitment, opening], **{"arrays-key": "arrays"})
    assert digest(pack(messages.read_model(reply.content))) == told.digest
