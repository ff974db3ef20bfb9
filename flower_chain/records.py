"""The values that are signed, recorded or decided.

All are immutable. What is signed is an EIP-712 typed structure, bound to a chain and a contract
by its :class:`Domain`, so that a signature is worth nothing in another run.
"""

import hashlib
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeVar

from eth_account.messages import SignableMessage, encode_typed_data
from eth_account.signers.local import LocalAccount
from eth_keys.datatypes import Signature
from eth_keys.exceptions import BadSignature
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak
from eth_utils.exceptions import ValidationError

from flower_chain.errors import FormatError

PPM = 1_000_000
"""One, in parts per million: the scale of every error and quality on the ledger."""

TOKEN_UNITS = 10**18
"""One token in its smallest unit: the scale of every amount on the ledger."""

UNMEASURED = 2**32 - 1
"""The error of a model that nobody measured."""

MAX_CLASSES = 256
"""As many classes can a device tell that it holds."""

NOBODY = "0x" + 40 * "0"
"""Stands for a node that never told its account."""


class Refusal(IntEnum):
    """Why a contribution was refused; the order of ``contracts/src/Refusal.sol``."""

    NONE = 0
    STALE_VERSION = 1
    FUTURE_VERSION = 2
    VERSION_CLOSED = 3
    SECOND_CONTRIBUTION = 4
    BAD_DATA_COST = 5
    BAD_EVIDENCE = 6
    WORTHLESS = 7
    BAD_SIGNATURE = 8
    NOT_ENROLLED = 9
    UNREADABLE = 10
    NOT_STORED = 11
    WRONG_CID = 12
    OVERSIZE = 13
    UNSEALABLE = 14
    WRONG_DIGEST = 15
    WRONG_FORMAT = 16
    NOT_FINITE = 17
    FALSE_EVIDENCE = 18
    DEVICE_ERROR = 19
    NO_ANSWER = 20
    OVER_BUDGET = 21
    BUDGET_DECREASED = 22

    def __str__(self) -> str:
        return self.name.lower().replace("_", " ")


def to_ppm(share: float) -> int:
    """Round a share to parts per million, half up.

    Raises
    ------
    FormatError
        If `share` is not in [0, 1].
    """
    if not 0 <= share <= 1:
        raise FormatError(f"{share!r} is not a share: it must be in [0, 1]")
    return math.floor(share * PPM + 0.5)


def to_bits(classes: Iterable[int]) -> int:
    """A set of classes as the ledger holds it: bit i is set if class i is in it.

    Raises
    ------
    FormatError
        If a class is not from 0 to 255.
    """
    labels = set(classes)
    for label in labels:
        if not 0 <= label < MAX_CLASSES:
            raise FormatError(f"class {label}: classes must be from 0 to {MAX_CLASSES - 1}")
    return sum(1 << label for label in labels)


def from_bits(bits: int) -> tuple[int, ...]:
    """The inverse of :func:`to_bits`, ascending."""
    return tuple(label for label in range(MAX_CLASSES) if bits >> label & 1)


def pack_errors(errors: Sequence[int]) -> bytes:
    """Errors as the ledger holds them: each a big-endian uint32."""
    return struct.pack(f">{len(errors)}I", *errors)


def unpack_errors(packed: bytes) -> tuple[tuple[int, ...], bytes]:
    """The inverse of :func:`pack_errors`, and the bytes that are left over."""
    errors = struct.unpack_from(f">{len(packed) // 4}I", packed)
    return errors, packed[4 * len(errors) :]


@dataclass(frozen=True)
class Domain:
    """Where a signature holds: one contract on one chain (EIP-712 domain).

    Parameters
    ----------
    chain_id : int
    contract : str
        Checksum address of the scheme's contract.
    """

    chain_id: int
    contract: str

    def encode(self, name: str, types: list[dict[str, str]], message: Any) -> SignableMessage:
        """The typed structure `name` with this domain, ready to be signed."""
        domain = {
            "name": "flower-chain",
            "version": "1",
            "chainId": self.chain_id,
            "verifyingContract": self.contract,
        }
        return encode_typed_data(domain, {name: types}, message)


