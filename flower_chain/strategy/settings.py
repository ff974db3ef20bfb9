"""What a user sets, by constructor or by run-config."""

import base64
import re
import secrets
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Self

from eth_account.signers.local import LocalAccount
from eth_utils.address import is_address, to_checksum_address

from flower_chain.errors import ConfigError
from flower_chain.keys import HOME, address_of, load, load_or_create, public_key
from flower_chain.plan import (
    IN_THE_CLEAR,
    WITHOUT_NOISE,
    BlockFlowPlan,
    DataTrustPlan,
    PeersPlan,
    RecordAndRewardPlan,
)
from flower_chain.privacy.accountant import MAX_BUDGET, PURE, UNITS
from flower_chain.privacy.ciphers import SCHEMES as SUM_SCHEMES
from flower_chain.privacy.mechanisms import Kind
from flower_chain.records import TOKEN_UNITS, to_ppm
from flower_chain.rules.blockflow import ONE, to_score
from flower_chain.rules.data_trust import smallest
from flower_chain.rules.record_and_reward import Rule
from flower_chain.run import TOKEN_SUPPLY, Funds
from flower_chain.sum_messages import Offer
from flower_chain.updates import Format

PREFIX = "chain."
VARIABLE = re.compile(r"\$\{\w+\}")
PASSWORD = re.compile("//[^/?#]*[^/?#:@]@")
"""In a URL without its variables."""
WEIGHTS = ("accuracy_weight", "precision_weight", "recall_weight", "consistency_weight")
"""Of a data trust's quality."""

STEPS = {"equal": 1, "score": 16}
"""What an update weighs at most in an encrypted sum."""

NODE_URL = re.compile("https?://.+")


@dataclass(frozen=True)
class Settings:
    """The settings of a run, whatever its scheme.

    In a run-config each has the prefix ``chain.`` and hyphens: ``chain.owner-key = "owner.key"``.

    Parameters
    ----------
    run : str
        Folder of the run's records; made if it is not there, and if it holds a run, that is
        continued. Empty in a run-config for ``~/.flower-chain/runs/`` with Flower's id of the run.
    ledger : str
        ``embedded``, or the URL of a node's JSON-RPC endpoint; ``${NAME}`` in it stands for an
        environment variable, so that no secret stands in a run-config.
    store : str
        Where models and sealed updates are: empty for ``store/`` in `run`, or the URL of an IPFS
        node's RPC, such as ``http://127.0.0.1:5001``; ``${NAME}`` as for `ledger`.
    keep_rounds : int
        Of how many rounds before the current one models and sealed updates are kept; 0 for all.
    owner_key : str
        Key file or keystore of the owner; empty for ``owner.key`` in `run`, made if not there.
    keys : str
        Read by the devices of a simulation: folder of their key files; empty for
        ``~/.flower-chain/keys``.
    enrol : str
        File with the accounts of the devices, one on a line; ``open`` takes whoever answers, for
        simulations only.
    readers : str
        File with public keys, one on a line, of accounts or of RSA, that may open what is sealed
        beside those who must: auditors, say. ``flower-chain keys show FILE --public-key`` prints
        one.
    token : str
        Address of the ERC-20 that is paid in; empty deploys one.
    timeout : int
        Seconds to wait for a device to introduce itself.
    confirmations : int
        Blocks of a node's chain that must hold or follow a transaction before it counts.
    dp : str
        Local differential privacy, under record-and-reward: ``gaussian`` or ``laplace`` noise on
        each device's update, or ``dp-sgd`` in its training; empty for none. See docs/privacy.md.

    Raises
    ------
    ConfigError
        If a value can't be used.
    """

    run: str
    _: KW_ONLY
    ledger: str = "embedded"
    store: str = ""
    keep_rounds: int = 0
    owner_key: str = ""
    keys: str = ""
    enrol: str = "open"
    readers: str = ""
    token: str = ""
    timeout: int = 60
    confirmations: int = 1
    dp: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_type(field.name, getattr(self, field.name), field.type)
        if not self.run:
            raise refused("run", self.run, "it must name a folder")
        for name in ("ledger", "store"):
            _check_no_password(name, getattr(self, name))
        if self.store and not NODE_URL.fullmatch(self.store):
            rule = (
                "it must be the URL of an IPFS node, or empty for a directory in the run's folder"
            )
            raise refused("store", self.store, rule)
        if self.keep_rounds < 0:
            raise refused("keep_rounds", self.keep_rounds, "it must not be negative")
        if self.token and not is_address(self.token):
            raise refused("token", self.token, "it must be an address")
        for name in ("timeout", "confirmations"):
            if getattr(self, name) <= 0:
                raise refused(name, getattr(self, name), "it must be positive")

    @classmethod
    def from_run_config(cls, run_config: Mapping[str, Any], run_id: int) -> Self:
        """The settings in the run-config of a Flower run: the keys that begin with ``chain.``.

        Those of other schemes may be there too, as an app lists them all.
        """
        known = {field.name for field in fields(cls)}
        values = {}
        for key, value in run_config.items():
            if key.startswith(PREFIX):
                name = key.removeprefix(PREFIX).replace("-", "_")
                if name not in DEFAULTS:
                    raise ConfigError(f"unknown setting {key} = {value!r}")
                values[name] = value
        values["run"] = values.get("run") or str(HOME / "runs" / str(run_id))
        return cls(**{name: value for name, value in values.items() if name in known})

    @property
    def path(self) -> Path:
        """Folder of the run's records."""
        return Path(self.run).expanduser()

    @property
    def token_address(self) -> str | None:
        """Checksum address of the ERC-20; None deploys one."""
        return to_checksum_address(self.token) if self.token else None

    def owner(self) -> LocalAccount:
        """The owner's account, or KeyFileError; a key file that is named must be there."""
        if self.owner_key:
            return load(Path(self.owner_key).expanduser())
        return load_or_create(self.path / "owner.key")

    def allowlist(self) -> Sequence[str] | None:
        """The accounts to enrol, or None if enrolment is open."""
        return None if self.enrol == "open" else read_accounts(Path(self.enrol))

    def reader_keys(self) -> str:
        """The public keys of the readers, as the plan holds them."""
        return " ".join(_lines("readers", Path(self.readers))) if self.readers else ""


