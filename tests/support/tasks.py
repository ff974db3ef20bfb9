"""What an owner sends to a device, without a server."""

import hashlib
from typing import Any

from eth_account import Account
from eth_account.signers.local import LocalAccount
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from local_grid import Node, delivered
from softmax import examiner, fresh, record

from flower_chain import messages
from flower_chain.messages import Request, Samples
from flower_chain.plan import IN_THE_CLEAR, WITHOUT_NOISE, RecordAndRewardPlan
from flower_chain.records import Domain, Task, sign
from flower_chain.rules.record_and_reward import Rule
from flower_chain.updates import Arrays, Format, digest, pack

OWNER: LocalAccount = Account.from_key(hashlib.sha256(b"owner").digest())
DOMAIN = Domain(1337, "0x46D022Ff70B037eC89455189a6751F4c8597Aa8d")


def a_plan(**terms: Any) -> RecordAndRewardPlan:
    """The default terms, but for some."""
    default: dict[str, Any] = (
        {
            "run": "0123456789abcdef",
            "model": Format.of(fresh()),
            "rule": Rule.GAIN,
            "threshold_ppm": 100_000,
            "gain_ppm": 30_000,
            "clear_ppm": 120_000,
            "harm_ppm": 720_000,
            "least_ppm": 100_000,
            "rate": 10**15,
            "max_data_cost": 100_000,
            "patience_s": 604_800,
            "aggregation": "mean",
            "inner": "FedAvg",
            "learning_rate": 1.0,
            "samples_per_class": 20,
            "validation_digest": "ab" * 32,
            "tolerance_ppm": 10_000,
            "readers": "",
            "keep_rounds": 0,
        }
        | WITHOUT_NOISE
        | IN_THE_CLEAR
    )
    return RecordAndRewardPlan(**(default | terms))


def a_private_plan(privacy: str = "gaussian", **terms: Any) -> RecordAndRewardPlan:
    """Terms of a run with a privacy budget, but for some."""
    default: dict[str, Any] = {
        "privacy": privacy,
        "clip": 1.0,
        "noise": 2.0,
        "accountant": "rdp",
        "budget": 8_000_000,
        "delta": 1e-5,
        "sample_rate": 1.0,
        "steps": 1,
    }
    if privacy == "laplace":
        default |= {"accountant": "pure", "delta": 0.0}
    if privacy == "dp-sgd":
        default |= {"sample_rate": 0.1, "steps": 10}
    return a_plan(**(default | terms))


def samples() -> Samples:
    """Of the owner's data."""
    return Samples(*examiner().draw(b"\1" * 32, OWNER.address, range(10), 5))


def task_for(
    node: Node,
    arrays: Arrays | None = None,
    version: int = 0,
    plan: RecordAndRewardPlan | None = None,
    domain: Domain = DOMAIN,
    owner: LocalAccount = OWNER,
    tested: Samples | None = None,
    **request: Any,
) -> Message:
    """A training message as the strategy sends it.

    Parameters
    ----------
    node : Node
    arrays : Arrays, optional
        The model, fresh if nothing is said.
    version : int
    plan : RecordAndRewardPlan, optional
    domain : Domain
    owner : LocalAccount
        Who signs.
    tested : Samples, optional
        The owner's validation samples.
    request : dict
        ``signature`` or ``model_digest``, if they are to be others.
    """
    model = fresh() if arrays is None else arrays
    terms = a_plan() if plan is None else plan
    named = request.get("model_digest", digest(pack(model)))
    task = Task(version, named, terms.digest)
    signature = request.get("signature", sign(task.encode(domain), owner))
    config = ConfigRecord({"server-round": version + 1})
    content = RecordDict({"arrays": record(model), "config": config})
    messages.write_request(content, Request(task, signature, domain, terms), tested)
    message = Message(content, dst_node_id=node.context.node_id, message_type=MessageType.TRAIN)
    return delivered(message)