@dataclass(frozen=True)
class Model:
    """One version of the global model, as published on the ledger.

    Parameters
    ----------
    digest : bytes
        SHA-256 of its canonical bytes.
    cid : bytes
        Binary CIDv1 of these bytes in the store.
    seed_commitment : bytes
        keccak256 of the seed that draws the version's validation samples.
    error_ppm : int
        Error on the owner's validation data, or :data:`UNMEASURED`.
    """

    digest: bytes
    cid: bytes
    seed_commitment: bytes
    error_ppm: int = UNMEASURED

    def as_tuple(self) -> tuple[bytes, bytes, bytes, int]:
        """Its fields as the contract's structure has them."""
        return self.digest, self.cid, self.seed_commitment, self.error_ppm


@dataclass(frozen=True)
class Task:
    """What the owner signs when it asks a device to train: papers/1 figure 2, step 1.

    Parameters
    ----------
    version : int
        The version k of the model.
    model_digest : bytes
        SHA-256 of the canonical bytes of T_k.
    plan_digest : bytes
        SHA-256 of the run's plan.
    """

    version: int
    model_digest: bytes
    plan_digest: bytes

    def encode(self, domain: Domain) -> SignableMessage:
        """The EIP-712 message that the owner signs."""
        types = [
            {"name": "version", "type": "uint32"},
            {"name": "modelDigest", "type": "bytes32"},
            {"name": "planDigest", "type": "bytes32"},
        ]
        message = {
            "version": self.version,
            "modelDigest": self.model_digest,
            "planDigest": self.plan_digest,
        }
        return domain.encode("Task", types, message)


@dataclass(frozen=True)
class Hello:
    """What a device signs when it introduces itself: its account and its classes.

    Parameters
    ----------
    device : str
        Its account.
    classes : tuple of int
        The classes that it holds data of (papers/1 algorithm 1), ascending; empty if it does not
        tell.
    """

    device: str
    classes: tuple[int, ...]

    def encode(self, domain: Domain) -> SignableMessage:
        """The EIP-712 message that the device signs."""
        types = [{"name": "device", "type": "address"}, {"name": "classes", "type": "uint256"}]
        message = {"device": self.device, "classes": to_bits(self.classes)}
        return domain.encode("Hello", types, message)


@dataclass(frozen=True)
class Contribution:
    """What a device signs for its update (papers/1 table I).

    Parameters
    ----------
    device : str
        a_i: checksum address of the account that signs and is paid.
    version : int
        v_i: the version of the model that was trained.
    data_cost : int
        n_i: data points used.
    digest : bytes
        H(delta_i): SHA-256 of the canonical bytes of the update.
    cid : bytes
        Binary CIDv1 of the sealed update.
    classes : tuple of int
        C_D: the classes that the device holds data of, ascending; empty if it did not tell.
    errors : tuple of int
        Validation errors before the training and after each epoch, in parts per million.
    rest : bytes
        What is left after the last whole error: at most three bytes, and none unless somebody
        else's software made the contribution. The contract refuses it.
    spent : int
        Epsilon that the device has spent of its privacy, with this contribution, in millionths,
        rounded up; 0 where the run has no budget.
    """

    device: str
    version: int
    data_cost: int
    digest: bytes
    cid: bytes
    classes: tuple[int, ...]
    errors: tuple[int, ...]
    rest: bytes = b""
    spent: int = 0

    def encode(self, domain: Domain) -> SignableMessage:
        """The EIP-712 message that the device signs."""
        types = [
            {"name": "device", "type": "address"},
            {"name": "version", "type": "uint32"},
            {"name": "dataCost", "type": "uint32"},
            {"name": "digest", "type": "bytes32"},
            {"name": "cid", "type": "bytes"},
            {"name": "classes", "type": "uint256"},
            {"name": "errors", "type": "bytes"},
            {"name": "spent", "type": "uint64"},
        ]
        device, version, data_cost, digest, cid, classes, errors, spent = self.as_tuple()
        message = {
            "device": device,
            "version": version,
            "dataCost": data_cost,
            "digest": digest,
            "cid": cid,
            "classes": classes,
            "errors": errors,
            "spent": spent,
        }
        return domain.encode("Contribution", types, message)

    def as_tuple(self) -> tuple[str, int, int, bytes, bytes, int, bytes, int]:
        """Its fields as the contract's structure has them."""
        return (
            self.device,
            self.version,
            self.data_cost,
            self.digest,
            self.cid,
            to_bits(self.classes),
            pack_errors(self.errors) + self.rest,
            self.spent,
        )


