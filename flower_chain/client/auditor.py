"""An agent that audits others (papers/3, appendix A), whatever carries its messages.

In every round an agent trains a model and seals it for all agents, opens the models of the others,
scores each on its own data, commits to the scores, reveals them once all have committed, and
computes the model that the next round begins with. Whoever carries the messages is not trusted:
what another agent is said to have said counts only with its signature, or if it opens what that
agent signed.

What an agent has said in a round it never says otherwise: before a signature leaves, what it stands
for is on the disk, so that an agent that was killed goes on where it was. The folder holds the
models of the others and, until they are told, secrets, scores and salts: nobody else should read
it.

In a data trust's task (papers/4) an agent is called a worker, and scores all models but its own. If
auditors are drawn, it scores only the models that it was drawn for. It draws itself, by what the
agents told, each of which must be what that agent chose before: nobody can choose for it.
"""

import json
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eth_account.signers.local import LocalAccount

from flower_chain import durable
from flower_chain.errors import FormatError, SealError, TaskRefused
from flower_chain.peers import Peers
from flower_chain.records import (
    Aggregate,
    Commitment,
    Retrieval,
    Said,
    Scores,
    SignedBy,
    TrainedModel,
    lot_of,
    sign,
)
from flower_chain.rules.blockflow import (
    ONE,
    retrieval_survivors,
    seed_of,
    to_score,
)
from flower_chain.store.cid import cid_of, cid_to_bytes
from flower_chain.store.seal import seal
from flower_chain.updates import (
    Arrays,
    check_finite,
    digest,
    digest_of,
    pack,
    unpack,
    weighted_mean,
)

Evaluate = Callable[[Arrays], float]
"""From a model to its score on the agent's own data, in [0, 1]."""


@dataclass(frozen=True)
class _Secret:
    """What an agent tells when all models are there.

    Parameters
    ----------
    secret : str
        In hex.
    time : float
        Since when it is there, in seconds since 1970.
    """

    secret: str
    time: float


@dataclass(frozen=True)
class _Audit:
    """What an agent committed to.

    Parameters
    ----------
    row : list of int
    salt : str
        In hex.
    live : list of int
        The agents that passed the retrieval rule.
    time : float
        When it was first asked to, in seconds since 1970.
    seed : str
        What auditors were drawn by, in hex; zero if they are not drawn.
    """

    row: list[int]
    salt: str
    live: list[int]
    time: float
    seed: str