@dataclass(frozen=True)
class RecordAndRewardSettings(Settings):
    """The settings of a run of record-and-reward: those of :class:`Settings`, and its own.

    Parameters
    ----------
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
    dp_clip : float
        If `dp` is set: the norm that an update has at most, L2 or with Laplace noise L1; with
        DP-SGD, that the gradient of a record has.
    dp_noise : float
        Standard deviation or scale of the noise, as a multiple of the sensitivity: of twice
        `dp_clip`, with DP-SGD of `dp_clip`.
    dp_accountant : str
        ``rdp`` or ``prv``: how Gaussian noise is accounted for.
    dp_epsilon, dp_delta : float
        The budget: what each device may spend in the run. Laplace noise has no delta.
    dp_sample_rate : float
        DP-SGD only: the probability that a record is in the batch of a step.
    dp_steps : int
        DP-SGD only: steps that a device takes in a round, at most; it pays for all of them.
    dp_seed : int
        What noise is drawn from if it shall come again, which is *not private*; negative for noise
        that nobody can predict.
    encryption : str
        The cipher under which devices encrypt their updates, ``paillier`` or ``ckks``, so that
        nobody sees more than a sum of them; empty for none. See docs/encryption.md.
    key_holder : str
        Account of the node that has the private key; empty for whoever says so first, for
        simulations.
    encryption_least, encryption_most : int
        How many updates a sum has at least, and at most.
    encryption_weights : str
        ``equal``, or ``score``: by the rule's quality, in sixteenths.
    encryption_range : float
        Values of an update are clipped to this, and to minus this.
    encryption_bits : int
        Paillier only: of the whole numbers that values are rounded to.

    Raises
    ------
    ConfigError
        If a value can't be used.
    """

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
    dp_clip: float = 1.0
    dp_noise: float = 1.0
    dp_accountant: str = "rdp"
    dp_epsilon: float = 8.0
    dp_delta: float = 1e-5
    dp_sample_rate: float = 0.1
    dp_steps: int = 10
    dp_seed: int = -1
    encryption: str = ""
    key_holder: str = ""
    encryption_least: int = 3
    encryption_most: int = 16
    encryption_weights: str = "equal"
    encryption_range: float = 1.0
    encryption_bits: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        Rule.named(self.rule)
        if self.encryption:
            self._check_encryption()
        for name in ("threshold", "gain", "clear", "harm", "least", "tolerance"):
            if not 0 <= getattr(self, name) <= 1:
                raise refused(name, getattr(self, name), "it must be in [0, 1]")
        for name in ("rate", "pool"):
            _token_units(name, getattr(self, name))
        if self.dp not in ("", *Kind):
            raise refused("dp", self.dp, f"it must be one of {', '.join(Kind)}, or empty")
        if self.dp and not 1 / UNITS <= self.dp_epsilon <= MAX_BUDGET / UNITS:
            raise refused("dp_epsilon", self.dp_epsilon, "it must be a positive number")

    @property
    def funds(self) -> Funds:
        """What the run pays with."""
        return Funds(_token_units("pool", self.pool), self.token_address)

    def check_inner(self, inner: str) -> None:
        """ConfigError unless the settings fit a wrapped strategy of class `inner`."""
        if self.learning_rate != 1 and inner != "FedAvg":
            raise refused(
                "learning_rate",
                self.learning_rate,
                f"{inner} has its own step, only FedAvg's mean can be scaled",
            )
        if self.encryption and inner != "FedAvg":
            rule = f"{inner} must see each update, and only sums are decrypted: use FedAvg"
            raise refused("encryption", self.encryption, rule)

    def _check_encryption(self) -> None:
        if self.encryption not in SUM_SCHEMES:
            names = ", ".join(SUM_SCHEMES)
            raise refused("encryption", self.encryption, f"it must be one of {names}")
        if self.key_holder and not is_address(self.key_holder):
            raise refused("key_holder", self.key_holder, "it must be an address, or empty")
        if self.encryption_weights not in STEPS:
            names = " or ".join(STEPS)
            raise refused("encryption_weights", self.encryption_weights, f"it must be {names}")
        if not 2 <= self.encryption_least <= self.encryption_most:
            rule = f"it must be from 2 to encryption-most, {self.encryption_most}"
            raise refused("encryption_least", self.encryption_least, rule)
        if (listed := len(self.allowlist() or ())) > self.encryption_most:
            rule = f"enrol lists {listed} devices, whose sum could overflow"
            raise refused("encryption_most", self.encryption_most, rule)

    def plan(
        self, model: Format, validation_digest: str, inner: str, offer: Offer | None = None
    ) -> RecordAndRewardPlan:
        """The terms of a new run.

        Parameters
        ----------
        model : Format
        validation_digest : str
            The examiner's.
        inner : str
            Class of the wrapped strategy.
        offer : Offer, optional
            What the holder of the key says, if updates are encrypted.

        Raises
        ------
        ConfigError
            If the terms don't fit together.
        """
        self.check_inner(inner)
        plan = RecordAndRewardPlan(
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
            keep_rounds=self.keep_rounds,
            **self._privacy(),
            **self._encryption(offer),
        )
        _ = plan.cipher  # a key or a model that can't be used is told now
        if plan.charges is not None and plan.charges.spent(1) > plan.budget:
            cost = f"one round costs {plan.charges.epsilon(1):.4g}; add noise or spend more"
            raise refused("dp_epsilon", self.dp_epsilon, cost)
        return plan

    def _encryption(self, offer: Offer | None) -> dict[str, Any]:
        """The terms of encrypted sums, if updates are encrypted."""
        if not self.encryption:
            return IN_THE_CLEAR
        if offer is None:
            rule = "the plan names the key, so the server begins the run when its holder is there"
            raise refused("encryption", self.encryption, rule)
        return {
            "encryption": self.encryption,
            "cipher_key": base64.b64encode(offer.key).decode(),
            "key_holder": offer.account,
            "least_summed": self.encryption_least,
            "most_summed": self.encryption_most,
            "weight_steps": STEPS[self.encryption_weights],
            "value_range": float(self.encryption_range),
            "value_bits": self.encryption_bits,
        }

    def _privacy(self) -> dict[str, Any]:
        """The terms of a plan that tell what devices do for their privacy."""
        if not self.dp:
            return WITHOUT_NOISE
        is_pure, is_sgd = self.dp == Kind.LAPLACE, self.dp == Kind.DP_SGD
        return {
            "privacy": self.dp,
            "clip": float(self.dp_clip),
            "noise": float(self.dp_noise),
            "accountant": PURE if is_pure else self.dp_accountant,
            "budget": int(Decimal(str(self.dp_epsilon)) * UNITS),
            "delta": 0.0 if is_pure else float(self.dp_delta),
            "sample_rate": float(self.dp_sample_rate) if is_sgd else 1.0,
            "steps": self.dp_steps if is_sgd else 1,
            "noise_seed": max(self.dp_seed, -1),
        }


