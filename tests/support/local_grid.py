"""Flower's Grid inside the process: real Messages, real ClientApps, nothing sent anywhere."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

Meddler = Callable[["Node", Message, Message], Message | None]
"""From a node, a question and its reply to what is sent instead; None for no answer."""


@dataclass
class Node:
    """A SuperNode with one ClientApp.

    Parameters
    ----------
    app : ClientApp
    context : Context
    meddlers : dict of str to Meddler
        By message type, what happens to the replies on their way. One that raises is a ClientApp
        that does.
    """

    app: ClientApp
    context: Context
    meddlers: dict[str, Meddler] = field(default_factory=dict)

    def answer(self, question: Message) -> Message | None:
        """The reply as the network would deliver it."""
        try:
            reply: Message | None = self.app(question, self.context)
            meddler = self.meddlers.get(question.metadata.message_type)
            if meddler is not None and reply is not None:
                reply = meddler(self, question, reply)
        except Exception as fault:
            reason = f"{type(fault)}:<'{fault}'>"
            error = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason)
            reply = Message(error, reply_to=question)
        return None if reply is None else delivered(reply)


def silent(_node: Node, _question: Message, _reply: Message) -> None:
    """A node that does not answer."""


def delivered(message: Message) -> Message:
    """The message on the other side: another object with the same bytes."""
    return message_from_proto(message_to_proto(message))


def on_the_wire(message: Message) -> bytes:
    """All bytes that a message has when it is sent."""
    return message_to_proto(message).SerializeToString()


class LocalGrid(Grid):
    """A Grid of nodes in this process; keeps what was said.

    Parameters
    ----------
    run_config : dict
        That of the Flower run.

    Attributes
    ----------
    nodes : dict of int to Node
        By node id.
    said : list of tuple
        Every question, with its reply or None.
    """

    def __init__(self, run_config: dict[str, str | int | float | bool] | None = None) -> None:
        self.nodes: dict[int, Node] = {}
        self.said: list[tuple[Message, Message | None]] = []
        self._run_config = run_config or {}
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self._waiting: dict[str, Message] = {}

    def add(self, app: ClientApp, **node_config: str | int | float | bool) -> Node:
        """Connect a node; underscores in the names of its settings become hyphens."""
        settings = {name.replace("_", "-"): value for name, value in node_config.items()}
        number = 1000 + len(self.nodes)
        context = Context(1, number, settings, RecordDict(), dict(self._run_config))
        self.nodes[number] = Node(app, context)
        return self.nodes[number]

    def set_run(self, run: Run) -> None:
        """There is only one."""

    @property
    def run(self) -> Run:
        """Not needed here."""
        raise NotImplementedError

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """As Flower's, which is deprecated."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes."""
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver the messages; the replies wait to be pulled."""
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are there."""
        found = [self._waiting.pop(name, None) for name in list(message_ids)]
        return [reply for reply in found if reply is not None]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Whoever answers at all answers at once."""
        return self.pull_messages(self.push_messages(messages))

    def _push(self, message: Message) -> str:
        name = str(uuid4())
        message.metadata.__dict__["_message_id"] = name
        question = delivered(message)
        reply = self.nodes[message.metadata.dst_node_id].answer(question)
        self.said.append((delivered(message), None if reply is None else delivered(reply)))
        if reply is not None:
            self._waiting[name] = reply
        return name
