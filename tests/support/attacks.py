"""What agents of a BlockFLow experiment that do not follow the protocol do, and those who relay."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
from coincurve import PublicKey
from experiment import Experiment
from flwr.app import Message, MessageType
from local_grid import LocalGrid, Meddler, Node, delivered, silent

from flower_chain import audit_messages, messages
from flower_chain.audit_messages import AGGREGATE, AUDIT, COMMIT, RETRIEVE, REVEAL
from flower_chain.client.account import device_account
from flower_chain.client.auditor import Auditor
from flower_chain.peers import Peers
from flower_chain.plan import BlockFlowPlan
from flower_chain.records import Aggregate, Commitment, Retrieval, Scores, TrainedModel, sign
from flower_chain.rules.blockflow import ONE
from flower_chain.store import seal as seal_module
from flower_chain.store.cid import cid_of, cid_to_bytes
from flower_chain.store.seal import seal
from flower_chain.updates import Arrays, digest, pack

TRAIN = "train"
KINDS: dict[str, type[Any]] = {
    TRAIN: TrainedModel,
    RETRIEVE: Retrieval,
    COMMIT: Commitment,
    REVEAL: Scores,
    AGGREGATE: Aggregate,
}
"""What an agent says in a stage."""

Attack = Callable[[Experiment, Sequence[int]], None]
"""Makes agents with these numbers attack."""


def skip_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let time go on whenever this thread would wait, so that deadlines pass and nobody waits."""
    real, sleep, here, skipped = time.time, time.sleep, threading.get_ident(), [0.0]

    def skip(seconds: float) -> None:
        if threading.get_ident() != here:
            sleep(seconds)  # a thread that another test has left
        else:
            skipped.append(max(seconds, 1.0))

    monkeypatch.setattr(time, "time", lambda: real() + sum(skipped))
    monkeypatch.setattr(time, "sleep", skip)
    monkeypatch.setattr(Auditor.__init__, "__defaults__", (time.time,))
    monkeypatch.setattr(os, "fsync", lambda _: None)


class Relay(LocalGrid):
    """A grid that waits, as Flower's does, and may change what it passes on.

    Attributes
    ----------
    cheat : callable
        From what a node is to be sent to what it is sent instead; None for nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cheat: Callable[[Message], Message | None] = lambda question: question

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Who does not answer is waited for until the end."""
        questions = list(messages)
        replies = list(super().send_and_receive(questions, timeout=timeout))
        if len(replies) < len(questions):
            time.sleep(timeout or 0)
        return replies

    def _answer(self, message: Message) -> Message | None:
        passed_on = self.cheat(delivered(message))
        return None if passed_on is None else super()._answer(passed_on)


# --- agents --------------------------------------------------------------------------------------


def stage_of(question: Message) -> str | None:
    """What an agent is asked for, if it is asked as an agent."""
    record = question.content.config_records.get(audit_messages.STAGE)
    return None if record is None else str(record["stage"])


def meddle(experiment: Experiment, agent: int, stage: str, meddler: Meddler) -> None:
    """Let an agent send something else in one stage."""
    kind = MessageType.TRAIN if stage == TRAIN else AUDIT
    before = experiment.nodes[agent].meddlers.get(kind, as_it_is)

    def meddled(node: Node, question: Message, reply: Message) -> Message | None:
        chosen = meddler if stage_of(question) == stage else before
        return chosen(node, question, reply)

    experiment.meddle(agent, meddled, kind)


def as_it_is(_node: Node, _question: Message, reply: Message) -> Message:
    """What an honest agent sends."""
    return reply


def saying(stage: str, change: Callable[[Any, Message], Any]) -> Meddler:
    """Say something else in a stage, duly signed."""

    def meddler(node: Node, question: Message, reply: Message) -> Message:
        item, _ = audit_messages.read_one(reply.content, KINDS[stage])
        return with_said(node, question, reply, change(item, question))

    return meddler


def with_said(node: Node, question: Message, reply: Message, item: Any) -> Message:
    """A reply in which an agent says this, and signs it if that is to be signed."""
    domain = messages.read_domain(question.content)
    signature = b""
    if not isinstance(item, Scores):
        signature = sign(item.encode(domain), device_account(node.context))
    reply.content[audit_messages.SAID] = audit_messages.write_said([(item, signature)])
    return reply


def peers_in(question: Message) -> Peers:
    """Those whom a question is about."""
    request = messages.read_request(question.content, BlockFlowPlan)
    return Peers.of(request.plan, request.domain)


def last_said(experiment: Experiment, agent: int, stage: str) -> Any:
    """What an agent said last in a stage."""
    node = experiment.nodes[agent].context.node_id
    for question, reply in reversed(experiment.grid.said):
        if reply is not None and reply.metadata.src_node_id == node and stage_of(question) == stage:
            return audit_messages.read_one(reply.content, KINDS[stage])[0]
    raise LookupError(f"agent {agent} said nothing in the stage {stage}")


def collude(row_of: Callable[[int, Sequence[int], int], Sequence[int]]) -> Attack:
    """Commit to made-up scores, and reveal them.

    Parameters
    ----------
    row_of : callable
        From an agent's number, those of all who collude, and how many agents there are.
    """

    def attack(experiment: Experiment, attackers: Sequence[int]) -> None:
        for agent in attackers:
            row = tuple(row_of(agent, attackers, len(experiment.nodes)))
            for stage, change in made_up(row).items():
                meddle(experiment, agent, stage, saying(stage, change))

    return attack