@dataclass(frozen=True)
class Signed:
    """A contribution with the compact signature (EIP-2098) of its device, 64 bytes."""

    contribution: Contribution
    signature: bytes

    def is_valid(self, domain: Domain) -> bool:
        """Whether the signature is that of the device that the contribution names."""
        message = self.contribution.encode(domain)
        return recover(message, self.signature) == self.contribution.device


@dataclass(frozen=True)
class KeyHolder:
    """What an account signs that holds the private key of encrypted sums.

    Parameters
    ----------
    key_digest : bytes
        SHA-256 of the public key.
    """

    key_digest: bytes

    def encode(self) -> SignableMessage:
        """The EIP-712 message that it signs; of no run, since the key comes before the plan."""
        types = [{"name": "keyDigest", "type": "bytes32"}]
        return Domain(0, NOBODY).encode("KeyHolder", types, {"keyDigest": self.key_digest})


@dataclass(frozen=True)
class DecryptedSum:
    """What the holder of the key signs for a sum that it decrypted.

    Parameters
    ----------
    version : int
    parts : bytes
        :func:`parts_of` the contributions that it was told the sum consists of.
    encrypted, decrypted : bytes
        SHA-256 of the canonical bytes of the sum, before and after.
    """

    version: int
    parts: bytes
    encrypted: bytes
    decrypted: bytes

    def encode(self, domain: Domain) -> SignableMessage:
        """The EIP-712 message that the holder of the key signs."""
        types = [
            {"name": "version", "type": "uint32"},
            {"name": "parts", "type": "bytes32"},
            {"name": "encrypted", "type": "bytes32"},
            {"name": "decrypted", "type": "bytes32"},
        ]
        message = {each["name"]: getattr(self, each["name"]) for each in types}
        return domain.encode("DecryptedSum", types, message)


@dataclass(frozen=True)
class SignedSum:
    """A decrypted sum on the ledger.

    Parameters
    ----------
    said : DecryptedSum
    cid : bytes
        Binary CIDv1 of the canonical bytes of the sum in the store.
    signature : bytes
        Compact (EIP-2098), 64 bytes, of the holder of the key.
    """

    said: DecryptedSum
    cid: bytes
    signature: bytes

    def as_tuple(self) -> tuple[bytes, bytes, bytes, bytes, bytes, bytes]:
        """What the contract is told."""
        said, signature = self.said, self.signature
        halves = signature[:32], signature[32:]
        return said.parts, said.encrypted, said.decrypted, self.cid, *halves


def parts_of(weighed: Iterable[tuple[Contribution, int]]) -> bytes:
    """SHA-256 over the contributions of a sum with their weights, by account.

    Of each the device's address, the digest of the update, and the weight as a big-endian uint32.
    """
    parts = sorted((c.device.lower(), c.digest, weight) for c, weight in weighed)
    packed = [bytes.fromhex(d[2:]) + digest + struct.pack(">I", w) for d, digest, w in parts]
    return hashlib.sha256(b"".join(packed)).digest()


@dataclass(frozen=True)
class TrainedModel:
    """What a BlockFLow agent signs for its model (papers/3 section 3.2).

    Parameters
    ----------
    agent : int
        Its number in the experiment.
    round : int
    digest : bytes
        SHA-256 of the canonical bytes of the model.
    cid : bytes
        Binary CIDv1 of the model, sealed for all agents.
    lot : bytes
        :func:`lot_of` its secret, if auditors are drawn; else zero.
    """

    agent: int
    round: int
    digest: bytes
    cid: bytes
    lot: bytes = bytes(32)

    def encode(self, domain: Domain) -> SignableMessage:
        """The EIP-712 message that the agent signs."""
        types = [
            {"name": "round", "type": "uint32"},
            {"name": "digest", "type": "bytes32"},
            {"name": "cid", "type": "bytes"},
            {"name": "lot", "type": "bytes32"},
        ]
        message = {"round": self.round, "digest": self.digest, "cid": self.cid, "lot": self.lot}
        return domain.encode("Contribution", types, message)


@dataclass(frozen=True)
class Retrieval:
    """What a BlockFLow agent signs for the models that it could retrieve and validate.

    Parameters
    ----------
    agent : int
    round : int
    retrieved : tuple of int
        Whose models, by number.
    secret : bytes
        What opens its lot, if auditors are drawn; else zero.
    """

    agent: int
    round: int
    retrieved: tuple[int, ...]
    secret: bytes = bytes(32)

    def encode(self, domain: Domain) -> SignableMessage:
        """The EIP-712 message that the agent signs."""
        types = [
            {"name": "round", "type": "uint32"},
            {"name": "retrieved", "type": "uint256"},
            {"name": "secret", "type": "bytes32"},
        ]
        bits = to_bits(self.retrieved)
        message = {"round": self.round, "retrieved": bits, "secret": self.secret}
        return domain.encode("Retrieval", types, message)


