"""What a user sets, by constructor or by run-config."""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Self

from eth_account.signers.local import LocalAccount
from eth_utils.address import is_address, to_checksum_address

from flower_chain.errors import ConfigError
from flower_chain.keys import HOME, load, load_or_create
from flower_chain.plan import Plan
from flower_chain.records import TOKEN_UNITS, to_ppm
from flower_chain.rules.record_and_reward import Rule
from flower_chain.run import TOKEN_SUPPLY, Funds
from flower_chain.updates import Format

PREFIX = "chain."
SCHEMES = ("record-and-reward", "fedavg")
VARIABLE = re.compile(r"\$\{\w+\}")
PASSWORD = re.compile("//[^/?#]*[^/?#:@]@")
"""In a URL without its variables."""


@dataclass(frozen=True)
class Settings:
    """The settings of a run.

    In a run-config each has the prefix ``chain.`` and hyphens: ``chain.max-data-cost = 1000``.

    Parameters
    ----------
    run : str
        Folder of the run's records; made if it is not there, and if it holds a run, that is
        continued. Empty in a run-config for ``~/.flower-chain/runs/`` with Flower's id of the run.
    scheme : str
        ``record-and-reward``, or ``fedavg`` for plain Flower.
    ledger : str
        ``embedded``, or the URL of a node's JSON-RPC endpoint; ``${NAME}`` in it stands for an
        environment variable, so that no secret stands in a run-config.
    owner_key : str
        Key file or keystore of the owner; empty for ``owner.key`` in `run`, made if not there.
    keys : str
        Read by the devices of a simulation: folder of their key files; empty for
        ``~/.flower-chain/keys``.
    enrol : str
        File with the accounts of the devices, one on a line; ``open`` takes whoever answers, for
        simulations only.
    readers : str
        File with public keys, one on a line, of accounts that may open the updates beside the
        owner: auditors, say. ``flower-chain keys show FILE --public-key`` prints one.
    token : str
        Address of the ERC-20 that rewards are paid in; empty deploys one.
    pool : float
        Tokens that the owner puts into the pool.
    rate : float
        Tokens paid for each data point.
    rule : str
        How contributions are judged: ``gain``, ``trend``, ``threshold``, ``both`` or ``either``.
    threshold : float
        tau: the last validation error must be below. Not for the rule ``gain``.
    gain, clear, harm, least : float
        Rule ``gain`` only: see :func:`flower_chain.rules.record_and_reward.gain_quality`.
    max_data_cost : int
        The most data points that a device may claim for one update.
    samples_per_class : int
        m: validation samples that a device gets for each of its classes.
    tolerance : float
        How far a device's validation error may be from the one that the owner measures.
    learning_rate : float
        eta in T + eta * mean of the accepted updates; 1 unless the inner strategy is FedAvg.
    patience : int
        Seconds after which anyone may pay what the owner left unpaid.
    timeout : int
        Seconds to wait for a device to introduce itself.
    confirmations : int
        Blocks of a node's chain that must hold or follow a transaction before it counts.

    Raises
    ------
    ConfigError
        If a value can't be used.
    """

    run: str
    scheme: str = "record-and-reward"
    ledger: str = "embedded"
    owner_key: str = ""
    keys: str = ""
    enrol: str = "open"
    readers: str = ""
    token: str = ""
    pool: float = 1000.0
    rate: float = 0.001
    rule: str = "gain"
    threshold: float = 0.1
    gain: float = 0.03
    clear: float = 0.12
    harm: float = 0.72
    least: float = 0.1
    max_data_cost: int = 100_000
    samples_per_class: int = 20
    tolerance: float = 0.01
    learning_rate: float = 1.0
    patience: int = 7 * 24 * 3600
    timeout: int = 60
    confirmations: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_type(field.name, getattr(self, field.name), field.type)
        if self.scheme not in SCHEMES:
            raise _refused("scheme", self.scheme, f"it must be one of {', '.join(SCHEMES)}")
        if not self.run:
            raise _refused("run", self.run, "it must name a folder")
        if PASSWORD.search(VARIABLE.sub("", self.ledger)):
            shown = re.sub("//[^/?#]*@", "//***@", self.ledger)
            raise _refused("ledger", shown, "no password stands in a run-config: write ${NAME}")
        if self.token and not is_address(self.token):
            raise _refused("token", self.token, "it must be an address")
        for name in ("timeout", "confirmations"):
            if getattr(self, name) <= 0:
                raise _refused(name, getattr(self, name), "it must be positive")
        Rule.named(self.rule)
        for name in ("threshold", "gain", "clear", "harm", "least", "tolerance"):
            if not 0 <= getattr(self, name) <= 1:
                raise _refused(name, getattr(self, name), "it must be in [0, 1]")
        for name in ("rate", "pool"):
            _token_units(name, getattr(self, name))

    @classmethod
    def from_run_config(cls, run_config: Mapping[str, Any], run_id: int) -> Self:
        """The settings in the run-config of a Flower run: the keys that begin with ``chain.``."""
        known = {field.name for field in fields(cls)}
        values = {}
        for key, value in run_config.items():
            if key.startswith(PREFIX):
                name = key.removeprefix(PREFIX).replace("-", "_")
                if name not in known:
                    raise ConfigError(f"unknown setting {key} = {value!r}")
                values[name] = value
        values["run"] = values.get("run") or str(HOME / "runs" / str(run_id))
        return cls(**values)

    @property
    def path(self) -> Path:
        """Folder of the run's records."""
        return Path(self.run).expanduser()

    def owner(self) -> LocalAccount:
        """The owner's account, or KeyFileError; a key file that is named must be there."""
        if self.owner_key:
            return load(Path(self.owner_key).expanduser())
        return load_or_create(self.path / "owner.key")

    @property
    def funds(self) -> Funds:
        """What the run pays with."""
        token = to_checksum_address(self.token) if self.token else None
        return Funds(_token_units("pool", self.pool), token)

    def check_inner(self, inner: str) -> None:
        """ConfigError unless the settings fit a wrapped strategy of class `inner`."""
        if self.learning_rate != 1 and inner != "FedAvg":
            raise _refused(
                "learning_rate",
                self.learning_rate,
                f"{inner} has its own step, only FedAvg's mean can be scaled",
            )

    def plan(self, model: Format, validation_digest: str, inner: str) -> Plan:
        """The terms of a new run.

        Parameters
        ----------
        model : Format
        validation_digest : str
            The examiner's.
        inner : str
            Class of the wrapped strategy.

        Raises
        ------
        ConfigError
            If the terms don't fit together.
        """
        self.check_inner(inner)
        return Plan(
            run=secrets.token_hex(16),
            model=model,
            rule=Rule.named(self.rule),
            threshold_ppm=to_ppm(self.threshold),
            gain_ppm=to_ppm(self.gain),
            clear_ppm=to_ppm(self.clear),
            harm_ppm=to_ppm(self.harm),
            least_ppm=to_ppm(self.least),
            rate=_token_units("rate", self.rate),
            max_data_cost=self.max_data_cost,
            patience_s=self.patience,
            aggregation="mean" if inner == "FedAvg" else "inner",
            inner=inner,
            learning_rate=float(self.learning_rate),
            samples_per_class=self.samples_per_class,
            validation_digest=validation_digest,
            tolerance_ppm=to_ppm(self.tolerance),
            readers=self.reader_keys(),
        )

    def allowlist(self) -> Sequence[str] | None:
        """The accounts to enrol, or None if enrolment is open."""
        return None if self.enrol == "open" else read_accounts(Path(self.enrol))

    def reader_keys(self) -> str:
        """The public keys of the readers, as the plan holds them."""
        return " ".join(_lines("readers", Path(self.readers))) if self.readers else ""


