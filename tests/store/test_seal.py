import hashlib
import os
from typing import Any
from unittest.mock import patch

import pytest
from coincurve import PrivateKey
from golden_seal import ACCOUNTS, GRANT_ACCOUNT, GRANT_RSA, MIXED, RSA_READER
from hypothesis import given
from hypothesis import strategies as st

from flower_chain.errors import SealError
from flower_chain.rsa import RsaKey
from flower_chain.store import seal as module
from flower_chain.store.seal import Kind, rewrap, seal, sealed_bytes, unseal

BOUND = b"run 7, version 3"
KEYS = [
    PrivateKey(hashlib.sha256(f"flower-chain test recipient {i}".encode()).digest())
    for i in range(3)
]
PUBLIC = [key.public_key.format() for key in KEYS]
RSA_PUBLIC = RSA_READER.public_key
OTHER_RSA = RsaKey.new()
GOLDEN = ACCOUNTS
CONTENT = b"a sealed update"


class TestGolden:
    @pytest.mark.parametrize("key", KEYS[:2])
    @pytest.mark.parametrize("sealed", [ACCOUNTS, MIXED], ids=["accounts", "mixed"])
    def test_each_account_opens_it(self, sealed: bytes, key: PrivateKey) -> None:
        assert unseal(sealed, key.secret, BOUND) == CONTENT

    def test_an_rsa_key_opens_it(self) -> None:
        assert unseal(MIXED, RSA_READER.key, BOUND) == CONTENT

    def test_each_sees_for_whom_it_is_sealed(self) -> None:
        recipients = [*PUBLIC[:2], RSA_PUBLIC]
        for secret in (KEYS[0].secret, RSA_READER.key):
            assert unseal(MIXED, secret, BOUND, recipients) == CONTENT

    @pytest.mark.parametrize(
        ("secret", "wrap"),
        [(KEYS[2].secret, GRANT_ACCOUNT), (RSA_READER.key, GRANT_RSA)],
        ids=["account", "rsa"],
    )
    def test_a_wrap_opens_it_for_one_more(self, secret: Any, wrap: bytes) -> None:
        for sealed in (ACCOUNTS, MIXED):  # which have the same content key
            assert unseal(sealed, secret, BOUND, wrap=wrap) == CONTENT

    def test_a_wrap_for_an_account_is_always_the_same(self) -> None:
        assert rewrap(ACCOUNTS, KEYS[0].secret, PUBLIC[2]) == GRANT_ACCOUNT
        assert rewrap(MIXED, RSA_READER.key, PUBLIC[2]) == GRANT_ACCOUNT

    def test_any_changed_byte_is_noticed(self) -> None:
        # But in the wrap of another recipient too: the content is bound to the whole header.
        for place in range(len(GOLDEN)):
            changed = bytearray(GOLDEN)
            changed[place] ^= 1
            with pytest.raises(SealError):
                unseal(bytes(changed), KEYS[0].secret, BOUND)

    @given(st.integers(0, len(MIXED) - 1), st.integers(1, 255))
    def test_any_changed_byte_is_noticed_by_readers_of_both_kinds(
        self, place: int, change: int
    ) -> None:
        changed = bytearray(MIXED)
        changed[place] ^= change
        for secret in (KEYS[1].secret, RSA_READER.key):
            with pytest.raises(SealError):
                unseal(bytes(changed), secret, BOUND)

    @pytest.mark.parametrize("length", [0, 1, 15, 48, 49, 100, len(GOLDEN) - 1])
    def test_a_truncated_file_says_so(self, length: int) -> None:
        with pytest.raises(SealError, match=f"^{length} bytes"):
            unseal(GOLDEN[:length], KEYS[0].secret, BOUND)

    def test_trailing_bytes_are_refused(self) -> None:
        with pytest.raises(SealError, match=f"{len(GOLDEN) + 1} bytes where"):
            unseal(GOLDEN + b"\0", KEYS[0].secret, BOUND)

    def test_another_version_is_named(self) -> None:
        with pytest.raises(SealError, match="sealed in version 2; this package opens version 1"):
            unseal(b"FCS\x02" + GOLDEN[4:], KEYS[0].secret, BOUND)

    def test_another_kind_of_file_is_told(self) -> None:
        with pytest.raises(SealError, match="not a sealed file"):
            unseal(b"PNG" + GOLDEN[3:], KEYS[0].secret, BOUND)

    def test_one_who_is_no_recipient_is_told_who_is(self) -> None:
        with pytest.raises(SealError, match=r"not sealed for 0x.*, but for 0x.*, 0x"):
            unseal(GOLDEN, KEYS[2].secret, BOUND)

    def test_other_associated_data_are_refused(self) -> None:
        with pytest.raises(SealError, match="bound to something else"):
            unseal(GOLDEN, KEYS[0].secret, b"run 7, version 4")

    def test_a_changed_wrap_is_told(self) -> None:
        changed = GOLDEN[:69] + b"\0" + GOLDEN[70:]
        with pytest.raises(SealError, match=r"the key wrapped for 0x.* was changed"):
            unseal(changed, KEYS[0].secret, BOUND)

    def test_an_ephemeral_key_off_the_curve_is_told(self) -> None:
        with pytest.raises(SealError, match="no ephemeral public key"):
            unseal(GOLDEN[:16] + bytes(33) + GOLDEN[49:], KEYS[0].secret, BOUND)

    def test_a_recipient_cannot_be_taken_away(self) -> None:
        header = GOLDEN[:5] + b"\1" + GOLDEN[6:117]
        with pytest.raises(SealError, match="was changed"):
            unseal(header + GOLDEN[185:], KEYS[0].secret, BOUND)

    def test_an_rsa_key_cannot_be_taken_away(self) -> None:
        header = MIXED[:7] + b"\0" + MIXED[8:185]
        with pytest.raises(SealError, match="was changed"):
            unseal(header + MIXED[589:], KEYS[0].secret, BOUND)

    def test_an_rsa_key_that_is_none_of_the_recipients_is_told(self) -> None:
        match = f"not sealed for {RSA_READER.address}, but for 0x"
        with pytest.raises(SealError, match=match):
            unseal(ACCOUNTS, RSA_READER.key, BOUND)

    def test_a_wrap_for_an_rsa_key_that_was_changed_is_told(self) -> None:
        changed = MIXED[:300] + bytes([MIXED[300] ^ 1]) + MIXED[301:]
        match = f"the key wrapped for {RSA_READER.address} was changed"
        with pytest.raises(SealError, match=match):
            unseal(changed, RSA_READER.key, BOUND)

    def test_a_recipient_listed_twice_is_refused(self) -> None:
        doubled = GOLDEN[:117] + GOLDEN[49:117] + GOLDEN[185:]
        with pytest.raises(SealError, match="1 recipients where the header tells of 2"):
            unseal(doubled, KEYS[0].secret, BOUND)

    @pytest.mark.parametrize("secret", [b"", bytes(31), bytes(32), b"\xff" * 32])
    def test_what_is_no_private_key_is_refused_without_being_quoted(self, secret: bytes) -> None:
        with pytest.raises(SealError, match="private key") as caught:
            unseal(GOLDEN, secret, BOUND)
        assert "ff" not in str(caught.value).replace("off", "")


