"""A whole run whose agents judge each other, in one process: devices, grid, strategy, ledger."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import finalize

from eth_account import Account
from eth_account.signers.local import LocalAccount
from federation import everybody
from flwr.serverapp.strategy import FedAvg, Result, Strategy
from local_grid import LocalGrid, Meddler, Node
from softmax import Device, fresh, record

from flower_chain import BlockFlow, BlockFlowSettings, DataTrust, DataTrustSettings
from flower_chain.audit_messages import AUDIT
from flower_chain.ledger.blockflow import History, Round
from flower_chain.run import PeersRun, open_run
from flower_chain.strategy.peers import PeersStrategy
from flower_chain.updates import Arrays

OWNER: LocalAccount = Account.from_key(hashlib.sha256(b"owner").digest())


@dataclass
class Outcome:
    """What is left of an experiment."""

    path: Path
    result: Result | None

    @cached_property
    def _run(self) -> PeersRun:
        """Opened once: to replay its ledger takes time."""
        run = open_run(self.path)
        assert isinstance(run, PeersRun)
        finalize(self, run.close)
        return run

    @cached_property
    def history(self) -> History:
        """From the ledger."""
        return self._run.experiment.history()

    @property
    def round(self) -> Round:
        """The first one."""
        return self.history.rounds[0]

    def model(self, number: int) -> Arrays:
        """What a round began with, as it is in the store."""
        found = self._run.model(number)
        assert found is not None
        return found


class Experiment:
    """Agents around a grid, and the owner.

    Parameters
    ----------
    path : Path
        Where keys, ledger and store go.
    agents : int
    grid : LocalGrid, optional
    """

    def __init__(self, path: Path, agents: int, grid: LocalGrid | None = None) -> None:
        self.path = path
        self.grid = grid or LocalGrid()
        devices = [Device(number, measures=False) for number in range(agents)]
        self.devices = sorted(devices, key=lambda device: device.account.address.lower())
        self.nodes: list[Node] = [
            device.join(self.grid, path / "keys", max_bond=100) for device in self.devices
        ]
        self.initial: Arrays = fresh()

    @property
    def accounts(self) -> list[LocalAccount]:
        """Of the agents, by number."""
        return [device.account for device in self.devices]

    def meddle(self, agent: int, meddler: Meddler, kind: str = AUDIT) -> None:
        """Let an agent send something else."""
        self.nodes[agent].meddlers[kind] = meddler

    def strategy(self, inner: Strategy | None = None, **settings: Any) -> PeersStrategy:
        """BlockFlow, around FedAvg if nothing else is said."""
        return BlockFlow(self.inner(inner), BlockFlowSettings(**self.settings(settings)))

    def inner(self, strategy: Strategy | None) -> Strategy:
        """That strategy, or FedAvg with all devices."""
        return strategy or everybody(FedAvg, self)

    def settings(self, given: dict[str, Any]) -> dict[str, Any]:
        """Those that are given, and what every run here needs."""
        key = self.path / "owner.key"
        key.touch(0o600)
        key.write_text(bytes(OWNER.key).hex())
        defaults = {"run": str(self.path / "run"), "owner_key": str(key), "stage_seconds": 60}
        return defaults | given

    def run(self, inner: Strategy | None = None, rounds: int = 1, **settings: Any) -> Outcome:
        """From the first round to the last."""
        strategy = self.strategy(inner, **settings)
        result = strategy.start(self.grid, record(self.initial), num_rounds=rounds)
        return Outcome(self.path / "run", result)


class Task(Experiment):
    """Workers of a data trust, and the requester."""

    def strategy(self, inner: Strategy | None = None, **settings: Any) -> PeersStrategy:
        """DataTrust, around FedAvg if nothing else is said."""
        return DataTrust(self.inner(inner), DataTrustSettings(**self.settings(settings)))
