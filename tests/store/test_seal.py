import hashlib
import os
from typing import Any
from unittest.mock import patch

import pytest
from coincurve import PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from flower_chain.errors import SealError
from flower_chain.store import seal as module
from flower_chain.store.seal import seal, sealed_bytes, unseal

# Written from the module's docstring alone by another implementation (Node.js crypto and
# @noble/curves): content, associated data and keys as in TestGolden.
GOLDEN = bytes.fromhex(
    "464353010002000000000000000f03cd6e486bc04c362d3c4db6ad3e63a58a966a658a17ef07d2042a525a386b"
    "6ac07afd1ddc34aed16a006f11afd23ed37ce7474e7709a2c55aef749e5b7004e10ff4f27682084aca82079e97"
    "54fe9baf463a409978b60c4f809b73f7b625c1fa752e8c0143d414d26b2640d324501f9aec643d7783b9e7c4d2"
    "a3a2c4991af9bbf67ae45df76fd84d1aaabe82bb81df6140265ac0daaf608b21527be1cd81da24480933ffe6c7"
    "b109ee78377b525757b494427f89019c75fdb3f0d561656d488d1d0dec41abdee28800532ee8e62d3a6fa30d14"
    "f2"
)
BOUND = b"run 7, version 3"
KEYS = [
    PrivateKey(hashlib.sha256(f"flower-chain test recipient {i}".encode()).digest())
    for i in range(3)
]
PUBLIC = [key.public_key.format() for key in KEYS]


class TestGolden:
    @pytest.mark.parametrize("key", KEYS[:2])
    def test_each_recipient_opens_it(self, key: PrivateKey) -> None:
        assert unseal(GOLDEN, key.secret, BOUND) == b"a sealed update"

    def test_any_changed_byte_is_noticed(self) -> None:
        # But in the wrap of another recipient too: the content is bound to the whole header.
        for place in range(len(GOLDEN)):
            changed = bytearray(GOLDEN)
            changed[place] ^= 1
            with pytest.raises(SealError):
                unseal(bytes(changed), KEYS[0].secret, BOUND)

    @pytest.mark.parametrize("length", [0, 1, 13, 46, 47, 100, len(GOLDEN) - 1])
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
        changed = GOLDEN[:67] + b"\0" + GOLDEN[68:]
        with pytest.raises(SealError, match=r"the key wrapped for 0x.* was changed"):
            unseal(changed, KEYS[0].secret, BOUND)

    def test_an_ephemeral_key_off_the_curve_is_told(self) -> None:
        with pytest.raises(SealError, match="no ephemeral public key"):
            unseal(GOLDEN[:14] + bytes(33) + GOLDEN[47:], KEYS[0].secret, BOUND)

    def test_a_recipient_cannot_be_taken_away(self) -> None:
        header = GOLDEN[:5] + b"\1" + GOLDEN[6:115]
        with pytest.raises(SealError, match="was changed"):
            unseal(header + GOLDEN[183:], KEYS[0].secret, BOUND)

    def test_a_recipient_listed_twice_is_refused(self) -> None:
        doubled = GOLDEN[:115] + GOLDEN[47:115] + GOLDEN[183:]
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
        assert len(seal(data, PUBLIC[:count], b"")) == sealed_bytes(len(data), count)

    def test_never_gives_the_same_bytes_twice(self) -> None:
        assert seal(b"x", PUBLIC, b"")[14:] != seal(b"x", PUBLIC, b"")[14:]

    def test_a_key_may_be_given_in_any_encoding(self) -> None:
        uncompressed = KEYS[0].public_key.format(compressed=False)
        for encoded in (PUBLIC[0], uncompressed, uncompressed[1:]):
            assert unseal(seal(b"x", [encoded], b""), KEYS[0].secret, b"") == b"x"

    @pytest.mark.parametrize("encoded", [b"", bytes(33), bytes(64), PUBLIC[0][1:], b"\2" * 20])
    def test_what_is_no_public_key_is_refused(self, encoded: bytes) -> None:
        with pytest.raises(SealError, match="is not a public key"):
            seal(b"x", [encoded], b"")

    def test_nobody_to_seal_for_is_refused(self) -> None:
        with pytest.raises(SealError, match="0 recipients"):
            seal(b"x", [], b"")

    def test_one_recipient_twice_is_refused_in_any_encoding(self) -> None:
        with pytest.raises(SealError, match="2 recipients, 1 of them different"):
            seal(b"x", [PUBLIC[0], KEYS[0].public_key.format(compressed=False)], b"")

    def test_who_opens_it_sees_that_all_can(self) -> None:
        assert unseal(seal(b"x", PUBLIC, b""), KEYS[1].secret, b"", PUBLIC) == b"x"

    def test_who_opens_it_sees_that_somebody_else_can_not(self) -> None:
        def wrap(key: bytes, *others: Any) -> bytes:
            return honest(os.urandom(32) if others[1] == KEYS[2].public_key else key, *others)

        honest = module._wrap
        with patch.object(module, "_wrap", wrap):
            sealed = seal(b"x", PUBLIC, b"")
        assert unseal(sealed, KEYS[0].secret, b"") == b"x"
        with pytest.raises(SealError, match="was changed"):
            unseal(sealed, KEYS[2].secret, b"")
        with pytest.raises(SealError, match="not each of the 3 recipients can open it"):
            unseal(sealed, KEYS[0].secret, b"", PUBLIC)

    @pytest.mark.parametrize("recipients", [PUBLIC[:2], PUBLIC[::-1], []])
    def test_who_opens_it_sees_that_it_is_sealed_for_others(self, recipients: list[bytes]) -> None:
        with pytest.raises(SealError, match="can open it"):
            unseal(seal(b"x", PUBLIC, b""), KEYS[0].secret, b"", recipients)
