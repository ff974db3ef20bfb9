"""What is agreed before a run: public, frozen, and named on the ledger by its digest."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from flower_chain.errors import ConfigError, FormatError
from flower_chain.keys import address_of
from flower_chain.records import PPM
from flower_chain.rules.record_and_reward import Rule
from flower_chain.updates import Format

AGGREGATIONS = ("mean", "inner")
STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
MAX_RATE = 2**64 - 1
MAX_DATA_COST = 2**32 - 1


@dataclass(frozen=True)
class Plan:
    """The terms of a run.

    Parameters
    ----------
    run : str
        Drawn at random: tells this run from any other.
    model : Format
        Keys, shapes and dtypes of the model's arrays.
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
    inner : str
        Class of the wrapped strategy.
    learning_rate : float
        eta of the mean, in (0, 1].
    samples_per_class : int
        m: validation samples that a device gets for each of its classes (papers/1 algorithm 2).
    validation_digest : str
        SHA-256 of the owner's validation data, in hex.
    readers : str
        Public keys, in hex, of accounts that may open the updates beside the owner.
    tolerance_ppm : int
        How far a device's validation error may be from the one that the owner measures.

    Raises
    ------
    ConfigError
        If a term is out of range.
    """

    run: str
    model: Format
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
    inner: str
    learning_rate: float
    samples_per_class: int
    validation_digest: str
    tolerance_ppm: int
    readers: str
    scheme: str = "record-and-reward"

    def __post_init__(self) -> None:
        for field in fields(self):
            _of_type(field.name, getattr(self, field.name), field.type)
        accounts = [_account(key) for key in self.readers.split()]
        if len(set(accounts)) < len(accounts):
            raise ConfigError(f"readers: one of the {len(accounts)} accounts is listed twice")
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

    def to_json(self) -> str:
        """The plan as text: sorted keys, no white space."""
        values = asdict(self) | {"model": self.model.to_json(), "rule": str(self.rule)}
        return json.dumps(values, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The plan that `text` describes.

        Raises
        ------
        FormatError
            If it is not a plan.
        """
        structure = STRING.sub("", text)
        if structure.count("{") > 1 or "[" in structure:
            raise FormatError("not a plan: it must be flat")  # json.loads overflows on deep ones
        try:
            values: dict[str, Any] = json.loads(text)
            model = Format.from_json(values.pop("model"))
            rule = Rule.named(values.pop("rule"))
            return cls(model=model, rule=rule, **values)
        except (ValueError, TypeError, KeyError, AttributeError) as fault:
            raise FormatError(f"not a plan: {fault}") from fault

    def differences(self, other: Self) -> list[tuple[str, object, object]]:
        """The terms in which two plans differ, but for the name of the run: name, here, there."""
        pairs = [(f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self)]
        found = [pair for pair in pairs if pair[1] != pair[2] and pair[0] not in ("run", "model")]
        return self.model.differences(other.model) + found

    @property
    def reader_keys(self) -> list[bytes]:
        """Public keys of the readers, each as it is given."""
        return [bytes.fromhex(key) for key in self.readers.split()]

    @property
    def n_readers(self) -> int:
        """How many accounts may open an update, the owner among them."""
        return 1 + len(self.reader_keys)

    @property
    def digest(self) -> bytes:
        """SHA-256 of the text, as the contract holds it."""
        return hashlib.sha256(self.to_json().encode()).digest()


def _of_type(name: str, value: object, kind: Any) -> None:
    allowed = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or isinstance(value, bool):
        raise ConfigError(f"{name} = {value!r}: it must be of type {kind.__name__}")


def _account(key: str) -> str:
    try:
        return address_of(bytes.fromhex(key))
    except (ValueError, FormatError) as fault:
        raise ConfigError(f"readers: {key} is not a public key: {fault}") from None


def _within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} = {value}: it must be from {low} to {high}")