class Auditor:
    """One agent.

    Parameters
    ----------
    folder : Path
        Of this agent, for this experiment; made if it is missing.
    account : LocalAccount
    peers : Peers
    clock : callable
        The time, in seconds since 1970.

    Raises
    ------
    TaskRefused
        If the account is not one of the agents.
    """

    def __init__(
        self,
        folder: Path,
        account: LocalAccount,
        peers: Peers,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if account.address not in peers.accounts:
            raise TaskRefused(f"{account.address} is none of the agents {peers.accounts}")
        self.number = peers.accounts.index(account.address)
        self._folder, self._account, self._peers, self._clock = folder, account, peers, clock
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    # -- train --------------------------------------------------------------------------------

    def begin(self, number: int, received: Arrays) -> None:
        """Keep the model that a round begins with, and of earlier rounds but the last nothing."""
        self._write(number, "received", pack(received))
        for old in self._folder.glob("round-*"):
            if int(old.name.removeprefix("round-")) < number - 1:
                shutil.rmtree(old)

    def received(self, number: int) -> Arrays:
        """The model that a round began with.

        Raises
        ------
        TaskRefused
            If the agent was not there.
        """
        path = self._path(number, "received")
        if not path.exists():
            raise TaskRefused(f"agent {self.number} was not asked to train in round {number}")
        return unpack(path.read_bytes())

    def contributed(self, number: int) -> tuple[SignedBy[TrainedModel], bytes] | None:
        """What the agent has said of its model in a round, if it has, and the model, sealed."""
        return self._contribution(number) if self._path(number, "sealed").exists() else None

    def contribute(self, number: int, trained: Arrays) -> tuple[SignedBy[TrainedModel], bytes]:
        """What the agent says of the model that it trained in a round, and the model, sealed.

        Asked again, it says and sends the same, whatever `trained` is then.

        Raises
        ------
        FormatError
            If the model is not in the format that was agreed, or not finite.
        """
        if not self._path(number, "sealed").exists():
            self._peers.model.check(trained)
            check_finite(trained)
            packed = pack(trained)
            self._write(number, f"model-{self.number}", packed)
            # Its name is left open: the binding holds only what it is bound to.
            draft = TrainedModel(self.number, number, digest(packed), b"")
            sealed = seal(packed, self._peers.recipients, self._peers.binding(draft))
            self._write(number, "sealed", sealed)
        return self._contribution(number)

    def _contribution(self, number: int) -> tuple[SignedBy[TrainedModel], bytes]:
        sealed, packed = (
            self._path(number, "sealed").read_bytes(),
            self._packed(number, self.number),
        )
        cid, lot = cid_to_bytes(cid_of(sealed)), self._own_lot(number)
        return self._signed(TrainedModel(self.number, number, digest(packed), cid, lot)), sealed

    def _own_lot(self, number: int) -> bytes:
        """What the agent says of its secret, which is on the disk then."""
        if not self._peers.auditors:
            return bytes(32)
        if (kept := self._read_secret(number)) is None:
            kept = _Secret(secrets.token_hex(32), self._clock())
            self._write(number, "secret", json.dumps(asdict(kept)).encode())
        lot = lot_of(self.number, number, bytes.fromhex(kept.secret), self._peers.domain)
        self._write(number, f"lot-{self.number}", lot)
        return lot

    # -- retrieve -----------------------------------------------------------------------------

    def retrieve(
        self, number: int, models: Sequence[tuple[SignedBy[TrainedModel], bytes]]
    ) -> dict[int, str]:
        """Open models of a round, from whomever they come; tell what is wrong with which.

        What is missing may come later: every agent holds what every other can open. What is there
        stays: an agent that signs two models in a round does not have the other one audited.
        """
        faults: dict[int, str] = {}
        for (model, signature), sealed in models:
            try:
                packed = self._opened(number, model, signature, sealed)
            except (FormatError, SealError) as fault:
                faults[model.agent] = str(fault)
                continue
            self._write(number, f"model-{model.agent}", packed)
        return faults

    def report(self, number: int) -> SignedBy[Retrieval]:
        """What the agent says of the models that it could open; asked again, it says the same.

        Raises
        ------
        TaskRefused
            If auditors are drawn, and somebody can still submit a model, who should not know yet by
            what; or the agent has not submitted one.
        """
        secret = self._told_secret(number)
        path = self._path(number, "retrieved")
        if not path.exists():
            self._write(number, "retrieved", json.dumps(self._held(number)).encode())
        retrieved = tuple(json.loads(path.read_bytes()))
        return self._signed(Retrieval(self.number, number, retrieved, secret))

    def _told_secret(self, number: int) -> bytes:
        """The agent's secret, once everybody has chosen one or nobody can any more."""
        if not self._peers.auditors:
            return bytes(32)
        if (kept := self._read_secret(number)) is None:
            raise TaskRefused(f"round {number}: agent {self.number} has not submitted a model")
        before = self._read(number - 1)
        others = before.live if before else range(len(self._peers.keys))
        waiting = [agent for agent in others if self._lot(number, agent) is None]
        if waiting and self._clock() < kept.time + self._peers.train_seconds:
            raise TaskRefused(f"round {number}: agents {waiting} can still submit models")
        return bytes.fromhex(kept.secret)

    def _opened(self, number: int, model: TrainedModel, signature: bytes, sealed: bytes) -> bytes:
        if model.round != number or not self._peers.is_signed(model, signature):
            raise FormatError(f"not signed by agent {model.agent} for round {number}")
        self._keep_lot(model)
        packed = self._peers.open(model, sealed, self._account)
        if model.agent in self._held(number) and packed != self._packed(number, model.agent):
            raise FormatError(f"agent {model.agent} has signed another model before")
        return packed

    def _keep_lot(self, model: TrainedModel) -> None:
        """Note that an agent submitted, and its lot, whether its model can be used or not."""
        lot = self._lot(model.round, model.agent)
        if lot is None:
            self._write(model.round, f"lot-{model.agent}", model.lot)
        elif lot != model.lot:
            raise FormatError(f"agent {model.agent} has signed another lot before")

    # -- commit -------------------------------------------------------------------------------

    def commit(
        self, number: int, retrievals: Sequence[SignedBy[Retrieval]], evaluate: Evaluate
    ) -> SignedBy[Commitment]:
        """Score the models that the agent has, and commit to the scores.

        All of them, also those of agents that are said to have failed: the contract knows, and
        ignores what is said of them. Or, if auditors are drawn, those that the agent was drawn for
        among the agents that passed. Asked again, it commits to the same.

        Parameters
        ----------
        number : int
        retrievals : sequence
            What agents said that submitted a model in this round.
        evaluate : callable

        Raises
        ------
        TaskRefused
            If the agent itself did not pass, or lacks a model that did.
        FormatError
            If a score is not in [0, 1].
        """
        kept = self._read(number)
        if kept is None:
            begun = self._clock()
            told = self._told(number, retrievals)
            live, held = self._passed(number, told), self._held(number)
            seed = seed_of(each.secret for each in told.values()).hex()
            row = [
                to_score(evaluate(self._model(number, agent))) if agent in held else 0
                for agent in self._audits(live, seed)[self.number]
            ]
            kept = _Audit(row, secrets.token_hex(32), live, begun, seed)
            self._write(number, "scores", json.dumps(asdict(kept)).encode())
        own = self._scores(number, kept)
        return self._signed(Commitment(self.number, number, own.commitment(self._peers.domain)))

    def _told(self, number: int, retrievals: Sequence[SignedBy[Retrieval]]) -> dict[int, Retrieval]:
        """By agent, what was retrieved in a round, as far as it is signed, and opens its lot."""
        return {
            retrieval.agent: retrieval
            for retrieval, signature in retrievals
            if retrieval.round == number
            and self._peers.is_signed(retrieval, signature)
            and self._opens_lot(retrieval)
        }

    def _opens_lot(self, said: Retrieval) -> bool:
        """Whether its secret is what an agent chose before, if it had to."""
        if not self._peers.auditors:
            return True
        lot = lot_of(said.agent, said.round, said.secret, self._peers.domain)
        return lot == self._lot(said.round, said.agent)

    def _passed(self, number: int, said: Mapping[int, Retrieval]) -> list[int]:
        """The agents that pass the retrieval rule."""
        everybody = range(len(self._peers.keys))
        submitted = {agent for agent in everybody if self._lot(number, agent) is not None}
        agents = sorted({*said, *self._held(number), *submitted})
        places = {agent: place for place, agent in enumerate(agents)}
        sets = [
            [places[k] for k in said[agent].retrieved if k in places] if agent in said else None
            for agent in agents
        ]
        live = [agents[place] for place in retrieval_survivors(sets)]
        if self.number not in live:
            raise TaskRefused(f"round {number}: agent {self.number} did not pass, but {live} did")
        if missing := set(live) - set(self._held(number)):
            raise TaskRefused(f"round {number}: the models of agents {sorted(missing)} are missing")
        return live

    # -- reveal -------------------------------------------------------------------------------

    def reveal(self, number: int, commitments: Sequence[SignedBy[Commitment]]) -> Scores:
        """The scores, once everybody has committed or nobody can any more.

        Parameters
        ----------
        number : int
        commitments : sequence
            Of the agents that passed.

        Raises
        ------
        TaskRefused
            If it is too early, or the agent has not committed.
        """
        kept = self._committed(number)
        said = self._said(number, commitments)
        waiting = [agent for agent in kept.live if agent not in said]
        if waiting and self._clock() < kept.time + self._peers.commit_seconds:
            raise TaskRefused(f"round {number}: agents {waiting} have not committed yet")
        return self._scores(number, kept)

    # -- score --------------------------------------------------------------------------------

    def aggregate(
        self,
        number: int,
        commitments: Sequence[SignedBy[Commitment]],
        openings: Sequence[Scores],
        received: Arrays,
    ) -> dict[str, Any]:
        """The model that the next round begins with.

        Parameters
        ----------
        number : int
        commitments : sequence
            Of the agents that passed.
        openings : sequence of Scores
            Of those that revealed: the others are out.
        received : Arrays
            What this round began with: what it ends with too if all scores are zero.

        Raises
        ------
        TaskRefused
            If scores are not what an agent that passed committed to, or its own are missing.
        """
        kept, said = self._committed(number), self._said(number, commitments)
        audits = self._audits(kept.live, kept.seed)
        rows = {opening.agent: opening.row for opening in openings}
        for opening in openings:
            audited = audits.get(opening.agent)
            if audited is None or not self._opens(opening, said, len(audited)):
                raise TaskRefused(f"round {number}: agent {opening.agent} did not commit to that")
        if self.number not in rows:
            raise TaskRefused(f"round {number}: the scores of agent {self.number} are missing")
        weights = self._peers.weights(rows, audits)
        if not any(weights.values()):
            return dict(received)
        models = [self._model(number, peer) for peer in weights]
        return weighted_mean(models, list(weights.values()))

    def tell(self, number: int, aggregate: Arrays) -> SignedBy[Aggregate]:
        """What the agent says of the model that it computed."""
        return self._signed(Aggregate(self.number, number, digest_of(aggregate)))

    def check(self, expected: Arrays, received: Arrays) -> None:
        """Refuse to train on another model than the one that the agent computed.

        Raises
        ------
        TaskRefused
        """
        named, found = digest_of(expected), digest_of(received)
        if named != found:
            raise TaskRefused(
                f"the model received has digest {found.hex()}, the aggregate of what was revealed "
                f"{named.hex()}"
            )

    # -- what is kept -------------------------------------------------------------------------

    def _said(self, number: int, commitments: Sequence[SignedBy[Commitment]]) -> dict[int, bytes]:
        """By agent, what was committed to in a round, as far as it is signed."""
        return {
            commitment.agent: commitment.digest
            for commitment, signature in commitments
            if commitment.round == number and self._peers.is_signed(commitment, signature)
        }

    def _audits(self, live: Sequence[int], seed: str) -> Mapping[int, Sequence[int]]:
        return self._peers.audits(live, bytes.fromhex(seed))

    def _opens(self, opening: Scores, said: Mapping[int, bytes], size: int) -> bool:
        """Whether these are `size` scores, and those that their agent committed to."""
        if len(opening.row) != size or not all(0 <= s <= ONE for s in opening.row):
            return False
        return opening.commitment(self._peers.domain) == said.get(opening.agent)

    def _committed(self, number: int) -> _Audit:
        kept = self._read(number)
        if kept is None:
            raise TaskRefused(f"round {number}: agent {self.number} has not committed")
        return kept

    def _scores(self, number: int, kept: _Audit) -> Scores:
        return Scores(self.number, number, tuple(kept.row), bytes.fromhex(kept.salt))

    def _model(self, number: int, agent: int) -> Arrays:
        return unpack(self._packed(number, agent))

    def _packed(self, number: int, agent: int) -> bytes:
        return self._path(number, f"model-{agent}").read_bytes()

    def _held(self, number: int) -> list[int]:
        agents = range(len(self._peers.keys))
        return [agent for agent in agents if self._path(number, f"model-{agent}").exists()]

    def _lot(self, number: int, agent: int) -> bytes | None:
        path = self._path(number, f"lot-{agent}")
        return path.read_bytes() if path.exists() else None

    def _read_secret(self, number: int) -> _Secret | None:
        path = self._path(number, "secret")
        return _Secret(**json.loads(path.read_bytes())) if path.exists() else None

    def _read(self, number: int) -> _Audit | None:
        path = self._path(number, "scores")
        return _Audit(**json.loads(path.read_bytes())) if path.exists() else None

    def _write(self, number: int, name: str, data: bytes) -> None:
        path = self._path(number, name)
        path.parent.mkdir(exist_ok=True)
        durable.replace(path, data)

    def _path(self, number: int, name: str) -> Path:
        return self._folder / f"round-{number}" / name

    def _signed(self, said: Said) -> SignedBy[Said]:
        return said, sign(said.encode(self._peers.domain), self._account)
