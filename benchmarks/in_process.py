"""Flower's Grid inside the process: real Messages, real ClientApps, nothing sent anywhere."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import uuid4

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity


class InProcessGrid(Grid):
    """A node for each of `apps`, all of which answer at once.

    Parameters
    ----------
    apps : sequence of ClientApp
        Each gets its number as ``partition-id``.
    run_config : mapping
    node_config : mapping, optional
        Of each, beside its number.
    """

    def __init__(
        self,
        apps: Sequence[ClientApp],
        run_config: Mapping[str, Any],
        node_config: Mapping[str, Any] | None = None,
    ) -> None:
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self._replies: dict[str, Message] = {}
        self._nodes = {}
        for number, app in enumerate(apps):
            config = {**(node_config or {}), "partition-id": number}
            context = Context(1, 1000 + number, config, RecordDict(), dict(run_config))
            self._nodes[1000 + number] = app, context

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
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Let the nodes answer; the replies wait to be pulled."""
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are there."""
        return [self._replies.pop(name) for name in list(message_ids) if name in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Nobody is late."""
        return self.pull_messages(self.push_messages(messages))

    def _push(self, message: Message) -> str:
        name = str(uuid4())
        message.metadata.__dict__["_message_id"] = name
        if (reply := self._answer(message)) is not None:
            self._replies[name] = reply
        return name

    def _answer(self, message: Message) -> Message | None:
        app, context = self._nodes[message.metadata.dst_node_id]
        return delivered(app(delivered(message), context))


def delivered(message: Message) -> Message:
    """The message on the other side: another object with the same bytes."""
    return message_from_proto(message_to_proto(message))
