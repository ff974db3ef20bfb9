"""A Flower ClientApp whose updates are signed by the device."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from typing import Any, TypeVar, cast

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp as FlowerClientApp
from flwr.clientapp.typing import ClientAppCallable, Mod
from numpy.typing import NDArray

from flower_chain import audit_messages, envelope, messages, sum_messages, updates
from flower_chain.audit_messages import AUDIT
from flower_chain.client.account import device_account, node_of
from flower_chain.client.agent import Agent
from flower_chain.client.budget import Budget
from flower_chain.client.encryption import check_key, encrypted
from flower_chain.client.key_holder import KeyHolder
from flower_chain.client.own_store import OwnStore
from flower_chain.client.private import offering
from flower_chain.client.task import check_model, check_owner
from flower_chain.client.validation import Log, current, logging
from flower_chain.errors import ConfigError, FormatError, TaskRefused
from flower_chain.messages import Request, Samples
from flower_chain.plan import RecordAndRewardPlan
from flower_chain.records import (
    Contribution,
    Hello,
    Signed,
    sign,
    to_ppm,
)
from flower_chain.rules.record_and_reward import Rule, evidence
from flower_chain.store.cid import cid_of, cid_to_bytes

CLASSES = "flower-chain.classes"
Classes = Callable[[Context], Iterable[int]]
Predict = Callable[[updates.Arrays, NDArray[Any]], NDArray[Any]]
Record = TypeVar("Record")


class ClientApp(FlowerClientApp):
    """Flower's ClientApp; what its ``train()`` returns leaves the device sealed and signed.

    The device's account is kept in a key file, mode 0600 and made on first use, or in an encrypted
    keystore: ``key-file`` in the SuperNode's ``--node-config``, or for simulations
    ``device-<partition-id>.key`` in the folder ``chain.keys`` of the run-config. A keystore's
    password is read from the environment variable ``FLOWER_CHAIN_PASSWORD``.

    With ``ledger`` in the ``--node-config``, the URL of a node, the device checks there what it is
    told, and submits its contribution itself, for which its account needs gas; else the owner does.

    With ``store`` in it, a directory that the owner reads too or the URL of an IPFS node of the
    device's own, the device puts its sealed update or model there and sends only the CID.

    Where the plan has a privacy budget, noise is added to the update, or with DP-SGD the training
    must be :func:`flower_chain.private`; what the device has spent is kept beside its key file.
    With ``max-epsilon`` in the ``--node-config`` it never spends more in all its runs together. Of
    the metrics of ``train()`` only the number of data points then leaves the device.

    Under BlockFLow and in a data trust the device is an agent: it posts a bond, of at most
    ``max-bond`` tokens in the ``--node-config``, and scores the models of the others with
    ``evaluate()``. It leaves a data trust after ``leave-after`` rounds, if that is there too.

    With ``key-holder`` in it, the file of a private key, the node is no device but holds the key of
    encrypted sums, and never trains; in a simulation whose ``chain.encryption`` names a cipher the
    last partition does. A device with ``cipher-key`` in it encrypts under no other key than the one
    with that SHA-256.

    Under a strategy that isn't ours it behaves as Flower's own.

    Parameters
    ----------
    mods : list of Mod, optional
        As in Flower; they run before the update is signed.
    classes : callable, optional
        From the Context to the classes that the device holds data of (papers/1 algorithm 1).
        Without it the device gets validation samples of all classes.
    predict : callable, optional
        From a model's arrays, by key, and samples, shape ``(n, ...)``, to class probabilities,
        shape ``(n, n_classes)``, as the owner's Examiner has it. It measures the model before and
        after where ``train()`` does without :class:`flower_chain.Validation`, or a mod changes what
        that measured; without it, ``evaluate()`` does.
    weighted_by_key : str
        The metric of ``train()`` that holds the number of data points used.
    metric : str
        The metric of ``evaluate()`` that holds the accuracy. Where agents audit each other the plan
        names it, or them.
    """

    def __init__(
        self,
        mods: list[Mod] | None = None,
        *,
        classes: Classes | None = None,
        predict: Predict | None = None,
        weighted_by_key: str = "num-examples",
        metric: str = "accuracy",
    ) -> None:
        super().__init__(mods=mods)
        self._classes = classes
        self._predict = predict
        self._weighted_by_key = weighted_by_key
        self._metric = metric
        self._evaluate_function: ClientAppCallable | None = None

    def __call__(self, message: Message, context: Context) -> Message:
        """Handle a message: ours, the user's, or both."""
        if (holder := KeyHolder.of(context)) is not None:
            return holder.answer(message)
        if message.metadata.message_type == sum_messages.KEY:
            return Message(RecordDict(), reply_to=message)
        if message.metadata.message_type == messages.HELLO:
            return self._introduce(message, context)
        if audit_messages.STAGE in message.content.config_records:
            return self._act(message, context)
        if messages.RECORD in message.content.config_records:
            return self._contribute(message, context)
        return super().__call__(message, context)

    def _act(self, message: Message, context: Context) -> Message:
        """Do what is asked of an agent that audits others."""
        asked = _without_ours(message)

        def evaluate(key: str, model: updates.Arrays, metrics: Sequence[str]) -> list[float]:
            question = _with(message, RecordDict({**asked.content, key: messages.record_of(model)}))
            return self._measure(question, context, *metrics)

        agent = Agent(message.content, context, device_account(context), evaluate)
        with agent.alone():
            if message.metadata.message_type == AUDIT:
                return Message(agent.answer(message), reply_to=message)
            return self._train_as(agent, message, asked, context)

    def _train_as(
        self, agent: Agent, message: Message, asked: Message, context: Context
    ) -> Message:
        """What an agent sends that is asked to train, as the user's functions know it."""
        if (sent := agent.sent_before()) is not None:
            return Message(sent, reply_to=message)
        agent.begin(message, _single(asked.content.array_records))
        reply = super().__call__(asked, context)
        if not reply.has_error():
            ours = agent.contribute(_single(reply.content.array_records))
            for key in list(reply.content.array_records):
                del reply.content[key]
            reply.content.update(ours)
        return reply

    def _introduce(self, message: Message, context: Context) -> Message:
        account = device_account(context)
        hello = Hello(account.address, self._held(context))
        context.state[CLASSES] = ConfigRecord({"held": list(hello.classes)})
        signature = sign(hello.encode(messages.read_domain(message.content)), account)
        return Message(messages.write_hello(hello, signature), reply_to=message)

    def _held(self, context: Context) -> tuple[int, ...]:
        classes = () if self._classes is None else self._classes(context)
        return tuple(sorted({int(label) for label in classes}))

    def _told(self, context: Context) -> tuple[int, ...]:
        """The classes that the device introduced itself with: its samples are of these."""
        if CLASSES not in context.state.config_records:
            return self._held(context)
        return tuple(cast(list[int], context.state.config_records[CLASSES]["held"]))

    def train(
        self, action: str = "default", *, mods: list[Mod] | None = None
    ) -> Callable[[ClientAppCallable], ClientAppCallable]:
        """Register a train function, as in Flower."""
        register = super().train(action, mods=mods)

        def decorator(function: ClientAppCallable) -> ClientAppCallable:
            register(self._noting(function))
            return function

        return decorator

    def evaluate(
        self, action: str = "default", *, mods: list[Mod] | None = None
    ) -> Callable[[ClientAppCallable], ClientAppCallable]:
        """Register an evaluate function, as in Flower."""
        register = super().evaluate(action, mods=mods)

        def decorator(function: ClientAppCallable) -> ClientAppCallable:
            if action == "default":
                self._evaluate_function = function
            return register(function)

        return decorator

    def _noting(self, function: ClientAppCallable) -> ClientAppCallable:
        """`function`, noting what it returned before any mod changes it."""

        def noted(message: Message, context: Context) -> Message:
            reply = function(message, context)
            log = current()
            if log is not None and not reply.has_error():
                log.returned = [_data(record) for record in reply.content.array_records.values()]
            return reply

        return noted

    def _contribute(self, message: Message, context: Context) -> Message:
        request = messages.read_request(message.content, RecordAndRewardPlan)
        samples = messages.read_samples(message.content)
        check_key(request.plan, context)
        message = _without_ours(message)
        check_model(_single(message.content.array_records), request)
        owner = check_owner(request, context)
        ledger = node_of(context, request.domain, device_account(context))
        with ledger as node, Budget.of(context, request) as budget:
            if node is not None:
                node.check(request, owner)
                if (sent := node.sent_before(request.task.version)) is not None:
                    return Message(sent, reply_to=message)
            made: tuple[Signed, bytes] | None
            if budget is not None and (sent := budget.sent_before()) is not None:
                reply, made = Message(sent, reply_to=message), _made(sent)
            else:
                reply, made = self._make(message, context, request, samples, owner, budget)
            if node is not None and made is not None:
                node.submit(*made, reply.content)
        return reply

    def _make(
        self,
        message: Message,
        context: Context,
        request: Request[RecordAndRewardPlan],
        samples: Samples | None,
        owner: bytes,
        budget: Budget | None,
    ) -> tuple[Message, tuple[Signed, bytes] | None]:
        """Train; the reply, and the contribution with the sealed update if all went well."""
        received, account = _single(message.content.array_records), device_account(context)
        with logging(samples) as log, offering(None if budget is None else budget.training):
            reply = super().__call__(message, context)
        if reply.has_error():
            return reply, None
        trained = _single(reply.content.array_records)
        update: updates.Arrays = updates.difference(
            messages.views(trained), messages.views(received)
        )
        if budget is not None:
            reply.content = _without_metrics(reply.content, self._weighted_by_key)
            unhidden, update = update, budget.protect(update)
            if update is not unhidden:
                trained = messages.record_of(updates.apply(messages.views(received), update))
        if log.returned != [_data(trained)]:
            log.probabilities.clear()  # a mod or the noise changed what was measured
        errors = self._errors(request.plan.rule, log, message, (received, trained), context)
        if request.plan.cipher is not None:
            update = encrypted(update, request.plan.cipher)
        digest, sealed = envelope.close(
            update, [owner, *request.plan.reader_keys], request.domain, account.address
        )
        contribution = Contribution(
            account.address,
            request.task.version,
            self._data_cost(reply.content),
            digest,
            cid_to_bytes(cid_of(sealed)),
            self._told(context),
            errors,
            spent=0 if budget is None else budget.spent,
        )
        signed = Signed(contribution, sign(contribution.encode(request.domain), account))
        _seal_reply(reply, signed, sealed)
        if budget is not None:
            budget.keep(sealed, reply.content)
        with OwnStore.of(context, request.plan.run, account.address) as store:
            if store is not None:
                store.put(sealed)
                del reply.content[messages.SEALED]
        return reply, (signed, sealed)

    def _errors(
        self,
        rule: Rule,
        log: Log,
        message: Message,
        models: tuple[ArrayRecord, ArrayRecord],
        context: Context,
    ) -> tuple[int, ...]:
        """What ``train()`` measured; else what others do before and after."""
        samples = log.samples
        if samples is None:
            return ()
        if log.probabilities:
            return evidence(rule, log.probabilities, samples.y)
        if self._predict is not None:
            tables = [self._predict(_numpy(model), samples.x) for model in models]
            return evidence(rule, tables, samples.y)
        if self._evaluate_function is None:
            raise _unmeasured(rule)
        measured = [self._evaluate(message, model, samples, context) for model in models]
        probabilities = [log.probabilities[-1] for log, _ in measured if log.probabilities]
        if len(probabilities) == len(models):
            return evidence(rule, probabilities, samples.y)
        accuracies = [accuracy for log, accuracy in measured if log.samples_read]
        if rule is Rule.GAIN or len(accuracies) < len(models):
            raise _unmeasured(rule)
        return tuple(to_ppm(1 - accuracy) for accuracy in accuracies)

    def _evaluate(
        self, message: Message, model: ArrayRecord, samples: Samples, context: Context
    ) -> tuple[Log, float]:
        """What the user's ``evaluate()`` says of a model on the owner's samples."""
        (key,) = message.content.array_records
        question = _with(message, RecordDict({**message.content, key: model}))
        with logging(samples) as log:
            (accuracy,) = self._measure(question, context, self._metric)
            return log, accuracy

    def _measure(self, question: Message, context: Context, *metrics: str) -> list[float]:
        """Metrics that the user's ``evaluate()`` returns."""
        if self._evaluate_function is None:
            wanted = ", ".join(map(repr, metrics))
            raise ConfigError(f"nothing tells {wanted} of a model: register evaluate()")
        with self._lifespan(context):
            reply = self._evaluate_function(question, context)
        if reply.has_error():
            raise TaskRefused(f"evaluate() failed: {reply.error.reason}")
        record = _single(reply.content.metric_records)
        return [_number(metric, record.get(metric)) for metric in metrics]

    def _data_cost(self, content: RecordDict) -> int:
        cost = _single(content.metric_records).get(self._weighted_by_key)
        if isinstance(cost, float) and cost.is_integer():
            cost = int(cost)
        if not isinstance(cost, int) or not 0 <= cost < 2**32:
            raise FormatError(
                f"train() returned {self._weighted_by_key} = {cost!r}: "
                "it must be the number of data points used"
            )
        return cost


