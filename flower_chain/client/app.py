"""A Flower ClientApp whose updates are signed by the device."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar, cast

from eth_account.signers.local import LocalAccount
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp as FlowerClientApp
from flwr.clientapp.typing import Mod

from flower_chain import envelope, keys, messages, updates
from flower_chain.client.validation import Log, logging
from flower_chain.errors import ConfigError, FormatError, TaskRefused
from flower_chain.messages import Request
from flower_chain.records import (
    Contribution,
    Hello,
    Signed,
    recover_public_key,
    sign,
    to_ppm,
)
from flower_chain.rules.record_and_reward import Rule, evidence
from flower_chain.store import DirectoryStore
from flower_chain.store.cid import cid_of, cid_to_bytes

Classes = Callable[[Context], Iterable[int]]
Record = TypeVar("Record")


class ClientApp(FlowerClientApp):
    """Flower's ClientApp; what its ``train()`` returns leaves the device sealed and signed.

    The device's account is kept in a key file, mode 0600 and made on first use, or in an encrypted
    keystore: ``key-file`` in the SuperNode's ``--node-config``, or for simulations
    ``device-<partition-id>.key`` in the folder ``chain.keys`` of the run-config. A keystore's
    password is read from the environment variable ``FLOWER_CHAIN_PASSWORD``.

    Under a strategy that isn't ours it behaves as Flower's own.

    Parameters
    ----------
    mods : list of Mod, optional
        As in Flower; they run before the update is signed.
    classes : callable, optional
        From the Context to the classes that the device holds data of (papers/1 algorithm 1).
        Without it the device gets validation samples of all classes.
    weighted_by_key : str
        The metric of ``train()`` that holds the number of data points used.
    metric : str
        The metric of ``evaluate()`` that holds the accuracy, for devices whose ``train()`` does
        without :class:`flower_chain.Validation`.
    """

    def __init__(
        self,
        mods: list[Mod] | None = None,
        *,
        classes: Classes | None = None,
        weighted_by_key: str = "num-examples",
        metric: str = "accuracy",
    ) -> None:
        super().__init__(mods=mods)
        self._classes = classes
        self._weighted_by_key = weighted_by_key
        self._metric = metric

    def __call__(self, message: Message, context: Context) -> Message:
        """Handle a message: ours, the user's, or both."""
        if message.metadata.message_type == messages.HELLO:
            return self._introduce(message, context)
        if messages.RECORD in message.content.config_records:
            return self._contribute(message, context)
        return super().__call__(message, context)

    def _introduce(self, message: Message, context: Context) -> Message:
        account = device_account(context)
        hello = Hello(account.address, self._held(context))
        signature = sign(hello.encode(messages.read_domain(message.content)), account)
        return Message(messages.write_hello(hello, signature), reply_to=message)

    def _held(self, context: Context) -> tuple[int, ...]:
        classes = () if self._classes is None else self._classes(context)
        return tuple(sorted({int(label) for label in classes}))

    def _contribute(self, message: Message, context: Context) -> Message:
        request = messages.read_request(message.content)
        received = _received(message, request)
        owner = _check_owner(request, context)
        with logging() as log:
            reply = super().__call__(message, context)
        if reply.has_error():
            return reply
        trained = _single(reply.content.array_records)
        errors = self._errors(request.plan.rule, log, message, (received, trained), context)
        account = device_account(context)
        update = updates.difference(_numpy(trained), _numpy(received))
        digest, sealed = envelope.close(update, owner, request.domain, account.address)
        contribution = Contribution(
            account.address,
            request.task.version,
            self._data_cost(reply.content),
            digest,
            cid_to_bytes(cid_of(sealed)),
            self._held(context),
            errors,
        )
        signed = Signed(contribution, sign(contribution.encode(request.domain), account))
        return _seal_reply(reply, signed, sealed, context)

    def _errors(
        self,
        rule: Rule,
        log: Log,
        message: Message,
        models: tuple[ArrayRecord, ArrayRecord],
        context: Context,
    ) -> tuple[int, ...]:
        """What ``train()`` measured; else what ``evaluate()`` does before and after."""
        samples = messages.read_samples(message.content)
        if samples is None:
            return ()
        if log.probabilities:
            return evidence(rule, log.probabilities, samples.y)
        measured = [self._evaluate(message, model, context) for model in models]
        probabilities = [log.probabilities[-1] for log, _ in measured if log.probabilities]
        if len(probabilities) == len(models):
            return evidence(rule, probabilities, samples.y)
        if rule is Rule.GAIN or not all(log.samples_read for log, _ in measured):
            raise ConfigError(
                f"nothing measured the owner's samples as the rule {str(rule)!r} needs: use "
                "flower_chain.Validation in train() or evaluate()"
            )
        return tuple(to_ppm(1 - accuracy) for _, accuracy in measured)

    def _evaluate(
        self, message: Message, model: ArrayRecord, context: Context
    ) -> tuple[Log, float]:
        """What the user's ``evaluate()`` says of a model on the owner's samples."""
        content = RecordDict(dict(message.content))
        content[_arrays_key(message.content)] = model
        question = Message(content, dst_node_id=context.node_id, message_type=MessageType.EVALUATE)
        with logging() as log:
            reply = super().__call__(question, context)
        if reply.has_error():
            raise TaskRefused(f"evaluate() failed on the owner's samples: {reply.error.reason}")
        accuracy = _single(reply.content.metric_records).get(self._metric)
        if not isinstance(accuracy, (int, float)):
            raise ConfigError(f"evaluate() returned {self._metric} = {accuracy!r}: not a number")
        return log, float(accuracy)

    def _data_cost(self, content: RecordDict) -> int:
        metrics = _single(content.metric_records)
        cost = metrics.get(self._weighted_by_key)
        if not isinstance(cost, (int, float)) or cost != int(cost):
            raise FormatError(
                f"train() returned {self._weighted_by_key} = {cost!r}: "
                "it must be the number of data points used"
            )
        return int(cost)


