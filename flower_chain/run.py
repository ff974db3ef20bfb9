"""A run on disk: where its ledger is, what was agreed, and what is stored.

::

    RUN/
    ├── run.json         where the contract is; no secrets
    ├── ledger.journal   the embedded ledger, if the run uses it
    ├── store/           every model, and every sealed update
    └── owner.key        the owner's account, unless another key file was named
"""

import hashlib
import hmac
import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from eth_account.signers.local import LocalAccount
from eth_utils.crypto import keccak

from flower_chain import durable
from flower_chain.errors import ConfigError, FormatError, WrongChain
from flower_chain.ledger import Contract, EmbeddedLedger, JsonRpcLedger, Ledger
from flower_chain.ledger.federation import Federation
from flower_chain.plan import Plan
from flower_chain.records import Model
from flower_chain.store import DirectoryStore, Store
from flower_chain.store.cid import cid_to_bytes
from flower_chain.updates import Arrays, digest, pack

EMBEDDED = "embedded"
TOKEN_SUPPLY = 10**27
"""What a run's own token has in all, in the smallest unit: a billion tokens."""


@dataclass(frozen=True)
class Pointers:
    """Where a run's records are.

    Parameters
    ----------
    ledger : str
        ``embedded``, or the URL of a node.
    chain_id : int
    contract, token : str
        Checksum addresses.
    plan : str
        The plan as text; the contract holds its digest.
    """

    ledger: str
    chain_id: int
    contract: str
    token: str
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
    pointers : Pointers
    """

    def __init__(
        self, path: Path, pointers: Pointers, ledger: Ledger, owner: LocalAccount | None
    ) -> None:
        self.pointers = pointers
        self.plan = Plan.from_json(pointers.plan)
        self.store: Store = DirectoryStore(path / "store")
        self._ledger = ledger
        self._owner = owner
        self.federation = Federation(Contract(ledger, pointers.contract, "RecordAndReward"), owner)

    @classmethod
    def create(
        cls,
        path: Path,
        where: str,
        owner: LocalAccount,
        plan: Plan,
        model: Arrays,
        error_ppm: int,
        token: str | None,
        pool: int,
    ) -> Self:
        """Begin a run: deploy its contracts, fill its pool, and store and publish T_0.

        Parameters
        ----------
        path : Path
            A folder without a run.
        where : str
            ``embedded``, or the URL of a node.
        owner : LocalAccount
        plan : Plan
        model : Arrays
            T_0.
        error_ppm : int
            Its error on the owner's validation data.
        token : str or None
            Address of the ERC-20 that rewards are paid in; None deploys one.
        pool : int
            What the owner puts into the pool, in the token's smallest unit.

        Raises
        ------
        ConfigError
            If `path` holds a run already.
        LedgerError
            If the ledger can't be used.
        """
        if (path / "run.json").exists():
            raise ConfigError(f"{path} holds a run already: choose another folder")
        path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as undo:
            ledger = undo.enter_context(_open_ledger(path, where, owner))
            packed = pack(model)
            cid = DirectoryStore(path / "store").put(packed)
            seed = seed_of(owner, plan, 0)
            first = Model(digest(packed), cid_to_bytes(cid), keccak(seed), error_ppm)
            money = _token(ledger, owner, token)
            contract = ledger.deploy(
                owner, "RecordAndReward", money.address, _terms(plan), first.as_tuple()
            )
            money.transact(owner, "transfer", contract.address, pool)
            pointers = Pointers(
                where, ledger.chain_id, contract.address, money.address, plan.to_json()
            )
            pointers.write(path / "run.json")
            undo.pop_all()
        return cls(path, pointers, ledger, owner)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a run for reading, also while it is going on.

        Raises
        ------
        ConfigError
            If there is none.
        LedgerError
            If its ledger can't be read.
        """
        pointers = Pointers.read(path / "run.json")
        if pointers.ledger == EMBEDDED:
            ledger: Ledger = EmbeddedLedger(path / "ledger.journal", read_only=True)
        else:
            ledger = JsonRpcLedger(pointers.ledger, pointers.chain_id)
        if ledger.chain_id != pointers.chain_id:
            raise WrongChain(
                f"{path}: the journal is of chain {ledger.chain_id}, the run on {pointers.chain_id}"
            )
        if not ledger.has_code(pointers.contract):
            raise WrongChain(f"{pointers.ledger} has no contract at {pointers.contract}")
        try:
            return cls(path, pointers, ledger, None)
        except FormatError as fault:
            raise ConfigError(f"{path / 'run.json'} is damaged: {fault}") from None

    def seed(self, version: int) -> bytes:
        """The seed of a version's validation samples; only the owner can know it beforehand."""
        assert self._owner is not None
        return seed_of(self._owner, self.plan, version)

    def model(self, arrays: Arrays, version: int, error_ppm: int) -> Model:
        """Store `arrays` as the model of `version`, ready to be published."""
        packed = pack(arrays)
        cid = cid_to_bytes(self.store.put(packed))
        return Model(digest(packed), cid, keccak(self.seed(version)), error_ppm)

    def close(self) -> None:
        """Give back the ledger."""
        self._ledger.close()


def seed_of(owner: LocalAccount, plan: Plan, version: int) -> bytes:
    """The seed of a version's validation samples, 32 bytes, derived from the owner's key."""
    text = f"flower-chain seed {plan.run} {version}".encode()
    return hmac.new(bytes(owner.key), text, hashlib.sha256).digest()


def _open_ledger(path: Path, where: str, owner: LocalAccount) -> Ledger:
    if where == EMBEDDED:
        return EmbeddedLedger(path / "ledger.journal", [owner.address])
    return JsonRpcLedger(where)


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