@dataclass(frozen=True)
class PeersSettings(Settings):
    """What the schemes share in which devices judge each other: beside :class:`Settings`.

    Parameters
    ----------
    bond : float
        Tokens that each device posts; in a token of the run's own the owner gives them to it.
    quorum : int
        How many devices must post their bond; 0 for all that introduced themselves. M colluding
        ones can only do no harm if it is larger than 2 M, in a data trust than 2 M + 1.
    train_seconds, stage_seconds : int
        How long training, and each of the other stages of a round, may take at most: who is later
        is eliminated, and loses what is left of its bond.

    Raises
    ------
    ConfigError
        If a value can't be used.
    """

    bond: float = 10.0
    quorum: int = 0
    train_seconds: int = 3600
    stage_seconds: int = 600

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dp:
            raise refused(
                "dp",
                self.dp,
                "no budget is kept under this scheme, where models that "
                "devices judge each other by would each cost some",
            )
        _token_units("bond", self.bond)
        if self.quorum < 0:
            raise refused("quorum", self.quorum, "it must not be negative")
        for name in ("train_seconds", "stage_seconds"):
            if not 0 < getattr(self, name) < 2**32:
                raise refused(name, getattr(self, name), "it must be positive, and below 2^32")

    @abstractmethod
    def check_rounds(self, rounds: int) -> None:
        """ConfigError unless the money is enough for so many rounds."""

    @abstractmethod
    def plan(
        self, model: Format, first: bytes, inner: str, rounds: int, agents: Sequence[bytes]
    ) -> PeersPlan:
        """The terms of a new run.

        Parameters
        ----------
        model : Format
        first : bytes
            SHA-256 of the canonical bytes of the first model.
        inner : str
            Class of the wrapped strategy.
        rounds : int
        agents : sequence of bytes
            The public keys of the agents, 64 bytes each, in any order.

        Raises
        ------
        ConfigError
            If the terms don't fit together.
        """

    def _shared(
        self, model: Format, first: bytes, inner: str, rounds: int, agents: Sequence[bytes]
    ) -> dict[str, Any]:
        """The terms that these schemes share."""
        ordered = sorted(agents, key=lambda key: address_of(key).lower())
        return {
            "run": secrets.token_hex(16),
            "model": model,
            "inner": inner,
            "readers": self.reader_keys(),
            "keep_rounds": self.keep_rounds,
            "first": first.hex(),
            "agents": " ".join(key.hex() for key in ordered),
            "rounds": rounds,
            "quorum": self.quorum or len(ordered),
            "bond": _token_units("bond", self.bond),
            "train_s": self.train_seconds,
            "stage_s": self.stage_seconds,
        }


