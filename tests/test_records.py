import hashlib
import re
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from eth_account import Account
from eth_account.messages import SignableMessage, encode_typed_data
from eth_account.signers.local import LocalAccount
from eth_utils.crypto import keccak
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flower_chain.errors import FormatError, Reverted
from flower_chain.ledger import Contract, EmbeddedLedger
from flower_chain.records import (
    MAX_CLASSES,
    NOBODY,
    PPM,
    UNMEASURED,
    Contribution,
    DecryptedSum,
    Domain,
    Hello,
    KeyHolder,
    Refusal,
    Signed,
    Task,
    from_bits,
    lot_of,
    pack_errors,
    parts_of,
    recover,
    recover_public_key,
    sign,
    to_bits,
    to_ppm,
    unpack_errors,
)
from flower_chain.rules.record_and_reward import Rule

SOURCES = Path(__file__).parent.parent / "contracts" / "src"
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
HALF_ORDER = ORDER // 2
PARITY = 1 << 255
MAX_UINT256 = 2**256 - 1

# The account whose private key is 1.
DEVICE = "0x7E5F4552091A69125d5DfCb7b8C2659029395Bdf"
DOMAIN = Domain(31337, "0x5FbDB2315678afecb367f032d93F642f64180aa3")
SECRET = b"\7" * 32
CONTRIBUTION = Contribution(
    device=DEVICE,
    version=3,
    data_cost=1200,
    digest=b"\xab" * 32,
    cid=bytes.fromhex("01551220") + b"\xcd" * 32,
    classes=(0, 7, 255),
    errors=(900_000, 500_000, 50_000),
    spent=2_500_000,
)
# Made with nothing but Keccak-256 and words of 32 bytes, then signed by another implementation of
# RFC 6979 (plain Python, the curve's formulas).
GOLDEN_HASH = "e46035835e98fa001373592a3231763bf96960c7bfd01a349c21bf42bce5c703"
GOLDEN_SIGNATURE = (
    "fdb0939652acd667947f1afbbfd92217ad12393c7c22e37eed0723abbb6720ca"
    "dd440b3968213c9c643d83d401b19cafd92c29ff277a4735f0a73b8ca6197bb2"
)
GOLDEN_SUM = "eab917c6c9f17c136c9098e1f789d7fdf313bfd9ffe60e8ff633a687cc7d9b87"
GOLDEN_KEY = "1e93433e287e006cde77825b2f852cea6926b3709f6fa99170af310a830aba63"


def hash_of(message: SignableMessage) -> bytes:
    return keccak(b"\x19" + message.version + message.header + message.body)


def compact(r: int, s: int, parity: int = 0) -> bytes:
    return r.to_bytes(32, "big") + (s | parity << 255).to_bytes(32, "big")


def parts(signature: bytes) -> tuple[int, int, int]:
    vs = int.from_bytes(signature[32:], "big")
    return int.from_bytes(signature[:32], "big"), vs & ~PARITY, vs >> 255


def solidity_enum(file: str, name: str) -> list[str]:
    source = (SOURCES / file).read_text()
    found = re.search(rf"enum {name} \{{([^}}]*)\}}", source)
    assert found is not None
    return [member.strip() for member in found[1].split(",")]


def camel(name: str) -> str:
    return name.title().replace("_", "")


class TestEnums:
    def test_refusals_are_in_the_order_of_the_contract(self) -> None:
        assert [camel(reason.name) for reason in Refusal] == solidity_enum("Refusal.sol", "Refusal")
        assert list(Refusal) == list(range(len(Refusal)))

    def test_rules_are_in_the_order_of_the_contract(self) -> None:
        assert [camel(rule.name) for rule in Rule] == solidity_enum("RecordAndReward.sol", "Rule")
        assert list(Rule) == list(range(len(Rule)))

    def test_a_refusal_reads_as_words(self) -> None:
        assert str(Refusal.SECOND_CONTRIBUTION) == "second contribution"