class TestSeal:
    @given(st.binary(max_size=300), st.integers(1, 3), st.binary(max_size=20))
    def test_every_recipient_opens_it(self, data: bytes, count: int, bound: bytes) -> None:
        sealed = seal(data, PUBLIC[:count], bound)
        assert all(unseal(sealed, key.secret, bound) == data for key in KEYS[:count])

    @given(st.binary(max_size=300), st.integers(1, 3))
    def test_the_size_is_known_beforehand(self, data: bytes, count: int) -> None:
        for recipients in (PUBLIC[:count], [*PUBLIC[:count], RSA_PUBLIC], [RSA_PUBLIC]):
            kinds = map(Kind.of, recipients)
            assert len(seal(data, recipients, b"")) == sealed_bytes(len(data), kinds)

    def test_accounts_come_first_in_whatever_order_they_are_given(self) -> None:
        recipients = [RSA_PUBLIC, *PUBLIC, OTHER_RSA.public_key]
        sealed = seal(b"x", recipients, b"")
        for secret in (KEYS[2].secret, RSA_READER.key, OTHER_RSA.key):
            assert unseal(sealed, secret, b"", recipients) == b"x"

    def test_never_gives_the_same_bytes_twice(self) -> None:
        assert seal(b"x", PUBLIC, b"")[16:] != seal(b"x", PUBLIC, b"")[16:]

    def test_a_key_may_be_given_in_any_encoding(self) -> None:
        uncompressed = KEYS[0].public_key.format(compressed=False)
        for encoded in (PUBLIC[0], uncompressed, uncompressed[1:]):
            assert unseal(seal(b"x", [encoded], b""), KEYS[0].secret, b"") == b"x"

    @pytest.mark.parametrize(
        "encoded", [b"", bytes(33), bytes(64), PUBLIC[0][1:], b"\2" * 20, bytes(422)]
    )
    def test_what_is_no_public_key_is_refused(self, encoded: bytes) -> None:
        with pytest.raises(SealError, match="is not a public key"):
            seal(b"x", [encoded], b"")

    def test_nobody_to_seal_for_is_refused(self) -> None:
        with pytest.raises(SealError, match="0 recipients"):
            seal(b"x", [], b"")

    def test_one_recipient_twice_is_refused_in_any_encoding(self) -> None:
        with pytest.raises(SealError, match="2 recipients, 1 of them different"):
            seal(b"x", [PUBLIC[0], KEYS[0].public_key.format(compressed=False)], b"")
        with pytest.raises(SealError, match="2 recipients, 1 of them different"):
            seal(b"x", [RSA_PUBLIC, RSA_PUBLIC], b"")

    def test_who_opens_it_sees_that_all_can(self) -> None:
        assert unseal(seal(b"x", PUBLIC, b""), KEYS[1].secret, b"", PUBLIC) == b"x"

    def test_who_opens_it_sees_that_somebody_else_can_not(self) -> None:
        def wrap(key: bytes, *others: Any) -> bytes:
            return honest(os.urandom(32) if others[1] == KEYS[2].public_key else key, *others)

        honest = module._wrap
        with patch.object(module, "_wrap", wrap):
            sealed = seal(b"x", PUBLIC, b"")
        assert unseal(sealed, KEYS[0].secret, b"") == b"x"
        with pytest.raises(SealError, match="is not the key of this file"):
            unseal(sealed, KEYS[2].secret, b"")
        with pytest.raises(SealError, match="not each of the 3 recipients can open it"):
            unseal(sealed, KEYS[0].secret, b"", PUBLIC)

    @pytest.mark.parametrize("length", [16, 32])
    def test_a_wrap_that_holds_another_key_than_that_of_the_file_is_told(self, length: int) -> None:
        sealed = seal(b"x", PUBLIC, b"")
        label = module._oaep(sealed[16:49], RSA_READER.key.public_key())
        wrap = RSA_READER.key.public_key().encrypt(bytes(length), label)
        with pytest.raises(SealError, match="is not the key of this file"):
            unseal(sealed, RSA_READER.key, b"", wrap=wrap)

    @pytest.mark.parametrize(
        "recipients", [PUBLIC[:2], PUBLIC[::-1], [], [*PUBLIC, RSA_PUBLIC], [RSA_PUBLIC]]
    )
    def test_who_opens_it_sees_that_it_is_sealed_for_others(self, recipients: list[bytes]) -> None:
        with pytest.raises(SealError, match="can open it"):
            unseal(seal(b"x", PUBLIC, b""), KEYS[0].secret, b"", recipients)


