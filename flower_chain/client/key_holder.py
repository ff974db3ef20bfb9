"""The node that holds the private key of encrypted sums: it decrypts sums, each once."""

import hashlib
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Self

from eth_account.signers.local import LocalAccount
from flwr.app import Context, Message, RecordDict

from flower_chain import cipher_files, sum_messages
from flower_chain.client.account import device_account, keys_folder, node_of
from flower_chain.client.task import check_owner
from flower_chain.errors import FormatError, TaskRefused
from flower_chain.messages import Request
from flower_chain.plan import RecordAndRewardPlan
from flower_chain.privacy.ciphers import Secret
from flower_chain.records import DecryptedSum, Domain, Signed, parts_of, sign
from flower_chain.records import KeyHolder as Held
from flower_chain.sum_messages import Offer
from flower_chain.updates import digest_of


class KeyHolder:
    """Answers for who holds the key.

    What was decrypted is noted in a file beside the key before the answer is given: no version, and
    no contribution, is part of two sums. The same question again gets the same answer, so that a
    server that was killed can go on.

    Parameters
    ----------
    context : Context
    file : Path
        The private key's.
    secret : Secret
    """

    def __init__(self, context: Context, file: Path, secret: Secret) -> None:
        self._context, self._secret = context, secret
        self._account: LocalAccount = device_account(context)
        self._notes = Notes(file.with_name(f"{file.name}.sums"))

    @classmethod
    def of(cls, context: Context) -> Self | None:
        """The holder, if the node is one; see :class:`flower_chain.ClientApp`.

        Raises
        ------
        KeyFileError
            If the key can't be read.
        """
        if (named := context.node_config.get("key-holder")) is not None:
            return cls(context, Path(str(named)), cipher_files.load(Path(str(named))))
        scheme = str(context.run_config.get("chain.encryption", ""))
        if not scheme or "key-file" in context.node_config or not _is_last(context):
            return None
        file = keys_folder(context) / f"{scheme}.key"
        return cls(context, file, cipher_files.load_or_create(file, scheme))

    def answer(self, message: Message) -> Message:
        """The reply to a message; TaskRefused if it is not about the key."""
        match message.metadata.message_type:
            case sum_messages.KEY:
                content = self._offer()
            case sum_messages.DECRYPT:
                content = self._decrypt(message.content)
            case other:
                raise TaskRefused(f"{other!r}: this node holds a key, and does nothing else")
        return Message(content, reply_to=message)

    def _offer(self) -> RecordDict:
        key = self._secret.public_key
        signature = sign(Held(hashlib.sha256(key).digest()).encode(), self._account)
        return sum_messages.write_offer(
            Offer(self._account.address, self._secret.scheme, key, signature)
        )

    def _decrypt(self, content: RecordDict) -> RecordDict:
        """The sum, signed; or why it is not decrypted."""
        try:
            request, encrypted, parts = sum_messages.read_question(content)
            owner = check_owner(request, self._context)
            plan, domain = request.plan, request.domain
            self._check_plan(plan)
            weight = _check_parts(request, parts)
            with node_of(self._context, domain, self._account) as node:
                if node is not None:
                    node.check(request, owner)
                    node.check_recorded(request.task.version, parts)
            assert plan.cipher is not None
            plan.cipher.format.check(encrypted)
            said = [signed.contribution for signed in parts]
            name, named = digest_of(encrypted), parts_of(plan.weighed(said))
            digests = [contribution.digest for contribution in said]
            self._notes.add(domain, request.task.version, name + named, digests)
            decrypted = self._secret.decrypt(plan.cipher, encrypted, weight)
        except (TaskRefused, FormatError) as fault:
            return sum_messages.write_refusal(str(fault))
        answer = DecryptedSum(request.task.version, named, name, digest_of(decrypted))
        return sum_messages.write_answer(decrypted, sign(answer.encode(domain), self._account))

    def _check_plan(self, plan: RecordAndRewardPlan) -> None:
        """Refuse a plan with another key, or another holder of it."""
        if not plan.encryption:
            raise TaskRefused("the plan has no encryption")
        if plan.public_key != self._secret.public_key:
            raise TaskRefused("the plan names another key than this holder's")
        if plan.key_holder != self._account.address:
            raise TaskRefused(
                f"the plan names {plan.key_holder} as the holder of the key, this is "
                f"{self._account.address}"
            )


class Notes:
    """What was decrypted, in a file that survives whatever happens to the process.

    Parameters
    ----------
    file : Path
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def add(self, domain: Domain, version: int, question: bytes, digests: Sequence[bytes]) -> None:
        """Note that a sum is decrypted, unless the same was noted before.

        Parameters
        ----------
        domain : Domain
        version : int
        question : bytes
            Tells this sum from any other.
        digests : sequence of bytes
            Those of the contributions that it consists of.

        Raises
        ------
        TaskRefused
            If another sum of the version was decrypted, or one of the contributions was in one.
        """
        run = f"{domain.chain_id}-{domain.contract}"
        with closing(sqlite3.connect(self._file, isolation_level=None, timeout=60)) as notes:
            notes.execute("PRAGMA synchronous = FULL")
            notes.execute(
                "CREATE TABLE IF NOT EXISTS sums (run, version, question, UNIQUE (run, version))"
            )
            notes.execute("CREATE TABLE IF NOT EXISTS parts (digest PRIMARY KEY)")
            notes.execute("BEGIN IMMEDIATE")
            found = notes.execute(
                "SELECT question FROM sums WHERE run = ? AND version = ?", (run, version)
            ).fetchone()
            if found == (question,):
                return
            if found is not None:
                raise TaskRefused(f"another sum of version {version} was decrypted before")
            try:
                notes.executemany("INSERT INTO parts VALUES (?)", [(d,) for d in digests])
            except sqlite3.IntegrityError:
                raise TaskRefused("one of the contributions was in a sum before") from None
            notes.execute("INSERT INTO sums VALUES (?, ?, ?)", (run, version, question))
            notes.execute("COMMIT")


def _check_parts(request: Request[RecordAndRewardPlan], parts: Sequence[Signed]) -> int:
    """The sum of the weights, or TaskRefused if these contributions make no sum."""
    plan, version = request.plan, request.task.version
    said = [signed.contribution for signed in parts]
    if not plan.least_summed <= len(said) <= plan.most_summed:
        raise TaskRefused(
            f"a sum of {len(said)} contributions: the plan wants {plan.least_summed} to "
            f"{plan.most_summed}"
        )
    for name, values in (
        ("a device", [contribution.device for contribution in said]),
        ("an update", [contribution.digest for contribution in said]),
    ):
        if len(set(values)) < len(values):
            raise TaskRefused(f"{name} is in the sum twice")
    for signed in parts:
        device = signed.contribution.device
        if signed.contribution.version != version:
            raise TaskRefused(f"the contribution of {device} is not to version {version}")
        if not signed.is_valid(request.domain):
            raise TaskRefused(f"the contribution of {device} is not signed by it")
    return sum(weight for _, weight in plan.weighed(said))


def _is_last(context: Context) -> bool:
    """Whether a simulated node has the last partition."""
    number, of = map(context.node_config.get, ("partition-id", "num-partitions"))
    return isinstance(number, int) and isinstance(of, int) and number == of - 1
