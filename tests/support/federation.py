"""A whole run: devices, grid, strategy, embedded ledger and store in one process."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from eth_account import Account
from eth_account.signers.local import LocalAccount
from flwr.app import Message, MessageType
from flwr.serverapp.strategy import FedAvg, Result, Strategy
from local_grid import LocalGrid, Meddler, Node
from softmax import Device, examiner, fresh, record
from web3 import HTTPProvider, Web3
from web3.types import RPCEndpoint

from flower_chain import RecordAndReward, RecordAndRewardSettings, messages, updates
from flower_chain.client.account import device_account
from flower_chain.envelope import close
from flower_chain.keys import public_key
from flower_chain.ledger.federation import History
from flower_chain.records import Contribution, Domain, Refusal, Signed, sign
from flower_chain.report.record_and_reward import Summary, summarise
from flower_chain.run import RecordAndRewardRun
from flower_chain.store.cid import cid_from_bytes, cid_of, cid_to_bytes
from flower_chain.updates import Arrays
from flower_chain.verify import verify

OWNER: LocalAccount = Account.from_key(hashlib.sha256(b"owner").digest())
TRAIN = MessageType.TRAIN
TOKEN = 10**18


@dataclass
class Outcome:
    """What is left of a run."""

    path: Path
    result: Result
    run: RecordAndRewardRun

    @cached_property
    def history(self) -> History:
        """From the ledger."""
        return self.run.federation.history()

    @property
    def summary(self) -> Summary:
        """As ``flower-chain show`` tells it."""
        pool = self.run.federation.pool
        budget = self.run.plan.budget
        return summarise(self.history, self.run.pointers.contract, pool, budget)

    def accepted(self, version: int = 0) -> list[str]:
        """Accounts."""
        found = self.history.versions[version].accepted
        return [verdict.signed.contribution.device for verdict in found]

    def refused(self, version: int = 0) -> list[tuple[str, Refusal]]:
        """Accounts and reasons, from the contract and from the owner."""
        found = self.history.versions[version]
        by_contract = [(v.signed.contribution.device, v.reason) for v in found.verdicts if v.reason]
        return by_contract + [(f.device, f.reason) for f in found.findings + found.left_out]

    def model(self, version: int) -> Arrays:
        """T_k as it is in the store."""
        return updates.unpack(
            self.run.store.get(cid_from_bytes(self.history.versions[version].model.cid))
        )

    def verify(self) -> dict[str, int]:
        """What an auditor with the owner's key and data could check."""
        *_, report = verify(self.run, OWNER, examiner())
        return report.checked


class Federation:
    """Devices around a grid, and the owner.

    Parameters
    ----------
    path : Path
        Where keys, ledger and store go.
    devices : int
    """

    def __init__(self, path: Path, devices: int) -> None:
        self.path = path
        self.grid = LocalGrid()
        self.devices = [Device(number) for number in range(devices)]
        self.nodes = [device.join(self.grid, path / "keys") for device in self.devices]
        self.initial: Arrays = fresh()

    @property
    def accounts(self) -> list[str]:
        """Of the devices."""
        return [device.account.address for device in self.devices]

    def add(self, device: Device, **node_config: str) -> Node:
        """One more."""
        self.devices.append(device)
        self.nodes.append(device.join(self.grid, self.path / "keys", **node_config))
        return self.nodes[-1]

    def meddle(self, meddler: Meddler, kind: str = TRAIN) -> str:
        """Let the last device send something else; returns its account."""
        self.nodes[-1].meddlers[kind] = meddler
        return self.accounts[-1]

    def strategy(self, inner: Strategy | None = None, **settings: Any) -> RecordAndReward:
        """Around FedAvg if nothing else is said."""
        run = self.path / "run"
        key = self.path / "owner.key"
        key.touch(0o600)
        key.write_text(bytes(OWNER.key).hex())
        defaults = {"run": str(run), "owner_key": str(key)}
        everyone = everybody(FedAvg, self)
        return RecordAndReward(
            inner or everyone, examiner(), RecordAndRewardSettings(**(defaults | settings))
        )

    def run(self, inner: Strategy | None = None, rounds: int = 1, **settings: Any) -> Outcome:
        """From the first round to the last."""
        strategy = self.strategy(inner, **settings)
        result = strategy.start(self.grid, record(self.initial), num_rounds=rounds)
        return Outcome(self.path / "run", result, strategy._run)

    def updates(self, turn: int, accounts: list[str]) -> list[Arrays]:
        """What the devices with these accounts computed the `turn`-th time, sorted by account."""
        chosen = [device for device in self.devices if device.account.address in accounts]
        chosen.sort(key=lambda device: device.account.address.lower())
        return [
            updates.difference(trained, received)
            for received, trained in (device.trained[turn] for device in chosen)
        ]


def everybody(kind: type[FedAvg], federation: Federation, **options: Any) -> FedAvg:
    """A Flower strategy that trains on all nodes and leaves evaluation out."""
    nodes = len(federation.grid.nodes)
    return kind(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes, **options)


def change_code(url: str, contract: str) -> None:
    """Put other code at a contract's address, which does the same."""
    provider = HTTPProvider(url)
    code = provider.make_request(RPCEndpoint("eth_getCode"), [contract, "latest"])["result"]
    provider.make_request(RPCEndpoint("anvil_setCode"), [contract, f"{code}00"])


def give(url: str, *accounts: str) -> None:
    """What gas costs."""
    web3 = Web3(Web3.HTTPProvider(url))
    for account in accounts:
        web3.provider.make_request("anvil_setBalance", [account, hex(10**21)])


def contribution_in(reply: Message) -> tuple[Signed, bytes | None]:
    """What a device signed, and the sealed update."""
    return messages.read_contribution(reply.content)


def signing(
    update: Arrays | None = None,
    owner: LocalAccount = OWNER,
    attach: bool = True,
    **changes: Any,
) -> Meddler:
    """A device that signs something else than it should.

    Parameters
    ----------
    update : Arrays, optional
        What it sends instead of what it computed.
    owner : LocalAccount
        Whom it seals that for.
    attach : bool
        Whether the sealed update comes along.
    changes : dict
        Fields of the contribution.
    """

    def meddle(node: Node, question: Message, reply: Message) -> Message:
        signed, sealed = contribution_in(reply)
        account, domain = device_account(node.context), messages.read_domain(question.content)
        contribution = signed.contribution
        if update is not None:
            name, sealed = close(update, [public_key(owner)], domain, account.address)
            cid = cid_to_bytes(cid_of(sealed))
            contribution = replace(contribution, digest=name, cid=cid)
        contribution = replace(contribution, **changes)
        return sending(reply, account, domain, contribution, sealed if attach else None)

    return meddle


def sending(
    reply: Message,
    account: LocalAccount,
    domain: Domain,
    contribution: Contribution,
    sealed: bytes | None,
) -> Message:
    """The reply with this contribution, duly signed."""
    for key in list(reply.content.array_records):
        del reply.content[key]
    signed = Signed(contribution, sign(contribution.encode(domain), account))
    messages.write_contribution(reply.content, signed, sealed)
    return reply


def changed(**arrays: Any) -> Arrays:
    """An update to the model that is all zeros, with other arrays; None takes one away."""
    zeros: Mapping[str, Any] = fresh() | arrays
    return {key: np.asarray(value) for key, value in zeros.items() if value is not None}
