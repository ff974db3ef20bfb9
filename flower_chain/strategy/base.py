"""What the strategies of all schemes share: a Flower strategy inside, and who the devices are."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from logging import INFO, WARNING
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from numpy.typing import NDArray

from flower_chain import messages
from flower_chain.errors import ConfigError, FormatError
from flower_chain.keys import address_of
from flower_chain.ledger.federation import Finding
from flower_chain.records import NOBODY, Domain, Hello, Refusal, recover_public_key
from flower_chain.run import FILE, Run
from flower_chain.strategy.admission import last_line
from flower_chain.strategy.one_line import tell_in_one_line
from flower_chain.strategy.settings import Settings
from flower_chain.updates import Arrays

METRICS = ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp")
"""What a Result holds by round."""

SUPERLINK = 1
"""Node that a message is made out to that nobody sends."""


class LedgerStrategy(Strategy):
    """Wraps a Flower strategy, and records on a ledger what it does.

    Parameters
    ----------
    strategy : Strategy
        The inner strategy: it samples the nodes and evaluates.
    settings : Settings

    Raises
    ------
    ConfigError
        If the settings can't be used.
    """

    _run: Run

    def __init__(self, strategy: Strategy, settings: Settings) -> None:
        tell_in_one_line()
        self.strategy = strategy
        self.settings: Settings = settings
        self._inner = _name_of(strategy)
        self._allowlist = settings.allowlist()
        self._owner = settings.owner()
        if self._owner.address in (self._allowlist or ()):
            raise ConfigError(f"enrol lists {self._owner.address}: the owner can't be a device")
        self._arrays_key = str(of_innermost(strategy, "arrayrecord_key", "arrays"))
        self._weight_key = str(of_innermost(strategy, "weighted_by_key", "num-examples"))
        self._public_keys: dict[str, bytes] = {}
        self._done = 0

    @abstractmethod
    def _open(self, grid: Grid, model: Arrays) -> Arrays:
        """Open the run, note in `_done` how many rounds it has behind it, and tell the model."""

    @abstractmethod
    def _prepare(
        self, num_rounds: int, timeout: float, evaluate_config: ConfigRecord | None
    ) -> float:
        """ConfigError if the settings don't fit; the seconds to wait for replies, at most."""

    @abstractmethod
    def _log_terms(self) -> None:
        """Log what is particular to the scheme."""

    def summary(self) -> None:
        """Log the configuration of this strategy and of the inner one."""
        run = self._run
        log(INFO, "\t├──> Ledger: %s, contract %s", run.contract.ledger, run.pointers.contract)
        log(INFO, "\t│\t├── Owner: %s", self._owner.address)
        self._log_terms()
        log(INFO, "\t│\t└── Plan: SHA-256 %s", run.plan.digest.hex())
        log(INFO, "\t├──> Records: %s", self.settings.path)
        if self._allowlist is None:
            log(WARNING, "\t├──> Enrolment is open: whoever answers first is enrolled and paid.")
            log(WARNING, "\t│    This is for simulations; set chain.enrol to a list of accounts.")
        else:
            log(INFO, "\t├──> Enrolled devices: %d", len(self._allowlist))
        log(INFO, "\t└──> Inner strategy: %s", type(self.strategy).__name__)
        self.strategy.summary()

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Begin the run or continue it, then start as Flower does.

        A run that was cut short goes on from the current version of its model, with the rounds that
        are left of `num_rounds`; `initial_arrays` then only tell the model's format. The inner
        strategy, the functions and the Result count all rounds of the run; Flower's log counts
        those of this process.
        """
        timeout = self._prepare(num_rounds, timeout, evaluate_config)
        self._rounds = num_rounds
        # A device may still be busy with what a server that was killed has sent to it.
        goes_on = (self.settings.path / FILE).exists()
        self._hello_timeout = timeout if goes_on else self.settings.timeout
        arrays = messages.record_of(self._open(grid, numpy_of(initial_arrays)))
        if goes_on:
            path = self.settings.path
            log(INFO, "Continuing the run in %s: %d rounds are done.", path, self._done)
            log(INFO, "Round 1 below is round %d of the run.", self._done + 1)
        try:
            result = super().start(
                grid,
                arrays,
                max(num_rounds - self._done, 0),
                timeout,
                train_config,
                evaluate_config,
                None if evaluate_fn is None else lambda n, a: evaluate_fn(self._done + n, a),
            )
        finally:
            self._run.close()
        return self._counted_from_the_beginning(result, arrays)

    def _counted_from_the_beginning(self, result: Result, arrays: ArrayRecord) -> Result:
        """The Result of a run that may have begun in another process."""
        result.arrays = result.arrays or arrays
        for name in METRICS:
            found = getattr(result, name)
            setattr(result, name, {self._done + n: metrics for n, metrics in found.items()})
        return result

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As the inner strategy does."""
        number = self._done + server_round
        return self.strategy.configure_evaluate(number, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """As the inner strategy does, without the replies and metrics that would end the run."""
        number = self._done + server_round
        return self.strategy.aggregate_evaluate(number, self._comparable(list(replies)))

    def _comparable(self, replies: Sequence[Message]) -> list[Message]:
        failed = [reply for reply in replies if reply.has_error()]
        whole = [reply for reply in replies if not reply.has_error() and self._is_whole(reply)]
        for reply in whole:
            (metrics,) = reply.content.metric_records.values()
            reply.content = RecordDict({"metrics": metrics})
        keep_common_metrics([reply.content.metric_records["metrics"] for reply in whole])
        return failed + whole

    def _is_whole(self, reply: Message) -> bool:
        """Whether an evaluation can be averaged: one MetricRecord with a positive weight."""
        records = list(reply.content.metric_records.values())
        weight = records[0].get(self._weight_key) if len(records) == 1 else None
        if isinstance(weight, (int, float)) and 0 < weight < float("inf"):
            return True
        log(WARNING, "Left out an evaluation without one positive %r.", self._weight_key)
        return False

    def _hear(
        self, grid: Grid, nodes: Sequence[int], domain: Domain, timeout: float
    ) -> dict[int, Hello | Finding]:
        """How each node introduces itself in time, or what is wrong with that.

        Nothing is held against an account that did not sign.
        """
        if not nodes:
            return {}
        content = RecordDict({messages.RECORD: messages.write_domain(domain)})
        questions = [
            Message(content, dst_node_id=node, message_type=messages.HELLO) for node in nodes
        ]
        replies = grid.send_and_receive(questions, timeout=timeout)
        by_node = {reply.metadata.src_node_id: reply for reply in replies}
        return {node: self._read_hello(node, by_node.get(node), domain) for node in nodes}

    def _read_hello(self, node: int, reply: Message | None, domain: Domain) -> Hello | Finding:
        if reply is None:
            return found(NOBODY, Refusal.NO_ANSWER, f"node {node}")
        if reply.has_error():
            return found(NOBODY, Refusal.DEVICE_ERROR, last_line(reply.error.reason))
        try:
            hello, signature = messages.read_hello(reply.content)
        except FormatError as fault:
            return found(NOBODY, Refusal.UNREADABLE, str(fault))
        key = recover_public_key(hello.encode(domain), signature)
        if key is None or address_of(key) != hello.device:
            return found(NOBODY, Refusal.BAD_SIGNATURE, f"node {node} as {hello.device}")
        self._public_keys[hello.device] = key
        return hello


def tell(device: str, reason: Refusal, detail: str) -> None:
    who = "a node without an account" if device == NOBODY else device
    log(WARNING, "Refused %s: %s (%s)", who, reason, detail)


def found(device: str, reason: Refusal, detail: str) -> Finding:
    tell(device, reason, detail)
    return Finding(device, reason)


def keep_common_metrics(records: Sequence[MetricRecord]) -> None:
    """Drop the metrics that not all devices sent in one kind: Flower would end the run on them."""
    for key in {key for record in records for key in record}:
        kinds = {_kind(record.get(key)) for record in records}
        if len(kinds) > 1:
            log(WARNING, "The metric %r is not there in one kind on all devices: left out.", key)
            for record in records:
                record.pop(key, None)


def _kind(value: object) -> str | int:
    if isinstance(value, list):
        return len(value)
    return "missing" if value is None else "number"


def _name_of(strategy: Strategy) -> str:
    """The strategy's class, with its module if it is not one of Flower's."""
    kind = type(strategy)
    flowers = kind.__module__.startswith("flwr.")
    return kind.__name__ if flowers else f"{kind.__module__}.{kind.__qualname__}"


def of_innermost(strategy: Strategy, name: str, default: Any) -> Any:
    """An attribute of the strategy or of one that it wraps: Flower keeps some on FedAvg only."""
    inner: Any = strategy
    while inner is not None:
        if hasattr(inner, name):
            return getattr(inner, name)
        inner = getattr(inner, "strategy", None)
    return default


def numpy_of(record: ArrayRecord) -> Arrays:
    return {key: array.numpy() for key, array in record.items()}


def as_model(combined: ArrayRecord, base: Arrays) -> Arrays:
    """What an inner strategy made, in the item types of a model."""
    arrays = numpy_of(combined)
    return {key: _cast(arrays[key], array.dtype) for key, array in base.items()}


def _cast(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    whole = dtype.kind != "f" and array.dtype.kind == "f"
    return np.asarray(np.rint(array) if whole else array).astype(dtype)