def lot_of(agent: int, number: int, secret: bytes, domain: Domain) -> bytes:
    """What a BlockFLow agent says of its secret as long as models can be submitted.

    Parameters
    ----------
    agent : int
    number : int
        The round.
    secret : bytes
        32 bytes that nobody can guess.
    domain : Domain

    Returns
    -------
    bytes
        Its hash, bound to the experiment, the round and the agent.
    """
    types = [
        {"name": "round", "type": "uint32"},
        {"name": "agent", "type": "uint8"},
        {"name": "secret", "type": "bytes32"},
    ]
    message = {"round": number, "agent": agent, "secret": secret}
    return _hash(domain.encode("Lot", types, message))


@dataclass(frozen=True)
class Commitment:
    """What a BlockFLow agent signs before anybody's scores are known.

    Parameters
    ----------
    agent : int
    round : int
    digest : bytes
        :meth:`Scores.commitment`, 32 bytes.
    """

    agent: int
    round: int
    digest: bytes

    def encode(self, domain: Domain) -> SignableMessage:
        """The EIP-712 message that the agent signs."""
        types = [{"name": "round", "type": "uint32"}, {"name": "commitment", "type": "bytes32"}]
        return domain.encode("Commitment", types, {"round": self.round, "commitment": self.digest})


@dataclass(frozen=True)
class Aggregate:
    """What a BlockFLow agent signs for the model that a round ended with.

    Parameters
    ----------
    agent : int
    round : int
    digest : bytes
        SHA-256 of its canonical bytes.
    """

    agent: int
    round: int
    digest: bytes

    def encode(self, domain: Domain) -> SignableMessage:
        """The EIP-712 message that the agent signs."""
        types = [{"name": "round", "type": "uint32"}, {"name": "digest", "type": "bytes32"}]
        return domain.encode("Aggregate", types, {"round": self.round, "digest": self.digest})


@dataclass(frozen=True)
class Leave:
    """What a DataTrust worker signs that leaves, with its deposit, when a round is over.

    Parameters
    ----------
    agent : int
        Its number in the task.
    round : int
    """

    agent: int
    round: int

    def encode(self, domain: Domain) -> SignableMessage:
        """The EIP-712 message that the worker signs."""
        types = [{"name": "round", "type": "uint32"}]
        return domain.encode("Leave", types, {"round": self.round})


Said = TypeVar("Said", TrainedModel, Retrieval, Commitment, Aggregate, Leave)
SignedBy = tuple[Said, bytes]
"""What an agent said, and its signature."""


@dataclass(frozen=True)
class Scores:
    """What a BlockFLow agent says of the models that it audits, and the salt that hid it.

    Parameters
    ----------
    agent : int
    round : int
    row : tuple of int
        A score of each agent's model, also of those that were eliminated, in units of 1/65535. If
        auditors are drawn, of the models that it was drawn for, in the order of
        :func:`flower_chain.rules.blockflow.draw`.
    salt : bytes
        32 bytes that nobody can guess.
    """

    agent: int
    round: int
    row: tuple[int, ...]
    salt: bytes

    @property
    def packed(self) -> bytes:
        """The row as the contract has it: each score a big-endian uint16."""
        return struct.pack(f">{len(self.row)}H", *self.row)

    @classmethod
    def unpack(cls, agent: int, number: int, packed: bytes, salt: bytes) -> "Scores":
        """The inverse of :attr:`packed`."""
        return cls(agent, number, struct.unpack(f">{len(packed) // 2}H", packed), salt)

    def commitment(self, domain: Domain) -> bytes:
        """The hash of scores and salt, bound to the experiment, the round and the agent."""
        types = [
            {"name": "round", "type": "uint32"},
            {"name": "agent", "type": "uint8"},
            {"name": "row", "type": "bytes"},
            {"name": "salt", "type": "bytes32"},
        ]
        message = {"round": self.round, "agent": self.agent, "row": self.packed, "salt": self.salt}
        return _hash(domain.encode("Scores", types, message))


