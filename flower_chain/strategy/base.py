"""The round that every scheme shares, around any Flower strategy."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from logging import INFO, WARNING
from os import cpu_count
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result, Strategy

from flower_chain import messages, updates
from flower_chain.errors import ConfigError, FormatError
from flower_chain.examiner import Examiner
from flower_chain.ledger.federation import Finding
from flower_chain.messages import Request, Samples
from flower_chain.plan import Plan
from flower_chain.records import NOBODY, PPM, Hello, Refusal, Task, recover, sign
from flower_chain.rules.record_and_reward import is_well_formed
from flower_chain.run import Run
from flower_chain.strategy.admission import Admission, Admitter, last_line
from flower_chain.strategy.one_line import tell_in_one_line
from flower_chain.strategy.settings import TOKEN_UNITS, Settings
from flower_chain.updates import Arrays, Format


class LedgerStrategy(Strategy):
    """Wraps a Flower strategy, and records on a ledger what it does.

    The inner strategy samples the nodes and evaluates. In between, each update is admitted,
    submitted to the ledger, judged there, and paid for; what was accepted is aggregated, with equal
    weights (papers/1 section II.B), never with those that devices claim.

    Parameters
    ----------
    strategy : Strategy
        The inner strategy. If it is Flower's FedAvg the aggregate is the mean that
        :func:`flower_chain.updates.mean` defines, and can be recomputed by anyone.
    examiner : Examiner
        The owner's validation data.
    settings : Settings

    Raises
    ------
    ConfigError
        If the settings don't fit the strategy.
    """

    def __init__(self, strategy: Strategy, examiner: Examiner, settings: Settings) -> None:
        tell_in_one_line()
        self.strategy = strategy
        self.settings = settings
        self._examiner = examiner
        self._is_mean = type(strategy) is FedAvg
        if settings.learning_rate != 1 and not self._is_mean:
            raise ConfigError(
                f"learning-rate = {settings.learning_rate}: {type(strategy).__name__} has its own "
                "step, only FedAvg's mean can be scaled"
            )
        self._allowlist = settings.allowlist()
        self._owner = settings.owner()
        self._arrays_key = _of_innermost(strategy, "arrayrecord_key", "arrays")
        self._weight_key = _of_innermost(strategy, "weighted_by_key", "num-examples")
        self._hellos: dict[int, Hello] = {}
        self._invited: dict[int, Hello] = {}
        self._silent: list[Finding] = []

    @abstractmethod
    def _plan(self, model: Format) -> Plan:
        """The terms of the run, for a model of this format."""

    @abstractmethod
    def _evidence_fits(self, admission: Admission) -> bool:
        """Whether the evidence in an admitted contribution is that of its update."""

    def summary(self) -> None:
        """Log the configuration of this strategy and of the inner one."""
        run = self._run
        log(INFO, "\t├──> Ledger: %s, contract %s", run.pointers.ledger, run.pointers.contract)
        log(INFO, "\t│\t├── Owner: %s", self._owner.address)
        log(INFO, "\t│\t├── Pool: %g tokens", run.federation.pool / TOKEN_UNITS)
        log(INFO, "\t│\t└── Plan: %s", run.plan.to_json())
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
        """Deploy the run's contracts and publish T_0, then start as Flower does."""
        self._open(_numpy(initial_arrays))
        try:
            return super().start(
                grid,
                initial_arrays,
                num_rounds,
                timeout,
                train_config,
                evaluate_config,
                evaluate_fn,
            )
        finally:
            self._run.close()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Add to the inner strategy's messages a signed task and the validation samples."""
        inner = list(self.strategy.configure_train(server_round, arrays, config, grid))
        self._received = _numpy(arrays)
        self._silent = self._introduce(grid, [message.metadata.dst_node_id for message in inner])
        self._invited = {}
        return [message for message in inner if self._invite(message)]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Admit, submit, judge and pay the updates in `replies`, and publish the next model."""
        admissions = self._admit(list(replies))
        accepted = self._record(admissions)
        arrays, metrics = self._aggregate(server_round, accepted)
        self._settle(accepted, arrays)
        return _record_of(arrays), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As the inner strategy does."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """As the inner strategy does."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def _open(self, model: Arrays) -> None:
        settings = self.settings
        self._run = Run.create(
            settings.path,
            settings.ledger,
            self._owner,
            self._plan(Format.of(model)),
            model,
            self._examiner.error(model),
            settings.token_address,
            settings.pool_units,
        )
        self._version = 0
        if self._allowlist:
            self._run.federation.enrol(self._allowlist)

    def _introduce(self, grid: Grid, nodes: Sequence[int]) -> list[Finding]:
        """Ask the nodes that are not known yet who they are; tell what went wrong."""
        strangers = [node for node in nodes if node not in self._hellos]
        content = RecordDict({messages.RECORD: messages.write_domain(self._run.federation.domain)})
        questions = [
            Message(content, dst_node_id=node, message_type=messages.HELLO) for node in strangers
        ]
        replies = (
            grid.send_and_receive(questions, timeout=self.settings.timeout) if questions else []
        )
        by_node = {reply.metadata.src_node_id: reply for reply in replies}
        findings = [self._welcome(node, by_node.get(node)) for node in strangers]
        return [finding for finding in findings if finding is not None]

    def _welcome(self, node: int, reply: Message | None) -> Finding | None:
        if reply is None:
            return _found(Finding(NOBODY, Refusal.NO_ANSWER), f"node {node}")
        if reply.has_error():
            return _found(Finding(NOBODY, Refusal.DEVICE_ERROR), last_line(reply.error.reason))
        try:
            hello, signature = messages.read_hello(reply.content)
        except FormatError as fault:
            return _found(Finding(NOBODY, Refusal.UNREADABLE), str(fault))
        domain = self._run.federation.domain
        if recover(hello.encode(domain), signature) != hello.device:
            return _found(Finding(hello.device, Refusal.BAD_SIGNATURE), f"node {node}")
        if not self._enrolled(hello.device):
            return _found(Finding(hello.device, Refusal.NOT_ENROLLED), f"node {node}")
        self._hellos[node] = hello
        return None

    def _enrolled(self, device: str) -> bool:
        federation = self._run.federation
        if federation.is_enrolled(device):
            return True
        if self._allowlist is None and device != self._owner.address:
            federation.enrol([device])
            return True
        return False

    def _invite(self, message: Message) -> bool:
        """Make the inner strategy's message one of ours, if its node is known."""
        node = message.metadata.dst_node_id
        if node not in self._hellos:
            return False
        hello = self._hellos[node]
        content = RecordDict(dict(message.content))
        messages.write_request(content, self._request(), self._samples(hello.device, hello.classes))
        message.content = content
        self._invited[node] = hello
        return True

    def _request(self) -> Request:
        run = self._run
        model_digest = updates.digest(updates.pack(self._received))
        task = Task(self._version, model_digest, run.plan.digest)
        domain = run.federation.domain
        return Request(task, sign(task.encode(domain), self._owner), domain, run.plan)

    def _samples(self, device: str, classes: Sequence[int]) -> Samples:
        """The validation samples of a device for the current version."""
        run = self._run
        seed, per_class = run.seed(self._version), run.plan.samples_per_class
        return Samples(*self._examiner.draw(seed, device, classes, per_class))

    def _admit(self, replies: Sequence[Message]) -> list[Admission]:
        """Check all replies, on all cores, and find out who did not answer; sorted by account."""
        admitter = Admitter(
            self._owner,
            self._run.federation.domain,
            self._run.plan,
            self._run.store,
            self._received,
        )
        senders = [self._invited[reply.metadata.src_node_id] for reply in replies]
        with ThreadPoolExecutor(cpu_count()) as pool:
            admissions = list(pool.map(admitter.admit, senders, replies))
        admissions = [self._check_evidence(admission) for admission in admissions]
        silent = set(self._invited.values()) - set(senders)
        admissions += [Admission(hello, Refusal.NO_ANSWER, "in time") for hello in silent]
        return sorted(admissions, key=lambda admission: admission.device.lower())

    def _check_evidence(self, admission: Admission) -> Admission:
        if admission.reason or admission.signed is None:
            return admission
        if not is_well_formed(self._run.plan.rule, admission.signed.contribution.errors):
            return admission  # the contract refuses it
        if self._evidence_fits(admission):
            return admission
        return admission.refused(Refusal.FALSE_EVIDENCE, "its errors are not those of the update")

    def _record(self, admissions: Sequence[Admission]) -> list[Admission]:
        """Submit what was signed, refuse what was found wrong; return what is accepted."""
        federation = self._run.federation
        signed = {a.device: a.signed for a in admissions if a.signed is not None}
        verdicts = dict(zip(signed, federation.submit(list(signed.values())), strict=True))
        findings, accepted = list(self._silent), []
        for admission in admissions:
            verdict = verdicts.get(admission.device)
            if verdict is not None and verdict.reason:
                _tell(admission.device, verdict.reason, "by the contract")
            elif admission.reason:
                _tell(admission.device, admission.reason, admission.detail)
                findings.append(Finding(admission.device, admission.reason))
            else:
                accepted.append(admission)
        federation.refuse(findings)
        log(INFO, "aggregate_train: %d updates accepted of %d", len(accepted), len(admissions))
        return accepted

    def _aggregate(
        self, server_round: int, accepted: Sequence[Admission]
    ) -> tuple[Arrays, MetricRecord | None]:
        """T_{k+1} and the metrics; T_k again if nothing was accepted."""
        if not accepted:
            log(WARNING, "No update was accepted: the next version is the same model.")
            return self._received, None
        replies = [self._reweighted(admission) for admission in accepted]
        if not self._is_mean:
            combined, metrics = self.strategy.aggregate_train(server_round, replies)
            return (self._received if combined is None else _numpy(combined)), metrics
        assert isinstance(self.strategy, FedAvg)
        changes = [a.update for a in accepted if a.update is not None]
        arrays = updates.mean(self._received, changes, self._run.plan.learning_rate)
        contents = [reply.content for reply in replies]
        return arrays, self.strategy.train_metrics_aggr_fn(contents, self._weight_key)

    def _reweighted(self, admission: Admission) -> Message:
        """The reply as the inner strategy expects it, with our weight in place of the claim."""
        assert admission.reply is not None
        assert admission.trained is not None
        content = RecordDict(dict(admission.reply.content))
        for ours in (messages.RECORD, messages.SEALED):
            content.pop(ours, None)
        content[self._arrays_key] = _record_of(admission.trained)
        for record in content.metric_records.values():
            record[self._weight_key] = 1.0
        admission.reply.content = content
        return admission.reply

    def _settle(self, accepted: Sequence[Admission], arrays: Arrays) -> None:
        run = self._run
        following = run.model(arrays, self._version + 1, self._examiner.error(arrays))
        devices = [admission.device for admission in accepted]
        settlement = run.federation.settle(devices, run.seed(self._version), following)
        self._version += 1
        if settlement.short:
            log(WARNING, "The pool could not pay all that was due: it was shared pro rata.")
        log(
            INFO,
            "Version %d published: error %.4f, %g tokens paid, %g left in the pool",
            self._version,
            following.error_ppm / PPM,
            sum(payment.amount for payment in settlement.payments) / TOKEN_UNITS,
            run.federation.pool / TOKEN_UNITS,
        )


def _tell(device: str, reason: Refusal, detail: str) -> None:
    who = "a node without an account" if device == NOBODY else device
    log(WARNING, "Refused %s: %s (%s)", who, reason, detail)


def _found(finding: Finding, detail: str) -> Finding:
    _tell(finding.device, finding.reason, detail)
    return finding


def _of_innermost(strategy: Strategy, name: str, default: str) -> str:
    """An attribute of the strategy or of one that it wraps: Flower keeps some on FedAvg only."""
    inner: Any = strategy
    while inner is not None:
        if hasattr(inner, name):
            return str(getattr(inner, name))
        inner = getattr(inner, "strategy", None)
    return default


def _numpy(record: ArrayRecord) -> Arrays:
    return {key: array.numpy() for key, array in record.items()}


def _record_of(arrays: Arrays) -> ArrayRecord:
    return ArrayRecord({key: Array(value) for key, value in arrays.items()})