class TestToPpm:
    @pytest.mark.parametrize(
        ("share", "ppm"),
        [
            (0, 0),
            (1, PPM),
            (0.25, 250_000),
            (1 / 3, 333_333),
            (2 / 3, 666_667),
            (0.4e-6, 0),
            (0.5e-6, 1),
            (1 - 0.4e-6, PPM),
            (1 - 0.6e-6, PPM - 1),
            (5e-324, 0),
            (-0.0, 0),
        ],
    )
    def test_rounds_half_up(self, share: float, ppm: int) -> None:
        assert to_ppm(share) == ppm

    @given(st.integers(0, PPM))
    def test_a_whole_number_of_millionths_stays_what_it_is(self, ppm: int) -> None:
        assert to_ppm(ppm / PPM) == ppm

    @given(st.floats(0, 1))
    def test_is_off_by_half_a_millionth_at_most(self, share: float) -> None:
        assert abs(to_ppm(share) - share * PPM) <= 0.5

    @pytest.mark.parametrize("share", [-1e-9, 1 + 1e-9, 2, float("inf"), float("nan")])
    def test_refuses_what_is_not_a_share(self, share: float) -> None:
        with pytest.raises(FormatError, match=re.escape(repr(share))):
            to_ppm(share)


class TestBits:
    def test_bit_i_is_class_i(self) -> None:
        assert to_bits((0, 3, 255)) == 1 | 1 << 3 | 1 << 255

    def test_no_classes_are_no_bits(self) -> None:
        assert to_bits(()) == 0
        assert from_bits(0) == ()

    @given(st.sets(st.integers(0, MAX_CLASSES - 1)))
    def test_from_bits_inverts_to_bits(self, classes: set[int]) -> None:
        assert from_bits(to_bits(classes)) == tuple(sorted(classes))

    def test_order_and_repetition_do_not_matter(self) -> None:
        assert to_bits([5, 1, 5]) == to_bits([1, 5])

    def test_takes_any_iterable(self) -> None:
        assert to_bits(iter([1, 2])) == to_bits([1, 2])

    @pytest.mark.parametrize("label", [-1, MAX_CLASSES])
    def test_refuses_a_class_that_has_no_bit(self, label: int) -> None:
        with pytest.raises(FormatError, match=f"class {label}: "):
            to_bits([0, label])


class TestPackErrors:
    def test_each_error_is_four_bytes_big_endian(self) -> None:
        packed = pack_errors((1, PPM, UNMEASURED))
        assert packed == bytes.fromhex("00000001 000f4240 ffffffff")

    @given(st.lists(st.integers(0, UNMEASURED), max_size=300))
    def test_unpack_errors_inverts_pack_errors(self, errors: list[int]) -> None:
        assert unpack_errors(pack_errors(errors)) == (tuple(errors), b"")

    @given(st.binary(max_size=50))
    def test_bytes_left_over_are_not_lost(self, packed: bytes) -> None:
        errors, rest = unpack_errors(packed)
        assert len(rest) < 4
        assert pack_errors(errors) + rest == packed

    @pytest.mark.parametrize("error", [-1, 2**32])
    def test_an_error_beyond_32_bits_is_never_packed(self, error: int) -> None:
        with pytest.raises((FormatError, struct.error)):
            pack_errors([error])


class TestEncode:
    def test_a_contribution_has_the_golden_hash(self) -> None:
        assert hash_of(CONTRIBUTION.encode(DOMAIN)).hex() == GOLDEN_HASH

    @pytest.mark.parametrize(
        "domain", [Domain(1, DOMAIN.contract), Domain(31337, DEVICE)], ids=["chain", "contract"]
    )
    def test_the_domain_is_part_of_the_hash(self, domain: Domain) -> None:
        assert hash_of(CONTRIBUTION.encode(domain)).hex() != GOLDEN_HASH

    def test_structures_of_other_types_have_other_hashes(self) -> None:
        messages = [
            CONTRIBUTION.encode(DOMAIN),
            Task(3, b"\xab" * 32, b"\xcd" * 32).encode(DOMAIN),
            Hello(DEVICE, (0, 7)).encode(DOMAIN),
        ]
        assert len({hash_of(message) for message in messages}) == len(messages)

    def test_every_field_of_a_contribution_is_part_of_its_hash(self) -> None:
        fields = vars(CONTRIBUTION)
        others = {
            "device": DOMAIN.contract,
            "version": 4,
            "data_cost": 1201,
            "digest": b"\xac" * 32,
            "cid": b"\0" * 36,
            "classes": (0, 7),
            "errors": (900_000, 500_000),
            "rest": b"\1",
            "spent": 2_500_001,
        }
        assert others.keys() == fields.keys()
        changed = [Contribution(**(fields | {name: value})) for name, value in others.items()]
        hashes = {hash_of(contribution.encode(DOMAIN)) for contribution in changed}
        assert len(hashes | {bytes.fromhex(GOLDEN_HASH)}) == len(fields) + 1

    def test_every_field_of_a_task_is_part_of_its_hash(self) -> None:
        digest, other = b"\1" * 32, b"\2" * 32
        tasks = [Task(0, digest, other), Task(1, digest, other)]
        tasks += [Task(0, other, other), Task(0, digest, digest)]
        assert len({hash_of(task.encode(DOMAIN)) for task in tasks}) == 4

    def test_every_field_of_a_hello_is_part_of_its_hash(self) -> None:
        hellos = [Hello(DEVICE, (1,)), Hello(DEVICE, (2,)), Hello(DOMAIN.contract, (1,))]
        assert len({hash_of(hello.encode(DOMAIN)) for hello in hellos}) == 3


