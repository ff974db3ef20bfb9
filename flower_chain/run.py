"""A run on disk: where its ledger is, what was agreed, and what is stored.

::

    RUN/
    ├── run.json         where the contract is; no secrets
    ├── ledger.journal   the embedded ledger, if the run uses it
    ├── store/           every model, and every sealed update
    ├── lock             held by the server while it runs
    └── owner.key        the owner's account, unless another key file was named

The ledger and the store are all that a run needs to be continued after its server was killed;
``run.json`` says where they are.
"""

import hashlib
import hmac
import json
import re
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Self

from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from flower_chain import durable
from flower_chain.errors import ConfigError, Damaged, FormatError, WrongChain
from flower_chain.keys import address_of
from flower_chain.ledger import Contract, EmbeddedLedger, JsonRpcLedger, Ledger
from flower_chain.ledger.federation import Federation, Version
from flower_chain.plan import Plan
from flower_chain.records import TOKEN_UNITS, Model
from flower_chain.store import DirectoryStore, Store
from flower_chain.store.cid import cid_from_bytes, cid_to_bytes
from flower_chain.updates import Arrays, digest, pack, unpack

EMBEDDED = "embedded"
TOKEN_SUPPLY = 10**27
"""What a run's own token has in all, in the smallest unit: a billion tokens."""