def _made(sent: RecordDict) -> tuple[Signed, bytes]:
    """The contribution that the device sent, with the sealed update."""
    signed, sealed = messages.read_contribution(sent)
    assert sealed is not None
    return signed, sealed


def _without_metrics(content: RecordDict, kept: str) -> RecordDict:
    """What of a reply no noise hides is left out, but for one metric."""
    metrics = _single(content.metric_records)
    (name,) = content.metric_records
    metric = MetricRecord({kept: metrics[kept]} if kept in metrics else {})
    return RecordDict({**content.array_records, name: metric})


def _seal_reply(reply: Message, signed: Signed, sealed: bytes) -> None:
    """Put the contribution in place of the arrays, with the sealed update."""
    for key in list(reply.content.array_records):
        del reply.content[key]
    messages.write_contribution(reply.content, signed, sealed)


def _without_ours(message: Message) -> Message:
    """A training message as the user's mods and functions know it."""
    ours = (messages.RECORD, messages.SAMPLES, *audit_messages.RECORDS)
    return _with(message, RecordDict({k: v for k, v in message.content.items() if k not in ours}))


def _with(message: Message, content: RecordDict) -> Message:
    """The same message with other content."""
    other = copy(message)
    other.content = content
    return other


def _unmeasured(rule: Rule) -> ConfigError:
    return ConfigError(
        f"nothing measured the owner's samples as the rule {str(rule)!r} needs: give the ClientApp "
        "predict, or use flower_chain.Validation in train() or evaluate()"
    )


def _data(record: ArrayRecord) -> dict[str, bytes]:
    return {key: array.data for key, array in record.items()}


def _number(metric: str, value: object) -> float:
    if not isinstance(value, (int, float)):
        raise ConfigError(f"evaluate() returned {metric} = {value!r}: not a number")
    return float(value)


def _single(records: Mapping[str, Record]) -> Record:
    if len(records) != 1:
        raise FormatError(f"expected one record of each kind in a reply, found {len(records)}")
    return next(iter(records.values()))


def _numpy(record: ArrayRecord) -> updates.Arrays:
    return {key: array.numpy() for key, array in record.items()}
