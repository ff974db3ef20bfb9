"""A run on disk, whatever its scheme."""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any, ClassVar, Self

from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address

from flower_chain import durable
from flower_chain.errors import (
    ConfigError,
    Damaged,
    FormatError,
    NotStored,
    SealError,
    WrongChain,
)
from flower_chain.keys import Reader, reader_of
from flower_chain.ledger import Contract, EmbeddedLedger, JsonRpcLedger, Ledger
from flower_chain.ledger.access import Access, AccessList
from flower_chain.plan import Plan
from flower_chain.store import FOLDER as NODE_FOLDER
from flower_chain.store import Store, open_store
from flower_chain.store.cid import cid_from_bytes
from flower_chain.store.seal import rewrap, unseal
from flower_chain.updates import Arrays, digest, unpack

EMBEDDED = "embedded"
TOKEN_SUPPLY = 10**27
"""What a run's own token has in all, in the smallest unit: a billion tokens."""

FILE = "run.json"


@dataclass(frozen=True)
class Pointers:
    """Where a run's records are.

    Parameters
    ----------
    ledger : str
        ``embedded``, or the URL of a node.
    chain_id : int
    block : int
        The one that the contract was created in.
    contract, token : str
        Checksum addresses.
    pool : int
        What the owner put into the pool when the run began, in the token's smallest unit.
    plan : str
        The plan as text; the contract holds its digest.
    store : str
        The URL of an IPFS node as it was written, without secrets; empty for ``store/`` beside.
    access : str
        Checksum address of the contract of the grants; empty if there is none yet.
    """

    ledger: str
    chain_id: int
    block: int
    contract: str
    token: str
    pool: int
    plan: str
    store: str = ""
    access: str = ""

    @classmethod
    def to(
        cls,
        where: str,
        contract: Contract,
        token: Contract,
        plan: Plan,
        pool: int = 0,
        store: str = "",
    ) -> Self:
        """Those of a run that has just begun."""
        chain_id, block, address = contract.ledger.chain_id, contract.block, contract.address
        return cls(where, chain_id, block, address, token.address, pool, plan.to_json(), store)

    def write(self, path: Path) -> None:
        """Write to `path` such that it is there whole or not at all."""
        durable.replace(path, json.dumps(asdict(self), indent=1).encode())

    @classmethod
    def read(cls, path: Path) -> Self:
        """What `path` holds, or ConfigError."""
        try:
            return cls(**json.loads(path.read_text()))
        except OSError as fault:
            raise ConfigError(
                f"{path.parent} holds no run: {path.name}: {fault.strerror}"
            ) from None
        except (ValueError, TypeError) as fault:
            raise ConfigError(f"{path} is damaged: {fault}") from None


@dataclass(frozen=True)
class Content:
    """Something that a run has stored, as its ledger names it.

    Parameters
    ----------
    round : int
        Of the model; or of that which the sealed update or model was made for.
    kind : str
        ``model``, ``sealed update`` or ``sealed model``.
    device : str
        The account of who made it; empty for the models that the owner published.
    is_needed : bool
        Whether the run can't be checked without it: not what was refused, or does not count yet.
    cid : str
    """

    round: int
    kind: str
    device: str = ""
    is_needed: bool = True
    cid: str = ""


def contents_of(named: Iterable[tuple[bytes, Content]]) -> list[Content]:
    """What is named by an address, in the order of rounds; devices may write what is none."""
    found = []
    for cid, content in named:
        with suppress(FormatError):
            found.append(replace(content, cid=cid_from_bytes(cid)))
    return sorted(found, key=lambda content: content.round)


@dataclass(frozen=True)
class SealedFile:
    """A sealed file that the ledger names.

    Parameters
    ----------
    round : int
        Of the version or round that it was made in.
    device : str
        Account of who made it.
    digest : bytes
        SHA-256 of what is inside, as it was signed.
    cid : bytes
        Binary CIDv1, as it was signed.
    binding : bytes
        What it is bound to: the data associated with its seal.
    """

    round: int
    device: str
    digest: bytes
    cid: bytes
    binding: bytes

    def __str__(self) -> str:
        return f"what {self.device} sealed in round {self.round}"


