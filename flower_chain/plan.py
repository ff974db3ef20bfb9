"""What is agreed before a run: public, frozen, and named on the ledger by its digest."""

import base64
import hashlib
import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Self

from eth_utils.address import is_checksum_address

from flower_chain.errors import ConfigError, FormatError
from flower_chain.keys import address_of, reader_of
from flower_chain.privacy.accountant import MAX_BUDGET, Accountant
from flower_chain.privacy.ciphers import MOST_WEIGHT, SCHEMES, Cipher, Terms, cipher_of
from flower_chain.privacy.mechanisms import Kind, check_format
from flower_chain.records import PPM, Contribution
from flower_chain.rules.blockflow import MAX_AGENTS, ONE
from flower_chain.rules.data_trust import Rule as TaskRule
from flower_chain.rules.data_trust import Weights, smallest
from flower_chain.rules.record_and_reward import Rule, sum_weight
from flower_chain.updates import Format

AGGREGATIONS = ("mean", "inner")
WHO_AGGREGATES = ("workers", "server")
MAX_SECONDS = 2**32 - 1
STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
MAX_RATE = 2**64 - 1
MAX_DATA_COST = 2**32 - 1
MAX_BONDS = 2**96 - 1
"""All of an experiment together, in the token's smallest unit."""