@dataclass(frozen=True)
class BlockFlowSettings(PeersSettings):
    """The settings of a BlockFLow experiment: those of :class:`PeersSettings`, and its own.

    Parameters
    ----------
    stake : float
        How many tokens of the bond are shared by score in each round.
    auditors : int
        By how many agents each model is audited, drawn in every round; 0 for all. How many it takes
        for how many colluding ones is in docs/blockflow.md.
    metric : str
        What of the agents' ``evaluate()`` is the score of a model, in [0, 1].

    Raises
    ------
    ConfigError
        If a value can't be used.
    """

    stake: float = 1.0
    auditors: int = 0
    metric: str = "accuracy"

    def __post_init__(self) -> None:
        super().__post_init__()
        _token_units("stake", self.stake)
        if self.auditors < 0:
            raise refused("auditors", self.auditors, "it must not be negative")

    def check_rounds(self, rounds: int) -> None:
        """ConfigError unless the bond covers the stakes of so many rounds."""
        if Decimal(str(self.bond)) < rounds * Decimal(str(self.stake)):
            least = f"{rounds} rounds of stake = {self.stake!r}"
            raise refused("bond", self.bond, f"it must cover {least}")

    def plan(
        self, model: Format, first: bytes, inner: str, rounds: int, agents: Sequence[bytes]
    ) -> BlockFlowPlan:
        """The terms of a new experiment; as :meth:`PeersSettings.plan`."""
        return BlockFlowPlan(
            **self._shared(model, first, inner, rounds, agents),
            stake=_token_units("stake", self.stake),
            auditors=self.auditors,
            metric=self.metric,
        )