class Run(ABC):
    """A run, open.

    Attributes
    ----------
    plan : Plan
    contract : Contract
        The scheme's.
    token : Contract
        The ERC-20 that it pays in.
    path : Path
        The folder of its records.
    pointers : Pointers
    goes_on : bool
        Whether it was found in its folder when it was started.
    """

    scheme: ClassVar[str]
    contract_name: ClassVar[str]

    def __init__(
        self, path: Path, pointers: Pointers, ledger: Ledger, account: LocalAccount | None
    ) -> None:
        self.path = path
        self.pointers = pointers
        self._store_at: str | None = None
        self.goes_on = False
        self.plan = Plan.from_json(pointers.plan)
        self.contract = Contract(ledger, pointers.contract, self.contract_name, pointers.block)
        self.token = Contract(ledger, pointers.token, "RewardToken")
        self._account = account
        self._held = ExitStack()
        self._held.enter_context(ledger)

    @classmethod
    def open(
        cls,
        path: Path,
        account: LocalAccount | None = None,
        where: str | None = None,
        confirmations: int = 1,
        store: str | None = None,
    ) -> Self:
        """Open a run, for reading also while it is going on.

        Parameters
        ----------
        path : Path
        account : LocalAccount, optional
            Signs transactions; without it the run is only read.
        where : str, optional
            URL of another node of the same chain.
        confirmations : int
        store : str, optional
            Where to look for what is stored, if not where the run has it: a directory, or the URL
            of another node.

        Raises
        ------
        ConfigError
            If there is none.
        LedgerError
            If its ledger can't be read, or is in use.
        """
        pointers = Pointers.read(path / FILE)
        if (scheme := scheme_in(path)) != cls.scheme:
            raise another("scheme", cls.scheme, scheme)
        if where not in (None, pointers.ledger) and EMBEDDED in (where, pointers.ledger):
            raise another("ledger", re.sub("//[^/?#]*@", "//***@", where or ""), pointers.ledger)
        with ExitStack() as undo:
            if pointers.ledger == EMBEDDED:
                journal = path / "ledger.journal"
                ledger: Ledger = EmbeddedLedger(journal, read_only=account is None)
            else:
                url = where or pointers.ledger
                ledger = JsonRpcLedger(url, pointers.chain_id, confirmations)
            undo.enter_context(ledger)
            if ledger.chain_id != pointers.chain_id:
                raise WrongChain(
                    f"{path}: the journal is of chain {ledger.chain_id}, "
                    f"the run on {pointers.chain_id}"
                )
            if account is not None:
                ledger.catch_up(account.address)
            if not ledger.has_code(pointers.contract):
                raise WrongChain(f"{ledger} has no contract at {pointers.contract}")
            run = cls(path, pointers, ledger, account)
            run._store_at = store
            undo.pop_all()
        return run

    @classmethod
    def _start(
        cls,
        path: Path,
        where: str,
        owner: LocalAccount,
        confirmations: int,
        store: str,
        begin: Callable[[Ledger], tuple[Pointers, Contract]],
        check: Callable[[Self], None],
    ) -> Self:
        """Continue the run in a folder if `check` agrees, or begin one there, with its token."""
        path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as undo:
            lock = undo.enter_context(_locked(path))
            if (path / FILE).exists():
                run = undo.enter_context(closing(cls.open(path, owner, where, confirmations)))
                run._require_the_same_store(store)
                check(run)
                run.goes_on = True
            else:
                ledger = undo.enter_context(_open_ledger(path, where, owner, confirmations))
                pointers, token = begin(ledger)
                pointers.write(path / FILE)
                run = cls(path, pointers, ledger, owner)
                run.token = token
            run._held.enter_context(lock)
            undo.pop_all()
        return run

    @cached_property
    def store(self) -> Store:
        """Where models and sealed updates are; opened when it is first needed.

        Raises
        ------
        StoreError
            If it can't be opened: the node does not answer, say.
        """
        where = self.pointers.store if self._store_at is None else self._store_at
        return self._held.enter_context(store_of(self.path, where, self.plan))

    @abstractmethod
    def contents(self) -> list[Content]:
        """All that the ledger names, with the rounds in order, whether the store has it or not."""

    @property
    @abstractmethod
    def reached(self) -> int:
        """The round of the model that was published last."""

    def kept_from(self, keep: int | None = None) -> int:
        """The first round of which all is kept, if those of `keep` before the current one are.

        By the plan if nothing else is said; 0 is for all.
        """
        keep = self.plan.keep_rounds if keep is None else keep
        return max(0, self.reached - keep) if keep else 0

    def kept(self, keep: int | None = None) -> list[Content]:
        """What the ledger names of the rounds that are kept, as :meth:`kept_from` tells them."""
        first = self.kept_from(keep)
        return [content for content in self.contents() if content.round >= first]

    def let_go(self) -> None:
        """Remove from the store what belongs to rounds that the plan does not keep."""
        if self.kept_from():
            self.store.keep_only({content.cid for content in self.kept()})

    def move(self, where: str) -> Iterator[Content]:
        """Copy to another store what the plan keeps, and have the run go on there.

        What is there already is not copied. The old store stays as it is.

        Parameters
        ----------
        where : str
            The URL of an IPFS node, or empty for ``store/`` in the run's folder.

        Yields
        ------
        Content
            Each that is kept, once it is in the other store.

        Raises
        ------
        ConfigError
            If the run is going on in another process.
        StoreError
            If something that is needed is not there; the run stays where it was then.
        """
        with self.alone(), store_of(self.path, where, self.plan) as other:
            there = other.stored()
            for each in self.kept():
                if each.cid not in there:
                    self._copy(each, other)
                yield each
            self._point(store=where)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep the run from going on in another process meanwhile, or ConfigError if it does."""
        with _locked(self.path):
            yield

    def _point(self, **changed: Any) -> None:
        """Note in ``run.json`` that something is elsewhere now, and leave what others noted."""
        self.pointers = replace(Pointers.read(self.path / FILE), **changed)
        self.pointers.write(self.path / FILE)

    def _copy(self, content: Content, other: Store) -> None:
        try:
            other.put(self.store.get(content.cid))
        except NotStored:
            if content.is_needed:
                raise

    def load(self, name: str, cid: bytes, recorded: bytes) -> Arrays:
        """A model from the store.

        Parameters
        ----------
        name : str
            What it is called in an error.
        cid, recorded : bytes
            Its address and its digest on the ledger.

        Raises
        ------
        StoreError
            If the model is not there, or is not the one that the ledger names.
        """
        packed = self.store.get(cid_from_bytes(cid))
        if (found := digest(packed)) != recorded:
            raise Damaged(
                f"{name} in {self.store} has digest {found.hex()}, the ledger's is {recorded.hex()}"
            )
        return unpack(packed)

    # -- what is sealed, and for whom ---------------------------------------------------------

    @property
    @abstractmethod
    def sealed_for(self) -> frozenset[str]:
        """Addresses of those for whom every sealed file was made."""

    @property
    @abstractmethod
    def sealed_bytes(self) -> int:
        """What a sealed file has: they all have the same."""

    @abstractmethod
    def sealed_files(self) -> list[SealedFile]:
        """Those that the ledger names, by round."""

    @property
    def access_list(self) -> AccessList | None:
        """The contract of the grants, as ``run.json`` names it; None if there is none yet."""
        if not self.pointers.access:
            return None
        return AccessList.at(self.contract.ledger, self.pointers.access, self.pointers.block)

    def open_access_list(self, account: LocalAccount) -> AccessList:
        """Create the contract of the grants, paid by `account`, and note where it is."""
        made = AccessList.deploy(self.contract.ledger, account, self.contract.address)
        self._point(access=made.contract.address)
        return made

    def access(self) -> Access:
        """Who may open what, by the ledger.

        Raises
        ------
        WrongChain
            If the contract of the grants is not this package's, or of another run.
        """
        if (grants := self.access_list) is None:
            return Access((), self.sealed_for)
        grants.check(self.contract.address)
        return Access(tuple(grants.grants()), self.sealed_for)

    def unseal(self, file: SealedFile, reader: Reader, wrap: bytes | None = None) -> bytes:
        """What is in a sealed file.

        Parameters
        ----------
        file : SealedFile
        reader : Reader
            One of those whom it was sealed for.
        wrap : bytes, optional
            What opens it for another reader.

        Raises
        ------
        StoreError, FormatError
            If it is not in the store.
        SealError
            If it can't be opened, or is not what was signed.
        """
        return self._unseal(file, self._sealed(file), reader, wrap)

    def rewrap(self, file: SealedFile, holder: Reader, reader: bytes, wrap: bytes | None) -> bytes:
        """The key of a sealed file, wrapped for one more reader, if it opens to what was signed.

        Parameters
        ----------
        file : SealedFile
        holder : Reader
            Who can open it: by its header, or by `wrap`.
        reader : bytes
            Public key of the new one.
        wrap : bytes or None

        Raises
        ------
        StoreError, FormatError, SealError
            As :meth:`unseal`.
        """
        sealed = self._sealed(file)
        self._unseal(file, sealed, holder, wrap)
        return rewrap(sealed, holder.key, reader, wrap)

    def _sealed(self, file: SealedFile) -> bytes:
        return self.store.get(cid_from_bytes(file.cid), self.sealed_bytes)

    def _unseal(self, file: SealedFile, sealed: bytes, reader: Reader, wrap: bytes | None) -> bytes:
        packed = unseal(sealed, reader.key, file.binding, wrap=wrap)
        if (found := digest(packed)) != file.digest:
            raise SealError(f"{file} has the digest {found.hex()}, signed was {file.digest.hex()}")
        return packed

    def close(self) -> None:
        """Give back the ledger, and let others continue the run."""
        self._held.close()

    def _require_the_same_store(self, where: str) -> None:
        if where != self.pointers.store:
            here, there = (_name_of_store(each) for each in (where, self.pointers.store))
            raise ConfigError(
                f"store is {here}, but the run in this folder has its records in {there}: continue "
                f"it there, or move them first, by `flower-chain store move {self.path} {where}`"
            )

    def _require_the_same(self, plan: Plan, token: str | None) -> None:
        """ConfigError if somebody wants to continue another run than this."""
        assert self._account is not None
        if (owner := to_checksum_address(self.contract.call("owner"))) != self._account.address:
            raise another("owner-key", f"the account {self._account.address}", owner)
        if token not in (None, self.pointers.token):
            raise another("token", token, self.pointers.token)
        for name, now, then in plan.differences(self.plan):
            raise another(name, _shortened(now), _shortened(then))


def store_of(path: Path, where: str, plan: Plan) -> Store:
    """The store of the run in a folder.

    Parameters
    ----------
    path : Path
        The run's folder.
    where : str
        The URL of an IPFS node, on which the run has a folder of its own, or a directory; empty for
        ``store/`` in the run's folder.
    plan : Plan
    """
    return open_store(where or str(path / "store"), f"{NODE_FOLDER}/{plan.run}")


def _name_of_store(where: str) -> str:
    return where or "the directory store/"


def scheme_in(path: Path) -> str:
    """The scheme of the run in a folder, or ConfigError if there is none."""
    pointers = Pointers.read(path / FILE)
    try:
        return Plan.from_json(pointers.plan).scheme
    except FormatError as fault:
        raise ConfigError(f"{path / FILE} is damaged: {fault}") from None


def check_readers(plan: Plan, owner: LocalAccount) -> None:
    """ConfigError if the owner is listed as a reader too."""
    if owner.address in map(reader_of, plan.reader_keys):
        raise ConfigError("readers lists the owner's key: the owner can read everything anyway")


def another(name: str, now: object, then: object) -> ConfigError:
    """The error that names what a run was to be continued with, and what it began with."""
    return ConfigError(
        f"{name} is {now}, but the run in this folder began with {then}: "
        "continue it with what it began with, or set chain.run to another folder"
    )


def _shortened(value: object) -> object:
    """A key is long."""
    return f"{value[:60]}..." if isinstance(value, str) and len(value) > 100 else value


def _locked(path: Path) -> IO[bytes]:
    """A file that is held while a run goes on; on a node's chain nothing else keeps two apart."""
    try:
        return durable.open_locked(path / "lock")
    except BlockingIOError:
        raise ConfigError(f"the run in {path} is going on in another process") from None


def _open_ledger(path: Path, where: str, owner: LocalAccount, confirmations: int) -> Ledger:
    if where == EMBEDDED:
        return EmbeddedLedger(path / "ledger.journal", [owner.address])
    return JsonRpcLedger(where, None, confirmations)


def token_of(ledger: Ledger, owner: LocalAccount, token: str | None) -> Contract:
    """The token at an address, or for None a new one; ConfigError if no contract is there."""
    if token is None:
        return ledger.deploy(owner, "RewardToken", TOKEN_SUPPLY)
    if not ledger.has_code(token):
        raise ConfigError(f"token = {token}: no contract is there")
    return Contract(ledger, token, "RewardToken")
