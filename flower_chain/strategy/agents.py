"""The agents of a run, and the nodes by which a server reaches them."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from logging import INFO, WARNING
from typing import TypeVar

from flwr.app import Message, RecordDict
from flwr.common import log
from flwr.serverapp import Grid

from flower_chain import audit_messages
from flower_chain.errors import FormatError
from flower_chain.ledger.federation import Finding
from flower_chain.records import NOBODY, Domain, Hello
from flower_chain.strategy.admission import last_line

Item = TypeVar("Item")

ATTEMPTS = 3
"""How often nodes are asked who they are, if anybody may come: a busy machine starts slowly."""

Hear = Callable[[Grid, Sequence[int], Domain, float], Mapping[int, Hello | Finding]]
"""From nodes to how each introduces itself in time, in seconds, or what is wrong with that."""


class Agents:
    """Who the agents are, and how they are asked.

    Parameters
    ----------
    grid : Grid
    hear : Hear
    patience : float
        Seconds to wait for a node to introduce itself, at most.

    Attributes
    ----------
    accounts : list of str
        The agents, by number; nobody until the run has begun.
    """

    def __init__(self, grid: Grid, hear: Hear, patience: float) -> None:
        self._grid, self._hear, self._patience = grid, hear, patience
        self._nodes: dict[str, list[int]] = {}
        self._complaints: dict[int, str] = {}
        self._domain = Domain(0, NOBODY)
        self.accounts: list[str] = []

    def gather(self, chain_id: int, wanted: set[str], enough: int) -> set[str]:
        """Who is there, once `enough` nodes and all that are `wanted` are.

        If nobody in particular is wanted, those that do not answer are asked some times more, and
        then not waited for.
        """
        self._domain = Domain(chain_id, NOBODY)
        asked = 0
        while True:
            nodes = list(self._grid.get_node_ids())
            if len(nodes) >= enough:
                asked += 1
                self._meet(nodes, self._patience)
                absent = ", ".join(sorted(wanted - set(self._nodes)))
                few = not wanted and len(self._nodes) < enough and asked < ATTEMPTS
                if not absent and not few:
                    return set(self._nodes)
                log(INFO, "Waiting for %s", absent or f"{enough} agents to introduce themselves")
            else:
                log(INFO, "Waiting for nodes to connect: %d of %d", len(nodes), enough)
            time.sleep(1)

    def enlist(self, chain_id: int, accounts: Sequence[str]) -> None:
        """Note who they are by number, and the number of their chain."""
        self._domain, self.accounts = Domain(chain_id, NOBODY), list(accounts)

    def ask(
        self,
        agents: Iterable[int],
        content: Callable[[int], RecordDict],
        timeout: float,
        kind: str = audit_messages.AUDIT,
    ) -> list[tuple[int, Message]]:
        """What agents answer, from all nodes that they introduced themselves from."""
        until = time.time() + timeout
        agents, connected = list(agents), list(self._grid.get_node_ids())
        if any(not set(self._nodes_of(agent)) & set(connected) for agent in agents):
            self._meet(connected, timeout / 2)
        asked = {
            node: agent for agent in agents for node in self._nodes_of(agent) if node in connected
        }
        questions = [
            Message(content(agent), dst_node_id=node, message_type=kind)
            for node, agent in asked.items()
        ]
        replies = self._grid.send_and_receive(questions, timeout=until - time.time())
        return [(asked[reply.metadata.src_node_id], reply) for reply in replies]

    def read(
        self,
        answers: Iterable[tuple[int, Message]],
        read: Callable[[int, RecordDict], Item],
    ) -> dict[int, Item]:
        """What can be used of the answers, by agent.

        They are read in threads: what an agent only names is fetched meanwhile, and if it is
        nowhere, that takes as long as a node looks for it.
        """

        def used(agent: int, answer: Message) -> list[tuple[int, Item]]:
            try:
                if answer.has_error():
                    raise FormatError(last_line(answer.error.reason))
                return [(agent, read(agent, answer.content))]
            except FormatError as fault:
                self._complain(agent, str(fault))
                return []

        with ThreadPoolExecutor() as threads:
            found = threads.map(lambda answered: used(*answered), answers)
            return dict(chain.from_iterable(found))

    def forgive(self) -> None:
        """Forget what was wrong with answers, so that it is told again."""
        self._complaints.clear()

    def stand_ins(self) -> list[int]:
        """A node for each agent; of one that is not known, a number below 0."""
        return [self._nodes.get(a, [-1 - number])[0] for number, a in enumerate(self.accounts)]

    def _nodes_of(self, agent: int) -> list[int]:
        return self._nodes.get(self.accounts[agent], [])

    def _meet(self, nodes: Sequence[int], timeout: float) -> None:
        """Ask the nodes that are not known yet who they are."""
        known = {node for met in self._nodes.values() for node in met}
        strangers = [node for node in nodes if node not in known]
        timeout = min(timeout, self._patience)
        for node, hello in self._hear(self._grid, strangers, self._domain, timeout).items():
            if isinstance(hello, Hello):
                self._nodes.setdefault(hello.device, []).append(node)

    def _complain(self, agent: int, fault: str) -> None:
        """Log what is wrong with an agent's answer, once."""
        if self._complaints.get(agent) != fault:
            self._complaints[agent] = fault
            log(WARNING, "Agent %d: %s", agent, fault)
