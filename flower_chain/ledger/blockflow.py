"""A BlockFLow experiment on a ledger (papers/3): what its agents did and what its contract decided.

Agents are known by their number, their place in the ascending order of accounts.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address

from flower_chain.errors import FormatError
from flower_chain.ledger.base import Contract, Event, Ledger, Receipt
from flower_chain.ledger.federation import batches
from flower_chain.records import (
    BondPermit,
    Commitment,
    Domain,
    Leave,
    Retrieval,
    Scores,
    SignedBy,
    TrainedModel,
    from_bits,
    sign,
    to_bits,
)
from flower_chain.rules.blockflow import MAX_AGENTS, draw, middles, refunds, table

RELAYED = ("submit", "retrieve", "commit")
"""What agents sign."""

BATCH = 50
"""Items of one transaction: far below the gas limit of one."""


class Stage(IntEnum):
    """What an experiment is doing; the order of ``BlockFlow.Stage``."""

    ENROL = 0
    TRAIN = 1
    RETRIEVE = 2
    COMMIT = 3
    REVEAL = 4
    SCORE = 5
    FINISHED = 6

    def __str__(self) -> str:
        return self.name.lower()


class Fault(IntEnum):
    """Why an item of a batch was passed over; the order of ``BlockFlow.Fault``."""

    NONE = 0
    NOT_IN_THE_RUN = 1
    SECOND_TIME = 2
    BAD_SIGNATURE = 3
    MALFORMED = 4
    WRONG_OPENING = 5
    BOND_NOT_POSTED = 6

    def __str__(self) -> str:
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True)
class Terms:
    """What is agreed before an experiment and enforced by its contract.

    Parameters
    ----------
    digest : bytes
        SHA-256 of the whole plan.
    rounds : int
        R.
    quorum : int
        How many agents must post their bond; else the experiment ends before it began. Whoever
        relays the bonds chooses whose it relays: M colluding agents can only do no harm if the
        quorum is larger than 2 M.
    bond, stake : int
        What each agent posts, and how much of it is shared by score in each round, in the token's
        smallest unit.
    seconds : tuple of int
        How long each stage lasts at most: enrol, train, retrieve, commit, reveal, score.
    auditors : int
        Q: by how many agents each model is audited, drawn in every round; 0: by all. How many it
        takes against how many colluding agents, docs/blockflow.md tells.
    """

    digest: bytes
    rounds: int
    quorum: int
    bond: int
    stake: int
    seconds: tuple[int, int, int, int, int, int]
    auditors: int = 0

    def as_tuple(self) -> tuple[Any, ...]:
        """Its fields as the contract's structure has them."""
        amounts = self.bond, self.stake
        return self.digest, self.rounds, self.quorum, *amounts, self.seconds, self.auditors


@dataclass(frozen=True)
class Permit:
    """An agent's leave to take its bond (EIP-2612).

    Parameters
    ----------
    agent : int
    deadline : int
        In seconds since 1970; 0 if the agent approved the contract itself.
    signature : bytes
        Of a :class:`flower_chain.records.BondPermit`, compact (EIP-2098), 64 bytes.
    """

    agent: int
    deadline: int = 0
    signature: bytes = bytes(64)

    def as_tuple(self) -> tuple[int, int, int, bytes, bytes]:
        """Its fields as the contract's structure has them."""
        vs = int.from_bytes(self.signature[32:])
        s = (vs & ~(1 << 255)).to_bytes(32)
        return self.agent, self.deadline, 27 + (vs >> 255), self.signature[:32], s


@dataclass(frozen=True)
class Progress:
    """Where an experiment stands.

    Parameters
    ----------
    round : int
        From 0.
    stage : Stage
    deadline : int
        Time of the first block that is too late, in seconds since 1970.
    live, acted : tuple of int
        The agents that are left, and those that did what the stage asks.
    """

    round: int
    stage: Stage
    deadline: int
    live: tuple[int, ...]
    acted: tuple[int, ...]

    @property
    def awaited(self) -> tuple[int, ...]:
        """Who has not acted yet."""
        return tuple(agent for agent in self.live if agent not in self.acted)


@dataclass(frozen=True)
class Rejection:
    """An item that the contract passed over; whose it is, is a mere claim."""

    agent: int
    fault: Fault