def made_up(row: Sequence[int]) -> dict[str, Callable[[Any, Message], Any]]:
    """What an agent says that scores as it likes."""

    def scores(agent: int, number: int) -> Scores:
        return Scores(agent, number, tuple(row), b"\7" * 32)

    def commitment(said: Commitment, question: Message) -> Commitment:
        opening = scores(said.agent, said.round)
        return replace(said, digest=opening.commitment(messages.read_domain(question.content)))

    return {COMMIT: commitment, REVEAL: lambda said, _: scores(said.agent, said.round)}


def friends_perfect_others_zero(_: int, friends: Sequence[int], agents: int) -> list[int]:
    """papers/3 section 4.4."""
    return [ONE if agent in friends else 0 for agent in range(agents)]


def late_in(stage: str) -> Attack:
    """Do nothing in a stage while that would count."""

    def attack(experiment: Experiment, attackers: Sequence[int]) -> None:
        for agent in attackers:
            meddle(experiment, agent, stage, silent)

    return attack


def copy_a_commitment(experiment: Experiment, attackers: Sequence[int]) -> None:
    """Commit to what the first agent committed to, and reveal what it revealed."""

    def copied(stage: str) -> Callable[[Any, Message], Any]:
        return lambda said, _: replace(last_said(experiment, 0, stage), agent=said.agent)

    for agent in attackers:
        for stage in (COMMIT, REVEAL):
            meddle(experiment, agent, stage, saying(stage, copied(stage)))


def reveal_something_else(experiment: Experiment, attackers: Sequence[int]) -> None:
    """Reveal other scores than were committed to."""

    def other(said: Scores, _: Message) -> Scores:
        return replace(said, row=(*said.row[::-1][:-1], 7))

    for agent in attackers:
        meddle(experiment, agent, REVEAL, saying(REVEAL, other))


def contribute(model_of: Callable[[TrainedModel, Arrays, Peers], tuple[Any, bytes]]) -> Attack:
    """Contribute another model, duly signed; who colludes says that it could be retrieved.

    Parameters
    ----------
    model_of : callable
        From what an agent should sign, what it trained and its peers to what it signs and sends.
    """

    def attack(experiment: Experiment, attackers: Sequence[int]) -> None:
        everybody = tuple(range(len(experiment.nodes)))
        for agent in attackers:
            trained = experiment.devices[agent].trained

            def meddler(
                node: Node, question: Message, reply: Message, trained: Any = trained
            ) -> Message:
                said, _ = audit_messages.read_one(reply.content, TrainedModel)
                model, sealed = model_of(said, trained[-1][1], peers_in(question))
                signed = replace(model, cid=cid_to_bytes(cid_of(sealed)))
                reply.content[messages.SEALED] = messages.write_sealed(sealed)
                return with_said(node, question, reply, signed)

            meddle(experiment, agent, TRAIN, meddler)
            vouch = saying(RETRIEVE, lambda said, _: replace(said, retrieved=everybody))
            meddle(experiment, agent, RETRIEVE, vouch)

    return attack


def sealing(change: Callable[[Arrays], Arrays], **names: Any) -> Attack:
    """Contribute other arrays, as one should."""

    def model_of(said: TrainedModel, trained: Arrays, peers: Peers) -> tuple[TrainedModel, bytes]:
        packed = pack(change(trained))
        model = replace(said, **({"digest": digest(packed)} | names))
        return model, seal(packed, peers.recipients, peers.binding(model))

    return contribute(model_of)


def noise(said: TrainedModel, _trained: Arrays, peers: Peers) -> tuple[TrainedModel, bytes]:
    """Bytes that nobody can open, as many as there should be."""
    return said, os.urandom(peers.sealed_bytes)


def sealed_for_some(said: TrainedModel, trained: Arrays, peers: Peers) -> tuple[Any, bytes]:
    """A model that too few can open for all to have it, and enough to pass if these say so."""
    agents, attackers = len(peers.keys), (len(peers.keys) - 1) // 2
    enough = agents // 2 + 1 - attackers
    cut_off = {PublicKey(b"\4" + key) for key in peers.keys[enough : agents - attackers]}

    def wrap(content_key: bytes, ephemeral: Any, recipient: Any) -> bytes:
        other = recipient in cut_off
        return honest(os.urandom(32) if other else content_key, ephemeral, recipient)

    packed, honest = pack(trained), seal_module._wrap
    with patch.object(seal_module, "_wrap", wrap):
        return said, seal(packed, peers.recipients, peers.binding(said))


# --- relays --------------------------------------------------------------------------------------


def asked(question: Message, stage: str, node: Node | None = None) -> bool:
    """Whether this asks for something in a stage, of a node if one is named."""
    to = question.metadata.dst_node_id
    return stage_of(question) == stage and (node is None or to == node.context.node_id)


def edit_said(question: Message, kind: type[Any], edit: Callable[[list[Any]], list[Any]]) -> None:
    """Change what a question holds of what agents said, each with its signature."""
    kinds = (TrainedModel, Retrieval, Commitment, Scores)
    said = {each: audit_messages.read_said(question.content, each) for each in kinds}
    said[kind] = edit(said[kind])
    everything = [pair for each in said.values() for pair in each]
    question.content[audit_messages.SAID] = audit_messages.write_said(everything)


def refusals(experiment: Experiment, agent: int) -> list[str]:
    """What an agent said when it did not do what it was asked for."""
    node = experiment.nodes[agent].context.node_id
    replies = [reply for _, reply in experiment.grid.said if reply is not None]
    mine = [reply for reply in replies if reply.metadata.src_node_id == node]
    return [reply.error.reason for reply in mine if reply.has_error()]
