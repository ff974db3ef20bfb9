"""Flower's Grid inside the process: real Messages, real ClientApps, nothing sent anywhere."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_to_proto
from in_process import InProcessGrid, delivered

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


def on_the_wire(message: Message) -> bytes:
    """All bytes that a message has when it is sent."""
    return message_to_proto(message).SerializeToString()


class LocalGrid(InProcessGrid):
    """A Grid whose nodes may be silent, fail, or be meddled with; keeps what was said.

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
        super().__init__([], run_config or {})
        self.nodes: dict[int, Node] = {}
        self.said: list[tuple[Message, Message | None]] = []
        self._run_config = run_config or {}

    def add(self, app: ClientApp, **node_config: str | int | float | bool) -> Node:
        """Connect a node; underscores in the names of its settings become hyphens."""
        settings = {name.replace("_", "-"): value for name, value in node_config.items()}
        number = 1000 + len(self.nodes)
        context = Context(1, number, settings, RecordDict(), dict(self._run_config))
        self.nodes[number] = Node(app, context)
        return self.nodes[number]

    def get_node_ids(self) -> Iterable[int]:
        """All nodes."""
        return list(self.nodes)

    def _answer(self, message: Message) -> Message | None:
        reply = self.nodes[message.metadata.dst_node_id].answer(delivered(message))
        self.said.append((delivered(message), None if reply is None else delivered(reply)))
        return reply