@dataclass
class Round:
    """All that the ledger holds of one round, by agent.

    Parameters
    ----------
    number : int
        r, from 0.
    audits : dict of int to list of int
        Whose models each agent was drawn to audit, in the order of its row; empty if auditors are
        not drawn, or not yet.
    refunded : dict of int to int
        Of the bonds, in the token's smallest unit, with what the last round gives back: the pot
        that the contract tells, shared as :func:`flower_chain.rules.blockflow.refunds` does.
    sent : dict
        What agents signed, and the transaction that each came in.
    signatures : list of bytes
        Of each of these, in order, if auditors are drawn: else the contract tells none.
    """

    number: int
    contributions: dict[int, TrainedModel] = field(default_factory=dict)
    retrievals: dict[int, Retrieval] = field(default_factory=dict)
    audits: dict[int, list[int]] = field(default_factory=dict)
    commitments: dict[int, Commitment] = field(default_factory=dict)
    openings: dict[int, Scores] = field(default_factory=dict)
    eliminated: dict[int, Stage] = field(default_factory=dict)
    overall: dict[int, int] = field(default_factory=dict)
    refunded: dict[int, int] = field(default_factory=dict)
    rejections: list[Rejection] = field(default_factory=list)
    receipts: dict[str, Receipt] = field(default_factory=dict)
    sent: dict[TrainedModel | Retrieval | Commitment | Leave, Receipt] = field(default_factory=dict)
    signatures: list[bytes] = field(default_factory=list)

    @property
    def left(self) -> tuple[int, ...]:
        """The agents that were left when the round ended; nobody if it goes on."""
        return tuple(self.refunded)

    def refund(self, live: Sequence[int], pot: int, rest: int) -> None:
        """Note how the contract shared `pot`, and that it gave back `rest` to each."""
        shares = refunds(pot, [self.overall.get(agent, 0) for agent in live])
        self.refunded = {agent: s + rest for agent, s in zip(live, shares, strict=True)}


@dataclass
class History:
    """All that the ledger holds of an experiment.

    Parameters
    ----------
    rounds : list of Round
    announced : dict of int to dict of bytes to bytes
        By round, the model that the owner said it begins with: SHA-256, and where it is; after the
        last round the final one. More than one if it said different things.
    joined : list of int
        The agents that posted their bonds.
    stage : Stage
        What the experiment is doing.
    credited, withdrawn : dict of str to int
        By account, in the token's smallest unit.
    """

    rounds: list[Round] = field(default_factory=lambda: [Round(0)])
    announced: dict[int, dict[bytes, bytes]] = field(default_factory=dict)
    joined: list[int] = field(default_factory=list)
    stage: Stage = Stage.ENROL
    credited: Counter[str] = field(default_factory=Counter)
    withdrawn: Counter[str] = field(default_factory=Counter)


def in_order(agents: Sequence[str]) -> list[str]:
    """The accounts of an experiment's agents, by number.

    Raises
    ------
    FormatError
        If there are too many agents, none, or one of them twice.
    """
    ascending: list[str] = sorted({to_checksum_address(agent) for agent in agents}, key=str.lower)
    if len(ascending) != len(agents) or not 0 < len(agents) <= MAX_AGENTS:
        raise FormatError(
            f"{len(agents)} agents, {len(ascending)} of them different: there must be from 1 "
            f"to {MAX_AGENTS}, each once"
        )
    return ascending


