"""A run on disk whose agents judge each other."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from eth_account.signers.local import LocalAccount

from flower_chain.errors import ConfigError, LedgerError, NodeError, RunEnded
from flower_chain.keys import reader_of
from flower_chain.ledger import Contract, Ledger
from flower_chain.ledger.blockflow import Experiment, Stage
from flower_chain.peers import Peers
from flower_chain.plan import PeersPlan
from flower_chain.records import TrainedModel
from flower_chain.run.base import (
    Content,
    Pointers,
    Run,
    SealedFile,
    contents_of,
    store_of,
    token_of,
)
from flower_chain.store.cid import cid_to_bytes
from flower_chain.updates import Arrays, digest, pack

PlanOf = Callable[[Sequence[bytes]], PeersPlan]
"""From the public keys of the agents to the terms of their run."""


class PeersRun(Run):
    """A run whose agents judge each other, open.

    Attributes
    ----------
    plan : PeersPlan
    experiment : Experiment
    peers : Peers
    """

    plan: PeersPlan
    experiment: Experiment

    def __init__(
        self, path: Path, pointers: Pointers, ledger: Ledger, account: LocalAccount | None
    ) -> None:
        super().__init__(path, pointers, ledger, account)
        self._find(account)
        self.peers = Peers.of(self.plan, self.experiment.domain)

    @abstractmethod
    def _find(self, account: LocalAccount | None) -> None:
        """Note the experiment that is at the contract."""

    @classmethod
    @abstractmethod
    def _deploy(
        cls, ledger: Ledger, owner: LocalAccount, token: str, plan: Any, model: tuple[bytes, bytes]
    ) -> Experiment:
        """A new experiment, with digest and address of its first model announced."""

    @classmethod
    def start(
        cls,
        path: Path,
        where: str,
        owner: LocalAccount,
        model: Arrays,
        agents: Callable[[int], Sequence[bytes]],
        plan_of: PlanOf,
        token: str | None,
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
            Deploys the contract, and relays what the agents say.
        model : Arrays
            The first one, if the experiment begins.
        agents : callable
            From the chain's number to the public keys of who wants to take part; called if the
            experiment begins.
        plan_of : callable
            The terms; but for the name they must be those that the run began with.
        token : str or None
            Checksum address of the ERC-20; None deploys one, and gives each agent its bond.
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

        def begin(ledger: Ledger) -> tuple[Pointers, Contract]:
            plan = plan_of(agents(ledger.chain_id))
            packed = pack(model)
            with store_of(path, store, plan) as opened:
                first = digest(packed), cid_to_bytes(opened.put(packed))
            money = token_of(ledger, owner, token)
            _require_permits(money)
            for account in plan.accounts if token is None else ():
                money.transact(owner, "transfer", account, plan.bond)
            made = cls._deploy(ledger, owner, money.address, plan, first)
            return Pointers.to(where, made.contract, money, plan, store=store), money

        return cls._start(
            path,
            where,
            owner,
            confirmations,
            store,
            begin,
            lambda run: run._check(plan_of, token),
        )

    def _check(self, plan_of: PlanOf, token: str | None) -> None:
        plan = plan_of(self.plan.agent_keys)
        self._require_the_same(replace(plan, first=self.plan.first), token)

    @property
    def sealed_for(self) -> frozenset[str]:
        """The agents, the readers that the plan names, and the server if it aggregates."""
        return frozenset(map(reader_of, self.peers.recipients))

    @property
    def sealed_bytes(self) -> int:
        """What a sealed model has."""
        return self.peers.sealed_bytes

    def sealed_files(self) -> list[SealedFile]:
        """The models that agents submitted."""
        return [
            self._file(model)
            for record in self.experiment.history().rounds
            for model in record.contributions.values()
        ]

    def _file(self, said: TrainedModel) -> SealedFile:
        device, binding = self.plan.accounts[said.agent], self.peers.binding(said)
        return SealedFile(said.round, device, said.digest, said.cid, binding)

    def contents(self) -> list[Content]:
        """All that the ledger names."""
        history = self.experiment.history()
        models = [
            (cid, Content(number, "model"))
            for number, announced in history.announced.items()
            for cid in announced.values()
        ]
        sealed = [
            (model.cid, self._content_of(model, is_needed=agent in record.openings))
            for record in history.rounds
            for agent, model in record.contributions.items()
        ]
        return contents_of(models + sealed)

    def _content_of(self, model: TrainedModel, is_needed: bool) -> Content:
        return Content(model.round, "sealed model", self.plan.accounts[model.agent], is_needed)

    @property
    def reached(self) -> int:
        """The round of the model that was announced last: the first is when the run begins."""
        return max(self.experiment.history().announced)

    def done(self) -> int:
        """How many rounds have ended.

        Raises
        ------
        RunEnded
            If the run ended in the middle of one.
        """
        progress, plan = self.experiment.progress, self.plan
        if progress.stage is not Stage.FINISHED:
            return progress.round
        last = self.experiment.history().rounds[-1]
        if not last.openings:
            raise RunEnded(f"the run ended in round {last.number + 1} of {plan.rounds}")
        return last.number + 1

    def publish(self, number: int, arrays: Arrays) -> None:
        """Store the model that a round begins with, and announce it, unless that has been done."""
        packed = pack(arrays)
        cid = cid_to_bytes(self.store.put(packed))
        if digest(packed) not in self.announced(number):
            self.experiment.publish(number, digest(packed), cid)

    def announced(self, number: int) -> dict[bytes, bytes]:
        """The models that the owner said a round begins with: digest and address."""
        return self.experiment.history().announced.get(number, {})

    def model(self, number: int) -> Arrays | None:
        """The model that a round begins with, from the store; None if it was not announced.

        Raises
        ------
        StoreError
            If the model is not there, or is not the one that the ledger names.
        """
        for found, cid in reversed(self.announced(number).items()):
            return self.load(f"the model of round {number}", cid, found)
        return None


def _require_permits(token: Contract) -> None:
    """ConfigError unless agents can post their bonds by a signature."""
    try:
        token.call("eip712Domain")
    except NodeError:
        raise
    except LedgerError as fault:
        raise ConfigError(
            f"token = {token.address}: agents post their bonds by permit (EIP-2612), and the token "
            f"does not tell what its permits are bound to (EIP-5267): {fault}"
        ) from fault