@dataclass(frozen=True)
class DataTrustSettings(PeersSettings):
    """The settings of a data trust's task: those of :class:`PeersSettings`, and its own.

    Parameters
    ----------
    reward : float
        D: tokens that the owner, who is the requester, pays for all rounds together.
    places : int
        k: how many workers are paid in a round.
    accuracy_weight, precision_weight, recall_weight, consistency_weight : int
        What each weighs in a worker's quality. The first three are metrics of ``evaluate()``; one
        that weighs nothing need not be returned. Consistency is how little a worker fell below what
        it was before.
    score_tolerance : float
        How far from the median of the others' a score may be: who is further off loses its bond.
        Wider than what the workers' test data make honest scores differ.
    quality_floor : float
        The quality that a worker must have; above that of a constant model.
    floor_rounds : int
        After how many rounds below that, one after another, a worker loses its bond.
    aggregation : str
        ``workers``: each computes the mean of the models itself; ``server``: the inner strategy
        aggregates, whichever it is, and the server can open the models.

    Raises
    ------
    ConfigError
        If a value can't be used.
    """

    reward: float = 100.0
    places: int = 3
    accuracy_weight: int = 3
    precision_weight: int = 3
    recall_weight: int = 3
    consistency_weight: int = 1
    score_tolerance: float = 0.2
    quality_floor: float = 0.3
    floor_rounds: int = 3
    aggregation: str = "workers"

    def __post_init__(self) -> None:
        super().__post_init__()
        _token_units("reward", self.reward)
        for name in ("score_tolerance", "quality_floor"):
            if not 0 <= getattr(self, name) <= 1:
                raise refused(name, getattr(self, name), "it must be in [0, 1]")
        for name in WEIGHTS:
            if getattr(self, name) < 0:
                raise refused(name, getattr(self, name), "it must not be negative")
        if not any(getattr(self, name) for name in WEIGHTS[:3]):
            raise refused(WEIGHTS[0], 0, "that, precision-weight or recall-weight must be positive")

    def check_rounds(self, rounds: int) -> None:
        """ConfigError unless the reward can be shared in so many rounds."""
        if _token_units("reward", self.reward) < rounds * smallest(self.places):
            raise refused("reward", self.reward, f"it can't be shared in {rounds} rounds")

    def plan(
        self, model: Format, first: bytes, inner: str, rounds: int, agents: Sequence[bytes]
    ) -> DataTrustPlan:
        """The terms of a new task; as :meth:`PeersSettings.plan`."""
        weights = [getattr(self, name) for name in WEIGHTS]
        by_server = self.aggregation == "server"
        return DataTrustPlan(
            **self._shared(model, first, inner, rounds, agents),
            reward=_token_units("reward", self.reward),
            places=self.places,
            accuracy=weights[0],
            precision=weights[1],
            recall=weights[2],
            consistency=weights[3] * ONE // sum(weights),
            tolerance=to_score(self.score_tolerance),
            floor=to_score(self.quality_floor),
            patience=self.floor_rounds,
            aggregation=self.aggregation,
            server=public_key(self.owner()).hex() if by_server else "",
        )


SCHEMES: dict[str, type[Settings]] = {
    "record-and-reward": RecordAndRewardSettings,
    "blockflow": BlockFlowSettings,
    "data-trust": DataTrustSettings,
}

DEFAULTS = {"scheme": "record-and-reward"} | {
    field.name: field.default for kind in SCHEMES.values() for field in fields(kind)
}
"""Every setting of every scheme, and what it is where nothing is said."""


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
        raise refused(name, tokens, "it must be a number of tokens") from None
    if not units.is_finite() or units < 0:
        raise refused(name, tokens, "it must not be negative")
    if name in ("pool", "bond", "reward") and units > TOKEN_SUPPLY:
        raise refused(name, tokens, "it must be at most a billion tokens")
    if name == "rate" and units >= 2**64:
        raise refused(name, tokens, "it must be below 18.4 tokens for each data point")
    return int(units)


def _check_no_password(name: str, url: str) -> None:
    if PASSWORD.search(VARIABLE.sub("", url)):
        shown = re.sub("//[^/?#]*@", "//***@", url)
        raise refused(name, shown, "no password stands in a run-config: write ${NAME}")


def _check_type(name: str, value: object, kind: Any) -> None:
    allowed = (int, float) if kind is float else kind
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise refused(name, value, f"it must be of type {kind.__name__}")


def refused(name: str, value: object, rule: str) -> ConfigError:
    return ConfigError(f"{name.replace('_', '-')} = {value!r}: {rule}")