class Experiment:
    """BlockFLow's contract, in the package's own words.

    Parameters
    ----------
    contract : Contract
    account : LocalAccount or None
        Signs the transactions: anybody's, as signatures may be relayed; None for reading.
    """

    def __init__(self, contract: Contract, account: LocalAccount | None = None) -> None:
        self.contract = contract
        self.domain = Domain(contract.ledger.chain_id, contract.address)
        self._account = account
        self._auditors = self._drawn_auditors()
        count = contract.call("agentCount")
        accounts = [contract.call("agents", number)[0] for number in range(count)]
        self.agents: list[str] = [to_checksum_address(account) for account in accounts]

    @classmethod
    def deploy(
        cls,
        ledger: Ledger,
        account: LocalAccount,
        token: str,
        terms: Terms,
        agents: Sequence[str],
    ) -> "Experiment":
        """A new experiment.

        Raises
        ------
        FormatError
            If there are too many agents, none, or one of them twice.
        Reverted
            If the terms can't be kept.
        """
        contract = ledger.deploy(account, "BlockFlow", token, terms.as_tuple(), in_order(agents))
        return cls(contract, account)

    def _drawn_auditors(self) -> int:
        """By how many agents each model is audited, if they are drawn; else 0."""
        number: int = self.contract.call("auditors")
        return number

    def number_of(self, account: str) -> int:
        """The number of an agent, or FormatError."""
        checksummed = to_checksum_address(account)
        if checksummed not in self.agents:
            raise FormatError(f"{account} is none of the {len(self.agents)} agents")
        return self.agents.index(checksummed)

    @property
    def progress(self) -> Progress:
        """Where the experiment stands, by the last block."""
        stage, deadline, live, acted = self.contract.call("progress")
        number = self.contract.call("round")
        return Progress(number, Stage(stage), deadline, from_bits(live), from_bits(acted))

    def bond_permit(self, token: Contract, account: str, deadline: int) -> BondPermit:
        """What an agent must sign to post its bond without gas; `deadline` in seconds since 1970.

        Raises
        ------
        Reverted
            If the token does not tell what its permits are bound to (EIP-5267): then the agent
            must approve the contract itself.
        """
        _, name, version, *_ = token.call("eip712Domain")
        nonce, bond = token.call("nonces", account), self.contract.call("bond")
        chain_id, spender = self.domain.chain_id, self.contract.address
        return BondPermit(
            chain_id, token.address, name, version, account, spender, bond, nonce, deadline
        )

    def permit(self, token: Contract, account: LocalAccount, deadline: int) -> Permit:
        """An agent's leave to take its bond, signed by `account`."""
        asked = self.bond_permit(token, account.address, deadline)
        return Permit(self.number_of(account.address), deadline, sign(asked.encode(), account))

    def join(self, permits: Sequence[Permit]) -> list[Rejection]:
        """Agents post their bonds."""
        return self._act("join", [permit.as_tuple() for permit in permits])

    def submit(self, batch: Sequence[tuple[TrainedModel, bytes]]) -> list[Rejection]:
        """Record the models that agents trained, each with its signature."""
        return self._act(
            "submit", [(m.agent, m.digest, m.cid, m.lot, s[:32], s[32:]) for m, s in batch]
        )

    def retrieve(self, batch: Sequence[tuple[Retrieval, bytes]]) -> list[Rejection]:
        """Record whose models agents could retrieve, each with its signature."""
        return self._act(
            "retrieve",
            [(r.agent, to_bits(r.retrieved), r.secret, s[:32], s[32:]) for r, s in batch],
        )

    def commit(self, batch: Sequence[tuple[Commitment, bytes]]) -> list[Rejection]:
        """Record commitments to scores, each with its signature."""
        return self._act("commit", [(c.agent, c.digest, s[:32], s[32:]) for c, s in batch])

    def reveal(self, batch: Sequence[Scores]) -> list[Rejection]:
        """Record scores; that they open a commitment is the proof that they are the agent's."""
        return self._act("reveal", [(o.agent, o.packed, o.salt) for o in batch])

    def score(self, openings: Sequence[Scores]) -> Receipt:
        """Score all agents that are left, by what each of them committed to.

        Also in the stage in which scores are revealed: this reveals them.

        Raises
        ------
        Reverted
            If one is missing, or does not open its commitment.
        FormatError
            If one has not as many scores as it must have.
        """
        ordered = sorted(openings, key=lambda opening: opening.agent)
        given = {opening.agent: opening.row for opening in ordered}
        hints = np.zeros((2, len(self.agents)), ">u2")
        hints[:, list(given)] = middles(*table(given, self.audits()))
        rows, salts = b"".join(o.packed for o in ordered), [o.salt for o in ordered]
        return self._transact("score", rows, salts, *(hint.tobytes() for hint in hints))

    def audits(self) -> Mapping[int, Sequence[int]]:
        """Whose models each agent audits by the last draw, in the order of its row."""
        if self._auditors:
            seed, drawn = self.contract.call("seed"), from_bits(self.contract.call("drawn"))
            return draw(seed, drawn, self._auditors)
        everybody = range(len(self.agents))
        return dict.fromkeys(everybody, everybody)

    def advance(self) -> Receipt:
        """End a stage whose deadline has passed.

        Raises
        ------
        Reverted
            If it has not.
        """
        return self._transact("advance")

    def publish(self, number: int, digest: bytes, cid: bytes) -> None:
        """Tell, as the owner, which model a round begins with."""
        self._transact("publish", number, digest, cid)

    def claim(self, agents: Sequence[int]) -> None:
        """Credit agents what was refunded to them, from where anyone may withdraw it for them.

        What was claimed before is not claimed again.
        """
        if due := [agent for agent in agents if self.contract.call("agents", agent)[1] > 0]:
            self._transact("claim", due)

    def history(self) -> History:
        """All that the ledger holds of the experiment."""
        history = History()
        for event in self.contract.events(self.contract.block):
            self._remember(history, event)
        return history

    def _remember(self, history: History, event: Event) -> None:
        args, rounds = event.args, history.rounds
        if event.name == "StageOpened":
            history.stage = Stage(args["stage"])
            if args["round"] == len(rounds):
                rounds.append(Round(args["round"]))
                return  # the transaction is that of the round which it ended
        current = rounds[-1]
        current.receipts[event.receipt.transaction] = event.receipt
        match event.name:
            case "Drawn":
                live = from_bits(args["live"])
                current.audits = draw(bytes(args["seed"]), live, self._auditors)
            case "Eliminated":
                out = from_bits(args["out"])
                current.eliminated |= dict.fromkeys(out, Stage(args["stage"]))
            case "Scored":
                live = from_bits(args["live"])
                current.overall = dict(zip(live, args["overall"], strict=True))
            case "Refunded":
                current.refund(from_bits(args["live"]), args["pot"], args["rest"])
            case "ModelPublished":
                named = history.announced.setdefault(args["round"], {})
                named[bytes(args["digest"])] = bytes(args["cid"])
            case "Joined":
                history.joined.append(args["agent"])
            case "Credited":
                history.credited[args["account"]] += args["amount"]
            case "Withdrawn":
                history.withdrawn[args["account"]] += args["amount"]
            case "Rejected":
                current.rejections.append(_rejection(event))
            case _:
                self._remember_what_was_said(current, event)

    def _remember_what_was_said(self, current: Round, event: Event) -> None:
        args, agent, number = event.args, event.args.get("agent", 0), current.number
        match event.name:
            case "Contributed":
                said = (bytes(args[name]) for name in ("digest", "cid", "lot"))
                model = TrainedModel(agent, number, *said)
                current.contributions[agent] = model
                current.sent[model] = event.receipt
            case "Retrieved":
                found, secret = from_bits(args["retrieved"]), bytes(args["secret"])
                retrieval = Retrieval(agent, number, found, secret)
                current.retrievals[agent] = retrieval
                current.sent[retrieval] = event.receipt
            case "Committed":
                commitment = Commitment(agent, number, bytes(args["commitment"]))
                current.commitments[agent] = commitment
                current.sent[commitment] = event.receipt
            case "Signed":
                current.signatures.append(bytes(args["r"]) + bytes(args["vs"]))
            case "Revealed":
                scores = Scores.unpack(agent, number, bytes(args["row"]), bytes(args["salt"]))
                current.openings[agent] = scores
            case "AllRevealed":
                rows, live = bytes(args["rows"]), from_bits(args["live"])
                size = len(rows) // len(live)
                for place, one in enumerate(live):
                    row, salt = rows[place * size :][:size], bytes(args["salts"][place])
                    current.openings[one] = Scores.unpack(one, number, row, salt)

    def signed(self, number: int) -> list[SignedBy[Any]]:
        """What agents said in a round, with their signatures.

        If auditors are drawn this is all that they said; else what was relayed, not by a contract.
        """
        found = self.history().rounds[number]
        if self._auditors:
            return list(zip(found.sent, found.signatures, strict=True))
        said = [pair for name in found.receipts for pair in self.signed_in(name, number) or ()]
        return [(record, signature) for record, signature in said if record in found.sent]

    def signed_in(self, transaction: str, number: int) -> list[SignedBy[Any]] | None:
        """What agents say in a transaction of a round, each with a signature, good or bad.

        None if the transaction does something else than to relay that.
        """
        data = self.contract.ledger.data_of(transaction)
        for function in RELAYED:
            arguments = self.contract.decode(function, data)
            if arguments is not None:
                return [_said(function, number, item) for item in arguments[0]]
        return None

    def _act(self, function: str, items: Sequence[tuple[Any, ...]]) -> list[Rejection]:
        """Call a function with as many items at a time as fit; tell what was passed over.

        When everybody has acted, what is left over is too late, and not sent.
        """
        stage = self.progress.stage
        receipts: list[Receipt] = []
        for some in batches(items, BATCH):
            if receipts and self.progress.stage is not stage:
                break
            receipts.append(self._transact(function, some))
        events = [event for receipt in receipts for event in self.contract.events_in(receipt)]
        return [_rejection(event) for event in events if event.name == "Rejected"]

    def _transact(self, function: str, *args: Any) -> Receipt:
        assert self._account is not None
        return self.contract.transact(self._account, function, *args)


def _said(function: str, number: int, item: Sequence[Any]) -> SignedBy[Any]:
    """An item of a batch, as its agent signed it."""
    agent, signature = item[0], item[-2] + item[-1]
    match function:
        case "submit":
            return TrainedModel(agent, number, *item[1:4]), signature
        case "retrieve":
            return Retrieval(agent, number, from_bits(item[1]), item[2]), signature
        case _:
            return Commitment(agent, number, item[1]), signature


def _rejection(event: Event) -> Rejection:
    return Rejection(event.args["agent"], Fault(event.args["fault"]))