class TestLotOf:
    def test_it_is_of_one_agent_in_one_round_of_one_experiment(self) -> None:
        others = [
            lot_of(2, 3, SECRET, DOMAIN),
            lot_of(1, 4, SECRET, DOMAIN),
            lot_of(1, 3, bytes(32), DOMAIN),
            lot_of(1, 3, SECRET, replace(DOMAIN, chain_id=1)),
        ]
        assert lot_of(1, 3, SECRET, DOMAIN) not in others
        assert len(set(others)) == 4


class TestSign:
    def test_a_contribution_has_the_golden_signature(self, devices: list[LocalAccount]) -> None:
        assert devices[0].address == DEVICE
        assert sign(CONTRIBUTION.encode(DOMAIN), devices[0]).hex() == GOLDEN_SIGNATURE

    @settings(max_examples=25)
    @given(st.integers(1, ORDER - 1), st.integers(0, 2**32 - 1))
    def test_recover_names_who_signed(self, key: int, version: int) -> None:
        account = Account.from_key(key.to_bytes(32, "big"))
        message = Task(version, b"\1" * 32, b"\2" * 32).encode(DOMAIN)
        signature = sign(message, account)
        assert len(signature) == 64
        assert recover(message, signature) == account.address

    def test_the_public_key_is_that_of_the_signer(self) -> None:
        message = CONTRIBUTION.encode(DOMAIN)
        # The curve's generator: the public key of the private key 1.
        assert recover_public_key(message, bytes.fromhex(GOLDEN_SIGNATURE)) == bytes.fromhex(
            "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"
            "483ada7726a3c4655da4fbfc0e1108a8fd17b448a68554199c47d08ffb10d4b8"
        )


class TestRecover:
    MESSAGE = CONTRIBUTION.encode(DOMAIN)
    R, S, ODD = parts(bytes.fromhex(GOLDEN_SIGNATURE))

    @pytest.mark.parametrize("length", [0, 1, 32, 63, 65, 128])
    def test_refuses_a_signature_of_another_length(self, length: int) -> None:
        signature = (bytes.fromhex(GOLDEN_SIGNATURE) * 2)[:length]
        assert recover(self.MESSAGE, signature) is None
        assert recover_public_key(self.MESSAGE, signature) is None

    @pytest.mark.parametrize(
        ("r", "s"),
        [
            (0, S),
            (R, 0),
            (0, 0),
            (ORDER, S),
            (MAX_UINT256, S),
            (R, HALF_ORDER + 1),
            (R, PARITY - 1),
        ],
        ids=["r=0", "s=0", "zeros", "r=n", "r=max", "s=n/2+1", "s=max"],
    )
    @pytest.mark.parametrize("parity", [0, 1])
    def test_refuses_numbers_out_of_range(self, r: int, s: int, parity: int) -> None:
        assert recover(self.MESSAGE, compact(r, s, parity)) is None

    def test_the_largest_s_that_counts_is_half_the_order(self) -> None:
        assert recover(self.MESSAGE, compact(self.R, HALF_ORDER)) is not None

    def test_the_other_parity_is_another_account(self) -> None:
        assert recover(self.MESSAGE, compact(self.R, self.S, 1 - self.ODD)) not in (None, DEVICE)

    @pytest.mark.parametrize("parity", [0, 1])
    def test_the_same_signature_with_the_upper_s_is_not_the_devices(self, parity: int) -> None:
        upper = (ORDER - self.S) & ~PARITY
        assert recover(self.MESSAGE, compact(self.R, upper, parity)) != DEVICE


