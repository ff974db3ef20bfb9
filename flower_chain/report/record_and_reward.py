"""What happened in a run of record-and-reward."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table

from flower_chain.ledger.federation import History, Version
from flower_chain.privacy.accountant import UNITS
from flower_chain.records import NOBODY, PPM, UNMEASURED, Refusal
from flower_chain.report import base
from flower_chain.report.base import in_tokens

BAR = 20
"""Characters that a whole budget is drawn with."""


@dataclass(frozen=True)
class Round:
    """One version of the model and what was contributed to it.

    Parameters
    ----------
    version : int
        k.
    accuracy : float or None
        Of T_k on the owner's validation data, in [0, 1].
    accepted : list of str
        Accounts of the devices whose updates were accepted.
    refused : list of tuple
        Account and reason of the others.
    paid : int
        In the token's smallest unit.
    short : bool
        Whether the pool could not pay all that was due.
    settled : bool
        Whether the next version was published.
    gas_used : int
        Of all its transactions.
    """

    version: int
    accuracy: float | None
    accepted: list[str]
    refused: list[tuple[str, str]]
    paid: int
    short: bool
    settled: bool
    gas_used: int


@dataclass(frozen=True)
class Device:
    """What became of one device.

    Parameters
    ----------
    account : str
    accepted : int
        Versions that its update was accepted for.
    refused : dict of str to int
        Versions that it was not accepted for, by reason.
    data_points : int
        Data points of its accepted updates.
    earned, balance : int
        All that it was paid, and what of it it can still withdraw, in the token's smallest unit.
    spent : int
        What it has spent of its privacy, in millionths of epsilon.
    """

    account: str
    accepted: int
    refused: dict[str, int]
    data_points: int
    earned: int
    balance: int
    spent: int


@dataclass(frozen=True)
class Summary(base.Summary):
    """What happened in a run.

    Parameters
    ----------
    contract : str
        Its address.
    pool : int
        What is left in it, in the token's smallest unit.
    rounds : list of Round
    devices : list of Device
    budget : int
        What each device may spend of its privacy, in millionths of epsilon; 0 if none is counted.
    """

    contract: str
    pool: int
    rounds: list[Round]
    devices: list[Device]
    budget: int

    def tables(self) -> Iterator[RenderableType]:
        """For people."""
        yield _rounds_table(self.rounds)
        yield _devices_table(self.devices)
        if self.budget:
            yield _privacy_table(self.devices, self.budget)
        yield f"Left in the pool: {in_tokens(self.pool)} tokens"

    def to_json(self) -> dict[str, Any]:
        """For programs; amounts are strings, since they exceed 2^53."""
        values = asdict(self) | {"pool": str(self.pool)}
        for entry in values["rounds"]:
            entry["paid"] = str(entry["paid"])
            entry["refused"] = [{"device": d, "reason": reason} for d, reason in entry["refused"]]
        for entry in values["devices"]:
            entry["earned"], entry["balance"] = str(entry["earned"]), str(entry["balance"])
        return values


def summarise(history: History, contract: str, pool: int, budget: int = 0) -> Summary:
    """What `history` comes to.

    Parameters
    ----------
    history : History
    contract : str
        Its address.
    pool : int
        What is left in it, in the token's smallest unit.
    budget : int
        What each device may spend of its privacy, in millionths of epsilon; 0 if none is counted.
    """
    rounds = [_round(version) for version in history.versions]
    accounts = sorted({*history.enrolled, *(d for r in rounds for d, _ in r.refused)})
    accepted, refused, spent = _accepted_points(history), _refusals(history), history.spent
    devices = [
        _device(account, history, accepted[account], refused[account], spent.get(account, 0))
        for account in accounts
    ]
    return Summary(contract, pool, rounds, devices, budget)


def _rounds_table(rounds: Iterable[Round]) -> Table:
    """A row for each version."""
    table = Table(title="Versions of the model", title_justify="left")
    for name in ("version", "accuracy", "accepted", "refused", "paid", "gas"):
        table.add_column(name, justify="left" if name == "refused" else "right")
    for entry in rounds:
        table.add_row(
            str(entry.version),
            "-" if entry.accuracy is None else f"{entry.accuracy:.3f}",
            str(len(entry.accepted)),
            _reasons(reason for _, reason in entry.refused),
            in_tokens(entry.paid) + (" (pool short)" if entry.short else ""),
            f"{entry.gas_used:,}",
        )
    return table


def _devices_table(devices: Iterable[Device]) -> Table:
    """A row for each device."""
    table = Table(title="Devices", title_justify="left")
    table.add_column("device", no_wrap=True)
    table.add_column("accepted", justify="right")
    table.add_column("refused")
    for name in ("points", "earned", "balance"):
        table.add_column(name, justify="right")
    for entry in devices:
        table.add_row(
            "(never told its account)" if entry.account == NOBODY else entry.account,
            str(entry.accepted),
            ", ".join(f"{n} {reason}" for reason, n in entry.refused.items()),
            f"{entry.data_points:,}",
            in_tokens(entry.earned),
            in_tokens(entry.balance),
        )
    return table


def _privacy_table(devices: Iterable[Device], budget: int) -> Table:
    """How much each device has left of its privacy."""
    table = Table(title=f"Privacy: epsilon spent of {budget / UNITS:g}", title_justify="left")
    table.add_column("device", no_wrap=True)
    table.add_column("spent", justify="right")
    table.add_column("", width=BAR)
    for entry in devices:
        if entry.account != NOBODY:
            bar = ProgressBar(total=budget, completed=entry.spent, width=BAR)
            table.add_row(entry.account, f"{entry.spent / UNITS:.3f}", bar)
    return table


def _round(version: Version) -> Round:
    error = version.model.error_ppm
    return Round(
        version.number,
        None if error == UNMEASURED else 1 - error / PPM,
        [verdict.device for verdict in version.accepted],
        [(device, str(reason)) for device, reason in _refused(version)],
        sum(payment.amount for payment in version.payments),
        version.pool_when_short is not None,
        version.settled,
        version.gas_used,
    )


def _accepted_points(history: History) -> dict[str, list[int]]:
    """The data points of each accepted update, by account."""
    points: dict[str, list[int]] = defaultdict(list)
    for version in history.versions:
        for verdict in version.accepted:
            points[verdict.device].append(verdict.signed.contribution.data_cost)
    return points


def _refusals(history: History) -> dict[str, list[str]]:
    """The reason of each refusal, by account."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for version in history.versions:
        for device, reason in _refused(version):
            reasons[device].append(str(reason))
    return reasons


def _device(
    account: str, history: History, accepted: list[int], refused: list[str], spent: int
) -> Device:
    earned = history.credited.get(account, 0)
    return Device(
        account,
        len(accepted),
        dict(Counter(refused)),
        sum(accepted),
        earned,
        earned - history.withdrawn.get(account, 0),
        spent,
    )


def _refused(version: Version) -> list[tuple[str, Refusal]]:
    by_contract = [(v.signed.contribution.device, v.reason) for v in version.verdicts if v.reason]
    found = version.findings + version.left_out
    return by_contract + [(finding.device, finding.reason) for finding in found]


def _reasons(reasons: Iterable[str]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in Counter(reasons).items())
