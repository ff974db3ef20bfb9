"""A run of record-and-reward on disk."""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from flower_chain import envelope
from flower_chain.errors import ConfigError
from flower_chain.keys import reader_of
from flower_chain.ledger import Contract, Ledger
from flower_chain.ledger.federation import Federation, Version
from flower_chain.plan import RecordAndRewardPlan
from flower_chain.records import TOKEN_UNITS, Contribution, Model
from flower_chain.run.base import (
    Content,
    Pointers,
    Run,
    SealedFile,
    another,
    check_readers,
    contents_of,
    store_of,
    token_of,
)
from flower_chain.store.cid import cid_to_bytes
from flower_chain.updates import Arrays, digest, pack


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


class RecordAndRewardRun(Run):
    """A run of record-and-reward, open.

    Attributes
    ----------
    plan : RecordAndRewardPlan
    federation : Federation
    """

    scheme = "record-and-reward"
    contract_name = "RecordAndReward"
    plan: RecordAndRewardPlan

    def __init__(
        self, path: Path, pointers: Pointers, ledger: Ledger, account: LocalAccount | None
    ) -> None:
        super().__init__(path, pointers, ledger, account)
        self.federation = Federation(self.contract, account)

    @classmethod
    def start(
        cls,
        path: Path,
        where: str,
        owner: LocalAccount,
        plan: RecordAndRewardPlan,
        funds: Funds,
        model: Arrays,
        measure: Callable[[Arrays], int],
        confirmations: int = 1,
        store: str = "",
    ) -> Self:
        """Continue the run in a folder, or begin one there.

        Parameters
        ----------
        path : Path
        where : str
            ``embedded``, or the URL of a node.
        owner : LocalAccount
        plan : RecordAndRewardPlan
            Must be the one that the run began with, but for its name.
        funds : Funds
        model : Arrays
            T_0, if the run begins.
        measure : callable
            From a model to its error on the owner's validation data, in parts per million.
        confirmations : int
            Blocks that must hold or follow a transaction before it counts.
        store : str
            The URL of an IPFS node; empty for the directory ``store/`` in `path`.

        Raises
        ------
        ConfigError
            If the run in `path` is another one; names the difference.
        LedgerError
            If the ledger can't be used.
        StoreError
            If the store can't.
        """
        check_readers(plan, owner)

        def begin(ledger: Ledger) -> tuple[Pointers, Contract]:
            """Store T_0 and publish it with the contracts."""
            packed = pack(model)
            with store_of(path, store, plan) as opened:
                cid = opened.put(packed)
            seed = seed_of(owner, plan, 0)
            first = Model(digest(packed), cid_to_bytes(cid), keccak(seed), measure(model))
            token = token_of(ledger, owner, funds.token)
            contract = ledger.deploy(
                owner, cls.contract_name, token.address, _terms(plan), first.as_tuple()
            )
            return Pointers.to(where, contract, token, plan, funds.pool, store), token

        run = cls._start(
            path, where, owner, confirmations, store, begin, lambda run: run._check(plan, funds)
        )
        try:
            run._fill_pool()
        except BaseException:
            run.close()
            raise
        return run

    def contents(self) -> list[Content]:
        """All that the ledger names, also what was refused."""
        versions = self.federation.history().versions
        models = [(version.model.cid, Content(version.number, "model")) for version in versions]
        updates = [
            (
                verdict.signed.contribution.cid,
                Content(
                    version.number,
                    "sealed update",
                    verdict.device,
                    is_needed=version.settled and verdict in version.accepted,
                ),
            )
            for version in versions
            for verdict in version.verdicts
        ]
        sums = [
            (decrypted.cid, Content(version.number, "decrypted sum"))
            for version in versions
            for decrypted in version.sums
        ]
        return contents_of(models + updates + sums)

    @property
    def reached(self) -> int:
        """The current version."""
        return self.federation.version

    def current(self) -> tuple[Version, Arrays]:
        """The current version, and its model from the store.

        Raises
        ------
        StoreError
            If the model is not there, or is not the one that the ledger names.
        """
        version = self.federation.current()
        name = f"the model of version {version.number}"
        return version, self.load(name, version.model.cid, version.model.digest)

    def seed(self, version: int) -> bytes:
        """The seed of a version's validation samples; only the owner can know it beforehand."""
        assert self._account is not None
        return seed_of(self._account, self.plan, version)

    def model(self, arrays: Arrays, version: int, error_ppm: int) -> Model:
        """Store `arrays` as the model of `version`, ready to be published."""
        packed = pack(arrays)
        cid = cid_to_bytes(self.store.put(packed))
        return Model(digest(packed), cid, keccak(self.seed(version)), error_ppm)

    def keep_sum(self, total: Arrays) -> bytes:
        """Store a decrypted sum; its address, as a binary CIDv1."""
        return cid_to_bytes(self.store.put(pack(total)))

    @property
    def sealed_for(self) -> frozenset[str]:
        """The owner, and the readers that the plan names."""
        owner = to_checksum_address(self.contract.call("owner"))
        return frozenset([owner, *map(reader_of, self.plan.reader_keys)])

    @property
    def sealed_bytes(self) -> int:
        """What a sealed update has."""
        return envelope.size(self.plan.update_format, self.plan.reader_keys)

    def sealed_files(self) -> list[SealedFile]:
        """The updates of the contributions that the contract took."""
        return [
            self._file(version.number, verdict.signed.contribution)
            for version in self.federation.history().versions
            for verdict in version.verdicts
            if not verdict.reason
        ]

    def _file(self, number: int, said: Contribution) -> SealedFile:
        binding = envelope.binding(self.federation.domain, said.device, said.digest)
        return SealedFile(number, said.device, said.digest, said.cid, binding)

    def _check(self, plan: RecordAndRewardPlan, funds: Funds) -> None:
        if funds.pool != self.pointers.pool:
            was = f"{self.pointers.pool / TOKEN_UNITS:g} (use `flower-chain fund` to add to it)"
            raise another("pool", f"{funds.pool / TOKEN_UNITS:g}", was)
        self._require_the_same(plan, funds.token)
        if self.contract.call("finished"):
            raise ConfigError(f"the run at {self.pointers.contract} is finished")

    def _fill_pool(self) -> None:
        """Put the owner's money into the pool, unless that has been done."""
        assert self._account is not None
        contract = self.contract
        begins = self.federation.version == 0 and contract.call("round")[3] == 0
        lacks = self.pointers.pool - self.token.call("balanceOf", contract.address)
        if begins and lacks > 0:
            self.token.transact(self._account, "transfer", contract.address, lacks)


def seed_of(owner: LocalAccount, plan: RecordAndRewardPlan, version: int) -> bytes:
    """The seed of a version's validation samples, 32 bytes, derived from the owner's key."""
    text = f"flower-chain seed {plan.run} {version}".encode()
    return hmac.new(bytes(owner.key), text, hashlib.sha256).digest()


def _terms(plan: RecordAndRewardPlan) -> tuple[bytes | int, ...]:
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
        plan.budget,
    )