class TestIsValid:
    SIGNED = Signed(CONTRIBUTION, bytes.fromhex(GOLDEN_SIGNATURE))

    def test_the_devices_signature_is_valid(self) -> None:
        assert self.SIGNED.is_valid(DOMAIN)

    def test_not_on_another_chain(self) -> None:
        assert not self.SIGNED.is_valid(Domain(1, DOMAIN.contract))

    def test_not_for_another_contract(self) -> None:
        assert not self.SIGNED.is_valid(Domain(31337, DEVICE))

    def test_not_for_another_contribution(self) -> None:
        other = Contribution(**(vars(CONTRIBUTION) | {"data_cost": 1201}))
        assert not Signed(other, self.SIGNED.signature).is_valid(DOMAIN)

    def test_not_of_another_device(self, devices: list[LocalAccount]) -> None:
        signature = sign(CONTRIBUTION.encode(DOMAIN), devices[1])
        assert not Signed(CONTRIBUTION, signature).is_valid(DOMAIN)

    @pytest.mark.parametrize("signature", [b"", b"\0" * 64, b"\xff" * 64, b"\0" * 65])
    def test_nonsense_is_not_a_signature(self, signature: bytes) -> None:
        assert not Signed(CONTRIBUTION, signature).is_valid(DOMAIN)


@pytest.fixture(scope="module")
def token(owner: LocalAccount, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Contract]:
    path = tmp_path_factory.mktemp("records") / "ledger.journal"
    with EmbeddedLedger(path, [owner.address]) as ledger:
        yield ledger.deploy(owner, "RewardToken", 10**24)


@pytest.fixture(scope="module")
def contract(owner: LocalAccount, devices: list[LocalAccount], token: Contract) -> Contract:
    model = (b"\1" * 32, b"\2" * 36, b"\3" * 32, UNMEASURED)
    plan = (b"\0" * 32, int(Rule.TREND), 0, 0, 0, 0, 1, 1, 2**32 - 1, 0, 0)
    deployed = token.ledger.deploy(owner, "RecordAndReward", token.address, plan, model)
    deployed.transact(owner, "enrol", [devices[0].address])
    return deployed


class TestAgainstTheContract:
    """What Python hashes and recovers is what the contract does."""

    @settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        device=st.binary(min_size=20, max_size=20),
        version=st.integers(0, 2**32 - 1),
        data_cost=st.integers(0, 2**32 - 1),
        digest=st.binary(min_size=32, max_size=32),
        cid=st.binary(max_size=70),
        classes=st.sets(st.integers(0, 255)),
        errors=st.lists(st.integers(0, 2**32 - 1), max_size=20),
        spent=st.integers(0, 2**64 - 1),
    )
    def test_hashes_of_contributions_agree(
        self,
        contract: Contract,
        device: bytes,
        version: int,
        data_cost: int,
        digest: bytes,
        cid: bytes,
        classes: set[int],
        errors: list[int],
        spent: int,
    ) -> None:
        address = contract._codec.w3.to_checksum_address(device)
        held = tuple(sorted(classes))
        contribution = Contribution(
            address, version, data_cost, digest, cid, held, tuple(errors), spent=spent
        )
        domain = Domain(contract.ledger.chain_id, contract.address)
        there = contract.call("hashContribution", contribution.as_tuple())
        assert there == hash_of(contribution.encode(domain))

    def test_a_submission_is_badly_signed_exactly_if_it_is_not_valid(
        self, owner: LocalAccount, devices: list[LocalAccount], contract: Contract
    ) -> None:
        domain = Domain(contract.ledger.chain_id, contract.address)
        contribution = Contribution(**(vars(CONTRIBUTION) | {"version": 9}))
        good = sign(contribution.encode(domain), devices[0])
        r, s, odd = parts(good)
        signatures = [
            good,
            compact(r, s, 1 - odd),
            compact(r, (ORDER - s) & ~PARITY, odd),
            compact(r, (ORDER - s) & ~PARITY, 1 - odd),
            compact(r, HALF_ORDER + 1, odd),
            compact(ORDER, s, odd),
            compact(0, s, odd),
            b"\0" * 64,
            b"\xff" * 64,
            good[32:] + good[:32],
            *(good[:i] + bytes([good[i] ^ 1 << i % 8]) + good[i + 1 :] for i in range(0, 64, 7)),
            sign(contribution.encode(domain), devices[1]),
            sign(contribution.encode(Domain(domain.chain_id + 1, domain.contract)), devices[0]),
            sign(contribution.encode(Domain(domain.chain_id, DEVICE)), devices[0]),
        ]
        entries = [(contribution.as_tuple(), sig[:32], sig[32:]) for sig in signatures]
        receipt = contract.transact(owner, "submit", entries)
        there = [Refusal(event.args["reason"]) for event in contract.events_in(receipt)]
        here = [
            Refusal.FUTURE_VERSION
            if Signed(contribution, signature).is_valid(domain)
            else Refusal.BAD_SIGNATURE
            for signature in signatures
        ]
        assert here[0] is Refusal.FUTURE_VERSION
        assert here.count(Refusal.BAD_SIGNATURE) == len(signatures) - 1
        assert there == here

    @settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        st.one_of(
            st.binary(min_size=64, max_size=64),
            st.builds(
                compact,
                st.integers(0, MAX_UINT256),
                st.one_of(
                    st.integers(0, HALF_ORDER),
                    st.integers(HALF_ORDER - 2, HALF_ORDER + 2),
                    st.integers(0, 2),
                ),
                st.integers(0, 1),
            ),
        )
    )
    def test_both_recover_the_same_account_from_any_64_bytes(
        self, token: Contract, signature: bytes
    ) -> None:
        """The token's ``permit`` has the same check, and its refusal names whom it recovered."""
        spender, value, deadline = DOMAIN.contract, 5, MAX_UINT256
        message = permit(token, spender, value, deadline)
        _, s, parity = parts(signature)
        arguments = (DEVICE, spender, value, deadline, 27 + parity)
        with pytest.raises(Reverted) as refused:
            token.call("permit", *arguments, signature[:32], s.to_bytes(32, "big"))
        name, _, values = str(refused.value).partition("(")
        there = values.split(", ")[0] if name == "ERC2612InvalidSigner" else None
        here = recover(message, signature)
        assert there == (here and here.lower())


