"""Who takes part in a BlockFLow experiment, and how one knows what they said."""

from dataclasses import dataclass
from functools import cached_property

from flower_chain.errors import FormatError
from flower_chain.keys import Reader, address_of
from flower_chain.plan import BlockFlowPlan
from flower_chain.records import Aggregate, Commitment, Domain, Retrieval, TrainedModel, recover
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
    def of(cls, plan: BlockFlowPlan, domain: Domain) -> "Peers":
        """Those that a plan names."""
        keys, readers = tuple(plan.agent_keys), tuple(plan.reader_keys)
        return cls(domain, keys, plan.model, plan.stage_s, plan.auditors, plan.train_s, readers)

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
        self, said: TrainedModel | Retrieval | Commitment | Aggregate, signature: bytes
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