@dataclass(frozen=True)
class Funds:
    """What a run pays with.

    Parameters
    ----------
    pool : int
        What the owner puts into the pool when the run begins, in the token's smallest unit.
    token : str or None
        Checksum address of the ERC-20; None deploys one.
    """

    pool: int
    token: str | None = None


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
    """

    ledger: str
    chain_id: int
    block: int
    contract: str
    token: str
    pool: int
    plan: str

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


class Run:
    """A run, open.

    Attributes
    ----------
    plan : Plan
    store : Store
    federation : Federation
    token : Contract
        The ERC-20 that it pays in.
    pointers : Pointers
    goes_on : bool
        Whether :meth:`start` found it in its folder.
    """

    def __init__(
        self, path: Path, pointers: Pointers, ledger: Ledger, account: LocalAccount | None
    ) -> None:
        self.pointers = pointers
        self.goes_on = False
        self.plan = Plan.from_json(pointers.plan)
        self.store: Store = DirectoryStore(path / "store")
        self.token = Contract(ledger, pointers.token, "RewardToken")
        self._account = account
        self._held = ExitStack()
        self._held.enter_context(ledger)
        contract = Contract(ledger, pointers.contract, "RecordAndReward", pointers.block)
        self.federation = Federation(contract, account)

    @classmethod
    def start(
        cls,
        path: Path,
        where: str,
        owner: LocalAccount,
        plan: Plan,
        funds: Funds,
        model: Arrays,
        measure: Callable[[Arrays], int],
        confirmations: int = 1,
    ) -> Self:
        """Continue the run in a folder, or begin one there.

        Parameters
        ----------
        path : Path
        where : str
            ``embedded``, or the URL of a node.
        owner : LocalAccount
        plan : Plan
            Must be the one that the run began with, but for its name.
        funds : Funds
        model : Arrays
            T_0, if the run begins.
        measure : callable
            From a model to its error on the owner's validation data, in parts per million.
        confirmations : int
            Blocks that must hold or follow a transaction before it counts.

        Raises
        ------
        ConfigError
            If the run in `path` is another one; names the difference.
        LedgerError
            If the ledger can't be used.
        """
        if owner.address in map(address_of, plan.reader_keys):
            raise ConfigError("readers lists the owner's key: the owner can read everything anyway")
        path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as undo:
            lock = undo.enter_context(_locked(path))
            if (path / "run.json").exists():
                run = undo.enter_context(closing(cls.open(path, owner, where, confirmations)))
                run._require_the_same(plan, funds)
                run.goes_on = True
            else:
                begun = cls._begin(path, where, owner, plan, funds, model, measure, confirmations)
                run = undo.enter_context(closing(begun))
            run._fill_pool()
            run._held.enter_context(lock)
            undo.pop_all()
        return run

    @classmethod
    def _begin(
        cls,
        path: Path,
        where: str,
        owner: LocalAccount,
        plan: Plan,
        funds: Funds,
        model: Arrays,
        measure: Callable[[Arrays], int],
        confirmations: int,
    ) -> Self:
        """Deploy the contracts, store and publish T_0."""
        with ExitStack() as undo:
            ledger = undo.enter_context(_open_ledger(path, where, owner, confirmations))
            packed = pack(model)
            cid = DirectoryStore(path / "store").put(packed)
            seed = seed_of(owner, plan, 0)
            first = Model(digest(packed), cid_to_bytes(cid), keccak(seed), measure(model))
            money = _token(ledger, owner, funds.token)
            contract = ledger.deploy(
                owner, "RecordAndReward", money.address, _terms(plan), first.as_tuple()
            )
            pointers = Pointers(
                where,
                ledger.chain_id,
                contract.block,
                contract.address,
                money.address,
                funds.pool,
                plan.to_json(),
            )
            pointers.write(path / "run.json")
            undo.pop_all()
        run = cls(path, pointers, ledger, owner)
        run.token = money
        return run

    @classmethod
    def open(
        cls,
        path: Path,
        account: LocalAccount | None = None,
        where: str | None = None,
        confirmations: int = 1,
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

        Raises
        ------
        ConfigError
            If there is none.
        LedgerError
            If its ledger can't be read, or is in use.
        """
        pointers = Pointers.read(path / "run.json")
        if where not in (None, pointers.ledger) and EMBEDDED in (where, pointers.ledger):
            raise _another("ledger", re.sub("//[^/?#]*@", "//***@", where or ""), pointers.ledger)
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
            try:
                run = cls(path, pointers, ledger, account)
            except FormatError as fault:
                raise ConfigError(f"{path / 'run.json'} is damaged: {fault}") from None
            undo.pop_all()
        return run

    def current(self) -> tuple[Version, Arrays]:
        """The current version, and its model from the store.

        Raises
        ------
        StoreError
            If the model is not there, or is not the one that the ledger names.
        """
        version = self.federation.current()
        packed = self.store.get(cid_from_bytes(version.model.cid))
        if (found := digest(packed)) != version.model.digest:
            raise Damaged(
                f"the model of version {version.number} in {self.store} has digest {found.hex()}, "
                f"the ledger's is {version.model.digest.hex()}"
            )
        return version, unpack(packed)

    def seed(self, version: int) -> bytes:
        """The seed of a version's validation samples; only the owner can know it beforehand."""
        assert self._account is not None
        return seed_of(self._account, self.plan, version)

    def model(self, arrays: Arrays, version: int, error_ppm: int) -> Model:
        """Store `arrays` as the model of `version`, ready to be published."""
        packed = pack(arrays)
        cid = cid_to_bytes(self.store.put(packed))
        return Model(digest(packed), cid, keccak(self.seed(version)), error_ppm)

    def close(self) -> None:
        """Give back the ledger, and let others continue the run."""
        self._held.close()

    def _require_the_same(self, plan: Plan, funds: Funds) -> None:
        """ConfigError if somebody wants to continue another run than this."""
        assert self._account is not None
        contract = self.federation.contract
        if (owner := to_checksum_address(contract.call("owner"))) != self._account.address:
            raise _another("owner-key", f"the account {self._account.address}", owner)
        if funds.token not in (None, self.pointers.token):
            raise _another("token", funds.token, self.pointers.token)
        if funds.pool != self.pointers.pool:
            was = f"{self.pointers.pool / TOKEN_UNITS:g} (use `flower-chain fund` to add to it)"
            raise _another("pool", f"{funds.pool / TOKEN_UNITS:g}", was)
        for name, now, then in plan.differences(self.plan):
            raise _another(name, now, then)
        if contract.call("finished"):
            raise ConfigError(f"the run at {self.pointers.contract} is finished")

    def _fill_pool(self) -> None:
        """Put the owner's money into the pool, unless that has been done."""
        assert self._account is not None
        contract = self.federation.contract
        begins = self.federation.version == 0 and contract.call("round")[3] == 0
        lacks = self.pointers.pool - self.token.call("balanceOf", contract.address)
        if begins and lacks > 0:
            self.token.transact(self._account, "transfer", contract.address, lacks)


def seed_of(owner: LocalAccount, plan: Plan, version: int) -> bytes:
    """The seed of a version's validation samples, 32 bytes, derived from the owner's key."""
    text = f"flower-chain seed {plan.run} {version}".encode()
    return hmac.new(bytes(owner.key), text, hashlib.sha256).digest()


def _another(name: str, now: object, then: object) -> ConfigError:
    return ConfigError(
        f"{name} is {now}, but the run in this folder began with {then}: "
        "continue it with what it began with, or set chain.run to another folder"
    )


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


def _token(ledger: Ledger, owner: LocalAccount, token: str | None) -> Contract:
    if token is None:
        return ledger.deploy(owner, "RewardToken", TOKEN_SUPPLY)
    if not ledger.has_code(token):
        raise ConfigError(f"token = {token}: no contract is there")
    return Contract(ledger, token, "RewardToken")


def _terms(plan: Plan) -> tuple[bytes | int, ...]:
    return (
        plan.digest,
        int(plan.rule),
        plan.threshold_ppm,
        plan.gain_ppm,
        plan.clear_ppm,
        plan.harm_ppm,
        plan.least_ppm,
        plan.rate,
        plan.max_data_cost,
        plan.patience_s,
    )