def permit(token: Contract, spender: str, value: int, deadline: int) -> SignableMessage:
    domain = {
        "name": "Flower Chain Reward",
        "version": "1",
        "chainId": token.ledger.chain_id,
        "verifyingContract": token.address,
    }
    types = [
        {"name": "owner", "type": "address"},
        {"name": "spender", "type": "address"},
        {"name": "value", "type": "uint256"},
        {"name": "nonce", "type": "uint256"},
        {"name": "deadline", "type": "uint256"},
    ]
    message = {
        "owner": DEVICE,
        "spender": spender,
        "value": value,
        "nonce": 0,
        "deadline": deadline,
    }
    return encode_typed_data(domain, {"Permit": types}, message)


class TestSums:
    SAID = DecryptedSum(3, b"\1" * 32, b"\2" * 32, b"\3" * 32)

    def test_a_decrypted_sum_has_the_golden_hash(self) -> None:
        assert hash_of(self.SAID.encode(DOMAIN)).hex() == GOLDEN_SUM

    def test_a_key_holder_has_the_golden_hash(self) -> None:
        assert hash_of(KeyHolder(b"\4" * 32).encode()).hex() == GOLDEN_KEY

    def test_every_field_of_a_sum_counts(self) -> None:
        changed = {
            "version": 4,
            "parts": bytes(32),
            "encrypted": bytes(32),
            "decrypted": bytes(32),
        }
        hashes = {
            hash_of(replace(self.SAID, **{name: value}).encode(DOMAIN))
            for name, value in changed.items()
        }
        assert len(hashes | {hash_of(self.SAID.encode(DOMAIN))}) == 5

    def test_the_parts_are_the_same_in_any_order(self) -> None:
        others = [
            replace(CONTRIBUTION, device=device, digest=bytes([n]) * 32)
            for n, device in enumerate((NOBODY, CONTRIBUTION.device))
        ]
        weighed = [(others[0], 1), (others[1], 2)]
        assert parts_of(weighed) == parts_of(reversed(weighed))
        assert (
            parts_of(weighed)
            == hashlib.sha256(
                b"".join(
                    bytes.fromhex(c.device[2:]) + c.digest + weight.to_bytes(4, "big")
                    for c, weight in weighed
                )
            ).digest()
        )
        assert parts_of(weighed) != parts_of([(others[0], 2), (others[1], 1)])
