"""Step 1 of a round: from a reply to an update, or to the reason why it is refused."""

from dataclasses import dataclass, replace

from eth_account.signers.local import LocalAccount
from flwr.app import Message, RecordDict

from flower_chain import messages
from flower_chain.envelope import RefusedError, fetch, keep, open_sealed
from flower_chain.errors import FormatError
from flower_chain.plan import RecordAndRewardPlan
from flower_chain.records import Contribution, Domain, Hello, Refusal, Signed
from flower_chain.store import Store
from flower_chain.updates import Arrays, check_stays_finite


@dataclass(frozen=True)
class Admission:
    """What became of a reply.

    Parameters
    ----------
    hello : Hello
        How the device introduced itself.
    reason : Refusal
        Why it is refused; ``NONE`` if nothing was found wrong off chain.
    detail : str
        The same for people.
    reply : Message or None
        The reply, if there was one.
    signed : Signed or None
        The contribution in it, if there is one that can be read.
    update : Arrays or None
        The update, unless it is refused.
    """

    hello: Hello
    reason: Refusal = Refusal.NONE
    detail: str = ""
    reply: Message | None = None
    signed: Signed | None = None
    update: Arrays | None = None

    @property
    def device(self) -> str:
        """Account of the device."""
        return self.hello.device

    def refused(self, reason: Refusal, detail: str) -> "Admission":
        """The same reply, refused after all."""
        return replace(self, reason=reason, detail=detail, update=None)


class Admitter:
    """Opens and checks the replies of one round.

    Parameters
    ----------
    owner : LocalAccount
    domain : Domain
    plan : RecordAndRewardPlan
    store : Store
    received : Arrays
        T_k.
    """

    def __init__(
        self,
        owner: LocalAccount,
        domain: Domain,
        plan: RecordAndRewardPlan,
        store: Store,
        received: Arrays,
    ) -> None:
        self._owner = owner
        self._domain = domain
        self._plan = plan
        self._store = store
        self._received = received

    def admit(self, hello: Hello, reply: Message) -> Admission:
        """Check a reply of the node that introduced itself as `hello`."""
        if reply.has_error():
            return Admission(hello, Refusal.DEVICE_ERROR, last_line(reply.error.reason), reply)
        try:
            signed, sealed = messages.read_contribution(reply.content)
            _require_metrics(reply.content)
        except FormatError as fault:
            return Admission(hello, Refusal.UNREADABLE, str(fault), reply)
        reply.content.pop(messages.SEALED, None)  # not kept in memory beside the update in it
        if signed.contribution.classes != hello.classes:
            detail = "its classes are not those that it told before"
            return Admission(hello, Refusal.UNREADABLE, detail, reply)
        if signed.contribution.device != hello.device:
            detail = f"the contribution is that of {signed.contribution.device}"
            return Admission(hello, Refusal.BAD_SIGNATURE, detail, reply)
        return self._check(Admission(hello, reply=reply, signed=signed), signed, sealed)

    def admit_recorded(self, signed: Signed) -> Admission:
        """Check a contribution that the ledger holds, from the store."""
        contribution = signed.contribution
        hello = Hello(contribution.device, contribution.classes)
        return self._check(Admission(hello, signed=signed), signed, None)

    def _check(self, admission: Admission, signed: Signed, sealed: bytes | None) -> Admission:
        """The admission with the update, which leaves T_k finite, or with the refusal.

        What an encrypted one does to T_k nobody can know.
        """
        try:
            update = self._open(signed.contribution, sealed)
            if not self._plan.encryption:
                self._check_stays_finite(update)
        except RefusedError as refused:
            return admission.refused(refused.reason, str(refused))
        return replace(admission, update=update)

    def _check_stays_finite(self, update: Arrays) -> None:
        try:
            check_stays_finite(self._received, update)
        except FormatError as fault:
            raise RefusedError(Refusal.NOT_FINITE, f"T_k with it: {fault}") from fault

    def _open(self, contribution: Contribution, sealed: bytes | None) -> Arrays:
        plan, layout = self._plan, self._plan.update_format
        if sealed is None:
            sealed = fetch(self._store, contribution, layout, plan.reader_keys)
        # Also what was found: on a node of the device's own it may not stay.
        keep(self._store, sealed, contribution, layout, plan.reader_keys)
        return open_sealed(sealed, contribution, self._domain, layout, self._owner)


def _require_metrics(content: RecordDict) -> None:
    """Refuse what Flower's strategies would end the run on."""
    if len(content.metric_records) != 1:
        raise FormatError(f"{len(content.metric_records)} MetricRecords: there must be one")


def last_line(text: str | None) -> str:
    """What a traceback comes to."""
    lines = (text or "").strip().splitlines()
    return lines[-1] if lines else "no reason given"