@dataclass(frozen=True, kw_only=True)
class Plan(ABC):
    """What the terms of all schemes have in common.

    Parameters
    ----------
    run : str
        Drawn at random: tells this run from any other.
    model : Format
        Keys, shapes and dtypes of the model's arrays.
    inner : str
        Class of the wrapped strategy.
    readers : str
        Public keys, in hex, of who may open what is sealed beside those who must: of accounts, or
        of RSA in DER.
    keep_rounds : int
        Of how many rounds before the current one models and what is sealed are kept; 0 for all.
    scheme : str

    Raises
    ------
    ConfigError
        If a term is out of range.
    """

    run: str
    model: Format
    inner: str
    readers: str
    keep_rounds: int
    scheme: str

    def __post_init__(self) -> None:
        for field in fields(self):
            _of_type(field.name, getattr(self, field.name), field.type)
        _distinct("readers", self.reader_keys, reader_of)
        _within("keep-rounds", self.keep_rounds, 0, 2**32 - 1)
        self._check()

    @abstractmethod
    def _check(self) -> None:
        """ConfigError if a term of the scheme is out of range."""

    @property
    def reader_keys(self) -> list[bytes]:
        """Public keys of the readers, each as it is given."""
        return _keys("readers", self.readers)

    @property
    def digest(self) -> bytes:
        """SHA-256 of the text, as the contract holds it."""
        return hashlib.sha256(self.to_json().encode()).digest()

    def to_json(self) -> str:
        """The plan as text: sorted keys, no white space."""
        values = asdict(self) | {"model": self.model.to_json()} | self._spelled()
        return json.dumps(values, sort_keys=True, separators=(",", ":"))

    def _spelled(self) -> dict[str, str]:
        """The terms whose text is not their value."""
        return {}

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The plan that `text` describes.

        Raises
        ------
        FormatError
            If it is not a plan, or not one of this scheme.
        """
        structure = STRING.sub("", text)
        if structure.count("{") > 1 or "[" in structure:
            raise FormatError("not a plan: it must be flat")  # json.loads overflows on deep ones
        try:
            values: dict[str, Any] = json.loads(text)
            kind = PLANS[values["scheme"]]
            values["model"] = Format.from_json(values["model"])
            plan = kind(**(values | kind._read(values)))
        except (ValueError, TypeError, KeyError, AttributeError) as fault:
            raise FormatError(f"not a plan: {fault}") from fault
        if not isinstance(plan, cls):
            raise FormatError(f"a plan of {plan.scheme}: not a {cls.__name__}")
        return plan

    @staticmethod
    def _read(_values: dict[str, Any]) -> dict[str, object]:
        """The inverse of :meth:`_spelled`."""
        return {}

    def differences(self, other: Self) -> list[tuple[str, object, object]]:
        """The terms in which two plans differ, but for the name of the run: name, here, there."""
        pairs = [(f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self)]
        found = [pair for pair in pairs if pair[1] != pair[2] and pair[0] not in ("run", "model")]
        return self.model.differences(other.model) + found


@dataclass(frozen=True, kw_only=True)
class RecordAndRewardPlan(Plan):
    """The terms of a run of record-and-reward.

    Parameters
    ----------
    rule : Rule
        How contributions are judged.
    threshold_ppm : int
        tau: the last validation error must be below, in parts per million. Not for ``gain``.
    gain_ppm, clear_ppm, harm_ppm, least_ppm : int
        Rule ``gain`` only: see :func:`flower_chain.rules.record_and_reward.gain_quality`.
    rate : int
        Paid for each data point, in the token's smallest unit.
    max_data_cost : int
        The most data points that a device may claim for one update.
    patience_s : int
        Seconds after which anyone may pay what the owner left unpaid.
    aggregation : str
        ``mean``: T + eta * mean of the accepted updates (papers/1 section II.B); ``inner``: what
        the wrapped strategy makes of them.
    learning_rate : float
        eta of the mean, in (0, 1].
    samples_per_class : int
        m: validation samples that a device gets for each of its classes (papers/1 algorithm 2).
    validation_digest : str
        SHA-256 of the owner's validation data, in hex.
    tolerance_ppm : int
        How far a device's validation error may be from the one that the owner measures.
    privacy : str
        Where devices add noise, and which: ``gaussian``, ``laplace`` or ``dp-sgd``; empty for
        nowhere. The other terms of privacy then are 0 or empty too. See
        :mod:`flower_chain.privacy.mechanisms`.
    clip : float
        The norm that an update has at most; with DP-SGD, that the gradient of a record has.
    noise, accountant, delta, sample_rate, steps
        See :class:`flower_chain.privacy.accountant.Accountant`.
    budget : int
        The epsilon that each device may spend in the run, in millionths.
    noise_seed : int
        What the noise is drawn from if it shall come again, and hide nothing; negative for no seed.
    encryption : str
        Empty, or the cipher under which devices encrypt their updates: see docs/encryption.md. The
        terms below are 0 or empty without one.
    cipher_key : str
        Its public key, in base64.
    key_holder : str
        Checksum address of who has the private key, and decrypts sums.
    least_summed, most_summed : int
        How many contributions a sum has at least, and at most.
    weight_steps : int
        See :func:`flower_chain.rules.record_and_reward.sum_weight`; 1 for equal weights.
    value_range : float
    value_bits : int
        See :class:`flower_chain.privacy.ciphers.Terms`.
    """

    rule: Rule
    threshold_ppm: int
    gain_ppm: int
    clear_ppm: int
    harm_ppm: int
    least_ppm: int
    rate: int
    max_data_cost: int
    patience_s: int
    aggregation: str
    learning_rate: float
    samples_per_class: int
    validation_digest: str
    tolerance_ppm: int
    privacy: str
    clip: float
    noise: float
    accountant: str
    budget: int
    delta: float
    sample_rate: float
    steps: int
    noise_seed: int
    encryption: str
    cipher_key: str
    key_holder: str
    least_summed: int
    most_summed: int
    weight_steps: int
    value_range: float
    value_bits: int
    scheme: str = "record-and-reward"

    def _check(self) -> None:
        _within("threshold", self.threshold_ppm, 0, PPM)
        _within("gain", self.gain_ppm, 0, PPM)
        _within("harm", self.harm_ppm, 0, PPM)
        _within("clear", self.clear_ppm, 0, self.harm_ppm)
        _within("least", self.least_ppm, 1, PPM)
        _within("rate", self.rate, 0, MAX_RATE)
        _within("max-data-cost", self.max_data_cost, 1, MAX_DATA_COST)
        _within("patience", self.patience_s, 3600, 2**63)
        _within("samples-per-class", self.samples_per_class, 1, 2**31)
        _within("tolerance", self.tolerance_ppm, 0, PPM)
        if self.aggregation not in AGGREGATIONS:
            raise ConfigError(
                f"aggregation = {self.aggregation!r}: it must be one of {', '.join(AGGREGATIONS)}"
            )
        if not 0 < self.learning_rate <= 1:
            raise ConfigError(f"learning-rate = {self.learning_rate!r}: it must be in (0, 1]")
        self._check_privacy()
        if self.encryption:
            self._check_encryption()

    def _check_privacy(self) -> None:
        if not self.privacy:
            _within("budget", self.budget, 0, 0)
            return
        _within("budget", self.budget, 1, MAX_BUDGET)
        if not 0 < self.clip < math.inf:
            raise ConfigError(f"clip = {self.clip!r}: it must be positive")
        if self.privacy not in list(Kind):
            names = ", ".join(Kind)
            raise ConfigError(f"privacy = {self.privacy!r}: it must be one of {names}, or empty")
        check_format(self.model)
        self._charges()

    @property
    def charges(self) -> Accountant | None:
        """What rounds cost a device's privacy, if they do."""
        return self._charges() if self.privacy else None

    def _charges(self) -> Accountant:
        terms = self.noise, self.accountant, self.delta, self.sample_rate, self.steps
        return Accountant(Kind(self.privacy), *terms)

    def _check_encryption(self) -> None:
        if self.encryption not in SCHEMES:
            names = ", ".join(SCHEMES)
            raise ConfigError(f"encryption = {self.encryption!r}: it must be one of {names}")
        if self.aggregation != "mean":
            raise ConfigError(
                f"encryption: {self.inner} makes no mean, and only sums are decrypted"
            )
        if not is_checksum_address(self.key_holder):
            raise ConfigError(f"key-holder = {self.key_holder!r}: it must be a checksum address")
        if self.key_holder in map(reader_of, self.reader_keys):
            raise ConfigError(
                f"readers lists the key holder, {self.key_holder}: it could decrypt each update"
            )
        _within("encryption-least", self.least_summed, 2, self.most_summed)
        _within("the steps of a weight", self.weight_steps, 1, PPM)
        _within("encryption-most", self.most_summed, 2, MOST_WEIGHT // self.weight_steps)
        _ = self._terms

    @property
    def _terms(self) -> Terms:
        most = self.most_summed * self.weight_steps
        return Terms(float(self.value_range), self.value_bits, most)

    @cached_property
    def public_key(self) -> bytes:
        """That of the cipher; ConfigError if it is not in base64."""
        try:
            return base64.b64decode(self.cipher_key, validate=True)
        except ValueError as fault:
            raise ConfigError(f"the public key of {self.encryption}: {fault}") from None

    @cached_property
    def cipher(self) -> Cipher | None:
        """What encrypts updates and adds them; None if they are sealed as they are.

        Raises
        ------
        ConfigError
            If the key can't be used, or the cipher's extra is not installed.
        """
        if not self.encryption:
            return None
        return cipher_of(self.encryption, self.public_key, self.model, self._terms)

    @property
    def update_format(self) -> Format:
        """The format of an update as it is sealed."""
        return self.cipher.format if self.cipher else self.model.of_update()

    def weighed(self, accepted: Iterable[Contribution]) -> list[tuple[Contribution, int]]:
        """Accepted contributions, each with what it weighs in a sum."""
        return [(each, sum_weight(self, each.errors, self.weight_steps)) for each in accepted]

    def _spelled(self) -> dict[str, str]:
        return {"rule": str(self.rule)}

    @staticmethod
    def _read(values: dict[str, Any]) -> dict[str, object]:
        return {"rule": Rule.named(values["rule"])}


@dataclass(frozen=True, kw_only=True)
class PeersPlan(Plan):
    """What the terms of the schemes have in common whose agents judge each other.

    Parameters
    ----------
    first : str
        SHA-256 of the canonical bytes of the first model, in hex.
    agents : str
        Public keys of the agents, in hex, in the ascending order of their accounts.
    rounds : int
        How many there are at most.
    quorum : int
        How many agents must post their bond at least.
    bond : int
        What each agent posts, in the token's smallest unit.
    train_s, stage_s : int
        Seconds that training, and each of the other stages, may take at most.
    """

    first: str
    agents: str
    rounds: int
    quorum: int
    bond: int
    train_s: int
    stage_s: int

    def _check(self) -> None:
        accounts = _distinct("agents", self.agent_keys, address_of)
        if not 0 < len(accounts) <= MAX_AGENTS or accounts != sorted(accounts, key=str.lower):
            raise ConfigError(f"agents: {len(accounts)} keys, not 1 to {MAX_AGENTS} in order")
        _within("quorum", self.quorum, 1, len(accounts))
        _within("rounds", self.rounds, 1, 2**32 - 1)
        _within("bond", self.bond, 0, MAX_BONDS // len(accounts))
        _within("train-seconds", self.train_s, 1, MAX_SECONDS // 2)
        _within("stage-seconds", self.stage_s, 1, MAX_SECONDS // 2)

    @property
    @abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """What of ``evaluate()`` counts."""

    @abstractmethod
    def score_of(self, measured: Sequence[float]) -> float:
        """The score of a model, from its :attr:`metrics`, all in [0, 1] as the score is."""

    @property
    def server_aggregates(self) -> bool:
        """Whether the server says what a round ends with, and the agents believe it."""
        return False

    @property
    def agent_keys(self) -> list[bytes]:
        """The agents' public keys, by number."""
        return _keys("agents", self.agents)

    @property
    def seconds(self) -> tuple[int, int, int, int, int, int]:
        """How long each stage may take: enrol, train, retrieve, commit, reveal, score.

        Twice as long for revealing: who does not know what an agent committed to reveals only when
        nobody can commit any more.
        """
        train, other = self.train_s, self.stage_s
        return other, train, other, other, 2 * other, other

    @property
    def accounts(self) -> list[str]:
        """The agents' accounts, by number."""
        return [address_of(key) for key in self.agent_keys]


@dataclass(frozen=True, kw_only=True)
class BlockFlowPlan(PeersPlan):
    """The terms of a BlockFLow experiment.

    Parameters
    ----------
    stake : int
        How much of the bond is shared by score in each round, in the token's smallest unit.
    auditors : int
        By how many agents each model is audited, drawn in every round; 0: by all.
    metric : str
        What of ``evaluate()`` is the score of a model, in [0, 1].
    """

    stake: int
    auditors: int
    metric: str
    scheme: str = "blockflow"

    def _check(self) -> None:
        super()._check()
        _within("bond", self.bond, self.stake * self.rounds, MAX_BONDS)
        _within("stake", self.stake, 0, MAX_BONDS)
        _within("auditors", self.auditors, 0, MAX_AGENTS)

    @property
    def seconds(self) -> tuple[int, int, int, int, int, int]:
        """As for all such schemes; but if auditors are drawn, retrieving takes as long as training
        besides: who does not know all lots tells its secret only when nobody can train any more.
        """
        enrol, train, retrieve, commit, reveal, score = super().seconds
        return enrol, train, retrieve + (train if self.auditors else 0), commit, reveal, score

    @property
    def metrics(self) -> tuple[str, ...]:
        """The one that is the score."""
        return (self.metric,)

    def score_of(self, measured: Sequence[float]) -> float:
        """The metric itself."""
        return measured[0]


@dataclass(frozen=True, kw_only=True)
class DataTrustPlan(PeersPlan):
    """The terms of a data trust's task.

    Parameters
    ----------
    reward : int
        D: what the requester pays for all rounds together, in the token's smallest unit.
    places : int
        k: how many workers are paid in a round.
    accuracy, precision, recall : int
        What each of these metrics of ``evaluate()`` weighs in the score of a model.
    consistency, tolerance, floor : int
        In units of 1/65535, and `patience` in rounds: see
        :class:`flower_chain.rules.data_trust.Rule`.
    patience : int
    aggregation : str
        ``workers``: each computes the mean of the models itself; ``server``: the requester's
        inner strategy aggregates.
    server : str
        Public key of the requester, in hex, if it aggregates: it must open the models; else empty.
    """

    reward: int
    places: int
    accuracy: int
    precision: int
    recall: int
    consistency: int
    tolerance: int
    floor: int
    patience: int
    aggregation: str
    server: str
    scheme: str = "data-trust"

    def _check(self) -> None:
        super()._check()
        _within("quorum", self.quorum, 2, len(self.accounts))
        _within("bond", self.bond, 1, MAX_BONDS)
        _within("places", self.places, 2, 255)
        least = smallest(self.places) * self.rounds
        _within("reward", self.reward, least, MAX_BONDS - self.bond * len(self.accounts))
        for name in ("accuracy", "precision", "recall"):
            _within(f"{name}-weight", getattr(self, name), 0, PPM)
        for name in ("consistency", "tolerance", "floor"):
            _within(name, getattr(self, name), 0, ONE)
        _within("patience", self.patience, 1, 255)
        if not self.metrics:
            raise ConfigError("accuracy-, precision- and recall-weight are 0: one must be positive")
        if self.aggregation not in WHO_AGGREGATES:
            names = ", ".join(WHO_AGGREGATES)
            raise ConfigError(f"aggregation = {self.aggregation!r}: it must be one of {names}")
        if len(self.server_keys) != self.server_aggregates:
            raise ConfigError(f"server = {self.server!r}: the key of the server, if it aggregates")
        _distinct("server", self.agent_keys + self.reader_keys + self.server_keys, reader_of)

    @property
    def rule(self) -> TaskRule:
        """What the contract judges by."""
        shares = self.consistency, self.tolerance, self.floor
        return TaskRule(self.places, *shares, self.patience)

    @property
    def server_aggregates(self) -> bool:
        """Whether the requester's inner strategy does."""
        return self.aggregation == "server"

    @property
    def server_keys(self) -> list[bytes]:
        """The server's public key if it aggregates."""
        return _keys("server", self.server)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those that weigh anything."""
        return tuple(n for n in ("accuracy", "precision", "recall") if getattr(self, n))

    def score_of(self, measured: Sequence[float]) -> float:
        """Their mean, by weights."""
        found = dict(zip(self.metrics, measured, strict=True))
        weights = Weights(self.accuracy, self.precision, self.recall)
        return (
            weights.score(*(found.get(n, 0.0) for n in ("accuracy", "precision", "recall"))) / ONE
        )


WITHOUT_NOISE: dict[str, Any] = {
    "privacy": "",
    "clip": 0.0,
    "noise": 0.0,
    "accountant": "",
    "budget": 0,
    "delta": 0.0,
    "sample_rate": 0.0,
    "steps": 0,
    "noise_seed": -1,
}
"""The terms of privacy where devices add no noise."""

IN_THE_CLEAR: dict[str, Any] = {
    "encryption": "",
    "cipher_key": "",
    "key_holder": "",
    "least_summed": 0,
    "most_summed": 0,
    "weight_steps": 0,
    "value_range": 0.0,
    "value_bits": 0,
}
"""The terms of encrypted sums where updates are not encrypted."""

PLANS: dict[str, type[Plan]] = {
    "record-and-reward": RecordAndRewardPlan,
    "blockflow": BlockFlowPlan,
    "data-trust": DataTrustPlan,
}


def _of_type(name: str, value: object, kind: Any) -> None:
    allowed = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or isinstance(value, bool):
        raise ConfigError(f"{name} = {value!r}: it must be of type {kind.__name__}")


def _keys(name: str, text: str) -> list[bytes]:
    try:
        return [bytes.fromhex(key := word) for word in text.split()]
    except ValueError as fault:
        raise ConfigError(f"{name}: {key} is not a public key: {fault}") from None


def _distinct(name: str, keys: list[bytes], known_by: Callable[[bytes], str]) -> list[str]:
    """Whose these public keys are, or ConfigError."""
    try:
        accounts = [known_by(key) for key in keys]
    except (ValueError, FormatError) as fault:
        raise ConfigError(f"{name}: not a public key: {fault}") from None
    if len(set(accounts)) < len(accounts):
        raise ConfigError(f"{name}: one of the {len(accounts)} keys is listed twice")
    return accounts


def _within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} = {value}: it must be from {low} to {high}")
