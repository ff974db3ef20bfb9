"""A device as an agent that audits others: Flower's messages, answered by an Auditor."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from logging import WARNING
from pathlib import Path

from eth_account.signers.local import LocalAccount
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.common import log

from flower_chain import audit_messages, durable, messages
from flower_chain.client.account import key_file
from flower_chain.client.auditor import Auditor
from flower_chain.client.own_store import OwnStore
from flower_chain.client.task import check_model, check_owner
from flower_chain.errors import ConfigError, FormatError, TaskRefused
from flower_chain.peers import Peers
from flower_chain.plan import PeersPlan
from flower_chain.records import (
    TOKEN_UNITS,
    Aggregate,
    Commitment,
    Leave,
    Retrieval,
    Scores,
    SignedBy,
    TrainedModel,
    sign,
)
from flower_chain.updates import Arrays, digest_of

Evaluate = Callable[[str, Arrays, Sequence[str]], list[float]]
"""From the key of a model's record, the model, and the names of metrics to what ``evaluate()`` says
of the model on the device's own data."""

LEAVE_AFTER = "leave-after"
"""In a SuperNode's ``--node-config``: after how many rounds the device leaves, with its deposit."""


class Agent:
    """What a device does in one stage of an experiment.

    Parameters
    ----------
    content : RecordDict
        What the message holds.
    context : Context
    account : LocalAccount
    evaluate : Evaluate

    Raises
    ------
    TaskRefused
        If the message is not of the experiment that the device takes part in.
    FormatError
        If there is no task in it.
    """

    def __init__(
        self,
        content: RecordDict,
        context: Context,
        account: LocalAccount,
        evaluate: Evaluate,
    ) -> None:
        request = messages.read_request(content, PeersPlan)  # type: ignore[type-abstract] # only read
        check_owner(request, context)
        self._request, self._plan, self._context = request, request.plan, context
        self._account, self._evaluate = account, evaluate
        self._round = request.task.version
        experiment = f"{request.domain.chain_id}-{request.domain.contract}"
        self._folder = Path(f"{key_file(context)}.audits") / experiment
        self._peers = Peers.of(request.plan, request.domain)
        self._auditor = Auditor(self._folder, account, self._peers)

    def alone(self) -> AbstractContextManager[None]:
        """Whatever the agent does it does in here: it may be busy for a server that was killed."""
        return durable.alone(self._folder / "lock")

    # -- train --------------------------------------------------------------------------------

    def sent_before(self) -> RecordDict | None:
        """What the agent sent in this round, if it has trained already."""
        said = self._auditor.contributed(self._round)
        return None if said is None else self._send(*said)

    def begin(self, message: Message, received: ArrayRecord) -> None:
        """Refuse to train on another model than the one that all agents computed.

        If the server aggregates, its signature of the model is all that there is.

        Raises
        ------
        TaskRefused
        """
        check_model(received, self._request)
        arrays = messages.views(received)
        if self._round == 0:
            self._check_first(arrays)
        elif not self._plan.server_aggregates:
            expected = self._aggregate(self._round - 1, message.content)
            self._auditor.check(expected, arrays)
        self._auditor.begin(self._round, arrays)

    def contribute(self, trained: ArrayRecord) -> RecordDict:
        """What the agent sends in place of the model that it trained."""
        return self._send(*self._auditor.contribute(self._round, messages.views(trained)))

    def _send(self, said: SignedBy[TrainedModel], sealed: bytes) -> RecordDict:
        """What the agent said of its model, with the model unless that is put in its own store."""
        content = _said(*said)
        with self._own_store() as store:
            if store is None:
                content[messages.SEALED] = messages.write_sealed(sealed)
            else:
                store.put(sealed)
        return content

    def _own_store(self) -> AbstractContextManager[OwnStore | None]:
        return OwnStore.of(self._context, self._plan.run, self._account.address)

    def _check_first(self, received: Arrays) -> None:
        if (found := digest_of(received).hex()) != self._plan.first:
            raise TaskRefused(f"the first model has digest {found}, the plan's {self._plan.first}")

    def _aggregate(self, number: int, content: RecordDict) -> Arrays:
        """The model that a round ended with, from what was revealed in it."""
        return self._auditor.aggregate(
            number,
            audit_messages.read_said(content, Commitment),
            [opening for opening, _ in audit_messages.read_said(content, Scores)],
            self._auditor.received(number),
        )

    # -- the other stages ---------------------------------------------------------------------

    def answer(self, message: Message) -> RecordDict:
        """What the agent says when it is asked.

        Raises
        ------
        TaskRefused
            If it won't say it.
        FormatError
            If that is not a question.
        """
        content = message.content
        match audit_messages.read_stage(content)["stage"]:
            case audit_messages.JOIN:
                return self._join(content)
            case audit_messages.RETRIEVE:
                return self._retrieve(content)
            case audit_messages.COMMIT:
                return self._commit(content)
            case audit_messages.REVEAL:
                return self._reveal(content)
            case audit_messages.AGGREGATE:
                return self._tell_aggregate(content)
            case other:
                raise FormatError(f"stage = {other!r}: there is none")

    def _join(self, content: RecordDict) -> RecordDict:
        """Leave to take the bond, if the device can do what is asked of it."""
        told = audit_messages.read_stage(content)
        permit = audit_messages.read_permit(told)
        self._check_bond()
        asked = {
            "chain-id": (permit.chain_id, self._request.domain.chain_id),
            "spender": (permit.spender, self._request.domain.contract),
            "owner": (permit.owner, self._account.address),
            "value": (permit.value, self._plan.bond),
        }
        for name, (found, agreed) in asked.items():
            if found != agreed:
                raise TaskRefused(f"the permit's {name} is {found}, by the plan {agreed}")
        first = messages.read_model(content)
        self._check_first(first)
        self._score(next(iter(content.array_records)), first)
        signature = sign(permit.encode(), self._account)
        answer = audit_messages.write_stage(audit_messages.JOIN, signature=signature)
        return RecordDict({audit_messages.STAGE: answer})

    def _check_bond(self) -> None:
        """In a simulation bonds are play money; elsewhere the device's operator sets a limit."""
        config = self._context.node_config
        if "key-file" not in config and "max-bond" not in config:
            return
        most = config.get("max-bond", 0)
        if not isinstance(most, int | float) or self._plan.bond > most * TOKEN_UNITS:
            raise TaskRefused(
                f"the bond is {self._plan.bond / TOKEN_UNITS:g} tokens, but max-bond in the "
                f"SuperNode's --node-config is {most!r}"
            )

    def _retrieve(self, content: RecordDict) -> RecordDict:
        signed = audit_messages.read_said(content, TrainedModel)
        sealed = audit_messages.read_models(content)
        sealed |= self._found([model for model, _ in signed if model.agent not in sealed])
        models = [(said, sealed.get(said[0].agent, b"")) for said in signed]
        for agent, fault in self._auditor.retrieve(self._round, models).items():
            log(WARNING, "The model of agent %d can't be used: %s", agent, fault)
        return _said(*self._auditor.report(self._round))

    def _found(self, models: Sequence[TrainedModel]) -> dict[int, bytes]:
        """The sealed models that the agent finds by its own store, by agent."""
        with self._own_store() as store:
            if store is None:
                return {}
            found = store.find([model.cid for model in models], self._peers.sealed_bytes)
        return {model.agent: sealed for model, sealed in zip(models, found, strict=True)}

    def _commit(self, content: RecordDict) -> RecordDict:
        key = str(audit_messages.read_stage(content).get("arrays-key"))
        said = audit_messages.read_said(content, Retrieval)
        return _said(*self._auditor.commit(self._round, said, lambda m: self._judge(key, m)))

    def _reveal(self, content: RecordDict) -> RecordDict:
        """The scores; and that the device leaves, if its operator wants that after this round."""
        scores = self._auditor.reveal(self._round, audit_messages.read_said(content, Commitment))
        if not self._leaves():
            return _said(scores)
        leave = Leave(self._auditor.number, self._round)
        signature = sign(leave.encode(self._request.domain), self._account)
        said = audit_messages.write_said([(scores, b""), (leave, signature)])
        return RecordDict({audit_messages.SAID: said})

    def _leaves(self) -> bool:
        after = self._context.node_config.get(LEAVE_AFTER, math.inf)
        if not isinstance(after, int | float):
            raise ConfigError(
                f"{LEAVE_AFTER} = {after!r} in the SuperNode's --node-config: it must be a number"
            )
        return after <= self._round + 1

    def _judge(self, key: str, model: Arrays) -> float:
        """The score of an agent's model; one that ``evaluate()`` fails on is worth nothing."""
        try:
            return self._score(key, model)
        except Exception as fault:  # the user's code, and whatever a stranger's model does to it
            log(WARNING, "A model gets no points: evaluate() failed on it: %s", fault)
            return 0.0

    def _score(self, key: str, model: Arrays) -> float:
        measured = self._evaluate(key, model, self._plan.metrics)
        for name, found in zip(self._plan.metrics, measured, strict=True):
            if not 0 <= found <= 1:
                raise ConfigError(
                    f"evaluate() returned {name} = {found!r}: a score must be in [0, 1]"
                )
        return self._plan.score_of(measured)

    def _tell_aggregate(self, content: RecordDict) -> RecordDict:
        """What the model is that the round ended with; if that is asked for, the model."""
        told = audit_messages.read_stage(content)
        arrays = self._aggregate(self._round, content)
        reply = _said(*self._auditor.tell(self._round, arrays))
        if key := told.get("arrays-key"):
            reply[str(key)] = ArrayRecord({name: Array(value) for name, value in arrays.items()})
        return reply


def _said(
    item: TrainedModel | Retrieval | Commitment | Scores | Aggregate, signature: bytes = b""
) -> RecordDict:
    return RecordDict({audit_messages.SAID: audit_messages.write_said([(item, signature)])})
