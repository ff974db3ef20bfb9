"""Agents that audit each other: who they are, and how one knows what they said."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from flower_chain.errors import FormatError
from flower_chain.keys import Reader, address_of
from flower_chain.plan import BlockFlowPlan, DataTrustPlan, PeersPlan
from flower_chain.records import (
    Aggregate,
    Commitment,
    Domain,
    Leave,
    Retrieval,
    TrainedModel,
    recover,
)
from flower_chain.rules import data_trust
from flower_chain.rules.blockflow import draw, score, table
from flower_chain.store.cid import cid_from_bytes, cid_of
from flower_chain.store.seal import Kind, sealed_bytes, unseal
from flower_chain.updates import Format, check_finite, digest, unpack


@dataclass(frozen=True)
class Peers:
    """Who takes part in an experiment, and in what.

    Parameters
    ----------
    domain : Domain
    keys : tuple of bytes
        The public key of each agent, 64 bytes, in the ascending order of accounts.
    model : Format
        Of the models.
    commit_seconds : int
        How long scores can be committed to at most: later nobody can, by the contract.
    auditors : int
        By how many agents each model is audited, drawn in every round; 0: by all.
    train_seconds : int
        How long models can be submitted at most. Told if auditors are drawn: before, no agent tells
        what they are drawn by.
    readers : tuple of bytes
        Public keys of others who may open the models: of accounts, or of RSA.

    Raises
    ------
    FormatError
        If the agents are not in order, or that time is not told.
    """

    domain: Domain
    keys: tuple[bytes, ...]
    model: Format
    commit_seconds: int
    auditors: int = 0
    train_seconds: int = 0
    readers: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        accounts = self.accounts
        if accounts != sorted(set(accounts), key=str.lower):
            raise FormatError(f"agents {accounts}: each once, in ascending order")
        if self.auditors and not self.train_seconds:
            raise FormatError("auditors are drawn: how long models can be submitted must be told")

    @classmethod
    def of(cls, plan: PeersPlan, domain: Domain) -> "Peers":
        """Those that a plan names."""
        keys, readers = tuple(plan.agent_keys), tuple(plan.reader_keys)
        terms = domain, keys, plan.model, plan.stage_s
        if isinstance(plan, DataTrustPlan):
            readers += tuple(plan.server_keys)
            return Workers(*terms, readers=readers, floor=plan.floor)
        assert isinstance(plan, BlockFlowPlan)
        return cls(*terms, plan.auditors, plan.train_s, readers)

    def audits(self, live: Sequence[int], seed: bytes) -> Mapping[int, Sequence[int]]:
        """Whose models each agent that passed audits, in the order of its row.

        Parameters
        ----------
        live : sequence of int
            The agents that passed the retrieval rule, ascending.
        seed : bytes
            What auditors are drawn by; of no account if they are not drawn.
        """
        if self.auditors:
            return draw(seed, live, self.auditors)
        return dict.fromkeys(live, range(len(self.keys)))

    def weights(
        self, rows: Mapping[int, Sequence[int]], audits: Mapping[int, Sequence[int]]
    ) -> dict[int, int]:
        """What the model of each agent that is left weighs in the mean of a round.

        If all weigh nothing, the model stays as it was.

        Parameters
        ----------
        rows : mapping of int to sequence of int
            What each of these agents said.
        audits : mapping of int to sequence of int
            As :meth:`audits` tells.
        """
        return dict(zip(sorted(rows), score(*table(rows, audits)).overall, strict=True))

    @property
    def recipients(self) -> tuple[bytes, ...]:
        """For whom a model is sealed."""
        return self.keys + self.readers

    @property
    def sealed_bytes(self) -> int:
        """What a sealed model has."""
        return sealed_bytes(self.model.nbytes, map(Kind.of, self.recipients))

    @cached_property
    def accounts(self) -> list[str]:
        """The agents' accounts, by number."""
        return [address_of(key) for key in self.keys]

    def is_signed(
        self, said: TrainedModel | Retrieval | Commitment | Aggregate | Leave, signature: bytes
    ) -> bool:
        """Whether `signature` is that of the agent that `said` names."""
        if not 0 <= said.agent < len(self.keys):
            return False
        return recover(said.encode(self.domain), signature) == self.accounts[said.agent]

    def open(
        self, model: TrainedModel, sealed: bytes, reader: Reader, wrap: bytes | None = None
    ) -> bytes:
        """A sealed model, opened and checked against what its agent signed.

        Parameters
        ----------
        model : TrainedModel
        sealed : bytes
            Whatever is said to be it.
        reader : Reader
            One of those whom it was sealed for.
        wrap : bytes, optional
            What opens it for another reader.

        Returns
        -------
        bytes
            The canonical bytes of a model in the format that was agreed, all of it finite.

        Raises
        ------
        FormatError
            If it is another one than was signed, or no such model.
        SealError
            If it can't be opened.
        """
        if len(sealed) != (size := self.sealed_bytes):
            raise FormatError(f"{len(sealed)} bytes, but a sealed model has {size}")
        if (found := cid_of(sealed)) != (named := cid_from_bytes(model.cid)):
            raise FormatError(f"the bytes of {found}, but {named} was signed")
        # What only some can open would be scored by these only: nobody takes it.
        packed = unseal(sealed, reader.key, self.binding(model), self.recipients, wrap)
        if digest(packed) != model.digest:
            raise FormatError(f"digest {digest(packed).hex()}, but {model.digest.hex()} was signed")
        arrays = unpack(packed)
        self.model.check(arrays)
        check_finite(arrays)
        return packed

    def binding(self, model: TrainedModel) -> bytes:
        """What a sealed model is bound to."""
        place = f"{self.domain.chain_id} {self.domain.contract} {model.round} {model.agent}"
        return f"flower-chain model {place} ".encode() + model.digest


@dataclass(frozen=True)
class Workers(Peers):
    """Those who take part in a data trust's task: each scores all others, and not itself.

    Parameters
    ----------
    floor : int
        The median that a model must have to be part of the mean, in units of 1/65535.
    """

    floor: int = 0

    def audits(self, live: Sequence[int], seed: bytes) -> Mapping[int, Sequence[int]]:
        """All others of the task, whether they passed or not."""
        everybody = data_trust.audits(len(self.keys))
        return {worker: everybody[worker] for worker in live}

    def weights(
        self, rows: Mapping[int, Sequence[int]], audits: Mapping[int, Sequence[int]]
    ) -> dict[int, int]:
        """One or nothing; see :func:`flower_chain.rules.data_trust.weights_of`."""
        return data_trust.weights_of(rows, len(self.keys), self.floor)