def _lines(name: str, path: Path) -> list[str]:
    """The lines of a file without comments; ConfigError if it can't be read."""
    try:
        lines = path.expanduser().read_text().splitlines()
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError(f"{name} = {str(path)!r} can't be read: {fault}") from None
    return [line.split("#")[0].strip() for line in lines]


def read_accounts(path: Path) -> list[str]:
    """The accounts in a file: one address on a line, ``#`` begins a comment.

    Raises
    ------
    ConfigError
        If the file can't be read, or a line is not an address.
    """
    stripped = _lines("enrol", path)
    for number, account in enumerate(stripped, 1):
        if account and not is_address(account):
            raise ConfigError(f"{path}, line {number}: {account!r} is not an address")
    accounts: list[str] = [to_checksum_address(account) for account in stripped if account]
    for account in accounts:
        if accounts.count(account) > 1:
            raise ConfigError(f"{path} lists {account} twice")
    return accounts


def _token_units(name: str, tokens: float) -> int:
    """Tokens in the smallest unit; through decimals, so that 0.001 is exactly that."""
    try:
        units = Decimal(str(tokens)) * TOKEN_UNITS
    except InvalidOperation:
        raise _refused(name, tokens, "it must be a number of tokens") from None
    if not units.is_finite() or units < 0:
        raise _refused(name, tokens, "it must not be negative")
    if name == "pool" and units > TOKEN_SUPPLY:
        raise _refused(name, tokens, "it must be at most a billion tokens")
    if name == "rate" and units >= 2**64:
        raise _refused(name, tokens, "it must be below 18.4 tokens for each data point")
    return int(units)


def _check_type(name: str, value: object, kind: Any) -> None:
    allowed = (int, float) if kind is float else kind
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise _refused(name, value, f"it must be of type {kind.__name__}")


def _refused(name: str, value: object, rule: str) -> ConfigError:
    return ConfigError(f"{name.replace('_', '-')} = {value!r}: {rule}")
