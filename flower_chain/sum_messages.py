"""What travels between the server and the holder of the key of encrypted sums."""

from collections.abc import Sequence
from dataclasses import dataclass

from eth_utils.address import is_checksum_address
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from flower_chain import messages
from flower_chain.errors import FormatError
from flower_chain.messages import Request
from flower_chain.plan import RecordAndRewardPlan
from flower_chain.privacy.ciphers import ENCRYPTED, TOTAL
from flower_chain.records import Signed
from flower_chain.updates import Arrays

KEY = "query.flower_chain_key"
"""Type of the message that asks all nodes which of them holds a key; the others answer nothing."""

DECRYPT = "query.flower_chain_decrypt"
"""Type of the message that asks the holder of the key to decrypt a sum."""

SUM = "flower-chain.sum"
PART = "flower-chain.part."


@dataclass(frozen=True)
class Offer:
    """How a holder of a key introduces itself.

    Parameters
    ----------
    account : str
        Its checksum address.
    scheme : str
        The cipher.
    key : bytes
        Its public key.
    signature : bytes
        The account's, under the :class:`flower_chain.records.KeyHolder` of the key.
    """

    account: str
    scheme: str
    key: bytes
    signature: bytes


def write_offer(offer: Offer) -> RecordDict:
    """A holder's introduction."""
    return RecordDict({messages.RECORD: ConfigRecord(dict(vars(offer)))})


def read_offer(content: RecordDict) -> Offer | None:
    """The inverse, or None if the node holds no key; FormatError if it is no offer."""
    if messages.RECORD not in content.config_records:
        return None
    record = content.config_records[messages.RECORD]
    account, scheme, key, signature = map(record.get, ("account", "scheme", "key", "signature"))
    if not (isinstance(account, str) and is_checksum_address(account)):
        raise FormatError(f"account = {account!r} is not a checksum address")
    if not (isinstance(scheme, str) and isinstance(key, bytes) and isinstance(signature, bytes)):
        raise FormatError("an offer of a key without scheme, key or signature")
    return Offer(account, scheme, key, signature)


def write_question(
    request: Request[RecordAndRewardPlan], encrypted: Arrays, parts: Sequence[Signed]
) -> RecordDict:
    """An encrypted sum, and of which contributions it is; not what these hold."""
    content = RecordDict({SUM: ArrayRecord({ENCRYPTED: Array(encrypted[ENCRYPTED])})})
    messages.write_request(content, request)
    for number, signed in enumerate(parts):
        part = RecordDict()
        messages.write_contribution(part, signed, None)
        content[f"{PART}{number}"] = part.config_records[messages.RECORD]
    return content


def read_question(
    content: RecordDict,
) -> tuple[Request[RecordAndRewardPlan], Arrays, list[Signed]]:
    """The inverse, or FormatError."""
    request = messages.read_request(content, RecordAndRewardPlan)
    parts = [
        messages.read_contribution(RecordDict({messages.RECORD: record}))[0]
        for name, record in content.config_records.items()
        if name.startswith(PART)
    ]
    return request, messages.read_model(content), parts


def write_answer(decrypted: Arrays, signature: bytes) -> RecordDict:
    """A decrypted sum, and what its holder signed for it."""
    return RecordDict(
        {
            SUM: ArrayRecord({TOTAL: Array(decrypted[TOTAL])}),
            messages.RECORD: ConfigRecord({"signature": signature}),
        }
    )


def write_refusal(reason: str) -> RecordDict:
    """Why a sum is not decrypted, now and at any other time."""
    return RecordDict({messages.RECORD: ConfigRecord({"refused": reason})})


def read_answer(content: RecordDict) -> tuple[Arrays, bytes] | str:
    """The inverse of both, or FormatError."""
    record = content.config_records.get(messages.RECORD, ConfigRecord())
    if isinstance(reason := record.get("refused"), str):
        return reason
    if not isinstance(signature := record.get("signature"), bytes):
        raise FormatError("neither a signature nor a reason")
    return messages.read_model(content), signature
