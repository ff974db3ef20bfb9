"""A BlockFLow experiment acted out by hand: real contract, seals and store, but no Flower."""

import hashlib
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
from eth_account import Account
from eth_account.signers.local import LocalAccount
from golden_seal import RSA_READER
from softmax import fresh

from flower_chain import BlockFlowSettings
from flower_chain.keys import Reader, public_key
from flower_chain.ledger.blockflow import Stage
from flower_chain.records import (
    Commitment,
    Retrieval,
    Said,
    Scores,
    SignedBy,
    TrainedModel,
    lot_of,
    sign,
)
from flower_chain.run import BlockFlowRun
from flower_chain.store.cid import cid_to_bytes
from flower_chain.store.seal import seal
from flower_chain.updates import Arrays, Format, digest, digest_of, pack, weighted_mean

OWNER: LocalAccount = Account.from_key(hashlib.sha256(b"owner").digest())
READER: LocalAccount = Account.from_key(hashlib.sha256(b"reader").digest())
FOREVER = 2**64
SECONDS = 12


class Play:
    """Agents that do in each stage what they are told; the first model is there.

    Parameters
    ----------
    path : Path
        The folder around the run's.
    agents, rounds, quorum, auditors : int
    where : str
        The ledger.
    readers : collection of Reader
        Who may open the models beside the agents.
    """

    def __init__(
        self,
        path: Path,
        agents: int = 4,
        rounds: int = 1,
        quorum: int = 0,
        auditors: int = 0,
        where: str = "embedded",
        readers: Collection[Reader] = (READER, RSA_READER),
    ) -> None:
        made = [Account.from_key(number.to_bytes(32, "big")) for number in range(1, agents + 1)]
        self.accounts = sorted(made, key=lambda account: account.address.lower())
        self.path, first = path / "run", fresh()
        listed = [public_key(reader).hex() for reader in readers]
        (path / "readers").write_text("\n".join(listed))
        settings = BlockFlowSettings(
            run=str(self.path),
            readers=str(path / "readers"),
            bond=5.0,
            stake=1.0,
            quorum=quorum,
            auditors=auditors,
            train_seconds=2 * SECONDS,
            stage_seconds=SECONDS,
        )
        self.run = BlockFlowRun.start(
            self.path,
            where,
            OWNER,
            first,
            lambda _: [public_key(account) for account in self.accounts],
            lambda keys: settings.plan(Format.of(first), digest_of(first), "FedAvg", rounds, keys),
            None,
        )
        self.experiment, self.model = self.run.experiment, first

    @property
    def number(self) -> int:
        """Of the round."""
        return self.experiment.progress.round

    def join(self, agents: Iterable[int]) -> None:
        """Post bonds."""
        permits = [
            self.experiment.permit(self.run.token, self.accounts[agent], FOREVER)
            for agent in agents
        ]
        self.experiment.join(permits)

    def trained(self, agent: int, number: int) -> Arrays:
        """What an agent made in a round."""
        random = np.random.default_rng([agent, number])
        return {k: random.normal(size=v.shape).astype(v.dtype) for k, v in fresh().items()}

    def contribution(self, agent: int, inside: Arrays | None = None) -> TrainedModel:
        """An agent's model, in the store; what is inside may be another one."""
        peers, trained = self.run.peers, pack(self.trained(agent, self.number))
        draft = TrainedModel(agent, self.number, digest(trained), b"")
        packed = trained if inside is None else pack(inside)
        sealed = seal(packed, peers.recipients, peers.binding(draft))
        cid = cid_to_bytes(self.run.store.put(sealed))
        return TrainedModel(agent, self.number, digest(trained), cid, self.lot(agent))

    def lot(self, agent: int) -> bytes:
        """Of its secret."""
        if not self.run.plan.auditors:
            return bytes(32)
        return lot_of(agent, self.number, self.secret(agent), self.experiment.domain)

    def secret(self, agent: int) -> bytes:
        """What auditors are drawn by, if they are."""
        return bytes([agent + 1] * 32) if self.run.plan.auditors else bytes(32)

    def train(self, agents: Iterable[int]) -> None:
        """Submit models."""
        self.experiment.submit([self.signed(self.contribution(agent)) for agent in agents])

    def retrieve(self, agents: Collection[int], found: Collection[int]) -> None:
        """Report models."""
        said = [Retrieval(agent, self.number, tuple(found), self.secret(agent)) for agent in agents]
        self.experiment.retrieve([self.signed(each) for each in said])

    def scores(self, agent: int, worth: int = 1) -> Scores:
        """What an agent says: the better an agent's number, the better its model."""
        audited = self.experiment.audits()[agent]
        row = [worth * (30_000 + 5_000 * other + 100 * agent) for other in audited]
        return Scores(agent, self.number, tuple(row), bytes([agent]) * 32)

    def commit(self, agents: Iterable[int], worth: int = 1) -> None:
        """Commit to scores."""
        domain = self.experiment.domain
        opened = [self.scores(agent, worth) for agent in agents]
        said = [Commitment(o.agent, o.round, o.commitment(domain)) for o in opened]
        self.experiment.commit([self.signed(each) for each in said])

    def score(self, agents: Iterable[int], worth: int = 1) -> None:
        """Reveal all scores at once."""
        self.experiment.score([self.scores(agent, worth) for agent in agents])

    def play(self, agents: Collection[int], worth: int = 1) -> None:
        """A whole round, and the model that it ends with."""
        self.train(agents)
        self.retrieve(agents, agents)
        self.commit(agents, worth)
        self.score(agents, worth)
        self.publish()

    def publish(self, arrays: Arrays | None = None) -> None:
        """Announce the model of the round that has just ended, or another one."""
        ended = [found for found in self.experiment.history().rounds if found.left][-1]
        overall = [ended.overall[agent] for agent in ended.left]
        if any(overall):
            models = [self.trained(agent, ended.number) for agent in ended.left]
            self.model = weighted_mean(models, overall)
        self.run.publish(ended.number + 1, self.model if arrays is None else arrays)

    def wait(self) -> None:
        """Let the stage's time pass: on the embedded ledger each block is later by a second."""
        deadline, ledger = self.experiment.progress.deadline, self.run.contract.ledger
        assert self.experiment.progress.stage is not Stage.FINISHED
        transfer = ("transfer", OWNER.address, 0)
        while ledger.time_of(self.run.token.transact(OWNER, *transfer).block) < deadline:
            pass
        self.experiment.advance()

    def signed(self, said: Said) -> SignedBy[Said]:
        """With the signature of its agent."""
        return said, sign(said.encode(self.experiment.domain), self.accounts[said.agent])
