"""What the server does where updates are encrypted: it adds them, and asks for the sum."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from logging import INFO, WARNING

from flwr.app import Message, RecordDict
from flwr.common import log
from flwr.serverapp import Grid

from flower_chain import sum_messages
from flower_chain.errors import ConfigError, FormatError, RunEnded
from flower_chain.messages import Request
from flower_chain.plan import RecordAndRewardPlan
from flower_chain.records import DecryptedSum, KeyHolder, Signed, parts_of, recover
from flower_chain.strategy.admission import Admission, last_line
from flower_chain.sum_messages import Offer
from flower_chain.updates import Arrays, digest_of
from flower_chain.waiting import pauses

Decrypted = tuple[Arrays, DecryptedSum, bytes]
"""A sum, what the holder of the key said of it, and its signature."""


@dataclass(frozen=True)
class Holder:
    """The node that holds the key.

    Parameters
    ----------
    grid : Grid
    node : int
    offer : Offer
        How it introduced itself.
    patience : float
        Seconds that it may take to decrypt a sum.
    """

    grid: Grid
    node: int
    offer: Offer
    patience: float

    @classmethod
    def find(
        cls, grid: Grid, scheme: str, account: str, timeout: float, patience: float
    ) -> "Holder":
        """The node that says it holds a key of this cipher.

        Parameters
        ----------
        grid : Grid
        scheme : str
        account : str
            The holder's; empty for whoever says so first.
        timeout : float
            Seconds to wait for it.
        patience : float
            Seconds that it may take to decrypt a sum.

        Raises
        ------
        ConfigError
            If there is none in time.
        """
        for _ in pauses(timeout):
            for node, offer in _offers(grid, timeout):
                if offer.scheme == scheme and account in ("", offer.account):
                    log(INFO, "Node %d holds the key, with the account %s.", node, offer.account)
                    return cls(grid, node, offer, patience)
        who = account or "any account"
        raise ConfigError(f"no node holds a key of {scheme} for {who}: start one with key-holder")

    def decrypt(
        self, request: Request[RecordAndRewardPlan], accepted: Sequence[Admission]
    ) -> Decrypted | None:
        """The sum of encrypted updates, or None if there is none.

        Parameters
        ----------
        request : Request
            The task that the updates are of.
        accepted : sequence of Admission
            By account.

        Raises
        ------
        RunEnded
            If the holder does not answer, or not what it was asked: the run can be continued then,
            and it will be asked the same.
        """
        plan, cipher = request.plan, request.plan.cipher
        assert cipher is not None
        if not plan.least_summed <= len(accepted) <= plan.most_summed:
            log(
                WARNING,
                "%d updates were accepted, a sum is of %d to %d: the next version is the same.",
                len(accepted),
                plan.least_summed,
                plan.most_summed,
            )
            return None
        parts = [_signed(admission) for admission in accepted]
        weighed = plan.weighed(signed.contribution for signed in parts)
        weights = [weight for _, weight in weighed]
        encrypted = cipher.add([_update(admission) for admission in accepted], weights)
        answer = self._ask(sum_messages.write_question(request, encrypted, parts))
        if isinstance(answer, str):
            log(WARNING, "The key holder refused (%s): the next version is the same.", answer)
            return None
        total, signature = answer
        said = DecryptedSum(
            request.task.version, parts_of(weighed), digest_of(encrypted), digest_of(total)
        )
        if recover(said.encode(request.domain), signature) != plan.key_holder:
            raise RunEnded("the key holder answered what it did not sign, or another did")
        return total, said, signature

    def _ask(self, content: RecordDict) -> tuple[Arrays, bytes] | str:
        question = Message(content, self.node, sum_messages.DECRYPT)
        replies = list(self.grid.send_and_receive([question], timeout=self.patience))
        if not replies:
            raise RunEnded(_left("did not answer"))
        if replies[0].has_error():
            raise RunEnded(_left(f"failed: {last_line(replies[0].error.reason)}"))
        try:
            return sum_messages.read_answer(replies[0].content)
        except FormatError as fault:
            raise RunEnded(_left(f"answered what can't be read: {fault}")) from None


def _offers(grid: Grid, timeout: float) -> list[tuple[int, Offer]]:
    """What the nodes that hold a key say, duly signed, in the order of their numbers."""
    questions = [
        Message(RecordDict(), node, sum_messages.KEY) for node in sorted(grid.get_node_ids())
    ]
    offers = []
    for reply in grid.send_and_receive(questions, timeout=timeout) if questions else ():
        node = reply.metadata.src_node_id
        try:
            offer = None if reply.has_error() else sum_messages.read_offer(reply.content)
        except FormatError as fault:
            log(WARNING, "Node %d offers no key: %s", node, fault)
            continue
        if offer is None:
            continue
        said = KeyHolder(hashlib.sha256(offer.key).digest())
        if recover(said.encode(), offer.signature) == offer.account:
            offers.append((node, offer))
        else:
            log(WARNING, "Node %d offers a key that %s did not sign.", node, offer.account)
    return sorted(offers, key=lambda pair: pair[0])


def _left(what: str) -> str:
    return f"the key holder {what}; all is recorded, start again to go on"


def _signed(admission: Admission) -> Signed:
    assert admission.signed is not None
    return admission.signed


def _update(admission: Admission) -> Arrays:
    assert admission.update is not None
    return admission.update