def device_account(context: Context) -> LocalAccount:
    """The account of the device that `context` belongs to.

    Raises
    ------
    ConfigError
        If nothing says where its key is.
    KeyFileError
        If the key can't be used.
    """
    if (path := context.node_config.get("key-file")) is not None:
        return keys.load_or_create(Path(str(path)))
    if (partition := context.node_config.get("partition-id")) is None:
        raise ConfigError("the device has no key: set key-file in the SuperNode's --node-config")
    folder = Path(str(context.run_config.get("chain.keys") or keys.HOME / "keys")).expanduser()
    return keys.load_or_create(folder / f"device-{partition}.key")


def _received(message: Message, request: Request) -> ArrayRecord:
    """The model in the message, which must be the one that the owner signed."""
    received = message.content.array_records[_arrays_key(message.content)]
    digest = updates.digest(updates.pack(_numpy(received)))
    if digest != request.task.model_digest:
        raise TaskRefused(
            f"the model received has digest {digest.hex()}, but version {request.task.version} "
            f"is signed as {request.task.model_digest.hex()}"
        )
    return received


def _check_owner(request: Request, context: Context) -> bytes:
    """The owner's public key; the first run that a device sees is the one that it stays with."""
    owner = recover_public_key(request.task.encode(request.domain), request.signature)
    if owner is None:
        raise TaskRefused("the task is not signed")
    state = ConfigRecord(
        {
            "owner": keys.address_of(owner),
            "plan": request.plan.digest.hex(),
            "chain-id": request.domain.chain_id,
            "contract": request.domain.contract,
            "version": request.task.version,
        }
    )
    seen = context.state.config_records.get(messages.RECORD, state)
    for name in ("owner", "plan", "chain-id", "contract"):
        if seen[name] != state[name]:
            raise TaskRefused(f"the run's {name} is {seen[name]!r}, the task's {state[name]!r}")
    if request.task.version < cast(int, seen["version"]):
        raise TaskRefused(f"version {request.task.version}, but {seen['version']!r} was seen")
    context.state[messages.RECORD] = state
    return owner


def _seal_reply(reply: Message, signed: Signed, sealed: bytes, context: Context) -> Message:
    """The reply with the sealed update in place of the arrays."""
    folder = context.node_config.get("store")
    if folder is not None:
        DirectoryStore(Path(str(folder))).put(sealed)
    for key in list(reply.content.array_records):
        del reply.content[key]
    messages.write_contribution(reply.content, signed, None if folder else sealed)
    return reply


def _arrays_key(content: RecordDict) -> str:
    (key,) = (key for key in content.array_records if key != messages.SAMPLES)
    return key


def _single(records: Mapping[str, Record]) -> Record:
    if len(records) != 1:
        raise FormatError(f"expected one record of each kind in a reply, found {len(records)}")
    return next(iter(records.values()))


def _numpy(record: ArrayRecord) -> updates.Arrays:
    return {key: array.numpy() for key, array in record.items()}
