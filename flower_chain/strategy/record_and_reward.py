"""papers/1: record and reward federated learning contributions."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from logging import INFO, WARNING

from eth_utils.address import to_checksum_address
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy

from flower_chain import messages, updates
from flower_chain.envelope import is_kept
from flower_chain.errors import ConfigError, FormatError, RunEnded
from flower_chain.examiner import Examiner
from flower_chain.ledger.federation import Finding, Version
from flower_chain.messages import Request, Samples, record_of
from flower_chain.plan import RecordAndRewardPlan
from flower_chain.privacy.accountant import UNITS
from flower_chain.records import (
    NOBODY,
    PPM,
    TOKEN_UNITS,
    Hello,
    Refusal,
    SignedSum,
    Task,
    sign,
)
from flower_chain.run import RecordAndRewardRun
from flower_chain.strategy.admission import Admission, Admitter
from flower_chain.strategy.base import (
    SUPERLINK,
    LedgerStrategy,
    as_model,
    found,
    keep_common_metrics,
    numpy_of,
    tell,
)
from flower_chain.strategy.central_dp import check_arrays, check_central_dp, fit_noise, norm_bit
from flower_chain.strategy.encrypted_sum import Holder
from flower_chain.strategy.settings import RecordAndRewardSettings
from flower_chain.updates import Arrays, Format, apply

"""Flower's number of the server's own node."""


class RecordAndReward(LedgerStrategy):
    """Accepts an update for its class-sampled validation error, and pays for its data.

    The inner strategy samples the nodes and evaluates. In between, each update is admitted,
    submitted to the ledger, judged there, and paid for; what was accepted is aggregated, with equal
    weights (papers/1 section II.B), never with those that devices claim.

    Source: I. Martinez, S. Francis, A. S. Hafid: "Record and Reward Federated Learning
    Contributions with Blockchain" (papers/1). Settings choose between its rules and a better one,
    the default; see :mod:`flower_chain.rules.record_and_reward`.

    Parameters
    ----------
    strategy : Strategy
        Any Flower strategy. If it is Flower's FedAvg the aggregate is the mean that
        :func:`flower_chain.updates.mean` defines, and can be recomputed by anyone.
    examiner : Examiner
        The owner's validation data, and how a model is used on them.
    settings : RecordAndRewardSettings

    Raises
    ------
    ConfigError
        If the settings don't fit the strategy.

    Examples
    --------
    ::

        settings = RecordAndRewardSettings(run="runs/first")
        strategy = RecordAndReward(FedAvg(), Examiner(x, y, predict), settings)
        strategy.start(grid, initial_arrays, num_rounds=10)
    """

    settings: RecordAndRewardSettings
    _run: RecordAndRewardRun

    def __init__(
        self, strategy: Strategy, examiner: Examiner, settings: RecordAndRewardSettings
    ) -> None:
        super().__init__(strategy, settings)
        self._examiner = examiner
        self._is_mean = type(strategy) is FedAvg
        settings.check_inner(self._inner)
        check_central_dp(strategy)
        self._hellos: dict[int, Hello] = {}
        self._invited: dict[int, Hello] = {}
        self._silent: list[Finding] = []
        self._holder: Holder | None = None
        self._sum: SignedSum | None = None
        self._reply_timeout = 0.0

    def _log_terms(self) -> None:
        plan = self._run.plan
        log(INFO, "\t│\t├── Pool: %g tokens", self._run.federation.pool / TOKEN_UNITS)
        log(INFO, "\t│\t├── Rule: %s, %g tokens a data point", plan.rule, self.settings.rate)
        if plan.charges is not None:
            self._log_privacy(plan, plan.charges.rounds(plan.budget))
        if plan.encryption:
            log(INFO, "\t│\t├── Updates encrypted: %s, key of %s", plan.encryption, plan.key_holder)
            log(INFO, "\t│\t├── Decrypted: sums of %d at least", plan.least_summed)
            log(WARNING, "\t│\t├── Nobody can look into an update: the signed errors are believed.")

    def _log_privacy(self, plan: RecordAndRewardPlan, rounds: int) -> None:
        log(INFO, "\t│\t├── Privacy: %s, clip %g, noise %g", plan.privacy, plan.clip, plan.noise)
        told = plan.budget / UNITS, plan.delta, rounds
        log(INFO, "\t│\t├── Budget: epsilon %g at delta %g pays %d rounds of a device", *told)
        if plan.noise_seed >= 0:
            log(WARNING, "\t│\t├── NOT PRIVATE: noise is drawn from the seed %d", plan.noise_seed)

    def _prepare(
        self, _num_rounds: int, timeout: float, _evaluate_config: ConfigRecord | None
    ) -> float:
        if self.settings.patience <= 3 * timeout:
            raise ConfigError(
                f"patience = {self.settings.patience}: a round may take {3 * timeout:g} s, and "
                "before its end nobody should be able to have paid what the owner has not seen"
            )
        self._reply_timeout = timeout
        return timeout

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Add to the inner strategy's messages a signed task and the validation samples."""
        number = self._done + server_round
        inner = list(self.strategy.configure_train(number, arrays, config, grid))
        self._received = numpy_of(arrays)
        version = self._run.federation.at(self._version)
        nodes = [message.metadata.dst_node_id for message in inner]
        if self._holder is not None:
            nodes = [node for node in nodes if node != self._holder.node]
        self._silent = [] if version.closed else self._introduce(grid, nodes)
        self._hello_timeout = self.settings.timeout
        self._invited = {} if version.closed else self._wanted(nodes, version)
        invited = [m for m in inner if m.metadata.dst_node_id in self._invited]
        request = self._request()
        for message in invited:
            self._ask(message, request)
        if nodes and not invited and not version.closed:
            self._end_if_all_is_spent()
        return invited

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Admit, submit, judge and pay the updates in `replies`, and publish the next model."""
        admissions = self._admit(list(replies))
        signed = [admission.signed for admission in admissions if admission.signed]
        version = self._run.federation.collect(self._version, signed)
        accepted, findings = self._judge(version, admissions)
        self._sum = None
        arrays, metrics = self._aggregate(self._done + server_round, accepted)
        self._settle(version, findings, arrays)
        self._run.let_go()
        return record_of(arrays), metrics

    def _open(self, grid: Grid, model: Arrays) -> Arrays:
        settings = self.settings
        self._holder = self._find_holder(grid)
        offer = None if self._holder is None else self._holder.offer
        plan = settings.plan(Format.of(model), self._examiner.digest, self._inner, offer)
        check_arrays(self.strategy, plan.model)
        self._run = RecordAndRewardRun.start(
            settings.path,
            settings.ledger,
            self._owner,
            plan,
            settings.funds,
            model,
            self._examiner.error,
            settings.confirmations,
            settings.store,
        )
        try:
            self._enrol(self._allowlist or ())
            version, arrays = self._run.current()
        except BaseException:
            self._run.close()
            raise
        self._done = self._version = version.number
        is_empty = not version.verdicts and not version.findings
        if version.closed and is_empty and self._done < self._rounds:
            self._run.federation.reopen()  # what was to be the last round is not
        if self._run.goes_on and not self._is_mean:
            log(WARNING, "What %s kept in memory of earlier rounds is lost.", self._inner)
        return arrays

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As the inner strategy does, but not the node that only holds a key."""
        asked = super().configure_evaluate(server_round, arrays, config, grid)
        holder = None if self._holder is None else self._holder.node
        return [message for message in asked if message.metadata.dst_node_id != holder]

    def _find_holder(self, grid: Grid) -> Holder | None:
        """The node that holds the key, if updates are encrypted; ConfigError if it has a role."""
        settings = self.settings
        if not settings.encryption:
            return None
        account = to_checksum_address(settings.key_holder) if settings.key_holder else ""
        holder = Holder.find(
            grid, settings.encryption, account, settings.timeout, self._reply_timeout
        )
        if not settings.key_holder:
            log(WARNING, "Whoever says so first holds the key: set chain.key-holder to an account.")
        if holder.offer.account in (self._owner.address, *(self._allowlist or ())):
            raise ConfigError(
                f"key-holder = {holder.offer.account}: neither the owner nor a device can be that"
            )
        return holder

    def _wanted(self, nodes: Sequence[int], version: Version) -> dict[int, Hello]:
        """Whom to ask: not those whose contribution is recorded and in the store, or refused."""
        store = self._run.store
        settled = {
            verdict.device
            for verdict in version.verdicts
            if verdict.is_final and (verdict.reason or is_kept(store, verdict.signed.contribution))
        }
        known = {node: self._hellos[node] for node in nodes if node in self._hellos}
        left = {node: hello for node, hello in known.items() if hello.device not in settled}
        return {node: hello for node, hello in left.items() if not self._is_spent(hello.device)}

    def _is_spent(self, device: str) -> bool:
        """Whether the device's privacy budget does not pay another round."""
        plan = self._run.plan
        if plan.charges is None:
            return False
        most = plan.charges.spent(plan.charges.rounds(plan.budget))
        return self._run.federation.spent(device) >= most

    def _end_if_all_is_spent(self) -> None:
        """End the run if no enrolled device could contribute to this or any later version."""
        devices = self._run.federation.history().enrolled
        if devices and all(map(self._is_spent, devices)):
            self._run.federation.collect(self._version, [])
            epsilon = self._run.plan.budget / UNITS
            raise RunEnded(
                f"the run ended after round {self._version}: the privacy budget of epsilon "
                f"{epsilon:g} pays no further round of any of {len(devices)} devices"
            )

    def _introduce(self, grid: Grid, nodes: Sequence[int]) -> list[Finding]:
        """Ask the nodes that are not known yet who they are; tell what went wrong."""
        strangers = [node for node in nodes if node not in self._hellos]
        answers = self._hear(grid, strangers, self._run.federation.domain, self._hello_timeout)
        hellos = {node: a for node, a in answers.items() if isinstance(a, Hello)}
        findings = [answer for answer in answers.values() if isinstance(answer, Finding)]
        enrolled = self._enrolled({hello.device for hello in hellos.values()})
        for node, hello in hellos.items():
            if hello.device in enrolled:
                self._hellos[node] = hello
            else:
                findings.append(found(hello.device, Refusal.NOT_ENROLLED, f"node {node}"))
        return findings

    def _enrolled(self, devices: set[str]) -> set[str]:
        """Those of the devices that are enrolled; with open enrolment all but the owner."""
        if self._allowlist is None:
            self._enrol(self._welcome(devices))
        return {device for device in devices if self._run.federation.is_enrolled(device)}

    def _welcome(self, devices: set[str]) -> list[str]:
        """Whom open enrolment takes: nobody with another role, and no more than a sum may have."""
        run = self._run
        wanted = sorted(devices - {self._owner.address, run.plan.key_holder})
        new = [device for device in wanted if not run.federation.is_enrolled(device)]
        if not run.plan.encryption or not new:
            return new
        enrolled = len(run.federation.history().enrolled)
        return new[: max(0, run.plan.most_summed - enrolled)]

    def _enrol(self, devices: Sequence[str]) -> None:
        federation = self._run.federation
        federation.enrol([device for device in devices if not federation.is_enrolled(device)])

    def _ask(self, message: Message, request: Request[RecordAndRewardPlan]) -> None:
        """Make the inner strategy's message one of ours."""
        hello = self._invited[message.metadata.dst_node_id]
        content = RecordDict(dict(message.content))
        messages.write_request(content, request, self._samples(hello.device, hello.classes))
        message.content = content

    def _request(self) -> Request[RecordAndRewardPlan]:
        run = self._run
        task = Task(self._version, updates.digest_of(self._received), run.plan.digest)
        domain = run.federation.domain
        return Request(task, sign(task.encode(domain), self._owner), domain, run.plan)

    def _samples(self, device: str, classes: Sequence[int]) -> Samples:
        """The validation samples of a device for the current version."""
        return Samples(*self._examiner.draw(*self._draw(device, classes)))

    def _draw(self, device: str, classes: Sequence[int]) -> tuple[bytes, str, Sequence[int], int]:
        """What decides which samples a device gets for the current version."""
        run = self._run
        return run.seed(self._version), device, classes, run.plan.samples_per_class

    def _admit(self, replies: Sequence[Message]) -> list[Admission]:
        """Check all replies, in more threads than cores: they also wait for the disk."""
        # What Flower says of a node that is gone comes from the SuperLink.
        replies = [reply for reply in replies if reply.metadata.src_node_id in self._invited]
        senders = [self._invited[reply.metadata.src_node_id] for reply in replies]
        with ThreadPoolExecutor() as pool:
            admissions = list(pool.map(self._admitter().admit, senders, replies))
        silent = set(self._invited.values()) - set(senders)
        admissions += [Admission(hello, Refusal.NO_ANSWER, "in time") for hello in silent]
        return sorted(admissions, key=lambda admission: admission.device.lower())

    def _admitter(self) -> Admitter:
        run = self._run
        return Admitter(self._owner, run.federation.domain, run.plan, run.store, self._received)

    def _check_evidence(self, admission: Admission) -> Admission:
        if admission.reason:
            return admission
        if not self._spent_fits(admission):
            return admission.refused(Refusal.FALSE_EVIDENCE, "its epsilon is that of no round")
        if self._evidence_fits(admission):
            return admission
        return admission.refused(Refusal.FALSE_EVIDENCE, "its errors are not those of the update")

    def _judge(
        self, version: Version, admissions: Sequence[Admission]
    ) -> tuple[list[Admission], list[Finding]]:
        """Of what the contract accepted, what is in order; and what was found wrong, here or there.

        The ledger knows more than the replies if a device submitted its contribution itself, or if
        the server was killed after it had submitted some.
        """
        replied = {a.signed.contribution: a for a in admissions if a.signed}
        admitter = self._admitter()
        recorded = {
            verdict.device: self._check_evidence(
                replied.get(verdict.signed.contribution) or admitter.admit_recorded(verdict.signed)
            )
            for verdict in version.accepted
        }
        accepted = [admission for admission in recorded.values() if not admission.reason]
        refused = [admission for admission in recorded.values() if admission.reason]
        unsigned = [admission for admission in admissions if not admission.signed]
        for verdict in version.verdicts:
            if verdict.reason:
                tell(verdict.device, verdict.reason, "by the contract")
        for admission in refused + unsigned:
            tell(admission.device, admission.reason, admission.detail)
        total = len(version.verdicts) + len(unsigned)
        log(INFO, "aggregate_train: %d updates accepted of %d", len(accepted), total)
        findings = [Finding(admission.device, admission.reason) for admission in refused]
        # A second node of a device that has contributed costs the device nothing.
        known = {verdict.device for verdict in version.verdicts if verdict.is_final}
        findings += [Finding(NOBODY if a.device in known else a.device, a.reason) for a in unsigned]
        return accepted, self._silent + findings

    def _aggregate(
        self, server_round: int, accepted: Sequence[Admission]
    ) -> tuple[Arrays, MetricRecord | None]:
        """T_{k+1} and the metrics; T_k again if nothing was accepted."""
        if not accepted:
            log(WARNING, "No update was accepted: the next version is the same model.")
            return self._received, None
        replies = [self._reweighted(admission) for admission in accepted]
        keep_common_metrics([reply.content.metric_records["metrics"] for reply in replies])
        arrays, metrics = self._combine(server_round, accepted, replies)
        try:
            updates.check_finite(arrays)
            self._examiner.error(arrays)
        except FormatError as fault:
            log(WARNING, "The aggregate is no model (%s): the next version is the same.", fault)
            return self._received, metrics
        return arrays, metrics

    def _combine(
        self, server_round: int, accepted: Sequence[Admission], replies: Sequence[Message]
    ) -> tuple[Arrays, MetricRecord | None]:
        if not self._is_mean:
            fit_noise(self.strategy, len(replies))
            combined, metrics = self.strategy.aggregate_train(server_round, replies)
            return (
                self._received if combined is None else as_model(combined, self._received)
            ), metrics
        assert isinstance(self.strategy, FedAvg)
        arrays = self._mean(accepted)
        contents = [reply.content for reply in replies]
        return arrays, self.strategy.train_metrics_aggr_fn(contents, self._weight_key)

    def _mean(self, accepted: Sequence[Admission]) -> Arrays:
        """T_{k+1}, by the updates themselves or by their sum."""
        plan = self._run.plan
        if self._holder is None or plan.cipher is None:
            changes = [a.update for a in accepted if a.update is not None]
            return updates.mean(self._received, changes, plan.learning_rate)
        decrypted = self._holder.decrypt(self._request(), accepted)
        if decrypted is None:
            return self._received
        total, said, signature = decrypted
        self._sum = SignedSum(said, self._run.keep_sum(total), signature)
        weighed = plan.weighed(a.signed.contribution for a in accepted if a.signed)
        mean = plan.cipher.mean(total, sum(weight for _, weight in weighed))
        return apply(self._received, mean, plan.learning_rate)

    def _reweighted(self, admission: Admission) -> Message:
        """The reply as the inner strategy expects it, with our weight in place of the claim.

        What only the ledger and the store hold has no metrics.
        """
        assert admission.update is not None
        reply = admission.reply or Message(RecordDict(), SUPERLINK, MessageType.TRAIN)
        sent = reply.content
        content = RecordDict({k: v for k, v in sent.config_records.items() if k != messages.RECORD})
        if not self._is_mean:
            content[self._arrays_key] = record_of(updates.apply(self._received, admission.update))
        told = dict(next(iter(sent.metric_records.values()), MetricRecord()))
        told = {**told, **norm_bit(self.strategy, admission.update), self._weight_key: 1.0}
        content["metrics"] = MetricRecord(told)
        reply.content = content
        return reply

    def _settle(self, version: Version, findings: Sequence[Finding], arrays: Arrays) -> None:
        run = self._run
        following = run.model(arrays, self._version + 1, self._examiner.error(arrays))
        settlement = run.federation.settle(
            version,
            run.seed(self._version),
            following,
            findings,
            last=self._version + 1 >= self._rounds,
            decrypted=self._sum,
        )
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

    def _spent_fits(self, admission: Admission) -> bool:
        """Whether what the device says that it has spent is what some number of rounds costs."""
        assert admission.signed is not None
        contribution, charges = admission.signed.contribution, self._run.plan.charges
        return charges is None or charges.fits(contribution.spent, contribution.version + 1)

    def _evidence_fits(self, admission: Admission) -> bool:
        if self._run.plan.encryption:
            return True  # nobody can know
        assert admission.signed is not None
        assert admission.update is not None
        contribution = admission.signed.contribution
        return self._examiner.confirms(
            self._run.plan.rule,
            contribution.errors,
            (self._received, apply(self._received, admission.update)),
            self._examiner.choose(*self._draw(contribution.device, contribution.classes)),
            self._run.plan.tolerance_ppm,
        )