@dataclass(frozen=True)
class Grant:
    """What an account signs that gives a reader access to a sealed file.

    Parameters
    ----------
    granter, reader : str
        Checksum addresses; that of a reader with an RSA key is what it is known by.
    turn : int
        How often the granter has granted the file to the reader, and taken it back, before.
    cid : bytes
        Binary CIDv1 of the sealed file.
    wrap : bytes
        The file's key, wrapped for the reader.
    """

    granter: str
    reader: str
    turn: int
    cid: bytes
    wrap: bytes

    def encode(self, domain: Domain) -> SignableMessage:
        """The EIP-712 message that the granter signs; `domain` is that of the access list."""
        types = [
            {"name": "reader", "type": "address"},
            {"name": "turn", "type": "uint64"},
            {"name": "cid", "type": "bytes"},
            {"name": "wrap", "type": "bytes"},
        ]
        message = {"reader": self.reader, "turn": self.turn, "cid": self.cid, "wrap": self.wrap}
        return domain.encode("Grant", types, message)

    def as_tuple(self) -> tuple[str, str, int, bytes, bytes]:
        """Its fields as the contract's structure has them."""
        return self.granter, self.reader, self.turn, self.cid, self.wrap


@dataclass(frozen=True)
class Revocation:
    """What an account signs that takes back a :class:`Grant`; fields as there."""

    granter: str
    reader: str
    turn: int
    cid: bytes

    def encode(self, domain: Domain) -> SignableMessage:
        """The EIP-712 message that the granter signs; `domain` is that of the access list."""
        types = [
            {"name": "reader", "type": "address"},
            {"name": "turn", "type": "uint64"},
            {"name": "cid", "type": "bytes"},
        ]
        message = {"reader": self.reader, "turn": self.turn, "cid": self.cid}
        return domain.encode("Revocation", types, message)

    def as_tuple(self) -> tuple[str, str, int, bytes]:
        """Its fields as the contract's structure has them."""
        return self.granter, self.reader, self.turn, self.cid


@dataclass(frozen=True)
class BondPermit:
    """An agent's leave to take its bond, which costs it no gas (EIP-2612).

    Parameters
    ----------
    chain_id : int
    token, token_name, token_version : str
        What the token's permits are bound to: its checksum address, and what it says of itself.
    owner, spender : str
        The agent's account and the experiment's contract, checksum addresses.
    value : int
        In the token's smallest unit.
    nonce : int
        How many permits the account has used.
    deadline : int
        In seconds since 1970.
    """

    chain_id: int
    token: str
    token_name: str
    token_version: str
    owner: str
    spender: str
    value: int
    nonce: int
    deadline: int

    def encode(self) -> SignableMessage:
        """The EIP-712 message that the agent signs."""
        domain = {
            "name": self.token_name,
            "version": self.token_version,
            "chainId": self.chain_id,
            "verifyingContract": self.token,
        }
        types = [{"name": name, "type": "address"} for name in ("owner", "spender")]
        types += [{"name": name, "type": "uint256"} for name in ("value", "nonce", "deadline")]
        message = {each["name"]: getattr(self, each["name"]) for each in types}
        return encode_typed_data(domain, {"Permit": types}, message)


def sign(message: SignableMessage, account: LocalAccount) -> bytes:
    """The compact signature (EIP-2098) of `account` under `message`, 64 bytes."""
    signed = account.sign_message(message)
    parity = signed.v - 27
    return signed.r.to_bytes(32, "big") + (signed.s | parity << 255).to_bytes(32, "big")


def recover(message: SignableMessage, signature: bytes) -> str | None:
    """The checksum address that signed `message`, or None if `signature` is not one."""
    public_key = recover_public_key(message, signature)
    if public_key is None:
        return None
    return to_checksum_address(keccak(public_key)[-20:])


def recover_public_key(message: SignableMessage, signature: bytes) -> bytes | None:
    """The public key (64 bytes) that signed `message`, or None if `signature` is not one.

    As strict as the contract's check: of the two possible s only the lower counts.
    """
    if len(signature) != 64:
        return None
    vs = int.from_bytes(signature[32:], "big")
    s = vs & ~(1 << 255)
    if s > _HALF_ORDER:
        return None
    try:
        parsed = Signature(signature[:32] + s.to_bytes(32, "big") + bytes([vs >> 255]))
        return parsed.recover_public_key_from_msg_hash(_hash(message)).to_bytes()
    except (BadSignature, ValidationError):
        return None


def _hash(message: SignableMessage) -> bytes:
    return keccak(b"\x19" + message.version + message.header + message.body)


_HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