class TestRewrap:
    """A file sealed for one account; a wrap for others."""

    SEALED = seal(CONTENT, PUBLIC[:1], BOUND)

    @pytest.mark.parametrize(
        ("public", "secret"),
        [(PUBLIC[1], KEYS[1].secret), (RSA_PUBLIC, RSA_READER.key)],
        ids=["account", "rsa"],
    )
    def test_the_reader_opens_the_file_and_can_pass_it_on(self, public: bytes, secret: Any) -> None:
        wrap = rewrap(self.SEALED, KEYS[0].secret, public)
        assert len(wrap) == Kind.of(public)
        assert unseal(self.SEALED, secret, BOUND, PUBLIC[:1], wrap) == CONTENT
        passed = rewrap(self.SEALED, secret, PUBLIC[2], wrap)
        assert unseal(self.SEALED, KEYS[2].secret, BOUND, wrap=passed) == CONTENT

    def test_an_outsider_can_not_make_one(self) -> None:
        with pytest.raises(SealError, match="not sealed for"):
            rewrap(self.SEALED, KEYS[1].secret, PUBLIC[2])

    def test_what_is_no_public_key_is_refused(self) -> None:
        with pytest.raises(SealError, match="is not a public key"):
            rewrap(self.SEALED, KEYS[0].secret, bytes(33))

    @pytest.mark.parametrize(
        ("public", "secret", "other"),
        [
            (PUBLIC[1], KEYS[1].secret, KEYS[2].secret),
            (RSA_PUBLIC, RSA_READER.key, OTHER_RSA.key),
            (PUBLIC[1], KEYS[1].secret, RSA_READER.key),
            (RSA_PUBLIC, RSA_READER.key, KEYS[1].secret),
        ],
    )
    def test_a_wrap_that_was_moved_to_another_reader_or_file_opens_nothing(
        self, public: bytes, secret: Any, other: Any
    ) -> None:
        wrap = rewrap(self.SEALED, KEYS[0].secret, public)
        with pytest.raises(SealError, match="is for another file or reader"):
            unseal(self.SEALED, other, BOUND, wrap=wrap)
        with pytest.raises(SealError, match="is for another file or reader"):
            unseal(seal(CONTENT, PUBLIC[:1], BOUND), secret, BOUND, wrap=wrap)

    @pytest.mark.parametrize(
        ("public", "secret"), [(PUBLIC[1], KEYS[1].secret), (RSA_PUBLIC, RSA_READER.key)]
    )
    @given(st.data())
    def test_a_changed_or_truncated_wrap_opens_nothing(
        self, public: bytes, secret: Any, data: st.DataObject
    ) -> None:
        wrap = bytearray(rewrap(self.SEALED, KEYS[0].secret, public))
        place = data.draw(st.integers(0, len(wrap) - 1))
        truncated = bytes(wrap[:place])
        wrap[place] ^= data.draw(st.integers(1, 255))
        for bad in (bytes(wrap), truncated):
            with pytest.raises(SealError, match="the key wrapped for"):
                unseal(self.SEALED, secret, BOUND, wrap=bad)
